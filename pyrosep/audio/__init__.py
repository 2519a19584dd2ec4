"""Audio files and sample rates: read, look into, go through block by block, write, resample.

Samples are float32 tensors `(channel, time)`, full scale 1.0; rates are in Hz, `start` and `duration` in seconds,
`block` and `hop` in samples. WAV, AIFF, W64, CAF, AU, FLAC and Ogg are read by soundfile; MP3, M4A, MP4, `.stem.mp4`,
AAC, WebM, Matroska, WavPack and WMA by PyAV, which brings its own libraries: no ffmpeg program is needed. Playlists are
not read. Files that were joined end to end are read as one, and so are the links of a chained Ogg file.

How a file that is cut off is noticed: WAV, AIFF, W64, CAF, AU and MP4 announce their size in bytes; the pages of Ogg,
blocks of WavPack, and elements of Matroska and WebM each announce theirs; FLAC and MP4 their length in samples; MP3
only where it has a Xing, Info or VBRI header (all that encode at a variable rate write one), within three codec frames.
An MP3 without such a header, a raw AAC file, and an Ogg or WebM file that was cut between two pages or elements read as
shorter files.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrosep.audio.decode import opened
from pyrosep.audio.headers import SUFFIXES, seems_audio, sniff
from pyrosep.audio.resampling import check_rate, differentiable_resample, resample
from pyrosep.audio.samples import Samples, channels_first
from pyrosep.audio.streams import Opened
from pyrosep.audio.writer import ClippingWarning, Writer, write
from pyrosep.errors import ConfigurationError, EmptyAudioError, NonFiniteAudioError

__all__ = [
    "SUFFIXES",
    "Audio",
    "AudioInfo",
    "ClippingWarning",
    "Samples",
    "Writer",
    "blocks",
    "channels_first",
    "check_rate",
    "count",
    "differentiable_resample",
    "digest",
    "info",
    "read",
    "resample",
    "seems_audio",
    "write",
]

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Audio:
    """Samples and their rate.

    Attributes:
        samples: float32 tensor `(channel, time)`, full scale 1.0.
        sample_rate: in Hz.
    """

    samples: Tensor
    sample_rate: int

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.samples.shape[-1] / self.sample_rate


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file says about one of its audio streams.

    Attributes:
        sample_rate: in Hz.
        channels: number of channels.
        frames: length in samples, or None where the file does not promise one (MP3 without a length header, raw AAC,
            WebM, Matroska); `count` decodes it then. For MP3 it is what the header says, which may differ from the
            decoded length by a few codec frames.
        streams: number of audio streams in the file.
    """

    sample_rate: int
    channels: int
    frames: int | None
    streams: int

    @property
    def duration(self) -> float | None:
        """Length in seconds, or None where the file does not say."""
        return None if self.frames is None else self.frames / self.sample_rate


def info(path: Path, stream: int = 0) -> AudioInfo:
    """Rate, channels, length and number of streams of an audio file, without decoding it.

    Raises:
        MissingFileError, NotAudioError, EmptyAudioError, TruncatedAudioError, SampleRateError,
            ConfigurationError: as `read`, as far as it shows without decoding.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.wav", torch.zeros(2, 100), 8000)
        ...     info(f"{folder}/a.wav")
        AudioInfo(sample_rate=8000, channels=2, frames=100, streams=1)
    """
    with opened(path, stream) as file:
        _check_not_empty(path, file)
        return AudioInfo(file.sample_rate, file.channels, file.frames, file.streams)


