"""Calibrating the draws of a model: mixes simulated of recordings of no song together, and one temperature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrosep.diagnostics import coverage_by_source, fit_draw_temperature
from pyrosep.errors import ConfigurationError
from pyrosep.metrics import sounding
from pyrosep.priors import SourcePrior
from pyrosep.separation import Settings, choose_methods, separate
from pyrosep.zoo import PriorSet

__all__ = ["calibrate"]

#: Methods of :func:`~pyrosep.separate` whose draws are those of a descent.
_METHODS = ("langevin", "guide+langevin", "one-pass")


def calibrate(
    priors: Mapping[str, SourcePrior],
    sources: Tensor,
    sample_rate: int,
    *,
    methods: Sequence[str] = ("langevin",),
    numbers: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    level: float = 0.9,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    r"""Fit the temperature of a model's draws to mixes whose sources are known.

    The draws of a search are too near to each other where the denoisers are surer than they should be, and where all
    chains make the same mistake. One number for each method mends what is the same everywhere: the draws
    :math:`\bar s + \tau (s - \bar s)`, whose mean and whose sum are what they were, with :math:`\tau` such that their
    intervals hold what they say (:func:`~pyrosep.diagnostics.fit_draw_temperature`). Half of the mixes are
    fitted to, the other half is reported on.

    Arguments:
        priors: a prior set, or priors by source.
        sources: frames of each, of no song together, and of recordings that neither priors nor guide were trained on:
            ``(mix, source, time)`` in the order of the priors. Each mix is their sum.
        sample_rate: Hz.
        methods: ``"langevin"``, ``"guide+langevin"`` or ``"one-pass"``, see :class:`~pyrosep.Settings`.
        numbers: of those methods that have them, by name (:func:`~pyrosep.separation.choose_methods`).
        settings: of the tracks; their ``method`` is passed over.
        level: of the intervals.
        progress: called with the mixes separated, and all.

    Returns:
        by method: ``temperature``, and by source the share of true samples in the intervals ``before`` and ``after``.

    Raises:
        ConfigurationError: fewer than two mixes in which all sources are heard, or a method that has no chains.
    """
    if unknown := [method for method in methods if method not in _METHODS]:
        raise ConfigurationError(f"draws are calibrated of {', '.join(_METHODS)}; got {unknown}")
    heard = sounding(sources.unsqueeze(2))
    usual = torch.arange(len(sources)) % 2 == 0
    if not all(bool(heard[half].any(0).all()) for half in (usual, ~usual)):
        raise ConfigurationError(
            "each source must be heard in at least one of every other mix; got "
            f"{dict(zip(priors, heard.sum(0).tolist(), strict=True))} of {len(sources)} mixes; take more"
        )
    found = {}
    chosen = choose_methods(PriorSet.of(priors), methods, **dict(numbers or {}), temperature=1.0)
    for number, (name, method) in enumerate(chosen.items()):
        own = replace(settings or Settings(), method=method, keep=method.count or 0)
        parts = []
        for place, frames in enumerate(sources):
            result = separate(
                frames.sum(0, keepdim=True),
                sample_rate,
                priors,
                replace(own, seed=own.seed + place),
            )
            parts.append(result.draws[:, :, 0])
            progress(number * len(sources) + place + 1, len(methods) * len(sources))
        drawn = torch.stack(parts, 1)  # (draw, mix, source, time)
        temperature = fit_draw_temperature(drawn[:, usual], sources[usual], heard[usual], level)
        mean = drawn.mean(0)
        spread = {"before": drawn, "after": mean + temperature * (drawn - mean)}
        found[name] = {"temperature": temperature} | {
            when: dict(
                zip(priors, coverage_by_source(value[:, ~usual], sources[~usual], heard[~usual], level), strict=True)
            )
            for when, value in spread.items()
        }
    return found
