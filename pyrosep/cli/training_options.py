"""Options that trainings have: each is the library's own setting, with its default and its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Annotated, TypeVar, get_type_hints

from cyclopts import Parameter

from pyrosep.cli.options import chosen_device
from pyrosep.errors import ConfigurationError
from pyrosep.training.augmentation import Augmentation
from pyrosep.training.interference import Interference
from pyrosep.training.settings import PRESETS, TrainingSettings

Summary = Annotated[str, Parameter(help="One line for `pyrosep models`.")]
Anew = Annotated[bool, Parameter(name="--overwrite", help="Start anew where there is a checkpoint.")]
Half = Annotated[bool, Parameter(negative="--full", help="Write the weights in half precision, or single.")]


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
    overlap: Annotated[float, Parameter(name="--interference-overlap")] = 0.0

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
