"""Data sets by name: folders of stems, and MUSDB18 where the environment says it is."""

import pickle
from dataclasses import replace

import pytest
import torch

from pyrosep import audio
from pyrosep.data import Musdb18, SoloFolder, StemFolder
from pyrosep.data.catalog import open_data_sets, open_songs
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


@pytest.fixture
def solo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solo")
    for k, name in enumerate(("piano/rag_1", "piano/rag_2", "guitar/slide", "bass/slap")):
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, torch.full((1, 200), 0.1 * (k + 1)), 16_000)
    return f"solo:{folder}"


@pytest.fixture
def songs(tmp_path):
    (tmp_path / "songs" / "a").mkdir(parents=True)
    for level, stem in zip((0.1, 0.2, 0.4, 0.8), ("bass", "guitar", "piano", "vocals"), strict=True):
        audio.write(tmp_path / "songs" / "a" / f"{stem}.wav", torch.full((1, 100), level), 8000)
    return str(tmp_path / "songs")


def test_solo_recordings(solo):
    songs, sources = open_songs(solo)
    assert isinstance(songs, SoloFolder)
    assert sources == ("bass", "guitar", "piano")
    assert open_songs(solo, sources=["piano"])[1] == ("piano",)
    with pytest.raises(MissingFileError, match="no folder gone"):
        open_songs("solo:gone")


def test_one_data_set_is_as_it_is_by_itself(root):
    opened, sources = open_songs(str(root), sources=["vocals", "bass"])
    sets = open_data_sets([str(root)], sources=["vocals", "bass"])
    assert (sets.sources, sets.shares) == (sources, None)
    assert [replace(song, data_set="") for song in sets] == list(opened)
    with pytest.raises(DataError, match="'tuba'; there are bass, drums, vocals"):
        open_data_sets([str(root)], sources=["tuba"])


def test_several_data_sets(root, solo):
    sets = open_data_sets([str(root), solo], weights=[1, 3])
    assert [song.name for song in sets] == ["a", "b", "bass/slap", "guitar/slide", "piano/rag_1", "piano/rag_2"]
    assert [song.data_set for song in sets] == [str(root)] * 2 + [solo] * 4
    assert sets.sources == ("bass", "drums", "vocals", "guitar", "piano")
    assert sets.shares == {str(root): 1.0, solo: 3.0}
    sent = pickle.loads(pickle.dumps(sets))
    assert (list(sent), sent.sources, sent.shares) == (list(sets), sets.sources, sets.shares)
    assert open_data_sets([str(root), solo], sources=["piano", "vocals"]).sources == ("piano", "vocals")
    with pytest.raises(DataError, match="none of the data sets has a source 'tuba'; there are bass, drums, guitar"):
        open_data_sets([str(root), solo], sources=["tuba"])


def test_renamed_sources(songs, solo):
    sets = open_data_sets([songs, solo], renames={"guitar": "other", "piano": "other"})
    assert sets.sources == ("bass", "other", "vocals")
    song, *recordings = sets
    assert song.sources == ("bass", "other", "vocals")
    torch.testing.assert_close(song.read_source("other"), torch.full((1, 100), 0.6), atol=1e-4, rtol=0)
    torch.testing.assert_close(song.read_source("other", 10, 5), torch.full((1, 5), 0.6), atol=1e-4, rtol=0)
    torch.testing.assert_close(song.read_mix(), torch.full((1, 100), 1.5), atol=1e-4, rtol=0)
    assert [(song.name, song.sources) for song in recordings] == [
        ("bass/slap", ("bass",)),
        ("guitar/slide", ("other",)),
        ("piano/rag_1", ("other",)),
        ("piano/rag_2", ("other",)),
    ]
    assert [song.origin for song in recordings] == ["bass/slap", "guitar/slide", "piano/rag", "piano/rag"]
    assert pickle.loads(pickle.dumps(song)) == song
    with pytest.raises(DataError, match="has a source 'piano'; there are bass, other, vocals"):
        open_data_sets([songs, solo], sources=["piano"], renames={"guitar": "other", "piano": "other"})


def test_names_may_be_exchanged(songs):
    (song,) = open_data_sets([songs], renames={"guitar": "piano", "piano": "guitar"})
    torch.testing.assert_close(song.read_source("piano"), torch.full((1, 100), 0.2), atol=1e-4, rtol=0)


def test_mistakes_with_several_data_sets(songs, solo):
    for arguments, said in (
        (([],), "at least one data set"),
        (([songs, songs],), "every data set once"),
        (([songs, solo], [1.0]), r"a weight for each of 2 data sets \(.*\), got 1"),
        (([songs, solo], [1.0, 0.0]), r"weights of data sets above 0, got \[1.0, 0.0\]"),
        (([songs, solo], [1.0, float("nan")]), "weights of data sets above 0"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            open_data_sets(arguments[0], weights=arguments[1] if len(arguments) > 1 else None)
    with pytest.raises(ConfigurationError, match="no data set has the source 'tuba' that is to be renamed; there are"):
        open_data_sets([songs, solo], renames={"tuba": "bass"})
