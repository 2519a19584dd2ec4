"""Folders of finished tracks: what tells one from any other folder, and how one takes the place of another.

Nothing else in the package removes a track's folder, and only those are removed here that ``pyrosep separate`` wrote.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pyrosep.checkpoint import write_text
from pyrosep.errors import ConfigurationError

__all__ = ["check_replaceable", "put_in_place", "read_record", "write_record"]

#: The file that a track's folder is known by, and what each of them has held since there is one.
RECORD, KEYS = "run.json", {"pyrosep", "model", "input", "settings"}


def write_record(folder: Path, report: dict[str, Any]) -> None:
    """Write ``run.json``, by which the folder is known as one of ours."""
    write_text(folder / RECORD, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the ``run.json`` of a folder says, or ``None`` where it has none that ``pyrosep separate`` wrote."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= KEYS else None


def check_replaceable(folder: Path) -> None:
    """Make sure that a track's folder may be written where ``folder`` is: that nothing of another hand is there.

    Raises:
        ConfigurationError: something is there that ``pyrosep separate`` did not write, or ``folder`` has no name.
    """
    if folder.name in ("", ".", ".."):
        raise ConfigurationError(f"expected a folder with a name of its own for the stems; got {str(folder)!r}")
    # A link that points nowhere does not exist, and is somebody's all the same.
    if os.path.lexists(folder) and read_record(folder) is None:
        raise ConfigurationError(
            f"{folder} is there already, and pyrosep did not write it: it holds no finished track's {RECORD}. Move it "
            "away, or name another output folder; it is not overwritten"
        )


def put_in_place(new: Path, folder: Path) -> None:
    """Make ``new`` the track's folder, instead of the finished track that may be there.

    Raises:
        ConfigurationError: see :func:`check_replaceable`.
    """
    check_replaceable(folder)
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)
