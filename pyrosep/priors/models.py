"""Models: sets of priors under one name, those that ship and those in folders of one's own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrosep.checkpoint import digest, load_weights, save_weights, stored_weights
from pyrosep.errors import CheckpointError, ConfigurationError, MissingFileError, PyrosepError, UnknownModelError
from pyrosep.naming import check_source_names
from pyrosep.priors.bandnet import BandSize
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.continuousflow import ContinuousFlow
from pyrosep.priors.denoiser import DenoiserSize, denoiser_of
from pyrosep.priors.flowavenet import FloWaveNet, FloWaveNetwork, FlowSize
from pyrosep.priors.gaussian import GaussianPrior
from pyrosep.priors.oscillator import OscillatorPrior

__all__ = ["ModelInfo", "load_priors", "model_info", "save_priors", "save_temperatures", "shipped_models"]

SHIPPED = Path(__file__).parent.parent / "weights"

GAINS = ("mean", "level", "fit")

Config = dict[str, Any]

_Network = TypeVar("_Network", bound=torch.nn.Module)


@dataclass(frozen=True)
class ModelInfo:
    """What a model is.

    Attributes:
        name: of the folder.
        folder: where it is.
        family: of the priors.
        sources: their names.
        sample_rate: Hz.
        frame: samples in a frame, by default.
        gains: how loud its sources are in a mix: ``"mean"`` (1/N each, as in the toy data), ``"level"`` (as they were
            recorded, up to one factor for the whole mix) or ``"fit"`` (each by its own, found from the mix).
        summary: one line.
        temperatures: by method of :func:`~pyrosep.separate.separate`, by how much draws of these priors' search are to
            lie further from their mean than the search leaves them; see :func:`~pyrosep.calibration.calibrate`. 1
            where there is none.
    """

    name: str
    folder: Path
    family: str
    sources: tuple[str, ...]
    sample_rate: int
    frame: int
    gains: str
    summary: str
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of the model's files, so that a model that was trained again is told from what it was."""
        return digest(self.folder)


def _gaussian_weights(prior: GaussianPrior, dtype: torch.dtype | None) -> tuple[Config, dict[str, Tensor]]:
    return {"sigma_min": prior.sigma_min}, {"spectrum": prior.grid}


def _gaussian(source: Config, tensors: dict[str, Tensor], frame: int, sample_rate: int) -> SourcePrior:
    return GaussianPrior(tensors["spectrum"], frame, sigma_min=source["sigma_min"], sample_rate=sample_rate)


def _oscillator_weights(prior: OscillatorPrior, dtype: torch.dtype | None) -> tuple[Config, dict[str, Tensor]]:
    config: Config = {"wave": prior.wave, "sigma_min": prior.sigma_min, "amplitude": list(prior.amplitude)}
    if not prior.default_periods:
        config["periods"] = list(prior.periods)
    return config, {}


def _oscillator(source: Config, tensors: dict[str, Tensor], frame: int, sample_rate: int) -> SourcePrior:
    low, high = source["amplitude"]
    return OscillatorPrior(
        source["wave"], frame, sigma_min=source["sigma_min"], amplitude=(low, high), periods=source.get("periods")
    )


def _flowavenet_weights(prior: FloWaveNet, dtype: torch.dtype | None) -> tuple[Config, dict[str, Tensor]]:
    size = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(prior.network.size).items()
    }
    return {"sigma_min": prior.sigma_min, "size": size}, stored_weights(prior.network, dtype)


def _flowavenet(source: Config, tensors: dict[str, Tensor], frame: int, sample_rate: int) -> SourcePrior:
    size: Config = {key: tuple(value) if isinstance(value, list) else value for key, value in source["size"].items()}
    network = _filled(FloWaveNetwork(FlowSize(**size), tensors["spectrum"]), tensors)
    return FloWaveNet(network, frame, sigma_min=source["sigma_min"], sample_rate=sample_rate)


