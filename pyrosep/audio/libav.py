"""Decoding by PyAV, which brings FFmpeg's libraries along."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyrosep.audio.headers import SUFFIXES, mp3_samples
from pyrosep.audio.mp4 import mp4_samples
from pyrosep.audio.parts import Section
from pyrosep.audio.streams import Chunk, check_end, check_stream
from pyrosep.errors import AudioError, NotAudioError, SampleRateError, TruncatedAudioError

__all__ = ["AvStream"]

PREROLL = 16 * 1152
"""Samples decoded before a wanted start: they fill an MP3's bit reservoir and an AAC's overlap and state."""

MP3_HOLE = 3 * 1152
"""Samples that are silent instead of damage: players pass over header frames where MP3 files were joined."""

#: The containers that are opened: those that hold audio themselves. Playlists, which name other files, are left out.
_CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,tak,truehd,tta,w64,wav,wv"
)
#: Those of plain or lossless audio that say how much of it there is. Others guess, from bit rates, pages or packets.
_INDEXED = ("aiff", "ape", "au", "caf", "flac", "tta", "w64", "wav", "wv")


def _container(source: Path | Section) -> Any:
    import av

    # Nothing but this file is opened, whatever it says of others.
    options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
    file = f"file:{source}" if isinstance(source, Path) else source
    try:
        return av.open(file, options=options)
    except UnicodeDecodeError:
        # PyAV before 19 refuses titles that are not UTF-8, unless it is told to replace what it can't decode. PyAV 19
        # reads them by itself, and no longer has the option.
        return av.open(file, options=options, metadata_errors="replace")


class AvStream:
    """An audio stream that PyAV decodes; see `pyrosep.audio.streams.Opened`.

    Arguments:
        path: of the file, for errors and headers.
        source: the file, or what of it is a file of its own.
        stream: which audio stream.
        stack: what closes it.
        frames: its length in samples, where it is known from elsewhere.

    Raises:
        NotAudioError, SampleRateError, ConfigurationError: see `pyrosep.audio.read`.
    """

    def __init__(
        self, path: Path, source: Path | Section, stream: int, stack: contextlib.ExitStack, frames: int | None = None
    ) -> None:
        import av

        self.path = path
        unreadable = f"{path} can't be read as audio; expected one of {', '.join(SUFFIXES)}"
        try:
            self.container = stack.enter_context(_container(source))
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise NotAudioError(unreadable) from error
        audio = self.container.streams.audio
        if not audio:
            raise NotAudioError(f"{path} holds no audio stream; expected a file with sound")
        self.streams = len(audio)
        check_stream(path, stream, self.streams)
        self.stream = audio[stream]
        codec = self.stream.codec_context
        if codec is None:
            raise NotAudioError(f"{path} has audio of an encoding that no decoder is known for; encode the file anew")
        self.sample_rate, self.channels = int(codec.sample_rate or 0), int(codec.channels or 0)
        self.format = self.container.format.name.partition(",")[0]
        if self.sample_rate <= 0 or self.channels <= 0:
            # Raw streams are told by their name alone: without a rate nothing in them has been understood.
            if self.format != "mov":
                raise NotAudioError(unreadable)
            raise SampleRateError(f"{path} names no sample rate; expected a positive one: encode the file again")
        self.lossless = codec.codec.lossless or codec.codec.name.startswith("pcm_")
        self.frames = self._promised(source) if frames is None else frames
        #: Whether the last packets could not be decoded, and whether what is behind them could not be read.
        self._failed = self._unreadable = False

    def _promised(self, source: Path | Section) -> int | None:
        """Length in samples, where the container has an index, or its header an exact count."""
        if self.format == "mp3":
            return mp3_samples(self.path)  # the container's duration is a guess from the bit rate without it
        if not self.stream.duration or not (self.format == "mov" or (self.lossless and self.format in _INDEXED)):
            return None
        frames = round(self.stream.duration * self.stream.time_base * self.sample_rate)
        if self.format == "mov":
            frames = mp4_samples(source, self.stream.id, self.sample_rate, frames)
        return frames

    def chunks(self, start: int, stop: int | None) -> Iterator[Chunk]:
        # The last codec frame is padded: the announced length is the true one.
        limit = self.frames if self.format != "mp3" else None
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
        # Without a promised length this alone tells. Decoders of lossy audio also fail at tags.
        if self.frames is None and (self._unreadable or (self._failed and self.lossless)):
            raise TruncatedAudioError(
                f"{self.path} can't be decoded beyond {end / self.sample_rate:.3f} s, though more follows: it is cut "
                "off or damaged; copy or download it again"
            )
        check_end(self.path, end, self.frames, self.sample_rate, 0 if self.lossless else 3 * 1152)

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
        # Times that are coarser than samples, such as Matroska's milliseconds, tell no position.
        early = start - PREROLL if per_tick <= 1 else 0
        # Only MP4 has an index of exact positions; elsewhere packets are skipped undecoded.
        if early > 0 and self.format == "mov":
            self.container.seek(origin + int(early / per_tick), stream=self.stream)
        position: int | None = None if early > 0 else 0
        self._failed = self._unreadable = False
        for packet in self._packets():
            if early > 0 and packet.pts is not None and (packet.pts - origin) * per_tick < early:
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                # Decoders reject tags at the end, and the first frames after a jump: only a hole is damage.
                self._failed = True
                continue
            for frame in frames:
                chunk = self._samples(frame)
                at = position or 0 if frame.pts is None else round((frame.pts - origin) * per_tick)
                if position is None or (self._failed and position < start):
                    position = at
                elif self._failed and self.format == "mp3" and at - position <= MP3_HOLE:
                    if at > position:
                        yield position, np.zeros((self.channels, at - position), np.float32)
                        position = at
                elif self._failed and position > 0:
                    raise AudioError(
                        f"{self.path} is damaged: it can't be decoded at {position / self.sample_rate:.3f} "
                        "s; copy or download it again"
                    )
                self._failed = False
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
                self._unreadable = True
                return
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
