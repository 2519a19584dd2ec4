"""The chains' axis of a model that runs once for all chains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrosep.errors import ShapeError
from pyrosep.priors.base import rms
from pyrosep.reading import Reading, Site, role_of, source_prior

__all__ = ["ADVICE", "ChainAxis", "Seen", "StandIns", "check_observations", "relative_residual"]

ADVICE = (
    "Write the model for tensors with leading batch axes: count axes from the end (mean(-2), not mean(0)), declare "
    "an observation's axes with .to_event(n), and write gain[..., None] where a scalar site meets (..., time)"
)

_PLATE_ADVICE = (
    "Outside of a plate its axis has one element: a sum over a plate of sources is sources.sum(-2, keepdim=True), as "
    "in every Pyro model that runs under an outer plate"
)


class StandIns(Messenger):
    """Outside of all plates: sources that take long to draw are noise where nobody asks for a draw."""

    used = False

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        prior = source_prior(msg["fn"])
        if prior is None or prior.quick_draws or msg["value"] is not None or msg["done"]:
            return
        self.used = True
        shape = msg["fn"].batch_shape + msg["fn"].event_shape
        msg["value"] = rms(prior) * torch.randn(shape, dtype=prior.sigma.dtype, device=prior.sigma.device)


class ChainAxis:
    """Where the chains are among a site's axes: all to the left of the model's plates, or of the site's own.

    The first is what an outer :class:`pyro.plate` does, and right for models that are written for one. The second is
    for a model that forgets the axis of a plate outside of it, as with ``sources.sum(-2)`` over a plate of sources.

    Arguments:
        count: chains; ``None`` for a single one without an axis.
        sites: of a run of the model by itself.
        beside: whether chains stand beside each site's own plates.
    """

    def __init__(self, count: int | None, sites: Reading, *, beside: bool = False) -> None:
        self.count = count
        self.nesting = max((site.axes for site in sites.sites.values()), default=0)
        self.beside = beside and count is not None
        self._sites = sites.sites

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """In which the model runs once for all chains."""
        if self.count is None:
            return contextlib.nullcontext()
        if self.beside:
            return _Beside(self.count, self._sites)
        return pyro.plate("_pyrosep_chains", self.count, dim=-1 - self.nesting)

    def per_chain(self, name: str, log_prob: Tensor) -> Tensor:
        """The sum of a site's log-density over all axes but the chains': ``(chains,)``, or a scalar without chains.

        Raises:
            ShapeError: the chains are not where they should be.
        """
        if self.count is None:
            return log_prob.sum()
        site = self._sites.get(name)
        axes = site.axes if self.beside and site is not None else self.nesting
        if log_prob.ndim != 1 + axes or log_prob.shape[0] != self.count:
            raise ShapeError(
                f"site {name!r} has a log-probability of shape {tuple(log_prob.shape)}; expected {self.count} chains "
                f"on the first of {1 + axes} axes. {self.advice}"
            )
        if site is not None and not self.beside and not _fits(log_prob.shape[1:], site):
            raise ShapeError(
                f"site {name!r} has a log-probability of shape {tuple(log_prob.shape)}, and stands in the plates "
                f"{dict(site.plates)}. {self.advice}"
            )
        return log_prob.reshape(self.count, -1).sum(-1)

    @property
    def advice(self) -> str:
        """What to do about a model that does not fit."""
        return f"{ADVICE}. {_PLATE_ADVICE}" if self.nesting else ADVICE


def _fits(shape: torch.Size, site: Site) -> bool:
    """Whether what is right of the chains is no larger than in a run of the model by itself."""
    return shape.numel() <= max(math.prod(site.plates.values()), site.fn.batch_shape.numel())


class _Beside(Messenger):
    """A batch of chains to the left of each site's own plates."""

    def __init__(self, count: int, sites: Mapping[str, Site]) -> None:
        super().__init__()
        self.count, self.sites = count, sites

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        site = self.sites.get(msg["name"])
        if msg["done"] or site is None or role_of(msg) == "subsample":
            return
        batch = msg["fn"].batch_shape
        msg["fn"] = msg["fn"].expand(torch.broadcast_shapes(batch, (self.count,) + (1,) * site.axes))


def check_observations(trace: poutine.Trace) -> None:
    """Make sure that what is observed has the shape of what the model says of it.

    Raises:
        ShapeError: it has another; names the site and both shapes.
    """
    for name, site in Reading.of(trace).data.items():
        expected = site.fn.batch_shape + site.fn.event_shape
        try:
            fits = torch.broadcast_shapes(site.value.shape, expected)
        except RuntimeError:
            fits = None
        if fits is None or fits[len(fits) - len(expected) :] != expected:
            raise ShapeError(
                f"observed site {name!r} has values of shape {tuple(site.value.shape)}; the model expects "
                f"{tuple(expected)}. Give a mix as long as the frames of the priors, or use prior.frame(time)"
            )


#: Of an observation: its mean, its value, and which of its elements count, ``None`` for all.
Seen = tuple[Tensor, Tensor, Tensor | None]


def relative_residual(seen: list[Seen], batch_ndim: int) -> Tensor | None:
    """Root mean square of observed minus expected over that of the observed, by chain; ``None`` where none is."""
    error: Tensor | float = 0.0
    power: Tensor | float = 0.0
    for mean, value, kept in seen:
        shape = mean.shape[:batch_ndim]
        left, heard = (value - mean).square(), value.expand(mean.shape).square()
        if kept is not None:  # what is masked is not observed
            share = kept.expand(mean.shape).to(mean)
            share = share / share.reshape(*shape, -1).mean(-1).reshape(*shape, *[1] * (mean.ndim - len(shape)))
            left, heard = share * left.where(kept, 0.0), share * heard.where(kept, 0.0)
        error = error + left.reshape(*shape, -1).mean(-1)
        power = power + heard.reshape(*shape, -1).mean(-1)
    return (error / power).sqrt() if isinstance(error, Tensor) and isinstance(power, Tensor) else None
