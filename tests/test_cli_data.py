"""What the training commands take for data: several sets, their weights, and new names of sources."""

import json
import shutil

import pytest
import torch
from command_line import run

from pyrosep import ContinuousFlow, audio
from pyrosep.cli.options import Data
from pyrosep.errors import ConfigurationError
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser
from pyrosep.priors import GaussianPrior
from pyrosep.zoo import guide_info, load_priors, save_priors

RATE = 8000
lightning = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
#: Where a command is to be quick.
SMALL = ("--frame", 64, "--batch", 2, "--steps", 1, "-d", "cpu", "--quiet")


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def failed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.delenv("PYROSEP_DEBUG", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def songs(tmp_path):
    """A song of bass, guitar and piano, and one of bass alone."""
    for name, stems in (("a", ("bass", "guitar", "piano")), ("b", ("bass",))):
        (tmp_path / "songs" / name).mkdir(parents=True)
        for stem in stems:
            audio.write(tmp_path / "songs" / name / f"{stem}.wav", 0.1 * torch.randn(1, 4000), RATE)
    return tmp_path / "songs"


@pytest.fixture
def solo(tmp_path):
    """Recordings of bass and piano by themselves, the latter twice as loud as those of the songs."""
    for name, level in (("bass/slap", 0.1), ("piano/rag_1", 0.2), ("piano/rag_2", 0.2), ("piano/waltz", 0.2)):
        path = tmp_path / "recordings" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, level * torch.randn(1, 2000), RATE)
    return f"solo:{tmp_path / 'recordings'}"


MAP = ("--map", "guitar=other,piano=other")


@pytest.mark.parametrize(("weights", "power"), [((), 0.032), ((1, 1), 0.03), ((1, 3), 0.035)])
def test_gaussian_priors_of_several_data_sets(songs, solo, tmp_path, weights, power):
    """The power is 0.02 in the song's sum of two, 4,000 samples, and 0.04 in the solo recordings, 6,000 samples."""
    options = [part for weight in weights for part in ("--weight", weight)]
    files = ("-o", tmp_path / "model", "--json", tmp_path / "figures.json")
    done("train-prior", "gaussian", "--data", songs, "--data", solo, *options, *MAP, *files, "--window", 64, "--quiet")
    priors = load_priors(tmp_path / "model")
    assert list(priors) == ["bass", "other"]
    assert json.loads((tmp_path / "figures.json").read_text())["other"]["recordings"] == 4
    # A mean of 10,000 squares or more: four standard errors are 6 %.
    assert float(priors["other"].spectrum.mean()) == pytest.approx(power, rel=0.06)


@lightning
def test_denoisers_of_several_data_sets(songs, solo, tmp_path):
    """Other sources of all sets interfere, by their new names."""
    produced = ("--equalise", 6, "--compress", 0.5, "--reverb", 0.5)
    command = ("train-prior", "continuousflow", "--size", "tiny", "--interference", 0.5, *produced, *SMALL)
    done(
        *command,
        "--data",
        songs,
        "--data",
        solo,
        "--weight",
        1,
        "--weight",
        2,
        *MAP,
        "--source",
        "other",
        "-o",
        tmp_path,
    )
    assert list(load_priors(tmp_path)) == ["other"]


@lightning
def test_flows_of_solo_recordings(solo, tmp_path):
    done(
        "train-prior", "flowavenet", "--size", "tiny", "--data", solo, "--source", "piano", *SMALL, "-o", tmp_path / "m"
    )
    assert list(load_priors(tmp_path / "m")) == ["piano"]


@lightning
@pytest.mark.parametrize("objective", ["simulated", "elbo"])
def test_guides(songs, solo, tmp_path, objective):
    """From solo recordings alone, of which mixes are simulated for the ELBO, and from two sets."""
    spectra = {"bass": [1.0, 0.1, 0.01], "piano": [0.01, 0.1, 1.0]}
    priors = {name: GaussianPrior(torch.tensor(own), 64, sample_rate=RATE) for name, own in spectra.items()}
    save_priors(tmp_path / "model", priors, gains="level")
    network = ("--width", 4, "--hop", 4, "--levels", 0, "--layers", 1, "--passes", 1, "--harmonic", 0)
    command = ("train-guide", "-n", tmp_path / "model", *network, "--objective", objective, "--bound-draws", 0, *SMALL)
    command = (*command, "--temperature-mixes", 4)
    done(*command, "--data", solo, "-o", tmp_path / "first")
    assert guide_info(tmp_path / "first").sources == ("bass", "piano")
    command = (*command, "--reverb", 0.5)
    done(*command, "--data", songs, "--data", solo, "--weight", 1, "--weight", 0.5, "-o", tmp_path / "second")
    told = json.loads((tmp_path / "second" / "config.json").read_text())["provenance"]
    assert (told["data"], told["weights"]) == (f"{songs} + {solo}", [1.0, 0.5])


