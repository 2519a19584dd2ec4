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

from pyrosep.diagnostics import arviz_versions, replaying
from pyrosep.diagnostics.arviz_versions import PosteriorData
from pyrosep.diagnostics.dataset import AXES, SUMMARIES, check_draws
from pyrosep.errors import ConfigurationError, DataError, MissingFileError
from pyrosep.infer import LangevinMCMC, Potential
from pyrosep.infer.stacking import SourceRows

__all__ = ["read_netcdf", "to_inference_data", "write_netcdf"]

#: Bytes that a file may take beyond its arrays.
_HEADERS = 1 << 20


def to_inference_data(
    mcmc: AbstractMCMC,
    *,
    sample_rate: float | None = None,
    truth: Tensor | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sources: Sequence[str] | None = None,
    log_likelihood: bool = False,
    posterior_predictive: bool = False,
    prior: int = 0,
) -> PosteriorData:
    """The draws of a run for ArviZ: an ``InferenceData``, or a ``DataTree`` from ArviZ 1.0 on.

    Groups:
        - ``posterior``: ``sources`` with dims ``(chain, draw, source, time)``, coordinates the sites' names and
          seconds; every other latent site, and every :func:`pyro.deterministic` one, under its own name. The sources of
          one site (in a plate, or of an event) are ``name[0]``, ``name[1]``, ...
        - ``sample_stats`` (of :class:`~pyrosep.LangevinMCMC`): ``lp`` in nats (without the sources whose priors
          have no density), ``acceptance_rate``, ``step_size``, ``residual``.
        - ``observed_data``: the mix, with ``time`` last.
        - ``constant_data``: ``sample_rate``, and ``truth`` if given, ``(source, time)``.
        - ``log_likelihood``, ``posterior_predictive``, ``prior`` and ``prior_predictive`` where they are asked for.

    Arguments:
        mcmc: a :class:`~pyrosep.LangevinMCMC`, or stock :class:`pyro.infer.MCMC` with any kernel, after ``run``.
        sample_rate: Hz; by default the priors' own; without either, ``time`` counts samples.
        truth: the true sources, where they are known.
        dims: names for the axes of other sites, as ArviZ takes them, e.g. ``{"gains": ["source"]}``.
        sources: the sites that are sources, latent or deterministic; by default those with a source prior. For models
            whose sources are functions of other sites, as with Pyro's ``TransformReparam``.
        log_likelihood: whether to have the log-likelihood of each sample of the mix, for ``arviz.loo``; as large as the
            draws of a source. Of a masked site ``mix`` it is ``mix_heard``.
        posterior_predictive: whether to draw a mix at each draw.
        prior: draws from the prior, and of mixes from it.

    Chains that were stopped are left out; the ``chain`` coordinate keeps the numbers of the others. A site whose name
    is that of an axis or a summary, or can't stand in a file (``/``), gets another one, and a warning says which.
    Sources of one prior are named in the attribute ``alike``: nothing tells one of them from another, so that chains,
    and draws of a chain, may have them in another order.

    Raises:
        ConfigurationError: a run that has not been; a model without sources, or whose sources differ in length.
    """
    potential, whole, chains, stats = _of_run(mcmc)
    draws = mcmc.get_samples(group_by_chain=True) | replaying.deterministic_values(potential, whole, chains)
    stacked, labels, used = _stacked_sources(potential, draws, sources)
    rate = sample_rate or next((own.sample_rate for own in potential.priors.values()), None)
    batch = [f"plate_{axis}" for axis in range(stacked.ndim - 4)]
    others = [name for name in draws if name not in used]
    axes = {axis for given in (dims or {}).values() for axis in given} | {*AXES, *batch}
    called = _variable_names([*others, *potential.observed], axes | {*SUMMARIES, "sources", "truth", "sample_rate"})
    groups: dict[str, Any] = {"posterior": _named(stacked, draws, others, called), "sample_stats": stats}
    groups["observed_data"] = {called[name]: value.cpu().numpy() for name, value in potential.observed.items()}
    groups["constant_data"] = {"sample_rate": np.asarray(float(rate or 1.0))}
    time = stacked.shape[-1]
    all_dims: dict[str, list[str]] = {"sources": [*batch, "source", "time"], "truth": ["source", "time"]}
    all_dims |= {called.get(name, name): list(own) for name, own in (dims or {}).items()}
    for name, value in groups["observed_data"].items():
        if value.ndim and value.shape[-1] == time:
            all_dims[name] = [*(f"{name}_axis_{axis}" for axis in range(value.ndim - 1)), "time"]
    long = {called[name]: draws[name].ndim for name in others if draws[name].ndim > 2 and draws[name].shape[-1] == time}
    for name, axes_there in long.items():  # as long as the sources, as sums of them are
        all_dims.setdefault(name, [*(f"{name}_axis_{axis}" for axis in range(axes_there - 3)), "time"])
    if truth is not None:
        groups["constant_data"]["truth"] = truth.cpu().numpy()
    if log_likelihood:
        found = replaying.log_likelihoods(potential, whole, chains)
        groups["log_likelihood"] = _as_observed(potential, found, called, "heard")
    if posterior_predictive:
        found = replaying.predicted(potential, whole, chains)
        groups["posterior_predictive"] = _as_observed(potential, found, called, "new")
    if prior:
        groups |= _prior_groups(potential, prior, called)
    alike = "; ".join(", ".join(group) for group in potential.reading.alike)
    return arviz_versions.from_groups(
        groups,
        coords={"chain": chains, "source": labels, "time": np.arange(time) / (rate or 1.0)},
        dims=all_dims,
        attrs={"inference_library": "pyrosep"} | ({"alike": alike} if alike else {}),
    )


