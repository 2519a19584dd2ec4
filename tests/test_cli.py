"""The command line: what each command does with its options, and one line for everything that can go wrong."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from command_line import run

from pyrosep import EncoderGuide, GaussianPrior, OscillatorPrior, audio, save_guide, save_priors
from pyrosep.cli import app
from pyrosep.cli.manners import described
from pyrosep.data.catalog import open_data_sets
from pyrosep.nn.refining import UNetSize
from pyrosep.separation import METHODS, separate
from pyrosep.zoo import load_priors, prior_set_info

RATE = 8_000
#: ArviZ 0.23 draws by a call that Matplotlib 3.11 deprecates; a person at the command line does not see it.
arviz_on_matplotlib = pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
#: Warnings of chains are printed, as they are outside of tests, instead of being errors.
said = pytest.mark.filterwarnings("default:chains .* did not move")
COMMANDS = ("demo", "separate", "evaluate", "calibrate", "train-prior", "train-guide", "models", "diagnose")
QUICK = ("--chains", "2", "--draws", "6", "--warmup", "4", "--segment", "0.1")


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """No colours, wide tables, no traceback by request; and the number of threads, which commands may change, back."""
    for name in ("PYROSEP_DEBUG", "FORCE_COLOR", "GITHUB_ACTIONS", "MUSDB_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result


def failed(*arguments, code=1):
    """Run what must fail; the one line that it ends with."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), "no exception gets out"
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert re.match(r"pyrosep: (error|interrupted): \S", line)
    return line


def noise(channels=1, seconds=0.25, rate=RATE):
    return 0.1 * torch.randn(channels, round(seconds * rate), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two Gaussian sources with short frames."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    low, high = torch.tensor([1.0, 0.1, 0.01]), torch.tensor([0.01, 0.1, 1.0])
    priors = {
        "low": GaussianPrior(low, 800, sample_rate=RATE),
        "high": GaussianPrior(high, 800, sample_rate=RATE),
    }
    save_priors(folder, priors, summary="two sources")
    return folder


@pytest.fixture
def song(tmp_path):
    audio.write(tmp_path / "song.wav", noise(2), RATE)
    return tmp_path / "song.wav"


@pytest.fixture
def stems(tmp_path, model):
    """A folder of two songs with stems that are as the model has them."""
    for name in ("a", "b"):
        (tmp_path / "stems" / name).mkdir(parents=True)
        for source, prior in load_priors(model, frame=4000).items():
            audio.write(tmp_path / "stems" / name / f"{source}.wav", 0.1 * prior.sample((1,)), RATE)
    return tmp_path / "stems"


# Help and usage


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS), ("train-prior", "gaussian"), ("train-prior", "together")]
)
def test_help(command):
    text = done(*command, "--help").output
    assert "Usage:" in text
    if not command:
        assert all(name in text for name in COMMANDS)
    elif command != ("train-prior",):
        for option in ("--quiet", "--json"):
            assert option in text, option
        random = command[0] not in ("models", "diagnose")
        assert ("--seed" in text) == random
        assert (" -d " in text and "--device" in text) == (random and command[-1] != "gaussian")


def commands(parent=app, words=()):
    """All commands, by their words."""
    found = {}
    for name in parent:
        if name[0] != "-":
            one = parent[name]
            inner = commands(one, (*words, name))
            found |= inner or {(*words, name): one}
    return found


@pytest.mark.parametrize("words", commands())
def test_every_option_has_one_meaning_and_a_help(words):
    """Two settings of one name would be one option, of which one never hears."""
    found = commands()[words].assemble_argument_collection(
        default_parameter=app.default_parameter, parse_docstring=True
    )
    arguments = [one for one in found if one.parse and not one.children]
    names = [name for one in arguments for name in one.names]
    assert sorted(names) == sorted(set(names))
    assert [one.names for one in arguments if not one.parameter.help] == []


@pytest.mark.parametrize("command", [("separate",), ("evaluate",), ("train-prior", "gaussian")])
def test_help_tells_what_a_command_does_and_shows_how(command):
    """As the page on the command line does, and not the one line that stands for it among other commands."""
    text = " ".join(done(*command, "--help").output.split())
    told = described(commands()[command].default_command)
    assert " ".join(told.split("\n\n")[1].replace("`", "").split()) in text
    assert f"$ pyrosep {' '.join(command)}" in text


def test_help_of_separate_says_what_each_method_costs_and_gives():
    text = done("separate", "--help").output
    for method in METHODS:
        assert re.search(rf"{re.escape(method)}: [\d.]+ dB in [\d.]+ s", text), method


def test_help_of_separate_names_its_options():
    text = done("separate", "--help").output
    for option in ("-n", "--model", "-o", "--out", "--method", "--chains", "--draws", "--segment", "--overlap"):
        assert option in text, option


