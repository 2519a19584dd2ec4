"""Observations widened by what is not known of the sources at a noise level."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.response import base_distribution, has_location
from pyrosep.infer.search.widened import LocalNormal, StationaryNormal
from pyrosep.priors import SourcePrior
from pyrosep.reading import kept_of
from pyrosep.signal.spectra import ShortTimeSpectrum

__all__ = ["Unknown", "Widening", "common_transform", "noise_variance", "required_transform", "rewrapped"]

#: Deviation of a response from a gain that is called a filter, relative to its size.
_FILTER = 1e-3


class Unknown(NamedTuple):
    """What is not known of a source, and how an observation responds to it.

    Attributes:
        response: :math:`H_k(f)`, ``(..., bins)``, or with channels ``(..., channel, bins)``.
        power: :math:`C_k(f)`, ``(..., bins)``; of the bins of a short-time spectrum for ``"local"``.
        at: its prior at the noise level.
    """

    response: Tensor
    power: Tensor
    at: SourcePrior


def rewrapped(fn: Any, base: Any) -> Any:
    """Another base distribution with the event axes and masks of ``fn``."""
    if isinstance(fn, dist.Independent):
        return rewrapped(fn.base_dist, base).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return rewrapped(fn.base_dist, base).mask(fn._mask)
    return base


def noise_variance(base: Any) -> Tensor:
    """The variance of a distribution with a location and a scale; its squared scale where it has none."""
    own = base.scale.square()
    if isinstance(base, dist.Normal):
        return own
    return own * _relative_variance(base)


def _relative_variance(base: Any) -> Tensor:
    variance = (base.variance / base.scale.square()).detach()
    return torch.where(variance.isfinite() & (variance > 0), variance, torch.ones_like(variance))


class Widening:
    """Widens the observations of one run, in the model's order.

    What is not known of the sources reaches all observations. So each is widened given those before it: what they tell
    of the sources' errors, of covariance :math:`C_k`, moves its mean, and lowers what is not known (Kalman, 1960).

    Arguments:
        coupling: see :func:`~pyrosep.noised`.
        sites: how many observations depend on the sources.
    """

    def __init__(self, coupling: str, sites: int) -> None:
        self.coupling, self.sites = coupling, sites
        self._errors: _Errors | None = None

    def widened(self, msg: Mapping[str, Any], unknown: Mapping[str, Unknown]) -> Any:
        """The distribution of an observed site at the noise level."""
        name, fn = msg["name"], msg["fn"]
        base = base_distribution(fn)
        if not has_location(fn):
            raise ConfigurationError(
                f"observed site {name!r} is a {type(base).__name__}, which has no scale; noise levels need an "
                "observation whose noise can be widened (Normal, StudentT, Laplace)"
            )
        if not unknown:
            return fn
        if self.coupling == "local":
            if self.sites > 1:
                raise ConfigurationError(f"coupling 'local' needs one observed site; this model has {self.sites}")
            return _locally_widened(msg, list(unknown.values()))
        if self.sites > 1:
            if self._errors is None:
                self._errors = _Errors()
            return self._errors.widened(msg, unknown)
        return _widened_alone(msg, list(unknown.values()))


def _power_of(msg: Mapping[str, Any]) -> Tensor | float:
    """The power that a handler raises a site's density to, with the axes of its event."""
    scale = msg["scale"]
    return scale.reshape(scale.shape + (1,) * msg["fn"].event_dim) if isinstance(scale, Tensor) else scale


def _lifted(power: Tensor | float, axes: int) -> Tensor | float:
    return power.reshape(power.shape + (1,) * axes) if isinstance(power, Tensor) else power


def _uniform(fn: Any) -> bool:
    """Whether an observation is a Normal of one deviation at all times, all of it observed."""
    base = base_distribution(fn)
    if not isinstance(base, dist.Normal) or fn.event_dim < 1:
        return False
    scale = base.scale.expand(base.batch_shape)
    return bool((scale == scale[..., :1]).all()) and not _masks(fn)


def _masks(fn: Any) -> bool:
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return False


def _pointwise(fn: Any, loc: Tensor, extra: Tensor) -> Any:
    """An observation with its own shape of noise, of a variance that is larger by ``extra`` at each sample."""
    base = base_distribution(fn)
    more = extra if isinstance(base, dist.Normal) else extra / _relative_variance(base)
    wide = copy.copy(base)
    wide.scale = (base.scale.square() + more).sqrt()
    wide._batch_shape = torch.broadcast_shapes(base.batch_shape, wide.scale.shape, loc.shape)
    if loc is not base.loc:
        wide.loc = loc
    return rewrapped(fn, wide)


