"""Files: which ones are found under what names, what is written of them, and what an interruption leaves."""

import json
import math
import os
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pyrosep import GaussianPrior, audio
from pyrosep.diagnostics import read_netcdf, summarize
from pyrosep.errors import ConfigurationError, DataError, MissingFileError, NonFiniteAudioError
from pyrosep.separation import Chains, Settings, Wiener
from pyrosep.separation.files import find_tracks, separate_track
from pyrosep.zoo import PriorSet, PriorSetInfo

RATE = 8_000
SETTINGS = Settings(Chains(2, 10, 5, ladder=None), segment=0.05)
EXACT = Settings("exact", segment=0.05)


@pytest.fixture
def priors():
    return {
        "low": GaussianPrior(torch.tensor([1.0, 0.1, 0.01]), 512, sample_rate=RATE),
        "high": GaussianPrior(torch.tensor([0.01, 0.1, 1.0]), 512, sample_rate=RATE),
    }


def noise(channels=1, seconds=0.3, rate=RATE):
    return 0.1 * torch.randn(channels, round(seconds * rate), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def track(tmp_path):
    audio.write(tmp_path / "song.wav", noise(2), RATE)
    return tmp_path / "song.wav"


def set_of(priors, name="tiny", folder="nowhere"):
    """A set whose files don't matter here."""
    first = next(iter(priors.values()))
    info = PriorSetInfo(name, Path(folder), "gaussian", tuple(priors), first.sample_rate, first.time, "level", "")
    return PriorSet(priors, info=info)


def run(path, folder, priors, settings=SETTINGS, **options):
    return separate_track(path, folder, set_of(priors), settings, **options)


# Finding


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def named(root, *inputs):
    found = find_tracks(inputs or [root])
    return {name: path.relative_to(root.resolve()).as_posix() for name, path in found.items()}


def test_names_are_the_files_stems(tmp_path):
    touch(tmp_path, "b.mp3", "a.wav", "c.FLAC", "d.ogg", "e.m4a", "f.mp4", "deep/er/g.wav", "cover.jpg", "notes.txt")
    expected = {"a": "a.wav", "b": "b.mp3", "c": "c.FLAC", "d": "d.ogg", "e": "e.m4a", "f": "f.mp4"}
    assert named(tmp_path) == expected | {"g": "deep/er/g.wav"}


def test_both_suffixes_of_a_stem_file_go(tmp_path):
    touch(tmp_path, "My Song.stem.mp4", "no.1 hit.wav")
    assert named(tmp_path) == {"My Song": "My Song.stem.mp4", "no.1 hit": "no.1 hit.wav"}


def test_one_name_with_several_suffixes(tmp_path):
    touch(tmp_path, "a.wav", "a.mp3", "b.wav")
    assert named(tmp_path) == {"a.mp3": "a.mp3", "a.wav": "a.wav", "b": "b.wav"}


def test_one_name_in_several_folders(tmp_path):
    touch(tmp_path, "one/mix.wav", "two/mix.wav", "two/other.wav")
    assert named(tmp_path) == {"one mix.wav": "one/mix.wav", "two mix.wav": "two/mix.wav", "other": "two/other.wav"}


def test_one_name_in_folders_of_one_name(tmp_path):
    touch(tmp_path, "x/disc/mix.wav", "y/disc/mix.wav")
    found = find_tracks([tmp_path])
    assert len(found) == 2
    assert all(os.sep not in name and name.endswith("disc_mix.wav") for name in found)


def test_a_name_that_another_file_has_as_its_short_one(tmp_path):
    touch(tmp_path, "a.wav", "a.mp3", "a.wav.flac")
    found = named(tmp_path)
    assert sorted(found.values()) == ["a.mp3", "a.wav", "a.wav.flac"]
    assert found["a.wav"] == "a.wav.flac"


def test_files_given_are_taken_as_they_are(tmp_path):
    touch(tmp_path, "take.dat", "a.wav")
    assert named(tmp_path, tmp_path / "take.dat", str(tmp_path / "a.wav")) == {"take": "take.dat", "a": "a.wav"}


def test_what_is_given_twice_is_done_once(tmp_path):
    touch(tmp_path, "in/a.wav")
    assert named(tmp_path, tmp_path, tmp_path / "in", tmp_path / "in" / "a.wav") == {"a": "in/a.wav"}


def test_hidden_files_and_folders_of_that_name_are_passed_over(tmp_path):
    touch(tmp_path, "._a.wav", ".hidden.wav", ".trash/b.wav", "c.wav", "folder.wav/notes.txt")
    assert named(tmp_path) == {"c": "c.wav"}
    touch(tmp_path, ".trash/b.wav")
    assert list(find_tracks([tmp_path / ".trash"])) == ["b"], "given by name it counts"


def test_missing_and_empty(tmp_path):
    with pytest.raises(MissingFileError, match=r"no file or folder .*gone\.wav; check the path"):
        find_tracks([tmp_path / "gone.wav"])
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"holds no audio file \(\.wav, \.flac"):
        find_tracks([tmp_path])
    assert find_tracks([]) == {}
    with pytest.raises(MissingFileError, match="no file or folder ''; give the path of one"):
        find_tracks([""])


