"""Where chains start: the prior, the mix, given values, a guide, or a search."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrosep.errors import ConfigurationError, InitializationError, ShapeError
from pyrosep.infer.potential import Potential, Values
from pyrosep.reading import kept_of

__all__ = ["Initial", "KnowsItsError", "Start", "error_level", "initial_values"]


class Start(ABC):
    """What finds where chains are to begin."""

    @abstractmethod
    def values(self, potential: Potential) -> Values:
        """Unconstrained starting values for every chain of a potential."""


@runtime_checkable
class KnowsItsError(Protocol):
    """A guide that tells how far it is off."""

    def error_level(self, *args: Any, **kwargs: Any) -> Tensor:
        """By the model's arguments, rms of a sample of the sources, a scalar or one for each mix."""


Initial = str | Mapping[str, Tensor] | Callable[..., Any] | Start


def initial_values(potential: Potential, init: Initial) -> Values:
    """Unconstrained starting values for every chain of ``potential``.

    Arguments:
        potential: of the model, with its data.
        init: one of

            - ``"prior"``: a draw of every site from the prior;
            - ``"mix"``: every source starts at the same multiple of the observed mix, the one that explains the mix
              best when all sources are equal (a third of it for the sum of three, the mix itself for a mean); other
              sites from the prior;
            - a mapping from sites to values in the model's own space, with the chains in front or without (all chains
              then start there); sites it leaves out start from the prior;
            - a Pyro guide, called with the model's arguments under the chains' plate;
            - a search, :class:`~pyrosep.AnnealedSearch`.

    Raises:
        ShapeError: given values that don't fit.
        InitializationError: a value that is not finite or not in its site's support.
    """
    if isinstance(init, Start):
        return init.values(potential)
    values = dict(potential.placeholder)
    if isinstance(init, str):
        if init == "mix":
            values |= _from_mix(potential)
        elif init == "prior":
            values = dict(potential.prior_draw)
        else:
            raise ConfigurationError(
                f"init must be 'prior', 'mix', a mapping from sites to values, a guide, or a search; got {init!r}"
            )
    else:
        given = init if isinstance(init, Mapping) else _from_guide(potential, init)
        unknown = sorted(set(given) - set(values))
        if unknown:
            raise ConfigurationError(f"initial values for {unknown}, but the model's latent sites are {list(values)}")
        if set(potential.priors) - set(given):
            values = dict(potential.prior_draw)
        values |= {name: _fitted(name, value, values[name]) for name, value in given.items()}
    z = potential.unconstrain(values)
    for name, value in z.items():
        if not bool(torch.isfinite(value).all()):
            raise InitializationError(f"initial values of site {name!r} are not finite or not in its support")
    return {name: value.detach().clone() for name, value in z.items()}


def error_level(potential: Potential, init: Initial) -> Tensor | None:
    """How far the sources that chains start with are off: ``(chains,)``, rms of a sample.

    ``None`` where nothing is known of it: they don't start from a guide that has an ``error_level``.
    """
    if not isinstance(init, KnowsItsError):
        return None
    with torch.no_grad():
        return init.error_level(*potential.args, **potential.kwargs).reshape(-1).expand(potential.num_chains or 1)


def _fitted(name: str, value: Tensor, like: Tensor) -> Tensor:
    try:
        return value.detach().to(like).expand(like.shape)
    except RuntimeError:
        raise ShapeError(
            f"initial values of site {name!r} have shape {tuple(value.shape)}; expected {tuple(like.shape)}"
        ) from None


def _from_mix(potential: Potential) -> Values:
    if not potential.priors:
        raise ConfigurationError("init='mix' needs sites with a source prior; the model has none")
    like = next(iter(potential.placeholder[name] for name in potential.priors))
    for name, mix in potential.observed.items():
        if potential.reading.sites[name].prior is None and mix.ndim and mix.shape[-1] == like.shape[-1]:
            return _equal_sources(potential, name, mix)
    raise ConfigurationError(f"init='mix' needs an observed site of {like.shape[-1]} samples; the model has none")


def _equal_sources(potential: Potential, observed: str, mix: Tensor) -> Values:
    sources = list(potential.priors)
    like = potential.placeholder[sources[0]]
    if potential.reading.sites[observed].masked:  # what is not observed may be anything
        with torch.no_grad():
            node = potential.run(potential.placeholder).nodes[observed]
        kept = kept_of(node)
        assert kept is not None
        mix = mix.where(kept, 0.0)
    while mix.ndim > like.ndim:  # channels
        mix = mix.mean(-2)
    try:
        start = mix.to(like).expand(like.shape)
    except RuntimeError:
        start = mix.mean(tuple(range(mix.ndim - 1))).to(like).expand(like.shape)
    scale: Tensor | float = 1.0  # of a mix of nothing but zeros, and of an observation without a middle
    with torch.no_grad():
        trace = potential.run(potential.placeholder | dict.fromkeys(sources, start))
        expected, value = _middle(trace.nodes[observed]["fn"]), trace.nodes[observed]["value"]
        if expected is not None and (kept := kept_of(trace.nodes[observed])) is not None:
            expected, value = expected.where(kept, 0.0), value.where(kept, 0.0)
        if expected is not None and bool((power := expected.square().sum()) > 0):
            scale = (value * expected).sum() / power
    return dict.fromkeys(sources, scale * start)


def _middle(fn: Any) -> Tensor | None:
    """The mean of a distribution or, of one that has none, its mode; ``None`` where it has neither."""
    for name in ("mean", "mode"):
        with contextlib.suppress(AttributeError, NotImplementedError):
            if bool((value := getattr(fn, name)).isfinite().all()):
                return value
    return None


def _from_guide(potential: Potential, guide: Callable[..., Any]) -> Values:
    with torch.no_grad(), potential.chains(), poutine.trace() as tracer, pyro.validation_enabled(False):
        guide(*potential.args, **potential.kwargs)
    return {
        name: site["value"]
        for name, site in tracer.trace.nodes.items()
        if site["type"] == "sample" and name in potential.placeholder
    }
