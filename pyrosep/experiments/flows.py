"""How well toy mixes of two and of four sources are separated under learned flows, and what each part adds."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrosep.data.toy import WAVES, ToyMixes
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.report import picture, write_tables
from pyrosep.experiments.samplers import THRESHOLDS
from pyrosep.experiments.workers import mapped
from pyrosep.infer import AnnealedSearch, Potential, SweepMoves
from pyrosep.metrics import si_sdr, wilson_interval
from pyrosep.mixing import mean_mix, unknown_gains_mix
from pyrosep.nn.precision import check_precision
from pyrosep.priors import SourcePrior
from pyrosep.zoo import load_guide, load_priors

if TYPE_CHECKING:
    import pandas

__all__ = ["ARMS", "flows"]

#: What is told :class:`~pyrosep.AnnealedSearch` beyond its defaults. ``"guide"`` arms start from a guide's draws;
#: ``"gains"`` has LogNormal gains to find, too.
ARMS: dict[str, dict[str, Any]] = {
    "one descent": {"redraws": 0},
    "longer ladder": {"ladder": 60, "redraws": 0},
    "block redraws": {"exchanges": 0.0},
    "defaults": {},
    "more redraws": {"redraws": 72},
    "twice the reverse steps": {"moves": SweepMoves(reverse_steps=8)},
    "guide, one descent": {"redraws": 0},
    "guide, defaults": {},
    "unknown gains": {},
}
#: Arms of mixes of two sources.
TWO = ("one descent", "defaults", "unknown gains")
#: Rows, chains of mixes, in one task: many, for the last that are not settled are few.
_ROWS = 256


@dataclass(frozen=True)
class _Task:
    waves: tuple[str, ...]
    arm: str
    priors: str
    guide: str
    frame: int
    mixes: tuple[int, ...]
    chains: int
    precision: str
    seed: int


def flows(
    out: str | os.PathLike[str],
    *,
    priors: str = "toy-continuous",
    guide: str = "toy-guide",
    sources: Sequence[int] = (2, 4),
    arms: Sequence[str] = tuple(ARMS),
    mixes: int = 32,
    pair_mixes: int = 64,
    chains: int = 8,
    frame: int = 2048,
    precision: str = "32-true",
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> pandas.DataFrame:
    """SI-SDR of the sources of toy mixes by chains under learned priors, for every pair of waves and for all four.

    Mixes are the first of :class:`~pyrosep.data.toy.ToyMixes`, means of their sources; the model is
    :func:`~pyrosep.mixing.mean_mix` with noise 0.01 (in the arm ``"unknown gains"``
    :func:`~pyrosep.mixing.unknown_gains_mix`, where gains are to be found too). The estimate is the state at the end of
    an :class:`~pyrosep.AnnealedSearch`: of one chain, or of that with the least residual among the first few.
    A *call* is one evaluation of one source's prior for one chain.

    Writes ``flows.csv``, ``flows.md`` and ``flows.png`` into ``out``.

    Arguments:
        out: a folder.
        priors: a model of the four waves.
        guide: for the arms that start from one; of all four.
        sources: 2 (all six pairs of waves), 4, or both.
        arms: of :data:`ARMS`; of two sources those in :data:`TWO`.
        mixes: of four sources.
        pair_mixes: of each pair.
        chains: for each mix.
        frame: samples.
        precision: ``"32-true"``, or ``"bf16-mixed"``: see :meth:`~pyrosep.ContinuousFlow.with_autocast`.
        seed: of mixes and chains.
        workers: processes.
        progress: called with tasks done and to do.

    Returns:
        a row for each set of waves (and one for all pairs together), arm and number of chains 1, 2, 4, ... of which the
        best is taken: median SI-SDR, shares above 10 and 20 dB with Wilson intervals of as many trials as sources,
        the residual's median relative to the noise, calls for each source and chain, CPU seconds for a mix and chain.
    """
    shared = _Task((), "", priors, guide, frame, (), chains, precision, seed)
    tasks = _tasks(shared, sources, arms, mixes, pair_mixes)
    found: dict[_Task, dict[str, Any]] = {}
    for done, (task, result) in enumerate(mapped(_run, tasks, workers)):
        found[task] = result
        progress(done + 1, len(tasks))
    table = _table(tasks, found)
    write_tables(out, "flows", f"Toy mixes under the priors of {Path(priors).name}", {"flows": table})
    _draw(table, Path(out) / "flows.png")
    return table


def _tasks(shared: _Task, sources: Sequence[int], arms: Sequence[str], mixes: int, pair_mixes: int) -> list[_Task]:
    """The tasks of a study, in the order of its table, each with what is ``shared`` by all of them.

    Raises:
        ConfigurationError: an unknown arm, number of sources or precision.
    """
    if unknown := sorted(set(arms) - set(ARMS)):
        raise ConfigurationError(f"expected arms of {tuple(ARMS)}; got {unknown}")
    if bad := [number for number in sources if number not in (2, 4)]:
        raise ConfigurationError(f"expected 2 or 4 sources; got {bad}")
    check_precision(shared.precision)
    tasks: list[_Task] = []
    for number in sorted(sources, reverse=True):
        sets = [WAVES] if number == 4 else list(itertools.combinations(WAVES, 2))
        count = mixes if number == 4 else pair_mixes
        parts = np.array_split(np.arange(count), max(1, -(-count * shared.chains // _ROWS)))
        for waves in sets:
            for arm in arms if number == 4 else [arm for arm in arms if arm in TWO]:
                tasks += [replace(shared, waves=waves, arm=arm, mixes=tuple(map(int, part))) for part in parts]
    return tasks


def _table(tasks: Sequence[_Task], found: Mapping[_Task, dict[str, Any]]) -> pandas.DataFrame:
    """One row for each set of waves, and for all pairs together, arm and number of chains."""
    import pandas

    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for task in tasks:
        names = [" + ".join(task.waves)] + (["all pairs"] if len(task.waves) == 2 else [])
        for name in names:
            groups.setdefault((len(task.waves), name, task.arm), []).append(found[task])
    rows = [row for key, parts in groups.items() for row in _rows(*key, parts)]
    order = {arm: place for place, arm in enumerate(ARMS)}
    table = pandas.DataFrame(rows).sort_values(
        ["sources", "waves", "arm", "best_of"], key=lambda column: column.map(order) if column.name == "arm" else column
    )
    return table.reset_index(drop=True)


def _rows(number: int, waves: str, arm: str, parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = np.concatenate([part["si_sdr"] for part in parts])  # (mix, chain, source)
    residual = np.concatenate([part["residual"] for part in parts])  # (mix, chain)
    energy = np.concatenate([part["energy"] for part in parts])  # (mix, chain)
    calls = float(np.concatenate([part["calls"] for part in parts]).mean()) / number
    mixes, chains = residual.shape
    rows, of = [], 1
    while of <= chains:
        best = energy[:, :of].argmin(1)
        values = np.take_along_axis(scores, best[:, None, None], 1)[:, 0]
        row = {"sources": number, "waves": waves, "arm": arm, "best_of": of, "mixes": mixes}
        row |= {"median_db": float(np.median(values)), "mean_db": float(values.mean())}
        for threshold in THRESHOLDS:
            share = float((values > threshold).mean())
            low, high = wilson_interval(share, values.size)
            row |= {f"above_{threshold:g}": share, f"low_{threshold:g}": low, f"high_{threshold:g}": high}
        row |= {
            "residual": float(np.median(np.take_along_axis(residual, best[:, None], 1))),
            "calls": round(calls, 1),
            "seconds": sum(part["seconds"] for part in parts) / (mixes * chains),
        }
        rows.append(row)
        of *= 2
    return rows


def _run(task: _Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    data = ToyMixes(task.waves, frame=task.frame, seed=task.seed)
    items = [data[index] for index in task.mixes]
    mix = torch.stack([item.mix for item in items]).repeat_interleave(task.chains, 0)
    truth = torch.stack([item.sources for item in items]).repeat_interleave(task.chains, 0)
    priors = load_priors(task.priors, sources=list(task.waves), frame=task.frame).with_precision(task.precision)
    init = load_guide(task.guide) if task.arm.startswith("guide") else "prior"
    search = AnnealedSearch(start=init, **ARMS[task.arm])
    start = time.process_time()
    ended = search.run(_model(task.arm, priors), mix, num_chains=len(mix), seed=task.seed + 1000 * task.mixes[0])
    seconds = time.process_time() - start
    with torch.no_grad():
        found, residual = _sources(task, ended.values(), ended.potential)
    shape = (len(items), task.chains)
    scores = si_sdr(found.reshape(-1, 1, task.frame), truth.reshape(-1, 1, task.frame))
    return {
        "si_sdr": scores.reshape(*shape, len(task.waves)).numpy(),
        "residual": residual.reshape(shape).numpy(),
        "energy": ended.energy.reshape(shape).numpy(),
        "calls": ended.calls.reshape(shape).numpy(),
        "seconds": seconds,
    }


def _model(arm: str, priors: Mapping[str, SourcePrior]) -> Callable[..., Any]:
    if arm != "unknown gains":
        return mean_mix(priors)
    unknown = unknown_gains_mix(priors)
    # The same mixes, as loud as sums are: gains are 1 each, and nobody says so.
    return lambda mix=None: unknown(None if mix is None else mix * len(priors))


def _sources(task: _Task, values: dict[str, Tensor], potential: Potential) -> tuple[Tensor, Tensor]:
    """Sources ``(row, source, time)``, and what they leave of the mix, rms relative to the noise, ``(row,)``."""
    found = torch.stack([values[wave] for wave in task.waves], 1)
    site = potential.run(values).nodes["mix"]
    normal = site["fn"].base_dist
    return found, ((site["value"] - normal.loc) / normal.scale).square().mean(-1).sqrt()


def _draw(table: pandas.DataFrame, path: Path) -> None:
    panels = [(number, group) for number, group in table[table.waves != "all pairs"].groupby("sources")]
    with picture(path, 1, len(panels), figsize=(8 * len(panels), 5), sharey=True) as (figure, axes):
        for axis, (number, group) in zip(axes[0], panels, strict=True):
            # Of pairs one arm is enough for a picture.
            shown = group[group.arm == ("defaults" if "defaults" in set(group.arm) else group.arm.iloc[0])]
            for (waves, arm), own in (group if number == 4 else shown).groupby(["waves", "arm"], sort=False):
                axis.plot(own.best_of, own.above_10, marker="o", label=arm if number == 4 else waves)
            counts = sorted(group.best_of.unique())
            axis.set(
                xscale="log",
                xlabel="chains, the one of least energy taken",
                title=f"{number} sources",
                ylim=(0, 1.03),
            )
            axis.set_xticks(counts, counts)
            axis.minorticks_off()
            axis.legend(fontsize=8, loc="lower right")
        axes[0, 0].set_ylabel("share of sources above 10 dB")
        figure.tight_layout()
