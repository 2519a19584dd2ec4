"""How loud the sources of a prior set are in a mix."""

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

__all__ = ["mix_gains"]


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
