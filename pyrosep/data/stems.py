"""Songs with separate stems, and folders of them: `ROOT/SONG/{mixture,STEM...}.{wav,flac,...}`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import torch
from torch import Tensor

from pyrosep import audio
from pyrosep.errors import ConfigurationError, DataError, MissingFileError, PyrosepError

__all__ = ["MIXTURE", "AudioStream", "OnFailure", "Song", "StemFolder"]

MIXTURE = "mixture"
"""Name of a song's mix among its files."""

OnFailure = Callable[[str, PyrosepError], Any]
"""What is called with the name of a song that fails, and the error."""


@dataclass(frozen=True, slots=True)
class AudioStream:
    """Where a stem lies: a file, and which audio stream of it."""

    path: Path
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Song:
    """A song whose sources can be read apart; samples are read from its files when asked for, part by part.

    Attributes:
        name: of the song.
        sources: names of the sources that it has (of those that were asked for).
        sample_rate: in Hz, the same for all stems.
        frames: length in samples, the same for all stems.
        channels: number of channels; stems with a single one are repeated.
        stems: where each stem lies, those that were not asked for too; a tuple where a stem is the sum of several.
        mixture: where the mix lies; None where it is the sum of the stems.
        origin: of a solo recording, what it is a part of: recordings of one origin are held out together. None for a
            song, which is held out by itself.
        data_set: name of the set that the song is of, where several are used together.
    """

    name: str
    sources: tuple[str, ...]
    sample_rate: int
    frames: int
    channels: int
    stems: Mapping[str, AudioStream | tuple[AudioStream, ...]]
    mixture: AudioStream | None = None
    origin: str | None = None
    data_set: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        stems: Mapping[str, AudioStream],
        mixture: AudioStream | None = None,
        sources: Iterable[str] | None = None,
        shorten: bool = False,
    ) -> Song:
        """Look into the files of a song and check that they belong together.

        Arguments:
            name: of the song.
            stems: where each stem lies.
            mixture: where the mix lies, if it has a file.
            sources: the stems that are asked for; None takes all. Those that the song lacks are left out.
            shorten: take the shortest stem's length instead of raising where lengths differ.

        Raises:
            DataError: no stem at all, or stems of different rate, length or number of channels.
            MissingFileError, AudioError: a file that can't be read.
        """
        if not stems:
            raise DataError(f"song {name!r} has no stem; expected at least one audio file beside the mix")
        entries = dict(stems) | ({} if mixture is None else {MIXTURE: mixture})
        infos = {stem: audio.info(entry.path, entry.stream) for stem, entry in entries.items()}
        rates = {stem: info.sample_rate for stem, info in infos.items()}
        if len(set(rates.values())) > 1:
            raise DataError(f"the files of song {name!r} differ in sample rate: {_listed(rates, 'Hz')}; resample them")
        # Some files don't promise a length: it is known when they have been decoded.
        lengths = {
            stem: audio.count(entries[stem].path, entries[stem].stream) if info.frames is None else info.frames
            for stem, info in infos.items()
        }
        if len(set(lengths.values())) > 1 and not shorten:
            raise DataError(
                f"the files of song {name!r} differ in length: {_listed(lengths, 'samples')}; pad or cut them to one"
            )
        channels = {stem: info.channels for stem, info in infos.items()}
        most = max(channels.values())
        if set(channels.values()) - {1, most}:
            raise DataError(
                f"the files of song {name!r} differ in channels: {_listed(channels, 'channels')}; expected "
                "the same number, or one"
            )
        chosen = tuple(sorted(stems)) if sources is None else tuple(stem for stem in sources if stem in stems)
        rate, frames = next(iter(rates.values())), min(lengths.values())
        return cls(name, chosen, rate, frames, most, MappingProxyType(dict(stems)), mixture)

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy can't be sent to the workers of a DataLoader.
        fields = (self.name, self.sources, self.sample_rate, self.frames, self.channels, dict(self.stems))
        return Song, (*fields, self.mixture, self.origin, self.data_set)

    def renamed(self, renames: Mapping[str, str], *, data_set: str = "") -> Song:
        """The same song with other names of its sources, as one of a data set.

        Arguments:
            renames: new names by old ones; sources that are not in it keep their name, and names that the song lacks
                change nothing. Stems that get one name become a single stem, their sum.
            data_set: name of the set.
        """
        stems: dict[str, list[AudioStream]] = {}
        for name, entry in self.stems.items():
            stems.setdefault(renames.get(name, name), []).extend(_streams(entry))
        return replace(
            self,
            sources=tuple(dict.fromkeys(renames.get(name, name) for name in self.sources)),
            stems=MappingProxyType({name: own[0] if len(own) == 1 else tuple(own) for name, own in stems.items()}),
            data_set=data_set,
        )

    @property
    def has_mix(self) -> bool:
        """Whether the mix has a file of its own."""
        return self.mixture is not None

    def read_source(
        self, name: str, start: int = 0, frames: int | None = None, *, silent_if_absent: bool = False
    ) -> Tensor:
        """Samples of one source.

        Arguments:
            name: of the source.
            start: first sample.
            frames: how many samples; None (or more than there are) reads to the end.
            silent_if_absent: return zeros for a source that this song lacks.

        Returns:
            float32 tensor `(channel, time)`.

        Raises:
            DataError: the song has no such source (and `silent_if_absent` is false).
            ConfigurationError: `start` or `frames` out of range.
            AudioError: the file can't be read.
        """
        count = self._count(start, frames)
        if name in self.stems:
            return self._read(self.stems[name], start, count)
        if not silent_if_absent:
            raise DataError(f"song {self.name!r} has no source {name!r}; it has {', '.join(self.stems)}")
        return torch.zeros(self.channels, count)

    def read_mix(self, start: int = 0, frames: int | None = None) -> Tensor:
        """Samples of the mix: its own file, or else the sum of all stems (which may pass full scale).

        Arguments and errors are those of `read_source`.

        Returns:
            float32 tensor `(channel, time)`.
        """
        count = self._count(start, frames)
        if self.mixture is not None:
            return self._read(self.mixture, start, count)
        return torch.stack([self._read(entry, start, count) for entry in self.stems.values()]).sum(0)

    def _count(self, start: int, frames: int | None) -> int:
        if not 0 <= start < self.frames:
            raise ConfigurationError(
                f"song {self.name!r} has samples 0 to {self.frames - 1}, but reading was to start at {start}"
            )
        if frames is not None and frames < 1:
            raise ConfigurationError(f"expected to read at least 1 sample, got {frames}")
        return self.frames - start if frames is None else min(frames, self.frames - start)

    def _read(self, entry: AudioStream | tuple[AudioStream, ...], start: int, count: int) -> Tensor:
        begin, duration = start / self.sample_rate, count / self.sample_rate
        parts = [
            audio.read(one.path, start=begin, duration=duration, stream=one.stream).samples.expand(self.channels, -1)
            for one in _streams(entry)
        ]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


