"""``pyrosep experiment``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pyrosep.cli.options import (
    Chains,
    Device,
    Json,
    Out,
    Precision,
    Quiet,
    Seed,
    Sources,
    chosen_device,
    reported,
    track_progress,
    write_json,
)
from pyrosep.errors import ConfigurationError

if TYPE_CHECKING:
    from pyrosep.experiments import HeldOut

Number = TypeVar("Number", int, float)

Priors = Annotated[str, typer.Option("--priors", help="Name of a model that ships, or a folder of one.")]
Data = Annotated[str, typer.Option("--data", help="toy, musdb (at MUSDB_PATH), or a folder ROOT/SONG/STEM.wav.")]
Subset = Annotated[str, typer.Option(help="Of MUSDB18: train or test.")]
Frame = Annotated[int, typer.Option(min=16, help="Samples in a frame.")]
Frames = Annotated[int, typer.Option(min=1, help="Frames of each source.")]
Levels = Annotated[str, typer.Option(help="Noise levels of the priors, by commas.")]
Every = Annotated[str, typer.Option(help="FIRST,STEP: each STEP-th song from the FIRST on, counted from 0.")]


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
        from pyrosep.experiments.samplers import ARMS
        from pyrosep.experiments.samplers import samplers as study

        chosen_device(device)  # the study runs on the CPU everywhere: its exact prior is in double precision
        bar, update = track_progress("samplers", quiet)
        with bar:
            table = study(
                out,
                sources=_numbers(sources, "--sources", int),
                arms=samplers or ARMS,
                budgets=_numbers(budgets, "--budgets", int),
                mixes=mixes,
                chains=chains,
                frame=frame,
                seed=seed,
                workers=workers,
                progress=update,
            )
        _report({"samplers": table}, out, json_file, quiet)


def guides_command(
    out: Out,
    guides: Annotated[
        list[str] | None,
        typer.Option(
            "--guide", help="Name or folder of one; may be given again. Chains start from the first [toy-guide]."
        ),
    ] = None,
    priors: Priors = "toy",
    flows: Annotated[str, typer.Option(help="A model of learned priors, for guide+flows.")] = "toy-flowavenet",
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="mix, guide, guide+langevin, guide+flows or langevin; may be given again [all]."),
    ] = None,
    frames: Annotated[str, typer.Option(help="Samples in a mix, by commas.")] = "4096,16384",
    mixes: Annotated[int, typer.Option(min=1, help="Mixes of each length.")] = 200,
    flow_mixes: Annotated[int | None, typer.Option(min=1, help="Mixes for guide+flows [as many].")] = None,
    chains: Annotated[int, typer.Option(min=1, help="Chains for each mix.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """What guides find in held-out toy mixes, alone and as starts of chains, beside chains without a guide."""
    with reported():
        from pyrosep.experiments.guides import METHODS
        from pyrosep.experiments.guides import guides as study

        chosen_device(device)  # the study runs on the CPU everywhere: its exact priors are in double precision
        bar, update = track_progress("guides", quiet)
        with bar:
            separation, coverage = study(
                out,
                guides=guides or ("toy-guide",),
                priors=priors,
                flows=flows,
                methods=methods or METHODS,
                frames=_numbers(frames, "--frames", int),
                mixes=mixes,
                flow_mixes=flow_mixes,
                chains=chains,
                seed=seed,
                workers=workers,
                progress=update,
            )
        _report({"separation": separation, "coverage": coverage}, out, json_file, quiet)


def flows_command(
    out: Out,
    priors: Priors = "toy-continuous",
    guide: Annotated[str, typer.Option(help="Name or folder of a guide of the four waves.")] = "toy-guide",
    sources: Annotated[str, typer.Option(help="Numbers of sources, 2 or 4, by commas.")] = "2,4",
    arms: Annotated[list[str] | None, typer.Option("--arm", help="One of the arms; may be given again [all].")] = None,
    mixes: Annotated[int, typer.Option(min=1, help="Mixes of four sources.")] = 32,
    pair_mixes: Annotated[int, typer.Option(min=1, help="Mixes of each pair.")] = 64,
    chains: Annotated[int, typer.Option(min=1, help="Chains for each mix.")] = 8,
    frame: Annotated[int, typer.Option(min=16, help="Samples in a mix.")] = 2048,
    precision: Precision = "32-true",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Toy mixes of two and of four sources under learned flows, and what redraws, chains and a guide add."""
    with reported():
        from pyrosep.experiments.flows import ARMS
        from pyrosep.experiments.flows import flows as study

        chosen_device(device)  # the study runs on the CPU everywhere, in processes of its own
        bar, update = track_progress("flows", quiet)
        with bar:
            table = study(
                out,
                priors=priors,
                guide=guide,
                sources=_numbers(sources, "--sources", int),
                arms=arms or tuple(ARMS),
                mixes=mixes,
                pair_mixes=pair_mixes,
                chains=chains,
                frame=frame,
                precision=precision,
                seed=seed,
                workers=workers,
                progress=update,
            )
        _report({"flows": table}, out, json_file, quiet)


