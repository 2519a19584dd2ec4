"""Folders of finished tracks: what is one, how one replaces another, and what a run that ends anywhere leaves."""

import json
import os
import subprocess
import sys

import pytest

from pyrosep import claims, results
from pyrosep.errors import MissingFileError
from pyrosep.results import damaged_files, put_in_place, read_record, sweep, unfinished, write_record

REPORT = {"pyrosep": "0", "model": "tiny", "input": "/song.wav", "settings": {}, "sources": ["low"]}


def make(folder, text, *names):
    """A finished track, whose files hold a text."""
    with unfinished(folder) as new:
        fill(new, text, *names)
        put_in_place(new, folder)


def fill(new, text, *names):
    for name in names or ("low.wav", "low.std.wav"):
        (new / name).write_text(text)
    write_record(new, REPORT, [path.name for path in new.iterdir()])


def whole(folder):
    record = read_record(folder)
    return record is not None and not damaged_files(folder, record)


def test_a_file_that_was_taken_away_is_missed(tmp_path):
    """A folder that was moved while it was written, and made anew by what was written last, is no finished track."""
    (tmp_path / "posterior.nc").write_text("draws")
    with pytest.raises(MissingFileError, match=r"low\.wav was taken away while its folder was written; run it again"):
        write_record(tmp_path, REPORT, ["low.wav", "posterior.nc"])
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]


def test_the_record_names_the_files(tmp_path):
    make(tmp_path / "song", "first")
    record = json.loads((tmp_path / "song" / "run.json").read_text())
    assert record == REPORT | {"files": {"low.std.wav": 5, "low.wav": 5}}
    assert read_record(tmp_path / "song") == record
    assert os.listdir(tmp_path) == ["song"]


def test_damage(tmp_path):
    make(tmp_path / "song", "first")
    record = read_record(tmp_path / "song")
    assert damaged_files(tmp_path / "song", record) == []
    (tmp_path / "song" / "low.wav").write_text("")
    (tmp_path / "song" / "low.std.wav").write_text("longer")
    assert damaged_files(tmp_path / "song", record) == ["low.std.wav", "low.wav"]
    (tmp_path / "song" / "low.wav").unlink()
    assert damaged_files(tmp_path / "song", record) == ["low.std.wav", "low.wav"]
    (tmp_path / "song" / "low.wav").mkdir()
    assert damaged_files(tmp_path / "song", record) == ["low.std.wav", "low.wav"]


