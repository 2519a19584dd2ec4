"""A 1-D U-Net of WaveNets, for frames of any length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.errors import ConfigurationError
from pyrosep.guides.harmonic import HarmonicGate
from pyrosep.priors.wavenet import SpectralGate, WaveNet

__all__ = ["RefiningUNet", "UNet", "UNetSize"]


@dataclass(frozen=True)
class UNetSize:
    """How large a :class:`RefiningUNet` is.

    Attributes:
        hop: samples that become one position.
        width: channels.
        levels: halvings of the number of positions.
        layers: of the WaveNet at each level, one going down and one coming up.
        passes: U-Nets one after the other, each seeing what those before it made of the signal.
        harmonic: channels of the :class:`~pyrosep.guides.harmonic.HarmonicGate` before each; 0 for none.
    """

    hop: int = 16
    width: int = 64
    levels: int = 2
    layers: int = 5
    passes: int = 1
    harmonic: int = 0

    def __post_init__(self) -> None:
        if min(self.hop, self.width, self.layers, self.passes) < 1 or min(self.levels, self.harmonic) < 0:
            raise ConfigurationError(
                "a U-Net needs hop, width, layers and passes of at least 1, and levels and harmonic of at least 0; "
                f"got {self}"
            )

    @property
    def stride(self) -> int:
        """Samples that a frame is padded to a multiple of."""
        return self.hop * 2**self.levels


class RefiningUNet(nn.Module):
    """Means and raw deviations of sources, by U-Nets that each refine what those before them found.

    A U-Net gets the signal, what a :class:`~pyrosep.guides.harmonic.HarmonicGate` filters of it for each source, and
    the estimates so far, and adds to them: what one source turns out to be tells the others what is left for them.

    Arguments:
        inputs: channels of the signal.
        sources: how many.
        size: see :class:`UNetSize`.

    Shapes: ``(n, inputs, time)`` to ``(n, sources, 2, time)`` and the last U-Net's features ``(n, width)``.
    """

    def __init__(self, inputs: int, sources: int, size: UNetSize) -> None:
        super().__init__()
        later = [0] + [1] * (size.passes - 1)
        self.gates = nn.ModuleList(
            HarmonicGate(inputs + sources * more, sources, width=size.harmonic) for more in later if size.harmonic
        )
        filtered = inputs * sources if size.harmonic else 0
        self.passes = nn.ModuleList(UNet(inputs + filtered + 2 * sources * more, 2 * sources, size) for more in later)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        for number, network in enumerate(self.passes):
            seen = [x]
            if len(self.gates):
                means = [out.unflatten(1, (-1, 2))[:, :, 0] for out in found]
                seen.append(self.gates[number](torch.cat([x, *means], 1), x))
            out, features = network(torch.cat([*seen, *found], 1))
            found = [found[0] + out] if found else [out]
        return found[0].unflatten(1, (-1, 2)), features


class UNet(nn.Module):
    r"""From signals to as many samples of output channels, and features of the whole frame.

    Groups of ``hop`` samples become positions; at each level strided convolutions halve their number, and come back up
    beside a skip connection from the same level (Ronneberger et al., 2015; for waveforms Stoller et al., 2018). At each
    level a :class:`~pyrosep.priors.wavenet.SpectralGate`, which sees the whole frame at once, leads into a
    :class:`~pyrosep.priors.wavenet.WaveNet`, not causal, whose output is added. Normalised for each frame by itself,
    so that frames of a batch don't meet. The output layer starts at zero.

    Arguments:
        inputs, outputs: channels.
        size: see :class:`UNetSize`.

    Shapes: ``(n, inputs, time)`` to ``(n, outputs, time)`` and features ``(n, width)``; ``time`` is any, padded with
    zeros to the stride and cropped.
    """

    def __init__(self, inputs: int, outputs: int, size: UNetSize) -> None:
        super().__init__()
        self.size, width, levels = size, size.width, size.levels
        self.first = nn.Conv1d(inputs * size.hop, width, 3, padding=1)
        self.before = nn.ModuleList(_Block(width, size.layers) for _ in range(levels))
        self.down = nn.ModuleList(nn.Conv1d(width, width, 4, stride=2, padding=1) for _ in range(levels))
        self.bottom = _Block(width, size.layers)
        self.up = nn.ModuleList(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for _ in range(levels))
        self.after = nn.ModuleList(_Block(width, size.layers) for _ in range(levels))
        self.last = nn.Conv1d(width, outputs * size.hop, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        time, hop = x.shape[-1], self.size.hop
        x = functional.pad(x, (0, -time % self.size.stride))
        h = self.first(x.unflatten(-1, (-1, hop)).mT.flatten(1, 2))
        skips = []
        for block, down in zip(self.before, self.down, strict=True):
            skips.append(h := block(h))
            h = down(h)
        h = self.bottom(h)
        features = h.mean(-1)
        for up, block in zip(self.up, self.after, strict=True):
            h = block(up(h) + skips.pop())
        with torch.autocast(x.device.type, enabled=False):
            out = self.last(functional.silu(h.to(x.dtype)))
        return out.unflatten(1, (-1, hop)).mT.flatten(-2)[..., :time], features.to(x.dtype)


class _Block(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.gate = SpectralGate(width, width=width // 2 + 1)
        self.net = WaveNet(width, width, width=width, layers=layers)

    def forward(self, h: Tensor) -> Tensor:
        h = h.to(self.norm.weight.dtype)  # under mixed precision convolutions give half; Fourier transforms need more
        normal = self.norm(h)
        return h + self.net(normal + self.gate(normal))
