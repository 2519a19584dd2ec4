"""The exact posterior of Gaussian sources, against dense linear algebra."""

import pytest
import torch

from pyrosep import GaussianPosterior, OscillatorPrior
from pyrosep.errors import ConfigurationError, ShapeError


def posterior(linear, mix=None):
    return GaussianPosterior(linear.priors, linear.mix if mix is None else mix, gains=linear.gains, noise=linear.noise)


@pytest.mark.parametrize("time", [7, 8])
def test_mean_and_covariance(linear_of, time):
    linear = linear_of(time)
    exact = posterior(linear)
    # Two closed forms in double precision: rounding.
    torch.testing.assert_close(exact.mean.flatten(), linear.mean, rtol=1e-10, atol=1e-10)
    blocks = torch.fft.irfft(exact.spectral_covariance.permute(1, 2, 0) + 0j, n=time)  # by source, source, lag
    lag = (torch.arange(time).unsqueeze(-1) - torch.arange(time)) % time
    dense = blocks[..., lag].permute(0, 2, 1, 3).reshape(2 * time, 2 * time)
    torch.testing.assert_close(dense, linear.covariance, rtol=1e-10, atol=1e-10)
    deviation = linear.covariance.diagonal().sqrt().reshape(2, time)
    torch.testing.assert_close(exact.stddev.unsqueeze(-1).expand(2, time), deviation, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("time", [7, 8])
def test_draws(linear_of, time, mean_agrees):
    linear = linear_of(time)
    draws = posterior(linear).sample((10_000,)).flatten(1)
    mean_agrees(draws, linear.mean)
    deviation = draws - linear.mean
    mean_agrees(deviation.unsqueeze(-1) * deviation.unsqueeze(-2), linear.covariance)


def test_batch_of_mixes(linear):
    mixes = torch.randn(3, 2, linear.time)
    exact = posterior(linear, mixes)
    assert exact.mean.shape == (3, 2, 2, linear.time)
    assert exact.sample((5,)).shape == (5, 3, 2, 2, linear.time)
    torch.testing.assert_close(exact.mean[1, 1], posterior(linear, mixes[1, 1]).mean)


def test_gains_are_one_by_default(linear):
    exact = GaussianPosterior(linear.priors, linear.mix, noise=0.5)
    ones = GaussianPosterior(linear.priors, linear.mix, gains=torch.ones(2), noise=0.5)
    assert torch.equal(exact.mean, ones.mean)


def test_levels_of_the_priors_count(linear):
    noisy = {name: prior.at(1.0) for name, prior in linear.priors.items()}
    exact = GaussianPosterior(noisy, linear.mix, noise=0.5)
    torch.testing.assert_close(exact.power, torch.stack([prior.spectrum + 1.0 for prior in linear.priors.values()]))


def test_errors(linear):
    with pytest.raises(ConfigurationError, match="'c' has a OscillatorPrior"):
        GaussianPosterior({"c": OscillatorPrior("saw", 8)}, linear.mix, noise=0.1)
    with pytest.raises(ShapeError, match="frames of 8 samples; the mix 9"):
        GaussianPosterior(linear.priors, torch.zeros(9), noise=0.1)
    with pytest.raises(ShapeError, match="gains"):
        GaussianPosterior(linear.priors, linear.mix, gains=torch.ones(3), noise=0.1)
