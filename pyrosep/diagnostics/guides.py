"""Whether a guide is to be trusted: importance weights, coverage of its intervals, and how it explains the mix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal

from pyrosep.diagnostics.arviz_versions import pareto_shape
from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides import EncoderGuide, log_weights
from pyrosep.reading import Reading, plate_nesting

__all__ = ["MixCheck", "fit_temperature", "importance_k_hat", "interval_coverage", "mix_check"]

#: Log-weights that differ by less are equal to rounding.
_EQUAL = 1e-2
#: A round that leaves more than this share of what intervals miss is the last; and so much may be missed unsaid.
_GAIN, _MISSED = 0.98, 0.1
#: Rounds in which the temperatures of a projected guide, whose sources share what is uncertain, settle.
_ROUNDS = 20


def importance_k_hat(
    model: Callable[..., Any], guide: Callable[..., Any], mix: Tensor, num_samples: int = 1000
) -> float:
    r"""Pareto shape :math:`\hat k` of the importance weights of a guide's draws (Vehtari et al., 2024).

    Below 0.5 the guide is close to the posterior, up to 0.7 importance sampling still mends it; above, it misses part
    of it (Yao et al., 2018). The weights are of all samples of all sources together: long frames are a hard test.

    Arguments:
        model, guide: called with the mix.
        mix: one, ``(time,)`` or ``(channel, time)``.
        num_samples: draws, all at once; at least 25.

    Returns:
        the shape: minus infinity where all weights are the same to rounding, infinity where one outweighs all others.

    Raises:
        ConfigurationError: too few draws, or sites that differ.
    """
    if num_samples < 25:
        raise ConfigurationError(f"a tail is fitted to 25 draws or more; got num_samples={num_samples}")
    weights = log_weights(model, guide, mix, num_samples).cpu()
    if not bool(torch.isfinite(weights).all()):
        return float("inf")
    if float(weights.max() - weights.min()) < _EQUAL:
        return -float("inf")
    return pareto_shape(weights.numpy())


def interval_coverage(
    guide: EncoderGuide, mixes: Tensor, sources: Tensor, levels: Sequence[float] = (0.5, 0.9)
) -> dict[str, dict[float, float]]:
    """Share of the samples of true sources that lie in the guide's central intervals, by source and level.

    Arguments:
        guide: an encoder guide.
        mixes: ``(mix, ..., time)``, for instance those of :func:`~pyrosep.guides.simulate`.
        sources: what they are made of, ``(mix, source, time)`` in the guide's order.
        levels: of the intervals, between 0 and 1.

    Raises:
        ConfigurationError: a level out of range.
        ShapeError: sources that don't fit.
    """
    _check_sources(guide, mixes, sources)
    with torch.no_grad():
        z = torch.cat([_standardised(truth, *guide.moments(mix)) for mix, truth in _parts(mixes, sources)]).abs()
    ends = {level: _end(level) for level in levels}
    return {
        name: {level: float((z[:, k] <= end).double().mean()) for level, end in ends.items()}
        for k, name in enumerate(guide.names)
    }


def fit_temperature(guide: EncoderGuide, mixes: Tensor, sources: Tensor, level: float = 0.9) -> dict[str, float]:
    r"""Set the guide's temperatures so that its intervals of this level cover that share of the true samples.

    The temperature of a source is multiplied by the ``level`` quantile of :math:`|s - \mu| / \sigma` over that of
    :math:`|N(0, 1)|`: split conformal calibration of a scale (Angelopoulos & Bates, 2023), but for its correction for a
    finite sample. Where the guide is projected onto the mix, the sources share what is uncertain, and the step is
    repeated while that brings the intervals nearer. A warning says where none gets them there.

    Arguments:
        guide: changed in place.
        mixes, sources: see :func:`interval_coverage`; not those the guide was trained on.
        level: between 0 and 1.

    Returns:
        the temperatures by source.

    Raises:
        ConfigurationError: a level out of range, or a mean that is exact, so that no temperature fits.
        ShapeError: sources that don't fit.
    """
    end = _end(level)
    before = guide.temperature.clone()
    _check_sources(guide, mixes, sources)
    with torch.no_grad():
        parts = [(mix, truth, guide._encoded(mix)) for mix, truth in _parts(mixes, sources)]
    best, least = before.clone(), float("inf")
    for _ in range(1 + (_ROUNDS if guide.projected else 1)):
        with torch.no_grad():
            z = torch.cat([_standardised(truth, *guide.moments(mix, encoded)) for mix, truth, encoded in parts]).abs()
        # numpy's quantile has no limit on the number of elements.
        reached = torch.from_numpy(_quantiles(z.transpose(0, 1).flatten(1), level))
        if not bool((torch.isfinite(reached) & (reached > 0)).all()):
            guide.temperature.copy_(before)
            raise ConfigurationError(f"no temperature fits deviations whose {level:g} quantiles are {reached.tolist()}")
        off = float((reached / end).log().abs().max())
        if off > _GAIN * least:  # what no temperature changes: larger ones would change all else
            break
        best, least = guide.temperature.clone(), off
        guide.temperature.mul_((reached / end).to(guide.temperature))
    guide.temperature.copy_(best)
    if least > _MISSED:
        warnings.warn(
            f"no temperature gives the guide's intervals a share of {level:g}: at best the true samples' quantile is "
            f"{math.exp(least):.3g} times too large or too small. A projected guide is as sure of the mix as its noise "
            f"({guide.noise if guide.projected else 0:.3g}) is small: is that the noise of these mixes?",
            UserWarning,
            stacklevel=2,
        )
    return dict(zip(guide.names, guide.temperature.tolist(), strict=True))


@dataclass(frozen=True)
class MixCheck:
    """A posterior predictive check of the mix.

    Attributes:
        statistic: mean over draws of the chi-square of the mix's residual, in units of the observation noise.
        expected: its mean over mixes drawn anew from the model at the same draws.
        p_value: share of the draws at which the new mix's statistic is as large as the mix's own. Near 0 the draws do
            not explain the mix; near 1 they explain even its noise.
    """

    statistic: float
    expected: float
    p_value: float


def mix_check(
    model: Callable[..., Any],
    posterior: Callable[..., Any] | Mapping[str, Tensor],
    mix: Tensor,
    num_samples: int = 100,
) -> MixCheck:
    r"""Whether posterior draws explain the mix: :math:`\chi^2 = \sum_t (m_t - E[m_t | s])^2 / \mathrm{Var}[m_t | s]`.

    A mix is drawn from the model at each posterior draw and its statistic compared with the mix's own (Gelman, Meng &
    Stern, 1996).

    Arguments:
        model: called with the mix, one observed site.
        posterior: a guide, or draws by site with the draws in front (as :meth:`pyrosep.LangevinMCMC.get_samples` has
            them).
        mix: one, ``(time,)`` or ``(channel, time)``.
        num_samples: draws of a guide.

    Raises:
        ConfigurationError: other than one observed site, or one whose distribution has no variance.
    """
    with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        single = poutine.trace(model).get_trace(mix)
        observed = list(Reading.of(single).data)
        if len(observed) != 1:
            raise ConfigurationError(f"the check needs a model with one observed site; this one observes {observed}")
        draws = posterior if isinstance(posterior, Mapping) else None
        count = num_samples if draws is None else len(next(iter(draws.values())))
        with pyro.plate("_pyrosep_draws", count, dim=-1 - plate_nesting(single)):
            if draws is None:
                values = poutine.trace(posterior).get_trace(mix)
                joint = poutine.trace(poutine.replay(model, values)).get_trace(mix)
            else:
                joint = poutine.trace(poutine.condition(model, draws)).get_trace(mix)
        fn = joint.nodes[observed[0]]["fn"]
        try:
            mean, variance = fn.mean, fn.variance
        except (AttributeError, NotImplementedError):
            raise ConfigurationError(f"observed site {observed[0]!r} has no mean and variance; got {fn}") from None

        def statistic(value: Tensor) -> Tensor:
            return ((value - mean).square() / variance).double().reshape(count, -1).sum(-1)

        own, new = statistic(mix), statistic(fn.sample())
    return MixCheck(float(own.mean()), float(new.mean()), float((new >= own).double().mean()))


def _check_sources(guide: EncoderGuide, mixes: Tensor, sources: Tensor) -> None:
    expected = (len(mixes), len(guide.names), mixes.shape[-1])
    if sources.shape != expected:
        raise ShapeError(f"expected sources of shape {expected} (mix, source, time); got {tuple(sources.shape)}")


def _parts(mixes: Tensor, sources: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(mixes.split(16), sources.split(16), strict=True)


def _standardised(truth: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    r""":math:`(s - \mu) / \sigma`, ``(mix, source, time)``."""
    return (truth.to(mean) - mean) / scale


def _end(level: float) -> float:
    """Half the width of a central interval of the standard normal."""
    if not 0 < level < 1:
        raise ConfigurationError(f"a level must be between 0 and 1; got {level!r}")
    return float(Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2, dtype=torch.float64)))


def _quantiles(rows: Tensor, level: float) -> Any:
    import numpy as np

    return np.quantile(rows.cpu().double().numpy(), level, axis=-1)
