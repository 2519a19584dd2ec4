"""Frames of songs: random crops of one source to train on, and a grid of mixes and sources to evaluate on."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyrosep import audio
from pyrosep.data.draws import check_seed, uniforms
from pyrosep.data.stems import Song
from pyrosep.errors import ConfigurationError, DataError

__all__ = ["Crop", "FrameGrid", "RandomCrops", "SongFrame"]

MARGIN = 250
"""Samples of the lower rate read on either side of a frame: more than the resampling filter reaches."""


class Crop(NamedTuple):
    """Where a crop was taken: the name of the song, and the first sample (at the rate of the crops)."""

    song: str
    start: int


class SongFrame(NamedTuple):
    """A frame of a mix and of its sources.

    Attributes:
        mix: `(frame,)`, or `(channel, frame)` where channels are kept.
        sources: `(source, frame)`, or `(source, channel, frame)`.
        song: name of the song.
        start: first sample, at the rate of the frames.
    """

    mix: Tensor
    sources: Tensor
    song: str
    start: int


class RandomCrops(Dataset[Tensor]):
    """Random crops of one source, or of the mixes; item i is a float32 tensor `(frame,)`, or `(channel, frame)` with
    `mono=False`.

    A song is drawn with probability proportional to its length, the start uniformly within it. Songs that
    lack the source, or are shorter than a frame, are left out. With `shares`, a data set is drawn first, with
    probability proportional to its share, of those that have songs left; then one of its songs by length. Items depend
    on (seed, index) alone, whatever worker reads them.

    Attributes:
        songs: those that are used.
        sample_rate: of the crops, in Hz.

    Arguments:
        songs: any sequence of songs (`StemFolder`, `Musdb18`, a list).
        source: name of the source; None takes the mixes.
        frame: length of a crop in samples, at `sample_rate`.
        sample_rate: in Hz; None takes the songs' own.
        size: number of items.
        seed: of the draws.
        mono: mean over channels.
        shares: of the crops, for each data set (`Song.data_set`), relative to each other; None draws songs by their
            length, whatever set they are of.

    Raises:
        DataError: no song has the source and is long enough.
        ConfigurationError: frame, size or seed out of range; songs of different rates and no `sample_rate`; a song's
            data set has no share, or a share that is not above 0.
        SampleRateError: `sample_rate` is no positive integer.

    Example:
        >>> crops = RandomCrops(songs, "bass", frame=16_384, sample_rate=16_000)  # doctest: +SKIP
        >>> crops[0].shape  # doctest: +SKIP
        torch.Size([16384])
    """

    def __init__(
        self,
        songs: Sequence[Song],
        source: str | None,
        frame: int,
        sample_rate: int | None = None,
        size: int = 10_000,
        seed: int = 0,
        mono: bool = True,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        _check_frame(frame)
        check_seed(seed, size)
        self.source, self.frame, self.size, self.seed, self.mono = source, frame, size, seed, mono
        having = [song for song in songs if source is None or source in song.stems]
        if not having and source is None:
            raise DataError("expected at least one song, got none")
        if not having:
            there = sorted({stem for song in songs for stem in song.stems})
            raise DataError(f"none of {len(songs)} songs has a source {source!r}; there are {', '.join(there)}")
        self.sample_rate = _common_rate(having, sample_rate)
        self.songs = [song for song in having if _length(song, self.sample_rate) >= frame]
        if not self.songs:
            longest = max(_length(song, self.sample_rate) for song in having)
            which = "every song" if source is None else f"every song with {source!r}"
            raise DataError(
                f"{which} is shorter than a frame: the longest has {longest} samples at "
                f"{self.sample_rate} Hz, a frame {frame}; ask for shorter frames"
            )
        lengths = [_length(song, self.sample_rate) for song in self.songs]
        self._ends: list[float] = list(itertools.accumulate(lengths if shares is None else self._weighted(shares)))

    def _weighted(self, shares: Mapping[str, float]) -> list[float]:
        """Probability of each song, up to a factor."""
        totals: dict[str, int] = {}
        for song in self.songs:
            totals[song.data_set] = totals.get(song.data_set, 0) + _length(song, self.sample_rate)
        for name in totals:
            if not (share := shares.get(name, 0.0)) > 0 or math.isinf(share):
                raise ConfigurationError(f"expected a share above 0 for the data set {name!r}; got {dict(shares)}")
        return [shares[song.data_set] * _length(song, self.sample_rate) / totals[song.data_set] for song in self.songs]

    def __len__(self) -> int:
        return self.size

    def _draw(self, index: int) -> tuple[Song, int]:
        _check_index(index, self.size)
        where, within = uniforms(self.seed, (index,), 2)
        # Rounding may bring the place to the very end.
        which = min(bisect.bisect_right(self._ends, where * self._ends[-1]), len(self.songs) - 1)
        song = self.songs[which]
        return song, int(within * (_length(song, self.sample_rate) - self.frame + 1))

    def crop(self, index: int) -> Crop:
        """Where item `index` was taken."""
        song, start = self._draw(index)
        return Crop(song.name, start)

    def __getitem__(self, index: int) -> Tensor:
        song, start = self._draw(index)

        def read(first: int, count: int) -> Tensor:
            return song.read_mix(first, count) if self.source is None else song.read_source(self.source, first, count)

        samples = _resampled(read, song, start, self.frame, self.sample_rate, self.mono)
        return samples[0] if self.mono else samples


class FrameGrid(Dataset[SongFrame]):
    """Frames at fixed places of mixes and their sources, song after song; item i is a `SongFrame`.

    A source that a song lacks is silent in its frames.

    Attributes:
        sources: names of the sources, in the order of a frame's `sources`.
        sample_rate: of the frames, in Hz.

    Arguments:
        songs: any sequence of songs.
        frame: length of a frame in samples, at `sample_rate`.
        hop: samples from the start of one frame to that of the next; None puts them end to end.
        sample_rate: in Hz; None takes the songs' own.
        sources: which ones, in order; None takes the union over the songs, sorted.
        pad: fill the last frame of a song with zeros; otherwise what is left at the end is left out.
        mono: mean over channels.

    Raises:
        DataError: no songs, a source that none of them has, or no frame fits into any song.
        ConfigurationError: frame or hop out of range; songs of different rates and no `sample_rate`.
        SampleRateError: `sample_rate` is no positive integer.

    Example:
        >>> grid = FrameGrid(songs, frame=16_384, sources=("bass", "drums"))  # doctest: +SKIP
        >>> mix, sources, song, start = grid[0]  # doctest: +SKIP
        >>> mix.shape, sources.shape  # doctest: +SKIP
        (torch.Size([16384]), torch.Size([2, 16384]))
    """

    def __init__(
        self,
        songs: Sequence[Song],
        frame: int,
        hop: int | None = None,
        sample_rate: int | None = None,
        sources: Iterable[str] | None = None,
        pad: bool = False,
        mono: bool = True,
    ) -> None:
        _check_frame(frame)
        if hop is not None and hop < 1:
            raise ConfigurationError(f"expected a hop of at least 1 sample, got {hop}")
        if not songs:
            raise DataError("expected at least one song, got none")
        self.songs = list(songs)
        self.frame, self.hop, self.pad, self.mono = frame, hop or frame, pad, mono
        there = {stem for song in songs for stem in song.stems}
        self.sources = tuple(sorted({s for song in songs for s in song.sources})) if sources is None else tuple(sources)
        for name in self.sources:
            if name not in there:
                raise DataError(f"no song has a source {name!r}; there are {', '.join(sorted(there))}")
        self.sample_rate = _common_rate(self.songs, sample_rate)
        self._ends: list[int] = []
        for song in self.songs:
            self._ends.append(self._count(song) + (self._ends[-1] if self._ends else 0))
        if not self._ends[-1]:
            raise DataError(f"every song is shorter than a frame of {frame} samples; use pad=True or shorter frames")

    def _count(self, song: Song) -> int:
        rest = _length(song, self.sample_rate) - self.frame
        if self.pad:
            return 1 + max(0, -(-rest // self.hop))
        return 0 if rest < 0 else 1 + rest // self.hop

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> SongFrame:
        _check_index(index, len(self))
        which = bisect.bisect_right(self._ends, index)
        song = self.songs[which]
        start = (index - (self._ends[which - 1] if which else 0)) * self.hop

        def cut(read: Callable[[int, int], Tensor]) -> Tensor:
            samples = _resampled(read, song, start, self.frame, self.sample_rate, self.mono)
            return samples[0] if self.mono else samples

        def source_reader(name: str) -> Callable[[int, int], Tensor]:
            return lambda first, count: song.read_source(name, first, count, silent_if_absent=True)

        sources = torch.stack([cut(source_reader(name)) for name in self.sources])
        return SongFrame(cut(song.read_mix), sources, song.name, start)


def _resampled(read: Callable[[int, int], Tensor], song: Song, start: int, frame: int, rate: int, mono: bool) -> Tensor:
    """Samples `start` to `start + frame` of the song at `rate`, zeros beyond its end.

    Equals the same part of the whole song resampled: the part that is read begins where a sample of both rates falls
    together, and reaches beyond the frame by more than the filter does.
    """
    divisor = math.gcd(song.sample_rate, rate)
    down, up = song.sample_rate // divisor, rate // divisor
    margin = 0 if up == down else math.ceil(MARGIN * max(1, down / up))
    first = max(0, (start * down // up - margin) // down * down)
    last = min(song.frames, -(-(start + frame) * down // up) + margin)
    samples = read(first, last - first)
    if mono:
        samples = samples.mean(0, keepdim=True)
    samples = audio.resample(samples, song.sample_rate, rate)
    offset = start - first // down * up
    samples = samples[:, offset : offset + frame]
    return torch.nn.functional.pad(samples, (0, frame - samples.shape[1]))


def _length(song: Song, rate: int) -> int:
    """Length of a song in samples at `rate`."""
    return -(-song.frames * rate // song.sample_rate)


def _common_rate(songs: Sequence[Song], rate: int | None) -> int:
    rates = sorted({song.sample_rate for song in songs})
    if rate is not None:
        # The filter of each pair is tried now, so that a bad rate is not found in a worker.
        for other in rates:
            audio.resample(torch.zeros(1, 0), other, rate)
        return rate
    if len(rates) > 1:
        raise ConfigurationError(f"the songs have different sample rates ({rates} Hz); give `sample_rate`")
    return rates[0]


def _check_frame(frame: int) -> None:
    if frame < 1:
        raise ConfigurationError(f"expected a frame of at least 1 sample, got {frame}")


def _check_index(index: int, size: int) -> None:
    if index < 0:
        raise ConfigurationError(f"expected an index from 0 to {size - 1}, got {index}")
    if index >= size:
        raise IndexError(f"expected an index from 0 to {size - 1}, got {index}")  # ends a `for` loop over items
