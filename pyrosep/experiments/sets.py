"""Mixes of fewer and of more sources than a model has, separated by the priors of just those, put together at will."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrosep.data.catalog import open_data_sets
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.report import write_tables
from pyrosep.experiments.windows import improvements, song_windows
from pyrosep.experiments.workers import mapped
from pyrosep.separation import separate
from pyrosep.training.frames import song_frames
from pyrosep.zoo import load_priors, prior_set_info

if TYPE_CHECKING:
    import pandas

__all__ = ["METHODS", "sets"]

#: What mixes are separated by: the priors of just their sources, those of all of the model's, and its guide.
METHODS = ("one-pass", "langevin", "langevin, all priors", "guide")


@dataclass(frozen=True)
class _Task:
    data: str
    model: str
    without: str | None
    extra: tuple[str, str, str] | None
    method: str
    windows: int
    every: tuple[int, int]
    seed: int


def sets(
    out: str | os.PathLike[str],
    data: str,
    *,
    model: str = "band-small",
    extra: tuple[str, str, str] | None = None,
    methods: Sequence[str] = METHODS,
    windows: int = 24,
    every: tuple[int, int] = (0, 1),
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, pandas.DataFrame]:
    """Separate windows of songs that one source has been taken out of, or another one added to.

    Arguments:
        out: folder to write into.
        data: folder of songs with stems.
        model: whose priors know interference and filter.
        extra: a source that is added: another model of the same rate, a source of it, and recordings of that source
            (a folder as for ``--data`` of the training commands), none of which has a part in the songs.
        methods: of :data:`METHODS`.
        windows: how many, at most.
        every: see :func:`~pyrosep.experiments.windows.song_windows`.
        seed: of the chains, and of the crops that are added.
        workers: processes at once.
        progress: called with the tasks done, and all.

    Returns:
        a table ``sets``, written to ``out`` too: by what the mixes are of and by method, the improvement of SI-SDR over
        the mix in dB, by source and in the mean. With ``"guide"``, trained for all of the model's sources, there is no
        row where a source is added, for it has no name for that.

    Raises:
        ConfigurationError: an unknown method.
    """
    import pandas

    if unknown := sorted(set(methods) - set(METHODS)):
        raise ConfigurationError(f"methods must be among {', '.join(METHODS)}; got {unknown}")
    info = prior_set_info(model)
    common: dict[str, Any] = {"data": data, "model": model, "windows": windows, "every": every, "seed": seed}
    tasks = [
        _Task(without=without, extra=None, method=method, **common)
        for without in (None, *info.sources)
        for method in methods
        if without is not None or method != "langevin, all priors"
    ]
    if extra is not None:
        tasks += [
            _Task(without=None, extra=extra, method=method, **common)
            for method in methods
            if method in ("one-pass", "langevin")
        ]
    found: dict[_Task, dict[str, Any]] = {}
    progress(0, len(tasks))
    for task, row in mapped(_run, tasks, workers):
        found[task] = row
        progress(len(found), len(tasks))
    table = pandas.DataFrame([found[task] for task in tasks])
    write_tables(out, "sets", f"Sets of sources under the priors of {info.name}", {"sets": table})
    return {"sets": table}


def _run(task: _Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    info = prior_set_info(task.model)
    priors = load_priors(info.folder)
    names = [name for name in priors if name != task.without]
    truth = song_windows(
        task.data, names, frame=info.frame, sample_rate=info.sample_rate, count=task.windows, every=task.every
    )
    if task.extra is not None:
        other, source, recordings = task.extra
        priors = priors | load_priors(other, sources=[source], frame=info.frame)
        truth = torch.cat([truth, _crops(task, source, recordings, truth).unsqueeze(1)], 1)
        names.append(source)
    chosen = priors if task.method in ("langevin, all priors", "guide") else priors.only(names)
    method = task.method.split(",")[0]
    places = [list(chosen).index(name) for name in names]
    estimates = [
        separate(window.sum(0, keepdim=True), info.sample_rate, chosen, method=method, seed=task.seed)
        for window in truth
    ]
    gained = improvements(torch.stack([one.mean[places, 0] for one in estimates]), truth)
    heard = "all" if task.without is None else f"without {task.without}"
    row = {"mix": heard if task.extra is None else f"with {task.extra[1]}", "method": task.method}
    return row | dict(zip(names, gained, strict=True)) | {"mean": sum(gained) / len(gained)}


def _crops(task: _Task, source: str, recordings: str, truth: Tensor) -> Tensor:
    """A crop of recordings of a source for each window, as loud as the windows' sources are: ``(window, time)``."""
    info = prior_set_info(task.model)
    songs = open_data_sets([recordings], sources=[source])
    frames = song_frames(
        songs, source, truth.shape[-1], sample_rate=info.sample_rate, held_out=len(truth), seed=task.seed
    ).held_out
    level = truth.square().mean().sqrt() / frames.square().mean().sqrt()
    return level * frames
