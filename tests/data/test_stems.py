"""Folders of stems: what is read from where, and a named error for every disorder."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import av
import pytest
import soundfile
import torch

from pyrosep import audio
from pyrosep.data import Song, StemFolder
from pyrosep.errors import ConfigurationError, DataError, EmptyAudioError, MissingFileError

RATE = 8000


def put(path: Path, level: float = 0.1, frames: int = 1000, rate: int = RATE, channels: int = 1) -> torch.Tensor:
    """A ramp of a level of its own, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = level * (1 + torch.arange(channels * frames).reshape(channels, frames) / (channels * frames))
    audio.write(path, samples, rate, "pcm24" if path.suffix == ".flac" else "float32")
    return samples


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Song b has its own mix; song a lacks bass and has FLAC files; the rest is to be passed over."""
    put(tmp_path / "b" / "bass.wav", 0.1, channels=2)
    put(tmp_path / "b" / "drums.wav", 0.2)
    put(tmp_path / "b" / "mixture.wav", 0.25, channels=2)
    put(tmp_path / "a" / "drums.flac", 0.3, frames=500)
    put(tmp_path / "a" / "vocals.flac", 0.05, frames=500)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._drums.wav").write_text("x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README").write_text("x")
    return tmp_path


def test_a_folder_is_a_sequence_of_songs(root: Path) -> None:
    songs = StemFolder(root)
    assert [song.name for song in songs] == ["a", "b"]
    assert len(songs) == 2
    assert songs[1].name == songs[-1].name == songs[:][1].name == "b"
    assert songs.sources == ("bass", "drums", "vocals")
    assert (songs[0].sources, songs[1].sources) == (("drums", "vocals"), ("bass", "drums"))
    assert [song.has_mix for song in songs] == [False, True]
    assert [(song.sample_rate, song.frames, song.channels) for song in songs] == [
        (RATE, 500, 1),
        (RATE, 1000, 2),
    ]


def test_reading(root: Path) -> None:
    a, b = StemFolder(root)
    bass = b.read_source("bass")
    assert torch.equal(bass, audio.read(root / "b" / "bass.wav").samples)
    assert torch.equal(b.read_source("bass", 100, 7), bass[:, 100:107])
    assert torch.equal(b.read_source("bass", 990, 50), bass[:, 990:])
    # A stem of one channel in a song of two is repeated.
    assert torch.equal(b.read_source("drums"), audio.read(root / "b" / "drums.wav").samples.expand(2, -1))
    assert torch.equal(b.read_mix(3, 5), audio.read(root / "b" / "mixture.wav").samples[:, 3:8])
    torch.testing.assert_close(a.read_mix(), a.read_source("drums") + a.read_source("vocals"))


def test_a_source_that_a_song_lacks(root: Path) -> None:
    a = StemFolder(root)[0]
    with pytest.raises(DataError, match="'a' has no source 'bass'; it has drums, vocals"):
        a.read_source("bass")
    assert torch.equal(a.read_source("bass", 400, 200, silent_if_absent=True), torch.zeros(1, 100))


def test_chosen_sources_leave_the_mix_whole(root: Path) -> None:
    songs = StemFolder(root, sources=("vocals", "bass"))
    assert songs.sources == ("vocals", "bass")
    assert [song.sources for song in songs] == [("vocals",), ("bass",)]
    torch.testing.assert_close(songs[0].read_mix(), StemFolder(root)[0].read_mix())


def test_songs_can_be_sent_to_workers(root: Path) -> None:
    song = StemFolder(root)[1]
    assert pickle.loads(pickle.dumps(song)) == song


@pytest.mark.parametrize(("start", "frames"), [(-1, None), (1000, None), (0, 0), (0, -1)])
def test_parts_out_of_range(root: Path, start: int, frames: int | None) -> None:
    for read in (StemFolder(root)[1].read_mix, lambda *part: StemFolder(root)[1].read_source("bass", *part)):
        with pytest.raises(ConfigurationError, match=r"'b' has samples 0 to 999|at least 1 sample"):
            read(start, frames)


def test_no_such_folder_and_no_songs(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no folder"):
        StemFolder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no songs"):
        StemFolder(tmp_path)


def test_a_song_without_a_stem(root: Path) -> None:
    put(root / "c" / "mixture.wav")
    with pytest.raises(DataError, match=r"c holds no stem"):
        StemFolder(root)
    with pytest.raises(DataError, match="'x' has no stem"):
        Song.of("x", {})


def test_files_that_do_not_belong_together(root: Path) -> None:
    put(root / "c" / "bass.wav")
    put(root / "c" / "drums.wav", rate=16_000)
    with pytest.raises(DataError, match="'c' differ in sample rate: bass 8000 Hz, drums 16000 Hz"):
        StemFolder(root)
    put(root / "c" / "drums.wav", frames=999)
    with pytest.raises(DataError, match="'c' differ in length: bass 1000 samples, drums 999 samples"):
        StemFolder(root)
    put(root / "c" / "drums.wav", channels=3)
    put(root / "c" / "bass.wav", channels=2)
    with pytest.raises(DataError, match="'c' differ in channels"):
        StemFolder(root)
    put(root / "c" / "drums.wav")
    put(root / "c" / "mixture.wav", frames=1001)
    with pytest.raises(DataError, match="mixture 1001 samples"):
        StemFolder(root)


def test_stems_of_any_kind_of_file(root: Path) -> None:
    """A stem that is no WAV file is not left out of the mix."""
    whole = StemFolder(root)[1].read_source("drums")
    for suffix, form in (("aiff", "AIFF"), ("w64", "W64"), ("caf", "CAF")):
        soundfile.write(root / "b" / f"{suffix} stem.{suffix}", whole[0].numpy(), RATE, format=form, subtype="FLOAT")
    song = StemFolder(root)[1]
    assert song.sources == ("aiff stem", "bass", "caf stem", "drums", "w64 stem")
    for name in ("aiff stem", "caf stem", "w64 stem"):
        assert torch.equal(song.read_source(name), whole)


def test_a_stem_that_does_not_promise_its_length(root: Path) -> None:
    with av.open(str(root / "b" / "voice.mkv"), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono", format="s16")
        values = (1000 * torch.arange(1000) % 2**14).to(torch.int16).unsqueeze(0).numpy()
        frame = av.AudioFrame.from_ndarray(values, "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert audio.info(root / "b" / "voice.mkv").frames is None
    song = StemFolder(root)[1]
    assert (song.sources, song.frames) == (("bass", "drums", "voice"), 1000)
    assert song.read_source("voice", 3, 2).tolist() == [[value * 1000 % 2**14 / 2**15 for value in (3, 4)]] * 2


def test_sound_that_is_not_read_is_named(root: Path) -> None:
    put(root / "b" / "raw takes" / "one.wav")
    (root / "b" / "pictures").mkdir()
    (root / "b" / "pictures" / "cover.jpg").write_text("x")
    (root / "b" / "tune.mid").write_text("x")
    with pytest.warns(
        UserWarning, match=r"not among the stems of song 'b': raw takes, tune\.mid; stems are files STEM of"
    ):
        assert StemFolder(root)[1].sources == ("bass", "drums")


def test_two_files_for_one_stem(root: Path) -> None:
    put(root / "b" / "drums.flac")
    with pytest.raises(DataError, match=r"'b' has two files for 'drums', drums\.flac and drums\.wav"):
        StemFolder(root)


def test_a_source_that_no_song_has(root: Path) -> None:
    with pytest.raises(DataError, match="has a source 'piano'; there are bass, drums, vocals"):
        StemFolder(root, sources=("bass", "piano"))


def test_a_damaged_file_is_named(root: Path) -> None:
    (root / "b" / "bass.wav").write_bytes(b"")
    with pytest.raises(EmptyAudioError, match=r"b.bass\.wav has 0 bytes"):
        StemFolder(root)
