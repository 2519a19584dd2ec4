"""Writing WAV and FLAC files block by block, never leaving a half-written file under the final name."""

from __future__ import annotations

import functools
import itertools
import os
import re
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from pyrosep.audio.resampling import check_rate
from pyrosep.audio.samples import Samples, channels_first, floating
from pyrosep.claims import claimed, remove_left
from pyrosep.errors import (
    ConfigurationError,
    EmptyAudioError,
    MissingFileError,
    NonFiniteAudioError,
    ShapeError,
)
from pyrosep.naming import shortened

__all__ = ["ClippingWarning", "Writer", "write"]

SUBTYPES = {"pcm16": "PCM_16", "pcm24": "PCM_24", "float32": "FLOAT"}
BYTES = {"pcm16": 2, "pcm24": 3, "float32": 4}
#: Encodings of each format, the default first.
ENCODINGS = {".wav": ("float32", "pcm24", "pcm16"), ".flac": ("pcm24", "pcm16")}

WAV_BYTES = 2**32 - 4096
"""Most bytes of audio in a WAV file: its sizes have 32 bits, and headers need room."""


_NUMBERS = itertools.count()
"""Tells the files apart that one process writes at once."""

_UNFINISHED = re.compile(r"\..*\.\d+-\d+\.unfinished\.(wav|flac)", re.IGNORECASE | re.DOTALL)
"""What files are called while they are written."""


class ClippingWarning(UserWarning):
    """Samples out of [-1, 1] were clipped on writing."""


class Writer:
    """Write a WAV or FLAC file block by block; a context manager.

    The file is written beside its final name and renamed when the block ends well; an error removes the
    partial file and leaves what was there before. Partial files of processes that were killed are removed by the next
    one that writes into their folder. float32 samples come back from WAV bit for bit, and samples
    read from 16 or 24-bit files come back from the same encoding bit for bit.

    Arguments:
        path: the file, ending in `.wav` or `.flac`; its folder must be there.
        sample_rate: in Hz.
        channels: number of channels.
        encoding: `"float32"` (WAV only), `"pcm24"` or `"pcm16"`; None for the first of these that the format has. The
            integers hold [-1, 1]: samples outside are clipped, and one `ClippingWarning` at the end counts them.

    Raises:
        ConfigurationError: another ending, an encoding that the format lacks, no channels, or a path that is
            a folder.
        SampleRateError: the rate is no positive integer.
        MissingFileError: the folder is not there.
        ShapeError: a block is not `(channels, time)`.
        NonFiniteAudioError: a block has NaN or infinite samples.
        EmptyAudioError: not a single sample was written.
        OSError: the disk is full, the folder is read-only, or a WAV file would pass 4 GiB.

    Example:
        >>> import tempfile, torch
        >>> from pyrosep import audio
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with audio.Writer(f"{folder}/a.flac", 8000, channels=2, encoding="pcm16") as writer:
        ...         for _ in range(3):
        ...             writer.write(torch.zeros(2, 100))
        ...     audio.read(f"{folder}/a.flac").samples.shape
        torch.Size([2, 300])
    """

    def __init__(
        self, path: str | os.PathLike[str], sample_rate: int, channels: int, encoding: str | None = None
    ) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in ENCODINGS:
            raise ConfigurationError(f"expected a file ending in .wav or .flac, got {self.path.name!r}")
        encoding = ENCODINGS[suffix][0] if encoding is None else encoding
        self.sample_rate, self.channels, self.encoding = check_rate(sample_rate), channels, encoding
        self.frames = 0
        self.clipped = 0
        if encoding not in ENCODINGS[suffix]:
            choices = ", ".join(ENCODINGS[suffix])
            raise ConfigurationError(
                f"{suffix} files can be encoded as {choices}, not {encoding!r}; choose one of these"
            )
        if channels < 1:
            raise ConfigurationError(f"expected at least 1 channel, got {channels}")
        if self.path.is_dir():
            raise ConfigurationError(f"{self.path} is a folder; name a file to write")
        if not self.path.parent.is_dir():
            raise MissingFileError(f"there is no folder {self.path.parent} to write into; make it first")
        self._partial: Path
        self._held: IO[bytes]
        self._file: Any = None

    def __enter__(self) -> Self:
        import soundfile

        _tidy(self.path.parent.resolve())
        self._partial, self._held = self._claimed()
        try:
            self._file = soundfile.SoundFile(
                self._held.fileno(),
                "w",
                samplerate=self.sample_rate,
                channels=self.channels,
                subtype=SUBTYPES[self.encoding],
                format=self.path.suffix[1:].upper(),
                closefd=False,
            )
        except BaseException as error:
            self._partial.unlink(missing_ok=True)
            self._held.close()
            if not isinstance(error, soundfile.LibsndfileError):
                raise
            raise ConfigurationError(
                f"can't write {self.channels} channels at {self.sample_rate} Hz as {self.encoding} to "
                f"{self.path} ({error}); choose others"
            ) from error
        return self

    def _claimed(self) -> tuple[Path, IO[bytes]]:
        """A new file beside the final one, which this process holds."""
        while True:
            number = f"{os.getpid()}-{next(_NUMBERS)}"
            path = self.path.with_name(f".{shortened(self.path.stem, 200)}.{number}.unfinished{self.path.suffix}")
            try:
                held = claimed(path)
            except FileExistsError:  # of a process that had the same number and was killed
                continue
            if held is not None:
                return path, held

    def write(self, samples: Samples) -> None:
        """Append a block `(channels, time)`, a tensor or an array; see the class for what it raises.

        Integers of 8, 16 and 32 bits count from their own full scale.
        """
        import soundfile

        if self._file is None:
            raise ConfigurationError("this Writer is not open; write inside its `with` block")
        if samples.ndim != 2 or samples.shape[0] != self.channels:
            raise ShapeError(f"expected a block ({self.channels}, time), got {tuple(samples.shape)}")
        values = floating(samples).detach().to("cpu").numpy()
        finite = np.isfinite(values)
        if not finite.all():
            where = (self.frames + int(np.flatnonzero(~finite.all(0))[0])) / self.sample_rate
            raise NonFiniteAudioError(
                f"{int((~finite).sum())} samples to be written to {self.path} are NaN or infinite, the "
                f"first at {where:.6f} s; nothing was written"
            )
        size = (self.frames + values.shape[1]) * self.channels * BYTES[self.encoding]
        if self.path.suffix.lower() == ".wav" and size > WAV_BYTES:
            raise OSError(f"{self.path} would pass the 4 GiB that a WAV file can hold; write FLAC, or shorter files")
        try:
            self._file.write(np.ascontiguousarray(self._encoded(values).T))
        except soundfile.LibsndfileError as error:
            raise OSError(f"can't write to {self._partial} ({error}); is the disk full?") from error
        self.frames += values.shape[1]

    def _encoded(self, values: np.ndarray) -> np.ndarray:
        if self.encoding == "float32":
            return values.astype(np.float32)
        self.clipped += int((np.abs(values) > 1).sum())
        # libsndfile scales by 2**15 - 1 on writing and 2**15 on reading; this way what was read is written
        # unchanged.
        full = 2 ** (8 * BYTES[self.encoding] - 1)
        integers = np.clip(np.rint(values.astype(np.float64) * full), -full, full - 1)
        if self.encoding == "pcm16":
            return integers.astype(np.int16)
        return integers.astype(np.int32) << 8

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                if self.frames == 0:
                    raise EmptyAudioError(f"not a single sample was written to {self.path}; nothing was kept")
                if self.encoding == "float32":
                    _stop_clock(self._partial)
                self._partial.replace(self.path)
        finally:
            self._file = None
            self._partial.unlink(missing_ok=True)
            self._held.close()
        if kind is None and self.clipped:
            warnings.warn(
                f"{self.clipped} samples out of [-1, 1] were clipped in {self.path}; lower the level, or write float32",
                ClippingWarning,
                stacklevel=2,
            )


