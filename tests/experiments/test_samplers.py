"""The study of the samplers, on one mix."""

import pandas
import pytest

from pyrosep.errors import ConfigurationError
from pyrosep.experiments.samplers import ARMS, DEFAULTS, _search, _Task, samplers
from pyrosep.metrics import wilson_interval
from pyrosep.priors import OscillatorPrior


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All arms, two sources, two small budgets."""
    out = tmp_path_factory.mktemp("study")
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
            patch.setenv(name, "131072")  # what the study sets where nothing is
        table = samplers(
            out,
            mixes=1,
            chains=2,
            frame=128,
            budgets=(6, 8),
            workers=1,
            sources=(2,),
            progress=lambda done, total: steps.append((done, total)),
        )
    return table, out, steps


@pytest.mark.slow
def test_one_row_for_each_sampler_budget_threshold_and_choice_of_chains(study):
    table, _, steps = study
    columns = ["sources", "sampler", "budget", "calls", "chains", "above_db", "share", "low", "high", "median_db"]
    assert list(table.columns) == [*columns, "seconds"]
    assert len(table) == (len(ARMS) * 2 + 1) * 4
    key = ["sampler", "budget", "chains", "above_db"]
    assert not table.duplicated(key).any()
    assert list(dict.fromkeys(table.sampler)) == [*ARMS, DEFAULTS]
    assert set(table.chains) == {"one", "best"}
    assert steps == [(done + 1, len(ARMS) * 2 + 1) for done in range(len(ARMS) * 2 + 1)]


@pytest.mark.slow
def test_shares_lie_in_their_intervals(study):
    table, _, _ = study
    assert ((table.low <= table.share + 1e-12) & (table.share <= table.high + 1e-12)).all()
    assert ((table.low >= 0) & (table.high <= 1)).all()
    wide = table.pivot_table("share", ["sampler", "budget", "chains"], "above_db")
    assert (wide[20.0] <= wide[10.0]).all()


@pytest.mark.slow
def test_no_sampler_makes_more_calls_than_its_budget(study):
    table, _, _ = study
    limited = table[table.sampler != DEFAULTS]
    assert (limited.calls <= limited.budget).all()
    assert (limited.calls >= limited.budget / 2 - 1).all()  # and none makes hardly any
    assert (table[table.sampler == DEFAULTS].budget == 0).all()


@pytest.mark.slow
def test_files(study):
    table, out, _ = study
    assert sorted(path.name for path in out.iterdir()) == ["samplers.csv", "samplers.png"]
    read = pandas.read_csv(out / "samplers.csv")
    pandas.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-5)  # six digits
    assert (out / "samplers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arm", ["blocks of 1", "blocks of 2", "blocks of 2 + exchanges"])
def test_small_budgets(arm):
    priors = {wave: OscillatorPrior(wave, frame=64, periods=(5, 7)) for wave in ("saw", "square")}
    task = _Task(arm, 4, 2, 64, (0,), 2, 0)
    assert _search(task, priors).ladder


def test_unknown_arms_and_numbers_of_sources(tmp_path):
    with pytest.raises(ConfigurationError, match=r"expected arms of .*; got \['blocks of 9'\]"):
        samplers(tmp_path, arms=("noisy", "blocks of 9"))
    with pytest.raises(ConfigurationError, match=r"expected 2, 3 or 4 sources; got \[1, 7\]"):
        samplers(tmp_path, sources=(2, 1, 7))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    # Of 1 in 10, 5 in 10 and none in 20: Newcombe (1998) has the formula; worked out by hand from the roots of
    # (p - x)^2 = z^2 x (1 - x) / n in x.
    [(0.1, 10, 0.017876, 0.404150), (0.5, 10, 0.236593, 0.763407), (0.0, 20, 0.0, 0.161125)],
)
def test_wilson_interval(share, trials, low, high):
    assert wilson_interval(share, trials) == pytest.approx((low, high), abs=1e-5)
