"""``pyrosep train-prior``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyrosep.cli.options import (
    Device,
    Json,
    Out,
    Quiet,
    Seed,
    Sources,
    chosen_device,
    progress_bar,
    reported,
    write_json,
)


def train_gaussian_command(
    data: Annotated[str, typer.Option("--data", help="toy, musdb (at MUSDB_PATH), or a folder ROOT/SONG/STEM.wav.")],
    out: Out,
    sources: Sources = None,
    sample_rate: Annotated[int | None, typer.Option(min=1, help="Hz [default: the recordings' own].")] = None,
    frame: Annotated[int, typer.Option(min=2, help="Samples in a frame of the prior.")] = 16_384,
    window: Annotated[int, typer.Option(min=4, help="Samples in a window of the spectral estimate.")] = 2048,
    gains: Annotated[str, typer.Option(help="How loud sources are in a mix: level, fit or mean.")] = "level",
    summary: Annotated[str, typer.Option(help="One line for `pyrosep models`.")] = "",
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Fit stationary Gaussian priors (a mean power spectrum each) and add them to the model in OUT."""
    with reported():
        from pyrosep.data.catalog import open_songs
        from pyrosep.data.toy import WAVES
        from pyrosep.priors import save_priors
        from pyrosep.priors.training import recordings, toy_recordings, train_gaussian

        chosen_device(device)  # the fit is one pass of FFTs, bound by reading files; it runs on the CPU everywhere
        if data == "toy":
            takes = {wave: toy_recordings(wave, seed=seed) for wave in sources or WAVES}
        else:
            songs, names = open_songs(data, subset="train", sources=sources)
            takes = {name: recordings(songs, name, sample_rate) for name in names}
        priors, reports = {}, {}
        for name, own in takes.items():
            with progress_bar(0, f"fitting {name}", quiet) as bar:
                counted = (bar.update() or take for take in own)
                priors[name], reports[name] = train_gaussian(counted, frame=frame, window=window)
            if not quiet:
                typer.echo(f"{name}: {', '.join(f'{key} {value}' for key, value in reports[name].items())}")
        save_priors(out, priors, gains=gains, summary=summary, provenance=reports)
        write_json(json_file, reports)
        if not quiet:
            typer.echo(f"written to {out}")
