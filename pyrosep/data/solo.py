"""Folders of solo recordings, each of one source by itself: `ROOT/SOURCE/NAME.{wav,flac,...}`."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType

from pyrosep import audio
from pyrosep.data.stems import AudioStream, Song, SongList
from pyrosep.errors import DataError, MissingFileError

__all__ = ["SoloFolder", "origin_of"]


class SoloFolder(SongList):
    """Recordings of single sources: `ROOT/SOURCE/NAME.{wav,flac,...}`, sorted by source and name.

    They are files of any of `pyrosep.audio.SUFFIXES`, are of no song together, and may differ in length, sample rate
    and number of channels. Each is a `Song` of a single stem, named `SOURCE/NAME`. Its `origin` is its name without a
    number at the end (:func:`origin_of`): `piano/take_01` and `piano/take_02` are parts of `piano/take`, and are held
    out together.

    Hidden files are passed over in silence. A warning names everything else that is not used: files that have no
    suffix of audio, folders below those of the sources, and files beside the folders of the sources.

    Attributes:
        root: the folder.
        sources: names of the sources, sorted; or those that were asked for, in that order.

    Arguments:
        root: the folder.
        sources: the sources to use; None takes all. The files of other sources are not opened.

    Raises:
        MissingFileError: there is no such folder.
        DataError: no recording in it; a source that has no recording; two files of one name but for the suffix.
        AudioError: a file that can't be read.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "piano").mkdir()
        ...     for name in ("rag_1", "rag_2"):
        ...         audio.write(f"{folder}/piano/{name}.wav", torch.zeros(1, 100), 8000)
        ...     songs = SoloFolder(folder)
        ...     songs.sources, songs[1].name, songs[1].sources, songs[1].origin
        (('piano',), 'piano/rag_2', ('piano',), 'piano/rag')
    """

    def __init__(self, root: str | os.PathLike[str], sources: Iterable[str] | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise MissingFileError(
                f"expected a folder of solo recordings, but there is no folder {self.root}; check the path"
            )
        wanted = None if sources is None else tuple(sources)
        unused: list[Path] = []
        files: dict[str, list[Path]] = {}
        for folder in _shown(self.root):
            if folder.is_dir():
                children = _shown(folder)
                recordings = [path for path in children if _is_recording(path)]
                if recordings:
                    files[folder.name] = recordings
                    unused += [path for path in children if not _is_recording(path)]
                else:
                    unused += children or [folder]
            else:
                unused.append(folder)
        if not files:
            raise DataError(
                f"{self.root} holds no solo recordings; expected files SOURCE/NAME of {', '.join(audio.SUFFIXES)} in it"
            )
        for name in wanted or ():
            if name not in files:
                raise DataError(f"no recording in {self.root} is of a source {name!r}; there are {', '.join(files)}")
        if unused:
            names = ", ".join(str(path.relative_to(self.root)) for path in unused)
            warnings.warn(
                f"not used of the solo recordings in {self.root}: {names}; recordings are files SOURCE/NAME of "
                f"{', '.join(audio.SUFFIXES)}",
                stacklevel=2,
            )
        self.sources = tuple(files) if wanted is None else wanted
        chosen = [files[source] for source in sorted(set(self.sources))]
        self._songs = [_recording(path) for paths in chosen for path in _distinct(paths)]


def origin_of(name: str) -> str:
    """What the recording of a name is taken from: the name without a number at its end, and what sets that apart.

    Spaces, underscores, hyphens and dots before the number go too. A name that is nothing but a number stays.

    Example:
        >>> [origin_of(name) for name in ("rag_01", "rag_02", "rag", "take 3", "mix-2.1", "07")]
        ['rag', 'rag', 'rag', 'take', 'mix-2', '07']
    """
    return re.sub(r"[\s_.-]*\d+$", "", name) or name


def _shown(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() in audio.SUFFIXES and path.is_file()


def _distinct(paths: list[Path]) -> list[Path]:
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise DataError(
                f"there are two files for the recording {path.parent.name}/{path.stem}, {seen[path.stem].name} and "
                f"{path.name}; remove or rename one"
            )
        seen[path.stem] = path
    return paths


def _recording(path: Path) -> Song:
    source = path.parent.name
    info = audio.info(path)
    return Song(
        name=f"{source}/{path.stem}",
        sources=(source,),
        sample_rate=info.sample_rate,
        # Some files don't promise a length: it is known when they have been decoded.
        frames=audio.count(path) if info.frames is None else info.frames,
        channels=info.channels,
        stems=MappingProxyType({source: AudioStream(path)}),
        origin=f"{source}/{origin_of(path.stem)}",
    )
