"""Underdamped Langevin dynamics: positions with momenta, which friction and noise refresh in part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.kernel import (
    LangevinState,
    inner_product,
    per_chain,
    plus_scaled,
    sum_of_squares,
    white_noise,
)
from pyrosep.infer.metropolis import MetropolisedKernel
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner

__all__ = ["UnderdampedLangevin"]


class UnderdampedLangevin(MetropolisedKernel):
    r"""Langevin dynamics with momenta, by the splitting BAOAB (Leimkuhler & Matthews, 2013), or Metropolised.

    In the coordinates :math:`z = M^{1/2} w` that the preconditioner makes white, with momenta :math:`p`, step
    :math:`h`, friction :math:`\gamma`, temperature :math:`\tau`, :math:`c = e^{-\gamma h}` and
    :math:`\epsilon \sim N(0, I)`:

    .. math:: p \leftarrow p - \tfrac h2 \nabla U, \quad w \leftarrow w + \tfrac h2 p, \quad
              p \leftarrow c\,p + \sqrt{(1 - c^2)\tau}\,\epsilon, \quad
              w \leftarrow w + \tfrac h2 p, \quad p \leftarrow p - \tfrac h2 \nabla U

    At a constant step it is biased; of positions in a Gaussian it is exact wherever it is stable, that is if
    :math:`h^2 a < 4` for every precision :math:`a` in the white coordinates.

    With ``metropolis`` (the default) it is exact for any target: generalized Hamiltonian Monte Carlo (Horowitz, 1991).
    Momenta are refreshed first, :math:`\tilde p = c\,p + \sqrt{1 - c^2}\,\epsilon`, and some steps of leapfrog lead
    from :math:`(w, \tilde p)` to :math:`(w', p')`, which is accepted with probability

    .. math:: \alpha = 1 \wedge \exp\big(U(w) - U(w') + \tfrac12 \|\tilde p\|^2 - \tfrac12 \|p'\|^2\big);

    else the position stays and the momenta are turned back, :math:`(w, -\tilde p)`. As a rejection takes a chain back
    the way that it came, acceptance should be high.

    Friction decides how far a chain goes in one direction. Large friction makes it MALA, or SGLD, with the step
    :math:`\eta = h^2 / 2`; small friction crosses narrow valleys faster, which a preconditioner has not made round.

    Arguments:
        model: a Pyro model.
        step_size: :math:`h`; the first guess, where it is adapted.
        friction: :math:`\gamma`, at least 0.
        metropolis: whether steps are accepted or rejected.
        leapfrog_steps: gradients of a Metropolised step.
        temperature: :math:`\tau`, of BAOAB; 1 samples the posterior.
        adapt_step_size: of a Metropolised step, in a warm-up of 20 steps or more, each chain's by itself.
        target_accept_prob: that it is adapted to.
        preconditioner: see :class:`~pyrosep.infer.kernel.LangevinKernel`.

    With a prior that has no density, the difference of energies is found from gradients, as in :class:`~pyrosep.MALA`;
    and as there, steps that lower the energy are always taken in the first third of warm-up. Chains of BAOAB that
    diverge are stopped and reported.
    """

    first_factor: ClassVar[float] = 2.0

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float = 0.5,
        *,
        friction: float = 1.0,
        metropolis: bool = True,
        leapfrog_steps: int = 1,
        temperature: float = 1.0,
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.9,
        preconditioner: str | Callable[[Potential, Values], Preconditioner] | None = "spectral",
    ) -> None:
        super().__init__(model, preconditioner=preconditioner)
        if not (step_size > 0 and math.isfinite(step_size)):
            raise ConfigurationError(f"a step size must be positive and finite; got {step_size!r}")
        for name, value in (("friction", friction), ("temperature", temperature)):
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigurationError(f"{name} must be at least 0 and finite; got {value!r}")
        if metropolis and temperature != 1.0:
            raise ConfigurationError(f"a Metropolised step has the temperature 1; got {temperature!r}")
        if int(leapfrog_steps) != leapfrog_steps or leapfrog_steps < 1 or (leapfrog_steps > 1 and not metropolis):
            raise ConfigurationError(
                "expected a whole number of leapfrog steps, and 1 of a step that is not Metropolised; got "
                f"{leapfrog_steps!r}"
            )
        self.initial_step_size = float(step_size)
        self.friction = float(friction)
        self.metropolis = metropolis
        self.leapfrog_steps = int(leapfrog_steps)
        self.temperature = float(temperature)
        self.adapt_step_size = adapt_step_size and metropolis
        self.target_accept_prob = target_accept_prob
        #: In white coordinates, as the state's gradient.
        self.momentum: Values = {}
        self._set_sizes()

    def start(self, potential: Potential, warmup_steps: int, z: Values) -> None:
        super().start(potential, warmup_steps, z)
        scale = math.sqrt(self.temperature)
        self.momentum = {name: scale * value for name, value in white_noise(z).items()}

    def transition(self, state: LangevinState) -> LangevinState:
        return self._metropolised(state) if self.metropolis else self._baoab(state)

    def _refreshed(self, momentum: Values, steps: Tensor) -> Values:
        """Momenta after friction and noise for a time of ``steps``."""
        kept = (-self.friction * steps).exp()
        added = (self.temperature * (1 - kept.square())).sqrt()
        noise = white_noise(momentum)
        return {name: plus_scaled(per_chain(kept, value), added, noise[name]) for name, value in momentum.items()}

    def _baoab(self, state: LangevinState) -> LangevinState:
        steps = self._sizes.values
        half = 0.5 * steps
        before = _kicked(self.momentum, state, half)
        after = self._refreshed(before, steps)
        white = {name: per_chain(half, value + after[name]) for name, value in before.items()}
        new = self._stop_diverged(state, self._moved(state, white))
        self.momentum = _kicked(after, new, half)
        return new

    def _metropolised(self, state: LangevinState) -> LangevinState:
        steps, batch_ndim = self._sizes.values, self.potential.batch_ndim
        start = self._refreshed(self.momentum, steps)
        momentum, proposed = start, state
        fall = torch.zeros_like(state.energy)
        for _ in range(self.leapfrog_steps):
            momentum = _kicked(momentum, proposed, 0.5 * steps)
            white = {name: per_chain(steps, value) for name, value in momentum.items()}
            last, proposed = proposed, self._moved(proposed, white)
            momentum = _kicked(momentum, proposed, 0.5 * steps)
            if not self.potential.has_density:
                slopes = {name: value + proposed.white_gradient[name] for name, value in last.white_gradient.items()}
                fall = fall - 0.5 * inner_product(white, slopes, batch_ndim)
        if self.potential.has_density:
            fall = state.energy - proposed.energy
        log_ratio = fall + 0.5 * (sum_of_squares(start, batch_ndim) - sum_of_squares(momentum, batch_ndim))
        finite = proposed.is_finite() & torch.isfinite(log_ratio)
        accepted = self.accepted(log_ratio, fall, finite)
        self.momentum = {
            name: torch.where(
                accepted.reshape(accepted.shape + (1,) * (value.ndim - accepted.ndim)), value, -start[name]
            )
            for name, value in momentum.items()
        }
        return proposed.where(accepted, state)


def _kicked(momentum: Values, state: LangevinState, time: Tensor) -> Values:
    """Momenta after the state's force for a time."""
    return {name: plus_scaled(value, -time, state.white_gradient[name]) for name, value in momentum.items()}
