"""The summaries that diagnostics are of, as an xarray data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrosep.diagnostics.arviz_versions import PosteriorData, group
from pyrosep.signal.summaries import BAND_EDGES, audio_summaries

if TYPE_CHECKING:
    import xarray

__all__ = ["AXES", "SUMMARIES", "summary_dataset"]

#: What is said of every draw, each a variable beside the sites' own.
SUMMARIES = ("energy_db", "band_db", "projection", "lp", "residual")
#: The axes that draws and summaries have; ``sources`` is what has all sources together.
AXES = ("chain", "draw", "source", "time", "band", "direction", "window", "channel")


def summary_dataset(idata: PosteriorData) -> xarray.Dataset:
    """The summaries of every draw, dims ``(chain, draw, ...)``."""
    import xarray

    posterior = group(idata, "posterior")
    dataset = posterior.drop_vars([name for name in ("sources",) if name in posterior])
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
        if name in stats and bool(np.isfinite(stats[name]).all()):
            dataset[name] = stats[name]
    return dataset.drop_vars("time", errors="ignore")
