"""What guides find in held-out toy mixes, alone and as starts of chains, beside chains without a guide."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrosep.data.toy import SAMPLE_RATE, WAVES, ToyMixes
from pyrosep.diagnostics.guides import interval_coverage
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.report import picture, write_tables
from pyrosep.experiments.workers import mapped
from pyrosep.guides import EncoderGuide
from pyrosep.infer import AnnealedSearch, LangevinMoves
from pyrosep.metrics import si_sdr, wilson_interval
from pyrosep.mixing import mean_mix
from pyrosep.zoo import load_guide, load_priors

if TYPE_CHECKING:
    import pandas

__all__ = ["METHODS", "guides"]

#: What can be compared; ``"guide"`` is each of the guides, ``"guide+flows"`` chains under priors that were learned.
METHODS = ("mix", "guide", "guide+langevin", "guide+flows", "langevin")
#: Decibels of SI-SDR from which a source counts as recovered.
THRESHOLDS = (10.0, 20.0)
#: Noise levels of the search under flows: above, the gradients of theirs that ship are too rough to follow.
FLOW_LADDER = (0.1, 0.056, 0.032, 0.018, 0.01)
#: Mixes in one task.
_TASK = 20


@dataclass(frozen=True)
class _Task:
    method: str
    guide: str
    priors: str
    frame: int
    mixes: tuple[int, ...]
    chains: int
    seed: int

    @property
    def label(self) -> str:
        return f"guide {Path(self.guide).name}" if self.method == "guide" else self.method


def guides(
    out: str | os.PathLike[str],
    *,
    guides: Sequence[str] = ("toy-guide",),
    priors: str = "toy",
    flows: str = "toy-flowavenet",
    methods: Sequence[str] = METHODS,
    frames: Sequence[int] = (4096, 16_384),
    mixes: int = 200,
    flow_mixes: int | None = None,
    chains: int = 8,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """SI-SDR of the sources of toy mixes by each method, its speed, and the coverage of the guides' intervals.

    Mixes are the first of :class:`~pyrosep.data.toy.ToyMixes`, means of four sources; the model is
    :func:`~pyrosep.mixing.mean_mix` with noise 0.01. A guide's estimate is its mean. Of chains it is the state at the
    end of an :class:`~pyrosep.AnnealedSearch`, a draw: of each chain (``"one"``), and of the one of highest
    joint density (``"best"``). Chains under flows are one for each mix, and go down :data:`FLOW_LADDER` by Langevin
    steps under the noisy coupling; where those end nowhere, it is the guide's draw that is scored.

    Writes ``separation.csv``, ``coverage.csv``, both as ``guides.md``, and ``guides.png`` into ``out``.

    Arguments:
        out: a folder.
        guides: names or folders, see :func:`~pyrosep.load_guide`; chains start from the first.
        priors: the model whose priors the chains are under.
        flows: another one, of learned priors, for ``"guide+flows"``.
        methods: of :data:`METHODS`.
        frames: samples in a mix; each is a part of the tables.
        mixes: how many of each length.
        flow_mixes: how many for ``"guide+flows"``; by default as many.
        chains: for each mix.
        seed: of mixes and chains.
        workers: processes.
        progress: called with tasks done and to do.

    Returns:
        a row each frame length, method and ``"one"``/``"best"`` chain, with mean, median, shares above 10 and 20 dB and
        their 95 % Wilson intervals, prior calls a source and chain, frames a second, and seconds of one processor
        for a second of audio; and a row each frame length, guide and source with the coverage of 50 and 90 % intervals,
        before and after its temperature. Sources of one mix are not independent: their intervals are that of as many
        trials as there are sources.
    """
    import pandas

    if unknown := sorted(set(methods) - set(METHODS)):
        raise ConfigurationError(f"expected methods of {METHODS}; got {unknown}")
    if not guides and any("guide" in method for method in methods):
        raise ConfigurationError("methods with a guide need one; give its name or folder")
    for guide in guides:  # before hours of computing
        _checked(guide)
    counts = {"guide+flows": mixes if flow_mixes is None else min(mixes, flow_mixes)}
    many = dict.fromkeys(("guide+langevin", "langevin"), chains)
    tasks = [
        _Task(method, guide, flows if method == "guide+flows" else priors, frame, share, many.get(method, 1), seed)
        for frame in frames
        for method in methods
        for guide in (guides if method == "guide" else (guides or ("",))[:1])
        for share in _shares(counts.get(method, mixes))
    ]
    found: dict[_Task, dict[str, Any]] = {}
    for done, (task, result) in enumerate(mapped(_run, sorted(tasks, key=_cost, reverse=True), workers)):
        found[task] = result
        progress(done + 1, len(tasks))
    rows, curves = _rows(tasks, found)
    separation, coverage = pandas.DataFrame(rows), pandas.DataFrame(_coverage(guides, methods, frames, mixes, seed))
    folder = Path(out)
    write_tables(
        folder, "guides", "Guides on toy mixes of four sources", {"separation": separation, "coverage": coverage}
    )
    _draw(curves, folder / "guides.png", f"{mixes} mixes of four sources")
    return separation, coverage


def _shares(count: int) -> list[tuple[int, ...]]:
    """The numbers of so many mixes, those of one task together."""
    return [tuple(map(int, part)) for part in np.array_split(np.arange(count), max(1, -(-count // _TASK)))]


def _checked(name: str) -> EncoderGuide:
    guide = load_guide(name)
    if guide.names != WAVES:
        raise ConfigurationError(f"guide {name!r} is of the sources {list(guide.names)}; expected {list(WAVES)}")
    return guide


def _cost(task: _Task) -> int:
    return task.frame * METHODS.index(task.method)


def _run(task: _Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    mix, truth = _mixes(task.frame, task.mixes, task.seed)
    pyro.set_rng_seed(task.seed + 1000 * task.mixes[0] + task.frame)
    start = time.process_time()
    calls = torch.zeros(len(mix), task.chains)
    joint = torch.zeros(len(mix), task.chains)
    if task.method == "mix":
        found = mix[:, None, None].expand(-1, 1, len(WAVES), -1)
    elif task.method == "guide":
        guide, start = load_guide(task.guide), time.process_time()
        with torch.no_grad():
            found = torch.cat([guide.moments(part)[0] for part in mix.split(4)]).unsqueeze(1)
    else:
        found, joint, calls, start = _searched(task, mix)
    seconds = time.process_time() - start
    scores = si_sdr(found.unsqueeze(-2), truth.unsqueeze(1).expand(found.shape).unsqueeze(-2))
    return {"si_sdr": scores.numpy(), "joint": joint.numpy(), "calls": calls.numpy(), "seconds": seconds}


def _searched(task: _Task, mix: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Sources ``(mix, chain, source, time)``, log joint density and calls ``(mix, chain)``, and when it began."""
    priors = load_priors(task.priors, frame=task.frame)
    model = mean_mix(priors)
    guide = None if task.method == "langevin" else load_guide(task.guide)
    search = AnnealedSearch(start="prior" if guide is None else guide)
    if task.method == "guide+flows":
        search = replace(search, ladder=FLOW_LADDER, moves=LangevinMoves("noisy", per_level=2), redraws=0)
    rows = mix.repeat_interleave(task.chains, 0)
    start = time.process_time()
    ended = search.run(model, rows, num_chains=len(rows))
    joint, values, shape = ended.log_joint(), ended.values(), (len(mix), task.chains)
    found = torch.stack([values[name] for name in WAVES], 1).unflatten(0, shape)
    return found, joint.reshape(shape), ended.calls.reshape(shape), start


