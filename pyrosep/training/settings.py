"""How to train: the numbers of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pyrosep.errors import ConfigurationError
from pyrosep.nn.precision import check_precision, chosen_precision

__all__ = ["ACCELERATORS", "OPTIMIZERS", "PRESETS", "SCHEDULES", "TrainingSettings"]

SCHEDULES = ("cosine", "constant")
OPTIMIZERS = ("adamw", "muon")
ACCELERATORS = ("cpu", "cuda", "auto")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        steps: Steps of the optimizer.
        batch: Items in a step, over all processes together.
        learning_rate: The largest learning rate of the run.
        optimizer: ``adamw`` (Loshchilov and Hutter, 2019), or ``muon``, for matrices, with AdamW for all else at 0.15
            of the learning rate.
        schedule: The learning rate after the warm-up: ``cosine``, which falls to a fiftieth, or ``constant``.
        warmup: Steps over which the learning rate rises from zero.
        weight_decay: Decoupled weight decay.
        clip: The largest norm of the gradient.
        ema: Decay of the running average of the weights. The first steps average over fewer.
        precision: ``32-true``, ``bf16-mixed`` (torch's autocast), or ``auto``: half precision on devices that are
            quicker in it.
        validate_every: Steps between validations.
        save_every: Steps between checkpoints.
        seed: Seed of all that is random.
        accelerator: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.
        devices: Devices on each machine, a process each; on a CPU, processes.
        nodes: Machines.

    Raises:
        ConfigurationError: a number out of range, or an unknown word.
    """

    steps: int = 5000
    batch: int = 16
    learning_rate: float = 2e-3
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "32-true"
    validate_every: int = 500
    save_every: int = 500
    seed: int = 0
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        whole = ("steps", "batch", "validate_every", "save_every", "devices", "nodes")
        if bad := [name for name in whole if getattr(self, name) < 1]:
            raise ConfigurationError(
                f"{', '.join(bad)} must be at least 1; got {[getattr(self, name) for name in bad]}"
            )
        if not (self.learning_rate > 0 and self.clip > 0 and 0 <= self.ema < 1 and self.warmup >= 0):
            raise ConfigurationError(
                "learning_rate and clip must be positive, warmup at least 0, ema from 0 to below 1; got "
                f"{self.learning_rate}, {self.clip}, {self.warmup}, {self.ema}"
            )
        if self.schedule not in SCHEDULES:
            raise ConfigurationError(f"schedule must be one of {SCHEDULES}; got {self.schedule!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigurationError(f"optimizer must be one of {OPTIMIZERS}; got {self.optimizer!r}")
        if self.precision != "auto":
            check_precision(self.precision)
        if self.accelerator not in ACCELERATORS:
            raise ConfigurationError(f"accelerator must be one of {ACCELERATORS}; got {self.accelerator!r}")
        if self.batch % (self.devices * self.nodes):
            raise ConfigurationError(
                f"a batch must split evenly over the processes; got {self.batch} items and {self.devices * self.nodes}"
            )

    def here(self) -> TrainingSettings:
        """The same settings with what ``"auto"`` comes to on this machine."""
        import torch

        accelerator = self.accelerator
        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        return replace(self, accelerator=accelerator, precision=chosen_precision(self.precision, accelerator))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "constant":
            return self.learning_rate * rising
        done = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * rising * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, done))) / 2)


#: What each kind of training takes where nobody says: priors of a family, priors together, and guides.
PRESETS: dict[str, TrainingSettings] = {
    "flowavenet": TrainingSettings(steps=6000, batch=16, learning_rate=0.02, optimizer="muon", precision="auto"),
    "continuousflow": TrainingSettings(steps=6000, batch=32, learning_rate=0.01, optimizer="muon", precision="auto"),
    "together": TrainingSettings(
        steps=400,
        batch=8,
        learning_rate=0.004,
        optimizer="muon",
        precision="auto",
        warmup=20,
        ema=0.99,
        validate_every=100,
        save_every=100,
    ),
    "guide": TrainingSettings(steps=3600, batch=16, learning_rate=0.012, optimizer="muon", precision="auto"),
}
