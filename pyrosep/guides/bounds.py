"""Importance weights of a guide and the bounds on the evidence that they give; mixes drawn from the model itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrosep.errors import ConfigurationError, LeakError, ShapeError
from pyrosep.priors import scores_suffice
from pyrosep.reading import Reading, plate_nesting, role_of

__all__ = ["check_independence", "iwae", "log_weights", "over_mixes", "simulate"]

#: An outer plate over mixes, and one over draws.
_MIXES, _DRAWS = "_pyrosep_mixes", "_pyrosep_draws"


def over_mixes(fn: Callable[..., Any], count: int, nesting: int = 0) -> Callable[..., Any]:
    """A model or guide under a plate over ``count`` independent mixes, outside ``nesting`` plates of its own."""
    return pyro.plate(_MIXES, count, dim=-1 - nesting)(fn)


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    mix: Tensor,
    num_samples: int,
    *,
    batched: bool = False,
) -> Tensor:
    r"""Importance weights of draws of a guide, :math:`\log p(m, s) - \log q(s | m)`, in nats and double precision.

    Their mean is an estimate of the ELBO; :func:`iwae` is a tighter bound.

    Arguments:
        model, guide: called with the mix; every latent site of the model must be one of the guide's.
        mix: one, or with ``batched`` a batch of independent ones on the first axis.
        num_samples: draws, all at once.

    Returns:
        ``(num_samples,)``, or ``(num_samples, mixes)``.

    Raises:
        ConfigurationError: model and guide differ in their sites, a prior has no density, or no draws are asked for.
        ShapeError: the model is not written for leading batch axes.
    """
    if num_samples < 1:
        raise ConfigurationError(f"num_samples must be at least 1; got {num_samples}")
    with torch.no_grad(), pyro.validation_enabled(False):
        with poutine.block():
            nesting = plate_nesting(poutine.trace(model).get_trace(mix[0] if batched else mix))
        outer = -1 - nesting
        mixes = pyro.plate(_MIXES, len(mix), dim=outer) if batched else contextlib.nullcontext()
        draws = pyro.plate(_DRAWS, num_samples, dim=outer - batched)
        with poutine.block(), draws, mixes:
            drawn = poutine.trace(guide).get_trace(mix)
            joint = poutine.trace(poutine.replay(model, drawn)).get_trace(mix)
        _check_sites(joint, drawn)
        _check_densities(joint)
        shape = (num_samples, len(mix)) if batched else (num_samples,)
        return _total(joint, shape) - _total(drawn, shape)


def check_independence(model: Callable[..., Any], guide: Callable[..., Any], mix: Tensor) -> None:
    """Make sure that the model's log-density of each of a batch of mixes is what it is of that mix alone.

    Arguments:
        model, guide: as for :func:`log_weights`.
        mix: a few, on the first axis.

    Raises:
        LeakError: it isn't so.
    """
    with torch.no_grad(), pyro.validation_enabled(False), poutine.block(), scores_suffice():
        nesting = plate_nesting(poutine.trace(model).get_trace(mix[0]))
        drawn = poutine.trace(over_mixes(guide, len(mix), nesting)).get_trace(mix)
        joint = poutine.trace(poutine.replay(over_mixes(model, len(mix), nesting), drawn)).get_trace(mix)
        _check_sites(joint, drawn)
        together = _total(joint, (len(mix),))
        for i, one in enumerate(mix):
            values = {name: drawn.nodes[name]["value"][i] for name in drawn.stochastic_nodes}
            values = {name: value.reshape(drawn.nodes[name]["fn"].event_shape) for name, value in values.items()}
            alone = _total(poutine.trace(poutine.condition(model, values)).get_trace(one), ())
            # Rounding of single precision, in a sum over a frame; a leak is a matter of nats for each sample.
            if not torch.isclose(together[i], alone, rtol=1e-3, atol=1e-2, equal_nan=True):
                raise LeakError(
                    f"the log-density of a mix is {float(alone):.6g} nats alone and {float(together[i]):.6g} among "
                    f"{len(mix)}: some operation of the model reduces over the leading axis, which holds the mixes. "
                    "Count axes from the end (mean(-2), not mean(0)), and declare event axes with .to_event(n)"
                )


def iwae(weights: Tensor) -> Tensor:
    r"""The importance-weighted bound :math:`\log \frac1K \sum_k w_k` on the log-evidence in nats (Burda et al., 2016).

    Arguments:
        weights: :func:`log_weights`, ``(K, ...)``.
    """
    return weights.logsumexp(0) - math.log(len(weights))


def simulate(
    model: Callable[..., Any],
    count: int,
    *,
    stems: Mapping[str, Callable[[int], Tensor]] | None = None,
    observed: str = "mix",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mixes drawn from the model itself, and what they are made of.

    Arguments:
        model: called without arguments it must draw a mix, as those of :mod:`pyrosep.mixing` do.
        count: mixes.
        stems: for some of the sources, a function that draws so many frames ``(count, time)`` of that source alone,
            in place of its prior.
        observed: the site that is the mix.

    Returns:
        mixes ``(count, ..., time)``, and the values of all other sites by name, the mixes in front.

    Raises:
        ConfigurationError: the model needs arguments, lacks the site ``observed`` or one of the stems'.
        ShapeError: a stem's frames don't fit.
    """
    with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        try:
            single = poutine.trace(model).get_trace()
        except TypeError as error:
            raise ConfigurationError(
                f"to simulate mixes the model is called without arguments ({error}); write it as model(mix=None)"
            ) from error
        sites = {name: single.nodes[name] for name in single.stochastic_nodes}
        if observed not in sites or (unknown := set(stems or {}) - set(sites)):
            wrong = f"stems for {sorted(unknown)}" if observed in sites else f"no site {observed!r} that is drawn"
            raise ConfigurationError(
                f"{wrong}; without arguments the model draws {list(sites)}. Name the mix by observed="
            )
        given = {}
        for name, draw in (stems or {}).items():
            value, shape = draw(count), (count, *sites[name]["fn"].event_shape)
            if not isinstance(value, Tensor) or value.shape != shape:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ShapeError(f"the stems of {name!r} must come as {shape}; got {got}")
            given[name] = value
        batched = over_mixes(poutine.condition(model, given), count, plate_nesting(single))
        trace = poutine.trace(batched).get_trace()
    values = {name: trace.nodes[name]["value"] for name in sites}
    mix = values.pop(observed)
    if mix.shape[:1] != (count,):
        raise ShapeError(
            f"{count} mixes at once came as {tuple(mix.shape)}; write the model for tensors with leading batch axes"
        )
    return mix, values


