"""Exact lengths of the tracks of MP4 files.

An edit list says which part of a track is played, often in milliseconds, so that FFmpeg's length may be off by most of
one. The track's own header counts samples.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

from pyrosep.audio.parts import Section

__all__ = ["mp4_samples"]

#: An index larger than this is not read, and lengths are taken as FFmpeg gives them.
_MOST_BYTES = 1 << 28


def mp4_samples(source: Path | Section, track: int, sample_rate: int, played: int) -> int:
    """Samples of a track, where its header and its edit list agree within the edit list's precision.

    Arguments:
        source: the file, or what of it is a file of its own.
        track: identifier of the track.
        sample_rate: of the track in Hz.
        played: the length in samples by the edit list alone, which is given back where the two don't agree: then the
            edit list leaves something out.
    """
    try:
        if isinstance(source, Section):
            place = source.tell()  # a decoder goes on from there
            index = _index(source)
            source.seek(place)
        else:
            with source.open("rb") as file:
                index = _index(file)
        exact, precision = _exact(index, track, sample_rate)
    except (struct.error, LookupError, ZeroDivisionError):
        return played
    return exact if exact > 0 and abs(exact - played) <= precision else played


def _index(file: io.RawIOBase | io.BufferedReader) -> bytes:
    """What is in the box `moov`."""
    position = 0
    while True:
        file.seek(position)
        length, name, header = _box((file.read(16) or b"").ljust(16, b"\0"))
        if length < header:
            raise LookupError
        if name == b"moov":
            if length > _MOST_BYTES:
                raise LookupError
            file.seek(position + header)
            return file.read(length - header) or b""
        position += length


def _exact(index: bytes, track: int, sample_rate: int) -> tuple[int, float]:
    """Samples from where the edit list of a track begins to the track's end, and the samples in a unit of the list."""
    movie = _time_scale(_first(index, b"mvhd"))[0]
    for data in (content for name, content in _boxes(index) if name == b"trak"):
        header = _first(data, b"tkhd")
        if struct.unpack(">I", header[20:24] if header[0] else header[12:16])[0] != track:
            continue
        scale, duration = _time_scale(_first(_first(data, b"mdia"), b"mdhd"))
        edits = _first(_first(data, b"edts"), b"elst")
        count, form, size = struct.unpack(">I", edits[4:8])[0], *((">Qq", 16) if edits[0] else (">Ii", 8))
        if count != 1 or scale != sample_rate:
            raise LookupError
        _, begin = struct.unpack(form, edits[8 : 8 + size])
        if begin < 0:
            raise LookupError
        return duration - begin, sample_rate / movie
    raise LookupError


def _time_scale(header: bytes) -> tuple[int, int]:
    """Units in a second, and the duration in them, of a box `mvhd` or `mdhd`."""
    scale, duration = struct.unpack(">IQ", header[20:32]) if header[0] else struct.unpack(">II", header[12:20])
    return scale, duration


def _first(data: bytes, wanted: bytes) -> bytes:
    for name, content in _boxes(data):
        if name == wanted and content:
            return content
    raise LookupError


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(data):
        length, name, header = _box(data[position : position + 16].ljust(16, b"\0"))
        if length < header:
            return
        yield name, data[position + header : position + length]
        position += length


def _box(head: bytes) -> tuple[int, bytes, int]:
    """Length of a box with its header, its name, and the length of its header."""
    length, name, long = struct.unpack(">I4sQ", head)
    return (long, name, 16) if length == 1 else (length, name, 8)
