"""Kernels with priors that only have a score: moves need no more, and what to accept is found from slopes."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, SVI, Importance, Trace_ELBO, TraceMeanField_ELBO

from pyrosep import MALA, AnnealedSearch, ContinuousFlow, GaussianPosterior, GaussianPrior, GibbsMALA, LangevinMCMC
from pyrosep.errors import DivergenceError
from pyrosep.guides import log_weights
from pyrosep.infer import LangevinMoves, Potential, SweepMoves, UnderdampedLangevin, noised
from pyrosep.mixing import linear_mix
from pyrosep.nn.denoiser import DenoiserSize
from pyrosep.priors import scores_suffice


class Bare(GaussianPrior):
    """A Gaussian of which no more is told than its score."""

    has_density = False

    def _log_prob(self, value):
        return value.new_zeros(value.shape[:-1])

    def _log_prob_and_score(self, value):
        return self._log_prob(value), self.score(value)


@pytest.fixture
def bare(linear):
    priors = {name: Bare(prior.grid, linear.time, sigma_min=0.1) for name, prior in linear.priors.items()}
    linear.model = linear_mix(priors, linear.gains, linear.noise)
    return linear


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(MALA, step_size=0.1, proposal="euler", preconditioner=None),
        functools.partial(MALA, step_size=0.3),
        functools.partial(MALA, step_size=0.5, preconditioner="measured"),
        functools.partial(UnderdampedLangevin, leapfrog_steps=2),
    ],
    ids=["euler", "spectral", "measured", "underdamped"],
)
def test_exact_kernels_give_the_posterior_of_gaussian_sources(bare, make, mean_agrees):
    """The trapezoidal rule is exact for an energy that is quadratic."""
    mcmc = LangevinMCMC(make(bare.model), num_samples=1, warmup_steps=60, thinning=60, num_chains=2000, seed=0)
    draws = bare.flat(mcmc.run(bare.mix).get_samples())
    mean_agrees(draws, bare.mean)
    deviation = draws - bare.mean
    upper = torch.triu_indices(*bare.covariance.shape)
    mean_agrees(deviation[:, upper[0]] * deviation[:, upper[1]], bare.covariance[upper[0], upper[1]])


def test_mala_accepts_as_with_the_density(linear):
    """Step by step the same chains, to rounding."""
    priors = {name: Bare(prior.grid, linear.time, sigma_min=0.1) for name, prior in linear.priors.items()}
    found = []
    for model in (linear.model, linear_mix(priors, linear.gains, linear.noise)):
        mcmc = LangevinMCMC(
            MALA(model, 0.3, proposal="euler"), num_samples=10, warmup_steps=10, num_chains=8, init="mix", seed=0
        )
        found.append((linear.flat(mcmc.run(linear.mix).get_samples()), float(mcmc.kernel.mean_accept_prob)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert 0.05 < found[0][1] < 0.999
    assert found[0][1] == pytest.approx(found[1][1])


@pytest.mark.parametrize("coupling", ["sweeps", "denoised", "constraint"])
def test_a_search_with_continuous_flows(double, wiener, coupling, mean_agrees):
    """With an exact denoiser the search leads to the exact posterior, whatever its moves."""
    time, noise = 16, 0.3
    size = DenoiserSize(hop=4, width=4, levels=0, layers=1, heads=0, features=2)
    spectra = {"low": torch.linspace(3.0, 0.1, 9), "high": torch.linspace(0.1, 2.0, 9)}
    flows = {
        name: ContinuousFlow(wiener(size, power), time, sigma_min=0.1, sigma_max=10.0)
        for name, power in spectra.items()
    }
    gaussians = {name: GaussianPrior(power, time, sigma_min=0.1) for name, power in spectra.items()}
    mix = torch.randn(time, generator=torch.Generator().manual_seed(3))
    kernel = GibbsMALA(linear_mix(flows, noise=noise))
    moves = SweepMoves(reverse_steps=4) if coupling == "sweeps" else LangevinMoves(coupling)
    search = AnnealedSearch((2.0, 1.0, 0.5, 0.2), moves, redraws=2)
    mcmc = LangevinMCMC(kernel, num_samples=1, warmup_steps=60, thinning=60, num_chains=1000, init=search, seed=0)
    mcmc.run(mix)
    posterior = GaussianPosterior(gaussians, mix, noise=noise)
    draws = torch.stack([mcmc.get_samples()[name] for name in flows], 1)
    mean_agrees(draws, posterior.mean)
    mean_agrees((draws - posterior.mean).square(), posterior.stddev.square().unsqueeze(-1).expand(2, time))
    assert 0.2 < float(kernel.mean_accept_prob) <= 1


# --- where a density is needed -----------------------------------------------------------------------------------


def guide(mix):
    """Mean-field, of the sources a and b."""
    for name in "ab":
        loc = pyro.param(f"{name} loc", torch.zeros_like(mix))
        pyro.sample(name, dist.Normal(loc, 1.0).to_event(1))


NEED_DENSITIES = {
    "HMC": lambda model, mix: MCMC(HMC(model), 2, warmup_steps=2, disable_progbar=True).run(mix),
    "NUTS": lambda model, mix: MCMC(NUTS(model), 2, warmup_steps=2, disable_progbar=True).run(mix),
    "NUTS at a level": lambda model, mix: MCMC(NUTS(noised(model, 0.5)), 2, 2, disable_progbar=True).run(mix),
    "weights": lambda model, mix: log_weights(model, guide, mix, 30),
    "importance": lambda model, mix: Importance(model, guide, num_samples=2).run(mix),
    "ELBO": lambda model, mix: SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO()).step(mix),
    "mean-field ELBO": lambda model, mix: SVI(model, guide, pyro.optim.Adam({}), TraceMeanField_ELBO()).step(mix),
}


@pytest.mark.parametrize("method", NEED_DENSITIES.values(), ids=NEED_DENSITIES)
def test_what_compares_densities_refuses_priors_without_one(bare, method):
    with pytest.raises(ValueError, match=r"no density|has none"):  # Pyro wraps it, and keeps what it says
        method(bare.model, bare.mix)


def test_a_step_that_needs_the_gradient_alone(bare):
    """The gradient of an ELBO by samples is that of the model with densities."""
    gradients = []
    for model in (bare.model, linear_mix({n: p.at(0.1) for n, p in bare.priors.items()}, bare.gains, bare.noise)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        with scores_suffice():
            Trace_ELBO().loss_and_grads(model, guide, bare.mix)
        gradients.append(torch.stack([pyro.param(f"{name} loc").grad for name in "ab"]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_langevin_kernels_run_under_stock_mcmc_without_densities(bare):
    MCMC(MALA(bare.model), 2, warmup_steps=2, disable_progbar=True).run(bare.mix)


# --- denoisers that lead draws astray ----------------------------------------------------------------------------


class Runaway(Bare):
    """A denoiser that is of no use above a level."""

    exact_draws = False
    draw_clean = GaussianPrior.__mro__[1].draw_clean
    draw = GaussianPrior.__mro__[1].draw
    limit = 0.5

    def denoise(self, value):
        return torch.where(self._level(value) > self.limit, 1e6 * value, super().denoise(value))


def test_draws_that_run_away_are_named():
    prior = Runaway(torch.ones(2), 16, sigma_min=0.1)
    x = torch.randn(4, 16)
    assert prior.at(0.4).draw_clean(x).isfinite().all()
    with pytest.raises(DivergenceError, match=r"2 of 4 draws of a clean source .* from noise levels 0\.9 to 0\.9"):
        prior.at(torch.tensor([0.3, 0.9, 0.4, 0.9])).draw_clean(x)


def test_a_search_keeps_what_it_has_where_a_draw_runs_away():
    prior = Runaway(torch.ones(2), 16, sigma_min=0.1)
    priors = {"a": GaussianPrior(torch.ones(2), 16, sigma_min=0.1), "b": prior}
    mix = torch.randn(16)
    found = AnnealedSearch((2.0, 0.3), "sweeps", redraws=2).run(linear_mix(priors), mix, num_chains=3, seed=0)
    assert all(float(value.abs().max()) < 10 for value in found.values().values())
    prior.limit = 0.0
    with pytest.raises(DivergenceError, match="no draw of 'b' given the other sources was finite"):
        AnnealedSearch((2.0, 0.3), "sweeps", redraws=2).run(linear_mix(priors), mix, num_chains=3, seed=0)


# --- a density alone ---------------------------------------------------------------------------------------------


class DensityAlone(GaussianPrior):
    """A prior of one's own: neither score nor denoiser."""

    score = GaussianPrior.__mro__[1].score
    denoise = GaussianPrior.__mro__[1].denoise
    _log_prob_and_score = GaussianPrior.__mro__[1]._log_prob_and_score


def test_a_density_alone_makes_a_prior(double):
    own, whole = (kind(torch.tensor([2.0, 1.0, 0.5]), 8, sigma_min=0.1) for kind in (DensityAlone, GaussianPrior))
    x = torch.randn(3, 8, requires_grad=True)
    for name in ("score", "denoise", "log_prob"):
        torch.testing.assert_close(getattr(own, name)(x), getattr(whole, name)(x))
    assert torch.autograd.gradcheck(own.score, (x,))
    with torch.no_grad():
        torch.testing.assert_close(own.score(x), whole.score(x))
    mix = torch.randn(8)
    one, two = (Potential(linear_mix({"a": prior}), (mix,), num_chains=2) for prior in (own, whole))
    z = {"a": torch.randn(2, 8)}
    torch.testing.assert_close(one.value_and_grad(z)[1]["a"], two.value_and_grad(z)[1]["a"])