def test_mistakes(songs, solo, tmp_path):
    shutil.copytree(songs, tmp_path / "faster")
    for path in (tmp_path / "faster").glob("*/*.wav"):
        audio.write(path, 0.1 * torch.randn(1, 4000), 2 * RATE)
    command = ("train-prior", "continuousflow", "--size", "tiny", *SMALL, "-o", tmp_path / "out")
    for options, said in (
        (("--data", "toy", "--data", songs), "toy data goes alone; got toy, "),
        (("--data", "toy", "--weight", 2), "weights and new names are for recordings, not toy data"),
        (("--data", "toy", *MAP), "weights and new names are for recordings, not toy data"),
        (("--data", songs, "--data", songs), "expected every data set once"),
        (("--data", songs, "--data", solo, "--weight", 1), "a weight for each of 2 data sets"),
        (("--data", "toy", "--reverb", 0.5), "an augmentation is for recordings, not toy data"),
        (("--data", songs, "--weight", 0), "weights of data sets above 0, got [0.0]"),
        (("--data", songs, "--map", "guitar"), "expected new names OLD=NEW by commas"),
        (("--data", songs, "--map", "tuba=bass"), "no data set has the source 'tuba' that is to be renamed"),
        (("--data", songs, "--data", solo, "--source", "tuba"), "none of the data sets has a source 'tuba'"),
        (("--data", "solo:gone"), "folder of solo recordings, but there is no folder gone"),
        (("--data", songs, "--data", tmp_path / "faster"), "different sample rates ([8000, 16000] Hz)"),
    ):
        assert said in failed(*command, *options), options
    assert "which is no mix to separate" in failed(
        "evaluate", "--data", solo, "-n", "song-gaussian", "--method", "exact"
    )


@pytest.mark.parametrize(
    ("text", "renames"),
    [(None, {}), ("a=b", {"a": "b"}), ("a=c, b = c", {"a": "c", "b": "c"}), ("a=b,b=a", {"a": "b", "b": "a"})],
)
def test_new_names(text, renames):
    assert Data(["x"], map=text).renames == renames


@pytest.mark.parametrize("text", ["", "a", "a=", "=b", "a=b=c", "a=b,", "a=b,a=c"])
def test_what_are_no_new_names(text):
    with pytest.raises(ConfigurationError, match="new name"):
        _ = Data(["x"], map=text).renames


# --- training together -----------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path):
    """A model of bass and piano, not trained, whose denoisers filter and know interference."""
    torch.manual_seed(0)
    size = BandSize(window=32, bands=2, width=4, neck=4, layers=1, features=4)
    priors = {
        name: ContinuousFlow(
            BandDenoiser(size, torch.full((17,), 0.01), interference=True), 256, sigma_min=0.01, sample_rate=RATE
        )
        for name in ("bass", "piano")
    }
    save_priors(tmp_path / "told", priors, summary="mine", provenance={"bass": {"steps": 7}})
    return tmp_path / "told"


@lightning
def test_priors_are_trained_together(tmp_path, songs, solo, told):
    data = ("--data", songs, "--data", solo, "--weight", 1, "--weight", 2)
    out = ("-o", tmp_path / "out", "--json", tmp_path / "f.json")
    command = ("train-prior", "together", *data, "--start", told, *out, "--steps", 2, "--batch", 4, "-d", "cpu")
    result = done(*command, "--frame", 1024, "--flip", "--reverb", 0.5)
    assert "SNR of bass" in result.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["summary"] == "mine"
    assert config["priors"]["bass"]["steps"] == 7, "how it was trained before is kept"
    assert config["priors"]["bass"]["together"]["steps"] == 2
    before, after = load_priors(told), load_priors(tmp_path / "out")
    assert list(after) == ["bass", "piano"]
    for name, prior in after.items():
        weights = prior.network.state_dict()
        assert any(not torch.equal(value, weights[key]) for key, value in before[name].network.state_dict().items())


def test_training_together_says_what_it_is_not_for(tmp_path, songs, told):
    save_priors(tmp_path / "plain", {"bass": GaussianPrior(torch.ones(9), 64, sample_rate=RATE)})
    command = ("train-prior", "together", "-o", tmp_path / "out", "--steps", 1, "-d", "cpu")
    for arguments, said in (
        (("--data", "toy", "--start", told), "toy waves have none"),
        (("--data", songs, "--start", tmp_path / "plain"), "expected a model of ContinuousFlow priors"),
        (("--data", songs, "--start", told, "--presence", 0), "expected presence in (0, 1]"),
    ):
        assert said in failed(*command, *arguments)
    assert not (tmp_path / "out").exists()
