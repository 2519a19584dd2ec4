"""``pyrosep train-prior together``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from pyrosep.cli.options import (
    Anew,
    Compress,
    Device,
    Equalise,
    Flip,
    GainJitter,
    Json,
    LearningRate,
    Optimizer,
    Out,
    PitchJitter,
    Precision,
    Quiet,
    Renames,
    Reverb,
    SaveEvery,
    Seed,
    Summary,
    ValidateEvery,
    Weights,
    chosen_data,
    chosen_device,
    figures_line,
    reported,
    training_settings,
    write_json,
)
from pyrosep.cli.training import Data
from pyrosep.errors import ConfigurationError
from pyrosep.training.settings import PRESETS


def train_together_command(
    data: Data,
    start: Annotated[str, typer.Option(help="The model whose priors are trained on.")],
    out: Out,
    weights: Weights = None,
    renames: Renames = None,
    frame: Annotated[int | None, typer.Option(min=2, help="Samples in a frame [the model's own].")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")] = PRESETS["together"].steps,
    batch: Annotated[int, typer.Option(min=1, help="Mixes in a step, over all processes.")] = PRESETS["together"].batch,
    learning_rate: LearningRate = PRESETS["together"].learning_rate,
    optimizer: Optimizer = PRESETS["together"].optimizer,
    precision: Precision = "auto",
    presence: Annotated[float, typer.Option(help="Chance of each source to be in a mix.")] = 0.8,
    agreement: Annotated[float, typer.Option(help="Chance of a mix to be of frames that agree in key and beat.")] = 0.7,
    alone: Annotated[float, typer.Option(help="Frames of each source alone, for each mix.")] = 0.25,
    gain_jitter: GainJitter = 3.0,
    pitch_jitter: PitchJitter = 0.0,
    flip: Flip = False,
    equalise: Equalise = 0.0,
    compress: Compress = 0.0,
    reverb: Reverb = 0.0,
    devices: Annotated[int, typer.Option(min=1, help="Devices on each machine; on a CPU, processes.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    validate_every: ValidateEvery = PRESETS["together"].validate_every,
    save_every: SaveEvery = PRESETS["together"].save_every,
    summary: Summary = "",
    half: Annotated[bool, typer.Option("--half/--full", help="Write the weights in half precision, or single.")] = True,
    overwrite: Anew = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Train the denoisers of a model (ContinuousFlow, with interference) together, inside the search that uses them."""
    with reported():
        import torch

        from pyrosep.priors import ContinuousFlow
        from pyrosep.training.augmentation import Augmentation
        from pyrosep.training.frames import song_frames
        from pyrosep.training.together import train_together
        from pyrosep.training.trainer import Trainer, launch
        from pyrosep.zoo import load_priors, prior_set_info, save_priors
        from pyrosep.zoo.weights import load_weights

        settings = training_settings(
            PRESETS["together"],
            device,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            optimizer=optimizer,
            precision=precision,
            validate_every=validate_every,
            save_every=save_every,
            seed=seed,
            devices=devices,
            nodes=nodes,
        )
        info = prior_set_info(start)
        if info.family != "continuousflow":
            raise ConfigurationError(f"--start must be a model of ContinuousFlow priors; {start} has {info.family}")
        chosen = chosen_data(data, weights, renames)
        if chosen.simulated:
            raise ConfigurationError("training together is for denoisers that filter spectra; toy waves have none")
        chosen_device(settings.accelerator)  # and the number of threads
        priors = cast("dict[str, ContinuousFlow]", dict(load_priors(start, frame=frame)))
        songs = chosen.open(list(priors))
        augmentation = Augmentation(gain_jitter, flip, pitch_jitter, 0.0, equalise, compress, reverb)
        frames = {
            name: song_frames(
                songs,
                name,
                prior.time + (prior.time // 2 if agreement else 0),  # room to shift them in
                sample_rate=info.sample_rate,
                augmentation=augmentation,
                seed=seed,
                shares=songs.shares,
            )
            for name, prior in priors.items()
        }
        fabric = launch(settings)
        trained, report = train_together(
            priors,
            frames,
            Trainer(
                settings,
                folder=Path(out) / "training" / "together",
                resume=not overwrite,
                label="together",
                quiet=quiet,
                fabric=fabric,
            ),
            presence=presence,
            agreement=agreement,
            alone=alone,
        )
        if fabric.is_global_zero:
            before = load_weights(info.folder)[0]["priors"]
            save_priors(
                out,
                trained,
                gains=info.gains,
                summary=summary or info.summary,
                dtype=torch.float16 if half else None,
                provenance={name: before[name] | {"together": report} for name in trained},
            )
            write_json(json_file, report)
        if not quiet:
            typer.echo(f"{', '.join(trained)}: {figures_line(report)}\nwritten to {out}")