def _continuousflow_weights(prior: ContinuousFlow, dtype: torch.dtype | None) -> tuple[Config, dict[str, Tensor]]:
    config = {"sigma_min": prior.sigma_min, "sigma_max": prior.sigma_max, "size": asdict(prior.network.size)}
    if prior.knows_interference:
        config["interference"] = True
    return config, stored_weights(prior.network, dtype)


def _continuousflow(source: Config, tensors: dict[str, Tensor], frame: int, sample_rate: int) -> SourcePrior:
    kind = BandSize if "window" in source["size"] else DenoiserSize
    told = bool(source.get("interference", False))
    network = _filled(denoiser_of(kind(**source["size"]), tensors["spectrum"], interference=told), tensors)
    levels = {key: source[key] for key in ("sigma_min", "sigma_max")}
    return ContinuousFlow(network, frame, **levels, sample_rate=sample_rate)


def _filled(network: _Network, tensors: dict[str, Tensor]) -> _Network:
    """The network with these weights, in the precision of the spectrum among them."""
    network = network.to(tensors["spectrum"].dtype)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:  # which lists every tensor on a line of its own
        raise CheckpointError(f"the weights are not those of the size in config.json: {error}") from error
    return network


#: Family name: its class, what of a prior goes to disk, and a prior from that.
_FAMILIES: dict[str, tuple[type[SourcePrior], Callable[[Any, torch.dtype | None], Any], Callable[..., SourcePrior]]] = {
    "continuousflow": (ContinuousFlow, _continuousflow_weights, _continuousflow),
    "gaussian": (GaussianPrior, _gaussian_weights, _gaussian),
    "flowavenet": (FloWaveNet, _flowavenet_weights, _flowavenet),
    "oscillator": (OscillatorPrior, _oscillator_weights, _oscillator),
}


def shipped_models() -> list[ModelInfo]:
    """The models that come with the package, by name."""
    folders = sorted(path.parent for path in SHIPPED.glob("*/config.json"))
    return [model_info(folder) for folder in folders]


def model_info(model: str | os.PathLike[str]) -> ModelInfo:
    """What a model is, by the name of one that ships, or its folder.

    Raises:
        UnknownModelError: there is neither.
        CheckpointError: the folder's files are not a model's.
    """
    return _open(model)[0]


def load_priors(
    model: str | os.PathLike[str],
    *,
    frame: int | None = None,
    sources: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, SourcePrior]:
    """The priors of a model, by source.

    Arguments:
        model: name of a model that ships, or folder of one.
        frame: samples in a frame; the model's own by default.
        sources: which sources, in this order; all by default.
        device: where the priors' tensors go.

    Raises:
        UnknownModelError, CheckpointError: see :func:`model_info`.
        ConfigurationError: a source that the model doesn't have, or one that is given twice.

    Example:
        >>> list(load_priors("toy", frame=2048))
        ['sine', 'saw', 'square', 'triangle']
    """
    info, config, tensors = _open(model)
    chosen = info.sources if sources is None else tuple(sources)
    check_source_names(chosen)
    if unknown := [name for name in chosen if name not in info.sources]:
        raise ConfigurationError(f"model {info.name!r} has the sources {list(info.sources)}; asked for {unknown}")
    build = _FAMILIES[info.family][2]
    priors = {}
    for name in chosen:
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        try:
            prior = build(config["priors"][name], own, info.frame if frame is None else frame, info.sample_rate)
        except KeyError as error:
            raise CheckpointError(f"model {info.name!r} lacks {error} for source {name!r}; train it again") from error
        except PyrosepError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"model {info.name!r} has a wrong value for source {name!r} ({error}); train it again"
            ) from error
        priors[name] = prior.to(device)
    return priors


