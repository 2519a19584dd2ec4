"""What a method of separation is given, and what it gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pyrosep.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pyrosep.zoo import PriorSet

__all__ = ["Estimate", "Method", "Problem", "check_draws", "check_least", "check_positive"]


@dataclass(frozen=True)
class Problem:
    """A batch of mixes to separate.

    Attributes:
        mix: ``(window, channel, frame)``, on the priors' device and at their rate.
        priors: for frames of this length.
        gains: of the sources in the mix, ``(source,)``.
        noise: standard deviation of the observation noise.
        keep: draws that are asked for.
        seed: of the batch's draws.
        sample_rate: Hz.
    """

    mix: Tensor
    priors: PriorSet
    gains: Tensor
    noise: float
    keep: int
    seed: int
    sample_rate: int

    @property
    def scale(self) -> Tensor:
        """What turns sources ``(..., source, channel, frame)`` into how they are in the mix."""
        return self.gains[:, None, None]

    def rows(self, chains: int = 1) -> Tensor:
        """Each window and channel so many times, ``(chain * window * channel, frame)``."""
        return self.mix.flatten(0, 1).expand(chains, -1, -1).reshape(-1, self.mix.shape[-1])


@dataclass(frozen=True)
class Estimate:
    """Estimates of the sources of a batch of mixes, as they are in the mix, on the host.

    Attributes:
        mean: ``(window, source, channel, frame)``.
        stddev: the same shape.
        draws: ``(draw, window, source, channel, frame)``, as many as the problem asks for.
        summaries: of every draw, by name, ``(chain, draw, window, channel, ...)``; empty where there are no chains.
    """

    mean: Tensor
    stddev: Tensor
    draws: Tensor
    summaries: dict[str, np.ndarray] = field(default_factory=dict)


class Method(ABC):
    """How a batch of mixes becomes an estimate of its sources: a frozen dataclass, whose fields are all its numbers."""

    #: What :func:`~pyrosep.separation.choose_method` and reports call it.
    name: ClassVar[str]

    @property
    def states(self) -> int:
        """States of a window's sources that are held at once: mean, deviation, and about two temporary ones."""
        return 4

    @property
    def count(self) -> int | None:
        """Number of draws that the method makes; ``None`` if it makes as many as are asked for."""
        return None

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        """Raise ConfigurationError if the method can't separate by these priors, or can't keep so many draws."""
        if self.count is not None:
            check_draws(self.count, keep)

    @abstractmethod
    def posterior(self, problem: Problem) -> Estimate:
        """The sources of a batch of mixes."""

    def numbers(self) -> dict[str, Any]:
        """The method by name, and all its numbers: for reports."""
        return {"name": self.name} | {one.name: getattr(self, one.name) for one in fields(cast(Any, self))}


def check_least(method: Method, **least: int) -> None:
    """Raise ConfigurationError for numbers of a method that are below these."""
    for name, bound in least.items():
        if (given := getattr(method, name)) < bound:
            raise ConfigurationError(f"{name} must be at least {bound}; got {given}")


def check_positive(**numbers: float | None) -> None:
    """Raise ConfigurationError for a number that isn't positive and finite; ``None`` is not chosen yet."""
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigurationError(f"{name} must be a positive number; got {value}")


def check_draws(draws: int, keep: int = 0) -> None:
    """Raise ConfigurationError if this number of draws is too small."""
    if draws < 2:
        raise ConfigurationError("one draw has no standard deviation; take at least 2 chains or draws")
    if keep > draws:
        raise ConfigurationError(f"keep must be between 0 and the {draws} draws that there are; got {keep}")
