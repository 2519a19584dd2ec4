"""Toy oscillators: four waves of random pitch, phase and amplitude, and their mixes.

A toy source is `amplitude * cycle[(t + phase) % period]`: a cycle of a sine, saw, square or triangle wave
with a whole number of samples, repeated. The pitch is a piano key in tenths of a semitone, uniform from 1.0
to 64.9; several keys share a period, so periods are not uniform. The phase is uniform over the cycle, the
amplitude over [0.8, 1].

Items are drawn from (seed, index): they are the same on every machine, in every worker, with every version.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyrosep.data.draws import check_seed, uniforms
from pyrosep.errors import ConfigurationError

__all__ = [
    "AMPLITUDE",
    "KEYS",
    "SAMPLE_RATE",
    "WAVES",
    "ToyMix",
    "ToyMixes",
    "ToyParameters",
    "ToySource",
    "cycle",
    "period",
    "period_prior",
    "waveform",
]

WAVES = ("sine", "saw", "square", "triangle")
"""The four waves."""

SAMPLE_RATE = 14_700
"""Rate of the toy audio in Hz."""

KEYS: npt.NDArray[np.float64] = np.arange(10, 650) / 10
"""Piano keys, in semitones: 1.0, 1.1, ..., 64.9. Key 49 is the A of 440 Hz."""

AMPLITUDE = (0.8, 1.0)
"""Least and largest amplitude."""

KEYS.setflags(write=False)


class ToyParameters(NamedTuple):
    """What a toy source is made of.

    Attributes:
        period: of the cycle, in samples.
        phase: in samples, 0 to `period - 1`.
        amplitude: full scale 1.0.
    """

    period: int
    phase: int
    amplitude: float


class ToyMix(NamedTuple):
    """A mix and what it is the mean of.

    Attributes:
        mix: `(frame,)`, the mean of the sources.
        sources: `(source, frame)`.
    """

    mix: Tensor
    sources: Tensor


def period(key: float, sample_rate: int = SAMPLE_RATE) -> int:
    """Period in samples of a piano key: the whole samples in a cycle of `440 * 2**((key - 49) / 12)` Hz.

    Example:
        >>> period(49.0), period(37.0), period(1.0)
        (33, 66, 534)
    """
    return math.floor(sample_rate / (440 * 2 ** ((key - 49) / 12)))


def period_prior() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The distinct periods that keys have, and how probable each is.

    Returns:
        periods: int64 `(period,)`, in samples, rising.
        weights: float64 `(period,)`, the share of the 640 keys with that period; their sum is 1.

    Example:
        >>> periods, weights = period_prior()
        >>> len(periods), int(periods.min()), int(periods.max())
        (356, 13, 534)
    """
    periods, counts = np.unique(np.array([period(key) for key in KEYS], dtype=np.int64), return_counts=True)
    return periods, counts / len(KEYS)


def cycle(wave: str, period: int) -> npt.NDArray[np.float64]:
    """One cycle of a wave, sampled at `j / period` for j = 0 .. `period - 1`.

    The sine begins at 0; the saw rises from -1 to 1; the square is 1 in the first half and -1 in the second;
    the triangle rises from -1 to 1 in the first half and falls in the second.

    Returns:
        float64 `(period,)`, read-only.

    Raises:
        ConfigurationError: an unknown wave, or a period below 1 sample.

    Example:
        >>> cycle("triangle", 4)
        array([-1.,  0.,  1.,  0.])
    """
    _check_wave(wave)
    if period < 1:
        raise ConfigurationError(f"expected a period of at least 1 sample, got {period}")
    return _cycle(wave, int(period))


@functools.lru_cache(maxsize=2048)
def _cycle(wave: str, period: int) -> npt.NDArray[np.float64]:
    x = np.arange(period) / period
    if wave == "sine":
        values = np.sin(2 * np.pi * x)
    elif wave == "saw":
        values = 2 * x - 1
    elif wave == "square":
        values = np.where(x < 0.5, 1.0, -1.0)
    else:
        values = np.where(x < 0.5, 4 * x - 1, 3 - 4 * x)
    values.setflags(write=False)
    return values


def waveform(wave: str, period: int, phase: int, amplitude: float, frame: int) -> npt.NDArray[np.float64]:
    """A toy source: `amplitude * cycle[(t + phase) % period]` for t = 0 .. `frame - 1`.

    Arguments:
        wave: one of `WAVES`.
        period: in samples.
        phase: in samples.
        amplitude: full scale 1.0.
        frame: length in samples.

    Returns:
        float64 `(frame,)`.

    Raises:
        ConfigurationError: an unknown wave, a period below 1 or a negative frame.

    Example:
        >>> waveform("square", period=4, phase=1, amplitude=0.5, frame=6)
        array([ 0.5, -0.5, -0.5,  0.5,  0.5, -0.5])
    """
    if frame < 0:
        raise ConfigurationError(f"expected a frame of at least 0 samples, got {frame}")
    shape = cycle(wave, period)
    return amplitude * shape[(np.arange(frame) + phase) % period]


