"""Folders of solo recordings: what is read from where, what is passed over, and a named error for every disorder."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import soundfile
import torch

from pyrosep import audio
from pyrosep.data import RandomCrops, SoloFolder
from pyrosep.data.solo import origin_of
from pyrosep.errors import DataError, EmptyAudioError, MissingFileError, NotAudioError

RATE = 8000


def put(path: Path, frames: int = 1000, rate: int = RATE, channels: int = 1) -> None:
    """Noise as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * torch.randn(frames, channels).numpy(), rate)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Recordings that differ in everything; hidden files are to be passed over."""
    put(tmp_path / "piano" / "rag_01.wav")
    put(tmp_path / "piano" / "rag_00.flac", 700)
    put(tmp_path / "piano" / "Waltz.OGG", 900, 2 * RATE, 2)
    put(tmp_path / "bass" / "slap.wav", 500)
    (tmp_path / "piano" / "._rag_01.wav").write_text("x")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_folder_is_a_sequence_of_recordings(root: Path) -> None:
    songs = SoloFolder(root)
    assert songs.sources == ("bass", "piano")
    assert [song.name for song in songs] == ["bass/slap", "piano/Waltz", "piano/rag_00", "piano/rag_01"]
    assert [song.sources for song in songs] == [("bass",), ("piano",), ("piano",), ("piano",)]
    assert [song.origin for song in songs] == ["bass/slap", "piano/Waltz", "piano/rag", "piano/rag"]
    assert [(song.sample_rate, song.frames, song.channels) for song in songs] == [
        (RATE, 500, 1),
        (2 * RATE, 900, 2),
        (RATE, 700, 1),
        (RATE, 1000, 1),
    ]


def test_reading(root: Path) -> None:
    song = SoloFolder(root)[1]
    whole = audio.read(root / "piano" / "Waltz.OGG").samples
    assert torch.equal(song.read_source("piano"), whole)
    assert torch.equal(song.read_source("piano", 100, 7), whole[:, 100:107])
    assert torch.equal(song.read_mix(100, 7), whole[:, 100:107])
    with pytest.raises(DataError, match="'piano/Waltz' has no source 'bass'; it has piano"):
        song.read_source("bass")
    assert pickle.loads(pickle.dumps(song)) == song


def test_chosen_sources_in_their_order(root: Path) -> None:
    (root / "bass" / "broken.wav").write_bytes(b"")
    songs = SoloFolder(root, ["piano"])  # the files of others are not opened
    assert (songs.sources, len(songs)) == (("piano",), 3)
    (root / "bass" / "broken.wav").unlink()
    assert SoloFolder(root, ["piano", "bass"]).sources == ("piano", "bass")


def test_crops(root: Path) -> None:
    crops = RandomCrops(SoloFolder(root), "piano", 64, RATE, size=50)
    assert {crops.crop(index).song for index in range(50)} == {"piano/Waltz", "piano/rag_00", "piano/rag_01"}
    assert crops[0].shape == (64,)


def test_what_is_not_used_is_named(root: Path) -> None:
    put(root / "loose.wav")
    put(root / "piano" / "deeper" / "take.wav")
    (root / "piano" / "notes.txt").write_text("x")
    (root / "cello").mkdir()
    (root / "lute").mkdir()
    (root / "lute" / "tablature.pdf").write_text("x")
    expected = r"cello, loose\.wav, lute.tablature\.pdf, piano.deeper, piano.notes\.txt; recordings are files SOURCE"
    with pytest.warns(UserWarning, match=expected):
        songs = SoloFolder(root)
    assert (songs.sources, len(songs)) == (("bass", "piano"), 4)


@pytest.mark.parametrize(
    ("name", "origin"),
    [("rag_01", "rag"), ("rag 12", "rag"), ("rag", "rag"), ("rag-2.3", "rag-2"), ("take3", "take"), ("01", "01")],
)
def test_origins(name: str, origin: str) -> None:
    assert origin_of(name) == origin


def test_no_such_folder_and_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"folder of solo recordings, but there is no folder .*none"):
        SoloFolder(tmp_path / "none")
    (tmp_path / "piano").mkdir()
    with pytest.raises(DataError, match=r"holds no solo recordings; expected files SOURCE/NAME of \.wav, \.flac"):
        SoloFolder(tmp_path)
    put(tmp_path / "loose.wav")
    with pytest.raises(DataError, match="holds no solo recordings"):
        SoloFolder(tmp_path)


def test_a_source_that_has_no_recording(root: Path) -> None:
    with pytest.raises(DataError, match="is of a source 'lute'; there are bass, piano"):
        SoloFolder(root, ["bass", "lute"])


def test_two_files_of_one_name(root: Path) -> None:
    put(root / "bass" / "slap.flac")
    with pytest.raises(DataError, match=r"two files for the recording bass/slap, slap\.flac and slap\.wav; remove"):
        SoloFolder(root)


def test_a_damaged_file_is_named(root: Path) -> None:
    (root / "bass" / "slap.wav").write_bytes(b"")
    with pytest.raises(EmptyAudioError, match=r"slap\.wav has 0 bytes"):
        SoloFolder(root)
    (root / "bass" / "slap.wav").write_bytes(b"no sound at all")
    with pytest.raises(NotAudioError, match=r"slap\.wav"):
        SoloFolder(root)


def test_a_file_that_does_not_say_its_length(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an MP3 file without a length header: it is gone through."""
    silent = audio.AudioInfo(RATE, 1, None, 1)
    monkeypatch.setattr(audio, "info", lambda path: silent)
    assert SoloFolder(root, ["bass"])[0].frames == 500
