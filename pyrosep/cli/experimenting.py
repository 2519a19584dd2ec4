"""``pyrosep experiment``: the studies of :mod:`pyrosep.experiments` as commands, whose options are their keywords."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter, validators
from cyclopts.types import PositiveInt
from docstring_parser import parse

from pyrosep import experiments
from pyrosep.cli.manners import say, track_progress, write_json
from pyrosep.cli.method_options import MethodOptions
from pyrosep.cli.options import EvaluationOptions, Report, Reporting, chosen_device
from pyrosep.experiments import audit as auditing
from pyrosep.experiments import flows as flowing
from pyrosep.experiments import guides as guiding
from pyrosep.experiments import music as songs
from pyrosep.experiments import sets as combining
from pyrosep.experiments.samplers import ARMS as SAMPLERS

#: How a study's keyword is written on the command line, where that isn't its own name.
_NAMES = {
    "out": ["--out", "-o"],
    "model": ["--model", "-n"],
    "arms": "--arm",
    "methods": "--method",
    "searches": "--search",
    "guides": "--guide",
}


@dataclass(frozen=True)
class HeldOutOptions:
    """:class:`~pyrosep.experiments.HeldOut` on the command line.

    Attributes:
        priors: Name of a model that ships, or a folder of one.
        data: ``toy``, ``musdb`` (at MUSDB_PATH), or a folder ``ROOT/SONG/STEM.wav``.
        source: A source; may be given again. By default all.
        subset: Of MUSDB18: ``train`` or ``test``.
        frame: Samples in a frame.
        frames: Frames of each source.
        seed: Seed of all that is random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    priors: str = "toy-flowavenet"
    data: str = "toy"
    source: list[str] | None = None
    subset: str = "test"
    frame: PositiveInt = 2048
    frames: PositiveInt = 100
    seed: int = 0
    device: Annotated[str, Parameter(alias="-d")] = "auto"

    def load(self) -> experiments.HeldOut:
        from pyrosep.zoo import load_priors

        chosen = chosen_device(self.device)
        priors = load_priors(self.priors, sources=self.source, frame=self.frame, device=chosen)
        return experiments.HeldOut(
            priors, self.data, frame=self.frame, frames=self.frames, seed=self.seed, subset=self.subset, device=chosen
        )


#: Keywords that are objects, whose parts are the options.
_FLAT: dict[str, type] = {"held_out": HeldOutOptions, "settings": EvaluationOptions, "numbers": MethodOptions}


def by_commas(kind: Any, tokens: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers or words by commas, as a study takes them."""
    (text,) = (token.value for token in tokens)
    inner = get_args(_without_none(kind))[0]
    try:
        return tuple(inner(part.strip()) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if inner is int else "numbers"
        raise ValueError(f"expected {what} by commas; got {text!r}") from None


def _without_none(kind: Any) -> Any:
    parts = [one for one in get_args(kind) if one is not type(None)]
    return parts[0] if type(None) in get_args(kind) else kind


def command_of(
    study: Callable[..., Any], *parts: str, choices: Mapping[str, Sequence[str]] | None = None
) -> Callable[..., None]:
    """A study as a command.

    Arguments:
        study: called with a folder, its keywords, and ``progress``.
        parts: names of its tables where it gives several without names; of one table, the study's.
        choices: what may be given for a keyword that takes several words.
    """
    help_of = {one.arg_name: one.description or "" for one in parse(study.__doc__ or "").params}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_FLAT[name]() if name in _FLAT else one.default,
            # The study's module has its annotations as text.
            annotation=_option(name, eval(one.annotation, study.__globals__), help_of[name], choices or {}),
        )
        for name, one in inspect.signature(study).parameters.items()
        if name != "progress"
    ]
    reporting = inspect.Parameter("report", inspect.Parameter.KEYWORD_ONLY, default=Reporting(), annotation=Report)

    def command(*, out: Path, report: Reporting = Reporting(), **keywords: Any) -> None:
        chosen_device("cpu")  # studies run on the CPU, in processes of their own, but for held-out frames
        if "held_out" in help_of:
            keywords["held_out"] = keywords.get("held_out", HeldOutOptions()).load()
        if "numbers" in help_of:
            keywords["numbers"] = keywords.get("numbers", MethodOptions()).given()
        bar, update = track_progress(study.__name__.replace("_", "-"), report.quiet)
        with bar:
            found = study(out, **keywords, progress=update)
        _report(_tables(found, parts or (study.__name__.replace("_", "-"),)), out, report)

    command.__signature__ = inspect.Signature([*parameters, reporting])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in (*parameters, reporting)}
    command.__doc__ = (study.__doc__ or "").split("\n    Arguments:")[0]
    return command


def _option(name: str, kind: Any, text: str, choices: Mapping[str, Sequence[str]]) -> Any:
    """A study's keyword as an option."""
    if name in _FLAT:
        return Annotated[_FLAT[name], Parameter(name="*")]
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    known: dict[str, Any] = {"name": _NAMES.get(name)}
    bare = _without_none(kind)
    if name == "out":
        kind = Path
    elif name in choices:
        text = f"One of: {'; '.join(choices[name])}. May be given again. By default all."
    elif bare is int and name != "seed":
        known["validator"] = validators.Number(gte=1)
    elif get_args(bare) and (get_origin(bare) is tuple or get_args(bare) != (str,)):
        text, known = f"{text.rstrip('.')}, by commas.", known | {"converter": by_commas, "n_tokens": 1}
    return Annotated[kind, Parameter(help=text[:1].upper() + text[1:], **known)]


def _tables(found: Any, names: Sequence[str]) -> dict[str, Any]:
    """A study's tables by name."""
    if isinstance(found, dict):
        return found
    return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))


def _report(tables: dict[str, Any], out: Path, report: Reporting) -> None:
    """Figures of tables (of one of them alone as a list of rows) as JSON, and printed."""
    rows = {key: json.loads(table.to_json(orient="records", double_precision=15)) for key, table in tables.items()}
    write_json(report.json, rows if len(rows) > 1 else next(iter(rows.values())))
    if not report.quiet:
        for table in tables.values():
            say(table.to_string(index=False, float_format="{:.4g}".format, na_rep="") + "\n")
        say(f"tables and picture written to {out}")


samplers = command_of(experiments.samplers, choices={"arms": SAMPLERS})
guides = command_of(guiding.guides, "separation", "coverage", choices={"methods": guiding.METHODS})
flows = command_of(flowing.flows, choices={"arms": tuple(flowing.ARMS)})
music = command_of(songs.music, choices={"arms": songs.ARMS})
sets = command_of(combining.sets, choices={"methods": combining.METHODS})
audit = command_of(auditing.audit, choices={"searches": auditing.SEARCHES})
cross_likelihood = command_of(experiments.cross_likelihood, "cross-likelihood", "naming")
noised_likelihood = command_of(experiments.noised_likelihood)
constant_inputs = command_of(experiments.constant_inputs)
