"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

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

__all__ = ["MALA"]


class MALA(MetropolisedKernel):
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
        self.proposal = proposal
        self.initial_step_size = float(step_size)
        self.adapt_step_size = adapt_step_size
        self.target_accept_prob = target_accept_prob
        self.largest_step = largest
        self._set_sizes()

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
        accepted = self.accepted(log_ratio, fall, finite)
        return proposed if bool(accepted.all()) else proposed.where(accepted, state)
