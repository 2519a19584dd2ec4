"""Pictures: ArviZ's plots of the summaries, and spectrograms of a separation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrosep.diagnostics import arviz_versions
from pyrosep.diagnostics.arviz_versions import PosteriorData, group
from pyrosep.diagnostics.dataset import summary_dataset
from pyrosep.diagnostics.summaries import LEAST_DRAWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_diagnostics", "plot_spectrograms"]

_MAX_PANELS = 12


def plot_diagnostics(idata: PosteriorData, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw trace, rank, autocorrelation and log joint density of the summaries; returns the pictures' paths.

    Of a variable with many elements (bands, windows), those with the largest R-hat are drawn, at most
    twelve, so that what looks good here looks good everywhere. Elements with draws that are NaN or infinite are not
    drawn; :func:`verdict` names them. Of fewer than four draws a chain there is none of these,
    but one picture, of where each chain's draws are, for the summaries that vary most.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    dataset = summary_dataset(idata)
    few = dataset.sizes["draw"] < LEAST_DRAWS
    if few:  # levels in dB and densities in nats are not for one axis
        dataset = dataset.drop_vars(["lp", "residual"], errors="ignore")
    chosen = _worst(dataset, few)
    draw: dict[str, Any]
    if few:
        draw = {"draws": lambda: _plot_draws(chosen)}
    else:
        draw = {
            "trace": lambda: arviz_versions.trace_plot(chosen),
            "rank": lambda: arviz_versions.rank_plot(chosen),
            "autocorrelation": lambda: arviz_versions.autocorrelation_plot(chosen),
            "log_joint": lambda: _plot_log_joint(idata),
        }
    pictures = []
    for name, plot in draw.items():
        if not len(chosen) or (name == "log_joint" and not _has_log_joint(idata)):
            continue
        figure = plot()
        figure.tight_layout()
        path = target / f"{name}.png"
        figure.savefig(path, dpi=100)
        plt.close("all")
        pictures.append(path)
    return pictures


def _has_log_joint(idata: PosteriorData) -> bool:
    stats = group(idata, "sample_stats")
    return "lp" in stats and bool(np.isfinite(stats["lp"]).all())


def _worst(dataset: Any, few: bool) -> Any:
    """The elements of largest R-hat, each as a variable of its own; of few draws, those of largest deviation."""
    import xarray

    scalars = {}
    for name, array in dataset.data_vars.items():
        axes = [dim for dim in array.dims if dim not in ("chain", "draw")]
        stacked = array.stack(element=axes) if axes else array.expand_dims("element", -1)
        plain = xarray.Dataset({"x": stacked.drop_vars(["element", *axes], errors="ignore")})
        bad = (plain.std(["chain", "draw"]) if few else arviz_versions.r_hat(plain))["x"].values
        for index, value in enumerate(np.atleast_1d(bad)):
            label = name if not axes else f"{name} {_label(stacked, index, axes)}"
            element = stacked.isel(element=index).drop_vars(["element", *axes], errors="ignore")
            if bool(np.isfinite(element).all()):
                scalars[label] = (value, element)
    ranked = sorted(scalars, key=lambda label: -np.nan_to_num(scalars[label][0], nan=np.inf))[:_MAX_PANELS]
    return xarray.Dataset({label: scalars[label][1] for label in ranked})


def _label(stacked: Any, index: int, axes: list[str]) -> str:
    element = stacked.isel(element=index)
    return " ".join(str(element.coords[axis].item()) if axis in element.coords else "" for axis in axes)


def _plot_draws(chosen: Any) -> Figure:
    """The draws of each summary, a colour a chain, by their distance from the mean."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 1 + 0.4 * len(chosen)))
    for place, array in enumerate(chosen.data_vars.values()):
        values = array.transpose("chain", "draw").values
        for chain, own in enumerate(values):
            axis.plot(own - values.mean(), np.full(len(own), place), "o", color=f"C{chain}", alpha=0.7)
    axis.axvline(0.0, color="grey", linewidth=0.8)
    axis.set_yticks(range(len(chosen)), [f"{name}, mean {float(array.mean()):.3g}" for name, array in chosen.items()])
    axis.invert_yaxis()
    axis.set(xlabel="draw less the mean over all draws; a colour a chain")
    return figure


def _plot_log_joint(idata: PosteriorData) -> Figure:
    import matplotlib.pyplot as plt

    lp = group(idata, "sample_stats")["lp"]
    if lp.ndim > 2:
        lp = lp.sum([dim for dim in lp.dims if dim not in ("chain", "draw")])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), width_ratios=(3, 1), sharey=True)
    for chain in lp.coords["chain"].values:
        values = lp.sel(chain=chain).values
        left.plot(values, label=f"chain {chain}", linewidth=0.8)
        right.hist(values, bins=30, orientation="horizontal", histtype="step")
    left.set(xlabel="draw", ylabel="log joint density, nats")
    right.set(xlabel="draws")
    left.legend(fontsize="small", ncols=2)
    return figure


def plot_spectrograms(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    sample_rate: float,
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> Figure:
    """Spectrograms in dB on one scale, a row for each kind of signal; saved to ``path``.

    Arguments:
        rows: by row label, then by column label, signals ``(time,)``; of draws ``(draw, time)`` the standard deviation
            over them of every time and frequency is drawn.
        sample_rate: Hz.
        path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    columns = max(len(row) for row in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(3.2 * columns, 2.2 * len(rows)), squeeze=False, sharex=True, sharey=True
    )
    images = []
    for axis_row, (label, row) in zip(axes, rows.items(), strict=True):
        for axis in axis_row[len(row) :]:
            axis.axis("off")
        for axis, (name, signal) in zip(axis_row, row.items(), strict=False):
            images.append(_spectrogram(axis, signal, sample_rate))
            axis.set_title(name if name == label else f"{name}, {label}", fontsize=9)
    top = max(image.get_array().max() for image in images)
    for image in images:
        image.set_clim(top - 80, top)
    for axis in axes[:, 0]:
        axis.set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("s")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0, 0.92, 1))
    bar = figure.add_axes((0.93, 0.1, 0.012, 0.8))
    figure.colorbar(images[0], cax=bar, label="dB")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return figure


def _spectrogram(axis: Any, signal: np.ndarray, sample_rate: float) -> Any:
    size, hop = 1024, 256
    length = signal.shape[-1]
    padded = np.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, max(0, size - length))])
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-1)[..., ::hop, :] * np.hanning(size)
    bins = np.fft.rfft(frames)
    power = np.abs(bins) ** 2 if signal.ndim == 1 else bins.var(0)
    decibel = 10 * np.log10(power.T + 1e-12)
    extent = (0, length / sample_rate, 0, sample_rate / 2000)
    return axis.imshow(decibel, origin="lower", aspect="auto", extent=extent, cmap="magma")
