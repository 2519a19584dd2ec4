"""Which library decodes a file, and files that were joined of several.

Each library gives the same thing, an `Opened` stream whose `chunks(start, stop)` yields float32 arrays
`(channel, time)` of any length, decoding as it goes, so that memory does not grow with the file.

libsndfile, which is exact to the sample, comes first for the containers that it reads (WAV, AIFF, W64, CAF, AU, FLAC,
Ogg); PyAV decodes all others, Opus, and what libsndfile can't open or knows no length of. Where the length that
libsndfile finds is not what the file's own header comes to, PyAV gives a second opinion, and the one that agrees with
the header is taken.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyrosep.audio.containers import parts_of
from pyrosep.audio.headers import sniff
from pyrosep.audio.libav import AvStream
from pyrosep.audio.libsndfile import open_soundfile
from pyrosep.audio.parts import Part, Section
from pyrosep.audio.streams import Chunk, Opened
from pyrosep.errors import AudioError, SampleRateError

__all__ = ["opened"]

#: Kinds of files that libsndfile is asked for first.
_BY_SOUNDFILE = ("wav", "aiff", "w64", "caf", "au", "flac", "ogg")


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], stream: int = 0) -> Iterator[Opened]:
    """Open an audio stream of a file, after the checks that need no decoding.

    Raises:
        MissingFileError, EmptyAudioError, NotAudioError, TruncatedAudioError, SampleRateError: see
            `pyrosep.audio.read`.
        ConfigurationError: the file has no such stream.
        AudioError: files that were joined differ in channels.
    """
    path = Path(path)
    kind = sniff(path)
    parts = parts_of(path, kind)
    with contextlib.ExitStack() as stack:
        yield _Joined(path, kind, parts, stream) if len(parts) > 1 else _open(path, kind, parts[0], stream, stack)


def _open(path: Path, kind: str, part: Part, stream: int, stack: contextlib.ExitStack, joined: bool = False) -> Opened:
    source = Section(stack.enter_context(path.open("rb")), part) if joined else path
    first = open_soundfile(path, source, stream, stack) if kind in _BY_SOUNDFILE else None
    # A header that leaves the length open is read as one of no audio at all.
    if first is not None and part.open_ended and first.frames == 0:
        first = None
    agrees = first is not None and part.frames in (None, first.frames)
    if first is not None and agrees and first.exact:
        return first
    if isinstance(source, Section):
        source.seek(0)
    try:
        second = AvStream(path, source, stream, stack, first.frames if first is not None and agrees else None)
    except AudioError:
        if first is None:
            raise
        return first
    return second if first is None or agrees or second.frames == part.frames else first


class _Joined:
    """Files that were joined to one: a stream of which each goes on where the one before ends."""

    def __init__(self, path: Path, kind: str, parts: Sequence[Part], stream: int) -> None:
        self._path, self._kind, self._parts, self._stream = path, kind, parts, stream
        self._lengths: list[int | None] = []
        for index in range(len(parts)):
            with self._opened(index) as part:
                if not index:
                    self.sample_rate, self.channels, self.streams = part.sample_rate, part.channels, part.streams
                if part.sample_rate != self.sample_rate:
                    raise SampleRateError(
                        f"{path} changes its sample rate from {self.sample_rate} to {part.sample_rate} Hz on the way; "
                        "encode the file again at one rate"
                    )
                if part.channels != self.channels:
                    raise AudioError(
                        f"{path} changes from {self.channels} to {part.channels} channels on the way; encode it again"
                    )
                self._lengths.append(part.frames)
        known = [length for length in self._lengths if length is not None]
        self.frames = sum(known) if len(known) == len(parts) else None

    @contextlib.contextmanager
    def _opened(self, index: int) -> Iterator[Opened]:
        with contextlib.ExitStack() as stack:
            yield _open(self._path, self._kind, self._parts[index], self._stream, stack, joined=True)

    def chunks(self, start: int, stop: int | None) -> Iterator[Chunk]:
        begin = 0
        for index, length in enumerate(self._lengths):
            if stop is not None and begin >= stop:
                return
            if length is not None and begin + length <= start:
                begin += length
                continue
            with self._opened(index) as part:
                # Where a part does not say its length, it is only known when all of it was decoded.
                first = max(start - begin, 0) if length is not None else 0
                position = begin + first
                for chunk in part.chunks(first, None if stop is None else stop - begin):
                    skipped = min(max(start - position, 0), chunk.shape[1])
                    position += chunk.shape[1]
                    if skipped < chunk.shape[1]:
                        yield chunk[:, skipped:]
            begin = position if length is None else begin + length