@pytest.mark.parametrize("arguments", [(), ("train-prior",)])
def test_without_arguments_there_is_help(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sing",), 'Unknown command "sing"'),
        (("separate",), "INPUTS requires an argument"),
        (("separate", "x.wav", "--loud"), "Unknown option: --loud"),
        (("separate", "x.wav", "--chains", "many"), "--chains"),
        (("separate", "x.wav", "--ladder", "many"), "expected a whole number, or numbers by commas; got 'many'"),
        (("separate", "x.wav", "--gains", "loud"), "expected mean, level, fit, or numbers by commas; got 'loud'"),
        (("separate", "x.wav", "--gains", "1,,2"), "--gains"),
        (("evaluate",), "--data"),
        (("evaluate", "--data", "toy", "--songs", "0"), "Must be > 0"),
        (("train-prior", "gaussian", "--data", "toy"), "--out"),
        (("diagnose",), "POSTERIOR requires an argument"),
    ],
)
def test_usage_errors(arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert re.match(r"pyrosep: error: \S", result.stderr)
    assert words in result.stderr
    assert result.stdout == ""


# Separation


def sums_to(folder, mix, names=("low", "high")):
    total = sum(audio.read(folder / f"{name}.wav").samples for name in names)
    return total.shape == mix.shape and 10 * torch.log10((total - mix).square().mean() / mix.square().mean()) < -60


def encode_mp3(path, samples, rate):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.numpy().astype(np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_separate_a_file(song, model, tmp_path):
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    result = done("separate", song, "-n", model, "-o", out, *QUICK, "--json", figures, "--seed", 3, "-d", "cpu")
    folder = out / "tiny" / "song"
    assert sums_to(folder, audio.read(song).samples)
    names = {"low.wav", "low.std.wav", "high.wav", "high.std.wav", "posterior.nc", "run.json"}
    assert {path.name for path in folder.iterdir()} == names
    report = json.loads(figures.read_text())
    assert report == {"song": json.loads((folder / "run.json").read_text())}
    assert report["song"]["settings"]["seed"] == 3
    assert report["song"]["method"]["chains"] == 2
    assert report["song"]["device"] == "cpu"
    assert str(folder) in result.stdout
    assert "R-hat" in result.stdout


def test_keep_writes_draws(song, model, tmp_path):
    done("separate", song, "-n", model, "-o", tmp_path / "out", "--method", "exact", "--keep", 2)
    assert {path.name for path in (tmp_path / "out" / "tiny" / "song").glob("*draw*")} == {
        "low.draw0.wav", "low.draw1.wav", "high.draw0.wav", "high.draw1.wav",
    }  # fmt: skip


def test_separate_a_file_an_mp3_of_it_and_a_folder_of_both(tmp_path, model):
    both = tmp_path / "both"
    both.mkdir()
    mix = noise(2, 0.5, 44_100)
    audio.write(both / "song.wav", mix, 44_100)
    encode_mp3(both / "song.mp3", mix, 44_100)
    done("separate", both / "song.wav", "-n", model, "-o", tmp_path / "wav", *QUICK)
    done("separate", both / "song.mp3", "-n", model, "-o", tmp_path / "mp3", *QUICK)
    done("separate", both, "-n", model, "-o", tmp_path / "folder", *QUICK)
    decoded = audio.read(both / "song.mp3").samples
    assert sums_to(tmp_path / "wav" / "tiny" / "song", mix)
    assert sums_to(tmp_path / "mp3" / "tiny" / "song", decoded)
    assert sums_to(tmp_path / "folder" / "tiny" / "song.wav", mix)
    assert sums_to(tmp_path / "folder" / "tiny" / "song.mp3", decoded)


@pytest.mark.slow
def test_a_song_with_no_flag_at_all(tmp_path, monkeypatch):
    """By the model for songs and its guide, at the song's own rate, length and channels."""
    monkeypatch.chdir(tmp_path)
    mix = noise(2, 1.3, 44_100)
    encode_mp3(tmp_path / "song.mp3", mix, 44_100)
    done("separate", "song.mp3")
    folder, decoded = tmp_path / "separated" / "music-small" / "song", audio.read(tmp_path / "song.mp3").samples
    assert sorted(path.name for path in folder.glob("*.std.wav")) == [
        f"{name}.std.wav" for name in ("bass", "drums", "other", "vocals")
    ]
    for path in folder.glob("*.wav"):
        written = audio.read(path)
        assert written.sample_rate == 44_100
        assert written.samples.shape == decoded.shape
    assert sums_to(folder, decoded, ("bass", "drums", "vocals", "other"))
    report = json.loads((folder / "run.json").read_text())
    assert report["method"]["name"] == "guide+langevin"
    assert report["guide"] == "music-guide"


def test_separate_with_denoisers_that_filter(song, tmp_path, filtering_flows):
    """As it comes: one draw of each chain, at the end of a search with the local coupling, stereo too."""
    spectra = {"low": torch.tensor([1.0, 0.1, 0.01]), "high": torch.tensor([0.01, 0.1, 1.0])}
    priors = filtering_flows(spectra, 4000, RATE)
    save_priors(tmp_path / "filters", priors)
    result = done("separate", song, "-n", tmp_path / "filters", "-o", tmp_path / "out", "--keep", 4)
    folder = tmp_path / "out" / "filters" / "song"
    assert sums_to(folder, audio.read(song).samples)
    assert "R-hat and ESS need at least 4 draws a chain; got 1" in result.stdout
    diagnosed = done("diagnose", folder, "--json", tmp_path / "diagnosed.json").stdout
    assert "means and deviations are over 4 draws of 4 chains" in diagnosed
    assert "r_hat" not in diagnosed
    assert (folder / "diagnostics" / "draws.png").stat().st_size > 5000
    assert json.loads((tmp_path / "diagnosed.json").read_text())["chains"] == []
    # Untrained they are stationary Gaussians of these spectra, nearly: the exact posterior's mean is close.
    exact = {name: GaussianPrior(own, 4000, sample_rate=RATE) for name, own in spectra.items()}
    mean = separate(audio.read(song).samples, RATE, exact, method="exact").mean
    for k, name in enumerate(priors):
        found = audio.read(folder / f"{name}.wav").samples
        assert float((found - mean[k]).square().mean() / mean[k].square().mean()) < 0.5
    failed("separate", song, "-n", tmp_path / "filters", "-o", tmp_path / "more", "--keep", 5)


def test_separate_again(song, model, tmp_path):
    command = ("separate", song, "-n", model, "-o", tmp_path / "out", "--method", "exact")
    done(*command)
    assert "done before, kept" in done(*command).stdout
    assert "another settings; overwrite it" in failed(*command, "--overlap", "0.5")
    assert "another sources; overwrite it" in failed(*command, "--source", "low")
    assert "kept" not in done(*command, "--overlap", "0.5", "--overwrite").stdout


def test_the_output_may_lie_in_the_folder_that_is_separated(song, model):
    command = ("separate", song.parent, "-n", model, "-o", song.parent / "out", "--method", "exact")
    assert done(*command).stdout.startswith("song: ")
    assert done(*command).stdout.splitlines() == [f"song: done before, kept ({song.parent / 'out' / 'tiny' / 'song'})"]


@arviz_on_matplotlib
def test_quiet(song, model, stems, tmp_path):
    exact = ("--method", "exact", "--quiet")
    for command in (
        ("separate", song, "-n", model, "-o", tmp_path / "out", *QUICK, "--quiet"),
        ("evaluate", "--data", stems, "-n", model, *exact),
        ("train-prior", "gaussian", "--data", stems, "-o", tmp_path / "model", "--quiet"),
        ("models", "--quiet"),
        ("diagnose", tmp_path / "out" / "tiny" / "song", "--quiet"),
    ):
        assert done(*command).output == "", command


def test_seed(song, model, tmp_path):
    def stem(folder, seed):
        done("separate", song, "-n", model, "-o", tmp_path / folder, *QUICK, "--seed", seed)
        return audio.read(tmp_path / folder / "tiny" / "song" / "low.wav").samples

    first = stem("a", 1)
    assert torch.equal(stem("b", 1), first)
    assert not torch.equal(stem("c", 2), first)


@pytest.mark.parametrize("gains", ["mean", "level", "fit", "0.5,2"])
def test_gains(song, model, tmp_path, gains):
    figures = tmp_path / "figures.json"
    options = ("--gains", gains, "--method", "exact", "--json", figures)
    done("separate", song, "-n", model, "-o", tmp_path / "out", *options)
    found = json.loads(figures.read_text())["song"]["gains"]
    if gains == "mean":
        assert found == {"low": 0.5, "high": 0.5}
    elif gains == "0.5,2":
        assert found == {"low": 0.5, "high": 2.0}
    else:
        assert min(found.values()) > 0


# Everything that can be wrong with a track


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("This is not audio, whatever its name says.\n" * 50)


def truncated(path):
    audio.write(path, noise(), RATE)
    path.write_bytes(path.read_bytes()[:1000])


def no_samples(path):
    soundfile.write(path, np.zeros((0, 1), np.float32), RATE)


def nan(path):
    samples = noise()
    samples[0, 1500] = math.nan
    soundfile.write(path, samples.T.numpy(), RATE, subtype="FLOAT")


def infinite(path):
    samples = noise()
    samples[0, 3] = math.inf
    soundfile.write(path, samples.T.numpy(), RATE, subtype="FLOAT")


def no_rate(path):
    audio.write(path, noise(), RATE)
    data = bytearray(path.read_bytes())
    data[24:28] = bytes(4)  # where the fmt chunk of a plain header has the rate
    path.write_bytes(data)


def silence(path):
    audio.write(path, torch.zeros(1, 2000), RATE)


FAULTS = {
    empty: "0 bytes",
    text: "audio",
    truncated: "end|cut|truncat",
    no_samples: "no samples|without a single sample|sample",
    nan: "NaN",
    infinite: "infinite",
    no_rate: "rate",
    silence: "silent",
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_bad_files_get_one_line(fault, words, model, tmp_path):
    fault(tmp_path / "bad.wav")
    line = failed("separate", tmp_path / "bad.wav", "-n", model, "-o", tmp_path / "out", "--method", "exact")
    assert "bad.wav" in line
    assert "unexpected" not in line
    assert re.search(words, line)
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_a_missing_file_gets_one_line(model, tmp_path):
    line = failed("separate", tmp_path / "gone.wav", "-n", model, "-o", tmp_path / "out")
    assert "no file or folder" in line
    assert "gone.wav" in line


def test_a_folder_without_audio_gets_one_line(model, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no audio file" in failed("separate", tmp_path / "empty", "-n", model, "-o", tmp_path / "out")


def test_an_empty_path_is_not_the_current_folder(song, model, tmp_path, monkeypatch):
    monkeypatch.chdir(song.parent)
    line = failed("separate", "", "-n", model, "-o", tmp_path / "out")
    assert line == "pyrosep: error: no file or folder ''; give the path of one, or . for the current folder"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["..wav", "...wav", ".stem.mp4", "..stem.mp4"])
def test_no_name_of_a_track_reaches_out_of_its_folder(name, song, model, tmp_path):
    options = ("-n", model, "-o", tmp_path / "out", "--method", "exact")
    done("separate", song, *options)
    (tmp_path / "out" / "my notes.txt").write_text("dear")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    audio.write(tmp_path / "other.wav", noise(), RATE)
    (tmp_path / "other.wav").rename(tmp_path / name)
    for flags in ((), ("--overwrite",)):
        done("separate", tmp_path / name, *options, *flags)
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (tmp_path / "out" / "tiny" / name / "low.wav").is_file()


def test_a_folder_of_another_hand_is_not_overwritten(song, model, tmp_path):
    folder = tmp_path / "out" / "tiny" / "song"
    folder.mkdir(parents=True)
    (folder / "my notes.txt").write_text("dear")
    line = failed("separate", song, "-n", model, "-o", tmp_path / "out", "--method", "exact", "--overwrite")
    assert "pyrosep did not write it" in line
    assert [path.name for path in folder.iterdir()] == ["my notes.txt"]


def test_names_that_are_not_utf_8(song, model, tmp_path):
    path = song.rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    figures = tmp_path / os.fsdecode(b"f\xe9.json")
    done("separate", path, "-n", model, "-o", tmp_path / os.fsdecode(b"\xe9"), "--method", "exact", "--json", figures)
    assert json.loads(figures.read_text())["caf%E9"]["input"] == str(path)
    missing = failed("separate", tmp_path / os.fsdecode(b"g\xe9.wav"), "-n", model)
    assert "no file or folder" in missing


@pytest.mark.filterwarnings("default:not read in")
def test_a_folder_is_gone_through_once(song, model, tmp_path):
    (tmp_path / "in").mkdir()
    song.rename(tmp_path / "in" / "song.wav")
    (tmp_path / "in" / "list.m3u8").write_text("song.wav")
    result = run("separate", tmp_path / "in", "-n", model, "-o", tmp_path / "out", "--method", "exact", "--quiet")
    assert result.exit_code == 0
    assert result.stderr.count("not read in") == 1


def test_samples_do_not_depend_on_what_else_is_separated(song, model, tmp_path, monkeypatch):
    """Alone, in a folder, in another order, and after an interruption; by chains, which are random."""
    folder = tmp_path / "in"
    folder.mkdir()
    first, second = song.rename(folder / "a.wav"), folder / "b.wav"
    audio.write(second, 0.5 * noise(), RATE)
    chains = ("--method", "langevin", "--chains", "2", "--draws", "5", "--warmup", "2", "--keep", "1", "--seed", "3")

    def separated(place, *inputs):
        done("separate", *inputs, "-n", model, "-o", tmp_path / place, *chains)
        return {
            str(path.relative_to(tmp_path / place)): path.read_bytes() for path in (tmp_path / place).rglob("*.wav")
        }

    whole = separated("folder", folder)
    assert len(whole) == 2 * 2 * 3
    apart = separated("first", first) | separated("second", second)
    assert apart == whole
    assert separated("turned", second, first) == whole
    write, calls = audio.Writer.write, []

    def stopped(writer, samples):
        calls.append(writer)
        if len(calls) == 8:  # of six files of the first track, in the second block
            raise KeyboardInterrupt
        write(writer, samples)

    with monkeypatch.context() as patch:
        patch.setattr(audio.Writer, "write", stopped)
        assert run("separate", folder, "-n", model, "-o", tmp_path / "again", *chains).exit_code == 130
    assert not list((tmp_path / "again").rglob("*.wav"))
    assert separated("again", folder) == whole


def test_other_tracks_are_still_done(song, model, tmp_path):
    for fault in FAULTS:
        fault(tmp_path / f"{fault.__name__}.wav")
    (tmp_path / "nothing").mkdir()
    inputs = [tmp_path / "gone.wav", tmp_path / "nothing", *(tmp_path / f"{fault.__name__}.wav" for fault in FAULTS)]
    figures = tmp_path / "figures.json"
    options = ("-n", model, "-o", tmp_path / "out", "--method", "exact", "--json", figures)
    result = run("separate", *inputs, song, *options)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == len(inputs) + 1
    assert lines[-1] == f"pyrosep: error: {len(inputs)} of {len(inputs) + 1} tracks failed"
    for name in ("gone", "nothing", *(fault.__name__ for fault in FAULTS)):
        assert sum(name in line for line in lines) >= 1, name
    assert sums_to(tmp_path / "out" / "tiny" / "song", audio.read(song).samples)
    assert [path.name for path in (tmp_path / "out" / "tiny").iterdir()] == ["song"]
    reports = json.loads(figures.read_text())
    assert len(reports) == len(inputs) + 1
    assert sum("error" in report for report in reports.values()) == len(inputs)
    assert "error" not in reports["song"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory; take fewer --chains or --draws"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"), "out of memory; take fewer"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("two\nlines"), "unexpected RuntimeError: two lines (PYROSEP_DEBUG=1 shows where)"),
    ],
    ids=["memory", "cuda-memory", "allocator", "disk", "unexpected"],
)
def test_a_track_that_fails_lets_the_others_be(error, words, song, model, tmp_path, monkeypatch):
    from pyrosep.separation import files

    audio.write(tmp_path / "large.wav", noise(), RATE)
    separate_track = files.separate_track

    def fails(path, *arguments, **options):
        if path.stem == "large":
            raise error
        return separate_track(path, *arguments, **options)

    monkeypatch.setattr(files, "separate_track", fails)
    options = ("-n", model, "--method", "exact")
    line = failed("separate", tmp_path / "large.wav", "-o", tmp_path / "one", *options)
    assert "large.wav" in line
    assert words in line
    result = run("separate", tmp_path / "large.wav", song, "-o", tmp_path / "two", *options)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2
    assert (tmp_path / "two" / "tiny" / "song" / "run.json").is_file()


