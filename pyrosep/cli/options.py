"""Options and manners that the commands share: devices, errors, progress, figures as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from pyrosep.errors import ConfigurationError, PyrosepError

if TYPE_CHECKING:
    from pyrosep.data.catalog import DataSets
    from pyrosep.training.settings import TrainingSettings
    from pyrosep.zoo import PriorSet

#: What songs are separated by where no model is named.
DEFAULT_MODEL = "music-small"

Seed = Annotated[int, typer.Option("--seed", help="Seed of all that is random.")]
Device = Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or cuda:N.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]
Model = Annotated[str, typer.Option("-n", "--model", help="Name of a model that ships, or a folder of one.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write into.")]
Chains = Annotated[int | None, typer.Option(min=1, help="Chains for each window [4; 8 with coupling shared].")]
Draws = Annotated[int | None, typer.Option(min=1, help="Draws from each chain [100; 1 with shared or local].")]
Warmup = Annotated[int | None, typer.Option(min=0, help="Steps before the first draw [50; 0 with shared or local].")]
Coupling = Annotated[
    str | None,
    typer.Option(
        help="How the search goes: sweeps, shared, local, noisy, denoised, constraint [what suits the priors]."
    ),
]
Ladder = Annotated[str | None, typer.Option(help="Noise levels of the search: how many, or falling levels by commas.")]
Redraws = Annotated[int, typer.Option(min=0, help="Block redraws of the search.")]
Segment = Annotated[float | None, typer.Option(help="Seconds in a window [default: the model's frame].")]
Overlap = Annotated[float, typer.Option(help="Share of a window that it has in common with the next, up to 0.5.")]
Gains = Annotated[str | None, typer.Option(help="mean, level, fit, or a number a source, by commas [the model's way].")]
Guide = Annotated[
    str | None, typer.Option("--guide", help="Name or folder of a guide [the model's own, where it has one].")
]
Sources = Annotated[list[str] | None, typer.Option("--source", help="A source; may be given again [default: all].")]
LearningRate = Annotated[float, typer.Option(help="The largest of the run.")]
Weights = Annotated[
    list[float] | None,
    typer.Option("--weight", help="Share of a data set's frames; once for each --data [songs count by length]."),
]
Renames = Annotated[
    str | None, typer.Option("--map", help="New names of sources, OLD=NEW by commas; sources of one name are summed.")
]
Optimizer = Annotated[str, typer.Option(help="muon or adamw (which wants a fifth of the rate).")]
Precision = Annotated[
    str, typer.Option(help="32-true, bf16-mixed, or auto: the half precision where the device is quicker in it.")
]
SafePrecision = Annotated[
    str,
    typer.Option("--precision", help="32-true, bf16-mixed, or auto: half where quicker and as accurate."),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile networks (torch.compile): a minute or more at first, then faster.")
]
GainJitter = Annotated[float, typer.Option(help="Std of a random gain of each frame, dB.")]
PitchJitter = Annotated[float, typer.Option(help="Largest random shift of pitch, semitones.")]
Flip = Annotated[bool, typer.Option("--flip", help="Turn every other frame upside down.")]
Equalise = Annotated[
    float, typer.Option("--equalise", help="Largest gain of a random smooth filter of each frame, up or down, dB.")
]
Compress = Annotated[float, typer.Option("--compress", help="Share of the frames that are compressed.")]
Reverb = Annotated[float, typer.Option("--reverb", help="Share of the frames in random short reverberation.")]
ValidateEvery = Annotated[int, typer.Option(min=1, help="Steps between held-out figures.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Summary = Annotated[str, typer.Option(help="One line for `pyrosep models`.")]
Anew = Annotated[bool, typer.Option("--overwrite", help="Start anew where there is a checkpoint.")]


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Errors end with one clear line and a non-zero exit, never with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding lacks: that is no reason to end.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: complain("warning", str(message))
        # ArviZ 0.23 announces its 1.0 on every import.
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        try:
            yield
        except KeyboardInterrupt:
            complain("interrupted", "what was finished is kept; run the same command again to go on")
            raise typer.Exit(130) from None
        except Exception as error:
            if isinstance(error, typer.Exit):
                raise
            complain("error", one_line(error))
            raise typer.Exit(1) from None


def one_line(error: BaseException) -> str:
    import torch

    if os.environ.get("PYROSEP_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory; take fewer --chains or --draws, a shorter --segment, or another --device"
    if isinstance(error, PyrosepError | OSError):
        return " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (PYROSEP_DEBUG=1 shows where)"


def complain(kind: str, text: str) -> None:
    typer.echo(f"pyrosep: {kind}: {text}", err=True)


def chosen_device(name: str) -> str:
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


def chosen_priors(model: str | os.PathLike[str], guide: str | None, device: str, **options: Any) -> PriorSet:
    """A prior set on a device, with its own guide or the one that is asked for."""
    from pyrosep.zoo import load_priors

    priors = load_priors(model, device=chosen_device(device), **options)
    return priors if guide is None else priors.with_guide(guide)


@dataclass(frozen=True)
class ChosenData:
    """What is trained on: data sets by name, or simulated sources, which go alone."""

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    renames: dict[str, str] = field(default_factory=dict)
    simulated: bool = False

    def __str__(self) -> str:
        return " + ".join(self.names)

    def open(self, sources: Sequence[str] | None = None) -> DataSets:
        """The data sets' songs that are for training."""
        from pyrosep.data.catalog import open_data_sets

        return open_data_sets(self.names, subset="train", sources=sources, renames=self.renames, weights=self.weights)

    def details(self) -> dict[str, Any]:
        """Weights and new names, where there are any."""
        weights = {} if self.weights is None else {"weights": list(self.weights)}
        return weights | ({"map": self.renames} if self.renames else {})


