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
from pyrosep.infer.potential import Values
from pyrosep.infer.stacking import SourceRows
from pyrosep.reading import is_data

__all__ = [
    "LinearMix",
    "Responses",
    "base_distribution",
    "has_location",
    "measure_responses",
    "random_phase",
]

#: By observed site, then by source: the response of the site's mean.
Responses = dict[str, dict[str, Tensor]]


def base_distribution(fn: Any) -> Any:
    """A site's distribution without its ``Independent`` or mask."""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def random_phase(time: int, like: Tensor) -> Tensor:
    """A signal of ``time`` samples whose spectrum has modulus one everywhere."""
    spectrum = torch.fft.rfft(torch.randn(time, dtype=like.dtype, device=like.device))
    return torch.fft.irfft(spectrum / spectrum.abs(), n=time)


def measure_responses(
    run: Callable[[Values], poutine.Trace], values: Values, names: list[str], rows: SourceRows | None = None
) -> Responses:
    r"""Response of every observed site's mean to a small change of each source, by frequency.

    With :math:`J_k` the Jacobian of the mean in source k and v a signal of unit modulus and random phase, it is
    :math:`H_k = \mathrm{rfft}(J_k v) / \mathrm{rfft}(v)`: exact for a model that does not change over time (gains,
    pans, filters), one draw of its mean over time elsewhere.

    Arguments:
        run: from values of the latent sites to a trace.
        values: where the response is measured.
        names: of the sources.
        rows: which sources the sites stand for, where that is not one each; the response is by label then.

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
            mean = _mean(name, site)
            if mean is None or not mean.requires_grad:
                continue
            direction = torch.zeros_like(mean, requires_grad=True)
            backward = torch.autograd.grad(mean, sources, direction, create_graph=True, allow_unused=True)
            found: dict[str, Tensor] = {}
            by_site = dict(zip(names, backward, strict=True))
            for number, source in enumerate(names if rows is None else rows.labels):
                site_name = source if rows is None else rows.sites[number]
                leaf, gradient = leaves[site_name], by_site[site_name]
                if gradient is None:
                    continue
                time = leaf.shape[-1]
                if mean.shape[-1:] != (time,):
                    raise ConfigurationError(
                        f"observed site {name!r} has shape {tuple(mean.shape)}, and sources have {time} samples: noise "
                        "levels need an observation of as many samples, on the last axis"
                    )
                probe = random_phase(time, leaf)
                vector = probe.expand_as(leaf) if rows is None else rows.one(number, probe, leaves)[site_name]
                (image,) = torch.autograd.grad(gradient, direction, vector, retain_graph=True)
                found[source] = torch.fft.rfft(image) / torch.fft.rfft(probe)
            if found:
                responses[name] = found
    return responses


def has_location(fn: Any) -> bool:
    """Whether a site's distribution has a location and a scale that its noise is measured by."""
    base = base_distribution(fn)
    on_the_line = getattr(base, "support", None) is constraints.real
    return on_the_line and isinstance(getattr(base, "loc", None), Tensor) and isinstance(base.scale, Tensor)


def _mean(name: str, site: dict[str, Any]) -> Tensor | None:
    """The mean of an observed site; ``None`` for one without a mean that does not depend on the sources."""
    fn = site["fn"]
    if has_location(fn):
        return base_distribution(fn).loc  # Cauchy's mean is none, its location moves all the same
    try:
        return fn.mean
    except (AttributeError, NotImplementedError):
        if not fn.log_prob(site["value"]).requires_grad:
            return None
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
        kept: which samples are observed, ``(chains, channel, time)``; ``None`` where all are.
    """

    observed: Tensor
    gains: Tensor
    noise: Tensor
    kept: Tensor | None = None

    @property
    def power(self) -> Tensor:
        r"""Squared gains over the channels, :math:`\|a_k\|^2`, ``(chains, source)``."""
        return self.gains.square().sum(-1)

    def remainder(self, sources: Tensor) -> Tensor:
        """What sources ``(chains, source, time)`` leave of the observation: ``(chains, channel, time)``."""
        left = self.observed - self.gains.mT @ sources
        return left if self.kept is None else left.where(self.kept, 0.0)

    def residual(self, sources: Tensor, index: Tensor, chains: Tensor, noise: Tensor | None = None) -> Tensor:
        r"""What the others leave for one source, in its own scale: ``(n, time)`` of source ``index`` in ``chains``.

        It is that source in white noise of deviation :math:`\mathrm{noise} / \|a_k\|`. Samples that are not observed
        are drawn anew, given the sources (data augmentation, Tanner & Wong, 1987): what is left of them is noise.

        Arguments:
            sources: of those chains, ``(n, source, time)``.
            index, chains: ``(n,)``.
            noise: its deviation, ``(n,)``; by default the mix's own.
        """
        own = self.gains[chains, index]
        left = self.observed[chains] - self.gains[chains].mT @ sources
        if self.kept is not None:
            wide = self.noise[chains, 0] if noise is None else noise
            left = left.where(self.kept[chains], wide[:, None, None] * torch.randn_like(left))
        scale = own.square().sum(-1, keepdim=True)
        rows = torch.arange(len(index), device=index.device)
        return sources[rows, index] + (own.unsqueeze(-1) * left).sum(-2) / scale

    def energy(self, sources: Tensor) -> Tensor:
        """Of the observation given sources ``(chains, source, time)``, nats and double precision, but for a constant.

        ``(chains,)``.
        """
        left = self.remainder(sources) / self.noise.unsqueeze(-1)
        return 0.5 * left.double().square().flatten(1).sum(-1)
