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
        method: ``"langevin"`` (chains of :class:`~pyrosep.MALA`, after an :class:`~pyrosep.AnnealedSearch` where
            the posterior may have several modes), ``"guide+langevin"`` (the same, chains from draws of the guide; with
            coupling ``"shared"`` three quarters from its mean, one from the mix), ``"guide"`` (the guide's own mean
            and deviation), ``"exact"`` (closed form; Gaussian priors only), or
            ``"one-pass"`` (one call of each prior's denoiser, on the mix itself, for priors whose denoisers are filters
            and know interference: a :class:`~pyrosep.infer.search.descent.Descent` of one level).
            ``None`` is ``"guide+langevin"`` where there is a guide, else ``"langevin"``.
        coupling: of the search: ``"sweeps"``, ``"shared"``, or a coupling of :func:`~pyrosep.noised` for Langevin
            moves, see :class:`~pyrosep.AnnealedSearch`; ``None`` for ``"shared"`` with priors whose denoisers are
            filters and know interference, ``"local"`` with other filters, sweeps with others that are not Gaussian,
            and no search with those that are.
        ladder: noise levels of the search, or how many; ``None`` for 20, with ``"local"`` 12, with ``"shared"`` 4.
            Giving either makes a search.
        redraws: block redraws of the search; see :class:`~pyrosep.AnnealedSearch`.
        chains: chains for each window and channel; ``None`` for 4, with coupling ``"shared"`` 8. With ``"one-pass"``,
            as many draws, all from one call.
        draws: draws kept from each chain; ``None`` for 100, with couplings ``"local"`` and ``"shared"`` 1: where the
            search ends.
        warmup: steps before the first draw; ``None`` for 50, with couplings ``"local"`` and ``"shared"`` 0.
        segment: seconds in a window; ``None`` for the priors' own frame.
        overlap: share of a window that it has in common with the next, below or equal to a half.
        gains: ``"mean"``, ``"level"``, ``"fit"``, or one gain a source; ``None`` for the prior set's own way; see
            :class:`~pyrosep.zoo.PriorSetInfo`.
        precision: ``"32-true"`` or ``"bf16-mixed"``, of networks that can be evaluated in half precision; see
            :meth:`~pyrosep.ContinuousFlow.with_autocast`; ``"auto"`` for half precision of networks that stay
            accurate in it, on devices that are quicker in it.
        compile: whether networks are compiled by ``torch.compile``, which takes a minute or more at first; for many or
            long tracks. See :meth:`~pyrosep.ContinuousFlow.compiled`.
        noise_db: level of the observation noise below the mix's, in dB.
        keep: draws of the sources to give beside their mean: spread evenly over all draws, chain after chain. Each is a
            draw within its windows, which are independent of each other, cross-faded.
        temperature: by how much draws lie further from their mean than the chains of a search left them, so that
            intervals by them hold what they say; the mean stays. ``None`` for the prior set's own where it has one for
            the method (:func:`~pyrosep.evaluation.calibration.calibrate`) and ``coupling`` is ``"shared"``, else 1.
        seed: of the draws.

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
