"""What a run of a Pyro model is made of: each site's part in it, read once and in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyrosep.priors import SourcePrior

__all__ = ["Reading", "Role", "Site", "is_data", "kept_of", "plate_nesting", "role_of", "source_prior"]

#: ``latent``: drawn; ``data``: observed; ``deterministic``: a function of others, which Pyro takes for observed;
#: ``factor``: a term of the log-density without a value; ``subsample``: a plate's indices.
Role = Literal["latent", "data", "deterministic", "factor", "subsample"]


def role_of(site: Mapping[str, Any]) -> Role:
    """The part of a sample site, of a trace's node or of a handler's message."""
    if isinstance(site["fn"], _Subsample):
        return "subsample"
    if not site["is_observed"]:
        return "latent"
    if site["infer"].get("_deterministic"):
        return "deterministic"
    return "data" if torch.as_tensor(site["value"]).numel() else "factor"


def is_data(site: Mapping[str, Any]) -> bool:
    """Whether a node or a message is an observation, and no deterministic value or factor."""
    return site["type"] == "sample" and role_of(site) == "data"


def source_prior(fn: Any) -> SourcePrior | None:
    """The source prior inside a site's distribution, under any ``Independent`` or mask; ``None`` if there is none."""
    while fn is not None and not isinstance(fn, SourcePrior):
        fn = getattr(fn, "base_dist", None)
    return fn


def kept_of(site: Mapping[str, Any]) -> Tensor | None:
    """Which elements of a node's or message's value count, a mask that broadcasts to it; ``None`` where all do."""
    masks = [] if site["mask"] is None else [_spread(site["mask"], site["fn"].event_dim)]
    fn = site["fn"]
    while fn is not None:
        if hasattr(fn, "_mask"):
            masks.append(_spread(fn._mask, fn.event_dim))
        fn = getattr(fn, "base_dist", None)
    kept: Tensor | None = None
    for mask in masks:
        kept = mask if kept is None else kept & mask
    return None if kept is None or bool(kept.all()) else kept


def _spread(mask: bool | Tensor, axes: int) -> Tensor:
    """A mask over the batch with the axes of an event."""
    mask = torch.as_tensor(mask)
    return mask.reshape(mask.shape + (1,) * axes)


def plate_nesting(trace: poutine.Trace) -> int:
    """Axes that a run's plates take up; an outer plate's ``dim`` is one to the left, ``-1 - plate_nesting(trace)``."""
    return max((_nesting(site) for site in trace.nodes.values()), default=0)


def _nesting(node: Mapping[str, Any]) -> int:
    return max((-frame.dim for frame in node.get("cond_indep_stack", ()) if frame.vectorized), default=0)


@dataclass(frozen=True)
class Site:
    """A sample site of a run.

    Attributes:
        name: in the model.
        role: its part, see :data:`Role`.
        fn: its distribution.
        value: what it was in the run.
        prior: the source prior that it is of; ``None`` for a site that is no source.
        plates: size of each plate that it stands in, by name.
        axes: axes to the left of its event that its plates take up.
        masked: whether some of its log-density is left out.
        scaled: whether its log-density is multiplied by a number.
    """

    name: str
    role: Role
    fn: Any
    value: Any
    prior: SourcePrior | None
    plates: Mapping[str, int]
    axes: int
    masked: bool
    scaled: bool

    @classmethod
    def of(cls, name: str, node: Mapping[str, Any]) -> Self:
        """The site of a trace's node."""
        frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
        scale = node["scale"]
        return cls(
            name,
            role_of(node),
            node["fn"],
            node["value"],
            source_prior(node["fn"]),
            {frame.name: frame.size for frame in frames},
            _nesting(node),
            role_of(node) in ("latent", "data") and kept_of(node) is not None,
            bool((scale != 1).any()) if isinstance(scale, Tensor) else scale != 1,
        )


@dataclass(frozen=True)
class Reading:
    """The sites of one run of a model, in its order.

    Attributes:
        sites: by name.
    """

    sites: Mapping[str, Site]

    @classmethod
    def of(cls, trace: poutine.Trace) -> Self:
        """What a trace holds."""
        return cls({name: Site.of(name, node) for name, node in trace.nodes.items() if node["type"] == "sample"})

    def _with(self, role: Role) -> dict[str, Site]:
        return {name: site for name, site in self.sites.items() if site.role == role}

    @cached_property
    def latent(self) -> dict[str, Site]:
        """What is drawn, the sources among it."""
        return self._with("latent")

    @cached_property
    def data(self) -> dict[str, Site]:
        """What is observed."""
        return self._with("data")

    @cached_property
    def deterministic(self) -> dict[str, Site]:
        """What is recorded as a function of others, by :func:`pyro.deterministic`."""
        return self._with("deterministic")

    @cached_property
    def factors(self) -> dict[str, Site]:
        """Terms of the log-density, by :func:`pyro.factor`."""
        return self._with("factor")

    @cached_property
    def subsamples(self) -> dict[str, Site]:
        """The plates whose indices are drawn."""
        return self._with("subsample")

    @cached_property
    def priors(self) -> dict[str, SourcePrior]:
        """The latent sites that are sources, with their priors."""
        return {name: site.prior for name, site in self.latent.items() if site.prior is not None}

    @cached_property
    def members(self) -> dict[str, int]:
        """How many sources a site stands for that are in one mix: those of a plate without data, or of one event."""
        with_data = {plate for site in self.data.values() for plate in site.plates}
        found = {}
        for name in self.priors:
            site = self.latent[name]
            shared = bool(with_data & set(site.plates))
            found[name] = 1 if shared else int((site.fn.batch_shape + site.fn.event_shape[:-1]).numel())
        return found

    @cached_property
    def alike(self) -> list[tuple[str, ...]]:
        """Sources of one and the same prior, whose labels may change places: groups of two or more, by name."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, prior in self.priors.items():
            groups.setdefault(_identity(prior), []).extend(self.labels(name))
        return [tuple(names) for names in groups.values() if len(names) > 1]

    def labels(self, name: str) -> list[str]:
        """What the sources of a site are called: its own name, or with the number of each in brackets."""
        count = self.members[name]
        return [name] if count == 1 else [f"{name}[{number}]" for number in range(count)]


def _identity(prior: SourcePrior) -> tuple[int, ...]:
    """The same for copies of a prior, which share what they are made of."""
    parts = [
        id(value)
        for value in vars(prior).values()
        if isinstance(value, torch.nn.Module) or (isinstance(value, Tensor) and value.numel() > 1)
    ]
    return tuple(parts) or (id(prior),)
