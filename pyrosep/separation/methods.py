"""The methods of a separation: how a batch of mixes becomes an estimate of its sources.

Each is a class whose fields are all its numbers. :func:`choose_method` alone knows which one is the default for what; a
new method is a new class here, and a line there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrosep import mixing
from pyrosep.diagnostics.modes import same_mode, weights_of
from pyrosep.errors import ConfigurationError
from pyrosep.guides import EncoderGuide
from pyrosep.infer import MALA, AnnealedSGLD, GaussianPosterior, LangevinKernel, LangevinMCMC, noise_ladder
from pyrosep.infer.descent import LEVELS, Descent, descends_from_mix, descent_ladder
from pyrosep.infer.noising import common_transform
from pyrosep.infer.response import LinearMix
from pyrosep.separation.settings import Settings, check_draws
from pyrosep.signal.summaries import audio_summaries
from pyrosep.zoo import PriorSet

__all__ = [
    "Chains",
    "Estimate",
    "FromGuide",
    "LocalSearch",
    "Method",
    "OnePass",
    "Problem",
    "SharedDescent",
    "Wiener",
    "choose_method",
]

#: Levels of a search by sweeps, and of one with the local coupling.
_SWEEP_LEVELS, _LOCAL_LEVELS = 20, 12
#: Chains that leave so many times the power of the mix that the best one leaves are passed over, without a density.
_FAR = 4.0
#: Of :class:`~pyrosep.MALA`, before it adapts.
_STEP = 0.5


@dataclass(frozen=True)
class Problem:
    """A batch of mixes to separate.

    Attributes:
        mix: ``(window, channel, frame)``, on the priors' device and at their rate.
        priors: for frames of this length.
        gains: of the sources in the mix, ``(source,)``.
        noise: standard deviation of the observation noise.
        keep: draws that are asked for.
        seed: of the batch's draws.
        sample_rate: Hz.
    """

    mix: Tensor
    priors: PriorSet
    gains: Tensor
    noise: float
    keep: int
    seed: int
    sample_rate: int

    @property
    def scale(self) -> Tensor:
        """What turns sources ``(..., source, channel, frame)`` into how they are in the mix."""
        return self.gains[:, None, None]

    def rows(self, chains: int = 1) -> Tensor:
        """Each window and channel so many times, ``(chain * window * channel, frame)``."""
        return self.mix.flatten(0, 1).expand(chains, -1, -1).reshape(-1, self.mix.shape[-1])


@dataclass(frozen=True)
class Estimate:
    """What is known of the sources of a batch of mixes, as they are in the mix, on the host.

    Attributes:
        mean: ``(window, source, channel, frame)``.
        stddev: the same shape.
        draws: ``(draw, window, source, channel, frame)``, as many as the problem asks for.
        summaries: of every draw, by name, ``(chain, draw, window, channel, ...)``; empty where there are no chains.
    """

    mean: Tensor
    stddev: Tensor
    draws: Tensor
    summaries: dict[str, np.ndarray] = field(default_factory=dict)


class Method(ABC):
    """How a batch of mixes becomes an estimate of its sources."""

    #: As it is called in :class:`Settings` and reports.
    name: ClassVar[str]

    @property
    def states(self) -> int:
        """States of a window's sources that are held at once: mean, deviation, and about two to come by them."""
        return 4

    @property
    def count(self) -> int | None:
        """Draws that there are; ``None`` for as many as are asked for."""
        return None

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        """Raise ConfigurationError where the method can't separate by these priors, or keep so many draws."""
        if self.count is not None:
            check_draws(self.count, keep)

    @abstractmethod
    def posterior(self, problem: Problem) -> Estimate:
        """The sources of a batch of mixes."""

    def numbers(self) -> dict[str, Any]:
        """The method by name, and all its numbers: for reports."""
        return {"name": self.name} | {one.name: getattr(self, one.name) for one in fields(cast(Any, self))}


@dataclass(frozen=True)
class Wiener(Method):
    """The posterior of Gaussian priors, in closed form."""

    name: ClassVar[str] = "exact"

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        if not all(prior.is_gaussian for prior in priors.values()):
            raise ConfigurationError("the exact method needs Gaussian priors; use method 'langevin' for others")

    def posterior(self, problem: Problem) -> Estimate:
        posterior = GaussianPosterior(cast(Any, problem.priors), problem.mix, gains=problem.gains, noise=problem.noise)
        with _seeded(problem.seed):
            draws = posterior.sample((problem.keep,)) if problem.keep else posterior.mean.new_zeros(0)
        mean = posterior.mean.transpose(1, 2).cpu() * problem.scale
        draws = draws.transpose(2, 3).cpu() * problem.scale if problem.keep else mean.new_zeros(0, *mean.shape)
        stddev = (posterior.stddev.cpu()[:, None, None] * problem.scale).expand(mean.shape)
        return Estimate(mean, stddev, draws)


