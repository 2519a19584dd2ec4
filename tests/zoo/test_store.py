"""Models on disk: what is saved comes back, and what can't be read says why."""

import json

import pytest
import torch

from pyrosep import GaussianPrior, OscillatorPrior, load_priors, save_priors
from pyrosep.errors import CheckpointError, ConfigurationError, PyrosepError, UnknownModelError
from pyrosep.priors import SourcePrior
from pyrosep.zoo import prior_set_info, prior_sets


@pytest.fixture
def gaussian():
    return {
        name: GaussianPrior(torch.rand(9) + 0.1, frame=64, sigma_min=0.02, sample_rate=16_000)
        for name in ("bass", "drums")
    }


@pytest.fixture
def oscillators():
    return {
        "low": OscillatorPrior("saw", 64, sigma_min=0.05, amplitude=(0.3, 0.6)),
        "high": OscillatorPrior("sine", 64),
    }


@pytest.fixture(params=["gaussian", "oscillators"])
def priors(request):
    return request.getfixturevalue(request.param)


def test_round_trip(priors, tmp_path):
    """Bit for bit: the same density, the same score."""
    save_priors(tmp_path / "model", priors, summary="two sources")
    loaded = load_priors(tmp_path / "model")
    assert list(loaded) == list(priors)
    for name, prior in priors.items():
        x = prior.at(0.5).sample((2,))
        assert type(loaded[name]) is type(prior)
        assert (loaded[name].sigma_min, loaded[name].time) == (prior.sigma_min, prior.time)
        assert loaded[name].sample_rate == prior.sample_rate
        assert torch.equal(loaded[name].log_prob(x), prior.log_prob(x))
        assert torch.equal(loaded[name].score(x), prior.score(x))
        assert torch.equal(loaded[name].spectrum, prior.spectrum)


def test_round_trip_of_chosen_periods(tmp_path):
    priors = {"few": OscillatorPrior("saw", 64, periods=(5, 7))}
    save_priors(tmp_path, priors)
    assert load_priors(tmp_path)["few"].periods == (5, 7)


def test_round_trip_in_double_precision(tmp_path):
    spectrum = torch.rand(9, dtype=torch.float64) + 0.1
    save_priors(tmp_path, {"a": GaussianPrior(spectrum, 16)})
    assert torch.equal(load_priors(tmp_path)["a"].grid, spectrum)


def test_two_sources_with_one_prior(tmp_path):
    prior = GaussianPrior(torch.ones(5), 8, sample_rate=8000)
    save_priors(tmp_path, {"a": prior, "b": prior})
    assert list(load_priors(tmp_path)) == ["a", "b"]


def test_info(gaussian, tmp_path):
    save_priors(tmp_path / "band", gaussian, summary="two sources")
    info = prior_set_info(tmp_path / "band")
    assert (info.name, info.family, info.sources) == ("band", "gaussian", ("bass", "drums"))
    assert (info.sample_rate, info.frame, info.summary) == (16_000, 64, "two sources")


def test_provenance_is_kept(gaussian, tmp_path):
    save_priors(tmp_path, gaussian, provenance={"bass": {"songs": 3}})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["priors"]["bass"]["songs"] == 3
    load_priors(tmp_path)


def test_a_source_is_added_to_a_folder(gaussian, tmp_path):
    new = GaussianPrior(torch.full((5,), 2.0), frame=64, sample_rate=16_000)
    save_priors(tmp_path, gaussian, summary="first")
    save_priors(tmp_path, {"piano": new})
    loaded = load_priors(tmp_path)
    assert list(loaded) == ["bass", "drums", "piano"]
    assert torch.equal(loaded["bass"].grid, gaussian["bass"].grid)
    assert torch.equal(loaded["piano"].grid, new.grid)
    assert prior_set_info(tmp_path).summary == "first"


def test_a_source_is_replaced(gaussian, tmp_path):
    new = GaussianPrior(torch.full((5,), 2.0), frame=64, sample_rate=16_000)
    save_priors(tmp_path, gaussian)
    save_priors(tmp_path, {"bass": new})
    assert torch.equal(load_priors(tmp_path)["bass"].grid, new.grid)


def test_a_folder_holds_one_kind(gaussian, oscillators, tmp_path):
    save_priors(tmp_path, gaussian)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigurationError, match="holds gaussian priors at 16000 Hz and 64 samples"):
        save_priors(tmp_path, oscillators)
    with pytest.raises(ConfigurationError, match="write them to another folder"):
        save_priors(tmp_path, {"piano": gaussian["bass"].frame(32)})
    assert (tmp_path / "config.json").read_text() == before


