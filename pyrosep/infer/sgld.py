"""Stochastic gradient Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pyrosep.errors import ConfigurationError
from pyrosep.infer.kernel import LangevinKernel, LangevinState, white_noise
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner
from pyrosep.infer.schedules import Schedule, as_schedule

__all__ = ["SGLD"]


class SGLD(LangevinKernel):
    r"""Langevin dynamics without correction (Welling & Teh, 2011).

    .. math:: z \leftarrow z - \eta_t\, M \nabla U(z) + \sqrt{2 \eta_t \tau}\, M^{1/2} \epsilon,
              \qquad \epsilon \sim N(0, I)

    with potential :math:`U`, step sizes :math:`\eta_t`, temperature :math:`\tau` and preconditioner :math:`M`. The
    gradient is exact unless the model itself subsamples. At a constant step the chain is biased: a Gaussian target
    direction of precision :math:`a` in the white coordinates gets the variance :math:`2\tau / (a (2 - \eta a))` in
    place of :math:`\tau / a`, and diverges unless :math:`\eta a < 2`.

    Arguments:
        model: a Pyro model.
        step_size: :math:`\eta`, or a schedule from :mod:`pyrosep.infer.schedules`.
        temperature: :math:`\tau`; 1 samples the posterior, 0 descends.
        preconditioner: see :class:`~pyrosep.infer.kernel.LangevinKernel`.

    Chains that diverge are stopped and reported; the others go on.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step_size: float | Schedule = 0.1,
        *,
        temperature: float = 1.0,
        preconditioner: str | Callable[[Potential, Values], Preconditioner] | None = "spectral",
    ) -> None:
        super().__init__(model, preconditioner=preconditioner)
        self.schedule = as_schedule(step_size)
        if not temperature >= 0:
            raise ConfigurationError(f"temperature must be at least 0; got {temperature!r}")
        self.temperature = float(temperature)

    @property
    def step_size(self) -> float:
        return self.schedule(self.num_steps)

    def transition(self, state: LangevinState) -> LangevinState:
        step = self.step_size
        spread = math.sqrt(2 * step * self.temperature)
        noise = white_noise(state.z)
        white = {
            name: (spread * noise[name]).sub_(gradient, alpha=step) for name, gradient in state.white_gradient.items()
        }
        return self._stop_diverged(state, self._moved(state, white))
