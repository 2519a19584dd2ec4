"""The methods of a separation: how a batch of mixes becomes an estimate of its sources.

Each is a class whose fields are all its numbers. :func:`choose_method` alone knows which one is the default for what: a
new method is a new class, and a line there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from pyrosep.errors import ConfigurationError
from pyrosep.infer import GaussianPosterior, seeded
from pyrosep.infer.response import LinearMix
from pyrosep.infer.search.descent import Descent, descends_from_mix, descent_ladder
from pyrosep.infer.search.noising import common_transform
from pyrosep.separation.chains import Chains, LocalSearch, SharedDescent
from pyrosep.separation.from_guide import FromGuide
from pyrosep.separation.problem import Estimate, Method, Problem
from pyrosep.separation.settings import Settings
from pyrosep.zoo import PriorSet

__all__ = ["OnePass", "Wiener", "choose_method"]


@dataclass(frozen=True)
class Wiener(Method):
    """The posterior of Gaussian priors, in closed form."""

    name: ClassVar[str] = "exact"

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        if not all(prior.is_gaussian for prior in priors.values()):
            raise ConfigurationError("the exact method needs Gaussian priors; use method 'langevin' for others")

    def posterior(self, problem: Problem) -> Estimate:
        posterior = GaussianPosterior(cast(Any, problem.priors), problem.mix, gains=problem.gains, noise=problem.noise)
        with torch.no_grad(), seeded(problem.seed):
            draws = posterior.sample((problem.keep,)) if problem.keep else posterior.mean.new_zeros(0)
        mean = posterior.mean.transpose(1, 2).cpu() * problem.scale
        draws = draws.transpose(2, 3).cpu() * problem.scale if problem.keep else mean.new_zeros(0, *mean.shape)
        stddev = (posterior.stddev.cpu()[:, None, None] * problem.scale).expand(mean.shape)
        return Estimate(mean, stddev, draws)


@dataclass(frozen=True)
class OnePass(Method):
    """One call of each prior's denoiser, on the mix itself.

    It is a :class:`~pyrosep.infer.search.descent.Descent` of one level.

    Attributes:
        draws: all from the one call.
        temperature: see :class:`Settings`.
    """

    name: ClassVar[str] = "one-pass"

    draws: int = 8
    temperature: float = 1.0

    @property
    def states(self) -> int:
        return self.draws

    @property
    def count(self) -> int:
        return self.draws

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        super().check(priors, keep)
        if not descends_from_mix(list(priors.values())):
            raise ConfigurationError(
                "method 'one-pass' needs priors whose denoisers filter short-time spectra and know interference; use "
                "'langevin' for others"
            )

    def posterior(self, problem: Problem) -> Estimate:
        rows = problem.rows().unsqueeze(1)
        gains = problem.gains.to(rows).reshape(1, -1, 1).expand(len(rows), -1, -1)
        linear = LinearMix(rows, gains, rows.new_full((len(rows), 1), problem.noise))
        descent = Descent(list(problem.priors.values()))
        ladder = descent_ladder(problem.priors, 1)
        with torch.no_grad(), seeded(problem.seed):
            heard = descent.heard(descent.at_last_level(descent.start(linear), linear, ladder), ladder[-1])
            mean = descent.given(heard, linear, spread=0.0)
            draws = torch.stack([descent.given(heard, linear) for _ in range(self.draws)])
        found = torch.cat([mean.unsqueeze(0), mean + self.temperature * (draws - mean)]).cpu()
        # (..., window * channel, source, frame) to (..., window, source, channel, frame)
        found = found.unflatten(1, problem.mix.shape[:2]).transpose(2, 3) * problem.scale
        deviation = (found[1:] - found[0]).square().mean(0).sqrt()
        return Estimate(found[0], deviation, found[1 : 1 + problem.keep])


def choose_method(settings: Settings, priors: PriorSet) -> Method:
    """The method that settings ask for, with what their ``None`` comes to for a prior set.

    Whether the priors can serve it, :meth:`~pyrosep.separation.Method.check` says; no guide is loaded here.
    """
    name = settings.method or ("guide+langevin" if priors.has_guide else "langevin")
    family = list(priors.values())
    filters = common_transform(family) is not None
    coupling = settings.coupling or (("shared" if descends_from_mix(family) else "local") if filters else None)
    temperature = settings.temperature
    if temperature is None:
        temperature = priors.temperatures.get(name, 1.0) if coupling == "shared" else 1.0
    method: Method
    if name == "exact":
        method = Wiener()
    elif name == "guide":
        method = FromGuide()
    elif name == "one-pass":
        method = OnePass(draws=8 if settings.chains is None else settings.chains, temperature=temperature)
    else:
        given: dict[str, Any] = {"chains": settings.chains, "draws": settings.draws, "warmup": settings.warmup}
        kind: Callable[..., Method]
        if coupling == "shared":
            kind = SharedDescent
            given |= {"ladder": settings.ladder, "temperature": temperature}
        elif coupling == "local":
            kind = LocalSearch
            given |= {"ladder": settings.ladder}
        else:
            kind = Chains
            given |= {"redraws": settings.redraws, "coupling": coupling, "ladder": settings.ladder}
        chosen = {number: value for number, value in given.items() if value is not None}
        if kind is Chains and not (coupling or settings.ladder) and all(prior.is_gaussian for prior in family):
            chosen["ladder"] = None  # there is one mode
        method = kind(guided="guide" in name, **chosen)
    return method
