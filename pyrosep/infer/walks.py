"""Random walks of a few numbers, whose steps each chain adapts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Walk"]


class Walk:
    r"""Normal steps :math:`\delta \sim N(0, \lambda C)`, with :math:`C` from a curvature and an adapted scale.

    The scale of each chain goes by :math:`\log\lambda \mathrel{+}= \gamma_t (\alpha - \alpha^*)`,
    :math:`\gamma_t = t^{-0.6}` (Andrieu & Thoms, 2008, algorithm 4), towards an acceptance :math:`\alpha^*` of 0.44 in
    one dimension and of 0.3 in more.

    Arguments:
        chains: number of chains.
        size: numbers that walk.
        device: of the steps.
        spread: standard deviation of the first steps.
    """

    def __init__(self, chains: int, size: int, device: torch.device, spread: float = 0.1) -> None:
        self.target = 0.44 if size == 1 else 0.3
        self.log_scale = torch.full((chains,), math.log(2.38**2 / size), dtype=torch.float64, device=device)
        self.root = spread * torch.eye(size, dtype=torch.float64, device=device).expand(chains, size, size)
        self._precision: Tensor | None = None
        self._steps = 0
        self._sum, self._recorded = 0.0, 0

    def propose(self) -> Tensor:
        """A step for each chain, ``(chains, size)``, in double precision."""
        white = torch.randn(*self.root.shape[:2], 1, dtype=self.root.dtype, device=self.root.device)
        return (0.5 * self.log_scale).exp().unsqueeze(-1) * (self.root @ white).squeeze(-1)

    @property
    def acceptance(self) -> float:
        """Mean acceptance probability of what was recorded after adaptation, or of the last one before."""
        return self._sum / max(1, self._recorded)

    def record(self, accept_prob: Tensor, *, adapting: bool) -> None:
        """Take note of the acceptance of what the walk has led to."""
        if adapting:
            self._sum, self._recorded = 0.0, 0
        self._sum += float(accept_prob.mean())
        self._recorded += 1

    def adapt(self, accept_prob: Tensor) -> None:
        """Change the scale by the acceptance of a step, ``(chains,)``."""
        self._steps += 1
        change = self._steps**-0.6 * (accept_prob.to(self.log_scale) - self.target)
        self.log_scale = self.log_scale + change

    def follow(self, precision: Tensor) -> None:
        """Take steps by the inverse of a curvature, the mean of this one and what it was: ``(chains, size, size)``."""
        finite = torch.isfinite(precision).all(-1).all(-1).reshape(-1, 1, 1)
        eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
        precision = torch.where(finite, precision, eye)
        self._precision = precision if self._precision is None else (self._precision + precision) / 2
        values, vectors = torch.linalg.eigh((self._precision + self._precision.mT) / 2)
        # Where the density curves the other way, steps of the same size are as good a guess as any.
        self.root = vectors * values.abs().clamp(min=1.0).rsqrt().unsqueeze(-2)
