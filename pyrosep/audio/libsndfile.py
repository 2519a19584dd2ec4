"""Decoding by libsndfile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyrosep.audio.parts import Section
from pyrosep.audio.streams import Chunk, check_end, check_stream
from pyrosep.errors import TruncatedAudioError

__all__ = ["CHUNK", "SoundFileStream", "open_soundfile"]

CHUNK = 65_536
"""Samples that are decoded at once."""


def open_soundfile(
    path: Path, source: Path | Section, stream: int, stack: contextlib.ExitStack
) -> SoundFileStream | None:
    """Open an audio stream, or give None where libsndfile can't, or does not know how long it is.

    Arguments:
        path: of the file, for errors.
        source: the file, or what of it is a file of its own.
        stream: which audio stream; libsndfile knows a single one.
        stack: what closes it.
    """
    import soundfile

    try:
        # As bytes: soundfile can't encode the lone surrogates of a name that is not UTF-8.
        opened = soundfile.SoundFile(os.fsencode(source) if isinstance(source, Path) else source)
    except soundfile.LibsndfileError:
        return None
    file = stack.enter_context(opened)
    # It announces a length near 2**63 where it finds none, and guesses that of MP3 inside of WAV.
    if file.frames >= 2**48 or file.subtype == "MPEG_LAYER_III":
        return None
    check_stream(path, stream, 1)
    return SoundFileStream(path, file)


class SoundFileStream:
    """An audio stream that libsndfile decodes; see `pyrosep.audio.streams.Opened`."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.sample_rate, self.channels, self.streams = int(file.samplerate), int(file.channels), 1
        self.frames: int | None = int(file.frames)
        #: Whether samples don't depend on how many are read at once. The last ones of Opus do.
        self.exact = file.subtype != "OPUS"

    def chunks(self, start: int, stop: int | None) -> Iterator[Chunk]:
        """Samples `start` to `stop` (None: the end) as arrays `(channel, time)`."""
        import soundfile

        frames = self.frames or 0
        position, end = start, frames if stop is None else min(stop, frames)
        try:
            # Seeking in Ogg is off by some samples near the end, and some encodings of WAV have none.
            if self.file.format == "OGG" or not self.file.seekable():
                for first in range(0, start, CHUNK):
                    self.file.read(min(CHUNK, start - first), dtype="float32")
            else:
                self.file.seek(start)
            while position < end:
                wanted = min(CHUNK, end - position)
                chunk = self.file.read(wanted, dtype="float32", always_2d=True).T
                position += chunk.shape[1]
                if chunk.shape[1]:
                    yield np.ascontiguousarray(chunk)
                if chunk.shape[1] < wanted:
                    break
        except soundfile.LibsndfileError as error:
            raise TruncatedAudioError(
                f"{self.path} can't be decoded beyond about {position / self.sample_rate:.3f} s of the "
                f"{frames / self.sample_rate:.3f} s announced: it is cut off or damaged; copy or download it again"
            ) from error
        check_end(self.path, position, end, self.sample_rate, 0)
