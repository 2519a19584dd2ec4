"""Training a ContinuousFlow: a denoiser of noised frames of one source, at all noise levels at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import DenoiserSize, Preconditioned, denoiser_of
from pyrosep.priors.continuousflow import ContinuousFlow
from pyrosep.signal.spectra import periodogram
from pyrosep.training.frames import LEVELS, Frames, highest_level, noised_frames
from pyrosep.training.interference import HeardFrames, Interference
from pyrosep.training.trainer import Trainer, trainer_or_preset

__all__ = ["SPREAD", "denoising_loss", "interfered_batch", "noised_batch", "train_continuousflow", "training_levels"]

#: Standard deviation of the logarithm of the levels that are trained on.
SPREAD = 1.5
#: Frames from which the mean spectrum is found.
_FIRST = 1024
#: Held-out frames that are denoised at once.
_ROWS = 16


def train_continuousflow(
    frames: Frames,
    size: DenoiserSize | BandSize,
    trainer: Trainer | None = None,
    *,
    sigma_min: float = 0.01,
    sigma_max: float | None = None,
    spread: float | None = SPREAD,
    interference: Interference | None = None,
    start: ContinuousFlow | None = None,
) -> tuple[ContinuousFlow, dict[str, Any]]:
    r"""Train a denoiser on :math:`x = s + \sigma\epsilon` at all noise levels: see :func:`denoising_loss`.

    Arguments:
        frames: of the source.
        size: of the network.
        trainer: with the settings, and a folder for checkpoints; by default with the family's preset.
        sigma_min: lowest level.
        sigma_max: highest level; the source's root mean square times the square root of the frame by default.
        spread: of the levels trained on, see :func:`training_levels`.
        interference: how other sources are mixed into frames, for a prior that can be told of interference; ``None``
            for a prior of its source alone. Needs ``frames.draw_others``. Told ``"apart"``, a second network is trained
            on those frames, and the first stays that of ``start``.
        start: a trained prior to start from, of this size; its weights are copied. It may know of no interference.

    Returns:
        the prior, and figures: steps, seconds, and the SNR in dB of held-out frames denoised at
        :data:`~pyrosep.training.frames.LEVELS`, beside the exact prior's where there is one, and with interference that
        of the same frames with other sources, at the same levels.

    Raises:
        ConfigurationError: levels out of order, a start of another size, interference for frames without others, or a
            second network without a start.
    """
    trainer = trainer_or_preset(trainer, "continuousflow")
    others = frames.draw_others
    if interference is not None and others is None:
        raise ConfigurationError("interference needs frames of other sources; give frames with draw_others")
    apart = interference is not None and interference.told == "apart"
    if apart and start is None:
        raise ConfigurationError(
            "a second network is trained beside that of a prior of its source alone; give that prior as the start"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.settings.seed)
        network = denoiser_of(
            size, periodogram(frames.draw(_FIRST)), interference=interference is not None and not apart
        )
        if start is not None:  # not its spectrum, which is the data's
            network.start_from((start.interfered if apart else None) or start.network)
    variance = float(network.variance)
    top = highest_level(variance, frames.time, sigma_min, sigma_max)

    def draw(count: int) -> tuple[Tensor, ...]:
        sigma = training_levels(count, math.sqrt(variance), sigma_min, top, spread)
        clean = frames.draw(count)
        if interference is None or others is None:
            return noised_batch(clean, sigma, variance)
        *batch, told = interfered_batch(interference(clean, others), sigma, variance)
        return tuple(batch) if apart else (*batch, told)

    about = {"size": asdict(size), "sigma_min": sigma_min, "sigma_max": top, "spread": spread}
    if interference is not None:
        about["interference"] = asdict(interference)
    held_out = _HeldOut(
        frames,
        [level for level in LEVELS if sigma_min <= level <= top],
        trainer.settings.seed,
        interference=interference,
    )
    result = trainer.fit(network, denoising_loss, draw, validate=held_out, about=about)
    trained, rate = network.cpu(), frames.sample_rate
    if start is None or not apart:
        prior = ContinuousFlow(trained, frames.time, sigma_min=sigma_min, sigma_max=top, sample_rate=rate)
    else:
        levels = {"sigma_min": start.sigma_min, "sigma_max": start.sigma_max}
        prior = ContinuousFlow(start.network, frames.time, **levels, sample_rate=rate, interfered=trained)
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
    r"""What a :class:`~pyrosep.nn.denoiser.Denoiser` is trained on: input of F, levels, and what F is to give.

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


