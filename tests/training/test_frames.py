"""Frames of a source's recordings: which songs and solo recordings are held out."""

import dataclasses

import pytest
import soundfile
import torch

from pyrosep.data import SoloFolder, StemFolder
from pyrosep.errors import DataError
from pyrosep.training.frames import held_out_songs, song_frames

RATE = 1000


@pytest.fixture
def solo(tmp_path):
    """Builds a folder of solo recordings of given lengths in samples, of a given level each."""

    def build(lengths, levels=None):
        for name, length in lengths.items():
            path = tmp_path / "solo" / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, (levels or {}).get(name, 0.01) * torch.ones(length).numpy(), RATE, subtype="FLOAT")
        return SoloFolder(tmp_path / "solo")

    return build


def held_out(songs, source="piano"):
    return [song.name.removeprefix(f"{source}/") for song in held_out_songs(songs, source)]


def test_recordings_are_held_out_by_origin_up_to_a_tenth(solo):
    songs = solo(
        {
            "piano/long_1": 3000,
            "piano/long_2": 5000,
            "piano/middle_1": 300,
            "piano/middle_2": 400,
            "piano/short": 200,
            "piano/shorter": 150,
            "piano/tiny": 50,
            "bass/short": 10,
        }
    )
    # A tenth is 910 samples: both parts of the middle one, then the short one; of 10 that are left none.
    assert held_out(songs) == ["middle_1", "middle_2", "short"]
    assert held_out(songs, "bass") == []  # it is all of one origin


def test_where_no_origin_fits_into_a_tenth_the_shortest_is_held_out(solo):
    assert held_out(solo({"piano/a_1": 500, "piano/a_2": 500, "piano/b": 900})) == ["b"]


def test_recordings_of_one_origin_are_all_trained_on(solo):
    songs = solo({f"piano/a_{k}": 500 for k in range(20)})
    assert held_out(songs) == []
    assert song_frames(songs, "piano", 64, held_out=3).held_out.shape == (3, 64)


def test_frames_that_are_held_out_are_of_other_origins(solo):
    lengths = {"piano/a_1": 5000, "piano/a_2": 5000, "piano/b_1": 400, "piano/b_2": 400}
    frames = song_frames(solo(lengths, {"piano/b_1": 0.5, "piano/b_2": 0.5}), "piano", 64, held_out=8)
    assert float(frames.held_out.min()) == 0.5
    assert float(frames.draw(64).max()) < 0.1


def test_recordings_shorter_than_a_frame_are_not_held_out(solo):
    lengths = {"piano/a_1": 5000, "piano/b_1": 60, "piano/b_2": 60, "piano/c": 600}
    songs = solo(lengths, {"piano/b_1": 0.9, "piano/b_2": 0.9, "piano/c": 0.5})
    assert held_out(songs) == ["b_1", "b_2"]
    frames = song_frames(songs, "piano", 64, held_out=8)
    assert float(frames.held_out.min()) == 0.5
    assert float(frames.draw(64).max()) < 0.1
    with pytest.raises(DataError, match="the longest has 5000 samples"):
        song_frames(songs, "piano", 6000)


def test_songs_and_recordings_are_held_out_by_their_own_rules(solo, tmp_path):
    for k in range(10):
        (tmp_path / "songs" / f"song{k}").mkdir(parents=True)
        soundfile.write(tmp_path / "songs" / f"song{k}" / "piano.wav", torch.zeros(100).numpy(), RATE)
    songs = [*solo({"piano/a": 1000, "piano/b": 100}), *StemFolder(tmp_path / "songs")]
    assert [song.name for song in held_out_songs(songs, "piano")] == ["song9", "piano/b"]


def test_data_sets_by_their_shares(solo):
    """The small set gives three of four frames, of the source and of the others."""
    levels = {"piano/a": 0.1, "piano/b": 0.2, "bass/a": 0.1, "bass/b": 0.2}
    songs = solo(dict.fromkeys(levels, 0) | {"piano/a": 4000, "piano/b": 500, "bass/a": 4000, "bass/b": 500}, levels)
    sets = [song.renamed({}, data_set=song.name[-1]) for song in songs]
    sets = [dataclasses.replace(song, origin=None) for song in sets]  # nothing is held out
    frames = song_frames(sets, "piano", 16, others=["bass"], shares={"a": 1.0, "b": 3.0})
    for drawn in (frames.draw(500)[:, 0], frames.draw_others(500)[:, 0, 0]):
        share = float((drawn > 0.15).float().mean())
        assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 500) ** 0.5
    assert float((frames.held_out[:, 0] > 0.15).float().mean()) > 0.4  # of 64: 0.75 less six standard deviations
