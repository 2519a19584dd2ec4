"""Scores of separations on songs whose stems are known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrosep.data import Song, ToyMixes
from pyrosep.errors import ConfigurationError, DataError, PyrosepError
from pyrosep.metrics import bss_eval, si_sdr, sounding
from pyrosep.priors import SourcePrior
from pyrosep.separation import Method, Settings, separate

__all__ = ["Estimator", "Reference", "Score", "aggregate", "evaluate", "score", "song_references", "toy_references"]


class Reference(NamedTuple):
    """A mix with its true sources: ``mix`` ``(channel, time)``, ``sources`` by name, each of the same shape."""

    name: str
    mix: Tensor
    sources: dict[str, Tensor]
    sample_rate: int


#: From a mix to its sources ``(source, channel, time)``.
Estimator = Callable[[Reference], Tensor]


@dataclass(frozen=True)
class Score:
    """Of one source of one mix by one method; levels in dB."""

    name: str
    source: str
    method: str
    si_sdr: float
    si_sdr_improvement: float
    bss: dict[str, float] | None = None


def song_references(
    songs: Iterable[Song],
    sources: Sequence[str],
    *,
    seconds: float | None = None,
    mono: bool = True,
    on_failure: Callable[[str, PyrosepError], Any] | None = None,
) -> Iterator[Reference]:
    """The beginnings of songs, up to ``seconds``, one in memory at a time; a source that a song lacks is silent.

    With ``on_failure``, it is called with the name of a song that can't be read, and the error, and the others follow.

    Raises:
        ConfigurationError: ``seconds`` is not a positive number.
        DataError: a solo recording is among the songs.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise ConfigurationError(f"seconds must be a positive number; got {seconds}")
    for song in songs:
        if song.origin is not None:
            raise DataError(
                f"{song.name!r} is a recording of a single source, which is no mix to separate; give songs with stems"
            )
        frames = None if seconds is None else max(1, round(seconds * song.sample_rate))
        try:
            read = {name: song.read_source(name, 0, frames, silent_if_absent=True) for name in sources}
            mix = song.read_mix(0, frames)
        except PyrosepError as error:
            if on_failure is None:
                raise
            on_failure(song.name, error)
            continue
        if mono:
            mix, read = mix.mean(0, keepdim=True), {name: one.mean(0, keepdim=True) for name, one in read.items()}
        yield Reference(song.name, mix, read, song.sample_rate)


def toy_references(waves: Sequence[str], *, frame: int, size: int, seed: int = 0) -> Iterator[Reference]:
    """Toy mixes by seed, the sources as they are in the mix (a mean: each divided by their number)."""
    from pyrosep.data.toy import SAMPLE_RATE

    data = ToyMixes(tuple(waves), frame=frame, size=size, seed=seed)
    for index in range(size):
        mix, sources = data[index]
        parts = {wave: (source / len(waves)).unsqueeze(0) for wave, source in zip(waves, sources, strict=True)}
        yield Reference(f"toy {seed}/{index}", mix.unsqueeze(0), parts, SAMPLE_RATE)


def evaluate(
    references: Iterable[Reference],
    priors: Mapping[str, SourcePrior],
    methods: Sequence[str] | Mapping[str, Method | str] = ("langevin",),
    settings: Settings | None = None,
    *,
    bss: bool = False,
    on_reference: Callable[[Reference], Any] = lambda reference: None,
    on_failure: Callable[[str, PyrosepError], Any] | None = None,
) -> tuple[list[Score], dict[str, float]]:
    """Separate mixes and score every source that is not silent; mixes in which none sounds are passed over.

    Arguments:
        references: mixes, with the true sources to score; each must have a prior.
        priors: a prior set, or priors by source: those of everything that a mix may hold, scored or not.
        methods: names of methods, with the numbers that suit the priors (:data:`~pyrosep.separation.METHODS`), or
            methods by names of your own. The mix itself as the estimate of every source, method ``"mix"``, is always
            scored too.
        settings: of the separation; their ``method`` is passed over.
        bss: add BSS Eval v4 (SDR, SIR, SAR, ISR: medians over seconds), by museval.
        on_reference: called after each.
        on_failure: called with the name of a mix that can't be read or separated, and the error; the others are scored
            all the same. Without it the error is raised.

    Returns:
        the scores, and the real-time factor of each method: seconds of computing a second of audio.
    """
    named = methods if isinstance(methods, Mapping) else {name: name for name in methods}

    def by(method: Method | str) -> Estimator:
        def estimate(reference: Reference) -> Tensor:
            if missing := [name for name in reference.sources if name not in priors]:
                raise ConfigurationError(f"the model has no prior for {missing}; it has {list(priors)}")
            result = separate(reference.mix, reference.sample_rate, priors, settings, method=method)
            return result.mean[[result.names.index(name) for name in reference.sources]]

        return estimate

    return score(
        references,
        {name: by(method) for name, method in named.items()},
        bss=bss,
        on_reference=on_reference,
        on_failure=on_failure,
    )


