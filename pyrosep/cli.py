"""The command line: ``pyrosep demo | separate | evaluate | train-prior | models | diagnose``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pyrosep.errors import ConfigurationError, DataError, PyrosepError

app = typer.Typer(
    name="pyrosep",
    help="Bayesian musical source separation: posterior samples of the sources of a mix.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which would swallow [what stands in brackets]
    add_completion=False,
)
train_app = typer.Typer(
    help="Train a source's prior on recordings of that source alone.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(train_app, name="train-prior")

Seed = Annotated[int, typer.Option("--seed", help="Seed of all that is random.")]
Device = Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or cuda:N.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]
Model = Annotated[str, typer.Option("-n", "--model", help="Name of a model that ships, or a folder of one.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write into.")]
Chains = Annotated[int, typer.Option(min=1, help="Chains for each window.")]
Draws = Annotated[int, typer.Option(min=1, help="Draws from each chain.")]
Warmup = Annotated[int, typer.Option(min=0, help="Steps before the first draw.")]
Segment = Annotated[float | None, typer.Option(help="Seconds in a window [default: the model's frame].")]
Overlap = Annotated[float, typer.Option(help="Share of a window that it has in common with the next, up to 0.5.")]
Gains = Annotated[str | None, typer.Option(help="mean, level, fit, or a number a source, by commas [the model's way].")]
Sources = Annotated[list[str] | None, typer.Option("--source", help="A source; may be given again [default: all].")]


def main() -> None:
    """Entry point of the command ``pyrosep``."""
    app()


# --- what the commands share ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Errors end with one clear line and a non-zero exit, never with a traceback."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _complain("warning", str(message))
        # ArviZ 0.23 announces its 1.0 on every import.
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        try:
            yield
        except KeyboardInterrupt:
            _complain("interrupted", "what was finished is kept; run the same command again to go on")
            raise typer.Exit(130) from None
        except Exception as error:
            if isinstance(error, typer.Exit):
                raise
            _complain("error", _one_line(error))
            raise typer.Exit(1) from None


def _one_line(error: BaseException) -> str:
    import torch

    if os.environ.get("PYROSEP_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory; take fewer --chains or --draws, a shorter --segment, or another --device"
    if isinstance(error, PyrosepError | OSError):
        return " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (PYROSEP_DEBUG=1 shows where)"


def _complain(kind: str, text: str) -> None:
    typer.echo(f"pyrosep: {kind}: {text}", err=True)


def _device(name: str) -> str:
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        # On machines of few cores, several threads were measured to be slower than one, by far when anything else runs.
        torch.set_num_threads(1)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise ConfigurationError(f"expected a device auto, cpu, cuda or cuda:N; got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device {name} was asked for, but there is no CUDA device here; use -d cpu")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return name


def _gains(text: str | None) -> str | tuple[float, ...] | None:
    if text is None or text in ("mean", "level", "fit"):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--gains takes mean, level, fit or numbers by commas; got {text!r}") from None


def _write_json(path: Path | None, figures: Any) -> None:
    if path is not None:
        from pyrosep.checkpoint import write_text

        write_text(path, json.dumps(_finite(figures), indent=2, ensure_ascii=False, default=str) + "\n")


def _finite(figures: Any) -> Any:
    """The same figures with null for those that JSON has no number for."""
    if isinstance(figures, dict):
        return {key: _finite(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_finite(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def _bar(total: int, label: str, quiet: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit_scale=True, disable=quiet or None, leave=False)


def _progress(label: str, quiet: bool) -> tuple[Any, Any]:
    """A bar over a track's samples, and the function that moves it."""
    bar = _bar(1, label, quiet)

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, update


