"""The noise handler: targets by dense linear algebra, and what it leaves of a model."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.linalg
import torch
from pyro import poutine

from pyrosep import SGLD, GaussianPrior, LangevinMCMC, OscillatorPrior, Potential
from pyrosep.errors import ConfigurationError
from pyrosep.infer import COUPLINGS, StationaryNormal, measure_responses, noised
from pyrosep.mixing import linear_mix, panned_mix, soft_clipped_mix, unknown_gains_mix

#: The priors' own level is 0.1.
LEVELS = (0.1, 0.4, 2.0)

exact = pytest.mark.parametrize("coupling", ["denoised", "constraint"])
#: For any prior; "local" is for those whose denoisers are filters of short-time spectra.
every = pytest.mark.parametrize("coupling", [name for name in COUPLINGS if name != "local"])


def noisy_target(linear, sigma):
    """Mean and covariance of prod p_sigma(x_k) N(m; A x, noise^2 + sum a^2 (sigma^2 - sigma_0^2))."""
    added = sigma**2 - 0.1**2
    wide = linear.noise**2 + float(linear.gains.square().sum()) * added
    prior = linear.prior_covariance + added * torch.eye(len(linear.prior_covariance))
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + linear.mixing.mT @ linear.mixing / wide)
    return covariance @ linear.mixing.mT @ linear.mix / wide, covariance


def posterior_at(linear, sigma):
    """Mean and covariance of p(x_sigma | m): the model's own posterior, in noise."""
    return linear.mean, linear.covariance + (sigma**2 - 0.1**2) * torch.eye(len(linear.mean))


def target(linear, coupling, sigma):
    return (noisy_target if coupling == "noisy" else posterior_at)(linear, sigma)


def gradient_at(model, args, x, split):
    return Potential(model, args, num_chains=len(x)).value_and_grad(split(x))[1]


# --- the target --------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("density", [True, False])
@pytest.mark.parametrize("sigma", LEVELS)
def test_gradient_is_that_of_the_closed_form(linear, coupling, density, sigma):
    mean, covariance = target(linear, coupling, sigma)
    x = 2 * torch.randn(5, 16)
    found = gradient_at(noised(linear.model, sigma, coupling, density=density), (linear.mix,), x, linear.split)
    expected = torch.linalg.solve(covariance, (x - mean).mT).mT
    torch.testing.assert_close(linear.flat(found), expected, rtol=1e-8, atol=1e-8)  # rounding


@pytest.mark.parametrize("coupling", ["noisy", "denoised"])
@pytest.mark.parametrize("sigma", LEVELS)
def test_energy_is_that_of_the_closed_form(linear, coupling, sigma):
    """But for a constant, the evidence, which is the Gaussian's own under the exact coupling."""
    mean, covariance = target(linear, coupling, sigma)
    x = 2 * torch.randn(5, 16)
    energy = Potential(noised(linear.model, sigma, coupling), (linear.mix,), num_chains=5)(linear.split(x))
    log_prob = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    wide = linear.noise**2 * torch.eye(8) + linear.mixing @ linear.prior_covariance @ linear.mixing.mT
    if coupling == "noisy":  # each source's excess comes in twice, with the source and with the noise
        wide = wide + 2 * float(linear.gains.square().sum()) * (sigma**2 - 0.1**2) * torch.eye(8)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(8), wide).log_prob(linear.mix)
    torch.testing.assert_close(-energy, log_prob + evidence, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.4, 2.0])
def test_bias_of_the_noisy_coupling(linear, sigma):
    r"""At each frequency the excess v of a sum's sources over their powers p shrinks the mean's share of the mix.

    From sum a^2 p / (sum a^2 p + n^2) to sum a^2 (p + v) / (sum a^2 (p + 2 v) + n^2); the covariance changes with it.
    """
    biased, covariance = noisy_target(linear, sigma)
    right, right_covariance = posterior_at(linear, sigma)
    excess = sigma**2 - 0.1**2
    powers = torch.stack([prior.variance(linear.mix) for prior in linear.priors.values()])
    power = linear.gains.square().unsqueeze(-1)
    share = (power * (powers + excess)).sum(0) / ((power * (powers + 2 * excess)).sum(0) + linear.noise**2)
    spectrum = torch.fft.rfft(linear.mixing @ biased) / torch.fft.rfft(linear.mix)
    torch.testing.assert_close(spectrum, share.to(spectrum), rtol=1e-9, atol=1e-9)
    assert float((biased - right).norm()) > 0.05 * float(right.norm())
    assert float((covariance - right_covariance).norm()) > 0.05 * float(right_covariance.norm())


