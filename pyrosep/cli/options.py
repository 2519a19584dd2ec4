"""Options that several commands have: each is the library's own setting, with its default and its help.

The library's dataclasses (:class:`~pyrosep.separation.Settings`, ...) are taken as they are. A subclass here says only
how a field is written on the command line where that isn't plain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from pyrosep.errors import ConfigurationError
from pyrosep.separation.methods import METHODS
from pyrosep.separation.settings import Settings

if TYPE_CHECKING:
    from pyrosep.data.catalog import DataSets
    from pyrosep.training.augmentation import Augmentation
    from pyrosep.zoo import PriorSet

#: What songs are separated by where no model is named.
DEFAULT_MODEL = "music-small"

Out = Annotated[Path, Parameter(alias="-o", help="Folder to write into.")]
Model = Annotated[str, Parameter(alias="-n", help="Name of a model that ships, or a folder of one.")]
Guide = Annotated[str | None, Parameter(help="Name or folder of a guide. By default the model's own, if it has one.")]
Sources = Annotated[list[str] | None, Parameter(name="--source", help="A source; may be given again. By default all.")]
Seed = Annotated[int, Parameter(help="Seed of all that is random.")]
Device = Annotated[str, Parameter(alias="-d", help="auto, cpu, cuda or cuda:N.")]
Chains = Annotated[PositiveInt | None, Parameter(help="Chains for each window.")]


def word_or_numbers(kind: Any, tokens: Sequence[Any]) -> str | tuple[float, ...]:
    """One of the words for gains, or numbers by commas."""
    (text,) = (token.value for token in tokens)
    if text in ("mean", "level", "fit"):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected mean, level, fit, or numbers by commas; got {text!r}") from None


Gains = Annotated[str | Sequence[float] | None, Parameter(converter=word_or_numbers, n_tokens=1)]


@dataclass(frozen=True)
class Reporting:
    """What is printed and written of what was found.

    Attributes:
        quiet: Print nothing but errors.
        json: Also write the figures to this file.
    """

    quiet: bool = False
    json: Path | None = None


Report = Annotated[Reporting, Parameter(name="*")]


@dataclass(frozen=True)
class SeparationOptions(Settings):
    """:class:`~pyrosep.separation.Settings` on the command line, where methods are given by name."""

    method: Annotated[
        str | None,
        Parameter(
            help=f"What finds the sources: {'; '.join(f'`{name}`, {what}' for name, what in METHODS.items())}. By "
            "default chains, from the guide where the model has one."
        ),
    ] = None
    gains: Gains = None


@dataclass(frozen=True)
class EvaluationOptions(SeparationOptions):
    """The same for commands that compare methods, and keep no draws."""

    method: Annotated[str | None, Parameter(parse=False)] = None
    keep: Annotated[int, Parameter(parse=False)] = 0


@dataclass(frozen=True)
class Data:
    """Recordings that are trained on, or simulated sources, which go alone.

    Attributes:
        data: ``toy``; or, once or more: ``musdb`` (at MUSDB_PATH), a folder ``ROOT/SONG/STEM.wav``, or ``solo:ROOT`` of
            ``SOURCE/NAME.wav``.
        weight: Share of a data set's frames, once for each data set. By default songs count by their length.
        map: New names of sources, OLD=NEW by commas. Sources of one name are summed.
        source: A source; may be given again. By default all.
    """

    data: list[str]
    weight: list[float] | None = None
    map: str | None = None
    source: list[str] | None = None

    #: Names that are no recordings.
    simulators: ClassVar[tuple[str, ...]] = ("toy",)

    def __post_init__(self) -> None:
        alone = [name for name in self.data if name in self.simulators]
        if alone and len(self.data) > 1:
            raise ConfigurationError(f"{alone[0]} data goes alone; got {', '.join(self.data)}")
        if alone and self.details():
            raise ConfigurationError(f"weights and new names are for recordings, not {alone[0]} data")

    @property
    def simulated(self) -> bool:
        return self.data[0] in self.simulators

    @property
    def label(self) -> str:
        return " + ".join(self.data)

    @property
    def renames(self) -> dict[str, str]:
        renames: dict[str, str] = {}
        for part in self.map.split(",") if self.map is not None else ():
            old, _, new = (name.strip() for name in part.partition("="))
            if not old or not new or "=" in new:
                raise ConfigurationError(
                    f"expected new names OLD=NEW by commas, as in guitar=other,piano=other; got {self.map!r}"
                )
            if old in renames:
                raise ConfigurationError(f"a source gets one new name; got two for {old!r}: {self.map!r}")
            renames[old] = new
        return renames

    def open(self, sources: Sequence[str] | None = None) -> DataSets:
        """The data sets' songs that are for training."""
        from pyrosep.data.catalog import open_data_sets

        return open_data_sets(self.data, subset="train", sources=sources, renames=self.renames, weights=self.weight)

    def details(self) -> dict[str, Any]:
        """Weights and new names, where there are any."""
        weights = {} if self.weight is None else {"weights": list(self.weight)}
        return weights | ({"map": self.renames} if self.renames else {})

    def check_augmentation(self, augmentation: Augmentation) -> None:
        """Raise ConfigurationError for an augmentation of simulated sources."""
        from pyrosep.training.augmentation import Augmentation

        if self.simulated and asdict(augmentation) != asdict(Augmentation()):
            raise ConfigurationError(f"an augmentation is for recordings, not {self.data[0]} data; leave it out")


def chosen_device(name: str) -> str:
    """A device by its name on the command line; and one thread on a CPU, unless the environment says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        # On machines of few cores, several threads were measured to be slower than one, by far when anything else runs.
        torch.set_num_threads(1)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise ConfigurationError(f"expected a device auto, cpu, cuda or cuda:N; got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device {name} was asked for, but there is no CUDA device here; use cpu")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return name


def chosen_priors(model: str | os.PathLike[str], guide: str | None, device: str, **options: Any) -> PriorSet:
    """A prior set on a device, with its own guide or the one that is asked for."""
    from pyrosep.zoo import load_priors

    priors = load_priors(model, device=chosen_device(device), **options)
    return priors if guide is None else priors.with_guide(guide)
