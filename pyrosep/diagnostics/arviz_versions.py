"""ArviZ before version 1 and from it on, behind one set of functions: the only module that calls it.

Version 0.23 is the last for Python 3.11; from 1.0 on, posteriors are xarray's DataTrees in place of InferenceData.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

__all__ = [
    "PosteriorData",
    "autocorrelation_plot",
    "from_groups",
    "group",
    "group_names",
    "pareto_shape",
    "r_hat",
    "rank_plot",
    "read",
    "summary",
    "trace_plot",
    "write",
]

#: An ``arviz.InferenceData``, or an ``xarray.DataTree`` from ArviZ 1.0 on.
PosteriorData = Any

_ENGINE = "h5netcdf"
#: Groups whose draws are no chain's.
_OF_ONE_CHAIN = ("prior", "prior_predictive")


def _first_version() -> bool:
    """Whether ArviZ is from before version 1."""
    import arviz

    return int(arviz.__version__.split(".")[0]) < 1


def from_groups(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    *,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> PosteriorData:
    """What ``arviz.from_dict`` makes of arrays ``(chain, draw, ...)``, of fewer draws than chains too.

    Arguments:
        groups: such as ``posterior`` and ``sample_stats``, each with arrays by name.
        coords: of the axes, by name.
        dims: names of an array's axes after chain and draw.
        attrs: of the whole.
    """
    import arviz

    coords, dims = dict(coords or {}), {name: list(axes) for name, axes in (dims or {}).items()}
    given = {name: dict(arrays) for name, arrays in groups.items() if arrays and name not in _OF_ONE_CHAIN}
    if apart := {name: arrays for name, arrays in groups.items() if arrays and name in _OF_ONE_CHAIN}:
        plain = {name: values for name, values in coords.items() if name != "chain"}
        return _with_prior(from_groups(given, coords=coords, dims=dims, attrs=attrs), apart, plain, dims)
    with warnings.catch_warnings():
        # The axes are in order; ArviZ can only guess whether they are.
        warnings.filterwarnings("ignore", message="More chains|Found chain dimension to be longer")
        if _first_version():
            return arviz.from_dict(**given, coords=coords, dims=dims, attrs=dict(attrs or {}))
        found = arviz.from_dict(given, coords=coords, dims=dims)
    found.attrs.update(attrs or {})
    return found


def _with_prior(data: PosteriorData, groups: Any, coords: dict[str, Any], dims: Any) -> PosteriorData:
    """With the groups of draws from the prior, which come in one chain."""
    import arviz

    given = {name: dict(arrays) for name, arrays in groups.items()}
    if _first_version():
        data.extend(arviz.from_dict(**given, coords=coords, dims=dims))
        return data
    more = arviz.from_dict(given, coords=coords, dims=dims)
    for name in given:
        data[name] = more[name]
    return data


def group_names(data: PosteriorData) -> list[str]:
    """The groups that there are, such as ``posterior``."""
    return list(data.children) if hasattr(data, "children") else list(data.groups())


def group(data: PosteriorData, name: str) -> xarray.Dataset:
    """A group as a data set; an empty one where there is none."""
    import xarray

    if name not in group_names(data):
        return xarray.Dataset()
    found = data[name]
    return found if isinstance(found, xarray.Dataset) else found.to_dataset()


def write(data: PosteriorData, path: Path) -> None:
    """Write a NetCDF file."""
    data.to_netcdf(str(path), engine=_ENGINE)


def read(path: Path) -> PosteriorData:
    """Read a NetCDF file into memory."""
    import arviz

    if _first_version():
        with arviz.rc_context({"data.load": "eager"}):
            return arviz.from_netcdf(str(path), engine=_ENGINE)
    import xarray

    with xarray.open_datatree(path, engine=_ENGINE) as tree:
        return tree.load()


def summary(dataset: xarray.Dataset, *, diagnose: bool) -> Any:
    """A table of mean and standard deviation, and with ``diagnose`` of MCSE, ESS and R-hat: pandas' DataFrame."""
    import arviz

    columns = ["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    kind = "all" if diagnose else "stats"
    if _first_version():
        table = arviz.summary(dataset, kind=kind, round_to="none", stat_focus="mean", hdi_prob=0.9)
    else:
        table = arviz.summary(dataset, kind=kind, round_to="none", ci_prob=0.9)
    return table.reindex(columns=columns)


def r_hat(dataset: xarray.Dataset) -> xarray.Dataset:
    """R-hat of every variable, each of its axes but chain and draw kept."""
    import arviz

    return arviz.rhat(dataset)


def pareto_shape(log_weights: np.ndarray) -> float:
    """The shape of the generalised Pareto distribution in the tail of importance weights."""
    if _first_version():
        import arviz

        return float(arviz.psislw(log_weights)[1])
    from arviz_stats.base import array_stats

    return float(array_stats.psislw(log_weights)[1])


# --- pictures: each draws into a figure of its own --------------------------------------------------------------------


def trace_plot(dataset: xarray.Dataset) -> Any:
    """A row a variable: its draws, and their density, a colour a chain."""
    import arviz

    if _first_version():
        return _figure(lambda: arviz.plot_trace(dataset, compact=False, figsize=(12, 1.6 * len(dataset))))
    return _figure(lambda: arviz.plot_trace_dist(dataset, compact=False, backend="matplotlib"))


def rank_plot(dataset: xarray.Dataset) -> Any:
    """How the ranks of each variable's draws are spread over the chains."""
    import arviz

    if _first_version():
        return _figure(lambda: arviz.plot_rank(dataset, ref_line=True))
    method = "mtc_c" if dataset.sizes["chain"] > 1 else "envelope"  # whose test compares chains
    return _figure(lambda: arviz.plot_rank(dataset, method=method, backend="matplotlib"))


def autocorrelation_plot(dataset: xarray.Dataset) -> Any:
    """Autocorrelation of each variable's draws."""
    import arviz

    if _first_version():
        return _figure(lambda: arviz.plot_autocorr(dataset, combined=True))
    return _figure(lambda: arviz.plot_autocorr(dataset, backend="matplotlib"))


def _figure(draw: Any) -> Any:
    import arviz
    import matplotlib.pyplot as plt

    with arviz.rc_context({"plot.max_subplots": 200}):
        draw()
    return plt.gcf()
