"""Parts: the files that a file was joined of."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyrosep.errors import TruncatedAudioError

__all__ = ["Part", "Section", "cut_off"]


@dataclass(frozen=True, slots=True)
class Part:
    """One file among those that a file was joined of.

    Attributes:
        start: its first byte.
        stop: the byte after its last one.
        frames: length in samples that its header promises, or None where it promises none.
        open_ended: whether the header is known not to say how much audio there is.
    """

    start: int
    stop: int
    frames: int | None = None
    open_ended: bool = False


class Section(io.RawIOBase):
    """A part of an open file, as a file of its own.

    Arguments:
        file: the file, which others may read and seek in meanwhile.
        part: which part of it.
    """

    def __init__(self, file: BinaryIO, part: Part) -> None:
        super().__init__()
        self._file, self._part, self._position = file, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._part.stop - self._part.start}
        self._position = max(0, origin[whence] + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        place = self._part.start + self._position
        self._file.seek(place)
        held = memoryview(buffer).cast("B")
        data = self._file.read(max(0, min(len(held), self._part.stop - place)))
        held[: len(data)] = data
        self._position += len(data)
        return len(data)


def cut_off(path: Path, announced: int, there: int, what: str = "bytes of audio") -> TruncatedAudioError:
    """The error of a file that has fewer bytes than it announces."""
    return TruncatedAudioError(
        f"{path} announces {announced} {what} but holds {there}: it is cut off; copy or download it again"
    )
