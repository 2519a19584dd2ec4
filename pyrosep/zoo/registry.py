"""Where prior sets and guides are found by name: in the package, in a folder of one's own, at an address."""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

from pyrosep.errors import CheckpointError, MissingFileError, UnknownModelError
from pyrosep.results import sweep, unfinished
from pyrosep.zoo.weights import CONFIG, TENSORS, digest

__all__ = ["GUIDES", "PLACE", "PRIORS", "catalogue", "is_known", "names", "place_of", "write_catalogue"]

#: Names the environment variable of a folder that holds prior sets, and guides in its folder ``guides``.
PLACE = "PYROSEP_MODELS"
#: Kinds: where in a place they lie.
PRIORS, GUIDES = "", "guides"

#: In the package.
SHIPPED = Path(__file__).parent.parent / "weights"
#: Bytes of a block of a download, and seconds that it may take to begin.
_BLOCK, _PATIENCE = 1 << 20, 30


def place_of(name: str | os.PathLike[str], kind: str = PRIORS) -> Path:
    """The folder of a prior set or a guide.

    Arguments:
        name: a folder; the name of one in the folder that :data:`PLACE` names, or in the package; or an address
            (``https://...``) of a folder that holds the two files. What is loaded from an address is kept in the
            folder that :data:`PLACE` names, or in the user's cache, and not loaded again. The files hold numbers alone:
            nothing in them is run.
        kind: :data:`PRIORS` or :data:`GUIDES`.

    Raises:
        UnknownModelError: there is none of that name; the error says which there are, and where one is to be had that
            this installation lacks.
        CheckpointError: the address gives something else.
        MissingFileError: the address gives nothing.
    """
    given = os.fspath(name)
    if re.match(r"https?://", given):
        return _loaded(given, kind)
    if (Path(given) / CONFIG).is_file():
        return Path(given)
    if given and Path(given).name == given:
        for place in _places(kind):
            if (place / given / CONFIG).is_file():
                return place / given
    raise UnknownModelError(_missing(given, kind))


def names(kind: str = PRIORS) -> list[str]:
    """Of all that are here by name: the package's and those of the folder that :data:`PLACE` names."""
    return sorted({path.parent.name for place in _places(kind) for path in place.glob(f"*/{CONFIG}")})


def is_known(folder: Path) -> bool:
    """Whether a prior set's folder is one of those that are here by name."""
    return folder.resolve().parent in [place.resolve() for place in _places(PRIORS)]


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """What belongs to this version of the package, here or not: by place, ``"sha256"`` and ``"bytes"``."""
    found: dict[str, dict[str, Any]] = json.loads((SHIPPED / "catalogue.json").read_text(encoding="utf-8"))
    return found


def _places(kind: str) -> list[Path]:
    own = os.environ.get(PLACE)
    return [place / kind for place in ([Path(own)] if own else []) + [SHIPPED]]


def _missing(given: str, kind: str) -> str:
    what, written = ("guide", "train-guide") if kind == GUIDES else ("prior set", "train-prior")
    here = ", ".join(names(kind)) or "none"
    known = f"{kind}/{given}" if kind else given
    if known in catalogue():
        size = catalogue()[known]["bytes"] / 2**20
        return (
            f"the {what} {given!r} ({size:.0f} MB) is not in this installation: copy pyrosep/weights/{known} of the "
            f"repository to FOLDER/{known}, and set {PLACE}=FOLDER. Here are: {here}"
        )
    return f"no {what} {given!r}: expected one that is here ({here}), a folder that {written} wrote, or an address"


def _cache() -> Path:
    if own := os.environ.get(PLACE):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyrosep"


def _loaded(address: str, kind: str) -> Path:
    """The folder to which the two files at an address were loaded, now or before."""
    address = address.rstrip("/")
    name = re.sub(r"[^\w.-]", "-", address.rpartition("/")[2]).lstrip(".-") or "set"
    folder = _cache() / kind / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    if (folder / CONFIG).is_file():
        return folder
    sweep(folder.parent)
    with unfinished(folder) as beside:
        _download(f"{address}/{CONFIG}", beside / CONFIG)
        try:
            _download(f"{address}/{TENSORS}", beside / TENSORS)
        except MissingFileError:  # a set of priors without tensors has no such file
            (beside / TENSORS).unlink(missing_ok=True)
        try:
            json.loads((beside / CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{address}/{CONFIG} is not valid JSON ({error}); check the address") from None
        expected = catalogue().get(f"{kind}/{name}" if kind else name)
        if expected is not None and digest(beside) != expected["sha256"]:
            raise CheckpointError(
                f"{address} gives other files than the {name!r} of this version of pyrosep; give them another name"
            )
        try:
            beside.rename(folder)
        except OSError:  # another process was quicker
            if not (folder / CONFIG).is_file():
                raise
    return folder


def _download(address: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE) as answer, path.open("wb") as file:
            expected, read = answer.headers.get("Content-Length"), 0
            while block := answer.read(_BLOCK):
                file.write(block)
                read += len(block)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise MissingFileError(f"nothing is to be had at {address} ({error}); check the address") from None
    if expected is not None and read != int(expected):
        raise CheckpointError(f"{address} broke off after {read} of {expected} bytes; try again")


def write_catalogue() -> None:
    """Write the catalogue anew, of what lies in the package's folder: after its weights have changed."""
    found = {}
    for path in sorted(SHIPPED.rglob(CONFIG)):
        size = sum(file.stat().st_size for file in path.parent.iterdir() if file.name in (CONFIG, TENSORS))
        found[path.parent.relative_to(SHIPPED).as_posix()] = {"sha256": digest(path.parent), "bytes": size}
    (SHIPPED / "catalogue.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
