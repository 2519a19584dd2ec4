"""How a mix is separated: what a user asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyrosep.errors import ConfigurationError
from pyrosep.infer.search.annealed import moves_named
from pyrosep.infer.search.ladder import check_ladder
from pyrosep.nn.precision import chosen_precision

__all__ = ["METHODS", "Settings"]

#: Names of the methods: see :mod:`pyrosep.separation.methods`.
METHODS = ("langevin", "one-pass", "exact", "guide", "guide+langevin")


@dataclass(frozen=True)
class Settings:
    """How a mix is separated. What is ``None`` is chosen for the priors: :func:`~pyrosep.separation.choose_method`.

    Attributes:
        method: What finds the sources. ``langevin``: chains, after a search where the posterior may have several modes.
            ``guide``: the mean and deviation of the guide alone. ``guide+langevin``: chains from the guide.
            ``one-pass``: one call of each prior's denoiser, on the mix itself, for priors that filter and know
            interference. ``exact``: the closed form, for Gaussian priors. By default chains, from the guide where there
            is one.
        coupling: How the search goes: ``sweeps``, ``shared`` (a descent of all sources together), or Langevin moves
            ``noisy``, ``denoised``, ``constraint`` or ``local``. By default ``shared`` with priors that filter and know
            interference, ``local`` with others that filter, no search with Gaussian priors, else ``sweeps``.
        ladder: Noise levels of the search: how many, or the falling levels themselves. By default 20; 12 with coupling
            ``local``, 4 with ``shared``. Giving either makes a search.
        redraws: Block redraws of the search.
        chains: Chains for each window and channel; with ``one-pass``, draws. By default 4, or 8 with coupling
            ``shared``.
        draws: Draws kept from each chain. By default 100; 1, where the search ends, with couplings ``local`` and
            ``shared``.
        warmup: Steps before the first draw, in which the step size adapts. By default 50; 0 with couplings ``local``
            and ``shared``.
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
        temperature: Factor for the distances of draws from their mean, and for standard deviations; the mean stays. By
            default what the prior set was calibrated to for the method, else 1.
        seed: Seed of the draws.

    Raises:
        ConfigurationError: a value that is out of range; the error names it.
    """

    method: str | None = None
    coupling: str | None = None
    ladder: int | Sequence[float] | None = None
    redraws: int = 24
    chains: int | None = None
    draws: int | None = None
    warmup: int | None = None
    segment: float | None = None
    overlap: float = 0.25
    gains: str | Sequence[float] | None = None
    precision: str = "auto"
    compile: bool = False
    noise_db: float = -60.0
    keep: int = 0
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS):
            raise ConfigurationError(f"method must be one of {METHODS}; got {self.method!r}")
        if self.coupling is not None:
            moves_named(self.coupling)  # whose error tells of others
        if self.ladder is not None and not isinstance(self.ladder, int):
            check_ladder(self.ladder)
        if isinstance(self.ladder, int) and self.ladder < 2:
            raise ConfigurationError(f"a ladder needs at least 2 levels; got {self.ladder}")
        for name, least in (("chains", 1), ("draws", 1), ("warmup", 0), ("redraws", 0)):
            if (given := getattr(self, name)) is not None and given < least:
                raise ConfigurationError(f"{name} must be at least {least}; got {given}")
        if self.keep < 0:
            raise ConfigurationError(f"keep must be between 0 and the draws that there are; got {self.keep}")
        if self.method not in ("exact", "guide") and self.draws is not None and self.chains is not None:
            check_draws(self.chains * self.draws, self.keep)
        if self.segment is not None and not 0 < self.segment < math.inf:
            raise ConfigurationError(f"segment must be a positive number of seconds; got {self.segment}")
        if not 0 <= self.overlap <= 0.5:
            raise ConfigurationError(f"overlap must be between 0 and 0.5 of a window; got {self.overlap}")
        if isinstance(self.gains, str) and self.gains not in ("mean", "level", "fit"):
            raise ConfigurationError(f"gains must be 'mean', 'level', 'fit' or numbers; got {self.gains!r}")
        if self.gains is not None and not isinstance(self.gains, str) and not all(map(math.isfinite, self.gains)):
            raise ConfigurationError(f"gains must be finite; got {self.gains}")
        chosen_precision(self.precision, "cpu")  # whose error tells of others
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ConfigurationError(f"temperature must be a positive number; got {self.temperature}")
        if not self.noise_db < 0:
            raise ConfigurationError(f"noise_db must be below 0, under the mix; got {self.noise_db}")


def check_draws(draws: int, keep: int) -> None:
    """Raise ConfigurationError where so many draws are too few."""
    if draws < 2:
        raise ConfigurationError("one draw has no standard deviation; take at least 2 chains or draws")
    if keep > draws:
        raise ConfigurationError(f"keep must be between 0 and the {draws} draws that there are; got {keep}")
