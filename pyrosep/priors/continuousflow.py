"""ContinuousFlow: the prior whose score, draws and density a denoiser for all noise levels gives."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.nn.denoiser import BandDenoiser, Preconditioned
from pyrosep.nn.precision import chosen_precision
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.probability_flow import LogDensity, ProbabilityFlow
from pyrosep.signal.spectra import ShortTimeSpectrum, interpolate_spectrum

#: Frames up to so many samples have the trace of their density exact by default; others by so many probes.
_EXACT, _PROBES = 256, 16

__all__ = ["ContinuousFlow", "LogDensity"]


class ContinuousFlow(SourcePrior):
    r"""A source's density by a learned denoiser, at all noise levels (a continuous normalizing flow).

    The score, :math:`(D(x; \sigma) - x) / \sigma^2`, takes one pass of the network. Draws and densities follow the
    probability-flow equation :math:`dx / d\sigma = (x - D(x; \sigma)) / \sigma` through the levels
    (:class:`~pyrosep.priors.probability_flow.ProbabilityFlow`). A density takes the trace of the network's Jacobian all
    along that way. So :meth:`log_prob` is none, unless asked for by :meth:`with_density`: it is zero and has the score
    for its gradient, which is all that Langevin moves need. :meth:`log_density` finds the density of some frames.

    A prior knows interference (:attr:`knows_interference`) if its network can be told of it, or if it has a second
    network, which was trained on frames with interference and is asked wherever there is some. Two networks need twice
    the memory; with them the prior of the source alone is what it was before it met other sources.

    Arguments:
        network: trained; it is frozen and set to eval mode (a copy shares it).
        frame: samples in a frame; any.
        sigma: noise level.
        sigma_min, sigma_max: lowest and highest noise level that the network was trained for; the highest is by default
            :math:`\sqrt{v}` times the root of the frame that is given here.
        sample_rate: Hz.
        interfered: the network that is asked where there is interference; ``None`` where it is ``network``, if any.

    Raises:
        ConfigurationError: levels out of order, or two networks that know interference.

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
        interfered: Preconditioned | None = None,
    ) -> None:
        super().__init__(frame, sigma, sigma_min=sigma_min, sample_rate=sample_rate)
        self.network = network.eval().requires_grad_(False)
        self.interfered = None if interfered is None else interfered.eval().requires_grad_(False)
        told = [one for one in (network, interfered) if one is not None and one.interference is not None]
        if interfered is not None and told:
            raise ConfigurationError(
                "neither of two networks is told of interference, for the second is asked wherever there is some; "
                "train the second with told='apart', beside one of its source alone"
            )
        self.knows_interference = interfered is not None or bool(told)
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

    def _asked(self) -> tuple[Preconditioned, Tensor | None]:
        """The network that denoises here, and what it is told of interference."""
        if not self.interference:
            return self.network, None
        if self.interfered is not None:
            return self.interfered, None
        return self.network, self.network.variance.new_tensor([self.interference])

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
        network, alpha = self._asked()
        with self._casting():
            clean = network.denoise(flat, sigma, alpha)
        return clean.reshape(*self._batch_of(value), self.time)

    @property
    def transform(self) -> ShortTimeSpectrum | None:
        return self.network.transform if isinstance(self.network, BandDenoiser) else None

    def filtered(self, value: Tensor) -> tuple[Tensor, Tensor]:
        network, alpha = self._asked()
        if not isinstance(network, BandDenoiser):
            return super().filtered(value)
        self._check_time(value)
        flat, sigma = self._flat(value)
        with self._casting():
            clean, gain = network.filtered(flat, sigma, alpha)
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
        new = copy.copy(self)
        new.network = _compiled(self.network, options)
        new.interfered = None if self.interfered is None else _compiled(self.interfered, options)
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

    # --- draws and densities ----------------------------------------------------------------------------------

    def with_density(self, *, steps: int | None = None, probes: int | None = None) -> Self:
        """The same prior with :meth:`log_density` for its :meth:`log_prob`, and :attr:`has_density` true.

        With the exact trace alone, a pass forward and back for every sample of a frame at each step: an estimate by
        random probes is off by nats, anew each time, and no density.

        Arguments:
            steps: see :meth:`log_density`.
            probes: 0, which has to be said for frames of more than 256 samples.

        Raises:
            ConfigurationError: probes, or a long frame whose cost was not asked for.
        """
        if probes:
            raise ConfigurationError(
                f"an estimate by {probes} random probes is no density; expected probes=0, or take log_density, which "
                "tells its standard error"
            )
        new = copy.copy(self)
        new.has_density = True
        new.density_steps = self.density_steps if steps is None else _counted("steps", steps, 1)
        new.probes = self.probes if probes is None else 0
        new._check_exact()
        return new

    def _check_exact(self) -> None:
        if self.time > _EXACT and self.probes is None:
            raise ConfigurationError(
                f"the density of frames of {self.time} samples takes that many passes at each step: ask for it by "
                "with_density(probes=0), or take log_density for an estimate and its standard error"
            )

    def log_density(self, value: Tensor, *, steps: int | None = None, probes: int | None = None) -> LogDensity:
        """Log-density in nats of frames ``(..., time)`` by the probability-flow equation.

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
        with torch.set_grad_enabled(torch.is_grad_enabled() and value.requires_grad):
            found, error = self.equation.log_density(flat, sigma.to(flat).expand(len(flat)), steps, probes)
        return LogDensity(found.reshape(shape), error.reshape(shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        if self.has_density:
            self._check_exact()
            return self.log_density(value).value
        if not (torch.is_grad_enabled() and value.requires_grad):
            return value.new_zeros(self._batch_of(value))
        return ((value - value.detach()) * self.score(value).detach()).sum(-1)

    def _log_prob_and_score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        score = self.score(value)
        return self._log_prob(value) if self.has_density else score.new_zeros(score.shape[:-1]), score

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            sigma = self.sigma.to(self.network.variance).expand(shape[:-1]).reshape(shape[:-1].numel())
            return self.equation.draw(sigma, self.time, self.draw_steps).reshape(shape)

    @property
    def equation(self) -> ProbabilityFlow:
        return ProbabilityFlow(self.network, self.sigma_min, self.sigma_max)


def _compiled(network: Preconditioned, options: dict[str, Any]) -> Preconditioned:
    """A copy whose inner network is compiled; it shares the weights."""
    new, net = copy.copy(network), copy.copy(network.net)
    run = torch.compile(network.net.forward, **options)

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.clone() for output in run(*inputs))  # the next replay of a graph overwrites its outputs

    net.forward = forward
    new._modules = network._modules | {"net": net}
    return new


def _counted(name: str, number: int, least: int) -> int:
    if int(number) != number or number < least:
        raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {number!r}")
    return int(number)
