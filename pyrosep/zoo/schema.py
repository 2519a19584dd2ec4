"""What a ``config.json`` may hold, looked at before anything is built from it."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrosep.errors import CheckpointError, PyrosepError

__all__ = ["GUIDE", "PRIOR", "PRIOR_SET", "Kind", "check_fields", "check_weights", "within_weights"]

#: Most samples in a frame: over an hour at 16 kHz. And highest sample rate, in Hz.
_MOST_SAMPLES, _HIGHEST_RATE = 2**26, 10**7
#: Most channels of a mix, and periods of a toy wave.
_MOST_CHANNELS, _MOST_PERIODS = 1024, 2**16
#: Largest number that a network's size is told by.
_LARGEST = 2**16
#: Elements and tensors that building may make for each that is in the file: parameters are made, and then drawn.
_SPARE = 8
#: And beside them: of buffers, which no file holds.
_SPARE_ELEMENTS, _SPARE_TENSORS = 2**26, 4096


class Kind(NamedTuple):
    """What the value of a field may be.

    Attributes:
        words: of what is expected.
        holds: whether a value is that.
        required: whether there has to be one.
    """

    words: str
    holds: Callable[[Any], bool]
    required: bool = True

    def optional(self) -> Kind:
        """The same, or ``null``, or left out."""
        return Kind(f"{self.words}, or null", lambda value: value is None or self.holds(value), False)


def _is_number(value: Any) -> bool:
    # Integers of any length are valid JSON, and are no floats.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _count(most: int, least: int = 1) -> Kind:
    return Kind(f"a whole number from {least} to {most}", lambda value: _is_count(value) and least <= value <= most)


def _listed(words: str, holds: Callable[[Any], bool], most: int) -> Kind:
    return Kind(
        f"a list of up to {most} {words}",
        lambda value: isinstance(value, list) and len(value) <= most and all(map(holds, value)),
    )


def _is_size(value: Any) -> bool:
    """Numbers by name, or lists of them: what a network is made of."""
    numbers = [one for own in value.values() for one in (own if isinstance(own, list) else [own])]
    return all(isinstance(one, bool) or (_is_number(one) and abs(one) <= _LARGEST) for one in numbers)


def _is_gains(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= _MOST_CHANNELS and all(map(_is_gains, value))
    return isinstance(value, bool | str) or _is_number(value)


def _is_head(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _listed("", lambda one: _is_count(one) and one <= _MOST_SAMPLES, 8).holds(value.get("shape"))
        and math.prod(value["shape"]) <= _MOST_SAMPLES
        and isinstance(value.get("support"), str)
        and _listed("", _is_number, 2).holds(value.get("bounds"))
        and len(value["bounds"]) == 2
    )


_TEXT = Kind("text", lambda value: isinstance(value, str))
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_LEVEL = Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0)
_SIZE = Kind(f"numbers up to {_LARGEST} by name", lambda value: isinstance(value, dict) and _is_size(value))

#: Of a prior set.
PRIOR_SET: dict[str, Kind] = {
    "family": _TEXT,
    "sample_rate": _count(_HIGHEST_RATE).optional(),
    "frame": _count(_MOST_SAMPLES),
    "priors": Kind(
        "an object of numbers and text by source",
        lambda value: isinstance(value, dict) and all(isinstance(own, dict) for own in value.values()),
    ),
    "gains": Kind("'mean', 'level' or 'fit'", lambda value: value in ("mean", "level", "fit"), False),
    "summary": Kind("text", _TEXT.holds, False),
}
#: Of one source in it, whatever its family. What else is there tells where it came from.
PRIOR: dict[str, Kind] = {
    "sigma_min": _LEVEL,
    "sigma_max": Kind("a number of at least 0", _LEVEL.holds, False),
    "size": Kind(_SIZE.words, _SIZE.holds, False),
    "interfered": Kind(_SIZE.words, _SIZE.holds, False),
    "interference": Kind(_FLAG.words, _FLAG.holds, False),
    "wave": Kind("text", _TEXT.holds, False),
    "amplitude": _listed("numbers", _is_number, 2).optional(),
    "periods": _listed(
        f"whole numbers up to {_MOST_PERIODS}", lambda one: _is_count(one) and one <= _MOST_PERIODS, _MOST_PERIODS
    ).optional(),
}
#: Of a guide.
GUIDE: dict[str, Kind] = {
    "sources": Kind("a list of names", lambda value: isinstance(value, list)),
    "shared": _FLAG,
    "size": _SIZE,
    "project": Kind("true, false, a name or gains", _is_gains),
    "noise": _LEVEL,
    "channels": _count(_MOST_CHANNELS).optional(),
    "heads": Kind(
        "an object with the shape, the support and its two bounds of each head",
        lambda value: isinstance(value, dict) and all(map(_is_head, value.values())),
    ),
    "model": _TEXT.optional(),
    "frame": _count(_MOST_SAMPLES).optional(),
    "summary": Kind("text", _TEXT.holds, False),
}


def check_fields(where: str, config: Mapping[str, Any], fields: Mapping[str, Kind]) -> None:
    """Make sure that a part of a configuration has the fields that it needs, each of its kind.

    Raises:
        CheckpointError: it has not; names the field.
    """
    for name, kind in fields.items():
        if name not in config:
            if kind.required:
                raise CheckpointError(f"{where} lacks {name!r}: expected {kind.words}; save it again")
        elif not kind.holds(config[name]):
            raise CheckpointError(
                f"{where} can't be used: expected {kind.words} for {name!r}; got {_short(config[name])}"
            )


def check_weights(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Make sure that weights are numbers, and spectra are spectra.

    Raises:
        CheckpointError: a tensor of integers, with NaN or infinity, or a spectrum below 0; names it.
    """
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{where} can't be used: expected floats for {name!r}; got {value.dtype}")
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{where} can't be used: {name!r} has values that are NaN or infinite")
        if name.rpartition(".")[2] == "spectrum" and (value.ndim != 1 or not len(value) or bool((value < 0).any())):
            raise CheckpointError(
                f"{where} can't be used: expected power by frequency, numbers of at least 0, for {name!r}; got shape "
                f"{tuple(value.shape)}" + (f" down to {float(value.min()):.3g}" if value.numel() else "")
            )


