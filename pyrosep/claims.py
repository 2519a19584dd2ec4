"""Files that a run holds while it lives: by them what a killed run left is told from what another is at work on.

A claim is a new file that is locked by the process that made it. The system frees the lock when the process ends, in
whatever way. Where there are no locks, as on Windows and on some file systems, nothing is known to be left over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = ["claimed", "is_left", "remove_left"]


def claimed(path: Path) -> IO[bytes] | None:
    """Make a file and lock it until it is closed; ``None`` where another run took it for left over meanwhile.

    Raises:
        OSError: the file is there already, or can't be made.
    """
    file = path.open("x+b", buffering=0)
    try:
        if fcntl is not None:
            _lock(file)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        return file
    # What was removed between its making and its locking is a file without a name.
    try:
        there = os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        there = False
    if there:
        return file
    file.close()
    return None


def is_left(file: IO[bytes]) -> bool:
    """Whether an open file is a claim whose process has ended; it is locked then, until it is closed."""
    if fcntl is None:
        return False
    try:
        _lock(file)
    except OSError:  # it is locked already, or its file system has no locks
        return False
    return True


def remove_left(folder: Path, known: Callable[[str], bool]) -> None:
    """Remove the claims of runs that have ended from a folder, of those whose names are known."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if known(entry.name) and entry.is_file(follow_symlinks=False)]
        for path in sorted(found):
            # What can't be opened or removed is not ours to change.
            with contextlib.suppress(OSError), path.open("r+b") as file:
                if is_left(file):
                    path.unlink()


def _lock(file: IO[bytes]) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
