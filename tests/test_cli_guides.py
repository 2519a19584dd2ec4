"""``pyrosep train-guide``: what it writes, how it goes on, and one line for everything that can go wrong."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from command_line import run as run_command

from pyrosep import GaussianPrior, audio, load_guide, save_guide, save_priors
from pyrosep.cli.guide_mixes import GuideMixes
from pyrosep.cli.guiding import GuideData
from pyrosep.diagnostics import interval_coverage
from pyrosep.training import guides as guide_training
from pyrosep.training.augmentation import Augmentation
from pyrosep.training.frames import Frames
from pyrosep.zoo import guide_info, load_priors, prior_set_info

# Lightning asks for worker processes and the like; a person at the command line sees it, a test does not care.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

RATE, FRAME = 8_000, 64
SIZE = ("--hop", 4, "--width", 8, "--levels", 1, "--layers", 2, "--passes", 2, "--harmonic", 4)
COMMON = ("--batch", 4, "--temperature-mixes", 8, "-d", "cpu")


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """No traceback by request; and the number of threads, which commands may change, back."""
    for name in ("PYROSEP_DEBUG", "FORCE_COLOR", "MUSDB_PATH"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    return run_command("train-guide", *COMMON, *arguments)


def mixes(info, priors, gains, noise):
    """Mixes of draws of priors, on the CPU."""
    return GuideMixes(info, priors, gains, noise, GuideData(), Augmentation(), 64, 0, "cpu")


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(*arguments, code=1):
    """Run what must fail; the one line that it ends with."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("pyrosep: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    assert "unexpected" not in lines[0]
    return lines[0]


def weights(folder):
    return torch.cat([value.detach().flatten() for value in load_guide(folder).state_dict().values()])


def config(folder):
    return json.loads((folder / "config.json").read_text())


def gaussians(frame=FRAME):
    """One source of low and one of high frequencies."""
    spectra = {"low": [4.0, 0.01, 0.01], "high": [0.01, 0.01, 4.0]}
    return {name: GaussianPrior(torch.tensor(own), frame, sample_rate=RATE) for name, own in spectra.items()}


@pytest.fixture
def model(tmp_path):
    save_priors(tmp_path / "tiny", gaussians(), gains="mean")
    return tmp_path / "tiny"


@pytest.fixture
def songs(tmp_path):
    """Two songs, a source in each half as loud as the other."""
    for k, song in enumerate(("a", "b")):
        (tmp_path / "songs" / song).mkdir(parents=True)
        for name, prior in gaussians(2000).items():
            audio.write(tmp_path / "songs" / song / f"{name}.wav", 0.1 / (1 + k) * prior.sample((1,)), RATE)
    return tmp_path / "songs"


def test_it_trains_and_writes_a_guide(model, tmp_path):
    out, figures = tmp_path / "guide", tmp_path / "figures.json"
    steps = ("--steps", 60, "--learning-rate", 0.02, "--precision", "32-true", "--validate-every", 20)
    text = done("-n", model, "-o", out, *SIZE, *steps, "--noise", 0.1, "--summary", "tiny", "--json", figures)
    assert re.search(r"^objective simulated, steps 60, .*si_sdr low \d", text, re.MULTILINE)
    assert re.search(r"^high: temperature \d", text, re.MULTILINE)
    assert f"written to {out}" in text
    info = guide_info(out)
    assert (info.name, info.sources, info.model, info.frame) == ("guide", ("low", "high"), "tiny", FRAME)
    assert info.summary == "tiny"
    guide = load_guide(out)
    assert guide.shared
    assert guide.noise == 0.1
    assert guide.gains.tolist() == [0.5, 0.5]
    assert (out / "training" / "checkpoint.pt").is_file()

    report, told = json.loads(figures.read_text()), config(out)["provenance"]
    assert told["settings"]["steps"] == told["steps"] == report["steps"] == 60
    assert told["model_digest"] == prior_set_info(model).digest()
    assert "elbo" not in report, "nobody asked for it, and it asks exact priors for much"
    # The mix itself as estimate has about 0 dB; the two sources overlap in a third of their bands.
    assert min(report["si_sdr low"], report["si_sdr high"]) > 3
    (coverage,) = report["coverage"].values()
    for name, temperature in report["temperature"].items():
        before, after = (coverage[when][name]["0.9"] for when in ("before", "after"))
        assert temperature != 1
        assert guide.temperature[guide.names.index(name)].item() == pytest.approx(temperature, abs=1e-3)
        assert abs(after - 0.9) < max(0.05, abs(before - 0.9))
    # What is told of it is so of what was written.
    mix, sources = mixes(prior_set_info(model), load_priors(model), [0.5, 0.5], 0.1).simulated(0, 64)
    again = interval_coverage(guide, mix, sources, levels=(0.9,))
    assert again["low"][0.9] == pytest.approx(coverage["after"]["low"]["0.9"], abs=5e-3)


