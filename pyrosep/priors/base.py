"""The interface of a source prior: one density of audio frames at every noise level."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, ClassVar, Self, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.priors.diffusion import reverse_diffusion
from pyrosep.priors.scores import check_density, slope_of
from pyrosep.priors.uncertainty import MeasuredUncertainty
from pyrosep.signal.spectra import ShortTimeSpectrum, full_sum

__all__ = ["SourcePrior", "element_of", "mean_spectrum", "rms"]

_Prior = TypeVar("_Prior", bound="SourcePrior")


class SourcePrior(TorchDistribution):
    r"""A source's density at a noise level, and with :meth:`at` the whole family over noise levels.

    It is the distribution of :math:`x = s + \sigma\epsilon`, with :math:`s` a frame of the clean source and
    :math:`\epsilon \sim N(0, I)`. Being a :class:`~pyro.distributions.TorchDistribution` with event shape
    ``(time,)``, it can be a sample site of any Pyro program.

    A family implements :meth:`_at_frame`, :meth:`_log_prob` and :meth:`sample`, and, where that is cheaper than to
    differentiate the density, :meth:`score` or :meth:`denoise`. Each of the two is found from the other by Tweedie's
    formula :math:`E[s | x] = x + \sigma^2 \nabla_x \log p_\sigma(x)` (Robbins, 1956; Efron, 2011).

    Arguments:
        frame: samples in a frame, ``time``.
        sigma: noise level, float or tensor of the batch shape; full scale is 1.0.
        sigma_min: the lowest level this family is meant for, and the one a new prior stands for.
        sample_rate: Hz, or ``None`` where the prior does not know.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    #: Whether :meth:`log_prob` is a density, or a number that only has a density's gradient.
    has_density: bool = True
    #: Whether it is a stationary Gaussian process, so that posteriors given linear mixes have a closed form.
    is_gaussian: bool = False
    #: Whether :meth:`sample` costs no more than an evaluation or two.
    quick_draws: bool = True
    #: Steps of the reverse diffusion by which :meth:`draw_clean` draws where a family has nothing better.
    reverse_steps: int = 64
    #: Whether :meth:`draw_clean` draws from the posterior itself, or from an approximation of it.
    exact_draws: bool = False
    #: Whether it can be told of interference, see :meth:`at`.
    knows_interference: bool = False
    #: The level of the interference that it expects to hear beside its source; 0 for none.
    interference: float = 0.0

    def __init__(
        self,
        frame: int,
        sigma: float | Tensor | None = None,
        *,
        sigma_min: float,
        sample_rate: int | None = None,
    ) -> None:
        if not sigma_min >= 0:
            raise ConfigurationError(f"sigma_min must be at least 0; got {sigma_min!r}")
        self.sigma_min = float(sigma_min)
        self.sample_rate = sample_rate
        self.sigma = _checked_level(self.sigma_min if sigma is None else sigma)
        super().__init__(self.sigma.shape, _checked_event(frame), validate_args=False)

    # --- the family -------------------------------------------------------------------------------------------

    def at(self, sigma: float | Tensor, interference: float | None = None) -> Self:
        r"""The same source at a noise level, and at a level of interference.

        With interference the distribution is that of :math:`x = s + \alpha i + \sigma\epsilon`, i a sum of recordings
        of *other* sources, as a denoiser meets it whose frame still holds some of them. What is known of it is
        :meth:`denoise`, :math:`E[s | x]`, and what comes of that alone (:meth:`filtered`, :meth:`draw_clean`); it
        has no density and no score.

        Arguments:
            sigma: noise level, float, or a tensor that broadcasts with the batch shape.
            interference: :math:`\alpha`, from 0 to 1; as it is by default, 0 of a new prior.

        Raises:
            ConfigurationError: a level that is out of range, or interference for a prior that was trained without.
        """
        new = copy.copy(self)
        if interference is not None:
            if not 0 <= interference <= 1:
                raise ConfigurationError(f"interference must be from 0 to 1; got {interference!r}")
            if interference and not self.knows_interference:
                raise ConfigurationError(
                    f"this {type(self).__name__} has only heard its own source and can't be told of interference; "
                    "train it with recordings of other sources (train_continuousflow(interference=...))"
                )
            new.interference = float(interference)
        new.sigma = _checked_level(sigma)
        new._batch_shape = _broadcast(self.batch_shape, new.sigma.shape)
        return new

    def frame(self, time: int) -> Self:
        """The same source for frames of ``time`` samples."""
        new = copy.copy(self)
        new._event_shape = _checked_event(time)
        new._at_frame(new.time)
        return new

    @abstractmethod
    def _at_frame(self, time: int) -> None:
        """Make what depends on the frame's length anew, in place, for frames of ``time`` samples."""

    def to(self, device: torch.device | str) -> Self:
        """The same prior with every tensor it holds on ``device``."""
        return _moved(self, device)

    def with_precision(self, precision: str, *, compiled: bool = False) -> Self:
        """The same prior, evaluated in a precision: itself where nothing in it can be.

        Arguments:
            precision: ``"32-true"``, all as it is; ``"bf16-mixed"``, networks in half precision; or ``"auto"``: half
                precision for networks that stay accurate in it, on devices that are quicker in it.
            compiled: whether networks are compiled by ``torch.compile`` too.
        """
        return self

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        new = copy.copy(self)
        new._batch_shape = _broadcast(self.batch_shape, torch.Size(batch_shape))
        return new

    @property
    def time(self) -> int:
        """Samples in a frame."""
        return self.event_shape[0]

    @property
    def spectrum(self) -> Tensor | None:
        r"""Mean power of the *clean* source per frequency, ``(time // 2 + 1,)``: :math:`E|\mathrm{rfft}(s)|^2 / T`.

        ``None`` where the family doesn't know it. Preconditioners and shared residuals take it from here.
        """
        return None

    def uncertainty(self, sigma: Tensor) -> Tensor:
        r"""What is not known of the source at this level given its value at a higher one, by frequency.

        The diagonal of the mean posterior covariance, :math:`E|\mathrm{rfft}(x_0 - E[x_0 | x])|^2 / T`, for levels
        ``sigma`` ``(...)``: ``(..., time // 2 + 1)``. Measured over a few draws from the prior, once for each level;
        families that know it override it.
        """
        levels, place = sigma.detach().cpu().double().unique(return_inverse=True)
        measured = self.__dict__.setdefault("_measured", MeasuredUncertainty())
        rows = [measured.at(self, float(level)) for level in levels]
        return torch.stack(rows).to(sigma)[place.to(sigma.device)]

    # --- the density ------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of frames ``(..., time)``, summed over time: ``(...)``.

        Its gradient in ``value`` is :meth:`score`, found in the same pass. A prior without a density raises a
        ConfigurationError, but within :func:`~pyrosep.priors.scores_suffice`.
        """
        self._check_time(value)
        self._check_alone("a density")
        check_density(self)
        value = value.expand(*_broadcast(self.batch_shape, value.shape[:-1]), self.time)
        if torch.is_grad_enabled() and value.requires_grad:
            return _LogProbWithScore.apply(value, self)
        return self._log_prob(value)

    @abstractmethod
    def _log_prob(self, value: Tensor) -> Tensor:
        """The log-density in nats, of plain differentiable operations: ``(..., time)`` to ``(...)``."""

    def _log_prob_and_score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Both at once, ``(...)`` and ``(..., time)``; families that share work between the two override it."""
        return self._log_prob(value), self.score(value)

    def score(self, value: Tensor) -> Tensor:
        r"""Gradient of the log-density, :math:`\nabla_x \log p_\sigma(x)`: ``(..., time)`` to ``(..., time)``.

        By default of the denoiser; of a family that has none, by differentiating :meth:`_log_prob`."""
        self._check_time(value)
        self._check_alone("a score")
        if type(self).denoise is SourcePrior.denoise:
            return slope_of(self._log_prob, value)
        return (self.denoise(value) - value) / self._level(value).square()

    def denoise(self, value: Tensor) -> Tensor:
        """Posterior mean of the clean source, :math:`E[s | x]`: ``(..., time)`` to ``(..., time)``."""
        self._check_time(value)
        return value + self._level(value).square() * self.score(value)

    @property
    def transform(self) -> ShortTimeSpectrum | None:
        """The short-time spectrum in whose bins its denoiser is a filter, see :meth:`filtered`; ``None`` for none."""
        return None

    def log_prob_parts(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What the log-density is made of, of families that map to latent variables; ``None`` for others.

        Returns:
            in nats, ``(...)`` each: the latent variables' density under N(0, I), the log-determinant, and what of the
            latter scales latent variables.
        """
        return None

    def filtered(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The denoised frames, and the filter that denoising them is: of families that have a :attr:`transform`.

        Returns:
            ``(..., time)``, and gains from 0 to 1 in the bins of the short-time spectrum, ``(..., frame, bin)``.

        Raises:
            ConfigurationError: its denoiser is no such filter.
        """
        raise ConfigurationError(
            f"the denoiser of {type(self).__name__} is no filter of short-time spectra; priors of the size 'music' are"
        )

    def draw_clean(self, value: Tensor) -> Tensor:
        r"""A draw of the clean source from :math:`p(s | x)`: ``(..., time)`` to ``(..., time)``.

        By default it is the end of a reverse diffusion (:mod:`pyrosep.priors.diffusion`). Its mean is right where the
        denoiser is linear, its spread too small by a share of the order of one over the number of steps. Families that
        can draw exactly override it. Draws that run away raise a DivergenceError.
        """
        self._check_time(value)
        with torch.no_grad():
            value = value.expand(*torch.broadcast_shapes(self.batch_shape, value.shape[:-1]), self.time)
            return reverse_diffusion(self, value, self.reverse_steps)

    def draw(self, value: Tensor, to: float | Tensor) -> Tensor:
        r"""A draw of the source at a lower noise level ``to``, given its value at ``sigma``: ``(..., time)`` each.

        From a clean draw s, by the Gaussian that leads from it to the value: with :math:`r = \sigma_0^2 / \sigma^2`,
        :math:`x_0 \sim N\big(s + r (x - s), \sigma_0^2 (1 - r)\big)`.
        """
        clean, level = self.draw_clean(value), self._level(value)
        low = torch.as_tensor(to).to(value).unsqueeze(-1)
        share = (low / level.clamp(min=1e-12)).square().clamp(max=1.0)
        return clean + share * (value - clean) + low * (1 - share).sqrt() * torch.randn_like(value)

    @abstractmethod
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws of ``x``, ``sample_shape + batch_shape + (time,)``."""

    # --- for the families -------------------------------------------------------------------------------------

    def _level(self, value: Tensor) -> Tensor:
        """``sigma`` in the precision and on the device of ``value``, with a time axis."""
        return self.sigma.to(value).unsqueeze(-1)

    def _check_time(self, value: Tensor) -> None:
        if value.ndim < 1 or value.shape[-1] != self.time:
            raise ShapeError(
                f"expected frames of {self.time} samples on the last axis; got shape {tuple(value.shape)}. "
                f"Use prior.frame({value.shape[-1] if value.ndim else 1}) for frames of another length"
            )

    def _check_alone(self, what: str) -> None:
        if self.interference:
            raise ConfigurationError(
                f"with interference this prior has a denoiser, but not {what}; take prior.at(sigma, interference=0)"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(frame={self.time}, sigma={_short(self.sigma)}, sample_rate={self.sample_rate})"


def _checked_event(time: int) -> torch.Size:
    """The event shape of frames of ``time`` samples."""
    if int(time) != time or time < 1:
        raise ConfigurationError(f"frame must be a whole number of samples, at least 1; got {time!r}")
    return torch.Size([int(time)])


def _checked_level(sigma: float | Tensor) -> Tensor:
    """A noise level as a tensor of floats, none of it below 0."""
    level = torch.as_tensor(sigma)
    level = level if level.is_floating_point() else level.to(torch.get_default_dtype())
    # Reading a tensor back from a GPU would stall it at every change of level.
    if level.device.type == "cpu" and not bool((level >= 0).all()):
        raise ConfigurationError(f"a noise level must be at least 0; got {sigma!r}")
    return level


def _broadcast(one: torch.Size, other: torch.Size) -> torch.Size:
    """The shape that two broadcast to: torch's own function takes 0.1 ms, much of a Gaussian prior's evaluation."""
    if one == other or not other:
        return one
    return torch.broadcast_shapes(one, other) if one else other


def _short(sigma: Tensor) -> str:
    return f"{sigma.item():.4g}" if sigma.numel() == 1 else f"tensor of shape {tuple(sigma.shape)}"


def _moved(prior: _Prior, device: torch.device | str) -> _Prior:
    new = copy.copy(prior)
    for name, value in vars(prior).items():
        if isinstance(value, Tensor):
            setattr(new, name, value.to(device))
        elif isinstance(value, torch.nn.Module):  # which moves in place: leave this prior's own where it is
            setattr(new, name, copy.deepcopy(value).to(device))
    return new


def element_of(prior: SourcePrior, number: int) -> SourcePrior:
    """The prior of one element of the batch, counted along all of its axes: by itself, without them."""
    new = copy.copy(prior)
    new.sigma = prior.sigma.expand(prior.batch_shape).reshape(-1)[number] if prior.sigma.ndim else prior.sigma
    new._batch_shape = new.sigma.shape
    return new


def mean_spectrum(prior: SourcePrior) -> Tensor:
    """The prior's spectrum; where it knows none, a flat one at the level of its draws: ``(time // 2 + 1,)``."""
    if (spectrum := prior.spectrum) is not None:
        return spectrum
    with torch.no_grad():
        draws = prior.sample(torch.Size([8]))
    power = (draws.square().mean() - prior.sigma.square().mean()).clamp(min=1e-12)
    return power.expand(prior.time // 2 + 1)


def rms(prior: SourcePrior) -> float:
    """Root mean square of the clean source, by its spectrum; full scale is 1.0."""
    return float(full_sum(mean_spectrum(prior).double(), prior.time).div(prior.time).sqrt())


class _LogProbWithScore(torch.autograd.Function):
    """A log-density whose first derivative is the score that came with it; the second is autograd's, of the score."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, prior: SourcePrior) -> Tensor:
        log_prob, score = prior._log_prob_and_score(value)
        ctx.save_for_backward(value, score)
        ctx.prior = prior
        return log_prob

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        value, score = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            score = _Score.apply(value, score, ctx.prior)
        return grad_outputs[0].unsqueeze(-1) * score, None


class _Score(torch.autograd.Function):
    """The score that is already known, differentiable."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, score: Tensor, prior: SourcePrior) -> Tensor:
        ctx.save_for_backward(value)
        ctx.prior = prior
        return score.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        with torch.enable_grad():
            x = value.detach().requires_grad_()
            (product,) = torch.autograd.grad(ctx.prior.score(x), x, grad_outputs[0])
        return product, None, None
