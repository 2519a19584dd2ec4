"""A WaveNet that looks both ways, and the embedding of the noise level that it is conditioned on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.errors import ConfigurationError

__all__ = ["LevelEmbedding", "SpectralGate", "WaveNet"]

#: The least level, relative to the source, that the embedding tells from a lower one: zero has no logarithm.
_LEAST_LEVEL = 1e-5
#: Below it the power of a frequency, of channels of variance 1, is not told from zero.
_LEAST_POWER = 1e-6
#: Waves per unit of the logarithm of the level. Few and slow, so that what depends on the level does so smoothly.
_FREQUENCIES = (0.25, 0.5, 1.0)


class LevelEmbedding(nn.Module):
    r"""Features of a noise level: a small network of :math:`\log\sigma` and a few sines and cosines of it.

    Arguments:
        size: number of features.

    Shapes: levels ``(n,)``, relative to the source's root mean square, to ``(n, size)``.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1 + 2 * len(_FREQUENCIES), size), nn.SiLU(), nn.Linear(size, size), nn.SiLU()
        )
        self.register_buffer("frequencies", torch.tensor(_FREQUENCIES), persistent=False)
        self.frequencies: Tensor

    def forward(self, level: Tensor) -> Tensor:
        log_level = level.clamp(min=_LEAST_LEVEL).log().unsqueeze(-1)
        angle = log_level * self.frequencies
        return self.layers(torch.cat([log_level / 4, angle.sin(), angle.cos()], -1))


class WaveNet(nn.Module):
    r"""Dilated, gated convolutions with residual and skip connections, not causal.

    Layer :math:`l` has dilation :math:`2^l` and computes, from its input :math:`h` and features :math:`c` of the level,

    .. math:: [r, k] = W_l \big(\tanh(U_l * h + A_l c) \odot \mathrm{sigmoid}(V_l * h + B_l c)\big), \qquad
              h \leftarrow h + r,

    and the skip connections :math:`k` are summed (van den Oord et al., 2016, "WaveNet"; a kernel centred on the sample
    as in Rethage et al., 2018, for there is no order in time to keep here). The output layer starts at zero, so that a
    coupling starts as the identity.

    Arguments:
        inputs, outputs: channels.
        width: channels within.
        layers: how many; with a kernel of 3 an output sees :math:`2^{\mathrm{layers}} - 1` positions to either side.
        features: of the level; 0 for a network without a level.
        kernel: positions in a convolution, odd.

    Shapes: ``(n, inputs, position)`` and features ``(n or 1, features)`` to ``(n, outputs, position)``.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, layers: int, features: int = 0, kernel: int = 3
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width, layers) < 1 or kernel % 2 != 1:
            raise ConfigurationError(
                f"a WaveNet needs at least one channel and layer, and an odd kernel; got "
                f"inputs={inputs}, outputs={outputs}, width={width}, layers={layers}, kernel={kernel}"
            )
        self.width, self.layers, self.kernel = width, layers, kernel
        self.first = nn.Conv1d(inputs, width, 1)
        self.dilated = nn.ModuleList(
            nn.Conv1d(width, 2 * width, kernel, dilation=2**i, padding=kernel // 2 * 2**i) for i in range(layers)
        )
        # The last layer has nothing to pass its residual on to.
        self.mixed = nn.ModuleList(nn.Conv1d(width, (1 + (i < layers - 1)) * width, 1) for i in range(layers))
        self.last = nn.Conv1d(width, outputs, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.level = nn.Linear(features, 2 * width * layers, bias=False) if features else None
        self.level_output = nn.Linear(features, outputs, bias=False) if features else None
        if self.level_output is not None:
            nn.init.zeros_(self.level_output.weight)

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        h = self.first(x)
        bias = self.level(features).unsqueeze(-1).chunk(self.layers, 1) if self.level is not None else None
        skips = h.new_zeros(())
        for i, (dilated, mixed) in enumerate(zip(self.dilated, self.mixed, strict=True)):
            gates = dilated(h)
            if bias is not None:
                gates = gates + bias[i].to(gates.dtype)
            signal, gate = gates.chunk(2, 1)
            out = mixed(signal.tanh() * gate.sigmoid())
            if i < self.layers - 1:
                residual, out = out.chunk(2, 1)
                h = h + residual
            skips = skips + out
        out = self._in_full_precision(skips / math.sqrt(self.layers))
        if self.level_output is not None:
            out = out + self.level_output(features).unsqueeze(-1)
        return out

    def _in_full_precision(self, skips: Tensor) -> Tensor:
        """The output layer. Under mixed precision too: at low noise a shift is needed to a part in thousands."""
        with torch.autocast(skips.device.type, enabled=False):
            skips = functional.silu(skips.to(self.last.weight.dtype))
            return self.last(skips)


class SpectralGate(nn.Module):
    r"""A Wiener filter that is learned and depends on what it filters: each frequency is let through by its power.

    With :math:`X` the Fourier transform over the positions, padded to twice their number, the output is the inverse
    transform of :math:`X_f \, \mathrm{sigmoid}(g_f)`, :math:`g` a small convolutional network, along the frequencies,
    of :math:`\log |X|^2` of all channels. What is periodic stands out of white noise by as much as the frame is long,
    at once, without having to be found by convolutions.

    Arguments:
        channels: in and out.
        width: channels of the network.
        features: of the level.

    Shapes: ``(n, channels, position)`` and features ``(n or 1, features)`` to ``(n, channels, position)``.
    """

    def __init__(self, channels: int, *, width: int, features: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, padding=2)
        self.last = nn.Conv1d(width, channels, 5, padding=2)
        self.level = nn.Linear(features, 2 * width, bias=False) if features else None

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        positions = x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft(x, n=2 * positions)
            # Of white noise of variance 1 the mean power is 1.
            power = torch.view_as_real(spectrum).square().sum(-1) / positions
            h = (power + _LEAST_POWER).log() / 4
        one, two = self.level(features).unsqueeze(-1).chunk(2, 1) if self.level is not None else (0.0, 0.0)
        h = functional.silu(self.first(h) + one)
        h = functional.silu(self.second(h) + two)
        gate = self.last(h).sigmoid()
        with torch.autocast(x.device.type, enabled=False):
            return torch.fft.irfft(spectrum * gate.to(x.dtype), n=2 * positions)[..., :positions]
