"""What decoders have in common: an open audio stream, and the errors of one that ends too soon or is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyrosep.errors import ConfigurationError, TruncatedAudioError

__all__ = ["Chunk", "Opened", "check_end", "check_stream"]

Chunk = npt.NDArray[np.float32]


class Opened(Protocol):
    """An open audio stream.

    Attributes:
        sample_rate: in Hz.
        channels: number of channels.
        frames: length in samples, or None where the file does not promise one.
        streams: number of audio streams in the file.
    """

    sample_rate: int
    channels: int
    frames: int | None
    streams: int

    def chunks(self, start: int, stop: int | None) -> Iterator[Chunk]:
        """Samples `start` to `stop` (None: the end) as arrays `(channel, time)`."""
        ...


def check_stream(path: Path, stream: int, streams: int) -> None:
    """Raise ConfigurationError where a file has no stream of that number."""
    if not 0 <= stream < streams:
        counted = "1 audio stream" if streams == 1 else f"{streams} audio streams"
        raise ConfigurationError(f"{path} has {counted}, numbered from 0, but stream {stream} was asked for")


def check_end(path: Path, end: int, announced: int | None, rate: int, tolerance: int) -> None:
    """Raise TruncatedAudioError where decoding ended more than `tolerance` samples before what was announced."""
    if announced is not None and end < announced - tolerance:
        raise TruncatedAudioError(
            f"{path} announces {announced / rate:.3f} s of audio but ends after {end / rate:.3f} s: it is "
            "cut off; copy or download it again"
        )
