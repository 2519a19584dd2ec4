"""The effect handler that lifts a model to a noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyrosep.errors import ConfigurationError
from pyrosep.infer.potential import Values
from pyrosep.infer.response import Responses, base_distribution, measure_responses
from pyrosep.infer.search.widening import Unknown, Widening, common_transform, required_transform, rewrapped
from pyrosep.infer.stacking import SourceRows
from pyrosep.priors import SourcePrior
from pyrosep.reading import Reading, is_data, role_of
from pyrosep.signal.spectra import ShortTimeSpectrum

__all__ = ["COUPLINGS", "Noised", "common_transform", "noised", "required_transform"]

COUPLINGS = ("noisy", "denoised", "constraint", "local")

Level = float | Tensor | Mapping[str, float | Tensor]


def noised(
    model: Callable[..., Any],
    sigma: Level,
    coupling: str = "denoised",
    *,
    responses: Responses | None = None,
    density: bool = True,
) -> Noised:
    r"""A model at a noise level, its sources replaced by :math:`x_k = s_k + \sqrt{\sigma^2 - \sigma_0^2}\,\epsilon`.

    :math:`\sigma_0` is the level of the model's own priors (their ``sigma``, as a rule ``sigma_min``), so that at
    :math:`\sigma = \sigma_0` the model is what it was, under every coupling. Sites that are no sources stay as they
    are. What the rest of the model sees of a source is the coupling's to say:

    - ``"noisy"``: :math:`x_k` itself (the baseline; BASIS, Jayaram & Thickstun, 2020).
    - ``"denoised"``: :math:`D_k = E[s_k | x_k]`, gradients passing through the denoiser (Chung et al., 2023).
    - ``"constraint"``: the same :math:`D_k`, the denoiser's Jacobian replaced by that of a stationary Gaussian with the
      prior's spectrum. The gradient then moves :math:`D_k` to where the sources explain the mix to within its own
      noise, what they leave of it shared in proportion to their posterior covariances :math:`C_k(f)`: no
      pass back through the denoiser is needed. It is the gradient of no density, unless the sources are Gaussian.
    - ``"local"``: the same, with the denoiser's own filter of the short-time spectrum, :math:`g_k` in each bin, in
      place of the stationary one; for priors that have one (:meth:`SourcePrior.filtered`), as those of music do.
      What the sources leave of the mix goes, bin by bin, to those that sound there and then.

    The observation is widened by what is not known of the sources at that level, carried to it by the model's own
    response :math:`H_k(f)` (:func:`~pyrosep.infer.response.measure_responses`):

    .. math:: V(f) = \lambda^{-1} + \sum_k |H_k(f)|^2 C_k(f), \qquad
              C_k = \sigma^2 - \sigma_0^2 \text{ (noisy)}, \quad
              C_k(f) = \frac{(\sigma^2 - \sigma_0^2)(P_k(f) + \sigma_0^2)}{P_k(f) + \sigma^2} \text{ (else)}.

    For ``"noisy"`` that is the covariance of :math:`m - f(x)` given the sources, for the others that of
    :math:`m - f(D)` given :math:`x`, if the sources are stationary and Gaussian with power :math:`P_k`; then
    ``"denoised"`` and ``"constraint"`` have exactly the posterior of :math:`x` as their target. Several channels are
    widened together, with the covariances between them; so are several observed sites, each given those before it. What
    is masked stays masked, and a heavy-tailed observation gets that variance more. For ``"local"`` V is of each bin of
    the short-time spectrum, with :math:`C_k = (\sigma^2 - \sigma_0^2) (g_k + (1 - g_k) \sigma_0^2 / \sigma^2)`.

    Arguments:
        model: a Pyro model whose priors are :class:`~pyrosep.SourcePrior` sites. Observe by ``obs=``, or condition it
            before: ``noised(poutine.condition(model, data), sigma)``.
        sigma: noise level, float, tensor of the sites' batch shape, or one for each source by name.
        coupling: see above.
        responses: from :func:`~pyrosep.infer.response.measure_responses`; by default measured at the first call, at a
            draw from the prior, which is enough where they are the same everywhere (linear mixes of known gains).
        density: if false, a source's log-probability is a zero whose gradient is the score; learned priors find that
            far faster.

    Raises:
        ConfigurationError: an unknown coupling; no source prior in the model; a level below a prior's own; an
            observation that can't be widened.

    Example:
        >>> from pyro import poutine
        >>> from pyrosep import GaussianPrior
        >>> from pyrosep.mixing import mean_mix
        >>> priors = {"a": GaussianPrior(torch.ones(2), 8), "b": GaussianPrior(torch.ones(2), 8)}
        >>> model = poutine.condition(mean_mix(priors), {"mix": torch.zeros(8)})
        >>> trace = poutine.trace(noised(model, 0.5, "noisy")).get_trace()
        >>> trace.nodes["a"]["fn"].sigma.item(), round(trace.nodes["mix"]["fn"].base_dist.scale[0].item(), 3)
        (0.5, 0.354)
    """
    return Noised(model, sigma, coupling, responses=responses, density=density)


class Noised:
    """A model at a noise level; see :func:`noised`. Its :attr:`sigma` and :attr:`responses` may be changed."""

    def __init__(
        self,
        model: Callable[..., Any],
        sigma: Level,
        coupling: str,
        *,
        responses: Responses | None = None,
        density: bool = True,
    ) -> None:
        if coupling not in COUPLINGS:
            raise ConfigurationError(f"coupling must be one of {COUPLINGS}; got {coupling!r}")
        self.model = model
        self.sigma = sigma
        self.coupling = coupling
        self.responses = responses
        self.density = density
        #: Which sources the sites stand for, where that is not one each: responses are by their labels then.
        self.rows: SourceRows | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.responses is None:
            self.responses = self._measured(args, kwargs)
        with _NoisedMessenger(self):
            return self.model(*args, **kwargs)

    def _measured(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Responses:
        with poutine.block(), torch.no_grad():
            reading = Reading.of(poutine.trace(self.model).get_trace(*args, **kwargs))
        latent = {name: site.value for name, site in reading.latent.items()}
        names = [name for name, site in reading.latent.items() if isinstance(base_distribution(site.fn), SourcePrior)]
        if not names:
            raise ConfigurationError("noised needs a model with source priors as sites; this one has none")
        rows = SourceRows(reading)
        self.rows = None if rows.plain else rows

        def run(values: Values) -> poutine.Trace:
            with poutine.block():
                return poutine.trace(poutine.condition(self.model, values)).get_trace(*args, **kwargs)

        return measure_responses(run, latent, names, self.rows)

    def level(self, name: str, prior: SourcePrior) -> tuple[Tensor, Tensor]:
        """Noise level of a source, and what it has above the prior's own: the variance."""
        given = self.sigma[name] if isinstance(self.sigma, Mapping) else self.sigma
        sigma, own = torch.as_tensor(given).to(prior.sigma), prior.sigma
        if not isinstance(given, Tensor) and bool((sigma < own * (1 - 1e-6)).any()):
            raise ConfigurationError(
                f"the prior of {name!r} is at noise level {own.max().item():.4g} already; expected a level not below "
                f"it, got {sigma.min().item():.4g}"
            )
        sigma = torch.maximum(sigma, own)
        return sigma, sigma.square() - own.square()

    def uncertainty(self, prior: SourcePrior, at: SourcePrior, added: Tensor) -> Tensor:
        """The covariance :math:`C_k(f)` of a source, ``batch_shape + (bins,)``."""
        if self.coupling == "noisy":
            return added.unsqueeze(-1).expand(*added.shape, at.time // 2 + 1)
        return prior.uncertainty(at.sigma)


class _NoisedMessenger(Messenger):
    def __init__(self, settings: Noised) -> None:
        super().__init__()
        self.settings = settings
        self.lifted: dict[str, _Lifted] = {}
        self.widening = Widening(settings.coupling, len(settings.responses or {}))

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name, fn = msg["name"], msg["fn"]
        if is_data(msg):
            if self.settings.responses and name in self.settings.responses:
                msg["fn"] = self.widening.widened(msg, self._unknown(self.settings.responses[name]))
        elif role_of(msg) == "latent" and isinstance(prior := base_distribution(fn), SourcePrior):
            sigma, added = self.settings.level(name, prior)
            lifted = _Lifted(prior, prior.at(sigma), added, self.settings)
            self.lifted[name] = lifted
            msg["fn"] = rewrapped(fn, lifted.at if self.settings.density else lifted)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        # Handlers outside have the noisy value by now; what the model goes on with is this.
        if msg["name"] in self.lifted and self.settings.coupling != "noisy":
            msg["value"] = self.lifted[msg["name"]].seen(msg["value"])

    def _unknown(self, responses: dict[str, Tensor]) -> dict[str, Unknown]:
        """By source: how the observation responds to it, and what is not known of it."""
        rows, found = self.settings.rows, {}
        local = self.settings.coupling == "local"
        if local and rows is not None:
            raise ConfigurationError(
                f"coupling 'local' needs a site for each source; this model's sources are {rows.labels}"
            )
        for number, label in enumerate(responses if rows is None else rows.labels):
            site = label if rows is None else rows.sites[number]
            if label not in responses or site not in self.lifted:
                continue
            lifted = self.lifted[site]
            power = lifted.local_uncertainty if local else lifted.uncertainty
            if rows is not None:
                power = rows.pick(number, power)
            found[label] = Unknown(responses[label], power, lifted.at)
        return found


class _Lifted(dist.TorchDistribution):
    """A source at its noise level: the score in place of the density, and what the rest of the model sees."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(self, prior: SourcePrior, at: SourcePrior, added: Tensor, settings: Noised) -> None:
        super().__init__(at.batch_shape, at.event_shape, validate_args=False)
        self.prior, self.added, self.settings = prior, added, settings
        self.at = self.base_dist = at  # as a wrapper of a source prior, for those who look for one
        #: Of the last value: itself, what is denoised of it, and the filter. Plates expand, and copies share it.
        self._last: list[Any] = [None, None, None]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.at.sample(sample_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Lifted:
        new = _Lifted(self.prior, self.at.expand(batch_shape), self.added, self.settings)
        new._last = self._last
        return new

    @property
    def uncertainty(self) -> Tensor:
        return self.settings.uncertainty(self.prior, self.at, self.added)

    def _denoise(self, value: Tensor) -> Tensor:
        # The density's gradient and the model's view of the source share one evaluation.
        if self._last[0] is not value:
            coupling = self.settings.coupling
            with torch.set_grad_enabled(torch.is_grad_enabled() and coupling == "denoised"):
                if coupling == "local":
                    clean, gain = self.at.filtered(value.detach())
                else:
                    clean, gain = self.at.denoise(value if coupling == "denoised" else value.detach()), None
            self._last[:] = value, clean, gain
        return self._last[1]

    def seen(self, value: Tensor) -> Tensor:
        """The mean of the source at the prior's own level, given its value at the higher one."""
        share = (self.added / self.at.sigma.square().clamp(min=1e-30)).unsqueeze(-1).to(value)
        clean = self._denoise(value)
        mean = value + share * (clean - value)
        if self.settings.coupling == "denoised":
            return mean
        if self.settings.coupling == "local":
            return _WithLocalJacobian.apply(value, mean.detach(), self._local_jacobian, self.at.transform)
        return _WithJacobian.apply(value, mean.detach(), self._jacobian(value))

    def _jacobian(self, value: Tensor) -> Tensor:
        added = self.added.unsqueeze(-1).to(value)
        known = self.uncertainty.to(value) / added.clamp(min=1e-30)
        return torch.where(added > 0, known, torch.ones_like(known))

    @property
    def _local_jacobian(self) -> Tensor:
        """Of what the model sees, in each bin: ``(..., frame, bin)``."""
        gain = self._last[2]
        share = (self.added / self.at.sigma.square().clamp(min=1e-30))[..., None, None].to(gain)
        return 1 - share * (1 - gain)

    @property
    def local_uncertainty(self) -> Tensor:
        """The covariance of the source in each bin, ``(..., frame, bin)``."""
        return self.added[..., None, None] * self._local_jacobian

    def log_prob(self, value: Tensor) -> Tensor:
        score = (self._denoise(value).detach() - value.detach()) / self.at._level(value).square()
        return _Score.apply(value, score)


class _Score(torch.autograd.Function):
    """A zero with a given gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        return value.new_zeros(score.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (score,) = ctx.saved_tensors
        return grad_outputs[0].unsqueeze(-1) * score, None


class _WithJacobian(torch.autograd.Function):
    """A given value of a function of ``value`` whose Jacobian is a zero-phase filter."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, result: Tensor, response: Tensor) -> Tensor:
        ctx.save_for_backward(response)
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (response,) = ctx.saved_tensors
        gradient = grad_outputs[0]
        return torch.fft.irfft(torch.fft.rfft(gradient) * response, n=gradient.shape[-1]), None, None


class _WithLocalJacobian(torch.autograd.Function):
    """A given value of a function of ``value`` whose Jacobian is a filter of the short-time spectrum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, result: Tensor, gain: Tensor, transform: ShortTimeSpectrum) -> Tensor:
        ctx.save_for_backward(gain)
        ctx.transform = transform
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gain,) = ctx.saved_tensors
        (gradient,) = grad_outputs
        filtered = ctx.transform.inverse(gain * ctx.transform(gradient.to(gain)), gradient.shape[-1])
        return filtered.to(gradient), None, None, None