def interfered_batch(heard: HeardFrames, sigma: Tensor, variance: float) -> tuple[Tensor, ...]:
    r"""What a denoiser is trained on that is to know interference: :math:`x = s + \ell + \sigma\epsilon`.

    Arguments:
        heard: frames of the source and what else is heard in them.
        sigma: levels, ``(n,)``.
        variance: v, the source's mean square.

    Returns:
        input of F, levels, what F is to give, the weights of the frames in :func:`denoising_loss`, and what F is told
        of the interference. The weights are all 1 without interference, else
        :math:`c_\mathrm{out}^2 / (c_\mathrm{out}^2 + \|\ell\|^2 / 2T)`, for the error that is to be expected is then
        that of the other sources too.
    """
    y, _, aim = noised_batch(heard.clean, sigma, variance)
    level = sigma.unsqueeze(-1)
    leak = heard.leak / (variance + level.square()).sqrt()  # as F hears it
    out = variance * sigma.square() / (variance + sigma.square())
    weight = out / (out + heard.leak.square().mean(-1) / 2)
    return y + leak, sigma, aim - math.sqrt(variance) / level * leak, weight, heard.told


def denoising_loss(network: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    r"""How far the denoiser is off, by a :func:`noised_batch`, as Karras et al. (2022) weigh it by levels.

    .. math:: \frac{\|D(x; \sigma) - s\|^2}{T c_\mathrm{out}^2} = \frac{\|F(y; \sigma) - F^*\|^2}{T}

    In an :func:`interfered_batch` frames have weights besides; a batch may end before what the network is told.
    """
    y, sigma, aim, *heard = batch
    if not heard:
        return (network(y, sigma) - aim).square().mean()
    weight, *told = heard
    return (weight * (network(y, sigma, *told) - aim).square().mean(-1)).mean()


class _HeldOut:
    """How well held-out frames are denoised at some levels, and how well the exact prior does it: SNR in dB.

    A second network, which is trained on frames with interference and told of none, is only heard on such.
    """

    def __init__(
        self, frames: Frames, levels: Sequence[float], seed: int, *, interference: Interference | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(frames.held_out.shape, generator=generator)
        self.clean = frames.held_out
        self.noised = {level: frames.held_out + level * noise for level in levels}
        self.exact: dict[float, float] = {}
        if frames.exact is not None:
            self.exact = {
                level: self._snr(self.clean, frames.exact.at(level).denoise(x)) for level, x in self.noised.items()
            }
        self.heard: HeardFrames | None = None
        if interference is not None and frames.draw_others is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 2**33)
                self.heard = replace(interference, share=1.0)(frames.held_out, frames.draw_others)

    @staticmethod
    def _snr(clean: Tensor, found: Tensor) -> float:
        """Of the power and the error of all frames together: silent ones have no ratio of their own."""
        return float(10 * torch.log10(clean.square().sum() / (found - clean).square().sum()))

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        assert isinstance(network, Preconditioned)
        figures = {}
        second = self.heard is not None and network.interference is None
        for level, x in self.noised.items() if not second else ():
            figures[f"SNR at {level:g}"] = self._snr(self.clean, self._denoised(network, x, level))
            if level in self.exact:
                figures[f"exact at {level:g}"] = self.exact[level]
        if self.heard is not None:
            clean, leak, told = self.heard
            for level, x in self.noised.items():
                mixed = x - self.clean + clean + leak
                found = self._denoised(network, mixed, level, None if second else told)
                figures[f"SNR with others at {level:g}"] = self._snr(clean, found)
        return figures

    @staticmethod
    def _denoised(network: Preconditioned, x: Tensor, level: float, told: Tensor | None = None) -> Tensor:
        device, parts = network.variance.device, []
        for k, part in enumerate(x.split(_ROWS)):
            alpha = None if told is None else told[k * _ROWS : (k + 1) * _ROWS].to(device)
            parts.append(network.denoise(part.to(device), part.new_tensor([level]).to(device), alpha).cpu())
        return torch.cat(parts)
