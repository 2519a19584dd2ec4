"""A filter that hears pitch: what it lets through it decides along the logarithm of the frequency."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrosep.nn.wavenet import WaveNet

__all__ = ["HarmonicGate"]

#: Octaves below half the sample rate, and positions in each.
_OCTAVES, _PER_OCTAVE = 9, 60
#: Layers of the network: with kernels of 5, an output sees four octaves to either side.
_LAYERS, _KERNEL = 7, 5
#: Power of a line that counts as silence; a full-scale sine has 1.
_LEAST_POWER = 1e-7


class HarmonicGate(nn.Module):
    r"""Filters of a signal, one for each source, chosen by what the spectrum looks like at all pitches.

    Harmonics of a tone are the same distances apart on a logarithmic axis whatever its pitch, so convolutions along
    that axis know a timbre wherever it stands (the constant-Q transform of Brown, 1991, is used for the same reason).
    Power spectra of the whole frame, under a Hann window, are summed to positions on that axis, 60 an octave; a
    :class:`~pyrosep.nn.wavenet.WaveNet` along it gives each source's gate in [0, 1], which is taken back to the
    Fourier bins and filters the signal. A steady line has the same power in frames of any length.

    Arguments:
        seen: signals whose spectra are looked at.
        sources: filters.
        width: channels of the network.

    Shapes: signals seen ``(n, seen, time)`` and filtered ``(n, channel, time)`` to ``(n, sources * channel, time)``.
    """

    def __init__(self, seen: int, sources: int, *, width: int) -> None:
        super().__init__()
        self.net = WaveNet(seen, sources, width=width, layers=_LAYERS, kernel=_KERNEL)

    def forward(self, seen: Tensor, x: Tensor) -> Tensor:
        time = x.shape[-1]
        axis = _axis(time, x.device, x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft(seen * axis.window, n=2 * time)
            power = torch.view_as_real(spectrum).square().sum(-1) @ axis.gather
            h = (power + _LEAST_POWER).log() / 4
        gate = self.net(h)
        with torch.autocast(x.device.type, enabled=False):
            gate = gate.to(x.dtype).sigmoid()
            gate = gate[..., axis.below] * (1 - axis.share) + gate[..., axis.below + 1] * axis.share
            filtered = torch.fft.rfft(x, n=2 * time).unsqueeze(1) * gate.unsqueeze(2)
            return torch.fft.irfft(filtered, n=2 * time)[..., :time].flatten(1, 2)


class _Axis(NamedTuple):
    """Attributes:
    window: ``(time,)``, whose line of amplitude 1 has power 1.
    gather: from bins to positions, ``(bin, position)``.
    below: position below each bin.
    share: of the position above it.
    """

    window: Tensor
    gather: Tensor
    below: Tensor
    share: Tensor


@functools.lru_cache(maxsize=8)
def _axis(time: int, device: torch.device, dtype: torch.dtype) -> _Axis:
    double = torch.float64
    length, count = 2 * time, _OCTAVES * _PER_OCTAVE
    bins = torch.arange(length // 2 + 1, dtype=double)
    ratio = 2 ** (1 / _PER_OCTAVE)
    centre = length / 2 * ratio ** (torch.arange(count, dtype=double) + 1 - count)  # in bins; the last is half the rate
    # Triangles; where positions are closer than bins they interpolate between bins.
    wide = (centre * (ratio - 1)).clamp(min=1.0)
    gather = (1 - (bins.unsqueeze(-1) - centre).abs() / wide).clamp(min=0)
    # What a triangle gathers of the main lobe of a line at its centre: the lobe of a Hann window, in half bins.
    away = torch.arange(-3, 4, dtype=double) + 1e-6  # where the fraction is 0 / 0, it is near its limit
    lobe = (torch.sinc(away / 2) / (1 - (away / 2).square())).square()
    gather = gather / (lobe.unsqueeze(-1) * (1 - away.abs().unsqueeze(-1) / wide).clamp(min=0)).sum(0)
    place = (bins.clamp(min=0.25) / (length / 2)).log2() * _PER_OCTAVE + count - 1
    place = place.clamp(0, count - 1)
    below = place.floor().long().clamp(max=count - 2)
    # Nowhere zero, for frames of a few samples too.
    window = (math.pi * (torch.arange(time, dtype=double) + 0.5) / time).sin().square()
    window = 2 * window / window.sum()
    return _Axis(
        window.to(device, dtype), gather.to(device, dtype), below.to(device), (place - below).to(device, dtype)
    )
