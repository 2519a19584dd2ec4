"""One contract for all kernels, on a mix whose posterior is known: exact samplers give it, SGLD its own biased one."""

import functools
import math

import arviz
import numpy as np
import pyro
import pytest
import scipy.linalg
import scipy.stats
import torch
from pyro.infer import HMC, MCMC

from pyrosep import MALA, SGLD, LangevinMCMC
from pyrosep.diagnostics import sbc
from pyrosep.errors import ConfigurationError
from pyrosep.infer import Potential

EXACT = {
    "mala-euler": functools.partial(MALA, step_size=0.1, proposal="euler", preconditioner=None),
    "mala-euler-prior": functools.partial(MALA, step_size=0.1, proposal="euler", preconditioner="prior"),
    "mala-euler-spectral": functools.partial(MALA, step_size=0.3, proposal="euler"),
    "mala-ou": functools.partial(MALA, step_size=0.1, preconditioner=None),
    "mala-ou-prior": functools.partial(MALA, step_size=0.1, preconditioner="prior"),
    "mala-ou-spectral": functools.partial(MALA, step_size=0.3),
}
BIASED = {
    "sgld": functools.partial(SGLD, step_size=0.1, preconditioner=None),
    "sgld-cold": functools.partial(SGLD, step_size=0.1, preconditioner=None, temperature=0.3),
    "sgld-prior": functools.partial(SGLD, step_size=0.08, preconditioner="prior"),
    "sgld-spectral": functools.partial(SGLD, step_size=0.5),
    "sgld-spectral-hot": functools.partial(SGLD, step_size=0.5, temperature=2.0),
}
LANGEVIN = EXACT | BIASED


def kernels(table):
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


def last_draws(linear, kernel, chains=4000, steps=150):
    """The last state of many chains: independent draws."""
    mcmc = LangevinMCMC(kernel, num_samples=1, warmup_steps=steps, thinning=steps, num_chains=chains, seed=0)
    return linear.flat(mcmc.run(linear.mix).get_samples())


def check_moments(draws, mean, covariance, mean_agrees):
    mean_agrees(draws, mean)
    deviation = draws - mean
    upper = torch.triu_indices(*covariance.shape)
    mean_agrees(deviation[:, upper[0]] * deviation[:, upper[1]], covariance[upper[0], upper[1]])


# --- the distribution --------------------------------------------------------------------------------------------


@kernels(EXACT)
def test_exact_kernels_give_the_posterior(linear, make, mean_agrees):
    draws = last_draws(linear, make(linear.model))
    check_moments(draws, linear.mean, linear.covariance, mean_agrees)


