"""The exact density of the toy sources: the ground truth for learned priors and samplers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrosep.data.toy import AMPLITUDE, SAMPLE_RATE, WAVES, period_prior
from pyrosep.errors import ConfigurationError
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.oscillator_tables import LEAST_ENERGY, OscillatorTables, oscillator_tables
from pyrosep.priors.truncated_normal import draw_truncated_normal, truncated_normal

__all__ = ["OscillatorPrior"]

#: Elements in one working tensor (frames x periods x phases); larger batches are taken in parts.
_CHUNK = 1 << 22
#: Nats below a known pair at which another is left out: all pairs together then miss less than 1e-10 of the density.
_REACH = 36.0
#: Pairs a frame up to which adding up their waves one by one is faster than by Fourier transform.
_FEW = 24


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

    exact_draws = True

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
        self.tables: OscillatorTables
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
        tables = oscillator_tables(self.wave, self.periods, self.weights, time)
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
        return self._in_parts(value, lambda x, sigma: _Denoise.apply(x, sigma, self))

    def _in_parts(self, value: Tensor, function: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A function of frames ``(n, time)`` and levels ``(n, 1)``, double precision, a part of the batch at a time."""
        batch = torch.broadcast_shapes(value.shape[:-1], self.sigma.shape)
        x = value.double().expand(*batch, self.time).reshape(-1, self.time)
        sigma = self._level(x).expand(*batch, 1).reshape(-1, 1)
        size = max(1, _CHUNK // max(self.time, self.tables.size))
        parts = [function(a, b) for a, b in zip(x.split(size), sigma.split(size), strict=True)]
        out = torch.cat(parts)
        return out.reshape((*batch, *out.shape[1:])).to(dtype or value.dtype)

    def _posterior(self, x: Tensor, sigma: Tensor) -> _Posterior:
        """What a frame says of period, phase and amplitude; frames ``(n, time)``, levels ``(n, 1)``."""
        low, high = self.amplitude
        energy, variance = self.tables.energy, sigma.square()
        inner = self.tables.inner_products(x)

        def share(row: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The logarithm of a pair's part of the sum, and mean and variance of its amplitude."""
            product, size = inner[row, pair], energy[pair]
            nearest = (product / size).clamp(low, high)
            exponent = nearest * (product - 0.5 * nearest * size) / variance.squeeze(-1)[row]
            width = sigma.squeeze(-1)[row] / size.sqrt()
            log_integral, amplitude, spread = truncated_normal(product / size, width, low, high)
            return self.tables.log_weight[pair] + exponent + log_integral, amplitude, spread

        # Most pairs are out of the question, and the integral over the amplitude is what costs: it is taken for those
        # whose bound, the exponent at the nearest amplitude times the range's length, comes within reach of a pair that
        # is known. In place, for these are the largest tensors.
        with torch.no_grad():
            nearest = (inner / energy).clamp_(low, high)
            bound = (nearest * energy).mul_(-0.5).add_(inner).mul_(nearest).div_(variance).add_(self.tables.log_weight)
            best = bound.argmax(-1)
        known, *_ = share(torch.arange(len(x), device=x.device), best)
        known = known.detach()
        row, pair = torch.nonzero(bound > known.unsqueeze(-1) - _REACH - math.log(high - low), as_tuple=True)
        log_share, amplitude, spread = share(row, pair)
        relative = (log_share - known[row]).exp()
        total = torch.zeros_like(known).index_add(0, row, relative)
        constant = -0.5 * (x.square().sum(-1, keepdim=True) / variance + self.time * (2 * math.pi * variance).log())
        log_prob = known + total.log() + constant.squeeze(-1) - math.log(high - low)
        return _Posterior(log_prob, row, pair, relative / total[row], amplitude, spread)

    def _covariance_product(self, posterior: _Posterior, mean: Tensor, vector: Tensor) -> Tensor:
        """The posterior covariance of the clean source times a vector: ``(n, time)``."""
        if len(posterior.row) <= _FEW * len(vector):
            waves = self._cycles(*self.tables.lookup(posterior.pair))
            inner = (waves * vector[posterior.row]).sum(-1)
        else:
            inner = self.tables.inner_products(vector)[posterior.row, posterior.pair]
        square = posterior.amplitude.square() + posterior.variance
        product = self._superpose(posterior, posterior.probability * square * inner)
        return product - mean * torch.linalg.vecdot(mean, vector).unsqueeze(-1)

    def _mean(self, posterior: _Posterior) -> Tensor:
        return self._superpose(posterior, posterior.probability * posterior.amplitude)

    def _superpose(self, posterior: _Posterior, weight: Tensor) -> Tensor:
        """The waves of the pairs that count, added up frame by frame: ``(n, time)``."""
        count = len(posterior.log_prob)
        if len(weight) <= _FEW * count:
            waves = weight.unsqueeze(-1) * self._cycles(*self.tables.lookup(posterior.pair))
            return waves.new_zeros(count, self.time).index_add(0, posterior.row, waves)
        dense = weight.new_zeros(count, self.tables.size)
        return self.tables.superpose(dense.index_put((posterior.row, posterior.pair), weight))

    # --- draws ------------------------------------------------------------------------------------------------

    def draw_clean(self, value: Tensor) -> Tensor:
        self._check_time(value)
        with torch.no_grad():
            return self._in_parts(value, self._draw_clean)

    def _draw_clean(self, x: Tensor, sigma: Tensor) -> Tensor:
        posterior = self._posterior(x, sigma)
        # One draw a frame from one list: the running sum of all probabilities, and a place within each frame's part.
        running = posterior.probability.cumsum(0)
        total = x.new_zeros(len(x)).index_add(0, posterior.row, posterior.probability)
        ends = torch.bincount(posterior.row, minlength=len(x)).cumsum(0)
        choice = torch.searchsorted(running, total.cumsum(0) - total * torch.rand_like(total))
        choice = torch.minimum(choice, ends - 1).clamp(min=0)
        shape = self._cycles(*self.tables.lookup(posterior.pair[choice]))
        energy = shape.square().sum(-1).clamp(min=LEAST_ENERGY)
        best = (x * shape).sum(-1) / energy
        amplitude = draw_truncated_normal(best, sigma.squeeze(-1) / energy.sqrt(), *self.amplitude)
        return amplitude.unsqueeze(-1) * shape

    def sample_clean(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws of the clean source, ``sample_shape + batch_shape + (time,)``, in the default precision."""
        shape = torch.Size(sample_shape) + self.batch_shape
        device = self.tables.device
        weight = torch.tensor(self.weights, dtype=torch.float64, device=device)
        index = torch.multinomial(weight, max(1, shape.numel()), replacement=True)
        phase = (torch.rand(len(index), dtype=torch.float64, device=device) * self.tables.lengths[index]).long()
        low, high = self.amplitude
        amplitude = low + (high - low) * torch.rand(len(index), 1, dtype=torch.float64, device=device)
        frames = amplitude * self._cycles(index, phase)
        return frames[: shape.numel()].reshape(*shape, self.time).to(torch.get_default_dtype())

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        clean = self.sample_clean(sample_shape)
        return clean + self._level(clean) * torch.randn_like(clean)

    def _cycles(self, row: Tensor, phase: Tensor) -> Tensor:
        """Waves of unit amplitude, ``(n, time)``, of rows of the tables and phases ``(n,)``."""
        t = torch.arange(self.time, device=row.device)
        position = (t + phase.unsqueeze(-1)) % self.tables.lengths[row].unsqueeze(-1)
        return self.tables.cycles[row.unsqueeze(-1), position]

    @property
    def spectrum(self) -> Tensor:
        return self.tables.spectrum(self.amplitude)

    def __repr__(self) -> str:
        return f"OscillatorPrior({self.wave!r}, {super().__repr__().partition('(')[2]}"


class _Posterior(NamedTuple):
    """Pairs of a period and a phase that count, of all frames in one list, sorted by frame."""

    log_prob: Tensor  # (n,)
    row: Tensor  # the frame
    pair: Tensor  # index into all pairs
    probability: Tensor  # sums to one over the pairs of a frame
    amplitude: Tensor  # its mean, given the pair
    variance: Tensor  # and its variance


class _Denoise(torch.autograd.Function):
    r"""The posterior mean, whose Jacobian is the posterior covariance over :math:`\sigma^2`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: Tensor, prior: OscillatorPrior) -> Tensor:
        posterior = prior._posterior(x, sigma)
        mean = prior._mean(posterior)
        ctx.prior, ctx.posterior = prior, posterior
        ctx.save_for_backward(sigma, mean)
        return mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        sigma, mean = ctx.saved_tensors
        return ctx.prior._covariance_product(ctx.posterior, mean, grad_outputs[0]) / sigma.square(), None, None