def test_an_interruption_keeps_what_is_finished(song, model, tmp_path, monkeypatch):
    from pyrosep.separation import files

    audio.write(tmp_path / "zebra.wav", noise(), RATE)
    separate_track = files.separate_track

    def interrupted(path, *arguments, **options):
        if path.stem == "zebra":
            raise KeyboardInterrupt
        return separate_track(path, *arguments, **options)

    command = ("separate", song, tmp_path / "zebra.wav", "-n", model, "-o", tmp_path / "out", "--method", "exact")
    with monkeypatch.context() as patch:
        patch.setattr(files, "separate_track", interrupted)
        line = failed(*command, code=130)
    assert line == "pyrosep: interrupted: what was finished is kept; run the same command again to go on"
    lines = done(*command).stdout.splitlines()
    assert lines[0].startswith("song: done before, kept")
    assert lines[1].startswith("zebra: ")
    assert "kept" not in lines[1]


def test_the_trace_of_an_unexpected_error_on_request(song, model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYROSEP_DEBUG", "1")
    monkeypatch.setattr("pyrosep.separation.files.separate_track", lambda *arguments, **options: 1 / 0)
    assert "Traceback" in run("separate", song, "-n", model, "-o", tmp_path / "out").stderr


# Everything that can be wrong with the rest


def test_unknown_model(song, tmp_path):
    for command in (("separate", song), ("evaluate", "--data", "toy"), ("evaluate", "--data", song.parent)):
        line = failed(*command, "-n", "nonesuch")
        assert "no prior set 'nonesuch': expected one that is here (band-gaussian, band-small, music-small," in line


@pytest.mark.parametrize("name", ["../../../escaped", "/elsewhere/x", "a\0b"])
def test_a_model_whose_sources_reach_out_of_the_folder(name, song, model, tmp_path):
    shutil.copytree(model, tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["priors"][name] = config["priors"].pop("low")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    before = sorted(tmp_path.rglob("*"))
    line = failed("separate", song, "-n", tmp_path / "theirs", "-o", tmp_path / "out" / "a" / "b", "--method", "exact")
    assert "config.json can't be used: expected a name of a source that files can have" in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_source_given_twice(song, stems, model, tmp_path):
    twice = ("--source", "low", "--source", "low")
    for command in (
        ("separate", song, "-n", model, "-o", tmp_path / "out"),
        ("evaluate", "--data", stems, "-n", model, "--method", "exact"),
        ("train-prior", "gaussian", "--data", stems, "-o", tmp_path / "model"),
    ):
        assert "expected each source once; got 'low' more than once" in failed(*command, *twice)


def broken(folder, kind):
    if kind == "json":
        (folder / "config.json").write_text("{")
    elif kind == "list":
        (folder / "config.json").write_text("[]")
    elif kind == "keys":
        (folder / "config.json").write_text('{"family": "gaussian"}')
    elif kind == "family":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"family": "polka"}))
    elif kind == "cut":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        (folder / "model.safetensors").write_bytes(b"")
    else:
        (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("kind", ["json", "list", "keys", "family", "cut", "empty", "no weights"])
def test_a_damaged_model(kind, song, model, tmp_path):
    folder = tmp_path / "damaged"
    save_priors(folder, load_priors(model))
    broken(folder, kind)
    line = failed("separate", song, "-n", folder, "-o", tmp_path / "out")
    assert "unexpected" not in line
    assert "damaged" in line


@pytest.mark.parametrize("device", ["tpu", "cudax", "cuda:x", ""])
def test_an_unknown_device(device, song, model, stems, tmp_path):
    commands = (
        ("separate", song, "-n", model, "-o", tmp_path / "out"),
        ("evaluate", "--data", stems, "-n", model),
        ("demo", "-o", tmp_path / "demo"),
    )
    for command in commands:
        assert f"expected a device auto, cpu, cuda or cuda:N; got {device!r}" in failed(*command, "-d", device)


def test_training_takes_the_first_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    command = ("train-prior", "continuousflow", "--data", "toy", "-o", tmp_path / "model", "-d", "cuda:1")
    assert "set CUDA_VISIBLE_DEVICES=1 for another one" in failed(*command)
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_cuda(device, song, model, tmp_path):
    line = failed("separate", song, "-n", model, "-o", tmp_path / "out", "-d", device)
    assert line.endswith(f"device {device} was asked for, but there is no CUDA device here; use cpu")


@pytest.mark.gpu
def test_cuda(song, model, tmp_path):
    done("separate", song, "-n", model, "-o", tmp_path / "out", "-d", "cuda", *QUICK)
    assert sums_to(tmp_path / "out" / "tiny" / "song", audio.read(song).samples)
    assert "CUDA devices" in failed("separate", song, "-n", model, "-o", tmp_path / "other", "-d", "cuda:99")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--chains", "0"), "chains must be at least 1; got 0"),
        (("--warmup", "-1"), "warmup must be at least 0; got -1"),
        (("--gains", "1,nan"), "gains must be finite"),
        (("--gains", "1,2,3"), "expected 2 gains"),
        (("--method", "magic"), "method must be one of"),
        (("--overlap", "0.9"), "overlap must be between 0 and 0.5"),
        (("--overlap", "nan"), "overlap must be between 0 and 0.5"),
        (("--segment", "0"), "segment must be a positive number"),
        (("--segment", "inf"), "segment must be a positive number"),
        (("--segment", "0.0001"), "fewer than 2 samples"),
        (("--chains", "1", "--draws", "1"), "at least 2 chains or draws"),
        (("--method", "exact", "--chains", "3"), "method 'exact' takes no chains under these priors"),
        (("--redraws", "3"), "method 'langevin' takes no redraws under these priors; it takes chains, draws"),
        (("--source", "tuba"), "asked for ['tuba']"),
    ],
)
def test_options_out_of_range(options, words, song, model, tmp_path):
    line = failed("separate", song, "-n", model, "-o", tmp_path / "out", *options)
    assert words in line
    assert "unexpected" not in line