def count(path: Path, stream: int = 0) -> int:
    """Length of an audio file in samples: what it promises, or else what there is when all of it is decoded.

    Raises:
        ConfigurationError, MissingFileError, NotAudioError, EmptyAudioError, TruncatedAudioError, NonFiniteAudioError,
            SampleRateError, AudioError: as `read`; those that need decoding where no length is promised.
    """
    with opened(path, stream) as file:
        _check_not_empty(path, file)
        frames = file.frames
    return sum(block.shape[-1] for block in blocks(path, 65_536, stream=stream)) if frames is None else frames


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal: by it a file is known again, wherever it lies.

    Raises:
        MissingFileError, NotAudioError, EmptyAudioError: as `read`, as far as it shows in the file's first bytes.
    """
    sniff(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(
    path: Path,
    *,
    sample_rate: int | None = None,
    mono: bool = False,
    start: float = 0.0,
    duration: float | None = None,
    stream: int = 0,
) -> Audio:
    """Read an audio file, or a part of it.

    A part begins and ends at the very samples at which it would be cut from the whole. (AAC has bands that
    its encoders may mark "noise": the decoder fills those with random numbers, which differ between a part
    and the whole.) Parts are resampled by themselves: their edges see silence beyond.

    Arguments:
        path: the file.
        sample_rate: rate in Hz to resample to; None keeps the file's.
        mono: mean over channels, giving `(1, time)`.
        start: where to begin, in seconds.
        duration: how much to read, in seconds; None (or more than there is) reads to the end.
        stream: which audio stream, from 0. A `.stem.mp4` has mix, drums, bass, other, vocals.

    Raises:
        MissingFileError: there is no such file.
        NotAudioError: a folder, or a file without audio that can be decoded.
        EmptyAudioError: no bytes, or no samples.
        TruncatedAudioError: the file ends before the audio it announces (see the top of this module).
        NonFiniteAudioError: samples are NaN or infinite.
        SampleRateError: the file names no rate, or `sample_rate` is no positive integer.
        ConfigurationError: no such stream; `start` is negative or past the end; `duration` is not positive.
        AudioError: the audio is damaged on the way.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.wav", torch.arange(8000.0).div(8000).expand(2, -1), 8000)
        ...     part = read(f"{folder}/a.wav", start=0.5, duration=0.25, mono=True)
        >>> part.samples.shape, part.sample_rate, float(part.samples[0, 0])
        (torch.Size([1, 2000]), 8000, 0.5)
    """
    if sample_rate is not None:
        check_rate(sample_rate)
    if not (math.isfinite(start) and start >= 0):
        raise ConfigurationError(f"expected a start of 0 s or later, got {start}")
    if duration is not None and not duration > 0:
        raise ConfigurationError(f"expected a duration above 0 s, got {duration}; leave it out to read to the end")
    with opened(path, stream) as file:
        _check_not_empty(path, file)
        first = round(start * file.sample_rate)
        last = None if duration in (None, math.inf) else first + max(1, round(duration * file.sample_rate))
        _check_start(path, file, first)
        chunks = list(file.chunks(first, last))
        if not chunks:
            _no_samples(path, file, first)
        rate = file.sample_rate
    samples = np.concatenate(chunks, -1)
    _check_finite(path, samples, first, rate)
    tensor = torch.from_numpy(samples)
    if mono:
        tensor = tensor.mean(-2, keepdim=True)
    if sample_rate is not None:
        tensor, rate = resample(tensor, rate, sample_rate), sample_rate
    return Audio(tensor, rate)


def blocks(path: Path, block: int, *, hop: int | None = None, stream: int = 0) -> Iterator[Tensor]:
    """Go through a file in blocks, decoding on the way: memory does not grow with the file.

    Arguments:
        path: the file.
        block: length of a block in samples.
        hop: samples from the start of one block to that of the next, at most `block` (the default: no
            overlap).
        stream: which audio stream, from 0.

    Yields:
        float32 tensors `(channel, time)` of `block` samples each; the one that reaches the end of the file is
        the last, and may be shorter.

    Raises:
        ConfigurationError: `block` or `hop` out of range, or no such stream.
        MissingFileError, NotAudioError, EmptyAudioError, TruncatedAudioError, NonFiniteAudioError,
        SampleRateError, AudioError: as `read`; those that need decoding when the fault is reached.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.wav", torch.zeros(1, 10), 8000)
        ...     [part.shape[-1] for part in blocks(f"{folder}/a.wav", 4)]
        ...     [part.shape[-1] for part in blocks(f"{folder}/a.wav", 4, hop=3)]
        [4, 4, 2]
        [4, 4, 4]
    """
    hop = block if hop is None else hop
    if block < 1:
        raise ConfigurationError(f"expected a block of at least 1 sample, got {block}")
    if not 1 <= hop <= block:
        raise ConfigurationError(f"expected a hop from 1 to the block's {block} samples, got {hop}")
    return _blocks(path, block, hop, stream)


def _blocks(path: Path, block: int, hop: int, stream: int) -> Iterator[Tensor]:
    with opened(path, stream) as file:
        _check_not_empty(path, file)
        held = np.zeros((file.channels, 0), np.float32)
        seen = 0
        overlap = 0  # leading samples of `held` that an earlier block has given already
        for chunk in file.chunks(0, None):
            _check_finite(path, chunk, seen, file.sample_rate)
            seen += chunk.shape[1]
            held = np.concatenate([held, chunk], -1)
            begin = 0
            while begin + block <= held.shape[1]:
                yield torch.from_numpy(held[:, begin : begin + block].copy())
                begin += hop
                overlap = block - hop
            held = held[:, begin:]
        if not seen:
            _no_samples(path, file, 0)
        if held.shape[1] > overlap:
            yield torch.from_numpy(held.copy())


def _check_not_empty(path: Path, file: Opened) -> None:
    if file.frames == 0:
        raise EmptyAudioError(f"{path} has a header but not a single sample; record or export it again")


def _check_start(path: Path, file: Opened, first: int) -> None:
    if file.frames is not None and first >= file.frames:
        raise ConfigurationError(
            f"{path} lasts {file.frames / file.sample_rate:.3f} s, but reading was to start at "
            f"{first / file.sample_rate:.3f} s; start earlier"
        )


def _no_samples(path: Path, file: Opened, first: int) -> None:
    if first:
        raise ConfigurationError(
            f"{path} ends before {first / file.sample_rate:.3f} s, where reading was to start; start earlier"
        )
    raise EmptyAudioError(f"{path} has a header but not a single sample; record or export it again")


def _check_finite(path: Path, samples: np.ndarray, first: int, rate: int) -> None:
    finite = np.isfinite(samples)
    if finite.all():
        return
    bad = int((~finite).sum())
    where = first + int(np.flatnonzero(~finite.all(0))[0])
    raise NonFiniteAudioError(
        f"{path} has {bad} samples that are NaN or infinite, the first at {where / rate:.6f} s; export it again"
    )
