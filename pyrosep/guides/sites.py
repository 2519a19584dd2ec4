"""The sites of a model that a guide is for, found by running the model's prior once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.guides.heads import site_moments
from pyrosep.priors import SourcePrior

__all__ = ["GuidedSites"]


@dataclass(frozen=True)
class GuidedSites:
    """The sites of a model: sources, other latent sites, and the channels of the one that is observed.

    Attributes:
        priors: of the sources, by site.
        heads: event shape and support of each other latent site.
        starts: mean and deviation of its prior, in the unconstrained space.
        channels: of the mix; ``None`` for a mix without that axis.
    """

    priors: Mapping[str, SourcePrior]
    heads: dict[str, tuple[torch.Size, Any]]
    starts: dict[str, tuple[Tensor, Tensor]]
    channels: int | None

    @classmethod
    def of(cls, model: Callable[..., Any], mix: Tensor, priors: Mapping[str, SourcePrior] | None = None) -> GuidedSites:
        """The sites of a model that is called with one mix; the sources are those of ``priors`` where they are given.

        Raises:
            ConfigurationError: a latent site that is discrete, in a plate, or of a support that heads don't know; no
                source prior; more than one observed site.
        """
        with torch.no_grad(), poutine.block(), poutine.trace() as tracer:
            model(mix)
        sites = {name: site for name, site in tracer.trace.nodes.items() if site["type"] == "sample"}
        sites = {name: site for name, site in sites.items() if not _is_no_variable(site)}
        observed = [name for name, site in sites.items() if site["is_observed"]]
        latent = {name: site for name, site in sites.items() if not site["is_observed"]}
        if priors is None:
            priors = {name: site["fn"] for name, site in latent.items() if isinstance(site["fn"], SourcePrior)}
        if len(observed) != 1 or not priors:
            raise ConfigurationError(
                f"a guide needs a model with source priors as sites and one observed site, the mix; this one has the "
                f"sources {list(priors)} and observes {observed}"
            )
        starts = {name: site_moments(name, site) for name, site in latent.items() if name not in priors}
        heads = {name: (site["fn"].event_shape, site["fn"].support) for name, site in latent.items() if name in starts}
        stereo = sites[observed[0]]["fn"].event_dim > 1
        return cls(priors, heads, starts, mix.shape[-2] if stereo else None)


def _is_no_variable(site: Mapping[str, Any]) -> bool:
    """Whether the site is a plate's subsample or a :func:`pyro.deterministic`, which Pyro takes for observed."""
    return poutine.util.site_is_subsample(site) or bool(site["infer"].get("_deterministic"))