def test_a_link_is_named_by_its_own_name(tmp_path):
    touch(tmp_path, "blobs/sha256-0af")
    (tmp_path / "in").mkdir()
    for name in ("My Song.wav", "again.wav"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "blobs" / "sha256-0af")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    assert list(find_tracks([tmp_path / "in", tmp_path / "linked" / "again.wav"])) == ["My Song", "again"]


def test_linked_folders_are_entered(tmp_path):
    touch(tmp_path, "real/a.wav", "in/b.wav")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    assert named(tmp_path, tmp_path / "in") == {"a": "real/a.wav", "b": "in/b.wav"}


def test_every_kind_of_file_that_is_read_is_found(tmp_path):
    touch(tmp_path, *(f"{number}{suffix}" for number, suffix in enumerate(audio.SUFFIXES)), "upper.OPUS")
    assert len(find_tracks([tmp_path])) == len(audio.SUFFIXES) + 1
    assert {".opus", ".aiff", ".aac", ".webm", ".mkv", ".mov", ".caf", ".au", ".wv", ".w64", ".rf64"} < set(
        audio.SUFFIXES
    )


def test_sound_that_is_not_read_is_named(track, tmp_path):
    touch(tmp_path, "cover.jpg", "notes.txt", "run", "deep/list.m3u8", "deep/tune.mid", ".hidden/tune.ape")
    (tmp_path / "deep" / "no suffix").write_bytes(track.read_bytes())
    with pytest.warns(
        UserWarning,
        match=r"not read in .*: deep.list\.m3u8, deep.no suffix, deep.tune\.mid; convert them to one of \.wav",
    ):
        assert list(find_tracks([tmp_path])) == ["song"]


def test_inputs_without_tracks_are_told_and_the_others_are_found(track, tmp_path):
    refused = []
    touch(tmp_path, "empty/notes.txt", "in/list.m3u8")
    (tmp_path / "in" / "song.wav").write_bytes(track.read_bytes())
    inputs = [tmp_path / "gone.wav", tmp_path / "in", "", tmp_path / "empty", track]
    with pytest.warns(UserWarning, match="not read in") as caught:
        found = find_tracks(inputs, failed=lambda given, error: refused.append((given, type(error))))
    assert len(caught) == 1
    assert [path.relative_to(tmp_path.resolve()).as_posix() for path in found.values()] == ["in/song.wav", "song.wav"]
    assert refused == [(inputs[0], MissingFileError), ("", MissingFileError), (inputs[3], DataError)]


