"""Training the denoisers of several sources together, inside the descent that separates by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError
from pyrosep.infer.response import LinearMix
from pyrosep.infer.search.descent import LEVELS, Descent, descent_ladder
from pyrosep.priors import ContinuousFlow
from pyrosep.training.agreement import AgreeingFrames
from pyrosep.training.continuousflow import denoising_loss, noised_batch, training_levels
from pyrosep.training.frames import Frames
from pyrosep.training.trainer import Trainer, trainer_or_preset

__all__ = ["train_together"]

#: Noise of a mix, relative to the loudest level of the ladder: next to none.
_NOISE = 1e-3
#: Power beside which a mix counts for less, relative to the sources' usual power.
_SILENCE = 0.05
#: Frames of each source to choose from.
_POOL = 48
#: Held-out mixes, and those that are separated at once.
_HELD_OUT, _ROWS = 16, 8


def train_together(
    priors: Mapping[str, ContinuousFlow],
    frames: Mapping[str, Frames],
    trainer: Trainer | None = None,
    *,
    presence: float = 0.8,
    agreement: float = 0.7,
    alone: float = 0.25,
    levels: int = LEVELS + 1,
) -> tuple[dict[str, ContinuousFlow], dict[str, Any]]:
    r"""Train denoisers that know interference on what a descent brings before them.

    The descent is the sampler's own, :class:`~pyrosep.infer.search.descent.Descent`.

    A prior that is trained by itself meets other sources as they were recorded. In a separation it meets what earlier
    levels have left of them, and its answer is not the last word: what all answers leave of the mix is shared out. So
    frames of all sources, of no song together, are added up to a mix, a descent with a random number of levels is
    followed down to a random one of them, and the squared error of the sources' means there,

    .. math:: \frac{\sum_k \|\hat s_k - s_k\|^2}{\sum_k \|s_k\|^2 + \epsilon},

    is led back through that level into all denoisers. Most of the mixes are of frames that agree in key and beat
    (:class:`~pyrosep.training.agreement.AgreeingFrames`). Each denoiser is trained on its source alone besides, by
    :func:`~pyrosep.training.continuousflow.denoising_loss`, so that it stays what it was where it is told of no
    interference.

    Arguments:
        priors: by source, whose denoisers are filters that know interference; they are changed in place.
        frames: of each source, by the same names, of the priors' length or longer: what they are longer by is room in
            which frames that agree are shifted.
        trainer: with the settings, and a folder for checkpoints; a batch is so many mixes. By default with
            the preset.
        presence: the chance of a source to be in a mix.
        agreement: the chance of a mix to be of frames that agree.
        alone: frames of each source alone, for each mix.
        levels: the most that a ladder has.

    Returns:
        the priors, and figures: steps, seconds, and the SNR in dB of held-out mixes separated, by source, of those that
        sound in them.

    Raises:
        ConfigurationError: priors that it is not for, or frames of other sources.
    """
    trainer = trainer_or_preset(trainer, "together")
    _check(priors, frames)
    if not (0 < presence <= 1 and 0 <= agreement <= 1 and alone >= 0 and levels >= 1):
        raise ConfigurationError(
            "expected presence in (0, 1], agreement in [0, 1], alone of at least 0 and levels of at least 1; got "
            f"{presence}, {agreement}, {alone} and {levels}"
        )
    network = _Together(priors, levels).requires_grad_(True)
    batches = _Batches(priors, frames, trainer, presence=presence, agreement=agreement, alone=alone)
    about = {"presence": presence, "agreement": agreement, "alone": alone, "levels": levels, "sources": list(priors)}
    held_out = torch.stack(
        [own.held_out_apart(k)[:_HELD_OUT, : batches.time] for k, own in enumerate(frames.values())], 1
    )

    def validate(network: nn.Module) -> dict[str, float]:
        return _figures(network, held_out, trainer.settings.seed)

    result = trainer.fit(network, _loss, batches.draw, validate=validate, about=about)
    network.cpu()
    return dict(priors), result.report()


def _check(priors: Mapping[str, ContinuousFlow], frames: Mapping[str, Frames]) -> None:
    """Raise ConfigurationError for priors that can't be trained together, or frames that are not theirs."""
    if list(priors) != list(frames):
        raise ConfigurationError(f"expected frames of the sources {list(priors)}; got those of {list(frames)}")
    if strange := [name for name, prior in priors.items() if not prior.knows_interference]:
        raise ConfigurationError(
            f"the priors of {', '.join(strange)} know nothing of interference; train them with it first"
        )
    if apart := [name for name, prior in priors.items() if prior.interfered is not None]:
        raise ConfigurationError(
            f"training together needs one network for each prior, which is told of interference; those of "
            f"{', '.join(apart)} have two"
        )
    time = next(iter(priors.values())).time
    if short := [name for name, own in frames.items() if own.time < time]:
        raise ConfigurationError(f"expected frames of at least {time} samples; those of {', '.join(short)} are shorter")


