"""Kernels with priors that only have a score: moves need no more, and what to accept is found from slopes."""

import functools

import pytest
import torch

from pyrosep import MALA, AnnealedSearch, ContinuousFlow, GaussianPosterior, GaussianPrior, GibbsMALA, LangevinMCMC
from pyrosep.infer import LangevinMoves, SweepMoves
from pyrosep.mixing import linear_mix
from pyrosep.nn.denoiser import DenoiserSize


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
    ],
    ids=["euler", "spectral", "measured"],
)
def test_mala_gives_the_posterior_of_gaussian_sources(bare, make, mean_agrees):
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
