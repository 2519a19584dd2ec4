"""What every test starts from: no Pyro parameters, a fixed seed, Pyro's validation on."""

import os
from pathlib import Path

import pyro
import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True)
def _fresh_pyro():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of recordings with stems that some tests read, where there is one."""
    folder = Path(os.environ.get("PYROSEP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}; set PYROSEP_DATA to a folder that holds them")
    return folder
