"""``pyrosep demo`` and ``pyrosep separate``."""

from __future__ import annotations

import time
from pathlib import Path
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
    Model,
    Out,
    Overlap,
    Quiet,
    Redraws,
    SafePrecision,
    Seed,
    Segment,
    Warmup,
    chosen_device,
    chosen_priors,
    complain,
    one_line,
    parsed_gains,
    parsed_ladder,
    print_table,
    reported,
    track_progress,
    write_json,
)
from pyrosep.errors import PyrosepError


def demo(
    out: Out = Path("pyrosep-demo"),
    chains: Chains = None,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Separate toy waves, a mix that was clipped, and a real song, and score what is found against the truth."""
    with reported():
        from pyrosep.demo import MODEL, demo_song, run_clipped_demo, run_song_demo, run_toy_demo
        from pyrosep.separation import Settings

        start = time.perf_counter()
        on = chosen_device(device)
        demo_song()  # is it there?
        result: dict[str, Any] = {}
        bar, update = track_progress("toy waves", quiet)
        with bar:
            result["toy"] = run_toy_demo(out, chains=chains or 8, seed=seed, device=on, progress=update)
        bar, update = track_progress("a clipped mix", quiet)
        with bar:
            result["clipped"] = run_clipped_demo(out, chains=chains or 4, seed=seed, device=on, progress=update)
        bar, update = track_progress("a song", quiet)
        with bar:
            settings = Settings(chains=chains, seed=seed)
            result["song"] = run_song_demo(out, settings=settings, device=on, progress=update)
        result["total_seconds"] = round(time.perf_counter() - start, 1)
        write_json(json_file, result)
        if quiet:
            return
        toy, clipped, song = result["toy"], result["clipped"], result["song"]
        print_table(_scores(toy["scores"], "Four toy waves from their mean, SI-SDR in dB"))
        typer.echo(f"Sound: {toy['folder']}\nPicture: {toy['picture']}\n")
        print_table(_scores(clipped["scores"], "Three waves from a mix that was clipped, SI-SDR in dB"))
        typer.echo(f"Sound: {clipped['folder']}\nPicture: {clipped['picture']}\n")
        print_table(_scores(song["scores"], f"The Easton Ellises - Falcon 69, model {MODEL}, SI-SDR in dB"))
        run = song["run"]
        typer.echo(
            f"{run['seconds']:.1f} s of stereo in {run['wall_seconds']:.0f} s: {song['chains']} chains for each of the "
            f"windows. The stems sum to the mix within {song['sum_residual_db']:.0f} dB.\n"
            f"Stems and posterior: {song['folder']}\nPicture: {song['picture']}"
        )


def _scores(scores: dict[str, dict[str, float]], title: str) -> Table:
    """Decibels by estimate and source, and their means."""
    table = Table(title=title)
    table.add_column("estimate")
    for name in [*next(iter(scores.values())), "mean"]:
        table.add_column(name, justify="right")
    for method, values in scores.items():
        cells = [*values.values(), sum(values.values()) / len(values)]
        table.add_row(method, *(f"{value:.2f}" for value in cells))
    return table


def separate(
    # As text: a Path made of an empty argument would be the current folder.
    inputs: Annotated[list[str], typer.Argument(help="Audio files, and folders of them.")],
    model: Model = DEFAULT_MODEL,
    out: Out = Path("separated"),
    method: Annotated[
        str | None,
        typer.Option(
            help="guide, guide+langevin (chains from it), langevin, one-pass or exact (closed form, Gaussian priors) "
            "[guide+langevin where there is a guide, else langevin]."
        ),
    ] = None,
    guide: Guide = None,
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
    keep: Annotated[int, typer.Option(min=0, help="Posterior draws to write as {source}.drawN.wav.")] = 0,
    temperature: Annotated[
        float | None, typer.Option(help="Factor for the draws' distances from their mean [the model's own].")
    ] = None,
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="A source to write; may be given again [all].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished tracks again.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Separate files into OUT/MODEL/TRACK/{source}.wav, with standard deviations and the posterior's summaries."""
    with reported():
        from pyrosep.separation import Settings
        from pyrosep.separation.files import find_tracks, separate_track

        settings = Settings(
            method,
            coupling,
            parsed_ladder(ladder),
            redraws,
            chains,
            draws,
            warmup,
            segment,
            overlap,
            parsed_gains(gains),
            precision,
            compiled,
            keep=keep,
            temperature=temperature,
            seed=seed,
        )
        priors = chosen_priors(model, guide, device)
        reports: dict[str, Any] = {}
        usable, failed = [], 0
        for given in inputs:
            try:
                find_tracks([given])
                usable.append(given)
            except (PyrosepError, OSError) as error:
                failed += 1
                complain("error", one_line(error))
                reports[given] = {"input": given, "error": one_line(error)}
        for name, path in find_tracks(usable).items():
            bar, update = track_progress(name, quiet)
            try:
                with bar:
                    report = separate_track(
                        path,
                        out / priors.name / name,
                        priors,
                        settings,
                        write=sources,
                        overwrite=overwrite,
                        progress=update,
                    )
            except Exception as error:
                failed += 1
                reason = one_line(error)
                complain("error", reason if str(path) in reason else f"{path}: {reason}")
                reports[name] = {"input": str(path), "error": reason}
                continue
            reports[name] = report
            if not quiet:
                typer.echo(_track_line(name, out / priors.name / name, report))
        write_json(json_file, reports)
        if failed:
            if len(reports) > 1:
                complain("error", f"{failed} of {len(reports)} tracks failed")
            raise typer.Exit(1)


def _track_line(name: str, folder: Path, report: dict[str, Any]) -> str:
    if report.get("skipped"):
        return f"{name}: done before, kept ({folder})"
    line = f"{name}: {report['seconds']:.1f} s in {report['wall_seconds']:.1f} s -> {folder}"
    return line + (f"\n  {report['diagnostics']['verdict']}" if "diagnostics" in report else "")
