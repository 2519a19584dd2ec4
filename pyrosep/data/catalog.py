"""Data sets by the name that the command line gives them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from pyrosep.data.musdb18 import Musdb18
from pyrosep.data.stems import Song, StemFolder
from pyrosep.errors import ConfigurationError
from pyrosep.naming import check_source_names

__all__ = ["open_songs"]


def open_songs(
    data: str, *, subset: str = "train", sources: Iterable[str] | None = None
) -> tuple[Sequence[Song], tuple[str, ...]]:
    """Songs, and the names of the sources to use.

    Arguments:
        data: ``"musdb"`` (in the folder that the environment variable ``MUSDB_PATH`` names), or a folder of stems.
        subset: of MUSDB18, ``"train"`` or ``"test"``.
        sources: which ones; all by default.

    Raises:
        ConfigurationError: ``MUSDB_PATH`` is not set, or there is no such source, or one is given twice.
        DataError, MissingFileError: see :class:`~pyrosep.data.StemFolder`, :class:`~pyrosep.data.Musdb18`.
    """
    sources = None if sources is None else tuple(sources)
    check_source_names(sources or ())
    if data != "musdb":
        folder = StemFolder(data, sources)
        return folder, folder.sources
    root = os.environ.get("MUSDB_PATH")
    if not root:
        raise ConfigurationError("set the environment variable MUSDB_PATH to the folder that holds MUSDB18")
    songs = Musdb18(root, subset=subset)
    chosen = songs.sources if sources is None else sources
    if unknown := [name for name in chosen if name not in songs.sources]:
        raise ConfigurationError(f"MUSDB18 has the sources {list(songs.sources)}; asked for {unknown}")
    return songs, chosen
