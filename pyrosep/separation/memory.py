"""Memory that does not grow with a track: freed heap is given back, and summaries of a bounded size are kept."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable

import numpy as np

__all__ = ["MOST_BYTES", "KeptSummaries", "give_back"]

#: Most bytes of the summaries that are kept of a track, unless one draw of each chain takes more.
MOST_BYTES = 32 << 20


class KeptSummaries:
    """Summaries of the draws of a track, batch by batch.

    Where all draws would take more than ``most`` bytes, every second, third, ... draw of each chain is kept: as many
    as fit, and at least one.

    Arguments:
        windows: that the track has.
        most: bytes.
    """

    def __init__(self, windows: int, most: int = MOST_BYTES) -> None:
        self._windows, self._most = windows, most
        self._parts: list[dict[str, np.ndarray]] = []
        #: From one draw that is kept to the next.
        self.thinning = 1

    def add(self, summaries: dict[str, np.ndarray]) -> None:
        """Keep those of a batch of windows, ``(chain, draw, window, ...)`` by name; nothing where there are none."""
        if not summaries:
            return
        if not self._parts:
            first = next(iter(summaries.values()))
            whole = sum(value.nbytes for value in summaries.values()) / first.shape[2] * self._windows
            self.thinning = min(max(1, math.ceil(whole / self._most)), first.shape[1])
        self._parts.append({name: value[:, :: self.thinning].copy() for name, value in summaries.items()})

    def joined(self) -> dict[str, np.ndarray]:
        """All that is kept, ``(chain, draw, window, ...)`` by name."""
        if not self._parts:
            return {}
        return {name: np.concatenate([part[name] for part in self._parts], 2) for name in self._parts[0]}


def give_back() -> None:
    """Give the system the pages of the heap that nothing is in.

    Tensors are made anew at every step, aligned. glibc before 2.38 seldom puts an aligned block where one of the same
    size has been freed, and keeps what is freed below the end of the heap, so that a long run's heap grows although its
    tensors do not. Where the C library is another one, nothing is done.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``, or ``None`` where the C library has none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl, for one
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found
