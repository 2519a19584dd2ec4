"""Containers of chunks, each with a name and a size: WAV, AIFF, W64, CAF; and AU, whose header is all there is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pyrosep.audio.parts import Part, cut_off
from pyrosep.errors import SampleRateError, TruncatedAudioError

__all__ = ["au_parts", "chunked_parts"]


@dataclass(frozen=True, slots=True)
class _Container:
    """How a container of chunks is written.

    Attributes:
        order: of bytes.
        signs: what a file of this kind begins with.
        header: bytes before the first chunk.
        form: name of the chunk that describes the audio.
        data: name of the chunk that holds the audio.
        lead: bytes in that chunk before the audio.
        unknown: sizes of that chunk that stand for an unknown one.
        size_bytes: of a chunk's size, which stands after its name.
        counted: whether a chunk's size counts its own header.
        align: what the bytes of chunks are padded to a multiple of.
    """

    order: Literal["little", "big"]
    signs: tuple[bytes, ...]
    header: int
    form: bytes
    data: bytes
    lead: int
    unknown: frozenset[int]
    size_bytes: int = 4
    counted: bool = False
    align: int = 2

    @property
    def head(self) -> int:
        """Bytes of a chunk's header."""
        return len(self.data) + self.size_bytes

    def parsed(self, head: bytes) -> tuple[bytes, int]:
        """Name of a chunk, and the bytes in it."""
        length = int.from_bytes(head[len(self.data) :], self.order)
        return head[: len(self.data)], max(0, length - self.head) if self.counted else length

    def padding(self, length: int) -> int:
        """Bytes of padding after so many bytes in a chunk."""
        return -(length + self.head * self.counted) % self.align


#: What recorders and pipes write where they don't know the size: nothing, the most, or what is just below 2 GiB.
_UNKNOWN = frozenset((0, 0xFFFFFFFF, *range(0x7FFFF000, 0x80000000)))
_LONG_UNKNOWN = frozenset((0, 2**63 - 25, 2**64 - 25))
_RIFF = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_WAV = _Container("little", _RIFF, 12, b"fmt ", b"data", 0, _UNKNOWN)
_CONTAINERS = {
    b"RIFF": _WAV,
    b"RF64": _WAV,
    b"BW64": _WAV,
    b"RIFX": _Container("big", _RIFF, 12, b"fmt ", b"data", 0, _UNKNOWN),
    b"FORM": _Container("big", (b"FORM",), 12, b"COMM", b"SSND", 8, _UNKNOWN),
    b"riff": _Container("little", (b"riff",), 40, b"fmt " + _GUID, b"data" + _GUID, 0, _LONG_UNKNOWN, 8, True, 8),
    b"caff": _Container("big", (b"caff",), 8, b"desc", b"data", 4, frozenset((2**64 - 1,)), 8, False, 1),
}


@dataclass(frozen=True, slots=True)
class _Form:
    """What the description of the audio says.

    Attributes:
        block: bytes of a sample of all channels.
        plain: whether samples are plain numbers.
    """

    block: int
    plain: bool


def chunked_parts(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    """The files of chunks that a file of so many bytes was joined of; see `pyrosep.audio.containers.parts_of`."""
    start = 0
    while start < size:
        file.seek(start)
        part = _part(path, file, _CONTAINERS[file.read(4)], start, size)
        yield part
        start = part.stop


def _part(path: Path, file: BinaryIO, how: _Container, start: int, size: int) -> Part:
    """One file of chunks: it ends where the next one begins, or with the last byte."""
    file.seek(start)
    top = file.read(8)
    position = start + how.header
    form: _Form | None = None
    frames, found, long_size = None, False, 0xFFFFFFFF
    while True:
        if position >= size:
            break
        file.seek(position)
        head = file.read(how.head)
        if len(head) < how.head:
            break
        name, length = how.parsed(head)
        position += how.head
        if found:
            pass  # chunks behind the audio say nothing of it
        elif name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        elif name == how.form:
            form = _described(path, file.read(min(length, 64)), how)
        elif name == how.data:
            if form is None and how.form == b"fmt ":
                raise SampleRateError(
                    f"{path} names no sample rate (no format chunk before its audio); write the file again"
                )
            if length == 0xFFFFFFFF:
                length = long_size
            there, block = size - position, max(1, form.block if form else 1)
            known = _only_chunks_follow(file, how, position, size) if length == 0 else length <= there
            if length in how.unknown and not known:
                return Part(start, size, open_ended=True)
            if length - there >= block:
                raise cut_off(path, length, there)
            found = True
            if form is not None and form.plain:
                frames = (min(length, there) - how.lead) // block
        # Writers disagree on padding: the next file may begin without any, or behind a byte that is not due.
        for end in {position + length + extra for extra in (0, 1, how.padding(length)) if found}:
            if end < size and _read(file, end, 4) in how.signs:
                return Part(start, end, frames)
        position += length + how.padding(length)
    announced = int.from_bytes(top[4:8], how.order) + 8 if how.size_bytes == 4 else position
    if not found and (len(top) < 8 or max(position, announced) > size):
        raise TruncatedAudioError(f"{path} ends inside its header ({size} bytes); copy or download it again")
    return Part(start, size, frames)


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _only_chunks_follow(file: BinaryIO, how: _Container, position: int, size: int) -> bool:
    """Whether chunks go on from here to the end of the file: then there is no audio between."""
    while position < size:
        file.seek(position)
        head = file.read(how.head)
        name, length = how.parsed(head)
        position += how.head + length + how.padding(length)
        if len(head) < how.head or position > size + 1 or not all(32 <= sign < 127 for sign in name[:4]):
            return False
    return True


def _described(path: Path, fields: bytes, how: _Container) -> _Form | None:
    if how.form.startswith(b"fmt ") and len(fields) >= 16:
        order = "<" if how.order == "little" else ">"
        tag, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", fields[:16])
        if rate == 0:
            raise SampleRateError(
                f"{path} says its sample rate is 0 Hz; expected a positive rate: write the file again"
            )
        if tag == 0xFFFE and len(fields) >= 26:  # the extensible format names its encoding further on
            (tag,) = struct.unpack(f"{order}H", fields[24:26])
        return _Form(block, tag in (1, 3, 6, 7) and block == channels * -(-bits // 8))  # PCM, float, A-law, mu-law
    if how.form == b"COMM" and len(fields) >= 18:
        channels, _, bits = struct.unpack(">hIh", fields[:8])
        return _Form(channels * -(-bits // 8), len(fields) < 22 or fields[18:22] in (b"NONE", b"sowt", b"twos"))
    if how.form == b"desc" and len(fields) >= 32:
        block, per_packet = struct.unpack(">II", fields[16:24])
        return _Form(block, fields[8:12] == b"lpcm" and per_packet == 1)
    return None


def au_parts(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    """The AU files that a file of so many bytes was joined of; see `pyrosep.audio.containers.parts_of`."""
    start = 0
    while start < size:
        file.seek(start)
        head = file.read(24)
        if len(head) < 24:
            raise TruncatedAudioError(f"{path} ends inside its header ({size} bytes); copy or download it again")
        offset, length = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:12])
        if offset < len(head):  # no header: leave the verdict to the decoder
            yield Part(start, size)
            return
        if length == 0xFFFFFFFF:
            yield Part(start, size, open_ended=True)
            return
        stop = start + offset + length
        if stop > size:
            raise cut_off(path, length, size - start - offset)
        file.seek(stop)
        stop = stop if file.read(4) == head[:4] else size
        yield Part(start, stop)
        start = stop
