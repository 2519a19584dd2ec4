"""Guides on disk: those that ship and those in folders of one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrosep.checkpoint import digest, load_weights, save_weights, stored_weights
from pyrosep.errors import CheckpointError, ConfigurationError, MissingFileError, UnknownModelError
from pyrosep.guides.encoder import EncoderGuide
from pyrosep.naming import check_source_names
from pyrosep.priors import ModelInfo

__all__ = ["GuideInfo", "check_guide_folder", "find_guide", "guide_info", "load_guide", "save_guide", "shipped_guides"]

SHIPPED = Path(__file__).parent.parent / "weights" / "guides"
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


def shipped_guides() -> list[GuideInfo]:
    """The guides that come with the package, by name."""
    return [guide_info(path.parent) for path in sorted(SHIPPED.glob("*/config.json"))]


def guide_info(guide: str | os.PathLike[str]) -> GuideInfo:
    """What a guide is, by the name of one that ships, or its folder.

    Raises:
        UnknownModelError: there is neither.
        CheckpointError: the folder's files are not a guide's.
    """
    return _open(guide)[0]


def find_guide(model: ModelInfo) -> GuideInfo | None:
    """The guide of a model, in its folder's ``guide`` or, for a model that ships, among those that ship; or ``None``.

    Arguments:
        model: see :func:`~pyrosep.priors.model_info`.
    """
    if (model.folder / "guide" / "config.json").is_file():
        return guide_info(model.folder / "guide")
    if model.folder.resolve().parent != SHIPPED.parent.resolve():
        return None
    return next((info for info in shipped_guides() if info.model == model.name), None)


def check_guide_folder(folder: str | os.PathLike[str]) -> None:
    """Make sure that a guide may be written into a folder.

    Raises:
        ConfigurationError: it holds something else, or is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigurationError(f"{folder} is a file; write the guide to a folder")
    if (Path(folder) / "config.json").is_file() and load_weights(folder)[0].get("kind") != KIND:
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
    save_weights(folder, {"kind": KIND, **told, **guide.config, "provenance": dict(provenance or {})}, tensors)


def load_guide(folder_or_name: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> EncoderGuide:
    """A guide that :func:`save_guide` wrote, or one that ships, in eval mode.

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
    info, config, tensors = _open(folder_or_name)
    try:
        guide = EncoderGuide.from_config(config)
        double = any(value.dtype == torch.float64 for value in tensors.values())
        guide.to(torch.float64 if double else torch.float32)
        guide.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # load_state_dict lists every tensor on a line
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{info.folder} holds no whole guide ({first}); save it again") from error
    return guide.to(device).eval()


def _open(guide: str | os.PathLike[str]) -> tuple[GuideInfo, dict[str, Any], dict[str, Tensor]]:
    folder = Path(guide)
    if not (folder / "config.json").is_file() and (SHIPPED / str(guide) / "config.json").is_file():
        folder = SHIPPED / str(guide)
    try:
        config, tensors = load_weights(folder)
    except MissingFileError:
        shipped = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))) or "none"
        raise UnknownModelError(
            f"no guide {str(guide)!r}: expected a folder that save_guide wrote, or one that ships ({shipped})"
        ) from None
    if config.get("kind") != KIND:
        raise CheckpointError(f"{folder / 'config.json'} is not a guide's; priors are loaded by load_priors")
    if not isinstance(config.get("sources"), list):
        raise CheckpointError(f"{folder / 'config.json'} lacks the guide's sources; save it again")
    try:
        check_source_names(config["sources"])
    except ConfigurationError as error:
        raise CheckpointError(f"{folder / 'config.json'} can't be used: {error}") from None
    info = GuideInfo(
        folder.resolve().name,
        folder,
        tuple(config["sources"]),
        config.get("model"),
        config.get("frame"),
        config.get("summary", ""),
    )
    return info, config, tensors
