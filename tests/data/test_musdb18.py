"""MUSDB18 in both its forms, on tiny copies of its layout."""

from __future__ import annotations

import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pyrosep import audio
from pyrosep.data import FrameGrid, Musdb18, StemFolder
from pyrosep.errors import ConfigurationError, DataError, MissingDependencyError, MissingFileError

RATE = 44_100
VALID = "Actions - One Minute Smile"
NAMES = {"train": ("A Band - A Song", VALID), "test": ("Another Band - Another Song",)}
IDS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="the musdb package can't be imported without the programs ffmpeg and ffprobe",
)


def sound(stem: str, name: str) -> torch.Tensor:
    """A tone for each stem; the mix is their sum."""
    if stem == "mixture":
        return torch.stack([sound(other, name) for other in IDS if other != "mixture"]).sum(0)
    time = torch.arange(RATE // 2) / RATE
    tone = torch.sin(2 * torch.pi * 220 * 2 ** IDS[stem] * time) * (0.1 + 0.01 * len(name) / 30)
    return torch.stack([tone, -tone])


@pytest.fixture
def hq(tmp_path: Path) -> Path:
    for subset, names in NAMES.items():
        for name in names:
            (tmp_path / subset / name).mkdir(parents=True)
            for stem in IDS:
                audio.write(tmp_path / subset / name / f"{stem}.wav", sound(stem, name), RATE, "pcm16")
    return tmp_path


@pytest.fixture
def stems(tmp_path: Path) -> Path:
    for subset, names in NAMES.items():
        (tmp_path / subset).mkdir()
        for name in names:
            with av.open(str(tmp_path / subset / f"{name}.stem.mp4"), "w", format="mp4") as container:
                outputs = [container.add_stream("aac", rate=RATE, layout="stereo") for _ in IDS]
                for stem, output in zip(IDS, outputs, strict=True):
                    frame = av.AudioFrame.from_ndarray(sound(stem, name).numpy().astype(np.float32), "fltp", "stereo")
                    frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
                    for packet in [*output.encode(frame), *output.encode(None)]:
                        container.mux(packet)
    return tmp_path


def test_hq_can_be_read_without_musdb(hq: Path) -> None:
    songs = StemFolder(hq / "train")
    assert [song.name for song in songs] == sorted(NAMES["train"])
    assert songs.sources == ("bass", "drums", "other", "vocals")
    torch.testing.assert_close(songs[0].read_mix(), sound("mixture", NAMES["train"][0]), rtol=0, atol=2**-15)


@pytest.mark.parametrize("form", ["hq", "stems"])
@needs_ffmpeg
def test_subsets_splits_and_stems(form: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(form)
    for subset, split, expected in [
        ("train", None, NAMES["train"]),
        ("train", "train", NAMES["train"][:1]),
        ("train", "valid", (VALID,)),
        ("test", None, NAMES["test"]),
    ]:
        songs = Musdb18(root, subset, split)
        assert songs.hq == (form == "hq")
        assert [song.name for song in songs] == sorted(expected)
        for song in songs:
            assert song.sources == songs.sources == ("bass", "drums", "vocals", "other")
            assert (song.sample_rate, song.channels, song.has_mix) == (RATE, 2, True)
            # An MP4 stores lengths in milliseconds.
            assert abs(song.frames - RATE // 2) <= (0 if form == "hq" else RATE // 1000)
            for stem in IDS:
                got = song.read_mix() if stem == "mixture" else song.read_source(stem)
                original = sound(stem, song.name)
                shared = min(got.shape[1], original.shape[1])
                error = (got[:, :shared] - original[:, :shared]).square().mean() / original.square().mean()
                assert error < (1e-6 if form == "hq" else 0.03), stem
    item = FrameGrid(songs, 1000, sample_rate=RATE // 2)[2]
    assert item.sources.shape == (4, 1000)


@needs_ffmpeg
def test_what_is_not_there(hq: Path) -> None:
    with pytest.raises(DataError, match=r"holds no songs.*\.stem\.mp4 files"):
        Musdb18(hq, hq=False)
    (hq / "train" / VALID / "bass.wav").unlink()
    with pytest.raises(DataError, match="lacks bass"):
        Musdb18(hq)
    shutil.rmtree(hq / "train" / VALID)
    with pytest.raises(DataError, match="'valid' split of train"):
        Musdb18(hq, split="valid")


def test_arguments_out_of_range(hq: Path) -> None:
    with pytest.raises(ConfigurationError, match="subset 'train' or 'test', got 'valid'"):
        Musdb18(hq, "valid")
    with pytest.raises(ConfigurationError, match="'train', 'valid' or None, got 'test'"):
        Musdb18(hq, split="test")
    with pytest.raises(ConfigurationError, match="only the subset 'train' has splits"):
        Musdb18(hq, "test", split="valid")
    with pytest.raises(MissingFileError, match="no such folder"):
        Musdb18(hq / "train")


def test_without_ffmpeg(hq: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name in [name for name in sys.modules if name.split(".")[0] in ("musdb", "stempeg")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match=r"ffmpeg.*apt-get install ffmpeg.*StemFolder\("):
        Musdb18(hq)
