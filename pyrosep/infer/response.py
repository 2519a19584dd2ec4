"""How an observation responds to the sources: measured from the model, whatever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyrosep.errors import ConfigurationError
from pyrosep.infer.potential import Potential, Values
from pyrosep.reading import is_data

__all__ = [
    "LinearMix",
    "Responses",
    "base_distribution",
    "has_location",
    "linear_mix_of",
    "measure_responses",
    "random_phase",
]

#: By observed site, then by source: the response of the site's mean.
Responses = dict[str, dict[str, Tensor]]

#: Deviation of a mean from linearity that counts as rounding, relative to its size.
_ROUNDING = 1e-3


def base_distribution(fn: Any) -> Any:
    """A site's distribution without its ``Independent`` or mask."""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def random_phase(time: int, like: Tensor) -> Tensor:
    """A signal of ``time`` samples whose spectrum has modulus one everywhere."""
    spectrum = torch.fft.rfft(torch.randn(time, dtype=like.dtype, device=like.device))
    return torch.fft.irfft(spectrum / spectrum.abs(), n=time)


def measure_responses(run: Callable[[Values], poutine.Trace], values: Values, names: list[str]) -> Responses:
    r"""Response of every observed site's mean to a small change of each source, by frequency.

    With :math:`J_k` the Jacobian of the mean in source k and v a signal of unit modulus and random phase, it is
    :math:`H_k = \mathrm{rfft}(J_k v) / \mathrm{rfft}(v)`: exact for a model that does not change over time (gains,
    pans, filters), one draw of its mean over time elsewhere.

    Arguments:
        run: from values of the latent sites to a trace.
        values: where the response is measured.
        names: of the sources.

    Returns:
        complex, ``(..., bins)`` with the batch and channel axes of the observation; sites that don't depend on the
        sources are left out.

    Raises:
        ConfigurationError: an observed site has no mean, or not one sample for each sample of the sources.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_(name in names) for name, value in values.items()}
        trace = run(leaves)
        sources = [leaves[name] for name in names]
        responses: Responses = {}
        for name, site in trace.nodes.items():
            if name in leaves or not is_data(site):
                continue
            mean = _mean(name, site["fn"])
            if not mean.requires_grad:
                continue
            direction = torch.zeros_like(mean, requires_grad=True)
            backward = torch.autograd.grad(mean, sources, direction, create_graph=True, allow_unused=True)
            found: dict[str, Tensor] = {}
            for source, leaf, gradient in zip(names, sources, backward, strict=True):
                if gradient is None:
                    continue
                time = leaf.shape[-1]
                if mean.shape[-1:] != (time,):
                    raise ConfigurationError(
                        f"observed site {name!r} has shape {tuple(mean.shape)}, and sources have {time} samples: noise "
                        "levels need an observation of as many samples, on the last axis"
                    )
                probe = random_phase(time, leaf)
                (image,) = torch.autograd.grad(gradient, direction, probe.expand_as(leaf), retain_graph=True)
                found[source] = torch.fft.rfft(image) / torch.fft.rfft(probe)
            if found:
                responses[name] = found
    return responses


def has_location(fn: Any) -> bool:
    """Whether a site's distribution has a location and a scale that its noise is measured by."""
    base = base_distribution(fn)
    on_the_line = getattr(base, "support", None) is constraints.real
    return on_the_line and isinstance(getattr(base, "loc", None), Tensor) and isinstance(base.scale, Tensor)


def _mean(name: str, fn: Any) -> Tensor:
    if has_location(fn):
        return base_distribution(fn).loc  # Cauchy's mean is none, its location moves all the same
    try:
        return fn.mean
    except (AttributeError, NotImplementedError):
        raise ConfigurationError(
            f"observed site {name!r} is a {type(base_distribution(fn)).__name__}, which has no mean; noise levels need "
            "an observation with a location and a scale (Normal, StudentT, Laplace)"
        ) from None