def test_exact_needs_gaussians(song, tmp_path):
    assert "needs Gaussian priors" in failed("separate", song, "-n", "toy", "-o", tmp_path, "--method", "exact")


@pytest.mark.parametrize("where", ["out", "json"])
def test_a_place_that_can_not_be_written_to(where, song, model, tmp_path):
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" / "below"
    out, figures = (place, tmp_path / "x.json") if where == "out" else (tmp_path / "out", place)
    line = failed("separate", song, "-n", model, "-o", out, "--method", "exact", "--json", figures)
    assert "unexpected" not in line


# Guides


@pytest.fixture(scope="module")
def guided(model, tmp_path_factory):
    """The model with a guide of its own, untrained."""
    folder = tmp_path_factory.mktemp("guided") / "tiny"
    shutil.copytree(model, folder)
    size = UNetSize(hop=4, width=4, levels=0, layers=1)
    save_guide(folder / "guide", EncoderGuide(load_priors(folder), size=size, project=[1.0, 1.0]), model="tiny")
    return folder


@pytest.mark.parametrize("method", [None, "guide", "guide+langevin", "langevin"])
def test_separate_with_the_models_own_guide(method, song, guided, tmp_path):
    options = () if method is None else ("--method", method)
    numbers = ("--segment", 0.1) if method == "guide" else QUICK
    done("separate", song, "-n", guided, "-o", tmp_path / "out", *options, *numbers)
    folder = tmp_path / "out" / "tiny" / "song"
    sums_to(folder, noise(2))
    run_ = json.loads((folder / "run.json").read_text())
    assert run_["method"]["name"] == (method or "guide+langevin")
    assert run_.get("guide") == (None if method == "langevin" else "guide")
    assert (folder / "posterior.nc").is_file() == (method != "guide")


