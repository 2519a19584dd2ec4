"""How likely priors find held-out sources, those of others, noised ones, and inputs that are no source at all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrosep.experiments.held_out import HeldOut, LogDensities
from pyrosep.experiments.report import picture, write_tables
from pyrosep.metrics import wilson_interval
from pyrosep.training.frames import LEVELS

if TYPE_CHECKING:
    import pandas

__all__ = ["FIXED", "LEVELS", "NOISES", "CrossLikelihood", "constant_inputs", "cross_likelihood", "noised_likelihood"]

#: Levels of the two priors, one nearly noiseless and one noised, whose inputs get noise of every level of NOISES.
FIXED = (0.01, 0.36)
NOISES = (0.0, *LEVELS)

Progress = Callable[[int, int], Any]


class CrossLikelihood(NamedTuple):
    """The tables of :func:`cross_likelihood`."""

    densities: pandas.DataFrame
    naming: pandas.DataFrame


def cross_likelihood(
    out: str | os.PathLike[str],
    held_out: HeldOut,
    *,
    levels: Sequence[float] = LEVELS,
    progress: Progress = lambda done, total: None,
) -> CrossLikelihood:
    """Every prior on held-out frames of every source, and how well the priors tell the sources apart.

    At each level frames get noise of that level and are judged by the priors of that level. A frame is *named* after
    the prior under which its log-density is largest. Writes ``cross-likelihood.csv``, ``naming.csv``,
    ``cross-likelihood.md`` and ``cross-likelihood.png`` into ``out``.

    Arguments:
        out: a folder.
        held_out: frames and priors.
        levels: noise levels of frames and priors.
        progress: called with steps done and to do.

    Returns:
        ``densities``, a row for each level, source and prior (columns: :func:`noised_likelihood`); and ``naming``, a
        row for each level and source, and for all sources together: the share of frames named ``right`` with its 95 %
        Wilson interval, the same by the exact priors and by the talk's convention, the share named after each source
        (``as_``), and the mean SNR in dB of frames denoised by the source's own prior, by its exact one, and not at
        all.

    Raises:
        ConfigurationError: a level below the priors' lowest.
    """
    import pandas

    levels, sources = held_out.checked_levels(levels), held_out.sources
    rows: list[dict[str, Any]] = []
    naming: list[dict[str, Any]] = []
    for level in levels:
        found: list[list[LogDensities]] = []
        snr: dict[str, list[Tensor]] = {"snr_db": [], "exact_snr_db": [], "noisy_snr_db": []}
        for clean, source in zip(held_out.clean, sources, strict=True):
            x = held_out.noised(source, level)
            found.append([held_out.judge(name, x, level) for name in sources])
            for name, one in zip(sources, found[-1], strict=True):
                rows.append({"sigma": level, "source": source, "prior": name} | one.row(held_out.time))
            for column, denoised in zip(snr, (*held_out.denoise(source, x, level), x), strict=True):
                snr[column].append(_snr(clean, denoised))
            progress(len(rows) // len(sources), len(levels) * len(sources))
        naming += [{"sigma": level} | row for row in _naming(sources, found, snr)]
    tables = CrossLikelihood(pandas.DataFrame(rows), pandas.DataFrame(naming))
    write_tables(
        out,
        "cross-likelihood",
        f"Cross-likelihood: {_setting(held_out)}",
        {"cross-likelihood": tables.densities, "naming": tables.naming},
    )
    _draw_cross(tables, sources, Path(out) / "cross-likelihood.png", _setting(held_out))
    return tables


def noised_likelihood(
    out: str | os.PathLike[str],
    held_out: HeldOut,
    *,
    levels: Sequence[float] = FIXED,
    noises: Sequence[float] = NOISES,
    progress: Progress = lambda done, total: None,
) -> pandas.DataFrame:
    """Held-out frames of each source with more and more noise, under its own prior at fixed levels and at the noise's.

    Writes ``noised-likelihood.csv``, ``.md`` and ``.png`` into ``out``.

    Arguments:
        out: a folder.
        held_out: frames and priors.
        levels: fixed noise levels of the priors.
        noises: levels of the noise added to clean frames; 0 for none.
        progress: called with steps done and to do.

    Returns:
        a row for each source, level of its prior (``prior_sigma``) and of the noise (``input_sigma``); ``matched``
        where they are the same. Columns ``nats_per_frame`` (mean over frames, log-determinant included) and its
        standard error; the same in nats a sample, for display; ``latent_per_sample`` and ``talk_per_sample``, of
        flows only, without log-determinants (:class:`~pyrosep.experiments.held_out.LogDensities`); and of the toy
        waves ``exact_per_frame`` and by how much the prior is below it.

    Raises:
        ConfigurationError: a level below the priors' lowest, or a noise below zero.
    """
    import pandas

    levels, noises = held_out.checked_levels(levels), held_out.checked_levels(noises, least=0.0)
    lowest = min(levels)
    pairs = [(level, noise) for level in levels for noise in noises]
    pairs = list(dict.fromkeys([*pairs, *((noise, noise) for noise in noises if noise >= lowest)]))
    rows = []
    for source in held_out.sources:
        for level, noise in pairs:
            key = {"source": source, "prior_sigma": level, "input_sigma": noise, "matched": level == noise}
            rows.append(key | held_out.judge(source, held_out.noised(source, noise), level).row(held_out.time))
            progress(len(rows), len(held_out.sources) * len(pairs))
    table = pandas.DataFrame(rows)
    title = f"Likelihood of noised inputs: {_setting(held_out)}"
    write_tables(out, "noised-likelihood", title, {"noised-likelihood": table})
    lines = {f"prior at {level:g}": table[table.prior_sigma == level] for level in levels}
    _draw_lines(
        lines | {"prior at the noise's level": table[table.matched]},
        "source",
        "input_sigma",
        held_out.time,
        Path(out) / "noised-likelihood.png",
        title,
    )
    return table


def constant_inputs(
    out: str | os.PathLike[str],
    held_out: HeldOut,
    *,
    levels: Sequence[float] = LEVELS,
    progress: Progress = lambda done, total: None,
) -> pandas.DataFrame:
    """Constants 0 and 1, bare and with noise, beside held-out frames of the prior's own source, likewise.

    Like is compared with like: a frame with less noise than its level is likelier, whatever it is, by up to half a nat
    a sample. ``0 + noise`` is pure noise, N(0, sigma**2). Writes ``constant-inputs.csv``, ``.md`` and ``.png`` into
    ``out``.

    Arguments:
        out: a folder.
        held_out: frames and priors.
        levels: noise levels of the priors, and of the noise.
        progress: called with steps done and to do.

    Returns:
        a row for each level, prior and input, with the columns of :func:`noised_likelihood`, and ``above_data``: by how
        many nats a frame the prior finds the input likelier than data, bare or with noise as it is. ``likelier`` says
        whether it does, ``exact_likelier`` whether the exact prior does, and ``talk_likelier`` whether it seems so
        without log-determinants.

    Raises:
        ConfigurationError: a level below the priors' lowest.
    """
    import pandas

    levels = held_out.checked_levels(levels)
    rows: list[dict[str, Any]] = []
    for level in levels:
        for index, name in enumerate(held_out.sources):
            noise = level * held_out.noise[index]
            constants = {"0": torch.zeros_like(noise[:1]), "1": torch.ones_like(noise[:1])}
            bare = {"data": held_out.noised(name, 0.0), **constants}
            noised = {f"{kind} + noise": x + noise for kind, x in bare.items()}
            for inputs in (bare, noised):
                data: dict[str, Any] = {}
                for kind, x in inputs.items():
                    row = held_out.judge(name, x, level).row(held_out.time)
                    data = data or row
                    flags = {
                        "above_data": row["nats_per_frame"] - data["nats_per_frame"],
                        "likelier": _likelier(row, data, "nats_per_frame"),
                        "exact_likelier": _likelier(row, data, "exact_per_frame"),
                        "talk_likelier": _likelier(row, data, "talk_per_sample"),
                    }
                    rows.append({"sigma": level, "prior": name, "input": kind} | row | flags)
            progress(index + 1 + len(held_out.sources) * levels.index(level), len(levels) * len(held_out.sources))
    table = pandas.DataFrame(rows)
    title = f"Constant inputs: {_setting(held_out)}"
    write_tables(out, "constant-inputs", title, {"constant-inputs": table})
    lines = {str(kind): part for kind, part in table.groupby("input", sort=False)}
    _draw_lines(lines, "prior", "sigma", held_out.time, Path(out) / "constant-inputs.png", title)
    return table


def _setting(held_out: HeldOut) -> str:
    families = sorted({type(prior).__name__ for prior in held_out.priors.values()})
    _, frames, time = held_out.clean.shape
    return f"{', '.join(families)} on {Path(held_out.data).name}, {frames} frames a source of {time} samples"


def _naming(
    sources: Sequence[str], found: Sequence[Sequence[LogDensities]], snr: Mapping[str, Sequence[Tensor]]
) -> Iterator[dict[str, Any]]:
    """Rows for each source and for all of them: what frames are named, and their SNR.

    Arguments:
        sources: names.
        found: by source of the frames, then by prior.
        snr: by column, then by source: ``(frame,)`` each.
    """
    named = {}
    for prefix, field in (("", "nats"), ("exact_", "exact"), ("talk_", "talk")):
        columns = [[getattr(one, field) for one in row] for row in found]
        if all(values is not None for row in columns for values in row):  # what is no number is least likely
            stacked = torch.stack([torch.stack(row) for row in columns])  # (source, prior, frame)
            named[prefix] = stacked.nan_to_num(nan=-math.inf, neginf=-math.inf).argmax(1)
    everything = list(range(len(sources)))
    for source, chosen in [*((name, [index]) for index, name in enumerate(sources)), ("all", everything)]:
        row: dict[str, Any] = {"source": source, "frames": named[""][chosen].numel()}
        for prefix in ("", "exact_", "talk_"):
            share = low = high = math.nan
            if prefix in named:
                right = named[prefix][chosen].cpu() == torch.tensor(chosen).unsqueeze(-1)
                share = right.double().mean().item()
                low, high = wilson_interval(share, right.numel())
            row |= {f"{prefix}right": share, f"{prefix}low": low, f"{prefix}high": high}
        for index, name in enumerate(sources):
            row[f"as_{name}"] = (named[""][chosen] == index).double().mean().item()
        yield row | {column: torch.stack([*values])[chosen].mean().item() for column, values in snr.items()}


def _snr(clean: Tensor, estimate: Tensor) -> Tensor:
    return 10 * torch.log10(clean.square().sum(-1) / (estimate - clean).square().sum(-1))


def _likelier(row: dict[str, Any], data: dict[str, Any], column: str) -> bool | None:
    return None if math.isnan(data[column]) else row[column] > data[column]


def _draw_cross(tables: CrossLikelihood, sources: Sequence[str], path: Path, title: str) -> None:
    levels = sorted(set(tables.naming.sigma))
    columns = max(2, len(levels))
    with picture(path, 2, columns, figsize=(3.2 * columns, 8), layout="constrained") as (figure, axes):
        for axis in axes.flat[len(levels) : columns]:
            axis.set_axis_off()
        for axis, level in zip(axes[0], levels, strict=False):
            part = tables.densities[tables.densities.sigma == level]
            value = part.pivot(index="source", columns="prior", values="nats_per_frame").loc[[*sources], [*sources]]
            below = value.max(axis=1).to_numpy()[:, None] - value.to_numpy()
            axis.imshow(-np.log10(1 + below), cmap="viridis", vmin=-6, vmax=0)
            for (row, column), nats in np.ndenumerate(below):
                colour = "black" if nats < 100 else "white"
                axis.text(column, row, f"{nats:,.0f}", ha="center", va="center", fontsize=7, color=colour)
            axis.set_xticks(range(len(sources)), [*sources], rotation=45)
            axis.set_yticks(range(len(sources)), [*sources])
            axis.set_title(f"sigma {level:g}", fontsize=9)
        axes[0, 0].set_ylabel("source; nats a frame below the likeliest prior")
        panels = zip(axes[1], ("right", "snr_db"), ("share named right", "SNR denoised, dB"), strict=False)
        for axis, column, label in panels:
            for index, source in enumerate([*sources, "all"]):
                part = tables.naming[tables.naming.source == source]
                if column == "right":
                    axis.fill_between(part.sigma, part.low, part.high, color=f"C{index}", alpha=0.1)
                axis.plot(part.sigma, part[column], f"C{index}o-", label=source)
                axis.plot(part.sigma, part[f"exact_{column}"], f"C{index}--", linewidth=1)
            axis.set(xscale="log", xlabel="sigma", ylabel=label)
        axes[1, 0].set_ylim(0, 1.03)
        axes[1, 0].legend(fontsize=7, title="dashed: exact", title_fontsize=7)
        for axis in axes[1, 2:]:
            axis.set_axis_off()
        figure.suptitle(title)


def _draw_lines(lines: Mapping[str, pandas.DataFrame], panel: str, x: str, time: int, path: Path, title: str) -> None:
    """Nats a sample against a noise level, a panel for each source or prior; dashed: exact."""
    names = list(next(iter(lines.values()))[panel].unique())
    with picture(path, 1, len(names), figsize=(4.5 * len(names), 4.5), layout="constrained") as (figure, axes):
        for axis, name in zip(axes[0], names, strict=True):
            for index, (label, table) in enumerate(lines.items()):
                part = table[table[panel] == name].sort_values(x)
                axis.plot(part[x], part.nats_per_sample, f"C{index}o-", markersize=3, label=label)
                axis.plot(part[x], part.exact_per_frame / time, f"C{index}--", linewidth=1)
            positive = [level for level in next(iter(lines.values()))[x] if level > 0]
            axis.set_xscale("symlog", linthresh=min(positive, default=1.0))
            axis.set_yscale("symlog", linthresh=1.0)
            axis.set(title=f"{panel} {name}", xlabel=x.replace("_", " "))
        axes[0, 0].set_ylabel("nats a sample; dashed: exact")
        axes[0, 0].legend(fontsize=8)
        figure.suptitle(title)
