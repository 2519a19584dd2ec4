"""What every test starts from: no Pyro parameters, a fixed seed, Pyro's validation on."""

import os
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.stats
import torch

# The processes that pytest-xdist starts share the cores.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


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


@pytest.fixture
def double():
    """Double precision by default, where a test compares with a closed form to rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def wiener():
    """A class of denoisers that are exact for circular Gaussian sources: in place of a network, a Wiener filter."""
    from pyrosep.nn.denoiser import Denoiser

    class Wiener(Denoiser):
        def forward(self, y, sigma, alpha=None):
            sigma = sigma.unsqueeze(-1)
            scale = (self.variance + sigma.square()).sqrt()
            power = torch.fft.rfft(y * scale) * (self.spectrum / (self.spectrum + sigma.square()))
            clean = torch.fft.irfft(power, n=y.shape[-1])
            return (clean - self.variance / scale * y) * scale / (sigma * self.variance.sqrt())

    return Wiener


@pytest.fixture
def filtering_flows():
    """Denoisers that filter short-time spectra, not trained: nearly stationary Gaussians of the spectra given."""
    from pyrosep import ContinuousFlow
    from pyrosep.nn.bandnet import BandSize
    from pyrosep.nn.denoiser import BandDenoiser

    def build(spectra, frame, rate, sigma_min=0.01):
        torch.manual_seed(0)
        size = BandSize(window=64, bands=4, width=4, neck=4, layers=1, features=4)
        return {
            name: ContinuousFlow(BandDenoiser(size, spectrum), frame, sigma_min=sigma_min, sample_rate=rate)
            for name, spectrum in spectra.items()
        }

    return build


#: How often a test of a right sampler would fail, were its seed not fixed.
FALSE_ALARM = 1e-4


@pytest.fixture
def agree():
    """Estimates agree with what is expected, at a false-alarm rate of 1e-4 over all elements together (Bonferroni)."""

    def check(estimate, expected, stderr):
        estimate, expected, stderr = (np.asarray(value, dtype=float) for value in (estimate, expected, stderr))
        distance = np.abs(estimate - expected)
        limit = scipy.stats.norm.isf(FALSE_ALARM / (2 * distance.size)) * stderr
        assert (distance <= limit).all(), f"off by {np.nanmax(distance / stderr):.1f} standard errors"

    return check


@pytest.fixture
def mean_agrees(agree):
    """The mean of independent draws, along the first axis, agrees with what is expected: see `agree`."""

    def check(draws, expected):
        draws = np.asarray(draws, dtype=float)
        agree(draws.mean(0), expected, draws.std(0, ddof=1) / np.sqrt(len(draws)))

    return check


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of recordings with stems that some tests read, where there is one."""
    folder = Path(os.environ.get("PYROSEP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}; set PYROSEP_DATA to a folder that holds them")
    return folder
