"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.adaptation import MIN_ADAPTATION, StepSizes
from pyrosep.infer.kernel import (
    LangevinKernel,
    LangevinState,
    inner_product,
    per_chain,
    plus_scaled,
    sum_of_squares,
    white_noise,
)
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner

__all__ = ["MALA"]


class MALA(LangevinKernel):
    r"""Langevin dynamics whose steps are proposals, accepted so that the target is exact.

    .. math:: z' = z - \eta\, M \nabla U(z) + c\, M^{1/2} \epsilon, \qquad
              \alpha = 1 \wedge \exp\big(U(z) - U(z') + \tfrac12 \|\epsilon\|^2 - \tfrac12 \|\epsilon'\|^2\big)

    with :math:`\epsilon'` the noise that would lead back. Two proposals differ in :math:`c`:

    - ``"euler"``, :math:`c^2 = 2\eta`: the Euler step of the Langevin equation (Roberts & Tweedie, 1996).
    - ``"ornstein-uhlenbeck"`` (default), :math:`c^2 = \eta(2 - \eta)`: the step that is exact where :math:`U` is
      quadratic with Hessian :math:`M^{-1}`, a preconditioned Crank-Nicolson move about the Newton point
      :math:`z - M \nabla U(z)` (Cotter et al., 2013). Its acceptance does not fall with the number of dimensions
      there, and it equals the Euler step for small :math:`\eta`. It needs :math:`\eta \le 1`.

    Arguments:
        model: a Pyro model.
        step_size: :math:`\eta`; the first guess, where it is adapted.
        proposal: ``"euler"`` or ``"ornstein-uhlenbeck"``.
        adapt_step_size: in warm-up, each chain's by itself, by dual averaging towards ``target_accept_prob``
            (Nesterov, 2009; Hoffman & Gelman, 2014); fixed after, and from the start where warm-up has fewer than 20
            steps.
        target_accept_prob: 0.574 is optimal in high dimension (Roberts & Rosenthal, 1998).
        preconditioner: see :class:`~pyrosep.infer.kernel.LangevinKernel`.

    With a prior that has no density (:attr:`~pyrosep.SourcePrior.has_density`), the difference of the energies is
    found from their gradients, by the trapezoidal rule on the line from :math:`z` to :math:`z'`,
    :math:`U(z') - U(z) \approx \tfrac12 (z' - z) \cdot (\nabla U(z) + \nabla U(z'))`. Where :math:`U` is quadratic
    nothing changes by that; elsewhere it is off by the cube of the distance, and the target exact to that order.

    In the first third of warm-up, steps that lower the energy are always taken, so that no chain sticks where it
    started.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float = 0.1,
        *,
        proposal: str = "ornstein-uhlenbeck",
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.574,
        preconditioner: str | Callable[[Potential, Values], Preconditioner] | None = "spectral",
    ) -> None:
        super().__init__(model, preconditioner=preconditioner)
        if proposal not in ("euler", "ornstein-uhlenbeck"):
            raise ConfigurationError(f"proposal must be 'euler' or 'ornstein-uhlenbeck'; got {proposal!r}")
        largest = 1.0 if proposal == "ornstein-uhlenbeck" else math.inf
        if not 0 < step_size <= largest:
            raise ConfigurationError(
                f"step_size must be in (0, {largest}] for proposal {proposal!r}; got {step_size!r}"
            )
        if not 0 < target_accept_prob < 1:
            raise ConfigurationError(f"target_accept_prob must be in (0, 1); got {target_accept_prob!r}")
        self.proposal = proposal
        self.initial_step_size = float(step_size)
        self.adapt_step_size = adapt_step_size
        self.target_accept_prob = target_accept_prob
        self._largest = largest
        self._sizes = self._first_sizes(())

    def _first_sizes(self, chains: tuple[int, ...], device: torch.device | None = None) -> StepSizes:
        return StepSizes(
            self.initial_step_size, chains, target=self.target_accept_prob, largest=self._largest, device=device
        )

    def start(self, potential: Potential, warmup_steps: int, z: Values) -> None:
        chains = () if potential.num_chains is None else (potential.num_chains,)
        device = next(iter(z.values())).device
        self._sizes = self._first_sizes(chains, device)
        super().start(potential, warmup_steps, z)

    def _refresh_preconditioner(self) -> None:
        super()._refresh_preconditioner()
        self._sizes.restart(1.0 if self.num_steps else 10.0)  # from a first guess, try larger steps

    @property
    def step_size(self) -> float:
        return float(self._sizes.values.mean())

    @property
    def step_sizes(self) -> Tensor:
        return self._sizes.values

    def transition(self, state: LangevinState) -> LangevinState:
        steps = self._sizes.values
        variance = 2 * steps if self.proposal == "euler" else steps * (2 - steps)
        noise = white_noise(state.z)
        white = {
            name: plus_scaled(per_chain(variance.sqrt(), noise[name]), -steps, gradient)
            for name, gradient in state.white_gradient.items()
        }
        proposed = self._moved(state, white)
        # In white coordinates the way back is -white = -step * gradient' + backward; its sign does not matter.
        backward = {
            name: plus_scaled(white[name], -steps, gradient) for name, gradient in proposed.white_gradient.items()
        }
        batch_ndim = self.potential.batch_ndim
        fall = state.energy - proposed.energy
        if not self.potential.has_density:
            slopes = {name: gradient + proposed.white_gradient[name] for name, gradient in state.white_gradient.items()}
            fall = -0.5 * inner_product(white, slopes, batch_ndim)
        log_ratio = (
            fall + 0.5 * sum_of_squares(noise, batch_ndim) - 0.5 / variance * sum_of_squares(backward, batch_ndim)
        )
        finite = proposed.is_finite() & torch.isfinite(log_ratio)
        self._record_divergences(finite)
        accept_prob = torch.where(finite, log_ratio, -math.inf).exp().clamp(max=1.0)
        if self.num_steps < self.warmup_steps // 3:
            # On the way down from a poor start the way back is so unlikely that chains would stick; and there the ratio
            # is a small difference of large numbers. What lowers the energy is taken; these steps are no draws.
            accept_prob = torch.where(finite & (fall > 0), 1.0, accept_prob)
        accepted = torch.rand_like(accept_prob) < accept_prob
        self._record_acceptance(accept_prob)
        if self.warming_up and self.adapt_step_size and self.warmup_steps >= MIN_ADAPTATION:
            last = self.num_steps + 1 in self._refresh_at | {self.warmup_steps}
            self._sizes.adapt(accept_prob, last=last)
        return proposed if bool(accepted.all()) else proposed.where(accepted, state)
