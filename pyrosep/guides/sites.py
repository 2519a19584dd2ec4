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
from pyrosep.reading import Reading

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
        sites = tracer.trace.nodes
        reading = Reading.of(tracer.trace)
        observed = list(reading.data)
        latent = {name: sites[name] for name in reading.latent}
        if priors is None:
            priors = reading.priors
            for name in priors:
                shape = latent[name]["fn"].batch_shape + latent[name]["fn"].event_shape[:-1]
                if shape.numel() != 1:
                    raise ConfigurationError(
                        f"a guide has an encoder for each source, and site {name!r} stands for sources of shape "
                        f"{tuple(shape)}; give each a site of its own"
                    )
        if len(observed) != 1 or not priors:
            raise ConfigurationError(
                f"a guide needs a model with source priors as sites and one observed site, the mix; this one has the "
                f"sources {list(priors)} and observes {observed}"
            )
        starts = {name: site_moments(name, site) for name, site in latent.items() if name not in priors}
        heads = {name: (site["fn"].event_shape, site["fn"].support) for name, site in latent.items() if name in starts}
        stereo = sites[observed[0]]["fn"].event_dim > 1
        return cls(priors, heads, starts, mix.shape[-2] if stereo else None)