def score(
    references: Iterable[Reference],
    estimators: Mapping[str, Estimator],
    *,
    bss: bool = False,
    on_reference: Callable[[Reference], Any] = lambda reference: None,
    on_failure: Callable[[str, PyrosepError], Any] | None = None,
) -> tuple[list[Score], dict[str, float]]:
    """Score whatever estimates the sources, by name: as :func:`evaluate` does, with the mix itself beside it.

    Arguments:
        references: mixes, with the true sources.
        estimators: functions from a mix to ``(source, channel, time)``, in the order of its true sources.
        bss, on_reference, on_failure: see :func:`evaluate`.

    Returns:
        the scores, and the real-time factor of each.
    """
    scores: list[Score] = []
    spent, seconds = dict.fromkeys(estimators, 0.0), 0.0
    for reference in references:
        truth = torch.stack(list(reference.sources.values()))
        if not sounding(truth).any():
            on_reference(reference)
            continue
        try:
            estimates, taken = _estimates(reference, truth, estimators)
            found = list(_scores(reference, truth, estimates, bss))
        except PyrosepError as error:
            if on_failure is None or isinstance(error, ConfigurationError):  # of the settings, for every mix alike
                raise
            on_failure(reference.name, error)
        else:
            spent = {name: spent[name] + own for name, own in taken.items()}
            seconds += reference.mix.shape[-1] / reference.sample_rate
            scores += found
        on_reference(reference)
    return scores, {name: total / seconds for name, total in spent.items()} if seconds else {}


def _estimates(
    reference: Reference, truth: Tensor, estimators: Mapping[str, Estimator]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """By method, the estimates and the seconds that they took."""
    estimates, taken = {"mix": reference.mix.expand_as(truth)}, {}
    for name, estimator in estimators.items():
        start = time.perf_counter()
        estimates[name] = estimator(reference)
        taken[name] = time.perf_counter() - start
    return estimates, taken


def _scores(reference: Reference, truth: Tensor, estimates: dict[str, Tensor], bss: bool) -> Iterator[Score]:
    heard = sounding(truth)
    baseline = si_sdr(estimates["mix"], truth)
    for method, estimate in estimates.items():
        values = si_sdr(estimate, truth)
        extra = bss_eval(truth[heard], estimate[heard], reference.sample_rate) if bss else None
        row = 0
        for index, source in enumerate(reference.sources):
            if not heard[index]:
                continue
            own = None if extra is None else {name: values[row] for name, values in extra.items()}
            row += 1
            gain = (values[index] - baseline[index]).item()
            yield Score(reference.name, source, method, values[index].item(), gain, own)


def aggregate(scores: Iterable[Score]) -> list[dict[str, Any]]:
    """Mean, median and count by method and source, and by method over all sources (``source`` is ``"mean"``).

    The mean over sources weighs every source alike, whatever its number of songs.
    """
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.method, score.source), []).append(score)
    rows = []
    for (method, source), group in groups.items():
        row: dict[str, Any] = {"method": method, "source": source, "count": len(group)}
        for field in ("si_sdr", "si_sdr_improvement"):
            values = [getattr(score, field) for score in group]
            row[f"{field}_mean"], row[f"{field}_median"] = float(np.mean(values)), float(np.median(values))
        for measure in group[0].bss or {}:
            values = [score.bss[measure] for score in group if score.bss and not math.isnan(score.bss[measure])]
            row[f"{measure}_median"] = float(np.median(values)) if values else math.nan
        rows.append(row)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows.sort(key=lambda row: methods.index(row["method"]))
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        figures = [key for key in own[0] if key not in ("method", "source", "count")]
        total: dict[str, Any] = {"method": method, "source": "mean", "count": sum(row["count"] for row in own)}
        rows.append(total | {key: float(np.mean([row[key] for row in own])) for key in figures})
    return rows
