"""Frames: crops drawn as stated, grids that cover songs, resampling equal to that of the whole song."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch.utils.data import DataLoader

from pyrosep import audio
from pyrosep.data import FrameGrid, RandomCrops, Song, StemFolder
from pyrosep.errors import ConfigurationError, DataError, SampleRateError

RATE = 8000


def put(path: Path, frames: int, channels: int = 2, rate: int = RATE) -> None:
    """Noise of its own for every file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(sum(map(ord, str(path.relative_to(path.parents[1])))))
    audio.write(path, 0.1 * torch.randn(channels, frames, generator=generator), rate)


@pytest.fixture
def songs(tmp_path: Path) -> StemFolder:
    """Bass in all but the second song; the third is short."""
    for name, stems, frames in [("1", "bd", 12_000), ("2", "d", 9_000), ("3", "bd", 300), ("4", "bd", 4_000)]:
        for stem in stems:
            put(tmp_path / name / f"{'bass' if stem == 'b' else 'drums'}.wav", frames)
    return StemFolder(tmp_path)


def whole(song: Song, name: str, rate: int = RATE) -> torch.Tensor:
    return audio.resample(song.read_source(name).mean(0), song.sample_rate, rate)


def test_crops_are_cut_where_they_say(songs: StemFolder) -> None:
    crops = RandomCrops(songs, "bass", frame=512, size=50, seed=3)
    assert [song.name for song in crops.songs] == ["1", "4"]
    assert crops.sample_rate == RATE
    by_name = {song.name: song for song in songs}
    for index in range(50):
        name, start = crops.crop(index)
        torch.testing.assert_close(crops[index], whole(by_name[name], "bass")[start : start + 512])
    stereo = RandomCrops(songs, "bass", frame=512, size=50, seed=3, mono=False)[7]
    name, start = crops.crop(7)
    assert torch.equal(stereo, by_name[name].read_source("bass", start, 512))


def test_crops_of_mixes(songs: StemFolder) -> None:
    crops = RandomCrops(songs, None, frame=512, size=50)
    assert [song.name for song in crops.songs] == ["1", "2", "4"]
    by_name = {song.name: song.read_mix().mean(0) for song in songs}
    for index in range(50):
        name, start = crops.crop(index)
        torch.testing.assert_close(crops[index], by_name[name][start : start + 512])


@pytest.mark.parametrize("rate", [4000, 5000, 11_025, 16_000])
def test_frames_equal_the_whole_song_resampled(songs: StemFolder, rate: int) -> None:
    by_name = {song.name: whole(song, "bass", rate) for song in songs if "bass" in song.sources}
    crops = RandomCrops(songs, "bass", frame=1000, sample_rate=rate, size=20)
    for index in range(20):
        name, start = crops.crop(index)
        torch.testing.assert_close(crops[index], by_name[name][start : start + 1000], rtol=0, atol=1e-6)
    grid = FrameGrid(songs, frame=1000, sample_rate=rate, sources=["bass"], pad=True)
    for item in grid:
        if item.song in by_name:
            part = by_name[item.song][item.start : item.start + 1000]
            expected = torch.nn.functional.pad(part, (0, 1000 - len(part)))
            torch.testing.assert_close(item.sources[0], expected, rtol=0, atol=1e-6)
            assert len(part)


def test_crops_are_drawn_by_length_and_uniformly(songs: StemFolder) -> None:
    crops = RandomCrops(songs, "bass", frame=512, size=4000, seed=1)
    drawn = [crops.crop(index) for index in range(4000)]
    first = [start for name, start in drawn if name == "1"]
    # False-alarm rate 1e-4 each.
    assert scipy.stats.binomtest(len(first), 4000, 12_000 / 16_000).pvalue > 1e-4
    assert scipy.stats.kstest(first, "uniform", args=(0, 12_000 - 512 + 1)).pvalue > 1e-4
    whole_song = RandomCrops(songs, "bass", frame=12_000, size=100)
    assert {whole_song.crop(index) for index in range(100)} == {("1", 0)}


def test_crops_depend_on_seed_and_index_alone(songs: StemFolder) -> None:
    crops = RandomCrops(songs, "bass", frame=64, size=12, seed=5)
    expected = torch.stack([crops[index] for index in range(12)])
    for workers in (0, 2):
        assert torch.equal(torch.cat(list(DataLoader(crops, batch_size=3, num_workers=workers))), expected)
    other = RandomCrops(songs, "bass", frame=64, size=12, seed=6)
    assert not torch.equal(other[0], crops[0])


@pytest.mark.parametrize("hop", [None, 1000, 5000])
@pytest.mark.parametrize("pad", [False, True])
def test_grid(songs: StemFolder, hop: int | None, pad: bool) -> None:
    frame, step = 4000, hop or 4000
    grid = FrameGrid(songs, frame, hop=hop, pad=pad)
    assert grid.sources == ("bass", "drums")
    places = [(item.song, item.start) for item in grid]
    expected = []
    for song in songs:
        count = max(1, math.ceil((song.frames - frame) / step) + 1) if pad else (song.frames - frame) // step + 1
        expected += [(song.name, k * step) for k in range(max(count, 0))]
    assert places == expected
    assert len(grid) == len(expected)
    for item in grid:
        song = songs[int(item.song) - 1]
        assert item.mix.shape == (frame,)
        assert item.sources.shape == (2, frame)
        # These songs have no mix of their own: it is the sum of the sources, an absent one being silent.
        torch.testing.assert_close(item.mix, item.sources.sum(0))
        drums = whole(song, "drums")[item.start : item.start + frame]
        torch.testing.assert_close(item.sources[1], torch.nn.functional.pad(drums, (0, frame - len(drums))))
        assert bool(item.sources[0].any()) == (item.song != "2")


