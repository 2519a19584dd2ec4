"""MUSDB18 and MUSDB18-HQ: tracks, subsets and splits by the `musdb` package, audio by `pyrosep.audio`."""

from __future__ import annotations

import os
from pathlib import Path

from pyrosep.data.stems import AudioStream, Song, SongList
from pyrosep.errors import ConfigurationError, DataError, MissingDependencyError, MissingFileError

__all__ = ["SOURCES", "Musdb18"]

SOURCES = ("bass", "drums", "vocals", "other")
"""The sources of every song."""


class Musdb18(SongList):
    """Songs of MUSDB18 (`.stem.mp4` files) or MUSDB18-HQ (folders of WAV files), sorted by name.

    The `musdb` package needs the programs ffmpeg and ffprobe, which this class does not use itself. Without
    them, MUSDB18-HQ can be read as `StemFolder(f"{root}/train")`, where the split is left to you.

    Attributes:
        root: the folder.
        sources: `("bass", "drums", "vocals", "other")`.
        hq: whether these are the WAV files of MUSDB18-HQ.

    Arguments:
        root: the folder that holds `train` and `test`.
        subset: `"train"` or `"test"`.
        split: `"train"` or `"valid"` takes that part of the training songs, as `musdb` divides them; None
            takes all.
        hq: whether to expect the WAV files of MUSDB18-HQ; None looks which of the two is there.

    Raises:
        ConfigurationError: another subset or split, or a split of the test songs.
        MissingFileError: there is no such folder.
        MissingDependencyError: `musdb` can't be imported, as where ffmpeg is not installed.
        DataError: no song there, or a song that lacks a source.
        AudioError: a file that can't be read.

    Example:
        >>> songs = Musdb18("MUSDB18", subset="train", split="valid")  # doctest: +SKIP
        >>> songs[0].read_source("vocals", start=0, frames=44_100).shape  # doctest: +SKIP
        torch.Size([2, 44100])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        subset: str = "train",
        split: str | None = None,
        hq: bool | None = None,
    ) -> None:
        if subset not in ("train", "test"):
            raise ConfigurationError(f"expected the subset 'train' or 'test', got {subset!r}")
        if split not in (None, "train", "valid"):
            raise ConfigurationError(f"expected the split 'train', 'valid' or None, got {split!r}")
        if split is not None and subset != "train":
            raise ConfigurationError(f"only the subset 'train' has splits, but {split!r} of 'test' was asked for")
        self.root = Path(root).expanduser()
        folder = self.root / subset
        if not folder.is_dir():
            raise MissingFileError(
                f"expected the songs of MUSDB18 in {folder}, but there is no such folder; name the folder "
                "that holds 'train' and 'test'"
            )
        self.hq = not any(folder.glob("*.stem.mp4")) if hq is None else hq
        self.sources = SOURCES
        try:
            import musdb
        except Exception as error:  # stempeg raises a bare RuntimeError where it finds no ffmpeg
            raise MissingDependencyError(
                f"MUSDB18 is read with the help of the 'musdb' package, which can't be imported ({error}). "
                "Install the ffmpeg program (it brings ffprobe), for instance by 'apt-get install ffmpeg'. "
                f"MUSDB18-HQ can be read without it: pyrosep.data.StemFolder({str(folder)!r})"
            ) from error
        tracks = musdb.DB(root=str(self.root), is_wav=self.hq, subsets=subset, split=split).tracks
        if not tracks:
            kind = "folders of WAV files" if self.hq else ".stem.mp4 files"
            part = subset if split is None else f"the {split!r} split of {subset}"
            raise DataError(f"{folder} holds no songs of {part}; expected {kind} under the names of MUSDB18")
        self._songs = sorted((self._song(track) for track in tracks), key=lambda song: song.name)

    def _song(self, track: object) -> Song:
        sources = track.sources  # type: ignore[attr-defined]
        name, path = str(track.name), Path(track.path)  # type: ignore[attr-defined]
        lacking = [source for source in SOURCES if source not in sources]
        if lacking:
            raise DataError(f"song {name!r} lacks {', '.join(lacking)}; copy MUSDB18 again")
        stems = {
            source: AudioStream(Path(sources[source].path), 0 if self.hq else int(sources[source].stem_id))
            for source in SOURCES
        }
        # The streams of some .stem.mp4 files differ by a codec frame.
        return Song.of(name, stems, AudioStream(path, 0), SOURCES, shorten=not self.hq)
