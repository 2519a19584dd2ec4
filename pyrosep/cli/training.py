"""``pyrosep train-prior``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
    Sources,
    Summary,
    ValidateEvery,
    Weights,
    chosen_data,
    chosen_device,
    figures_line,
    progress_bar,
    reported,
    training_settings,
    write_json,
)
from pyrosep.errors import ConfigurationError
from pyrosep.training.settings import PRESETS, TrainingSettings

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="toy; or, once or more: musdb (at MUSDB_PATH), ROOT/SONG/STEM.wav, or solo:ROOT of SOURCE/NAME.wav.",
    ),
]
SampleRate = Annotated[int | None, typer.Option(min=1, help="Hz [default: the recordings' own].")]
Frame = Annotated[int, typer.Option(min=2, help="Samples in a frame.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the optimizer, for each source.")]
Batch = Annotated[int, typer.Option(min=1, help="Frames in a step, over all processes.")]
SigmaMin = Annotated[float, typer.Option(help="Lowest noise level.")]
SigmaMax = Annotated[float | None, typer.Option(help="Highest level [rms times the root of the frame].")]
Start = Annotated[str | None, typer.Option(help="A model whose priors to start from [random weights].")]
Workers = Annotated[int, typer.Option(min=1, help="Sources trained side by side, a process each.")]
Devices = Annotated[int, typer.Option(min=1, help="Devices for each source; on a CPU, processes.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines for each source.")]
Level = Annotated[str, typer.Option("--gains", help="How loud sources are in a mix: level, fit or mean.")]


def train_gaussian_command(
    data: Data,
    out: Out,
    weights: Weights = None,
    renames: Renames = None,
    sources: Sources = None,
    sample_rate: SampleRate = None,
    frame: Annotated[int, typer.Option(min=2, help="Samples in a frame of the prior.")] = 16_384,
    window: Annotated[int, typer.Option(min=4, help="Samples in a window of the spectral estimate.")] = 2048,
    gains: Level = "level",
    summary: Summary = "",
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Fit stationary Gaussian priors (a mean power spectrum each) and add them to the model in OUT."""
    with reported():
        from pyrosep.data.toy import WAVES
        from pyrosep.naming import check_source_names
        from pyrosep.training.gaussian import recordings, recordings_by_set, toy_recordings, train_gaussian
        from pyrosep.zoo import save_priors

        chosen_device(device)  # the fit is one pass of FFTs, bound by reading files; it runs on the CPU everywhere
        chosen = chosen_data(data, weights, renames)
        shares = None
        if chosen.simulated:
            check_source_names(names := tuple(sources or WAVES))
            takes = {wave: {"toy": toy_recordings(wave, seed=seed)} for wave in names}
        else:
            songs = chosen.open(sources)
            check_source_names(songs.sources)  # before the work, not after it
            shares = songs.shares
            takes = {
                name: {"": recordings(songs, name, sample_rate)}
                if shares is None
                else recordings_by_set(songs, name, sample_rate)
                for name in songs.sources
            }
        priors, reports = {}, {}
        for name, own in takes.items():
            with progress_bar(0, f"fitting {name}", quiet) as bar:
                counted = [map(partial(_count, bar), part) for part in own.values()]
                own_shares = None if shares is None else [shares[data_set] for data_set in own]
                priors[name], reports[name] = train_gaussian(*counted, frame=frame, window=window, shares=own_shares)
            if not quiet:
                typer.echo(f"{name}: {figures_line(reports[name])}")
        save_priors(out, priors, gains=gains, summary=summary, provenance=reports)
        write_json(json_file, reports)
        if not quiet:
            typer.echo(f"written to {out}")


def _count(bar: Any, take: Any) -> Any:
    bar.update()
    return take


