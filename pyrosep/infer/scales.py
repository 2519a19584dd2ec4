"""Scalars that multiply sources: found by trying, and moved so that the product stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.potential import Potential, Values

__all__ = ["Scale", "find_scales", "rescaled"]

#: Change of a log-likelihood, relative to it, that counts as rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Scale:
    """A scalar that multiplies sources: the ``element`` of a site, the site flattened, and the sources by name."""

    site: str
    element: int
    sources: tuple[str, ...]


def rescaled(values: Values, scales: Sequence[Scale], log_factor: Tensor, count: int) -> tuple[Values, Tensor]:
    """Constrained values with scalars times factors and their sources divided by them, and the log-volume of that.

    Arguments:
        values: by site.
        scales: of S scalars.
        log_factor: logarithms of the factors, ``(chains, S)``.
        count: chains.

    Returns:
        the sites that change, and ``(chains,)``.
    """
    moved: Values = {}
    volume = torch.zeros_like(log_factor[:, 0])
    for column, one in enumerate(scales):
        factor = log_factor[:, column].exp()
        site = moved.get(one.site, values[one.site])
        flat = site.reshape(count, -1).clone()
        flat[:, one.element] = flat[:, one.element] * factor.to(flat)
        moved[one.site] = flat.reshape(site.shape)
        volume = volume + log_factor[:, column]
        for name in one.sources:
            source = moved.get(name, values[name])
            moved[name] = (source.reshape(count, -1) / factor.to(source).unsqueeze(-1)).reshape(source.shape)
            volume = volume - log_factor[:, column] * (source.numel() // count)
    return moved, volume


def find_scales(
    potential: Potential, sites: Sequence[str], declared: Mapping[str, str | Sequence[str]] | None = None
) -> list[Scale]:
    """The scalars that multiply sources: those whose likelihood stays if one is scaled up and the sources down.

    It is tried, at a draw from the prior and by random factors: the likelihood of the observed sites must stay as it is
    to rounding, and must change if the scalar alone is scaled.

    Arguments:
        potential: of the model.
        sites: whose elements are tried.
        declared: by site the sources of its elements, to be checked in place of a search.

    Raises:
        ConfigurationError: what is declared does not exist, or the likelihood changes.
    """
    count = potential.num_chains or 1
    values = dict(potential.prior_draw)

    def likelihood(changed: Values) -> Tensor:
        found = potential.log_prob_by_site(potential.unconstrain(values | changed))
        return torch.stack([found[name].double().reshape(count) for name in potential.observed]).sum(0)

    before = likelihood({}) if potential.observed else torch.zeros(count)
    log_factor = 0.2 * torch.rand(count, 1, dtype=torch.float64, device=before.device) + 0.1

    def stays(one: Scale) -> bool:
        if not potential.observed:
            return False
        together = rescaled(values, [one], log_factor, count)[0]
        change, lone = ((likelihood(moved) - before).abs() for moved in (together, {one.site: together[one.site]}))
        limit = _ROUNDING * before.abs().clamp(min=1.0)
        return bool((change <= limit).all()) and bool((lone > limit).any())

    if declared is not None:
        return _declared(potential, declared, stays)
    found = []
    whole = tuple(potential.priors)
    for site in sites:
        for element in range(values[site].numel() // count):
            candidates = [Scale(site, element, (name,)) for name in whole]
            if len(whole) > 1:
                candidates.append(Scale(site, element, whole))
            found += [one for one in candidates if stays(one)][:1]
    return found


def _declared(
    potential: Potential, declared: Mapping[str, str | Sequence[str]], stays: Callable[[Scale], bool]
) -> list[Scale]:
    count = potential.num_chains or 1
    latent = [name for name in potential.placeholder if name not in potential.priors]
    found = []
    for site, given in declared.items():
        names = (given,) if isinstance(given, str) else tuple(given)
        if site not in latent or not names or not set(names) <= set(potential.priors):
            raise ConfigurationError(
                f"expected scales from the sites {latent} to the sources {list(potential.priors)}; got {site!r}: "
                f"{given!r}"
            )
        size = potential.placeholder[site].numel() // count
        if size > 1 and len(names) != size:
            raise ConfigurationError(
                f"site {site!r} has {size} elements; expected a source for each; got {list(names)}"
            )
        for element in range(size):
            one = Scale(site, element, names if size == 1 else (names[element],))
            if not stays(one):
                raise ConfigurationError(
                    f"expected element {element} of {site!r} to multiply {list(one.sources)}; the likelihood changes "
                    "if the one is scaled up and the others down by the same factor, or does not depend on them. Mend "
                    "the model, or what is declared"
                )
            found.append(one)
    return found
