"""State that is the whole process's: random numbers, Pyro's handlers, and whether gradients can be had."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError

__all__ = ["as_usual", "seeded", "with_gradients"]

#: Pyro's stack of handlers and torch's random state are the process's: who draws, draws alone.
_turn = threading.RLock()


def _renew() -> None:
    global _turn
    _turn = threading.RLock()


# A process that is forked while a thread draws would wait for a thread that it doesn't have.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Within it torch, NumPy and ``random`` draw from a seed; after it the caller's state is what it was.

    Without a seed the caller's state is drawn from. Other threads wait for their turn, as Pyro's handlers are one stack
    for the whole process; within ``torch.inference_mode()``, which no gradient can be had in, it is off for as long.
    """
    with _turn, with_gradients():
        if seed is None:
            yield
            return
        state = pyro.util.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)


def as_usual(values: Any) -> Any:
    """Values, in tuples, lists and mappings too, whose tensors autograd may keep: copies of those of inference mode."""
    if isinstance(values, Tensor):
        return values.clone() if values.is_inference() else values
    if type(values) in (tuple, list):
        return type(values)(map(as_usual, values))
    if type(values) is dict:
        return {name: as_usual(value) for name, value in values.items()}
    return values


@contextlib.contextmanager
def with_gradients() -> Iterator[None]:
    """Within it gradients can be had, and tensors kept for them, inside of ``torch.inference_mode()`` too.

    Raises:
        ConfigurationError: tensors that were made in inference mode, such as those of priors, have no gradient.
    """
    try:
        # Elsewhere it would turn gradients on that the caller has turned off.
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        if "Inference tensors" not in str(error):
            raise
        raise ConfigurationError(
            "expected tensors that gradients can be had by; got some that were made inside of torch.inference_mode(): "
            "make the priors outside of it, or load them by load_priors"
        ) from error
