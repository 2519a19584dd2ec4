"""Training a FloWaveNet on noised frames of one source: all levels at once, or as a chain of fine-tuned copies."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrosep.data import RandomCrops, Song
from pyrosep.errors import ConfigurationError
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.flowavenet import FloWaveNet, FloWaveNetwork, FlowSize
from pyrosep.priors.models import load_priors, save_priors
from pyrosep.priors.oscillator import OscillatorPrior
from pyrosep.trainer import Trainer, TrainingResult, TrainingSettings

__all__ = ["LEVELS", "Frames", "finetune_flowavenet", "song_frames", "toy_frames", "train_flowavenet"]

#: Noise levels at which held-out frames are judged; those of published figures among them.
LEVELS = (0.01, 0.03, 0.1, 0.36, 1.0, 3.0)
#: Frames from which the mean spectrum and the first scales of the flow are found.
_FIRST = 256


@dataclass(frozen=True)
class Frames:
    """Clean frames of one source to train on.

    Attributes:
        draw: so many random frames, ``(count, time)``, by torch's own generator.
        held_out: frames to judge by, ``(n, time)``, none of which :attr:`draw` gives.
        sample_rate: Hz.
        exact: the source's exact prior where it is known; what is held out is then judged beside it.
    """

    draw: Callable[[int], Tensor]
    held_out: Tensor
    sample_rate: int
    exact: SourcePrior | None = None

    @property
    def time(self) -> int:
        """Samples in a frame."""
        return self.held_out.shape[-1]


def toy_frames(wave: str, frame: int, *, held_out: int = 64, seed: int = 0) -> Frames:
    """Frames of a toy oscillator, without end."""
    exact = OscillatorPrior(wave, frame)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2**32)
        kept = exact.sample_clean((held_out,)).float()
    return Frames(lambda count: exact.sample_clean((count,)).float(), kept, int(exact.sample_rate or 0), exact)


def song_frames(
    songs: Sequence[Song],
    source: str,
    frame: int,
    *,
    sample_rate: int | None = None,
    held_out: int = 64,
    seed: int = 0,
) -> Frames:
    """Random crops of a source's recordings; of ten songs and more every tenth is held out, else other crops of all.

    Raises:
        DataError: see :class:`~pyrosep.data.RandomCrops`.
    """
    having = [song for song in songs if source in song.stems] or list(songs)
    apart = having[9::10]
    train = [song for song in having if song not in apart]
    crops = RandomCrops(train, source, frame, sample_rate, size=2**32, seed=seed)
    kept = RandomCrops(apart or train, source, frame, crops.sample_rate, size=held_out, seed=seed + 1)

    def draw(count: int) -> Tensor:
        return torch.stack([crops[index] for index in torch.randint(2**32, (count,)).tolist()])

    return Frames(draw, torch.stack([kept[i] for i in range(held_out)]), crops.sample_rate)


def train_flowavenet(
    frames: Frames,
    size: FlowSize,
    settings: TrainingSettings,
    *,
    sigma_min: float = 0.01,
    sigma_max: float | None = None,
    score_weight: float = 0.0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    until: int | None = None,
    label: str = "training",
    quiet: bool = False,
    fabric: Any = None,
) -> tuple[FloWaveNet, dict[str, Any]]:
    r"""Train a flow on :math:`x = s + \sigma\epsilon` at all noise levels: the loss is :math:`-\log p_\sigma(x) / T`.

    The logarithm of :math:`\sigma` is uniform between the lowest and the highest level. With ``score_weight``
    :math:`w` the loss has the term :math:`w \, \|\sigma \nabla_x \log p_\sigma(x) + \epsilon\|^2 / T`, denoising score
    matching (Vincent, 2011), which costs a second derivative.

    Arguments:
        frames: of the source.
        size: of the flow.
        settings: of the training.
        sigma_min: lowest level.
        sigma_max: highest level; the source's root mean square times the square root of the frame by default.
        score_weight: of the term above.
        folder, resume, until, label, quiet, fabric: see :class:`~pyrosep.trainer.Trainer`.

    Returns:
        the prior, and figures: steps, seconds, and the held-out log-density in nats a frame at :data:`LEVELS`, beside
        the exact prior's where there is one.

    Raises:
        ConfigurationError: levels out of order, or frames that the flow's stride does not divide.
    """
    network, top = _fresh(frames, size, settings, sigma_min, sigma_max)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        return _noised(frames.draw(count), sigma_min * (top / sigma_min) ** torch.rand(count))

    trainer = Trainer(settings, folder=folder, label=label, quiet=quiet, fabric=fabric)
    held_out = _HeldOut(frames, [level for level in LEVELS if sigma_min <= level <= top], settings.seed)
    result = trainer.fit(network, _Loss(score_weight), draw, validate=held_out, resume=resume, until=until)
    prior = FloWaveNet(network.cpu(), frames.time, sigma_min=sigma_min, sample_rate=frames.sample_rate)
    return prior, _report(result, network) | {"sigma_max": round(top, 3)}


def finetune_flowavenet(
    frames: Frames,
    size: FlowSize,
    settings: TrainingSettings,
    folder: str | os.PathLike[str],
    *,
    levels: Sequence[float] = (0.01, 0.03, 0.1, 0.36),
    name: str = "source",
    score_weight: float = 0.0,
    resume: bool = False,
    label: str = "training",
    quiet: bool = False,
    fabric: Any = None,
) -> tuple[dict[float, SourcePrior], dict[float, dict[str, Any]]]:
    r"""A chain of copies: train at the lowest level for half of the steps, then fine-tune a copy for each level above.

    Each copy starts where the one before it ended, and is good at its own level alone, which is its ``sigma_min``. It
    is kept as a model in ``folder/sigma-LEVEL``.

    Arguments:
        folder: of checkpoints and copies.
        levels: rising.
        name: of the source in the models.
        frames, size, settings, score_weight, resume, label, quiet, fabric: see :func:`train_flowavenet`.

    Returns:
        the copies by level, and their figures.
    """
    if len(levels) < 2 or any(b <= a for a, b in itertools.pairwise(levels)):
        raise ConfigurationError(f"fine-tuning needs two or more rising levels; got {tuple(levels)}")
    network, _ = _fresh(frames, size, settings, levels[0], None)
    trainer = Trainer(settings, folder=folder, label=label, quiet=quiet, fabric=fabric)
    copies: dict[float, SourcePrior] = {}
    reports: dict[float, dict[str, Any]] = {}
    for i, level in enumerate(levels):
        kept = Path(folder) / f"sigma-{level:g}"
        end = round(settings.steps * (1 + i / (len(levels) - 1)) / 2)
        if resume and (kept / "config.json").is_file():
            copies[level] = load_priors(kept)[name]
            continue

        def draw(count: int, level: float = level) -> tuple[Tensor, Tensor, Tensor]:
            return _noised(frames.draw(count), torch.full((count,), level))

        held_out = _HeldOut(frames, [level], settings.seed)
        result = trainer.fit(
            network, _Loss(score_weight), draw, validate=held_out, resume=resume or i > 0, until=max(1, end)
        )
        own = copy.deepcopy(network).cpu()
        copies[level] = FloWaveNet(own, frames.time, sigma_min=level, sample_rate=frames.sample_rate)
        reports[level] = _report(result, network)
        if trainer.fabric.is_global_zero:
            save_priors(kept, {name: copies[level]}, provenance={name: reports[level]})
        trainer.fabric.barrier()
    return copies, reports


def _fresh(
    frames: Frames, size: FlowSize, settings: TrainingSettings, sigma_min: float, sigma_max: float | None
) -> tuple[FloWaveNetwork, float]:
    """A network with random weights, its first scales set, and the highest level."""
    if frames.time % size.stride:
        raise ConfigurationError(f"frames must be a multiple of {size.stride} samples for this size; got {frames.time}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        clean = frames.draw(_FIRST)
        spectrum = torch.fft.rfft(clean.double()).abs().square().mean(0) / frames.time
        spectrum = spectrum.clamp(min=float(spectrum.mean()) * 1e-9).float()
        network = FloWaveNetwork(size, spectrum)
        top = math.sqrt(float(network.variance) * frames.time) if sigma_max is None else float(sigma_max)
        if not 0 < sigma_min < top:
            raise ConfigurationError(f"noise levels must rise from above 0; got {sigma_min} to {top:.4g}")
        x, sigma, _ = _noised(clean, sigma_min * (top / sigma_min) ** torch.rand(_FIRST))
        network.initialize(x, sigma)
    return network, top


def _noised(clean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frames at levels ``(count,)``, the levels, and the noise of variance 1."""
    noise = torch.randn_like(clean)
    return clean + sigma.unsqueeze(-1) * noise, sigma, noise


@dataclass(frozen=True)
class _Loss:
    score_weight: float

    def __call__(self, network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, sigma, noise = batch
        if not self.score_weight:
            return -network(x, sigma).mean() / x.shape[-1]
        x = x.requires_grad_()
        log_prob = network(x, sigma)
        (score,) = torch.autograd.grad(log_prob.sum(), x, create_graph=True)
        error = (sigma.unsqueeze(-1) * score + noise).square().mean()
        return -log_prob.mean() / x.shape[-1] + self.score_weight * error


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


def _report(result: TrainingResult, network: nn.Module) -> dict[str, Any]:
    figures = result.history[-1] if result.history else {}
    return {
        "steps": result.step,
        "seconds": round(result.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **({"skipped_steps": result.skipped} if result.skipped else {}),
        **{key: round(value, 2) for key, value in figures.items() if key != "step"},
    }
