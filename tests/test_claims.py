"""Claims: what a run holds while it lives, and what is removed when it has ended."""

import os
import signal
import subprocess
import sys

import torch

from pyrosep import audio, claims
from pyrosep.claims import claimed, remove_left

WRITER = """
import os, signal, sys, torch
from pyrosep import audio

with audio.Writer(sys.argv[1] + "/tone.wav", 8000, 1) as writer:
    writer.write(torch.zeros(1, 100))
    print("writing", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def every(name):
    return True


def test_what_is_held_stays_and_what_is_not_goes(tmp_path):
    held = claimed(tmp_path / "held")
    (tmp_path / "left").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "left")
    remove_left(tmp_path, "other".__eq__)
    assert (tmp_path / "left").exists()
    remove_left(tmp_path, every)
    assert sorted(os.listdir(tmp_path)) == ["folder", "held", "link"]
    held.close()
    remove_left(tmp_path, every)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link"]
    remove_left(tmp_path / "nowhere", every)


def test_a_claim_that_another_run_removes_at_once_is_none(tmp_path, monkeypatch):
    lock = claims._lock

    def after_a_sweep(file):
        monkeypatch.setattr(claims, "_lock", lock)
        remove_left(tmp_path, every)
        lock(file)

    monkeypatch.setattr(claims, "_lock", after_a_sweep)
    assert claimed(tmp_path / "held") is None
    assert os.listdir(tmp_path) == []


def test_nothing_is_removed_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "fcntl", None)
    claimed(tmp_path / "left").close()
    remove_left(tmp_path, every)
    assert os.listdir(tmp_path) == ["left"]


def test_sound_files_of_a_killed_process_are_removed_by_the_next(tmp_path):
    """As long as it lives they stay, and so does all else."""
    (tmp_path / ".tone.part.wav").write_text("mine")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        assert len(os.listdir(tmp_path)) == 2
        audio.write(tmp_path / "other.wav", torch.zeros(1, 10), 8000)
        assert len(os.listdir(tmp_path)) == 3, "that process is alive"
        process.stdin.close()
        assert process.wait() == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 3
    code = (
        f"import torch; from pyrosep import audio; audio.write({str(tmp_path / 'tone.wav')!r}, torch.ones(1, 10), 8000)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert sorted(os.listdir(tmp_path)) == [".tone.part.wav", "other.wav", "tone.wav"]


def test_a_name_that_is_taken_is_passed_over(tmp_path, monkeypatch):
    """Processes in containers have the same number again and again."""
    import itertools

    from pyrosep.audio import writer

    monkeypatch.setattr(writer, "_NUMBERS", itertools.count())
    taken = tmp_path / f".tone.{os.getpid()}-0.unfinished.wav"
    held = claimed(taken)
    audio.write(tmp_path / "tone.wav", torch.zeros(1, 10), 8000)
    assert sorted(os.listdir(tmp_path)) == [taken.name, "tone.wav"]
    held.close()
