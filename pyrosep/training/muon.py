"""Muon: an optimizer whose step is the nearest orthogonal matrix to the gradient's running mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError
from pyrosep.nn.precision import multiplies_bfloat16

__all__ = ["Muon", "is_matrix", "orthogonalize"]

#: Of the quintic iteration that brings all singular values near one within five rounds (Jordan et al., 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
#: Fewer rows or columns, and a parameter is not treated as a matrix.
_LEAST = 8


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter, its first axis against all others, is a matrix of 8 rows and columns or more."""
    return parameter.ndim >= 2 and parameter.shape[0] >= _LEAST and parameter[0].numel() >= _LEAST


def orthogonalize(matrices: Tensor) -> Tensor:
    """The matrices ``(..., rows, columns)`` with their singular values brought to about one: between 0.6 and 1.3.

    By Newton-Schulz iterations in bfloat16, whose error is far below what that interval allows; in single precision on
    machines to which bfloat16 is foreign, and slow.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).float()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    x = x.bfloat16() if multiplies_bfloat16(x.device) else x
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    r"""Momentum, orthogonalized (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks").

    .. math:: m \leftarrow \beta m + (1 - \beta) g, \qquad
              w \leftarrow w - \eta \sqrt{\max(1, r / c)} \; \mathrm{orth}\big(\beta m + (1 - \beta) g\big)

    with :math:`r` rows and :math:`c` columns. :class:`torch.optim.Muon` takes matrices alone; here a convolution's
    weights are a matrix too, its first axis against all others, and equal shapes are worked on together.

    Arguments:
        params: of two axes and more, see :func:`is_matrix`.
        lr: :math:`\eta`.
        momentum: :math:`\beta`.
        weight_decay: decoupled, times ``lr``.

    Raises:
        ConfigurationError: a parameter that is not a matrix, or a rate or momentum out of range.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        if not (lr > 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise ConfigurationError(
                "Muon needs lr > 0, momentum from 0 to below 1 and weight_decay of at least 0; got "
                f"{lr}, {momentum}, {weight_decay}"
            )
        params = list(params)
        if bad := [tuple(one.shape) for one in params if not is_matrix(one)]:
            raise ConfigurationError(f"Muon is for matrices of {_LEAST} rows and columns or more; got shapes {bad[:5]}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
            for (rows, columns), parameters in shapes.items():
                step = group["lr"] * math.sqrt(max(1.0, rows / columns))
                means = [self._mean(parameter, group["momentum"]) for parameter in parameters]
                updates = orthogonalize(torch.stack([mean.reshape(rows, columns) for mean in means]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-step)
        return loss

    def _mean(self, parameter: nn.Parameter, beta: float) -> Tensor:
        """Nesterov's momentum, after this step's gradient."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - beta)
        return gradient.lerp(momentum, beta)
