"""Training a ContinuousFlow: a denoiser of noised frames of one source, at all noise levels at once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError
from pyrosep.priors.bandnet import BandSize
from pyrosep.priors.continuousflow import ContinuousFlow
from pyrosep.priors.denoiser import DenoiserSize, Preconditioned, denoiser_of
from pyrosep.priors.frames import LEVELS, Frames, highest_level, noised_frames, periodogram
from pyrosep.trainer import Trainer, TrainingSettings

__all__ = ["SPREAD", "denoising_loss", "noised_batch", "train_continuousflow", "training_levels"]

#: Standard deviation of the logarithm of the levels that are trained on.
SPREAD = 1.5
#: Frames from which the mean spectrum is found.
_FIRST = 1024


def train_continuousflow(
    frames: Frames,
    size: DenoiserSize | BandSize,
    settings: TrainingSettings,
    *,
    sigma_min: float = 0.01,
    sigma_max: float | None = None,
    spread: float | None = SPREAD,
    start: ContinuousFlow | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    until: int | None = None,
    label: str = "training",
    quiet: bool = False,
    fabric: Any = None,
) -> tuple[ContinuousFlow, dict[str, Any]]:
    r"""Train a denoiser on :math:`x = s + \sigma\epsilon` at all noise levels: see :func:`denoising_loss`.

    Arguments:
        frames: of the source.
        size: of the network.
        settings: of the training.
        sigma_min: lowest level.
        sigma_max: highest level; the source's root mean square times the square root of the frame by default.
        spread: of the levels trained on, see :func:`training_levels`.
        start: a trained prior to start from, of this size; its weights are copied.
        folder, resume, until, label, quiet, fabric: see :class:`~pyrosep.trainer.Trainer`.

    Returns:
        the prior, and figures: steps, seconds, and the SNR in dB of held-out frames denoised at
        :data:`~pyrosep.priors.frames.LEVELS`, beside the exact prior's where there is one.

    Raises:
        ConfigurationError: levels out of order, or a start of another size.
    """
    if start is not None and start.network.size != size:
        raise ConfigurationError(f"the prior to start from must be of this size; got {start.network.size}, not {size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = denoiser_of(size, periodogram(frames.draw(_FIRST)))
        if start is not None:  # not its spectrum, which is the data's
            network.load_state_dict(dict(network.state_dict()) | dict(start.network.named_parameters()))
    variance = float(network.variance)
    top = highest_level(variance, frames.time, sigma_min, sigma_max)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        sigma = training_levels(count, math.sqrt(variance), sigma_min, top, spread)
        return noised_batch(frames.draw(count), sigma, variance)

    about = {"size": asdict(size), "sigma_min": sigma_min, "sigma_max": top, "spread": spread}
    trainer = Trainer(settings, folder=folder, about=about, label=label, quiet=quiet, fabric=fabric)
    held_out = _HeldOut(frames, [level for level in LEVELS if sigma_min <= level <= top], settings.seed)
    result = trainer.fit(network, denoising_loss, draw, validate=held_out, resume=resume, until=until)
    prior = ContinuousFlow(
        network.cpu(), frames.time, sigma_min=sigma_min, sigma_max=top, sample_rate=frames.sample_rate
    )
    return prior, result.report()


def training_levels(count: int, centre: float, sigma_min: float, sigma_max: float, spread: float | None) -> Tensor:
    r"""Noise levels to train on, ``(count,)``: :math:`\log\sigma` normal about ``centre``, cut off at both ends.

    Arguments:
        count: how many.
        centre: their median, but for the ends: the source's root mean square.
        sigma_min, sigma_max: the ends.
        spread: standard deviation of the logarithm; ``None`` for a logarithm that is uniform between the ends.
    """
    if spread is None:
        return sigma_min * (sigma_max / sigma_min) ** torch.rand(count)
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64).div(centre).log() / spread
    low, high = torch.special.ndtr(ends)
    place = low + (high - low) * torch.rand(count, dtype=torch.float64)
    sigma = centre * (spread * torch.special.ndtri(place)).exp()
    return sigma.clamp(sigma_min, sigma_max).float()


def noised_batch(clean: Tensor, sigma: Tensor, variance: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""What a :class:`~pyrosep.priors.Denoiser` is trained on: input of F, levels, and what F is to give.

    .. math:: y = \frac{s + \sigma\epsilon}{\sqrt{v + \sigma^2}}, \qquad
              \sin\theta\, s / \sqrt v - \cos\theta\, \epsilon, \quad \tan\theta = \sigma / \sqrt v

    Arguments:
        clean: frames, ``(n, time)``.
        sigma: levels, ``(n,)``.
        variance: v, the source's mean square.
    """
    x, _, noise = noised_frames(clean, sigma)
    level = sigma.unsqueeze(-1)
    scale = (variance + level.square()).sqrt()
    root = math.sqrt(variance)
    return x / scale, sigma, (level / root * clean - root * noise) / scale


def denoising_loss(network: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    r"""How far the denoiser is off, by a :func:`noised_batch`, as Karras et al. (2022) weigh it by levels.

    .. math:: \frac{\|D(x; \sigma) - s\|^2}{T c_\mathrm{out}^2} = \frac{\|F(y; \sigma) - F^*\|^2}{T}
    """
    y, sigma, aim = batch
    return (network(y, sigma) - aim).square().mean()


class _HeldOut:
    """How well held-out frames are denoised at some levels, and how well the exact prior does it: SNR in dB."""

    def __init__(self, frames: Frames, levels: Sequence[float], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(frames.held_out.shape, generator=generator)
        self.clean = frames.held_out
        self.noised = {level: frames.held_out + level * noise for level in levels}
        self.exact: dict[float, float] = {}
        if frames.exact is not None:
            self.exact = {level: self._snr(frames.exact.at(level).denoise(x)) for level, x in self.noised.items()}

    def _snr(self, found: Tensor) -> float:
        """Of the power and the error of all frames together: silent ones have no ratio of their own."""
        return float(10 * torch.log10(self.clean.square().sum() / (found - self.clean).square().sum()))

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        assert isinstance(network, Preconditioned)
        device, figures = network.variance.device, {}
        for level, x in self.noised.items():
            parts = [network.denoise(part.to(device), part.new_tensor([level]).to(device)) for part in x.split(16)]
            figures[f"SNR at {level:g}"] = self._snr(torch.cat(parts).cpu())
            if level in self.exact:
                figures[f"exact at {level:g}"] = self.exact[level]
        return figures
