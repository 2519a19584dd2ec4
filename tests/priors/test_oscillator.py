"""Toy oscillators, against enumeration with numerical quadrature."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from pyrosep import OscillatorPrior
from pyrosep.data.toy import WAVES, period_prior, waveform
from pyrosep.errors import ConfigurationError
from pyrosep.priors.truncated_normal import draw_truncated_normal, truncated_normal

pytestmark = pytest.mark.usefixtures("double")


def enumerated(prior, x):
    """Log-density and mean clean frame by Gauss and Legendre's rule over the amplitude, for each period and phase.

    With 200 nodes it is exact to rounding for any tail or peak that is met here: exponentials as steep as 1e4 over the
    range, peaks as narrow as a hundredth of it.
    """
    low, high = prior.amplitude
    nodes, node_weights = np.polynomial.legendre.leggauss(200)
    grid = (low + high) / 2 + (high - low) / 2 * nodes
    sigma, time = float(prior.sigma), prior.time
    logs, waves = [], []
    for period, weight in zip(prior.periods, prior.weights, strict=True):
        for phase in range(period):
            wave = waveform(prior.wave, period, phase, 1.0, time)
            residual = np.square(x - grid[:, None] * wave).sum(-1)
            logs.append(math.log(weight / period) - residual / (2 * sigma**2))
            waves.append(wave)
    logs = np.stack(logs)
    top = logs.max()
    mass = np.exp(logs - top) * node_weights / 2
    total = mass.sum()
    log_prob = top + math.log(total) - 0.5 * time * math.log(2 * math.pi * sigma**2)
    return log_prob, (mass * grid).sum(-1) @ np.stack(waves) / total


# Exponents of up to 1e4 have lost 1e-12 of themselves to rounding: 1e-8 in all that is made of them.
ROUNDING = 1e-8


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("time", [1, 11, 24])
def test_enumeration(wave, sigma, time):
    """Some of the periods are longer than the frame."""
    prior = OscillatorPrior(wave, time, sigma, periods=(2, 5, 8, 13, 31))
    frames = torch.cat([prior.sample((3,)), 2 * torch.randn(2, time), torch.zeros(1, time)])
    for x in frames:
        log_prob, mean = enumerated(prior, x.numpy())
        assert float(prior.log_prob(x)) == pytest.approx(log_prob, rel=1e-12, abs=ROUNDING)
        np.testing.assert_allclose(prior.denoise(x), mean, rtol=0, atol=ROUNDING)


def test_wide_range_of_amplitudes():
    prior = OscillatorPrior("triangle", 16, 0.2, periods=(4, 7), amplitude=(0.0, 2.0))
    for x in prior.sample((5,)):
        log_prob, mean = enumerated(prior, x.numpy())
        assert float(prior.log_prob(x)) == pytest.approx(log_prob, rel=1e-12, abs=ROUNDING)
        np.testing.assert_allclose(prior.denoise(x), mean, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("wave", WAVES)
def test_long_frame_at_low_noise(wave):
    """Every period of the toy sources, T = 2048, sigma = 0.01: finite, and the score is the slope of the density."""
    prior = OscillatorPrior(wave, 2048, 0.01)
    assert len(prior.periods) == 356
    frames = torch.stack([prior.sample(), torch.randn(2048), torch.zeros(2048)])
    log_prob, score = prior.log_prob(frames), prior.score(frames)
    assert bool(torch.isfinite(log_prob).all())
    assert bool(torch.isfinite(score).all())
    # At silence every waveform is as likely, and differences mean little; elsewhere one waveform, or a few alike, are
    # left, the log-density is all but quadratic, and central differences are exact up to rounding: of exponents as
    # large as (|x|**2 + |w|**2) / (2 sigma**2), about ten units in the last place.
    frames, score, step = frames[:2], score[:2], 1e-4
    direction = torch.nn.functional.normalize(torch.randn(2048), dim=-1)
    slope = (prior.log_prob(frames + step * direction) - prior.log_prob(frames - step * direction)) / (2 * step)
    exponent = (frames.square().sum(-1) + 2048) / (2 * 0.01**2)
    bound = 10 * torch.finfo(torch.float64).eps * exponent / step
    assert bool(((score @ direction - slope).abs() <= bound).all())


def test_low_noise_finds_the_waveform():
    prior = OscillatorPrior("saw", 2048, 0.01)
    clean = torch.tensor(waveform("saw", 100, 37, 0.9, 2048).copy())
    estimate = prior.denoise(clean + 0.01 * torch.randn(2048))
    # One parameter is left, the amplitude: its error has the deviation sigma / |wave|, six of which are not met.
    assert float((estimate - clean).norm()) < 6 * 0.01


def test_periods_are_those_of_the_keys():
    periods, weights = period_prior()
    prior = OscillatorPrior("sine", 64)
    assert prior.periods == tuple(periods)
    assert prior.weights == pytest.approx(weights)


def test_draws_of_period_phase_and_amplitude():
    """Frames longer than every period tell all three; chi-square and Kolmogorov-Smirnov, false-alarm rate 1e-4 each."""
    prior = OscillatorPrior("saw", 12, periods=(3, 5))
    clean = prior.sample_clean((6000,)).numpy()
    templates = {(p, f): waveform("saw", p, f, 1.0, 12) for p in (3, 5) for f in range(p)}
    names = list(templates)
    unit = np.stack([wave / np.linalg.norm(wave) for wave in templates.values()])
    index = (clean @ unit.T).argmax(1)
    count = np.bincount(index, minlength=8)
    expected = 6000 * np.array([0.5 / period for period, _ in names])
    assert scipy.stats.chisquare(count, expected).pvalue > 1e-4
    waves = np.stack(list(templates.values()))[index]
    amplitude = (clean * waves).sum(1) / np.square(waves).sum(1)
    np.testing.assert_allclose(clean, amplitude[:, None] * waves, atol=1e-12)  # rounding
    assert scipy.stats.kstest(amplitude, scipy.stats.uniform(0.8, 0.2).cdf).pvalue > 1e-4


def test_draw_clean_is_the_posterior_of_the_parameters():
    """At a high level the amplitude stays in its range, and period and phase have the enumerated probabilities."""
    prior = OscillatorPrior("saw", 12, 1.5, periods=(3, 5))
    x = prior.sample()
    draws = prior.draw_clean(x.expand(10_000, -1)).numpy()
    templates = [waveform("saw", p, f, 1.0, 12) for p in (3, 5) for f in range(p)]
    weights = [0.5 / p for p in (3, 5) for _ in range(p)]
    grid = np.linspace(0.8, 1.0, 501)
    likelihood = [np.exp(-np.square(x.numpy() - grid[:, None] * wave).sum(-1) / (2 * 1.5**2)) for wave in templates]
    mass = np.array([w * scipy.integrate.simpson(one, x=grid) for w, one in zip(weights, likelihood, strict=True)])
    unit = np.stack([wave / np.linalg.norm(wave) for wave in templates])
    index = (draws @ unit.T).argmax(1)
    assert scipy.stats.chisquare(np.bincount(index, minlength=8), 10_000 * mass / mass.sum()).pvalue > 1e-4
    for number in (int(mass.argmax()), int(mass.argmin())):
        wave, one = templates[number], likelihood[number]
        amplitude = (draws[index == number] @ wave) / np.square(wave).sum()
        assert 0.8 <= amplitude.min() <= amplitude.max() <= 1.0
        cumulative = scipy.integrate.cumulative_simpson(one, x=grid, initial=0)
        cdf = lambda a, c=cumulative: np.interp(a, grid, c / c[-1])  # noqa: E731
        assert scipy.stats.kstest(amplitude, cdf).pvalue > 1e-4


def test_large_batches_are_taken_in_parts(monkeypatch):
    prior = OscillatorPrior("sine", 16, 0.5, periods=(3, 5))
    x = prior.sample((7, 3))
    whole = prior.log_prob(x), prior.denoise(x)
    monkeypatch.setattr("pyrosep.priors.oscillator._CHUNK", 32)
    torch.testing.assert_close(prior.log_prob(x), whole[0])
    torch.testing.assert_close(prior.denoise(x), whole[1])


def test_a_frame_far_from_every_waveform_is_finite():
    prior = OscillatorPrior("square", 64, 0.01)
    x = torch.full((64,), 1e4)
    assert bool(torch.isfinite(prior.log_prob(x)))
    assert bool(torch.isfinite(prior.score(x)).all())
    assert float(prior.denoise(x).abs().max()) <= 1.0 + 1e-12


def test_bad_arguments():
    with pytest.raises(ConfigurationError, match="wave must be one of"):
        OscillatorPrior("organ", 16)
    for amplitude in ((1.0, 0.8), (-0.1, 1.0), (1.0, 1.0)):
        with pytest.raises(ConfigurationError, match="amplitude must be a range"):
            OscillatorPrior("sine", 16, amplitude=amplitude)
    for periods in ((), (1, 4), (0,)):
        with pytest.raises(ConfigurationError, match="periods of at least 2"):
            OscillatorPrior("sine", 16, periods=periods)


# --- the truncated normal ----------------------------------------------------------------------------------------


def integrated(best, width, low, high):
    """Log mass, mean and variance by Gauss and Legendre's rule over where the density is not yet zero to rounding.

    The log mass is that of the density over its largest value within the range.
    """
    nearest = min(max(best, low), high)
    reach = 9 * width
    if nearest != best:  # from the edge on it falls at least as fast as an exponential of the slope there
        reach = min(reach, 40 * width**2 / abs(nearest - best))
    left, right = max(low - nearest, -reach), min(high - nearest, reach)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    beyond = (left + right) / 2 + (right - left) / 2 * nodes  # the nearest point
    exponent = -beyond * (beyond + 2 * (nearest - best)) / (2 * width**2)
    mass = np.exp(exponent) * weights * (right - left) / 2
    mean = (mass * beyond).sum() / mass.sum()
    return math.log(mass.sum()), nearest + mean, (mass * (beyond - mean) ** 2).sum() / mass.sum()


@pytest.mark.parametrize("width", [1e-4, 0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("best", [0.9, 0.83, 0.8, 1.0, 0.75, 1.1, -0.5, 4.0])
def test_moments_of_a_truncated_normal(best, width):
    """Within the range, at its edges, and far in the tails on both sides.

    Mean and variance are differences of terms of size near^2 and of the range's own: what rounding leaves of them is
    relative to those, by the square of the range in deviations where that is small.
    """
    found = truncated_normal(torch.tensor([best]), torch.tensor([width]), 0.8, 1.0)
    log_mass, mean, variance = (float(value) for value in found)
    expected_mass, expected_mean, expected_variance = integrated(best, width, 0.8, 1.0)
    assert log_mass == pytest.approx(expected_mass, abs=1e-9)
    near = max(abs(best - 0.9) - 0.1, 0) / width
    rounding = 1e-14 * max(1.0, near**2)
    assert mean == pytest.approx(expected_mean, abs=1e-9)
    assert variance == pytest.approx(expected_variance, rel=1e-6, abs=rounding * width**2)
    assert 0 <= variance <= 0.2**2 / 4


def test_limits_of_a_truncated_normal():
    """Far wider than the range it is uniform, far narrower a normal, far in the tail an exponential."""

    def moments(best, width):
        return truncated_normal(torch.tensor([best]), torch.tensor([width]), 0.8, 1.0)

    _, mean, variance = moments(0.9, 1e3)
    assert float(mean) == pytest.approx(0.9)
    assert float(variance) == pytest.approx(0.2**2 / 12, rel=1e-3)
    log_mass, mean, variance = moments(0.87, 1e-3)
    assert float(log_mass) == pytest.approx(math.log(1e-3 * math.sqrt(2 * math.pi)))
    assert float(mean) == pytest.approx(0.87)
    assert float(variance) == pytest.approx(1e-6)
    _, mean, variance = moments(0.0, 0.01)  # rate 0.8 / 1e-4, but for a term of order (1 / 80)^2
    assert float(mean) - 0.8 == pytest.approx(1.25e-4, rel=1e-3)
    assert float(variance) == pytest.approx(1.25e-4**2, rel=2e-3)


def test_draws_of_a_truncated_normal(mean_agrees):
    for best, width in ((0.9, 0.05), (0.7, 0.1), (1.2, 0.02), (0.95, 3.0)):
        shape = torch.full((20_000,), best)
        draws = draw_truncated_normal(shape, torch.full_like(shape, width), 0.8, 1.0)
        _, mean, variance = truncated_normal(torch.tensor([best]), torch.tensor([width]), 0.8, 1.0)
        assert float(draws.min()) >= 0.8
        assert float(draws.max()) <= 1.0
        mean_agrees(draws, float(mean))
        mean_agrees((draws - mean).square(), float(variance))
