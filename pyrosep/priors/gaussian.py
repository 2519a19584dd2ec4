"""Stationary Gaussian sources: the prior whose posterior under a linear mix is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, DataError, ShapeError
from pyrosep.priors.base import SourcePrior
from pyrosep.signal.spectra import full_sum, interpolate_spectrum

__all__ = ["GaussianPrior", "fit_spectrum"]


class GaussianPrior(SourcePrior):
    r"""A stationary Gaussian source on circular frames.

    A frame is treated as one period of a circular process: its covariance is circulant, with eigenvalue
    :math:`P_f` at DFT bin :math:`f`, so that

    .. math:: \log p_\sigma(x) = -\tfrac12 \sum_f \Big[\log 2\pi(P_f + \sigma^2)
              + \frac{|X_f|^2 / T}{P_f + \sigma^2}\Big]

    with :math:`X = \mathrm{fft}(x)` and the sum over all :math:`T` bins. For recordings, whose frames are not
    circular, use tapered frames that overlap (as ``pyrosep separate`` does): the wrap-around then falls where the
    taper is small.

    Arguments:
        spectrum: power per frequency on an even grid from 0 to half the sample rate, ``(bins,)``; white noise of
            variance v has the spectrum v. It is interpolated (in its logarithm) to the bins of the frame.
        frame: samples in a frame.
        sigma: noise level; :math:`P_f + \sigma^2` must be positive.
        sigma_min: lowest noise level.
        sample_rate: Hz.

    Example:
        >>> prior = GaussianPrior(torch.tensor([4.0, 1.0, 0.25]), frame=64, sigma_min=0.0)
        >>> x = prior.sample((10,))
        >>> prior.log_prob(x).shape
        torch.Size([10])
        >>> torch.allclose(prior.at(0.5).denoise(x), x + 0.5**2 * prior.at(0.5).score(x), atol=1e-5)
        True
    """

    has_rsample = True
    exact_draws = True
    is_gaussian = True

    def __init__(
        self,
        spectrum: Tensor,
        frame: int = 16_384,
        sigma: float | Tensor | None = None,
        *,
        sigma_min: float = 1e-3,
        sample_rate: int | None = None,
    ) -> None:
        spectrum = torch.as_tensor(spectrum)
        if spectrum.ndim != 1 or len(spectrum) < 2:
            raise ShapeError(f"expected a spectrum of shape (bins,) with at least 2 bins; got {tuple(spectrum.shape)}")
        if not (bool(torch.isfinite(spectrum).all()) and bool((spectrum > 0).all())):
            raise ConfigurationError("a spectrum must be positive and finite at every bin; add a floor to it")
        super().__init__(frame, sigma, sigma_min=sigma_min, sample_rate=sample_rate)
        self.grid = spectrum  # as given; `frame` interpolates it anew
        self._at_frame(frame)

    def _at_frame(self, time: int) -> None:
        self._spectrum = interpolate_spectrum(self.grid, time // 2 + 1)

    @property
    def spectrum(self) -> Tensor:
        return self._spectrum

    @property
    def mean(self) -> Tensor:
        """Zero, ``batch_shape + (time,)``."""
        return self._spectrum.new_zeros(self.batch_shape + self.event_shape)

    @property
    def stddev(self) -> Tensor:
        """Of one sample of ``x``, the same at all times: ``batch_shape + (time,)``."""
        power = full_sum(self.variance(self._spectrum), self.time).div(self.time)
        return power.sqrt().unsqueeze(-1).expand(self.batch_shape + self.event_shape)

    def variance(self, like: Tensor) -> Tensor:
        r"""Power of ``x`` per bin, :math:`P_f + \sigma^2`, ``batch_shape + (time // 2 + 1,)``."""
        return self._spectrum.to(like) + self._level(like).square()

    def uncertainty(self, sigma: Tensor) -> Tensor:
        own = self.sigma.to(sigma).square().unsqueeze(-1)
        power, added = self._spectrum.to(sigma) + own, sigma.square().unsqueeze(-1) - own
        return added * power / (power + added)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._spectrum.requires_grad or self.sigma.requires_grad:
            self._check_time(value)
            return self._log_prob(value)
        return super().log_prob(value)

    def _log_prob(self, value: Tensor) -> Tensor:
        variance = self.variance(value)
        power = torch.view_as_real(torch.fft.rfft(value)).square().sum(-1)
        return self._constant(variance) - 0.5 / self.time * full_sum(power / variance, self.time)

    def _log_prob_and_score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.variance(value)
        score = self._filter(value, -1.0 / variance)
        return self._constant(variance) + 0.5 * torch.linalg.vecdot(value, score), score

    def _constant(self, variance: Tensor) -> Tensor:
        return -0.5 * (full_sum(variance.log(), self.time) + self.time * math.log(2 * math.pi))

    def score(self, value: Tensor) -> Tensor:
        self._check_time(value)
        return self._filter(value, -1.0 / self.variance(value))

    def draw_clean(self, value: Tensor) -> Tensor:
        self._check_time(value)
        spread = (self._spectrum.to(value) / self.variance(value)).sqrt() * self._level(value)
        return self.denoise(value) + self._filter(torch.randn_like(value), spread)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Reparametrised draws, ``sample_shape + batch_shape + (time,)``: white noise through a zero-phase filter."""
        shape = self._extended_shape(torch.Size(sample_shape))
        white = torch.randn(shape, dtype=self._spectrum.dtype, device=self._spectrum.device)
        return self._filter(white, self.variance(white).sqrt())

    def _filter(self, value: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(value) * response, n=self.time)


def fit_spectrum(frames: Iterable[Tensor], *, floor_db: float = -80.0) -> Tensor:
    r"""Spectrum of the stationary Gaussian that fits a source's recordings best, ``(time // 2 + 1,)``.

    The maximum-likelihood estimate on circular frames is the mean periodogram; each frame is tapered by a Hann
    window of unit mean square first, against the leakage of its edges (Welch, 1967). Frames of silence count as
    data: they lower the level.

    Arguments:
        frames: recordings of the source, each ``(..., time)`` with the same time.
        floor_db: a floor in dB below the spectrum's mean, so that a bin that no recording fills stays positive.

    Raises:
        DataError: no frame came, or every one is silent.

    Example:
        >>> white = torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
        >>> spectrum = fit_spectrum([white])
        >>> spectrum.shape, round(spectrum.mean().item(), 1)
        (torch.Size([129]), 1.0)
    """
    total, count, time = torch.zeros(()), 0, 0
    for batch in frames:
        if count and batch.shape[-1] != time:
            raise ShapeError(f"expected frames of {time} samples, like the first; got {batch.shape[-1]}")
        time = batch.shape[-1]
        taper = torch.hann_window(time, periodic=True, dtype=torch.float64, device=batch.device)
        taper = taper / taper.square().mean().sqrt()
        power = torch.fft.rfft(batch.double() * taper).abs().square() / time
        total = total + power.reshape(-1, time // 2 + 1).sum(0)
        count += batch.shape[:-1].numel()
    if not count:
        raise DataError("expected at least one frame of the source; got none")
    mean = total / count
    level = mean.mean()
    if not level > 0:
        raise DataError("every frame of the source is silent; give recordings in which it plays")
    return mean.clamp(min=level * 10 ** (floor_db / 10)).float()
