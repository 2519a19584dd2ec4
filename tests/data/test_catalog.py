"""Data sets by name: folders of stems, and MUSDB18 where the environment says it is."""

import pytest
import torch

from pyrosep import audio
from pyrosep.data import Musdb18, StemFolder
from pyrosep.data.catalog import open_songs
from pyrosep.errors import ConfigurationError, DataError, MissingDependencyError, MissingFileError


@pytest.fixture
def root(tmp_path):
    for song, stems in {"a": ("bass", "drums"), "b": ("drums", "vocals")}.items():
        (tmp_path / song).mkdir()
        for stem in stems:
            audio.write(tmp_path / song / f"{stem}.wav", torch.full((1, 100), 0.25), 8000)
    return tmp_path


@pytest.mark.parametrize("subset", ["train", "test"])
def test_a_folder(root, subset):
    songs, sources = open_songs(str(root), subset=subset)
    assert isinstance(songs, StemFolder)
    assert [song.name for song in songs] == ["a", "b"]
    assert sources == ("bass", "drums", "vocals")


def test_chosen_sources(root):
    assert open_songs(str(root), sources=["vocals", "bass"])[1] == ("vocals", "bass")
    with pytest.raises(DataError, match="'tuba'; there are bass, drums, vocals"):
        open_songs(str(root), sources=["tuba"])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match="no folder"):
        open_songs(str(tmp_path / "gone"))
    with pytest.raises(DataError, match="holds no songs"):
        open_songs(str(tmp_path))


@pytest.mark.parametrize("value", [None, ""])
def test_musdb_needs_its_place(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("MUSDB_PATH", raising=False)
    else:
        monkeypatch.setenv("MUSDB_PATH", value)
    with pytest.raises(ConfigurationError, match="set the environment variable MUSDB_PATH"):
        open_songs("musdb")


def test_musdb_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("MUSDB_PATH", str(tmp_path))
    with pytest.raises(MissingFileError, match="name the folder that holds 'train' and 'test'"):
        open_songs("musdb", subset="test")


@pytest.fixture
def musdb(tmp_path, monkeypatch):
    """MUSDB18-HQ with one song in `test`, at MUSDB_PATH."""
    folder = tmp_path / "test" / "Artist - Song"
    folder.mkdir(parents=True)
    (tmp_path / "train").mkdir()
    for stem in ("mixture", "drums", "bass", "other", "vocals"):
        audio.write(folder / f"{stem}.wav", torch.full((2, 1000), 0.1), 44_100)
    monkeypatch.setenv("MUSDB_PATH", str(tmp_path))
    try:
        Musdb18(tmp_path, "test")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_musdb(musdb):
    songs, sources = open_songs("musdb", subset="test")
    assert [song.name for song in songs] == ["Artist - Song"]
    assert set(sources) == {"bass", "drums", "vocals", "other"}
    assert open_songs("musdb", subset="test", sources=["vocals"])[1] == ("vocals",)
    with pytest.raises(ConfigurationError, match=r"asked for \['tuba'\]"):
        open_songs("musdb", subset="test", sources=["vocals", "tuba"])
    with pytest.raises(ConfigurationError, match="subset 'train' or 'test'"):
        open_songs("musdb", subset="valid")
