"""Spectra: short-time ones, and mean ones on the frequencies of a frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ShortTimeSpectrum", "full_sum", "interpolate_spectrum", "mean_power", "periodogram"]


class ShortTimeSpectrum(nn.Module):
    r"""Spectra of windows that overlap by half, and the signal from them.

    The window is the root of Hann's, before and after, so that spectra that are not changed give the signal back. Of
    white noise of variance one every bin has mean power one.

    Arguments:
        window: samples, even.

    Shapes: ``(..., time)`` to complex ``(..., frame, window // 2 + 1)``, and back.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.size, self.hop = window, window // 2
        self.register_buffer("window", torch.hann_window(window).sqrt(), persistent=False)
        self.window: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (self.hop, self.hop + -x.shape[-1] % self.hop))
        return torch.fft.rfft(x.unfold(-1, self.size, self.hop) * self.window) / math.sqrt(self.hop)

    def inverse(self, spectra: Tensor, time: int) -> Tensor:
        parts = torch.fft.irfft(spectra * math.sqrt(self.hop), n=self.size) * self.window
        first, second = parts.unflatten(-1, (2, self.hop)).unbind(-2)
        return (first[..., 1:, :] + second[..., :-1, :]).flatten(-2)[..., :time]


def full_sum(bins: Tensor, time: int) -> Tensor:
    """Sum over all DFT bins of ``time`` samples, of what is given on the non-negative frequencies: ``(..., bins)``.

    All bins but those at 0 Hz and half the sample rate stand for two.
    """
    return bins.sum(-1) + bins[..., 1 : (time + 1) // 2].sum(-1)


def interpolate_spectrum(spectrum: Tensor, bins: int) -> Tensor:
    """A spectrum on another even grid from 0 to half the sample rate, linear in the logarithm."""
    if len(spectrum) == bins:
        return spectrum
    position = torch.linspace(0, len(spectrum) - 1, bins, dtype=torch.float64, device=spectrum.device)
    left = position.long().clamp(max=len(spectrum) - 2)
    weight = (position - left).to(spectrum.dtype)
    log_power = spectrum.log()
    return torch.lerp(log_power[left], log_power[left + 1], weight).exp()


def mean_power(spectrum: Tensor) -> Tensor:
    """Of a sample: the mean of a spectrum over all DFT bins, of which all but the first and last come twice."""
    return (spectrum[1:] + spectrum[:-1]).mean() / 2


def periodogram(clean: Tensor) -> Tensor:
    """Mean power per frequency of frames ``(n, time)``, positive everywhere: ``(time // 2 + 1,)``."""
    spectrum = torch.fft.rfft(clean.double()).abs().square().mean(0) / clean.shape[-1]
    return spectrum.clamp(min=float(spectrum.mean()) * 1e-9).float()
