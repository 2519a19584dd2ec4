"""From chains to ArviZ: where their posteriors are built, written and read."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer.mcmc.api import AbstractMCMC
from torch import Tensor

from pyrosep.diagnostics import arviz_versions
from pyrosep.diagnostics.arviz_versions import PosteriorData
from pyrosep.diagnostics.dataset import AXES, SUMMARIES, check_draws
from pyrosep.errors import ConfigurationError, DataError, MissingFileError
from pyrosep.infer import LangevinMCMC, Potential

__all__ = ["read_netcdf", "to_inference_data", "write_netcdf"]

#: Bytes that a file may take beyond its arrays.
_HEADERS = 1 << 20


def to_inference_data(
    mcmc: AbstractMCMC,
    *,
    sample_rate: float | None = None,
    truth: Tensor | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> PosteriorData:
    """The draws of a run for ArviZ: an ``InferenceData``, or a ``DataTree`` from ArviZ 1.0 on.

    Groups:
        - ``posterior``: ``sources`` with dims ``(chain, draw, source, time)``, coordinates the sites' names and
          seconds; every other latent site under its own name.
        - ``sample_stats`` (of :class:`~pyrosep.LangevinMCMC`): ``lp`` in nats (without the sources whose priors
          have no density), ``acceptance_rate``, ``step_size``, ``residual``.
        - ``observed_data``: the mix, with ``time`` last.
        - ``constant_data``: ``sample_rate``, and ``truth`` if given, ``(source, time)``.

    Arguments:
        mcmc: a :class:`~pyrosep.LangevinMCMC`, or stock :class:`pyro.infer.MCMC` with any kernel, after ``run``.
        sample_rate: Hz; by default the priors' own; without either, ``time`` counts samples.
        truth: the true sources, where they are known.
        dims: names for the axes of other sites, as ArviZ takes them, e.g. ``{"gains": ["source"]}``.

    Chains that were stopped are left out; the ``chain`` coordinate keeps the numbers of the others. A site whose name
    is that of an axis or a summary, or can't stand in a file (``/``), gets another one, and a warning says which.
    """
    if isinstance(mcmc, LangevinMCMC) and not hasattr(mcmc, "potential"):
        raise ConfigurationError("expected a run; call mcmc.run(...) first")
    potential = mcmc.potential if isinstance(mcmc, LangevinMCMC) else _potential(mcmc)
    draws = mcmc.get_samples(group_by_chain=True)
    names = [name for name in potential.priors if name in draws]
    if not names:
        raise ConfigurationError("the model has no site with a source prior; use arviz.from_dict for other models")
    prior = potential.priors[names[0]]
    rate = sample_rate or prior.sample_rate
    stacked = torch.stack([draws[name] for name in names], -2)
    while stacked.ndim > 4 and stacked.shape[2] == 1:  # Pyro's empty plate axes
        stacked = stacked.squeeze(2)
    posterior: dict[str, np.ndarray] = {"sources": stacked.numpy()}
    batch = [f"plate_{axis}" for axis in range(stacked.ndim - 4)]
    others = [name for name in draws if name not in names]
    axes = {axis for given in (dims or {}).values() for axis in given} | {*AXES, *batch}
    called = _variable_names([*others, *potential.observed], axes | {*SUMMARIES, "sources", "truth", "sample_rate"})
    posterior |= {called[name]: draws[name].numpy() for name in others}
    all_dims: dict[str, list[str]] = {"sources": [*batch, "source", "time"]}
    all_dims |= {called.get(name, name): list(own) for name, own in (dims or {}).items()}
    observed = {called[name]: value.cpu().numpy() for name, value in potential.observed.items()}
    for name, value in observed.items():
        if value.ndim and value.shape[-1] == prior.time:
            all_dims[name] = [*(f"{name}_axis_{axis}" for axis in range(value.ndim - 1)), "time"]
    constants: dict[str, Any] = {"sample_rate": np.asarray(float(rate or 1.0))}
    if truth is not None:
        constants["truth"] = truth.cpu().numpy()
        all_dims["truth"] = ["source", "time"]
    stats = {}
    chains = list(range(stacked.shape[0]))
    if isinstance(mcmc, LangevinMCMC):
        stats = {name: value.numpy() for name, value in mcmc.sample_stats().items()}
        chains = mcmc.chains
    return arviz_versions.from_groups(
        {"posterior": posterior, "sample_stats": stats, "observed_data": observed, "constant_data": constants},
        coords={"chain": chains, "source": names, "time": np.arange(prior.time) / (rate or 1.0)},
        dims=all_dims,
        attrs={"inference_library": "pyrosep"},
    )


def _variable_names(sites: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """What sites are called beside axes and summaries, which are taken: their own names wherever that can be."""
    sites = list(sites)
    used = {*taken, *(f"{name}_{kind}_{axis}" for name in sites for kind in ("dim", "axis") for axis in range(8))}
    called: dict[str, str] = {}
    for site in sites:
        plain = re.sub(r"[/\x00-\x1f]", "_", site).strip()
        name = plain if plain.strip(".") else f"site{plain}"
        while name in used or (name != site and name in sites):
            name += "_"
        used.add(name)
        called[site] = name
    if changed := {site: name for site, name in called.items() if site != name}:
        told = ", ".join(f"{site!r} is {name!r}" for site, name in changed.items())
        warnings.warn(
            f"some sites have names that axes or summaries of a posterior have, or that no file can hold; there {told}",
            UserWarning,
            stacklevel=3,
        )
    return called


def _potential(mcmc: AbstractMCMC) -> Potential:
    """The potential of a stock run: Pyro keeps the model on the kernel and its arguments on the run."""
    if mcmc._args is None:
        raise ConfigurationError("expected a run; call mcmc.run(...) first")
    return Potential(mcmc.kernel.model, mcmc._args, mcmc._kwargs)


def write_netcdf(idata: PosteriorData, path: str | os.PathLike[str]) -> Path:
    """Write to a NetCDF file, whole or not at all, and return its path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    try:
        # HDF5 ends the process where the disk is full: so the room is asked for first, with a margin for headers.
        arrays = sum(arviz_versions.group(idata, name).nbytes for name in arviz_versions.group_names(idata))
        beside.write_bytes(bytes(arrays + _HEADERS))
        arviz_versions.write(idata, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def read_netcdf(path: str | os.PathLike[str]) -> PosteriorData:
    """Read what :func:`write_netcdf` wrote, into memory.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is not a NetCDF file of an InferenceData, or holds no draws.
    """
    source = Path(path)
    if not source.is_file():
        raise MissingFileError(f"no file {source}; pyrosep separate writes posterior.nc into each track's folder")
    try:
        data = arviz_versions.read(source)
    except Exception as error:  # whatever h5netcdf and xarray meet in a file that is damaged or another program's
        raise DataError(f"{source} is not a NetCDF file of an InferenceData ({error})") from error
    check_draws(data)
    return data
