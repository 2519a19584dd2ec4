"""``pyrosep evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from rich.table import Table

from pyrosep.cli.manners import complain, one_line, print_table, progress_bar, say, write_json
from pyrosep.cli.method_options import MethodOptions, Numbers
from pyrosep.cli.options import (
    DEFAULT_MODEL,
    Device,
    EvaluationOptions,
    Guide,
    Report,
    Reporting,
    Sources,
    chosen_priors,
)
from pyrosep.errors import DataError, PyrosepError

if TYPE_CHECKING:
    from pyrosep.separation import Method, Settings
    from pyrosep.zoo import PriorSet


def evaluate(
    *,
    data: str,
    model: Annotated[str | None, Parameter(alias="-n")] = None,
    methods: Annotated[list[str] | None, Parameter(name="--method")] = None,
    guide: Guide = None,
    sources: Sources = None,
    seconds: PositiveFloat = 30.0,
    songs: PositiveInt | None = None,
    frame: PositiveInt = 2048,
    subset: str = "test",
    stereo: bool = False,
    bss_eval: bool = False,
    settings: Annotated[EvaluationOptions, Parameter(name="*")] = EvaluationOptions(),
    numbers: Numbers = MethodOptions(),
    device: Device = "auto",
    report: Report = Reporting(),
) -> None:
    """Score separations of songs whose stems are known: SI-SDR and its improvement over the mix, by source.

    It prints means, medians and counts. It always scores the mix itself as the estimate of every source, beside
    the methods. It does not score a source in a mix in which the source is silent. If a song fails, it names the song,
    scores the others, and ends with exit status 1.

    Example:
        $ pyrosep evaluate --data ROOT --method exact --method langevin --seconds 30

    Arguments:
        data: ``toy``, ``musdb`` (at MUSDB_PATH), or a folder ``ROOT/SONG/STEM.wav``.
        model: Name of a model that ships, or a folder of one. By default the one for songs, or ``toy`` for toy data.
        methods: A method, as in ``separate``; may be given again. By default what suits the model.
        seconds: Seconds of each song.
        songs: At most so many songs, or toy mixes. By default all songs, and 8 mixes.
        frame: Samples in a toy mix.
        subset: Of MUSDB18: ``train`` or ``test``.
        stereo: Keep channels; else the mean over them is separated.
        bss_eval: Add BSS Eval v4 by museval, which needs ffmpeg.
    """
    from pyrosep.evaluation.scores import aggregate
    from pyrosep.evaluation.scores import evaluate as score
    from pyrosep.separation import choose_method, choose_methods
    from pyrosep.zoo import prior_set_info

    place = prior_set_info(model or ("toy" if data == "toy" else DEFAULT_MODEL)).folder
    failed: dict[str, str] = {}

    def tell(name: str, error: PyrosepError) -> None:
        failed[name] = one_line(error)
        complain("error", failed[name] if name in failed[name] else f"{name}: {failed[name]}")

    if data == "toy":
        references, count, options = _toy_mixes(sources, frame, songs, settings.seed)
        priors = chosen_priors(place, guide, device, **options)
    else:
        references, count = _songs(data, subset, sources, songs, tell, seconds=seconds, mono=not stereo)
        priors = chosen_priors(place, guide, device)  # all of its sources explain the mix, whichever are scored
    chosen = choose_methods(priors, methods or [choose_method(priors).name], **numbers.given())
    total = count + len(failed)
    with progress_bar(count, "evaluating", report.quiet) as bar:
        scores, factors = score(
            references,
            priors,
            chosen,
            settings,
            bss=bss_eval,
            on_reference=lambda reference: bar.update(),
            on_failure=tell,
        )
    rows = aggregate(scores)
    found = {"summary": rows, "real_time_factor": factors, "scores": [asdict(one) for one in scores], "failed": failed}
    write_json(report.json, _figures(data, priors, settings, chosen) | found)
    if rows and not report.quiet:
        _print_scores(rows, factors, f"{priors.name} on {data}, {total - len(failed)} mixes")
    if failed:
        if total > 1:
            complain("error", f"{len(failed)} of {total} mixes failed")
        raise SystemExit(1)
    if not rows:
        raise DataError(f"no source of {data} sounds in what was read; take more seconds of it, or other sources")


def _toy_mixes(sources: list[str] | None, frame: int, count: int | None, seed: int) -> tuple[Any, int, dict[str, Any]]:
    """Toy mixes with their sources, how many, and what priors are loaded for them."""
    from pyrosep.data.toy import WAVES
    from pyrosep.evaluation.scores import toy_references
    from pyrosep.naming import check_source_names

    check_source_names(names := tuple(sources or WAVES))
    references = toy_references(names, frame=frame, size=count or 8, seed=seed)
    return references, count or 8, {"sources": names, "frame": frame}


def _songs(
    data: str,
    subset: str,
    sources: list[str] | None,
    most: int | None,
    on_failure: Callable[[str, PyrosepError], Any],
    **options: Any,
) -> tuple[Any, int]:
    """Songs with their stems, and how many."""
    from pyrosep.data.catalog import open_songs
    from pyrosep.evaluation.scores import song_references

    opened, names = open_songs(data, subset=subset, sources=sources, on_failure=on_failure)
    count = min(len(opened), most or len(opened))
    return song_references(islice(opened, count), names, on_failure=on_failure, **options), count


def _figures(data: str, priors: PriorSet, settings: Settings, methods: dict[str, Method]) -> dict[str, Any]:
    """What was asked for, and what it came to."""
    return {
        "data": data,
        "model": priors.name,
        "guide": None if priors.guide_info is None else priors.guide_info.name,
        "settings": settings.of_track(),
        "methods": {name: method.numbers() for name, method in methods.items()},
        "gains": priors.gains if settings.gains is None else settings.gains,
    }


def _print_scores(rows: list[dict[str, Any]], factors: dict[str, float], title: str) -> None:
    table = Table(title=title)
    columns = [key for key in rows[0] if key not in ("method", "source", "count")]
    table.add_column("method")
    table.add_column("source")
    table.add_column("count", justify="right")
    for column in columns:
        label = column.replace("si_sdr_improvement", "SI-SDRi").replace("si_sdr", "SI-SDR").replace("_", " ")
        table.add_column(label, justify="right")
    for row in rows:
        cells = [f"{row[column]:.2f}" for column in columns]
        table.add_row(row["method"], row["source"], str(row["count"]), *cells)
    print_table(table)
    for method, factor in factors.items():
        say(f"{method}: {factor:.2f} s of computing a second of audio")
