"""Step sizes that each chain adapts to an acceptance that is asked for."""

from __future__ import annotations

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

__all__ = ["MIN_ADAPTATION", "StepSizes"]

#: Dual averaging starts with steps that are far too large; a shorter warm-up would end on one of them.
MIN_ADAPTATION = 20


class StepSizes:
    """Step sizes by dual averaging (Nesterov, 2009; Hoffman & Gelman, 2014), each chain's by itself.

    Arguments:
        first: the first guess.
        shape: of the chains, ``(chains,)`` or ``()``.
        target: acceptance that is asked for.
        largest: the largest step.
        device: of the sizes.
    """

    def __init__(
        self, first: float, shape: tuple[int, ...], *, target: float, largest: float, device: torch.device | None = None
    ) -> None:
        #: The steps, ``shape``, in double precision.
        self.values = torch.full(shape, first, dtype=torch.float64, device=device)
        self.target = target
        self.largest = largest
        self.restart(10.0)

    def restart(self, factor: float = 1.0) -> None:
        """Average anew, about the present steps times a factor: a large one from a first guess, one from a good one."""
        # Pyro's averaging is plain arithmetic and takes a tensor for all chains at once.
        self._averaging = DualAveraging(prox_center=(self.values * factor).log())

    def adapt(self, accept_prob: Tensor, *, last: bool) -> None:
        """Change the steps by the acceptance of one, ``shape``; the ``last`` time, to the average of what they were."""
        self._averaging.step(self.target - accept_prob)
        log_step, log_average = self._averaging.get_state()
        self.values = (log_average if last else log_step).clamp(max=50.0).exp().clamp(max=self.largest)
