"""Options that several commands have: each is the library's own setting, with its default and its help.

The library's dataclasses (:class:`~pyrosep.separation.Settings`, ...) are taken as they are. A subclass here says only
how a field is written on the command line where that isn't plain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_type_hints

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from pyrosep.errors import ConfigurationError
from pyrosep.separation.settings import Settings
from pyrosep.training.augmentation import Augmentation
from pyrosep.training.interference import Interference
from pyrosep.training.settings import PRESETS, TrainingSettings

if TYPE_CHECKING:
    from pyrosep.data.catalog import DataSets
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
Summary = Annotated[str, Parameter(help="One line for `pyrosep models`.")]
Anew = Annotated[bool, Parameter(name="--overwrite", help="Start anew where there is a checkpoint.")]
Half = Annotated[bool, Parameter(negative="--full", help="Write the weights in half precision, or single.")]


def whole_or_numbers(kind: Any, tokens: Sequence[Any]) -> int | tuple[float, ...]:
    """One whole number, or numbers by commas."""
    (text,) = (token.value for token in tokens)
    try:
        return int(text) if "," not in text and "." not in text else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected a whole number, or numbers by commas; got {text!r}") from None


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
    """:class:`~pyrosep.separation.Settings` on the command line."""

    ladder: Annotated[int | Sequence[float] | None, Parameter(converter=whole_or_numbers, n_tokens=1)] = None
    gains: Gains = None


@dataclass(frozen=True)
class EvaluationOptions(SeparationOptions):
    """The same for commands that compare methods, and keep no draws."""

    method: Annotated[str | None, Parameter(parse=False)] = None
    keep: Annotated[int, Parameter(parse=False)] = 0


@dataclass(frozen=True)
class AugmentationOptions(Augmentation):
    """:class:`~pyrosep.training.augmentation.Augmentation` on the command line."""


@dataclass(frozen=True)
class InterferenceOptions(Interference):
    """:class:`~pyrosep.training.interference.Interference` on the command line: none, unless a share is given."""

    share: Annotated[float, Parameter(name="--interference")] = 0.0
    presence: Annotated[float, Parameter(name="--interference-presence")] = 0.8
    full: Annotated[float, Parameter(name="--interference-full")] = 0.5
    gain_db: Annotated[float, Parameter(name="--interference-gain")] = 3.0
    silent: Annotated[float, Parameter(name="--interference-silent")] = 0.1

    def asked(self) -> Interference | None:
        return Interference(**asdict(self)) if self.share else None


@dataclass(frozen=True)
class TrainingOptions(TrainingSettings):
    """:class:`~pyrosep.training.settings.TrainingSettings` on the command line."""

    accelerator: Annotated[str, Parameter(name=["--device", "-d"])] = "auto"

    def here(self) -> TrainingSettings:
        """Plain settings for this machine."""
        if self.accelerator.startswith("cuda:"):
            raise ConfigurationError(
                f"training takes the first GPU, cuda; got {self.accelerator}: set "
                f"CUDA_VISIBLE_DEVICES={self.accelerator[5:]} for another one"
            )
        return TrainingSettings(**asdict(self) | {"accelerator": chosen_device(self.accelerator)}).here()

    def __post_init__(self) -> None:
        if not self.accelerator.startswith("cuda:"):  # which is told of in full where the settings are used
            super().__post_init__()


_Options = TypeVar("_Options", bound=TrainingOptions)


def with_preset(name: str) -> Callable[[type[_Options]], type[_Options]]:
    """Let options have a preset's numbers for their defaults."""

    def decorate(kind: type[_Options]) -> type[_Options]:
        hints = get_type_hints(kind, include_extras=True)
        defaults = asdict(PRESETS[name]) | {"accelerator": kind.accelerator}
        own = [(one.name, hints[one.name], field(default=defaults[one.name])) for one in fields(kind)]
        return make_dataclass(
            kind.__name__,
            own,
            bases=(kind,),
            frozen=True,
            namespace={"__doc__": kind.__doc__, "__module__": kind.__module__},
        )

    return decorate


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