def _widened_alone(msg: Mapping[str, Any], unknown: list[Unknown]) -> Any:
    fn = msg["fn"]
    base, stereo, power = base_distribution(fn), fn.event_dim > 1, _power_of(msg)
    scale = base.scale.expand(base.batch_shape)
    parts = [(own.response, own.power.unsqueeze(-2) if stereo else own.power) for own in unknown]
    extra = torch.stack(torch.broadcast_tensors(*(response.abs().square() * spread for response, spread in parts))).sum(
        0
    )
    extra = extra * power
    flat = extra.mean(-1, keepdim=True)
    even = bool((extra - flat).abs().max() <= 1e-4 * flat.max())
    if not _uniform(fn) or fn.event_dim > 2 or (even and fn.event_dim == 1):
        return _pointwise(fn, base.loc, flat)
    noise = scale[..., :1].square()
    if not stereo:
        return StationaryNormal(base.loc, noise + extra)
    channels = base.loc.shape[-2]
    covariance = torch.diag_embed(noise.expand(*noise.shape[:-2], channels, 1).mT.to(extra)) + 0j
    for response, spread in parts:
        column = (response * spread.sqrt()).mT  # (..., bins, channel)
        covariance = covariance + _lifted(power, 1) * (column.unsqueeze(-1) * column.conj().unsqueeze(-2))
    return StationaryNormal(base.loc, covariance)


