"""Data sets by the names that the command line gives them, one or several together."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from pyrosep.data.musdb18 import Musdb18
from pyrosep.data.solo import SoloFolder
from pyrosep.data.stems import OnFailure, Song, SongList, StemFolder
from pyrosep.errors import ConfigurationError, DataError
from pyrosep.naming import check_source_names

__all__ = ["SOLO", "DataSets", "open_data_sets", "open_songs"]

SOLO = "solo:"
"""What the name of a folder of solo recordings begins with."""


class DataSets(SongList):
    """The songs of several data sets, one set after the other; each song's ``data_set`` is the name of its set.

    Attributes:
        sources: names of the sources that were asked for, in that order; or all, in the order of the sets.
        shares: for each data set, its share of the frames that are drawn of a source, relative to the other sets that
            have the source (see :class:`~pyrosep.data.RandomCrops`); None where songs count by their length alone.
    """

    def __init__(self, songs: Iterable[Song], sources: Iterable[str], shares: Mapping[str, float] | None) -> None:
        self._songs = list(songs)
        self.sources = tuple(sources)
        self.shares = None if shares is None else MappingProxyType(dict(shares))

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy can't be sent to other processes.
        return DataSets, (self._songs, self.sources, None if self.shares is None else dict(self.shares))


def open_songs(
    data: str,
    *,
    subset: str = "train",
    sources: Iterable[str] | None = None,
    on_failure: OnFailure | None = None,
) -> tuple[Sequence[Song], tuple[str, ...]]:
    """Songs, and the names of the sources to use.

    Arguments:
        data: ``"musdb"`` (in the folder that the environment variable ``MUSDB_PATH`` names), ``"solo:PATH"`` (a folder
            of solo recordings), or a folder of stems.
        subset: of MUSDB18, ``"train"`` or ``"test"``.
        sources: which ones; all by default.
        on_failure: see :class:`~pyrosep.data.StemFolder`; of other data sets errors are raised.

    Raises:
        ConfigurationError: ``MUSDB_PATH`` is not set, or there is no such source, or one is given twice.
        DataError, MissingFileError: see :class:`~pyrosep.data.StemFolder`, :class:`~pyrosep.data.SoloFolder`,
            :class:`~pyrosep.data.Musdb18`.
    """
    sources = None if sources is None else tuple(sources)
    check_source_names(sources or ())
    if data != "musdb":
        solo = data.startswith(SOLO)
        folder = SoloFolder(data.removeprefix(SOLO), sources) if solo else StemFolder(data, sources, on_failure)
        return folder, folder.sources
    root = os.environ.get("MUSDB_PATH")
    if not root:
        raise ConfigurationError("set the environment variable MUSDB_PATH to the folder that holds MUSDB18")
    songs = Musdb18(root, subset=subset)
    chosen = songs.sources if sources is None else sources
    if unknown := [name for name in chosen if name not in songs.sources]:
        raise ConfigurationError(f"MUSDB18 has the sources {list(songs.sources)}; asked for {unknown}")
    return songs, chosen


def open_data_sets(
    data: Sequence[str],
    *,
    subset: str = "train",
    sources: Iterable[str] | None = None,
    renames: Mapping[str, str] | None = None,
    weights: Sequence[float] | None = None,
) -> DataSets:
    """The songs of several data sets together.

    Arguments:
        data: names of the sets, each as :func:`open_songs` takes it.
        subset: of MUSDB18, ``"train"`` or ``"test"``.
        sources: which ones, by their new names; all by default. Each must be in one of the sets, not in all.
        renames: new names of sources, by the old ones. In a song, sources that get one name become their sum; solo
            recordings of both are recordings of that source.
        weights: one for each set, above 0: their relative shares, see :class:`DataSets`.

    Raises:
        ConfigurationError: no set, one given twice, a number of weights that is not that of the sets, a weight that is
            not above 0, or a rename of a source that no set has.
        DataError: a source that no set has.
        ConfigurationError, DataError, MissingFileError: see :func:`open_songs`.

    Example:
        >>> open_data_sets(  # doctest: +SKIP
        ...     ["musdb", "solo:recordings"], renames={"guitar": "other", "piano": "other"}, weights=[1.0, 2.0]
        ... ).sources
        ('bass', 'drums', 'vocals', 'other')
    """
    names, renames = tuple(data), dict(renames or {})
    wanted = None if sources is None else tuple(sources)
    if not names:
        raise ConfigurationError("expected at least one data set, got none")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"expected every data set once; {', '.join(twice)} is there again")
    if weights is not None and len(weights) != len(names):
        raise ConfigurationError(
            f"expected a weight for each of {len(names)} data sets ({', '.join(names)}), got {len(weights)}"
        )
    if not all(weight > 0 and math.isfinite(weight) for weight in weights or ()):
        raise ConfigurationError(f"expected weights of data sets above 0, got {list(weights or ())}")
    songs: list[Song] = []
    old: list[str] = []
    for name in names:
        # What a single set lacks is its own error; of several, one may have what another lacks.
        alone = wanted if len(names) == 1 and not renames else None
        opened, own = open_songs(name, subset=subset, sources=alone)
        songs += [song.renamed(renames, data_set=name) for song in opened]
        old += own
    if unknown := [name for name in renames if name not in old]:
        raise ConfigurationError(
            f"no data set has the source {unknown[0]!r} that is to be renamed; there are {', '.join(sorted(set(old)))}"
        )
    there = tuple(dict.fromkeys(renames.get(name, name) for name in old))
    for name in wanted or ():
        if name not in there:
            raise DataError(f"none of the data sets has a source {name!r}; there are {', '.join(sorted(there))}")
    shares = None if weights is None else dict(zip(names, map(float, weights), strict=True))
    return DataSets(songs, there if wanted is None else wanted, shares)
