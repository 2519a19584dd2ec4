r"""Normalizing flows of audio frames: bijections between a frame and white Gaussian noise of the same size.

Each is a Pyro :class:`~pyro.distributions.torch_transform.TransformModule` *from noise to data*, as a
:class:`~torch.distributions.TransformedDistribution` has it. Training and :meth:`log_prob` go the other way, by
:meth:`FlowTransform.encode`, which gives the noise and the log-determinant in one pass. None of them caches
(``cache_size=0``): a cached value would go stale at the next step of an optimizer.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.nn.wavenet import SpectralGate, WaveNet

__all__ = ["ActNorm", "AffineCoupling", "Flip", "FlowTransform", "MultiScaleFlow", "Sequential", "Squeeze"]

_CHANNELS = constraints.independent(constraints.real, 2)


class FlowTransform(TransformModule):
    """A bijection from noise to data whose inverse comes with its log-determinant.

    A subclass implements :meth:`encode` and :meth:`decode` of tensors ``(n, channel, position)``. What depends on the
    noise level takes ``features`` of it, ``(n or 1, features)``; :meth:`given` binds them, which makes it a transform
    like any other.
    """

    bijective = True
    domain = _CHANNELS
    codomain = _CHANNELS

    def __init__(self) -> None:
        super().__init__(cache_size=0)
        self.features: Tensor | None = None

    def given(self, features: Tensor) -> Self:
        """The same transform, weights shared, at a noise level."""
        new = copy.copy(self)
        new.features = features
        return new

    @abstractmethod
    def encode(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise, and the logarithm of the determinant of that map's Jacobian, ``(n,)``."""

    @abstractmethod
    def decode(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        """Noise to data."""

    def _call(self, z: Tensor) -> Tensor:
        return self._batched(z, lambda flat: self.decode(flat, self.features))

    def _inverse(self, x: Tensor) -> Tensor:
        return self._batched(x, lambda flat: self.encode(flat, self.features)[0])

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        event = self.codomain.event_dim
        batch = x.shape[: x.ndim - event]
        return -self.encode(x.reshape(-1, *x.shape[x.ndim - event :]), self.features)[1].reshape(batch)

    def _batched(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        out = function(x.reshape(-1, *x.shape[x.ndim - self.domain.event_dim :]))
        return out.reshape(*x.shape[: x.ndim - self.domain.event_dim], *out.shape[1:])


def _no_change(x: Tensor) -> Tensor:
    """The log-determinant of what keeps volumes."""
    return x.new_zeros(len(x))


class Squeeze(FlowTransform):
    """Time into channels: ``(n, channel, position)`` to ``(n, factor * channel, position / factor)`` and back.

    Channels come out in the order of the position within a group, so that halves are the even and the odd positions
    where ``factor`` is 2. With ``cosine`` each group goes through an orthonormal cosine transform (DCT-II) and the
    order is that of frequency: the halves are then the coarse and the fine of it.
    """

    def __init__(self, factor: int, *, cosine: bool = False) -> None:
        super().__init__()
        if factor < 1:
            raise ConfigurationError(f"a squeeze's factor must be at least 1; got {factor}")
        self.factor = factor
        basis = None
        if cosine:
            k, t = torch.arange(factor, dtype=torch.float64).unsqueeze(-1), torch.arange(factor, dtype=torch.float64)
            basis = torch.cos(math.pi / factor * (t + 0.5) * k) * math.sqrt(2 / factor)
            basis[0] /= math.sqrt(2)
            basis = basis.to(torch.get_default_dtype())
        self.register_buffer("basis", basis, persistent=False)
        self.basis: Tensor | None

    def encode(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        grouped = x.unflatten(-1, (-1, self.factor))  # (n, channel, position, within)
        if self.basis is not None:
            with torch.autocast(x.device.type, enabled=False):
                grouped = grouped @ self.basis.mT
        return grouped.permute(0, 3, 1, 2).flatten(1, 2), _no_change(x)

    def decode(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        grouped = z.unflatten(1, (self.factor, -1)).permute(0, 2, 3, 1)
        if self.basis is not None:
            with torch.autocast(z.device.type, enabled=False):
                grouped = grouped @ self.basis
        return grouped.flatten(-2)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-2] // self.factor, shape[-1] * self.factor))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-2] * self.factor, shape[-1] // self.factor))


class Flip(FlowTransform):
    """The channels in the other order, so that couplings take turns."""

    def encode(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flip(1), _no_change(x)

    def decode(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        return z.flip(1)


class ActNorm(FlowTransform):
    """A shift and a scale for each channel, set so that the first batch comes out with mean 0 and variance 1.

    (Kingma and Dhariwal, 2018, "Glow".) They are weights, trained and stored with the others; the next
    :meth:`encode` sets them if :attr:`pending` is true.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1))
        self.pending = False

    def encode(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.pending:
            self._set_from(x)
        z = (x - self.shift) * self.log_scale.exp()
        return z, (self.log_scale.sum() * x.shape[-1]).expand(len(x))

    @torch.no_grad()
    def _set_from(self, x: Tensor) -> None:
        self.shift.copy_(x.mean((0, 2)).unsqueeze(-1))
        # A channel that is silent in the first batch keeps a scale that the next can live with.
        self.log_scale.copy_(-x.std((0, 2)).clamp(min=1e-3).log().unsqueeze(-1))
        self.pending = False

    def decode(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        return z * (-self.log_scale).exp() + self.shift


class AffineCoupling(FlowTransform):
    r"""One part of the channels is shifted and scaled by what a :class:`WaveNet` makes of the other.

    (Dinh et al., 2017, "Real NVP".) From data to noise, with :math:`a` the first channels and :math:`b` the others:
    :math:`z_a = a, \; z_b = (b - m(a, \sigma)) \, e^{l(a, \sigma)}`. The logarithm of the scale is bounded,
    :math:`|l| \le` ``bound``, by a tanh, and like all log-determinants in full precision under autocast.

    Arguments:
        channels: in all.
        kept: channels of :math:`a`.
        bound: of the logarithm of the scale.
        width, layers, features, kernel: of the WaveNet.
        spectral: width of a :class:`SpectralGate` that cleans :math:`a` for the WaveNet, which sees both; 0 for none.
    """

    def __init__(
        self,
        channels: int,
        kept: int,
        *,
        width: int,
        layers: int,
        features: int = 0,
        kernel: int = 3,
        bound: float = 6.0,
        spectral: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < kept < channels:
            raise ConfigurationError(f"a coupling must keep some channels and change some; got {kept} of {channels}")
        self.kept, self.bound = kept, bound
        self.gate = SpectralGate(kept, width=spectral, features=features) if spectral else None
        self.wavenet = WaveNet(
            kept * (2 if spectral else 1),
            2 * (channels - kept),
            width=width,
            layers=layers,
            features=features,
            kernel=kernel,
        )

    def _shift_and_log_scale(self, a: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = a if self.gate is None else torch.cat([a, self.gate(a, features)], 1)
        shift, raw = self.wavenet(seen, features).to(a.dtype).chunk(2, 1)
        return shift, self.bound * torch.tanh(raw / self.bound)

    def encode(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.kept], x[:, self.kept :]
        shift, log_scale = self._shift_and_log_scale(a, features)
        return torch.cat([a, (b - shift) * log_scale.exp()], 1), log_scale.sum((1, 2))

    def decode(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        a, b = z[:, : self.kept], z[:, self.kept :]
        shift, log_scale = self._shift_and_log_scale(a, features)
        return torch.cat([a, b * (-log_scale).exp() + shift], 1)


class Sequential(FlowTransform):
    """Transforms one after another, written in the order from data to noise."""

    parts: Any

    def __init__(self, parts: Sequence[FlowTransform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def encode(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = _no_change(x)
        for part in self.parts:
            x, log_det = part.encode(x, features)
            total = total + log_det
        return x, total

    def decode(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        for part in reversed(self.parts):
            z = part.decode(z, features)
        return z

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        for part in reversed(self.parts):
            shape = part.forward_shape(shape)
        return torch.Size(shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        for part in self.parts:
            shape = part.inverse_shape(shape)
        return torch.Size(shape)


class MultiScaleFlow(FlowTransform):
    r"""The flow of FloWaveNet: blocks of a squeeze and couplings, after each of which half of the channels are done.

    The half that leaves a block does so under a prior that the half that stays makes, a normal one whose mean and
    scale come from a WaveNet (Dinh et al., 2017; Kim et al., 2019, "FloWaveNet"). Written as a bijection that is one
    more coupling, so all of the noise is white. The order of the noise, ``(time,)``, is that in which it leaves.

    Arguments:
        squeeze: the factor of each block; their product is :attr:`stride`, which must divide the frame.
        flows: couplings in a block beside the split prior, for each block or for all; even numbers, so that the halves
            are in their places.
        layers, width: of the WaveNets, for each block or for all.
        features, kernel, bound, spectral: of the couplings.
        cosine: the first squeeze is a cosine transform.

    Shapes: frames and noise ``(n, time)``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    blocks: Any

    def __init__(
        self,
        squeeze: Sequence[int],
        *,
        flows: int | Sequence[int],
        layers: int | Sequence[int],
        width: int | Sequence[int],
        features: int = 0,
        kernel: int = 3,
        bound: float = 6.0,
        spectral: int = 0,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        depth, widths, turns = (
            [numbers] * len(squeeze) if isinstance(numbers, int) else list(numbers)
            for numbers in (layers, width, flows)
        )
        blocks = {len(depth), len(widths), len(turns)}
        if not squeeze or blocks != {len(squeeze)} or min(turns) < 0 or any(n % 2 for n in turns):
            raise ConfigurationError(
                "a flow needs at least one block, as many numbers of layers, widths and flows as blocks, even ones "
                f"of flows; got squeeze={tuple(squeeze)}, layers={layers}, width={width}, flows={flows}"
            )
        self.stride = math.prod(squeeze)
        channels = 1
        self.blocks = nn.ModuleList()
        for i, factor in enumerate(squeeze):
            channels *= factor
            if channels < 2 or channels % 2:
                raise ConfigurationError(f"block {i} of squeeze={tuple(squeeze)} has {channels} channels: no halves")
            parts: list[FlowTransform] = [Squeeze(factor, cosine=cosine and i == 0)]
            for _ in range(turns[i] + 1):
                coupling = AffineCoupling(
                    channels,
                    channels // 2,
                    width=widths[i],
                    layers=depth[i],
                    features=features,
                    kernel=kernel,
                    bound=bound,
                    spectral=spectral,
                )
                parts += [ActNorm(channels), coupling, Flip()]
            self.blocks.append(Sequential(parts[:-1]))
            channels //= 2

    def encode(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.encode_with_splits(x, features)[:2]

    def encode_with_splits(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Frames to noise, the log-determinant, and what of it is due to the split priors alone, ``(n,)`` each."""
        self._check(x)
        x, total, splits, done = x.unsqueeze(1), _no_change(x), _no_change(x), []
        for block in self.blocks:
            log_det = _no_change(x)
            for part in block.parts:
                x, own = part.encode(x, features)
                log_det = log_det + own
            x, leaves = x.chunk(2, 1)
            done.append(leaves.flatten(1))
            total, splits = total + log_det, splits + own  # a block's last part is its split prior
        return torch.cat([*done, x.flatten(1)], -1), total, splits

    def decode(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        self._check(z)
        left = z.shape[-1]
        sizes = [left := left // 2 for _ in self.blocks]
        *done, x = z.split([*sizes, left], -1)
        positions = z.shape[-1] // self.stride
        x = x.unflatten(-1, (-1, positions))
        for block, leaves in zip(reversed(self.blocks), reversed(done), strict=True):
            x = block.decode(torch.cat([x, leaves.unflatten(-1, x.shape[1:])], 1), features)
        return x.squeeze(1)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] % self.stride:
            raise ShapeError(f"expected frames of a multiple of {self.stride} samples; got {x.shape[-1]}")