def _total(trace: poutine.Trace, shape: tuple[int, ...]) -> Tensor:
    """The log-density of a run, ``shape``."""
    trace.compute_log_prob()
    total = torch.zeros(shape, dtype=torch.float64)
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or role_of(site) in ("subsample", "deterministic"):
            continue
        value = site["log_prob"]
        if value.shape[: len(shape)] != shape:
            raise ShapeError(
                f"site {name!r} has a log-probability of shape {tuple(value.shape)}; expected {shape} in front. Write "
                "model and guide for tensors with leading batch axes, and declare event axes with .to_event(n)"
            )
        total = total.to(value.device) + value.double().reshape(*shape, -1).sum(-1)
    return total


def _check_densities(trace: poutine.Trace) -> None:
    for name, prior in Reading.of(trace).priors.items():
        if not prior.has_density:
            raise ConfigurationError(
                f"importance weights and bounds need densities, and the prior of {name!r} has none (a "
                f"{type(prior).__name__}); give it one by its with_density(), if it has one"
            )


def _check_sites(model: poutine.Trace, guide: poutine.Trace) -> None:
    latent, own = set(model.stochastic_nodes), set(guide.stochastic_nodes)
    if latent != own:
        raise ConfigurationError(
            f"the guide must sample the model's latent sites {sorted(latent)}; it samples {sorted(own)}. "
            "EncoderGuide.for_model builds one that does"
        )
