"""The exact density of the toy sources: the ground truth for learned priors and samplers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrosep.data.toy import AMPLITUDE, SAMPLE_RATE, WAVES, cycle, period_prior
from pyrosep.errors import ConfigurationError
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.truncated_normal import draw_truncated_normal, truncated_normal

__all__ = ["OscillatorPrior"]

#: Elements in one working tensor (frames x periods x phases); larger batches are taken in parts.
_CHUNK = 1 << 24


class OscillatorPrior(SourcePrior):
    r"""A toy oscillator of unknown period, phase and amplitude, in white noise: exact, as a finite sum.

    A clean frame is :math:`a\,w_{p,\phi}(t) = a\,c_p[(t + \phi) \bmod p]`, with :math:`c_p` one cycle of the wave in
    :math:`p` samples, phase :math:`\phi` uniform on :math:`0, \dots, p - 1` and amplitude :math:`a` uniform on
    [0.8, 1]. So, with :math:`b = \langle x, w\rangle` and :math:`W = \|w\|^2`,

    .. math:: p_\sigma(x) = (2\pi\sigma^2)^{-T/2} e^{-\|x\|^2 / 2\sigma^2} \sum_p \frac{\pi_p}{p} \sum_\phi
              \int e^{(2ab - a^2 W) / 2\sigma^2}\, \frac{da}{a_1 - a_0}.

    The inner products for all phases of a period come from folding the frame at the period and correlating with one
    cycle by FFT (about T operations a period); the integral is a difference of error functions. All in double
    precision: exponents reach :math:`10^7` at low noise.

    Arguments:
        wave: ``"sine"``, ``"saw"``, ``"square"`` or ``"triangle"``.
        frame: samples in a frame.
        sigma: noise level.
        sigma_min: lowest noise level; must be positive, for the clean source has no density.
        periods: whole periods in samples, equally likely; by default those of the talk's keys, with their weights.
        amplitude: the range of the amplitude.

    Example:
        >>> prior = OscillatorPrior("saw", frame=512)
        >>> x = prior.at(1.0).sample((3,))
        >>> prior.at(1.0).log_prob(x).shape, prior.at(1.0).denoise(x).shape
        (torch.Size([3]), torch.Size([3, 512]))
    """

    def __init__(
        self,
        wave: str,
        frame: int = 16_384,
        sigma: float | Tensor | None = None,
        *,
        sigma_min: float = 0.01,
        periods: Sequence[int] | None = None,
        amplitude: tuple[float, float] = AMPLITUDE,
    ) -> None:
        if wave not in WAVES:
            raise ConfigurationError(f"wave must be one of {WAVES}; got {wave!r}")
        if not sigma_min > 0:
            raise ConfigurationError(f"an oscillator's sigma_min must be positive; got {sigma_min!r}")
        if not 0 <= amplitude[0] < amplitude[1]:
            raise ConfigurationError(f"amplitude must be a range (low, high) with 0 <= low < high; got {amplitude!r}")
        super().__init__(frame, sigma, sigma_min=sigma_min, sample_rate=SAMPLE_RATE)
        self.tables: _Tables
        self.wave = wave
        self.amplitude = (float(amplitude[0]), float(amplitude[1]))
        self.default_periods = periods is None
        if periods is None:
            lengths, weights = period_prior()
            self.periods, self.weights = tuple(int(p) for p in lengths), tuple(float(w) for w in weights)
        else:
            self.periods = tuple(sorted({int(p) for p in periods}))
            if not self.periods or self.periods[0] < 2:
                raise ConfigurationError(f"expected periods of at least 2 samples; got {periods!r}")
            self.weights = (1 / len(self.periods),) * len(self.periods)
        self._at_frame(frame)

    def _at_frame(self, time: int) -> None:
        tables = _tables(self.wave, self.periods, self.weights, time)
        device = self.tables.device if hasattr(self, "tables") else tables.device
        self.tables = tables if device == tables.device else copy.deepcopy(tables).to(device)

    # --- the density ------------------------------------------------------------------------------------------

    def _log_prob(self, value: Tensor) -> Tensor:
        return self._in_parts(value, lambda x, sigma: self._posterior(x, sigma).log_prob)

    def _log_prob_and_score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        def both(x: Tensor, sigma: Tensor) -> Tensor:
            posterior = self._posterior(x, sigma)
            score = (self._mean(posterior) - x) / sigma.square()
            return torch.cat([posterior.log_prob.unsqueeze(-1), score], -1)

        packed = self._in_parts(value, both, dtype=torch.float64)
        return packed[..., 0].to(value.dtype), packed[..., 1:].to(value.dtype)

    def denoise(self, value: Tensor) -> Tensor:
        self._check_time(value)
        return self._in_parts(value, lambda x, sigma: self._mean(self._posterior(x, sigma)))

    def _in_parts(self, value: Tensor, function: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A function of frames ``(n, time)`` and levels ``(n, 1)``, double precision, a part of the batch at a time."""
        batch = torch.broadcast_shapes(value.shape[:-1], self.sigma.shape)
        x = value.double().expand(*batch, self.time).reshape(-1, self.time)
        sigma = self._level(x).expand(*batch, 1).reshape(-1, 1)
        size = max(1, _CHUNK // max(self.time, sum(self.periods)))
        parts = [function(a, b) for a, b in zip(x.split(size), sigma.split(size), strict=True)]
        out = torch.cat(parts)
        return out.reshape((*batch, *out.shape[1:])).to(dtype or value.dtype)

    def _posterior(self, x: Tensor, sigma: Tensor) -> _Posterior:
        """What a frame says of period, phase and amplitude; frames ``(n, time)``, levels ``(n, 1)``."""
        time = self.time
        low, high = self.amplitude
        logits, amplitudes = [], []
        for group in self.tables:
            inner = group.correlate(group.fold(x))  # (n, periods, phases)
            best = inner / group.energy
            width = sigma.unsqueeze(-1) / group.energy.sqrt()
            log_integral, mean = truncated_normal(best, width, low, high)
            # The exponent at the amplitude nearest to the best one, within the range.
            nearest = best.clamp(low, high)
            exponent = nearest * (2 * inner - nearest * group.energy) / (2 * sigma.square().unsqueeze(-1))
            logits.append((group.log_weight + exponent + log_integral).flatten(1))
            amplitudes.append(mean)
        joint = torch.cat(logits, -1)
        total = joint.logsumexp(-1)
        constant = -0.5 * x.square().sum(-1) / sigma.squeeze(-1).square()
        constant = constant - 0.5 * time * (2 * math.pi * sigma.squeeze(-1).square()).log() - math.log(high - low)
        return _Posterior(total + constant, (joint - total.unsqueeze(-1)).exp(), amplitudes)

    def _mean(self, posterior: _Posterior) -> Tensor:
        parts = posterior.probability.split([group.size for group in self.tables], -1)
        mean: Tensor | float = 0.0
        for group, probability, amplitude in zip(self.tables, parts, posterior.amplitudes, strict=True):
            weight = probability.reshape(amplitude.shape) * amplitude
            mean = mean + group.unfold(group.correlate(weight), self.time)
        assert isinstance(mean, Tensor)
        return mean

    # --- draws ------------------------------------------------------------------------------------------------

    def draw_clean(self, value: Tensor) -> Tensor:
        self._check_time(value)
        with torch.no_grad():
            return self._in_parts(value, self._draw_clean)

    def _draw_clean(self, x: Tensor, sigma: Tensor) -> Tensor:
        posterior = self._posterior(x, sigma)
        choice = torch.multinomial(posterior.probability, 1).squeeze(-1)
        period, phase = self.tables.lookup(choice)
        shape = self._cycles(period, phase)
        energy = shape.square().sum(-1).clamp(min=_TINY)
        best = (x * shape).sum(-1) / energy
        amplitude = draw_truncated_normal(best, sigma.squeeze(-1) / energy.sqrt(), *self.amplitude)
        return amplitude.unsqueeze(-1) * shape

    def sample_clean(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws of the clean source, ``sample_shape + batch_shape + (time,)``, in the default precision."""
        shape = torch.Size(sample_shape) + self.batch_shape
        device = self.tables.device
        weight = torch.tensor(self.weights, dtype=torch.float64, device=device)
        index = torch.multinomial(weight, max(1, shape.numel()), replacement=True)
        period = torch.tensor(self.periods, device=device)[index]
        phase = (torch.rand(len(period), dtype=torch.float64, device=device) * period).long()
        low, high = self.amplitude
        amplitude = low + (high - low) * torch.rand(len(period), 1, dtype=torch.float64, device=device)
        frames = amplitude * self._cycles(period, phase)
        return frames[: shape.numel()].reshape(*shape, self.time).to(torch.get_default_dtype())

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        clean = self.sample_clean(sample_shape)
        return clean + self._level(clean) * torch.randn_like(clean)

    def _cycles(self, period: Tensor, phase: Tensor) -> Tensor:
        """Waves of unit amplitude, ``(n, time)``, of periods and phases ``(n,)``."""
        t = torch.arange(self.time, device=period.device)
        position = (t + phase.unsqueeze(-1)) % period.unsqueeze(-1)
        row = torch.searchsorted(torch.tensor(self.periods, device=period.device), period.contiguous())
        return self.tables.cycles[row.unsqueeze(-1), position]

    @property
    def spectrum(self) -> Tensor:
        return self.tables.spectrum(self.amplitude)

    def __repr__(self) -> str:
        return f"OscillatorPrior({self.wave!r}, {super().__repr__().partition('(')[2]}"


class _Posterior(NamedTuple):
    log_prob: Tensor  # (n,)
    probability: Tensor  # (n, all pairs of period and phase)
    amplitudes: list[Tensor]  # a group each, (n, periods, phases): mean amplitude given the pair


_TINY = 1e-12


class _Group(nn.Module):
    """Periods of similar length, padded to the longest, so that one FFT serves them all.

    Pairs of a period and a phase beyond it are padding: they have no weight.
    """

    def __init__(self, cycles: list[np.ndarray], weights: list[float], time: int) -> None:
        super().__init__()
        self.periods = [len(one) for one in cycles]
        self.longest = max(self.periods)
        self.fft_size = 2 * self.longest
        doubled = torch.zeros(len(cycles), self.fft_size, dtype=torch.float64)
        energy = torch.ones(len(cycles), self.longest, dtype=torch.float64)
        log_weight = torch.full((len(cycles), self.longest), -math.inf, dtype=torch.float64)
        for row, (one, weight) in enumerate(zip(cycles, weights, strict=True)):
            period = len(one)
            doubled[row, : 2 * period] = torch.from_numpy(np.tile(one, 2))
            count = np.bincount(np.arange(time) % period, minlength=period)
            shifted = np.lib.stride_tricks.sliding_window_view(np.tile(one**2, 2), period)[:period]
            energy[row, :period] = torch.from_numpy(shifted @ count).clamp(min=_TINY)
            log_weight[row, :period] = math.log(weight / period) if weight > 0 else -math.inf
        self.register_buffer("energy", energy)
        self.register_buffer("log_weight", log_weight)
        self.register_buffer("doubled_spectrum", torch.fft.rfft(doubled))
        self.energy: Tensor
        self.log_weight: Tensor
        self.doubled_spectrum: Tensor

    @property
    def size(self) -> int:
        return self.energy.numel()

    def fold(self, x: Tensor) -> Tensor:
        """Sum samples that are a whole number of periods apart: ``(n, time)`` to ``(n, periods, phases)``."""
        rows = []
        for period in self.periods:
            repeats = x.shape[-1] // period
            folded = x[:, : repeats * period].reshape(len(x), repeats, period).sum(1)
            rest = x[:, repeats * period :]
            folded = folded + nn.functional.pad(rest, (0, period - rest.shape[-1]))
            rows.append(nn.functional.pad(folded, (0, self.longest - period)))
        return torch.stack(rows, 1)

    def correlate(self, weight: Tensor) -> Tensor:
        r"""With one cycle: :math:`\sum_j v_j c_p[(j + k) \bmod p]` for all :math:`k`, ``(n, periods, phases)`` each."""
        spectrum = torch.fft.rfft(weight, n=self.fft_size).conj() * self.doubled_spectrum
        return torch.fft.irfft(spectrum, n=self.fft_size)[..., : self.longest]

    def unfold(self, one_period: Tensor, time: int) -> Tensor:
        """Repeat each period over the frame, and sum over the periods: ``(n, periods, phases)`` to ``(n, time)``."""
        total: Tensor | float = 0.0
        for row, period in enumerate(self.periods):
            repeats = -(-time // period)
            total = total + one_period[:, row, :period].repeat(1, repeats)[:, :time]
        assert isinstance(total, Tensor)
        return total


class _Tables(nn.Module):
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
        octaves: dict[int, list[int]] = {}
        for row, period in enumerate(periods):
            octaves.setdefault(math.ceil(math.log2(period)), []).append(row)
        self.groups = nn.ModuleList(
            _Group([cycles[row] for row in rows], [weights[row] for row in rows], time) for rows in octaves.values()
        )
        self.weights = weights
        self.periods = periods
        self._spectrum: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.cycles.device

    def __iter__(self) -> Iterator[Any]:
        return iter(self.groups)

    def lookup(self, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Period and phase of flat indices into all pairs."""
        pairs = [
            torch.cartesian_prod(torch.tensor(group.periods), torch.arange(group.longest)).reshape(-1, 2)
            for group in self
        ]
        period, phase = torch.cat(pairs).to(choice.device)[choice].unbind(-1)
        return period, phase

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
            self._spectrum = transform.clamp(min=_TINY)
        low, high = amplitude
        return self._spectrum * (low**2 + low * high + high**2) / 3


@lru_cache(maxsize=64)
def _tables(wave: str, periods: tuple[int, ...], weights: tuple[float, ...], time: int) -> _Tables:
    return _Tables(wave, periods, weights, time)
