"""The study of toy mixes under learned priors; here under the exact ones, which are quick at short frames."""

import pandas
import pytest

from pyrosep.errors import ConfigurationError
from pyrosep.experiments.flows import ARMS, TWO, flows


@pytest.fixture(scope="module")
def short():
    """Short ladders and few redraws: how well a search does is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        for arm, options in ARMS.items():
            patch.setitem(ARMS, arm, {"redraws": 2} | options | {"ladder": 4})
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory, short):
    out = tmp_path_factory.mktemp("flows")
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
            patch.setenv(name, "131072")  # what the study sets where nothing is
        table = flows(
            out,
            priors="toy",
            arms=("one descent", "defaults"),
            mixes=1,
            pair_mixes=2,
            chains=3,
            frame=64,
            workers=1,
            progress=lambda done, total: steps.append((done, total)),
        )
    return table, out, steps


@pytest.mark.slow
def test_a_row_for_each_set_of_waves_arm_and_number_of_chains(study):
    table, _, steps = study
    assert list(table.best_of.unique()) == [1, 2]
    assert len(table) == (7 + 1) * 2 * 2  # six pairs, all of them, and the four waves
    assert not table.duplicated(["waves", "arm", "best_of"]).any()
    assert (table[table.waves == "all pairs"].mixes == 12).all()
    assert (table[table.sources == 4].mixes == 1).all()
    assert steps == [(done + 1, 14) for done in range(14)]


@pytest.mark.slow
def test_figures_hang_together(study):
    table, _, _ = study
    assert (table.above_20 <= table.above_10).all()
    for threshold in ("10", "20"):
        share, low, high = (table[f"{key}_{threshold}"] for key in ("above", "low", "high"))
        assert ((low <= share + 1e-12) & (share <= high + 1e-12)).all()
    residual = table.pivot_table("residual", ["waves", "arm"], "best_of")
    one = table.mixes == 1
    assert (
        residual.loc[("sine + saw + square + triangle",)][2] <= residual.loc[("sine + saw + square + triangle",)][1]
    ).all()
    assert one.sum() == 4
    calls = table.pivot_table("calls", "waves", "arm")
    assert (calls["one descent"] <= calls["defaults"]).all()
    pairs = table[table.waves == "all pairs"].set_index(["arm", "best_of"])
    whole = table[(table.sources == 2) & (table.waves != "all pairs")].groupby(["arm", "best_of"]).above_10.mean()
    assert pairs.above_10.to_dict() == pytest.approx(whole.to_dict())


@pytest.mark.slow
def test_files(study):
    table, out, _ = study
    assert sorted(path.name for path in out.iterdir()) == ["flows.csv", "flows.md", "flows.png"]
    read = pandas.read_csv(out / "flows.csv")
    pandas.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-5)  # six digits
    assert (out / "flows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_gains_that_are_to_be_found_and_starts_from_a_guide(tmp_path, short):
    arms = ("unknown gains", "guide, one descent")
    table = flows(tmp_path, priors="toy", arms=arms, sources=(4,), mixes=1, chains=2, frame=128, workers=1)
    assert list(table.arm.unique()) == ["guide, one descent", "unknown gains"]
    assert table.median_db.notna().all()


@pytest.mark.slow
def test_learned_priors_in_mixed_precision(tmp_path, short):
    table = flows(
        tmp_path,
        arms=("one descent",),
        sources=(2,),
        pair_mixes=1,
        chains=1,
        frame=128,
        precision="bf16-mixed",
        workers=1,
    )
    assert len(table) == 7
    assert table.median_db.notna().all()


def test_what_it_can_not_do(tmp_path):
    with pytest.raises(ConfigurationError, match=r"expected arms of .*; got \['magic'\]"):
        flows(tmp_path, arms=("defaults", "magic"))
    with pytest.raises(ConfigurationError, match=r"expected 2 or 4 sources; got \[3\]"):
        flows(tmp_path, sources=(3,))
    with pytest.raises(ConfigurationError, match=r"precision must be .*; got '16'"):
        flows(tmp_path, precision="16")
    assert set(TWO) <= set(ARMS)
    assert not list(tmp_path.iterdir())