def test_stems_that_were_written_are_no_tracks(track, priors):
    """So that a folder which holds the output can be given again."""
    run(track, track.parent / "separated" / "tiny" / "song", priors, EXACT)
    assert named(track.parent) == {"song": "song.wav"}


# Writing


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [RATE, 11_025])
def test_what_is_written(tmp_path, priors, channels, rate):
    mix = noise(channels, 0.33, rate)
    audio.write(tmp_path / "song.wav", mix, rate)
    seen = []
    folder = tmp_path / "out" / "tiny" / "song"
    report = run(tmp_path / "song.wav", folder, priors, progress=lambda done, total: seen.append((done, total)))
    stems = {f"{name}{kind}.wav" for name in priors for kind in ("", ".std")}
    assert {path.name for path in folder.iterdir()} == stems | {"posterior.nc", "run.json"}
    total = torch.zeros_like(mix)
    for name in priors:
        stem = audio.read(folder / f"{name}.wav")
        assert (stem.samples.shape, stem.sample_rate) == (mix.shape, rate)
        total += stem.samples
        spread = audio.read(folder / f"{name}.std.wav").samples
        assert spread.shape == mix.shape
        assert bool((spread > 0).all())
    assert 10 * torch.log10((total - mix).square().mean() / mix.square().mean()) < -60
    assert seen[-1] == (mix.shape[-1], mix.shape[-1])
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert json.loads((folder / "run.json").read_text()) == json.loads(json.dumps(report))
    assert report["sample_rate"] == rate
    assert report["channels"] == channels
    assert report["seconds"] == round(mix.shape[-1] / rate, 3)
    assert report["settings"]["segment"] == 0.05
    assert report["method"]["draws"] == 10
    assert report["sources"] == list(report["gains"]) == ["low", "high"]
    assert report["diagnostics"]["summaries"] > 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["song"]
    assert folder.stat().st_mode & 0o055 == 0o055, "others may read it"


def test_the_posterior_can_be_read_and_summarised(track, priors, tmp_path):
    report = run(track, tmp_path / "out" / "song", priors)
    idata = read_netcdf(tmp_path / "out" / "song" / "posterior.nc")
    assert dict(idata.posterior.sizes) == {
        "chain": 2, "draw": 10, "window": 8, "channel": 2, "source": 2, "band": 3, "direction": 4,
    }  # fmt: skip
    assert list(idata.posterior.source.values) == ["low", "high"]
    table = summarize(idata)
    assert len(table) == report["diagnostics"]["summaries"]
    assert table["r_hat"].max() == pytest.approx(report["diagnostics"]["max_r_hat"], abs=1e-4)


def test_draws_that_are_kept_are_written(track, priors, tmp_path):
    mix = audio.read(track).samples
    run(track, tmp_path / "out", priors, replace(SETTINGS, keep=2))
    for draw in range(2):
        total = sum(audio.read(tmp_path / "out" / f"{name}.draw{draw}.wav").samples for name in priors)
        assert 10 * torch.log10((total - mix).square().mean() / mix.square().mean()) < -60
    assert len(list((tmp_path / "out").glob("*.wav"))) == 8


def test_exact_writes_no_posterior(track, priors, tmp_path):
    report = run(track, tmp_path / "out", priors, EXACT)
    assert not (tmp_path / "out" / "posterior.nc").exists()
    assert "diagnostics" not in report


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(Chains(2, 3, 5, ladder=None), segment=0.1), "at least 4 draws"),
        (Settings(Chains(1, 20, 5, ladder=None), segment=0.1), "one chain"),
    ],
)
def test_too_little_to_diagnose(track, priors, tmp_path, settings, words):
    report = run(track, tmp_path / "out", priors, settings)
    assert list(report["diagnostics"]) == ["verdict"]
    assert words in report["diagnostics"]["verdict"]
    assert "NaN" not in (tmp_path / "out" / "run.json").read_text()


# Again