@dataclass(frozen=True)
class FromGuide(Method):
    """A guide's own mean, deviation and draws: one pass of its encoder."""

    name: ClassVar[str] = "guide"

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        _checked_guide(priors)

    def posterior(self, problem: Problem) -> Estimate:
        mean, deviation = _guide_moments(problem)
        if not problem.keep:
            return Estimate(mean, deviation, mean.new_zeros(0, *mean.shape))
        with _seeded(problem.seed):
            drawn = _Start(_checked_guide(problem.priors), problem.gains)(
                problem.mix.expand(problem.keep, *problem.mix.shape)
            )
        draws = torch.stack([drawn[name] for name in problem.priors], 2).cpu() * problem.scale
        return Estimate(mean, deviation, draws)


@dataclass(frozen=True)
class OnePass(Method):
    """One call of each prior's denoiser, on the mix itself: a :class:`~pyrosep.infer.descent.Descent` of one level.

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
        with _seeded(problem.seed):
            heard = descent.heard(descent.at_last_level(descent.start(linear), linear, ladder), ladder[-1])
            mean = descent.given(heard, linear, spread=0.0)
            draws = torch.stack([descent.given(heard, linear) for _ in range(self.draws)])
        found = torch.cat([mean.unsqueeze(0), mean + self.temperature * (draws - mean)]).cpu()
        # (..., window * channel, source, frame) to (..., window, source, channel, frame)
        found = found.unflatten(1, problem.mix.shape[:2]).transpose(2, 3) * problem.scale
        deviation = (found[1:] - found[0]).square().mean(0).sqrt()
        return Estimate(found[0], deviation, found[1 : 1 + problem.keep])


@dataclass(frozen=True)
class _Sampled(Method):
    """Chains for each window and channel, all of them in one batch.

    Attributes:
        chains: for each window and channel.
        draws: kept from each chain.
        warmup: steps before the first draw.
        guided: whether chains start from the guide, and not from the mix.
    """

    chains: int = 4
    draws: int = 1
    warmup: int = 0
    guided: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return "guide+langevin" if self.guided else "langevin"

    @property
    def states(self) -> int:
        return self.chains

    @property
    def count(self) -> int:
        return self.chains * self.draws

    def check(self, priors: PriorSet, keep: int = 0) -> None:
        super().check(priors, keep)
        if self.guided:
            _checked_guide(priors)

    @abstractmethod
    def _kernel(self, model: mixing.Model, priors: PriorSet) -> LangevinKernel:
        """What moves the chains."""

    def _start(self, problem: Problem) -> Any:
        return _Start(_checked_guide(problem.priors), problem.gains) if self.guided else "mix"

    def _samples(self, problem: Problem) -> tuple[Tensor, dict[str, np.ndarray]]:
        """Draws ``(chain, window, channel, draw, source, frame)`` as they are in the mix, and their summaries."""
        count, channels, frame = problem.mix.shape
        rows = problem.rows(self.chains)
        mcmc = LangevinMCMC(
            self._kernel(mixing.linear_mix(problem.priors, problem.gains, problem.noise), problem.priors),
            num_samples=self.draws,
            warmup_steps=self.warmup,
            num_chains=len(rows),
            init=self._start(problem),
            seed=problem.seed,
            check=False,  # the model is this library's own
            disable_progbar=True,
        )
        mcmc.run(rows)
        samples = mcmc.get_samples(group_by_chain=True)
        stacked = torch.stack([samples[name] for name in problem.priors], 2) * problem.gains[:, None]
        shape = (self.chains, count, channels, self.draws)
        stacked = stacked.reshape(*shape, len(problem.priors), frame)
        found = audio_summaries(stacked.numpy(), problem.sample_rate)
        found |= {name: value.reshape(shape).numpy() for name, value in mcmc.sample_stats().items()}
        return stacked, {name: np.moveaxis(value, 3, 1) for name, value in found.items()}

    def _weighted(
        self, problem: Problem, samples: Tensor, weight: Tensor, *, more: Tensor | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, deviation and kept draws of chains that count by weights.

        Arguments:
            samples: ``(chain, window, channel, draw, source, frame)``.
            weight: ``(chain, window, channel)``.
            more: variance besides that of the draws.
            temperature: of the draws about their mean.
        """
        by_draw = _by_draw(samples)
        weight = weight.repeat_interleave(self.draws, 0) / self.draws  # (chain * draw, window, channel)
        wide = weight[:, :, None, :, None].to(by_draw)
        mean = (wide * by_draw).sum(0)
        # Of few draws the mean is drawn to each of them. A single one that counts has no spread at all.
        freedom = (1 - wide.square().sum(0)).clamp(min=1e-9)
        variance = (wide * (by_draw - mean).square()).sum(0) / freedom
        if more is not None:
            variance = variance + more
        # The kept draws are as many from each chain as its weight asks for, window by window.
        place = (torch.arange(problem.keep, dtype=torch.float64) + 0.5) / max(1, problem.keep)
        running = weight.cumsum(0).permute(1, 2, 0).contiguous()
        places = place.expand(*running.shape[:2], -1).contiguous()
        index = torch.searchsorted(running, places).clamp(max=len(weight) - 1)
        index = index.permute(2, 0, 1)[:, :, None, :, None].expand(-1, -1, by_draw.shape[2], -1, by_draw.shape[-1])
        drawn = mean + temperature * (by_draw.gather(0, index) - mean)
        return mean, temperature * variance.sqrt(), drawn


