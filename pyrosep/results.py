"""Folders of finished tracks: what tells one from any other folder, and how one takes the place of another.

Nothing else in the package removes a track's folder, and only those are removed here that ``pyrosep separate`` wrote.
Prior sets and guides are written in hidden folders of the same kind.

A track is written in a hidden folder beside its place, and moved there by one rename. What was there before is moved
into the hidden folder first, also by one rename. A run that is killed therefore leaves at its place the former folder
whole, the new one whole, or nothing; :func:`sweep` then puts the former one back, and removes the hidden folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pyrosep.claims import claimed, is_left, remove_left
from pyrosep.errors import ConfigurationError, MissingFileError
from pyrosep.naming import shortened

__all__ = ["check_replaceable", "damaged_files", "put_in_place", "read_record", "sweep", "unfinished", "write_record"]

#: The file that a track's folder is known by, and what each of them has held since there is one.
RECORD, KEYS = "run.json", {"pyrosep", "model", "input", "settings"}
#: The folder that ``pyrosep diagnose`` writes into a track's.
PICTURES = "diagnostics"
#: In a hidden folder: the file that it is known by, which its run keeps locked; the track's folder that is being
#: written; the one that was at its place before; and that one again, when there is nothing left in it to be kept.
MARKER, NEW, OLD, GONE = "unfinished.json", "new", "old", "gone"
#: The marker before it is whole; and what a hidden folder's name ends in, by which it is known before it has one.
UNMARKED, ENDING = f".{MARKER}", ".pyrosep"


def write_record(folder: Path, report: dict[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """Write ``run.json``, by which the folder is known as one of ours, and return what it holds.

    That is the report, and the sizes in bytes of the files that were written: by them a finished track is told from
    what is left of one.

    Raises:
        MissingFileError: one of the files is no longer there.
    """
    sizes = {}
    for name in sorted(files):
        if not (folder / name).is_file():
            raise MissingFileError(f"{folder / name} was taken away while its folder was written; run it again")
        sizes[name] = (folder / name).stat().st_size
    record = report | {"files": sizes}
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the ``run.json`` of a folder says, or ``None`` where it has none that ``pyrosep separate`` wrote."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and record.keys() >= KEYS and isinstance(record["settings"], dict)
    return record if ours else None


def damaged_files(folder: Path, record: dict[str, Any]) -> list[str]:
    """Files that the record names and that are missing, empty, or of another size than it says."""
    damaged = []
    for name, size in _recorded(record).items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found == 0 or size not in (None, found):
            damaged.append(name)
    return damaged


def _recorded(record: dict[str, Any]) -> dict[str, int | None]:
    """Sizes of the files that belong to a record; ``None`` where it was written when sizes were not yet recorded."""
    if isinstance(files := record.get("files"), dict):
        return {name: size if isinstance(size, int) else None for name, size in files.items()}
    keep = record["settings"].get("keep")
    kinds = ["", ".std", *(f".draw{number}" for number in range(keep if isinstance(keep, int) else 0))]
    sources = next((given for key in ("sources", "gains") if isinstance(given := record.get(key), list | dict)), ())
    posterior = ["posterior.nc"] if "diagnostics" in record else []
    return dict.fromkeys([f"{source}{kind}.wav" for source in sources for kind in kinds] + posterior)


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


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """An empty folder to write a track in, until :func:`put_in_place` makes it ``folder``.

    It is in a hidden folder beside ``folder``, which is removed at the end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        beside = _hidden(folder, stack)
        (beside / NEW).mkdir()
        # The lock is held until the hidden folder is gone.
        stack.callback(_settle, beside, folder)
        yield beside / NEW


