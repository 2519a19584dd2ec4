"""A guide that reads the sources off the mix: encoders m -> mu_k, sigma_k."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides.gains import GainsOf, MixGains
from pyrosep.guides.heads import Head
from pyrosep.guides.projection import Projection
from pyrosep.guides.sites import GuidedSites
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.encoders import Encoders
from pyrosep.nn.refining import UNetSize
from pyrosep.priors import SourcePrior

__all__ = ["EncoderGuide", "check_mix", "error_level_of"]

#: The least root mean square that a mix is divided by.
_SILENCE = 1e-7
#: Guides must not share their parameters' names in Pyro's param store.
_numbers = itertools.count()


class Encoded(NamedTuple):
    """What the encoders make of mixes.

    Attributes:
        mean, scale: of the sources, ``(..., source, time)``.
        features: of the frame, ``(..., feature)``.
        level: rms of the mix, ``(...)``.
    """

    mean: Tensor
    scale: Tensor
    features: Tensor
    level: Tensor

    @classmethod
    def of(
        cls, encoders: Encoders, mix: Tensor, floors: Tensor, channels: int | None, offsets: Sequence[int] = (0,)
    ) -> Encoded:
        """What encoders make of mixes ``(..., time)`` or ``(..., channel, time)``, which they see at a level of 1.

        Arguments:
            encoders: of mixes of variance 1.
            mix: in the encoders' precision, on their device.
            floors: the lowest deviations, ``(source,)``.
            channels: of the mix; ``None`` for a mix without that axis.
            offsets: samples of silence that the mix is seen behind; what the encoders give is averaged over them.
        """
        x = mix.reshape(-1, channels or 1, mix.shape[-1])
        level = x.square().mean((-1, -2)).sqrt().clamp(min=_SILENCE)[:, None, None]
        x, last = x / level, max(offsets)
        found = [
            encoders(functional.pad(x, (offset, last - offset)), slice(offset, offset + x.shape[-1]))
            for offset in offsets
        ]
        mean, scale, features = (torch.stack(part).mean(0) for part in zip(*found, strict=True))
        mean = level * mean
        scale = floors.unsqueeze(-1) + level * scale
        batch = mix.shape[: -1 if channels is None else -2]
        return cls(
            mean.reshape(*batch, *mean.shape[1:]),
            scale.reshape(*batch, *scale.shape[1:]),
            features.reshape(*batch, features.shape[-1]),
            level.reshape(batch),
        )


class EncoderGuide(PyroModule):
    r"""A Pyro guide :math:`q(s_1, \dots, s_N | m)` by encoders of the mix.

    Encoder k is a network, not causal, that gives a mean and a standard deviation for each sample of its source,

    .. math:: q(s_k | m) = N(\mu_k(m), \mathrm{diag}\, \sigma_k^2(m)), \qquad
              \sigma_k = t_k (\sigma_{\min} + \|m\|\, r_k), \quad r_k > 0,

    as in a variational auto-encoder (Kingma & Welling, 2014). Networks see the mix divided by its root mean square
    :math:`\|m\|`, and what they give is multiplied by it. :math:`t_k` is the buffer :attr:`temperature`, 1 until
    intervals are calibrated.

    With ``project`` the sources are no longer independent given the mix: what the encoders give is taken for
    independent Gaussians, and conditioned on :math:`m = A s + \epsilon`, :math:`\epsilon \sim N(0, rI)`, A the gains of
    the sources in each channel, which at each sample is a Gaussian over the sources,

    .. math:: N\big(\mu + K (m - A \mu),\; D - K A D\big), \qquad K = D A^T (A D A^T + rI)^{-1},
              \quad D = \mathrm{diag}\, \sigma^2,

    a proper density that lies within the observation noise of the mix. It is sampled source after source, each given
    those before it, so that every site is a Normal and the log-densities sum to the joint one. Gains may be fixed, or
    drawn first by the heads: the density is then that of the heads times that of the sources given them.

    Call it as the model, with the mix first or as ``mix=``: sites are named after the sources. Mixes in a batch are
    independent; run both guide and model under a plate then, or leave that to :func:`~pyrosep.fit_guide`.

    Arguments:
        priors: by source, or the sources' names.
        shared: one network for all sources, with outputs for each, instead of one for each source.
        size: of a network: :class:`~pyrosep.nn.refining.UNetSize` for one of the waveform,
            :class:`~pyrosep.nn.bandnet.BandSize` for one that masks the mix's short-time spectrum, as music calls for.
        project: condition on the mix. True for gains of 1/N each (:func:`~pyrosep.mixing.mean_mix`); or the gains,
            ``(source,)``, with ``channels`` ``(channel, source)``; or the name of the head whose value they are; or a
            function from the heads' values by name to gains with the values' batch axes in front,
            ``(..., source)`` or ``(..., channel, source)``. A guide with a function can't be written to a file.
        noise: standard deviation of the observation noise, :math:`r^{1/2}`, for ``project`` alone.
        channels: of the mix, ``(..., channel, time)``; ``None`` for a mix ``(..., time)``.
        heads: other latent sites, each with its event shape and its support (of torch's constraints). They get a
            mean-field Normal in the unconstrained space; :meth:`for_model` finds them.
        sigma_min: lowest standard deviation; by default each prior's ``sigma_min``, and 1e-3 for names.

    Raises:
        ConfigurationError: sources without names of their own, a ``project`` that names no head, numbers out of range.
        ShapeError: gains that don't fit the sources and channels.

    Example:
        >>> from pyrosep import load_priors
        >>> from pyrosep.nn import UNetSize
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
        size: UNetSize | BandSize | None = None,
        project: bool | str | Sequence[float] | Sequence[Sequence[float]] | Tensor | GainsOf = False,
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
        self.shared, self.channels, self.shifts = bool(shared), channels, 1
        self.size = UNetSize() if size is None else size
        self.noise = float(noise)
        self.register_buffer("sigma_min", _floors(priors, self.names, sigma_min))
        self.register_buffer("temperature", torch.ones(count))
        self.head_names = tuple(heads or {})
        self._mix_gains = MixGains(project, self.names, channels, self.head_names)
        self.register_buffer("gains", self._mix_gains.fixed(project))
        self.encoders = Encoders(channels or 1, 1 if shared else count, count, self.size)
        features = self.encoders.features
        self.heads = nn.ModuleList(Head(features, tuple(shape), support) for shape, support in (heads or {}).values())
        if self.projected and not self.noise > 0:
            raise ConfigurationError(f"the observation noise must be positive; got {self.noise!r}")
        self._begin()
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
        sites = GuidedSites.of(model, mix, priors)
        guide = cls(sites.priors, **{"channels": sites.channels, "heads": sites.heads} | options)
        for name, head in guide._named_heads():
            if name in sites.starts:
                head.begin(*sites.starts[name])
        guide._begin()
        return guide

    def _begin(self) -> None:
        """Each mean starts as the mix, in the share of it that equal sources would have."""
        with torch.no_grad():
            gains = self._mix_gains.given(self.gains, {name: head.centre() for name, head in self._named_heads()})
            if gains is None:
                gains = self.temperature.new_full((self.channels or 1, len(self.names)), 1 / len(self.names))
            # Nearly equal columns tell no source from another.
            self.encoders.direct.copy_(torch.linalg.pinv(gains, rtol=0.1))

    def _named_heads(self) -> Iterable[tuple[str, Head]]:
        return zip(self.head_names, cast("Iterable[Head]", self.heads), strict=True)

    @property
    def drawn(self) -> str | GainsOf | None:
        """A head's name or a function, where the gains are drawn."""
        return self._mix_gains.drawn

    @property
    def projected(self) -> bool:
        """Whether it is conditioned on the mix."""
        return self.drawn is not None or self.gains is not None

    # --- given a mix ----------------------------------------------------------------------------------------------

    def forward(self, mix: Tensor | None = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site, given a mix ``(..., time)`` or ``(..., channel, time)``; returns values by site."""
        if mix is None:
            raise ConfigurationError("an encoder guide needs the mix: call it as guide(mix) or guide(mix=mix)")
        mean, scale, features, level = self._encoded(mix)
        scale = self.temperature.unsqueeze(-1) * scale
        values = {name: pyro.sample(name, head(features, level)) for name, head in self._named_heads()}
        projection = self._projection(mix, mean, scale, values)
        for k, name in enumerate(self.names):
            if projection is None:
                loc, deviation = mean[..., k, :], scale[..., k, :]
            else:
                loc, deviation = projection.given_those_before(k)
            values[name] = pyro.sample(name, dist.Normal(loc, deviation).to_event(1))
            if projection is not None:
                projection.know(k, values[name])
        return values

    def encode(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoders give, before any projection: :math:`\\mu, \\sigma`, each ``(..., source, time)``."""
        mean, scale, *_ = self._encoded(mix)
        return mean, self.temperature.unsqueeze(-1) * scale

    def moments(self, mix: Tensor, encoded: Encoded | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every sample of the sources given the mix, each ``(..., source, time)``.

        Where the heads draw the gains, these are of the sources given the heads' medians (for a simplex, what the mean
        of the unconstrained space stands for): the deviations leave out what is uncertain of the gains.

        Arguments:
            mix: ``(..., time)`` or ``(..., channel, time)``.
            encoded: of this mix, where it is known already; it does not depend on the temperatures.
        """
        mean, scale, features, level = self._encoded(mix) if encoded is None else encoded
        scale = self.temperature.unsqueeze(-1) * scale
        values = (
            {} if self.drawn is None else {name: head.centre(features, level) for name, head in self._named_heads()}
        )
        projection = self._projection(mix, mean, scale, values)
        if projection is None:
            return mean, scale
        means, scales = zip(*map(projection.marginal, range(len(self.names))), strict=True)
        return torch.stack(means, -2), torch.stack(scales, -2)

    def error_level(self, mix: Tensor) -> Tensor:
        """How far the guide's sources are off by its own deviations, rms of a sample: the batch shape of the mix."""
        return error_level_of(self.moments(mix)[1])

    def _projection(self, mix: Tensor, mean: Tensor, scale: Tensor, values: dict[str, Tensor]) -> Projection | None:
        gains = self._mix_gains.given(self.gains, values)
        if gains is None:
            return None
        mix = mix.to(mean) if self.channels is not None else mix.to(mean).unsqueeze(-2)
        return Projection(mix, gains, mean, scale, self.noise)

    def _encoded(self, mix: Tensor) -> Encoded:
        """What the encoders give of a mix, their deviations before any temperature."""
        check_mix(mix, self.channels)
        offsets = [round(number * self.size.stride / self.shifts) for number in range(self.shifts)]
        return Encoded.of(self.encoders, mix.to(self.temperature), self.sigma_min, self.channels, offsets)

    def with_shifts(self, shifts: int) -> Self:
        """The same guide, its encoders' means and deviations averaged over so many shifts of the mix.

        Networks see a mix in steps, of half a window of the short-time spectrum for one of bands, and err differently
        where the steps begin elsewhere. The shifts are spread evenly over one step. Weights are shared.

        Raises:
            ConfigurationError: less than one shift, or more than a step has samples.
        """
        if not 1 <= shifts <= self.size.stride:
            raise ConfigurationError(f"shifts must be from 1 to {self.size.stride}; got {shifts!r}")
        new = copy.copy(self)
        new.shifts = shifts
        new.__dict__["_pyro_name"] = f"encoder_guide_{next(_numbers)}"
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        new.__dict__["_pyro_name"] = f"encoder_guide_{next(_numbers)}"
        return new


def check_mix(mix: Any, channels: int | None) -> None:
    """Raise ShapeError for what is no mix ``(..., time)``, or with channels ``(..., channel, time)``, of floats."""
    if not isinstance(mix, Tensor) or not mix.is_floating_point():
        raise ShapeError(f"expected the mix as a tensor of floats; got {getattr(mix, 'dtype', type(mix).__name__)}")
    least = 1 if channels is None else 2
    if mix.ndim < least or not mix.numel() or (channels is not None and mix.shape[-2] != channels):
        axes = "(..., time)" if channels is None else f"(..., {channels}, time)"
        raise ShapeError(f"expected a mix of shape {axes} with at least one sample; got {tuple(mix.shape)}")


def _floors(priors: Any, names: tuple[str, ...], given: float | Sequence[float] | None) -> Tensor:
    """The lowest standard deviation of each source, ``(source,)``."""
    if given is None:
        given = [float(priors[name].sigma_min) if isinstance(priors, Mapping) else 1e-3 for name in names]
    floors = torch.as_tensor(given, dtype=torch.get_default_dtype())
    if floors.ndim > 1 or floors.numel() not in (1, len(names)) or not bool((floors >= 0).all()):
        raise ConfigurationError(
            f"sigma_min must be one number of at least 0, or one for each of {names}; got {given!r}"
        )
    return floors.clamp(min=1e-6).expand(len(names)).clone()


def error_level_of(deviation: Tensor) -> Tensor:
    """Rms over samples and sources of deviations ``(..., source, time)``: the noise level that hides such errors."""
    return deviation.double().square().mean((-1, -2)).sqrt()
