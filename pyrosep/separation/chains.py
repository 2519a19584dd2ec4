"""Separating by chains: sampled, searched for, or drawn down the noise levels together."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.separation.problem import Estimate, Method, Problem, check_least, check_positive

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pyrosep import mixing
    from pyrosep.infer import AnnealedSearch, LangevinKernel
    from pyrosep.zoo import PriorSet

__all__ = ["Chains", "LocalSearch", "SharedDescent"]

#: Levels of a search by sweeps, of one with the local coupling, and of a descent of all sources together.
_SWEEP_LEVELS, _LOCAL_LEVELS, _SHARED_LEVELS = 20, 12, 4


@dataclass(frozen=True)
class _Sampled(Method):
    """Chains for each window and channel, all of them in one batch.

    Attributes:
        chains: Chains for each window and channel.
        draws: Draws kept from each chain.
        warmup: Steps before the first draw, in which the step size adapts.
        guided: Whether chains start from the guide, and not from the mix.
        max_residual_ratio: Without densities, chains whose residual power exceeds this multiple of the best chain's are
            dropped.
    """

    chains: int = 4
    draws: int = 1
    warmup: int = 0
    guided: bool = False
    max_residual_ratio: float = 4.0
    #: Whether chains from a guide start from its draws, or all from its mean.
    _from_draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_least(self, chains=1, draws=1, warmup=0, max_residual_ratio=1)

    def _check_warmup(self) -> None:
        """Raise ConfigurationError for a warm-up of chains that don't move on from where their search ends."""
        if self.warmup and self.draws == 1:
            raise ConfigurationError(
                f"a search that ends in one draw has no warm-up; got warmup {self.warmup}: take at least 2 draws, or 0"
            )

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
        from pyrosep.separation.from_guide import checked_guide

        super().check(priors, keep)
        if self.guided:
            checked_guide(priors)

    @abstractmethod
    def _search(self, problem: Problem) -> AnnealedSearch | None:
        """Where chains start; ``None`` for the mix or the guide itself."""

    def _kernel(self, model: mixing.Model) -> LangevinKernel | None:
        """What moves the chains then; ``None`` where the search's end is the draw."""
        from pyrosep.infer import MALA

        return MALA(model, preconditioner=None) if self.draws > 1 else None

    def _start(self, problem: Problem) -> Any:
        from pyrosep.separation.from_guide import GuideStart, checked_guide

        if not self.guided:
            return "mix"
        guide = checked_guide(problem.priors)
        return GuideStart(guide, problem.gains, drawn=self._from_draws, copies=self.chains)

    def _samples(self, problem: Problem) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
        """Draws as they are in the mix, which chains count, and the draws' summaries.

        Returns:
            ``(chain, window, channel, draw, source, frame)``; ``(chain, window, channel)``; and by name ``(chain, draw,
            window, channel, ...)``. A chain that was stopped, or that has draws that are not finite, counts for
            nothing: its draws are zero, its summaries NaN.

        Raises:
            DivergenceError: no chain of a window and channel counts.
        """
        import numpy as np
        import torch

        from pyrosep import mixing
        from pyrosep.infer import LangevinMCMC
        from pyrosep.signal.summaries import audio_summaries

        count, channels, frame = problem.mix.shape
        rows = problem.rows(self.chains)
        model = mixing.linear_mix(problem.priors, problem.gains, problem.noise)
        kernel, search = self._kernel(model), self._search(problem)
        if kernel is None:
            assert search is not None
            found = search.run(model, rows, num_chains=len(rows), seed=problem.seed)
            samples = {name: value.unsqueeze(1).cpu() for name, value in found.values().items()}
            stats = {"lp": found.log_joint().cpu().double()}
        else:
            mcmc = LangevinMCMC(
                kernel,
                num_samples=self.draws,
                warmup_steps=self.warmup,
                num_chains=len(rows),
                init=self._start(problem) if search is None else search,
                seed=problem.seed,
                check=False,  # the model is this library's own
                disable_progbar=True,
            ).run(rows)
            samples, stats = mcmc.get_samples(group_by_chain=True), mcmc.sample_stats()
            if mcmc.stopped:
                samples, stats = (_in_place(values, mcmc.chains, len(rows)) for values in (samples, stats))
        stacked = torch.stack([samples[name] for name in problem.priors], 2) * problem.gains[:, None].cpu()
        shape = (self.chains, count, channels, self.draws)
        stacked = stacked.reshape(*shape, len(problem.priors), frame)
        summaries = audio_summaries(stacked.numpy(), problem.sample_rate)
        summaries |= {name: value.reshape(shape).numpy() for name, value in stats.items()}
        counted = stacked.isfinite().flatten(3).all(-1)
        if not bool(counted.all()):
            _report_lost(counted)
            stacked = stacked.where(counted[..., None, None, None], 0.0)
        return stacked, counted, {name: np.moveaxis(value, 3, 1) for name, value in summaries.items()}

    def _fair_weights(self, mix: Tensor, samples: Tensor, counted: Tensor) -> Tensor:
        """Weights of chains without densities: equal, except for those that are dropped by ``max_residual_ratio``.

        Arguments:
            mix: ``(window, channel, frame)``.
            samples: as they are in the mix, ``(chain, window, channel, draw, source, frame)``.
            counted: whether a chain counts at all, ``(chain, window, channel)``.

        Returns:
            ``(chain, window, channel)``.
        """
        left = (mix.cpu().unsqueeze(2) - samples.sum(4)).double().square().mean((-1, -2)).where(counted, math.inf)
        fair = (left <= self.max_residual_ratio * left.amin(0)).double()
        return fair / fair.sum(0)

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
        import torch

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

    With ``ladder=None`` there is no search.

    Attributes:
        ladder: Noise levels of the search: how many, or the falling levels themselves.
        coupling: Moves of the search: ``sweeps``, or Langevin moves ``noisy``, ``denoised`` or ``constraint``
            (:class:`~pyrosep.AnnealedSearch`).
        redraws: Block redraws of the search.
        step_size: Step size of the chains, before the warm-up adapts it.
    """

    draws: int = 100
    warmup: int = 50
    ladder: int | Sequence[float] | None = _SWEEP_LEVELS
    coupling: str = "sweeps"
    redraws: int = 24
    step_size: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, redraws=0)
        check_positive(step_size=self.step_size)
        _check_levels(self.ladder)
        if self.coupling in ("shared", "local"):
            raise ConfigurationError(
                f"searches of coupling {self.coupling!r} are a method of their own: take SharedDescent or LocalSearch"
            )
        if self.coupling != "sweeps":
            from pyrosep.infer.search.annealed import moves_named

            moves_named(self.coupling)  # whose error tells of others

    def _search(self, problem: Problem) -> AnnealedSearch | None:
        from pyrosep.infer import AnnealedSearch

        if self.ladder is None:
            return None
        return AnnealedSearch(self.ladder, self.coupling, self._start(problem), redraws=self.redraws)

    def _kernel(self, model: mixing.Model) -> LangevinKernel:
        from pyrosep.infer import MALA, GibbsMALA

        return MALA(model, self.step_size) if self.ladder is None else GibbsMALA(model, self.step_size)

    def posterior(self, problem: Problem) -> Estimate:
        import torch

        from pyrosep.separation.weights import mode_weights

        samples, counted, summaries = self._samples(problem)
        if self.ladder is None and bool(counted.all()):  # chains that move freely count alike
            by_draw = _by_draw(samples)
            spread, mean = torch.std_mean(by_draw, 0)
            kept = torch.arange(problem.keep) * len(by_draw) // max(1, problem.keep)
            return Estimate(mean, spread, by_draw[kept], summaries)
        if self.ladder is None:
            weight = counted / counted.sum(0).double()
        elif all(prior.has_density for prior in problem.priors.values()):
            weight = mode_weights(summaries)
        else:
            weight = self._fair_weights(problem.mix, samples, counted)
        return Estimate(*self._weighted(problem, samples, weight), summaries)


@dataclass(frozen=True)
class LocalSearch(_Sampled):
    """Searches by Langevin moves under the coupling ``"local"``: for denoisers that filter and know no interference.

    What such a search is of is no density, and where it ends is as good a draw as steps from there. It stays near
    where it starts: what it can't find out, all of its chains get wrong alike. From a guide the deviations are its
    own and the guide's, in quadrature.

    Attributes:
        ladder: Noise levels of the search: how many, or the falling levels themselves.
    """

    ladder: int | Sequence[float] = _LOCAL_LEVELS

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_levels(self.ladder)
        self._check_warmup()

    def _search(self, problem: Problem) -> AnnealedSearch:
        from pyrosep.infer import AnnealedSearch

        return AnnealedSearch(self.ladder, "local", self._start(problem), redraws=0)

    def posterior(self, problem: Problem) -> Estimate:
        from pyrosep.separation.from_guide import guide_moments

        samples, counted, summaries = self._samples(problem)
        more = guide_moments(problem)[1].square() if self.guided else None
        weight = self._fair_weights(problem.mix, samples, counted)
        return Estimate(*self._weighted(problem, samples, weight, more=more), summaries)


@dataclass(frozen=True)
class SharedDescent(_Sampled):
    """Descents of all sources together, see :class:`~pyrosep.infer.DescentMoves`: a draw where each ends.

    Attributes:
        ladder: Noise levels of the search: how many, or the falling levels themselves.
        from_mix: Share of the chains that start from the mix where others start from the guide: they are wrong about
            other things than those are, and they are right where the guide is not.
        temperature: Factor for the distances of draws from their mean, and for standard deviations; the mean stays. By
            default what the prior set was calibrated to for the method, else 1.
    """

    chains: int = 8
    ladder: int | Sequence[float] = _SHARED_LEVELS
    from_mix: float = 0.25
    temperature: float | None = None
    _from_draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_levels(self.ladder)
        self._check_warmup()
        check_positive(temperature=self.temperature)
        if not 0 <= self.from_mix <= 1:
            raise ConfigurationError(f"from_mix is a share, from 0 to 1; got {self.from_mix!r}")

    def _search(self, problem: Problem) -> AnnealedSearch:
        import torch

        from pyrosep.infer import AnnealedSearch, DescentMoves

        level = None
        if self.guided:  # a descent asks no more than whether anything is known of its start
            guided = self.chains - int(self.from_mix * self.chains)
            level = torch.zeros(self.chains, *problem.mix.shape[:2])
            level[guided:] = math.inf
            level = level.flatten()
        return AnnealedSearch(self.ladder, DescentMoves(), self._start(problem), level)

    def posterior(self, problem: Problem) -> Estimate:
        samples, counted, summaries = self._samples(problem)
        weight = self._fair_weights(problem.mix, samples, counted)
        temperature = 1.0 if self.temperature is None else self.temperature
        return Estimate(*self._weighted(problem, samples, weight, temperature=temperature), summaries)


def _check_levels(ladder: int | Sequence[float] | None) -> None:
    """Raise ConfigurationError for a ladder that is neither at least two levels nor falling."""
    if isinstance(ladder, int):
        if ladder < 2:
            raise ConfigurationError(f"a ladder needs at least 2 levels; got {ladder}")
    elif ladder is not None:
        from pyrosep.infer.search.ladder import check_ladder

        check_ladder(ladder)


def _by_draw(samples: Tensor) -> Tensor:
    """``(chain, window, channel, draw, source, frame)`` to ``(chain * draw, window, source, channel, frame)``."""
    return samples.permute(0, 3, 1, 4, 2, 5).flatten(0, 1)


def _in_place(values: dict[str, Tensor], chains: Sequence[int], count: int) -> dict[str, Tensor]:
    """Values of some of so many chains, each in its own place; NaN in those of the others."""
    found = {name: value.new_full((count, *value.shape[1:]), math.nan) for name, value in values.items()}
    for name, value in values.items():
        found[name][list(chains)] = value
    return found


def _report_lost(counted: Tensor) -> None:
    """Warn of chains ``(chain, window, channel)`` that do not count; an error where a window and channel has none."""
    if not bool(counted.any(0).all()):
        raise DivergenceError(
            f"every chain of {int((~counted.any(0)).sum())} windows has draws that are not finite; take another seed, "
            "more chains, or another method"
        )
    from pyrosep.infer import ChainWarning

    warnings.warn(
        f"{int((~counted).sum())} of {counted.numel()} chains were stopped, or have draws that are not finite; they "
        "are left out",
        ChainWarning,
        stacklevel=2,
    )
