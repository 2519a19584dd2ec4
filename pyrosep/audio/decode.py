"""Decoders of one audio stream: WAV, FLAC and Ogg by soundfile; MP3, M4A, MP4 and the rest by PyAV.

Both give the same thing: an `Opened` file whose `chunks(start, stop)` yields float32 arrays `(channel, time)`
of any length, decoding as it goes, so that memory does not grow with the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyrosep.audio.headers import check_mp4, check_wav, mp3_samples, sniff
from pyrosep.errors import (
    AudioError,
    ConfigurationError,
    NotAudioError,
    SampleRateError,
    TruncatedAudioError,
)

__all__ = ["Opened", "opened"]

Chunk = npt.NDArray[np.float32]

CHUNK = 65_536
"""Samples that soundfile decodes at once."""

PREROLL = 16 * 1152
"""Samples decoded before a wanted start: they fill an MP3's bit reservoir and an AAC's overlap and state."""

MP3_HOLE = 3 * 1152
"""Samples that are silent instead of damage: players pass over header frames where MP3 files were joined."""


class Opened(Protocol):
    """An open audio stream."""

    sample_rate: int
    channels: int
    frames: int | None
    streams: int

    def chunks(self, start: int, stop: int | None) -> Iterator[Chunk]:
        """Samples `start` to `stop` (None: the end) as arrays `(channel, time)`."""
        ...


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], stream: int = 0) -> Iterator[Opened]:
    """Open an audio stream of a file, after the checks that need no decoding.

    Raises:
        MissingFileError, EmptyAudioError, NotAudioError, TruncatedAudioError, SampleRateError: see
            `pyrosep.audio.read`.
        ConfigurationError: the file has no such stream.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "wav":
        check_wav(path)
    elif kind == "mp4":
        check_mp4(path)
    with contextlib.ExitStack() as stack:
        decoder: Opened | None = None
        if kind in ("wav", "flac", "ogg"):
            decoder = _open_soundfile(path, stream, stack)
        # Codecs that libsndfile does not know inside WAV or Ogg are PyAV's.
        yield decoder or _Av(path, stream, stack)


def _open_soundfile(path: Path, stream: int, stack: contextlib.ExitStack) -> Opened | None:
    import soundfile

    try:
        # As bytes: soundfile can't encode the lone surrogates of a name that is not UTF-8.
        file = stack.enter_context(soundfile.SoundFile(os.fsencode(path)))
    except soundfile.LibsndfileError:
        return None
    _check_stream(path, stream, 1)
    return _SoundFile(path, file)


def _check_stream(path: Path, stream: int, streams: int) -> None:
    if not 0 <= stream < streams:
        counted = "1 audio stream" if streams == 1 else f"{streams} audio streams"
        raise ConfigurationError(f"{path} has {counted}, numbered from 0, but stream {stream} was asked for")


def _unreadable(path: Path) -> str:
    return f"{path} can't be read as audio; expected wav, flac, ogg, mp3, m4a or mp4"


def _check_end(path: Path, end: int, announced: int | None, rate: int, tolerance: int) -> None:
    if announced is not None and end < announced - tolerance:
        raise TruncatedAudioError(
            f"{path} announces {announced / rate:.3f} s of audio but ends after {end / rate:.3f} s: it is "
            "cut off; copy or download it again"
        )


class _SoundFile:
    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.sample_rate, self.channels, self.streams = int(file.samplerate), int(file.channels), 1
        # libsndfile announces a length near 2**63 where the header has none.
        self.frames = int(file.frames) if file.frames < 2**48 else None

    def chunks(self, start: int, stop: int | None) -> Iterator[Chunk]:
        import soundfile

        position = start
        end = stop if stop is not None else self.frames if self.frames is not None else 2**62
        if self.frames is not None:
            end = min(end, self.frames)
        try:
            if self.file.format == "OGG":  # its seeking is off by some samples near the end
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
            announced = "" if self.frames is None else f" of the {self.frames / self.sample_rate:.3f} s announced"
            raise TruncatedAudioError(
                f"{self.path} can't be decoded beyond about {position / self.sample_rate:.3f} s{announced}: "
                "it is cut off or damaged; copy or download it again"
            ) from error
        if self.frames is not None:
            _check_end(self.path, position, end, self.sample_rate, 0)


def _container(path: Path) -> Any:
    import av

    # Nothing but this file is opened, whatever a playlist inside it says.
    options = {"protocol_whitelist": "file"}
    try:
        return av.open(f"file:{path}", options=options)
    except UnicodeDecodeError:
        # PyAV before 19 refuses titles that are not UTF-8, unless it is told to replace what it can't decode. PyAV 19
        # reads them by itself, and no longer has the option.
        return av.open(f"file:{path}", options=options, metadata_errors="replace")