def test_separate_with_a_guide_from_elsewhere(song, model, guided, tmp_path):
    options = ("-n", model, "-o", tmp_path / "out", *QUICK)
    done("separate", song, *options, "--guide", guided / "guide")
    assert json.loads((tmp_path / "out" / "tiny" / "song" / "run.json").read_text())["guide"] == "guide"
    assert "overwrite it" in failed("separate", song, *options)  # that would be another method
    assert "done before" in done("separate", song, *options, "--guide", guided / "guide").stdout


def test_methods_that_need_a_guide(song, model, tmp_path):
    for method in ("guide", "guide+langevin"):
        assert "needs a guide" in failed("separate", song, "-n", model, "--method", method, "-o", tmp_path)
    assert "no guide 'none'" in failed("separate", song, "-n", model, "--guide", "none", "-o", tmp_path)


def test_evaluate_with_a_guide(stems, guided, tmp_path):
    figures = tmp_path / "figures.json"
    options = ("--method", "guide", "--method", "exact", "--json", figures)
    done("evaluate", "--data", stems, "-n", guided, *options)
    report = json.loads(figures.read_text())
    assert report["guide"] == "guide"
    assert set(report["real_time_factor"]) == {"guide", "exact"}


# Evaluation


def test_a_song_that_fails_costs_no_other_its_scores(stems, model, tmp_path):
    figures = tmp_path / "figures.json"
    truncated(stems / "b" / "low.wav")
    result = run("evaluate", "--data", stems, "-n", model, "--method", "exact", "--json", figures)
    assert result.exit_code == 1
    named, count = result.stderr.splitlines()
    assert str(stems / "b" / "low.wav") in named
    assert count == "pyrosep: error: 1 of 2 mixes failed"
    found = json.loads(figures.read_text())
    assert list(found["failed"]) == ["b"]
    assert {one["name"] for one in found["scores"]} == {"a"}
    assert "tiny on" in result.stdout
    truncated(stems / "a" / "low.wav")
    assert run("evaluate", "--data", stems, "-n", model, "--method", "exact", "--json", figures).exit_code == 1
    assert set(json.loads(figures.read_text())["failed"]) == {"a", "b"}


def test_evaluate_a_folder(stems, model, tmp_path):
    figures = tmp_path / "figures.json"
    options = ("--method", "exact", "--method", "langevin", *QUICK, "--seed", 1, "-d", "cpu", "--json", figures)
    text = done("evaluate", "--data", stems, "-n", model, *options).stdout
    for words in ("tiny on", "2 mixes", "low", "high", "mean", "exact", "langevin", "of computing a second of audio"):
        assert words in text
    report = json.loads(figures.read_text())
    told = {"data", "model", "guide", "settings", "methods", "gains", "summary", "real_time_factor", "scores", "failed"}
    assert set(report) == told
    assert report["methods"]["langevin"]["chains"] == int(QUICK[QUICK.index("--chains") + 1])
    assert report["settings"]["seed"] == 1
    assert set(report["real_time_factor"]) == {"exact", "langevin"}
    assert len(report["scores"]) == 2 * 3 * 2
    rows = {(row["method"], row["source"]): row for row in report["summary"]}
    assert rows["exact", "low"]["count"] == 2
    assert rows["exact", "mean"]["si_sdr_improvement_mean"] > 3
    assert rows["mix", "mean"]["si_sdr_improvement_mean"] == 0


def test_evaluate_a_part(stems, model, tmp_path):
    figures = tmp_path / "figures.json"
    options = ("--songs", 1, "--seconds", 0.2, "--stereo", "--source", "low", "--json", figures)
    done("evaluate", "--data", stems, "-n", model, "--method", "exact", *options)
    scores = json.loads(figures.read_text())["scores"]
    assert {(score["name"], score["source"]) for score in scores} == {("a", "low")}


