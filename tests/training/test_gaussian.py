"""Fitting Gaussian priors to recordings: the spectrum that comes out, and what can't be fitted."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from pyrosep import GaussianPrior, audio
from pyrosep.data import StemFolder, ToySource
from pyrosep.errors import ConfigurationError, DataError
from pyrosep.training.gaussian import recordings, recordings_by_set, toy_recordings, train_gaussian

RATE = 8_000


@pytest.fixture
def songs(tmp_path):
    """Three songs with noise for stems; one lacks bass, one has another rate."""
    stems = {"a": (("bass", "drums"), RATE, 1), "b": (("drums",), RATE, 2), "c": (("bass",), 2 * RATE, 1)}
    for song, (names, rate, channels) in stems.items():
        (tmp_path / song).mkdir()
        for name in names:
            audio.write(tmp_path / song / f"{name}.wav", 0.1 * torch.randn(channels, rate), rate)
    return StemFolder(tmp_path)


def test_recordings_of_a_source(songs):
    takes = list(recordings(songs, "bass"))
    assert [(tuple(take.shape), rate) for take, rate in takes] == [((1, RATE), RATE), ((1, RATE), RATE)]
    assert torch.equal(takes[0][0], songs[0].read_source("bass"))
    assert [take.shape[0] for take, _ in recordings(songs, "drums")] == [1, 2]


def test_recordings_at_a_rate(songs):
    assert [(take.shape[-1], rate) for take, rate in recordings(songs, "bass", 4000)] == [(4000, 4000)] * 2


def test_recordings_that_no_song_has(songs):
    with pytest.raises(DataError, match=r"none of 3 songs has a recording of 'tuba'; there are \['bass', 'drums'\]"):
        next(recordings(songs, "tuba"))


def test_recordings_are_read_one_at_a_time(songs, monkeypatch):
    read = []
    original = type(songs[0]).read_source
    monkeypatch.setattr(
        type(songs[0]), "read_source", lambda song, name: read.append(song.name) or original(song, name)
    )
    takes = recordings(songs, "bass")
    assert read == []
    next(takes)
    assert read == ["a"]


def test_toy_recordings():
    takes = list(toy_recordings("saw", size=3, frame=64, seed=2))
    expected = ToySource("saw", frame=64, size=3, seed=2)
    assert [rate for _, rate in takes] == [14_700] * 3
    assert all(torch.equal(take[0], expected[index]) for index, (take, _) in enumerate(takes))


def test_the_spectrum_of_coloured_noise(agree):
    """A moving average of white noise has a known spectrum; Welch's estimate of it, a known error."""
    taps, window, count = np.array([1.0, 0.6, 0.3]), 64, 300_000
    noise = scipy.signal.lfilter(taps, [1.0], np.random.default_rng(0).standard_normal((2, count)))
    prior, report = train_gaussian([(torch.tensor(noise), RATE)], frame=128, window=window)
    true = np.abs(np.fft.rfft(taps, window)) ** 2
    # A Hann taper sees the spectrum through its own, here by autocovariances weighed with the taper's.
    taper = torch.hann_window(window, dtype=torch.float64).numpy()
    lag = np.correlate(taper, taper, "full")[window - 1 :] / (taper**2).sum()
    covariance = np.correlate(taps, taps, "full")[2:]
    seen = covariance[0] + 2 * sum(
        lag[k] * covariance[k] * np.cos(2 * np.pi * k * np.arange(window // 2 + 1) / window) for k in (1, 2)
    )
    assert np.abs(seen / true - 1).max() < 0.05
    # Periodograms have a relative deviation of 1 (sqrt 2 at 0 Hz and half the rate); half-overlapping Hann windows
    # are as good as 1 / 1.06 of their number of independent ones.
    windows = 2 * (count / (window / 2)) / 1.06
    relative = np.full(window // 2 + 1, 1.0)
    relative[[0, 1, -2, -1]] = math.sqrt(2)
    agree(prior.grid.numpy() / seen, np.ones_like(seen), relative / math.sqrt(windows))
    assert isinstance(prior, GaussianPrior)
    assert (prior.time, prior.sample_rate, prior.sigma_min) == (128, RATE, 1e-3)
    assert report["recordings"] == 1
    assert report["seconds"] == round(count / RATE, 1)
    assert report["window"] == window
    # Mean square of the samples, from below a per cent of error.
    assert report["level_db"] == pytest.approx(10 * math.log10((taps**2).sum()), abs=0.2)


def test_recordings_count_by_their_length(agree):
    quiet, loud = torch.randn(1, 30_000), 3 * torch.randn(1, 10_000)
    prior, report = train_gaussian([(quiet, RATE), (loud, RATE)], window=32)
    # (3 * 1 + 1 * 9) / 4; the loud tenth of a million samples has a relative error of sqrt(2 / 10,000).
    assert prior.grid[1:-1].mean() == pytest.approx(3.0, rel=4 * math.sqrt(2 / 10_000))
    assert report["recordings"] == 2


def test_recordings_shorter_than_a_window_are_passed_over():
    long, short = torch.randn(1, 1000), 100 * torch.randn(1, 31)
    prior, report = train_gaussian([(short, RATE), (long, RATE)], window=32)
    alone, report_alone = train_gaussian([(long, RATE)], window=32)
    assert torch.equal(prior.grid, alone.grid)
    assert report == report_alone
    with pytest.raises(DataError, match="at least one frame"):
        train_gaussian([(short, RATE)], window=32)


def test_nothing_to_fit():
    with pytest.raises(DataError, match="at least one frame"):
        train_gaussian([])
    with pytest.raises(DataError, match="silent"):
        train_gaussian([(torch.zeros(1, 5000), RATE)])


def test_recordings_of_several_rates():
    with pytest.raises(DataError, match="8000 and 16000 Hz; resample"):
        train_gaussian([(torch.randn(1, 5000), 8000), (torch.randn(1, 5000), 16_000)])


@pytest.mark.parametrize("window", [0, 2, 5, 2047, -4])
def test_windows_out_of_range(window):
    with pytest.raises(ConfigurationError, match="even number of at least 4 samples"):
        train_gaussian([(torch.randn(1, 5000), RATE)], window=window)


def test_recordings_by_data_set(songs):
    sets = [song.renamed({}, data_set=name) for song, name in zip(songs, ("x", "x", "y"), strict=True)]
    takes = {name: list(own) for name, own in recordings_by_set(sets, "bass").items()}
    assert list(takes) == ["x", "y"]
    assert torch.equal(takes["x"][0][0], songs[0].read_source("bass"))
    assert [rate for own in takes.values() for _, rate in own] == [RATE, RATE]  # the first song's
    assert list(recordings_by_set(sets, "drums")) == ["x"]


def test_data_sets_count_by_their_shares():
    """The spectrum is the mean of the sets' own, weighted by their shares, whatever their lengths."""
    loud, quiet = torch.randn(1, 4000), 0.1 * torch.randn(1, 40_000)
    sets = [[(loud, RATE)], [(quiet, RATE), (quiet, RATE)]]
    alone = [train_gaussian(own, frame=32, window=32)[0].spectrum for own in sets]
    prior, report = train_gaussian(*sets, frame=32, window=32, shares=[1.0, 3.0])
    torch.testing.assert_close(prior.spectrum, (alone[0] + 3 * alone[1]) / 4)
    assert (report["recordings"], report["seconds"]) == (3, round(84_000 / RATE, 1))
    pooled, _ = train_gaussian(*sets, frame=32, window=32)
    together, _ = train_gaussian([*sets[0], *sets[1]], frame=32, window=32)
    assert torch.equal(pooled.spectrum, together.spectrum)
    with pytest.raises(ConfigurationError, match="a share for each of 2 data sets, got 1"):
        train_gaussian(*sets, shares=[1.0])
