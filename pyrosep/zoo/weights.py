"""Weights on disk: a folder with ``config.json`` and ``model.safetensors``, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrosep.errors import CheckpointError, ConfigurationError, MissingFileError
from pyrosep.naming import check_source_names
from pyrosep.results import sweep, unfinished

__all__ = ["check_stored_names", "digest", "load_config", "load_weights", "save_weights", "stored_weights"]

CONFIG, TENSORS = "config.json", "model.safetensors"


def save_weights(folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write ``config`` and ``tensors`` into ``folder``; other files that are there stay.

    Both are written into a hidden folder beside it first (:func:`~pyrosep.results.unfinished`), and moved over when
    complete; without tensors there is no ``model.safetensors``. What killed runs left there is removed first.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with unfinished(target) as beside:
        (beside / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if tensors:
            contiguous = {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
            save_file(contiguous, beside / TENSORS)
            (beside / TENSORS).chmod(0o644)
            shutil.move(beside / TENSORS, target / TENSORS)
        shutil.move(beside / CONFIG, target / CONFIG)
        if not tensors:
            (target / TENSORS).unlink(missing_ok=True)


def stored_weights(network: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state of a network for :func:`save_weights`, its parameters in another precision; buffers stay as they are.

    Arguments:
        network: any.
        dtype: of the parameters, for instance ``torch.float16`` for a file of half the size; by default as they are.

    Raises:
        ConfigurationError: a ``dtype`` that is none of floats, or too narrow for the weights.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigurationError(f"weights are stored as floats, for instance torch.float16; got dtype={dtype}")
    tensors = dict(network.state_dict())
    for name, _ in network.named_parameters() if dtype is not None else ():
        stored = tensors[name].to(dtype)
        if bool((stored.isinf() & ~tensors[name].isinf()).any()):
            raise ConfigurationError(
                f"{name} has values up to {float(tensors[name].abs().max()):.3g}, too large for {dtype}; take "
                "torch.bfloat16"
            )
        tensors[name] = stored
    return tensors


def load_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a folder that :func:`save_weights` wrote; its tensors are not read.

    Raises:
        MissingFileError: no such folder, or no ``config.json`` in it.
        CheckpointError: ``config.json`` is damaged.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise MissingFileError(f"expected a folder with {CONFIG}; there is none at {Path(folder)}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); write it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"expected an object in {path}; got {type(config).__name__}")
    return config


def load_weights(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a folder that :func:`save_weights` wrote.

    Raises:
        MissingFileError: no such folder, or no ``config.json`` in it.
        CheckpointError: a file in it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = load_config(folder), Path(folder) / TENSORS
    if not path.is_file():
        return config, {}
    try:
        return config, load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or train it again") from error


def check_stored_names(folder: Path, names: Iterable[object]) -> None:
    """Raise CheckpointError where a folder's configuration names sources that no files can have."""
    try:
        check_source_names(names)
    except ConfigurationError as error:
        raise CheckpointError(f"{folder / CONFIG} can't be used: {error}") from None


def digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the files that :func:`save_weights` wrote, by which weights trained again are known."""
    parts = [Path(folder) / name for name in (CONFIG, TENSORS)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts if path.is_file())).hexdigest()
