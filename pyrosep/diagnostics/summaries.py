"""Summaries of audio that convergence is judged by, and their table of R-hat, ESS and MCSE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrosep.diagnostics import arviz_versions
from pyrosep.diagnostics.arviz_versions import PosteriorData, group
from pyrosep.diagnostics.dataset import not_finite, summary_dataset
from pyrosep.diagnostics.modes import compare_chains, describe_modes
from pyrosep.errors import DataError

if TYPE_CHECKING:
    import pandas

__all__ = ["summarize", "verdict"]


#: Of each chain, for R-hat and ESS.
LEAST_DRAWS = 4
R_HAT_LIMIT = 1.05
ESS_LIMIT = 100


def summarize(idata: PosteriorData) -> pandas.DataFrame:
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

    Of a variable with draws that are NaN or infinite the figures are NaN. ``table.attrs["not_finite"]`` holds the
    number of such draws of all chains by the variable's name, and the verdict says them too.

    Raises:
        DataError: there is one draw of one chain.
    """
    dataset = summary_dataset(idata)
    chains, draws = dataset.sizes["chain"], dataset.sizes["draw"]
    if chains * draws < 2:
        raise DataError("one draw has no deviation; expected at least two draws or chains")
    few = draws < LEAST_DRAWS
    lost = not_finite(dataset)
    with np.errstate(invalid="ignore"):
        table = arviz_versions.summary(dataset, diagnose=not few)
    table.attrs["not_finite"] = {name: count for name, count in lost.items() if count}
    if few:
        table.attrs["few"] = f"got {draws}; means and deviations are over {chains * draws} draws of {chains} chains"
        return table
    if alike := getattr(idata, "attrs", {}).get("alike"):
        table.attrs["alike"] = str(alike)
    if chains > 1 and "lp" in group(idata, "sample_stats"):
        compared = compare_chains(idata)
        if len(compared) and compared["mode"].max() > 0:
            table.attrs["modes"] = describe_modes(compared)
    return table


def verdict(table: pandas.DataFrame) -> str:
    """In words, whether the chains of a :func:`summarize` table agree."""
    lost = table.attrs.get("not_finite", {})
    if not lost:
        return _verdict(table)
    told = ", ".join(f"{name} ({count} draws)" for name, count in lost.items())
    sound = table[np.isfinite(table["mean"])]
    if not len(sound):
        return f"draws are NaN or infinite: {told}; nothing else is there to judge"
    return f"draws are NaN or infinite: {told}; of the others, {_verdict(sound)}"


def _verdict(table: pandas.DataFrame) -> str:
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
        if alike := table.attrs.get("alike"):
            advice += f" (the sources {alike} are of one prior, so that chains may have them in another order)"
        return f"the chains disagree on {bad} of {len(table)} summaries; {advice}: {figures}"
    if ess < ESS_LIMIT:
        return f"the chains agree, but there are few independent draws: {figures}"
    return f"the chains agree: {figures}"
