"""An audit of searches on songs: what more noise levels and more draws give, and how likely what they find is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrosep.diagnostics import coverage_by_source
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.report import picture, write_tables
from pyrosep.experiments.windows import improvements, song_windows
from pyrosep.experiments.workers import mapped
from pyrosep.infer import AnnealedSearch, noise_ladder
from pyrosep.metrics import sounding
from pyrosep.mixing import linear_mix
from pyrosep.priors import SourcePrior
from pyrosep.priors.base import rms
from pyrosep.zoo import load_priors, prior_set_info

if TYPE_CHECKING:
    import pandas

__all__ = ["SEARCHES", "audit", "denoising_energy"]

#: Moves of :class:`~pyrosep.AnnealedSearch` that go with denoisers that filter.
SEARCHES = ("shared", "local")
#: Noise levels at which energies are measured.
_LEVELS = 12
#: Windows at once.
_BATCH = 6
#: Observation noise under a window, in dB.
_NOISE_DB = -60.0


@dataclass(frozen=True)
class _Task:
    search: str
    levels: int
    data: str
    model: str
    windows: int
    chains: int
    every: tuple[int, int]
    seed: int


def audit(
    out: str | os.PathLike[str],
    data: str,
    *,
    model: str = "band-small",
    searches: Sequence[str] = SEARCHES,
    levels: Sequence[int] = (3, 6, 12, 24),
    windows: int = 36,
    chains: int = 16,
    every: tuple[int, int] = (0, 1),
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, pandas.DataFrame]:
    r"""Separate windows of songs by chains that start from nothing, at several numbers of noise levels.

    Windows are of the model's own frame, evenly spaced over all songs, those of them in which at least two sources
    sound. Each is separated by itself, without its neighbours.

    Arguments:
        out: folder to write into.
        data: folder of songs with stems.
        model: whose denoisers are filters.
        searches: of :data:`SEARCHES`.
        levels: numbers of noise levels.
        windows: how many, at most.
        chains: draws of each window, independent of each other.
        every: take songs whose place in the list, divided by the second number, leaves the first.
        seed: of the chains.
        workers: processes at once.
        progress: called with the searches done, and all.

    Returns:
        tables, written to ``out`` too, with a picture. ``levels``, by search and number of levels: the improvement of
        SI-SDR in dB of the mean of all draws, by source and in the mean; the energy of draws above the true
        sources', in nats a window (:func:`denoising_energy`); calls of a source's denoiser for a draw; seconds for a
        draw of a second. ``draws``, by search at the fewest levels: the improvement of one draw and of means of 2, 4,
        ... draws, and what :math:`10\log_{10}(1 + 1/K)` takes from the mean of ever more draws for the mean of K; the
        share of true samples in 90 % intervals by K draws, by source.

    Raises:
        ConfigurationError: an unknown search, or priors that it is not for.
        DataError: no window in which two sources sound.
    """
    import pandas

    if unknown := sorted(set(searches) - set(SEARCHES)):
        raise ConfigurationError(f"searches must be among {', '.join(SEARCHES)}; got {unknown}")
    if chains < 2 or not levels or min(levels) < 2:
        raise ConfigurationError(f"expected at least 2 chains and 2 levels; got {chains} and {list(levels)}")
    tasks = [_Task(search, count, data, model, windows, chains, every, seed) for search in searches for count in levels]
    found: dict[_Task, dict[str, Any]] = {}
    progress(0, len(tasks))
    for task, result in mapped(_run, tasks, workers):
        found[task] = result
        progress(len(found), len(tasks))
    rows = [{"search": task.search, "levels": task.levels} | found[task]["row"] for task in tasks]
    draws = [row for task in tasks if task.levels == min(levels) for row in found[task]["draws"]]
    tables = {"levels": pandas.DataFrame(rows), "draws": pandas.DataFrame(draws)}
    write_tables(out, "audit", f"Searches under the priors of {Path(model).name}", tables)
    _draw(tables["levels"], Path(out) / "audit.png")
    return tables


def denoising_energy(prior: SourcePrior, frames: Tensor, noise: Tensor, levels: Sequence[float]) -> Tensor:
    r"""What it costs a denoiser to tell frames from noise, in nats up to a constant: ``(...)``.

    .. math:: E(s) = \int \frac{\|D(s + \sigma\epsilon; \sigma) - s\|^2}{\sigma^2}\, d\log\sigma,

    which for an exact denoiser is, in the mean over :math:`\epsilon`, the negative log-density of s up to a constant
    that is the same for all frames (Guo, Shamai & Verdú, 2005; Kong et al., 2023).

    Arguments:
        prior: of the source alone, without interference.
        frames: clean, ``(..., time)``.
        noise: :math:`\epsilon`, of the same shape for each level, ``(level, ..., time)``.
        levels: of the noise, falling or rising, evenly spaced in their logarithm.
    """
    step = abs(math.log(levels[1] / levels[0]))
    total = torch.zeros(frames.shape[:-1], dtype=torch.float64)
    for level, epsilon in zip(levels, noise, strict=True):
        clean = prior.at(level, interference=0.0).denoise(frames + level * epsilon)
        total = total + (clean - frames).double().square().sum(-1) / level**2 * step
    return total


def _run(task: _Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    info = prior_set_info(task.model)
    priors = load_priors(info.folder)
    truth = song_windows(
        task.data, list(priors), frame=info.frame, sample_rate=info.sample_rate, count=task.windows, every=task.every
    )
    mix, heard = truth.sum(1), sounding(truth.unsqueeze(2))
    found, calls, seconds = _separated(task, priors, mix)  # (chain, window, source, time)
    levels = noise_ladder(priors, _LEVELS, top=max(map(rms, priors.values())))
    generator = torch.Generator().manual_seed(task.seed)
    energies = torch.zeros(2, len(mix), dtype=torch.float64)
    with torch.no_grad():
        for k, prior in enumerate(priors.values()):
            noise = torch.randn(len(levels), *mix.shape, generator=generator)
            energies[0] += denoising_energy(prior, truth[:, k], noise, levels)
            energies[1] += denoising_energy(prior, found[0, :, k], noise, levels)
    by_source = improvements(found.mean(0), truth)
    row = dict(zip(priors, by_source, strict=True)) | {
        "mean": sum(by_source) / len(by_source),
        "energy": float((energies[1] - energies[0]).mean()),
        "calls": calls,
        "seconds": seconds / (task.chains * mix.numel() / info.sample_rate),
    }
    draws, count = [], 1
    best = sum(by_source) / len(by_source) + 10 * math.log10(1 + 1 / task.chains)
    while count <= task.chains:
        groups = [improvements(part.mean(0), truth) for part in found.split(count) if len(part) == count]
        mean = sum(map(sum, groups)) / (len(groups) * len(priors))
        own = {"search": task.search, "draws": count, "mean": mean, "law": best - 10 * math.log10(1 + 1 / count)}
        if count > 1:
            inside = coverage_by_source(found[:count], truth, heard)
            own |= {f"{name} in 90 %": share for name, share in zip(priors, inside, strict=True)}
        draws.append(own)
        count *= 2
    return {"row": row, "draws": draws}


def _separated(task: _Task, priors: Mapping[str, SourcePrior], mix: Tensor) -> tuple[Tensor, float, float]:
    """Draws ``(chain, window, source, time)``, calls of a source for each, and CPU seconds for all."""
    parts, calls, began = [], 0.0, time.process_time()
    for number, batch in enumerate(mix.split(_BATCH)):
        noise = 10 ** (_NOISE_DB / 20) * float(batch.square().mean().sqrt())
        model = linear_mix(priors, torch.ones(len(priors)), noise)
        # Chains of one call come in pairs whose noise is not independent: here each is a call of its own.
        runs = []
        for chain in range(task.chains):
            search = AnnealedSearch(task.levels, task.search, "mix", redraws=0)
            ended = search.run(model, batch, num_chains=len(batch), seed=task.seed + 1000 * number + chain)
            values = ended.values()
            runs.append(torch.stack([values[name] for name in priors], 1))
            calls += float(ended.calls.sum()) / len(priors)
        parts.append(torch.stack(runs))
    seconds = time.process_time() - began
    return torch.cat(parts, 1), calls / (task.chains * len(mix)), seconds


def _draw(table: pandas.DataFrame, path: Path) -> None:
    counts = sorted(set(table["levels"]))
    with picture(path, 1, 2, figsize=(11, 4.2)) as (figure, axes):
        for search, own in table.groupby("search", sort=False):
            axes[0, 0].plot(own["levels"], own["mean"], marker="o", label=search)
            axes[0, 1].plot(own["levels"], own["energy"] / 1000, marker="o", label=search)
        for axis, label in zip(
            axes[0], ("SI-SDR improvement, dB", "energy above the truth, 1000 nats a window"), strict=True
        ):
            axis.set(xscale="log", xlabel="noise levels", ylabel=label)
            axis.set_xticks(counts, counts)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend()
        figure.tight_layout()
