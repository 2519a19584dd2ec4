"""Prior sets on disk: loaded, looked at, and written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrosep.errors import CheckpointError, ConfigurationError
from pyrosep.infer.seeding import with_gradients
from pyrosep.naming import check_source_names
from pyrosep.priors import SourcePrior
from pyrosep.zoo.families import FAMILIES, Config, family_of
from pyrosep.zoo.guides import find_guide
from pyrosep.zoo.prior_set import GAINS, PriorSet, PriorSetInfo, chosen_sources
from pyrosep.zoo.registry import names, place_of
from pyrosep.zoo.schema import PRIOR, PRIOR_SET, check_fields, check_weights, within_weights
from pyrosep.zoo.weights import CONFIG, check_stored_names, load_config, load_weights, save_weights

__all__ = ["load_priors", "prior_set_info", "prior_sets", "save_priors", "save_temperatures"]


def prior_sets() -> list[PriorSetInfo]:
    """The prior sets that are here by name: see :func:`~pyrosep.zoo.registry.names`."""
    return [prior_set_info(name) for name in names()]


def prior_set_info(prior_set: str | os.PathLike[str]) -> PriorSetInfo:
    """What a prior set is, by its name, folder or address (:func:`~pyrosep.zoo.registry.place_of`); no tensor is read.

    Raises:
        UnknownModelError: there is none.
        CheckpointError: the folder's files are not a prior set's.
    """
    folder = place_of(prior_set)
    return _info(folder, load_config(folder))


@with_gradients()
def load_priors(
    prior_set: str | os.PathLike[str],
    *,
    frame: int | None = None,
    sources: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> PriorSet:
    """A prior set: priors by source that know their gains, sample rate, guide and digest.

    Its guide is the one in the set's folder ``guide``, or one that is here by name and was trained for it.

    Arguments:
        prior_set: its name, folder or address, see :func:`~pyrosep.zoo.registry.place_of`.
        frame: samples in a frame; the set's own by default.
        sources: which sources, in this order; all by default.
        device: where the priors' tensors go.

    Raises:
        UnknownModelError, CheckpointError: see :func:`prior_set_info`.
        ConfigurationError: a source that the set doesn't have, or one that is given twice.

    Example:
        >>> load_priors("toy", frame=2048)
        <PriorSet toy: sine, saw, square, triangle; 2048 samples, 14700 Hz, gains 'mean', with a guide>
    """
    folder = place_of(prior_set)
    config, tensors = load_weights(folder)
    info = _info(folder, config)
    chosen = chosen_sources(info.sources if sources is None else sources, info.sources, info.name)
    priors = {
        name: _prior(info, config["priors"][name], tensors, name, info.frame if frame is None else frame).to(device)
        for name in chosen
    }
    if chosen != info.sources:
        return PriorSet(priors, gains=info.gains, info=info)
    return PriorSet(
        priors, gains=info.gains, temperatures=info.temperatures, guide=find_guide(info.folder, info.name), info=info
    )


def _prior(info: PriorSetInfo, config: Config, tensors: Mapping[str, Tensor], name: str, frame: int) -> SourcePrior:
    own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    check_weights(f"{info.name!r}", own)
    with within_weights(f"{info.name!r}", own, f" for source {name!r}"):
        return FAMILIES[info.family].build(config, own, frame, info.sample_rate)


def save_priors(
    folder: str | os.PathLike[str],
    priors: Mapping[str, SourcePrior],
    *,
    gains: str | None = None,
    summary: str = "",
    dtype: torch.dtype | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write priors of one family, sample rate and frame as a prior set.

    Other sources that the folder has already stay; those of the same name are replaced.

    Arguments:
        folder: where to.
        priors: by source.
        gains: ``"mean"``, ``"level"`` or ``"fit"``, see :class:`PriorSetInfo`; by default those of a
            :class:`PriorSet`, and ``"level"`` of a plain mapping.
        summary: one line for ``pyrosep models``.
        dtype: of the networks' weights on disk, for instance ``torch.float16`` for a file of half the size; by default
            as they are. Networks that are loaded have the precision of their spectrum, single as a rule.
        provenance: anything that tells how the priors came about, by source; kept in ``config.json``.

    Raises:
        ConfigurationError: priors of different families, or others than the folder's; names that no files can have,
            or that would mix up the files of two sources; a ``dtype`` too narrow.
    """
    kinds = {(type(prior), prior.time, prior.sample_rate) for prior in priors.values()}
    if len(kinds) != 1:
        raise ConfigurationError(
            f"the priors of a set share family, frame and sample rate; got {sorted(map(str, kinds))}"
        )
    gains = PriorSet.of(priors).gains if gains is None else gains
    if gains not in GAINS:
        raise ConfigurationError(f"gains must be one of {GAINS}; got {gains!r}")
    ((kind, frame, sample_rate),) = kinds
    family = family_of(kind)
    if family is None:
        raise ConfigurationError(f"don't know how to save a {kind.__name__}; known families: {list(FAMILIES)}")
    config: Config = {
        "family": family,
        "sample_rate": sample_rate,
        "frame": frame,
        "gains": gains,
        "summary": summary,
        "priors": {},
    }
    tensors: dict[str, Tensor] = {}
    if (Path(folder) / CONFIG).is_file():
        config_before, tensors = load_weights(folder)
        old = _info(Path(folder), config_before)
        if (old.family, old.sample_rate, old.frame) != (family, sample_rate, frame):
            raise ConfigurationError(
                f"{folder} holds {old.family} priors at {old.sample_rate} Hz and {old.frame} samples; these are "
                f"{family} at {sample_rate} Hz and {frame}: write them to another folder"
            )
        config = config_before | {"gains": gains} | ({"summary": summary} if summary else {})
        config.pop("temperatures", None)  # they are of the draws of all sources together
    check_source_names([*config["priors"], *(name for name in priors if name not in config["priors"])])
    for name, prior in priors.items():
        own_config, own_tensors = FAMILIES[family].taken(prior, dtype)
        config["priors"][name] = own_config | dict((provenance or {}).get(name, {}))
        tensors |= {f"{name}.{key}": value for key, value in own_tensors.items()}
    save_weights(folder, config, tensors)