def test_priors_that_no_model_can_hold(gaussian, oscillators, tmp_path):
    class Other(GaussianPrior):
        pass

    with pytest.raises(ConfigurationError, match="share family, frame and sample rate"):
        save_priors(tmp_path, gaussian | oscillators)
    with pytest.raises(ConfigurationError, match="don't know how to save a Other"):
        save_priors(tmp_path, {"other": Other(torch.ones(3), 8)})
    with pytest.raises(ConfigurationError):
        save_priors(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_chosen_sources_frame_and_level(gaussian, tmp_path):
    save_priors(tmp_path, gaussian)
    loaded = load_priors(tmp_path, frame=20, sources=["drums"])
    assert list(loaded) == ["drums"]
    assert loaded["drums"].time == 20
    assert list(load_priors(tmp_path, sources=["drums", "bass"])) == ["drums", "bass"]
    with pytest.raises(ConfigurationError, match=r"has the sources \['bass', 'drums'\]; asked for \['flute'\]"):
        load_priors(tmp_path, sources=["bass", "flute"])


@pytest.mark.parametrize("frame", [0, -1])
def test_frame_must_be_positive(frame):
    with pytest.raises(ConfigurationError, match="frame must be"):
        load_priors("toy", frame=frame)


# --- what ships --------------------------------------------------------------------------------------------------


def test_every_shipped_model_loads():
    models = prior_sets()
    assert "toy" in [info.name for info in models]
    for info in models:
        priors = load_priors(info.name, frame=512)
        assert tuple(priors) == info.sources
        assert info.summary
        for prior in priors.values():
            assert isinstance(prior, SourcePrior)
            assert prior.sample_rate == info.sample_rate
            drawn = prior.sample((1,))
            known = prior.log_prob(drawn) if prior.has_density else prior.score(drawn)
            assert bool(torch.isfinite(known).all())


def test_unknown_model(tmp_path):
    for name in ("no-such-model", tmp_path, tmp_path / "missing"):
        with pytest.raises(UnknownModelError, match=r"expected one that is here .*toy.*, a folder that"):
            load_priors(name)


def test_a_folder_that_is_no_model_does_not_hide_one_that_ships(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "sine" in load_priors("toy", frame=256)


# --- names of sources --------------------------------------------------------------------------------------------

BAD_NAMES = ["../../../escaped", "/elsewhere/x", "a\0b", "", "..", "low.std"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_reach_out_of_the_folder_are_refused_where_a_model_is_opened(oscillators, tmp_path, name):
    save_priors(tmp_path, oscillators)
    config = json.loads((tmp_path / "config.json").read_text())
    config["priors"][name] = config["priors"].pop("high")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for call in (load_priors, prior_set_info):
        with pytest.raises(CheckpointError, match=r"config\.json can't be used: .*rename|Rename"):
            call(tmp_path)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_reach_out_of_the_folder_are_refused_where_a_model_is_saved(oscillators, tmp_path, name):
    low = oscillators["low"]
    with pytest.raises(ConfigurationError, match="ename"):
        save_priors(tmp_path / "new", {"low": low, name: low})
    assert not (tmp_path / "new").exists()
    save_priors(tmp_path / "old", {"low": low})
    before = (tmp_path / "old" / "config.json").read_text()
    with pytest.raises(ConfigurationError, match="ename"):
        save_priors(tmp_path / "old", {name: low})
    assert (tmp_path / "old" / "config.json").read_text() == before


def test_a_source_that_is_asked_for_twice(oscillators, tmp_path):
    save_priors(tmp_path, oscillators)
    with pytest.raises(ConfigurationError, match="expected each source once; got 'low'"):
        load_priors(tmp_path, sources=["low", "high", "low"])


# --- damage ------------------------------------------------------------------------------------------------------


def test_damaged_tensors(gaussian, tmp_path):
    save_priors(tmp_path, gaussian)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_priors(tmp_path)


def test_missing_tensors(gaussian, tmp_path):
    save_priors(tmp_path, gaussian)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 'spectrum' for source 'bass'"):
        load_priors(tmp_path)


def test_damaged_config(gaussian, tmp_path):
    save_priors(tmp_path, gaussian)
    (tmp_path / "config.json").write_text('{"family": ')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_priors(tmp_path)


@pytest.mark.parametrize("key", ["family", "sample_rate", "frame", "priors"])
def test_config_that_lacks_a_key(oscillators, tmp_path, key):
    save_priors(tmp_path, oscillators)
    config = json.loads((tmp_path / "config.json").read_text())
    del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"lacks .*{key}"):
        load_priors(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("family", "choir"),
        ("family", ["gaussian"]),
        ("frame", "long"),
        ("frame", None),
        ("priors", ["low"]),
        ("priors", {"low": "saw"}),
        ("priors", {"low": {"wave": "organ", "sigma_min": 0.01, "amplitude": [0.8, 1.0]}}),
        ("priors", {"low": {"wave": "saw", "sigma_min": "low", "amplitude": [0.8, 1.0]}}),
        ("priors", {"low": {"wave": "saw", "sigma_min": 0.01, "amplitude": 0.8}}),
        ("priors", {"low": {"wave": "saw", "sigma_min": 0.01}}),
    ],
)
def test_config_with_a_wrong_value(oscillators, tmp_path, key, value):
    save_priors(tmp_path, oscillators)
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PyrosepError):
        load_priors(tmp_path)