def save_priors(
    folder: str | os.PathLike[str],
    priors: Mapping[str, SourcePrior],
    *,
    gains: str = "level",
    summary: str = "",
    dtype: torch.dtype | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write priors of one family, sample rate and frame as a model.

    Other sources that the folder has already stay; those of the same name are replaced.

    Arguments:
        folder: where to.
        priors: by source.
        gains: ``"mean"``, ``"level"`` or ``"fit"``, see :class:`ModelInfo`.
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
            f"a model's priors must share family, frame and sample rate; got {sorted(map(str, kinds))}"
        )
    if gains not in GAINS:
        raise ConfigurationError(f"gains must be one of {GAINS}; got {gains!r}")
    ((kind, frame, sample_rate),) = kinds
    family = next((name for name, (cls, *_) in _FAMILIES.items() if cls is kind), None)
    if family is None:
        raise ConfigurationError(f"don't know how to save a {kind.__name__}; known families: {list(_FAMILIES)}")
    config: Config = {
        "family": family,
        "sample_rate": sample_rate,
        "frame": frame,
        "gains": gains,
        "summary": summary,
        "priors": {},
    }
    tensors: dict[str, Tensor] = {}
    if (Path(folder) / "config.json").is_file():
        old, config_before, tensors = _open(folder)
        if (old.family, old.sample_rate, old.frame) != (family, sample_rate, frame):
            raise ConfigurationError(
                f"{folder} holds {old.family} priors at {old.sample_rate} Hz and {old.frame} samples; these are "
                f"{family} at {sample_rate} Hz and {frame}: write them to another folder"
            )
        config = config_before | {"gains": gains} | ({"summary": summary} if summary else {})
        config.pop("temperatures", None)  # they are of the draws of all sources together
    check_source_names([*config["priors"], *(name for name in priors if name not in config["priors"])])
    for name, prior in priors.items():
        own_config, own_tensors = _FAMILIES[family][1](prior, dtype)
        config["priors"][name] = own_config | dict((provenance or {}).get(name, {}))
        tensors |= {f"{name}.{key}": value for key, value in own_tensors.items()}
    save_weights(folder, config, tensors)


def save_temperatures(folder: str | os.PathLike[str], temperatures: Mapping[str, float]) -> None:
    """Write the temperatures of a model's draws, see :class:`ModelInfo`, in place of those it has for these methods."""
    info, config, tensors = _open(folder)
    config["temperatures"] = dict(info.temperatures) | dict(temperatures)
    save_weights(info.folder, config, tensors)


def _open(model: str | os.PathLike[str]) -> tuple[ModelInfo, Config, dict[str, Tensor]]:
    folder = Path(model)
    if not (folder / "config.json").is_file() and (SHIPPED / str(model)).is_dir():
        folder = SHIPPED / str(model)
    try:
        config, tensors = load_weights(folder)
    except MissingFileError:
        names = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
        raise UnknownModelError(
            f"no model {str(model)!r}: expected one that ships ({', '.join(names)}) or a folder that train-prior wrote"
        ) from None
    missing = [key for key in ("family", "sample_rate", "frame", "priors") if key not in config]
    if not missing and not isinstance(config["priors"], dict):
        raise CheckpointError(f"{folder / 'config.json'} is not a model's: expected priors by source")
    if missing or config["family"] not in list(_FAMILIES):
        raise CheckpointError(
            f"{folder / 'config.json'} is not a model's: "
            + (f"it lacks {missing}" if missing else f"family {config['family']!r} is none of {list(_FAMILIES)}")
        )
    try:
        check_source_names(config["priors"])
    except ConfigurationError as error:
        raise CheckpointError(f"{folder / 'config.json'} can't be used: {error}") from None
    info = ModelInfo(
        folder.resolve().name,
        folder,
        config["family"],
        tuple(config["priors"]),
        config["sample_rate"],
        config["frame"],
        config.get("gains", "level"),
        config.get("summary", ""),
        _temperatures(folder, config),
    )
    return info, config, tensors


def _temperatures(folder: Path, config: Config) -> dict[str, float]:
    found = config.get("temperatures", {})
    numbers = isinstance(found, dict) and all(
        isinstance(value, int | float) and 0 < value < math.inf for value in found.values()
    )
    if not numbers:
        raise CheckpointError(
            f"{folder / 'config.json'} can't be used: expected temperatures above 0 by method; got {found}"
        )
    return found
