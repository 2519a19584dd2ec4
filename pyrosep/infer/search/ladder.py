"""Ladders of noise levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping

import torch
from scipy.special import erfcinv

from pyrosep.errors import ConfigurationError
from pyrosep.priors import SourcePrior
from pyrosep.priors.base import rms

__all__ = ["exchange_rate", "noise_ladder"]


def noise_ladder(
    priors: SourcePrior | Mapping[str, SourcePrior],
    levels: int | None = None,
    *,
    top: float | None = None,
    bottom: float | None = None,
    overlap: float = 0.05,
) -> tuple[float, ...]:
    r"""Noise levels from where every source is lost in noise down to the priors' own, in equal ratios.

    Two waveforms at a distance d are told apart by noise below about d: at a level of :math:`d / 2` the density still
    runs from one to the other. Frames of :math:`T` samples differ by about :math:`\mathrm{rms}\sqrt{2T}`, so the
    **top** grows with the root of the frame; a third of :math:`\mathrm{rms}\sqrt T` is enough to forget the waveform.

    A frame at level :math:`\sigma` lies within a shell of radius :math:`\sigma\sqrt T` and thickness
    :math:`\sigma/\sqrt2`. **Neighbouring levels** overlap if their ratio is :math:`1 + O(1/\sqrt T)`: between white
    Gaussians an exchange of states is accepted with probability :func:`exchange_rate`, whose inverse gives the
    spacing here. Langevin steps alone need that. Moves that go from level to level by themselves (ancestral ones,
    redraws) do with far fewer: give ``levels``.

    Arguments:
        priors: a prior, or several by source.
        levels: how many; by default as many as ``overlap`` asks for.
        top: highest level; by default a third of the sources' rms times the root of the frame.
        bottom: lowest level; by default the least of the priors' own.
        overlap: acceptance of exchanges between neighbouring levels. The default gives a ratio near
            :math:`1 + 2/\sqrt T` (Song & Ermon, 2020, come to the same order).

    Returns:
        the levels, falling; the last is ``bottom``.

    Raises:
        ConfigurationError: a top that is not above the bottom, or fewer than two levels.

    Example:
        >>> from pyrosep import OscillatorPrior
        >>> ladder = noise_ladder(OscillatorPrior("saw", frame=2048), levels=10)
        >>> [round(level, 2) for level in ladder[:3]], round(ladder[-1], 2)
        ([7.86, 3.75, 1.79], 0.01)
    """
    family = [priors] if isinstance(priors, SourcePrior) else list(priors.values())
    if not family:
        raise ConfigurationError("expected at least one prior for a ladder; got none")
    frame = family[0].time
    if top is None:
        top = max(rms(prior) for prior in family) * math.sqrt(frame) / 3
    if bottom is None:
        bottom = min(prior.sigma.min().item() for prior in family)
    if not 0 < bottom < top:
        raise ConfigurationError(f"expected noise levels with 0 < bottom < top; got bottom {bottom:g} and top {top:g}")
    if levels is None:
        if not 0 < overlap < 1:
            raise ConfigurationError(f"overlap must be in (0, 1); got {overlap!r}")
        ratio = math.exp(math.sqrt(2 / frame) * float(erfcinv(overlap)))
        levels = 1 + math.ceil(math.log(top / bottom) / math.log(ratio))
    if levels < 2:
        raise ConfigurationError(f"a ladder needs at least 2 levels; got {levels}")
    return tuple(torch.logspace(math.log10(top), math.log10(bottom), levels, dtype=torch.float64).tolist())


def exchange_rate(ratio: float, frame: int) -> float:
    r"""Acceptance of an exchange of states between noise levels in a ratio r: :math:`\mathrm{erfc}(\sqrt{T/2}\,\ln r)`.

    The log-ratio of two white Gaussians' exchange is, for long frames, normal with mean :math:`-2T\ln^2 r` and twice
    that as its variance; the mean of :math:`\min(1, e^\Delta)` follows. Sources add their own spread to the noise, so
    that real levels overlap at least as much.
    """
    return math.erfc(math.sqrt(frame / 2) * abs(math.log(ratio)))


def check_ladder(ladder: Iterable[float]) -> tuple[float, ...]:
    """Levels as a tuple, or an error: they must be positive and fall."""
    levels = tuple(float(level) for level in ladder)
    falling = all(high > low for high, low in itertools.pairwise(levels))
    if not levels or not falling or not levels[-1] > 0:
        raise ConfigurationError(f"a ladder is a falling sequence of positive noise levels; got {levels}")
    return levels
