"""Draws of a clean source by a reverse diffusion, for priors that have a denoiser and nothing better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyrosep.priors.base import SourcePrior

__all__ = ["reverse_diffusion"]

#: Where a reverse diffusion ends if the lowest level is zero: so much of where it starts.
_NEARLY_CLEAN = 1e-3


def reverse_diffusion(prior: SourcePrior, value: Tensor, steps: int) -> Tensor:
    r"""A draw of the clean source given its value at the prior's level, ``(..., time)`` each.

    Each step draws :math:`x'` at a lower level given :math:`x` as if the clean source were the denoised one (Ho et al.,
    2020), down a geometric ladder from the prior's level to its ``sigma_min``. The result is the denoised frame there.

    Arguments:
        prior: at the level of the value.
        value: of the prior's batch shape and frame.
        steps: of the ladder.
    """
    top = prior.sigma.to(value)
    bottom = prior.sigma_min / top if prior.sigma_min > 0 else top.new_full(top.shape, _NEARLY_CLEAN)
    ratio = bottom.clamp(max=1.0) ** (1 / steps)
    kept = ratio.square().unsqueeze(-1)
    for i in range(steps):
        level = top * ratio**i
        clean = prior.at(level).denoise(value)
        spread = (level * ratio).unsqueeze(-1) * (1 - kept).sqrt()
        value = clean + kept * (value - clean) + spread * torch.randn_like(value)
    return prior.at(top * ratio**steps).denoise(value)
