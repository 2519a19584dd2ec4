"""The methods of a separation: how a batch of mixes becomes an estimate of its sources.

Each is a class whose fields are all its numbers. :func:`choose_method` alone knows which one is the default for what: a
new method is a new class, and a line in it.

What a method computes with is imported where it separates, so that its numbers can be listed without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pyrosep.errors import ConfigurationError
from pyrosep.separation.chains import Chains, LocalSearch, SharedDescent
from pyrosep.separation.problem import Estimate, Method, Problem, check_least, check_positive

if TYPE_CHECKING:
    from pyrosep.zoo import PriorSet

__all__ = ["METHODS", "FromGuide", "OnePass", "Wiener", "choose_method", "choose_methods"]

#: The methods by name, and what each does. Of chains there are three kinds: see :func:`choose_method`.
METHODS = {
    "langevin": "chains, after a search where the posterior may have several modes",
    "one-pass": "one call of each prior's denoiser on the mix itself, for priors that filter and know interference",
    "exact": "the closed form, for Gaussian priors",
    "guide": "the mean and deviation of the guide alone",
    "guide+langevin": "chains from the guide",
}


@dataclass(frozen=True)
class Wiener(Method):
    """The posterior of Gaussian priors, in closed form."""

    name: ClassVar[str] = "exact"

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        if not all(prior.is_gaussian for prior in priors.values()):
            raise ConfigurationError("the exact method needs Gaussian priors; use method 'langevin' for others")

    def posterior(self, problem: Problem) -> Estimate:
        import torch

        from pyrosep.infer import GaussianPosterior, seeded

        posterior = GaussianPosterior(cast(Any, problem.priors), problem.mix, gains=problem.gains, noise=problem.noise)
        with torch.no_grad(), seeded(problem.seed):
            draws = posterior.sample((problem.keep,)) if problem.keep else posterior.mean.new_zeros(0)
        mean = posterior.mean.transpose(1, 2).cpu() * problem.scale
        draws = draws.transpose(2, 3).cpu() * problem.scale if problem.keep else mean.new_zeros(0, *mean.shape)
        stddev = (posterior.stddev.cpu()[:, None, None] * problem.scale).expand(mean.shape)
        return Estimate(mean, stddev, draws)


@dataclass(frozen=True)
class FromGuide(Method):
    """A guide's own mean, deviation and draws, by one pass of its encoder for each shift.

    Attributes:
        shifts: Shifts of the mix against the grid of the guide's network, over which it is averaged; each takes a pass.
    """

    name: ClassVar[str] = "guide"

    shifts: int = 1

    def __post_init__(self) -> None:
        check_least(self, shifts=1)

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        from pyrosep.separation.from_guide import checked_guide

        checked_guide(priors, self.shifts)

    def posterior(self, problem: Problem) -> Estimate:
        import torch

        from pyrosep.infer import seeded
        from pyrosep.separation.from_guide import GuideStart, checked_guide, guide_moments

        mean, deviation = guide_moments(problem, self.shifts)
        if not problem.keep:
            return Estimate(mean, deviation, mean.new_zeros(0, *mean.shape))
        with torch.no_grad(), seeded(problem.seed):
            drawn = GuideStart(checked_guide(problem.priors, self.shifts), problem.gains)(
                problem.mix.expand(problem.keep, *problem.mix.shape)
            )
        draws = torch.stack([drawn[name] for name in problem.priors], 2).cpu() * problem.scale
        return Estimate(mean, deviation, draws)


@dataclass(frozen=True)
class OnePass(Method):
    """One call of each prior's denoiser, on the mix itself.

    It is a :class:`~pyrosep.infer.search.descent.Descent` of one level.

    Attributes:
        draws: Draws, all of them from the one call.
        temperature: Factor for the distances of draws from their mean, and for standard deviations; the mean stays. By
            default what the prior set was calibrated to for the method, else 1.
    """

    name: ClassVar[str] = "one-pass"

    draws: int = 8
    temperature: float | None = None

    def __post_init__(self) -> None:
        check_least(self, draws=1)
        check_positive(temperature=self.temperature)

    @property
    def states(self) -> int:
        return self.draws

    @property
    def count(self) -> int:
        return self.draws

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        from pyrosep.infer.search.descent import descends_from_mix

        super().check(priors, keep)
        if not descends_from_mix(list(priors.values())):
            raise ConfigurationError(
                "method 'one-pass' needs priors whose denoisers filter short-time spectra and know interference; use "
                "'langevin' for others"
            )

    def posterior(self, problem: Problem) -> Estimate:
        import torch

        from pyrosep.infer import seeded
        from pyrosep.infer.response import LinearMix
        from pyrosep.infer.search.descent import Descent, descent_ladder

        rows = problem.rows().unsqueeze(1)
        gains = problem.gains.to(rows).reshape(1, -1, 1).expand(len(rows), -1, -1)
        linear = LinearMix(rows, gains, rows.new_full((len(rows), 1), problem.noise))
        descent = Descent(list(problem.priors.values()))
        ladder = descent_ladder(problem.priors, 1)
        with torch.no_grad(), seeded(problem.seed):
            heard = descent.heard(descent.at_last_level(descent.start(linear), linear, ladder), ladder[-1])
            mean = descent.given(heard, linear, spread=0.0)
            draws = torch.stack([descent.given(heard, linear) for _ in range(self.draws)])
        temperature = 1.0 if self.temperature is None else self.temperature
        found = torch.cat([mean.unsqueeze(0), mean + temperature * (draws - mean)]).cpu()
        # (..., window * channel, source, frame) to (..., window, source, channel, frame)
        found = found.unflatten(1, problem.mix.shape[:2]).transpose(2, 3) * problem.scale
        deviation = (found[1:] - found[0]).square().mean(0).sqrt()
        return Estimate(found[0], deviation, found[1 : 1 + problem.keep])


#: The kinds that names alone stand for, and those of chains by the coupling of their search.
_ALONE: dict[str, type[Method]] = {"exact": Wiener, "guide": FromGuide, "one-pass": OnePass}
_SEARCHED: dict[str, type[Method]] = {"shared": SharedDescent, "local": LocalSearch}


def choose_method(priors: PriorSet, method: Method | str | None = None, **numbers: Any) -> Method:
    """A method with all its numbers, as they are by default for a prior set where nothing else is said.

    By default it is chains, from the guide where the set has one. Chains are searched for by a descent of all sources
    together (:class:`~pyrosep.separation.SharedDescent`) under priors that filter short-time spectra and know
    interference, by Langevin moves (:class:`~pyrosep.separation.LocalSearch`) under others that filter, and by sweeps
    (:class:`~pyrosep.separation.Chains`) under the rest. Under Gaussian priors there is one mode, and no search unless
    its ladder or coupling is given.

    Arguments:
        priors: a prior set.
        method: one of :data:`METHODS` by name; or a method as it is, in which only a temperature that is ``None`` is
            chosen.
        numbers: fields of the method that are to be others than its own; ``None`` leaves one as it is by default. The
            kind of chains is asked for by the coupling of their search: ``"shared"``, ``"local"``, or a coupling of
            :class:`~pyrosep.separation.Chains`.

    Raises:
        ConfigurationError: an unknown name, a number that the method doesn't have, or one that is out of range.

    Whether the priors can serve the method, :meth:`~pyrosep.separation.Method.check` says; no guide is loaded here.

    Example:
        >>> from pyrosep import load_priors
        >>> choose_method(load_priors("band-small"), "langevin", chains=4, temperature=1.0)
        SharedDescent(chains=4, draws=1, warmup=0, guided=False, max_residual_ratio=4.0, ladder=4, from_mix=0.25,
        temperature=1.0)
    """
    given = _given(numbers)
    if isinstance(method, Method):
        _check_fit(method.name, _names_of(method), given)
        chosen = cast(Method, replace(cast(Any, method), **given))
    else:
        name = method or ("guide+langevin" if priors.has_guide else "langevin")
        kind, own, settled = _named(name, priors, given)
        _check_fit(name, own, given)
        chosen = kind(**{number: value for number, value in given.items() if number in _names_of(kind)}, **settled)
    if getattr(chosen, "temperature", 1.0) is None:
        chosen = cast(Method, replace(cast(Any, chosen), temperature=priors.temperatures.get(chosen.name, 1.0)))
    return chosen


def choose_methods(priors: PriorSet, methods: Iterable[str], **numbers: Any) -> dict[str, Method]:
    """Several methods by name, as :func:`choose_method` gives each; a number is for those methods that have it.

    Raises:
        ConfigurationError: see :func:`choose_method`; or a number that none of the methods has.
    """
    given = _given(numbers)
    own = {name: set(_named(name, priors, given)[1]) for name in methods}
    if unfit := given.keys() - set().union(*own.values()):
        raise ConfigurationError(
            f"none of the methods {', '.join(own)} takes {', '.join(sorted(unfit))} under these priors; leave it out"
        )
    return {
        name: choose_method(priors, name, **{number: given[number] for number in given.keys() & fitting})
        for name, fitting in own.items()
    }


def _named(name: str, priors: PriorSet, given: Mapping[str, Any]) -> tuple[type[Method], list[str], dict[str, Any]]:
    """What a name stands for: the kind of method, which numbers may be chosen, and those that follow from the name."""
    if name not in METHODS:
        raise ConfigurationError(f"method must be one of {tuple(METHODS)}; got {name!r}")
    if name in _ALONE:
        return _ALONE[name], _names_of(_ALONE[name]), {}
    from pyrosep.infer.search.descent import descends_from_mix
    from pyrosep.infer.search.noising import common_transform

    family, coupling = list(priors.values()), given.get("coupling")
    if coupling is None and common_transform(family) is not None:
        coupling = "shared" if descends_from_mix(family) else "local"
    kind = _SEARCHED.get(coupling or "", Chains)
    settled: dict[str, Any] = {"guided": "guide" in name}
    left_out = {"guided"} if settled["guided"] else {"guided", "from_mix"}
    if coupling is None and "ladder" not in given and all(prior.is_gaussian for prior in family):
        settled["ladder"] = None  # there is one mode
        left_out.add("redraws")
    own = [number for number in _names_of(kind) if number not in left_out]
    return kind, list(dict.fromkeys([*own, "coupling"])), settled


def _given(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {number: value for number, value in numbers.items() if value is not None}


def _names_of(method: type[Method] | Method) -> list[str]:
    return [one.name for one in fields(cast(Any, method))]


def _check_fit(name: str, own: Sequence[str], given: Mapping[str, Any]) -> None:
    if unfit := [number for number in given if number not in own]:
        takes = f"it takes {', '.join(own)}" if own else "it takes no numbers"
        raise ConfigurationError(f"method {name!r} takes no {', '.join(unfit)} under these priors; {takes}")
