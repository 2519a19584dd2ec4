"""Stationary Gaussian sources, against dense linear algebra."""

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.stats
import torch

from pyrosep import GaussianPrior, fit_spectrum
from pyrosep.errors import ConfigurationError, DataError, ShapeError

SPECTRUM = torch.tensor([4.0, 1.0, 0.25, 2.0], dtype=torch.float64)


def prior(frame, sigma=0.5):
    return GaussianPrior(SPECTRUM, frame, sigma, sigma_min=0.0)


def covariance(one):
    autocovariance = torch.fft.irfft(one.spectrum + one.sigma**2, n=one.time)
    return torch.tensor(scipy.linalg.circulant(autocovariance.numpy()))


@pytest.mark.parametrize("frame", [1, 2, 7, 8])
def test_log_prob_is_that_of_a_circulant_covariance(frame):
    x = torch.randn(5, frame, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(x.new_zeros(frame), covariance(prior(frame)))
    # Two closed forms in double precision: rounding.
    torch.testing.assert_close(prior(frame).log_prob(x), exact.log_prob(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frame", [7, 8])
def test_draws_have_the_covariance(frame, mean_agrees):
    x = prior(frame).sample((20_000,))
    mean_agrees(x, 0.0)
    mean_agrees(x.unsqueeze(-1) * x.unsqueeze(-2), covariance(prior(frame)))


@pytest.mark.parametrize("frame", [31, 64])
def test_quadratic_form_of_draws_is_chi_square(frame):
    """Kolmogorov-Smirnov, false-alarm rate 1e-4."""
    one = prior(frame)
    quadratic = 2 * (one.log_prob(torch.zeros(frame, dtype=torch.float64)) - one.log_prob(one.sample((4000,))))
    assert scipy.stats.kstest(quadratic.numpy(), scipy.stats.chi2(frame).cdf).pvalue > 1e-4


@pytest.mark.parametrize("frame", [7, 8])
def test_clean_draws_have_the_conditional_covariance(frame, mean_agrees):
    one = prior(frame)
    clean, noisy = covariance(one.at(0.0)), covariance(one)
    conditional = clean - clean @ torch.linalg.solve(noisy, clean)
    x = one.sample()
    mean = clean @ torch.linalg.solve(noisy, x)
    torch.testing.assert_close(one.denoise(x), mean, rtol=1e-10, atol=1e-10)  # rounding
    deviation = one.draw_clean(x.expand(20_000, -1)) - mean
    mean_agrees(deviation.unsqueeze(-1) * deviation.unsqueeze(-2), conditional)


def test_draws_are_differentiable_in_spectrum_and_level():
    spectrum = SPECTRUM.clone().requires_grad_()
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def draw(spectrum, sigma):
        torch.manual_seed(0)
        return GaussianPrior(spectrum, 6, sigma).rsample()

    assert torch.autograd.gradcheck(draw, (spectrum, sigma))


def test_log_prob_is_differentiable_in_spectrum_and_level():
    """So that a spectrum can be fitted by gradients; at autograd's own tolerance."""
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    spectrum = SPECTRUM.clone().requires_grad_()
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, s, x: GaussianPrior(p, 6, s).log_prob(x), (spectrum, sigma, x))


def test_spectrum_is_interpolated_in_its_logarithm():
    grid = torch.tensor([1.0, 4.0, 64.0])
    assert torch.equal(GaussianPrior(grid, 4).spectrum, grid)
    torch.testing.assert_close(GaussianPrior(grid, 8).spectrum, torch.tensor([1.0, 2.0, 4.0, 16.0, 64.0]))
    assert torch.equal(GaussianPrior(grid, 8).frame(4).spectrum, grid)  # from the grid as given, not twice


def test_white_noise_without_a_level():
    one = GaussianPrior(torch.full((2,), 4.0), 10, sigma_min=0.0)
    x = torch.randn(3, 10)
    exact = torch.distributions.Normal(0.0, 2.0).log_prob(x).sum(-1)
    torch.testing.assert_close(one.log_prob(x), exact)
    torch.testing.assert_close(one.draw_clean(x), x)  # nothing is hidden


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_spectrum_must_be_positive_and_finite(bad):
    with pytest.raises(ConfigurationError, match="positive and finite"):
        GaussianPrior(torch.tensor([1.0, bad, 1.0]), 8)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_spectrum_must_have_one_axis(shape):
    with pytest.raises(ShapeError, match="expected a spectrum of shape"):
        GaussianPrior(torch.ones(shape), 8)


# --- fitting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [63, 64])
def test_fit_spectrum_recovers_a_known_spectrum(time, agree):
    """The periodogram of a tapered frame has the spectrum smeared by the taper's as its mean.

    Its standard error is its mean over the root of the number of frames (exponential), or up to root two of that where
    bins meet their own mirror image.
    """
    bins, frames = time // 2 + 1, 20_000
    one = GaussianPrior(torch.linspace(3, 0.5, bins, dtype=torch.float64), time, sigma_min=0.0)
    whole = np.r_[one.spectrum.numpy(), one.spectrum.numpy()[1 : (time + 1) // 2][::-1]]
    taper = scipy.signal.get_window("hann", time)
    kernel = np.abs(np.fft.fft(taper)) ** 2 / (time * (taper**2).sum())
    smeared = np.fft.ifft(np.fft.fft(whole) * np.fft.fft(kernel)).real[:bins]
    excess = np.ones(bins)
    excess[[0, 1, 2, -1, -2, -3]] = np.sqrt(2)
    fitted = fit_spectrum([one.sample((frames // 2,)), one.sample((frames // 4, 2))])
    agree(fitted, smeared, excess * smeared / np.sqrt(frames))


def test_frames_of_silence_count():
    x = torch.randn(10, 32)
    torch.testing.assert_close(fit_spectrum([x, torch.zeros_like(x)]), fit_spectrum([x]) / 2)


def test_floor_keeps_empty_bins_positive():
    tone = torch.sin(2 * torch.pi * 8 * torch.arange(64) / 64)
    spectrum = fit_spectrum([tone], floor_db=-60.0)
    assert bool((spectrum > 0).all())
    unfloored = fit_spectrum([tone], floor_db=-300.0)
    torch.testing.assert_close(spectrum.min(), unfloored.mean() * 1e-6)
    GaussianPrior(spectrum, 64)


def test_nothing_to_fit():
    with pytest.raises(DataError, match="at least one frame"):
        fit_spectrum([])
    with pytest.raises(DataError, match="silent"):
        fit_spectrum([torch.zeros(3, 16)])
    with pytest.raises(ShapeError, match="expected frames of 16"):
        fit_spectrum([torch.ones(16), torch.ones(17)])


def test_moments(double, mean_agrees):
    """Zero, and by Parseval's theorem the root of the mean power, as Pyro's distributions tell them."""
    prior = GaussianPrior(torch.tensor([4.0, 1.0, 0.25]), 16, torch.tensor([0.1, 1.0]), sigma_min=0.1)
    assert prior.mean.shape == prior.stddev.shape == (2, 16)
    assert not prior.mean.any()
    mean_agrees(prior.sample((4000,)).square(), prior.stddev.square())