def _hidden(folder: Path, stack: contextlib.ExitStack) -> Path:
    """A hidden folder beside a track's, with a marker that is held until the stack ends."""
    while True:
        prefix = f".{shortened(folder.name, 200)}-"
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix, suffix=ENDING))
        stack.callback(_settle, beside, folder)
        # A sweep may take the folder for left over as long as there is no lock in it. Then there is another one.
        with contextlib.suppress(FileNotFoundError):
            marker = claimed(beside / UNMARKED)
            if marker is not None:
                stack.enter_context(marker)
                # In ASCII, with escapes: the name may not be UTF-8.
                marker.write(f"{json.dumps({'unfinished': folder.name})}\n".encode("ascii"))
                (beside / UNMARKED).rename(beside / MARKER)
                return beside


def put_in_place(new: Path, folder: Path) -> None:
    """Make the folder that :func:`unfinished` gave the track's, instead of the finished track that may be there.

    What is in the former folder and was not written by pyrosep, or was changed since, goes over to the new one.

    Raises:
        ConfigurationError: see :func:`check_replaceable`.
    """
    check_replaceable(folder)
    if os.path.lexists(folder):
        folder.rename(new.with_name(OLD))
    new.rename(folder)


def sweep(parent: Path) -> None:
    """Put right what killed runs left in a folder of tracks; what belongs to a run that is alive stays as it is."""
    for beside in sorted(parent.glob(".*")):
        if beside.is_symlink():
            continue
        # What can't be opened, locked or moved is not known to be left over, or not ours to change.
        with contextlib.suppress(OSError), (beside / MARKER).open("r+b") as marker:
            name = _named(marker)
            if name is not None and is_left(marker):
                _settle(beside, parent / name)
        if beside.name.endswith(ENDING):  # perhaps of a run that was killed before there was a marker
            remove_left(beside, UNMARKED.__eq__)
            with contextlib.suppress(OSError):  # it is not empty
                beside.rmdir()


def _named(marker: IO[bytes]) -> str | None:
    """The name of the folder that a marker is for, or ``None`` where it is no marker of ours."""
    try:
        name = json.loads(marker.read())["unfinished"]
    except (ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and name == Path(name).name and name != ".." else None


def _settle(beside: Path, folder: Path) -> None:
    """Put the former folder back where no new one has come; then remove the hidden one, its marker last.

    It may be interrupted anywhere, and called again.
    """
    old, gone = beside / OLD, beside / GONE
    if os.path.lexists(old):
        if os.path.lexists(folder):
            _keep_others(old, folder)
            old.rename(gone)
        else:
            old.rename(folder)
    with contextlib.suppress(OSError):
        for path in list(beside.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
        (beside / MARKER).unlink(missing_ok=True)
        beside.rmdir()


def _keep_others(old: Path, folder: Path) -> None:
    """Move what pyrosep did not write, or what was changed since, from the former folder to the new one."""
    if old.is_symlink():
        return  # what it points to stays where it is
    record = read_record(old)
    sizes = {} if record is None else _recorded(record)
    for path in sorted(old.iterdir()):
        if path.is_dir():
            ours = path.name == PICTURES
        else:
            size = path.stat().st_size if path.is_file() else None
            ours = path.name == RECORD or (path.name in sizes and (size == 0 or sizes[path.name] in (None, size)))
        if ours:
            continue
        target = _free(folder / path.name)
        path.rename(target)
        if target.name != path.name:
            warnings.warn(
                f"{folder / path.name} was not as pyrosep wrote it; it was written again, and what was there is now "
                f"{target.name}",
                stacklevel=2,
            )


def _free(path: Path) -> Path:
    """The path, or one like it where nothing is yet."""
    number, free = 1, path
    while os.path.lexists(free):
        free = path.with_name(f"{shortened(path.stem, 200)}.before{number}{path.suffix}")
        number += 1
    return free


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all: beside its place, then renamed.

    It is UTF-8. A file's name may hold bytes that are not, and then comes with lone surrogates, for which there are no
    bytes in UTF-8: they are written as escapes, by which JSON gives back the same name.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    beside.replace(target)
