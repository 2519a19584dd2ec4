"""MALA with Gibbs sweeps between its steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyrosep.infer.kernel import LangevinState
from pyrosep.infer.linear import linear_mix_of
from pyrosep.infer.mala import MALA
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner
from pyrosep.infer.search.annealed import AnnealedSearch
from pyrosep.infer.search.chains import check_count
from pyrosep.infer.search.redraws import Redraws
from pyrosep.infer.seeding import seeded

__all__ = ["AnnealedSGLD", "GibbsMALA"]


class GibbsMALA(MALA):
    """:class:`~pyrosep.MALA`, and every so many steps each source drawn given the others.

    A Langevin step leaves a source in the mode that it is in; a draw given the others does not. Sweeps leave the
    posterior invariant, as the steps do (:class:`~pyrosep.infer.search.redraws.Redraws`). They are made where they are
    exact: in a linear mix of known gains, of priors with exact draws. Elsewhere this is MALA.

    Arguments:
        model: a Pyro model.
        step_size: see :class:`~pyrosep.MALA`.
        sweep_every: steps from one sweep to the next; 0 for none.
        preconditioner: as of all kernels; the default measures the priors' curvature where the chains are.
        mala: the rest of :class:`~pyrosep.MALA`'s.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float = 0.1,
        *,
        sweep_every: int = 10,
        preconditioner: str | Callable[[Potential, Values], Preconditioner] | None = "measured",
        **mala: Any,
    ) -> None:
        super().__init__(model, step_size, preconditioner=preconditioner, **mala)
        check_count("sweep_every", sweep_every, 0)
        self.sweep_every = sweep_every
        self._redraws: Redraws | None = None

    def start(self, potential: Potential, warmup_steps: int, z: Values) -> None:
        super().start(potential, warmup_steps, z)
        priors = potential.rows.priors
        self._redraws = None
        if self.sweep_every and priors and set(z) == set(potential.priors) and all(own.exact_draws for own in priors):
            with seeded(0):  # of a measurement, and no draw
                mix = linear_mix_of(potential, potential.constrain(z))
            self._redraws = None if isinstance(mix, str) else Redraws(priors, mix)

    def transition(self, state: LangevinState) -> LangevinState:
        state = super().transition(state)
        if self._redraws is None or (self.num_steps + 1) % self.sweep_every:
            return state
        return self.evaluate(self._swept(self._redraws, state.z))

    def _swept(self, redraws: Redraws, z: Values) -> Values:
        """Every source drawn anew given the others, at the model's own noise."""
        count, rows = len(redraws.mix.observed), self.potential.rows
        stacked = rows.stacked(z)
        with torch.no_grad():
            swept = redraws.sweep(
                stacked.reshape(count, len(rows), -1), torch.arange(count, device=stacked.device), 0.0
            )
        return rows.split(swept.reshape(stacked.shape), z)


class AnnealedSGLD(GibbsMALA):
    """Deprecated name of :class:`GibbsMALA` that starts from an :class:`~pyrosep.AnnealedSearch`.

    Write ``LangevinMCMC(GibbsMALA(model), init=AnnealedSearch(...))`` instead, and for chains from a guide
    ``init=AnnealedSearch(start=guide)``: a start that is given to :class:`~pyrosep.LangevinMCMC` takes the place of
    this kernel's search.

    Arguments:
        model: a Pyro model.
        ladder: of the search.
        coupling: its moves, by name.
        step_size, sweep_every: see :class:`GibbsMALA`.
        search: the rest of :class:`~pyrosep.AnnealedSearch`'s.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        ladder: Sequence[float] | int | None = None,
        *,
        coupling: str | None = None,
        step_size: float = 0.1,
        sweep_every: int = 10,
        **search: Any,
    ) -> None:
        warnings.warn(
            "AnnealedSGLD is deprecated: write LangevinMCMC(GibbsMALA(model), init=AnnealedSearch(...))",
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(model, step_size, sweep_every=sweep_every)
        self.default_init = AnnealedSearch(ladder, coupling, **search)
