"""A guide that reads the sources off the mix: encoders m -> mu_k, sigma_k."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.nn import functional

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides.heads import Head
from pyrosep.guides.unet import RefiningUNet, UNetSize
from pyrosep.priors import SourcePrior

__all__ = ["EncoderGuide"]

#: The least root mean square that a mix is divided by.
_SILENCE = 1e-7
#: Where softplus is 1.
_ONE = 0.5413
#: Guides must not share their parameters' names in Pyro's param store.
_numbers = itertools.count()


class EncoderGuide(PyroModule):
    r"""A Pyro guide :math:`q(s_1, \dots, s_N | m)` by encoders of the mix.

    Encoder k is a network, not causal, that gives a mean and a standard deviation for each sample of its source,

    .. math:: q(s_k | m) = N(\mu_k(m), \mathrm{diag}\, \sigma_k^2(m)), \qquad
              \sigma_k = t_k (\sigma_{\min} + \|m\|\, \mathrm{softplus}(r_k)),

    as in a variational auto-encoder (Kingma & Welling, 2014). Networks see the mix divided by its root mean square
    :math:`\|m\|`, and what they give is multiplied by it. :math:`t_k` is the buffer :attr:`temperature`, 1 until
    intervals are calibrated.

    With ``project`` the sources are no longer independent given the mix: what the encoders give is taken for
    independent Gaussians, and conditioned on :math:`m = \sum_k a_k s_k + \epsilon`, :math:`\epsilon \sim N(0, r)`,
    which at each sample is a Gaussian over the sources,

    .. math:: N\Big(\mu + D a\, \frac{m - a^T \mu}{a^T D a + r},\;
              D - \frac{D a a^T D}{a^T D a + r}\Big), \qquad D = \mathrm{diag}\, \sigma^2,

    a proper density that lies within the observation noise of the mix. It is sampled source after source, each given
    those before it, so that every site is a Normal and the log-densities sum to the joint one.

    Call it as the model, with the mix first or as ``mix=``: sites are named after the sources. Mixes in a batch are
    independent; run both guide and model under a plate then, or leave that to :func:`~pyrosep.fit_guide`.

    Arguments:
        priors: by source, or the sources' names.
        shared: one network for all sources, with outputs for each, instead of one for each source.
        size: of a network, see :class:`~pyrosep.guides.UNetSize`.
        project: condition on the mix; true for gains of 1/N each (:func:`~pyrosep.mixing.mean_mix`), or the gains.
        noise: standard deviation of the observation noise, :math:`r^{1/2}`, for ``project`` alone.
        channels: of the mix, ``(..., channel, time)``; ``None`` for a mix ``(..., time)``.
        heads: other latent sites, each with its event shape and its support (of torch's constraints). They get a
            mean-field Normal in the unconstrained space; :meth:`for_model` finds them.
        sigma_min: lowest standard deviation; by default each prior's ``sigma_min``, and 1e-3 for names.

    Example:
        >>> from pyrosep import load_priors
        >>> from pyrosep.guides import UNetSize
        >>> guide = EncoderGuide(load_priors("toy", frame=256), size=UNetSize(width=8, layers=2), project=True)
        >>> draws = guide(torch.randn(256))
        >>> list(draws), draws["saw"].shape
        (['sine', 'saw', 'square', 'triangle'], torch.Size([256]))
    """

    def __init__(
        self,
        priors: Mapping[str, SourcePrior] | Iterable[str],
        *,
        shared: bool = False,
        size: UNetSize | None = None,
        project: bool | Sequence[float] | Tensor = False,
        noise: float = 0.01,
        channels: int | None = None,
        heads: Mapping[str, tuple[Sequence[int], Any]] | None = None,
        sigma_min: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(f"encoder_guide_{next(_numbers)}")
        if isinstance(priors, str):
            raise ConfigurationError(f"expected priors by source or a list of names; got the string {priors!r}")
        self.names = tuple(priors)
        count = len(self.names)
        if not count or len(set(self.names) | set(heads or {})) < count + len(heads or {}):
            raise ConfigurationError(
                f"a guide needs one or more sources, all sites of different names; got {list(self.names)} and "
                f"{list(heads or {})}"
            )
        if channels is not None and channels < 1:
            raise ConfigurationError(
                f"channels must be at least 1, or None for a mix without that axis; got {channels}"
            )
        self.shared, self.channels = bool(shared), channels
        self.size = UNetSize() if size is None else size
        self.noise = float(noise)
        self.register_buffer("sigma_min", self._floors(priors, sigma_min))
        self.register_buffer("temperature", torch.ones(count))
        self.register_buffer("gains", self._gains(project))
        gains = torch.full((count,), 1 / count) if self.gains is None else self.gains
        self.encoders = _Encoders(channels or 1, 1 if shared else count, gains, self.size)
        self.heads = nn.ModuleList()
        self.head_names: tuple[str, ...] = ()
        for name, (shape, support) in (heads or {}).items():
            self._add_head(name, Head(self.encoders.features, tuple(shape), support))
        self.sigma_min: Tensor
        self.temperature: Tensor
        self.gains: Tensor | None

    @classmethod
    def for_model(
        cls, model: Callable[..., Any], mix: Tensor, priors: Mapping[str, SourcePrior] | None = None, **options: Any
    ) -> Self:
        """A guide for a model, its heads and channels found by running the model's prior once.

        Heads start at the mean and deviation, in the unconstrained space, of their sites' priors.

        Arguments:
            model: called with the mix.
            mix: one, without a batch: ``(time,)`` or ``(channel, time)``.
            priors: by source; those among the model's sites by default.
            options: of the guide.

        Raises:
            ConfigurationError: a latent site that is discrete, in a plate, or of a support that heads don't know; no
                source prior; more than one observed site.
        """
        with torch.no_grad(), poutine.block(), poutine.trace() as tracer:
            model(mix)
        sites = {name: site for name, site in tracer.trace.nodes.items() if site["type"] == "sample"}
        sites = {name: site for name, site in sites.items() if not poutine.util.site_is_subsample(site)}
        observed = [name for name, site in sites.items() if site["is_observed"]]
        latent = {name: site for name, site in sites.items() if not site["is_observed"]}
        if priors is None:
            priors = {name: site["fn"] for name, site in latent.items() if isinstance(site["fn"], SourcePrior)}
        if len(observed) != 1 or not priors:
            raise ConfigurationError(
                f"a guide needs a model with source priors as sites and one observed site, the mix; this one has the "
                f"sources {list(priors)} and observes {observed}"
            )
        starts = {name: _start(name, site) for name, site in latent.items() if name not in priors}
        stereo = sites[observed[0]]["fn"].event_dim > 1
        options = {"channels": mix.shape[-2] if stereo else None} | options
        guide = cls(priors, **options)
        for name, start in starts.items():
            guide._add_head(name, Head(guide.encoders.features, **start))
        return guide

    def _add_head(self, name: str, head: Head) -> None:
        self.heads.append(head)
        self.head_names = (*self.head_names, name)

    def _floors(self, priors: Any, given: float | Sequence[float] | None) -> Tensor:
        if given is None:
            own = isinstance(priors, Mapping)
            given = [float(priors[name].sigma_min) if own else 1e-3 for name in self.names]
        floors = torch.as_tensor(given, dtype=torch.get_default_dtype())
        if floors.ndim > 1 or floors.numel() not in (1, len(self.names)) or not bool((floors >= 0).all()):
            raise ConfigurationError(
                f"sigma_min must be one number of at least 0, or one for each of {self.names}; got {given!r}"
            )
        return floors.clamp(min=1e-6).expand(len(self.names)).clone()

    def _gains(self, project: bool | Sequence[float] | Tensor) -> Tensor | None:
        if project is False:
            return None
        if self.channels is not None:
            raise ConfigurationError("project needs a mix of one channel, (..., time); this guide's has channels")
        if not self.noise > 0:
            raise ConfigurationError(f"the observation noise must be positive; got {self.noise!r}")
        count = len(self.names)
        given = [1 / count] * count if project is True else project
        gains = torch.as_tensor(given, dtype=torch.get_default_dtype()).clone()
        if gains.shape != (count,) or not bool(gains.any()):
            raise ShapeError(f"expected gains for {list(self.names)}, not all zero; got {given!r}")
        return gains

    # --- what it is of a mix --------------------------------------------------------------------------------------

    def forward(self, mix: Tensor | None = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site, given a mix ``(..., time)`` or ``(..., channel, time)``; returns values by site."""
        if mix is None:
            raise ConfigurationError("an encoder guide needs the mix: call it as guide(mix) or guide(mix=mix)")
        mean, scale, features, level = self._encoded(mix)
        values = {}
        for name, head in zip(self.head_names, self.heads, strict=True):
            values[name] = pyro.sample(name, head(features, level))
        left, behind = self._innovation(mix, mean, scale)
        for k, name in enumerate(self.names):
            loc, deviation = mean[..., k, :], scale[..., k, :]
            if self.gains is None:
                values[name] = pyro.sample(name, dist.Normal(loc, deviation).to_event(1))
                continue
            gain, variance, rest = self.gains[k], deviation.square(), behind[..., k, :]
            total = rest + gain.square() * variance
            conditional = loc + gain * variance / total * left
            values[name] = pyro.sample(name, dist.Normal(conditional, deviation * (rest / total).sqrt()).to_event(1))
            left = left - gain * (values[name] - loc)
        return values

    def encode(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoders give, before any projection: :math:`\\mu, \\sigma`, each ``(..., source, time)``."""
        return self._encoded(mix)[:2]

    def moments(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every sample of the sources given the mix, each ``(..., source, time)``."""
        mean, scale, *_ = self._encoded(mix)
        if self.gains is None:
            return mean, scale
        gains, variance = self.gains.unsqueeze(-1), scale.square()
        left = mix.to(mean) - (gains * mean).sum(-2)
        weighted = gains * variance
        total = (gains * weighted).sum(-2) + self.noise**2
        # The variance of all the others and the noise beside the own: no difference of nearly equal numbers.
        others = total.unsqueeze(-2) - gains * weighted
        others = others.clamp(min=self.noise**2)
        return (
            mean + weighted * (left / total).unsqueeze(-2),
            (variance * others / total.unsqueeze(-2)).sqrt(),
        )

    def _encoded(self, mix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means and deviations ``(..., source, time)``, features ``(..., feature)`` and the mix's level ``(...)``."""
        self._check(mix)
        x = mix.to(self.temperature).reshape(-1, self.channels or 1, mix.shape[-1])
        level = x.square().mean((-1, -2)).sqrt().clamp(min=_SILENCE)[:, None, None]
        x = x / level
        mean, raw, features = self.encoders(x)
        mean = level * mean
        scale = self.sigma_min.unsqueeze(-1) + level * functional.softplus(raw + _ONE)
        scale = self.temperature.unsqueeze(-1) * scale
        batch = mix.shape[: -1 if self.channels is None else -2]
        return (
            mean.reshape(*batch, *mean.shape[1:]),
            scale.reshape(*batch, *scale.shape[1:]),
            features.reshape(*batch, features.shape[-1]),
            level.reshape(batch),
        )

    def _innovation(self, mix: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """What the means leave of the mix, and the variance of it that lies behind each source: noise and those after.

        ``(..., time)`` and ``(..., source, time)``; nothing of use where there is no projection.
        """
        if self.gains is None:
            return mix, mix
        gains = self.gains.unsqueeze(-1)
        power = gains.square() * scale.square()
        after = power.flip(-2).cumsum(-2).flip(-2)[..., 1:, :]
        after = torch.cat([after, torch.zeros_like(power[..., :1, :])], -2)
        return mix.to(mean) - (gains * mean).sum(-2), after + self.noise**2

    def _check(self, mix: Tensor) -> None:
        least = 1 if self.channels is None else 2
        if not isinstance(mix, Tensor) or not mix.is_floating_point():
            raise ShapeError(f"expected the mix as a tensor of floats; got {getattr(mix, 'dtype', type(mix).__name__)}")
        if mix.ndim < least or not mix.numel() or (self.channels is not None and mix.shape[-2] != self.channels):
            axes = "(..., time)" if self.channels is None else f"(..., {self.channels}, time)"
            raise ShapeError(f"expected a mix of shape {axes} with at least one sample; got {tuple(mix.shape)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        new.__dict__["_pyro_name"] = f"encoder_guide_{next(_numbers)}"
        return new

    @property
    def config(self) -> dict[str, Any]:
        """What it is built from, but for the weights: for a file."""
        return {
            "sources": list(self.names),
            "shared": self.shared,
            "size": dict(vars(self.size)),
            "project": False if self.gains is None else self.gains.tolist(),
            "noise": self.noise,
            "channels": self.channels,
            "heads": {name: head.config for name, head in zip(self.head_names, self.heads, strict=True)},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A guide as :attr:`config` tells, its weights new."""
        heads = {name: (own["shape"], Head.support(own)) for name, own in config["heads"].items()}
        return cls(
            config["sources"],
            shared=config["shared"],
            size=UNetSize(**config["size"]),
            project=config["project"],
            noise=config["noise"],
            channels=config["channels"],
            heads=heads,
        )


class _Encoders(nn.Module):
    """Networks from a mix of variance 1 to means and raw deviations of the sources; each mean has the mix beside it.

    Not part of the guide itself, for there Pyro would take every parameter from its store.
    """

    def __init__(self, inputs: int, networks: int, gains: Tensor, size: UNetSize) -> None:
        super().__init__()
        self.networks = nn.ModuleList(RefiningUNet(inputs, len(gains) // networks, size) for _ in range(networks))
        self.features = size.width * networks
        # Each mean starts as the mix, in the share of it that equal sources would have.
        start = gains / gains.square().sum() / inputs
        self.direct = nn.Parameter(start.unsqueeze(-1).repeat(1, inputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, features = zip(*(network(x) for network in self.networks), strict=True)
        mean, raw = torch.cat(outputs, 1).unbind(2)
        # Not a matrix product, which mixed precision would round.
        return mean + (self.direct.unsqueeze(-1) * x.unsqueeze(-3)).sum(-2), raw, torch.cat(features, -1)


def _start(name: str, site: Mapping[str, Any], draws: int = 256) -> dict[str, Any]:
    """What a head for this site is built from."""
    fn = site["fn"]
    if site["cond_indep_stack"]:
        raise ConfigurationError(
            f"latent site {name!r} stands in a plate; an encoder guide needs it as one site: .to_event(n), no plate"
        )
    if isinstance(fn, SourcePrior):
        raise ConfigurationError(f"site {name!r} has a source prior but is not among the priors given; add it")
    if fn.has_enumerate_support or fn.support.is_discrete:
        raise ConfigurationError(f"latent site {name!r} is discrete; an encoder guide needs it summed out or observed")
    with torch.no_grad():
        z = biject_to(fn.support).inv(fn.sample(torch.Size([draws])))
    return {"shape": tuple(fn.event_shape), "support": fn.support, "loc": z.mean(0), "scale": z.std(0).clamp(min=1e-4)}
