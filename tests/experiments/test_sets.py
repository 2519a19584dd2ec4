"""Sets of sources of one's own, with tiny models."""

import pytest
import torch

from pyrosep import ContinuousFlow, GaussianPrior, audio, save_priors
from pyrosep.errors import ConfigurationError, DataError
from pyrosep.experiments.sets import sets
from pyrosep.experiments.windows import improvements, song_windows
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser

RATE, FRAME = 8000, 2048
SPECTRA = {
    "low": [4.0, 0.01, 0.01, 0.01],
    "middle": [0.01, 4.0, 0.01, 0.01],
    "high": [0.01, 0.01, 4.0, 0.01],
    "top": [0.01, 0.01, 0.01, 4.0],
}
SIZE = BandSize(window=64, bands=3, width=4, neck=4, layers=1, features=4)


def flow(name):
    spectrum = 1e-3 * torch.tensor(SPECTRA[name])
    return ContinuousFlow(BandDenoiser(SIZE, spectrum, interference=True), FRAME, sigma_min=1e-3, sample_rate=RATE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of three sources, songs of them, and a model and recordings of a fourth."""
    folder = tmp_path_factory.mktemp("sets")
    torch.manual_seed(0)
    save_priors(folder / "model", {name: flow(name) for name in ("low", "middle", "high")})
    save_priors(folder / "other", {"top": flow("top")})
    for name, spectrum in SPECTRA.items():
        prior = GaussianPrior(1e-3 * torch.tensor(spectrum), 3 * FRAME)
        if name == "top":
            (folder / "solo" / name).mkdir(parents=True)
            audio.write(folder / "solo" / name / "a.wav", prior.sample((1,)), RATE)
            continue
        for song in ("one", "two"):
            (folder / "songs" / song).mkdir(parents=True, exist_ok=True)
            audio.write(folder / "songs" / song / f"{name}.wav", prior.sample((1,)), RATE)
    return folder


def test_a_source_is_left_out_and_one_is_added(place, tmp_path):
    extra = (str(place / "other"), "top", f"solo:{place / 'solo'}")
    found = sets(
        tmp_path,
        str(place / "songs"),
        model=str(place / "model"),
        extra=extra,
        methods=("one-pass", "langevin", "langevin, all priors"),
        windows=2,
        workers=1,
    )["sets"].set_index(["mix", "method"])
    mixes = list(dict.fromkeys(found.index.get_level_values("mix")))
    assert mixes == ["all", "without low", "without middle", "without high", "with top"]
    assert bool((found["mean"] > 1).all())
    assert found.loc[("with top", "one-pass"), list(SPECTRA)].notna().all()
    assert found.loc[("without low", "one-pass"), ["low", "top"]].isna().all()
    # A prior too many can only claim what is not its own.
    assert found.loc[("without low", "langevin"), "mean"] > found.loc[("without low", "langevin, all priors"), "mean"]
    assert (tmp_path / "sets.csv").stat().st_size > 0


def test_improvements_are_over_the_mix_and_of_what_sounds():
    truth = torch.randn(3, 2, 400)
    truth[0, 1] = 0
    mix = truth.sum(1, keepdim=True).expand_as(truth)
    assert improvements(mix, truth) == pytest.approx([0, 0], abs=1e-4)
    better = truth + 0.1 * torch.randn_like(truth)
    assert improvements(better, truth)[1] == pytest.approx(20, abs=1.0)


def test_mistakes(place, tmp_path):
    with pytest.raises(ConfigurationError, match=r"methods must be among one-pass.*\['best'\]"):
        sets(tmp_path, str(place / "songs"), model=str(place / "model"), methods=("best",))
    (tmp_path / "quiet" / "song").mkdir(parents=True)
    for name in ("low", "high"):
        audio.write(tmp_path / "quiet" / "song" / f"{name}.wav", torch.zeros(1, FRAME), RATE)
    with pytest.raises(DataError, match="in no window"):
        song_windows(str(tmp_path / "quiet"), ["low", "high"], frame=FRAME, sample_rate=RATE, count=2)
