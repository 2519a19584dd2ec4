"""Observations whose noise is of another power at each frequency, or in each bin of a short-time spectrum."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrosep.signal.spectra import ShortTimeSpectrum, full_sum

__all__ = ["LocalNormal", "StationaryNormal"]


class LocalNormal(dist.TorchDistribution):
    r"""A mean plus Gaussian noise with a power of its own in each bin of a short-time spectrum R.

    .. math:: \log p(m) \approx -\tfrac14 \sum_{tf} \Big[\log 2\pi V_{tf} + \frac{|R_{tf}|^2}{V_{tf}}\Big],
              \qquad R = \mathrm{STFT}(m - \mu)

    over all bins of windows that overlap by half. Of white noise it is the density; else it stands for one, the bins
    taken as though they were independent.

    Arguments:
        loc: :math:`\mu`, ``(..., time)``.
        variance: V on the non-negative frequencies, ``(..., frame, bin)``.
        transform: of the short-time spectrum.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(self, loc: Tensor, variance: Tensor, transform: ShortTimeSpectrum) -> None:
        self.loc, self.variance_of_bins, self.transform = loc, variance, transform
        batch = torch.broadcast_shapes(loc.shape[:-1], variance.shape[:-2])
        super().__init__(batch, loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LocalNormal:
        return LocalNormal(
            self.loc.expand(torch.Size(batch_shape) + self.event_shape), self.variance_of_bins, self.transform
        )

    def log_prob(self, value: Tensor) -> Tensor:
        variance = self.variance_of_bins
        power = torch.view_as_real(self.transform((value - self.loc).to(variance))).square().sum(-1)
        bins = (2 * math.pi * variance).log() + power / variance
        return -full_sum(bins, self.transform.size).sum(-1).to(value) / 4


class StationaryNormal(dist.TorchDistribution):
    r"""A mean plus stationary Gaussian noise on circular frames, of one channel or of several that are correlated.

    .. math:: \log p(m) = -\tfrac12 \sum_f \Big[\log\det 2\pi V(f) + \tfrac1T R(f)^* V(f)^{-1} R(f)\Big],
              \qquad R = \mathrm{fft}(m - \mu)

    Arguments:
        loc: :math:`\mu`, ``(..., time)``, or with channels ``(..., channel, time)``.
        covariance: :math:`V` on the non-negative frequencies, ``(..., bins)``, or with channels Hermitian
            ``(..., bins, channel, channel)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(self, loc: Tensor, covariance: Tensor) -> None:
        self.loc, self.covariance = loc, covariance
        self._event = 2 if covariance.is_complex() else 1
        tail = 3 if covariance.is_complex() else 1
        batch = torch.broadcast_shapes(loc.shape[: -self._event], covariance.shape[:-tail])
        super().__init__(batch, loc.shape[-self._event :], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StationaryNormal:
        shape = torch.Size(batch_shape)
        return StationaryNormal(self.loc.expand(shape + self.event_shape), self.covariance)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        white = torch.fft.rfft(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))
        if self._event == 1:
            noise = self.covariance.sqrt() * white
        else:
            root = torch.linalg.cholesky(self.covariance)
            noise = (root @ white.mT.unsqueeze(-1)).squeeze(-1).mT
        return self.loc + torch.fft.irfft(noise, n=shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        time = self.event_shape[-1]
        bins = torch.fft.rfft(value - self.loc)
        if self._event == 1:
            terms = self.covariance.log() + torch.view_as_real(bins).square().sum(-1) / (time * self.covariance)
        else:
            root = torch.linalg.cholesky(self.covariance)
            white = torch.linalg.solve_triangular(root, bins.mT.unsqueeze(-1), upper=False).squeeze(-1)
            determinant = 2 * root.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
            terms = determinant + white.abs().square().sum(-1) / time
        return -0.5 * (full_sum(terms, time) + self.event_shape.numel() * math.log(2 * math.pi))
