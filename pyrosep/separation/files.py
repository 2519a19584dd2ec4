"""Separating files: tracks in, folders of stems out, each written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrosep import audio
from pyrosep.diagnostics.arviz_versions import PosteriorData, from_groups
from pyrosep.diagnostics.inference_data import write_netcdf
from pyrosep.diagnostics.summaries import summarize, verdict
from pyrosep.errors import ConfigurationError, DataError, MissingFileError, PyrosepError
from pyrosep.naming import check_source_names, track_folders
from pyrosep.results import (
    check_replaceable,
    damaged_files,
    put_in_place,
    read_record,
    sweep,
    unfinished,
    write_record,
)
from pyrosep.separation.methods import choose_method
from pyrosep.separation.separator import Framing, Hearing, Separator, Stream
from pyrosep.separation.settings import Settings
from pyrosep.signal.summaries import BAND_EDGES
from pyrosep.version import __version__
from pyrosep.zoo import PriorSet

__all__ = ["AUDIO_SUFFIXES", "find_tracks", "separate_track"]

AUDIO_SUFFIXES = audio.SUFFIXES


def find_tracks(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    failed: Callable[[str | os.PathLike[str], Exception], Any] | None = None,
) -> dict[str, Path]:
    """Audio files by the name that their folder of stems gets.

    Arguments:
        inputs: files as they are, and folders with all audio files in them and below, linked folders too, but for
            hidden ones and for the stems of tracks that were separated into them. :func:`~pyrosep.naming.track_folders`
            says how they are named. A warning names files in folders that seem to hold sound, but are of no kind that
            is read (``pyrosep.audio.SUFFIXES``).
        failed: called with an input that has no tracks and the error that says so; the others are gone through. By
            default the error is raised.

    Raises:
        MissingFileError: an input that is not there, or an empty path.
        DataError: a folder without any audio file.
    """
    files: list[Path] = []
    for given in inputs:
        try:
            files += _files_of(given)
        except (PyrosepError, OSError) as error:
            if failed is None:
                raise
            failed(given, error)
    # A link to a file is a track of its own, by its own name: what it points to may be named by a digest.
    return track_folders(dict.fromkeys(path.parent.resolve() / path.name for path in files))


def _files_of(given: str | os.PathLike[str]) -> list[Path]:
    """The audio files of one input, see :func:`find_tracks`."""
    if not os.fspath(given):
        raise MissingFileError("no file or folder ''; give the path of one, or . for the current folder")
    path = Path(given)
    if not path.is_dir():
        if not path.exists():
            raise MissingFileError(f"no file or folder {path}; check the path")
        return [path]
    found, passed = _tracks_in(path)
    if not found:
        raise DataError(f"{path} holds no audio file ({', '.join(AUDIO_SUFFIXES)})")
    if passed:
        warnings.warn(
            f"not read in {path}: {', '.join(str(file.relative_to(path)) for file in passed)}; convert them to one of "
            f"{', '.join(AUDIO_SUFFIXES)}",
            stacklevel=3,
        )
    return found


def _tracks_in(root: Path) -> tuple[list[Path], list[Path]]:
    """Audio files in a folder and below, sorted, and those that seem to hold sound, but are of no kind that is read."""
    found: list[Path] = []
    passed: list[Path] = []
    entered: set[str] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in entered or read_record(Path(place)) is not None:
            folders.clear()  # a link that leads back, or stems
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                found += [path] if path.is_file() else []
            elif audio.seems_audio(path):
                passed.append(path)
    return sorted(found), sorted(passed)


def separate_track(
    path: Path,
    folder: Path,
    priors: PriorSet,
    settings: Settings,
    *,
    write: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, Any]:
    """Separate one file into ``folder``, window by window; memory does not grow with its length.

    Writes ``{source}.wav``, ``{source}.std.wav`` and as many ``{source}.drawN.wav`` as the settings ask for (float32,
    at the file's rate and with its channels), ``run.json``, and for chains ``posterior.nc`` with the summaries of every
    draw. The folder appears when all of it is written. A file is known by its content, wherever it and the folder have
    been moved. A former run's folder is replaced if ``overwrite`` is true, or if files that it recorded are missing or
    have another size. Files that it did not write, or that were changed since, are kept in the new folder. What killed
    runs left beside the folder is cleaned up first.

    Arguments:
        path: of the file.
        folder: of this track.
        priors: a prior set; ``run.json`` records what it is on disk, and its guide where that is used.
        settings: see :class:`~pyrosep.Settings`.
        write: the sources to write; all by default. The others explain the mix all the same.
        overwrite: do it again although it is there. Only a folder that an earlier run wrote is ever replaced.
        progress: called with the samples done, and all.

    Returns:
        what ``run.json`` holds; with ``"skipped": True`` where the track was finished before with the same settings.

    Raises:
        AudioError, MissingFileError: the file can't be read.
        ConfigurationError: sources whose names no files can have, or one that is to be written twice; a folder that
            holds something that no run wrote; or a track of another content or with other settings, and
            ``overwrite`` is false.
    """
    written = list(priors) if write is None else list(write)
    check_source_names(priors)
    check_source_names(written)
    if unknown := [name for name in written if name not in priors]:
        raise ConfigurationError(f"{priors.name!r} has the sources {list(priors)}; asked for {unknown}")
    method = choose_method(priors, settings.method)
    identity = {
        "model": priors.name,
        "model_digest": priors.digest,
        "sources": written,
        "input": str(path),
        "input_digest": audio.digest(path),
        "settings": settings.of_track(),
        "method": method.numbers(),
    }
    if priors.guide_info is not None and "guide" in method.name:
        identity |= {"guide": priors.guide_info.name, "guide_digest": priors.guide_info.digest()}
    sweep(folder.parent)
    if (finished := _finished(folder, identity, overwrite)) is not None:
        return finished
    started = time.perf_counter()
    about = audio.info(path)
    separator = Separator(priors, about.sample_rate, settings)
    hearing = separator.listen(audio.blocks(path, separator.window))
    with unfinished(folder) as new:
        stream = separator.stream(audio.blocks(path, separator.window, hop=separator.hop), hearing)
        files = _write_stems(new, stream, separator, written, about, hearing, progress)
        report = identity | _report(separator, stream.framing, about, hearing, time.perf_counter() - started)
        if summaries := stream.summaries():
            idata = _inference_data(separator, stream.framing, summaries)
            report["diagnostics"] = _diagnose(idata)
            files += [write_netcdf(idata, new / "posterior.nc").name]
        report = write_record(new, report, files)
        # Another run may have finished the same track meanwhile.
        if (finished := _finished(folder, identity, overwrite)) is not None:
            return finished
        put_in_place(new, folder)
    return report


def _finished(folder: Path, identity: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """What the record of a finished track of the same settings says; ``None`` where the track is to be separated."""
    check_replaceable(folder)
    if overwrite or (record := read_record(folder)) is None:
        return None
    expected = json.loads(json.dumps(identity))
    # A file is known by what it holds, wherever it lies. Records without a digest are of runs that knew it by its path.
    del expected["input" if "input_digest" in record else "input_digest"]
    # Earlier versions recorded the numbers of the method twice: among the settings too.
    if isinstance(settings := record.get("settings"), dict):
        record = record | {"settings": {key: settings.get(key) for key in expected["settings"]}}
    if differs := [key for key, value in expected.items() if record.get(key) != value]:
        differs = ["input" if key == "input_digest" else key for key in differs]
        raise ConfigurationError(
            f"{folder} holds a track that was separated with another {', '.join(differs)}; overwrite it, or take "
            "another output folder"
        )
    return None if damaged_files(folder, record) else record | {"skipped": True}


def _write_stems(
    folder: Path,
    stream: Stream,
    separator: Separator,
    written: Sequence[str],
    about: audio.AudioInfo,
    hearing: Hearing,
    progress: Callable[[int, int], Any],
) -> list[str]:
    """Write means, deviations and draws as they come, and return the names of the files."""
    with contextlib.ExitStack() as stack:
        writers = [
            [
                stack.enter_context(audio.Writer(folder / f"{name}{kind}.wav", about.sample_rate, about.channels))
                for name in written
            ]
            for kind in ("", ".std", *(f".draw{number}" for number in range(separator.settings.keep)))
        ]
        rows = [separator.names.index(name) for name in written]
        done = 0
        for block in stream:
            for row, values in zip(writers, block, strict=True):
                for writer, samples in zip(row, values[rows], strict=True):
                    writer.write(samples)
            done += block.shape[-1]
            progress(done, hearing.samples)
    return [writer.path.name for row in writers for writer in row]


def _report(
    separator: Separator, framing: Framing, about: audio.AudioInfo, hearing: Hearing, seconds: float
) -> dict[str, Any]:
    duration = hearing.samples / about.sample_rate
    return {
        "pyrosep": __version__,
        "torch": torch.__version__,
        "device": str(separator.priors.device),
        "sample_rate": about.sample_rate,
        "channels": about.channels,
        "seconds": round(duration, 3),
        "window_seconds": framing.window / separator.sample_rate,
        "gains": dict(zip(separator.names, [round(gain, 6) for gain in hearing.gains.tolist()], strict=True)),
        "noise": hearing.noise,
        "wall_seconds": round(seconds, 2),
        "real_time_factor": round(seconds / duration, 2),
    }


def _inference_data(separator: Separator, framing: Framing, summaries: dict[str, np.ndarray]) -> PosteriorData:
    posterior = {name: summaries[name].astype(np.float32) for name in ("energy_db", "band_db", "projection")}
    known = ("lp", "acceptance_rate", "step_size", "residual")  # where chains were sampled, and not searched for alone
    stats = {name: summaries[name] for name in known if name in summaries}
    bands = [f"{edge:.0f} Hz+" for edge in BAND_EDGES[: posterior["band_db"].shape[-1]]]
    lead = ["window", "channel"]
    return from_groups(
        {"posterior": posterior, "sample_stats": stats},
        coords={"source": list(separator.names), "band": bands},
        dims={
            "energy_db": [*lead, "source"],
            "band_db": [*lead, "source", "band"],
            "projection": [*lead, "source", "direction"],
            **dict.fromkeys(stats, lead),
        },
        attrs={"inference_library": "pyrosep", "window_seconds": framing.hop / separator.sample_rate},
    )


def _diagnose(idata: PosteriorData) -> dict[str, Any]:
    """The largest R-hat and the smallest ESS; neither if there are too few draws or chains."""
    table = summarize(idata)
    if not np.isfinite(table["r_hat"]).any():
        return {"verdict": verdict(table)}
    return {
        "max_r_hat": round(float(table["r_hat"].max()), 4),
        "min_ess_bulk": round(float(table["ess_bulk"].min()), 1),
        "min_ess_tail": round(float(table["ess_tail"].min()), 1),
        "summaries": len(table),
        "verdict": verdict(table),
    }
