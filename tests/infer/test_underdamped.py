"""Underdamped Langevin dynamics, on a mix whose posterior is known, and against its equations."""

import functools
import math

import pytest
import torch
from pyro.infer import MCMC

from pyrosep import LangevinMCMC
from pyrosep.diagnostics import sbc
from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer import UnderdampedLangevin
from pyrosep.mixing import soft_clipped_mix

METROPOLISED = {
    "metropolised": functools.partial(UnderdampedLangevin, step_size=0.3, preconditioner=None),
    "metropolised-spectral": functools.partial(UnderdampedLangevin),
    "metropolised-leapfrog": functools.partial(UnderdampedLangevin, leapfrog_steps=3, friction=0.3),
    "metropolised-fresh-momenta": functools.partial(UnderdampedLangevin, friction=5.0, preconditioner="prior"),
}
BAOAB = {
    "baoab": functools.partial(UnderdampedLangevin, step_size=0.2, metropolis=False, preconditioner=None),
    "baoab-spectral": functools.partial(UnderdampedLangevin, step_size=1.0, metropolis=False),
    "baoab-cold": functools.partial(UnderdampedLangevin, step_size=0.8, metropolis=False, temperature=0.3),
}


def kernels(table):
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


@kernels(METROPOLISED | BAOAB)
def test_it_gives_the_posterior(linear, make, mean_agrees):
    """BAOAB too, whose positions have the right variance in a Gaussian, times the temperature, at any stable step."""
    kernel = make(linear.model)
    mcmc = LangevinMCMC(kernel, num_samples=1, warmup_steps=60, thinning=60, num_chains=2000, seed=0)
    draws = linear.flat(mcmc.run(linear.mix).get_samples())
    mean_agrees(draws, linear.mean)
    deviation = draws - linear.mean
    upper = torch.triu_indices(*linear.covariance.shape)
    wanted = kernel.temperature * linear.covariance[upper[0], upper[1]]
    mean_agrees(deviation[:, upper[0]] * deviation[:, upper[1]], wanted)


def test_momenta_have_their_temperature(linear, mean_agrees):
    """Standard normal after Metropolised steps, turned back ones included."""
    kernel = UnderdampedLangevin(linear.model, 1.5, adapt_step_size=False, preconditioner=None)
    LangevinMCMC(kernel, 1, 0, num_chains=3000, thinning=40, seed=0, init=linear.split(linear.mean)).run(linear.mix)
    assert float(kernel.accept_prob.mean()) < 0.9
    mean_agrees(linear.flat(kernel.momentum).square(), torch.ones(16))


def started(linear, kernel, chains=3):
    potential = linear.potential(num_chains=chains)
    kernel.start(potential, 0, potential.unconstrain(potential.prior_draw))
    return kernel


def one_step(linear, kernel):
    """Position, momentum and the noise of the step, and both after it, ``(chain, source * time)``."""
    z, momentum = kernel.state.z, kernel.momentum
    torch.manual_seed(11)
    noise = {name: torch.randn_like(value) for name, value in z.items()}
    torch.manual_seed(11)
    new = kernel.sample(z)
    return (linear.flat(values) for values in (z, momentum, noise, new, kernel.momentum))


@kernels(BAOAB)
def test_a_step_of_baoab_is_its_equation(linear, make):
    kernel = started(linear, make(linear.model))
    root, h = linear.matrix(kernel.preconditioner.color), kernel.step_size
    z, p, noise, new, momentum = one_step(linear, kernel)

    def force(z):
        return -(z - linear.mean) @ linear.precision @ root

    c = math.exp(-kernel.friction * h)
    p = p + h / 2 * force(z)
    z = z + h / 2 * p @ root.mT
    p = c * p + math.sqrt((1 - c**2) * kernel.temperature) * noise
    z = z + h / 2 * p @ root.mT
    p = p + h / 2 * force(z)
    torch.testing.assert_close(new, z, rtol=1e-9, atol=1e-9)  # rounding
    torch.testing.assert_close(momentum, p, rtol=1e-9, atol=1e-9)


