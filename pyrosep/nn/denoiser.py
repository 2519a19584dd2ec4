"""Networks that denoise one source at all noise levels: of waveforms, and of short-time spectra."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError
from pyrosep.nn.bandnet import BandNet, BandSize
from pyrosep.nn.unet import UNet
from pyrosep.nn.wavenet import LevelEmbedding
from pyrosep.signal.spectra import ShortTimeSpectrum, interpolate_spectrum, mean_power

#: Logarithm of the power of an interference that isn't there.
_NOTHING = -1e4

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


#: By name: ``small`` is for the toy waves, ``music`` for songs, and ``large`` for many songs and a GPU.
DENOISERS: dict[str, DenoiserSize | BandSize] = {
    "tiny": DenoiserSize(hop=4, width=16, levels=1, layers=2, heads=2, features=8),
    "small": DenoiserSize(),
    "music": BandSize(width=40, neck=128),
    "large": BandSize(bands=64, width=64, neck=384, layers=12),
}


class Preconditioned(nn.Module):
    r"""The denoiser of a :class:`~pyrosep.ContinuousFlow`, preconditioned as by Karras et al. (2022), table 1.

    .. math:: D(x; \sigma) = c_\mathrm{skip} x + c_\mathrm{out} F(c_\mathrm{in} x; \sigma), \qquad
              c_\mathrm{skip} = \frac{v}{v + \sigma^2}, \quad
              c_\mathrm{out} = \frac{\sigma \sqrt v}{\sqrt{v + \sigma^2}}, \quad
              c_\mathrm{in} = \frac{1}{\sqrt{v + \sigma^2}}

    with :math:`v` the source's mean square. What F is to give, :math:`\sin\theta\, s / \sqrt v - \cos\theta\, \epsilon`
    with :math:`\tan\theta = \sigma / \sqrt v`, has variance one at every level.

    A network built for ``interference`` can also be told that :math:`x = s + \alpha i + \sigma\epsilon`, with i a
    sum of other sources; D is then :math:`E[s | x]` for such x. Told of none, or of 0, it is the network without.

    Arguments:
        size: of the network.
        spectrum: mean power per frequency of the clean source, ``(bins,)``, see :attr:`SourcePrior.spectrum`; its
            mean over the band is :math:`v`.
        interference: whether it can be told of other sources.
    """

    #: What F, or what it is made from, is read off the signal by.
    net: nn.Module
    #: Whether D stays accurate to a percent at all levels where :attr:`net` is evaluated in half precision.
    safe_in_half: bool = False

    def __init__(self, size: DenoiserSize | BandSize, spectrum: Tensor, *, interference: bool = False) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("spectrum", spectrum.detach().clone().to(torch.get_default_dtype()))
        self.spectrum: Tensor
        self.register_buffer("variance", mean_power(self.spectrum))
        self.variance: Tensor
        self.embedding = LevelEmbedding(size.features)
        #: What is added to the features of the noise level where there is interference.
        self.interference: nn.Sequential | None = None
        if interference:
            last = nn.Linear(size.features, size.features)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.interference = nn.Sequential(nn.Linear(size.features + 1, size.features), nn.SiLU(), last)

    @abstractmethod
    def _flow(self, y: Tensor, ratio: Tensor, level: Tensor, heard: Tensor | None) -> Tensor:
        """F of frames ``(n, time)`` at levels :math:`\\sigma / \\sqrt v`, ``(n or 1,)``, and their features.

        ``heard`` tells which of the frames have interference, ``(n or 1,)``; ``None``: none of them.
        """

    def forward(self, y: Tensor, sigma: Tensor, alpha: Tensor | None = None) -> Tensor:
        """F of frames ``(n, time)``, times :math:`c_\\mathrm{in}`, at levels ``(n,)`` or ``(1,)``.

        ``alpha`` is the level of the interference, ``(n,)`` or ``(1,)``; ``None`` for none.
        """
        with torch.autocast(sigma.device.type, enabled=False):
            ratio = sigma / self.variance.sqrt()
            level, heard = self._features(ratio, alpha)
        return self._flow(y, ratio, level, heard)

    def _features(self, ratio: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features of the levels, ``(n or 1, features)``, and which frames have interference."""
        level = self.embedding(ratio)
        if alpha is None:
            return level, None
        if self.interference is None:
            raise ConfigurationError(
                "this denoiser was trained on its source alone and can't be told of interference; train one with "
                "interference"
            )
        count, heard = max(len(level), len(alpha)), alpha > 0
        told = torch.cat([level.expand(count, -1), alpha.to(level).expand(count).unsqueeze(-1)], -1)
        return level + heard.unsqueeze(-1) * self.interference(told), heard

    def denoise(self, x: Tensor, sigma: Tensor, alpha: Tensor | None = None) -> Tensor:
        """D of frames ``(n, time)`` at levels ``(n,)`` or ``(1,)``, in their own precision."""
        flow, (skip, out, _) = self.flow_of(x, sigma, alpha)
        return skip * x + out * flow

    def flow_of(
        self, x: Tensor, sigma: Tensor, alpha: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        r"""F of frames ``(n, time)`` in their precision; :math:`c_\mathrm{skip}, c_\mathrm{out}, c_\mathrm{in}`."""
        variance, level = self.variance.to(x), sigma.to(x).unsqueeze(-1)
        root, scale = variance.sqrt(), (variance + level.square()).sqrt()
        flow = self((x / scale).to(self.variance), sigma.to(self.variance), alpha).to(x.dtype)
        return flow, (variance / scale.square(), level * root / scale, 1 / scale)

    def start_from(self, other: Preconditioned) -> None:
        """Take over the weights of a network of this size, which may know nothing of interference.

        The spectrum stays this network's own. Told of no interference, this network then is the other one.

        Raises:
            ConfigurationError: the other network is of another size, or knows of interference where this one doesn't.
        """
        if other.size != self.size or (other.interference is not None and self.interference is None):
            raise ConfigurationError(
                f"the prior to start from must be of this size, and know no more of interference; got {other.size}, "
                f"not {self.size}"
            )
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in other.named_parameters():
                self._take_over(own[name], value)

    def _take_over(self, own: Tensor, value: Tensor) -> None:
        own.copy_(value)


class Denoiser(Preconditioned):
    r"""F as a :class:`~pyrosep.nn.unet.UNet` of the waveform, its every block told :math:`\log(\sigma / \sqrt v)`.

    Arguments:
        size, spectrum, interference: see :class:`Preconditioned`.
    """

    def __init__(self, size: DenoiserSize, spectrum: Tensor, *, interference: bool = False) -> None:
        super().__init__(size, spectrum, interference=interference)
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

    def _flow(self, y: Tensor, ratio: Tensor, level: Tensor, heard: Tensor | None) -> Tensor:
        return self.net(y.unsqueeze(1), level)[0].squeeze(1)


class BandDenoiser(Preconditioned):
    r"""D as a Wiener filter whose power, in each bin of a short-time spectrum, a network reads off the noisy signal.

    .. math:: D(x; \sigma) = \mathrm{STFT}^{-1}\Big[\frac{P_{tf}}{P_{tf} + \sigma^2}\, \mathrm{STFT}[x]_{tf}\Big],
              \qquad
              P_{tf} = P_f \exp \mathrm{net}(\mathrm{STFT}[x], \sigma)_{tf}

    the network a :class:`~pyrosep.nn.bandnet.BandNet` that starts at zero, and the source then at a stationary
    Gaussian with its mean spectrum :math:`P_f`. It is the posterior mean of a source that is Gaussian given the
    powers, its phases independent: of music a good part, of periodic waves, whose phases hang together, not all.

    Told of interference, it reads off the power Q of that too, and filters by :math:`P / (P + Q + \sigma^2)`.

    Arguments:
        size, spectrum, interference: see :class:`Preconditioned`.
    """

    safe_in_half = True  # the spectra, and the filter from the network's logarithms, are computed in full

    def __init__(self, size: BandSize, spectrum: Tensor, *, interference: bool = False) -> None:
        super().__init__(size, spectrum, interference=interference)
        self.transform = ShortTimeSpectrum(size.window)
        self.net = BandNet(1, 2 if interference else 1, size, features=size.features)
        power = interpolate_spectrum(self.spectrum, size.window // 2 + 1) / self.variance
        self.register_buffer("log_power", power.log(), persistent=False)
        self.log_power: Tensor

    def _flow(self, y: Tensor, ratio: Tensor, level: Tensor, heard: Tensor | None) -> Tensor:
        spectra = self.transform(y)
        removed = self._removed(spectra, ratio, level, heard)
        ratio = ratio[:, None, None]
        # F = (D - c_skip x) / c_out, with both filters' distances from one: at low levels they are nearly one.
        return self.transform.inverse((ratio - (1 / ratio + ratio) * removed) * spectra, y.shape[-1])

    def _removed(self, spectra: Tensor, ratio: Tensor, level: Tensor, heard: Tensor | None) -> Tensor:
        """What the filter takes away from each bin, :math:`(Q + \\sigma^2) / (P + Q + \\sigma^2)`."""
        logs = self.net(spectra.unsqueeze(1), level)[0] + self.log_power
        unwanted = 2 * ratio[:, None, None].log()
        if heard is not None:
            others = torch.where(heard[:, None, None], logs[:, 1], _NOTHING)
            unwanted = torch.logaddexp(unwanted, others)
        return (unwanted - logs[:, 0]).sigmoid()

    def filtered(self, x: Tensor, sigma: Tensor, alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """D of frames ``(n, time)`` at levels ``(n,)`` or ``(1,)``, and its filter ``(n, frame, bin)``."""
        root = self.variance.sqrt()
        ratio = sigma.to(root) / root
        spectra = self.transform(x.to(root) / root)
        scale = (1 + ratio.square()).sqrt()[:, None, None]
        gain = 1 - self._removed(spectra / scale, ratio, *self._features(ratio, alpha))
        return self.transform.inverse(gain * spectra, x.shape[-1]).to(x.dtype) * root.to(x), gain

    def _take_over(self, own: Tensor, value: Tensor) -> None:
        # The other network may lack the second number of each bin, the interference's power.
        if own.shape == value.shape:
            own.copy_(value)
        else:
            bins = len(self.log_power)
            own.view(bins, 2, -1)[:, 0] = value.view(bins, -1)


def denoiser_of(size: DenoiserSize | BandSize, spectrum: Tensor, *, interference: bool = False) -> Preconditioned:
    """The denoiser that a size is of, its weights new; see :class:`Preconditioned`."""
    if isinstance(size, BandSize):
        return BandDenoiser(size, spectrum, interference=interference)
    return Denoiser(size, spectrum, interference=interference)