@said
def test_evaluate_toy_data_finds_the_sources(tmp_path):
    figures = tmp_path / "figures.json"
    options = ("--songs", 1, "--frame", 256, "--source", "square", "--source", "saw", "--json", figures)
    done("evaluate", "--data", "toy", *options, "--chains", 4, "--draws", 10, "--warmup", 40, "--overlap", 0)
    report = json.loads(figures.read_text())
    assert report["model"] == "toy"
    scores = {(score["method"], score["source"]): score["si_sdr"] for score in report["scores"]}
    assert {source for _, source in scores} == {"square", "saw"}
    assert min(scores["langevin", source] for source in ("square", "saw")) > 20


@said
@pytest.mark.parametrize("ladder", ["1,2", "1"])
def test_a_bad_ladder_is_said(tmp_path, ladder):
    options = ("--songs", 1, "--frame", 64, "--source", "saw", "--ladder", ladder)
    result = run("evaluate", "--data", "toy", *options)
    assert result.exit_code == 1
    assert "ladder" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "gone"), "no folder gone"),
        (("--data", "musdb"), "MUSDB_PATH"),
        (("--data", "STEMS", "-n", "toy"), "no prior for ['high', 'low']"),
        (("--data", "STEMS", "--source", "tuba"), "'tuba'"),
        (("--data", "STEMS", "--method", "magic"), "method must be one of"),
        (("--data", "toy", "--source", "tuba"), "tuba"),
        (("--data", "STEMS", "--method", "exact", "--chains", "3"), "none of the methods exact takes chains"),
        (("--data", "toy", "--method", "exact", "--songs", "1"), "needs Gaussian priors"),
    ],
)
def test_evaluate_with_bad_input(options, words, stems, model):
    options = [str(stems) if option == "STEMS" else option for option in options]
    if "-n" not in options and "toy" not in options:
        options += ["-n", str(model)]
    line = failed("evaluate", *options)
    assert words in line
    assert "unexpected" not in line


def test_evaluate_a_damaged_stem(stems, model):
    nan(stems / "a" / "low.wav")
    audio.write(stems / "a" / "high.wav", noise(), RATE)
    shutil.rmtree(stems / "b")
    assert "NaN" in failed("evaluate", "--data", stems, "-n", model, "--method", "exact")


def test_evaluate_silence(stems, model):
    for path in stems.rglob("*.wav"):
        audio.write(path, torch.zeros(1, 100), RATE)
    assert "no source of" in failed("evaluate", "--data", stems, "-n", model)


def test_figures_without_a_number_are_null(stems, model, tmp_path, monkeypatch):
    """Strict readers of JSON know no NaN and no infinity."""
    monkeypatch.setattr(
        "pyrosep.evaluation.scores.bss_eval",
        lambda truth, estimate, rate: {"SIR": [math.inf] * 2, "SDR": [math.nan] * 2},
    )
    figures = tmp_path / "figures.json"
    done("evaluate", "--data", stems, "-n", model, "--method", "exact", "--bss-eval", "--json", figures)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(figures.read_text(), parse_constant=refuse)["scores"][0]["bss"] == {"SIR": None, "SDR": None}


# Training


def test_train_a_prior_and_evaluate_it(stems, tmp_path):
    out, figures = tmp_path / "trained", tmp_path / "figures.json"
    train = ("train-prior", "gaussian", "--data", stems, "-o", out, "--frame", 512, "--window", 64)
    text = done(*train, "--source", "low", "--summary", "first", "--gains", "level", "--json", figures).stdout
    assert f"written to {out}" in text
    assert "low: recordings 2" in text
    assert json.loads(figures.read_text())["low"]["recordings"] == 2
    assert prior_set_info(out).sources == ("low",)
    done(*train, "--source", "high", "--seed", 1)
    info = prior_set_info(out)
    assert (info.sources, info.frame, info.sample_rate, info.summary) == (("low", "high"), 512, RATE, "first")
    done("evaluate", "--data", stems, "-n", out, "--method", "exact", "--json", figures)
    rows = {(row["method"], row["source"]): row for row in json.loads(figures.read_text())["summary"]}
    assert rows["exact", "mean"]["si_sdr_improvement_mean"] > 3


def test_train_at_another_rate(stems, tmp_path):
    options = ("--sample-rate", 4000, "--frame", 256, "--window", 64)
    done("train-prior", "gaussian", "--data", stems, "-o", tmp_path / "model", *options)
    assert prior_set_info(tmp_path / "model").sample_rate == 4000
    options = ("--sample-rate", 4000, "--frame", 512, "--window", 64)
    line = failed("train-prior", "gaussian", "--data", stems, "-o", tmp_path / "model", *options)
    assert "write them to another folder" in line


def test_train_on_toy_data(tmp_path, monkeypatch):
    out, figures = tmp_path / "toy-gaussian", tmp_path / "figures.json"
    options = ("--source", "saw", "--source", "sine", "--frame", 1024, "--window", 512, "--gains", "mean")
    done("train-prior", "gaussian", "--data", "toy", "-o", out, *options)
    assert prior_set_info(out).sources == ("saw", "sine")
    assert prior_set_info(out).sample_rate == 14_700
    options = ("--source", "saw", "--source", "sine", "--songs", 2, "--frame", 1024, "--method", "exact")
    done("evaluate", "--data", "toy", "-n", out, *options, "--json", figures)
    assert json.loads(figures.read_text())["gains"] == "mean"
    assert json.loads(figures.read_text())["methods"] == {"exact": {"name": "exact"}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "gone"), "no folder gone"),
        (("--data", "musdb"), "MUSDB_PATH"),
        (("--data", "toy", "--source", "tuba"), "tuba"),
        (("--data", "STEMS", "--source", "tuba"), "'tuba'"),
        (("--data", "STEMS", "--window", "7"), "even number"),
        (("--data", "STEMS", "--window", "8192"), "at least one frame"),
        (("--data", "STEMS", "--gains", "loud"), "gains must be one of"),
    ],
)
def test_train_with_bad_input(options, words, stems, tmp_path):
    options = [str(stems) if option == "STEMS" else option for option in options]
    line = failed("train-prior", "gaussian", *options, "-o", tmp_path / "model")
    assert words in line
    assert "unexpected" not in line
    assert not (tmp_path / "model").exists()


# Models, diagnoses, the demonstration


