"""``pyrosep demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cyclopts.types import PositiveInt
from rich.table import Table

from pyrosep.cli.manners import print_table, say, track_progress, write_json
from pyrosep.cli.options import Device, Out, Report, Reporting, Seed, chosen_device


def demo(
    *,
    out: Out = Path("pyrosep-demo"),
    chains: PositiveInt | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    report: Report = Reporting(),
) -> None:
    """Separate toy waves, a mix that was clipped, and a real song, and score the estimates against the truth.

    The command prints SI-SDR in dB. It writes sounds, and pictures with spectrograms of mix, truth and estimate, and
    the spread of the draws. It separates four toy waves from their mean, by chains under their exact priors; three
    waves from a mix that was clipped, by chains under a mixing model that clips, and under a plain sum; and a real song
    that comes with a dependency, "The Easton Ellises - Falcon 69", by chains from the guide of ``music-small``, which
    has never heard it. The song is also scored for the mix as estimate, the Wiener filter of ``song-gaussian``, and the
    guide alone.

    Example:
        $ pyrosep demo -o pyrosep-demo

    Arguments:
        chains: Chains for each window. By default 8, or 4 for the clipped mix.
    """
    from pyrosep.demo import MODEL, demo_song, run_clipped_demo, run_song_demo, run_toy_demo

    start = time.perf_counter()
    on = chosen_device(device)
    demo_song()  # is it there?
    result: dict[str, Any] = {}
    bar, update = track_progress("toy waves", report.quiet)
    with bar:
        result["toy"] = run_toy_demo(out, chains=chains or 8, seed=seed, device=on, progress=update)
    bar, update = track_progress("a clipped mix", report.quiet)
    with bar:
        result["clipped"] = run_clipped_demo(out, chains=chains or 4, seed=seed, device=on, progress=update)
    bar, update = track_progress("a song", report.quiet)
    with bar:
        result["song"] = run_song_demo(out, chains=chains, seed=seed, device=on, progress=update)
    result["total_seconds"] = round(time.perf_counter() - start, 1)
    write_json(report.json, result)
    if report.quiet:
        return
    toy, clipped, song = result["toy"], result["clipped"], result["song"]
    print_table(_scores(toy["scores"], "Four toy waves from their mean, SI-SDR in dB"))
    say(f"Sound: {toy['folder']}\nPicture: {toy['picture']}\n")
    print_table(_scores(clipped["scores"], "Three waves from a mix that was clipped, SI-SDR in dB"))
    say(f"Sound: {clipped['folder']}\nPicture: {clipped['picture']}\n")
    print_table(_scores(song["scores"], f"The Easton Ellises - Falcon 69, model {MODEL}, SI-SDR in dB"))
    run = song["run"]
    say(
        f"{run['seconds']:.1f} s of stereo in {run['wall_seconds']:.0f} s: {song['chains']} chains for each of the "
        f"windows. The stems sum to the mix within {song['sum_residual_db']:.0f} dB.\n"
        f"Stems and posterior: {song['folder']}\nPicture: {song['picture']}"
    )


def _scores(scores: dict[str, dict[str, float]], title: str) -> Table:
    """Decibels by estimate and source, and their means."""
    table = Table(title=title)
    table.add_column("estimate")
    for name in [*next(iter(scores.values())), "mean"]:
        table.add_column(name, justify="right")
    for method, values in scores.items():
        cells = [*values.values(), sum(values.values()) / len(values)]
        table.add_row(method, *(f"{value:.2f}" for value in cells))
    return table
