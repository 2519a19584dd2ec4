"""Names that become folders: those of tracks."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["MOST_BYTES", "shortened", "track_folders"]

#: Most bytes in the name of a file or folder. File systems count bytes, and an emoji has four.
MOST_BYTES = 255


def track_folders(paths: Iterable[Path]) -> dict[str, Path]:
    """Tracks by the name of the folder that each one's stems go to.

    A name is that of the file without its suffix. Files of one such name keep their suffix, those of one name and
    suffix get the name of their folder before it, and then their whole path. Where all of these are taken, or
    none can be the name of a folder (``.`` and ``..`` are folders that are there already, and file systems limit the
    length), the name ends in a digest of the path.

    Arguments:
        paths: different ones, as they are to be named: a link is named by its own name.

    Returns:
        a path for each name, in the order of ``paths``. Names are different, hold no separator, and have at most
        :data:`MOST_BYTES` bytes of UTF-8.
    """
    pending = list(paths)
    order = {path: place for place, path in enumerate(pending)}
    names: dict[str, Path] = {}
    for label_of in _LABELS:
        labels = [_folder_name(label_of(path)) for path in pending]
        counts = Counter(labels)
        for label, path in zip(labels, pending, strict=True):
            if label is not None and counts[label] == 1 and label not in names:
                names[label] = path
        named = set(names.values())
        pending = [path for path in pending if path not in named]
    for path in pending:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()
        label = _escaped(_stem(path))
        # Eight digits tell paths apart; more are taken where a file happens to have such a name itself.
        endings = (f"-{digest[:digits]}" for digits in range(8, len(digest) + 1))
        candidates = (shortened(label, MOST_BYTES - len(ending)) + ending for ending in endings)
        names[next(name for name in candidates if name not in names)] = path
    return dict(sorted(names.items(), key=lambda item: order[item[1]]))


def shortened(name: str, most: int) -> str:
    """The beginning of a name, of at most so many bytes of UTF-8, without half a character at its end."""
    return name.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".stem.mp4") if path.name.endswith(".stem.mp4") else path.stem


_LABELS: tuple[Callable[[Path], str], ...] = (
    _stem,
    lambda path: path.name,
    lambda path: f"{path.parent.name} {path.name}",
    str,
)


def _folder_name(label: str) -> str | None:
    """The label as the name of one folder, or ``None`` where no new folder can have that name."""
    name = _escaped(label)
    return None if name in ("", ".", "..") or len(name.encode("utf-8", "replace")) > MOST_BYTES else name


def _escaped(label: str) -> str:
    for separator in (os.sep, os.altsep, "\0"):
        label = label.replace(separator, "_") if separator else label
    # Bytes of a file's name that are no UTF-8 reach Python as lone surrogates, and no NetCDF file can be written to a
    # path that holds them.
    return "".join(f"%{ord(sign) - 0xDC00:02X}" if "\udc80" <= sign <= "\udcff" else sign for sign in label)