def test_finished_tracks_are_kept(track, priors, tmp_path):
    first = run(track, tmp_path / "out", priors)
    before = (tmp_path / "out" / "low.wav").stat().st_mtime_ns
    again = run(track, tmp_path / "out", priors)
    assert again == json.loads(json.dumps(first)) | {"skipped": True}
    assert (tmp_path / "out" / "low.wav").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["settings", "method", "sources", "model", "input"])
def test_other_settings_are_refused(track, priors, tmp_path, change):
    out = tmp_path / "out"
    run(track, out, priors, EXACT)
    settings, name = EXACT, "tiny"
    if change == "settings":
        settings = Settings("exact", segment=0.1)
    elif change == "method":
        settings = replace(SETTINGS, segment=EXACT.segment)
    elif change == "sources":
        priors = {"low": priors["low"]}
    elif change == "model":
        name = "other"
    else:
        audio.write(track, 0.5 * noise(2), RATE)
    with pytest.raises(ConfigurationError, match=f"separated with another {change}; overwrite it"):
        separate_track(track, out, set_of(priors, name), settings)
    report = separate_track(track, out, set_of(priors, name), settings, overwrite=True)
    assert "skipped" not in report
    assert (out / "high.wav").exists() == (change != "sources"), "nothing of the former run stays"


def test_records_with_the_methods_numbers_among_the_settings_are_known(track, priors, tmp_path):
    """As earlier versions wrote them."""
    run(track, tmp_path / "out", priors, EXACT)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["settings"] |= {"method": None, "chains": 3, "ladder": None}
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    assert run(track, tmp_path / "out", priors, Settings(Wiener(), segment=0.05))["skipped"]
    with pytest.raises(ConfigurationError, match="separated with another settings;"):
        run(track, tmp_path / "out", priors, replace(EXACT, seed=1))