def save_temperatures(folder: str | os.PathLike[str], temperatures: Mapping[str, float]) -> None:
    """Write the temperatures of a set's draws, see :class:`PriorSetInfo`, for those it has for these methods."""
    where = place_of(folder)
    config, tensors = load_weights(where)
    config["temperatures"] = dict(_info(where, config).temperatures) | dict(temperatures)
    save_weights(where, config, tensors)


def _info(folder: Path, config: Config) -> PriorSetInfo:
    about = folder / CONFIG
    missing = [key for key in ("family", "sample_rate", "frame", "priors") if key not in config]
    if not missing and not isinstance(config["priors"], dict):
        raise CheckpointError(f"{about} is not a prior set's: expected priors by source")
    if missing or config["family"] not in list(FAMILIES):
        raise CheckpointError(
            f"{about} is not a prior set's: "
            + (f"it lacks {missing}" if missing else f"family {config['family']!r} is none of {list(FAMILIES)}")
        )
    check_stored_names(folder, config["priors"])
    check_fields(str(about), config, PRIOR_SET)
    for name, own in config["priors"].items():
        check_fields(f"{about}, source {name!r},", own, PRIOR)
    return PriorSetInfo(
        folder.resolve().name,
        folder,
        config["family"],
        tuple(config["priors"]),
        config["sample_rate"],
        config["frame"],
        config.get("gains", "level"),
        config.get("summary", ""),
        _temperatures(about, config),
    )


def _temperatures(about: Path, config: Config) -> dict[str, float]:
    found = config.get("temperatures", {})
    numbers = isinstance(found, dict) and all(
        isinstance(value, int | float) and 0 < value < math.inf for value in found.values()
    )
    if not numbers:
        raise CheckpointError(f"{about} can't be used: expected temperatures above 0 by method; got {found}")
    return found