# --- commands -------------------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Out = Path("pyrosep-demo"),
    chains: Chains = 4,
    draws: Draws = 100,
    warmup: Warmup = 50,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Separate a real song that comes with a dependency, and score the stems against the true ones."""
    with _reported():
        from pyrosep.demo import MODEL, run_demo
        from pyrosep.separate import Settings

        start = time.perf_counter()
        bar, update = _progress("separating", quiet)
        settings = Settings(chains=chains, draws=draws, warmup=warmup, seed=seed)
        with bar:
            result = run_demo(out, settings=settings, device=_device(device), progress=update)
        result["total_seconds"] = round(time.perf_counter() - start, 1)
        _write_json(json_file, result)
        if quiet:
            return
        console = Console()
        scores = result["scores"]
        names = list(next(iter(scores.values())))
        table = Table(title=f"SI-SDR in dB, The Easton Ellises - Falcon 69, model {MODEL}")
        table.add_column("estimate")
        for name in [*names, "mean"]:
            table.add_column(name, justify="right")
        for method, values in scores.items():
            cells = [*values.values(), sum(values.values()) / len(values)]
            table.add_row(method, *(f"{value:.2f}" for value in cells))
        console.print(table)
        run = result["run"]
        figures = run["diagnostics"]
        agreement = figures["verdict"] + "."
        if "max_r_hat" in figures:
            agreement = (
                f"Over {figures['summaries']} summaries of the audio, R-hat is at most {figures['max_r_hat']:.3f}, "
                f"bulk ESS at least {figures['min_ess_bulk']:.0f}, tail ESS at least {figures['min_ess_tail']:.0f}."
            )
        console.print(
            f"{run['seconds']:.1f} s of stereo in {run['wall_seconds']:.0f} s: {chains} chains of {draws} draws "
            f"on each of the windows.\n{agreement}\n"
            f"The stems sum to the mix within {result['sum_residual_db']:.0f} dB.\n"
            f"Stems and posterior: {result['folder']}\nPicture: {result['picture']}",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def separate(
    inputs: Annotated[list[Path], typer.Argument(help="Audio files, and folders of them.")],
    model: Model = "song-gaussian",
    out: Out = Path("separated"),
    method: Annotated[
        str, typer.Option(help="langevin (chains) or exact (closed form, Gaussian priors).")
    ] = "langevin",
    chains: Chains = 4,
    draws: Draws = 100,
    warmup: Warmup = 50,
    segment: Segment = None,
    overlap: Overlap = 0.25,
    gains: Gains = None,
    keep: Annotated[int, typer.Option(min=0, help="Posterior draws to write as {source}.drawN.wav.")] = 0,
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
    with _reported():
        from pyrosep.priors import load_priors, model_info
        from pyrosep.separate import Settings
        from pyrosep.tracks import find_tracks, separate_track

        settings = Settings(method, chains, draws, warmup, segment, overlap, _gains(gains), keep=keep, seed=seed)
        info = model_info(model)
        priors = load_priors(model, device=_device(device))
        reports: dict[str, Any] = {}
        usable, failed = [], 0
        for given in inputs:
            try:
                find_tracks([given])
                usable.append(given)
            except PyrosepError as error:
                failed += 1
                _complain("error", _one_line(error))
                reports[str(given)] = {"input": str(given), "error": _one_line(error)}
        for name, path in find_tracks(usable).items():
            bar, update = _progress(name, quiet)
            try:
                with bar:
                    report = separate_track(
                        path,
                        out / info.name / name,
                        priors,
                        settings,
                        model=info,
                        write=sources,
                        overwrite=overwrite,
                        progress=update,
                    )
            except Exception as error:
                failed += 1
                reason = _one_line(error)
                _complain("error", reason if str(path) in reason else f"{path}: {reason}")
                reports[name] = {"input": str(path), "error": reason}
                continue
            reports[name] = report
            if not quiet:
                typer.echo(_track_line(name, out / info.name / name, report))
        _write_json(json_file, reports)
        if failed:
            if len(reports) > 1:
                _complain("error", f"{failed} of {len(reports)} tracks failed")
            raise typer.Exit(1)


def _track_line(name: str, folder: Path, report: dict[str, Any]) -> str:
    if report.get("skipped"):
        return f"{name}: done before, kept ({folder})"
    line = f"{name}: {report['seconds']:.1f} s in {report['wall_seconds']:.1f} s -> {folder}"
    return line + (f"\n  {report['diagnostics']['verdict']}" if "diagnostics" in report else "")


@app.command()
def evaluate(
    data: Annotated[str, typer.Option("--data", help="toy, musdb (at MUSDB_PATH), or a folder ROOT/SONG/STEM.wav.")],
    model: Annotated[str | None, typer.Option("-n", "--model", help="Model [song-gaussian; toy for toy data].")] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="May be given again [langevin].")] = None,
    sources: Sources = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each song.")] = 30.0,
    songs: Annotated[int | None, typer.Option(min=1, help="At most so many songs, or toy mixes [all; 8].")] = None,
    frame: Annotated[int, typer.Option(min=16, help="Samples in a toy mix.")] = 2048,
    subset: Annotated[str, typer.Option(help="Of MUSDB18: train or test.")] = "test",
    stereo: Annotated[bool, typer.Option("--stereo", help="Keep channels; else the mean over them.")] = False,
    bss: Annotated[bool, typer.Option("--bss-eval", help="Add BSS Eval v4 by museval (needs ffmpeg).")] = False,
    chains: Chains = 4,
    draws: Draws = 100,
    warmup: Warmup = 50,
    segment: Segment = None,
    overlap: Overlap = 0.25,
    gains: Gains = None,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """SI-SDR and its improvement over the mix, by source, on songs whose stems are known."""
    with _reported():
        from dataclasses import asdict
        from itertools import islice

        from pyrosep.data.catalog import open_songs
        from pyrosep.data.toy import WAVES
        from pyrosep.evaluate import aggregate, song_references, toy_references
        from pyrosep.evaluate import evaluate as score
        from pyrosep.priors import load_priors, model_info
        from pyrosep.separate import Settings

        chosen = methods or ["langevin"]
        info = model_info(model or ("toy" if data == "toy" else "song-gaussian"))
        settings = Settings(
            chains=chains,
            draws=draws,
            warmup=warmup,
            segment=segment,
            overlap=overlap,
            gains=_gains(gains) or info.gains,
            seed=seed,
        )
        if data == "toy":
            names = tuple(sources or WAVES)
            count = songs or 8
            references = toy_references(names, frame=frame, size=count, seed=seed)
            priors = load_priors(info.folder, sources=names, frame=frame, device=_device(device))
        else:
            opened, names = open_songs(data, subset=subset, sources=sources)
            count = min(len(opened), songs or len(opened))
            references = song_references(islice(opened, count), names, seconds=seconds, mono=not stereo)
            # All of the model's sources explain the mix, whichever are scored.
            priors = load_priors(info.folder, device=_device(device))
        with _bar(count, "evaluating", quiet) as bar:
            scores, factors = score(
                references, priors, chosen, settings, bss=bss, on_reference=lambda reference: bar.update()
            )
        rows = aggregate(scores)
        if not rows:
            raise DataError(f"no source of {data} sounds in what was read; take more --seconds, or other sources")
        _write_json(
            json_file,
            {
                "data": data,
                "model": info.name,
                "settings": asdict(settings),
                "summary": rows,
                "real_time_factor": factors,
                "scores": [asdict(one) for one in scores],
            },
        )
        if not quiet:
            _print_scores(rows, factors, f"{info.name} on {data}, {count} mixes")


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
    console = Console()
    console.print(table)
    for method, factor in factors.items():
        console.print(f"{method}: {factor:.2f} s of computing a second of audio", highlight=False)


@train_app.command("gaussian")
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
    with _reported():
        from pyrosep.data.catalog import open_songs
        from pyrosep.data.toy import WAVES
        from pyrosep.priors import save_priors
        from pyrosep.priors.training import recordings, toy_recordings, train_gaussian

        _device(device)  # the fit is one pass of FFTs, bound by reading files; it runs on the CPU everywhere
        if data == "toy":
            takes = {wave: toy_recordings(wave, seed=seed) for wave in sources or WAVES}
        else:
            songs, names = open_songs(data, subset="train", sources=sources)
            takes = {name: recordings(songs, name, sample_rate) for name in names}
        priors, reports = {}, {}
        for name, own in takes.items():
            with _bar(0, f"fitting {name}", quiet) as bar:
                counted = (bar.update() or take for take in own)
                priors[name], reports[name] = train_gaussian(counted, frame=frame, window=window)
            if not quiet:
                typer.echo(f"{name}: {', '.join(f'{key} {value}' for key, value in reports[name].items())}")
        save_priors(out, priors, gains=gains, summary=summary, provenance=reports)
        _write_json(json_file, reports)
        if not quiet:
            typer.echo(f"written to {out}")


@app.command()
def models(seed: Seed = 0, device: Device = "auto", quiet: Quiet = False, json_file: Json = None) -> None:
    """List the models that ship."""
    with _reported():
        from pyrosep.priors import shipped_models

        found = shipped_models()
        _write_json(
            json_file,
            [
                {"name": info.name, "family": info.family, "sources": info.sources, "sample_rate": info.sample_rate}
                for info in found
            ],
        )
        if quiet:
            return
        table = Table()
        for column in ("model", "priors", "sources", "rate", "about"):
            table.add_column(column)
        for info in found:
            table.add_row(info.name, info.family, ", ".join(info.sources), f"{info.sample_rate} Hz", info.summary)
        Console().print(table)


@app.command()
def diagnose(
    posterior: Annotated[Path, typer.Argument(help="A posterior.nc, or a folder that holds one.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the pictures [beside it].")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table: the summaries of largest R-hat.")] = 20,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """R-hat, ESS and MCSE of a posterior's summaries, and ArviZ's plots of them."""
    with _reported():
        from pyrosep.diagnostics import plot_diagnostics, read_netcdf, summarize, verdict

        path = posterior / "posterior.nc" if posterior.is_dir() else posterior
        idata = read_netcdf(path)
        table = summarize(idata)
        pictures = plot_diagnostics(idata, out or path.parent / "diagnostics")
        _write_json(
            json_file,
            {"verdict": verdict(table), "summaries": json.loads(table.to_json(orient="index")), "pictures": pictures},
        )
        if not quiet:
            typer.echo(table.sort_values("r_hat", ascending=False).head(rows).to_string(float_format="{:.3f}".format))
            typer.echo(verdict(table))
            for picture in pictures:
                typer.echo(str(picture))
