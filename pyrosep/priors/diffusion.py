"""Draws of a clean source by a reverse diffusion, for priors that have a denoiser and nothing better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrosep.errors import DivergenceError
from pyrosep.signal.spectra import full_sum

if TYPE_CHECKING:
    from pyrosep.priors.base import SourcePrior

__all__ = ["is_astray", "reverse_diffusion"]

#: Where a reverse diffusion ends if the lowest level is zero: so much of where it starts.
_NEARLY_CLEAN = 1e-3


#: A draw that is louder than its value, the noise and the source together by this factor is none.
_LOUDER = 10.0


def is_astray(prior: SourcePrior, value: Tensor, drawn: Tensor) -> Tensor:
    """Which draws of the clean source given its value are not finite, or far louder than any can be: ``(...)``.

    A draw differs from the value by noise of the prior's level. Denoisers that are asked at levels, or of frames, that
    they have never seen may lead a reverse diffusion anywhere.
    """

    def loudness(x: Tensor) -> Tensor:
        return x.double().square().mean(-1).sqrt()

    spectrum = prior.spectrum
    own = 0.0 if spectrum is None else float(full_sum(spectrum.double(), prior.time).div(prior.time).sqrt())
    limit = _LOUDER * (loudness(value) + prior.sigma.to(value.device).double() + own)
    return ~(loudness(drawn) <= limit) & value.isfinite().all(-1)


def reverse_diffusion(prior: SourcePrior, value: Tensor, steps: int) -> Tensor:
    r"""A draw of the clean source given its value at the prior's level, ``(..., time)`` each.

    Each step draws :math:`x'` at a lower level given :math:`x` as if the clean source were the denoised one (Ho et al.,
    2020), down a geometric ladder from the prior's level to its ``sigma_min``. The result is the denoised frame there.

    Arguments:
        prior: at the level of the value.
        value: of the prior's batch shape and frame.
        steps: of the ladder.

    Raises:
        DivergenceError: a draw is not finite, or far louder than any can be.
    """
    start = value
    top = prior.sigma.to(value)
    bottom = prior.sigma_min / top if prior.sigma_min > 0 else top.new_full(top.shape, _NEARLY_CLEAN)
    ratio = bottom.clamp(max=1.0) ** (1 / steps)
    kept = ratio.square().unsqueeze(-1)
    for i in range(steps):
        level = top * ratio**i
        clean = prior.at(level).denoise(value)
        spread = (level * ratio).unsqueeze(-1) * (1 - kept).sqrt()
        value = clean + kept * (value - clean) + spread * torch.randn_like(value)
    drawn = prior.at(top * ratio**steps).denoise(value)
    astray = is_astray(prior, start, drawn)
    if bool(astray.any()):
        level = prior.sigma.expand(astray.shape)[astray.to(prior.sigma.device)]
        raise DivergenceError(
            f"{int(astray.sum())} of {astray.numel()} draws of a clean source by a reverse diffusion are not finite, "
            f"or far louder than any can be, from noise levels {float(level.min()):.3g} to {float(level.max()):.3g}: "
            f"the denoiser of this {type(prior).__name__} is of no use at levels or frames that it was not trained on. "
            "Start from a lower level"
        )
    return drawn
