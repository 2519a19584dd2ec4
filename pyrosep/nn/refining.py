"""U-Nets one after the other, each refining what those before it found of the sources."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError
from pyrosep.nn.harmonic import HarmonicGate
from pyrosep.nn.unet import UNet

__all__ = ["RefiningUNet", "UNetSize"]


@dataclass(frozen=True)
class UNetSize:
    """How large a :class:`RefiningUNet` is.

    Attributes:
        hop: samples that become one position.
        width: channels.
        levels: halvings of the number of positions.
        layers: of the WaveNet at each level, one going down and one coming up.
        passes: U-Nets one after the other, each seeing what those before it made of the signal.
        harmonic: channels of the :class:`~pyrosep.nn.harmonic.HarmonicGate` before each; 0 for none.
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

    A U-Net gets the signal, what a :class:`~pyrosep.nn.harmonic.HarmonicGate` filters of it for each source, and
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
        self.passes = nn.ModuleList(
            UNet(
                inputs + filtered + 2 * sources * more,
                2 * sources,
                hop=size.hop,
                width=size.width,
                levels=size.levels,
                layers=size.layers,
            )
            for more in later
        )

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
