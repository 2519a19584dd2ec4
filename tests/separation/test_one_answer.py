"""The library and the command line give the same answer for the same prior set."""

import json
from dataclasses import fields

import pytest
import torch
from command_line import run as run_command

import pyrosep
from pyrosep import audio
from pyrosep.separation import choose_method
from pyrosep.zoo import prior_sets

#: What makes a separation of one window quick; the rest is as it comes.
QUICK = {
    "band-gaussian": {"chains": 2, "draws": 8, "warmup": 4},
    "song-gaussian": {"draws": 4},
    "toy": {"segment": 0.05, "chains": 2, "draws": 2, "warmup": 1, "redraws": 0, "ladder": 3},
    "toy-continuous": {
        "segment": 0.05,
        "chains": 1,
        "draws": 2,
        "warmup": 0,
        "coupling": "noisy",
        "redraws": 0,
        "ladder": 2,
    },
    "toy-flowavenet": {"chains": 1, "draws": 2, "warmup": 0, "coupling": "noisy", "redraws": 0, "ladder": 2},
    "band-small": {"chains": 2, "ladder": 2},
    "music-small": {"chains": 2, "ladder": 2},
}


def separated(name, options, tmp_path):
    """Stems and record by the command line, and stems by the library, of the same mix."""
    rate = 16_000
    time = torch.arange(int(options.get("segment", 1 / 3) * rate)) / rate
    mix = 0.1 * torch.sin(2 * torch.pi * 220 * time) + 0.02 * torch.randn(len(time))
    mix = torch.stack([mix, mix.flip(0)])
    audio.write(tmp_path / "mix.wav", mix, rate)
    priors = pyrosep.load_priors(name)
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    command = ["separate", str(tmp_path / "mix.wav"), "-n", name, "-o", str(tmp_path / "out"), "-d", "cpu", *flags]
    result = run_command(*command, "--quiet")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / name / "mix"
    segment, numbers = options.get("segment"), {key: own for key, own in options.items() if key != "segment"}
    method = choose_method(priors, **numbers)
    found = pyrosep.separate(mix, rate, priors, method=method, segment=segment)
    assert json.loads((folder / "run.json").read_text())["method"] == method.numbers()
    written = torch.stack([audio.read(folder / f"{source}.wav").samples for source in priors])
    return written, json.loads((folder / "run.json").read_text()), found, priors


@pytest.mark.parametrize(
    "info",
    [
        pytest.param(info, id=info.name, marks=[pytest.mark.slow] if info.name == "toy-flowavenet" else [])
        for info in prior_sets()
    ],
)
@pytest.mark.filterwarnings("ignore:.*did not move", "ignore:.*stopped")
def test_the_library_and_the_command_line_give_the_same_stems(info, tmp_path):
    """With gains, guide, temperatures and everything else that nobody named."""
    torch.manual_seed(0)
    options = {"segment": 0.2} | QUICK.get(info.name, {})
    if info.family == "flowavenet":
        del options["segment"]  # its frames are multiples of a stride
    written, record, found, _ = separated(info.name, options, tmp_path)
    torch.testing.assert_close(written, found.mean, atol=2e-7, rtol=0)
    assert (record.get("guide") is None) == ("guide" not in record["method"]["name"])
    torch.testing.assert_close(torch.tensor(list(record["gains"].values())), found.gains.float(), atol=1e-6, rtol=1e-5)


def test_a_record_tells_what_defaults_came_to(tmp_path):
    _, record, _, _ = separated("song-gaussian", {"segment": 0.2}, tmp_path)
    assert set(record["settings"]) == {field.name for field in fields(pyrosep.Settings)} - {"method"}
    assert record["method"] == {
        "name": "langevin",
        "chains": 4,
        "draws": 100,
        "warmup": 50,
        "guided": False,
        "max_residual_ratio": 4.0,
        "ladder": None,
        "coupling": "sweeps",
        "redraws": 24,
        "step_size": 0.5,
    }
    assert record["window_seconds"] == 0.2
    assert record["noise"] > 0


def test_a_set_says_what_it_has():
    priors = pyrosep.load_priors("music-small")
    assert choose_method(priors).name == "guide+langevin"
    assert choose_method(priors.with_guide(None)).name == "langevin"
    assert choose_method(priors.only(["bass", "drums"])).name == "langevin"
    assert callable(pyrosep.separate)