@dataclass(frozen=True)
class Chains(_Sampled):
    """Chains of :class:`~pyrosep.MALA` on the posterior itself, after a search where it may have several modes.

    Attributes:
        ladder: of the search, falling noise levels, or how many; ``None`` for no search.
        coupling: of the search, see :class:`~pyrosep.AnnealedSGLD`.
        redraws: of the search, see :class:`~pyrosep.AnnealedSGLD`.
    """

    draws: int = 100
    warmup: int = 50
    ladder: int | Sequence[float] | None = _SWEEP_LEVELS
    coupling: str = "sweeps"
    redraws: int = 24

    def _kernel(self, model: mixing.Model, priors: PriorSet) -> LangevinKernel:
        if self.ladder is None:
            return MALA(model, _STEP)
        ladder = noise_ladder(priors, self.ladder) if isinstance(self.ladder, int) else self.ladder
        return AnnealedSGLD(model, ladder, coupling=self.coupling, redraws=self.redraws, step_size=_STEP)

    def posterior(self, problem: Problem) -> Estimate:
        samples, summaries = self._samples(problem)
        if self.ladder is None:  # chains that move freely count alike
            by_draw = _by_draw(samples)
            spread, mean = torch.std_mean(by_draw, 0)
            kept = torch.arange(problem.keep) * len(by_draw) // max(1, problem.keep)
            return Estimate(mean, spread, by_draw[kept], summaries)
        dense = all(prior.has_density for prior in problem.priors.values())
        weight = _mode_weights(summaries) if dense else _fair_weights(problem.mix, samples)
        return Estimate(*self._weighted(problem, samples, weight), summaries)


@dataclass(frozen=True)
class LocalSearch(_Sampled):
    """Searches by Langevin moves under the coupling ``"local"``: for denoisers that filter and know no interference.

    What such a search is of is no density, and where it ends is as good a draw as steps from there. It stays near
    where it starts: what it can't find out, all of its chains get wrong alike. From a guide the deviations are its
    own and the guide's, in quadrature.

    Attributes:
        ladder: falling noise levels, or how many.
    """

    ladder: int | Sequence[float] = _LOCAL_LEVELS

    def _kernel(self, model: mixing.Model, priors: PriorSet) -> LangevinKernel:
        ladder = noise_ladder(priors, self.ladder) if isinstance(self.ladder, int) else self.ladder
        last = self.draws > 1
        return AnnealedSGLD(model, ladder, coupling="local", redraws=0, sample_last=last, preconditioner=None)

    def posterior(self, problem: Problem) -> Estimate:
        samples, summaries = self._samples(problem)
        more = _guide_moments(problem)[1].square() if self.guided else None
        weight = _fair_weights(problem.mix, samples)
        return Estimate(*self._weighted(problem, samples, weight, more=more), summaries)


@dataclass(frozen=True)
class SharedDescent(_Sampled):
    """Descents of all sources together, see :class:`~pyrosep.infer.descent.DescentSearch`: a draw where each ends.

    Attributes:
        ladder: falling noise levels, or how many.
        temperature: see :class:`Settings`.
    """

    chains: int = 8
    ladder: int | Sequence[float] = LEVELS
    temperature: float = 1.0

    def _kernel(self, model: mixing.Model, priors: PriorSet) -> LangevinKernel:
        ladder = descent_ladder(priors, self.ladder) if isinstance(self.ladder, int) else self.ladder
        return AnnealedSGLD(model, ladder, coupling="shared", sample_last=self.draws > 1, preconditioner=None)

    def _start(self, problem: Problem) -> Any:
        return _Start(_checked_guide(problem.priors), problem.gains, drawn=False) if self.guided else "mix"

    def posterior(self, problem: Problem) -> Estimate:
        samples, summaries = self._samples(problem)
        weight = _fair_weights(problem.mix, samples)
        return Estimate(*self._weighted(problem, samples, weight, temperature=self.temperature), summaries)


