"""What of a model is there for ArviZ besides draws: deterministic values, likelihoods, mixes drawn anew."""

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC

from pyrosep import MALA, GaussianPrior, LangevinMCMC, to_inference_data
from pyrosep.diagnostics import read_netcdf, summarize, verdict, write_netcdf
from pyrosep.diagnostics.arviz_versions import group, group_names
from pyrosep.errors import ConfigurationError

TIME = 16
KEPT = torch.arange(TIME) < 10
PRIORS = {name: GaussianPrior(torch.ones(2), TIME, sample_rate=8) for name in "ab"}


def model(mix):
    a, b = (pyro.sample(name, prior) for name, prior in PRIORS.items())
    gain = pyro.sample("gain", dist.LogNormal(0.0, 0.3))
    pyro.deterministic("sum", a + b)
    pyro.deterministic("level", a.square().mean(-1))
    pyro.sample("mix", dist.Normal(a + gain[..., None] * b, 0.5).to_event(1), obs=mix)
    with poutine.scale(scale=0.5):
        pyro.sample("late", dist.Normal(a, 0.5).mask(KEPT).to_event(1), obs=mix)


MIX = torch.randn(TIME, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def mcmc():
    return LangevinMCMC(MALA(model), 16, 16, num_chains=3, seed=0).run(MIX)


@pytest.fixture(scope="module")
def idata(mcmc):
    return to_inference_data(mcmc, log_likelihood=True, posterior_predictive=True, prior=7)


def check_log_likelihoods(idata):
    """In closed form: of each sample of a plain observation, of those heard of a masked one, times its scale."""
    posterior, found = group(idata, "posterior"), group(idata, "log_likelihood")
    a, b = (torch.tensor(posterior["sources"].values[:, :, k]) for k in (0, 1))
    gain = torch.tensor(posterior["gain"].values)[..., None]
    plain = dist.Normal(a + gain * b, 0.5).log_prob(MIX)
    np.testing.assert_allclose(found["mix"].values, plain, rtol=1e-4, atol=1e-4)
    late = 0.5 * dist.Normal(a, 0.5).log_prob(MIX)[..., KEPT]
    np.testing.assert_allclose(found["late_heard"].values, late, rtol=1e-4, atol=1e-4)


def test_deterministic_values_are_in_the_posterior(idata):
    posterior = group(idata, "posterior")
    sources = posterior["sources"].values
    np.testing.assert_allclose(posterior["sum"].values, sources.sum(2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior["level"].values, np.square(sources[:, :, 0]).mean(-1), rtol=1e-5)
    assert posterior["sum"].dims == ("chain", "draw", "time")
    rows = summarize(idata).index
    assert "level" in rows
    assert not [row for row in rows if row.startswith("sum")]


def test_log_likelihoods(idata):
    check_log_likelihoods(idata)


def test_runs_of_stock_pyro_have_the_same_groups():
    mcmc = MCMC(HMC(model, step_size=0.1, num_steps=2), 4, warmup_steps=2, disable_progbar=True)
    mcmc.run(MIX)
    found = to_inference_data(mcmc, log_likelihood=True, posterior_predictive=True, prior=3)
    check_log_likelihoods(found)
    assert group(found, "posterior")["sum"].shape == (1, 4, TIME)
    assert group(found, "posterior_predictive")["mix"].shape == (1, 4, TIME)
    assert group(found, "prior")["sources"].shape == (1, 3, 2, TIME)


def test_groups_by_shape(idata, tmp_path):
    shapes = {
        name: {variable: array.shape for variable, array in group(idata, name).items()}
        for name in ("posterior_predictive", "prior", "prior_predictive")
    }
    assert shapes["posterior_predictive"] == {"mix": (3, 16, TIME), "late": (3, 16, TIME)}
    assert shapes["prior"] == {"sources": (1, 7, 2, TIME), "gain": (1, 7)}
    assert shapes["prior_predictive"] == {"mix": (1, 7, TIME), "late": (1, 7, TIME)}
    again = read_netcdf(write_netcdf(idata, tmp_path / "posterior.nc"))
    assert set(group_names(again)) == set(group_names(idata))


def test_mixes_drawn_anew_have_the_models_moments(mcmc, mean_agrees):
    found = to_inference_data(mcmc, posterior_predictive=True)
    posterior = group(found, "posterior")
    mean = (
        posterior["sources"].values[:, :, 0]
        + posterior["gain"].values[..., None] * posterior["sources"].values[:, :, 1]
    )
    error = (group(found, "posterior_predictive")["mix"].values - mean).reshape(-1)
    mean_agrees(error, 0.0)
    mean_agrees(error**2, 0.25)


def test_nothing_more_than_draws_unless_it_is_asked_for(mcmc):
    assert set(group_names(to_inference_data(mcmc))) == {"posterior", "sample_stats", "observed_data", "constant_data"}


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_leave_one_out(idata):
    assert np.isfinite(
        arviz.loo(idata, var_name="mix").elpd_loo if hasattr(arviz, "waic") else arviz.loo(idata, var_name="mix").elpd
    )


@pytest.mark.skipif(not hasattr(arviz, "from_pyro"), reason="ArviZ 1.0 has no from_pyro")
def test_arviz_takes_a_run_itself(mcmc):
    found = arviz.from_pyro(mcmc)
    assert found.posterior["a"].shape == (3, 16, TIME)
    assert found.sample_stats["diverging"].shape == (3, 16)
    np.testing.assert_allclose(found.observed_data["mix"], MIX)


def test_sources_of_one_site_by_name(tmp_path):
    prior = GaussianPrior(torch.ones(2), TIME)

    def plate(mix):
        with pyro.plate("k", 2):
            s = pyro.sample("s", prior)
        pyro.sample("mix", dist.Normal(s.sum(-2), 0.5).to_event(1), obs=mix)

    mcmc = LangevinMCMC(MALA(plate), 8, 8, num_chains=3, seed=0).run(MIX)
    found = to_inference_data(mcmc)
    sources = group(found, "posterior")["sources"]
    assert sources.dims == ("chain", "draw", "source", "time")
    assert sources.coords["source"].values.tolist() == ["s[0]", "s[1]"]
    np.testing.assert_array_equal(sources.values, mcmc.get_samples(group_by_chain=True)["s"])
    assert found.attrs["alike"] == "s[0], s[1]"
    table = summarize(read_netcdf(write_netcdf(found, tmp_path / "posterior.nc")))
    table["r_hat"] = 2.0
    assert "the sources s[0], s[1] are of one prior" in verdict(table)


def test_sources_that_are_functions_of_other_sites():
    """As Pyro's reparametrisations make them."""

    def scaled(mix):
        a = pyro.deterministic("a", 2 * pyro.sample("base", dist.Normal(torch.zeros(TIME), 1.0).to_event(1)))
        pyro.sample("mix", dist.Normal(a, 0.5).to_event(1), obs=mix)

    mcmc = LangevinMCMC(MALA(scaled), 4, 4, num_chains=2, seed=0).run(MIX)
    with pytest.raises(ConfigurationError, match=r"name those that are sources among \['base', 'a'\]"):
        to_inference_data(mcmc)
    posterior = group(to_inference_data(mcmc, sources=["a"]), "posterior")
    assert posterior["sources"].coords["source"].values.tolist() == ["a"]
    np.testing.assert_allclose(posterior["sources"].values[:, :, 0], 2 * posterior["base"].values, rtol=1e-6)
    with pytest.raises(ConfigurationError, match=r"got \['c'\]"):
        to_inference_data(mcmc, sources=["c"])


def test_sources_of_different_lengths_are_named():
    def lengths(mix):
        a, b = pyro.sample("a", PRIORS["a"]), pyro.sample("b", PRIORS["b"].frame(8))
        pyro.sample("mix", dist.Normal(a + torch.nn.functional.pad(b, (0, 8)), 0.5).to_event(1), obs=mix)

    mcmc = LangevinMCMC(MALA(lengths, 0.01, preconditioner=None), 4, 4, num_chains=2, seed=0).run(MIX)
    with pytest.raises(ConfigurationError, match=r"one length to stack; theirs are \{'a': 16, 'b': 8\} samples"):
        to_inference_data(mcmc)
