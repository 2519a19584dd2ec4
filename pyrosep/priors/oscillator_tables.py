"""Cycles of the toy waves at all periods, and inner products of frames with them at all phases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from pyrosep.data.toy import cycle

__all__ = ["LEAST_ENERGY", "OscillatorTables", "oscillator_tables"]

#: Squared norms and powers are taken for no less, so that they can be divided by.
LEAST_ENERGY = 1e-12


class _Group(nn.Module):
    """Periods of similar length, padded to the longest, so that one FFT serves them all.

    Pairs of a period and a phase beyond it are padding: they have no weight.
    """

    def __init__(self, cycles: list[np.ndarray]) -> None:
        super().__init__()
        self.periods = [len(one) for one in cycles]
        self.longest = max(self.periods)
        self.fft_size = 2 * self.longest
        doubled = torch.zeros(len(cycles), self.fft_size, dtype=torch.float64)
        for row, one in enumerate(cycles):
            doubled[row, : 2 * len(one)] = torch.from_numpy(np.tile(one, 2))
        self.register_buffer("doubled_spectrum", torch.fft.rfft(doubled))
        self.doubled_spectrum: Tensor

    @property
    def size(self) -> int:
        return len(self.periods) * self.longest

    def fold(self, x: Tensor) -> Tensor:
        """Sum samples that are a whole number of periods apart: ``(n, time)`` to ``(n, periods, phases)``."""
        folded = x.new_zeros(len(x), len(self.periods), self.longest)
        for row, period in enumerate(self.periods):
            whole = x.shape[-1] // period * period
            folded[:, row, :period] = x[:, :whole].unflatten(-1, (-1, period)).sum(1)
            folded[:, row, : x.shape[-1] - whole] += x[:, whole:]
        return folded

    def correlate(self, weight: Tensor) -> Tensor:
        r"""With one cycle: :math:`\sum_j v_j c_p[(j + k) \bmod p]` for all :math:`k`, ``(n, periods, phases)`` each."""
        spectrum = torch.fft.rfft(weight, n=self.fft_size).conj_physical_().mul_(self.doubled_spectrum)
        return torch.fft.irfft(spectrum, n=self.fft_size)[..., : self.longest]

    def unfold(self, one_period: Tensor, time: int) -> Tensor:
        """Repeat each period over the frame, and sum over the periods: ``(n, periods, phases)`` to ``(n, time)``."""
        total: Tensor | float = 0.0
        for row, period in enumerate(self.periods):
            repeats = -(-time // period)
            total = total + one_period[:, row, :period].repeat(1, repeats)[:, :time]
        assert isinstance(total, Tensor)
        return total


class _Groups(nn.ModuleList):
    """Groups by octave."""

    def __iter__(self) -> Iterator[_Group]:
        return super().__iter__()  # type: ignore[return-value]


class OscillatorTables(nn.Module):
    """Everything about a wave's periods that frames of one length share."""

    def __init__(self, wave: str, periods: tuple[int, ...], weights: tuple[float, ...], time: int) -> None:
        super().__init__()
        self.time = time
        cycles = [np.asarray(cycle(wave, period), dtype=np.float64) for period in periods]
        table = torch.zeros(len(periods), max(periods), dtype=torch.float64)
        for row, one in enumerate(cycles):
            table[row, : len(one)] = torch.tensor(one)
        self.register_buffer("cycles", table)
        self.cycles: Tensor
        self.register_buffer("lengths", torch.tensor(periods))
        self.lengths: Tensor
        octaves: dict[int, list[int]] = {}
        for row, period in enumerate(periods):
            octaves.setdefault(math.ceil(math.log2(period)), []).append(row)
        self.groups = _Groups()
        for rows in octaves.values():
            self.groups.append(_Group([cycles[row] for row in rows]))
        energy, log_weight, pairs = [], [], []
        for group, rows in zip(self.groups, octaves.values(), strict=True):
            for row in rows:
                one, period, padding = cycles[row], periods[row], group.longest - periods[row]
                count = np.bincount(np.arange(time) % period, minlength=period)
                shifted = np.lib.stride_tricks.sliding_window_view(np.tile(one**2, 2), period)[:period]
                energy.append(np.pad((shifted @ count).clip(min=LEAST_ENERGY), (0, padding), constant_values=1.0))
                level = math.log(weights[row] / period) if weights[row] > 0 else -math.inf
                log_weight.append(np.pad(np.full(period, level), (0, padding), constant_values=-math.inf))
                pairs.append(np.stack([np.full(group.longest, row), np.arange(group.longest)], -1))
        #: Of every pair of a period and a phase: energy of its wave, log-probability, and row and phase.
        self.register_buffer("energy", torch.from_numpy(np.concatenate(energy)))
        self.register_buffer("log_weight", torch.from_numpy(np.concatenate(log_weight)))
        self.register_buffer("pairs", torch.from_numpy(np.concatenate(pairs)))
        self.energy: Tensor
        self.log_weight: Tensor
        self.pairs: Tensor
        self.weights = weights
        self.periods = periods
        self._spectrum: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.cycles.device

    @property
    def size(self) -> int:
        """Pairs of a period and a phase, padding included."""
        return self.energy.numel()

    def inner_products(self, x: Tensor) -> Tensor:
        """Of frames ``(n, time)`` with the wave of every pair: ``(n, pairs)``."""
        return torch.cat([group.correlate(group.fold(x)).flatten(1) for group in self.groups], -1)

    def superpose(self, weight: Tensor) -> Tensor:
        """The waves of all pairs, added up with weights ``(n, pairs)``: ``(n, time)``."""
        total: Tensor | float = 0.0
        for group, part in zip(self.groups, weight.split([group.size for group in self.groups], -1), strict=True):
            shape = (len(weight), len(group.periods), group.longest)
            total = total + group.unfold(group.correlate(part.reshape(shape)), self.time)
        assert isinstance(total, Tensor)
        return total

    def lookup(self, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Row of the period in :attr:`cycles`, and phase, of indices into all pairs."""
        row, phase = self.pairs[choice].unbind(-1)
        return row, phase

    def spectrum(self, amplitude: tuple[float, float]) -> Tensor:
        r"""Mean power per frequency: of :math:`\sum_p \pi_p R_p`, the autocorrelations, under the frame's triangle."""
        if self._spectrum is None:
            lags = torch.arange(self.time, device=self.device)
            mean = torch.zeros(self.time, dtype=torch.float64, device=self.device)
            for row, (period, weight) in enumerate(zip(self.periods, self.weights, strict=True)):
                bins = torch.fft.fft(self.cycles[row, :period])
                autocorrelation = torch.fft.ifft(bins.abs().square()).real / period
                mean += weight * autocorrelation[lags % period]
            triangle = (1 - lags / self.time) * mean
            # A sum over positive and negative lags, wrapped onto the frame: the lag 0 counts once.
            transform = 2 * torch.fft.rfft(triangle).real - triangle[0]
            self._spectrum = transform.clamp(min=LEAST_ENERGY)
        low, high = amplitude
        return self._spectrum * (low**2 + low * high + high**2) / 3


@lru_cache(maxsize=64)
def oscillator_tables(wave: str, periods: tuple[int, ...], weights: tuple[float, ...], time: int) -> OscillatorTables:
    return OscillatorTables(wave, periods, weights, time)
