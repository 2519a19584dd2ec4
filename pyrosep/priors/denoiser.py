"""Networks that denoise one source at all noise levels: of waveforms, and of short-time spectra."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError
from pyrosep.priors.bandnet import BandNet, BandSize, ShortTimeSpectrum
from pyrosep.priors.gaussian import interpolate_spectrum, mean_power
from pyrosep.priors.unet import UNet
from pyrosep.priors.wavenet import LevelEmbedding

__all__ = ["DENOISERS", "BandDenoiser", "Denoiser", "DenoiserSize", "Preconditioned", "denoiser_of"]


@dataclass(frozen=True)
class DenoiserSize:
    """What a :class:`Denoiser` is made of.

    Attributes:
        hop: samples that become one position.
        width: channels.
        levels: halvings of the number of positions.
        layers: of the WaveNet at each level, one going down and one coming up.
        heads: of the attention at the coarsest level; 0 for none.
        features: of the noise level.
    """

    hop: int = 16
    width: int = 80
    levels: int = 2
    layers: int = 5
    heads: int = 4
    features: int = 32

    def __post_init__(self) -> None:
        if min(self.hop, self.width, self.layers, self.features) < 1 or min(self.levels, self.heads) < 0:
            raise ConfigurationError(
                "a denoiser needs hop, width, layers and features of at least 1, and levels and heads of at least 0; "
                f"got {self}"
            )

    @property
    def stride(self) -> int:
        """Samples that a frame is padded to a multiple of."""
        return self.hop * 2**self.levels


#: By name: ``small`` is for the toy waves, ``music`` for songs.
DENOISERS: dict[str, DenoiserSize | BandSize] = {
    "tiny": DenoiserSize(hop=4, width=16, levels=1, layers=2, heads=2, features=8),
    "small": DenoiserSize(),
    "music": BandSize(width=40, neck=128),
}


class Preconditioned(nn.Module):
    r"""The denoiser of a :class:`~pyrosep.ContinuousFlow`, preconditioned as by Karras et al. (2022), table 1.

    .. math:: D(x; \sigma) = c_\mathrm{skip} x + c_\mathrm{out} F(c_\mathrm{in} x; \sigma), \qquad
              c_\mathrm{skip} = \frac{v}{v + \sigma^2}, \quad
              c_\mathrm{out} = \frac{\sigma \sqrt v}{\sqrt{v + \sigma^2}}, \quad
              c_\mathrm{in} = \frac{1}{\sqrt{v + \sigma^2}}

    with :math:`v` the source's mean square. What F is to give, :math:`\sin\theta\, s / \sqrt v - \cos\theta\, \epsilon`
    with :math:`\tan\theta = \sigma / \sqrt v`, has variance one at every level.

    Arguments:
        size: of the network.
        spectrum: mean power per frequency of the clean source, ``(bins,)``, see :attr:`SourcePrior.spectrum`; its
            mean over the band is :math:`v`.
    """

    #: What F, or what it is made from, is read off the signal by.
    net: nn.Module

    def __init__(self, size: DenoiserSize | BandSize, spectrum: Tensor) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("spectrum", spectrum.detach().clone().to(torch.get_default_dtype()))
        self.spectrum: Tensor
        self.register_buffer("variance", mean_power(self.spectrum))
        self.variance: Tensor
        self.embedding = LevelEmbedding(size.features)

    @abstractmethod
    def _flow(self, y: Tensor, ratio: Tensor, level: Tensor) -> Tensor:
        """F of frames ``(n, time)`` at levels :math:`\\sigma / \\sqrt v`, ``(n or 1,)``, and their features."""

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        """F of frames ``(n, time)``, times :math:`c_\\mathrm{in}`, at levels ``(n,)`` or ``(1,)``."""
        with torch.autocast(sigma.device.type, enabled=False):
            ratio = sigma / self.variance.sqrt()
            level = self.embedding(ratio)
        return self._flow(y, ratio, level)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D of frames ``(n, time)`` at levels ``(n,)`` or ``(1,)``, in their own precision."""
        flow, (skip, out, _) = self.flow_of(x, sigma)
        return skip * x + out * flow

    def flow_of(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        r"""F of frames ``(n, time)`` in their precision; :math:`c_\mathrm{skip}, c_\mathrm{out}, c_\mathrm{in}`."""
        variance, level = self.variance.to(x), sigma.to(x).unsqueeze(-1)
        root, scale = variance.sqrt(), (variance + level.square()).sqrt()
        flow = self((x / scale).to(self.variance), sigma.to(self.variance)).to(x.dtype)
        return flow, (variance / scale.square(), level * root / scale, 1 / scale)


class Denoiser(Preconditioned):
    r"""F as a :class:`~pyrosep.priors.unet.UNet` of the waveform, its every block told :math:`\log(\sigma / \sqrt v)`.

    Arguments:
        size, spectrum: see :class:`Preconditioned`.
    """

    def __init__(self, size: DenoiserSize, spectrum: Tensor) -> None:
        super().__init__(size, spectrum)
        self.net = UNet(
            1,
            1,
            hop=size.hop,
            width=size.width,
            levels=size.levels,
            layers=size.layers,
            features=size.features,
            heads=size.heads,
        )

    def _flow(self, y: Tensor, ratio: Tensor, level: Tensor) -> Tensor:
        return self.net(y.unsqueeze(1), level)[0].squeeze(1)


class BandDenoiser(Preconditioned):
    r"""D as a Wiener filter whose power, in each bin of a short-time spectrum, a network reads off the noisy signal.

    .. math:: D(x; \sigma) = \mathrm{STFT}^{-1}\Big[\frac{P_{tf}}{P_{tf} + \sigma^2}\, \mathrm{STFT}[x]_{tf}\Big],
              \qquad
              P_{tf} = P_f \exp \mathrm{net}(\mathrm{STFT}[x], \sigma)_{tf}

    the network a :class:`~pyrosep.priors.bandnet.BandNet` that starts at zero, and the source then at a stationary
    Gaussian with its mean spectrum :math:`P_f`. It is the posterior mean of a source that is Gaussian given the
    powers, its phases independent: of music a good part, of periodic waves, whose phases hang together, not all.

    Arguments:
        size, spectrum: see :class:`Preconditioned`.
    """

    def __init__(self, size: BandSize, spectrum: Tensor) -> None:
        super().__init__(size, spectrum)
        self.transform = ShortTimeSpectrum(size.window)
        self.net = BandNet(1, 1, size, features=size.features)
        power = interpolate_spectrum(self.spectrum, size.window // 2 + 1) / self.variance
        self.register_buffer("log_power", power.log(), persistent=False)
        self.log_power: Tensor

    def _flow(self, y: Tensor, ratio: Tensor, level: Tensor) -> Tensor:
        spectra = self.transform(y)
        removed = self._removed(spectra, ratio, level)
        ratio = ratio[:, None, None]
        # F = (D - c_skip x) / c_out, with both filters' distances from one: at low levels they are nearly one.
        return self.transform.inverse((ratio - (1 / ratio + ratio) * removed) * spectra, y.shape[-1])

    def _removed(self, spectra: Tensor, ratio: Tensor, level: Tensor) -> Tensor:
        """What the filter takes away from each bin, :math:`\\sigma^2 / (P + \\sigma^2)`."""
        logs = self.net(spectra.unsqueeze(1), level)[0].squeeze(1) + self.log_power
        return (2 * ratio[:, None, None].log() - logs).sigmoid()

    def filtered(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """D of frames ``(n, time)`` at levels ``(n,)`` or ``(1,)``, and its filter ``(n, frame, bin)``."""
        root = self.variance.sqrt()
        ratio = sigma.to(root) / root
        spectra = self.transform(x.to(root) / root)
        scale = (1 + ratio.square()).sqrt()[:, None, None]
        gain = 1 - self._removed(spectra / scale, ratio, self.embedding(ratio))
        return self.transform.inverse(gain * spectra, x.shape[-1]).to(x.dtype) * root.to(x), gain


def denoiser_of(size: DenoiserSize | BandSize, spectrum: Tensor) -> Preconditioned:
    """The denoiser that a size is of, its weights new."""
    return BandDenoiser(size, spectrum) if isinstance(size, BandSize) else Denoiser(size, spectrum)
