"""A training loop for any network and loss: averaged weights, mixed precision, several devices, exact resumption.

What is random in a step depends on the seed, the number of the step and the rank of the process alone, so a run that
was stopped and resumed ends where one that was not does: on a CPU, bit for bit.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrosep.errors import CheckpointError, DivergenceError, MissingDependencyError
from pyrosep.training.optimizers import optimizers_of, set_rate
from pyrosep.training.settings import PRESETS, TrainingSettings

__all__ = ["Trainer", "TrainingResult", "trainer_or_preset"]

CHECKPOINT = "checkpoint.pt"
#: Steps in a row whose gradient is not finite, after which training has failed.
_PATIENCE = 25

#: Draws a batch of so many items; what is random in it comes from torch's generator, which the loop has seeded.
Draw = Callable[[int], Any]
#: The loss of a network on a batch: a number with a gradient. It must call the network as a function.
Loss = Callable[[nn.Module, Any], Tensor]
#: Figures of a network on held-out data, by name.
Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class TrainingResult:
    """Result of a training run.

    Attributes:
        network: with the averaged weights.
        step: steps that were made, those before a resumption included.
        history: the figures of every validation, each with its ``step``.
        skipped: steps whose gradient was not finite and that changed nothing.
        seconds: since this call.
    """

    network: nn.Module
    step: int
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0

    def report(self) -> dict[str, Any]:
        """Steps, seconds, the network's parameters and the last validation's figures, for people and files."""
        figures = self.history[-1] if self.history else {}
        return {
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            **({"skipped_steps": self.skipped} if self.skipped else {}),
            **{key: round(value, 2) for key, value in figures.items() if key != "step"},
        }


class Trainer:
    """Trains a network by AdamW, on one device or several (Lightning Fabric).

    Arguments:
        settings: see :class:`~pyrosep.training.settings.TrainingSettings`, whose defaults are taken without.
        folder: where checkpoints and TensorBoard logs go; ``None`` keeps neither.
        resume: go on from the folder's checkpoint if there is one.
        until: stop after so many steps of ``settings.steps``, with a checkpoint.
        about: what else a run is known by, in plain values; a checkpoint of other ones is not resumed from.
        label: beside the progress bar.
        quiet: no progress bar.
        fabric: Lightning Fabric that was launched already, see :func:`launch`.

    Example:
        >>> settings = TrainingSettings(steps=200, batch=8, learning_rate=0.05, warmup=0)
        >>> trainer = Trainer(settings, quiet=True)
        >>> result = trainer.fit(nn.Linear(1, 1), lambda net, x: (net(x) - 3 * x).square().mean(),
        ...                      lambda count: torch.randn(count, 1))
        >>> result.step, round(result.network.weight.item(), 1)
        (200, 3.0)
    """

    def __init__(
        self,
        settings: TrainingSettings | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        until: int | None = None,
        about: Mapping[str, Any] | None = None,
        label: str = "training",
        quiet: bool = False,
        fabric: Any = None,
    ) -> None:
        self.settings = (TrainingSettings() if settings is None else settings).here()
        self.resume, self.until, self.label, self.quiet = resume, until, label, quiet
        #: The step that is being made.
        self.step = 0
        self.about = dict(about or {})
        self.folder = None if folder is None else Path(folder)
        self._fabric = fabric

    @property
    def fabric(self) -> Any:
        """Lightning Fabric, launched when it is first asked for."""
        if self._fabric is None:
            self._fabric = launch(self.settings)
        return self._fabric

    def fit(
        self,
        network: nn.Module,
        loss: Loss,
        draw: Draw,
        *,
        validate: Validate | None = None,
        about: Mapping[str, Any] | None = None,
        resume: bool | None = None,
        until: int | None = None,
    ) -> TrainingResult:
        """Train from the start, or from the checkpoint in the folder.

        Arguments:
            network: trained in place; in the end it holds the averaged weights.
            loss: of the network (called as a function) and a batch.
            draw: draws a batch of so many items.
            validate: figures on held-out data, by name; it gets the averaged weights in eval mode.
            about: what else this training is known by, beside the trainer's own.
            resume, until: in place of the trainer's own.

        Raises:
            CheckpointError: the checkpoint is damaged or of other settings.
            DivergenceError: no step in a row of 25 had a finite gradient.
        """
        settings, fabric = self.settings, self.fabric
        self._known_by = {**(about or {}), **self.about}
        resume, until = self.resume if resume is None else resume, self.until if until is None else until
        began, stop = time.perf_counter(), min(settings.steps, until or settings.steps)
        network = fabric.to_device(network.train().requires_grad_(True))
        optimizers = optimizers_of(network, settings)
        average = {name: value.detach().clone() for name, value in network.named_parameters()}
        result = TrainingResult(network, 0)
        if resume and self.folder is not None and (self.folder / CHECKPOINT).is_file():
            self._load(network, optimizers, average, result)
        # Not by Fabric's own mixed precision, which rounds the inputs too: noise at the lowest level would be lost.
        mixed = settings.precision == "bf16-mixed"
        module, *optimizers = fabric.setup(_Autocast(network) if mixed else network, *optimizers)
        lead, bad = fabric.is_global_zero, 0
        writer = self._writer(result.step) if lead else None
        with _bar(settings.steps, result.step, self.label, self.quiet or not lead) as bar, _own_randomness():
            for step in range(result.step, stop):
                self.step = step
                torch.manual_seed(_seed(settings.seed, step, fabric.global_rank))
                rate = settings.rate(step)
                set_rate(optimizers, rate, settings.learning_rate)
                value = loss(module, fabric.to_device(draw(settings.batch // fabric.world_size)))
                norm, moved = self._descend(value, network, optimizers)
                result.skipped, bad = (result.skipped, 0) if moved else (result.skipped + 1, bad + 1)
                if bad >= _PATIENCE:
                    raise DivergenceError(
                        f"the gradient of {bad} steps in a row is not finite, at step {step + 1}; train with a "
                        f"learning rate below {settings.learning_rate:g}, or with precision '32-true'"
                    )
                _follow(average, network, min(settings.ema, (1 + step) / (10 + step)))
                result.step = step + 1
                bar.update()
                last = result.step == stop
                if writer is not None and (result.step % 20 == 0 or last):
                    figures = {"loss": value.item(), "gradient_norm": norm.item(), "learning_rate": rate}
                    bar.set_postfix(loss=f"{figures['loss']:.4g}", refresh=False)
                    for name, figure in figures.items():
                        writer.add_scalar(f"training/{name}", figure, result.step)
                if lead and validate is not None and (result.step % settings.validate_every == 0 or last):
                    self._validated(network, average, validate, result, writer)
                if lead and (result.step % settings.save_every == 0 or last):
                    self._save(network, optimizers, average, result)
        if writer is not None:
            writer.close()
        fabric.barrier()
        _copy(average, network)
        network.eval().requires_grad_(False)
        result.seconds = time.perf_counter() - began
        return result

    def _descend(self, loss: Tensor, network: nn.Module, optimizers: list[Any]) -> tuple[Tensor, bool]:
        """Take one step down the loss; return the gradient's norm, and whether it was finite and the step was made."""
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.settings.clip)
        if not bool(torch.isfinite(norm)):  # the same on all processes: gradients are averaged by now
            return norm, False
        for optimizer in optimizers:
            optimizer.step()
        return norm, True

    # --- validation, logging and checkpoints ----------------------------------------------------------------------

    def _validated(
        self, network: nn.Module, average: dict[str, Tensor], validate: Validate, result: TrainingResult, writer: Any
    ) -> None:
        with _averaged(network, average), torch.no_grad(), _own_randomness():
            figures = dict(validate(network))
        result.history.append({"step": result.step} | figures)
        if writer is not None:
            for name, figure in figures.items():
                writer.add_scalar(f"validation/{name}", figure, result.step)

    def _writer(self, step: int) -> Any:
        if self.folder is None:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(f"logs need TensorBoard ({error}); install pyrosep[train]") from error

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def _save(
        self, network: nn.Module, optimizers: list[Any], average: dict[str, Tensor], result: TrainingResult
    ) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": asdict(self.settings),
            "about": self._known_by,
            "network": network.state_dict(),
            "average": average,
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": result.step,
            "history": result.history,
            "skipped": result.skipped,
        }
        # By way of memory: torch has errors of its own where a disk is full, that do not say so.
        encoded = io.BytesIO()
        torch.save(state, encoded)
        beside = self.folder / f".{CHECKPOINT}.part"
        try:
            beside.write_bytes(encoded.getbuffer())
            beside.replace(self.folder / CHECKPOINT)
        finally:
            beside.unlink(missing_ok=True)

    def _load(
        self,
        network: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        average: dict[str, Tensor],
        result: TrainingResult,
    ) -> None:
        assert self.folder is not None
        path = self.folder / CHECKPOINT
        try:
            state = torch.load(path, map_location=next(network.parameters()).device, weights_only=True)
            before = state["settings"] | state.get("about", {})
            # What the checkpoint does not tell, for it is of an earlier version, is not held against it.
            now = asdict(self.settings) | {key: value for key, value in self._known_by.items() if key in before}
            if differing := _differences(before, now):
                raise CheckpointError(
                    f"{path} is of other settings ({differing}); train with those, or without it into another folder"
                )
            network.load_state_dict(state["network"])
            for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(own)
            for name, value in average.items():
                value.copy_(state["average"][name])
            result.step, result.history, result.skipped = state["step"], state["history"], state["skipped"]
        except CheckpointError:
            raise
        except Exception as error:  # torch.load and load_state_dict raise what they come across
            first = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"{path} can't be resumed from ({first}); remove it to start anew") from error


