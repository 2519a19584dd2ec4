"""Temperatures of a model's draws, fitted to simulated mixes."""

import json

import pytest
import torch
from command_line import run

from pyrosep import ContinuousFlow, audio
from pyrosep.errors import CheckpointError, ConfigurationError
from pyrosep.evaluation.calibration import calibrate
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser
from pyrosep.priors import GaussianPrior
from pyrosep.separation import Settings
from pyrosep.zoo import load_priors, prior_set_info, save_priors, save_temperatures

RATE, FRAME = 8000, 512
SIZE = BandSize(window=64, bands=4, width=4, neck=4, layers=1, features=4)
SPECTRA = {"low": torch.linspace(1, 0, 33) ** 2 + 0.01, "high": torch.linspace(0, 1, 33) ** 2 + 0.01}


@pytest.fixture
def flows():
    """Denoisers that know interference, not trained: what they take for the truth is not it."""
    torch.manual_seed(0)
    return {
        name: ContinuousFlow(
            BandDenoiser(SIZE, 0.01 * spectrum, interference=True), FRAME, sigma_min=1e-3, sample_rate=RATE
        )
        for name, spectrum in SPECTRA.items()
    }


@pytest.fixture
def sources():
    return torch.stack([GaussianPrior(0.01 * own, FRAME, sigma_min=1e-3).sample((24,)) for own in SPECTRA.values()], 1)


def test_calibrated_intervals_hold_what_they_say(flows, sources):
    report = calibrate(flows, sources, RATE, settings=Settings(gains=(1.0, 1.0)))["langevin"]
    before, after = (sum(report[when].values()) / 2 for when in ("before", "after"))
    assert abs(before - 0.9) > 0.05, "there is something to mend"
    assert (report["temperature"] > 1) == (before < 0.9)
    # On the mixes that it was not fitted to: 12 windows, of which the samples are far from independent.
    assert after == pytest.approx(0.9, abs=0.03)


def test_what_can_not_be_calibrated(flows, sources):
    with pytest.raises(ConfigurationError, match=r"draws are calibrated of.*\['guide'\]"):
        calibrate(flows, sources, RATE, methods=["guide"])
    silent = sources.clone()
    silent[::2, 0] = 0
    with pytest.raises(ConfigurationError, match=r"each source must be heard.*'low': 12, 'high': 24"):
        calibrate(flows, silent, RATE)


def test_temperatures_are_kept_with_the_model_until_its_priors_change(tmp_path, flows):
    save_priors(tmp_path, flows, summary="mine")
    assert prior_set_info(tmp_path).temperatures == {}
    before = prior_set_info(tmp_path).digest()
    save_temperatures(tmp_path, {"langevin": 1.5})
    save_temperatures(tmp_path, {"guide+langevin": 2.0})
    info = prior_set_info(tmp_path)
    assert info.temperatures == {"langevin": 1.5, "guide+langevin": 2.0}
    assert info.summary == "mine"
    assert info.digest() != before
    assert list(load_priors(tmp_path)) == ["low", "high"]
    save_priors(tmp_path, {"low": flows["low"]})
    assert prior_set_info(tmp_path).temperatures == {}


@pytest.mark.parametrize("wrong", [{"langevin": 0}, {"langevin": "1"}, [1.5], {"langevin": float("nan")}])
def test_temperatures_that_are_none_are_refused(tmp_path, flows, wrong):
    save_priors(tmp_path, flows)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"temperatures": wrong}))
    with pytest.raises(CheckpointError, match="expected temperatures above 0 by method"):
        prior_set_info(tmp_path)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def songs(tmp_path):
    for song in ("a", "b"):
        (tmp_path / "songs" / song).mkdir(parents=True)
        for name, spectrum in SPECTRA.items():
            stem = GaussianPrior(0.01 * spectrum, 4000, sigma_min=1e-3).sample((1,))
            audio.write(tmp_path / "songs" / song / f"{name}.wav", stem, RATE)
    return tmp_path / "songs"


def test_calibrate_writes_what_it_reports(tmp_path, flows, songs):
    save_priors(tmp_path / "model", flows)
    result = run("calibrate", tmp_path / "model", "--data", songs, "--mixes", 8, "-d", "cpu", "--json", tmp_path / "f")
    assert result.exit_code == 0, result.output
    assert "temperature" in result.output
    report = json.loads((tmp_path / "f").read_text())
    assert list(report) == ["langevin", "one-pass"]
    found = prior_set_info(tmp_path / "model").temperatures
    assert list(found) == list(report)
    assert found["langevin"] == pytest.approx(report["langevin"]["temperature"], abs=1e-3)


def test_calibrate_mistakes(tmp_path, flows, songs):
    save_priors(tmp_path / "model", flows)
    command = ("calibrate", tmp_path / "model", "--data", songs, "-d", "cpu")
    save_priors(
        tmp_path / "plain", {name: GaussianPrior(own, FRAME, sample_rate=RATE) for name, own in SPECTRA.items()}
    )
    for arguments, said in (
        (("calibrate", tmp_path / "none", "--data", songs), "there is none at"),
        (("calibrate", tmp_path / "model", "--data", "toy"), "toy waves have exact priors"),
        (("calibrate", tmp_path / "plain", "--data", songs), "only draws of a descent are calibrated"),
        ((*command, "--method", "guide+langevin"), "has no guide of its own"),
        ((*command, "--method", "guide", "--mixes", 4), "has no guide of its own"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert said in result.stderr