@functools.lru_cache(maxsize=256)
def _tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder, the first time that this one writes there."""
    remove_left(folder, lambda name: _UNFINISHED.fullmatch(name) is not None)


def _stop_clock(path: Path) -> None:
    """Take the time of writing out of a float WAV file, so that files of the same samples are the same.

    libsndfile puts it into the chunk PEAK, behind four bytes of version.
    """
    with path.open("r+b") as file:
        position = file.seek(12)
        while len(head := file.read(8)) == 8 and head[:4] != b"data":
            if head[:4] == b"PEAK":
                file.seek(position + 12)
                file.write(bytes(4))
                return
            length = int.from_bytes(head[4:], "little")
            position = file.seek(position + 8 + length + length % 2)


def write(path: str | os.PathLike[str], samples: Samples, sample_rate: int, encoding: str | None = None) -> None:
    """Write samples `(channel, time)`, a tensor or an array, to a WAV or FLAC file at once.

    Encodings and errors are `Writer`'s; samples that seem to be `(time, channel)` raise ShapeError.

    Example:
        >>> import tempfile, torch
        >>> from pyrosep import audio
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     audio.write(f"{folder}/a.wav", torch.tensor([[0.25, -0.5]]), 8000)
        ...     audio.read(f"{folder}/a.wav").samples
        tensor([[ 0.2500, -0.5000]])
    """
    found = channels_first(samples, "samples")
    with Writer(path, sample_rate, found.shape[0], encoding) as writer:
        writer.write(found)