class _Batches:
    """Batches to train on: sources of mixes, and noised frames of each source alone.

    Arguments:
        priors, frames: by source.
        trainer: whose step decides which frames agree.
        presence, agreement, alone: see :func:`train_together`.
    """

    def __init__(
        self,
        priors: Mapping[str, ContinuousFlow],
        frames: Mapping[str, Frames],
        trainer: Trainer,
        *,
        presence: float,
        agreement: float,
        alone: float,
    ) -> None:
        self.priors, self.frames, self.trainer = list(priors.values()), list(frames.values()), trainer
        self.presence, self.agreement, self.alone = presence, agreement, alone
        self.time = self.priors[0].time
        self.variances = [float(prior.network.variance) for prior in self.priors]
        self.agreeing = AgreeingFrames(
            [own.draw for own in self.frames],
            self.time,
            self.frames[0].sample_rate,
            pool=max(_POOL, trainer.settings.batch),
            seed=1009 * trainer.settings.seed + trainer.fabric.global_rank,
        )

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """Sources ``(count, source, time)``, then for each source frames alone, their levels and their noise."""
        few, parts = round(self.alone * count), [self._sources(count)]
        for own, prior, variance in zip(self.frames, self.priors, self.variances, strict=True):
            sigma = training_levels(few, math.sqrt(variance), prior.sigma_min, prior.sigma_max, None)
            parts += noised_batch(own.draw(few)[:, : self.time], sigma, variance)
        return tuple(parts)

    def _sources(self, count: int) -> Tensor:
        agreeing = int((torch.rand(count) < self.agreement).sum())
        clean = torch.stack([own.draw(count - agreeing)[:, : self.time] for own in self.frames], 1)
        if agreeing:
            clean = torch.cat([self.agreeing(agreeing, self.trainer.step), clean])
        return clean * (torch.rand(count, len(self.frames), 1) < self.presence)


class _Together(nn.Module):
    """The networks of all sources, as one."""

    def __init__(self, priors: Mapping[str, ContinuousFlow], levels: int) -> None:
        super().__init__()
        self.names = list(priors)
        self.networks = nn.ModuleList([prior.network for prior in priors.values()])
        usual = torch.stack([prior.network.variance for prior in priors.values()]).mean()
        self.register_buffer("usual", usual, persistent=False)
        self.usual: Tensor
        self.descent = Descent(list(priors.values()))
        self.ladders = [descent_ladder(priors, count) for count in range(1, levels + 1)]
        self.top = max(max(ladder) for ladder in self.ladders)

    def forward(self, clean: Tensor, *alone: Tensor) -> Tensor:
        """The loss of sources ``(n, source, time)`` whose sum is a mix, and of batches of each alone."""
        mix = self.mixed(clean)
        ladder = self.ladders[int(torch.randint(len(self.ladders), ()))]
        ladder = ladder[: 1 + int(torch.randint(len(ladder), ()))]
        found = self.means(mix, ladder)
        wrong, power = (value.square().mean((-2, -1)) for value in (found - clean, clean))
        loss = (wrong / (power + _SILENCE * self.usual)).mean()
        for place, network in enumerate(self.networks):
            batch = alone[3 * place : 3 * place + 3]
            if len(batch[0]):
                loss = loss + denoising_loss(network, batch) / len(self.networks)
        return loss

    def means(self, mix: LinearMix, ladder: Sequence[float]) -> Tensor:
        """Of the sources at the end of a descent, with a gradient by its last level alone."""
        with torch.no_grad():
            x = self.descent.at_last_level(self.descent.start(mix), mix, ladder)
        return self.descent.drawn(x, mix, ladder[-1], spread=0.0)

    def mixed(self, clean: Tensor) -> LinearMix:
        """Of sources ``(n, source, time)``, their sum."""
        noise = clean.new_full((len(clean), 1), _NOISE * self.top)
        return LinearMix(clean.sum(1, keepdim=True), clean.new_ones(*clean.shape[:2], 1), noise)


def _loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return network(*batch)


def _figures(network: nn.Module, held_out: Tensor, seed: int) -> dict[str, float]:
    """SNR in dB of held-out sources ``(n, source, time)`` found in their sum by one descent: of those that sound."""
    assert isinstance(network, _Together)
    device = next(network.parameters()).device
    ladder, wrong = network.ladders[-1], torch.zeros(len(network.names))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for clean in held_out.to(device).split(_ROWS):
            wrong += (network.means(network.mixed(clean), ladder) - clean).square().sum((0, 2)).cpu()
    power = held_out.square().sum((0, 2))
    snr = (10 * (power / wrong).log10()).tolist()
    heard = zip(network.names, snr, (power > 0).tolist(), strict=True)
    return {f"SNR of {name}": value for name, value, sounds in heard if sounds}