def test_hamiltonian_monte_carlo_gives_the_posterior(linear, agree):
    """Pyro's own kernel on the same model; standard errors from the effective sample size."""
    kernel = HMC(linear.model, step_size=0.35, num_steps=5, adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = MCMC(kernel, num_samples=700, warmup_steps=50, disable_progbar=True)
    mcmc.run(linear.mix)
    draws = linear.flat(mcmc.get_samples())
    deviation = draws - linear.mean
    upper = torch.triu_indices(*linear.covariance.shape)
    for values, expected in (
        (draws, linear.mean),
        (deviation[:, upper[0]] * deviation[:, upper[1]], linear.covariance[upper[0], upper[1]]),
    ):
        ess = np.array([arviz.ess(column[None], method="mean") for column in values.T.numpy()])
        agree(values.mean(0), expected, values.std(0).numpy() / np.sqrt(np.minimum(ess, len(values))))


def biased_covariance(linear, kernel):
    """What z <- z - eta M Lambda (z - mu) + sqrt(2 eta tau) L eps settles to: Sigma = A Sigma A' + 2 eta tau M."""
    root = linear.matrix(kernel.preconditioner.color)
    metric = (root @ root.mT).numpy()
    contraction = np.eye(len(metric)) - kernel.step_size * metric @ linear.precision.numpy()
    assert np.abs(np.linalg.eigvals(contraction)).max() < 1
    noise = 2 * kernel.step_size * kernel.temperature * metric
    return torch.tensor(scipy.linalg.solve_discrete_lyapunov(contraction, noise))


@kernels(BIASED)
def test_sgld_gives_its_own_biased_posterior(linear, make, mean_agrees):
    kernel = make(linear.model)
    draws = last_draws(linear, kernel)
    covariance = biased_covariance(linear, kernel)
    check_moments(draws, linear.mean, covariance, mean_agrees)
    with pytest.raises(AssertionError, match="standard errors"):  # the test can tell the two apart
        check_moments(draws, linear.mean, linear.covariance * kernel.temperature, mean_agrees)


def test_bias_of_sgld_as_documented(linear):
    """In white coordinates the variance is 2 tau / (a (2 - eta a)); with the spectral preconditioner a = 1."""
    kernel = SGLD(linear.model, 0.5, temperature=2.0)
    potential = linear.potential(num_chains=2)
    kernel.start(potential, 0, potential.unconstrain(potential.prior_draw))
    expected = linear.covariance * 2 * 2.0 / (2 - 0.5)
    torch.testing.assert_close(biased_covariance(linear, kernel), expected)


@kernels({name: EXACT[name] for name in ("mala-euler", "mala-ou-spectral")})
def test_calibration(linear, make):
    """Ranks of 400 true values among 39 draws are uniform, and intervals of 50 and 90 per cent hold as many."""
    values = {
        "first of a": lambda values: values["a"][..., 0],
        "inner product": lambda values: (values["a"] * values["b"]).sum(-1),
    }
    found = sbc(
        linear.model, make(linear.model), simulations=400, warmup_steps=80, thinning=10, quantities=values, init="mix"
    )
    assert not found.rejected(alarm=1e-3), found.table()


def test_one_chain_and_many_agree(linear, agree):
    """Mean energy of one long chain, and of 64 short ones; standard errors from the effective sample size."""
    means, errors = [], []
    for chains, draws in ((1, 640), (64, 20)):
        kernel = MALA(linear.model, 0.9, adapt_step_size=False)
        mcmc = LangevinMCMC(kernel, draws, 40, thinning=2, num_chains=chains, seed=chains).run(linear.mix)
        lp = mcmc.sample_stats()["lp"].numpy()
        assert lp.shape == (chains, draws)
        means.append(lp.mean())
        errors.append(lp.std() / np.sqrt(min(arviz.ess(lp, method="mean"), lp.size)))
    agree(means[0], means[1], np.hypot(*errors))


# --- one step ----------------------------------------------------------------------------------------------------


def started(linear, kernel, chains=3):
    potential = linear.potential(num_chains=chains)
    kernel.start(potential, 0, potential.unconstrain(potential.prior_draw))
    return kernel


def one_step(linear, kernel):
    """Old and new state, the gradient at the old, and the noise of the step, each ``(chain, source * time)``."""
    z = kernel.state.z
    gradient = kernel.potential.value_and_grad(z)[1]
    torch.manual_seed(11)
    noise = {name: torch.randn_like(value) for name, value in z.items()}
    torch.manual_seed(11)
    new = kernel.sample(z)
    return (linear.flat(values) for values in (z, new, gradient, noise))


@kernels(BIASED)
def test_a_step_of_sgld_is_its_equation(linear, make):
    kernel = started(linear, make(linear.model))
    eta, tau = kernel.step_size, kernel.temperature
    root = linear.matrix(kernel.preconditioner.color)
    z, new, gradient, noise = one_step(linear, kernel)
    expected = z - eta * gradient @ (root @ root.mT).mT + math.sqrt(2 * eta * tau) * noise @ root.mT
    torch.testing.assert_close(new, expected, rtol=1e-10, atol=1e-10)  # rounding
    torch.testing.assert_close(gradient, (z - linear.mean) @ linear.precision, rtol=1e-8, atol=1e-8)


@kernels(EXACT)
def test_a_step_of_mala_is_its_equation(linear, make):
    """The proposal, and the acceptance probability from the proposal's density there and back."""
    kernel = started(linear, make(linear.model), chains=200)
    eta = kernel.step_size
    variance = 2 * eta if kernel.proposal == "euler" else eta * (2 - eta)
    root = linear.matrix(kernel.preconditioner.color)
    metric = root @ root.mT
    z, new, gradient, noise = one_step(linear, kernel)
    proposed = z - eta * gradient @ metric + math.sqrt(variance) * noise @ root.mT
    gradient_there = (proposed - linear.mean) @ linear.precision
    target = torch.distributions.MultivariateNormal(linear.mean, linear.covariance)
    forth = torch.distributions.MultivariateNormal(z - eta * gradient @ metric, variance * metric)
    back = torch.distributions.MultivariateNormal(proposed - eta * gradient_there @ metric, variance * metric)
    log_ratio = target.log_prob(proposed) - target.log_prob(z) + back.log_prob(z) - forth.log_prob(proposed)
    torch.testing.assert_close(kernel.accept_prob, log_ratio.exp().clamp(max=1), rtol=1e-8, atol=1e-8)  # rounding
    accepted = (new - proposed).abs().amax(-1) < 1e-10
    stayed = (new == z).all(-1)
    assert bool((accepted ^ stayed).all())
    torch.testing.assert_close(kernel.state.energy, kernel.potential(kernel.state.z))
    # As many accepted as their probabilities say: their variance is the sum of p (1 - p); false-alarm rate 1e-4.
    chance = kernel.accept_prob
    deviation = float((chance * (1 - chance)).sum().sqrt())
    assert abs(float(accepted.sum() - chance.sum())) <= 3.9 * deviation + 1e-6


def test_the_ornstein_uhlenbeck_step_is_exact_for_a_quadratic_energy(linear):
    kernel = started(linear, MALA(linear.model, 0.7), chains=50)
    one_step(linear, kernel)
    torch.testing.assert_close(kernel.accept_prob, torch.ones(50))


def test_without_gradient_and_temperature_nothing_moves(linear):
    kernel = SGLD(linear.model, 0.1, temperature=0.0)
    potential = linear.potential(num_chains=2)
    start = linear.split(linear.mean.expand(2, -1))  # the mode
    kernel.start(potential, 0, start)
    z = kernel.state.z
    for _ in range(3):
        z = kernel.sample(z)
    torch.testing.assert_close(linear.flat(z), linear.flat(start), rtol=0, atol=1e-12)  # rounding


def test_without_temperature_it_descends_to_the_mode(linear):
    kernel = started(linear, SGLD(linear.model, 0.5, temperature=0.0))
    z = kernel.state.z
    for _ in range(60):  # each step halves the distance with the exact preconditioner: 2**-60
        z = kernel.sample(z)
    torch.testing.assert_close(linear.flat(z), linear.mean.expand(3, -1), rtol=1e-9, atol=1e-9)


def test_a_schedule_sets_the_step(linear):
    kernel = started(linear, SGLD(linear.model, lambda step: 0.1 / (1 + step), temperature=0.0, preconditioner=None))
    for step in range(3):
        assert kernel.step_size == pytest.approx(0.1 / (1 + step))
        z, new, gradient, _ = one_step(linear, kernel)
        torch.testing.assert_close(new, z - 0.1 / (1 + step) * gradient)


def test_step_size_is_adapted_in_warm_up_only(linear):
    """To the acceptance that was asked for; dual averaging leaves some hundredths."""
    sizes = []
    kernel = MALA(linear.model, 0.01, proposal="euler", preconditioner=None)
    mcmc = LangevinMCMC(
        kernel, 50, 200, num_chains=50, seed=0, hook_fn=lambda kernel, z, stage, i: sizes.append(kernel.step_size)
    ).run(linear.mix)
    assert len(set(sizes[:200])) > 100
    assert len(set(sizes[199:])) == 1
    assert len(kernel.step_sizes.unique()) == 50  # each chain has its own
    assert float(mcmc.sample_stats()["acceptance_rate"].mean()) == pytest.approx(0.574, abs=0.1)


def test_step_size_stays_where_adaptation_is_off(linear):
    kernel = MALA(linear.model, 0.05, adapt_step_size=False)
    LangevinMCMC(kernel, 5, 50, num_chains=3).run(linear.mix)
    assert bool((kernel.step_sizes == 0.05).all())


def test_bad_arguments(linear):
    for make, message in (
        (lambda: MALA(linear.model, proposal="leapfrog"), "proposal must be"),
        (lambda: MALA(linear.model, 1.5), r"step_size must be in \(0, 1.0\]"),
        (lambda: MALA(linear.model, 0.0, proposal="euler"), "step_size must be in"),
        (lambda: MALA(linear.model, float("nan")), "step_size must be in"),
        (lambda: MALA(linear.model, target_accept_prob=1.0), "target_accept_prob must be in"),
        (lambda: SGLD(linear.model, temperature=-1.0), "temperature must be at least 0"),
        (lambda: SGLD(linear.model, 0.0), "step size must be positive"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make()


# --- under Pyro's own MCMC ---------------------------------------------------------------------------------------


@kernels(LANGEVIN)
def test_stock_mcmc(linear, make):
    mcmc = MCMC(make(linear.model), num_samples=10, warmup_steps=30, disable_progbar=True)
    mcmc.run(linear.mix)
    samples = mcmc.get_samples()
    assert {name: tuple(value.shape) for name, value in samples.items()} == {"a": (10, 8), "b": (10, 8)}
    assert len(samples["a"].unique(dim=0)) > 1
    assert set(mcmc.diagnostics()) >= {"acceptance rate", "divergences"}


def test_stock_mcmc_gives_the_posterior(linear, agree):
    """Standard errors from the effective sample size."""
    mcmc = MCMC(MALA(linear.model, 0.9, adapt_step_size=False), 800, 50, disable_progbar=True)
    mcmc.run(linear.mix)
    draws = linear.flat(mcmc.get_samples())
    ess = np.array([arviz.ess(column[None], method="mean") for column in draws.T.numpy()])
    agree(draws.mean(0), linear.mean, draws.std(0).numpy() / np.sqrt(np.minimum(ess, 800)))


@pytest.fixture
def one_cpu(monkeypatch):
    """On which Pyro runs several chains one after the other, and warns of it."""
    monkeypatch.setattr("torch.multiprocessing.cpu_count", lambda: 1)


@kernels(LANGEVIN)
def test_stock_mcmc_with_chains_in_sequence(linear, make, one_cpu):
    starts = []

    class Watched(make.func):
        def setup(self, *args, **kwargs):
            super().setup(*args, **kwargs)
            starts.append(linear.flat(self.state.z))

    with pytest.warns(UserWarning, match="sequentially"):
        mcmc = MCMC(Watched(linear.model, **make.keywords), 6, 3, num_chains=2, disable_progbar=True)
    mcmc.run(linear.mix)
    samples = linear.flat(mcmc.get_samples(group_by_chain=True))
    assert samples.shape == (2, 6, 16)
    assert len(starts) == 2
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], samples[0, -1])  # not from where the first chain ended


def test_stock_mcmc_starts_every_chain_where_it_is_told(linear, one_cpu):
    start = linear.split(torch.randn(2, 16))
    kernel = SGLD(linear.model, 1e-12, temperature=0.0, preconditioner=None)
    with pytest.warns(UserWarning, match="sequentially"):
        mcmc = MCMC(kernel, 1, 0, num_chains=2, initial_params=start, disable_progbar=True)
    mcmc.run(linear.mix)
    samples = mcmc.get_samples(group_by_chain=True)
    for name, value in start.items():
        torch.testing.assert_close(samples[name].squeeze(1), value, rtol=0, atol=1e-9)  # one step of 1e-12


def test_a_second_run_of_a_kernel_does_not_start_from_the_first(linear):
    kernel = SGLD(linear.model, 1e-12, temperature=0.0, preconditioner=None)
    start = linear.split(torch.full((16,), 3.0))
    MCMC(kernel, 1, 0, initial_params=start, disable_progbar=True).run(linear.mix)
    again = MCMC(kernel, 1, 0, disable_progbar=True)
    again.run(linear.mix)
    assert not torch.allclose(linear.flat(again.get_samples()), torch.tensor(3.0))


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"], ["b"]])
def test_stock_mcmc_keeps_chosen_sites_apart(linear, order):
    start = {"a": torch.full((8,), 1.0), "b": torch.full((8,), 2.0)}
    kernel = SGLD(linear.model, 1e-12, temperature=0.0, preconditioner=None)
    mcmc = MCMC(kernel, 1, 0, initial_params=start, save_params=order, disable_progbar=True)
    mcmc.run(linear.mix)
    samples = mcmc.get_samples()
    assert set(samples) == set(order)
    for name in order:
        torch.testing.assert_close(samples[name].squeeze(0), start[name], rtol=0, atol=1e-9)  # one step of 1e-12


def test_stock_mcmc_returns_constrained_values():
    from pyrosep import GaussianPrior
    from pyrosep.mixing import unknown_gains_mix

    model = unknown_gains_mix({"a": GaussianPrior(torch.ones(2), 8)}, noise=0.3)
    mcmc = MCMC(MALA(model), 10, 10, disable_progbar=True)
    mcmc.run(torch.randn(8))
    assert bool((mcmc.get_samples()["gains"] > 0).all())


@pytest.mark.skipif(not hasattr(arviz, "from_pyro"), reason="ArviZ 1 does not read runs of Pyro")
def test_arviz_reads_a_stock_run(linear):
    mcmc = MCMC(MALA(linear.model), num_samples=8, warmup_steps=4, disable_progbar=True)
    mcmc.run(linear.mix)
    idata = arviz.from_pyro(mcmc)
    assert idata.posterior["a"].shape == (1, 8, 8)
    assert idata.sample_stats["diverging"].shape == (1, 8)


def test_progress_bar_shows_step_acceptance_and_residual(linear):
    kernel = started(linear, MALA(linear.model, 0.3))
    kernel.sample(kernel.state.z)
    report = kernel.logging()
    assert set(report) == {"step", "acc", "residual"}
    assert report["residual"].endswith(" dB")


def test_setup_on_the_models_arguments(linear):
    kernel = MALA(linear.model)
    pyro.set_rng_seed(0)
    kernel.setup(3, mix=linear.mix)
    assert isinstance(kernel.potential, Potential)
    assert kernel.potential.batch_ndim == 0
    assert set(kernel.initial_params) == {"a", "b"}