def test_models(tmp_path):
    text = done("models", "--json", tmp_path / "figures.json").stdout
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [one["name"] for one in found] == [
        "band-gaussian",
        "band-small",
        "music-small",
        "song-gaussian",
        "toy",
        "toy-continuous",
        "toy-flowavenet",
    ]
    for one in found:
        assert one["name"] in text
        assert str(one["sample_rate"]) in text
    assert set(found[0]["sources"]) == {"bass", "drums", "guitar", "piano"}
    assert set(found[2]["sources"]) == {"bass", "drums", "vocals", "other"}


@arviz_on_matplotlib
def test_diagnose(song, model, tmp_path):
    done("separate", song, "-n", model, "-o", tmp_path / "out", *QUICK)
    folder, figures = tmp_path / "out" / "tiny" / "song", tmp_path / "figures.json"
    text = done("diagnose", folder, "--rows", 3, "--json", figures).stdout
    assert "r_hat" in text
    report = json.loads(figures.read_text())
    assert report["verdict"] in text
    assert len(report["pictures"]) >= 3
    for picture in report["pictures"]:
        with open(picture, "rb") as file:
            assert file.read(4) == b"\x89PNG"
    assert "energy_db" in "".join(report["summaries"])
    done("diagnose", folder / "posterior.nc", "-o", tmp_path / "pictures", "--quiet")
    assert list((tmp_path / "pictures").iterdir())


def test_diagnose_with_bad_input(tmp_path):
    assert "no file" in failed("diagnose", tmp_path / "gone.nc")
    assert "no file" in failed("diagnose", tmp_path)
    (tmp_path / "posterior.nc").write_text("not NetCDF")
    assert "not a NetCDF file" in failed("diagnose", tmp_path)


@pytest.fixture
def short_song(monkeypatch):
    """The demonstration's song, its stems two seconds of noise."""
    stems = {name: noise(2, 2.0, 16_000) * (1 + k) for k, name in enumerate(("drums", "bass", "other", "vocals"))}
    monkeypatch.setattr("pyrosep.demo.demo_song", lambda: (sum(stems.values()), stems, 16_000))


@pytest.mark.slow
@said
def test_demo(tmp_path, short_song):
    figures = tmp_path / "figures.json"
    options = ("--chains", 2, "--seed", 1, "-d", "cpu", "--json", figures)
    text = done("demo", "-o", tmp_path / "demo", *options).stdout
    estimates = ("mix as estimate", "Gaussian priors", "guide", "chains from the guide")
    for words in (*estimates, "2 chains", "sum to the mix", "Four toy waves", "with the clipper"):
        assert words in text
    for part in ("toy", "clipped", "song"):
        assert str(tmp_path / "demo" / f"{part}.png") in text
    report = json.loads(figures.read_text())
    assert tuple(report["song"]["scores"]) == estimates
    assert report["total_seconds"] > 0
    assert done("demo", "-o", tmp_path / "demo", *options, "--quiet").output == ""


