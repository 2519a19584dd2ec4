"""Names that become files and folders: those of sources, and those of tracks."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from pyrosep.errors import ConfigurationError

__all__ = ["MOST_BYTES", "check_source_name", "check_source_names", "shortened", "track_folders"]

#: Most bytes in the name of a file or folder. File systems count bytes, and an emoji has four.
MOST_BYTES = 255
#: Most bytes in the name of a source: the rest is for what stands around it in the names of its files.
MOST_SOURCE_BYTES = 200


def check_source_names(names: Iterable[object]) -> None:
    """Make sure that sources can be told apart, and that each has files of its own.

    The stems of a source, and its weights in a model's file, begin with its name and a dot. A source ``bass.std`` would
    therefore have files of ``bass``.

    Raises:
        ConfigurationError: a name that :func:`check_source_name` refuses, a name that is there twice, or one that is
            another one with a dot and more behind it.

    Example:
        >>> check_source_names(["bass", "drums", "bass guitar"])
    """
    given = list(names)
    for name in given:
        check_source_name(name)
    if twice := [name for name, count in Counter(given).items() if count > 1]:
        raise ConfigurationError(f"expected each source once; got {', '.join(map(repr, twice))} more than once")
    for name in map(str, given):
        for place in (place for place, sign in enumerate(name) if sign == "."):
            if name[:place] in given:
                raise ConfigurationError(
                    f"the sources {name[:place]!r} and {name!r} would have files of the same names; rename one, for "
                    f"instance to {name.replace('.', ' ')!r}"
                )


def check_source_name(name: object) -> None:
    """Make sure that a source's name can stand in the name of a file, and that this file is in the folder meant.

    Raises:
        ConfigurationError: it is no text, empty, too long, begins with a dot, or has a separator of paths or a control
            character.
    """
    reason = ""
    if not isinstance(name, str):
        reason = f"a {type(name).__name__}"
    elif not name:
        reason = "an empty one"
    elif name.startswith("."):
        reason = f"{name!r}, which begins with a dot"
    elif any(sign in "/\\:" or unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        reason = f"{name!r}, which has a separator of paths or a control character"
    elif len(name.encode()) > MOST_SOURCE_BYTES:
        reason = f"{name[:20]!r}..., which has {len(name.encode())} bytes"
    if reason:
        raise ConfigurationError(
            f"expected a name of a source that files can have: text of up to {MOST_SOURCE_BYTES} bytes, without a dot "
            f"at its beginning, without / \\ : and control characters; got {reason}. Rename the source"
        )


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
