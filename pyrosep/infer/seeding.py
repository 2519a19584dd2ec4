"""Random numbers of a seed, and the caller's left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyro
import torch

__all__ = ["seeded"]


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Within it torch, NumPy and ``random`` draw from a seed; after it the caller's state is what it was.

    Without a seed the caller's state is drawn from.
    """
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
