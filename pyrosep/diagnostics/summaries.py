"""Summaries of audio that convergence is judged by, and their table of R-hat, ESS and MCSE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import arviz
    import pandas
    import xarray

__all__ = ["audio_summaries", "summarize", "verdict"]

#: Edges of the bands in Hz; the last ends at half the sample rate.
BAND_EDGES = (0.0, 250.0, 1000.0, 4000.0)
NUM_PROJECTIONS = 4
_FLOOR = 1e-12  # power that counts as silence, -120 dB

#: Of each chain, for R-hat and ESS.
LEAST_DRAWS = 4
R_HAT_LIMIT = 1.05
ESS_LIMIT = 100


def audio_summaries(
    sources: np.ndarray, sample_rate: float, *, projections: int = NUM_PROJECTIONS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Scalars of draws of sources ``(..., source, time)``.

    Returns:
        ``energy_db`` ``(..., source)``: mean power in dB; ``band_db`` ``(..., source, band)``: the power in each
        band of :data:`BAND_EDGES`; ``projection`` ``(..., source, direction)``: inner products with fixed random
        directions of unit length, which see phase and shape where the others see only level.
    """
    time = sources.shape[-1]
    # Torch's transform takes a quarter of NumPy's time.
    power = torch.view_as_real(torch.fft.rfft(torch.from_numpy(sources))).square().sum(-1).numpy() / time**2
    power[..., 1 : (time + 1) // 2] *= 2
    frequency = np.fft.rfftfreq(time, 1 / sample_rate)
    edges = np.searchsorted(frequency, [edge for edge in BAND_EDGES if edge < sample_rate / 2])
    bands = np.add.reduceat(power, edges, axis=-1)
    directions = np.random.default_rng(seed).standard_normal((projections, time))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return {
        "energy_db": _decibel(power.sum(-1)),
        "band_db": _decibel(bands),
        "projection": sources @ directions.T.astype(sources.dtype),
    }


def _decibel(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, _FLOOR))


def summarize(idata: arviz.InferenceData) -> pandas.DataFrame:
    """Mean, standard deviation, MCSE, bulk and tail ESS, and R-hat of summaries of the audio.

    One row a summary: log joint density (``lp``), residual, each source's level, band levels and random projections
    (:func:`audio_summaries`), and every latent site that is no source. Never a row a sample of audio: there are too
    many, and each by itself says little.

    Arguments:
        idata: from :func:`~pyrosep.to_inference_data`, or from the ``posterior.nc`` of a separated track, which holds
            the summaries already.

    Where chains found different modes, ``table.attrs["modes"]`` says in words which did; :func:`verdict` repeats it.
    Fewer than four draws a chain, as of chains that are kept where their search ends, are too few for R-hat, ESS and
    MCSE: these are NaN then, and the verdict says so.

    Raises:
        DataError: there is one draw of one chain.
    """
    import arviz

    from pyrosep.diagnostics.modes import compare_chains, describe_modes
    from pyrosep.errors import DataError

    dataset = summary_dataset(idata)
    columns = ["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    chains, draws = dataset.sizes["chain"], dataset.sizes["draw"]
    if chains * draws < 2:
        raise DataError("one draw has no deviation; expected at least two draws or chains")
    few = draws < LEAST_DRAWS
    kind = "stats" if few else "all"
    table = arviz.summary(dataset, kind=kind, round_to="none", stat_focus="mean", hdi_prob=0.9)
    table = table[["mean", "sd"]].reindex(columns=columns) if few else table[columns]
    if few:
        table.attrs["few"] = f"got {draws}; means and deviations are over {chains * draws} draws of {chains} chains"
        return table
    if chains > 1 and "sample_stats" in idata and "lp" in idata.sample_stats:
        compared = compare_chains(idata)
        if compared["mode"].max() > 0:
            table.attrs["modes"] = describe_modes(compared)
    return table


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


def verdict(table: pandas.DataFrame) -> str:
    """In words, whether the chains of a :func:`summarize` table agree."""
    if "few" in table.attrs:
        return f"R-hat and ESS need at least {LEAST_DRAWS} draws a chain; {table.attrs['few']}, {len(table)} summaries"
    if not np.isfinite(table["r_hat"]).any():
        return f"R-hat can't be told from one chain or from constant draws: {len(table)} summaries"
    worst, fewest = table["r_hat"].idxmax(), table["ess_bulk"].idxmin()
    r_hat, ess = float(table["r_hat"].max()), float(table["ess_bulk"].min())
    figures = f"largest R-hat {r_hat:.3f} ({worst}), smallest bulk ESS {ess:.0f} ({fewest}), {len(table)} summaries"
    if constant := int(table["r_hat"].isna().sum()):
        figures += f", {constant} of them constant and not judged"
    if r_hat > R_HAT_LIMIT:
        bad = int((table["r_hat"] > R_HAT_LIMIT).sum())
        advice = table.attrs.get("modes", "run them longer")
        return f"the chains disagree on {bad} of {len(table)} summaries; {advice}: {figures}"
    if ess < ESS_LIMIT:
        return f"the chains agree, but there are few independent draws: {figures}"
    return f"the chains agree: {figures}"