def choose_method(settings: Settings, priors: PriorSet) -> Method:
    """The method that settings ask for, with what their ``None`` comes to for a prior set.

    Raises:
        ConfigurationError: the priors can't serve it.
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
    method.check(priors, settings.keep)
    return method


# --- what methods share ---------------------------------------------------------------------------------------


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Without gradients, and with a seed, after which the caller's random state is what it was."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _by_draw(samples: Tensor) -> Tensor:
    """``(chain, window, channel, draw, source, frame)`` to ``(chain * draw, window, source, channel, frame)``."""
    return samples.permute(0, 3, 1, 4, 2, 5).flatten(0, 1)


def _fair_weights(mix: Tensor, samples: Tensor) -> Tensor:
    """Of chains whose priors have no density: alike, but for those that leave far more of the mix than the best.

    Arguments:
        mix: ``(window, channel, frame)``.
        samples: as they are in the mix, ``(chain, window, channel, draw, source, frame)``.

    Returns:
        ``(chain, window, channel)``.
    """
    left = (mix.cpu().unsqueeze(2) - samples.sum(4)).double().square().mean((-1, -2))
    fair = (left <= _FAR * left.amin(0)).double()
    return fair / fair.sum(0)


def _mode_weights(summaries: dict[str, np.ndarray]) -> Tensor:
    """Of the chains of each window and channel, by mode and joint density: ``(chain, window, channel)``."""
    height = summaries["lp"].mean(1)
    flat = np.concatenate(
        [summaries[name].reshape(*summaries["lp"].shape, -1) for name in ("energy_db", "band_db", "projection")], -1
    )
    means, deviations = flat.mean(1), flat.std(1)
    weight = np.empty_like(height)
    for cell in np.ndindex(*height.shape[1:]):
        where = (slice(None), *cell)
        weight[where] = weights_of(height[where], same_mode(means[where], deviations[where]))
    return torch.from_numpy(weight)


def _guide_moments(problem: Problem) -> tuple[Tensor, Tensor]:
    """The guide's mean and deviation of the sources as they are in the mix, ``(window, source, channel, frame)``."""
    with torch.no_grad():
        mean, deviation = _Start(_checked_guide(problem.priors), problem.gains).moments(problem.mix)
    return (
        mean.transpose(1, 2).cpu() * problem.scale,
        deviation.transpose(1, 2).cpu() * problem.scale.abs(),
    )


class _Start:
    """A guide for a mix with other gains than it was trained with: it gives sources as they are in the mix.

    A guide's sources grow with the mix, so that gains in the same ratios make no difference at all.

    Called, it draws them, or with ``drawn=False`` gives their means.
    """

    def __init__(self, guide: EncoderGuide, gains: Tensor, *, drawn: bool = True) -> None:
        assert guide.gains is not None
        self.guide, self.drawn, own = guide, drawn, guide.gains
        gains = gains.to(own)
        #: Between the levels of the two mixes, and of each source.
        self.level = gains.norm() / own.norm()
        self.scale = (self.level * own / gains).unsqueeze(-1)

    def __call__(self, mix: Tensor) -> dict[str, Tensor]:
        if self.drawn:
            with poutine.block():
                values = self.guide(mix / self.level)
        else:
            values = dict(zip(self.guide.names, self.guide.moments(mix / self.level)[0].unbind(-2), strict=True))
        scaled = {name: value * scale for (name, value), scale in zip(values.items(), self.scale, strict=True)}
        return {name: pyro.sample(name, dist.Delta(value).to_event(1)) for name, value in scaled.items()}

    def moments(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self.guide.moments(mix / self.level)
        return mean * self.scale, deviation * self.scale.abs()


def _checked_guide(priors: PriorSet) -> EncoderGuide:
    """The guide of a prior set, by which tracks can be separated."""
    guide = priors.guide()
    if guide is None:
        raise ConfigurationError("this method needs a guide; train one for these priors, or use 'langevin'")
    if guide.gains is None or guide.channels is not None or guide.head_names:
        raise ConfigurationError(
            "to separate a track a guide must be projected onto mixes of one channel, with fixed gains and no other "
            "sites: EncoderGuide(priors, project=True or gains)"
        )
    return guide
