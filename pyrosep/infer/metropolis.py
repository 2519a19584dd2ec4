"""Kernels whose steps are proposals that are accepted or rejected, and whose step sizes adapt to how often."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.adaptation import MIN_ADAPTATION, StepSizes
from pyrosep.infer.kernel import LangevinKernel
from pyrosep.infer.potential import Potential, Values

__all__ = ["MetropolisedKernel", "acceptance"]


def acceptance(log_ratio: Tensor, finite: Tensor) -> Tensor:
    """Probabilities of accepting proposals by the logarithms of their ratios; 0 where they are not ``finite``."""
    return torch.where(finite, log_ratio, -math.inf).exp().clamp(max=1.0)


class MetropolisedKernel(LangevinKernel):
    """What kernels with an acceptance step share: step sizes of each chain, and the step itself.

    A subclass sets these before the first step, and calls :meth:`accepted` in each.

    Attributes:
        initial_step_size: the first guess, where it is adapted.
        adapt_step_size: whether it is, in a warm-up of 20 steps or more, each chain's by itself.
        target_accept_prob: that it is adapted to.
        largest_step: no step is larger.
        first_factor: by which the first steps that are tried are larger than the guess.
    """

    initial_step_size: float
    adapt_step_size: bool
    target_accept_prob: float
    largest_step: float = math.inf
    first_factor: ClassVar[float] = 10.0

    def _set_sizes(self, chains: tuple[int, ...] = (), device: torch.device | None = None) -> None:
        if not 0 < self.target_accept_prob < 1:
            raise ConfigurationError(f"target_accept_prob must be in (0, 1); got {self.target_accept_prob!r}")
        self._sizes = StepSizes(
            self.initial_step_size, chains, target=self.target_accept_prob, largest=self.largest_step, device=device
        )

    def start(self, potential: Potential, warmup_steps: int, z: Values) -> None:
        chains = () if potential.num_chains is None else (potential.num_chains,)
        self._set_sizes(chains, next(iter(z.values())).device)
        super().start(potential, warmup_steps, z)

    def _refresh_preconditioner(self) -> None:
        super()._refresh_preconditioner()
        self._sizes.restart(1.0 if self.num_steps else self.first_factor)

    @property
    def step_size(self) -> float:
        return float(self._sizes.values.mean())

    @property
    def step_sizes(self) -> Tensor:
        return self._sizes.values

    def accepted(self, log_ratio: Tensor, fall: Tensor, finite: Tensor) -> Tensor:
        """Which chains accept their proposal, a mask ``(chains,)``; step sizes adapt to it.

        In the first third of warm-up every step that lowers the energy is accepted. On the way down from a poor start
        the way back is so unlikely that chains would stick, and there the ratio is a small difference of large numbers.
        These steps are no draws.

        Arguments:
            log_ratio: logarithm of the acceptance probability, if it is below 0.
            fall: of the energy, in nats.
            finite: whether the proposal and the ratio are; others are rejected.
        """
        self._record_divergences(finite)
        accept_prob = acceptance(log_ratio, finite)
        if self.num_steps < self.warmup_steps // 3:
            accept_prob = torch.where(finite & (fall > 0), 1.0, accept_prob)
        accepted = torch.rand_like(accept_prob) < accept_prob
        self._record_acceptance(accept_prob)
        if self.warming_up and self.adapt_step_size and self.warmup_steps >= MIN_ADAPTATION:
            last = self.num_steps + 1 in self._refresh_at | {self.warmup_steps}
            self._sizes.adapt(accept_prob, last=last)
        return accepted
