"""Priors that have a score and no density: where the score is enough, and where it is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError

if TYPE_CHECKING:
    from pyrosep.priors.base import SourcePrior

__all__ = ["check_density", "scores_suffice", "slope_of"]

_scores_suffice: ContextVar[bool] = ContextVar("scores_suffice", default=False)


@contextlib.contextmanager
def scores_suffice() -> Iterator[None]:
    """Within it, priors without a density may be asked for one: they give a zero whose gradient is the score.

    That is all that a Langevin step needs, or a step of an optimizer on an ELBO by samples (whose value then is none).
    What compares densities (HMC, NUTS, importance weights) would be wrong in silence.
    """
    token = _scores_suffice.set(True)
    try:
        yield
    finally:
        _scores_suffice.reset(token)


def check_density(prior: SourcePrior) -> None:
    """Raise ConfigurationError for a prior without a density, but within :func:`scores_suffice`."""
    if not prior.has_density and not _scores_suffice.get():
        raise ConfigurationError(
            f"this {type(prior).__name__} has a score, but no density, which HMC, NUTS, importance weights and bounds "
            "compare: sample by pyrosep.MALA or SGLD, or give it a density by its with_density(), if it has one. For "
            "the gradient of an ELBO alone, take the step within pyrosep.priors.scores_suffice()"
        )


def slope_of(log_prob: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The gradient of a log-density, ``(..., time)`` to ``(..., time)``, which can be differentiated again."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = value if graph and value.requires_grad else value.detach().requires_grad_()
        (found,) = torch.autograd.grad(log_prob(x).sum(), x, create_graph=graph)
    return found
