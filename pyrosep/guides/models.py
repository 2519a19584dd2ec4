"""Guides on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyrosep.checkpoint import load_weights, save_weights
from pyrosep.errors import CheckpointError, ConfigurationError, MissingFileError, UnknownModelError
from pyrosep.guides.encoder import EncoderGuide

__all__ = ["load_guide", "save_guide"]

SHIPPED = Path(__file__).parent.parent / "weights" / "guides"
KIND = "encoder-guide"


def save_guide(
    folder: str | os.PathLike[str], guide: EncoderGuide, *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a guide into a folder of its own: ``config.json`` and ``model.safetensors``.

    Arguments:
        folder: where to; a guide that is there already is replaced.
        guide: whatever it was trained by.
        provenance: anything that tells how it came about; kept in ``config.json``.

    Raises:
        ConfigurationError: not an encoder guide, or a folder that holds something else.
    """
    if not isinstance(guide, EncoderGuide):
        raise ConfigurationError(f"expected an EncoderGuide; got a {type(guide).__name__}")
    if (Path(folder) / "config.json").is_file() and load_weights(folder)[0].get("kind") != KIND:
        raise ConfigurationError(f"{folder} holds a model that is no guide; write the guide to another folder")
    config = {"kind": KIND, **guide.config, "provenance": dict(provenance or {})}
    save_weights(folder, config, guide.state_dict())


def load_guide(folder_or_name: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> EncoderGuide:
    """A guide that :func:`save_guide` wrote, or one that ships, in eval mode.

    Raises:
        UnknownModelError: there is no such folder, nor a guide of that name.
        CheckpointError: its files are damaged, or not a guide's.

    Example:
        >>> import tempfile
        >>> from pyrosep import EncoderGuide
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_guide(folder, EncoderGuide(["bass", "drums"]), provenance={"steps": 0})
        ...     load_guide(folder).names
        ('bass', 'drums')
    """
    folder = Path(folder_or_name)
    if not (folder / "config.json").is_file() and (SHIPPED / str(folder_or_name) / "config.json").is_file():
        folder = SHIPPED / str(folder_or_name)
    try:
        config, tensors = load_weights(folder)
    except MissingFileError:
        shipped = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))) or "none"
        raise UnknownModelError(
            f"no guide {str(folder_or_name)!r}: expected a folder that save_guide wrote, or one that ships ({shipped})"
        ) from None
    if config.get("kind") != KIND:
        raise CheckpointError(f"{folder / 'config.json'} is not a guide's; priors are loaded by load_priors")
    try:
        guide = EncoderGuide.from_config(config)
        dtypes = {value.dtype for value in tensors.values()}
        guide.to(max(dtypes, key=lambda kind: kind.itemsize, default=torch.float32))
        guide.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # load_state_dict lists every tensor on a line
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{folder} holds no whole guide ({first}); save it again") from error
    return guide.to(device).eval()