def test_grid_with_channels_and_chosen_sources(songs: StemFolder) -> None:
    grid = FrameGrid(songs, 1000, sources=("drums", "bass"), mono=False)
    item = grid[3]
    assert (item.song, item.start) == ("1", 3000)
    assert item.mix.shape == (2, 1000)
    assert item.sources.shape == (2, 2, 1000)
    assert torch.equal(item.sources[1], songs[0].read_source("bass", 3000, 1000))
    assert FrameGrid(StemFolder(songs.root, sources=["bass"]), 1000).sources == ("bass",)


def test_songs_of_different_rates(songs: StemFolder) -> None:
    put(songs.root / "5" / "bass.wav", 8000, rate=16_000)
    both = StemFolder(songs.root)
    for dataset in (RandomCrops, FrameGrid):
        arguments = (both, "bass", 100) if dataset is RandomCrops else (both, 100)
        with pytest.raises(ConfigurationError, match=r"\[8000, 16000\] Hz.*sample_rate"):
            dataset(*arguments)
    crops = RandomCrops(both, "bass", 100, sample_rate=RATE, size=300)
    shares = np.mean([crops.crop(index).song == "5" for index in range(300)])
    # By duration, not by samples: 0.5 of 2.5375 s. Within four standard errors.
    assert abs(shares - 0.5 / 2.5375) < 4 * math.sqrt(0.2 * 0.8 / 300)


def test_crops_by_the_shares_of_data_sets(songs: StemFolder) -> None:
    """Songs 1 and 2 are of one set, 3 (too short to be used) and 4 of another."""
    sets = {"1": "a", "2": "a", "3": "b", "4": "b"}
    several = [song.renamed({}, data_set=sets[song.name]) for song in songs]
    shares = {"a": 1.0, "b": 3.0, "absent": 100.0}
    crops = RandomCrops(several, "bass", frame=512, size=4000, seed=1, shares=shares)
    drawn = [crops.crop(index) for index in range(4000)]
    # False-alarm rate 1e-4 each.
    assert scipy.stats.binomtest(sum(name == "1" for name, _ in drawn), 4000, 0.25).pvalue > 1e-4
    starts = [start for name, start in drawn if name == "4"]
    assert scipy.stats.kstest(starts, "uniform", args=(0, 4000 - 512 + 1)).pvalue > 1e-4
    # Within a set songs are drawn by length.
    crops = RandomCrops(several, "drums", frame=512, size=4000, seed=2, shares=shares)
    first = sum(crops.crop(index).song == "1" for index in range(4000))
    assert scipy.stats.binomtest(first, 4000, 0.25 * 12_000 / 21_000).pvalue > 1e-4


def test_shares_leave_a_single_set_as_it_was(songs: StemFolder) -> None:
    plain = RandomCrops(songs, "bass", frame=512, size=50, seed=3)
    shared = RandomCrops(songs, "bass", frame=512, size=50, seed=3, shares={"": 2.0})
    assert [plain.crop(index) for index in range(50)] == [shared.crop(index) for index in range(50)]
    for shares in ({}, {"": 0.0}, {"": math.nan}, {"": math.inf}):
        with pytest.raises(ConfigurationError, match="a share above 0 for the data set ''"):
            RandomCrops(songs, "bass", frame=512, shares=shares)


def test_random_crops_stay_what_they_were(songs: StemFolder) -> None:
    crops = RandomCrops(songs, "bass", frame=512, size=6, seed=3)
    places = [("1", 4350), ("1", 7266), ("1", 1086), ("1", 5752), ("4", 468), ("4", 3152)]
    assert [tuple(crops.crop(index)) for index in range(6)] == places


def test_mistakes(songs: StemFolder) -> None:
    with pytest.raises(DataError, match="4 songs has a source 'piano'; there are bass, drums"):
        RandomCrops(songs, "piano", 100)
    with pytest.raises(DataError, match="the longest has 12000 samples at 8000 Hz"):
        RandomCrops(songs, "bass", 12_001)
    with pytest.raises(DataError, match="every song is shorter than a frame"):
        RandomCrops(songs, None, 12_001)
    with pytest.raises(DataError, match="at least one song"):
        RandomCrops([], None, 100)
    with pytest.raises(DataError, match="source 'piano'"):
        FrameGrid(songs, 100, sources=("piano",))
    with pytest.raises(DataError, match="at least one song"):
        FrameGrid([], 100)
    with pytest.raises(DataError, match="shorter than a frame"):
        FrameGrid(songs, 12_001)
    for frame in (0, -1):
        with pytest.raises(ConfigurationError, match="frame of at least 1"):
            RandomCrops(songs, "bass", frame)
        with pytest.raises(ConfigurationError, match="frame of at least 1"):
            FrameGrid(songs, frame)
    with pytest.raises(ConfigurationError, match="hop of at least 1"):
        FrameGrid(songs, 100, hop=0)
    with pytest.raises(SampleRateError, match="positive integer"):
        FrameGrid(songs, 100, sample_rate=0)
    with pytest.raises(ConfigurationError, match="size from 0"):
        RandomCrops(songs, "bass", 100, size=-1)
    with pytest.raises(ConfigurationError, match="seed from 0"):
        RandomCrops(songs, "bass", 100, seed=-1)
    for dataset in (RandomCrops(songs, "bass", 100, size=5), FrameGrid(songs, 100)):
        with pytest.raises(ConfigurationError, match="got -1"):
            dataset[-1]
        with pytest.raises(IndexError, match="expected an index"):
            dataset[len(dataset)]
