"""Training priors on recordings of one source alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrosep import audio
from pyrosep.data import Song, ToySource
from pyrosep.errors import ConfigurationError, DataError
from pyrosep.priors.gaussian import GaussianPrior, fit_spectrum

__all__ = ["recordings", "recordings_by_set", "toy_recordings", "train_gaussian"]


def recordings(songs: Sequence[Song], source: str, sample_rate: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """Recordings of a source, each ``(channel, time)`` with its rate, one song in memory at a time.

    Arguments:
        songs: those that lack the source are passed over.
        source: its name.
        sample_rate: Hz, to which they are resampled; by default the first song's own.

    Raises:
        DataError: no song has the source.
    """
    having = [song for song in songs if source in song.stems]
    if not having:
        there = sorted({name for song in songs for name in song.stems})
        raise DataError(f"none of {len(songs)} songs has a recording of {source!r}; there are {there}")
    rate = sample_rate or having[0].sample_rate
    for song in having:
        yield audio.resample(song.read_source(source), song.sample_rate, rate), rate


def recordings_by_set(
    songs: Sequence[Song], source: str, sample_rate: int | None = None
) -> dict[str, Iterator[tuple[Tensor, int]]]:
    """Recordings of a source as :func:`recordings` gives them, for each data set that has the source."""
    having = [song for song in songs if source in song.stems]
    rate = sample_rate or (having[0].sample_rate if having else None)
    sets = dict.fromkeys(song.data_set for song in having)
    return {name: recordings([song for song in having if song.data_set == name], source, rate) for name in sets}


def toy_recordings(wave: str, *, size: int = 400, frame: int = 16_384, seed: int = 0) -> Iterator[tuple[Tensor, int]]:
    """Frames of a toy source as recordings, each ``(1, frame)`` with its rate."""
    from pyrosep.data.toy import SAMPLE_RATE

    source = ToySource(wave, frame=frame, size=size, seed=seed)
    for index in range(size):
        yield source[index].unsqueeze(0), SAMPLE_RATE


def train_gaussian(
    *takes: Iterable[tuple[Tensor, int]],
    frame: int = 16_384,
    window: int = 2048,
    sigma_min: float = 1e-3,
    shares: Sequence[float] | None = None,
) -> tuple[GaussianPrior, dict[str, Any]]:
    """Fit a stationary Gaussian prior to every recording of a source.

    The spectrum is estimated on windows of ``window`` samples that overlap by half (:func:`~pyrosep.fit_spectrum`);
    recordings count by their length, channels as recordings of their own. Shorter windows smooth the spectrum, which
    helps where there are few recordings.

    Arguments:
        takes: recordings ``(channel, time)`` with their rate in Hz, see :func:`recordings`; of several data sets, one
            argument each.
        frame: samples in a frame of the prior.
        window: samples in a window; the spectrum gets ``window // 2 + 1`` bins.
        sigma_min: lowest noise level of the prior.
        shares: of each data set in the spectrum, relative to each other; None counts all recordings by their length.

    Returns:
        the prior, and what it was fitted to: recordings, seconds, level in dB.

    Raises:
        DataError: there is no recording as long as a window, or all are silent (with shares, of one of the sets), or
            they differ in sample rate.
        ConfigurationError: ``window`` is odd or too short; there are not as many shares as data sets.
    """
    if window < 4 or window % 2:
        raise ConfigurationError(f"window must be an even number of at least 4 samples; got {window}")
    if shares is not None and len(shares) != len(takes):
        raise ConfigurationError(f"expected a share for each of {len(takes)} data sets, got {len(shares)}")
    count, samples, rate = 0, 0, 0

    def windows(takes: Iterable[tuple[Tensor, int]]) -> Iterator[Tensor]:
        nonlocal count, samples, rate
        for take, own_rate in takes:
            if rate not in (0, own_rate):
                raise DataError(f"the recordings differ in sample rate: {rate} and {own_rate} Hz; resample them")
            rate = own_rate
            if take.shape[-1] >= window:
                count += 1
                samples += take.shape[-1]
                yield take.unfold(-1, window, window // 2)

    if shares is None:
        spectrum = fit_spectrum(windows(itertools.chain.from_iterable(takes)))
    else:
        parts = [share / sum(shares) * fit_spectrum(windows(own)) for own, share in zip(takes, shares, strict=True)]
        spectrum = torch.stack(parts).sum(0)
    report = {
        "recordings": count,
        "seconds": round(samples / rate, 1),
        "window": window,
        "level_db": round(10 * torch.log10(spectrum.mean()).item(), 2),
    }
    return GaussianPrior(spectrum, frame, sigma_min=sigma_min, sample_rate=rate), report