class _Budget(TorchDispatchMode):
    """Refuses tensors, before there is memory for them, once there are more than a file could fill."""

    def __init__(self, where: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.where = where
        self.elements = _SPARE * sum(tensor.numel() for tensor in tensors.values()) + _SPARE_ELEMENTS
        self.tensors = _SPARE * len(tensors) + _SPARE_TENSORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(isinstance(value, Tensor) for value in args) or "new_" in func.__name__:
            self._spend(max(map(_wanted, args), default=0))
        return func(*args, **(kwargs or {}))

    def _spend(self, elements: int) -> None:
        self.elements, self.tensors = self.elements - elements, self.tensors - 1
        if min(self.elements, self.tensors) < 0:
            raise CheckpointError(
                f"{self.where} can't be used: it tells of a network far larger than the weights beside it; copy or "
                "train it again"
            )


def _wanted(value: Any) -> int:
    """How many elements an argument of an operation may ask for: a shape, or a length."""
    if isinstance(value, list | tuple) and all(isinstance(one, int) for one in value):
        return math.prod(map(abs, value))
    return value if isinstance(value, int) else 0


@contextlib.contextmanager
def within_weights(where: str, tensors: Mapping[str, Tensor], part: str = "") -> Iterator[None]:
    """What is built within it may be about as large as the weights that it is to be filled with.

    Arguments:
        where: the folder, for errors.
        tensors: the weights.
        part: of what is there, for errors.

    Raises:
        CheckpointError: it is far larger, or can't be built: the error says why.
    """
    try:
        with warnings.catch_warnings(), _Budget(where + part, tensors):
            warnings.simplefilter("ignore")  # of layers of nothing, which the weights will not fit
            yield
    except PyrosepError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{where} lacks {error}{part}; save or train it again") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{where} has a wrong value{part} ({_short(first)}); save or train it again") from error


def _short(value: Any) -> str:
    try:
        told = str(value)
    except ValueError:  # Python writes no integers of thousands of digits
        told = "a number too long to write"
    return told if len(told) < 200 else f"{told[:200]}..."
