"""Chains by mode: who is together, what a mode weighs, and what is said of it."""

import numpy as np
import pytest

from pyrosep.diagnostics import compare_chains, describe_modes, summarize, verdict
from pyrosep.diagnostics.arviz_versions import from_groups
from pyrosep.errors import DataError
from pyrosep.infer.modes import same_mode, weights_of


def inference_data(levels, joint, draws=50, cells=()):
    """Chains whose two summaries lie about `levels` with deviation 1, and whose log joint density about `joint`."""
    random = np.random.default_rng(0)
    shape = (len(levels), draws, *cells)
    place = np.asarray(levels, float).reshape(len(levels), *(1,) * (len(shape) - 1), -1)
    place = np.broadcast_to(place, (*shape, place.shape[-1]))
    dims = {"level": [*("window", "channel")[: len(cells)], "source"], "lp": ["window", "channel"][: len(cells)]}
    lp = np.asarray(joint, float).reshape(-1, *(1,) * (len(shape) - 1)) + random.standard_normal(shape)
    values = place + random.standard_normal(place.shape)
    return from_groups({"posterior": {"level": values}, "sample_stats": {"lp": lp}}, dims=dims)


def test_chains_within_each_others_spread_are_one_mode():
    means, deviations = np.array([[0.0, 0.0], [1.0, 1.0], [4.9, 0.0]]), np.ones((3, 2))
    assert same_mode(means, deviations).tolist() == [0, 0, 0]


def test_one_summary_apart_is_another_mode():
    means, deviations = np.array([[0.0, 0.0], [0.0, 5.1], [0.5, 0.0]]), np.ones((3, 2))
    assert same_mode(means, deviations).tolist() == [0, 1, 0]


def test_a_row_of_chains_joins_its_ends():
    means, deviations = np.array([[0.0], [4.0], [8.0]]), np.ones((3, 1))
    assert same_mode(means, deviations).tolist() == [0, 0, 0]


def test_weights_are_exponentials_shared_within_a_mode():
    weights = weights_of(np.array([0.0, 0.0, np.log(3.0)]), np.array([0, 0, 1]))
    assert weights == pytest.approx([0.125, 0.125, 0.75])


def test_weights_of_thousands_of_nats_do_not_overflow():
    assert weights_of(np.array([-9000.0, 33000.0]), np.array([0, 1])).tolist() == [0.0, 1.0]


def test_the_best_mode_is_number_zero_and_its_best_chain_is_marked():
    table = compare_chains(inference_data([[0.0], [30.0], [0.0]], [-50.0, 10.0, -60.0]))
    assert table["mode"].tolist() == [1, 0, 1]
    assert table["best"].tolist() == [False, True, False]
    assert table["weight"].sum() == pytest.approx(1.0)
    assert table["weight"][1] > 0.999


def test_modes_in_words():
    text = describe_modes(compare_chains(inference_data([[0.0], [30.0], [0.0]], [-50.0, 10.0, -60.0])))
    assert text.startswith("2 modes: chain 1 found the best (chain 1 the highest, weight 1); chains 0, 2 another, ")
    assert "60 nats below" in text or "59 nats below" in text or "61 nats below" in text


def test_one_mode_in_words():
    text = describe_modes(compare_chains(inference_data([[0.0], [0.1]], [0.0, 9.0])))
    assert text == "all 2 chains are in one mode; chain 1 has the highest log joint density"


def test_windows_are_judged_each_for_itself():
    idata = inference_data([[0.0], [0.0]], [0.0, 0.0], cells=(3, 2))
    idata.posterior["level"].values[1, :, 2, 0] += 100.0
    table = compare_chains(idata)
    assert len(table) == 12
    apart = table[table["mode"] > 0]
    assert (apart["window"] == 2).all()
    assert (apart["channel"] == 0).all()
    assert describe_modes(table) == "in 1 of 6 windows and channels chains found different modes"


def test_the_verdict_names_the_modes():
    table = summarize(inference_data([[0.0], [30.0]], [0.0, 20.0]))
    assert "2 modes: chain 1 found the best" in verdict(table)


def test_the_verdict_of_chains_that_agree_says_nothing_of_modes():
    table = summarize(inference_data([[0.0], [0.0]], [0.0, 0.0], draws=400))
    assert "mode" not in verdict(table)


def test_chains_without_a_log_joint_density():
    idata = from_groups({"posterior": {"level": np.zeros((2, 10))}})
    with pytest.raises(DataError, match="log joint density"):
        compare_chains(idata)


def test_modes_are_ranked_by_what_they_weigh():
    """A mode whose one chain is the highest of all, and its other far below, is not the best."""
    idata = inference_data([[0.0], [0.0], [30.0], [30.0]], [10.0, -100.0, 0.0, 0.0])
    table = compare_chains(idata)
    assert table["mode"].tolist() == [1, 1, 0, 0]
    assert table["weight"][:2].sum() < 1e-6
    text = describe_modes(table)
    assert text.startswith("2 modes: chains 2, 3 found the best (chain ")
    assert "nats above by its highest chain, below by the mean of its chains, weight" in text