def test_for_frames_of_several_lengths(model, tmp_path):
    """Coverage is told of each length; the temperature lies between what the two call for."""
    figures = tmp_path / "figures.json"
    options = (*SIZE, "--steps", 30, "--noise", 0.1, "--seed", 3)
    text = done("-n", model, "-o", tmp_path / "guide", *options, "--cut", 16, "--json", figures)
    assert re.search(r"low: temperature [\d.]+; in 16 samples intervals of 0.9 cover", text)
    report = json.loads(figures.read_text())
    assert list(report["coverage"]) == ["64", "16"]
    after = {length: part["after"]["low"]["0.9"] for length, part in report["coverage"].items()}
    assert min(after.values()) - 0.02 < 0.9 < max(after.values()) + 0.02
    assert "below the mixes' 64" in failed("-n", model, "-o", tmp_path / "other", *options, "--cut", 64)


def test_what_the_options_set(model, tmp_path):
    out = tmp_path / "guide"
    options = ("--apart", "--no-project", "--full", "--source", "high", "--source", "low", "--frame", 48, "--quiet")
    steps = ("--width", 64, "--steps", 1, "--temperature-mixes", 0)
    assert done("-n", model, "-o", out, *SIZE, *options, *steps) == ""
    guide = load_guide(out)
    assert (guide.names, guide.shared, guide.gains) == (("high", "low"), False, None)
    assert guide_info(out).frame == 48
    assert guide.temperature.tolist() == [1, 1]
    assert "coverage" not in config(out)["provenance"]
    half = tmp_path / "half"
    done("-n", model, "-o", half, *SIZE, *options[:2], *options[3:], *steps)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, half)]
    assert 0.5 * sizes[0] < sizes[1] < 0.55 * sizes[0]


def test_interrupted_it_goes_on(model, tmp_path, monkeypatch):
    steps = ("-n", model, *SIZE, "--steps", 6, "--save-every", 2, "--objective", "both", "--full", "--quiet")
    done(*steps, "-o", tmp_path / "whole")
    made, loss = [], guide_training._Run.loss

    def interrupting(self, *arguments):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(int(self.counted.steps))
        return loss(self, *arguments)

    monkeypatch.setattr(guide_training._Run, "loss", interrupting)
    assert "run the same command again" in failed(*steps, "-o", tmp_path / "parts", code=130)
    assert not (tmp_path / "parts" / "config.json").exists()
    made.clear()
    done(*steps, "-o", tmp_path / "parts")
    assert made == [4, 5], "it begins at the checkpoint"
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    made.clear()
    done(*steps, "-o", tmp_path / "parts")
    assert made == []
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))

    for other, said in (
        (("--steps", 7), "steps 6, not 7"),
        (("--objective", "elbo"), "objective both, not elbo"),
        (("--noise", 0.5), "noise 0.01, not 0.5"),
        (("--width", 9), "width 8, not 9"),
        (("--no-project",), "project True, not False"),
    ):
        assert said in failed(*steps, "-o", tmp_path / "parts", *other)
    made[:] = []
    monkeypatch.setattr(guide_training._Run, "loss", loss)
    done(*steps, "-o", tmp_path / "parts", "--steps", 1, "--overwrite")
    assert config(tmp_path / "parts")["provenance"]["steps"] == 1


