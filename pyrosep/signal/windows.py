"""Tracks window by window: overlapping windows in, cross-faded blocks out, whatever the track's length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError

__all__ = ["cross_fade", "fade_in", "windows_of"]


def fade_in(overlap: int, like: Tensor) -> Tensor:
    r"""Weights :math:`\sin^2` from 0 to 1 over ``overlap`` samples; with their mirror image they sum to one."""
    position = (torch.arange(overlap, dtype=torch.float64, device=like.device) + 0.5) / max(1, overlap)
    return (math.pi / 2 * position).sin().square().to(like.dtype)


def windows_of(samples: Tensor, window: int, hop: int) -> Iterator[Tensor]:
    """Windows ``(..., window)`` of samples in memory, each ``hop`` after the last; the last one may be shorter."""
    if not 1 <= hop <= window:
        raise ConfigurationError(f"expected a hop from 1 to the window's {window} samples; got {hop}")
    start = 0
    while True:
        yield samples[..., start : start + window]
        if start + window >= samples.shape[-1]:
            return
        start += hop


def cross_fade(windows: Iterable[Tensor], overlap: int) -> Iterator[Tensor]:
    """Join windows ``(..., time)`` that overlap by ``overlap`` samples into consecutive blocks.

    Every window but a single one must be longer than the overlap. The weights of two windows sum to one where they
    meet, so that windows of one signal give the signal back. Holds no more than one window at a time.

    Example:
        >>> signal = torch.arange(10.0)
        >>> torch.cat(list(cross_fade(windows_of(signal, 6, 4), overlap=2))).allclose(signal)
        True
    """
    tail: Tensor | None = None
    for window in windows:
        if tail is not None:
            rise = fade_in(overlap, window)
            head = tail * (1 - rise) + window[..., :overlap] * rise
            window = torch.cat([head, window[..., overlap:]], -1)
        ready = max(0, window.shape[-1] - overlap)
        tail = window[..., ready:]
        if ready:
            yield window[..., :ready]
    if tail is not None and tail.shape[-1]:
        yield tail
