"""``pyrosep train-guide``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrosep.cli.options import (
    Anew,
    ChosenData,
    Compress,
    Device,
    Equalise,
    Flip,
    GainJitter,
    Json,
    LearningRate,
    Model,
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
    figures_line,
    finite,
    parsed_gains,
    reported,
    training_settings,
    write_json,
)
from pyrosep.errors import ConfigurationError
from pyrosep.training.settings import PRESETS

if TYPE_CHECKING:
    from torch import Tensor

    from pyrosep.guides import EncoderGuide
    from pyrosep.nn.bandnet import BandSize
    from pyrosep.nn.refining import UNetSize
    from pyrosep.training.augmentation import Augmentation
    from pyrosep.training.frames import Frames
    from pyrosep.zoo import PriorSetInfo

#: Mixes that are validated on.
_HELD_OUT = 64
#: The longest frame that is taken by default.
_LONGEST = 4096
#: Level of the intervals whose coverage the temperatures see to, and the levels that are reported.
_LEVEL, _LEVELS = 0.9, (0.5, 0.9)


def train_guide_command(
    model: Model,
    out: Out,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="priors (draws of them) or toy; or, once or more: musdb (at MUSDB_PATH), ROOT/SONG/STEM.wav, or "
            "solo:ROOT of SOURCE/NAME.wav [priors].",
        ),
    ] = None,
    data_weights: Weights = None,
    renames: Renames = None,
    sources: Sources = None,
    objective: Annotated[str, typer.Option(help="simulated, elbo, or both in turn.")] = "simulated",
    gains: Annotated[
        str | None, typer.Option(help="mean, level, or a number a source, by commas [the model's].")
    ] = None,
    noise: Annotated[float, typer.Option(help="Standard deviation of the observation noise.")] = 0.01,
    frame: Annotated[int | None, typer.Option(min=2, help="Samples in a mix [the model's frame, up to 4096].")] = None,
    cuts: Annotated[
        list[int] | None, typer.Option("--cut", help="Train on pieces of so many samples too; may be given again.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared/--apart", help="One network for all sources, or one each.")] = True,
    project: Annotated[bool, typer.Option("--project/--no-project", help="Condition the sources on the mix.")] = True,
    network: Annotated[str, typer.Option(help="Of waves, or bands: masks of short-time spectra, for music.")] = "waves",
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the network [64, with bands 48].")] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of waves at each level, down and up [4], or of bands [8].")
    ] = None,
    hop: Annotated[int, typer.Option(min=1, help="Of waves: samples that become one position.")] = 16,
    levels: Annotated[int, typer.Option(min=0, help="Of waves: halvings of the number of positions.")] = 3,
    passes: Annotated[int, typer.Option(min=1, help="Of waves: networks one after the other, each refining.")] = 3,
    harmonic: Annotated[int, typer.Option(min=0, help="Of waves: channels of the harmonic gates; 0: none.")] = 48,
    window: Annotated[int, typer.Option(min=2, help="Of bands: samples in a window of the spectrum.")] = 2048,
    bands: Annotated[int, typer.Option(min=1, help="Of bands: how many.")] = 32,
    neck: Annotated[int, typer.Option(min=1, help="Of bands: channels of a window, by which its bands meet.")] = 192,
    start: Annotated[str | None, typer.Option(help="A guide to start from, of whose size this one is then.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")] = PRESETS["guide"].steps,
    batch: Annotated[int, typer.Option(min=1, help="Mixes in a step, over all processes.")] = PRESETS["guide"].batch,
    learning_rate: LearningRate = PRESETS["guide"].learning_rate,
    optimizer: Optimizer = PRESETS["guide"].optimizer,
    precision: Precision = "auto",
    beta: Annotated[
        float, typer.Option(min=0, max=1, help="Weigh simulated samples by their deviation to twice this power.")
    ] = 0.0,
    gain_jitter: GainJitter = 0.0,
    pitch_jitter: PitchJitter = 0.0,
    flip: Flip = False,
    equalise: Equalise = 0.0,
    compress: Compress = 0.0,
    reverb: Reverb = 0.0,
    annealing: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the ELBO's steps in which the priors' noise falls.")
    ] = 0.7,
    bound_draws: Annotated[
        int | None, typer.Option(min=0, help="Draws behind the held-out ELBO [0 with simulated, else 4].")
    ] = None,
    temperature_mixes: Annotated[
        int, typer.Option(min=0, help="Mixes that its intervals are calibrated on; 0 leaves them as they are.")
    ] = 64,
    devices: Annotated[int, typer.Option(min=1, help="Devices; on a CPU, processes.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    validate_every: ValidateEvery = PRESETS["guide"].validate_every,
    save_every: SaveEvery = PRESETS["guide"].save_every,
    half: Annotated[bool, typer.Option("--half/--full", help="Write the weights in half precision, or single.")] = True,
    summary: Summary = "",
    overwrite: Anew = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """Train a guide, an encoder from mixes to their sources, for a model's posterior, and write it to OUT."""
    with reported():
        from dataclasses import asdict

        import torch

        from pyrosep.guides import simulate
        from pyrosep.mixing import linear_mix
        from pyrosep.nn.bandnet import BandSize
        from pyrosep.nn.refining import UNetSize
        from pyrosep.training.augmentation import Augmentation
        from pyrosep.training.guides import OBJECTIVES, fit_guide
        from pyrosep.training.trainer import Trainer, launch
        from pyrosep.zoo import load_priors, prior_set_info, save_guide
        from pyrosep.zoo.guides import check_guide_folder

        if objective not in OBJECTIVES:
            raise ConfigurationError(f"--objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
        if network not in ("waves", "bands"):
            raise ConfigurationError(f"--network must be waves or bands; got {network!r}")
        augmentation = Augmentation(
            gain_jitter, flip, pitch_jitter, equalise=equalise, compress=compress, reverb=reverb
        )
        chosen = chosen_data(data or ["priors"], data_weights, renames, ("priors", "toy"))
        if chosen.simulated and augmentation != Augmentation():
            raise ConfigurationError(
                "--gain-jitter, --pitch-jitter, --equalise, --compress, --reverb and --flip are for recordings, not "
                "simulated sources"
            )
        check_guide_folder(out)
        size = (
            UNetSize(hop, width or 64, levels, layers or 4, passes, harmonic)
            if network == "waves"
            else BandSize(window, bands, width or 48, neck, layers or 8)
        )
        info = prior_set_info(model)
        names = tuple(sources or info.sources)
        time = frame or min(info.frame, _LONGEST)
        weights = _gains(parsed_gains(gains) or info.gains, info, names)
        settings = training_settings(
            PRESETS["guide"],
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
        priors = load_priors(info.folder, frame=time, sources=names)
        guide = _guide(
            priors,
            size,
            start,
            seed,
            shared=shared,
            project=weights if project else False,
            noise=noise,
        )
        frames, mixes = _frames(chosen, info, names, time, _HELD_OUT + temperature_mixes, seed, objective, augmentation)
        fabric = launch(settings)
        mixing = linear_mix({name: prior.to(fabric.device) for name, prior in priors.items()}, weights, noise)
        stems = {name: _on(fabric.device, own.draw) for name, own in frames.items()}
        mixes = mixes or (lambda count: simulate(mixing, count, stems=stems)[0])
        held_out = _simulated(mixing, names, frames, 0, _HELD_OUT, seed)
        about = {
            "model": f"{info.name} ({info.digest()[:8]})",
            "data": str(chosen) if str(chosen) in ("priors", "toy", "musdb") else "songs",
            **chosen.details(),
            "sources": list(names),
            "gains": weights,
            "noise": noise,
            "frame": time,
            **vars(guide.size),
            "shared": guide.shared,
            "project": project,
            **({} if augmentation == Augmentation() else {"augmentation": augmentation.details()}),
        }
        result = fit_guide(
            mixing,
            guide.to(fabric.device),
            None if objective == "simulated" else _on(fabric.device, mixes),
            objective=objective,
            trainer=Trainer(
                settings,
                folder=out / "training",
                resume=not overwrite,
                label=info.name,
                quiet=quiet,
                fabric=fabric,
                about=about,
            ),
            stems=None if objective == "elbo" else stems,
            cuts=cuts or (),
            beta=beta,
            held_out=[*zip(*held_out, strict=True)],
            num_samples=(0 if objective == "simulated" else 4) if bound_draws is None else bound_draws,
            annealing=annealing,
        )
        if not fabric.is_global_zero:
            return
        report: dict[str, Any] = {"objective": objective, **result.report()}
        lines = [figures_line(report)]
        if temperature_mixes:
            fresh = _simulated(mixing, names, frames, _HELD_OUT, temperature_mixes, seed)
            report |= (trust := _calibrated(guide, fresh, held_out, (time, *(cuts or ()))))
            lines += [
                f"{name}: temperature {trust['temperature'][name]}; in {length} samples intervals of {_LEVEL} cover "
                f"{part['before'][name][str(_LEVEL)]}, by temperature {part['after'][name][str(_LEVEL)]}"
                for name in names
                for length, part in trust["coverage"].items()
            ]
        save_guide(
            out,
            guide.cpu(),
            model=info.name,
            frame=time,
            summary=summary,
            dtype=torch.float16 if half else None,
            provenance=finite(
                report
                | {
                    "data": str(chosen),
                    **chosen.details(),
                    "start": start,
                    "gains": weights,
                    "noise": noise,
                    "model_digest": info.digest(),
                }
                | {"settings": asdict(settings)}
            ),
        )
        write_json(json_file, about | report)
        if not quiet:
            for line in (*lines, f"written to {out}"):
                typer.echo(line)


def _gains(kind: str | tuple[float, ...], info: PriorSetInfo, names: Sequence[str]) -> list[float]:
    """One gain a source, as mixes are simulated."""
    if kind == "fit":
        raise ConfigurationError(
            f"the gains of model {info.name!r} are found from each mix ('fit'); to simulate mixes, give "
            f"--gains mean, level, or a number for each of {', '.join(names)}, by commas"
        )
    if isinstance(kind, str):
        return [1 / len(names) if kind == "mean" else 1.0] * len(names)
    if len(kind) != len(names):
        raise ConfigurationError(f"--gains takes {len(names)} numbers, one for each of {', '.join(names)}; got {kind}")
    return list(kind)


def _guide(
    priors: Mapping[str, Any], size: UNetSize | BandSize, start: str | None, seed: int, *, shared: bool, **options: Any
) -> EncoderGuide:
    """A new guide, or one with a start's networks; its gains, noise and temperatures are this run's."""
    import torch

    from pyrosep.guides import EncoderGuide
    from pyrosep.zoo import load_guide

    begun = None if start is None else load_guide(start)
    if begun is not None and (begun.names != tuple(priors) or begun.channels or begun.head_names):
        raise ConfigurationError(
            f"--start must be a guide of the sources {', '.join(priors)}, in this order, of one channel and without "
            f"other sites; {start} has {', '.join((*begun.names, *begun.head_names))}, channels {begun.channels}"
        )
    if begun is not None:
        size, shared = begun.size, begun.shared
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        guide = EncoderGuide(priors, size=size, shared=shared, **options)
    if begun is not None:
        guide.encoders.load_state_dict(begun.encoders.state_dict())
    return guide


def _frames(
    data: ChosenData,
    info: PriorSetInfo,
    names: tuple[str, ...],
    time: int,
    held_out: int,
    seed: int,
    objective: str,
    augmentation: Augmentation,
) -> tuple[dict[str, Frames], Callable[[int], Tensor] | None]:
    """Frames of each source by itself, none where the priors are to draw them; and mixes to train on, where given."""
    import torch

    from pyrosep.data import RandomCrops
    from pyrosep.data.toy import WAVES
    from pyrosep.training.frames import held_out_songs, song_frames, toy_frames

    if data.names == ("priors",):
        return {}, None
    if data.simulated:
        if strange := [name for name in names if name not in WAVES]:
            raise ConfigurationError(
                f"toy data has the sources {', '.join(WAVES)}, not {', '.join(strange)} of model {info.name!r}; "
                "give other --data, or the sources by --source"
            )
        return {name: toy_frames(name, time, held_out=held_out, seed=seed) for name in names}, None
    songs = data.open(names)
    frames = {
        name: song_frames(
            songs,
            name,
            time,
            sample_rate=info.sample_rate,
            augmentation=augmentation,
            held_out=held_out,
            seed=seed,
            shares=songs.shares,
        )
        for name in names
    }
    mixed = [song for song in songs if song.origin is None]
    if objective == "simulated" or not mixed:  # solo recordings are no mixes: these are simulated
        return frames, None
    apart = [song for name in names for song in held_out_songs(mixed, name)]
    kept = [song for song in mixed if song not in apart]
    crops = RandomCrops(kept, None, time, info.sample_rate, 2**32, seed, shares=songs.shares)
    return frames, lambda count: torch.stack([crops[index] for index in torch.randint(2**32, (count,)).tolist()])


def _on(device: Any, draw: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    return lambda count: draw(count).to(device)


def _simulated(
    mixing: Callable[..., Any], names: Sequence[str], frames: Mapping[str, Frames], first: int, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """So many mixes that are not trained on, and their sources: ``(mix, time)`` and ``(mix, source, time)``.

    Of recordings, those from ``first`` on of the frames that are held out.
    """
    import torch

    from pyrosep.guides import simulate

    def given(k: int, name: str) -> Callable[[int], Tensor]:
        kept = frames[name].held_out_apart(k)[first:]
        return lambda number: kept[:number]

    stems = {name: given(k, name) for k, name in enumerate(names) if name in frames}
    with torch.random.fork_rng():
        torch.manual_seed(seed + 2**33 + first)
        mix, values = simulate(mixing, count, stems=stems)
    return mix.cpu(), torch.stack([values[name] for name in names], 1).cpu()


def _calibrated(
    guide: EncoderGuide, fresh: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], lengths: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Set the temperatures by mixes that are not trained on; coverage on others, by length, before and after.

    For several lengths they are the geometric means of what each calls for.
    """
    import torch

    from pyrosep.diagnostics import fit_temperature, interval_coverage

    def beginnings(mixes: tuple[Tensor, Tensor], length: int) -> tuple[Tensor, Tensor]:
        return mixes[0][..., :length], mixes[1][..., :length]

    def coverage() -> dict[int, dict[str, dict[str, float]]]:
        found = {length: interval_coverage(guide, *beginnings(held_out, length), levels=_LEVELS) for length in lengths}
        return {
            length: {name: {str(level): round(x, 3) for level, x in own.items()} for name, own in shares.items()}
            for length, shares in found.items()
        }

    before, fitted = coverage(), []
    for length in lengths:
        guide.temperature.fill_(1.0)
        fit_temperature(guide, *beginnings(fresh, length), level=_LEVEL)
        fitted.append(guide.temperature.log())
    guide.temperature.copy_(torch.stack(fitted).mean(0).exp())
    after = coverage()
    return {
        "temperature": dict(zip(guide.names, (round(value, 3) for value in guide.temperature.tolist()), strict=True)),
        "coverage": {str(length): {"before": before[length], "after": after[length]} for length in lengths},
    }
