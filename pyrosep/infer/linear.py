"""The model as a linear mix of its sources, where it is one: measured, and checked against its own density."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.response import LinearMix, base_distribution, measure_responses
from pyrosep.infer.seeding import seeded
from pyrosep.reading import kept_of

__all__ = ["linear_mix_of"]

#: Deviation of a response from a gain that is called a filter, relative to its size.
_FILTER = 1e-3
#: Deviation of a mean from linearity that does no harm, in standard deviations of the noise.
_HARMLESS = 0.01
#: Roundings of a mean's largest value that its last digits may be off by.
_DIGITS = 32


def linear_mix_of(potential: Potential, values: Values, *, about: bool = False) -> LinearMix | str:
    """The model as a linear mix of its sources, given its other sites' values; or, in words, why it is none.

    The model is not asked, but measured: a random point tells whether it is linear, a probe for each source whether
    gains are the same at all frequencies, and the model's own density at two more points, as far from the mix as its
    noise, whether that is all there is. Masks and scales of the observation are taken into account.

    With ``about``, a model that is neither linear nor of plain gains is taken for the linear mix that it is nearest to
    about ``values``: its mean gains, and an offset with which it agrees there.

    Deviations count by the noise: a hundredth of it does no harm.
    """
    names, rows = list(potential.priors), potential.rows
    if len({tuple(values[name].shape[-1:]) for name in names}) > 1 or (
        rows.plain and len({tuple(values[name].shape) for name in names}) > 1
    ):
        return "its sources differ in shape"
    chains = potential.num_chains or 1
    shapes = {name: values[name].shape[potential.batch_ndim : -1] for name in names}
    if any(shape.numel() != rows.counts[name] for name, shape in shapes.items()):
        return "its sources stand in a plate"
    responses = measure_responses(potential.run, values, names, None if rows.plain else rows)
    if len(responses) != 1:
        return f"{len(responses)} observed sites depend on its sources, not one"
    (site, by_source), time = next(iter(responses.items())), values[names[0]].shape[-1]
    if more := [name for name in potential.source_terms if name != site]:
        return f"the density of {', '.join(map(repr, more))} depends on its sources too"

    def node(at: Values) -> dict[str, Any]:
        with torch.no_grad():
            return potential.run(at).nodes[site]

    def stacked(at: Values) -> Tensor:
        return rows.stacked(at).reshape(chains, len(rows), time)

    found = node(values)
    noise, kept = _noise_of(site, found, chains)
    if isinstance(noise, str):
        return noise
    channels = found["fn"].mean.reshape(chains, -1, time).shape[1]
    gains = []
    for name in rows.labels:
        response = by_source.get(name)
        if response is None:
            return f"{site!r} does not depend on {name!r}"
        response = response.reshape(chains, channels, -1)
        gain = response.real.mean(-1)
        if not about and (response - gain.unsqueeze(-1)).abs().max() > _FILTER * response.abs().max():
            return f"{name!r} reaches {site!r} through a filter, or in a way that changes over time"
        gains.append(gain)
    weights = torch.stack(gains, 1)

    def offset(at: Values) -> Tensor:
        return node(at)["fn"].mean.reshape(chains, channels, time) - weights.mT @ stacked(at)

    here = offset(values)
    elsewhere = {name: torch.randn_like(value) if name in names else value for name, value in values.items()}
    target = found["value"].expand(found["fn"].mean.shape).reshape(chains, channels, time)
    mix = LinearMix((target - here).detach(), weights.detach(), noise.detach(), kept)
    if about:
        return mix
    off = (here - offset(elsewhere)).abs().amax((1, 2)) / noise.squeeze(-1)
    if bool((off > _HARMLESS + _rounding(mix, stacked(elsewhere))).any()):
        return f"{site!r} is not linear in its sources"
    return _other_density(potential, values, mix, site) or mix


def _noise_of(site: str, node: dict[str, Any], chains: int) -> tuple[Tensor | str, Tensor | None]:
    """The noise of an observation, ``(chains, 1)``, and which of its samples are observed; or why there is none."""
    base, fn = base_distribution(node["fn"]), node["fn"]
    if not isinstance(base, dist.Normal):
        return f"its observation {site!r} is a {type(base).__name__}, not a Normal", None
    scale = base.scale.expand(base.batch_shape).reshape(chains, -1)
    if not torch.allclose(scale, scale[:, :1]):
        return f"the noise of {site!r} is not the same at all times", None
    kept = kept_of(node)
    if kept is not None:
        channels = fn.mean.shape[-2] if fn.event_dim > 1 else 1
        kept = kept.expand(fn.mean.shape).reshape(chains, channels, -1)
        if not bool(kept.flatten(1).any(-1).all()):
            return f"no sample of {site!r} is observed", None
    noise = scale[:, :1]
    if isinstance(node["scale"], Tensor) or node["scale"] != 1:
        # A density to the power c is that of noise that is smaller by the root of c.
        power = scale_and_mask(torch.ones_like(fn.log_prob(fn.mean)), node["scale"], None)
        power = power.reshape(chains, -1)
        if not torch.allclose(power, power[:, :1]):
            return f"the density of {site!r} is not scaled alike in all of its parts", None
        noise = noise / power[:, :1].sqrt().to(noise)
    return noise, kept


def _rounding(mix: LinearMix, sources: Tensor) -> Tensor:
    """What the last digits of a mean at these sources come to, in standard deviations of the noise: ``(chains,)``."""
    size = (mix.gains.abs().mT @ sources.abs() + mix.observed.abs()).amax((1, 2))
    return _DIGITS * torch.finfo(sources.dtype).eps * size / mix.noise.squeeze(-1)


def _other_density(potential: Potential, values: Values, mix: LinearMix, site: str) -> str | None:
    """Why the mix's density is not the model's, found at two points as far from the mix as its noise."""
    names, rows = list(potential.priors), potential.rows
    with torch.no_grad(), seeded(0):  # of a measurement, and no draw
        apart, limit = [], torch.zeros(())
        for _ in range(2):
            like = rows.stacked(values)
            sources = torch.randn_like(like).reshape(len(mix.observed), len(rows), -1).to(mix.gains)
            left = mix.remainder(sources) - mix.noise.unsqueeze(-1) * torch.randn_like(mix.observed)
            sources = sources + torch.linalg.pinv(mix.gains.mT) @ left
            at = values | rows.split(sources.reshape(like.shape).to(like), values)
            energy = potential(potential.unconstrain(at), without=names).double().reshape(-1)
            apart.append(energy - mix.energy(sources))
            after = (mix.remainder(sources) / mix.noise.unsqueeze(-1)).square().amax((1, 2))
            limit = (_HARMLESS + _rounding(mix, sources) + torch.finfo(sources.dtype).eps * after).double()
        # Deviations of single samples come with either sign; so their sum grows by the root of their number.
        root = mix.observed[0].numel() ** 0.5
        off = (apart[0] - apart[1]).abs() / (4 * root)
    if bool((off > limit).any()) or not bool(off.isfinite().all()):
        return f"the density of {site!r} is not that of a linear mix with noise of one level"
    return None
