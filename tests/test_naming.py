"""Names that become files and folders: safe, different, short enough, and no others than they have to be."""

import os
from pathlib import Path

import pytest

from pyrosep.errors import ConfigurationError
from pyrosep.naming import MOST_BYTES, check_source_name, check_source_names, shortened, track_folders


def names_of(*paths):
    """The names that paths get, after a check of all that must be true of any."""
    paths = [Path(path) for path in paths]
    names = track_folders(paths)
    assert list(names.values()) == paths
    for name in names:
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert "\0" not in name
        assert 0 < len(name.encode()) <= MOST_BYTES
    return list(names)


@pytest.mark.parametrize("name", ["..wav", "...wav", ".stem.mp4", "..stem.mp4", "...stem.mp4"])
def test_names_that_would_be_a_folder_that_is_there_keep_their_suffix(name):
    assert names_of(f"/m/{name}") == [name]


@pytest.mark.parametrize("name", ["%03d", "a:b", 'q?*:"<>|', "new\nline", " -- -dash", ".hidden", "no.1", "e" * 251])
def test_names_that_a_folder_can_have_stay(name):
    assert names_of(f"/m/{name}.wav") == [name]


def test_bytes_are_limited_not_characters():
    assert names_of(f"/m/{'🎵' * 62}.wav") == ["🎵" * 62]
    for name in ("🎵" * 64, "é" * 128, "x" * 256):
        (short,) = names_of(f"/m/{name}.wav")
        assert short.startswith(name[:50])
    assert shortened("é" * 4, 5) == "éé"


def test_paths_that_differ_in_what_a_separator_becomes():
    names = names_of("/p/a/b/c/x.wav", "/p/a_b/c/x.wav", "/p_a/b/c/x.wav")
    assert all(name.startswith("x-") for name in names)
    assert names == names_of("/p/a/b/c/x.wav", "/p/a_b/c/x.wav", "/p_a/b/c/x.wav"), "the same in each run"


def test_one_name_in_two_deep_trees():
    deep = "/".join(["d" * 200] * 4)
    assert all(name.startswith("z-") for name in names_of(f"/one/{deep}/z.wav", f"/two/{deep}/z.wav"))


def test_a_file_with_the_name_that_another_would_get():
    pair = ("/p/a/b/c/x.wav", "/p/a_b/c/x.wav")
    taken = [f"/q/{name}.wav" for name in names_of(*pair)]
    assert names_of(*taken, *pair)[:2] == [Path(path).stem for path in taken]


def test_bytes_that_are_not_utf_8_are_escaped():
    paths = [os.fsdecode(b"/m/caf\xe9.wav"), "/m/caf%E9.mp3", "/m/café.wav"]
    assert names_of(*paths) == ["caf%E9.wav", "caf%E9.mp3", "café"]
    assert names_of(paths[0]) == ["caf%E9"]


def test_names_without_a_letter_in_folders_of_one_name():
    assert len(set(names_of("/x/a/b/..wav", "/x/a_b/..wav", "/x_a/b/..wav", "/x/a/b/...wav"))) == 4


# Sources


@pytest.mark.parametrize("name", ["bass", "bass guitar", "Gitarre (übersteuert)", "no. 1", "🎸", "a" * 200, "-x", "%s"])
def test_names_of_sources(name):
    check_source_name(name)
    check_source_names([name, "drums"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../../escaped", "begins with a dot"),
        ("/elsewhere/x", "a separator of paths"),
        ("a/b", "a separator of paths"),
        ("a\\b", "a separator of paths"),
        ("C:x", "a separator of paths"),
        ("a\0b", r"'a\\x00b'.* a control character"),
        ("a\nb", "a control character"),
        ("a\x1b[2J", "a control character"),
        ("a\udce9", "a control character"),
        (".", "begins with a dot"),
        ("..", "begins with a dot"),
        (".hidden", "begins with a dot"),
        ("", "got an empty one"),
        (None, "got a NoneType"),
        (3, "got a int"),
        (["bass"], "got a list"),
        ("ü" * 101, "which has 202 bytes"),
    ],
)
def test_names_that_no_source_may_have(name, words):
    with pytest.raises(ConfigurationError, match=f"expected a name of a source that files can have.*{words}"):
        check_source_name(name)
    with pytest.raises(ConfigurationError):
        check_source_names(["drums", name])


@pytest.mark.parametrize("names", [("bass", "bass.std"), ("bass.draw0", "bass"), ("a.b", "a.b.c"), ("a", "a.b.c")])
def test_sources_whose_files_would_be_mixed_up(names):
    with pytest.raises(ConfigurationError, match=r"the sources '.*would have files of the same names; rename one"):
        check_source_names(names)
    for name in names:
        check_source_names([name])


def test_a_source_that_is_there_twice():
    with pytest.raises(ConfigurationError, match="expected each source once; got 'bass' more than once"):
        check_source_names(["bass", "drums", "bass"])
    check_source_names(["bass", "bass2", "std", "a.b", "a.c"])
