"""The demonstration, with chains too short to be of use but for the way that the data takes."""

import math

import pytest
import torch

from pyrosep import audio, load_priors
from pyrosep.demo import MODEL, PLAIN_MODEL, STREAMS, demo_song, run_clipped_demo, run_song_demo, run_toy_demo
from pyrosep.errors import MissingDependencyError
from pyrosep.zoo import prior_sets

#: What each prior of a model may weigh, in bytes.
MOST = 8_000_000


@pytest.fixture(scope="module")
def song():
    return demo_song()


def test_the_mix_is_the_sum_of_the_stems(song):
    mix, stems, rate = song
    assert tuple(stems) == STREAMS
    assert rate == 44_100
    assert mix.shape[0] == 2
    assert mix.shape[1] > 5 * rate
    assert all(stem.shape == mix.shape for stem in stems.values())
    # float32 rounding, whatever the order of the sum.
    torch.testing.assert_close(sum(stems.values()), mix, rtol=0, atol=1e-6)
    assert len({stem.std().item() for stem in stems.values()}) == 4, "four different streams"


def test_the_models_have_a_prior_for_every_stem():
    for model in (MODEL, PLAIN_MODEL):
        assert set(load_priors(model)) == set(STREAMS)


def test_without_the_song(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install stempeg"):
        demo_song()


@pytest.mark.slow
def test_the_demonstration(tmp_path, song, monkeypatch):
    mix, stems, rate = song
    short = slice(2 * rate, 5 * rate)
    monkeypatch.setattr(
        "pyrosep.demo.demo_song",
        lambda: (mix[:, short], {name: stem[:, short] for name, stem in stems.items()}, rate),
    )
    steps = []
    result = run_song_demo(tmp_path, chains=2, progress=lambda done, total: steps.append((done, total)))
    assert list(result["scores"]) == ["mix as estimate", "Gaussian priors", "guide", "chains from the guide"]
    for scores in result["scores"].values():
        assert set(scores) == set(STREAMS)
        assert all(math.isfinite(score) for score in scores.values())
    assert steps[-1] == (3 * rate, 3 * rate)
    # Stems in float32, of a mix near full scale.
    assert result["sum_residual_db"] < -100
    folder = tmp_path / MODEL / "falcon69"
    assert result["folder"] == str(folder)
    written = audio.read(tmp_path / "mix.wav").samples
    total = sum(audio.read(folder / f"{name}.wav").samples for name in STREAMS)
    assert 10 * torch.log10((total - written).square().mean() / written.square().mean()) < -60
    assert (folder / "posterior.nc").is_file()
    assert result["run"]["method"]["name"] == "guide+langevin"
    means = {method: sum(scores.values()) / len(scores) for method, scores in result["scores"].items()}
    assert means["chains from the guide"] > means["mix as estimate"]
    picture = tmp_path / "song.png"
    assert result["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len({tuple(pixel) for pixel in _pixels(picture)}) > 100, "a picture with something in it"


@pytest.mark.slow
@pytest.mark.parametrize(("run", "folder"), [(run_toy_demo, "toy"), (run_clipped_demo, "clipped")])
def test_toy_waves_are_found(run, folder, tmp_path):
    steps = []
    result = run(tmp_path, progress=lambda done, total: steps.append((done, total)))
    *_, plain, found = result["scores"].values()
    assert min(found.values()) > 30
    assert min(found.values()) > min(plain.values()) + 5
    assert steps[-1][0] == steps[-1][1]
    assert {path.name for path in (tmp_path / folder).iterdir()} == {"mix.wav", *(f"{wave}.wav" for wave in found)}
    assert len({tuple(pixel) for pixel in _pixels(result["picture"])}) > 100


def _pixels(path):
    import matplotlib.image

    return matplotlib.image.imread(path)[::5, ::5, :3].reshape(-1, 3)


@pytest.mark.parametrize("info", prior_sets(), ids=lambda info: info.name)
def test_models_that_ship_are_small_and_have_cards(info):
    assert sum(path.stat().st_size for path in info.folder.rglob("*") if path.is_file()) < MOST * len(info.sources)
    card = (info.folder / "README.md").read_text(encoding="utf-8")
    assert all(source in card for source in info.sources)
    assert info.summary
