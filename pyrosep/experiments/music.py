"""Songs separated by everything there is: baselines, the ceiling of masks, guides, chains; scores, speed and trust."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrosep.data.catalog import open_songs
from pyrosep.diagnostics import draw_intervals
from pyrosep.errors import ConfigurationError
from pyrosep.evaluation.baselines import Nmf, ideal_ratio_mask
from pyrosep.evaluation.scores import Estimator, Reference, Score, aggregate, score, song_references
from pyrosep.experiments.report import picture, write_tables
from pyrosep.experiments.workers import mapped
from pyrosep.infer.search.descent import descends_from_mix
from pyrosep.metrics import sounding
from pyrosep.separation import METHODS, Method, Settings, choose_method, choose_methods, separate
from pyrosep.training.frames import song_frames
from pyrosep.zoo import guide_info, load_priors, prior_set_info

if TYPE_CHECKING:
    import pandas

__all__ = ["ARMS", "music"]

#: What songs are separated by: Gaussian priors' Wiener filter, supervised NMF, the ideal ratio mask, a model's chains
#: without its guide, one pass of its priors, its guide alone, and chains from the guide.
ARMS = ("wiener", "nmf", "irm", "langevin", "one-pass", "guide", "guide+langevin")
#: Seconds over which errors and deviations are compared.
_WINDOW = 0.05
#: Half the width of a 90 % interval of a Normal, in deviations.
_NINETY = 1.6449


@dataclass(frozen=True)
class _Task:
    arm: str
    data: str
    train: str
    model: str
    gaussian: str
    guide: str | None
    seconds: float
    songs: int | None
    components: int
    frames: int
    settings: Settings
    method: Method | str | None


def music(
    out: str | os.PathLike[str],
    data: str,
    train: str,
    *,
    model: str = "band-small",
    gaussian: str = "band-gaussian",
    guide: str | None = None,
    arms: Sequence[str] | None = None,
    seconds: float = 30.0,
    songs: int | None = None,
    components: int = 64,
    frames: int = 100,
    settings: Settings | None = None,
    numbers: Mapping[str, Any] | None = None,
    workers: int = 2,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, pandas.DataFrame]:
    """Separate the beginnings of songs by each arm, in a process of its own, and score them by the same code.

    Silent stems are not scored, for there SI-SDR is not defined (:data:`~pyrosep.metrics.SILENCE_DB`); where a song
    lacks a source, it counts for the others all the same.

    Arguments:
        out: folder to write into.
        data: folder of songs with stems, to separate.
        train: folder of songs, of whose stems, each source by itself, the dictionaries of NMF are learned.
        model: of the chains and the guide; its sources are what is looked for.
        gaussian: model of the Wiener filter, with the same sources.
        guide: name or folder; the model's own by default.
        arms: of :data:`ARMS`; all that the priors can serve by default.
        seconds: of each song.
        songs: at most so many.
        components: of NMF, for each source.
        frames: of two seconds, of each source, to learn its dictionary from.
        settings: of the songs; their ``method`` is passed over.
        numbers: of those arms that have them, by name (:func:`~pyrosep.separation.choose_methods`).
        workers: processes at once.
        progress: called with the arms done, and all.

    Returns:
        tables, written to ``out`` too: ``separation`` (by arm and source, in dB), ``cost`` (seconds of computing a
        second of audio, and peak memory of the process in GiB), ``trust`` (by arm and source: rank correlation of the
        deviations with the true errors, in windows of 50 ms, nothing where these are all the same, and the share of
        samples in 90 % intervals; for chains from a guide with a draw from each also by the spread of those alone).

    Raises:
        ConfigurationError: an unknown arm, or models of other sources.
    """
    info = prior_set_info(model)
    loaded = load_priors(info.folder)
    if arms is None:
        told = descends_from_mix(list(loaded.values()))
        arms = [arm for arm in ARMS if told or arm != "one-pass"]
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ConfigurationError(f"arms must be among {', '.join(ARMS)}; got {unknown}")
    if "wiener" in arms and set(prior_set_info(gaussian).sources) != set(info.sources):
        raise ConfigurationError(
            f"the models must be of the same sources; {model} has {list(info.sources)}, {gaussian} "
            f"{list(prior_set_info(gaussian).sources)}"
        )
    own = guide_info(guide) if guide is not None else loaded.guide_info
    if own is None and any("guide" in arm for arm in arms):
        raise ConfigurationError(f"model {model!r} has no guide of its own; give one, or other arms than guides")
    place = None if own is None else str(own.folder)
    methods: dict[str, Method | str] = {"wiener": "exact"}
    methods |= choose_methods(loaded.with_guide(own), [arm for arm in arms if arm in METHODS], **dict(numbers or {}))
    common = (data, train, model, gaussian, place, seconds, songs, components, frames, settings or Settings())
    tasks = [_Task(arm, *common, methods.get(arm)) for arm in arms]
    results: dict[str, dict[str, Any]] = {}
    progress(0, len(tasks))
    for task, result in mapped(_run, tasks, workers, fresh=True):
        results[task.arm] = result
        progress(len(results), len(tasks))
    tables = _tables([results[arm] for arm in arms])
    write_tables(out, "music", "Songs separated", tables)
    _draw([one for arm in arms for one in results[arm]["scores"]], info.sources, Path(out) / "music.png")
    return tables


def _run(task: _Task) -> dict[str, Any]:
    import resource

    torch.set_num_threads(1)
    names = prior_set_info(task.model).sources
    opened, _ = open_songs(task.data, subset="test", sources=list(names))
    references = song_references(islice(opened, task.songs), names, seconds=task.seconds)
    trust: list[dict[str, Any]] = []
    estimator = _estimator(task, names, trust)
    scores, factors = score(references, {task.arm: estimator})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"arm": task.arm, "scores": scores, "factor": factors[task.arm], "peak": peak, "trust": trust}


def _estimator(task: _Task, names: Sequence[str], trust: list[dict[str, Any]]) -> Estimator:
    if task.arm == "irm":
        return lambda reference: ideal_ratio_mask(torch.stack(list(reference.sources.values())), reference.mix)
    if task.arm == "nmf":
        opened, _ = open_songs(task.train, subset="train", sources=list(names))
        torch.manual_seed(task.settings.seed)
        rate = opened[0].sample_rate
        drawn = {name: song_frames(opened, name, 2 * rate, held_out=1).draw(task.frames) for name in names}
        nmf = Nmf.learn(drawn, components=task.components, seed=task.settings.seed)
        return lambda reference: nmf(reference.mix)
    priors = load_priors(task.gaussian if task.arm == "wiener" else task.model, sources=names)
    if "guide" in task.arm and task.guide:
        priors = priors.with_guide(task.guide)
    method = choose_method(priors, task.method)
    settings = replace(task.settings, method=method)
    if method.count is not None and method.count == method.states:  # a draw of each chain
        settings = replace(settings, keep=method.count)

    def estimate(reference: Reference) -> Tensor:
        found = separate(reference.mix, reference.sample_rate, priors, settings)
        trust.extend({"arm": task.arm, **row} for row in _trust(found.mean, found.stddev, reference))
        if settings.keep > 1:
            middle, half = draw_intervals(found.draws, 0.9)
            rows = _trust(middle, half / _NINETY, reference)
            trust.extend({"arm": f"{task.arm}, spread of draws", **row} for row in rows)
        return found.mean

    return estimate


def _trust(mean: Tensor, stddev: Tensor, reference: Reference) -> list[dict[str, Any]]:
    """Of each source that sounds: how its deviations rank its errors, and how many samples its intervals hold."""
    from scipy.stats import spearmanr

    truth = torch.stack(list(reference.sources.values()))
    size = max(1, round(_WINDOW * reference.sample_rate))
    rows, heard = [], sounding(truth)
    for k, name in enumerate(reference.sources):
        if not heard[k]:
            continue
        error, deviation = (mean[k] - truth[k]).flatten(), stddev[k].flatten()
        windows = [
            part[: len(part) // size * size].unflatten(0, (-1, size)).square().mean(-1) for part in (error, deviation)
        ]
        varied = all(float(part.min()) < float(part.max()) for part in windows)
        rows.append(
            {
                "source": name,
                "spearman": float(spearmanr(*windows).statistic) if varied else math.nan,
                "coverage": float((error.abs() <= _NINETY * deviation).double().mean()),
            }
        )
    return rows


def _tables(results: Sequence[dict[str, Any]]) -> dict[str, pandas.DataFrame]:
    import pandas

    mixes = [one for one in results[0]["scores"] if one.method == "mix"]
    every = mixes + [one for result in results for one in result["scores"] if one.method != "mix"]
    columns = ["method", "source", "count", "si_sdr_mean", "si_sdr_improvement_mean", "si_sdr_improvement_median"]
    rows = [{key: row[key] for key in columns} for row in aggregate(every)]
    trust = [row for result in results for row in result["trust"]]
    spread = pandas.DataFrame(trust, columns=["arm", "source", "spearman", "coverage"])
    trusted = spread.groupby(["arm", "source"], sort=False, as_index=False).mean()
    return {
        "separation": pandas.DataFrame(rows),
        "cost": pandas.DataFrame(
            [{"arm": one["arm"], "real_time_factor": one["factor"], "peak_gib": one["peak"] / 2**30} for one in results]
        ),
        "trust": trusted.sort_values("arm", key=lambda arms: pandas.factorize(arms)[0], kind="stable"),
    }


def _draw(scores: Sequence[Score], sources: Sequence[str], path: Path) -> None:
    """SI-SDR improvement of every song, by source and arm."""
    arms = list(dict.fromkeys(one.method for one in scores if one.method != "mix"))
    with picture(path, 1, len(sources), figsize=(3 * len(sources), 3.2), sharey=True, layout="constrained") as (
        _,
        axes,
    ):
        for axis, source in zip(axes[0], sources, strict=True):
            for place, arm in enumerate(arms):
                own = [one.si_sdr_improvement for one in scores if (one.method, one.source) == (arm, source)]
                axis.plot(np.full(len(own), place), own, "o", color=f"C{place}", alpha=0.4, markersize=4)
                if own:  # a source may be silent in all songs
                    axis.plot([place - 0.3, place + 0.3], [np.mean(own)] * 2, color=f"C{place}")
            axis.set_title(source)
            axis.set_xticks(range(len(arms)), arms, rotation=60)
            axis.grid(axis="y", alpha=0.3)
        axes[0, 0].set_ylabel("SI-SDR improvement, dB")
