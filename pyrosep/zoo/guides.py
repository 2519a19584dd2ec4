"""Guides on disk: loaded, looked at, and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyrosep.errors import CheckpointError, ConfigurationError
from pyrosep.guides.config import config_of, guide_from
from pyrosep.guides.encoder import EncoderGuide
from pyrosep.infer.seeding import with_gradients
from pyrosep.naming import check_source_names
from pyrosep.zoo.registry import GUIDES, is_known, names, place_of
from pyrosep.zoo.schema import GUIDE, check_fields, check_weights, within_weights
from pyrosep.zoo.weights import (
    CONFIG,
    check_stored_names,
    digest,
    load_config,
    load_weights,
    save_weights,
    stored_weights,
)

__all__ = ["GuideInfo", "check_guide_folder", "find_guide", "guide_info", "guides", "load_guide", "save_guide"]

KIND = "encoder-guide"


@dataclass(frozen=True)
class GuideInfo:
    """What a guide is.

    Attributes:
        name: of the folder.
        folder: where it is.
        sources: their names, in the guide's order.
        model: name of the model whose posterior it was trained for, or ``None`` where it does not say.
        frame: samples in the mixes it was trained on, or ``None``; it reads mixes of any length.
        summary: one line.
    """

    name: str
    folder: Path
    sources: tuple[str, ...]
    model: str | None
    frame: int | None
    summary: str

    def digest(self) -> str:
        """SHA-256 of the guide's files, so that a guide that was trained again is told from what it was."""
        return digest(self.folder)


def guides() -> list[GuideInfo]:
    """The guides that are here by name: see :func:`~pyrosep.zoo.registry.names`."""
    return [guide_info(name) for name in names(GUIDES)]


def guide_info(guide: str | os.PathLike[str]) -> GuideInfo:
    """What a guide is, by its name, folder or address (:func:`~pyrosep.zoo.registry.place_of`); no tensor is read.

    Raises:
        UnknownModelError: there is none.
        CheckpointError: the folder's files are not a guide's.
    """
    folder = place_of(guide, GUIDES)
    return _info(folder, load_config(folder))


def find_guide(folder: Path, name: str) -> GuideInfo | None:
    """The guide of a prior set; ``None`` where there is none.

    It is the one in the set's folder ``guide`` or, for a set that is here by its name, one that is here by name too and
    says that it was trained for it; of several the first by name.

    Arguments:
        folder: of the prior set.
        name: of the prior set.
    """
    if (folder / "guide" / CONFIG).is_file():
        return guide_info(folder / "guide")
    if not is_known(folder):
        return None
    return next((info for info in guides() if info.model == name), None)


def check_guide_folder(folder: str | os.PathLike[str]) -> None:
    """Make sure that a guide may be written into a folder.

    Raises:
        ConfigurationError: it holds something else, or is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigurationError(f"{folder} is a file; write the guide to a folder")
    if (Path(folder) / CONFIG).is_file() and load_config(folder).get("kind") != KIND:
        raise ConfigurationError(f"{folder} holds a model that is no guide; write the guide to another folder")


def save_guide(
    folder: str | os.PathLike[str],
    guide: EncoderGuide,
    *,
    model: str | None = None,
    frame: int | None = None,
    summary: str = "",
    dtype: torch.dtype | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a guide into a folder of its own: ``config.json`` and ``model.safetensors``.

    Arguments:
        folder: where to; a guide that is there already is replaced.
        guide: whatever it was trained by.
        model: name of the model whose posterior it was trained for.
        frame: samples in the mixes it was trained on.
        summary: one line for ``pyrosep models``.
        dtype: of the weights on disk, for instance ``torch.float16`` for a file of half the size; by default as they
            are. Buffers, such as the temperatures, always stay as they are.
        provenance: anything that tells how it came about; kept in ``config.json``.

    Raises:
        ConfigurationError: not an encoder guide, a folder that holds something else, sources whose names no files can
            have, or a ``dtype`` that is none of floats or too narrow for the weights.
    """
    if not isinstance(guide, EncoderGuide):
        raise ConfigurationError(f"expected an EncoderGuide; got a {type(guide).__name__}")
    check_guide_folder(folder)
    check_source_names(guide.names)
    tensors = stored_weights(guide, dtype)
    told = {"model": model, "frame": frame, "summary": summary}
    save_weights(folder, {"kind": KIND, **told, **config_of(guide), "provenance": dict(provenance or {})}, tensors)


@with_gradients()
def load_guide(guide: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> EncoderGuide:
    """A guide by its name, folder or address (:func:`~pyrosep.zoo.registry.place_of`), in eval mode.

    It is in single precision, or in double where the file is; weights stored in half become single.

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
    folder = place_of(guide, GUIDES)
    config, tensors = load_weights(folder)
    info = _info(folder, config)
    check_weights(str(info.folder), tensors)
    with within_weights(f"{info.folder} holds no whole guide: it", tensors):
        loaded = guide_from(config)
        double = any(value.dtype == torch.float64 for value in tensors.values())
        loaded.to(torch.float64 if double else torch.float32)
        loaded.load_state_dict(tensors)
    return loaded.to(device).eval()


def _info(folder: Path, config: dict[str, Any]) -> GuideInfo:
    if config.get("kind") != KIND:
        raise CheckpointError(f"{folder / CONFIG} is not a guide's; priors are loaded by load_priors")
    if not isinstance(config.get("sources"), list):
        raise CheckpointError(f"{folder / CONFIG} lacks the guide's sources; save it again")
    check_stored_names(folder, config["sources"])
    check_fields(str(folder / CONFIG), config, GUIDE)
    return GuideInfo(
        folder.resolve().name,
        folder,
        tuple(config["sources"]),
        config.get("model"),
        config.get("frame"),
        config.get("summary", ""),
    )
