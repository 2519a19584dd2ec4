"""Intervals from few draws, how many true values they hold, and the temperature by which they hold what they say."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, ShapeError

__all__ = ["coverage_by_source", "draw_coverage", "draw_intervals", "fit_draw_temperature"]

#: Halvings of the range in which a temperature is looked for.
_HALVINGS = 50
#: That range.
_TEMPERATURES = (1e-3, 1e3)


def draw_intervals(draws: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
    r"""Where another draw of the same distribution is expected: Student's prediction interval of each value.

    .. math:: \bar s \pm t_{K-1} \sqrt{1 + 1/K}\, \hat\sigma

    with mean and standard deviation of the K draws and the :math:`(1 + \mathrm{level}) / 2` quantile of Student's
    distribution: exact for draws that are independent and Normal, whatever their number. If the draws are of a
    posterior, the true value is such another one.

    Arguments:
        draws: ``(draw, ...)``, at least two.
        level: share of values in the interval, between 0 and 1.

    Returns:
        middle and half width, each ``(...)``.

    Raises:
        ConfigurationError: fewer than two draws, or a level out of range.
    """
    from scipy.stats import t as student

    if not 0 < level < 1:
        raise ConfigurationError(f"the level of an interval must be between 0 and 1; got {level}")
    if len(draws) < 2:
        raise ConfigurationError(f"an interval needs at least 2 draws; got {len(draws)}")
    width = float(student.ppf((1 + level) / 2, len(draws) - 1)) * math.sqrt(1 + 1 / len(draws))
    deviation, mean = torch.std_mean(draws, 0)
    return mean, width * deviation


def coverage_by_source(draws: Tensor, truth: Tensor, heard: Tensor, level: float = 0.9) -> list[float]:
    """By source, the mean of :func:`draw_coverage` over the mixes in which it counts.

    Arguments:
        draws: ``(draw, mix, source, time)``.
        truth: ``(mix, source, time)``.
        heard: which sources of which mixes count, ``(mix, source)``.
        level: of the intervals.
    """
    inside = draw_coverage(draws, truth, level)
    return [float(inside[heard[:, k], k].mean()) for k in range(truth.shape[1])]


def draw_coverage(draws: Tensor, truth: Tensor, level: float = 0.9) -> Tensor:
    """Share of the samples of true sources in :func:`draw_intervals` of draws of them: ``(...)``.

    Arguments:
        draws: ``(draw, ..., time)``.
        truth: ``(..., time)``.
        level: of the intervals.
    """
    return (_distances(draws, truth, level) <= 1).double().mean(-1)


def fit_draw_temperature(draws: Tensor, truth: Tensor, heard: Tensor | None = None, level: float = 0.9) -> float:
    r"""By how much draws must lie further from their mean for their intervals to hold what they say.

    The number :math:`\tau` for which intervals of draws :math:`\bar s + \tau (s - \bar s)` hold a share ``level`` of
    the true samples, in the mean over sources: split conformal calibration of a scale (Angelopoulos & Bates, 2023), one
    for all sources, so that what draws sum to stays the same.

    Arguments:
        draws: ``(draw, mix, source, time)``.
        truth: ``(mix, source, time)``; not of recordings that the priors have been trained on.
        heard: which sources of which mixes count, ``(mix, source)``; all by default.
        level: of the intervals.

    Raises:
        ConfigurationError: a source that counts in no mix, or draws that have no spread.
        ShapeError: draws and truth that don't fit.
    """
    if draws.ndim != 4 or draws.shape[1:] != truth.shape:
        raise ShapeError(
            f"expected draws (draw, mix, source, time) of truth (mix, source, time); got {tuple(draws.shape)} and "
            f"{tuple(truth.shape)}"
        )
    heard = torch.ones(truth.shape[:2], dtype=torch.bool) if heard is None else heard
    if not bool(heard.any(0).all()):
        raise ConfigurationError("each source must count in at least one mix")
    distances = _distances(draws, truth, level)
    by_source = [distances[heard[:, k], k].flatten().sort().values for k in range(truth.shape[1])]

    def coverage(temperature: float) -> float:
        limit = torch.tensor(temperature, dtype=distances.dtype)
        inside = [float(torch.searchsorted(own, limit, right=True)) / len(own) for own in by_source]
        return sum(inside) / len(inside)

    low, high = _TEMPERATURES
    if not coverage(low) < level <= coverage(high):
        raise ConfigurationError(
            f"no temperature fits: intervals hold {coverage(low):.2f} of the true samples where draws lie at their "
            f"mean, and {coverage(high):.2f} where they lie far from it; expected {level:g} in between"
        )
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if coverage(middle) < level else (low, middle)
    return high


def _distances(draws: Tensor, truth: Tensor, level: float) -> Tensor:
    """Of the truth from the middle of the intervals, in half widths; infinite where these have none."""
    mean, half = draw_intervals(draws, level)
    return (truth - mean).abs() / half.clamp(min=torch.finfo(half.dtype).tiny)