@every
@pytest.mark.parametrize("density", [True, False])
def test_at_its_own_level_the_model_is_what_it_was(linear, coupling, density):
    x = linear.split(torch.randn(4, 16))
    own = linear.potential(4)
    lifted = Potential(noised(linear.model, 0.1, coupling, density=density), (linear.mix,), num_chains=4)
    energy, gradient = own.value_and_grad(x)
    lifted_energy, lifted_gradient = lifted.value_and_grad(x)
    for name in x:
        # Without a density the score is found by way of the denoiser: rounding.
        torch.testing.assert_close(lifted_gradient[name], gradient[name], rtol=1e-12, atol=1e-12)
    if density:
        torch.testing.assert_close(lifted_energy, energy, rtol=1e-13, atol=1e-13)


@every
@pytest.mark.parametrize("sigma", LEVELS)
def test_plain_langevin_steps_give_the_target_of_their_step(linear, coupling, sigma, mean_agrees):
    r"""x <- x - eta Lambda (x - mu) + sqrt(2 eta) eps settles to Sigma = A Sigma A' + 2 eta I, A = I - eta Lambda.

    The step is 0.6 over the largest curvature, where that is off by tens of per cent; there are as many as bring the
    start's share below 1e-5. Moments of 4000 chains' last states, by their own standard errors.
    """
    mean, covariance = target(linear, coupling, sigma)
    precision = torch.linalg.inv(covariance)
    values = torch.linalg.eigvalsh(precision)
    eta = 0.6 / float(values.max())
    steps = math.ceil(math.log(1e-5) / math.log(1 - eta * float(values.min())))
    contraction = (torch.eye(16) - eta * precision).numpy()
    settled = torch.tensor(scipy.linalg.solve_discrete_lyapunov(contraction, 2 * eta * np.eye(16)))
    kernel = SGLD(noised(linear.model, sigma, coupling), step_size=eta, preconditioner=None)
    mcmc = LangevinMCMC(kernel, num_samples=1, warmup_steps=steps, num_chains=4000, seed=0).run(linear.mix)
    draws = linear.flat(mcmc.get_samples())
    upper = torch.triu_indices(16, 16)

    def check(center, wanted):
        mean_agrees(draws, center)
        deviation = draws - center
        mean_agrees(deviation[:, upper[0]] * deviation[:, upper[1]], wanted[upper[0], upper[1]])

    check(mean, settled)
    with pytest.raises(AssertionError, match="standard errors"):  # the test can tell the step's bias
        check(mean, covariance)
    if coupling == "noisy" and sigma > 0.1:
        right, right_covariance = posterior_at(linear, sigma)
        with pytest.raises(AssertionError, match="standard errors"):  # and the coupling's
            check(right, right_covariance)