class SongList(Sequence[Song]):
    """Songs in a list; what the data sets of songs have in common."""

    _songs: Sequence[Song]

    def __len__(self) -> int:
        return len(self._songs)

    @overload
    def __getitem__(self, index: int) -> Song: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Song]: ...
    def __getitem__(self, index: int | slice) -> Song | Sequence[Song]:
        return self._songs[index]

    def __iter__(self) -> Iterator[Song]:
        return iter(self._songs)


class StemFolder(SongList):
    """Songs of a folder, each a folder of stems: `ROOT/SONG/{mixture,STEM...}.{wav,flac,...}`, sorted by name.

    The file `mixture` is optional: without it, the mix is the sum of all stems of the song. A song may lack some of
    the sources: it is then silent in that source where mixes are taken apart, and gives no training frames of it.
    `train` and `test` of MUSDB18-HQ are folders of this kind. Stems are files of any of `pyrosep.audio.SUFFIXES`.
    Hidden files and those that hold no sound are passed over in silence. A warning names files that seem to hold sound,
    but are of no kind that is read, and folders in a song's folder that hold sound.

    Attributes:
        root: the folder.
        sources: names of the sources, sorted; or those that were asked for, in that order.

    Arguments:
        root: the folder.
        sources: the stems to use; None takes the union over the songs. The mix stays the whole one.
        on_failure: called with the name of a song that can't be opened, and the error; the others are opened all the
            same. Without it the error is raised.

    Raises:
        MissingFileError: there is no such folder.
        DataError: no song in it; a song without any stem; files of one song that differ in rate, length or
            number of channels; two files for one stem; a source that no song has.
        AudioError: a file that can't be read.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "song").mkdir()
        ...     for name in ("bass", "drums"):
        ...         audio.write(f"{folder}/song/{name}.wav", torch.full((1, 100), 0.25), 8000)
        ...     songs = StemFolder(folder)
        ...     songs.sources, songs[0].name, songs[0].frames, songs[0].read_mix(frames=2)
        (('bass', 'drums'), 'song', 100, tensor([[0.5000, 0.5000]]))
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        sources: Iterable[str] | None = None,
        on_failure: OnFailure | None = None,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise MissingFileError(f"expected a folder of songs, but there is no folder {self.root}; check the path")
        wanted = None if sources is None else tuple(sources)
        folders = sorted(child for child in self.root.iterdir() if child.is_dir() and child.name[0] != ".")
        if not folders:
            raise DataError(
                f"{self.root} holds no songs; expected folders SONG in it, with files STEM.wav or of another kind"
            )
        self._songs = []
        for folder in folders:
            try:
                self._songs.append(_song(folder, wanted))
            except PyrosepError as error:
                if on_failure is None:
                    raise
                on_failure(folder.name, error)
        there = sorted({stem for song in self._songs for stem in song.stems})
        for name in wanted or () if self._songs else ():
            if name not in there:
                raise DataError(f"no song in {self.root} has a source {name!r}; there are {', '.join(there)}")
        self.sources = tuple(there) if wanted is None else wanted


def _song(folder: Path, sources: tuple[str, ...] | None) -> Song:
    files: dict[str, AudioStream] = {}
    passed: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name[0] == ".":
            continue
        if path.is_dir() or path.suffix.lower() not in audio.SUFFIXES:
            inside = path.iterdir() if path.is_dir() else [path]
            passed += [path] if any(one.name[0] != "." and audio.seems_audio(one) for one in inside) else []
            continue
        if path.stem in files:
            raise DataError(
                f"song {folder.name!r} has two files for {path.stem!r}, {files[path.stem].path.name} and "
                f"{path.name}; remove one"
            )
        files[path.stem] = AudioStream(path)
    mixture = files.pop(MIXTURE, None)
    if not files:
        raise DataError(
            f"{folder} holds no stem; expected files STEM of {', '.join(audio.SUFFIXES)} in it. (Name the folder that "
            "holds the songs' folders.)"
        )
    if passed:
        warnings.warn(
            f"not among the stems of song {folder.name!r}: {', '.join(path.name for path in passed)}; stems are files "
            f"STEM of {', '.join(audio.SUFFIXES)} in {folder}",
            stacklevel=4,
        )
    return Song.of(folder.name, files, mixture, sources)


def _streams(entry: AudioStream | tuple[AudioStream, ...]) -> tuple[AudioStream, ...]:
    return (entry,) if isinstance(entry, AudioStream) else entry


def _listed(values: Mapping[str, int], unit: str) -> str:
    return ", ".join(f"{name} {value} {unit}" for name, value in values.items())
