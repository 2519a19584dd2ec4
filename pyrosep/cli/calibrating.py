"""``pyrosep calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pyrosep.cli.options import (
    Chains,
    Device,
    Guide,
    Json,
    Quiet,
    Renames,
    Seed,
    Weights,
    chosen_data,
    chosen_priors,
    print_table,
    reported,
    track_progress,
    write_json,
)
from pyrosep.errors import ConfigurationError


def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder of the model, which the temperatures are written to.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="Once or more: musdb (at MUSDB_PATH), ROOT/SONG/STEM.wav, or solo:ROOT of SOURCE/NAME.wav."
        ),
    ],
    weights: Weights = None,
    renames: Renames = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="langevin, one-pass or guide+langevin [all that can be]."),
    ] = None,
    guide: Guide = None,
    mixes: Annotated[int, typer.Option(min=2, help="Mixes: half to fit, half to report on.")] = 48,
    chains: Chains = None,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Fit how far draws of a model lie apart to simulated mixes, so that their intervals hold what they say."""
    with reported():
        import torch

        from pyrosep.evaluation.calibration import calibrate as fitted
        from pyrosep.infer.search.descent import descends_from_mix
        from pyrosep.separation import Settings
        from pyrosep.training.frames import song_frames
        from pyrosep.zoo import prior_set_info, save_temperatures

        if not model.is_dir():
            raise ConfigurationError(f"expected the folder of a model that train-prior wrote; there is none at {model}")
        info = prior_set_info(model)
        priors = chosen_priors(model, guide, device)
        chosen = chosen_data(data, weights, renames)
        if chosen.simulated:
            raise ConfigurationError("calibration is for models of recordings; toy waves have exact priors")
        if methods is None:
            methods = ["langevin", "one-pass", *(["guide+langevin"] if priors.has_guide else [])]
        if not priors.has_guide and any("guide" in method for method in methods):
            raise ConfigurationError(f"model {info.name!r} has no guide of its own; give one, or --method langevin")
        settings = Settings(chains=chains, seed=seed)
        if not descends_from_mix(list(priors.values())):
            raise ConfigurationError(
                "only draws of a descent are calibrated, which is for priors whose denoisers filter spectra and know "
                f"interference; those of {info.name!r} don't"
            )
        songs = chosen.open(list(priors))
        frames = []
        for place, name in enumerate(priors):
            own = song_frames(
                songs, name, info.frame, sample_rate=info.sample_rate, held_out=mixes, seed=seed, shares=songs.shares
            )
            frames.append(own.held_out_apart(place))
        bar, update = track_progress("calibrating", quiet)
        with bar:
            report = fitted(
                priors,
                torch.stack(frames, 1),
                info.sample_rate,
                methods=methods,
                settings=settings,
                progress=update,
            )
        save_temperatures(model, {method: round(one["temperature"], 3) for method, one in report.items()})
        write_json(json_file, report)
        if quiet:
            return
        table = Table(
            title=f"Share of true samples in 90 % intervals, {mixes // 2} simulated mixes", title_justify="left"
        )
        for column in ("method", "temperature", "", *priors):
            table.add_column(column)
        for method, one in report.items():
            for when in ("before", "after"):
                cells = [f"{100 * one[when][name]:.0f} %" for name in priors]
                table.add_row(method, f"{one['temperature']:.2f}" if when == "after" else "1", when, *cells)
        print_table(table)
        typer.echo(f"written to {model}")
