"""Which parts of the annealed sampler find the sources, measured on toy mixes under their exact prior."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrosep.data.toy import WAVES, ToyMixes
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.report import picture
from pyrosep.experiments.workers import mapped
from pyrosep.infer import AnnealedSearch, noise_ladder
from pyrosep.metrics import si_sdr, wilson_interval
from pyrosep.mixing import mean_mix
from pyrosep.priors import OscillatorPrior
from pyrosep.results import write_text

if TYPE_CHECKING:
    import pandas

__all__ = ["ARMS", "BUDGETS", "samplers"]

#: Denoiser calls for each source and chain.
BUDGETS = (8, 16, 32, 64)
#: Samplers of the study, by what they are called in its table.
ARMS = ("noisy", "denoised", "constraint", "sweeps", "blocks of 1", "blocks of 2", "blocks of 2 + exchanges")
#: One more, :class:`~pyrosep.AnnealedSearch` as it comes, whose budget is its own: 0 in the table.
DEFAULTS = "defaults"
#: Decibels of SI-SDR from which a source counts as recovered.
THRESHOLDS = (10.0, 20.0)
#: The waves of mixes of fewer than four sources.
FEWER = {2: ("saw", "square"), 3: ("sine", "saw", "square")}


@dataclass(frozen=True)
class _Task:
    arm: str
    budget: int
    sources: int
    frame: int
    mixes: tuple[int, ...]
    chains: int
    seed: int


def samplers(
    out: str | os.PathLike[str],
    *,
    sources: Sequence[int] = (4, 2),
    arms: Sequence[str] = ARMS,
    budgets: Sequence[int] = BUDGETS,
    mixes: int = 16,
    chains: int = 8,
    frame: int = 2048,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> pandas.DataFrame:
    """Share of sources recovered by each sampler, against the denoiser calls it may make.

    Mixes are the first of :class:`~pyrosep.data.toy.ToyMixes`, means of sources drawn from all 356 periods; the priors
    are exact (:class:`~pyrosep.OscillatorPrior`), the model is :func:`~pyrosep.mixing.mean_mix` with noise 0.01. What
    is scored is the state at the end of the search, before the chains at the last level. A *call* is one evaluation, or
    one draw, of one source's prior for one chain; a pass back through the denoiser is not counted.

    Writes ``samplers.csv`` and ``samplers.png`` into ``out``.

    Arguments:
        out: a folder.
        sources: numbers of sources, 2 to 4.
        arms: of :data:`ARMS`.
        budgets: calls for each source and chain at most. Chains whose residual is down to the noise stop early.
        mixes: how many.
        chains: for each mix; the best of them is the one of highest joint density.
        frame: samples.
        seed: of mixes and chains.
        workers: processes.
        progress: called with tasks done and to do.

    Returns:
        one row an arm, budget, number of sources, threshold, and ``"one"`` chain or ``"best"``: the share recovered,
        its 95 % Wilson interval, calls made (mean over chains) and CPU seconds. Chains and sources of one mix are not
        independent: the interval of one chain is that of as many trials as there are sources.
    """
    if unknown := sorted(set(arms) - set(ARMS)):
        raise ConfigurationError(f"expected arms of {ARMS}; got {unknown}")
    if bad := [number for number in sources if number not in (2, 3, 4)]:
        raise ConfigurationError(f"expected 2, 3 or 4 sources; got {bad}")
    halves = np.array_split(np.arange(mixes), max(1, min(workers, mixes)))
    tasks = [
        _Task(arm, budget, number, frame, tuple(int(index) for index in part), chains, seed)
        for budget in sorted(budgets, reverse=True)
        for number in sources
        for arm in arms
        for part in halves
        if len(part)
    ]
    kinds = [replace(task, arm=DEFAULTS, budget=0) for task in tasks]
    tasks = list(dict.fromkeys([*kinds, *tasks]))
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for done, (task, result) in enumerate(mapped(_run, tasks, workers)):
        found.setdefault((task.arm, task.budget, task.sources), []).append(result)
        progress(done + 1, len(tasks))
    table = _table(found)
    folder = Path(out)
    write_text(folder / "samplers.csv", table.to_csv(index=False, float_format="%.6g"))
    _draw(table, folder / "samplers.png", f"{mixes} mixes, frames of {frame} samples, {chains} chains each")
    return table


def _table(found: Mapping[tuple[str, int, int], Sequence[dict[str, Any]]]) -> pandas.DataFrame:
    """The rows of what was found by each arm, budget and number of sources."""
    import pandas

    rows = [row for (arm, budget, number), parts in found.items() for row in _rows(arm, budget, number, parts)]
    order = {arm: place for place, arm in enumerate((*ARMS, DEFAULTS))}
    return pandas.DataFrame(rows).sort_values(
        ["sources", "sampler", "budget", "above_db", "chains"],
        key=lambda column: column.map(order) if column.name == "sampler" else column,
        ascending=[False, True, True, True, False],
        ignore_index=True,
    )


def _rows(arm: str, budget: int, number: int, parts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each threshold, of one chain and of the best."""
    scores = np.concatenate([part["si_sdr"] for part in parts])  # (mix, chain, source)
    joint = np.concatenate([part["log_joint"] for part in parts])  # (mix, chain)
    best = np.take_along_axis(scores, joint.argmax(1)[:, None, None], 1)
    calls = float(np.concatenate([part["calls"] for part in parts]).mean()) / number
    seconds = sum(part["seconds"] for part in parts)
    for threshold in THRESHOLDS:
        for which, values in (("one", scores), ("best", best)):
            share = float((values > threshold).mean())
            low, high = wilson_interval(share, len(scores) * number)
            yield {
                "sources": number,
                "sampler": arm,
                "budget": budget,
                "calls": round(calls, 1),
                "chains": which,
                "above_db": threshold,
                "share": share,
                "low": low,
                "high": high,
                "median_db": float(np.median(values)),
                "seconds": round(seconds, 1),
            }