def test_it_starts_from_a_guide(model, tmp_path):
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    done("-n", model, "-o", first, *SIZE, "--steps", 5, "--full")
    # A rate so low that nothing moves: what comes out is the start, whatever sizes are asked for.
    still = ("-n", model, "--steps", 1, "--learning-rate", 1e-12, "--full", "--gains", "0.9,0.1")
    done(*still, "-o", second, "--start", first, "--apart", "--width", 16)
    done(*still, "-o", third, *SIZE)
    networks = [load_guide(folder).encoders.state_dict() for folder in (first, second, third)]
    assert list(networks[0]) == list(networks[1])
    for name, value in networks[0].items():
        torch.testing.assert_close(networks[1][name], value, rtol=0, atol=1e-6)
    assert any(not torch.allclose(networks[2][name], value, atol=1e-3) for name, value in networks[0].items())
    torch.testing.assert_close(load_guide(second).gains, torch.tensor([0.9, 0.1]))
    line = failed(*still, "-o", tmp_path / "no", "--start", first, "--source", "high", "--source", "low")
    assert "expected a guide to start from of the sources high, low, in this order" in line
    assert "no guide 'gone'" in failed(*still, "-o", tmp_path / "no", "--start", "gone")


@pytest.mark.parametrize("data", ["priors", "songs"])
def test_by_the_elbo(model, songs, tmp_path, data, monkeypatch):
    """It sees mixes alone, those of the songs where there are songs."""
    seen, draw = [], guide_training._Run.draw

    def watched(self, count):
        mix, values = draw(self, count)
        seen.append((mix, values))
        return mix, values

    monkeypatch.setattr(guide_training._Run, "draw", watched)
    options = ("--objective", "elbo", "--steps", 2, "--bound-draws", 2, "--json", tmp_path / "figures.json")
    gains = () if data == "priors" else ("--gains", "level")
    done("-n", model, "-o", tmp_path / "guide", *SIZE, *options, *gains, "--data", songs if data == "songs" else data)
    assert {"elbo", "iwae", "si_sdr low"} <= set(json.loads((tmp_path / "figures.json").read_text()))
    assert len(seen) == 2
    mixes = torch.cat([mix for mix, values in seen if not values])
    assert len(mixes) == 8
    whole = [sum(audio.read(path).samples[0] for path in sorted(song.iterdir())) for song in sorted(songs.iterdir())]
    places = torch.cat([signal.unfold(-1, FRAME, 1) for signal in whole])
    nearest = torch.cdist(mixes.double(), places.double()).amin(-1)
    assert (nearest < 1e-4).all() if data == "songs" else (nearest > 1).all()


def test_on_stems_of_songs(model, songs, tmp_path, monkeypatch):
    """Frames of the sources come from places of their own; the gains are the model's."""
    seen, draw = [], guide_training._Run.draw
    monkeypatch.setattr(guide_training._Run, "draw", lambda self, count: seen.append(draw(self, count)) or seen[-1])
    done("-n", model, "-o", tmp_path / "guide", *SIZE, "--steps", 5, "--data", songs, "--noise", 0.001)
    found = {}
    for name in ("low", "high"):
        stems = [audio.read(song / f"{name}.wav").samples[0] for song in sorted(songs.iterdir())]
        places = torch.cat([signal.unfold(-1, FRAME, 1) for signal in stems])
        drawn = torch.cat([values[name] for _, values in seen])
        distance, found[name] = torch.cdist(drawn.double(), places.double()).min(-1)
        assert (distance < 1e-4).all()
    assert (found["low"] != found["high"]).all()
    for mix, values in seen:
        assert (mix - (values["low"] + values["high"]) / 2).std() < 0.002


