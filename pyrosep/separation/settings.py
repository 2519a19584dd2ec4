"""How a track is separated: what a user asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pyrosep.errors import ConfigurationError
from pyrosep.separation.methods import METHODS
from pyrosep.separation.problem import Method

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """How a track is separated: the method, and everything that concerns the track.

    Attributes:
        method: What finds the sources: one of the methods of :mod:`pyrosep.separation`, with all its numbers, or the
            name of one, with the numbers that suit the priors. By default the method that suits the priors
            (:func:`~pyrosep.separation.choose_method`).
        segment: Seconds in a window. By default the priors' own frame.
        overlap: Share of a window that it has in common with the next, at most 0.5.
        gains: How loud the sources are in the mix: ``mean``, ``level``, ``fit``, or one number for each source. By
            default the prior set's own way.
        precision: Of networks: ``32-true``, ``bf16-mixed``, or ``auto``: half precision for networks that stay accurate
            in it, on devices that are quicker in it.
        compile: Compile networks by torch.compile. This takes a minute or more at first, and pays for long tracks.
        noise_db: Level of the observation noise below the mix, in dB.
        keep: Posterior draws to give beside their mean, spread evenly over all draws. Each is a draw within its
            windows, which are independent of each other and cross-faded.
        seed: Seed of the draws.

    Raises:
        ConfigurationError: a value that is out of range; the error names it.
    """

    method: Method | str | None = None
    segment: float | None = None
    overlap: float = 0.25
    gains: str | Sequence[float] | None = None
    precision: str = "auto"
    compile: bool = False
    noise_db: float = -60.0
    keep: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.method, str) and self.method not in METHODS:
            raise ConfigurationError(f"method must be one of {tuple(METHODS)}; got {self.method!r}")
        if self.keep < 0:
            raise ConfigurationError(f"keep must be between 0 and the draws that there are; got {self.keep}")
        if self.segment is not None and not 0 < self.segment < math.inf:
            raise ConfigurationError(f"segment must be a positive number of seconds; got {self.segment}")
        if not 0 <= self.overlap <= 0.5:
            raise ConfigurationError(f"overlap must be between 0 and 0.5 of a window; got {self.overlap}")
        if isinstance(self.gains, str) and self.gains not in ("mean", "level", "fit"):
            raise ConfigurationError(f"gains must be 'mean', 'level', 'fit' or numbers; got {self.gains!r}")
        if self.gains is not None and not isinstance(self.gains, str) and not all(map(math.isfinite, self.gains)):
            raise ConfigurationError(f"gains must be finite; got {self.gains}")
        if self.precision != "auto":
            from pyrosep.nn.precision import check_precision

            check_precision(self.precision)
        if not self.noise_db < 0:
            raise ConfigurationError(f"noise_db must be below 0, under the mix; got {self.noise_db}")

    def of_track(self) -> dict[str, Any]:
        """Everything but the method, by name: for reports, which hold the method with all its numbers beside it."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "method"}
