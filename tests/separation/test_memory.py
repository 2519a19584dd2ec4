"""Memory that does not grow with a track: what is kept of its draws, and the heap of a long run."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pyrosep import GaussianPrior, Settings, separate
from pyrosep.separation import Chains
from pyrosep.separation.memory import KeptSummaries, give_back


def summaries(draws, windows=2, start=0):
    draw = np.arange(draws, dtype=np.float32)[None, :, None, None]
    window = start + np.arange(windows, dtype=np.float32)[None, None, :, None]
    return {"lp": np.broadcast_to(draw + 100 * window, (3, draws, windows, 1)).astype(np.float64)}


def test_all_draws_are_kept_where_they_fit():
    kept = KeptSummaries(windows=4, most=3 * 10 * 4 * 8)
    kept.add(summaries(10))
    kept.add(summaries(10, start=2))
    np.testing.assert_array_equal(kept.joined()["lp"], summaries(10, windows=4)["lp"])
    assert kept.thinning == 1


@pytest.mark.parametrize(("most", "thinning"), [(959, 2), (480, 2), (479, 3), (96, 10), (1, 10)])
def test_draws_are_thinned_evenly_where_they_do_not_fit(most, thinning):
    kept = KeptSummaries(windows=4, most=most)  # all of them take 3 * 10 * 4 * 8 = 960 bytes
    kept.add(summaries(10))
    kept.add(summaries(10, start=2))
    found = kept.joined()["lp"]
    np.testing.assert_array_equal(found, summaries(10, windows=4)["lp"][:, ::thinning])
    assert kept.thinning == thinning


def test_what_is_kept_holds_no_more_than_itself():
    """A view would hold all of the draws that it is of."""
    given = summaries(10)
    kept = KeptSummaries(windows=2, most=100)
    kept.add(given)
    assert not np.shares_memory(kept.joined()["lp"], given["lp"])


def test_methods_without_chains_keep_nothing():
    kept = KeptSummaries(windows=2)
    kept.add({})
    assert kept.joined() == {}


def test_summaries_of_a_track_stay_in_their_bound(monkeypatch):
    priors = {name: GaussianPrior(torch.tensor(spectrum), 64, sample_rate=8000) for name, spectrum in SPECTRA.items()}
    settings = Settings(Chains(2, 8, 1, ladder=None))
    mix = 0.1 * torch.randn(1, 2_000, generator=torch.Generator().manual_seed(0))
    whole = separate(mix, 8000, priors, settings)
    size = sum(value.nbytes for value in whole.summaries.values())
    monkeypatch.setattr(KeptSummaries.__init__, "__defaults__", (size // 2,))
    half = separate(mix, 8000, priors, settings)
    assert sum(value.nbytes for value in half.summaries.values()) <= size // 2
    assert torch.equal(half.mean, whole.mean), "what is written of draws has nothing to do with the estimate"
    for name, value in half.summaries.items():
        np.testing.assert_array_equal(value, whole.summaries[name][:, ::2])


SPECTRA = {"low": [1.0, 0.1, 0.01], "high": [0.01, 0.1, 1.0]}

PEAK = """
import resource, sys, torch
from pyrosep import GaussianPrior, Settings
from pyrosep.separation import Chains
from pyrosep.separation.separator import Separator

spectra, frame, rate = {spectra}, 32768, 16000
priors = {{name: GaussianPrior(torch.tensor(value), frame, sample_rate=rate) for name, value in spectra.items()}}
separator = Separator(priors, rate, Settings(Chains(4, 20, 2, ladder=None)))
generator = torch.Generator().manual_seed(0)
windows = lambda: (0.1 * torch.randn(1, frame, generator=generator) for _ in range(int(sys.argv[1])))
for block in separator.stream(windows(), separator.listen(windows())):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is counted in other units elsewhere")
def test_peak_memory_of_chains_is_that_of_a_short_track():
    """Of a process of its own, 20 windows against 100."""
    peaks = []
    for windows in (20, 100):
        command = [sys.executable, "-W", "ignore", "-c", PEAK.format(spectra=SPECTRA), str(windows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 40, peaks


def test_giving_back_is_harmless_anywhere(monkeypatch):
    give_back()
    monkeypatch.setattr("pyrosep.separation.memory.sys.platform", "win32")
    from pyrosep.separation import memory

    memory._trim.cache_clear()
    try:
        give_back()
        assert memory._trim() is None
    finally:
        memory._trim.cache_clear()
