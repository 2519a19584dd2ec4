"""Importance weights against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pyrosep import EncoderGuide, GaussianPosterior, GaussianPrior
from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides import iwae, log_weights, simulate
from pyrosep.mixing import at_level, linear_mix, mean_mix, panned_mix, unknown_gains_mix
from pyrosep.nn.refining import UNetSize

TIME, NOISE = 12, 0.3
TINY = UNetSize(hop=4, width=4, levels=1, layers=1)


def coloured():
    return {
        "a": GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), TIME),
        "b": GaussianPrior(torch.tensor([0.5, 2.0]), TIME),
    }


def evidence(priors, mix, noise):
    """The log-density of a mean of Gaussian sources in white noise, by its spectrum."""
    power = sum(prior.variance(mix) for prior in priors.values()) / len(priors) ** 2 + noise**2
    return GaussianPrior(power, mix.shape[-1], 0.0, sigma_min=0.0).log_prob(mix)


def exact_guide(priors, noise, spread=1.0):
    """The posterior of two Gaussian sources as a guide: one, then the other given it; ``spread`` widens the first."""

    def guide(mix):
        exact = GaussianPosterior(priors, mix, gains=torch.full((2,), 0.5), noise=noise)
        blocks = torch.fft.irfft(exact.spectral_covariance.permute(1, 2, 0) + 0j, n=TIME)
        lag = (torch.arange(TIME).unsqueeze(-1) - torch.arange(TIME)) % TIME
        (own, cross), (_, other) = blocks[..., lag]
        a = pyro.sample("a", dist.MultivariateNormal(exact.mean[..., 0, :], spread**2 * own))
        gain = torch.linalg.solve(own, cross).mT
        mean = exact.mean[..., 1, :] + (a - exact.mean[..., 0, :]) @ gain.mT
        pyro.sample("b", dist.MultivariateNormal(mean, other - gain @ cross))

    return guide


@pytest.mark.usefixtures("double")
def test_of_the_exact_posterior_every_weight_is_the_evidence():
    priors = coloured()
    model = mean_mix(priors, NOISE)
    mix = torch.randn(3, TIME)
    weights = log_weights(model, exact_guide(priors, NOISE), mix, 5, batched=True)
    # Closed forms in double precision, through a solve of condition 1e3.
    torch.testing.assert_close(weights, evidence(priors, mix, NOISE).expand(5, 3), rtol=1e-8, atol=1e-8)
    one = log_weights(model, exact_guide(priors, NOISE), mix[0], 5)
    torch.testing.assert_close(one, weights[:, 0], rtol=1e-8, atol=1e-8)


def test_a_projected_guide_can_be_exact():
    """For white sources the projection is the posterior, if the encoders give the prior."""
    powers = torch.tensor([4.0, 0.5])
    priors = {name: GaussianPrior(p.expand(2), TIME, sigma_min=1e-6) for name, p in zip("ab", powers, strict=True)}
    guide = EncoderGuide(priors, size=TINY, project=True, noise=NOISE)
    guide._encoded = lambda mix: (torch.zeros(2, TIME), powers.sqrt().unsqueeze(-1).expand(2, TIME), mix, mix)
    mix = torch.randn(TIME)
    weights = log_weights(mean_mix(priors, NOISE), guide, mix, 6)
    # Sums of 36 terms in single precision.
    torch.testing.assert_close(weights, evidence(priors, mix, NOISE).double().expand(6), rtol=1e-5, atol=1e-3)


def test_the_mean_weight_is_the_elbo_and_the_elbo_the_talks_loss(mean_agrees):
    r"""The loss is a divergence plus a squared error: for white sources and a Normal observation,
    :math:`-\mathrm{ELBO} = \sum_k KL(q_k \| p_k) + \frac{1}{2r} \big[\|m - \sum_k a_k \mu_k\|^2
    + \sum_k a_k^2 \sigma_k^2\big] + \frac T2 \log 2 \pi r`."""
    priors = {name: GaussianPrior(torch.full((2,), p), TIME) for name, p in (("a", 4.0), ("b", 0.5))}
    guide = EncoderGuide(priors, size=TINY).requires_grad_(False).eval()
    mix = torch.randn(TIME)
    mean, scale = guide.moments(mix)
    deviations = torch.stack([prior.variance(mix)[:1].sqrt() for prior in priors.values()])
    divergence = kl_divergence(Normal(mean, scale), Normal(torch.zeros_like(mean), deviations)).sum()
    squared = (mix - mean.mean(0)).square().sum() + 0.25 * scale.square().sum()
    loss = divergence + squared / (2 * NOISE**2) + TIME / 2 * math.log(2 * math.pi * NOISE**2)
    mean_agrees(-log_weights(mean_mix(priors, NOISE), guide, mix, 4000), loss)
    step = pyro.infer.Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=0)
    again = torch.stack([step.differentiable_loss(mean_mix(priors, NOISE), guide, mix) for _ in range(4)])
    spread = log_weights(mean_mix(priors, NOISE), guide, mix, 4000).std() / math.sqrt(8000)
    assert abs(float(again.mean() - loss)) < 4 * float(spread)


def test_the_importance_weighted_bound_lies_between_the_elbo_and_the_evidence():
    priors = coloured()
    mix = mean_mix(priors, NOISE)()
    weights = log_weights(mean_mix(priors, NOISE), exact_guide(priors, NOISE, 1.3), mix, 2000)
    bound = float(iwae(weights))
    assert float(weights.mean()) < bound
    assert bound == pytest.approx(float(evidence(priors, mix, NOISE)), abs=0.3)  # 2000 draws of weights of spread 1
    assert float(iwae(torch.full((7,), 3.0))) == pytest.approx(3.0)


def test_priors_at_a_level():
    priors = coloured()
    model = pyro.poutine.condition(at_level(mean_mix(priors), 0.5), {"mix": torch.zeros(TIME)})
    trace = pyro.poutine.trace(model).get_trace()
    assert trace.nodes["a"]["fn"].sigma.item() == 0.5
    assert trace.nodes["mix"]["fn"].base_dist.scale[0].item() == pytest.approx(0.01)
    low = pyro.poutine.trace(at_level(mean_mix(priors), 0.0)).get_trace()
    assert low.nodes["b"]["fn"].sigma.item() == pytest.approx(1e-3)


@pytest.mark.parametrize("make", [mean_mix, unknown_gains_mix, panned_mix], ids=lambda make: make.__name__)
def test_simulated_mixes(make):
    model = make(coloured(), noise=1e-4)
    mix, values = simulate(model, 5)
    assert mix.shape == (5, *((2, TIME) if make is panned_mix else (TIME,)))
    assert {name: value.shape[0] for name, value in values.items()} == dict.fromkeys(values, 5)
    assert not torch.equal(values["a"][0], values["a"][1])
    if make is mean_mix:
        # Observation noise, at five standard deviations.
        torch.testing.assert_close(mix, (values["a"] + values["b"]) / 2, rtol=0, atol=5e-4)


def test_simulated_mixes_of_stems():
    stems = {"a": lambda count: torch.arange(float(count)).unsqueeze(-1).expand(count, TIME)}
    mix, values = simulate(linear_mix(coloured(), noise=1e-4), 4, stems=stems)
    assert values["a"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    torch.testing.assert_close(mix, values["a"] + values["b"], rtol=0, atol=6e-4)


def test_errors():
    priors = coloured()
    model = mean_mix(priors)
    guide = EncoderGuide(priors, size=TINY)
    with pytest.raises(ConfigurationError, match="num_samples must be at least 1"):
        log_weights(model, guide, torch.zeros(TIME), 0)
    with pytest.raises(ConfigurationError, match=r"latent sites \['a', 'b', 'gains'\]; it samples \['a', 'b'\]"):
        log_weights(unknown_gains_mix(priors), guide, torch.zeros(TIME), 2)
    with pytest.raises(ConfigurationError, match="called without arguments"):
        simulate(lambda mix: model(mix), 2)
    with pytest.raises(ConfigurationError, match="no site 'song' that is drawn"):
        simulate(model, 2, observed="song")
    with pytest.raises(ConfigurationError, match=r"stems for \['c'\]"):
        simulate(model, 2, stems={"c": torch.randn})
    with pytest.raises(ShapeError, match=r"stems of 'a' must come as \(2, 12\); got \(2, 5\)"):
        simulate(model, 2, stems={"a": lambda count: torch.randn(count, 5)})
