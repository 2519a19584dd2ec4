"""A normal distribution on an interval, exact far into its tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["draw_truncated_normal", "truncated_normal"]


def _log_mass(best: Tensor, width: Tensor, low: float, high: float | Tensor) -> tuple[Tensor, Tensor]:
    r"""The mass of a normal of mean ``best`` and deviation ``width`` on [low, high], not normalised.

    Returns :math:`\log \int e^{-(a - \mu)^2 / 2\tau^2 + t^2 / 2} da` and :math:`t`, the distance of the range from
    the mean in units of the deviation. By the symmetry about the middle of the range, only the distances to its nearer
    and farther end count; scaled error functions keep far tails exact.
    """
    near, far = _ends(best, width, low, high)
    tail = near.clamp(min=0)
    root = math.sqrt(0.5)
    # Error functions cost far more than all else here: each is taken where it is wanted only.
    outside = near > 0
    beyond, around = torch.nonzero(outside, as_tuple=True), torch.nonzero(~outside, as_tuple=True)
    drop = torch.exp(-0.5 * (far[beyond].square() - tail[beyond].square()))
    integral = torch.zeros_like(near)
    integral = integral.index_put(
        beyond, torch.special.erfcx(root * tail[beyond]) - drop * torch.special.erfcx(root * far[beyond])
    )
    integral = integral.index_put(around, torch.erf(root * far[around]) - torch.erf(root * near[around]))
    integral = math.sqrt(math.pi / 2) * integral
    return (width * integral).log(), tail


def _ends(best: Tensor, width: Tensor, low: float, high: float | Tensor) -> tuple[Tensor, Tensor]:
    distance, half = (best - (low + high) / 2).abs(), (high - low) / 2
    return (distance - half) / width, (distance + half) / width


def truncated_normal(best: Tensor, width: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithm of its mass, as :func:`_log_mass` has it, its mean, and its variance."""
    log_mass, tail = _log_mass(best, width, low, high)
    near, far = _ends(best, width, low, high)
    inverse = (-log_mass).exp() * width
    rise = torch.exp(-0.5 * near.clamp(max=0).square()) * inverse
    drop = torch.exp(-0.5 * (far.square() - tail.square())) * inverse
    distance = rise - drop  # of its mean from `best`, in deviations, towards the range
    spread = 1 + near * rise - far * drop - distance.square()
    mean = best + width * torch.where(best < (low + high) / 2, distance, -distance)
    return log_mass, mean.clamp(low, high), (width.square() * spread).clamp(min=0, max=(high - low) ** 2 / 4)


def draw_truncated_normal(best: Tensor, width: Tensor, low: float, high: float) -> Tensor:
    """Draws of it, by bisection of its distribution function."""
    log_total, tail = _log_mass(best, width, low, high)
    target = torch.rand_like(best)
    left, right = torch.full_like(best, low), torch.full_like(best, high)
    for _ in range(60):
        split = (left + right) / 2
        log_part, tail_part = _log_mass(best, width, low, split)
        below = (log_part - log_total + 0.5 * (tail.square() - tail_part.square())).exp() < target
        left, right = torch.where(below, split, left), torch.where(below, right, split)
    return (left + right) / 2