@kernels(METROPOLISED)
def test_a_metropolised_step_is_its_equation(linear, make):
    """The proposal, its probability, and momenta that are turned back where it is rejected."""
    kernel = started(linear, make(linear.model), chains=200)
    root, h = linear.matrix(kernel.preconditioner.color), kernel.step_size
    z, p, noise, new, momentum = one_step(linear, kernel)
    c = math.exp(-kernel.friction * h)
    start = c * p + math.sqrt(1 - c**2) * noise
    w, q = z, start
    for _ in range(kernel.leapfrog_steps):
        q = q - h / 2 * (w - linear.mean) @ linear.precision @ root
        w = w + h * q @ root.mT
        q = q - h / 2 * (w - linear.mean) @ linear.precision @ root
    target = torch.distributions.MultivariateNormal(linear.mean, linear.covariance)
    log_ratio = target.log_prob(w) - target.log_prob(z) + 0.5 * (start.square() - q.square()).sum(-1)
    torch.testing.assert_close(kernel.accept_prob, log_ratio.exp().clamp(max=1), rtol=1e-8, atol=1e-8)
    accepted = (new - w).abs().amax(-1) < 1e-9
    assert bool((accepted ^ (new == z).all(-1)).all())
    assert bool(accepted.any())
    torch.testing.assert_close(momentum, torch.where(accepted.unsqueeze(-1), q, -start), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(kernel.state.energy, kernel.potential(kernel.state.z))


def test_without_friction_the_energy_is_conserved(linear):
    """BAOAB is leapfrog then: of a quadratic energy it conserves p'p / 2 + w'(A - h^2 A^2 / 4) w / 2 exactly, and the
    energy itself with an error of the order of the squared step."""

    def errors(h):
        torch.manual_seed(0)  # the same start for each step
        kernel = started(linear, UnderdampedLangevin(linear.model, h, friction=0.0, metropolis=False))
        root = linear.matrix(kernel.preconditioner.color)
        curvature = root.mT @ linear.precision @ root
        shadow = curvature - h**2 / 4 * curvature @ curvature

        def energies():
            p = linear.flat(kernel.momentum)
            w = torch.linalg.solve(root, (linear.flat(kernel.state.z) - linear.mean).mT).mT
            kinetic = 0.5 * p.square().sum(-1)
            return kinetic + 0.5 * ((w @ shadow) * w).sum(-1), kinetic + kernel.state.energy

        before = energies()
        worst = torch.zeros(3)
        for _ in range(round(4 / h)):
            kernel.sample(kernel.state.z)
            now = energies()
            torch.testing.assert_close(now[0], before[0], rtol=1e-9, atol=1e-9)  # rounding
            worst = torch.maximum(worst, (now[1] - before[1]).abs())
        return worst

    ratio = errors(0.2) / errors(0.1)
    assert bool((ratio > 3.5).all() and (ratio < 4.5).all()), ratio


def test_large_friction_is_sgld(linear):
    """A step of BAOAB from fresh momenta moves by h^2 / 2 of the gradient: with friction that forgets at once."""
    kernel = started(
        linear, UnderdampedLangevin(linear.model, 0.3, friction=1e6, metropolis=False, preconditioner=None)
    )
    kernel.momentum = {name: torch.zeros_like(value) for name, value in kernel.state.z.items()}
    gradient = linear.flat(kernel.state.white_gradient)
    z, _, noise, new, _ = one_step(linear, kernel)
    torch.testing.assert_close(new, z - 0.3**2 / 4 * gradient + 0.3 / 2 * noise)


def test_step_size_is_adapted_to_the_acceptance(linear):
    kernel = UnderdampedLangevin(linear.model, 0.01, preconditioner=None)
    mcmc = LangevinMCMC(kernel, 50, 200, num_chains=50, seed=0).run(linear.mix)
    assert float(mcmc.sample_stats()["acceptance_rate"].mean()) == pytest.approx(0.9, abs=0.05)
    assert len(kernel.step_sizes.unique()) == 50


@kernels(METROPOLISED | BAOAB)
def test_stock_mcmc(linear, make):
    mcmc = MCMC(make(linear.model), num_samples=10, warmup_steps=30, disable_progbar=True)
    mcmc.run(linear.mix)
    assert mcmc.get_samples()["a"].shape == (10, 8)
    assert len(mcmc.get_samples()["a"].unique(dim=0)) > 1


@pytest.mark.slow
def test_calibration_of_a_clipped_mix(linear):
    """A posterior that is not Gaussian: the Metropolised kernel is calibrated, BAOAB at a large step is not."""
    model = soft_clipped_mix(linear.priors, noise=0.1, drive=1.0)
    right = sbc(model, UnderdampedLangevin(model), simulations=400, warmup_steps=200, thinning=20)
    assert right.rejected() == {}, right.table()
    wrong = UnderdampedLangevin(model, 1.2, metropolis=False)
    assert "log-likelihood" in sbc(model, wrong, simulations=400, warmup_steps=200, thinning=20).rejected()


def test_baoab_that_is_not_stable_is_stopped(linear):
    mcmc = LangevinMCMC(UnderdampedLangevin(linear.model, 2.5, metropolis=False), 500, 0, num_chains=2)
    with pytest.raises(DivergenceError, match="every chain has diverged"):
        mcmc.run(linear.mix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step size must be positive"),
        ({"friction": -1.0}, "friction must be at least 0"),
        ({"temperature": math.nan}, "temperature must be at least 0"),
        ({"temperature": 0.5}, "a Metropolised step has the temperature 1"),
        ({"leapfrog_steps": 0}, "expected a whole number of leapfrog steps"),
        ({"leapfrog_steps": 2, "metropolis": False}, "and 1 of a step that is not Metropolised"),
        ({"target_accept_prob": 1.0}, r"target_accept_prob must be in \(0, 1\)"),
    ],
)
def test_bad_arguments(linear, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        UnderdampedLangevin(linear.model, **arguments)
