"""``pyrosep train-prior``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyrosep.cli.options import (
    Anew,
    Device,
    Json,
    LearningRate,
    Optimizer,
    Out,
    Precision,
    Quiet,
    SaveEvery,
    Seed,
    Sources,
    Summary,
    ValidateEvery,
    chosen_device,
    figures_line,
    progress_bar,
    reported,
    training_settings,
    write_json,
)
from pyrosep.errors import ConfigurationError


def train_gaussian_command(
    data: Annotated[str, typer.Option("--data", help="toy, musdb (at MUSDB_PATH), or a folder ROOT/SONG/STEM.wav.")],
    out: Out,
    sources: Sources = None,
    sample_rate: Annotated[int | None, typer.Option(min=1, help="Hz [default: the recordings' own].")] = None,
    frame: Annotated[int, typer.Option(min=2, help="Samples in a frame of the prior.")] = 16_384,
    window: Annotated[int, typer.Option(min=4, help="Samples in a window of the spectral estimate.")] = 2048,
    gains: Annotated[str, typer.Option(help="How loud sources are in a mix: level, fit or mean.")] = "level",
    summary: Summary = "",
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
                typer.echo(f"{name}: {figures_line(reports[name])}")
        save_priors(out, priors, gains=gains, summary=summary, provenance=reports)
        write_json(json_file, reports)
        if not quiet:
            typer.echo(f"written to {out}")


def train_flowavenet_command(
    data: Annotated[str, typer.Option("--data", help="toy, musdb (at MUSDB_PATH), or a folder ROOT/SONG/STEM.wav.")],
    out: Out,
    sources: Sources = None,
    sample_rate: Annotated[int | None, typer.Option(min=1, help="Hz [default: the recordings' own].")] = None,
    frame: Annotated[int, typer.Option(min=2, help="Samples in a frame.")] = 2048,
    size: Annotated[str, typer.Option(help="Of the network: tiny, small or talk.")] = "small",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer, for each source.")] = 6000,
    batch: Annotated[int, typer.Option(min=1, help="Frames in a step, over all processes.")] = 16,
    learning_rate: LearningRate = 0.02,
    optimizer: Optimizer = "muon",
    precision: Precision = "bf16-mixed",
    sigma_min: Annotated[float, typer.Option(help="Lowest noise level.")] = 0.01,
    sigma_max: Annotated[float | None, typer.Option(help="Highest level [rms times the root of the frame].")] = None,
    score_weight: Annotated[float, typer.Option(help="Weight of denoising score matching in the loss.")] = 0.0,
    contrast: Annotated[
        float, typer.Option(help="Weight of telling the source from constants, silence and other sources.")
    ] = 0.0,
    start: Annotated[str | None, typer.Option(help="A model whose priors to start from [random weights].")] = None,
    schedule: Annotated[str, typer.Option(help="continuous (all levels at once) or finetune (copies).")] = "continuous",
    levels: Annotated[list[float] | None, typer.Option("--level", help="Of the copies; may be given again.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Sources trained side by side, a process each.")] = 1,
    devices: Annotated[int, typer.Option(min=1, help="Devices for each source; on a CPU, processes.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines for each source.")] = 1,
    validate_every: ValidateEvery = 500,
    save_every: SaveEvery = 500,
    gains: Annotated[str, typer.Option(help="How loud sources are in a mix: level, fit or mean.")] = "level",
    summary: Summary = "",
    overwrite: Anew = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Train normalizing flows (FloWaveNet) on noised recordings and add them to the model in OUT."""
    with reported():
        from pyrosep.data.catalog import open_songs
        from pyrosep.data.toy import WAVES
        from pyrosep.priors import SIZES, save_priors

        if size not in SIZES:
            raise ConfigurationError(f"--size must be one of {', '.join(SIZES)}; got {size!r}")
        if schedule not in ("continuous", "finetune"):
            raise ConfigurationError(f"--schedule must be continuous or finetune; got {schedule!r}")
        if schedule == "finetune" and (contrast or start):
            raise ConfigurationError("--contrast and --start go with --schedule continuous")
        if workers > 1 and devices * nodes > 1:
            raise ConfigurationError("--workers takes one device a source; use either it or --devices and --nodes")
        settings = training_settings(
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
        names = tuple(sources or WAVES) if data == "toy" else open_songs(data, subset="train", sources=sources)[1]
        jobs = [
            {
                "data": data,
                "source": name,
                "sample_rate": sample_rate,
                "frame": frame,
                "size": size,
                "settings": settings,
                "sigma_min": sigma_min,
                "sigma_max": sigma_max,
                "score_weight": score_weight,
                "contrast": contrast,
                "start": start,
                "levels": None if schedule == "continuous" else tuple(levels or ()),
                "folder": Path(out) / "training" / name,
                "resume": not overwrite,
                "quiet": quiet,
            }
            for name in names
        ]
        reports = {}
        for name, (priors, report, lead) in zip(names, _trained(jobs, workers), strict=True):
            reports[name] = report
            if not lead:
                continue
            for folder, prior in priors.items():
                own = report if schedule == "continuous" else report[folder]
                place = Path(out) if schedule == "continuous" else Path(out) / folder
                save_priors(place, {name: prior}, gains=gains, summary=summary, provenance={name: own})
            if not quiet:
                typer.echo(f"{name}: {figures_line(report)}")
        write_json(json_file, reports)
        if not quiet:
            typer.echo(f"written to {out}")


def _trained(jobs: list[dict[str, Any]], workers: int) -> Any:
    """The jobs' results in their order, each as soon as it and those before it are done."""
    if workers == 1:
        fabric = None
        for job in jobs:
            fabric = fabric or _launched(job["settings"])
            yield _train_one(job, fabric)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # A process that has used torch's threads can't be forked.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_train_one, jobs)


def _launched(settings: Any) -> Any:
    from pyrosep.trainer import launch

    return launch(settings)


def _train_one(job: dict[str, Any], fabric: Any = None) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Priors by the folder below OUT that they go to, figures, and whether this process is the one that writes."""
    from pyrosep.data.catalog import open_songs
    from pyrosep.priors import SIZES, FloWaveNet, load_priors
    from pyrosep.priors.flowavenet_training import (
        LEVELS,
        finetune_flowavenet,
        song_frames,
        toy_frames,
        train_flowavenet,
    )

    settings, name, frame = job["settings"], job["source"], job["frame"]
    chosen_device(settings.accelerator)  # and the number of threads
    fabric = fabric or _launched(settings)
    if job["data"] == "toy":
        frames = toy_frames(name, frame, seed=settings.seed)
    else:
        songs, there = open_songs(job["data"], subset="train", sources=None if job["contrast"] else [name])
        others = tuple(other for other in there if other != name)
        frames = song_frames(
            songs,
            name,
            frame,
            sample_rate=job["sample_rate"],
            others=others if job["contrast"] else (),
            seed=settings.seed,
        )
    common = {key: job[key] for key in ("score_weight", "folder", "resume", "quiet")} | {
        "label": name,
        "fabric": fabric,
    }
    if job["levels"] is None:
        begun = None
        if job["start"] is not None:
            begun = load_priors(job["start"], frame=frame, sources=[name])[name]
            if not isinstance(begun, FloWaveNet):
                raise ConfigurationError(f"--start must be a model of flows; {job['start']} has a {begun}")
        prior, report = train_flowavenet(
            frames,
            SIZES[job["size"]] if begun is None else begun.network.size,
            settings,
            sigma_min=job["sigma_min"],
            sigma_max=job["sigma_max"],
            contrast=job["contrast"],
            start=begun,
            **common,
        )
        return {"": prior}, report, fabric.is_global_zero
    levels = job["levels"] or tuple(level for level in LEVELS if level <= 0.36)
    copies, reports = finetune_flowavenet(frames, SIZES[job["size"]], settings, levels=levels, name=name, **common)
    places = {level: f"sigma-{level:g}" for level in copies}
    return (
        {places[level]: prior for level, prior in copies.items()},
        {places[level]: reports.get(level, {}) for level in copies},
        fabric.is_global_zero,
    )
