"""The exact posterior of Gaussian sources under a linear mix: the oracle for samplers, and the Wiener filter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.priors import GaussianPrior

__all__ = ["GaussianPosterior"]


class GaussianPosterior:
    r"""Posterior of stationary Gaussian sources given :math:`m = \sum_k a_k s_k + \lambda^{-1/2} \epsilon`.

    At each frequency, with :math:`P = \mathrm{diag}(P_k + \sigma^2)` and
    :math:`v = \sum_k a_k^2 P_{kk} + \lambda^{-1}`,

    .. math:: E[S | M] = P a\, M / v, \qquad \mathrm{Cov}[S | M] = P - P a a^T P / v.

    The mean is the single-channel Wiener filter (Wiener, 1949; Benaroya et al., 2006).

    Arguments:
        priors: a Gaussian prior for each source.
        mix: ``(..., time)``.
        gains: ``(source,)``, one for each prior in order.
        noise: standard deviation of the observation noise, :math:`\lambda^{-1/2}`.
    """

    def __init__(
        self, priors: Mapping[str, GaussianPrior], mix: Tensor, *, gains: Tensor | None = None, noise: float
    ) -> None:
        for name, prior in priors.items():
            if not prior.is_gaussian:
                raise ConfigurationError(
                    f"the exact posterior is known for Gaussian priors; {name!r} has a {type(prior).__name__}"
                )
            if prior.time != mix.shape[-1]:
                raise ShapeError(f"the prior of {name!r} has frames of {prior.time} samples; the mix {mix.shape[-1]}")
        self.names = tuple(priors)
        self.mix = mix
        self.power = torch.stack([prior.variance(mix) for prior in priors.values()])  # (source, bins)
        gains = torch.ones(len(priors)) if gains is None else torch.as_tensor(gains)
        if gains.shape != (len(priors),):
            raise ShapeError(
                f"expected {len(priors)} gains, one for each of {list(priors)}; got shape {tuple(gains.shape)}"
            )
        self.gains = gains.to(mix)
        weighted = self.gains.unsqueeze(-1) * self.power
        total = (self.gains.unsqueeze(-1) * weighted).sum(0) + noise**2
        self._gain = weighted / total  # (source, bins)
        self._weighted, self._total = weighted, total

    @property
    def mean(self) -> Tensor:
        """``(..., source, time)``."""
        bins = torch.fft.rfft(self.mix).unsqueeze(-2) * self._gain
        return torch.fft.irfft(bins, n=self.mix.shape[-1])

    @property
    def spectral_covariance(self) -> Tensor:
        """Covariance over the sources at each frequency, ``(bins, source, source)``."""
        # In double precision: where one source is all of the mix, the difference is small beside its terms.
        weighted, total = self._weighted.mT.double(), self._total.double()
        outer = weighted.unsqueeze(-1) * weighted.unsqueeze(-2)
        return (torch.diag_embed(self.power.mT.double()) - outer / total[:, None, None]).to(self.power)

    @property
    def stddev(self) -> Tensor:
        """Of one sample of each source, the same at all times: ``(source,)``."""
        variance = self.spectral_covariance.diagonal(dim1=-2, dim2=-1).mT
        time = self.mix.shape[-1]
        return (torch.fft.irfft(variance + 0j, n=time)[..., 0]).sqrt()

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Independent draws, ``sample_shape + (..., source, time)``."""
        mean = self.mean
        eigenvalues, vectors = torch.linalg.eigh(self.spectral_covariance.double())
        root = (vectors * eigenvalues.clamp(min=0).sqrt().unsqueeze(-2)).permute(1, 2, 0).to(mean)
        white = torch.fft.rfft(torch.randn(*sample_shape, *mean.shape, dtype=mean.dtype, device=mean.device))
        return mean + torch.fft.irfft(torch.einsum("ijf,...jf->...if", root + 0j, white), n=mean.shape[-1])
