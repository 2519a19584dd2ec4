"""How likely sources are under priors without a density, told by how well those denoise them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrosep.priors import SourcePrior
from pyrosep.priors.base import rms

__all__ = ["DenoisingEnergy"]

#: Levels where nobody gives them: how many, the lowest relative to the priors' own and the highest to a source's rms.
_LEVELS, _LOWEST, _HIGHEST = 4, 3.0, 0.5
#: Draws that tell what is usual of a prior, and steps of the reverse diffusion that each takes.
_DRAWS, _STEPS = 8, 16


class DenoisingEnergy:
    r"""Minus the log-density of sources, but for a constant of each prior, from denoising errors at several levels.

    .. math:: -\log p(s) = \mathrm{const} + \int \mathbb{E}_\epsilon
              \frac{\|s - D(s + \sigma\epsilon; \sigma)\|^2}{\sigma^2} \, d\log\sigma

    (Kong, Brekelmans & Ver Steeg, 2023, from Guo, Shamai & Verdú, 2005). Here the integral is a sum over few levels
    with one :math:`\epsilon` for each, which stays the same: what two states differ by is then not their noise. A frame
    that is not of the source has an energy many times that of the prior's own draws, and so has a mix's source that
    holds what belongs to another one, where the residual of the mix is as small as it can be.

    Arguments:
        priors: of the sources, in order.
        levels: falling or rising noise levels; by default four, from three times the priors' own to half a source's
            rms, at which different sources are well told apart.
    """

    def __init__(self, priors: Sequence[SourcePrior], levels: Sequence[float] | None = None) -> None:
        self.priors = list(priors)
        if levels is None:
            top = _HIGHEST * max(rms(prior) for prior in self.priors)
            bottom = min(_LOWEST * max(float(prior.sigma.max()) for prior in self.priors), top / 2)
            levels = [bottom * (top / bottom) ** (number / (_LEVELS - 1)) for number in range(_LEVELS)]
        self.levels = tuple(levels)
        #: Noise of variance 1, ``(level, time)``.
        self.noise = torch.randn(len(self.levels), self.priors[0].time)
        logs = torch.tensor(self.levels, dtype=torch.float64).log()
        steps = logs.diff().abs() / 2
        #: Of each level in the integral, by the trapezoidal rule.
        self.weights = torch.cat([steps, steps.new_zeros(1)]) + torch.cat([steps.new_zeros(1), steps])

    @property
    def calls(self) -> int:
        """Denoiser calls for the energy of one source."""
        return len(self.levels)

    def __call__(self, index: int, sources: Tensor) -> Tensor:
        """Energies of frames ``(n, time)`` as source ``index``, in nats: ``(n,)``."""
        total = sources.new_zeros(len(sources), dtype=torch.float64)
        for level, weight, noise in zip(self.levels, self.weights.tolist(), self.noise.to(sources), strict=True):
            wrong = self.priors[index].at(level).denoise(sources + level * noise) - sources
            total = total + weight / level**2 * wrong.double().square().sum(-1)
        return total

    @property
    def usual_calls(self) -> int:
        """Denoiser calls for what is usual of one source."""
        return _DRAWS * (_STEPS + 1 + self.calls)

    def usual(self, index: int) -> Tensor:
        """The least energy of draws from prior ``index``, nats: a short reverse diffusion leads some of them astray."""
        prior = self.priors[index]
        top = rms(prior) * math.sqrt(prior.time) / 3
        start = prior.at(top)
        start.reverse_steps = _STEPS
        noise = top * torch.randn(_DRAWS, prior.time).to(prior.sigma)
        return self(index, start.draw(noise, prior.sigma.mean())).min()
