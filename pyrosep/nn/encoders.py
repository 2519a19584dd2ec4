"""Networks from a mix to means and deviations of its sources."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.masking import MaskingNet
from pyrosep.nn.refining import RefiningUNet, UNetSize

__all__ = ["ENCODERS", "Encoders", "WaveEncoder"]

#: Sizes that guides are trained with where nobody says: of the waveform, and of short-time spectra.
ENCODERS: dict[str, UNetSize | BandSize] = {
    "waves": UNetSize(levels=3, layers=4, passes=3, harmonic=48),
    "bands": BandSize(layers=8),
}

#: Where softplus is 1.
_ONE = 0.5413


class WaveEncoder(RefiningUNet):
    """Means and deviations of sources of a mix of variance 1, each mean with the mix beside it."""

    def forward(self, x: Tensor, direct: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        found, features = super().forward(x)
        mean, raw = found.unbind(2)
        # Not a matrix product, which mixed precision would round.
        mean = mean + (direct.unsqueeze(-1) * x.unsqueeze(-3)).sum(-2)
        return mean, functional.softplus(raw + _ONE), features


class Encoders(nn.Module):
    """Networks from a mix of variance 1 to means and deviations of the sources.

    Not part of the guide itself, for there Pyro would take every parameter from its store.
    """

    def __init__(self, inputs: int, networks: int, sources: int, size: UNetSize | BandSize) -> None:
        super().__init__()
        own = sources // networks
        self.networks = nn.ModuleList(
            MaskingNet(inputs, own, sources, size) if isinstance(size, BandSize) else WaveEncoder(inputs, own, size)
            for _ in range(networks)
        )
        self.features = size.width * networks
        self.direct = nn.Parameter(torch.zeros(sources, inputs))

    def forward(self, x: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Means and deviations ``(n, source, time)`` of the samples in ``part``, and features ``(n, feature)``."""
        shares = self.direct.chunk(len(self.networks))
        parts = [network(x, share) for network, share in zip(self.networks, shares, strict=True)]
        means, scales, features = zip(*parts, strict=True)
        return torch.cat(means, 1)[..., part], torch.cat(scales, 1)[..., part], torch.cat(features, -1)
