"""``pyrosep evaluate``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from pyrosep.cli.options import (
    DEFAULT_MODEL,
    Chains,
    Compile,
    Coupling,
    Device,
    Draws,
    Gains,
    Guide,
    Json,
    Ladder,
    Overlap,
    Quiet,
    Redraws,
    SafePrecision,
    Seed,
    Segment,
    Sources,
    Warmup,
    chosen_priors,
    parsed_gains,
    parsed_ladder,
    print_table,
    progress_bar,
    reported,
    write_json,
)
from pyrosep.errors import DataError


def evaluate(
    data: Annotated[str, typer.Option("--data", help="toy, musdb (at MUSDB_PATH), or a folder ROOT/SONG/STEM.wav.")],
    model: Annotated[
        str | None, typer.Option("-n", "--model", help=f"Model [{DEFAULT_MODEL}; toy for toy data].")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="As in separate; may be given again.")] = None,
    guide: Guide = None,
    sources: Sources = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each song.")] = 30.0,
    songs: Annotated[int | None, typer.Option(min=1, help="At most so many songs, or toy mixes [all; 8].")] = None,
    frame: Annotated[int, typer.Option(min=16, help="Samples in a toy mix.")] = 2048,
    subset: Annotated[str, typer.Option(help="Of MUSDB18: train or test.")] = "test",
    stereo: Annotated[bool, typer.Option("--stereo", help="Keep channels; else the mean over them.")] = False,
    bss: Annotated[bool, typer.Option("--bss-eval", help="Add BSS Eval v4 by museval (needs ffmpeg).")] = False,
    coupling: Coupling = None,
    ladder: Ladder = None,
    redraws: Redraws = 24,
    chains: Chains = None,
    draws: Draws = None,
    warmup: Warmup = None,
    segment: Segment = None,
    overlap: Overlap = 0.25,
    gains: Gains = None,
    precision: SafePrecision = "auto",
    compiled: Compile = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """SI-SDR and its improvement over the mix, by source, on songs whose stems are known."""
    with reported():
        from dataclasses import asdict, replace
        from itertools import islice

        from pyrosep.data.catalog import open_songs
        from pyrosep.data.toy import WAVES
        from pyrosep.evaluation.scores import aggregate, song_references, toy_references
        from pyrosep.evaluation.scores import evaluate as score
        from pyrosep.naming import check_source_names
        from pyrosep.separation import Settings, choose_method
        from pyrosep.zoo import prior_set_info

        place = prior_set_info(model or ("toy" if data == "toy" else DEFAULT_MODEL)).folder
        settings = Settings(
            coupling=coupling,
            ladder=parsed_ladder(ladder),
            redraws=redraws,
            chains=chains,
            draws=draws,
            warmup=warmup,
            segment=segment,
            overlap=overlap,
            gains=parsed_gains(gains),
            precision=precision,
            compile=compiled,
            seed=seed,
        )
        if data == "toy":
            check_source_names(names := tuple(sources or WAVES))
            count = songs or 8
            references = toy_references(names, frame=frame, size=count, seed=seed)
            priors = chosen_priors(place, guide, device, sources=names, frame=frame)
        else:
            opened, names = open_songs(data, subset=subset, sources=sources)
            count = min(len(opened), songs or len(opened))
            references = song_references(islice(opened, count), names, seconds=seconds, mono=not stereo)
            # All of the model's sources explain the mix, whichever are scored.
            priors = chosen_priors(place, guide, device)
        chosen = methods or [choose_method(settings, priors).name]
        with progress_bar(count, "evaluating", quiet) as bar:
            scores, factors = score(
                references,
                priors,
                chosen,
                settings,
                bss=bss,
                on_reference=lambda reference: bar.update(),
            )
        rows = aggregate(scores)
        if not rows:
            raise DataError(f"no source of {data} sounds in what was read; take more --seconds, or other sources")
        write_json(
            json_file,
            {
                "data": data,
                "model": priors.name,
                "guide": None if priors.guide_info is None else priors.guide_info.name,
                "settings": asdict(settings),
                "methods": {name: choose_method(replace(settings, method=name), priors).numbers() for name in chosen},
                "gains": priors.gains if settings.gains is None else settings.gains,
                "summary": rows,
                "real_time_factor": factors,
                "scores": [asdict(one) for one in scores],
            },
        )
        if not quiet:
            _print_scores(rows, factors, f"{priors.name} on {data}, {count} mixes")


def _print_scores(rows: list[dict[str, Any]], factors: dict[str, float], title: str) -> None:
    table = Table(title=title)
    columns = [key for key in rows[0] if key not in ("method", "source", "count")]
    table.add_column("method")
    table.add_column("source")
    table.add_column("count", justify="right")
    for column in columns:
        label = column.replace("si_sdr_improvement", "SI-SDRi").replace("si_sdr", "SI-SDR").replace("_", " ")
        table.add_column(label, justify="right")
    for row in rows:
        cells = [f"{row[column]:.2f}" for column in columns]
        table.add_row(row["method"], row["source"], str(row["count"]), *cells)
    print_table(table)
    for method, factor in factors.items():
        typer.echo(f"{method}: {factor:.2f} s of computing a second of audio")
