"""Training a FloWaveNet on noised frames of one source: all levels at once, or as a chain of fine-tuned copies."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.errors import ConfigurationError
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.flowavenet import FloWaveNet, FloWaveNetwork, FlowSize
from pyrosep.signal.spectra import periodogram
from pyrosep.training.frames import LEVELS, Frames, highest_level, noised_frames
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer, trainer_or_preset
from pyrosep.zoo import load_priors, save_priors

__all__ = ["finetune_flowavenet", "train_flowavenet"]

#: Frames from which the mean spectrum and the first scales of the flow are found.
_FIRST = 256


def train_flowavenet(
    frames: Frames,
    size: FlowSize,
    trainer: Trainer | None = None,
    *,
    sigma_min: float = 0.01,
    sigma_max: float | None = None,
    score_weight: float = 0.0,
    contrast: float = 0.0,
    start: FloWaveNet | None = None,
) -> tuple[FloWaveNet, dict[str, Any]]:
    r"""Train a flow on :math:`x = s + \sigma\epsilon` at all noise levels: the loss is :math:`-\log p_\sigma(x) / T`.

    The logarithm of :math:`\sigma` is uniform between the lowest and the highest level. With ``score_weight``
    :math:`w` the loss has the term :math:`w \, \|\sigma \nabla_x \log p_\sigma(x) + \epsilon\|^2 / T`, denoising score
    matching (Vincent, 2011), which costs a second derivative.

    With ``contrast`` :math:`c` it has the term :math:`c \log(1 + p_\sigma(y) / p_\sigma(x')) / T`, the cross-entropy of
    telling the source's frame from a stranger :math:`y`: a constant, silence, or another source's frame (a hybrid of
    the generative and the discriminative, Bouchard and Triggs, 2004). Both have the same noise, of a part of the level
    that is drawn anew for each pair, none and all included: a frame with less noise than its level is likelier,
    whatever it is, and only like is compared with like. What comes of it is still a density, normalised as every flow
    is, but no longer the most likely one of the recordings, nor learned from the source alone: strangers lose density,
    and what the loss pays for that is taken from the fit.

    Arguments:
        frames: of the source.
        size: of the flow.
        trainer: with the settings, and a folder for checkpoints; by default with the family's preset.
        sigma_min: lowest level.
        sigma_max: highest level; the source's root mean square times the square root of the frame by default.
        score_weight, contrast: of the terms above.
        start: a trained prior to start from, of this size; its weights are copied.

    Returns:
        the prior, and figures: steps, seconds, and the held-out log-density in nats a frame at :data:`LEVELS`, beside
        the exact prior's where there is one.

    Raises:
        ConfigurationError: levels out of order, frames that the flow's stride does not divide, or a start of another
            size.
    """
    trainer = trainer_or_preset(trainer, "flowavenet")
    settings = trainer.settings
    network, top = _fresh(frames, size, settings, sigma_min, sigma_max, start)

    def draw(count: int) -> tuple[Tensor, ...]:
        sigma, clean = sigma_min * (top / sigma_min) ** torch.rand(count), frames.draw(count)
        own = noised_frames(clean, sigma)
        return (*own, *_pairs(clean, _strangers(frames, count), sigma)) if contrast else own

    held_out = _HeldOut(frames, [level for level in LEVELS if sigma_min <= level <= top], settings.seed)
    loss = _Loss(score_weight, contrast)
    result = trainer.fit(network, loss, draw, validate=held_out)
    prior = FloWaveNet(network.cpu(), frames.time, sigma_min=sigma_min, sample_rate=frames.sample_rate)
    terms = {"score_weight": score_weight, "contrast": contrast}
    return prior, result.report() | {"sigma_max": round(top, 3)} | {k: v for k, v in terms.items() if v}


def finetune_flowavenet(
    frames: Frames,
    size: FlowSize,
    trainer: Trainer,
    *,
    levels: Sequence[float] = (0.01, 0.03, 0.1, 0.36),
    name: str = "source",
    score_weight: float = 0.0,
) -> tuple[dict[float, SourcePrior], dict[float, dict[str, Any]]]:
    r"""A chain of copies: train at the lowest level for half of the steps, then fine-tune a copy for each level above.

    Each copy starts where the one before it ended, and is good at its own level alone, which is its ``sigma_min``. It
    is kept as a model in the trainer's folder, ``sigma-LEVEL``.

    Arguments:
        levels: rising.
        name: of the source in the models.
        frames, size, trainer, score_weight: see :func:`train_flowavenet`.

    Returns:
        the copies by level, and their figures.
    """
    if len(levels) < 2 or any(b <= a for a, b in itertools.pairwise(levels)):
        raise ConfigurationError(f"fine-tuning needs two or more rising levels; got {tuple(levels)}")
    if trainer.folder is None:
        raise ConfigurationError("a chain of copies needs a folder to keep them in; give Trainer(settings, folder=...)")
    settings = trainer.settings
    network, _ = _fresh(frames, size, settings, levels[0], None)
    copies: dict[float, SourcePrior] = {}
    reports: dict[float, dict[str, Any]] = {}
    for i, level in enumerate(levels):
        kept = trainer.folder / f"sigma-{level:g}"
        end = round(settings.steps * (1 + i / (len(levels) - 1)) / 2)
        if trainer.resume and (kept / "config.json").is_file():
            copies[level] = load_priors(kept)[name]
            continue

        def draw(count: int, level: float = level) -> tuple[Tensor, Tensor, Tensor]:
            return noised_frames(frames.draw(count), torch.full((count,), level))

        held_out = _HeldOut(frames, [level], settings.seed)
        result = trainer.fit(
            network, _Loss(score_weight), draw, validate=held_out, resume=trainer.resume or i > 0, until=max(1, end)
        )
        own = copy.deepcopy(network).cpu()
        copies[level] = FloWaveNet(own, frames.time, sigma_min=level, sample_rate=frames.sample_rate)
        reports[level] = result.report()
        if trainer.fabric.is_global_zero:
            save_priors(kept, {name: copies[level]}, provenance={name: reports[level]})
        trainer.fabric.barrier()
    return copies, reports


def _fresh(
    frames: Frames,
    size: FlowSize,
    settings: TrainingSettings,
    sigma_min: float,
    sigma_max: float | None,
    start: FloWaveNet | None = None,
) -> tuple[FloWaveNetwork, float]:
    """A network to train, its first scales set, or a copy of the start's; and the highest level."""
    if start is not None and start.network.size != size:
        raise ConfigurationError(f"the prior to start from must be of this size; got {start.network.size}, not {size}")
    if frames.time % size.stride:
        raise ConfigurationError(f"frames must be a multiple of {size.stride} samples for this size; got {frames.time}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        clean = frames.draw(_FIRST)
        network = FloWaveNetwork(size, periodogram(clean)) if start is None else copy.deepcopy(start.network)
        top = highest_level(float(network.variance), frames.time, sigma_min, sigma_max)
        if start is None:
            x, sigma, _ = noised_frames(clean, sigma_min * (top / sigma_min) ** torch.rand(_FIRST))
            network.initialize(x, sigma)
    return network, top


def _pairs(clean: Tensor, strangers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Frames and strangers with the same noise, between none and all of their level; both ends come up often."""
    share = (2 * torch.rand_like(sigma) - 0.5).clamp(0, 1)
    noise = (share * sigma).unsqueeze(-1) * torch.randn_like(clean)
    return clean + noise, strangers + noise


def _strangers(frames: Frames, count: int) -> Tensor:
    """Frames that are not the source's: constants, silence and, where there are any, other sources' frames."""
    constants = (2 * torch.rand(count, 1) - 1).expand(count, frames.time)
    kinds = [constants, torch.zeros(count, frames.time)]
    if frames.draw_others is not None:
        others = frames.draw_others(count)
        kinds.append(others[torch.arange(count), torch.randint(others.shape[1], (count,))])
    return torch.stack(kinds)[torch.randint(len(kinds), (count,)), torch.arange(count)]


@dataclass(frozen=True)
class _Loss:
    score_weight: float
    contrast: float = 0.0

    def __call__(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Of frames, their levels, their noise and, for the contrast, frames and strangers to tell apart."""
        x, sigma, noise, *pair = batch
        x = x.requires_grad_(bool(self.score_weight))
        log_prob = network(x, sigma)
        loss = -log_prob.mean() / x.shape[-1]
        if self.score_weight:
            (score,) = torch.autograd.grad(log_prob.sum(), x, create_graph=True)
            loss = loss + self.score_weight * (sigma.unsqueeze(-1) * score + noise).square().mean()
        if pair:
            own, stranger = network(torch.cat(pair), sigma.repeat(2)).chunk(2)
            loss = loss + self.contrast * functional.softplus(stranger - own).mean() / x.shape[-1]
        return loss


class _HeldOut:
    """The mean log-density of held-out frames at some levels, and how much below the exact prior's it is."""

    def __init__(self, frames: Frames, levels: Sequence[float], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(frames.held_out.shape, generator=generator)
        self.noised = {level: frames.held_out + level * noise for level in levels}
        self.exact = {}
        if frames.exact is not None:
            self.exact = {level: float(frames.exact.at(level).log_prob(x).mean()) for level, x in self.noised.items()}

    def __call__(self, network: nn.Module) -> dict[str, float]:
        device, figures = next(network.parameters()).device, {}
        for level, x in self.noised.items():
            nats = torch.cat([network(part.to(device), part.new_tensor([level]).to(device)) for part in x.split(16)])
            figures[f"nats at {level:g}"] = float(nats.mean())
            if level in self.exact:
                figures[f"below exact at {level:g}"] = self.exact[level] - float(nats.mean())
        return figures
