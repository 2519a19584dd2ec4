"""How loud the sources of a prior set are in a mix, by the mean periodogram of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer import fit_gains
from pyrosep.signal.spectra import full_sum
from pyrosep.zoo import PriorSet

__all__ = ["MeanPeriodogram", "mix_gains"]


def mix_gains(kind: str | Sequence[float], priors: PriorSet, power: Tensor, level: float) -> Tensor:
    """Gains of the sources in a mix, ``(source,)``.

    Arguments:
        kind: ``"mean"``, ``"level"``, ``"fit"`` or numbers, see :class:`~pyrosep.Settings`.
        priors: for frames of the length that the power is of.
        power: mean periodogram of the mix, ``(frame // 2 + 1,)``.
        level: root mean square of the mix.

    Raises:
        ConfigurationError: numbers that are not one for each source, or priors that know no spectrum where one is
            needed.
    """
    count = len(priors)
    if not isinstance(kind, str):
        gains = torch.as_tensor(kind, dtype=torch.get_default_dtype())
        if gains.shape != (count,):
            raise ConfigurationError(f"expected {count} gains, one for each of {tuple(priors)}; got {kind}")
        return gains
    if kind == "mean":
        return torch.full((count,), 1 / count)
    spectra = [prior.spectrum for prior in priors.values()]
    if any(spectrum is None for spectrum in spectra):
        raise ConfigurationError(f"gains={kind!r} needs priors that know their spectrum; give the gains as numbers")
    stacked = torch.stack([cast(Tensor, spectrum).cpu().double() for spectrum in spectra])
    if kind == "fit":
        # Far below the loudest band there is nothing but quantisation noise to fit.
        return fit_gains(stacked, power.clamp(min=power.max() * 1e-8))
    whole = full_sum(stacked.sum(0), priors.time)
    return torch.full((count,), level / math.sqrt(whole.item() / priors.time))


class MeanPeriodogram:
    """Of frames ``(channel, time)``: a shorter one is tapered where it ends, and counts by its length."""

    def __init__(self, frame: int) -> None:
        self.frame = frame
        self._power, self._weight = torch.zeros(frame // 2 + 1, dtype=torch.float64), 0.0

    def add(self, samples: Tensor) -> None:
        """Count one more frame; what it has beyond its length is left out."""
        heard = samples[..., : self.frame].double()
        bins = torch.fft.rfft(heard * _taper(heard.shape[-1]), n=self.frame)
        self._power += bins.abs().square().mean(0) / self.frame
        self._weight += heard.shape[-1] / self.frame

    def mean(self) -> Tensor:
        """The mean so far, ``(frame // 2 + 1,)``."""
        return self._power / self._weight


def _taper(time: int) -> Tensor:
    """A Hann window of unit mean square, nowhere zero."""
    taper = (math.pi * (torch.arange(time, dtype=torch.float64) + 0.5) / time).sin().square()
    return taper / taper.square().mean().sqrt()