def _search(task: _Task, priors: dict[str, OscillatorPrior]) -> AnnealedSearch:
    """The arm's search, as long as the budget allows."""
    number = len(priors)
    if task.arm == DEFAULTS:
        return AnnealedSearch()
    if task.arm in ("noisy", "denoised", "constraint"):
        ladder = noise_ladder(priors, max(2, task.budget // 2))  # at each level a step, and a move to the next
        return AnnealedSearch(ladder, task.arm, redraws=0)
    if task.arm == "sweeps":
        # Sweeps take no level below what the mix's noise leaves of a source; the last is the model's own.
        ladder = noise_ladder(priors, max(2, task.budget - 1), bottom=0.01 * number)
        return AnnealedSearch(ladder, "sweeps", redraws=0)
    block = 1 if task.arm == "blocks of 1" else 2
    levels, short = min(20, task.budget // 2), 10
    redraws = max(1, int((task.budget - levels) * number / (short * block)))
    exchanges = 0.5 if "exchanges" in task.arm else 0.0
    redraws = int(redraws / (1 - exchanges + exchanges * 4 / (short * block)))
    return AnnealedSearch(
        noise_ladder(priors, max(2, levels - 1), bottom=0.01 * number),
        "sweeps",
        redraws=redraws,
        block=block,
        redraw_levels=short,
        exchanges=exchanges,
        restarts=False,
    )


def _run(task: _Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    waves = FEWER.get(task.sources, WAVES)
    data = ToyMixes(waves, frame=task.frame, seed=task.seed)
    items = [data[index] for index in task.mixes]
    mix = torch.stack([item.mix for item in items]).repeat_interleave(task.chains, 0)
    truth = torch.stack([item.sources for item in items]).repeat_interleave(task.chains, 0)
    priors = {wave: OscillatorPrior(wave, frame=task.frame) for wave in waves}
    model = mean_mix(priors, noise=0.01)
    search = _search(task, priors)
    start = time.process_time()
    ended = search.run(model, mix, num_chains=len(mix), seed=task.seed + 1000 * task.mixes[0] + task.budget)
    seconds = time.process_time() - start
    log_joint, values = ended.log_joint(), ended.values()
    found = torch.stack([values[wave] for wave in waves], 1)
    scores = si_sdr(found.reshape(-1, 1, task.frame), truth.reshape(-1, 1, task.frame))
    shape = (len(items), task.chains)
    return {
        "si_sdr": scores.reshape(*shape, len(waves)).numpy(),
        "log_joint": log_joint.reshape(shape).numpy(),
        "calls": ended.calls.reshape(shape).numpy(),
        "seconds": seconds,
    }


def _draw(table: pandas.DataFrame, path: Path, title: str) -> None:
    numbers = sorted(table["sources"].unique(), reverse=True)
    panels = [(which, threshold) for threshold in THRESHOLDS for which in ("one", "best")]
    arms = [arm for arm in ARMS if arm in set(table["sampler"])]
    budgets = sorted(set(table["budget"]) - {0})
    with picture(path, len(numbers), len(panels), figsize=(17, 4 * len(numbers)), sharey=True) as (figure, axes):
        for row, number in zip(axes, numbers, strict=True):
            for axis, (which, threshold) in zip(row, panels, strict=True):
                part = table[(table.sources == number) & (table.chains == which) & (table.above_db == threshold)]
                for place, arm in enumerate(arms):
                    own = part[part.sampler == arm].set_index("budget").reindex(budgets)
                    left = np.arange(len(budgets)) + (place - len(arms) / 2 + 0.5) * 0.8 / len(arms)
                    errors = np.stack([own.share - own.low, own.high - own.share]).clip(min=0)
                    axis.bar(left, own.share, 0.8 / len(arms), yerr=errors, label=arm, error_kw={"linewidth": 0.7})
                usual = part[part.sampler == DEFAULTS].iloc[0]
                axis.axhline(usual.share, color="black", linestyle="--", linewidth=1, label=DEFAULTS)
                axis.fill_between([-0.5, len(budgets) - 0.5], usual.low, usual.high, color="black", alpha=0.07)
                axis.set_xticks(range(len(budgets)), budgets)
                chains = "one chain" if which == "one" else "best chain"
                axis.set_title(f"{number} sources, {chains}, > {threshold:.0f} dB")
                axis.set_xlabel("calls a source and chain, at most")
            row[0].set_ylabel("share of sources")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=9)
        figure.suptitle(title)
        figure.tight_layout(rect=(0, 0.04, 1, 1))