def test_a_file_is_known_by_its_content(track, priors, tmp_path):
    """Neither a new name of the file, nor a new time, nor a new place of the stems makes another track of it."""
    run(track, tmp_path / "out", priors, EXACT)
    moved = track.rename(tmp_path / "renamed.wav")
    os.utime(moved, (0, 0))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert run(moved, tmp_path / "elsewhere", priors, EXACT)["skipped"]
    before = moved.stat()
    samples = audio.read(moved).samples
    audio.write(moved, samples.flip(-1), RATE)
    os.utime(moved, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert moved.stat().st_size == before.st_size
    with pytest.raises(ConfigurationError, match="separated with another input;"):
        run(moved, tmp_path / "elsewhere", priors, EXACT)


def test_a_record_without_a_digest_knows_the_path(track, priors, tmp_path):
    run(track, tmp_path / "out", priors, EXACT)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    del record["input_digest"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    assert run(track, tmp_path / "out", priors, EXACT)["skipped"]
    with pytest.raises(ConfigurationError, match="separated with another input;"):
        run(track.rename(tmp_path / "renamed.wav"), tmp_path / "out", priors, EXACT)


@pytest.mark.parametrize("change", ["missing", "empty", "missing posterior"])
@pytest.mark.parametrize("sizes", [True, False], ids=["sizes", "no-sizes"])
def test_a_track_that_is_not_whole_is_not_finished(track, priors, tmp_path, change, sizes):
    out = tmp_path / "out"
    settings = Settings(Chains(2, 4, 1, ladder=None), segment=0.1, keep=1)
    run(track, out, priors, settings)
    before = audio.read(out / "low.draw0.wav").samples
    if not sizes:  # as runs wrote it that did not record them
        record = json.loads((out / "run.json").read_text())
        del record["files"]
        (out / "run.json").write_text(json.dumps(record))
    assert run(track, out, priors, settings)["skipped"]
    path = out / ("posterior.nc" if change == "missing posterior" else "low.draw0.wav")
    if change == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert "skipped" not in run(track, out, priors, settings)
    assert torch.equal(audio.read(out / "low.draw0.wav").samples, before)
    assert run(track, out, priors, settings)["skipped"]
    assert sorted(os.listdir(tmp_path)) == ["out", "song.wav"]


def test_a_stem_that_was_changed_is_kept_beside_the_new_one(track, priors, tmp_path):
    out = tmp_path / "out"
    run(track, out, priors, EXACT)
    (out / "low.wav").write_bytes(b"cut by hand")
    (out / "my notes.txt").write_text("dear")
    with pytest.warns(UserWarning, match=r"low\.wav was not as pyrosep wrote it.* is now low\.before1\.wav"):
        assert "skipped" not in run(track, out, priors, EXACT)
    run(track, out, priors, EXACT, overwrite=True)
    assert (out / "low.before1.wav").read_bytes() == b"cut by hand"
    assert (out / "my notes.txt").read_text() == "dear"
    assert run(track, out, priors, EXACT)["skipped"]


def test_two_runs_into_one_folder(track, priors, tmp_path):
    """The one that comes last finds the track finished, and keeps it; with other settings it fails."""
    out, more = tmp_path / "out" / "song", tmp_path / "out" / "more"
    other = Settings("exact", segment=0.1)

    def meanwhile(settings):
        return lambda done, total: run(track, out, priors, settings) if not out.exists() else None

    assert run(track, out, priors, EXACT, progress=meanwhile(EXACT))["skipped"]
    assert run(track, out, priors, EXACT)["skipped"]
    assert "skipped" not in run(track, out, priors, EXACT, overwrite=True, progress=meanwhile(EXACT))
    with pytest.raises(ConfigurationError, match="another settings"):
        run(track, more, priors, EXACT, progress=lambda done, total: run(track, more, priors, other))
    assert sorted(os.listdir(out.parent)) == ["more", "song"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [None, "no json", "[]", "{}", '{"pyrosep": "0", "score": 3}'])
def test_a_folder_of_something_else_is_left_alone(track, priors, tmp_path, content, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "my notes.txt").write_text("dear")
    if content is not None:
        (tmp_path / "out" / "run.json").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ConfigurationError, match=r"pyrosep did not write it.* Move it away, or name another output folder"
    ):
        run(track, tmp_path / "out", priors, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "out" / "my notes.txt").read_text() == "dear"


def test_what_is_there_and_no_folder_is_left_alone(track, priors, tmp_path):
    (tmp_path / "file").write_text("dear")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    for name in ("file", "link", "empty"):
        with pytest.raises(ConfigurationError, match="pyrosep did not write it"):
            run(track, tmp_path / name, priors, EXACT, overwrite=True)
    assert (tmp_path / "link").is_symlink()


def test_a_folder_that_comes_about_meanwhile_is_left_alone(track, priors, tmp_path):
    out = tmp_path / "out" / "song"

    def make(done, total):
        out.mkdir(exist_ok=True)
        (out / "my notes.txt").write_text("dear")

    with pytest.raises(ConfigurationError, match="pyrosep did not write it"):
        run(track, out, priors, EXACT, overwrite=True, progress=make)
    assert [path.name for path in out.parent.iterdir()] == ["song"]
    assert [path.name for path in out.iterdir()] == ["my notes.txt"]


@pytest.mark.parametrize("name", [".", "..", ""])
def test_a_folder_must_have_a_name(track, priors, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="a folder with a name of its own"):
        run(track, Path(name), priors, EXACT, overwrite=True)
    assert track.is_file()


# Interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_an_interruption_leaves_nothing_half_written(track, priors, tmp_path, error):
    out = tmp_path / "out" / "song"
    calls = []

    def interrupt(done, total):
        calls.append(done)
        if len(calls) == 3:
            raise error

    with pytest.raises(error):
        run(track, out, priors, progress=interrupt)
    assert list(out.parent.iterdir()) == []
    run(track, out, priors)
    assert (out / "run.json").is_file()
    calls.clear()
    with pytest.raises(error):
        run(track, out, priors, overwrite=True, progress=interrupt)
    assert run(track, out, priors)["skipped"], "what was there before stays"


def test_a_fault_in_the_middle_of_the_file(tmp_path, priors):
    import soundfile

    samples = noise(1, 1.0)
    samples[0, 7000] = math.nan
    soundfile.write(tmp_path / "nan.wav", samples.T.numpy(), RATE, subtype="FLOAT")
    with pytest.raises(NonFiniteAudioError):
        run(tmp_path / "nan.wav", tmp_path / "out" / "nan", priors)
    assert not (tmp_path / "out").exists()


# One answer, whatever else is done


def stems(folder):
    return {path.name: audio.read(path).samples for path in sorted(folder.glob("*.wav"))}


def test_samples_do_not_depend_on_what_was_separated_before(priors, tmp_path):
    """Alone, after another track, before it, and after a run that was interrupted in its third block."""
    paths = [tmp_path / name for name in ("a.wav", "b.wav")]
    for path, seconds in zip(paths, (0.2, 0.3), strict=True):
        audio.write(path, noise(2, seconds), RATE)
    shared, settings = set_of(priors), replace(SETTINGS, keep=2, seed=5)

    def separated(place, order, stop=None):
        def progress(done, total):
            if stop is not None and done >= stop:
                raise KeyboardInterrupt

        for path in order:
            separate_track(path, tmp_path / place / path.stem, shared, settings, progress=progress)
        return {path.stem: stems(tmp_path / place / path.stem) for path in order}

    both = separated("both", paths)
    assert len(both["a"]) == 2 * 4
    assert not torch.equal(both["a"]["low.draw0.wav"], both["a"]["low.draw1.wav"]), "the method is a random one"
    with pytest.raises(KeyboardInterrupt):
        separated("interrupted", paths[1:], stop=0.1 * RATE)
    torch.manual_seed(17)
    for found in (
        separated("alone", paths[:1]),
        separated("alone too", paths[1:]),
        separated("turned", paths[::-1]),
        separated("interrupted", paths),
    ):
        for track, files in found.items():
            assert files.keys() == both[track].keys()
            for name, samples in files.items():
                assert torch.equal(samples, both[track][name]), (track, name)


# Short tracks


@pytest.mark.parametrize("settings", [EXACT, SETTINGS], ids=["exact", "chains"])
def test_the_record_says_how_a_short_track_was_cut(settings, priors, tmp_path):
    """150 samples, where a window has 400."""
    audio.write(tmp_path / "short.wav", noise(1, 150 / RATE), RATE)
    record = run(tmp_path / "short.wav", tmp_path / "out" / "short", priors, settings)
    assert record["window_seconds"] == 150 / RATE
    if "diagnostics" in record:
        idata = read_netcdf(tmp_path / "out" / "short" / "posterior.nc")
        assert idata.attrs["window_seconds"] == pytest.approx((150 - round(settings.overlap * 150)) / RATE)


# Memory


def test_memory_does_not_grow_with_the_file(tmp_path, priors):
    """Peak of what Python and NumPy allocate (tensors of a file's blocks are NumPy's), for two lengths."""
    # A second of this file is 32 kB: held, 60 of them would be 1.9 MB.
    peaks = []
    for seconds in (40, 100):
        path = tmp_path / f"{seconds}.wav"
        audio.write(path, noise(1, seconds), RATE)
        tracemalloc.start()
        run(path, tmp_path / "out" / path.stem, priors, Settings("exact"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000


def test_windows_are_read_as_they_are_needed(track, priors, tmp_path, monkeypatch):
    """The file is never more than a batch of windows ahead of what is written."""
    read, ahead = 0, []
    blocks = audio.blocks

    def counted(*args, **options):
        nonlocal read
        read = 0
        for block in blocks(*args, **options):
            read += 1
            yield block

    monkeypatch.setattr(audio, "blocks", counted)
    monkeypatch.setattr("pyrosep.separation.separator._BATCH_VALUES", {"cpu": 1})
    hop = 400 - 100
    run(track, tmp_path / "out", priors, EXACT, progress=lambda done, total: ahead.append(read - done / hop))
    assert len(ahead) >= 7
    assert max(ahead[:-1]) <= 1


# Names


def test_sources_must_have_files_of_their_own(track, priors, tmp_path):
    for name in ("../escaped", "low.std", "a\0b"):
        with pytest.raises(ConfigurationError, match="ename"):
            run(track, tmp_path / "out", priors | {name: priors["low"]}, EXACT)
    with pytest.raises(ConfigurationError, match="expected each source once; got 'low' more than once"):
        run(track, tmp_path / "out", priors, EXACT, write=["low", "low"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["song", "🎵" * 62, "x" * 251, os.fsdecode(b"caf\xe9"), "new\nline"])
def test_any_name_that_a_file_can_have(track, priors, tmp_path, name):
    """Written, found again, and written once more."""
    path = track.rename(tmp_path / f"{name}.wav")
    ((label, found),) = find_tracks([path]).items()
    out = tmp_path / "out" / label
    for overwrite in (False, True):
        run(found, out, priors, EXACT, overwrite=overwrite)
        assert run(found, out, priors, EXACT)["skipped"]
        assert json.loads((out / "run.json").read_text())["input"] == str(path)
    assert os.listdir(tmp_path / "out") == [label]


def test_a_posterior_below_a_folder_whose_name_is_not_utf_8(track, priors, tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9") / "song"
    run(track, out, priors, Settings(Chains(2, 4, 1, ladder=None), segment=0.1))
    assert read_netcdf(out / "posterior.nc").posterior.sizes["draw"] == 4


# Formats


def encode_mp3(path, samples, rate):
    values = samples.numpy().astype(np.float32)
    with av.open(str(path), "w") as container:
        layout = "stereo" if len(values) == 2 else "mono"
        stream = container.add_stream("libmp3lame", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(values, "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_stems_of_an_mp3_sum_to_what_is_decoded(tmp_path, priors):
    encode_mp3(tmp_path / "song.mp3", noise(2, 0.5, 44_100), 44_100)
    mix = audio.read(tmp_path / "song.mp3").samples
    run(tmp_path / "song.mp3", tmp_path / "out", priors, EXACT)
    total = sum(audio.read(tmp_path / "out" / f"{name}.wav").samples for name in priors)
    assert total.shape == mix.shape
    assert 10 * torch.log10((total - mix).square().mean() / mix.square().mean()) < -60


def test_paths_may_be_given_as_text(track, priors, tmp_path):
    report = run(Path(str(track)), tmp_path / "out", priors, EXACT)
    assert report["input"] == str(track)


def test_written_sources_are_those_of_the_whole_model(track, priors, tmp_path):
    """Asking for one source leaves the others in the model: the file is the same as among all."""
    run(track, tmp_path / "all", priors)
    run(track, tmp_path / "one", priors, write=["high"])
    assert not (tmp_path / "one" / "low.wav").exists()
    all_of_it, alone = (audio.read(tmp_path / folder / "high.wav").samples for folder in ("all", "one"))
    assert torch.equal(all_of_it, alone)


def test_a_model_that_was_trained_again_is_told_from_the_former(track, priors, tmp_path):
    own = set_of(priors, folder=tmp_path)
    settings = Settings(method="exact")
    (tmp_path / "config.json").write_text("{}")
    separate_track(track, tmp_path / "out", own, settings)
    assert separate_track(track, tmp_path / "out", own, settings)["skipped"]
    (tmp_path / "config.json").write_text('{"trained": "again"}')
    with pytest.raises(ConfigurationError, match="another model_digest"):
        separate_track(track, tmp_path / "out", own, settings)