class ToySource(Dataset[Tensor]):
    """Sources of one wave; item i is a float32 tensor `(frame,)`.

    Arguments:
        wave: one of `WAVES`.
        frame: length of an item in samples.
        size: number of items.
        seed: items depend on it, the wave and their index alone.

    Raises:
        ConfigurationError: an unknown wave, or a frame, size or seed out of range.

    Example:
        >>> saws = ToySource("saw", frame=8, size=3, seed=0)
        >>> len(saws), saws[0].shape, saws[0].dtype
        (3, torch.Size([8]), torch.float32)
    """

    def __init__(self, wave: str, frame: int = 16_384, size: int = 10_000, seed: int = 0) -> None:
        _check_wave(wave)
        _check_sizes(frame, size, seed)
        self.wave, self.frame, self.size, self.seed = wave, frame, size, seed

    def __len__(self) -> int:
        return self.size

    def parameters(self, index: int) -> ToyParameters:
        """What item `index` is made of: period and phase in samples, and the amplitude."""
        return _draw(self.seed, 0, self.wave, _check_index(index, self.size))

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(waveform(self.wave, *self.parameters(index), self.frame)).to(torch.float32)


class ToyMixes(Dataset[ToyMix]):
    """Mixes of one source of each wave; item i is a `ToyMix`: mix `(frame,)` and sources `(source, frame)`.

    The sources of a mix are independent of each other and of every `ToySource` of the same seed.

    Arguments:
        waves: the sources, in order; each at most once.
        frame: length of an item in samples.
        size: number of items.
        seed: items depend on it and their index alone; a source's also on its wave, not on the others.

    Raises:
        ConfigurationError: no wave, an unknown one, one twice, or a frame, size or seed out of range.

    Example:
        >>> mix, sources = ToyMixes(("saw", "square"), frame=8, size=3, seed=0)[2]
        >>> mix.shape, sources.shape, torch.equal(mix, sources.mean(0))
        (torch.Size([8]), torch.Size([2, 8]), True)
    """

    def __init__(self, waves: tuple[str, ...] = WAVES, frame: int = 16_384, size: int = 10_000, seed: int = 0) -> None:
        waves = tuple(waves)
        for wave in waves:
            _check_wave(wave)
        if not waves or len(set(waves)) < len(waves):
            raise ConfigurationError(f"expected one or more different waves, got {waves}")
        _check_sizes(frame, size, seed)
        self.waves, self.frame, self.size, self.seed = waves, frame, size, seed

    def __len__(self) -> int:
        return self.size

    def parameters(self, index: int) -> tuple[ToyParameters, ...]:
        """What the sources of item `index` are made of, in the order of `waves`."""
        _check_index(index, self.size)
        return tuple(_draw(self.seed, 1, wave, index) for wave in self.waves)

    def __getitem__(self, index: int) -> ToyMix:
        drawn = zip(self.waves, self.parameters(index), strict=True)
        sources = np.stack([waveform(wave, *parameters, self.frame) for wave, parameters in drawn])
        tensor = torch.from_numpy(sources).to(torch.float32)
        return ToyMix(tensor.mean(0), tensor)


@functools.cache
def _periods() -> tuple[int, ...]:
    return tuple(period(key) for key in KEYS)


def _draw(seed: int, purpose: int, wave: str, index: int) -> ToyParameters:
    key, phase, amplitude = uniforms(seed, (purpose, WAVES.index(wave), index), 3)
    drawn = _periods()[int(key * len(KEYS))]
    low, high = AMPLITUDE
    return ToyParameters(drawn, int(phase * drawn), low + (high - low) * amplitude)


def _check_wave(wave: str) -> None:
    if wave not in WAVES:
        raise ConfigurationError(f"expected one of the waves {', '.join(WAVES)}; got {wave!r}")


def _check_sizes(frame: int, size: int, seed: int) -> None:
    if frame < 1:
        raise ConfigurationError(f"expected a frame of at least 1 sample, got {frame}")
    check_seed(seed, size)


def _check_index(index: int, size: int) -> int:
    if index < 0:
        raise ConfigurationError(f"expected an index from 0 to {size - 1}, got {index}")
    if index >= size:
        raise IndexError(f"expected an index from 0 to {size - 1}, got {index}")  # ends a `for` loop over items
    return index