def test_a_record_without_sizes_says_which_files_there_are(tmp_path):
    old = REPORT | {"settings": {"keep": 2}, "sources": ["low"], "diagnostics": {"verdict": "fine"}}
    names = ["low.wav", "low.std.wav", "low.draw0.wav", "low.draw1.wav", "posterior.nc"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert damaged_files(tmp_path, read_record(tmp_path)) == []
    for name in names:
        (tmp_path / name).unlink()
        assert damaged_files(tmp_path, read_record(tmp_path)) == [name]
        (tmp_path / name).write_text("")
        assert damaged_files(tmp_path, read_record(tmp_path)) == [name]
        (tmp_path / name).write_text("x")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pyrosep": 1}', '{"pyrosep":1,"model":1,"input":1,"settings":[]}'])
def test_other_records_are_not_ours(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    assert read_record(tmp_path) is None


def test_what_a_person_made_stays(tmp_path):
    song = tmp_path / "song"
    make(song, "first", "low.wav", "high.wav", "mid.wav")
    (song / "my notes.txt").write_text("dear")
    (song / "remix").mkdir()
    (song / "remix" / "a.wav").write_text("mine")
    (song / "high.wav").write_text("changed")
    (song / "mid.wav").write_text("changed too")
    (song / "guitar.wav").write_text("mine")
    (song / "diagnostics").mkdir()
    with pytest.warns(UserWarning, match=r"not as pyrosep wrote it; .* is now (high|guitar)\.before1\.wav") as caught:
        make(song, "second", "low.wav", "high.wav", "guitar.wav")
    assert len(caught) == 2
    found = {path.name: path.read_text() for path in song.iterdir() if path.is_file() and path.name != "run.json"}
    assert found == {
        "low.wav": "second",
        "high.wav": "second",
        "high.before1.wav": "changed",
        "mid.wav": "changed too",
        "guitar.wav": "second",
        "guitar.before1.wav": "mine",
        "my notes.txt": "dear",
    }
    assert (song / "remix" / "a.wav").read_text() == "mine"
    assert not (song / "diagnostics").exists(), "pictures of the former posterior"
    assert os.listdir(tmp_path) == ["song"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    make(tmp_path / "elsewhere" / "there", "first")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "song").symlink_to(tmp_path / "elsewhere" / "there")
    make(tmp_path / "out" / "song", "second")
    assert not (tmp_path / "out" / "song").is_symlink()
    assert (tmp_path / "elsewhere" / "there" / "low.wav").read_text() == "first"
    assert os.listdir(tmp_path / "out") == ["song"]


def test_an_error_before_the_end_leaves_what_was_there(tmp_path):
    make(tmp_path / "song", "first")
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "song") as new:  # noqa: PT012
        (new / "low.wav").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["song"]
    assert (tmp_path / "song" / "low.wav").read_text() == "first"


def test_what_is_not_left_by_a_killed_run_is_not_swept(tmp_path):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "diary.txt").write_text("dear")
    (tmp_path / ".file").write_text("x")
    for number, text in enumerate(['{"unfinished": ".."}', '{"unfinished": "a/b"}', '{"unfinished": 3}', "[]", "no"]):
        (tmp_path / f".song-{number}").mkdir()
        (tmp_path / f".song-{number}" / "unfinished.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with unfinished(tmp_path / "song") as new:
        (new / "low.wav").write_text("half")
        sweep(tmp_path)
        assert (new / "low.wav").is_file(), "that run is alive"
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    sweep(tmp_path / "nowhere")


def test_a_run_that_has_not_marked_its_folder_yet_goes_on(tmp_path, monkeypatch):
    """A sweep can't tell an unmarked folder of a run that is alive: it may take it, and the run makes another."""
    make_folder = results.tempfile.mkdtemp
    swept = []

    def swept_at_once(**options):
        beside = make_folder(**options)
        if len(swept) < 2:
            swept.append(beside)
            sweep(tmp_path)
        return beside

    monkeypatch.setattr(results.tempfile, "mkdtemp", swept_at_once)
    make(tmp_path / "song", "first")
    assert len(swept) == 2
    assert not any(os.path.exists(path) for path in swept)
    assert os.listdir(tmp_path) == ["song"]
    assert whole(tmp_path / "song")


def test_hidden_folders_of_a_person_are_not_swept(tmp_path):
    (tmp_path / ".empty").mkdir()
    (tmp_path / ".song-abcdefgh").mkdir()
    (tmp_path / ".song-abcdefgi.pyrosep").mkdir()
    (tmp_path / ".song-abcdefgi.pyrosep" / "diary.txt").write_text("dear")
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_system_without_locks_is_not_swept(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    with unfinished(tmp_path / "song") as new:
        fill(new, "first")
        sweep(tmp_path)
        put_in_place(new, tmp_path / "song")
    assert os.listdir(tmp_path) == ["song"]
    assert whole(tmp_path / "song")


#: Replaces a track's folder, or sweeps, in a process that ends at its n-th step in the file system, for every n.
SCRIPT = """
import itertools, os, pathlib, signal, sys, warnings
from test_results import fill, make
from pyrosep.results import put_in_place, sweep, unfinished

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp"}
FIRST = {"low.wav": "first", "high.wav": "mine", "my notes.txt": "dear"}
SECOND = {"low.wav": "second", "high.wav": "second", "high.before1.wav": "mine", "my notes.txt": "dear"}


def files(song):
    return {path.name: path.read_text() for path in song.iterdir() if path.name != "run.json"}


def begin(out, what):
    make(out / "song", "first", "low.wav", "high.wav")
    (out / "song" / "my notes.txt").write_text("dear")
    (out / "song" / "high.wav").write_text("mine")
    if what == "sweep":  # as a run leaves it that was killed between its last two renames
        beside = out / ".song-left.pyrosep"
        (beside / "new").mkdir(parents=True)
        (beside / "unfinished.json").write_text('{"unfinished": "song"}')
        (beside / "new" / "low.wav").write_text("second")
        (out / "song").rename(beside / "old")


def act(out, how, what, end):
    steps = itertools.count()

    def hook(event, arguments):
        if event in STEPS and next(steps) == end:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt

    sys.addaudithook(hook)
    if what == "sweep":
        sweep(out)
    else:
        with unfinished(out / "song") as new:
            fill(new, "second", "low.wav", "high.wav")
            put_in_place(new, out / "song")
    return next(steps) <= end


def check(out, how, what, end):
    # Whether it came to its end without a break, and which of the two folders is there after the next sweep.
    out.mkdir(parents=True)
    begin(out, what)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 10 if act(out, how, what, end) else 11
        except KeyboardInterrupt:
            status = 12
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (-signal.SIGKILL, 10, 11, 12), ended
    song = out / "song"
    if song.exists():
        found = files(song)
        assert found == FIRST or found["low.wav"] == found["high.wav"] == "second", found
    else:
        assert how == "kill" or what == "sweep", "an interruption is put right at once"
    sweep(out)
    assert files(song) in (FIRST, SECOND), files(song)
    assert os.listdir(out) == ["song"], os.listdir(out)
    return ended == 10, files(song)["low.wav"]


warnings.simplefilter("ignore")
for how, what in itertools.product(("kill", "interrupt"), ("replace", "sweep")):
    outcomes = []
    for end in itertools.count():
        done, outcome = check(pathlib.Path(sys.argv[1], how, what, str(end)), how, what, end)
        outcomes.append(outcome)
        if done:
            break
    print(how, what, *sorted(set(outcomes)), end > 5)
"""


def test_a_run_that_ends_at_any_step(tmp_path):
    """The former folder or the new one is whole after the next sweep, and all of a person's files are there."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "kill replace first second True",
        "kill sweep first True",
        "interrupt replace first second True",
        "interrupt sweep first True",
    ]