@exact
@pytest.mark.parametrize("time", [7, 8])
def test_a_mix_with_echoes(linear_of, coupling, time):
    """V(f) = noise^2 + sum |H_k(f)|^2 C_k(f), with the echo's transfer function, makes the posterior exact."""
    linear = linear_of(time)
    sigma, added = 0.7, 0.7**2 - 0.1**2

    def model(mix=None):
        dry, wet = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        mean = dry + 0.8 * wet - 0.5 * wet.roll(3, -1)
        pyro.sample("mix", dist.Normal(mean, linear.noise).to_event(1), obs=mix)

    echo = torch.zeros(time)
    echo[0], echo[3] = 0.8, -0.5
    mixing = torch.cat([torch.eye(time), torch.tensor(scipy.linalg.circulant(echo.numpy()))], -1)
    precision = torch.linalg.inv(linear.prior_covariance) + mixing.mT @ mixing / linear.noise**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ mixing.mT @ linear.mix / linear.noise**2
    lifted = noised(model, sigma, coupling)
    x = torch.randn(4, 2 * time)
    found = linear.flat(gradient_at(lifted, (linear.mix,), x, linear.split))
    expected = torch.linalg.solve(covariance + added * torch.eye(2 * time), (x - mean).mT).mT
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    widened = poutine.trace(lifted).get_trace(linear.mix).nodes["mix"]["fn"]
    assert isinstance(widened, StationaryNormal)
    responses = torch.stack([torch.ones(time // 2 + 1) + 0j, torch.fft.rfft(echo)])
    powers = torch.stack([prior.variance(linear.mix) for prior in linear.priors.values()])
    wide = linear.noise**2 + (responses.abs().square() * added * powers / (powers + added)).sum(0)
    torch.testing.assert_close(widened.covariance, wide, rtol=1e-9, atol=1e-9)


@exact
@pytest.mark.parametrize("time", [7, 8])
def test_a_stereo_mix(linear_of, coupling, time):
    """Both channels are widened together: the posterior of three sources in two channels, dense."""
    linear = linear_of(time)
    priors = {**linear.priors, "c": GaussianPrior(torch.tensor([1.0, 0.2, 0.1]), time, sigma_min=0.1)}
    pans = torch.tensor([-0.5, 0.4, 0.9])
    angle = math.pi / 4 * (pans + 1)
    mixing = torch.kron(torch.stack([angle.cos(), angle.sin()]), torch.eye(time))  # (channel time, source time)
    mix = torch.randn(2, time)
    powers = torch.fft.irfft(priors["c"].variance(mix), n=time)
    prior_covariance = torch.block_diag(linear.prior_covariance, torch.tensor(scipy.linalg.circulant(powers.numpy())))
    covariance = torch.linalg.inv(torch.linalg.inv(prior_covariance) + mixing.mT @ mixing / 0.3**2)
    mean = covariance @ mixing.mT @ mix.flatten() / 0.3**2
    model = poutine.condition(panned_mix(priors, 0.3), {"pans": pans})
    x = torch.randn(4, 3 * time)
    lifted = noised(model, 0.7, coupling)
    found = gradient_at(lifted, (mix,), x, lambda x: dict(zip(priors, x.split(time, -1), strict=True)))
    expected = torch.linalg.solve(covariance + (0.7**2 - 0.1**2) * torch.eye(3 * time), (x - mean).mT).mT
    torch.testing.assert_close(torch.cat(list(found.values()), -1), expected, rtol=1e-8, atol=1e-8)


@every
def test_unequal_noise_over_time_is_widened_by_the_mean(linear, coupling):
    scale = torch.linspace(0.1, 1.0, 8)

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("mix", dist.Normal(a + 0.7 * b, scale).to_event(1), obs=mix)

    widened = poutine.trace(noised(model, 0.7, coupling)).get_trace(linear.mix).nodes["mix"]["fn"]
    torch.testing.assert_close(widened.base_dist.scale, (scale.square() + mean_extra(linear, coupling)).sqrt())


def mean_extra(linear, coupling, sigma=0.7):
    added = torch.tensor(sigma**2 - 0.1**2)
    total = 0.0
    for gain, prior in zip(linear.gains, linear.priors.values(), strict=True):
        power = prior.variance(linear.mix)
        unknown = added.expand(5) if coupling == "noisy" else added * power / (power + added)
        total = total + gain**2 * unknown.mean()
    return total


@every
@pytest.mark.parametrize(
    "family",
    [lambda mean: dist.StudentT(4.0, mean, 0.2), lambda mean: dist.Laplace(mean, 0.2)],
    ids=["student", "laplace"],
)
def test_heavy_tails_are_widened_in_variance(linear, coupling, family):
    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("mix", family(a + 0.7 * b).to_event(1), obs=mix)

    lifted = noised(model, 0.7, coupling)
    trace = poutine.trace(lifted).get_trace(linear.mix)
    widened = trace.nodes["mix"]["fn"].base_dist
    assert type(widened) is type(family(torch.zeros(8)))
    own = family(torch.zeros(8))
    torch.testing.assert_close(widened.variance.expand(8), own.variance + mean_extra(linear, coupling))
    assert float(own.scale.flatten()[0]) == 0.2  # the model's own is left as it was
    x = torch.randn(3, 16)
    energy = Potential(lifted, (linear.mix,), num_chains=3)(linear.split(x))
    assert energy.shape == (3,)
    with torch.no_grad():
        again = Potential(lifted, (linear.mix,))(linear.split(x[0]))
    torch.testing.assert_close(energy[0].detach(), again)


# --- the rest of the model ---------------------------------------------------------------------------------------


@every
def test_handlers_outside_hold_the_noisy_value_and_the_model_the_denoised(linear, coupling):
    model = unknown_gains_mix(linear.priors, noise=0.3)
    trace = poutine.trace(noised(model, 0.7, coupling)).get_trace(linear.mix)
    plain = poutine.trace(model).get_trace(linear.mix)
    gains = trace.nodes["gains"]
    assert type(gains["fn"].base_dist) is type(plain.nodes["gains"]["fn"].base_dist) is dist.LogNormal
    torch.testing.assert_close(gains["fn"].base_dist.scale, plain.nodes["gains"]["fn"].base_dist.scale)
    seen = []
    for name, prior in linear.priors.items():
        assert trace.nodes[name]["fn"].sigma == 0.7
        x, power = trace.nodes[name]["value"], prior.variance(linear.mix)
        added = 0.7**2 - 0.1**2
        wiener = torch.fft.irfft(torch.fft.rfft(x) * power / (power + added), n=8)
        seen.append(x if coupling == "noisy" else wiener)
    expected = (gains["value"].unsqueeze(-1) * torch.stack(seen)).sum(0)
    torch.testing.assert_close(trace.nodes["mix"]["fn"].mean, expected)


@every
def test_sources_of_the_handler_are_those_of_their_level(linear, coupling, mean_agrees):
    """The mean square of 4000 draws is the priors' variance at that level, over all of its bins."""
    lifted = noised(linear.model, 0.7, coupling)
    with pyro.plate("draws", 4000):
        trace = poutine.trace(lifted).get_trace(linear.mix)
    for name, prior in linear.priors.items():
        mean_agrees(
            trace.nodes[name]["value"].square().mean(-1),
            float(prior.at(0.7).variance(linear.mix)[torch.tensor([0, 1, 1, 2, 2, 3, 3, 4])].mean()),
        )


@every
def test_levels_by_source(linear, coupling):
    """Of two sources only one is noised: the posterior with the noise on its block."""
    x = torch.randn(3, 16)
    lifted = noised(linear.model, {"a": 0.1, "b": 0.7}, coupling)
    found = linear.flat(gradient_at(lifted, (linear.mix,), x, linear.split))
    added = torch.cat([torch.zeros(8), torch.full((8,), 0.7**2 - 0.1**2)]).diag()
    if coupling == "noisy":
        wide = linear.noise**2 + 0.7**2 * (0.7**2 - 0.1**2)  # the gain of b is 0.7 as well
        prior = torch.linalg.inv(linear.prior_covariance + added)
        expected = x @ prior - (linear.mix - x @ linear.mixing.mT) @ linear.mixing / wide
    else:
        expected = torch.linalg.solve(linear.covariance + added, (x - linear.mean).mT).mT
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@every
@pytest.mark.parametrize("by_name", [False, True])
def test_levels_by_chain(linear, coupling, by_name):
    levels = torch.tensor(LEVELS)
    x = torch.randn(3, 16)
    given = {"a": levels, "b": levels} if by_name else levels
    found = linear.flat(gradient_at(noised(linear.model, given, coupling), (linear.mix,), x, linear.split))
    for chain, sigma in enumerate(LEVELS):
        model = noised(linear.model, sigma, coupling)
        one = linear.flat(gradient_at(model, (linear.mix,), x[chain : chain + 1], linear.split))
        torch.testing.assert_close(found[chain : chain + 1], one, rtol=1e-10, atol=1e-10)


@every
def test_level_can_be_changed(linear, coupling):
    lifted = noised(linear.model, 2.0, coupling)
    x = torch.randn(3, 16)
    gradient_at(lifted, (linear.mix,), x, linear.split)
    lifted.sigma = 0.4
    mean, covariance = target(linear, coupling, 0.4)
    found = linear.flat(gradient_at(lifted, (linear.mix,), x, linear.split))
    torch.testing.assert_close(found, torch.linalg.solve(covariance, (x - mean).mT).mT, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("coupling", ["noisy", "denoised"])
def test_a_clipped_mix(linear, coupling):
    """With the responses given, the energy is that of the formula, and the gradient its own, through the denoiser."""
    model, sigma, added = soft_clipped_mix(linear.priors, 0.3, drive=0.5), 0.7, 0.7**2 - 0.1**2

    def run(values):
        return poutine.trace(poutine.condition(model, values)).get_trace(linear.mix)

    responses = measure_responses(run, {name: torch.randn(8) for name in linear.priors}, list(linear.priors))
    x = torch.randn(4, 16, requires_grad=True)
    energy, mean, wide = 0.0, 0.0, 0.3**2
    for (name, prior), one in zip(linear.priors.items(), x.split(8, -1), strict=True):
        power = prior.variance(linear.mix)
        at = prior.at(sigma)
        energy = energy - at.log_prob(one)
        share = 1.0 if coupling == "noisy" else power / (power + added)
        mean = mean + torch.fft.irfft(torch.fft.rfft(one) * share, n=8)
        wide = wide + responses["mix"][name].abs().square() * added * share
    covariance = torch.tensor(scipy.linalg.circulant(torch.fft.irfft(wide, n=8).numpy()))
    mix = torch.distributions.MultivariateNormal(torch.tanh(0.5 * mean) / 0.5, covariance)
    energy = energy - mix.log_prob(linear.mix)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    potential = Potential(noised(model, sigma, coupling, responses=responses), (linear.mix,), num_chains=4)
    found, found_gradient = potential.value_and_grad(linear.split(x.detach()))
    torch.testing.assert_close(found, energy.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(linear.flat(found_gradient), gradient, rtol=1e-8, atol=1e-8)


@every
@pytest.mark.parametrize("make", [soft_clipped_mix, unknown_gains_mix, panned_mix])
def test_every_ready_mix_runs(linear, coupling, make):
    model = make(linear.priors, noise=0.3)
    potential = Potential(noised(model, 0.7, coupling), (model().detach(),), num_chains=3)
    energy, gradient = potential.value_and_grad(potential.unconstrain(potential.prior_draw))
    assert bool(torch.isfinite(energy).all())
    for value in gradient.values():
        assert bool(torch.isfinite(value).all())
        assert bool(value.any())


@every
def test_chains_do_not_meet(linear, coupling):
    potential = Potential(noised(linear.model, 0.7, coupling), (linear.mix,), num_chains=4)
    potential.check_independence(potential.unconstrain(potential.prior_draw))


def test_observations_that_do_not_depend_on_the_sources_stay(linear):
    def model(mix=None):
        a = pyro.sample("a", linear.priors["a"])
        pyro.sample("count", dist.Poisson(3.0), obs=torch.tensor(2.0))
        pyro.sample("mix", dist.Normal(a, 0.2).to_event(1), obs=mix)

    trace = poutine.trace(noised(model, 0.7, "noisy")).get_trace(linear.mix)
    assert isinstance(trace.nodes["count"]["fn"], dist.Poisson)
    expected = math.sqrt(0.2**2 + 0.7**2 - 0.1**2)
    assert float(trace.nodes["mix"]["fn"].base_dist.scale[0]) == pytest.approx(expected)


def test_constraint_takes_the_jacobian_of_the_spectrum():
    """Of a prior that is not Gaussian: the gradient of the observation passes through the filter C(f) / added."""
    prior = OscillatorPrior("saw", frame=32, periods=(5, 7, 9), sigma_min=0.1)
    mix = prior.sample().double()
    model = linear_mix({"a": prior}, noise=0.3)
    x = prior.at(1.0).sample((2,)).double()
    lifted = noised(model, 1.0, "constraint")
    (found,) = Potential(lifted, (mix,), num_chains=2).value_and_grad({"a": x})[1].values()
    at, added = prior.at(1.0), 1.0 - 0.1**2
    mean = x + added * (at.denoise(x) - x)
    unknown = prior.uncertainty(torch.tensor(1.0, dtype=torch.float64))
    misfit = torch.fft.rfft(mean - mix) / (0.3**2 + unknown)
    expected = torch.fft.irfft(misfit * unknown / added, n=32) - at.score(x)
    # The level 0.1 of the prior is kept in single precision.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- errors ------------------------------------------------------------------------------------------------------


def test_unknown_coupling(linear):
    with pytest.raises(ConfigurationError, match=r"coupling must be one of .*got 'loose'"):
        noised(linear.model, 0.5, "loose")


def test_level_below_the_priors_own(linear):
    with pytest.raises(ConfigurationError, match=r"prior of 'a' is at noise level 0\.1 already; .* got 0\.05"):
        noised(linear.model, 0.05)(linear.mix)


def test_no_source_prior():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ConfigurationError, match="source priors as sites"):
        noised(model, 0.5)()


@pytest.mark.parametrize(
    "family",
    [lambda a: dist.Bernoulli(logits=a), lambda a: dist.Poisson(a.exp())],
    ids=["bernoulli", "poisson"],
)
def test_observation_without_a_scale(linear, family):
    def model():
        a = pyro.sample("a", linear.priors["a"])
        pyro.sample("mix", family(a).to_event(1), obs=torch.ones(8))

    with pytest.raises(ConfigurationError, match=r"observed site 'mix' is a (Bernoulli|Poisson), which has no scale"):
        noised(model, 0.5)()


def test_observation_of_another_length(linear):
    def model():
        a = pyro.sample("a", linear.priors["a"])
        pyro.sample("mean", dist.Normal(a.mean(-1), 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ConfigurationError, match="observed site 'mean' has shape"):
        noised(model, 0.5)()


@pytest.mark.parametrize(
    "family",
    [lambda a: dist.Cauchy(a, 0.2), lambda a: dist.StudentT(1.0, a, 0.2)],
    ids=["cauchy", "student"],
)
def test_observation_whose_mean_is_not_defined(linear, family):
    """Its mean is NaN, not missing: a model with it must be refused or widened, not be left as it is."""

    def model():
        a = pyro.sample("a", linear.priors["a"])
        pyro.sample("mix", family(a).to_event(1), obs=torch.ones(8))

    try:
        trace = poutine.trace(noised(model, 2.0, "noisy")).get_trace()
    except ConfigurationError:
        return
    assert float(trace.nodes["mix"]["fn"].base_dist.scale.min()) > 1


# --- masks, scales, several observations -------------------------------------------------------------------------


def posterior_of(linear, blocks, mix):
    """Mean and covariance given observations ``(matrix, variance, values)``, dense."""
    precision, pull = torch.linalg.inv(linear.prior_covariance), 0.0
    for matrix, variance, values in blocks:
        precision = precision + matrix.mT @ (matrix / variance.unsqueeze(-1))
        pull = pull + matrix.mT @ (values / variance)
    covariance = torch.linalg.inv(precision)
    return covariance @ pull, covariance


def check_posterior(linear, model, blocks, coupling, sigma=0.7):
    """The gradient is that of the posterior of the noisy sources, exactly."""
    mean, covariance = posterior_of(linear, blocks, linear.mix)
    x = torch.randn(4, 16)
    found = linear.flat(gradient_at(noised(model, sigma, coupling), (linear.mix,), x, linear.split))
    expected = torch.linalg.solve(covariance + (sigma**2 - 0.1**2) * torch.eye(16), (x - mean).mT).mT
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@exact
def test_several_observations_are_widened_together(linear, coupling):
    """Of one channel and of two, of both sources and of one: what is not known of them is counted once."""

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("mix", dist.Normal(a + 0.7 * b, 0.5).to_event(1), obs=mix)
        stereo = torch.stack([a - b, 0.3 * b], -2)
        pyro.sample("stereo", dist.Normal(stereo, 0.4).to_event(2), obs=torch.stack([mix.flip(-1), mix.roll(2)]))
        pyro.sample("one", dist.Normal(a, 0.3).to_event(1), obs=mix.roll(1))

    eye, mix = torch.eye(8), linear.mix
    rows = [([1.0, 0.7], 0.5, mix), ([1.0, -1.0], 0.4, mix.flip(-1)), ([0.0, 0.3], 0.4, mix.roll(2))]
    rows.append(([1.0, 0.0], 0.3, mix.roll(1)))
    blocks = [
        (torch.kron(torch.tensor([gains]), eye), torch.full((8,), noise**2), values) for gains, noise, values in rows
    ]
    check_posterior(linear, model, blocks, coupling)


def test_two_observations_of_one_source():
    """Noise 0.1 of each, and 1 of the source: their sum tells of it with precision 2 / 2.01."""
    prior = GaussianPrior(torch.ones(2), 8, sigma_min=0.0)

    def model():
        a = pyro.sample("a", prior)
        pyro.sample("one", dist.Normal(a, 0.1).to_event(1), obs=torch.zeros(8))
        pyro.sample("two", dist.Normal(a, 0.1).to_event(1), obs=torch.zeros(8))

    potential = Potential(noised(model, 1.0, "noisy"))
    x = torch.ones(8)
    slope = potential.value_and_grad({"a": x})[1]["a"] - x / (1 + 1.0)
    torch.testing.assert_close(slope, torch.full((8,), 2 / 2.01), rtol=1e-5, atol=1e-5)


@exact
def test_a_scaled_observation(linear, coupling):
    """A density to the power c is that of noise that is smaller by the root of c, and is widened as such."""

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        with poutine.scale(scale=0.25):
            pyro.sample("mix", dist.Normal(a + 0.7 * b, 0.5).to_event(1), obs=mix)

    check_posterior(linear, model, [(linear.mixing, torch.full((8,), 1.0), linear.mix)], coupling)


@pytest.mark.parametrize("several", [False, True])
def test_masked_observations_of_white_sources(double, several):
    """What is masked stays masked, and what is heard is widened; a second observation knows what the first told."""
    kept, noise, added = torch.arange(8) < 3, 0.5, 0.7**2 - 0.1**2
    priors = {
        name: GaussianPrior(torch.full((2,), power), 8, sigma_min=0.1) for name, power in (("a", 1.0), ("b", 2.0))
    }
    mix = torch.randn(8)

    def model(mix):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        pyro.sample("mix", dist.Normal(a + b, noise).mask(kept).to_event(1), obs=mix)
        if several:
            pyro.sample("again", dist.Normal(a - b, noise).to_event(1), obs=mix.flip(-1))

    variance = torch.where(kept, noise**2, 1e12)
    eye = torch.eye(8)
    blocks = [(torch.kron(torch.tensor([[1.0, 1.0]]), eye), variance, mix)]
    if several:
        blocks.append((torch.kron(torch.tensor([[1.0, -1.0]]), eye), torch.full((8,), noise**2), mix.flip(-1)))
    own = torch.cat([torch.full((8,), 1.01), torch.full((8,), 2.01)])
    precision, pull = torch.diag(1 / own), 0.0
    for matrix, spread, values in blocks:
        precision = precision + matrix.mT @ (matrix / spread.unsqueeze(-1))
        pull = pull + matrix.mT @ (values / spread)
    covariance = torch.linalg.inv(precision)
    x = torch.randn(4, 16)
    for coupling in ("denoised", "constraint"):
        potential = Potential(noised(model, 0.7, coupling), (mix,), num_chains=4)
        gradient = potential.value_and_grad(dict(zip("ab", x.split(8, -1), strict=True)))[1]
        expected = torch.linalg.solve(covariance + added * torch.eye(16), (x - covariance @ pull).mT).mT
        torch.testing.assert_close(torch.cat([gradient["a"], gradient["b"]], -1), expected, rtol=1e-6, atol=1e-6)


@every
def test_at_its_own_level_a_masked_observation_is_what_it_was(linear, coupling):
    kept = torch.arange(8) < 4

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("mix", dist.Normal(a + b, 0.5).mask(kept).to_event(1), obs=mix)

    x = torch.randn(3, 16)
    found = linear.flat(gradient_at(noised(model, 0.1, coupling), (linear.mix,), x, linear.split))
    expected = linear.flat(gradient_at(model, (linear.mix,), x, linear.split))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_several_observations_with_filters_and_gaps_are_refused(linear):
    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("mix", dist.Normal(a + b + 0.5 * b.roll(2, -1), 0.5).to_event(1), obs=mix)
        pyro.sample("late", dist.StudentT(4.0, a + 0.5 * a.roll(1, -1), 0.5).to_event(1), obs=mix)

    with pytest.raises(ConfigurationError, match="'late' is one of several"):
        poutine.trace(noised(model, 0.7, "denoised")).get_trace(linear.mix)


@every
@pytest.mark.parametrize("event", [False, True])
def test_several_sources_of_one_site(double, coupling, event):
    """They are noised and widened as those of sites of their own."""
    prior = GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), 8, sigma_min=0.1)
    gains, mix = torch.tensor([1.0, 0.7]), torch.randn(8)

    def together(mix):
        if event:
            s = pyro.sample("s", prior.expand([2]).to_event(1))
        else:
            with pyro.plate("k", 2):
                s = pyro.sample("s", prior)
        pyro.sample("mix", dist.Normal((gains[:, None] * s).sum(-2), 0.5).to_event(1), obs=mix)

    def apart(mix):
        a, b = pyro.sample("a", prior), pyro.sample("b", prior)
        pyro.sample("mix", dist.Normal(gains[0] * a + gains[1] * b, 0.5).to_event(1), obs=mix)

    x = torch.randn(3, 2, 8)
    level = 0.7
    one = Potential(noised(together, level, coupling), (mix,), num_chains=3).value_and_grad({"s": x})
    two = Potential(noised(apart, level, coupling), (mix,), num_chains=3).value_and_grad({"a": x[:, 0], "b": x[:, 1]})
    torch.testing.assert_close(one[0], two[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one[1]["s"], torch.stack([two[1]["a"], two[1]["b"]], 1), rtol=1e-9, atol=1e-9)


# --- stationary noise --------------------------------------------------------------------------------------------


def hermitian(time, channels=2):
    """Random positive definite matrices over the channels, real at 0 Hz and at half the sample rate."""
    factor = torch.randn(time // 2 + 1, channels, channels, dtype=torch.complex128)
    factor[0] = factor[0].real + 0j
    if time % 2 == 0:
        factor[-1] = factor[-1].real + 0j
    return factor @ factor.mH + 0.3 * torch.eye(channels)


def dense(covariance, time):
    """Of all channels one after the other: E[x_c(t) x_d(u)] is the inverse transform of V_cd at t - u."""
    rows = [
        [scipy.linalg.circulant(torch.fft.irfft(covariance[:, i, j], n=time).numpy()) for j in range(2)]
        for i in range(2)
    ]
    return torch.tensor(np.block(rows))


@pytest.mark.parametrize("time", [7, 8])
def test_stationary_normal_of_one_channel(double, time, mean_agrees):
    power = torch.rand(3, time // 2 + 1) + 0.2
    loc = torch.randn(3, time)
    noise = StationaryNormal(loc, power)
    x = torch.randn(4, 3, time)
    assert noise.batch_shape == (3,)
    assert noise.event_shape == (time,)
    draws = noise.sample((20_000,))
    assert draws.shape == (20_000, 3, time)
    for row in range(3):
        covariance = torch.tensor(scipy.linalg.circulant(torch.fft.irfft(power[row], n=time).numpy()))
        expected = torch.distributions.MultivariateNormal(loc[row], covariance).log_prob(x[:, row])
        torch.testing.assert_close(noise.log_prob(x)[:, row], expected, rtol=1e-9, atol=1e-9)
        mean_agrees(draws[:, row], loc[row])
        deviation = draws[:, row] - loc[row]
        mean_agrees(deviation.unsqueeze(-1) * deviation.unsqueeze(-2), covariance)


@pytest.mark.parametrize("time", [7, 8])
def test_stationary_normal_of_two_channels(double, time, mean_agrees):
    matrix, loc = hermitian(time), torch.randn(2, time)
    noise = StationaryNormal(loc, matrix)
    covariance = dense(matrix, time)
    x = torch.randn(4, 2, time)
    expected = torch.distributions.MultivariateNormal(loc.flatten(), covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(noise.log_prob(x), expected, rtol=1e-9, atol=1e-9)
    draws = noise.sample((20_000,)).flatten(1)
    mean_agrees(draws, loc.flatten())
    deviation = draws - loc.flatten()
    mean_agrees(deviation.unsqueeze(-1) * deviation.unsqueeze(-2), covariance)


@pytest.mark.parametrize("channels", [1, 2])
def test_stationary_normal_expands(double, channels):
    time = 8
    if channels == 1:
        noise = StationaryNormal(torch.randn(time), torch.rand(5) + 0.2)
    else:
        noise = StationaryNormal(torch.randn(2, time), hermitian(time))
    wide = noise.expand((3, 2))
    x = wide.sample((4,))
    assert x.shape == (4, 3, 2, *noise.event_shape)
    assert wide.mean.shape == (3, 2, *noise.event_shape)
    assert wide.log_prob(x).shape == (4, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), noise.log_prob(x))
    assert not torch.equal(x[0, 0, 0], x[0, 0, 1])
