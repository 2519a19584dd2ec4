"""Runs of the command line that can be killed by the hundred: forks of one process that has imported everything."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from pyrosep import GaussianPrior, audio, load_priors, save_priors
from pyrosep.__main__ import main
from pyrosep.separation import files as _what_runs_import  # noqa: F401

RATE = 8_000
#: Seconds by the clock, on a machine that may be busy, after which a run is said to hang.
LIMIT = 120.0
#: Signals that a command heeds.
_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Figures that differ between runs of the same thing.
CLOCKS = {"seconds", "wall_seconds", "real_time_factor"}


@dataclass
class Ended:
    """How a run ended: its exit status, or minus the signal that killed it; its errors; whether it hung."""

    status: int
    errors: str
    hung: bool = False

    @property
    def clean(self) -> bool:
        """Whether it neither hung nor said more than its own lines."""
        lines = self.errors.strip().splitlines()
        own = all(line.startswith("pyrosep: ") and "unexpected" not in line for line in lines)
        return not self.hung and own


class Run:
    """One run of the command line in a process of its own, which has begun when this is made."""

    def __init__(
        self, arguments: list[str], log: Path, *, file_bytes: int | None = None, modules: bool = False
    ) -> None:
        self.log, self.began = log, time.monotonic()
        # A signal that comes before the child has its own handlers waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        self.pid = os.fork()
        if self.pid == 0:
            _child(arguments, log, file_bytes, modules)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)

    def after(self, seconds: float, signum: int | None = None, act: Callable[[], object] = lambda: None) -> Ended:
        """Wait so long, send a signal or do something else, and wait for the end."""
        time.sleep(seconds)
        if signum is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)
        act()
        return self.ended()

    def ended(self) -> Ended:
        """Wait for the end; a run that does not end writes its stack and is killed."""
        began = time.monotonic()
        while time.monotonic() - began < LIMIT:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), self._errors())
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(1.0)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return Ended(-signal.SIGKILL, self._errors(), hung=True)

    def _errors(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _child(arguments: list[str], log: Path, file_bytes: int | None, modules: bool) -> None:
    status = 70
    try:
        for signum in _HEEDED:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
        errors = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        warnings.simplefilter("ignore")
        if file_bytes is not None:  # like a full disk: writing fails beyond it
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        sys.argv = ["pyrosep", *arguments]
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if modules:
            log.with_suffix(".modules").write_text("\n".join(sys.modules))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def import_what(run: Run) -> None:
    """Import what a run has imported, so that later forks need not."""
    for name in run.log.with_suffix(".modules").read_text().split():
        if not name.startswith("__"):
            with contextlib.suppress(BaseException), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)


# What is run


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        name: of it.
        arguments: of the command line, for a folder to write into.
        result: what has been finished in the folder, by name, in a form that can be compared; it raises where something
            that counts as finished is not whole.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, str]]


def inputs(folder: Path) -> Path:
    """Songs, stems and a model of two Gaussian sources, all as short as can be."""
    generator = torch.Generator().manual_seed(0)
    spectra = {"low": torch.tensor([1.0, 0.1, 0.01]), "high": torch.tensor([0.01, 0.1, 1.0])}
    save_priors(folder / "tiny", {name: GaussianPrior(value, 400, sample_rate=RATE) for name, value in spectra.items()})
    for song in ("first", "second"):
        (folder / "stems" / song).mkdir(parents=True)
        (folder / "songs").mkdir(exist_ok=True)
        stems = {name: 0.1 * torch.randn(1, 700, generator=generator) for name in spectra}
        for name, samples in stems.items():
            audio.write(folder / "stems" / song / f"{name}.wav", samples, RATE)
        audio.write(folder / "songs" / f"{song}.wav", torch.stack([*stems.values()]).mean(0), RATE)
    return folder


def cases(where: Path) -> dict[str, Case]:
    """The commands, on the inputs in a folder."""
    tiny, stems = str(where / "tiny"), ["--data", str(where / "stems")]
    steps = ["--frame", "64", "--batch", "4", "--steps", "20", "--save-every", "5", "-d", "cpu", "--quiet", "--full"]
    chains = ["--method", "langevin", "--chains", "2", "--draws", "4", "--warmup", "2", "--keep", "1", "--quiet"]
    network = [
        "--width",
        "4",
        "--layers",
        "1",
        "--levels",
        "1",
        "--passes",
        "1",
        "--harmonic",
        "0",
        "--temperature-mixes",
        "4",
    ]
    prior, songs = ["train-prior", "continuousflow", *stems, "--size", "tiny", *steps], str(where / "songs")
    return {
        case.name: case
        for case in (
            Case("separate", lambda out: ["separate", songs, "-n", tiny, "-o", str(out), *chains], _tracks),
            Case("train-prior", lambda out: [*prior, "-o", str(out)], _model),
            Case("train-guide", lambda out: ["train-guide", "-n", tiny, "-o", str(out), *network, *steps], _guide),
            Case(
                "evaluate",
                lambda out: ["evaluate", *stems, "-n", tiny, "--method", "exact", "--json", f"{out}/scores.json"],
                _scores,
            ),
        )
    }


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def _tracks(out: Path) -> dict[str, str]:
    found = {}
    for track in _visible(out / "tiny"):
        record = json.loads((track / "run.json").read_text())
        assert {path.name for path in track.iterdir()} == {*record["files"], "run.json"}, f"{track} is not whole"
        for name, size in record["files"].items():
            assert (track / name).stat().st_size == size, f"{track / name} is not whole"
            if name.endswith(".wav"):
                found[f"{track.name}/{name}"] = _digest(soundfile.read(track / name)[0])
    return found


def _model(out: Path) -> dict[str, str]:
    for checkpoint in out.glob("training/*/checkpoint.pt"):
        torch.load(checkpoint, weights_only=True)
    if not (out / "config.json").exists():
        return {}
    load_priors(out)
    return _tensors(out)


def _guide(out: Path) -> dict[str, str]:
    from pyrosep import load_guide

    if not (out / "config.json").exists():
        return {}
    load_guide(out)
    return _tensors(out)


def _tensors(out: Path) -> dict[str, str]:
    return {name: _digest(tensor.numpy()) for name, tensor in load_file(out / "model.safetensors").items()}


def _scores(out: Path) -> dict[str, str]:
    if not (out / "scores.json").exists():
        return {}
    figures = json.loads((out / "scores.json").read_text())
    return {"scores": _digest(np.array(json.dumps(_timeless(figures["scores"]))))}


def _timeless(figures: object) -> object:
    if isinstance(figures, dict):
        return {key: _timeless(value) for key, value in figures.items() if key not in CLOCKS}
    return [_timeless(value) for value in figures] if isinstance(figures, list) else figures


def _visible(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))


def leftovers(out: Path) -> list[str]:
    """Hidden files and folders in or beside an output folder that belong to no finished thing."""
    inside = [path for path in out.rglob("*") if path.name.startswith(".")] if out.is_dir() else []
    return [str(path) for path in (*inside, *out.parent.glob(f".{out.name}*"))]


def remove(out: Path) -> None:
    """Remove a folder and what is left beside it."""
    shutil.rmtree(out, ignore_errors=True)
    for path in out.parent.glob(f".{out.name}*"):
        shutil.rmtree(path, ignore_errors=True)
