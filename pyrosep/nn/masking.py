"""Sources as masks of the mix's short-time spectrum."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.nn.bandnet import BandNet, BandSize
from pyrosep.signal.spectra import ShortTimeSpectrum

__all__ = ["MaskingNet"]

#: Of a mix of variance 1, the least variance in a window.
_LEAST = 1e-8


class MaskingNet(nn.Module):
    r"""Means and deviations of sources, as those of sources that are Gaussian in each bin given the mix.

    A :class:`~pyrosep.nn.bandnet.BandNet` tells how the power of each bin of the mix's short-time spectrum M is
    shared, :math:`g_k` with :math:`\sum_k g_k = 1`. The mean of source k is that of a Wiener filter,

    .. math:: \mu_k = \mathrm{STFT}^{-1}[N d_k g_k M], \qquad
              \sigma_k^2 = e^{c_k} \, \mathrm{mean}_f \big[N^2 d_k^2 g_k (1 - g_k) |M|^2\big],

    N the number of sources, :math:`d_k` what the mix is multiplied by where nothing is known of the source, one
    number a channel, and :math:`c_k` the network's, one number a window; between windows :math:`\log\sigma` is linear.

    Where the size has ``phases``, the mean's mask is :math:`g_k + z_k` with complex numbers z of the network, whose sum
    over all sources is zero: the masks still share out the mix, but change phases too.

    Arguments:
        inputs: channels of the mix.
        sources: how many it gives.
        total: how many there are; of those that others give nothing is known here.
        size: of the network.

    Shapes: mixes ``(n, inputs, time)`` of variance 1, and d ``(sources, inputs)``, to means and deviations
    ``(n, sources, time)`` and features ``(n, width)``.
    """

    def __init__(self, inputs: int, sources: int, total: int, size: BandSize) -> None:
        super().__init__()
        self.sources, self.total = sources, total
        self.transform = ShortTimeSpectrum(size.window)
        self.phases = size.phases
        self.net = BandNet(inputs, sources * (3 if size.phases else 1), size)
        self.trust = nn.Linear(size.width, sources)
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)

    def forward(self, x: Tensor, direct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        time = x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            spectra = self.transform(x)
        told, features = self.net(spectra)
        with torch.autocast(x.device.type, enabled=False):
            others = self.total - self.sources
            shares = functional.pad(told[:, : self.sources], (0, 0, 0, 0, 0, others)).softmax(1)[:, : self.sources]
            heard = self.total * (direct[..., None, None] * spectra.unsqueeze(1)).sum(2)  # (n, source, frame, bin)
            masks = shares + self._turned(told[:, self.sources :]) if self.phases else shares
            mean = self.transform.inverse(masks * heard, time)
            power = torch.view_as_real(heard).square().sum(-1)
            variance = (shares * (1 - shares) * power).mean(-1) + _LEAST  # (n, source, frame)
            logs = variance.log() / 2 + self.trust(features).mT / 2
            between = functional.interpolate(
                logs, size=(logs.shape[-1] - 1) * self.transform.hop + 1, mode="linear", align_corners=True
            )
        return mean, between[..., :time].exp(), features.mean(1)

    def _turned(self, told: Tensor) -> Tensor:
        """Complex numbers ``(n, source, frame, bin)`` whose sum over all sources, those of others at zero, is zero."""
        turned = torch.complex(*told.chunk(2, 1))
        return turned - turned.sum(1, keepdim=True) / self.total
