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
    chosen_device,
    chosen_guide,
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

        from pyrosep.calibration import calibrate as fitted
        from pyrosep.guides import load_guide
        from pyrosep.priors import load_priors, model_info
        from pyrosep.priors.frames import song_frames
        from pyrosep.priors.models import save_temperatures
        from pyrosep.separate import Settings

        if not model.is_dir():
            raise ConfigurationError(f"expected the folder of a model that train-prior wrote; there is none at {model}")
        info = model_info(model)
        own_guide = chosen_guide(guide, info)
        chosen = chosen_data(data, weights, renames)
        if chosen.simulated:
            raise ConfigurationError("calibration is for models of recordings; toy waves have exact priors")
        if methods is None:
            methods = ["langevin", "one-pass", *(["guide+langevin"] if own_guide is not None else [])]
        if own_guide is None and any("guide" in method for method in methods):
            raise ConfigurationError(f"model {info.name!r} has no guide of its own; give one, or --method langevin")
        priors = load_priors(model, device=chosen_device(device))
        settings = Settings(chains=chains, seed=seed)
        if (coupling := settings.chosen_coupling(priors)) != "shared":
            raise ConfigurationError(
                f"draws of search {coupling or 'sweeps'!r} are left as they are; calibration is for priors whose "
                "denoisers filter spectra and know interference"
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
                guide=None if own_guide is None else load_guide(own_guide.folder, device=chosen_device(device)),
                model_gains=info.gains,
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
