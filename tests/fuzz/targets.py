"""What is fuzzed: files as a stranger may have made them, and command lines, each with the code that takes them.

A target makes inputs from seeds of its own, and calls the package with one. An input may be refused by an error of the
package or of the system, as the command line then tells in one line; it must not do anything else.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import h5py
import numpy as np
import soundfile
import torch

from pyrosep import (
    ContinuousFlow,
    EncoderGuide,
    GaussianPrior,
    audio,
    load_guide,
    load_priors,
    save_guide,
    save_priors,
    separate,
)
from pyrosep.diagnostics import compare_chains, read_netcdf, summarize, verdict
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser
from pyrosep.nn.refining import UNetSize
from tests.command_line import run
from tests.fuzz.mutation import VALUES, mutated_bytes, mutated_json

RATE = 8_000


class Foreign(Exception):
    """The command line told of an error that is none of its own."""


@dataclass(frozen=True)
class Target:
    """Something that takes inputs.

    Attributes:
        make: an input, as text or bytes and the name that its file is to have.
        call: the package with an input in an empty folder; it may raise errors of the package and of the system.
    """

    make: Callable[[random.Random], tuple[str, bytes]]
    call: Callable[[str, bytes, Path], object]


def targets(seeds: Path) -> dict[str, Target]:
    """All targets by name, with their seeds in a folder."""
    return {
        "audio": _audio(seeds),
        "models": _models(seeds),
        "records": _records(seeds),
        "posteriors": _posteriors(seeds),
        "commands": _commands(seeds),
    }


def _of_files(files: list[Path], call: Callable[[str, bytes, Path], object]) -> Target:
    contents = [file.read_bytes() for file in files]

    def make(rng: random.Random) -> tuple[str, bytes]:
        index = rng.randrange(len(files))
        return files[index].name, mutated_bytes(contents[index], contents, rng)

    return Target(make, call)


# Audio


def _audio(seeds: Path) -> Target:
    folder = seeds / "audio"
    folder.mkdir()
    samples = (0.1 * np.random.default_rng(0).standard_normal((1500, 2))).astype(np.float32)
    for name, format, subtype in [
        ("float.wav", "WAV", "FLOAT"),
        ("pcm.wav", "WAV", "PCM_16"),
        ("extensible.wav", "WAVEX", "PCM_24"),
        ("adpcm.wav", "WAV", "MS_ADPCM"),
        ("rf64.wav", "RF64", "PCM_16"),
        ("a.flac", "FLAC", "PCM_16"),
        ("a.ogg", "OGG", "VORBIS"),
        ("opus.ogg", "OGG", "OPUS"),
        ("a.aiff", "AIFF", "PCM_16"),
        ("a.au", "AU", "PCM_16"),
        ("a.caf", "CAF", "PCM_16"),
    ]:
        soundfile.write(folder / name, samples, RATE, format=format, subtype=subtype)
    for name, codec in (("a.mp3", "mp3"), ("a.m4a", "aac"), ("a.mkv", "aac"), ("a.webm", "libopus")):
        _encode(folder / name, codec, samples)
    return _of_files(sorted(folder.iterdir()), _listen)


def _encode(path: Path, codec: str, samples: np.ndarray) -> None:
    rate = 48_000 if codec == "libopus" else 44_100
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="stereo")
        frame.sample_rate = rate
        frame.pts = 0
        resampler = av.AudioResampler(stream.codec_context.format, "stereo", rate, stream.codec_context.frame_size)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))


def _listen(name: str, data: bytes, folder: Path) -> None:
    path = folder / name
    path.write_bytes(data)
    about = audio.info(path)
    channels = {block.shape[0] for block in audio.blocks(path, 4096, hop=3000)}
    if channels != {about.channels}:
        raise AssertionError(f"announced {about.channels} channels, read {channels}")


# Model folders


def _models(seeds: Path) -> Target:
    spectra = {"low": torch.tensor([1.0, 0.1, 0.01]), "high": torch.tensor([0.01, 0.1, 1.0])}
    gaussians = {name: GaussianPrior(value, 64, sample_rate=RATE) for name, value in spectra.items()}
    size = BandSize(window=16, bands=2, width=2, neck=2, layers=1, features=2)
    flows = {
        name: ContinuousFlow(BandDenoiser(size, torch.ones(9)), 64, sigma_min=0.01, sample_rate=RATE)
        for name in spectra
    }
    save_priors(seeds / "models" / "gaussian", gaussians)
    save_priors(seeds / "models" / "flow", flows)
    network = UNetSize(hop=4, width=4, layers=1, levels=1, passes=1, harmonic=0)
    save_guide(seeds / "models" / "guide", EncoderGuide(gaussians, size=network, project=True), model="gaussian")
    folders = {folder.name: folder for folder in sorted((seeds / "models").iterdir())}
    configs = {name: (folder / "config.json").read_bytes() for name, folder in folders.items()}
    tensors = {name: (folder / "model.safetensors").read_bytes() for name, folder in folders.items()}

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(list(folders))
        if rng.random() < 0.3:
            return f"{name}/model.safetensors", mutated_bytes(tensors[name], list(tensors.values()), rng)
        if rng.random() < 0.1:
            return f"{name}/config.json", mutated_bytes(configs[name], list(configs.values()), rng)
        return f"{name}/config.json", mutated_json(json.loads(configs[name]), rng).encode("utf-8", "surrogatepass")

    def call(file: str, data: bytes, folder: Path) -> None:
        name, _, part = file.partition("/")
        shutil.copytree(folders[name], folder / name)
        (folder / name / part).write_bytes(data)
        if name == "guide":
            load_guide(folder / name)
            return
        priors = load_priors(folder / name)
        if name == "gaussian":
            separate(torch.randn(1, 100), priors.sample_rate, priors, method="exact")

    return Target(make, call)


# Records and posteriors


def _separated(seeds: Path) -> Path:
    """The folder of a finished track, made once."""
    out = seeds / "out"
    if not out.is_dir():
        spectra = {"low": torch.tensor([1.0, 0.1]), "high": torch.tensor([0.1, 1.0])}
        priors = {name: GaussianPrior(value, 100, sample_rate=RATE) for name, value in spectra.items()}
        save_priors(seeds / "tiny", priors)
        audio.write(seeds / "song.wav", 0.1 * torch.randn(1, 150), RATE)
        chains = ["--method", "langevin", "--chains", "2", "--draws", "6", "--warmup", "2", "--quiet"]
        _command(["separate", str(seeds / "song.wav"), "-n", str(seeds / "tiny"), "-o", str(out), *chains])
    return out / "tiny" / "song"


def _records(seeds: Path) -> Target:
    track = _separated(seeds)
    record = (track / "run.json").read_bytes()

    def make(rng: random.Random) -> tuple[str, bytes]:
        if rng.random() < 0.3:
            return "run.json", mutated_bytes(record, [record], rng)
        return "run.json", mutated_json(json.loads(record), rng).encode("utf-8", "surrogatepass")

    def call(name: str, data: bytes, folder: Path) -> None:
        shutil.copytree(track, folder / "out" / "tiny" / "song")
        (folder / "out" / "tiny" / "song" / "mine.txt").write_text("kept")
        (folder / "out" / "tiny" / "song" / name).write_bytes(data)
        again = ["separate", str(seeds / "song.wav"), "-n", str(seeds / "tiny"), "-o", str(folder / "out"), "--quiet"]
        _command([*again, "--method", "exact", "--overwrite"])
        if (folder / "out" / "tiny" / "song" / "mine.txt").read_text() != "kept":
            raise AssertionError("a file that a person made was changed")

    return Target(make, call)


def _posteriors(seeds: Path) -> Target:
    path = _separated(seeds) / "posterior.nc"
    posterior = path.read_bytes()

    def make(rng: random.Random) -> tuple[str, bytes]:
        if rng.random() < 0.5:
            return path.name, mutated_bytes(posterior, [posterior], rng)
        return path.name, _restructured(posterior, rng)

    def call(name: str, data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        idata = read_netcdf(folder / name)
        table = summarize(idata)
        verdict(table)
        compare_chains(idata)

    return Target(make, call)


def _restructured(data: bytes, rng: random.Random) -> bytes:
    """The same HDF5 file with one to three groups, variables or attributes removed, renamed or of another type."""
    whole = io.BytesIO(data)
    with h5py.File(whole, "r+") as file:
        for _ in range(rng.randrange(1, 4)):
            names: list[str] = []
            file.visit(names.append)
            if not names:
                break
            name = rng.choice(names)
            node = file[name]
            match rng.randrange(6):
                case 0:
                    del file[name]
                case 1:
                    file.move(name, f"{name}_moved")
                case 2 if node.attrs:
                    del node.attrs[rng.choice(list(node.attrs))]
                case 3 if isinstance(node, h5py.Dataset):
                    shape = node.shape
                    del file[name]
                    file[name] = np.full(shape, rng.choice([b"text", 1, np.nan, 1j]))
                case 4 if isinstance(node, h5py.Dataset) and node.size and node.dtype.kind == "f":
                    node[...] = rng.choice([np.nan, np.inf, 0.0, 1e300])
                case _:
                    node.attrs[rng.choice([*node.attrs, "units", "_FillValue", "dtype"])] = rng.choice(["x", 1, 1e300])
    return whole.getvalue()


# Command lines


def _commands(seeds: Path) -> Target:
    track = _separated(seeds)
    song, tiny = str(seeds / "song.wav"), str(seeds / "tiny")
    begun = [
        ["separate", song, "-n", tiny, "--method", "exact", "-o", "OUT"],
        ["separate", song, "-n", tiny, "--chains", "2", "--draws", "2", "--warmup", "1", "-o", "OUT"],
        ["evaluate", "--data", str(seeds), "-n", tiny, "--method", "exact"],
        ["train-prior", "gaussian", "--data", str(seeds), "-o", "OUT", "--frame", "64"],
        ["models"],
        ["diagnose", str(track / "run.json"), "-o", "OUT"],
    ]
    options = [
        "--gains",
        "--segment",
        "--overlap",
        "--ladder",
        "--coupling",
        "--guide",
        "--source",
        "--seed",
        "--device",
    ]
    options += ["--method", "--temperature", "--precision", "--json", "-n", "--nothing", "--quiet", "--overwrite", "--"]
    words = [str(value) for value in VALUES if isinstance(value, str | int | float)]
    words += [
        "low",
        "low,high",
        "0.5,0.5",
        "1,1,1",
        "cuda:99",
        "cpu",
        "OUT",
        "exact",
        "langevin",
        "nan,1",
        "-0",
        "1e-9",
    ]
    words = [word for word in words if not word.startswith("/")]

    def make(rng: random.Random) -> tuple[str, bytes]:
        line = list(rng.choice(begun))
        for _ in range(rng.randrange(1, 4)):
            match rng.randrange(5):
                case 0 if len(line) > 1:
                    del line[rng.randrange(1, len(line))]
                case 1 if len(line) > 1:
                    line[rng.randrange(1, len(line))] = rng.choice(words)
                case _:
                    line += [rng.choice(options), rng.choice(words)][: rng.choice((1, 2, 2, 2))]
        return "command.json", json.dumps(line).encode()

    def call(name: str, data: bytes, folder: Path) -> None:
        with contextlib.chdir(folder):
            _command([str(folder / "out") if word == "OUT" else word for word in json.loads(data)])

    return Target(make, call)


def _command(arguments: list[str]) -> None:
    """Run a command line, and raise where it tells of an error that is none of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Foreign(f"{type(result.exception).__name__}: {result.exception}") from result.exception
    told = [line for line in result.output.splitlines() if re.search(r"unexpected \w+:|Traceback", line)]
    if told or result.exit_code not in (0, 1, 2):
        raise Foreign(f"status {result.exit_code}: {' '.join(told) or result.output[-300:]}")
