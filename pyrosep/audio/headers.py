"""What an audio file's own bytes say before any decoder sees it: its kind and the length it announces.

Decoders shorten a cut file without a word (libsndfile does so for WAV) or fail with a message that names no
cause, so the announced lengths are compared with the bytes that are there here.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

from pyrosep.errors import (
    EmptyAudioError,
    MissingFileError,
    NotAudioError,
    SampleRateError,
    TruncatedAudioError,
)

__all__ = ["check_mp4", "check_wav", "mp3_samples", "sniff"]


def sniff(path: str | os.PathLike[str]) -> str:
    """Kind of a file by its first bytes: `"wav"`, `"flac"`, `"ogg"`, `"mp4"` or `"other"` (MP3 too).

    Raises:
        MissingFileError: there is no such file.
        NotAudioError: the path is a folder.
        EmptyAudioError: the file has no bytes.
    """
    path = Path(path)
    if path.is_dir():
        raise NotAudioError(f"expected an audio file, but {path} is a folder; name a file inside it")
    if not path.is_file():
        raise MissingFileError(f"expected an audio file, but there is no {path}; check the path")
    with path.open("rb") as file:
        head = file.read(12)
        if not head:
            raise EmptyAudioError(f"{path} has 0 bytes; expected audio: copy or download it again")
        if head[:4] in (b"RIFF", b"RF64") and head[8:12] in (b"WAVE", b""):
            return "wav"
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
            return "mp4"
        file.seek(_after_id3(file))
        magic = file.read(4)
    return {b"fLaC": "flac", b"OggS": "ogg"}.get(magic, "other")


def check_wav(path: Path) -> None:
    """Compare the announced size of a WAV file's data chunk with the bytes that are there.

    A size that recorders and pipes write for "unknown" (0xFFFFFFFF, or just below 2 GiB) is not held against
    a file.

    Raises:
        TruncatedAudioError: the file ends before its data chunk does, or inside its header.
        SampleRateError: the sample rate is 0, or no format chunk names one.
    """
    size = path.stat().st_size
    rate, align, long_data = None, 1, None
    with path.open("rb") as file:
        riff = file.read(12)
        position = 12
        while len(header := file.read(8)) == 8:
            name, length = header[:4], int(struct.unpack("<I", header[4:])[0])
            position += 8
            if name == b"ds64":
                long_data = struct.unpack("<Q", file.read(16)[8:16].ljust(8, b"\0"))[0]
            elif name == b"fmt ":
                fields = file.read(16)
                if len(fields) == 16:
                    rate, align = struct.unpack("<4xI4xH2x", fields)
                    if rate == 0:
                        raise SampleRateError(
                            f"{path} says its sample rate is 0 Hz; expected a positive rate: write the file again"
                        )
            elif name == b"data":
                if rate is None:
                    raise SampleRateError(
                        f"{path} names no sample rate (no format chunk before its audio); write the file again"
                    )
                unknown = length == 0xFFFFFFFF or 0x7FFFF000 <= length <= 0x7FFFFFFF
                if long_data is not None and length == 0xFFFFFFFF:
                    length, unknown = long_data, False
                there = size - position
                if not unknown and length - there >= max(align, 1):
                    raise TruncatedAudioError(
                        f"{path} announces {length} bytes of audio but holds {there}: it is cut off; "
                        "copy or download it again"
                    )
                return
            position += length + length % 2  # chunks are padded to an even size
            file.seek(position)
    announced = struct.unpack("<I", riff[4:8])[0] if len(riff) >= 8 else size
    if position > size or len(riff) < 12 or announced + 8 > size:
        raise TruncatedAudioError(f"{path} ends inside its header ({size} bytes); copy or download it again")


def check_mp4(path: Path) -> None:
    """Walk the top-level boxes of an MP4 (or M4A) file: each must end within the file, and one is the index.

    Raises:
        TruncatedAudioError: a box runs past the end of the file, or the index (``moov``) is missing.
    """
    size = path.stat().st_size
    position, names = 0, set()
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            length, name = struct.unpack(">I4s", file.read(8))
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            elif length == 0:  # this box lasts until the end of the file
                length = size - position
            if position + length > size:
                raise TruncatedAudioError(
                    f"{path} announces {position + length} bytes but holds {size}: it is cut off; "
                    "copy or download it again"
                )
            if length < 8:
                break  # not a box: leave the verdict to the decoder
            names.add(name)
            position += length
    if b"moov" not in names:
        raise TruncatedAudioError(
            f"{path} has no index of its streams (no 'moov' box), as when a download or recording is cut "
            "off; copy or download it again"
        )


def mp3_samples(path: Path) -> int | None:
    """Length in samples that an MP3 file's Xing, Info or VBRI header announces, or None where it has none.

    Encoder delay and padding are taken off where a LAME tag names them. A file that goes on for much longer
    than its header says (several files joined into one) has no announced length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(_after_id3(file))
        head = file.read(4096)
        rest = size - file.tell() + len(head)
    sync = re.search(rb"\xff[\xe2-\xff][^\xf0-\xff]", head)  # 11 sync bits, a layer, a legal bit rate
    if sync is None:
        return None
    head = head[sync.start() :]
    mpeg1 = head[1] & 0x18 == 0x18
    frame_samples = 1152 if mpeg1 else 576
    if head[36:40] == b"VBRI" and len(head) >= 54:
        octets, frames = struct.unpack(">II", head[46:54])
        delay = 0
    else:
        tag = next((i for i in (36, 21, 13) if head[i : i + 4] in (b"Xing", b"Info")), None)
        if tag is None or len(head) < tag + 160:
            return None
        flags = int.from_bytes(head[tag + 4 : tag + 8], "big")
        if not flags & 1:
            return None
        frames = int.from_bytes(head[tag + 8 : tag + 12], "big")
        octets = int.from_bytes(head[tag + 12 : tag + 16], "big") if flags & 2 else 0
        lame = tag + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        gap = int.from_bytes(head[lame + 21 : lame + 24], "big") if head[lame : lame + 3] in (b"LAM", b"Lav") else 0
        delay = (gap >> 12) + (gap & 0xFFF)
    joined = octets and rest > octets + max(octets // 10, 65536)
    samples = frames * frame_samples - delay
    return None if joined or samples <= 0 else samples


def _after_id3(file: BinaryIO) -> int:
    """Offset of the first byte after an ID3v2 tag (0 without one)."""
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    length = 0
    for byte in head[6:10]:  # seven bits a byte
        length = length << 7 | byte & 0x7F
    return 10 + length + (10 if head[5] & 0x10 else 0)
