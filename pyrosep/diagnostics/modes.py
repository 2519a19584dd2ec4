"""Which chains found which mode, and what each mode weighs by its joint density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrosep.diagnostics.arviz_versions import PosteriorData, group
from pyrosep.diagnostics.dataset import summary_dataset
from pyrosep.errors import DataError
from pyrosep.infer.modes import same_mode, weights_of

if TYPE_CHECKING:
    import pandas

__all__ = ["compare_chains", "describe_modes"]


def compare_chains(idata: PosteriorData) -> pandas.DataFrame:
    """One row a chain (and window and channel of a separated track): where it is, beside the others.

    Chains with draws that are NaN or infinite are left out. Columns: ``chain``, ``window`` and ``channel`` where there
    are any, ``log_joint`` (mean over the draws, nats), ``mode`` (0 has the highest mean over its chains, and the most
    weight), ``weight`` (:func:`weights_of`), ``best`` (whether its log joint density is the highest).

    Arguments:
        idata: from :func:`~pyrosep.to_inference_data`, or the ``posterior.nc`` of a separated track.

    Raises:
        DataError: it has no log joint density (chains of stock MCMC don't).
    """
    import pandas

    stats = group(idata, "sample_stats")
    if "lp" not in stats:
        raise DataError("comparing chains needs their log joint density, which LangevinMCMC keeps as sample_stats.lp")
    joint = stats["lp"].mean("draw")
    cells = [str(dim) for dim in joint.dims if dim != "chain"]
    dataset = summary_dataset(idata).drop_vars(["lp", "residual"], errors="ignore")
    chains = joint.coords["chain"].values
    order = ("chain", "draw", *cells)
    shape = tuple(joint.sizes[cell] for cell in cells)
    differing = {dim: (size, dataset.sizes[dim]) for dim, size in joint.sizes.items() if dataset.sizes.get(dim) != size}
    if differing:
        raise DataError(f"expected a log joint density and summaries of the same chains and cells; got {differing}")
    flat = [
        variable.transpose(*order, ...).values.reshape(len(chains), dataset.sizes["draw"], *shape, -1)
        for variable in dataset.data_vars.values()
        if set(order) <= set(variable.dims)
    ]
    if not flat:
        raise DataError(f"no summary has the axes {', '.join(order)} of the log joint density to compare chains by")
    draws = np.concatenate(flat, -1)
    with np.errstate(invalid="ignore"):  # of infinite draws
        means, deviations = draws.mean(1), draws.std(1)
    heights = joint.transpose("chain", *cells).values
    rows: list[dict[str, Any]] = []
    finite = np.isfinite(means).all(-1) & np.isfinite(heights)
    for cell in np.ndindex(*shape):
        where = (finite[(slice(None), *cell)], *cell)
        if not finite[(slice(None), *cell)].any():
            continue
        found, height = same_mode(means[where], deviations[where]), heights[where]
        mean = [height[found == mode].mean() for mode in range(found.max() + 1)]
        rank = np.argsort(np.argsort(-np.array(mean)))  # that of the weights
        weight = weights_of(height, found)
        for number, chain in enumerate(chains[finite[(slice(None), *cell)]]):
            rows.append(
                {
                    "chain": int(chain),
                    **dict(zip(cells, (int(index) for index in cell), strict=True)),
                    "log_joint": float(height[number]),
                    "mode": int(rank[found[number]]),
                    "weight": float(weight[number]),
                    "best": bool(number == height.argmax()),
                }
            )
    return pandas.DataFrame(rows, columns=["chain", *cells, "log_joint", "mode", "weight", "best"])


def describe_modes(table: pandas.DataFrame) -> str:
    """A :func:`compare_chains` table in words."""
    cells = [name for name in ("window", "channel") if name in table]
    groups = [group for _, group in table.groupby(cells)] if cells else [table]
    if len(groups) > 1:
        split = sum(group["mode"].max() > 0 for group in groups)
        if not split:
            return f"in each of {len(groups)} windows and channels all chains are in one mode"
        return f"in {split} of {len(groups)} windows and channels chains found different modes"
    if table["mode"].max() == 0:
        best = int(table.loc[table["best"], "chain"].iloc[0])
        return f"all {len(table)} chains are in one mode; chain {best} has the highest log joint density"
    found = [table[table["mode"] == mode] for mode in range(table["mode"].max() + 1)]
    best = int(found[0].loc[found[0]["log_joint"].idxmax(), "chain"])
    others = [f"{_chains(group)} another, {_below(found[0], group)}" for group in found[1:]]
    return (
        f"{len(found)} modes: {_chains(found[0])} found the best (chain {best} the highest, weight "
        f"{found[0]['weight'].sum():.2g}); {'; '.join(others)}"
    )


def _below(best: pandas.DataFrame, other: pandas.DataFrame) -> str:
    """How far a mode's highest chain is below the best mode's, and what the mode weighs."""
    gap = best["log_joint"].max() - other["log_joint"].max()
    by_mean = "" if gap >= 0 else " by its highest chain, below by the mean of its chains"
    return f"{abs(gap):.0f} nats {'below' if gap >= 0 else 'above'}{by_mean}, weight {other['weight'].sum():.2g}"


def _chains(group: pandas.DataFrame) -> str:
    numbers = ", ".join(str(chain) for chain in group["chain"])
    return f"chain {numbers}" if len(group) == 1 else f"chains {numbers}"
