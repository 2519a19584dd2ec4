"""The summaries that diagnostics are of, as an xarray data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrosep.diagnostics.arviz_versions import PosteriorData, group, group_names
from pyrosep.errors import DataError
from pyrosep.signal.summaries import BAND_EDGES, audio_summaries

if TYPE_CHECKING:
    import xarray

__all__ = ["AXES", "SUMMARIES", "check_draws", "not_finite", "summary_dataset"]

#: What is said of every draw, each a variable beside the sites' own.
SUMMARIES = ("energy_db", "band_db", "projection", "lp", "residual")
#: The axes that draws and summaries have; ``sources`` is what has all sources together.
AXES = ("chain", "draw", "source", "time", "band", "direction", "window", "channel")


def check_draws(idata: PosteriorData) -> None:
    """Make sure that a posterior holds draws: numbers by chain and draw, of which some are finite.

    Raises:
        DataError: it does not; says what it holds.
    """
    posterior = group(idata, "posterior")
    if not len(posterior.data_vars):
        raise DataError(f"expected draws in a group 'posterior'; there are the groups {group_names(idata)}")
    for name in ("posterior", "sample_stats"):
        for variable, array in group(idata, name).data_vars.items():
            if not {"chain", "draw"} <= set(array.dims) or not array.size:
                raise DataError(
                    f"expected draws by chain and draw of {variable!r} in {name!r}; got axes {dict(array.sizes)}"
                )
            if array.dtype.kind not in "fiub":
                raise DataError(f"expected numbers of {variable!r} in {name!r}; got {array.dtype}")
    if not any(bool(np.isfinite(array).any()) for array in posterior.data_vars.values()):
        raise DataError(f"no draw is finite; the posterior's {list(posterior.data_vars)} are NaN or infinite")


def not_finite(dataset: xarray.Dataset) -> dict[str, int]:
    """Of how many draws of all chains some element is NaN or infinite, by variable."""
    counts = {}
    for name, array in dataset.data_vars.items():
        bad = ~np.isfinite(array)
        counts[str(name)] = int(bad.any([dim for dim in array.dims if dim not in ("chain", "draw")]).sum())
    return counts


def summary_dataset(idata: PosteriorData) -> xarray.Dataset:
    """The summaries of every draw, dims ``(chain, draw, ...)``.

    Figures of the sampler that there are none of, such as the residual of observations without a mean, are left out.
    """
    import xarray

    check_draws(idata)
    posterior = group(idata, "posterior")
    # Audio is judged by summaries of the sources: a row a sample would say little.
    dataset = posterior.drop_vars([name for name in posterior.data_vars if "time" in posterior[name].dims])
    if "sources" in posterior:
        sources = posterior["sources"]
        constants = group(idata, "constant_data")
        rate = constants["sample_rate"].values.item() if "sample_rate" in constants else 1.0
        lead = sources.dims[:-1]
        found = audio_summaries(sources.values, rate)
        bands = [f"{edge:.0f} Hz+" for edge in BAND_EDGES[: found["band_db"].shape[-1]]]
        coords = {name: sources.coords[name] for name in lead if name in sources.coords}
        for name, axis in (("energy_db", None), ("band_db", "band"), ("projection", "direction")):
            own = coords | ({"band": bands} if axis == "band" else {})
            dims = lead if axis is None else (*lead, axis)
            dataset[name] = xarray.DataArray(found[name], dims=dims, coords=own)
    stats = group(idata, "sample_stats")
    for name in ("lp", "residual"):
        if name in stats and bool(np.isfinite(stats[name]).any()):
            dataset[name] = stats[name]
    return dataset.drop_vars("time", errors="ignore")