def _locally_widened(msg: Mapping[str, Any], unknown: list[Unknown]) -> Any:
    fn = msg["fn"]
    base = base_distribution(fn)
    transform = required_transform([own.at for own in unknown], "local")
    if fn.event_dim != 1 or not _uniform(fn) or kept_of(msg) is not None:
        raise ConfigurationError(
            "coupling 'local' needs an observation of one channel with Normal noise that is the same at all times, "
            f"every sample of it observed; {msg['name']!r} is another"
        )
    scale = base.scale.expand(base.batch_shape)
    extra = scale.new_zeros(())
    for own in unknown:
        power = own.response.abs().square()
        place = torch.linspace(0, power.shape[-1] - 1, transform.size // 2 + 1, device=power.device).round()
        extra = extra + power[..., place.long()].unsqueeze(-2) * own.power
    extra = extra * _lifted(_power_of(msg), 1)
    return LocalNormal(base.loc, scale[..., :1].square().unsqueeze(-1) + extra, transform)


def _nothing(like: Tensor, channels: int, bins: int, stereo: bool) -> Tensor:
    """The response of an observation to a source that it does not depend on."""
    zeros = like.new_zeros(channels, bins) + 0j
    return zeros if stereo else zeros[0]


class _Errors:
    """What is known of the sources' errors from the observations so far: mean and covariance, by frequency or time.

    By frequency while all observations are Normal with one deviation at all times. From the first that is not on, by
    time, where what is not known is taken for white.
    """

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.mean: Tensor = torch.zeros(0)
        self.covariance: Tensor = torch.zeros(0, 0)
        self.by_time = False

    def widened(self, msg: Mapping[str, Any], unknown: Mapping[str, Unknown]) -> Any:
        """The next observation given those before it."""
        for label, own in unknown.items():
            if label not in self.labels:
                self._add(label, own.power)
        fn, base = msg["fn"], base_distribution(msg["fn"])
        bins = next(iter(unknown.values())).response.shape[-1]
        if _uniform(fn) and kept_of(msg) is None and fn.event_dim <= 2 and not self.by_time:
            return self._by_frequency(msg, base, unknown, bins)
        if not self.by_time:
            self._turn(base.loc.shape[-1])
        return self._by_time(msg, base, unknown)

    def _add(self, label: str, power: Tensor) -> None:
        """A source that no observation before has told of."""
        size = len(self.labels)
        self.labels.append(label)
        if self.by_time:
            spread = power.mean(-1, keepdim=True)
            lead = torch.broadcast_shapes(self.mean.shape[:-1], spread.shape)
        else:
            spread = power + 0j
            lead = torch.broadcast_shapes(self.mean.shape[:-1], spread.shape) if size else spread.shape
        mean, covariance = spread.new_zeros(*lead, size + 1), spread.new_zeros(*lead, size + 1, size + 1)
        if size:
            mean[..., :size] = self.mean
            covariance[..., :size, :size] = self.covariance
        covariance[..., size, size] = spread
        self.mean, self.covariance = mean, covariance

    def _turn(self, time: int) -> None:
        """From frequencies to times."""
        self.by_time = True
        self.mean = torch.fft.irfft(self.mean.movedim(-2, -1), n=time).movedim(-1, -2)
        covariance = self.covariance.real.mean(-3, keepdim=True)
        self.covariance = covariance.expand(*self.mean.shape, covariance.shape[-1]).clone()

    def _by_frequency(self, msg: Mapping[str, Any], base: Any, unknown: Mapping[str, Unknown], bins: int) -> Any:
        fn = msg["fn"]
        stereo = fn.event_dim > 1
        power = _lifted(_power_of(msg), 3 - fn.event_dim)
        channels = base.loc.shape[-2] if stereo else 1
        columns = []
        for label in self.labels:
            response = unknown[label].response if label in unknown else _nothing(base.loc, channels, bins, stereo)
            lead = response.shape[: -1 - stereo]
            columns.append((response if stereo else response.unsqueeze(-2)).expand(*lead, channels, bins))
        matrix = torch.stack(torch.broadcast_tensors(*columns), -1).movedim(-2, -3)  # (..., bins, channel, source)
        scale = base.scale.expand(base.batch_shape)[..., :1]
        noise = (scale if stereo else scale.unsqueeze(-2)).square()
        noise = torch.diag_embed(noise.expand(*noise.shape[:-2], channels, 1).mT) + 0j  # (..., 1, channel, channel)
        shift = torch.fft.irfft((matrix @ self.mean.unsqueeze(-1)).squeeze(-1).mT, n=base.loc.shape[-1])
        loc = base.loc + (shift if stereo else shift.squeeze(-2))
        seen = matrix @ self.covariance @ matrix.mH
        wide = power * seen + noise
        found = StationaryNormal(loc, wide if stereo else wide[..., 0, 0].real)
        left = torch.fft.rfft((msg["value"] - loc) if stereo else (msg["value"] - loc).unsqueeze(-2)).mT.unsqueeze(-1)
        gain = torch.linalg.solve(wide, matrix @ self.covariance).mH * power
        self.mean = self.mean + (gain @ left).squeeze(-1)
        self.covariance = self.covariance - gain @ matrix @ self.covariance
        return found

    def _by_time(self, msg: Mapping[str, Any], base: Any, unknown: Mapping[str, Unknown]) -> Any:
        fn = msg["fn"]
        gains = []
        for label in self.labels:
            response = unknown[label].response if label in unknown else _nothing(base.loc, 1, 1, False)
            gain = response.real.mean(-1, keepdim=True)
            if fn.event_dim != 1 or bool((response - gain).abs().max() > _FILTER * response.abs().max()):
                raise ConfigurationError(
                    f"observed site {msg['name']!r} is one of several that depend on the sources, and has channels or "
                    "a filter, while some are masked, have heavy tails, or noise that changes over time: noise levels "
                    "can't widen them together. Start chains without a search, LangevinMCMC(..., init='mix')"
                )
            gains.append(gain)
        row = torch.stack(torch.broadcast_tensors(*gains), -1)  # (..., 1, source)
        power = _power_of(msg)
        loc = base.loc + (row * self.mean).sum(-1)
        seen = (self.covariance @ row.unsqueeze(-1)).squeeze(-1)  # (..., time, source)
        extra = (row * seen).sum(-1)
        found = _pointwise(fn, loc, power * extra)
        kept = kept_of(msg)
        gain = seen / (noise_variance(base) / power + extra).unsqueeze(-1)
        if kept is not None:
            gain = gain.where(kept.unsqueeze(-1), 0.0)
        self.mean = self.mean + gain * (msg["value"] - loc).unsqueeze(-1)
        self.covariance = self.covariance - gain.unsqueeze(-1) * seen.unsqueeze(-2)
        return found


def common_transform(priors: list[SourcePrior]) -> ShortTimeSpectrum | None:
    """The short-time spectrum that all these priors' denoisers are filters of; ``None`` where there is none."""
    transforms = [prior.transform for prior in priors]
    first = transforms[0]
    return None if first is None or any(own is None or own.size != first.size for own in transforms) else first


def required_transform(priors: list[SourcePrior], coupling: str) -> ShortTimeSpectrum:
    """The short-time spectrum that all these priors' denoisers are filters of, which a coupling needs.

    Raises:
        ConfigurationError: there is none.
    """
    if (transform := common_transform(priors)) is None:
        windows = [prior.transform and prior.transform.size for prior in priors]
        raise ConfigurationError(
            f"coupling {coupling!r} needs priors whose denoisers are filters of short-time spectra, all of one window; "
            f"these have the windows {windows}"
        )
    return transform
