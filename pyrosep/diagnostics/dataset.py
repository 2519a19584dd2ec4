"""The summaries that diagnostics are of, as an xarray data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrosep.signal.summaries import BAND_EDGES, audio_summaries

if TYPE_CHECKING:
    import arviz
    import xarray

__all__ = ["summary_dataset"]


def summary_dataset(idata: arviz.InferenceData) -> xarray.Dataset:
    """The summaries of every draw, dims ``(chain, draw, ...)``."""
    import xarray

    posterior = idata.posterior
    dataset = posterior.drop_vars([name for name in ("sources",) if name in posterior])
    if "sources" in posterior:
        sources = posterior["sources"]
        rate = idata.constant_data["sample_rate"].values.item() if "constant_data" in idata else 1.0
        lead = sources.dims[:-1]
        found = audio_summaries(sources.values, rate)
        bands = [f"{edge:.0f} Hz+" for edge in BAND_EDGES[: found["band_db"].shape[-1]]]
        coords = {name: sources.coords[name] for name in lead if name in sources.coords}
        for name, axis in (("energy_db", None), ("band_db", "band"), ("projection", "direction")):
            own = coords | ({"band": bands} if axis == "band" else {})
            dims = lead if axis is None else (*lead, axis)
            dataset[name] = xarray.DataArray(found[name], dims=dims, coords=own)
    if "sample_stats" in idata:
        for name in ("lp", "residual"):
            if name in idata.sample_stats and bool(np.isfinite(idata.sample_stats[name]).all()):
                dataset[name] = idata.sample_stats[name]
    return dataset.drop_vars("time", errors="ignore")
