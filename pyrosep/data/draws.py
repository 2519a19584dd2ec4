"""Uniform random numbers that depend on a seed and a key alone: the same on every machine, for good.

numpy promises that `SeedSequence` and the raw bits of `PCG64` never change; it does not promise it of
`Generator`.
"""

from __future__ import annotations

import numpy as np

from pyrosep.errors import ConfigurationError

__all__ = ["check_seed", "uniforms"]


def uniforms(seed: int, key: tuple[int, ...], count: int) -> list[float]:
    """Independent uniform numbers in [0, 1), 53 bits each.

    Arguments:
        seed: 0 to 2**64 - 1.
        key: what the numbers are for, as integers below 2**32; other keys give independent numbers.
        count: how many.

    Example:
        >>> uniforms(0, (1, 2), 2) == uniforms(0, (1, 2), 3)[:2]
        True
    """
    # `spawn_key` takes one word for each integer, so that no two keys seed the same stream.
    raw = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)).random_raw(count)
    return [(int(bits) >> 11) * 2.0**-53 for bits in raw]


def check_seed(seed: int, size: int) -> None:
    """Raise ConfigurationError unless `seed` and the number of items `size` are in range."""
    if not 0 <= size <= 2**32:
        raise ConfigurationError(f"expected a size from 0 to 2**32 items, got {size}")
    if not 0 <= seed < 2**64:
        raise ConfigurationError(f"expected a seed from 0 to 2**64 - 1, got {seed}")
