"""A 1-D U-Net of WaveNets, for frames of any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.errors import ConfigurationError
from pyrosep.nn.wavenet import SpectralGate, WaveNet

__all__ = ["SelfAttention", "UNet"]


class UNet(nn.Module):
    r"""From signals to as many samples of output channels, and features of the whole frame.

    Groups of ``hop`` samples become positions; at each level strided convolutions halve their number, and come back up
    beside a skip connection from the same level (Ronneberger et al., 2015; for waveforms Stoller et al., 2018). At each
    level a :class:`~pyrosep.nn.wavenet.SpectralGate`, which sees the whole frame at once, leads into a
    :class:`~pyrosep.nn.wavenet.WaveNet`, not causal, whose output is added. Normalised for each frame by itself,
    so that frames of a batch don't meet. The output layer starts at zero.

    Arguments:
        inputs, outputs: channels.
        hop: samples that become one position.
        width: channels within.
        levels: halvings of the number of positions.
        layers: of the WaveNet at each level, one going down and one coming up.
        features: of the noise level, which every gate and WaveNet is conditioned on; 0 for a network without a level.
        heads: of the :class:`SelfAttention` at the coarsest level; 0 for none.

    Shapes: ``(n, inputs, time)``, and features ``(n or 1, features)`` of the level, to ``(n, outputs, time)`` and
    features ``(n, width)`` of the frame; ``time`` is any, padded with zeros to ``hop * 2**levels`` and cropped.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hop: int,
        width: int,
        levels: int,
        layers: int,
        features: int = 0,
        heads: int = 0,
    ) -> None:
        super().__init__()
        self.hop, self.stride = hop, hop * 2**levels
        self.first = nn.Conv1d(inputs * hop, width, 3, padding=1)
        self.before = nn.ModuleList(_Block(width, layers, features) for _ in range(levels))
        self.down = nn.ModuleList(nn.Conv1d(width, width, 4, stride=2, padding=1) for _ in range(levels))
        self.bottom = _Block(width, layers, features)
        self.attention = SelfAttention(width, heads) if heads else None
        self.up = nn.ModuleList(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for _ in range(levels))
        self.after = nn.ModuleList(_Block(width, layers, features) for _ in range(levels))
        self.last = nn.Conv1d(width, outputs * hop, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        time, hop = x.shape[-1], self.hop
        x = functional.pad(x, (0, -time % self.stride))
        with torch.autocast(x.device.type, enabled=False):  # half precision would drown noise of low levels
            h = self.first(x.unflatten(-1, (-1, hop)).mT.flatten(1, 2))
        skips = []
        for block, down in zip(self.before, self.down, strict=True):
            skips.append(h := block(h, level))
            h = down(h)
        h = self.bottom(h, level)
        if self.attention is not None:
            h = self.attention(h)
        features = h.mean(-1)
        for up, block in zip(self.up, self.after, strict=True):
            h = block(up(h) + skips.pop(), level)
        with torch.autocast(x.device.type, enabled=False):
            out = self.last(functional.silu(h.to(x.dtype)))
        return out.unflatten(1, (-1, hop)).mT.flatten(-2)[..., :time], features.to(x.dtype)


class _Block(nn.Module):
    def __init__(self, width: int, layers: int, features: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.gate = SpectralGate(width, width=width // 2 + 1, features=features)
        self.net = WaveNet(width, width, width=width, layers=layers, features=features)

    def forward(self, h: Tensor, level: Tensor | None = None) -> Tensor:
        h = h.to(self.norm.weight.dtype)  # under mixed precision convolutions give half; Fourier transforms need more
        normal = self.norm(h)
        return h + self.net(normal + self.gate(normal, level), level)


class SelfAttention(nn.Module):
    r"""Every position looks at all others (Vaswani et al., 2017), and what it finds is added; it starts as nothing.

    Keys and queries are told where they are by convolutions of three positions and, of what they say, by nothing else:
    it works for any number of positions.

    Arguments:
        width: channels.
        heads: ways of looking; must divide the channels.

    Shapes: ``(n, width, position)`` to the same.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigurationError(f"attention needs heads that divide its channels; got {heads} and {width}")
        self.heads = heads
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv1d(width, 3 * width, 3, padding=1)
        self.last = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.first(self.norm(h)).unflatten(1, (3, self.heads, -1)).unbind(1)
        # Written out: torch's fused one has no second derivative, nor a forward-mode one.
        weight = (query.mT @ key / math.sqrt(query.shape[-2])).softmax(-1)
        return h + self.last((value @ weight.to(value.dtype).mT).flatten(1, 2))
