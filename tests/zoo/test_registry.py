"""Prior sets and guides are found by name, folder and address; what is missing says where it is to be had."""

import http.server
import json
import shutil
import threading

import pytest

from pyrosep import load_guide, load_priors
from pyrosep.errors import CheckpointError, MissingFileError, UnknownModelError
from pyrosep.zoo import prior_set_info, registry
from pyrosep.zoo.weights import digest

SHIPPED = registry.SHIPPED


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of one's own."""
    monkeypatch.setenv("PYROSEP_MODELS", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def server(tmp_path):
    """A folder that is served, and its address; the paths that were asked for."""
    root, asked = tmp_path / "served", []
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


def test_the_catalogue_is_of_the_files_that_are_there():
    """Written anew by pyrosep.zoo.registry.write_catalogue() when weights change."""
    there = {path.parent.relative_to(SHIPPED).as_posix(): path.parent for path in SHIPPED.rglob("config.json")}
    assert set(registry.catalogue()) == set(there)
    for name, folder in there.items():
        assert registry.catalogue()[name]["sha256"] == digest(folder), name


def test_ones_own_folder_comes_before_the_package(own):
    shutil.copytree(SHIPPED / "band-gaussian", own / "toy")
    shutil.copytree(SHIPPED / "band-gaussian", own / "mine")
    assert {"toy", "mine", "music-small"} <= set(registry.names())
    assert prior_set_info("mine").folder == own / "mine"
    assert prior_set_info("toy").family == "gaussian"


def test_what_this_installation_lacks_says_where_it_is(own, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "SHIPPED", tmp_path / "nothing")
    with pytest.raises(UnknownModelError, match=r"'band-small' \(25 MB\) is not in this installation: copy pyrosep/w"):
        load_priors("band-small")
    with pytest.raises(UnknownModelError, match=r"copy pyrosep/weights/guides/band-guide .* FOLDER/guides/band-guide"):
        load_guide("band-guide")
    with pytest.raises(UnknownModelError, match="no prior set 'gone': expected one that is here"):
        load_priors("gone")


@pytest.mark.parametrize("name", ["", ".", "..", "../weights/toy", "/nowhere", "guides"])
def test_a_path_is_no_name(name):
    with pytest.raises(UnknownModelError, match="no prior set"):
        load_priors(name)


def test_a_set_is_loaded_from_an_address_once(own, server):
    root, address, asked = server
    shutil.copytree(SHIPPED / "band-gaussian", root / "mine")
    shutil.copytree(SHIPPED / "toy", root / "waves")  # which has no tensors
    priors = load_priors(f"{address}/mine/")
    assert list(priors) == list(load_priors("band-gaussian"))
    assert priors.digest == load_priors("band-gaussian").digest
    count = len(asked)
    assert load_priors(f"{address}/mine").digest == priors.digest
    assert len(asked) == count
    assert list(load_priors(f"{address}/waves")) == ["sine", "saw", "square", "triangle"]
    assert sorted(path.name.rpartition("-")[0] for path in own.iterdir()) == ["mine", "waves"]


def test_an_address_that_gives_something_else(own, server):
    root, address, _ = server
    (root / "page").mkdir()
    (root / "page" / "config.json").write_text("<html>")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load_priors(f"{address}/page")
    shutil.copytree(SHIPPED / "toy", root / "toy")
    (root / "toy" / "config.json").write_text(json.dumps({"family": "oscillator"}))
    with pytest.raises(CheckpointError, match="other files than the 'toy' of this version"):
        load_priors(f"{address}/toy")
    for gone in (f"{address}/gone", "http://127.0.0.1:9/gone", "http://"):
        with pytest.raises(MissingFileError, match="nothing is to be had"):
            load_priors(gone)
    assert not [path for path in own.rglob("*") if path.is_file()], "nothing is kept of it"
