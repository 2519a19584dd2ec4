"""FloWaveNet: a normalizing flow of audio frames whose couplings are WaveNets, conditioned on the noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyrosep.errors import ConfigurationError
from pyrosep.nn.flow import ActNorm, MultiScaleFlow
from pyrosep.nn.wavenet import LevelEmbedding
from pyrosep.priors.base import SourcePrior
from pyrosep.signal.spectra import interpolate_spectrum, mean_power

__all__ = ["SIZES", "FloWaveNet", "FloWaveNetwork", "FlowSize"]


@dataclass(frozen=True)
class FlowSize:
    """What a :class:`FloWaveNetwork` is made of.

    Attributes:
        squeeze: the factor of each block; their product must divide the frame.
        flows: couplings in each block, beside the one that is its split prior; even numbers.
        layers: of the WaveNets, for each block.
        width: channels within the WaveNets, for each block.
        features: of the noise level.
        cosine: whether the first squeeze is a cosine transform of its samples.
        kernel: positions in a convolution.
        bound: of the logarithm of a coupling's scale.
        spectral: width of the couplings' spectral gates; 0 for none.
    """

    squeeze: tuple[int, ...]
    flows: tuple[int, ...]
    layers: tuple[int, ...]
    width: tuple[int, ...]
    features: int = 16
    cosine: bool = False
    kernel: int = 3
    bound: float = 6.0
    spectral: int = 0

    @property
    def stride(self) -> int:
        """Frames are a multiple of it."""
        return math.prod(self.squeeze)


#: By name: ``talk`` is for frames of 16,384; ``small`` is trained on one CPU thread in minutes.
SIZES: dict[str, FlowSize] = {
    "tiny": FlowSize(squeeze=(4, 2), flows=(2, 2), layers=(2, 2), width=(8, 8), features=8),
    "small": FlowSize(
        squeeze=(16, 1, 1, 2, 2, 2, 2, 2),
        flows=(0, 0, 0, 0, 2, 2, 2, 2),
        layers=(7, 7, 7, 6, 5, 4, 3, 2),
        width=(64, 64, 64, 64, 48, 48, 48, 48),
        spectral=32,
        cosine=True,
    ),
    "talk": FlowSize(squeeze=(2, 2, 2, 2), flows=(6, 6, 6, 6), layers=(10, 10, 10, 10), width=(32, 32, 32, 32)),
}


class FloWaveNetwork(nn.Module):
    r"""The network of a :class:`FloWaveNet`: the density of noised frames at every noise level.

    Frames are divided by :math:`\sqrt{v + \sigma^2}`, :math:`v` the source's mean square, so that the flow meets
    numbers of the size of one at every level; the log-determinant counts it.

    Arguments:
        size: of the flow.
        spectrum: mean power per frequency of the clean source, ``(bins,)``, see :attr:`SourcePrior.spectrum`; its
            mean over the band is :math:`v`.
    """

    def __init__(self, size: FlowSize, spectrum: Tensor) -> None:
        super().__init__()
        self.size = size
        dtype = torch.get_default_dtype()
        self.register_buffer("spectrum", spectrum.detach().clone().to(dtype))
        self.spectrum: Tensor
        self.register_buffer("variance", mean_power(self.spectrum))
        self.variance: Tensor
        self.embedding = LevelEmbedding(size.features)
        self.flow = MultiScaleFlow(
            size.squeeze,
            flows=size.flows,
            layers=size.layers,
            width=size.width,
            features=size.features,
            kernel=size.kernel,
            bound=size.bound,
            spectral=size.spectral,
            cosine=size.cosine,
        )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log-density in nats of frames ``(n, time)`` at levels ``(n,)`` or ``(1,)``: ``(n,)``."""
        white, log_det, _ = self.log_prob_parts(x, sigma)
        return log_det + white

    def encode(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Noise ``(n, time)`` of frames at levels ``(n,)`` or ``(1,)``, and the log-determinant ``(n,)``."""
        scale = self._scale(sigma)
        z, log_det = self.flow.encode(x / scale.unsqueeze(-1), self._features(sigma))
        return z, log_det - x.shape[-1] * scale.log()

    def log_prob_parts(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""What the log-density of frames ``(n, time)`` at levels ``(n,)`` or ``(1,)`` is made of, in nats.

        Returns:
            ``(n,)`` each: :math:`\log N(z; 0, I)` of the noise; the log-determinant; and what of the latter the split
            priors' scales are. The first and the last together are the log-density of the latent variables under their
            split priors, which FloWaveNet's code (Kim et al., 2019) calls ``log_p``.
        """
        scale = self._scale(sigma)
        z, log_det, splits = self.flow.encode_with_splits(x / scale.unsqueeze(-1), self._features(sigma))
        white = -0.5 * (z.square().sum(-1) + x.shape[-1] * math.log(2 * math.pi))
        return white, log_det - x.shape[-1] * scale.log(), splits

    def decode(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Frames ``(n, time)`` of noise at levels ``(n,)`` or ``(1,)``."""
        return self.flow.decode(z, self._features(sigma)) * self._scale(sigma).unsqueeze(-1)

    def initialize(self, x: Tensor, sigma: Tensor) -> None:
        """Set every :class:`ActNorm` from a first batch of noised frames ``(n, time)`` at levels ``(n,)``."""
        for module in self.modules():
            if isinstance(module, ActNorm):
                module.pending = True
        with torch.no_grad():
            self.encode(x, sigma)

    def _scale(self, sigma: Tensor) -> Tensor:
        return (self.variance + sigma.square()).sqrt()

    def _features(self, sigma: Tensor) -> Tensor:
        with torch.autocast(sigma.device.type, enabled=False):
            return self.embedding(sigma / self.variance.sqrt())


class _AtLevel(TransformModule):
    """From white noise ``(..., time)`` to frames at a noise level: what a :class:`FloWaveNet` is transformed by."""

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, network: FloWaveNetwork, sigma: Tensor) -> None:
        super().__init__(cache_size=0)
        self.network, self.sigma = network, sigma.to(network.variance)

    def frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``(n, time)`` in the network's precision, and their levels ``(n,)``, or ``(1,)`` for all."""
        flat = x.to(self.network.variance).reshape(-1, x.shape[-1])
        one = self.sigma.numel() == 1
        return flat, self.sigma.reshape(1) if one else self.sigma.expand(x.shape[:-1]).reshape(-1)

    def _call(self, z: Tensor) -> Tensor:
        return self.network.decode(*self.frames(z)).reshape(z.shape)

    def _inverse(self, x: Tensor) -> Tensor:
        return self.network.encode(*self.frames(x))[0].reshape(x.shape)

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return -self.network.encode(*self.frames(x))[1].reshape(x.shape[:-1])


class _Transformed(torch.distributions.TransformedDistribution):
    """So that Pyro knows what it is; base distribution and transforms depend on the level and are made when asked."""

    def __init__(self, batch_shape: Any, event_shape: Any, validate_args: bool | None = None) -> None:
        torch.distributions.Distribution.__init__(self, batch_shape, event_shape, validate_args=validate_args)


class FloWaveNet(SourcePrior, _Transformed):
    r"""A normalizing flow of noised frames, one network for all noise levels.

    .. math:: \log p_\sigma(x) = \log N(f(x, \sigma); 0, I) + \log |\det \partial f / \partial x|

    with :math:`f` a :class:`~pyrosep.nn.flow.MultiScaleFlow`: squeezes, :class:`~pyrosep.nn.flow.ActNorm`, and
    affine couplings by WaveNets (Kim et al., 2019, "FloWaveNet: A Generative Flow for Raw Audio"), whose noise level is
    a condition of the networks instead of one network a level. The density is exact, and a draw takes one pass.

    As a site it is a :class:`~torch.distributions.TransformedDistribution`:
    :class:`~pyro.infer.reparam.TransformReparam` moves sampling into the space of its white noise.

    Arguments:
        network: trained; it is frozen and set to eval mode (a copy shares it).
        frame: samples in a frame, a multiple of the network's stride.
        sigma: noise level.
        sigma_min: lowest noise level that the network was trained for.
        sample_rate: Hz.

    Raises:
        ConfigurationError: a frame that the stride does not divide.

    Example:
        >>> network = FloWaveNetwork(SIZES["tiny"], torch.ones(33))
        >>> prior = FloWaveNet(network, frame=64, sigma_min=0.01)
        >>> x = prior.at(0.5).sample((3,))
        >>> prior.at(0.5).log_prob(x).shape, prior.at(0.5).denoise(x).shape
        (torch.Size([3]), torch.Size([3, 64]))
    """

    has_rsample = True

    def __init__(
        self,
        network: FloWaveNetwork,
        frame: int = 16_384,
        sigma: float | Tensor | None = None,
        *,
        sigma_min: float = 0.01,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__(frame, sigma, sigma_min=sigma_min, sample_rate=sample_rate)
        self.network = network.eval().requires_grad_(False)
        self._at_frame(frame)

    def _at_frame(self, time: int) -> None:
        if time % self.network.size.stride:
            raise ConfigurationError(
                f"frame must be a multiple of this flow's stride, {self.network.size.stride} samples; got {time}"
            )

    @property
    def spectrum(self) -> Tensor:
        return interpolate_spectrum(self.network.spectrum, self.time // 2 + 1)

    # --- as a transformed distribution ------------------------------------------------------------------------

    @property
    def base_dist(self) -> Any:  # type: ignore[override]
        zero = self.network.variance.new_zeros(())
        shape = self.batch_shape + self.event_shape
        return dist.Normal(zero, zero + 1, validate_args=False).expand(shape).to_event(1)

    @property
    def transforms(self) -> list[Any]:  # type: ignore[override]
        return [_AtLevel(self.network, self.sigma)]

    # --- the density ------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        if self.sigma.requires_grad or any(one.requires_grad for one in self.network.parameters()):
            self._check_time(value)
            return self._log_prob(value.expand(*torch.broadcast_shapes(self.batch_shape, value.shape[:-1]), self.time))
        return super().log_prob(value)

    def _log_prob(self, value: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(value.shape[:-1], self.sigma.shape)
        value = value.expand(*batch, self.time)
        return self.network(*self.transforms[0].frames(value)).reshape(batch).to(value.dtype)

    def log_prob_parts(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = torch.broadcast_shapes(value.shape[:-1], self.sigma.shape)
        parts = self.network.log_prob_parts(*self.transforms[0].frames(value.expand(*batch, self.time)))
        white, log_det, splits = (part.reshape(batch).to(value) for part in parts)
        return white, log_det, splits

    def _log_prob_and_score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = value.detach().requires_grad_()
            log_prob = self._log_prob(x)
            (score,) = torch.autograd.grad(log_prob.sum(), x)
        return log_prob.detach(), score

    def score(self, value: Tensor) -> Tensor:
        self._check_time(value)
        value = value.expand(*torch.broadcast_shapes(self.batch_shape, value.shape[:-1]), self.time)
        if not (torch.is_grad_enabled() and value.requires_grad):
            return self._log_prob_and_score(value)[1]
        return torch.autograd.grad(self._log_prob(value).sum(), value, create_graph=True)[0]

    # --- draws ------------------------------------------------------------------------------------------------

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Reparametrised draws, ``sample_shape + batch_shape + (time,)``, in the network's precision."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.transforms[0](
            torch.randn(shape, dtype=self.network.variance.dtype, device=self.network.variance.device)
        )
