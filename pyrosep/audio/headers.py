"""What an audio file's first bytes say before any decoder sees it: its kind, and the length of an MP3."""

from __future__ import annotations

import mimetypes
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

from pyrosep.errors import EmptyAudioError, MissingFileError, NotAudioError, PyrosepError

__all__ = ["SUFFIXES", "after_id3", "mp3_samples", "seems_audio", "sniff"]

SUFFIXES = (
    ".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4", ".opus", ".aiff", ".aif", ".aifc", ".aac", ".webm", ".mkv", ".mka",
    ".mov", ".caf", ".au", ".wv", ".w64", ".rf64", ".oga", ".m4b", ".mp2", ".wma",
)  # fmt: skip
"""Suffixes, in lower case, of the files that are taken for audio where a folder is gone through."""

#: Suffixes of sound that is not read, and that the system's table of types may not have.
_SOUND_SUFFIXES = (
    ".3gp", ".aax", ".ac3", ".amr", ".ape", ".avi", ".dff", ".dsf", ".dts", ".eac3", ".flv", ".m3u", ".m3u8", ".m4p",
    ".mid", ".midi", ".mpc", ".mpg", ".ra", ".rm", ".sd2", ".shn", ".tak", ".tta", ".voc", ".wmv",
)  # fmt: skip
#: What a frame of MP3 begins with: 11 sync bits, a layer, a legal bit rate.
_SYNC = rb"\xff[\xe2-\xff][^\xf0-\xff]"
#: Kinds of files by their first four bytes.
_SIGNS = {
    b"fLaC": "flac",
    b"OggS": "ogg",
    b".snd": "au",
    b"dns.": "au",
    b"caff": "caf",
    b"riff": "w64",
    b"wvpk": "wavpack",
    b"\x30\x26\xb2\x75": "asf",
    b"\x1a\x45\xdf\xa3": "matroska",
}


def sniff(path: str | os.PathLike[str]) -> str:
    """Kind of a file by its first bytes.

    Returns:
        `"wav"` (RIFX and RF64 too), `"aiff"`, `"w64"`, `"caf"`, `"au"`, `"flac"`, `"ogg"`, `"mp4"`, `"matroska"` (WebM
        too), `"wavpack"`, `"asf"` (WMA), or `"other"` (MP3 too).

    Raises:
        MissingFileError: there is no such file.
        NotAudioError: the path is a folder, a pipe or a device.
        EmptyAudioError: the file has no bytes.
    """
    path = Path(path)
    if path.is_dir():
        raise NotAudioError(f"expected an audio file, but {path} is a folder; name a file inside it")
    if not path.exists():
        raise MissingFileError(f"expected an audio file, but there is no {path}; check the path")
    if not path.is_file():
        raise NotAudioError(
            f"expected an audio file, but {path} is a pipe or device, which can't be read twice; write what comes from "
            "it to a file first"
        )
    with path.open("rb") as file:
        head = file.read(12)
        if not head:
            raise EmptyAudioError(f"{path} has 0 bytes; expected audio: copy or download it again")
        if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] in (b"WAVE", b""):
            return "wav"
        if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            return "aiff"
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
            return "mp4"
        file.seek(after_id3(file))
        magic = file.read(4)
    kind = _SIGNS.get(magic, "other")
    return kind if head[:4] == magic or kind in ("flac", "ogg") else "other"


def seems_audio(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like sound, or a list of sounds, by its name or its first bytes.

    It tells which files to speak of where a folder is gone through for those of :data:`SUFFIXES`.
    """
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return True
    kind, _ = mimetypes.guess_type(f"file{path.suffix}")
    if path.suffix.lower() in _SOUND_SUFFIXES or (kind or "").startswith(("audio/", "video/")):
        return True
    try:
        return sniff(path) != "other"
    except (PyrosepError, OSError):
        return False


def mp3_samples(path: Path) -> int | None:
    """Length in samples that an MP3 file's Xing, Info or VBRI header announces, or None where it has none.

    Encoder delay and padding are taken off where a LAME tag names them. A file that goes on behind what
    its header counts (several files joined into one) has no announced length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.seek(after_id3(file))
        head = file.read(4096)
    sync = re.search(_SYNC, head)
    if sync is None:
        return None
    first += sync.start()
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
    samples = frames * frame_samples - delay
    return None if samples <= 0 or (octets and _goes_on(path, first + octets, size)) else samples


def _goes_on(path: Path, end: int, size: int) -> bool:
    """Whether an MP3 goes on behind the bytes that its header counts: with another file, and not only with tags."""
    with path.open("rb") as file:
        file.seek(end)
        following = file.read(4)
    much = size > end + max(end // 10, 65536)
    return much or following.startswith(b"ID3") or re.match(_SYNC, following) is not None


def after_id3(file: BinaryIO) -> int:
    """Offset of the first byte after an ID3v2 tag (0 without one)."""
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    length = 0
    for byte in head[6:10]:  # seven bits a byte
        length = length << 7 | byte & 0x7F
    return 10 + length + (10 if head[5] & 0x10 else 0)
