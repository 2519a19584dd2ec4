"""``pyrosep experiment``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyrosep.cli.options import Device, Json, Out, Quiet, Seed, chosen_device, reported, track_progress, write_json
from pyrosep.errors import ConfigurationError


def samplers_command(
    out: Out,
    sources: Annotated[str, typer.Option(help="Numbers of sources, by commas.")] = "4,2",
    samplers: Annotated[
        list[str] | None, typer.Option("--sampler", help="One of the samplers; may be given again [all].")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Denoiser calls a source and chain at most, by commas.")] = "8,16,32,64",
    mixes: Annotated[int, typer.Option(min=1, help="Mixes.")] = 16,
    chains: Annotated[int, typer.Option(min=1, help="Chains for each mix.")] = 8,
    frame: Annotated[int, typer.Option(min=16, help="Samples in a mix.")] = 2048,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Share of toy sources that each sampler recovers under their exact prior, against its denoiser calls."""
    with reported():
        import json

        from pyrosep.experiments.samplers import ARMS
        from pyrosep.experiments.samplers import samplers as study

        chosen_device(device)  # the study runs on the CPU everywhere: its exact prior is in double precision
        bar, update = track_progress("samplers", quiet)
        with bar:
            table = study(
                out,
                sources=_numbers(sources, "--sources"),
                arms=samplers or ARMS,
                budgets=_numbers(budgets, "--budgets"),
                mixes=mixes,
                chains=chains,
                frame=frame,
                seed=seed,
                workers=workers,
                progress=update,
            )
        write_json(json_file, json.loads(table.to_json(orient="records")))
        if not quiet:
            typer.echo(table.to_string(index=False, float_format="{:.3g}".format))
            typer.echo(f"written to {out}: samplers.csv, samplers.png")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"{option} takes whole numbers by commas; got {text!r}") from None
