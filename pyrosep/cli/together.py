"""``pyrosep train-prior together``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from pyrosep.cli.manners import figures_line, say, write_json
from pyrosep.cli.options import (
    Data,
    Out,
    Report,
    Reporting,
    chosen_device,
)
from pyrosep.cli.training_options import (
    Anew,
    AugmentationOptions,
    Half,
    Summary,
    TrainingOptions,
    with_preset,
)
from pyrosep.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyrosep.priors import ContinuousFlow
    from pyrosep.training.augmentation import Augmentation
    from pyrosep.training.frames import Frames


@with_preset("together")
class JointTraining(TrainingOptions):
    """Training settings with the preset of priors that are trained together."""


@dataclass(frozen=True)
class JointAugmentation(AugmentationOptions):
    """Changes to frames of sources that are mixed: their loudness differs."""

    gain_jitter: float = 3.0
    takes: Annotated[float, Parameter(parse=False)] = 0.0


def together(
    *,
    data: Annotated[Data, Parameter(name="*")],
    start: str,
    out: Out,
    frame: PositiveInt | None = None,
    presence: float = 0.8,
    agreement: float = 0.7,
    alone: float = 0.25,
    augmentation: Annotated[JointAugmentation, Parameter(name="*")] = JointAugmentation(),
    training: Annotated[JointTraining, Parameter(name="*")] = JointTraining(),
    summary: Summary = "",
    half: Half = True,
    overwrite: Anew = False,
    report: Report = Reporting(),
) -> None:
    """Train the denoisers of a model (ContinuousFlow, with interference) together, inside the search that uses them.

    Each mix is the sum of frames of all sources from different songs, most of which are chosen to agree in key and
    beat. The search separates the mix, and its result is compared with the frames. The denoisers must filter short-time
    spectra and know interference. Checkpoints, logs and continuing are as for ``flowavenet``. At the end the command
    prints the SNR of held-out mixes after separation, in dB.

    Example:
        $ pyrosep train-prior together --data ROOT --start my-model -o my-model-together

    Arguments:
        start: The model whose priors are trained on.
        frame: Samples in a frame. By default the model's own.
        presence: Chance of each source to be in a mix.
        agreement: Chance of a mix to be of frames that agree in key and beat.
        alone: Frames of each source alone, for each mix.
    """
    import torch

    from pyrosep.training.together import train_together
    from pyrosep.training.trainer import Trainer, launch
    from pyrosep.zoo import load_priors, prior_set_info, save_priors
    from pyrosep.zoo.weights import load_weights

    settings = training.here()
    info = prior_set_info(start)
    if info.family != "continuousflow":
        raise ConfigurationError(f"expected a model of ContinuousFlow priors; {start} has {info.family} priors")
    if data.simulated:
        raise ConfigurationError("training together is for denoisers that filter spectra; toy waves have none")
    chosen_device(settings.accelerator)  # for the number of threads
    priors = cast("dict[str, ContinuousFlow]", dict(load_priors(start, frame=frame)))
    frames = _frames(priors, data, augmentation, settings.seed, room=bool(agreement))
    fabric = launch(settings)
    trainer = Trainer(
        settings,
        folder=out / "training" / "together",
        resume=not overwrite,
        label="together",
        quiet=report.quiet,
        fabric=fabric,
    )
    trained, figures = train_together(priors, frames, trainer, presence=presence, agreement=agreement, alone=alone)
    if fabric.is_global_zero:
        before = load_weights(info.folder)[0]["priors"]
        save_priors(
            out,
            trained,
            gains=info.gains,
            summary=summary or info.summary,
            dtype=torch.float16 if half else None,
            provenance={name: before[name] | {"together": figures} for name in trained},
        )
        write_json(report.json, figures)
    if not report.quiet:
        say(f"{', '.join(trained)}: {figures_line(figures)}\nwritten to {out}")


def _frames(
    priors: Mapping[str, ContinuousFlow], data: Data, augmentation: Augmentation, seed: int, *, room: bool
) -> dict[str, Frames]:
    """Frames of each source; with room to shift them in, where they are to agree."""
    from pyrosep.training.frames import song_frames

    songs = data.open(list(priors))
    return {
        name: song_frames(
            songs,
            name,
            prior.time + (prior.time // 2 if room else 0),
            sample_rate=prior.sample_rate,
            augmentation=augmentation,
            seed=seed,
            shares=songs.shares,
        )
        for name, prior in priors.items()
    }
