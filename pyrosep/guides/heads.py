"""A guide's distribution of a site that is no source: gains, pans and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.nn import functional

from pyrosep.errors import ConfigurationError
from pyrosep.priors import SourcePrior

__all__ = ["Head", "site_moments"]

#: The least log-level of a mix that a head tells from silence.
_LEAST = -12.0
#: Where softplus is 1.
_ONE = 0.5413


class Head(nn.Module):
    """A mean-field Normal in the unconstrained space, by features of the frame and the logarithm of the mix's level.

    It starts at the standard Normal or where :meth:`begin` says, whatever the mix.

    Arguments:
        features: how many.
        shape: of an event.
        support: one of torch's constraints, under any ``independent``: real, above a bound, an interval, simplex.
    """

    def __init__(self, features: int, shape: tuple[int, ...], support: Any) -> None:
        super().__init__()
        self.kind, self.bounds = _described(support)
        self.shape = torch.Size(shape)
        self.inner = self._transform().inverse_shape(self.shape)
        self.linear = nn.Linear(features + 1, 2 * self.inner.numel())
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        like = self.linear.bias.detach()
        self.register_buffer("loc", like.new_zeros(self.inner))
        self.register_buffer("scale", like.new_ones(self.inner))
        self.loc: Tensor
        self.scale: Tensor

    @property
    def config(self) -> dict[str, Any]:
        """What it is built from, for a file: shape, kind of support, its bounds."""
        return {"shape": list(self.shape), "support": self.kind, "bounds": self.bounds}

    @staticmethod
    def support(config: dict[str, Any]) -> Any:
        """The constraint that :attr:`config` tells of."""
        low, high = config["bounds"]
        return {
            "real": constraints.real,
            "above": constraints.greater_than(low),
            "interval": constraints.interval(low, high),
            "simplex": constraints.simplex,
        }[config["support"]]

    def _transform(self) -> Any:
        return biject_to(self.support({"support": self.kind, "bounds": self.bounds}))

    def begin(self, loc: Tensor, scale: Tensor) -> None:
        """Start at this mean and deviation in the unconstrained space."""
        self.loc.copy_(loc)
        self.scale.copy_(scale)

    def forward(self, features: Tensor, level: Tensor) -> Any:
        """The site's distribution, of features ``(..., features)`` and levels ``(...)``; batch shape ``(...)``."""
        loc, scale = self._unconstrained(features, level)
        base = dist.Normal(loc, scale).to_event(len(self.inner))
        if self.kind == "real":
            return base
        # An elementwise transform of a distribution with event axes takes over their number.
        return dist.TransformedDistribution(base, [self._transform()])

    def centre(self, features: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """The value at the mean of the unconstrained space: the median, but for a simplex. Without a mix, at first."""
        if features is None or level is None:
            return self._transform()(self.loc)
        return self._transform()(self._unconstrained(features, level)[0])

    def _unconstrained(self, features: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        log_level = level.log().clamp(min=_LEAST).unsqueeze(-1)
        with torch.autocast(level.device.type, enabled=False):
            shift, spread = self.linear(torch.cat([features, log_level], -1)).unflatten(-1, (2, -1)).unbind(-2)
        batch = level.shape
        loc = self.loc + self.scale * shift.reshape(batch + self.inner)
        return loc, self.scale * (functional.softplus(spread + _ONE).reshape(batch + self.inner) + 1e-4)


def _described(support: Any) -> tuple[str, list[float]]:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return "real", [0.0, 0.0]
    if support is constraints.simplex:
        return "simplex", [0.0, 0.0]
    if isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        return "above", [_one_bound(support.lower_bound), 0.0]
    if isinstance(support, constraints.interval | constraints.half_open_interval):
        return "interval", [_one_bound(support.lower_bound), _one_bound(support.upper_bound)]
    raise ConfigurationError(
        f"a head needs a support that is real, positive, an interval or simplex; got {support!r}. Write that site's "
        "part of the guide by hand"
    )


def _one_bound(bound: Any) -> float:
    values = torch.as_tensor(bound).unique()
    if values.numel() != 1:
        raise ConfigurationError(f"a head's support needs one bound for all its elements; got {values.tolist()}")
    return float(values)


def site_moments(name: str, site: Mapping[str, Any], draws: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the site's prior in the unconstrained space."""
    fn = site["fn"]
    if site["cond_indep_stack"]:
        raise ConfigurationError(
            f"latent site {name!r} stands in a plate; an encoder guide needs it as one site: .to_event(n), no plate"
        )
    if isinstance(fn, SourcePrior):
        raise ConfigurationError(f"site {name!r} has a source prior but is not among the priors given; add it")
    if fn.has_enumerate_support or fn.support.is_discrete:
        raise ConfigurationError(f"latent site {name!r} is discrete; an encoder guide needs it summed out or observed")
    with torch.no_grad():
        z = biject_to(fn.support).inv(fn.sample(torch.Size([draws])))
    return z.mean(0), z.std(0).clamp(min=1e-4)
