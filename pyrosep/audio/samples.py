"""Samples as people have them: tensors and arrays, of floating-point numbers or of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, ShapeError

__all__ = ["Samples", "channels_first", "floating"]

Samples = Tensor | npt.NDArray[Any]
"""What is taken for samples."""

#: Zero and full scale of integers.
_INTEGERS = {torch.uint8: (128, 2**7), torch.int8: (0, 2**7), torch.int16: (0, 2**15), torch.int32: (0, 2**31)}

_MOST_CHANNELS = 32
"""More channels than this, and more than there are samples, are taken for exchanged axes."""


def floating(samples: Samples) -> Tensor:
    """Samples as a tensor of floating-point numbers, full scale 1.0.

    Arguments:
        samples: tensor or NumPy array of any shape. Integers of 8, 16 and 32 bits count from their own full scale,
            those of 8 bits without a sign from 128; half precision becomes float32.

    Raises:
        ConfigurationError: samples of another type.

    Example:
        >>> floating(np.array([0, -(2**14)], dtype=np.int16))
        tensor([ 0.0000, -0.5000])
    """
    if not isinstance(samples, Tensor):
        array = np.asarray(samples)
        try:
            # A copy of what torch can't hold: other orders of bytes, steps backwards, arrays that can't be written to.
            samples = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise _of_another_type(array.dtype) from None
    if samples.dtype in _INTEGERS:
        zero, full = _INTEGERS[samples.dtype]
        exact = torch.float64 if samples.dtype == torch.int32 else torch.float32
        return (samples.to(exact) - zero) / full
    if not samples.is_floating_point():
        raise _of_another_type(samples.dtype)
    return samples.float() if samples.element_size() < 4 else samples


def channels_first(samples: Samples, what: str) -> Tensor:
    """Samples `(channel, time)` as `floating` gives them.

    Arguments:
        samples: as they were given.
        what: they are, for errors: "a mix".

    Raises:
        ShapeError: they are of another shape, or seem to be `(time, channel)`.
        ConfigurationError: samples of another type.
    """
    found = floating(samples)
    shape = tuple(found.shape)
    if found.ndim == 2 and found.shape[0] > max(_MOST_CHANNELS, found.shape[1]):
        raise ShapeError(
            f"expected {what} (channel, time); got shape {shape}, which seems to be (time, channel), as soundfile "
            "gives samples: exchange the axes"
        )
    if found.ndim != 2:
        raise ShapeError(f"expected {what} (channel, time); got shape {shape}")
    return found


def _of_another_type(dtype: object) -> ConfigurationError:
    return ConfigurationError(
        f"expected samples as floating-point numbers, or as integers of 8, 16 or 32 bits; got {dtype}: convert them"
    )
