"""Annealed Langevin sampling: a search down a ladder of noise levels, then chains at the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.descent import DescentSearch, descent_ladder
from pyrosep.infer.kernel import LangevinState, Progress
from pyrosep.infer.ladder import check_ladder, noise_ladder
from pyrosep.infer.mala import MALA
from pyrosep.infer.noising import COUPLINGS
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner
from pyrosep.infer.redraws import Redraws
from pyrosep.infer.response import linear_mix_of
from pyrosep.infer.search import LangevinSearch, Search, SweepSearch

__all__ = ["AnnealedSGLD"]

#: Levels of the default ladder for moves that cross from level to level by themselves.
DEFAULT_LEVELS = 20


class AnnealedSGLD(MALA):
    r"""Langevin sampling that looks for the sources at falling noise levels, and samples the posterior at the last.

    **Search.** Chains begin at the top of the ladder or, where a guide gave their start (``init=guide``), at the level
    that the guide's own deviations call for. At each level :math:`\sigma_i` sites move by one of two kinds of moves:

    - Langevin steps on the :func:`~pyrosep.noised` model, for any model:
      :math:`x \leftarrow x - \eta_i \nabla U_i(x) + \sqrt{2\eta_i}\,\epsilon`, with
      :math:`\eta_i (\Lambda_i + 1/\sigma_i^2) < 2`, :math:`\Lambda_i` the precision that the observation has at that
      level for the sources together (:math:`N\lambda` for the sum of N); and between levels, with ``ancestral``,
      :math:`x \leftarrow \hat s + \tfrac{\sigma_{i+1}^2}{\sigma_i^2}(x - \hat s) + \dots\epsilon` from the mean
      :math:`\hat s = x - \sigma_i^2 \nabla U_i(x)` (Song & Ermon, 2019; Jayaram & Thickstun, 2020; Ho et al., 2020).
    - Sweeps, for models with one Normal observation: every source in turn is drawn given the others
      (:class:`~pyrosep.infer.redraws.Redraws`), from the linear mix that the model is, or is near to at the state.

    Then, again and again, a random *block* of sources is redrawn from the top of the ladder given the rest, and kept
    with probability :math:`\min(1, e^{-\Delta E / t})`, E being the energy of the residual, at a temperature t that
    falls; or, at random, two sources exchange what they explain instead (sweeps only). Chains whose residual is
    what noise alone would leave are settled and left alone; those that are not, by half of the redraws, start again.

    **Sampling.** What was found starts chains of :class:`~pyrosep.MALA` on the model itself, whose target, the
    posterior with priors at their own level, is exact. Where draws of the sources given the others are exact too, a
    sweep of them follows every ``sweep_every`` steps. The search decides which mode a chain starts in, and short
    chains don't leave it: weights of modes are right only where chains are seen to move between them.

    Arguments:
        model: a Pyro model.
        ladder: falling noise levels; by default :func:`~pyrosep.infer.noise_ladder` of 20 levels, with coupling
            ``"shared"`` :func:`~pyrosep.infer.descent.descent_ladder` of 4.
        steps_per_level: Langevin steps at each level, or sweeps.
        coupling: ``"sweeps"``; ``"shared"`` for one descent of all sources together, see
            :class:`~pyrosep.infer.descent.DescentSearch`; or ``"noisy"``, ``"denoised"``, ``"constraint"`` or
            ``"local"`` for Langevin steps, see :func:`~pyrosep.noised`. By default sweeps wherever the model allows
            them, and else ``"denoised"``.
        reverse_steps: denoiser calls of a draw in a sweep, for priors without exact draws.
        ancestral: reverse-diffusion moves between levels (Langevin moves only).
        spread: of the draws at a level about their means (``coupling="shared"`` only): 1 for draws, 0 for the estimate
            of least squared error, see :class:`~pyrosep.infer.descent.DescentSearch`.
        langevin_step: :math:`\eta` as a function of :math:`\sigma`; by default half of what is stable.
        redraws: block redraws after the first descent.
        block: sources in a block.
        redraw_levels: levels of the ladder, evenly spaced, that a redraw passes through.
        exchanges: share of the redraws that are exchanges.
        acceptance: residual, relative to the mix's rms, that one unit of temperature forgives: at the first redraw, and
            at the last.
        restarts: whether chains that stay behind start again half-way.
        sweep_every: steps of the last level from one sweep to the next; 0 for none.
        sample_last: whether chains go on at the last level. If not they stay where the search left them, one draw each:
            of priors without a density, whose search down many levels is worth more than steps at one.
        step_size, proposal, adapt_step_size, target_accept_prob, preconditioner: of the last level; see
            :class:`~pyrosep.MALA`. The default preconditioner measures the priors' curvature where the chains are.

    Raises:
        ConfigurationError: sweeps for a model that has no linear neighbour, which says why; the constraint for a model
            that is not linear; a step that is not stable.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        ladder: Iterable[float] | None = None,
        steps_per_level: int = 1,
        coupling: str | None = None,
        *,
        reverse_steps: int = 8,
        ancestral: bool = True,
        spread: float = 1.0,
        langevin_step: Callable[[float], float] | None = None,
        redraws: int = 24,
        block: int = 2,
        redraw_levels: int = 10,
        exchanges: float = 0.5,
        acceptance: tuple[float, float] = (0.2, 0.05),
        restarts: bool = True,
        sweep_every: int = 10,
        sample_last: bool = True,
        step_size: float = 0.1,
        proposal: str = "ornstein-uhlenbeck",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.574,
        preconditioner: str | Callable[[Potential, Values], Preconditioner] | None = "measured",
    ) -> None:
        super().__init__(
            model,
            step_size,
            proposal=proposal,
            adapt_step_size=adapt_step_size,
            target_accept_prob=target_accept_prob,
            preconditioner=preconditioner,
        )
        check_coupling(coupling)
        counts = {"steps_per_level": (steps_per_level, 1), "redraws": (redraws, 0), "block": (block, 1)}
        counts |= {
            "redraw_levels": (redraw_levels, 1),
            "sweep_every": (sweep_every, 0),
            "reverse_steps": (reverse_steps, 1),
        }
        for name, (number, least) in counts.items():
            if int(number) != number or number < least:
                raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {number!r}")
        if not 0 <= exchanges <= 1:
            raise ConfigurationError(f"exchanges is a share, from 0 to 1; got {exchanges!r}")
        if not (len(acceptance) == 2 and min(acceptance) > 0):
            raise ConfigurationError(f"acceptance must be two positive numbers; got {acceptance!r}")
        if not 0 <= spread <= 2:
            raise ConfigurationError(f"spread must be from 0 to 2; got {spread!r}")
        self.ladder = None if ladder is None else check_ladder(ladder)
        self.steps_per_level = steps_per_level
        self.coupling = coupling
        self.reverse_steps = reverse_steps
        self.ancestral = ancestral
        self.spread = spread
        self.langevin_step = langevin_step
        self.redraws = redraws
        self.block = block
        self.redraw_levels = redraw_levels
        self.exchanges = exchanges
        self.acceptance = acceptance
        self.restarts = restarts
        self.sweep_every = sweep_every
        self.sample_last = sample_last
        #: Denoiser calls of the search, chain by chain: evaluations or draws of one source's prior for one chain.
        self.search_calls: Tensor = torch.zeros(0, dtype=torch.int64)
        self._sweeper: Redraws | None = None

    # --- the search -------------------------------------------------------------------------------------------

    def search(self, potential: Potential, z: Values, progress: Progress, levels: Tensor | None = None) -> Values:
        """From starting values to where the chains sample, all unconstrained.

        Chains come in where :meth:`~pyrosep.infer.search.Search.places` has it; without ``levels`` at the top. From a
        known level a descent that explains less of the mix than the start did is taken back; sweeps then begin from
        nothing, and where those don't settle either, the chain has its start again.
        """
        names = list(potential.priors)
        if not names:
            raise ConfigurationError("AnnealedSGLD needs a model with source priors as sites; this one has none")
        if self.ladder is not None:
            ladder = self.ladder
        elif self.coupling == "shared":
            ladder = descent_ladder(potential.priors)
        else:
            ladder = noise_ladder(potential.priors, DEFAULT_LEVELS)
        search = self._search(potential, z, ladder)
        redraws = self.redraws if search.blocks and (len(names) > 1 or not search.exchanges) else 0
        total = len(ladder) + redraws
        with torch.no_grad():
            everyone = torch.arange(search.num_chains, device=next(iter(z.values())).device)
            lost = torch.zeros_like(everyone, dtype=torch.bool)
            if levels is None:
                search.begin(everyone, search.ladder)
            else:
                places = search.places(levels).to(everyone.device)
                for first in places.unique().tolist():
                    down = partial(search.descend, everyone[places == first], search.ladder[first:], None, anew=False)
                    lost |= search.refine(down)
            start = dict(search.z)
            if search.exchanges and bool(lost.any()):
                search.descend(everyone[lost], search.ladder, None)
            progress(len(ladder), total)
            short = _spread(search.ladder, self.redraw_levels)
            for number in range(redraws):
                chains = search.unsettled()
                if not len(chains):
                    break
                if self.restarts and number == redraws // 2 > 0:
                    search.attempt(0.0, partial(search.descend, chains, search.ladder, None))
                first, last = self.acceptance
                tolerance = first * (last / first) ** (number / max(1, redraws - 1))
                order = torch.rand(len(chains), len(names), device=chains.device).argsort(-1)
                if search.exchanges and float(torch.rand(())) < self.exchanges:
                    search.attempt(tolerance, partial(search.exchange, chains, order[:, :2]))
                else:
                    search.attempt(tolerance, partial(search.descend, chains, short, order[:, : self.block]))
                progress(len(ladder) + number + 1, total)
            search.take_back(start, lost & torch.isin(everyone, search.unsettled()))
        self.search_calls = search.calls
        self._sweeper = None
        if isinstance(search, SweepSearch) and search.fixed:
            exact = all(prior.exact_draws for prior in search.redraws.priors)
            self._sweeper = search.redraws if exact else None
        progress(total, total)
        return search.z

    def _search(self, potential: Potential, z: Values, ladder: tuple[float, ...]) -> Search:
        if self.coupling in (None, "sweeps"):
            values = potential.constrain(z)
            found = linear_mix_of(potential, values)
            if self.coupling == "sweeps" or not isinstance(linear_mix_of(potential, values, about=True), str):
                # With other latent sites the mix changes as they move.
                mix = None if isinstance(found, str) or set(z) != set(potential.priors) else found
                return SweepSearch(
                    potential, z, ladder, mix, sweeps=self.steps_per_level, reverse_steps=self.reverse_steps
                )
        if self.coupling == "shared":
            return DescentSearch(potential, z, ladder, spread=self.spread)
        return LangevinSearch(
            potential,
            z,
            ladder,
            coupling=self.coupling or "denoised",
            steps=self.steps_per_level,
            ancestral=self.ancestral,
            step_size=self.langevin_step,
        )

    # --- the last level ---------------------------------------------------------------------------------------

    def evaluate(self, z: Values) -> LangevinState:
        if self.sample_last:
            return super().evaluate(z)
        # Chains that stay where they are need no gradient, which takes a call of every denoiser.
        with torch.no_grad():
            energy = self.potential(z)
        still = {name: torch.zeros_like(value) for name, value in z.items()}
        return LangevinState(dict(z), energy, still, self.potential.residual())

    def transition(self, state: LangevinState) -> LangevinState:
        if not self.sample_last:
            return state
        state = super().transition(state)
        if self._sweeper is None or not self.sweep_every or (self.num_steps + 1) % self.sweep_every:
            return state
        return self.evaluate(self._swept(state.z))

    def _swept(self, z: Values) -> Values:
        """Every source drawn anew given the others, at the model's own noise."""
        assert self._sweeper is not None
        names = list(self.potential.priors)
        count = len(self._sweeper.mix.observed)
        sources = torch.stack([z[name].reshape(count, -1) for name in names], 1)
        with torch.no_grad():
            swept = self._sweeper.sweep(sources, torch.arange(count, device=sources.device), 0.0)
        return {name: swept[:, number].reshape(z[name].shape) for number, name in enumerate(names)}


def check_coupling(coupling: str | None) -> None:
    """Raise ConfigurationError for a coupling that no search has; ``None`` leaves the choice to the kernel."""
    known = ("sweeps", "shared", *COUPLINGS)
    if coupling not in (None, *known):
        raise ConfigurationError(f"coupling must be one of {known}; got {coupling!r}")


def _spread(ladder: Sequence[float], count: int) -> tuple[float, ...]:
    """``count`` levels of a ladder, evenly spaced, its first and last among them."""
    if count >= len(ladder):
        return tuple(ladder)
    if count == 1:
        return (ladder[-1],)
    return tuple(ladder[round(number * (len(ladder) - 1) / (count - 1))] for number in range(count))