def chosen_data(
    names: Sequence[str], weights: Sequence[float] | None, renames: str | None, simulated: Sequence[str] = ("toy",)
) -> ChosenData:
    """The data that ``--data``, ``--weight`` and ``--map`` name; ``simulated`` are the names that are no recordings."""
    chosen = ChosenData(tuple(names), tuple(weights) if weights else None, parsed_renames(renames))
    if not (alone := [name for name in names if name in simulated]):
        return chosen
    if len(names) > 1:
        raise ConfigurationError(f"--data {alone[0]} goes alone; got {', '.join(names)}")
    if chosen.details():
        raise ConfigurationError(f"--weight and --map are for recordings, not --data {alone[0]}")
    return ChosenData(chosen.names, simulated=True)


def parsed_renames(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    renames: dict[str, str] = {}
    for part in text.split(","):
        old, _, new = (name.strip() for name in part.partition("="))
        if not old or not new or "=" in new:
            raise ConfigurationError(f"--map takes OLD=NEW by commas, as in guitar=other,piano=other; got {text!r}")
        if old in renames:
            raise ConfigurationError(f"--map takes one new name for each source; got two for {old!r}: {text!r}")
        renames[old] = new
    return renames


def training_settings(preset: TrainingSettings, device: str, **options: Any) -> TrainingSettings:
    """A preset with what is otherwise, for a device by its name on the command line."""
    from pyrosep.nn.precision import chosen_precision

    accelerator, _, index = chosen_device(device).partition(":")
    if index not in ("", "0"):
        raise ConfigurationError(
            f"training takes the first GPU, -d cuda; for another one set CUDA_VISIBLE_DEVICES={index}; got -d {device}"
        )
    options["precision"] = chosen_precision(options["precision"], accelerator)
    return replace(preset, accelerator=accelerator, **options)


def figures_line(report: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in report.items())


def parsed_gains(text: str | None) -> str | tuple[float, ...] | None:
    if text is None or text in ("mean", "level", "fit"):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--gains takes mean, level, fit or numbers by commas; got {text!r}") from None


def parsed_ladder(text: str | None) -> int | tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return int(text) if "," not in text and "." not in text else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--ladder takes a number of levels, or levels by commas; got {text!r}") from None


def write_json(path: Path | None, figures: Any) -> None:
    if path is not None:
        from pyrosep.results import write_text

        write_text(path, json.dumps(finite(figures), indent=2, ensure_ascii=False, default=str) + "\n")


def finite(figures: Any) -> Any:
    """The same figures with null for those that JSON has no number for."""
    if isinstance(figures, dict):
        return {key: finite(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [finite(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def print_table(table: Table) -> None:
    """Print a table as wide as its figures need, on a narrow terminal too: a figure cut short says something else."""
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, needed)).print(table)


def progress_bar(total: int, label: str, quiet: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit_scale=True, disable=quiet or None, leave=False)


def track_progress(label: str, quiet: bool) -> tuple[Any, Any]:
    """A bar whose total is known on the way, and the function that moves it: of what is done, and all there is."""
    bar = progress_bar(1, label, quiet)

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, update