def music_command(
    out: Out,
    data: Annotated[str, typer.Option("--data", help="Songs to separate: a folder ROOT/SONG/STEM.wav.")],
    train: Annotated[str, typer.Option("--train", help="Songs whose stems NMF's dictionaries are learned from.")],
    model: Annotated[str, typer.Option("-n", "--model", help="Model of the chains and the guide.")] = "band-small",
    gaussian: Annotated[str, typer.Option(help="Model of the Wiener filter.")] = "band-gaussian",
    guide: Annotated[str | None, typer.Option(help="Name of a guide, or a folder of one [the model's].")] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm", help="wiener, nmf, irm, langevin, one-pass, guide, guide+langevin; again for more [all]."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each song.")] = 30.0,
    songs: Annotated[int | None, typer.Option(min=1, help="At most so many songs [all].")] = None,
    components: Annotated[int, typer.Option(min=1, help="Of NMF, for each source.")] = 64,
    frames: Annotated[int, typer.Option(min=1, help="Of two seconds, that a dictionary is learned from.")] = 100,
    chains: Chains = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Seed = 0,
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """SI-SDR, speed, memory and trust on songs: Wiener filter, NMF, ideal mask, guide and chains."""
    with reported():
        from pyrosep.experiments.music import music
        from pyrosep.separation import Settings

        bar, update = track_progress("music", quiet)
        with bar:
            tables = music(
                out,
                data,
                train,
                model=model,
                gaussian=gaussian,
                guide=guide,
                arms=arms,
                seconds=seconds,
                songs=songs,
                components=components,
                frames=frames,
                settings=Settings(chains=chains, seed=seed),
                workers=workers,
                progress=update,
            )
        _report(tables, out, json_file, quiet)


