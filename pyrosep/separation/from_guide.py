"""A guide of a prior set, for mixes with gains of their own: its moments, and starts of chains."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.guides import EncoderGuide
from pyrosep.guides.encoder import error_level_of
from pyrosep.separation.problem import Problem
from pyrosep.zoo import PriorSet

__all__ = ["GuideStart", "checked_guide", "guide_moments"]


def guide_moments(problem: Problem, shifts: int = 1) -> tuple[Tensor, Tensor]:
    """The guide's mean and deviation of the sources as they are in the mix, ``(window, source, channel, frame)``.

    Averaged over so many shifts of the mix: :meth:`~pyrosep.EncoderGuide.with_shifts`.
    """
    with torch.no_grad():
        mean, deviation = GuideStart(checked_guide(problem.priors, shifts), problem.gains).moments(problem.mix)
    return (
        mean.transpose(1, 2).cpu() * problem.scale,
        deviation.transpose(1, 2).cpu() * problem.scale.abs(),
    )


class GuideStart:
    """A guide for mixes with other gains than it was trained with; it gives sources as they are in the mix.

    A guide's sources grow with the mix, so gains in the same ratios make no difference.

    A call draws the sources, or gives their means if ``drawn`` is false. Moments are computed once for mixes that are
    given ``copies`` times, all of them in a row each time (:meth:`~pyrosep.separation.problem.Problem.rows`).
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


def checked_guide(priors: PriorSet, shifts: int = 1) -> EncoderGuide:
    """The guide of a prior set, by which tracks can be separated, averaged over so many shifts of the mix."""
    guide = priors.guide()
    if guide is None:
        raise ConfigurationError("this method needs a guide; train one for these priors, or use 'langevin'")
    if guide.gains is None or guide.channels is not None or guide.head_names:
        raise ConfigurationError(
            "to separate a track a guide must be projected onto mixes of one channel, with fixed gains and no other "
            "sites: EncoderGuide(priors, project=True or gains)"
        )
    return guide.with_shifts(shifts)
