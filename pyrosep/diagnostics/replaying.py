"""What a model says at the draws of a run: deterministic values, log-likelihoods, and mixes drawn anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrosep.infer import Potential, seeded
from pyrosep.reading import kept_of

__all__ = ["deterministic_values", "drawn_from_prior", "log_likelihoods", "predicted"]

Draws = Mapping[str, Tensor]


def deterministic_values(potential: Potential, draws: Draws, chains: list[int]) -> dict[str, Tensor]:
    """The values of :func:`pyro.deterministic` sites at every draw, each ``(chain, draw, ...)``.

    Arguments:
        potential: of the model.
        draws: by latent site ``(chain, draw, ...)``, of all chains of the potential, or of single ones.
        chains: numbers of the chains to keep.
    """
    names = list(potential.reading.deterministic)
    return _by_draw(potential, draws, chains, lambda trace: {name: trace.nodes[name]["value"] for name in names})


def log_likelihoods(potential: Potential, draws: Draws, chains: list[int]) -> dict[str, Tensor]:
    """The log-density in nats of every observed number at every draw, each ``(chain, draw, ...)``.

    Of a masked observation only what is heard, on one axis.
    """

    def found(trace: poutine.Trace) -> dict[str, Tensor]:
        return {name: _by_element(potential, name, trace.nodes[name]) for name in _mixes(potential)}

    return _by_draw(potential, draws, chains, found)


def predicted(potential: Potential, draws: Draws, chains: list[int]) -> dict[str, Tensor]:
    """Observations drawn anew at every draw, each ``(chain, draw, ...)``."""
    with seeded(None):
        return _by_draw(potential, draws, chains, lambda trace: _new_mixes(potential, trace))


def drawn_from_prior(potential: Potential, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``count`` draws of the latent sites from the prior, and of the observations given them: ``(1, count, ...)``."""
    latent: dict[str, list[Tensor]] = {name: [] for name in potential.placeholder}
    mixes: dict[str, list[Tensor]] = {name: [] for name in _mixes(potential)}
    each = potential.num_chains or 1
    with torch.no_grad(), seeded(None):
        for _ in range(-(-count // each)):
            trace = potential.run()
            for name, value in latent.items():
                value.append(_with_chains(potential, trace.nodes[name]["value"]))
            for name, new in _new_mixes(potential, trace).items():
                mixes[name].append(_with_chains(potential, new))
    return tuple(  # type: ignore[return-value]
        {name: torch.cat(value)[:count].unsqueeze(0).cpu() for name, value in group.items()}
        for group in (latent, mixes)
    )


def _mixes(potential: Potential) -> list[str]:
    """The observed sites but for sources that are given."""
    return [name for name, site in potential.reading.data.items() if site.prior is None]


def _new_mixes(potential: Potential, trace: poutine.Trace) -> dict[str, Tensor]:
    return {name: trace.nodes[name]["fn"].sample() for name in _mixes(potential)}


def _with_chains(potential: Potential, value: Tensor) -> Tensor:
    return value if potential.batch_ndim else value.unsqueeze(0)


def _by_draw(potential: Potential, draws: Draws, chains: list[int], what: Any) -> dict[str, Tensor]:
    """What a function finds of the model's run at every draw, by name: ``(chain, draw, ...)``."""
    rows: dict[str, list[Tensor]] = {}
    count = next(iter(draws.values())).shape[1]
    with torch.no_grad():
        for values in _values(potential, draws):
            for name, value in what(potential.run(values)).items():
                rows.setdefault(name, []).append(value.detach().cpu())
    if potential.batch_ndim:
        number = potential.num_chains or 1
        return {
            name: torch.stack([_of_chains(value, number) for value in found], 1)[chains] for name, found in rows.items()
        }
    return {name: torch.stack(found).unflatten(0, (-1, count)) for name, found in rows.items()}


def _of_chains(value: Tensor, number: int) -> Tensor:
    """With the chains in front, of a value that may be the same for all."""
    return value if value.ndim and value.shape[0] == number else value.expand(number, *value.shape)


def _values(potential: Potential, draws: Draws) -> Iterator[dict[str, Tensor]]:
    like = potential.placeholder
    count = next(iter(draws.values())).shape[1]
    if potential.batch_ndim:
        for draw in range(count):
            yield {name: value[:, draw].to(like[name]) for name, value in draws.items()}
        return
    for chain in range(next(iter(draws.values())).shape[0]):
        for draw in range(count):
            yield {name: value[chain, draw].to(like[name]) for name, value in draws.items()}


def _by_element(potential: Potential, name: str, node: Mapping[str, Any]) -> Tensor:
    """The log-density of each number that is observed, without masks, and with the site's scale."""
    fn, value = node["fn"], node["value"]
    axes = 0
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        axes += fn.reinterpreted_batch_ndims if isinstance(fn, dist.Independent) else 0
        fn = fn.base_dist
    found = fn.log_prob(value)
    scale = node["scale"]
    if isinstance(scale, Tensor):
        scale = scale.reshape(scale.shape + (1,) * axes)
    found = scale_and_mask(found, scale, None)
    shape = potential.observed[name].shape
    chains = potential.num_chains or 1
    lead = (chains,) if potential.batch_ndim else ()
    kept = kept_of(node)
    if kept is not None and found.shape[found.ndim - axes :] == value.shape[value.ndim - axes :]:
        heard = kept.expand(found.shape).reshape(chains, -1)
        return found.reshape(chains, -1)[:, heard.all(0)].reshape(*lead, -1)
    return found.reshape(*lead, *shape) if found.numel() == chains * shape.numel() else found
