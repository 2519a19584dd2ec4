"""The experiment on songs, with tiny models."""

import pytest
import torch

from pyrosep import ContinuousFlow, EncoderGuide, GaussianPrior, audio, save_priors
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.music import music
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser
from pyrosep.zoo import save_guide

RATE, FRAME = 8000, 4096
SPECTRA = {"low": [4.0, 0.01, 0.01], "high": [0.01, 0.01, 4.0]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A Gaussian model with a guide, and two songs of exactly these sources."""
    folder = tmp_path_factory.mktemp("music")
    torch.manual_seed(0)
    priors = {name: GaussianPrior(1e-3 * torch.tensor(own), FRAME, sample_rate=RATE) for name, own in SPECTRA.items()}
    save_priors(folder / "model", priors)
    size = BandSize(window=64, bands=3, width=4, neck=4, layers=1)
    save_guide(folder / "model" / "guide", EncoderGuide(priors, shared=True, size=size, project=[1.0, 1.0]))
    for song in ("one", "two"):
        (folder / "songs" / song).mkdir(parents=True)
        for name, prior in priors.items():
            audio.write(folder / "songs" / song / f"{name}.wav", prior.frame(3 * RATE).sample((1,)), RATE)
    return folder


@pytest.mark.slow
def test_it_scores_every_arm_by_the_same_code(place, tmp_path):
    model, songs = str(place / "model"), str(place / "songs")
    numbers = {"chains": 2, "draws": 10, "warmup": 10}
    tables = music(
        tmp_path, songs, songs, model=model, gaussian=model, seconds=2.0, components=4, frames=3, numbers=numbers
    )
    rows = tables["separation"].set_index(["method", "source"])["si_sdr_improvement_mean"]
    counts = tables["separation"].set_index(["method", "source"])["count"]
    assert rows["mix", "mean"] == 0
    assert counts["wiener", "low"] == counts["wiener", "high"] == 2
    # The priors are exact: nothing without the true sources can be better than their Wiener filter.
    assert rows["wiener", "mean"] > 5
    assert rows["wiener", "mean"] - 1 < rows["langevin", "mean"] < rows["wiener", "mean"] + 0.1
    assert rows["irm", "mean"] > rows["guide", "mean"]
    assert abs(rows["guide", "mean"]) < 1, "it is not trained"
    assert set(tables["cost"]["arm"]) == {"wiener", "nmf", "irm", "langevin", "guide", "guide+langevin"}
    assert bool((tables["cost"]["peak_gib"] > 0.05).all())
    trust = tables["trust"].set_index(["arm", "source"])
    assert trust.loc[("wiener", "low"), "coverage"] == pytest.approx(0.9, abs=0.03)
    assert set(trust.index.get_level_values("arm")) == {"wiener", "langevin", "guide", "guide+langevin"}
    for name in ("separation.csv", "cost.csv", "trust.csv", "music.md", "music.png"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
def test_chains_that_stay_near_a_guide_are_trusted_with_it_and_without(place, tmp_path, filtering_flows):
    spectra = {name: 1e-3 * torch.tensor(own) for name, own in SPECTRA.items()}
    save_priors(tmp_path / "filters", filtering_flows(spectra, FRAME, RATE, sigma_min=1e-3))
    songs, guide = str(place / "songs"), str(place / "model" / "guide")
    arms = ("guide", "guide+langevin")
    tables = music(tmp_path, songs, songs, model=str(tmp_path / "filters"), guide=guide, arms=arms, seconds=1.0)
    coverage = tables["trust"].groupby("arm")["coverage"].mean()
    alone = "guide+langevin, spread of draws"
    assert list(coverage.index) == [*arms, alone]
    assert coverage[alone] < coverage["guide+langevin"] - 0.05


@pytest.fixture
def here(monkeypatch):
    """Arms run in this process, which spares the imports of a fresh one."""
    monkeypatch.setattr(
        "pyrosep.experiments.music.mapped", lambda run, tasks, *_, **__: ((task, run(task)) for task in tasks)
    )


@pytest.mark.usefixtures("here")
def test_a_source_that_is_silent_in_all_songs_is_not_scored(place, tmp_path):
    (tmp_path / "songs" / "one").mkdir(parents=True)
    audio.write(tmp_path / "songs" / "one" / "low.wav", audio.read(place / "songs" / "one" / "low.wav").samples, RATE)
    audio.write(tmp_path / "songs" / "one" / "high.wav", torch.zeros(1, 3 * RATE), RATE)
    model, songs = str(place / "model"), str(tmp_path / "songs")
    tables = music(tmp_path, songs, songs, model=model, gaussian=model, arms=("wiener",), seconds=1.0)
    assert set(tables["separation"]["source"]) == {"low", "mean"}
    assert (tmp_path / "music.png").stat().st_size > 0


def test_what_it_can_not_do(place, tmp_path):
    model, songs = str(place / "model"), str(place / "songs")
    with pytest.raises(ConfigurationError, match=r"arms must be among wiener.*got \['best'\]"):
        music(tmp_path, songs, songs, model=model, gaussian=model, arms=("best",))
    with pytest.raises(ConfigurationError, match="must be of the same sources"):
        music(tmp_path, songs, songs, model=model, gaussian="band-gaussian")
    with pytest.raises(ConfigurationError, match="has no guide of its own"):
        music(tmp_path, songs, songs, model="song-gaussian", gaussian="song-gaussian", arms=("guide",))


@pytest.mark.usefixtures("here")
def test_one_pass_is_scored_for_priors_that_know_interference(place, tmp_path):
    torch.manual_seed(0)
    size = BandSize(window=64, bands=3, width=4, neck=4, layers=1, features=4)
    priors = {
        name: ContinuousFlow(
            BandDenoiser(size, 1e-3 * torch.tensor(own), interference=True), FRAME, sigma_min=1e-3, sample_rate=RATE
        )
        for name, own in SPECTRA.items()
    }
    save_priors(tmp_path / "told", priors)
    songs = str(place / "songs")
    tables = music(
        tmp_path,
        songs,
        songs,
        model=str(tmp_path / "told"),
        arms=("one-pass",),
        seconds=1.0,
        numbers={"draws": 4},
    )
    assert list(dict.fromkeys(tables["trust"]["arm"])) == ["one-pass", "one-pass, spread of draws"]
    rows = tables["separation"].set_index(["method", "source"])["si_sdr_improvement_mean"]
    assert rows["one-pass", "mean"] > 1, "not trained, they still know their source's mean spectrum"
