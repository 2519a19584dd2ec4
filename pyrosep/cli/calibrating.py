"""``pyrosep calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from pyrosep.cli.manners import print_table, say, track_progress, write_json
from pyrosep.cli.options import Chains, Data, Device, Guide, Report, Reporting, Seed, chosen_priors
from pyrosep.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from pyrosep.zoo import PriorSet


def calibrate(
    model: Path,
    /,
    *,
    data: Annotated[Data, Parameter(name="*")],
    methods: Annotated[list[str] | None, Parameter(name="--method")] = None,
    guide: Guide = None,
    mixes: int = 48,
    chains: Chains = None,
    seed: Seed = 0,
    device: Device = "auto",
    report: Report = Reporting(),
) -> None:
    """Calibrate the draws of a model on simulated mixes, so that 90 % intervals hold 90 % of the true samples.

    Mixes are simulated from recordings of different songs that are held out of training. The command fits a
    temperature, with which the 90 % intervals of the draws hold 90 % of the true samples, in the mean over sources. It
    writes the temperature to the model, and ``separate`` uses it from then on. It fits on half of the mixes, and prints
    for each source the share of samples of the other half that the intervals hold, before and after. The priors'
    denoisers must filter spectra and know interference.

    Example:
        $ pyrosep calibrate my-model --data ROOT

    Arguments:
        model: Folder of the model, which the temperatures are written to.
        methods: ``langevin``, ``one-pass`` or ``guide+langevin``; may be given again. By default all that can be.
        mixes: Simulated mixes: half to fit on, half to report on.
    """
    from pyrosep.evaluation.calibration import calibrate as fitted
    from pyrosep.separation import Settings
    from pyrosep.zoo import prior_set_info, save_temperatures

    if not model.is_dir():
        raise ConfigurationError(f"expected the folder of a model that train-prior wrote; there is none at {model}")
    if mixes < 2:
        raise ConfigurationError(f"expected at least 2 mixes, half to fit on and half to report on; got {mixes}")
    priors = chosen_priors(model, guide, device)
    chosen = _checked_methods(priors, methods)
    frames = _frames(priors, data, mixes, seed)
    bar, update = track_progress("calibrating", report.quiet)
    with bar:
        found = fitted(
            priors,
            frames,
            prior_set_info(model).sample_rate,
            methods=chosen,
            numbers={"chains": chains},
            settings=Settings(seed=seed),
            progress=update,
        )
    save_temperatures(model, {method: round(one["temperature"], 3) for method, one in found.items()})
    write_json(report.json, found)
    if not report.quiet:
        _print_coverage(found, list(priors), mixes // 2)
        say(f"written to {model}")


def _checked_methods(priors: PriorSet, methods: list[str] | None) -> list[str]:
    from pyrosep.infer.search.descent import descends_from_mix

    if methods is None:
        methods = ["langevin", "one-pass", *(["guide+langevin"] if priors.has_guide else [])]
    if not priors.has_guide and any("guide" in method for method in methods):
        raise ConfigurationError(f"model {priors.name!r} has no guide of its own; give one, or other methods")
    if not descends_from_mix(list(priors.values())):
        raise ConfigurationError(
            "only draws of a descent are calibrated, which is for priors whose denoisers filter spectra and know "
            f"interference; those of {priors.name!r} don't"
        )
    return methods


def _frames(priors: PriorSet, data: Data, mixes: int, seed: int) -> Tensor:
    """Held-out frames of all sources, of no song together: ``(mix, source, time)``."""
    import torch

    from pyrosep.training.frames import song_frames

    if data.simulated:
        raise ConfigurationError("calibration is for models of recordings; toy waves have exact priors")
    songs = data.open(list(priors))
    frames = []
    for place, (name, prior) in enumerate(priors.items()):
        own = song_frames(
            songs,
            name,
            prior.time,
            sample_rate=priors.sample_rate,
            held_out=mixes,
            seed=seed,
            shares=songs.shares,
        )
        frames.append(own.held_out_apart(place))
    return torch.stack(frames, 1)


def _print_coverage(found: dict[str, Any], names: list[str], mixes: int) -> None:
    table = Table(title=f"Share of true samples in 90 % intervals, {mixes} simulated mixes", title_justify="left")
    for column in ("method", "temperature", "", *names):
        table.add_column(column)
    for method, one in found.items():
        for when in ("before", "after"):
            cells = [f"{100 * one[when][name]:.0f} %" for name in names]
            table.add_row(method, f"{one['temperature']:.2f}" if when == "after" else "1", when, *cells)
    print_table(table)