def sets_command(
    out: Out,
    data: Annotated[str, typer.Option("--data", help="Songs with stems: a folder ROOT/SONG/STEM.wav.")],
    model: Annotated[
        str, typer.Option("-n", "--model", help="Model whose denoisers filter and know interference.")
    ] = "band-small",
    extra: Annotated[
        str | None, typer.Option(help="A source that is added: MODEL,SOURCE,RECORDINGS, the last as for --data.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="one-pass, langevin, 'langevin, all priors', guide; again for more [all]."),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows, at most.")] = 24,
    every: Every = "0,1",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Seed = 0,
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Mixes of fewer and of more sources than a model has, by the priors of just those sources: SI-SDR."""
    with reported():
        from pyrosep.experiments.sets import METHODS, sets

        parts = None if extra is None else tuple(part.strip() for part in extra.split(",", 2))
        if parts is not None and len(parts) != 3:
            raise ConfigurationError(f"--extra takes MODEL,SOURCE,RECORDINGS; got {extra!r}")
        bar, update = track_progress("sets", quiet)
        with bar:
            tables = sets(
                out,
                data,
                model=model,
                extra=parts,
                methods=methods or METHODS,
                windows=windows,
                every=_every(every),
                seed=seed,
                workers=workers,
                progress=update,
            )
        _report(tables, out, json_file, quiet)


def audit_command(
    out: Out,
    data: Annotated[str, typer.Option("--data", help="Songs with stems: a folder ROOT/SONG/STEM.wav.")],
    model: Annotated[str, typer.Option("-n", "--model", help="Model whose denoisers are filters.")] = "band-small",
    searches: Annotated[
        list[str] | None, typer.Option("--search", help="shared or local; may be given again [both].")
    ] = None,
    levels: Annotated[str, typer.Option(help="Numbers of noise levels, by commas.")] = "3,6,12,24",
    windows: Annotated[int, typer.Option(min=1, help="Windows, at most.")] = 36,
    chains: Annotated[int, typer.Option(min=2, help="Draws of each window.")] = 16,
    every: Every = "0,1",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Seed = 0,
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Searches on windows of songs by the number of noise levels and of draws: SI-SDR, energies and intervals."""
    with reported():
        from pyrosep.experiments.audit import SEARCHES, audit

        bar, update = track_progress("audit", quiet)
        with bar:
            tables = audit(
                out,
                data,
                model=model,
                searches=searches or SEARCHES,
                levels=_numbers(levels, "--levels", int),
                windows=windows,
                chains=chains,
                every=_every(every),
                seed=seed,
                workers=workers,
                progress=update,
            )
        _report(tables, out, json_file, quiet)


def cross_likelihood_command(
    out: Out,
    priors: Priors = "toy-flowavenet",
    data: Data = "toy",
    sources: Sources = None,
    subset: Subset = "test",
    frame: Frame = 2048,
    frames: Frames = 100,
    levels: Levels = "0.01,0.03,0.1,0.36,1,3",
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Every prior on held-out frames of every source, level by level, and whether the right one is the likeliest."""
    with reported():
        from pyrosep.experiments import cross_likelihood

        levels_ = _numbers(levels, "--levels", float)
        held_out = _held_out(priors, data, sources, subset, frame, frames, seed, device)
        bar, update = track_progress("cross-likelihood", quiet)
        with bar:
            densities, naming = cross_likelihood(out, held_out, levels=levels_, progress=update)
        _report({"cross-likelihood": densities, "naming": naming}, out, json_file, quiet)


def noised_likelihood_command(
    out: Out,
    priors: Priors = "toy-flowavenet",
    data: Data = "toy",
    sources: Sources = None,
    subset: Subset = "test",
    frame: Frame = 2048,
    frames: Frames = 100,
    levels: Levels = "0.01,0.36",
    noises: Annotated[str, typer.Option(help="Levels of the noise on the frames, by commas.")] = (
        "0,0.01,0.03,0.1,0.36,1,3"
    ),
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Held-out frames with more and more noise, under priors of fixed levels and of the noise's own."""
    with reported():
        from pyrosep.experiments import noised_likelihood

        levels_, noises_ = _numbers(levels, "--levels", float), _numbers(noises, "--noises", float)
        held_out = _held_out(priors, data, sources, subset, frame, frames, seed, device)
        bar, update = track_progress("noised-likelihood", quiet)
        with bar:
            table = noised_likelihood(out, held_out, levels=levels_, noises=noises_, progress=update)
        _report({"noised-likelihood": table}, out, json_file, quiet)


def constant_inputs_command(
    out: Out,
    priors: Priors = "toy-flowavenet",
    data: Data = "toy",
    sources: Sources = None,
    subset: Subset = "test",
    frame: Frame = 2048,
    frames: Frames = 100,
    levels: Levels = "0.01,0.03,0.1,0.36,1,3",
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Constants 0 and 1 and pure noise beside held-out frames, level by level: does a prior find them likelier?"""
    with reported():
        from pyrosep.experiments import constant_inputs

        levels_ = _numbers(levels, "--levels", float)
        held_out = _held_out(priors, data, sources, subset, frame, frames, seed, device)
        bar, update = track_progress("constant-inputs", quiet)
        with bar:
            table = constant_inputs(out, held_out, levels=levels_, progress=update)
        _report({"constant-inputs": table}, out, json_file, quiet)


def _held_out(
    model: str,
    data: str,
    sources: list[str] | None,
    subset: str,
    frame: int,
    frames: int,
    seed: int,
    device: str,
) -> HeldOut:
    from pyrosep.experiments import HeldOut
    from pyrosep.zoo import load_priors

    chosen = chosen_device(device)
    priors = load_priors(model, sources=sources, frame=frame, device=chosen)
    return HeldOut(priors, data, frame=frame, frames=frames, seed=seed, subset=subset, device=chosen)


def _report(tables: dict[str, Any], out: Path, json_file: Path | None, quiet: bool) -> None:
    """Figures of tables (of one of them alone as a list of rows) as JSON, and printed."""
    rows = {key: json.loads(table.to_json(orient="records", double_precision=15)) for key, table in tables.items()}
    write_json(json_file, rows if len(rows) > 1 else next(iter(rows.values())))
    if not quiet:
        for table in tables.values():
            typer.echo(table.to_string(index=False, float_format="{:.4g}".format, na_rep="") + "\n")
        typer.echo(f"tables and picture written to {out}")


def _every(text: str) -> tuple[int, int]:
    first, *step = _numbers(text, "--every", int)
    if len(step) != 1 or first < 0 or step[0] < 1:
        raise ConfigurationError(f"--every takes the first song and a step, such as 0,2; got {text!r}")
    return first, step[0]


def _numbers(text: str, option: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigurationError(f"{option} takes {what} by commas; got {text!r}") from None