def _of_run(mcmc: AbstractMCMC) -> tuple[Potential, dict[str, Tensor], list[int], dict[str, np.ndarray]]:
    """The potential of a run, the draws of all its chains, the numbers that ran to the end, and their figures."""
    if isinstance(mcmc, LangevinMCMC):
        if not hasattr(mcmc, "potential"):
            raise ConfigurationError("expected a run; call mcmc.run(...) first")
        stats = {name: value.numpy() for name, value in mcmc.sample_stats().items()}
        return mcmc.potential, mcmc.all_draws(), mcmc.chains, stats
    potential = _potential(mcmc)
    draws = mcmc.get_samples(group_by_chain=True)
    return potential, draws, list(range(len(next(iter(draws.values()))))), {}


def _prior_groups(potential: Potential, count: int, called: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    latent, found = replaying.drawn_from_prior(potential, count)
    others = [name for name in latent if name not in potential.priors]
    stacked = _stacked_sources(potential, latent, None)[0] if potential.priors else None
    return {
        "prior": _named(stacked, latent, others, called),
        "prior_predictive": _as_observed(potential, found, called, "new"),
    }


def _stacked_sources(
    potential: Potential, draws: Mapping[str, Tensor], given: Sequence[str] | None
) -> tuple[Tensor, list[str], list[str]]:
    """The sources ``(chain, draw, ..., source, time)``, what they are called, and the sites that they are."""
    names = [name for name in potential.priors if name in draws] if given is None else list(given)
    if not names:
        raise ConfigurationError(
            f"the model has no site with a source prior; name those that are sources among {list(draws)} by sources=, "
            "or use arviz.from_dict for other models"
        )
    if unknown := [name for name in names if name not in draws]:
        raise ConfigurationError(f"expected sources among the sites {list(draws)}; got {unknown}")
    lengths = {name: draws[name].shape[-1] if draws[name].ndim > 2 else 0 for name in names}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ConfigurationError(f"expected sources of one length to stack; theirs are {lengths} samples")
    rows = SourceRows(potential.reading, 1)
    if given is None and not rows.plain:
        lead = draws[names[0]].shape[:2]
        stacked = rows.stacked({name: draws[name].flatten(0, 1) for name in names}).unflatten(0, lead)
        return stacked, rows.labels, names
    stacked = torch.stack(torch.broadcast_tensors(*(draws[name] for name in names)), -2)
    while stacked.ndim > 4 and stacked.shape[2] == 1:  # Pyro's empty plate axes
        stacked = stacked.squeeze(2)
    return stacked, names, names


def _named(
    sources: Tensor | None, draws: Mapping[str, Tensor], others: Sequence[str], called: Mapping[str, str]
) -> dict[str, Any]:
    found = {} if sources is None else {"sources": sources.numpy()}
    return found | {called[name]: draws[name].numpy() for name in others}


def _as_observed(
    potential: Potential, found: Mapping[str, Tensor], called: Mapping[str, str], otherwise: str
) -> dict[str, Any]:
    """Arrays ``(chain, draw, ...)`` by the name of an observed site: by another, where they have another shape."""
    named = {}
    for name, value in found.items():
        shape = potential.observed[name].shape
        if value.shape[2:].numel() == shape.numel():
            named[called[name]] = value.reshape(*value.shape[:2], *shape).numpy()
        else:
            named[f"{called[name]}_{otherwise}"] = value.numpy()
    return named


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
