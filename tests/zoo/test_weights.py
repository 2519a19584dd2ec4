"""Weights on disk: whole or not at all."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyrosep.errors import CheckpointError, MissingFileError
from pyrosep.results import write_text
from pyrosep.zoo.weights import load_weights, save_weights


def test_round_trip(tmp_path):
    """Bit for bit, in every precision and memory layout."""
    tensors = {
        "single": torch.randn(3, 4),
        "double": torch.randn(2, dtype=torch.float64),
        "whole": torch.arange(5),
        "transposed": torch.randn(3, 4).mT,
        "learned": torch.randn(2, requires_grad=True),
        "special": torch.tensor([float("inf"), float("nan"), -0.0]),
    }
    config = {"name": "Flöte", "levels": [1, 2.5], "nothing": None}
    save_weights(tmp_path / "deep" / "model", config, tensors)
    loaded_config, loaded = load_weights(tmp_path / "deep" / "model")
    assert loaded_config == config
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].nan_to_num(7.0), tensor.detach().nan_to_num(7.0))


def test_without_tensors(tmp_path):
    save_weights(tmp_path / "model", {"a": 1}, {})
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    assert load_weights(tmp_path / "model") == ({"a": 1}, {})


def test_without_tensors_where_there_were_some(tmp_path):
    save_weights(tmp_path, {"a": 1}, {"w": torch.ones(2)})
    save_weights(tmp_path, {"a": 2}, {})
    assert load_weights(tmp_path) == ({"a": 2}, {})


def test_tensors_that_share_memory(tmp_path):
    one = torch.randn(4)
    save_weights(tmp_path, {}, {"a": one, "b": one, "c": one[:2]})
    _, loaded = load_weights(tmp_path)
    assert torch.equal(loaded["a"], one)
    assert torch.equal(loaded["b"], one)
    assert torch.equal(loaded["c"], one[:2])


def test_other_files_stay_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    for number in (1, 2):
        save_weights(tmp_path / "model", {"number": number}, {"w": torch.full((2,), float(number))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["config.json", "model.safetensors", "notes.txt"]
    config, tensors = load_weights(tmp_path / "model")
    assert config == {"number": 2}
    assert tensors["w"].tolist() == [2.0, 2.0]


def test_a_write_that_fails_leaves_the_old_weights(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    folder = tmp_path / "model"
    save_weights(folder, {"number": 1}, {"w": torch.ones(2)})
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="no space"):
            save_weights(folder, {"number": 2}, {"w": torch.zeros(2)})
    config, tensors = load_weights(folder)
    assert config == {"number": 1}
    assert tensors["w"].tolist() == [1.0, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_config_that_is_no_json_leaves_the_old_one(tmp_path):
    save_weights(tmp_path / "model", {"number": 1}, {})
    with pytest.raises(TypeError):
        save_weights(tmp_path / "model", {"number": object()}, {})
    assert load_weights(tmp_path / "model")[0] == {"number": 1}


def test_missing_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(MissingFileError, match=r"expected a folder with config\.json"):
            load_weights(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[1]", "expected an object"), ("", "not valid")]
)
def test_damaged_config(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path)


def test_config_in_another_encoding(tmp_path):
    (tmp_path / "config.json").write_bytes(json.dumps({"a": "ö"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(CheckpointError, match="not valid"):
        load_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 100])
def test_damaged_tensors(tmp_path, content):
    save_weights(tmp_path, {}, {"w": torch.ones(2)})
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(tmp_path)


def test_text_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "report.txt"
    write_text(path, "first\n")
    write_text(path, "zweite Fassung, mit Umläuten äöü\n")
    assert path.read_text(encoding="utf-8") == "zweite Fassung, mit Umläuten äöü\n"
    assert [other.name for other in path.parent.iterdir()] == ["report.txt"]


def test_text_that_can_not_be_written_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "report.txt"
    write_text(path, "first")

    def full(self, text, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "second")
    assert path.read_text() == "first"


def test_text_without_bytes_in_utf_8_is_written_as_an_escape(tmp_path):
    """So that JSON gives back the name of a file whose bytes are no UTF-8."""
    write_text(tmp_path / "report.json", json.dumps("caf\udce9", ensure_ascii=False))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == "caf\udce9"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """It is killed when both files are written, and none is in place."""
    code = (
        "import os, signal, shutil, sys, torch\n"
        "from pyrosep.zoo.weights import save_weights\n"
        "shutil.move = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_weights(sys.argv[1], {'a': 1}, {'w': torch.ones(2)})\n"
    )
    (tmp_path / ".mine").mkdir()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "model")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    save_weights(tmp_path / "model", {"a": 2}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "model"]