def trainer_or_preset(trainer: Trainer | None, kind: str) -> Trainer:
    """Return the given trainer; without one, a trainer with the preset of this kind of training, labelled by it.

    Arguments:
        trainer: with its own settings, or ``None``.
        kind: a key of :data:`~pyrosep.training.settings.PRESETS`.
    """
    return Trainer(PRESETS[kind], label=kind) if trainer is None else trainer


def launch(settings: TrainingSettings) -> Any:
    """Lightning Fabric for these settings, with its processes started: to be called once in a program."""
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        raise MissingDependencyError(f"training needs Lightning ({error}); install pyrosep[train]") from error

    settings = settings.here()
    alone = settings.devices * settings.nodes == 1
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="auto" if alone else "ddp",
    )
    fabric.launch()
    return fabric


class _Autocast(nn.Module):
    """A network whose calls are in mixed precision; its inputs and weights are not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        device = next(self.network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            return self.network(*inputs)


#: What may change between a run and its resumption.
_FREE = ("validate_every", "save_every", "accelerator", "devices", "nodes")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in now if key not in _FREE and before.get(key) != now[key]]
    return ", ".join(f"{key} {before.get(key)}, not {now[key]}" for key in keys)


def _seed(*key: int) -> int:
    """A seed for torch from whole numbers, other ones for other numbers."""
    import numpy as np

    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def _own_randomness() -> Any:
    """What is drawn inside leaves the caller's random state alone."""
    return torch.random.fork_rng()


def _bar(total: int, done: int, label: str, quiet: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc=label, disable=quiet or None, leave=False)


@torch.no_grad()
def _follow(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    new = [value.detach() for value in network.parameters()]
    torch._foreach_lerp_(list(average.values()), new, 1 - decay)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        parameter.copy_(values[name])


class _averaged:
    """The network with its averaged weights, in eval mode, for a while."""

    def __init__(self, network: nn.Module, average: dict[str, Tensor]) -> None:
        self.network, self.average = network, average

    def __enter__(self) -> None:
        self.own = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        _copy(self.average, self.network)
        self.network.eval()

    def __exit__(self, *_: object) -> None:
        _copy(self.own, self.network)
        self.network.train()