@dataclass(frozen=True)
class LinearMix:
    r"""An observation that is linear in the sources, :math:`m_c = b_c + \sum_k a_{kc} s_k + \epsilon`.

    Attributes:
        observed: :math:`m - b`, ``(chains, channel, time)``.
        gains: ``(chains, source, channel)``.
        noise: standard deviation of :math:`\epsilon`, ``(chains, 1)``.
    """

    observed: Tensor
    gains: Tensor
    noise: Tensor

    @property
    def power(self) -> Tensor:
        r"""Squared gains over the channels, :math:`\|a_k\|^2`, ``(chains, source)``."""
        return self.gains.square().sum(-1)

    def remainder(self, sources: Tensor) -> Tensor:
        """What sources ``(chains, source, time)`` leave of the observation: ``(chains, channel, time)``."""
        return self.observed - self.gains.mT @ sources

    def residual(self, sources: Tensor, index: Tensor, chains: Tensor) -> Tensor:
        """What the others leave for one source, in its own scale: ``(n, time)`` of source ``index`` in ``chains``.

        It is that source in white noise of deviation :math:`\\mathrm{noise} / \\|a_k\\|`.
        """
        own = self.gains[chains, index]
        left = self.observed[chains] - self.gains[chains].mT @ sources
        scale = own.square().sum(-1, keepdim=True)
        rows = torch.arange(len(index), device=index.device)
        return sources[rows, index] + (own.unsqueeze(-1) * left).sum(-2) / scale


def linear_mix_of(potential: Potential, values: Values, *, about: bool = False) -> LinearMix | str:
    """The model as a linear mix of its sources, given its other sites' values; or, in words, why it is none.

    The model is not asked, but measured: two random points tell whether it is linear, and a probe for each source
    whether gains are the same at all frequencies. With ``about``, a model that is neither is taken for the linear mix
    that it is nearest to about ``values``: its mean gains, and an offset with which it agrees there.
    """
    names = list(potential.priors)
    if len({tuple(values[name].shape) for name in names}) > 1:
        return "its sources differ in shape"
    chains = potential.num_chains or 1
    shape = values[names[0]].shape
    if shape[potential.batch_ndim : -1].numel() != 1:
        return "its sources stand in a plate"
    responses = measure_responses(potential.run, values, names)
    if len(responses) != 1:
        return f"{len(responses)} observed sites depend on its sources, not one"
    (site, by_source), time = next(iter(responses.items())), shape[-1]

    def node(at: Values) -> tuple[Any, Tensor]:
        with torch.no_grad():
            found = potential.run(at).nodes[site]
        return found["fn"], found["value"]

    fn, observed = node(values)
    base = base_distribution(fn)
    if not isinstance(base, dist.Normal):
        return f"its observation {site!r} is a {type(base).__name__}, not a Normal"
    scale = base.scale.expand(base.batch_shape).reshape(chains, -1)
    if not torch.allclose(scale, scale[:, :1]):
        return f"the noise of {site!r} is not the same at all times"
    channels = fn.mean.reshape(chains, -1, time).shape[1]
    gains = []
    for name in names:
        response = by_source.get(name)
        if response is None:
            return f"{site!r} does not depend on {name!r}"
        response = response.reshape(chains, channels, -1)
        gain = response.real.mean(-1)
        if not about and (response - gain.unsqueeze(-1)).abs().max() > _ROUNDING * response.abs().max():
            return f"{name!r} reaches {site!r} through a filter, or in a way that changes over time"
        gains.append(gain)
    weights = torch.stack(gains, 1)

    def offset(at: Values) -> Tensor:
        sources = torch.stack([at[name].reshape(chains, time) for name in names], 1)
        return node(at)[0].mean.reshape(chains, channels, time) - weights.mT @ sources

    here = offset(values)
    elsewhere = {name: torch.randn_like(value) if name in names else value for name, value in values.items()}
    if not about and (here - offset(elsewhere)).abs().max() > _ROUNDING * weights.abs().max() * len(names):
        return f"{site!r} is not linear in its sources"
    target = observed.expand(fn.mean.shape).reshape(chains, channels, time)
    return LinearMix((target - here).detach(), weights.detach(), scale[:, :1].detach())