def test_held_out_sources_do_not_share_a_place(model):
    """Frames that lie at one place of their lists may be of one moment of a song; mixes are made of different ones."""
    kept = torch.arange(12.0).unsqueeze(-1).repeat(1, FRAME)
    frames = {name: Frames(lambda count: kept[:count], kept, RATE) for name in ("low", "high")}
    found = mixes(None, gaussians(), [1.0, 1.0], 0.01)
    found.__dict__["frames"] = frames  # those that it would open
    drawn = [found.simulated(first, count)[1] for first, count in ((0, 8), (8, 4))]
    low, high = (torch.cat(drawn)[:, k, 0] for k in range(2))
    assert sorted(low.tolist()) == sorted(high.tolist()) == kept[:, 0].tolist()
    assert (low != high).all()


def test_on_toy_waves(tmp_path):
    options = ("-n", "toy", "--data", "toy", "--source", "saw", "--source", "sine", "--frame", FRAME, "--quiet")
    done("-o", tmp_path / "guide", *SIZE, *options, "--steps", 2)
    info = guide_info(tmp_path / "guide")
    assert (info.model, info.sources, info.frame) == ("toy", ("saw", "sine"), FRAME)
    assert load_guide(tmp_path / "guide").gains.tolist() == [0.5, 0.5]


def test_mistakes(model, songs, tmp_path):
    out = tmp_path / "guide"
    save_priors(tmp_path / "other", gaussians(), gains="fit")
    (tmp_path / "file").write_text("")
    for options, said in (
        (("-n", "gone"), "no prior set 'gone'"),
        (("--objective", "supervised"), "objective must be one of ('simulated', 'elbo', 'both'); got 'supervised'"),
        (("-n", tmp_path / "other"), "mean, level, or a number for each of low, high"),
        (("--gains", "1,2,3"), "expected 2 gains"),
        (("--hop", 4, "--network", "bands"), "a network of bands has no harmonic, hop, levels, passes"),
        (("--noise", 0), "noise must be positive"),
        (("--source", "tuba"), "tuba"),
        (("--data", "toy"), "toy data has the sources sine, saw, square, triangle, not low, high of model 'tiny'"),
        (("--data", "gone"), "no folder gone"),
        (("--data", "musdb"), "MUSDB_PATH"),
        (("--data", songs, "--frame", 4096), "ask for shorter frames"),
        (("--optimizer", "sgd"), "optimizer must be one of"),
        (("-o", tmp_path / "other"), "holds a model that is no guide"),
        (("-o", tmp_path / "file"), "is a file"),
    ):
        assert said in failed("-n", model, "-o", out, *SIZE, "--steps", 1, *options), options
    assert not out.exists(), "nothing is written, and nothing was trained"
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["config.json", "model.safetensors"]


def test_models_lists_guides_that_ship(tmp_path, monkeypatch):
    from pyrosep import EncoderGuide

    monkeypatch.setenv("PYROSEP_MODELS", str(tmp_path))
    save_guide(tmp_path / "guides" / "my-guide", EncoderGuide(["a", "b"]), model="toy", frame=128, summary="of two")
    result = run_command("models", "--json", tmp_path / "models.json", env={"COLUMNS": "200"})
    assert re.search(r"my-guide .* toy .* a, b .* 128 .* of two", result.stdout)
    found = {one["name"]: one["guides"] for one in json.loads((tmp_path / "models.json").read_text())}
    assert sorted(found["toy"]) == ["my-guide", "toy-guide"]
    assert found["band-gaussian"] == []


@pytest.mark.slow
def test_on_two_devices(model, tmp_path):
    """Two processes on the CPU share each step."""
    options = ("-n", model, "-o", tmp_path / "guide", *SIZE, *COMMON, "--steps", 3, "--devices", 2)
    command = [sys.executable, "-W", "ignore", "-m", "pyrosep", "train-guide", *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert guide_info(tmp_path / "guide").sources == ("low", "high")