class _Av:
    def __init__(self, path: Path, stream: int, stack: contextlib.ExitStack) -> None:
        import av

        self.path = path
        try:
            self.container = stack.enter_context(_container(path))
        except (av.error.FFmpegError, ValueError) as error:
            raise NotAudioError(_unreadable(path)) from error
        audio = self.container.streams.audio
        if not audio:
            raise NotAudioError(f"{path} holds no audio stream; expected a file with sound")
        self.streams = len(audio)
        _check_stream(path, stream, self.streams)
        self.stream = audio[stream]
        self.sample_rate, self.channels = (
            int(self.stream.codec_context.sample_rate or 0),
            int(self.stream.codec_context.channels or 0),
        )
        if self.sample_rate <= 0:
            # Raw streams are told by their name alone: without a rate nothing in them has been understood.
            if not self.container.format.name.startswith("mov"):
                raise NotAudioError(_unreadable(path))
            raise SampleRateError(f"{path} names no sample rate; expected a positive one: encode the file again")
        self.mp3 = self.container.format.name == "mp3"
        self.frames = None
        if self.mp3:
            self.frames = mp3_samples(path)  # the container's duration is a guess from the bit rate without it
        elif self.stream.duration:
            self.frames = round(self.stream.duration * self.stream.time_base * self.sample_rate)

    def chunks(self, start: int, stop: int | None) -> Iterator[Chunk]:
        # MP4's last codec frame is padded: its announced length is the true one.
        limit = self.frames if not self.mp3 else None
        limit = stop if limit is None else limit if stop is None else min(limit, stop)
        end = 0
        for position, chunk in self._positioned(start):
            end = position + chunk.shape[1]
            first, last = max(start - position, 0), chunk.shape[1]
            if limit is not None:
                last = min(last, limit - position)
            if last > first:
                yield chunk[:, first:last]
            if limit is not None and end >= limit:
                return
        if end == 0 and start == 0:
            self._nothing()
        _check_end(self.path, end, self.frames, self.sample_rate, 3 * 1152)

    def _nothing(self) -> None:
        if self.frames:
            raise TruncatedAudioError(
                f"{self.path} announces {self.frames / self.sample_rate:.3f} s of audio but none can be "
                "decoded: it is cut off or damaged; copy or download it again"
            )

    def _positioned(self, start: int) -> Iterator[tuple[int, Chunk]]:
        """Decoded frames and the sample each begins at; the first ones well before `start`."""
        import av

        origin = self.stream.start_time or 0
        per_tick = self.stream.time_base * self.sample_rate
        early = start - PREROLL
        # Only MP4 has an index of exact positions; elsewhere packets are skipped undecoded.
        if early > 0 and self.container.format.name.startswith("mov"):
            self.container.seek(origin + int(early / per_tick), stream=self.stream)
        position: int | None = None if early > 0 else 0
        failed = False
        for packet in self._packets():
            if early > 0 and packet.pts is not None and (packet.pts - origin) * per_tick < early:
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                # Decoders reject tags at the end, and the first frames after a jump: only a hole is damage.
                failed = True
                continue
            for frame in frames:
                chunk = self._samples(frame)
                at = position or 0 if frame.pts is None else round((frame.pts - origin) * per_tick)
                if position is None or (failed and position < start):
                    position = at
                elif failed and self.mp3 and at - position <= MP3_HOLE:
                    if at > position:
                        yield position, np.zeros((self.channels, at - position), np.float32)
                        position = at
                elif failed and position > 0:
                    raise AudioError(
                        f"{self.path} is damaged: it can't be decoded at {position / self.sample_rate:.3f} "
                        "s; copy or download it again"
                    )
                failed = False
                yield position, chunk
                position += chunk.shape[1]

    def _packets(self) -> Iterator[Any]:
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                return  # an unreadable rest: the announced length tells whether it matters
            yield packet

    def _samples(self, frame: Any) -> Chunk:
        if frame.sample_rate != self.sample_rate:
            raise SampleRateError(
                f"{self.path} changes its sample rate from {self.sample_rate} to {frame.sample_rate} Hz on "
                "the way; encode the file again at one rate"
            )
        values = frame.to_ndarray()
        if not frame.format.is_planar:
            values = values.reshape(-1, frame.layout.nb_channels).T
        if values.shape[0] != self.channels:
            raise AudioError(
                f"{self.path} changes from {self.channels} to {values.shape[0]} channels on the way; encode it again"
            )
        if values.dtype.kind == "u":
            return np.ascontiguousarray((values.astype(np.float32) - 128) / 128)
        if values.dtype.kind == "i":
            return np.ascontiguousarray(values / float(2 ** (8 * values.itemsize - 1)), dtype=np.float32)
        return np.ascontiguousarray(values, dtype=np.float32)