def train_flowavenet_command(
    data: Data,
    out: Out,
    weights: Weights = None,
    renames: Renames = None,
    sources: Sources = None,
    sample_rate: SampleRate = None,
    frame: Frame = 2048,
    size: Annotated[str, typer.Option(help="Of the network: tiny, small or talk.")] = "small",
    steps: Steps = PRESETS["flowavenet"].steps,
    batch: Batch = PRESETS["flowavenet"].batch,
    learning_rate: LearningRate = PRESETS["flowavenet"].learning_rate,
    optimizer: Optimizer = PRESETS["flowavenet"].optimizer,
    precision: Precision = "auto",
    sigma_min: SigmaMin = 0.01,
    sigma_max: SigmaMax = None,
    score_weight: Annotated[float, typer.Option(help="Weight of denoising score matching in the loss.")] = 0.0,
    contrast: Annotated[
        float, typer.Option(help="Weight of telling the source from constants, silence and other sources.")
    ] = 0.0,
    start: Start = None,
    schedule: Annotated[str, typer.Option(help="continuous (all levels at once) or finetune (copies).")] = "continuous",
    levels: Annotated[list[float] | None, typer.Option("--level", help="Of the copies; may be given again.")] = None,
    workers: Workers = 1,
    devices: Devices = 1,
    nodes: Nodes = 1,
    validate_every: ValidateEvery = PRESETS["flowavenet"].validate_every,
    save_every: SaveEvery = PRESETS["flowavenet"].save_every,
    gains: Level = "level",
    summary: Summary = "",
    overwrite: Anew = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Train normalizing flows (FloWaveNet) on noised recordings and add them to the model in OUT."""
    with reported():
        from pyrosep.priors import SIZES

        if size not in SIZES:
            raise ConfigurationError(f"--size must be one of {', '.join(SIZES)}; got {size!r}")
        if schedule not in ("continuous", "finetune"):
            raise ConfigurationError(f"--schedule must be continuous or finetune; got {schedule!r}")
        if schedule == "finetune" and (contrast or start):
            raise ConfigurationError("--contrast and --start go with --schedule continuous")
        settings = _settings(
            "flowavenet",
            device,
            workers,
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
        job = {
            "train": _train_flowavenet,
            "data": chosen_data(data, weights, renames),
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
            "resume": not overwrite,
            "quiet": quiet,
        }
        _train_all(job, sources, out, workers=workers, gains=gains, summary=summary, quiet=quiet, json_file=json_file)


def train_continuousflow_command(
    data: Data,
    out: Out,
    weights: Weights = None,
    renames: Renames = None,
    sources: Sources = None,
    sample_rate: SampleRate = None,
    frame: Frame = 2048,
    size: Annotated[str, typer.Option(help="Of the network: tiny, small, music or large.")] = "small",
    steps: Steps = PRESETS["continuousflow"].steps,
    batch: Batch = PRESETS["continuousflow"].batch,
    learning_rate: LearningRate = PRESETS["continuousflow"].learning_rate,
    optimizer: Optimizer = PRESETS["continuousflow"].optimizer,
    precision: Precision = "auto",
    sigma_min: SigmaMin = 0.01,
    sigma_max: SigmaMax = None,
    spread: Annotated[
        float, typer.Option(min=0.0, help="Std of the levels' logarithm about the source's rms; 0: uniform instead.")
    ] = 1.5,
    gain_jitter: GainJitter = 0.0,
    pitch_jitter: PitchJitter = 0.0,
    flip: Flip = False,
    takes: Annotated[float, typer.Option(help="Share of frames that are the sum of two.")] = 0.0,
    equalise: Equalise = 0.0,
    compress: Compress = 0.0,
    reverb: Reverb = 0.0,
    interference: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of frames that other sources are mixed into; 0: none.")
    ] = 0.0,
    told: Annotated[
        str,
        typer.Option(
            help="What the network is told of other sources: presence, level or nothing; apart: a second network is "
            "trained, and that of --start stays as it is."
        ),
    ] = "presence",
    start: Start = None,
    workers: Workers = 1,
    devices: Devices = 1,
    nodes: Nodes = 1,
    validate_every: ValidateEvery = PRESETS["continuousflow"].validate_every,
    save_every: SaveEvery = PRESETS["continuousflow"].save_every,
    gains: Level = "level",
    summary: Summary = "",
    half: Annotated[bool, typer.Option("--half/--full", help="Write the weights in half precision, or single.")] = True,
    overwrite: Anew = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Train denoisers for all noise levels (ContinuousFlow) on recordings and add them to the model in OUT."""
    with reported():
        from pyrosep.nn.denoiser import DENOISERS
        from pyrosep.training.augmentation import Augmentation
        from pyrosep.training.interference import Interference

        if size not in DENOISERS:
            raise ConfigurationError(f"--size must be one of {', '.join(DENOISERS)}; got {size!r}")
        augmentation = Augmentation(gain_jitter, flip, pitch_jitter, takes, equalise, compress, reverb)
        if data == ["toy"] and augmentation != Augmentation():
            raise ConfigurationError(
                "--gain-jitter, --pitch-jitter, --equalise, --compress, --reverb, --flip and --takes are for "
                "recordings, not toy data"
            )
        settings = _settings(
            "continuousflow",
            device,
            workers,
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
        job = {
            "train": _train_continuousflow,
            "data": chosen_data(data, weights, renames),
            "sample_rate": sample_rate,
            "frame": frame,
            "size": size,
            "settings": settings,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "spread": spread or None,
            "augmentation": augmentation,
            "interference": Interference(interference, told=told) if interference else None,
            "half": half,
            "start": start,
            "resume": not overwrite,
            "quiet": quiet,
        }
        _train_all(job, sources, out, workers=workers, gains=gains, summary=summary, quiet=quiet, json_file=json_file)


def _settings(family: str, device: str, workers: int, **options: Any) -> TrainingSettings:
    if workers > 1 and options["devices"] * options["nodes"] > 1:
        raise ConfigurationError("--workers takes one device a source; use either it or --devices and --nodes")
    return training_settings(PRESETS[family], device, **options)


def _train_all(
    job: dict[str, Any],
    sources: list[str] | None,
    out: Path,
    *,
    workers: int,
    gains: str,
    summary: str,
    quiet: bool,
    json_file: Path | None,
) -> None:
    """Do a job for every source, each result written as soon as it is there."""
    import torch

    from pyrosep.data.toy import WAVES
    from pyrosep.naming import check_source_names
    from pyrosep.zoo import save_priors

    data = job["data"]
    names = tuple(sources or WAVES) if data.simulated else data.open(sources).sources
    check_source_names(names)  # before the work, and before one of them becomes the name of a folder
    jobs = [job | {"source": name, "folder": Path(out) / "training" / name} for name in names]
    reports = {}
    for name, (priors, report, lead) in zip(names, _trained(jobs, workers), strict=True):
        reports[name] = report
        if not lead:
            continue
        for folder, prior in priors.items():
            own = report[folder] if folder else report
            save_priors(
                Path(out) / folder,
                {name: prior},
                gains=gains,
                summary=summary,
                dtype=torch.float16 if job.get("half") else None,
                provenance={name: own},
            )
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
    from pyrosep.training.trainer import launch

    return launch(settings)


def _train_one(job: dict[str, Any], fabric: Any = None) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Priors by the folder below OUT that they go to, figures, and whether this process is the one that writes."""
    from pyrosep.training.frames import song_frames, toy_frames
    from pyrosep.training.trainer import Trainer

    settings, name, frame = job["settings"], job["source"], job["frame"]
    chosen_device(settings.accelerator)  # and the number of threads
    fabric = fabric or _launched(settings)
    if job["data"].simulated:
        frames = toy_frames(name, frame, seed=settings.seed)
    else:
        heard = bool(job.get("contrast") or job.get("interference"))
        songs = job["data"].open(None if heard else [name])
        others = tuple(other for other in songs.sources if other != name) if heard else ()
        frames = song_frames(
            songs,
            name,
            frame,
            sample_rate=job["sample_rate"],
            others=others,
            augmentation=job.get("augmentation"),
            seed=settings.seed,
            shares=songs.shares,
        )
    trainer = Trainer(
        settings, folder=job["folder"], resume=job["resume"], label=name, quiet=job["quiet"], fabric=fabric
    )
    priors, report = job["train"](job, frames, trainer)
    return priors, report, fabric.is_global_zero


def _begun(job: dict[str, Any], family: type) -> Any:
    """The prior that is started from, if there is one."""
    from pyrosep.zoo import load_priors

    if job["start"] is None:
        return None
    prior = load_priors(job["start"], frame=job["frame"], sources=[job["source"]])[job["source"]]
    if not isinstance(prior, family):
        raise ConfigurationError(f"--start must be a model of {family.__name__} priors; {job['start']} has a {prior}")
    return prior


def _train_flowavenet(job: dict[str, Any], frames: Any, trainer: Any) -> tuple[dict[str, Any], Any]:
    from pyrosep.priors import SIZES, FloWaveNet
    from pyrosep.training.flowavenet import finetune_flowavenet, train_flowavenet
    from pyrosep.training.frames import LEVELS

    if job["levels"] is None:
        begun = _begun(job, FloWaveNet)
        prior, report = train_flowavenet(
            frames,
            SIZES[job["size"]] if begun is None else begun.network.size,
            trainer,
            sigma_min=job["sigma_min"],
            sigma_max=job["sigma_max"],
            contrast=job["contrast"],
            start=begun,
            score_weight=job["score_weight"],
        )
        return {"": prior}, report
    levels = job["levels"] or tuple(level for level in LEVELS if level <= 0.36)
    copies, reports = finetune_flowavenet(
        frames, SIZES[job["size"]], trainer, levels=levels, name=job["source"], score_weight=job["score_weight"]
    )
    places = {level: f"sigma-{level:g}" for level in copies}
    return (
        {places[level]: prior for level, prior in copies.items()},
        {places[level]: reports.get(level, {}) for level in copies},
    )


def _train_continuousflow(job: dict[str, Any], frames: Any, trainer: Any) -> tuple[dict[str, Any], Any]:
    from pyrosep.nn.denoiser import DENOISERS
    from pyrosep.priors import ContinuousFlow
    from pyrosep.training.continuousflow import train_continuousflow
    from pyrosep.zoo import prior_set_info
    from pyrosep.zoo.weights import load_weights

    begun = _begun(job, ContinuousFlow)
    prior, report = train_continuousflow(
        frames,
        DENOISERS[job["size"]] if begun is None else begun.network.size,
        trainer,
        sigma_min=job["sigma_min"],
        sigma_max=job["sigma_max"],
        spread=job["spread"],
        interference=job["interference"],
        start=begun,
    )
    if prior.interfered is not None:  # what is told of the first network stays as it was
        before = load_weights(prior_set_info(job["start"]).folder)[0]["priors"][job["source"]]
        report = before | {"second network": report}
    return {"": prior}, report
