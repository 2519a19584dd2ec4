"""What is not known of a source at a noise level given its value at a higher one, measured over draws of its prior."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyrosep.priors.base import SourcePrior

__all__ = ["MeasuredUncertainty"]


class MeasuredUncertainty:
    """The uncertainties that were measured of a prior so far, and the draws that they were measured over.

    Copies of a prior share what was measured of it before they were made.
    """

    def __init__(self) -> None:
        self._by_level: dict[tuple[int, float, float, float], Tensor] = {}
        self._drawn: dict[tuple[int, float, int, torch.device], tuple[Tensor, Tensor]] = {}

    def at(self, prior: SourcePrior, level: float, trials: int = 16) -> Tensor:
        """The mean posterior variance by frequency, ``(time // 2 + 1,)``, on the host in double precision.

        Arguments:
            prior: the source at its own level, which is the lower one.
            level: the higher one.
            trials: draws that it is measured over, where it has not been measured yet.
        """
        own = prior.sigma.mean()
        added = max(level**2 - float(own) ** 2, 0.0)
        if (key := (prior.time, float(own), prior.interference, level)) not in self._by_level:
            with torch.no_grad():
                low, noise = self._trials(prior, own, trials)
                noisy = low + math.sqrt(added) * noise
                mean = noisy + added / level**2 * (prior.at(level).denoise(noisy) - noisy)
            power = torch.view_as_real(torch.fft.rfft((low - mean).double())).square().sum(-1)
            self._by_level[key] = power.reshape(-1, power.shape[-1]).mean(0).cpu() / prior.time
        return self._by_level[key]

    def _trials(self, prior: SourcePrior, own: Tensor, trials: int) -> tuple[Tensor, Tensor]:
        """Draws at a level and noise, the same ones for all higher levels: some families take long to draw."""
        if (key := (prior.time, float(own), trials, own.device)) not in self._drawn:
            devices = [own.device] if own.device.type == "cuda" else []  # whose random numbers go on as they were
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(0)
                low = prior.at(own).sample(torch.Size([trials]))
                self._drawn[key] = (low, torch.randn_like(low))
        return self._drawn[key]
