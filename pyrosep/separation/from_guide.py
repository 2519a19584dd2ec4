"""Separating by a guide alone, and starting chains from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.guides import EncoderGuide
from pyrosep.guides.encoder import error_level_of
from pyrosep.infer import seeded
from pyrosep.separation.problem import Estimate, Method, Problem
from pyrosep.zoo import PriorSet

__all__ = ["FromGuide", "GuideStart", "checked_guide", "guide_moments"]


@dataclass(frozen=True)
class FromGuide(Method):
    """A guide's own mean, deviation and draws: one pass of its encoder."""

    name: ClassVar[str] = "guide"

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        checked_guide(priors)

    def posterior(self, problem: Problem) -> Estimate:
        mean, deviation = guide_moments(problem)
        if not problem.keep:
            return Estimate(mean, deviation, mean.new_zeros(0, *mean.shape))
        with torch.no_grad(), seeded(problem.seed):
            drawn = GuideStart(checked_guide(problem.priors), problem.gains)(
                problem.mix.expand(problem.keep, *problem.mix.shape)
            )
        draws = torch.stack([drawn[name] for name in problem.priors], 2).cpu() * problem.scale
        return Estimate(mean, deviation, draws)


def guide_moments(problem: Problem) -> tuple[Tensor, Tensor]:
    """The guide's mean and deviation of the sources as they are in the mix, ``(window, source, channel, frame)``."""
    with torch.no_grad():
        mean, deviation = GuideStart(checked_guide(problem.priors), problem.gains).moments(problem.mix)
    return (
        mean.transpose(1, 2).cpu() * problem.scale,
        deviation.transpose(1, 2).cpu() * problem.scale.abs(),
    )


class GuideStart:
    """A guide for a mix with other gains than it was trained with: it gives sources as they are in the mix.

    A guide's sources grow with the mix, so that gains in the same ratios make no difference at all.

    Called, it draws them, or with ``drawn=False`` gives their means. Moments are found once for mixes that are given
    ``copies`` times, all of them in a row each time (:meth:`~pyrosep.separation.problem.Problem.rows`).
    """

    def __init__(self, guide: EncoderGuide, gains: Tensor, *, drawn: bool = True, copies: int = 1) -> None:
        assert guide.gains is not None
        self.guide, self.drawn, self.copies, own = guide, drawn, copies, guide.gains
        gains = gains.to(own)
        #: Between the levels of the two mixes, and of each source.
        self.level = gains.norm() / own.norm()
        self.scale = (self.level * own / gains).unsqueeze(-1)

    def __call__(self, mix: Tensor) -> dict[str, Tensor]:
        if self.drawn:
            with poutine.block():
                values = self.guide(mix / self.level)
        else:
            values = dict(zip(self.guide.names, self._moments(mix)[0].unbind(-2), strict=True))
        scaled = {name: value * scale for (name, value), scale in zip(values.items(), self.scale, strict=True)}
        return {name: pyro.sample(name, dist.Delta(value).to_event(1)) for name, value in scaled.items()}

    def error_level(self, mix: Tensor) -> Tensor:
        """How far the sources are off by the guide's deviations, rms of a sample: the batch shape of the mix."""
        return error_level_of(self.moments(mix)[1])

    def moments(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self._moments(mix)
        return mean * self.scale, deviation * self.scale.abs()

    def _moments(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        """The guide's own, of each mix once."""
        single = mix[: len(mix) // self.copies] / self.level
        mean, deviation = (value.repeat(self.copies, *[1] * (value.ndim - 1)) for value in self.guide.moments(single))
        return mean, deviation


def checked_guide(priors: PriorSet) -> EncoderGuide:
    """The guide of a prior set, by which tracks can be separated."""
    guide = priors.guide()
    if guide is None:
        raise ConfigurationError("this method needs a guide; train one for these priors, or use 'langevin'")
    if guide.gains is None or guide.channels is not None or guide.head_names:
        raise ConfigurationError(
            "to separate a track a guide must be projected onto mixes of one channel, with fixed gains and no other "
            "sites: EncoderGuide(priors, project=True or gains)"
        )
    return guide
