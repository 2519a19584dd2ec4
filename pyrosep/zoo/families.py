"""What is kept of each family of priors on disk, and a prior from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyrosep.errors import CheckpointError
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import DenoiserSize, Preconditioned, denoiser_of
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.continuousflow import ContinuousFlow
from pyrosep.priors.flowavenet import FloWaveNet, FloWaveNetwork, FlowSize
from pyrosep.priors.gaussian import GaussianPrior
from pyrosep.priors.oscillator import OscillatorPrior
from pyrosep.zoo.weights import stored_weights

__all__ = ["FAMILIES", "Config", "Family", "family_of"]

Config = dict[str, Any]

_Network = TypeVar("_Network", bound=torch.nn.Module)

#: What the names of a second network's tensors begin with.
_INTERFERED = "interfered."


class Family(NamedTuple):
    """A family of priors.

    Attributes:
        kind: its class.
        taken: what of a prior goes to disk, its network's weights in a precision if one is given.
        build: a prior from that, for a frame in samples and a sample rate in Hz.
    """

    kind: type[SourcePrior]
    taken: Callable[[Any, torch.dtype | None], tuple[Config, dict[str, Tensor]]]
    build: Callable[[Config, dict[str, Tensor], int, int], SourcePrior]


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
    tensors = stored_weights(prior.network, dtype)
    if prior.interfered is not None:
        config["interfered"] = asdict(prior.interfered.size)
        second = stored_weights(prior.interfered, dtype)
        tensors |= {_INTERFERED + name: tensor for name, tensor in second.items()}
    elif prior.knows_interference:
        config["interference"] = True
    return config, tensors


def _continuousflow(source: Config, tensors: dict[str, Tensor], frame: int, sample_rate: int) -> SourcePrior:
    first = {name: tensor for name, tensor in tensors.items() if not name.startswith(_INTERFERED)}
    network = _denoiser(source["size"], first, told=bool(source.get("interference", False)))
    second = {name.removeprefix(_INTERFERED): tensor for name, tensor in tensors.items() if name not in first}
    interfered = _denoiser(source["interfered"], second) if "interfered" in source else None
    levels = {key: source[key] for key in ("sigma_min", "sigma_max")}
    return ContinuousFlow(network, frame, **levels, sample_rate=sample_rate, interfered=interfered)


def _denoiser(size: Config, tensors: dict[str, Tensor], *, told: bool = False) -> Preconditioned:
    if "spectrum" not in tensors:
        raise CheckpointError("the weights lack the spectrum of a network that config.json names")
    kind = BandSize if "window" in size else DenoiserSize
    return _filled(denoiser_of(kind(**size), tensors["spectrum"], interference=told), tensors)


def _filled(network: _Network, tensors: dict[str, Tensor]) -> _Network:
    """The network with these weights, in the precision of the spectrum among them."""
    network = network.to(tensors["spectrum"].dtype)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:  # which lists every tensor on a line of its own
        raise CheckpointError(f"the weights are not those of the size in config.json: {error}") from error
    return network


#: By the name that ``config.json`` has for it.
FAMILIES = {
    "continuousflow": Family(ContinuousFlow, _continuousflow_weights, _continuousflow),
    "gaussian": Family(GaussianPrior, _gaussian_weights, _gaussian),
    "flowavenet": Family(FloWaveNet, _flowavenet_weights, _flowavenet),
    "oscillator": Family(OscillatorPrior, _oscillator_weights, _oscillator),
}


def family_of(kind: type[SourcePrior]) -> str | None:
    """The name of a class's family, or ``None`` where it is kept by none."""
    return next((name for name, family in FAMILIES.items() if family.kind is kind), None)
