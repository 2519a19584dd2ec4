"""What containers say of themselves: whether all of the audio is there, and where another file was joined on.

Decoders shorten a cut file without a word, and end where the first of several joined files ends. So the lengths that a
container announces are compared with the bytes that are there, and joined files are taken apart.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pyrosep.audio.chunked import au_parts, chunked_parts
from pyrosep.audio.headers import after_id3
from pyrosep.audio.parts import Part, cut_off
from pyrosep.errors import TruncatedAudioError

__all__ = ["parts_of"]


def parts_of(path: Path, kind: str) -> list[Part]:
    """The files that a file was joined of; one part, which is all of it, where it was not.

    Arguments:
        path: the file.
        kind: as :func:`pyrosep.audio.headers.sniff` gives it. Files of kind `"other"` are of one part.

    Raises:
        TruncatedAudioError: a container ends before what it announces, or has no index of its streams.
        SampleRateError: a container that must name a sample rate names none, or 0.
    """
    walker = _WALKERS.get(kind)
    size = path.stat().st_size
    if walker is None:
        return [Part(0, size)]
    with path.open("rb") as file:
        return list(walker(path, file, size))


# Ogg: pages


def _ogg(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    """A link of a chain begins where a page opens a stream after pages with the content of others."""
    start = position = 0
    content = False
    while position < size:
        file.seek(position)
        head = file.read(27)
        if head[:5] != b"OggS\0" or len(head) < 27:
            found = _find(file, b"OggS", position + 1)
            if found is None:
                break
            position = found
            continue
        lacing = file.read(head[26])
        end = position + 27 + head[26] + sum(lacing)
        if len(lacing) < head[26] or end > size:
            raise cut_off(path, end, size, "bytes")
        opens = bool(head[5] & 2)
        if opens and content:
            yield Part(start, position)
            start, content = position, False
        content = content or not opens
        position = end
    yield Part(start, size)


# FLAC: one stream without any boundaries but its beginning


def _flac(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    start, first = after_id3(file), 0
    while True:
        # Past the blocks of metadata, which may hold anything.
        position = start + 4
        while True:
            file.seek(position)
            head = file.read(4)
            if len(head) < 4:
                break
            position += 4 + int.from_bytes(head[1:], "big")
            if head[0] & 0x80:
                break
        following: int | None = position
        while following is not None:
            following = _find(file, b"fLaC", following + 1)
            if following is not None and _is_stream_info(file, following):
                break
        if following is None:
            yield Part(first, size)
            return
        yield Part(first, following)
        first = start = following


def _is_stream_info(file: BinaryIO, position: int) -> bool:
    file.seek(position + 4)
    fields = file.read(21)
    if len(fields) < 21 or fields[0] & 0x7F or fields[1:4] != b"\0\0\x22":
        return False
    least, most = struct.unpack(">HH", fields[4:8])
    return 16 <= least <= most and int.from_bytes(fields[14:17], "big") >> 4 > 0


def _find(file: BinaryIO, sign: bytes, start: int) -> int | None:
    """Where a sign is in a file, from a place on."""
    size = os.fstat(file.fileno()).st_size
    if start >= size:
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        found = held.find(sign, start)
    return None if found < 0 else found


# WavPack: blocks that say which samples they hold


def _wavpack(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    start = position = last = 0
    while position + 32 <= size:
        file.seek(position)
        head = file.read(32)
        if head[:4] != b"wvpk" or not 0x402 <= int.from_bytes(head[8:10], "little") <= 0x410:
            found = _find(file, b"wvpk", position + 1)  # behind tags
            if found is None:
                break
            position = found
            continue
        index = int.from_bytes(head[16:20], "little") | head[10] << 32
        end = position + 8 + int.from_bytes(head[4:8], "little")
        if end > size:
            raise cut_off(path, end, size, "bytes")
        if index < last:
            yield Part(start, position)
            start = position
        position, last = end, index
    yield Part(start, size)


# MP4: boxes


def _mp4(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    """Each box must end within the file, and one of them is the index."""
    start = position = 0
    names: set[bytes] = set()
    while position + 8 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        elif length == 0:  # this box lasts until the end of the file
            length = size - position
        if position + length > size:
            raise cut_off(path, position + length, size, "bytes")
        if length < 8:
            break  # not a box: leave the verdict to the decoder
        if name == b"ftyp" and b"moov" in names:
            yield Part(start, position)
            start, names = position, set()
        names.add(name)
        position += length
    if b"moov" not in names:
        raise TruncatedAudioError(
            f"{path} has no index of its streams (no 'moov' box), as when a download or recording is cut off; copy or "
            "download it again"
        )
    yield Part(start, size)


# Matroska and WebM: elements

_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675


def _matroska(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    """Each element must end within the file; those that are written to a pipe don't say where they end."""
    start = position = segment_end = 0
    while position < size:
        file.seek(position)
        head = file.read(12)
        name, used = _number(head, keep_marker=True)
        length, more = _number(head[used:])
        if not used or not more:
            if len(head) < 12 and head[0]:
                raise cut_off(path, position + 12, size, "bytes")
            break  # no element: leave the verdict to the decoder
        if start < segment_end <= position and name != _EBML:
            break  # tags behind a file
        unknown = length == 2 ** (7 * more) - 1
        end = position + used + more + length
        if not unknown and end > size:
            raise cut_off(path, end, size, "bytes")
        if name == _EBML and position > start:
            yield Part(start, position)
            start = position
        # What is in a segment or cluster is gone through like what is beside it.
        enter = name == _SEGMENT or (name == _CLUSTER and unknown)
        if name == _SEGMENT:
            segment_end = size if unknown else end
        if unknown and not enter:
            break
        position = position + used + more if enter else end
    yield Part(start, size)


def _number(head: bytes, keep_marker: bool = False) -> tuple[int, int]:
    """A number of variable length, and how many bytes it has; 0 bytes where there is none."""
    if not head or not head[0]:
        return 0, 0
    count = 9 - head[0].bit_length()
    if len(head) < count:
        return 0, 0
    value = int.from_bytes(head[:count], "big")
    return (value if keep_marker else value & ((1 << 7 * count) - 1)), count


# ASF: objects

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def _asf(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    start = position = 0
    while position + 24 <= size:
        file.seek(position)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name == _ASF_HEADER and position > start:
            yield Part(start, position)
            start = position
        if length < 24:
            break  # no object, or of unknown size
        if position + length > size:
            raise cut_off(path, position + length, size, "bytes")
        position += length
    yield Part(start, size)


_WALKERS: dict[str, Callable[[Path, BinaryIO, int], Iterator[Part]]] = {
    "wav": chunked_parts,
    "aiff": chunked_parts,
    "w64": chunked_parts,
    "caf": chunked_parts,
    "au": au_parts,
    "flac": _flac,
    "ogg": _ogg,
    "mp4": _mp4,
    "matroska": _matroska,
    "wavpack": _wavpack,
    "asf": _asf,
}
