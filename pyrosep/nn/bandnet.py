"""A network over time and bands of frequency: short-time spectra in, masks of them out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.errors import ConfigurationError

__all__ = ["BandNet", "BandSize"]

#: Below it the power of a bin, of signals of variance 1, is not told from zero.
_LEAST_POWER = 1e-7
#: Real and imaginary parts are divided by the power to this: what is left has the magnitude to the power 0.3.
_COMPRESSION = 0.35


@dataclass(frozen=True)
class BandSize:
    """How large a :class:`BandNet` is.

    Attributes:
        window: samples in a window of the short-time spectrum, which moves on by half of it; even.
        bands: that the bins are put together to.
        width: channels of a band.
        neck: channels of a frame, by which its bands meet; 0 for recurrent layers along the bands.
        layers: how many; the dilation of those that are not recurrent goes from 1 to 8 frames and over again.
        features: of the noise level, in a denoiser.
        recurrent: whether layers look along time by LSTMs instead of convolutions.
        phases: whether the network reads the phases of the bins beside their power; masks then change phases too.
    """

    window: int = 2048
    bands: int = 32
    width: int = 48
    neck: int = 192
    layers: int = 6
    features: int = 32
    recurrent: bool = False
    phases: bool = False

    def __post_init__(self) -> None:
        least = min(self.bands, self.width, self.neck + self.recurrent, self.layers, self.features, self.neck + 1)
        if least < 1 or self.window % 2 or self.window < 2 * self.bands:
            raise ConfigurationError(
                "a network of bands needs bands, width, neck, layers and features of at least 1 (a neck of 0 where it "
                f"is recurrent), and an even window of at least two samples a band; got {self}"
            )

    @property
    def stride(self) -> int:
        """Samples that a frame is padded to a multiple of."""
        return self.window // 2


class BandNet(nn.Module):
    r"""From short-time spectra to numbers for each of their bins.

    The logarithms of the bins' power are put together to bands, narrow ones at low frequencies, each with its own
    weights (Luo & Yu, 2023, "band-split"). Layers then look along time, each band by the same weights, and across
    frequency. Along time they are gated, dilated convolutions, or LSTMs in both directions as in that paper. Across
    frequency all bands of a frame meet in a narrow layer (as in the time-distributed layers of Choi et al., 2020), or
    an LSTM goes along the bands. The output layer starts at zero.

    Arguments:
        inputs: channels of the signal.
        outputs: numbers for each bin.
        size: see :class:`BandSize`.
        features: of the noise level; 0 for a network without a level.

    Shapes: spectra ``(n, inputs, frame, bin)``, and features ``(n or 1, features)`` of the level, to
    ``(n, outputs, frame, bin)`` and features of the frames, ``(n, frame, width)``.
    """

    def __init__(self, inputs: int, outputs: int, size: BandSize, *, features: int = 0) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        edges = _band_edges(size.window // 2 + 1, size.bands)
        starts, widths = torch.tensor(edges[:-1]), torch.tensor(edges).diff()
        place = torch.arange(int(widths.max()))
        inside = place < widths.unsqueeze(-1)
        # Bands are padded with what comes after them, for which their weights are zero.
        self.register_buffer("bins", (starts.unsqueeze(-1) + place).clamp(max=edges[-1] - 1), persistent=False)
        self.register_buffer("places", inside.flatten().nonzero().squeeze(-1), persistent=False)
        self.bins: Tensor
        self.places: Tensor
        width = size.width
        # Flat, for they are a matrix for each band: an optimizer of matrices would take them for one.
        #: Numbers of a bin that the network reads.
        self.read = inputs * (3 if size.phases else 1)
        scale = (self.read * widths).repeat_interleave(widths).rsqrt().view(-1, 1, 1)
        self.first = nn.Parameter((torch.randn(edges[-1], self.read, width) * scale).flatten())
        self.place = nn.Parameter(torch.randn(size.bands * width) * 0.1)
        self.phases = size.phases
        self.layers = nn.ModuleList(
            _RecurrentLayer(size, features) if size.recurrent else _Layer(size, 2 ** (i % 4), features)
            for i in range(size.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Parameter(torch.zeros(edges[-1] * outputs * width))
        self.base = nn.Parameter(torch.zeros(edges[-1] * outputs))

    def forward(self, spectra: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(spectra.device.type, enabled=False):
            parts = torch.view_as_real(spectra)
            power = parts.square().sum(-1) + _LEAST_POWER
            x = power.log() / 4
            if self.phases:
                x = torch.cat([x, *(parts * power.unsqueeze(-1) ** -_COMPRESSION).unbind(-1)], 1)
            x = x[..., self.bins]  # (n, number, frame, band, place)
        first = self._padded(self.first, self.read).transpose(1, 2).flatten(1, 2)  # (band, input and place, width)
        last = self._padded(self.last, self.outputs).permute(0, 3, 2, 1).flatten(2)  # (band, width, output and place)
        base = self._padded(self.base, self.outputs).squeeze(-1).transpose(1, 2).flatten(1)
        x = x.permute(3, 0, 2, 1, 4).flatten(-2)  # (band, n, frame, input and place)
        n, frames = x.shape[1:3]
        h = torch.bmm(x.flatten(1, 2), first).unflatten(1, (n, frames)).permute(1, 2, 0, 3)
        h = h + self.place.view(h.shape[-2:])
        for layer in self.layers:
            h = layer(h, level)
        normal = self.norm(h.to(self.norm.weight.dtype))
        with torch.autocast(spectra.device.type, enabled=False):
            out = torch.bmm(normal.permute(2, 0, 1, 3).flatten(1, 2), last) + base.unsqueeze(1)
            out = out.unflatten(1, (n, frames)).unflatten(-1, (self.outputs, -1))  # (band, n, frame, output, place)
            out = out.permute(1, 3, 2, 0, 4).flatten(-2)[..., self.places]
        return out, normal.mean(2)

    def _padded(self, weights: Tensor, count: int) -> Tensor:
        """Weights of the bins, ``count`` vectors each, by band, then zeros: ``(band, place, count, size)``."""
        rows = weights.view(len(self.places), count, -1)
        padded = rows.new_zeros(self.bins.numel(), count, rows.shape[-1]).index_copy(0, self.places, rows)
        return padded.unflatten(0, self.bins.shape)


class _Neck(nn.Module):
    """All bands of a frame meet in a narrow, gated layer."""

    def __init__(self, size: BandSize) -> None:
        super().__init__()
        self.across = nn.LayerNorm(size.width)
        self.neck = nn.Linear(size.bands * size.width, 2 * size.neck)
        self.spread = nn.Linear(size.neck, size.bands * size.width)

    def meet(self, h: Tensor, level: Tensor) -> Tensor:
        """Of ``(n, frame, band, width)``, told the level by numbers ``(n or 1, 1, 2 * neck)``."""
        u = self.across(h).flatten(-2)
        signal, gate = (self.neck(u) + level).chunk(2, -1)
        return h + self.spread(signal * gate.sigmoid()).unflatten(-1, h.shape[-2:])


class _Layer(_Neck):
    """Each band along time by a convolution, then all bands of a frame."""

    def __init__(self, size: BandSize, dilation: int, features: int) -> None:
        super().__init__(size)
        width = size.width
        self.dilation = dilation
        self.norm = nn.LayerNorm(width)
        self.time = nn.Linear(3 * width, 2 * width)
        self.mixed = nn.Linear(width, width)
        self.level = nn.Linear(features, 2 * (width + size.neck), bias=False) if features else None
        self.split = (2 * width, 2 * size.neck)

    def forward(self, h: Tensor, level: Tensor | None) -> Tensor:
        one = two = h.new_zeros(())
        if self.level is not None:
            one, two = self.level(level).split(self.split, -1)
            one, two = one[:, None, None], two[:, None]
        u = self.norm(h)
        before, after = (functional.pad(u, (0, 0, 0, 0, *pad)) for pad in ((self.dilation, 0), (0, self.dilation)))
        frames = u.shape[1]
        u = torch.cat([before[:, :frames], u, after[:, -frames:]], -1)
        signal, gate = (self.time(u) + one).chunk(2, -1)
        return self.meet(h + self.mixed(signal * gate.sigmoid()), two)


class _RecurrentLayer(nn.Module):
    """Each band along time by an LSTM, then all bands of a frame, by a neck or an LSTM along them."""

    def __init__(self, size: BandSize, features: int) -> None:
        super().__init__()
        self.time = _Recurrence(size.width, features)
        self.across = _Neck(size) if size.neck else _Recurrence(size.width, features)
        self.level = nn.Linear(features, 2 * size.neck, bias=False) if features and size.neck else None

    def forward(self, h: Tensor, level: Tensor | None) -> Tensor:
        h = self.time(h.transpose(1, 2), level).transpose(1, 2)
        if isinstance(self.across, _Recurrence):
            return self.across(h, level)
        return self.across.meet(h, h.new_zeros(()) if self.level is None else self.level(level)[:, None])


class _Recurrence(nn.Module):
    """An LSTM in both directions along the last axis but one, added to what it reads: ``(n, other, position, width)``.

    All other positions are independent of each other.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.level = nn.Linear(features, width, bias=False) if features else None
        self.lstm = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.mixed = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, level: Tensor | None) -> Tensor:
        u = self.norm(h)
        if self.level is not None:
            u = u + self.level(level)[:, None, None]
        u = self.lstm(u.flatten(0, 1))[0].unflatten(0, h.shape[:2])
        return h + self.mixed(u)


def _band_edges(bins: int, bands: int) -> list[int]:
    """Where bands begin, and the last one ends: the first of some four bins, each wider than the last by one share."""
    least = min(4.0, bins / bands)
    low, high = 1.0, 2.0
    for _ in range(60):
        ratio = (low + high) / 2
        total = least * sum(ratio**i for i in range(bands))
        low, high = (ratio, high) if total < bins else (low, ratio)
    edges, total = [0], 0.0
    for i in range(bands):
        total += least * low**i
        edges.append(max(edges[-1] + 1, round(total)))
    edges[-1] = bins
    return edges
