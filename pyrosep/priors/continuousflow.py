"""ContinuousFlow: the prior whose score, draws and density a denoiser for all noise levels gives."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.nn.denoiser import BandDenoiser, Preconditioned
from pyrosep.nn.precision import chosen_precision
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.gaussian import GaussianPrior
from pyrosep.signal.spectra import ShortTimeSpectrum, interpolate_spectrum

#: Frames up to so many samples have the trace of their density exact by default; others by so many probes.
_EXACT, _PROBES = 256, 16
#: Frames that the network gets at once for the trace of a density.
_ROWS = 256

__all__ = ["ContinuousFlow", "LogDensity"]


class LogDensity(NamedTuple):
    """A log-density in nats and how well it is known.

    Attributes:
        value: ``(...)``.
        standard_error: of the trace's random estimate, ``(...)``; 0 where the trace is exact.
    """

    value: Tensor
    standard_error: Tensor


class ContinuousFlow(SourcePrior):
    r"""A source's density by a learned denoiser, at all noise levels (a continuous normalizing flow).

    The score, :math:`(D(x; \sigma) - x) / \sigma^2`, takes one pass of the network. Frames at different levels are
    carried into each other by the probability-flow equation :math:`dx / d\sigma = (x - D(x; \sigma)) / \sigma` (Song
    et al., 2021; Karras et al., 2022), which here is, for the density is then exact where F is zero,

    .. math:: \frac{dy}{d\theta} = -F(y; \sigma), \qquad y = \frac{x}{\sqrt{v + \sigma^2}}, \quad
              \tan\theta = \frac{\sigma}{\sqrt v},

    by Heun's method between levels evenly spaced in :math:`\log\sigma`. At the highest level, and above, the density is
    that of a stationary Gaussian with the source's spectrum, in noise; levels below ``sigma_min`` are reached from
    there in one step.

    A density takes the trace of F's Jacobian all along that way. So :meth:`log_prob` is none, unless asked for by
    :meth:`with_density`: it is zero and has the score for its gradient, which is all that Langevin moves need.
    :meth:`log_density` finds the density of some frames.

    Arguments:
        network: trained; it is frozen and set to eval mode (a copy shares it).
        frame: samples in a frame; any.
        sigma: noise level.
        sigma_min, sigma_max: lowest and highest noise level that the network was trained for; the highest is by default
            :math:`\sqrt{v}` times the root of the frame that is given here.
        sample_rate: Hz.

    Example:
        >>> from pyrosep.nn import DENOISERS, Denoiser
        >>> prior = ContinuousFlow(Denoiser(DENOISERS["tiny"], torch.ones(33)), frame=50)
        >>> x = prior.at(0.5).sample((3,))
        >>> prior.at(0.5).denoise(x).shape
        torch.Size([3, 50])
        >>> prior.at(0.5).log_density(x).value.shape, prior.has_density, prior.with_density().has_density
        (torch.Size([3]), False, True)
    """

    has_density = False
    quick_draws = False
    #: Steps of the probability-flow equation for a draw, and for a density; each takes two passes.
    draw_steps: int = 16
    density_steps: int = 32
    #: Random signs by which the trace of a density is estimated; see :meth:`log_density`.
    probes: int | None = None
    #: What the network computes in where that is safe; ``None``: in its own precision. See :meth:`with_autocast`.
    autocast: torch.dtype | None = None

    def __init__(
        self,
        network: Preconditioned,
        frame: int = 16_384,
        sigma: float | Tensor | None = None,
        *,
        sigma_min: float = 0.01,
        sigma_max: float | None = None,
        sample_rate: int | None = None,
    ) -> None:
        super().__init__(frame, sigma, sigma_min=sigma_min, sample_rate=sample_rate)
        self.network = network.eval().requires_grad_(False)
        self.knows_interference = network.interference is not None
        self.sigma_max = math.sqrt(float(network.variance) * frame) if sigma_max is None else float(sigma_max)
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigurationError(
                f"sigma_min must be above 0 and below sigma_max; got {self.sigma_min:g} and {self.sigma_max:g}"
            )

    def _at_frame(self, time: int) -> None:
        pass  # the network pads what its stride does not divide

    @property
    def spectrum(self) -> Tensor:
        return interpolate_spectrum(self.network.spectrum, self.time // 2 + 1)

    # --- the denoiser -----------------------------------------------------------------------------------------

    @property
    def _alpha(self) -> Tensor | None:
        """What the network is told of interference."""
        return self.network.variance.new_tensor([self.interference]) if self.interference else None

    def _flat(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``(n, time)`` in their own precision, and their levels in the network's, ``(n,)``, or ``(1,)``."""
        value = value.expand(*self._batch_of(value), self.time)
        sigma = self.sigma.to(self.network.variance)
        one = sigma.numel() == 1
        levels = sigma.reshape(1) if one else sigma.expand(value.shape[:-1]).reshape(-1)
        return value.reshape(-1, self.time), levels

    def denoise(self, value: Tensor) -> Tensor:
        self._check_time(value)
        flat, sigma = self._flat(value)
        with self._casting():
            clean = self.network.denoise(flat, sigma, self._alpha)
        return clean.reshape(*self._batch_of(value), self.time)

    @property
    def transform(self) -> ShortTimeSpectrum | None:
        return self.network.transform if isinstance(self.network, BandDenoiser) else None

    def filtered(self, value: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(self.network, BandDenoiser):
            return super().filtered(value)
        self._check_time(value)
        flat, sigma = self._flat(value)
        with self._casting():
            clean, gain = self.network.filtered(flat, sigma, self._alpha)
        batch = self._batch_of(value)
        return clean.reshape(*batch, self.time), gain.reshape(*batch, *gain.shape[1:])

    def score(self, value: Tensor) -> Tensor:
        self._check_time(value)
        self._check_alone("a score")
        flat, sigma = self._flat(value)
        with self._casting():
            flow, (_, out, scale) = self.network.flow_of(flat, sigma)
        # (D - x) / sigma^2, without the difference of what is nearly the same at low levels.
        score = out / sigma.to(flat).square().unsqueeze(-1) * flow - scale.square() * flat
        return score.reshape(*self._batch_of(value), self.time)

    def with_autocast(self, dtype: torch.dtype | None = torch.bfloat16) -> Self:
        """The same prior, its network evaluated in mixed precision (``torch.autocast``).

        Convolutions and products of matrices are then computed in half precision; the first and last layers, Fourier
        transforms, and all that is outside the network, are not. In bfloat16 the priors that ship, on held-out frames,
        denoise with an error larger by at most 3 % at noise levels from 0.1 up, and 12 % below. Densities and
        draws from the prior, which sum over many levels, are always computed in full.

        Arguments:
            dtype: a half precision, or ``None`` for the network's own.
        """
        new = copy.copy(self)
        new.autocast = dtype
        return new

    def compiled(self, **options: Any) -> Self:
        """The same prior, its network compiled by ``torch.compile`` (a copy, whose weights are shared).

        The first evaluation of each batch size and frame length takes a minute or so: for long chains and tracks.

        Arguments:
            options: of ``torch.compile``; on a GPU ``mode="reduce-overhead"`` replays CUDA graphs.
        """
        new, network, net = copy.copy(self), copy.copy(self.network), copy.copy(self.network.net)
        run = torch.compile(self.network.net.forward, **options)

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(output.clone() for output in run(*inputs))  # the next replay of a graph overwrites its outputs

        net.forward = forward
        network._modules = network._modules | {"net": net}
        new.network = network
        return new

    def with_precision(self, precision: str, *, compiled: bool = False) -> Self:
        chosen = "32-true" if precision == "auto" and not self.network.safe_in_half else precision
        half = chosen_precision(chosen, self.network.variance.device) == "bf16-mixed"
        new = self.with_autocast() if half else self
        return new.compiled() if compiled else new

    def _casting(self) -> torch.autocast:
        kind = self.network.variance.device.type
        return torch.autocast(kind, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def _batch_of(self, value: Tensor) -> torch.Size:
        return torch.broadcast_shapes(self.batch_shape, value.shape[:-1])

    # --- the density ------------------------------------------------------------------------------------------

    def with_density(self, *, steps: int | None = None, probes: int | None = None) -> Self:
        """The same prior with :meth:`log_density` for its :meth:`log_prob`, and :attr:`has_density` true.

        Arguments:
            steps, probes: see :meth:`log_density`.
        """
        new = copy.copy(self)
        new.has_density = True
        new.density_steps = self.density_steps if steps is None else _counted("steps", steps, 1)
        new.probes = self.probes if probes is None else _counted("probes", probes, 0)
        return new

    def log_density(self, value: Tensor, *, steps: int | None = None, probes: int | None = None) -> LogDensity:
        r"""Log-density in nats of frames ``(..., time)`` by the probability-flow equation.

        .. math:: \log p_\sigma(x) = \log p_{\sigma_\mathrm{max}}(x_\mathrm{max})
                  + \frac T2 \log \frac{v + \sigma_\mathrm{max}^2}{v + \sigma^2}
                  - \int_\theta^{\theta_\mathrm{max}} \mathrm{tr} \frac{\partial F}{\partial y} d\theta

        Arguments:
            value: frames.
            steps: of the equation; an error of theirs falls with their square. :attr:`density_steps` by default.
            probes: random signs that the trace is estimated with (Hutchinson, 1990), at least two for a standard error;
                0 for the exact trace, which takes a pass forward and back for every sample of the frame.
                :attr:`probes` by default, and where that is ``None``, 0 for frames up to 256 samples and else 16.
        """
        self._check_time(value)
        self._check_alone("a density")
        steps = self.density_steps if steps is None else _counted("steps", steps, 1)
        probes = self.probes if probes is None else _counted("probes", probes, 0)
        if probes is None:
            probes = 0 if self.time <= _EXACT else _PROBES
        shape = self._batch_of(value)
        flat, sigma = self._flat(value)
        if probes:
            directions = torch.randint(0, 2, (probes, *flat.shape), device=flat.device).to(flat) * 2 - 1
        else:
            eye = torch.eye(self.time, dtype=flat.dtype, device=flat.device)
            directions = eye.unsqueeze(1).expand(-1, len(flat), -1)
        sigma = sigma.to(flat).expand(len(flat))
        levels = self._levels(sigma, steps)
        with torch.set_grad_enabled(torch.is_grad_enabled() and value.requires_grad):
            y, traces = self._carry(flat / self._scale(sigma), levels, directions)
            end = GaussianPrior(self.network.spectrum.to(flat), self.time, levels[-1], sigma_min=0.0)
            found = end.log_prob(y * self._scale(levels[-1])) - (traces.mean(0) if probes else traces.sum(0))
            found = found + self.time * (self._scale(levels[-1]) / self._scale(sigma)).squeeze(-1).log()
        error = traces.std(0) / math.sqrt(probes) if probes > 1 else torch.full_like(found, math.nan if probes else 0.0)
        return LogDensity(found.reshape(shape), error.detach().reshape(shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        if self.has_density:
            return self.log_density(value).value
        if not (torch.is_grad_enabled() and value.requires_grad):
            return value.new_zeros(self._batch_of(value))
        return ((value - value.detach()) * self.score(value).detach()).sum(-1)

    def _log_prob_and_score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        score = self.score(value)
        return self._log_prob(value) if self.has_density else score.new_zeros(score.shape[:-1]), score

    # --- the probability-flow equation ------------------------------------------------------------------------

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            like = self.network.variance
            rows = shape[:-1].numel()
            sigma = self.sigma.to(like).expand(shape[:-1]).reshape(rows)
            levels = self._levels(sigma, self.draw_steps).flip(0)
            start = GaussianPrior(self.network.spectrum, self.time, levels[0], sigma_min=0.0).sample()
            y, _ = self._carry(start / self._scale(levels[0]), levels)
            return (y * self._scale(sigma)).reshape(shape)

    def _scale(self, sigma: Tensor) -> Tensor:
        r""":math:`\sqrt{v + \sigma^2}` with a time axis."""
        return (self.network.variance.to(sigma) + sigma.square()).sqrt().unsqueeze(-1)

    def _levels(self, sigma: Tensor, steps: int) -> Tensor:
        """From levels ``(n,)`` up to the highest, ``(step + 1, n)``, or one more where any is below the lowest."""
        low = sigma.clamp(min=self.sigma_min)
        ratio = (self.sigma_max / low).clamp(min=1.0)
        share = torch.linspace(0, 1, steps + 1, dtype=sigma.dtype, device=sigma.device).unsqueeze(-1)
        levels = low * ratio**share
        return torch.cat([sigma.unsqueeze(0), levels]) if bool((sigma < low).any()) else levels

    def _carry(self, y: Tensor, levels: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames ``(n, time)`` carried through levels ``(step + 1, n)``, and the integral of ``d J d`` by directions.

        Arguments:
            directions: ``(k, n, time)``, of the Jacobian's quadratic forms; their integrals are ``(k, n)``.
        """
        angles = (levels / self.network.variance.sqrt().to(levels)).atan()
        integral = y.new_zeros(()) if directions is None else y.new_zeros(directions.shape[:2])
        flow, form = self._flow(y, levels[0], directions)
        for here, after, level in zip(angles, angles[1:], levels[1:], strict=False):
            step = (after - here).unsqueeze(-1)
            ahead, _ = self._flow(y - step * flow, level)
            y = y - step / 2 * (flow + ahead)
            before = form
            flow, form = self._flow(y, level, directions)
            integral = integral + (after - here) / 2 * (before + form)
        return y, integral

    def _flow(self, y: Tensor, sigma: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """F of frames ``(n, time)`` at levels ``(n,)``, and quadratic forms of its Jacobian, ``(k, n)``."""
        sigma = sigma.clamp(min=self.sigma_min).to(self.network.variance)
        flow = self.network(y.to(sigma), sigma).to(y.dtype)
        if directions is None:
            return flow, y.new_zeros(())
        graph = torch.is_grad_enabled()
        forms = []
        with torch.enable_grad():
            for part in directions.split(max(1, _ROWS // len(y))):
                many = y.expand(part.shape).reshape(-1, y.shape[-1])
                many = many if graph else many.detach().requires_grad_()
                out = self.network(many.to(sigma), sigma.repeat(len(part))).to(y.dtype)
                aim = part.reshape(many.shape)
                (image,) = torch.autograd.grad(out, many, aim, create_graph=graph)
                forms.append((image * aim).sum(-1).reshape(part.shape[:2]))
        return flow, torch.cat(forms)


def _counted(name: str, number: int, least: int) -> int:
    if int(number) != number or number < least:
        raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {number!r}")
    return int(number)