def test_demo_without_its_song(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "stempeg" in failed("demo", "-o", tmp_path / "demo")


# As a program


def program(*arguments, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYROSEP_DEBUG"}
    command = [sys.executable, "-m", "pyrosep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)


@pytest.mark.slow
def test_as_a_program(song, model, tmp_path):
    good = program("separate", song, "-n", model, "--method", "exact", cwd=tmp_path)
    assert good.stderr == ""
    assert good.returncode == 0
    assert sums_to(tmp_path / "separated" / "tiny" / "song", audio.read(song).samples)
    bad = program("separate", "gone.wav", "-n", model, cwd=tmp_path)
    assert bad.returncode == 1
    assert bad.stderr == "pyrosep: error: no file or folder gone.wav; check the path\n"
    assert bad.stdout == ""


@pytest.mark.slow
def test_ctrl_c(song, model, tmp_path):
    """The program gets the signal in the middle of a track, ends with 130 and leaves no track half-written."""
    import signal

    command = [sys.executable, "-m", "pyrosep", "separate", str(song), "-n", str(model), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--warmup", "10000000"],
        stderr=subprocess.PIPE,
        text=True,
        # A program in the background is started with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "tiny").is_dir() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr == "pyrosep: interrupted: what was finished is kept; run the same command again to go on\n"
    assert list((tmp_path / "out" / "tiny").iterdir()) == []


@pytest.mark.slow
def test_a_killed_run(song, model, tmp_path):
    """What it leaves is removed by the next run, which finishes the track."""
    out = tmp_path / "out" / "tiny"
    command = ("separate", song, "-n", model, "-o", tmp_path / "out")
    process = subprocess.Popen([sys.executable, "-m", "pyrosep", *map(str, command), "--warmup", "10000000"])
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob(".song-*/new/.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        done(*command, "--method", "exact", "--source", "low")
        assert len(os.listdir(out)) == 2, "what a live run writes stays"
    finally:
        process.kill()
        process.wait(timeout=60)
    assert len(os.listdir(out)) == 2
    assert "kept" in done(*command, "--method", "exact", "--source", "low").stdout
    assert os.listdir(out) == ["song"]


# --- flows ---------------------------------------------------------------------------------------------------------

#: Lightning asks for worker processes and the like; a person at the command line sees it, a test does not care.
lightning = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
FLOW = ("train-prior", "flowavenet", "--data", "toy", "--size", "tiny", "--frame", "64", "--batch", "4", "-d", "cpu")


@pytest.fixture
def few_periods(monkeypatch):
    """Toy waves of three periods, whose exact density is quick beside that of all of them."""
    monkeypatch.setattr(
        "pyrosep.training.frames.OscillatorPrior",
        lambda wave, frame: OscillatorPrior(wave, frame, periods=(13, 17, 23)),
    )


@lightning
@pytest.mark.usefixtures("few_periods")
def test_train_flowavenet(tmp_path):
    out = tmp_path / "flows"
    arguments = (*FLOW, "-o", out, "--source", "saw", "--steps", "3", "--gains", "mean", "--json", tmp_path / "f.json")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"saw: steps 3, .*nats at 0\.36", result.stdout)
    assert prior_set_info(out).family == "flowavenet"
    assert prior_set_info(out).gains == "mean"
    prior = load_priors(out)["saw"]
    assert prior.time == 64
    assert json.loads((tmp_path / "f.json").read_text())["saw"]["steps"] == 3
    assert (out / "training" / "saw" / "checkpoint.pt").is_file()
    again = run(*FLOW, "-o", out, "--source", "sine", "--steps", "2", "--quiet")
    assert (again.exit_code, again.stdout) == (0, "")
    assert prior_set_info(out).sources == ("saw", "sine")


@lightning
@pytest.mark.usefixtures("few_periods")
def test_train_flowavenet_resumes(tmp_path):
    first = (*FLOW, "-o", tmp_path, "--source", "saw", "--steps", "3", "--quiet")
    assert run(*first).exit_code == 0
    before = load_priors(tmp_path)["saw"].network.state_dict()
    assert run(*first).exit_code == 0  # nothing is left to do
    after = load_priors(tmp_path)["saw"].network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    line = failed(*FLOW, "-o", tmp_path, "--source", "saw", "--steps", "4", "--quiet")
    assert "other settings (steps 3, not 4)" in line
    assert run(*FLOW, "-o", tmp_path, "--source", "saw", "--steps", "4", "--quiet", "--overwrite").exit_code == 0


@lightning
@pytest.mark.usefixtures("few_periods")
def test_train_flowavenet_by_the_seeds_schedule(tmp_path):
    arguments = ("--source", "sine", "--steps", "4", "--finetune", "--level", "0.05", "--level", "0.36")
    assert run(*FLOW, "-o", tmp_path, *arguments, "--quiet").exit_code == 0
    for level in ("0.05", "0.36"):
        assert load_priors(tmp_path / f"sigma-{level}")["sine"].sigma_min == float(level)


@lightning
@pytest.mark.slow
def test_train_flowavenet_side_by_side(tmp_path):
    """Two processes, one a source, each with the weights that it would have alone."""
    arguments = ("--source", "sine", "--source", "saw", "--steps", "2", "--quiet")
    assert run(*FLOW, "-o", tmp_path / "one", *arguments).exit_code == 0
    assert run(*FLOW, "-o", tmp_path / "two", *arguments, "--workers", "2").exit_code == 0
    one, two = load_priors(tmp_path / "one"), load_priors(tmp_path / "two")
    assert list(one) == list(two)
    for name, prior in one.items():
        for key, value in prior.network.state_dict().items():
            assert torch.equal(value, two[name].network.state_dict()[key])


@pytest.mark.slow
def test_train_flowavenet_on_two_devices(tmp_path):
    """Two processes on the CPU share each step."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "pyrosep",
        *FLOW,
        "-o",
        tmp_path,
        "--source",
        "saw",
        "--steps",
        "3",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command), "--devices", "2"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_priors(tmp_path)["saw"].sample().shape == (64,)


def test_train_flowavenet_mistakes(tmp_path):
    for arguments, said in (
        (("--size", "huge"), "size must be one of tiny, small, talk; got 'huge'"),
        (("--finetune", "--contrast", "1"), "a contrast is for one flow of all levels"),
        (("--level", "0.1"), "levels are for copies that are finetuned"),
        (("--workers", "2", "--devices", "2"), "several workers take one device a source"),
        (("--precision", "8"), "precision must be one of"),
    ):
        assert said in failed(*FLOW, "-o", tmp_path, *arguments)


DENOISER = ("train-prior", "continuousflow", *FLOW[2:])


@lightning
@pytest.mark.usefixtures("few_periods")
def test_train_continuousflow(tmp_path):
    out = tmp_path / "priors"
    arguments = ("-o", out, "--source", "saw", "--steps", "3", "--gains", "mean", "--json", tmp_path / "f.json")
    result = run(*DENOISER, *arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"saw: steps 3, .*SNR at 0\.36 -?[\d.]+, exact at 0\.36", result.stdout)
    assert (prior_set_info(out).family, prior_set_info(out).gains) == ("continuousflow", "mean")
    prior = load_priors(out)["saw"]
    assert (prior.time, prior.sigma_min) == (64, 0.01)
    assert json.loads((tmp_path / "f.json").read_text())["saw"]["steps"] == 3
    once = (out / "model.safetensors").stat().st_size
    assert run(*DENOISER, *arguments[:-2], "--quiet", "--full").exit_code == 0  # nothing is left to train
    assert (out / "model.safetensors").stat().st_size > 1.5 * once
    again = run(*DENOISER, "-o", out, "--source", "sine", "--steps", "2", "--start", out, "--quiet")
    assert "has the sources ['saw']; asked for ['sine']" in again.stderr
    again = run(*DENOISER, "-o", tmp_path / "more", "--source", "saw", "--steps", "2", "--start", out, "--quiet")
    assert (again.exit_code, again.stdout) == (0, "")


@lightning
def test_train_continuousflow_on_recordings(tmp_path, stems, monkeypatch):
    """Of all sources, whose recordings are opened once."""
    opened = []
    monkeypatch.setattr(
        "pyrosep.data.catalog.open_data_sets",
        lambda *names, **options: opened.append(names) or open_data_sets(*names, **options),
    )
    options = ("--sample-rate", "4000", "--gain-jitter", "3", "--pitch-jitter", "0.5", "--flip", "--takes", "0.2")
    arguments = (
        "train-prior",
        "continuousflow",
        "--data",
        stems,
        "-o",
        tmp_path / "out",
        "--size",
        "tiny",
        "-d",
        "cpu",
    )
    result = run(*arguments, *options, "--frame", "64", "--batch", "4", "--steps", "2", "--spread", "0", "--quiet")
    assert result.exit_code == 0, result.output
    info = prior_set_info(tmp_path / "out")
    assert (info.family, info.sample_rate, info.frame) == ("continuousflow", 4000, 64)
    assert info.sources == ("high", "low")
    assert len(opened) == 1


@lightning
def test_train_continuousflow_with_interference(tmp_path, stems):
    command = ("train-prior", "continuousflow", "--data", stems, "--size", "tiny", "-d", "cpu", "--quiet")
    quick, heard = ("--frame", "64", "--batch", "4", "--steps", "2"), ("--interference", "0.5")
    alone, out = ("-o", tmp_path / "alone"), ("-o", tmp_path / "out", "--json", tmp_path / "f.json")
    assert run(*command, *quick, *alone).exit_code == 0
    # A model of sources alone is a start for one that knows interference.
    result = run(*command, *quick, *heard, *out, "--start", tmp_path / "alone")
    assert result.exit_code == 0, result.output
    assert all(prior.knows_interference for prior in load_priors(tmp_path / "out").values())
    for report in json.loads((tmp_path / "f.json").read_text()).values():
        assert "SNR with others at 0.1" in report


def test_train_continuousflow_mistakes(tmp_path):
    for arguments, said in (
        (("--size", "huge"), "size must be one of tiny, small, music, large; got 'huge'"),
        (("--flip",), "an augmentation is for recordings, not toy data"),
        (("--takes", "2"), "takes from 0 to 1"),
        (("--interference", "0.5", "--told", "all"), "may be told nothing, presence, level, apart of interference"),
        (("--workers", "2", "--devices", "2"), "several workers take one device a source"),
        (("--start", "toy"), "expected a model of continuousflow priors to start from; toy has oscillator priors"),
    ):
        assert said in failed(*DENOISER, "-o", tmp_path, *arguments)
