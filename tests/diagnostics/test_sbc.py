"""Simulation-based calibration, on samplers and guides of which it is known whether they are right."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import HMC

from pyrosep import MALA, SGLD, GaussianPrior
from pyrosep.diagnostics import Calibration, plot_ranks, sbc
from pyrosep.errors import ConfigurationError
from pyrosep.mixing import linear_mix


def normal_model(y=None):
    """A location with a prior N(0, 1), seen twice in noise of deviation 1: the posterior is N(sum y / 3, 1 / 3)."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    return pyro.sample("y", dist.Normal(x.unsqueeze(-1).expand(*x.shape, 2), 1.0).to_event(1), obs=y)


def guide_of(shift=0.0, spread=1.0):
    def guide(y):
        pyro.sample("x", dist.Normal(y.sum(-1) / 3 + shift, spread / 3**0.5))

    return guide


def test_the_posterior_is_calibrated():
    found = sbc(normal_model, guide_of(), simulations=1000)
    assert found.names == ("x", "log-likelihood", "distance")
    assert found.ranks.shape == (3, 1000)
    assert found.draws == 39
    assert found.rejected() == {}, found.table()


@pytest.mark.parametrize("wrong", [{"shift": 0.3}, {"spread": 0.6}, {"spread": 1.6}])
def test_what_is_not_the_posterior_is_rejected(wrong):
    assert "x" in sbc(normal_model, guide_of(**wrong), simulations=1000).rejected()


def test_the_prior_passes_for_the_posterior_in_all_but_the_likelihood():
    """Ranks of functions of latent values alone can't tell draws of the prior; those of the log-likelihood do."""

    def prior(y):
        pyro.sample("x", dist.Normal(torch.zeros(y.shape[:-1]), 1.0))

    assert set(sbc(normal_model, prior, simulations=1000).rejected()) == {"log-likelihood"}


def test_coverage_is_that_of_intervals_of_the_wrong_width():
    """Intervals of half the width hold what a normal distribution has within half of its deviations."""
    found = sbc(normal_model, guide_of(spread=0.5), simulations=2000, draws=399)
    for level in (0.5, 0.9):
        share, low, high = found.coverage(level)["x"]
        end = scipy.stats.norm.isf((1 - level) / 2)
        expected = 1 - 2 * scipy.stats.norm.sf(end / 2)
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 2000))  # standard errors
        exact = scipy.stats.binom.interval(0.95, 2000, level)
        assert (low, high) == pytest.approx(np.array(exact) / 2000)
        assert not low <= share <= high


def test_ranks_are_uniform_where_draws_are_as_the_truth(agree):
    """By hand: of ranks 0 to 3 of equal values each is as likely, and of greater and smaller ones it is the count."""

    def same(y):
        pyro.sample("x", dist.Delta(torch.zeros(y.shape[:-1])))

    equal = sbc(normal_model, same, simulations=4000, draws=3, quantities={"nothing": lambda v: 0.0 * v["x"]})
    counts = torch.bincount(equal.ranks[equal.names.index("nothing")], minlength=4)
    agree(counts / 4000, np.full(4, 0.25), np.full(4, np.sqrt(0.25 * 0.75 / 4000)))
    assert set(equal.ranks[0].tolist()) == {0, 3}  # all draws of x are on one side of the truth


def test_kernels_of_both_kinds(double):
    """MALA in a batch, HMC one after the other; SGLD at a large step is rejected for its bias."""
    priors = {"a": GaussianPrior(torch.ones(2), 8), "b": GaussianPrior(torch.tensor([1.0, 0.1]), 8)}
    model = linear_mix(priors, noise=0.3)
    right = sbc(model, MALA(model), simulations=200, warmup_steps=60, thinning=3)
    assert right.names[:2] == ("a[0]", "a[1]")
    assert right.rejected() == {}, right.table()
    wrong = sbc(model, SGLD(model, 1.2), simulations=200, warmup_steps=60, thinning=3)
    assert "log-likelihood" in wrong.rejected()
    hmc = HMC(normal_model, step_size=0.5, num_steps=4, adapt_step_size=False, adapt_mass_matrix=False)
    stock = sbc(normal_model, hmc, simulations=20, draws=9, warmup_steps=5, thinning=2)
    assert stock.ranks.shape == (3, 20)
    assert stock.rejected() == {}, stock.table()


def test_the_caller_s_random_state_is_left_and_the_seed_obeyed():
    before = torch.get_rng_state()
    one, same, other = (sbc(normal_model, guide_of(), simulations=20, seed=seed).ranks for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_data_of_other_names_and_of_discrete_sites():
    """A parameter that is called differently, an argument that is no data, and counts as data."""

    def model(rate, data=None):
        x = pyro.sample("x", dist.Gamma(rate, 1.0))
        pyro.sample("count", dist.Poisson(x), obs=data)

    def guide(rate, data):
        pyro.sample("x", dist.Gamma(rate + data, 2.0))

    guided = functools.partial(guide, 2.0)
    found = sbc(functools.partial(model, 2.0), guided, simulations=500, observed={"data": "count"})
    assert found.rejected() == {}, found.table()


def test_what_can_not_be_calibrated_is_refused():
    with pytest.raises(ConfigurationError, match="called without arguments"):
        sbc(lambda mix: None, guide_of())
    with pytest.raises(ConfigurationError, match="expected data among the sites"):
        sbc(lambda other=None: normal_model(other), guide_of())
    with pytest.raises(ConfigurationError, match="simulations must be a whole number"):
        sbc(normal_model, guide_of(), simulations=1)
    found = Calibration(("x",), torch.arange(40).reshape(1, 40), 39)
    with pytest.raises(ConfigurationError, match="bins that divide the 40 ranks"):
        found.histogram(7)
    with pytest.raises(ConfigurationError, match="a level must be between 0 and 1"):
        found.coverage(1.0)


def test_histogram_and_picture(tmp_path):
    """Of ranks that are each there once, all bins hold as many."""
    found = Calibration(("x", "y"), torch.stack([torch.arange(40), torch.zeros(40, dtype=torch.long)]), 39)
    assert found.histogram().tolist() == [[5] * 8, [40] + [0] * 7]
    assert found.p_values()["x"] == 1.0
    assert found.p_values()["y"] < 1e-40
    assert "50 % intervals hold" in found.table()
    assert plot_ranks({"exact": found}, tmp_path / "ranks.png").stat().st_size > 1000
