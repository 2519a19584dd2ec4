"""Mixing models: short Pyro programs over source priors.

Each function takes priors by name and returns a model ``model(mix=None)``: called with a mix it conditions on it,
without one it draws one. All are written for leading batch axes, so that many chains run as one batch; a model of
one's own need only do the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.priors import SourcePrior
from pyrosep.reading import plate_nesting, role_of

__all__ = [
    "at_level",
    "linear_mix",
    "mean_mix",
    "pan_gains",
    "panned_mix",
    "plate_nesting",
    "sample_sources",
    "soft_clipped_mix",
    "unknown_gains_mix",
]

Model = Callable[..., Tensor]


def sample_sources(priors: Mapping[str, SourcePrior]) -> Tensor:
    """One site for each source, named after it; their values stacked, ``(..., source, time)``."""
    drawn = [pyro.sample(name, prior) for name, prior in priors.items()]
    return torch.stack(torch.broadcast_tensors(*drawn), -2)  # one that is given may have fewer leading axes


def mean_mix(priors: Mapping[str, SourcePrior], noise: float = 0.01) -> Model:
    r"""The toy mix :math:`m = \frac1N \sum_k s_k + \lambda^{-1/2}\epsilon`; ``mix`` is ``(..., time)``.

    Arguments:
        priors: by source.
        noise: standard deviation of the observation noise, :math:`\lambda^{-1/2}`; full scale is 1.0.

    Example:
        >>> from pyrosep import load_priors
        >>> mix = mean_mix(load_priors("toy", frame=512))()
        >>> mix.shape
        torch.Size([512])
    """
    return linear_mix(priors, gains=[1 / max(1, len(priors))] * len(priors), noise=noise)


def linear_mix(
    priors: Mapping[str, SourcePrior], gains: Sequence[float] | Tensor | None = None, noise: float = 0.01
) -> Model:
    r"""A mix with given gains, :math:`m = \sum_k a_k s_k + \lambda^{-1/2}\epsilon`; ``mix`` is ``(..., time)``.

    Arguments:
        priors: by source.
        gains: :math:`a_k`, one for each prior in order; 1 by default.
        noise: standard deviation of the observation noise.
    """
    _check_noise(noise)
    if not priors:
        raise ConfigurationError("a mix needs at least one source; got no priors")
    weights = torch.ones(len(priors)) if gains is None else torch.as_tensor(gains, dtype=torch.get_default_dtype())
    if weights.shape != (len(priors),):
        raise ShapeError(
            f"expected {len(priors)} gains, one for each of {list(priors)}; got shape {tuple(weights.shape)}"
        )

    def model(mix: Tensor | None = None) -> Tensor:
        sources = sample_sources(priors)
        mean = (weights.to(sources).unsqueeze(-1) * sources).sum(-2)
        return pyro.sample("mix", dist.Normal(mean, noise).to_event(1), obs=mix)

    return model


def unknown_gains_mix(priors: Mapping[str, SourcePrior], noise: float = 0.01, spread_db: float = 6.0) -> Model:
    r"""A mix whose gains are unknown, :math:`\log a_k \sim N(0, \tau^2)`; ``mix`` is ``(..., time)``.

    The site ``gains`` is ``(source,)``. A source and its gain are known up to what the prior knows of its level.

    Arguments:
        priors: by source.
        noise: standard deviation of the observation noise.
        spread_db: standard deviation of the gains in dB.
    """
    _check_noise(noise)
    if not spread_db > 0:
        raise ConfigurationError(f"spread_db must be positive; got {spread_db!r}")
    scale = spread_db / 20 * math.log(10)

    def model(mix: Tensor | None = None) -> Tensor:
        sources = sample_sources(priors)
        level = sources.new_zeros(len(priors))
        gains = pyro.sample("gains", dist.LogNormal(level, level + scale).to_event(1))
        mean = (gains.unsqueeze(-1) * sources).sum(-2)
        return pyro.sample("mix", dist.Normal(mean, noise).to_event(1), obs=mix)

    return model


def panned_mix(priors: Mapping[str, SourcePrior], noise: float = 0.01) -> Model:
    r"""A stereo mix of mono sources at unknown places; ``mix`` is ``(..., 2, time)``.

    The site ``pans`` is ``(source,)``, uniform from -1 (left) to 1 (right), under the constant-power law
    (:func:`pan_gains`).

    Arguments:
        priors: by source.
        noise: standard deviation of the observation noise in each channel.
    """
    _check_noise(noise)

    def model(mix: Tensor | None = None) -> Tensor:
        sources = sample_sources(priors)
        edge = sources.new_ones(len(priors))
        channels = pan_gains(pyro.sample("pans", dist.Uniform(-edge, edge).to_event(1)))
        return pyro.sample("mix", dist.Normal(channels @ sources, noise).to_event(2), obs=mix)

    return model


def pan_gains(pans: Tensor) -> Tensor:
    r"""Gains of the constant-power law: :math:`\cos\theta, \sin\theta`, :math:`\theta = \pi (\mathrm{pan} + 1) / 4`.

    Arguments:
        pans: from -1 (left) to 1 (right), ``(..., source)``.

    Returns:
        ``(..., 2, source)``, left and right.

    Example:
        >>> pan_gains(torch.tensor([-1.0, 0.0]))
        tensor([[1.0000, 0.7071],
                [0.0000, 0.7071]])
    """
    angle = math.pi / 4 * (pans + 1)
    return torch.stack([angle.cos(), angle.sin()], -2)


def soft_clipped_mix(priors: Mapping[str, SourcePrior], noise: float = 0.01, drive: float = 1.0) -> Model:
    r"""A sum driven into a soft clipper, :math:`m = \tanh(g \sum_k s_k) / g + \lambda^{-1/2}\epsilon`; ``mix`` is
    ``(..., time)``.

    Arguments:
        priors: by source.
        noise: standard deviation of the observation noise, after the clipper.
        drive: :math:`g`; the mix stays below :math:`1 / g`.
    """
    _check_noise(noise)
    if not drive > 0:
        raise ConfigurationError(f"drive must be positive; got {drive!r}")

    def model(mix: Tensor | None = None) -> Tensor:
        mean = torch.tanh(drive * sample_sources(priors).sum(-2)) / drive
        return pyro.sample("mix", dist.Normal(mean, noise).to_event(1), obs=mix)

    return model


def at_level(model: Callable[..., Any], sigma: float | Tensor) -> Callable[..., Any]:
    """The model with each source prior at noise level ``sigma``, or at its own where that is higher; all else stays.

    Unlike :func:`~pyrosep.noised` it neither denoises nor widens the observation: it smooths the priors alone.
    """
    return _AtLevel(sigma)(model)


class _AtLevel(Messenger):
    def __init__(self, sigma: float | Tensor) -> None:
        super().__init__()
        self.sigma = sigma

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if isinstance(fn := msg["fn"], SourcePrior) and role_of(msg) == "latent":
            msg["fn"] = fn.at(torch.maximum(torch.as_tensor(self.sigma).to(fn.sigma), fn.sigma))


def _check_noise(noise: float) -> None:
    if not noise > 0:
        raise ConfigurationError(f"the observation noise must be positive; got {noise!r}")