def _mixes(frame: int, indices: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Mixes ``(mix, time)`` and their sources ``(mix, source, time)``."""
    data = ToyMixes(WAVES, frame=frame, seed=seed)
    items = [data[index] for index in indices]
    return torch.stack([item.mix for item in items]), torch.stack([item.sources for item in items])


def _chosen(parts: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    scores = np.concatenate([part["si_sdr"] for part in parts])  # (mix, chain, source)
    if scores.shape[1] == 1:
        return {"one": scores}
    best = np.concatenate([part["joint"] for part in parts]).argmax(1)
    return {"one": scores, "best": np.take_along_axis(scores, best[:, None, None], 1)}


def _rows(
    tasks: Sequence[_Task], found: Mapping[_Task, dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[tuple[int, str, str], np.ndarray]]:
    """The rows of the table of separation, and all scores behind each of them."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for task in tasks:
        groups.setdefault((task.frame, task.label), []).append(found[task])
    rows, curves = [], {}
    for (frame, label), parts in groups.items():
        for which, scores in _chosen(parts).items():
            rows.append(_row(frame, label, which, scores, parts))
            curves[frame, label, which] = scores.ravel()
    return rows, curves


def _row(frame: int, label: str, which: str, scores: np.ndarray, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mixes, _, sources = scores.shape
    seconds = sum(part["seconds"] for part in parts)
    row = {
        "frame": frame,
        "method": label,
        "chains": which,
        "mixes": mixes,
        "mean_db": scores.mean(),
        "median_db": float(np.median(scores)),
    }
    for threshold in THRESHOLDS:
        share = float((scores > threshold).mean())
        low, high = wilson_interval(share, mixes * sources)
        row |= {f"above_{threshold:g}": share, f"low_{threshold:g}": low, f"high_{threshold:g}": high}
    return row | {
        "calls": float(np.concatenate([part["calls"] for part in parts]).mean()) / sources,
        "frames_per_second": mixes / seconds if seconds else np.nan,
        "real_time_factor": seconds / (mixes * frame / SAMPLE_RATE),
    }


def _coverage(
    names: Sequence[str], methods: Sequence[str], frames: Sequence[int], mixes: int, seed: int
) -> list[dict[str, Any]]:
    rows = []
    for frame in frames if "guide" in methods else ():
        mix, truth = _mixes(frame, range(mixes), seed)
        for name in names:
            guide = load_guide(name)
            after = interval_coverage(guide, mix, truth)
            temperature = guide.temperature.tolist()
            guide.temperature.fill_(1.0)
            before = interval_coverage(guide, mix, truth)
            for wave, own in zip(WAVES, temperature, strict=True):
                row = {"frame": frame, "guide": Path(name).name, "source": wave, "temperature": own}
                row |= {f"before_{100 * level:g}": share for level, share in before[wave].items()}
                rows.append(row | {f"after_{100 * level:g}": share for level, share in after[wave].items()})
    return rows


def _draw(curves: Mapping[tuple[int, str, str], np.ndarray], path: Path, title: str) -> None:
    frames = sorted({frame for frame, *_ in curves})
    with picture(path, 1, len(frames), figsize=(7 * len(frames), 5), sharey=True) as (figure, axes):
        for axis, frame in zip(axes[0], frames, strict=True):
            for (own, label, which), scores in curves.items():
                if own == frame:
                    name = f"{label}, {which} chain" if "+" in label or label == "langevin" else label
                    axis.plot(np.sort(scores), np.linspace(1, 0, len(scores)), label=name)
            for threshold in THRESHOLDS:
                axis.axvline(threshold, color="grey", linewidth=0.7, linestyle=":")
            axis.set(xlabel="SI-SDR in dB", title=f"frames of {frame} samples", xlim=(-25, 65))
        axes[0, 0].set_ylabel("share of sources above")
        axes[0, -1].legend(fontsize=8)
        figure.suptitle(title)
        figure.tight_layout()
