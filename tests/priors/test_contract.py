"""The contract of a source prior, for every family."""

import numpy as np
import pyro
import pytest
import scipy.stats
import torch

from pyrosep import ContinuousFlow, FloWaveNet, GaussianPrior, OscillatorPrior, SourcePrior
from pyrosep.errors import ConfigurationError, PyrosepError, ShapeError
from pyrosep.nn.denoiser import Denoiser, DenoiserSize
from pyrosep.priors import FloWaveNetwork, FlowSize
from pyrosep.priors.uncertainty import MeasuredUncertainty

pytestmark = pytest.mark.usefixtures("double")

# Closed forms of the same number in double precision: they differ by rounding, of sums of a few hundred terms.
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}


def gaussian(frame):
    return GaussianPrior(torch.tensor([4.0, 1.0, 0.25]), frame=frame, sigma_min=0.1)


def sine(frame):
    return OscillatorPrior("sine", frame=frame, periods=(3, 5, 20))


def square(frame):
    return OscillatorPrior("square", frame=frame, periods=(2, 4, 7), amplitude=(0.2, 1.5))


def flow(frame):
    """A flow without training: white noise of the source's power, noised (other flows: test_flowavenet.py)."""
    size = FlowSize(squeeze=(2,), flows=(0,), layers=(1,), width=(1,), features=1)
    prior = FloWaveNet(FloWaveNetwork(size, torch.full((4,), 0.8)), frame, sigma_min=0.02)
    prior.reverse_steps = 256  # of draw_clean, whose spread is then 2 per cent too small: below what the tests see
    return prior


def continuous(frame):
    """A denoiser without training: white noise's, whose density two steps give (others: test_continuousflow.py)."""
    size = DenoiserSize(hop=1, width=1, levels=0, layers=1, heads=0, features=1)
    prior = ContinuousFlow(Denoiser(size, torch.full((4,), 0.8)), frame, sigma_min=0.02, sigma_max=10.0)
    prior.reverse_steps = 256  # as above
    return prior.with_density(steps=2)


FAMILIES = [gaussian, sine, square, flow, continuous]
#: Frames are a multiple of it.
STRIDES = {flow: 2}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def family(request):
    def make(frame):
        if frame > 0 and frame % STRIDES.get(request.param, 1) == 1:
            pytest.skip("the stride of this family doesn't divide the frame")
        return request.param(frame)

    return make


@pytest.fixture(params=[12, 13], ids=["even", "odd"])
def prior(request, family):
    return family(request.param).at(0.7)


def test_score_is_the_gradient(prior):
    x = prior.sample((4,)).requires_grad_()
    (plain,) = torch.autograd.grad(prior._log_prob(x).sum(), x)
    (shared,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    torch.testing.assert_close(prior.score(x), plain, **ROUNDING)
    torch.testing.assert_close(shared, plain, **ROUNDING)


def test_log_prob_is_the_same_with_and_without_a_gradient(prior):
    x = prior.sample((4,))
    torch.testing.assert_close(prior.log_prob(x.clone().requires_grad_()).detach(), prior.log_prob(x), **ROUNDING)


def test_derivatives_by_finite_differences(family):
    """First and second derivative at autograd's own tolerances, a batch of levels included."""
    prior = family(6).at(torch.tensor([0.5, 1.5]))
    x = prior.sample().requires_grad_()
    assert torch.autograd.gradcheck(prior.log_prob, (x,))
    assert torch.autograd.gradgradcheck(prior.log_prob, (x,))


def test_gradient_of_one_frame_at_many_levels(family):
    prior = family(6).at(torch.tensor([0.5, 1.5]))
    x = family(6).at(1.0).sample().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    torch.testing.assert_close(gradient, prior.score(x).sum(0).detach(), **ROUNDING)


def test_weights_of_a_batch_reach_the_gradient(prior):
    x = prior.sample((3,)).requires_grad_()
    weight = torch.tensor([0.0, 2.0, -1.0])
    (gradient,) = torch.autograd.grad((weight * prior.log_prob(x)).sum(), x)
    torch.testing.assert_close(gradient, weight.unsqueeze(-1) * prior.score(x).detach(), **ROUNDING)


def test_tweedie(prior):
    x = prior.sample((4,))
    torch.testing.assert_close(prior.denoise(x), x + 0.7**2 * prior.score(x), **ROUNDING)


def test_levels_in_a_batch_equal_one_by_one(family):
    levels = torch.tensor([0.1, 0.7, 3.0])
    prior = family(12).at(levels)
    x = prior.sample((2,))
    assert prior.batch_shape == (3,)
    assert x.shape == (2, 3, 12)
    for index, level in enumerate(levels):
        one = family(12).at(float(level))
        torch.testing.assert_close(prior.log_prob(x)[:, index], one.log_prob(x[:, index]), **ROUNDING)
        torch.testing.assert_close(prior.denoise(x)[:, index], one.denoise(x[:, index]), **ROUNDING)
        torch.testing.assert_close(prior.score(x)[:, index], one.score(x[:, index]), **ROUNDING)


def test_at_leaves_the_original_alone(family):
    prior = family(12)
    prior.at(torch.ones(3))
    assert prior.batch_shape == ()
    assert float(prior.sigma) == prior.sigma_min


def test_a_new_prior_stands_for_its_lowest_level(family):
    prior = family(12)
    x = prior.at(0.5).sample()
    torch.testing.assert_close(prior.log_prob(x), prior.at(prior.sigma_min).log_prob(x))


def test_expand(prior):
    expanded = prior.expand((3, 2))
    x = expanded.sample((4,))
    assert x.shape == (4, 3, 2, prior.time)
    assert expanded.log_prob(x).shape == (4, 3, 2)
    torch.testing.assert_close(expanded.log_prob(x), prior.log_prob(x), **ROUNDING)
    assert not torch.equal(x[0, 0], x[0, 1])  # draws of their own
    with pytest.raises(RuntimeError):
        prior.expand((3,)).expand((4,))


def test_expand_reaches_log_prob_of_one_frame(prior):
    """As any distribution's: the batch shape broadcasts with the value's."""
    x = prior.sample()
    assert prior.expand((3,)).log_prob(x).shape == (3,)


def test_site_inside_plates(prior):
    def model():
        with pyro.plate("songs", 3, dim=-2), pyro.plate("channels", 2, dim=-1):
            return pyro.sample("source", prior)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["source"]
    assert site["value"].shape == (3, 2, prior.time)
    assert site["log_prob"].shape == (3, 2)
    torch.testing.assert_close(site["log_prob"], prior.log_prob(site["value"]), **ROUNDING)


def test_scaled_and_masked_site(prior):
    x = prior.sample((2,))
    masked = prior.expand((2,)).mask(torch.tensor([True, False]))
    torch.testing.assert_close(masked.log_prob(x), torch.stack([prior.log_prob(x[0]), torch.tensor(0.0)]))


def test_frame_equals_a_prior_made_for_it(family):
    reframed, made = family(12).frame(8).at(0.5), family(8).at(0.5)
    x = made.sample((2,))
    assert reframed.event_shape == (8,)
    assert torch.equal(reframed.log_prob(x), made.log_prob(x))
    assert torch.equal(reframed.denoise(x), made.denoise(x))
    assert torch.equal(reframed.spectrum, made.spectrum)
    assert reframed.sample((3,)).shape == (3, 8)


def test_frame_leaves_the_original_alone(family):
    prior = family(12)
    prior.frame(8)
    assert prior.time == 12
    assert prior.spectrum.shape == (7,)
    assert prior.log_prob(prior.sample()).shape == ()


def test_single_precision_frames(family):
    prior = family(12).at(0.7)
    x = prior.sample((4,)).float()
    for value in (prior.log_prob(x), prior.score(x), prior.denoise(x), prior.draw_clean(x)):
        assert value.dtype == torch.float32
    # Rounding of single precision: half a unit in the last place of each of a few dozen terms.
    torch.testing.assert_close(prior.denoise(x).double(), prior.denoise(x.double()), rtol=1e-5, atol=1e-5)


# --- the density, against draws ---------------------------------------------------------------------------------


def test_density_of_one_sample(family):
    """Integrates to one, and is the distribution of the draws: Kolmogorov-Smirnov, false-alarm rate 1e-4."""
    prior = family(1).at(0.3)
    grid = torch.linspace(-15, 15, 30_001)
    density = prior.log_prob(grid.unsqueeze(-1)).exp().numpy()
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * 1e-3
    # The trapezoid rule is exact to rounding for a smooth density that vanishes at both ends.
    assert cumulative[-1] == pytest.approx(1, abs=1e-9)
    draws = prior.sample((5000,)).squeeze(-1).numpy()
    assert scipy.stats.kstest(draws, lambda x: np.interp(x, grid.numpy(), cumulative)).pvalue > 1e-4


def test_density_of_two_samples(family):
    """Integrates to one, and is the distribution of the draws: chi-square over cells, false-alarm rate 1e-4."""
    prior = family(2).at(0.4)
    edges, inner = 24, 20
    line = (torch.arange(edges * inner) + 0.5) / (edges * inner) * 24 - 12  # cells of one unit
    pairs = torch.cartesian_prod(line, line)
    density = prior.log_prob(pairs).exp().reshape(edges, inner, edges, inner)
    mass = density.sum((1, 3)) * (1 / inner) ** 2
    # The midpoint rule of step h is off by about exp(-2 (pi sigma / h)**2) for a density smoothed by N(0, sigma**2).
    assert float(mass.sum()) == pytest.approx(1, abs=1e-9)
    draws = prior.sample((20_000,))
    count = np.histogram2d(*draws.numpy().T, bins=edges, range=((-12, 12), (-12, 12)))[0]
    expected = 20_000 * mass.numpy() / float(mass.sum())
    large = expected >= 5
    observed = np.append(count[large], count[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    assert scipy.stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_stein_identities(family, sigma, mean_agrees):
    """E[score] = 0 and E[x . score] = -T, for draws of any frame."""
    prior = family(40).at(sigma)
    x = prior.sample((4000,))
    score = prior.score(x)
    mean_agrees(score, 0.0)
    mean_agrees((x * score).sum(-1), -40.0)


def clean_draws(prior, number):
    return prior.at(0.0).sample((number,))


def test_log_prob_is_the_noise_averaged_over_clean_draws(prior, mean_agrees):
    x = prior.sample()
    noise = torch.distributions.Normal(x, 0.7)
    likelihood = noise.log_prob(clean_draws(prior, 100_000)).sum(-1)
    mean_agrees((likelihood - prior.log_prob(x)).exp(), 1.0)


def test_denoise_is_the_mean_of_clean_draws_given_the_frame(prior, agree):
    """Self-normalised importance sampling; its standard error by the delta method."""
    x = prior.sample()
    clean = clean_draws(prior, 100_000)
    weight = (torch.distributions.Normal(x, 0.7).log_prob(clean).sum(-1)).softmax(0).unsqueeze(-1)
    mean = (weight * clean).sum(0)
    agree(mean, prior.denoise(x), (weight * (clean - mean)).square().sum(0).sqrt())


def test_draw_clean_has_the_mean_that_denoise_gives(prior, mean_agrees):
    x = prior.sample()
    mean_agrees(prior.draw_clean(x.expand(20_000, -1)), prior.denoise(x))


def test_draw_clean_and_noise_are_jointly_right(prior, agree):
    """With s drawn given x, (x, s) has the distribution that s and x = s + noise have: moments of two samples."""

    def moments(s, x):
        return torch.cat([s, s.square(), s.pow(4), s * s.roll(1, -1), s * x], -1)

    s = clean_draws(prior, 20_000)
    x = s + 0.7 * torch.randn_like(s)
    x_again = prior.sample((20_000,))
    one, other = moments(s, x), moments(prior.draw_clean(x_again), x_again)
    agree(one.mean(0), other.mean(0), ((one.var(0) + other.var(0)) / 20_000).sqrt())


def test_draw_clean_in_the_batch_of_levels(family):
    prior = family(12).at(torch.tensor([1e-3, 2.0]))
    x = prior.sample((5,))
    assert prior.draw_clean(x).shape == x.shape
    # The posterior deviation is at most the noise's: a fraction 2e-9 of normal draws lies beyond six of them.
    nearly_clean = prior.draw_clean(x)[:, 0] - x[:, 0]
    assert float(nearly_clean.abs().max()) < 12e-3


def test_spectrum_is_the_mean_periodogram_of_clean_draws(prior, mean_agrees):
    clean = clean_draws(prior, 20_000)
    mean_agrees(torch.fft.rfft(clean).abs().square() / prior.time, prior.spectrum)


def test_spectrum_does_not_depend_on_the_level(prior):
    assert torch.equal(prior.spectrum, prior.at(3.0).spectrum)


# --- between levels ----------------------------------------------------------------------------------------------

#: From the prior's own level of 0.3 to a higher one.
OWN, HIGH = 0.3, 0.9


def raised(prior, number):
    """Draws at the prior's own level, and from them draws at the higher one."""
    low = prior.at(OWN).sample((number,))
    return low, low + np.sqrt(HIGH**2 - OWN**2) * torch.randn_like(low)


def test_draw_and_noise_are_jointly_right(prior, agree):
    """With x0 drawn given x, (x0, x) has the distribution that x0 and x = x0 + noise have: moments of two samples."""

    def moments(low, high):
        shifted = torch.cat([low * low.roll(1, -1), low * high.roll(1, -1)], -1)
        return torch.cat([low, low.square(), low.pow(4), low * high, (low - high).square(), shifted], -1)

    low, high = raised(prior, 20_000)
    again = prior.at(HIGH).sample((20_000,))
    one, other = moments(low, high), moments(prior.at(HIGH).draw(again, OWN), again)
    agree(one.mean(0), other.mean(0), ((one.var(0) + other.var(0)) / 20_000).sqrt())


def test_draw_has_the_mean_between_value_and_clean(prior, mean_agrees):
    """E[x0 | x] = x + (1 - r) (E[s | x] - x), r the ratio of the variances."""
    at = prior.at(HIGH)
    x = at.sample()
    expected = x + (1 - OWN**2 / HIGH**2) * (at.denoise(x) - x)
    mean_agrees(at.draw(x.expand(20_000, -1), OWN), expected)


def test_draw_about_a_clean_draw(prior, monkeypatch, mean_agrees):
    """Given s and x it is N(s + r (x - s), own^2 (1 - r)), r the ratio of the variances."""
    at = prior.at(HIGH)
    clean, x = prior.at(0.0).sample(), at.sample()
    monkeypatch.setattr(type(at), "draw_clean", lambda self, value: clean.expand(value.shape))
    share = OWN**2 / HIGH**2
    deviation = at.draw(x.expand(20_000, -1), OWN) - (clean + share * (x - clean))
    mean_agrees(deviation, 0.0)
    mean_agrees(deviation.square().mean(-1), OWN**2 * (1 - share))


def test_draw_at_the_ends(prior):
    """To the level it is at: the value itself. To zero: a clean draw."""
    at = prior.at(HIGH)
    x = at.sample((3,))
    torch.testing.assert_close(at.draw(x, HIGH), x, **ROUNDING)
    torch.manual_seed(1)
    clean = at.draw_clean(x)
    torch.manual_seed(1)
    torch.testing.assert_close(at.draw(x, 0.0), clean, **ROUNDING)


def test_draw_to_a_batch_of_levels(family):
    prior = family(12).at(torch.tensor([0.5, 2.0, 0.7]))
    x = prior.sample((5,))
    drawn = prior.draw(x, torch.tensor([0.5, 0.1, 0.0]))
    assert drawn.shape == x.shape
    torch.testing.assert_close(drawn[:, 0], x[:, 0], **ROUNDING)
    assert not torch.allclose(drawn[:, 1], x[:, 1])


def test_draws_are_exact_where_a_family_has_its_own(prior):
    assert prior.exact_draws == (type(prior).draw_clean is not SourcePrior.draw_clean)


def test_uncertainty_is_the_power_of_what_is_not_known(prior, agree):
    """E|rfft(x0 - E[x0 | x])|^2 / T of 20,000 draws; the families that measure it are made to do so with 5000."""
    low, high = raised(prior, 20_000)
    at, own = prior.at(HIGH), prior.at(OWN)
    mean = high + (1 - OWN**2 / HIGH**2) * (at.denoise(high) - high)
    power = torch.fft.rfft(low - mean).abs().square() / prior.time
    trials = float("inf")
    if not isinstance(prior, GaussianPrior):
        trials = 5000
        own._measured = MeasuredUncertainty()
        own._measured.at(own, HIGH, trials)  # is kept
    found = own.uncertainty(torch.tensor(HIGH))
    agree(found, power.mean(0), (power.var(0) * (1 / 20_000 + 1 / trials)).sqrt())


def test_uncertainty_by_level(family):
    """At the own level nothing is unknown; it is the same for equal levels, and never more than the noise in mean."""
    prior = family(12).at(OWN)
    levels = torch.tensor([[OWN, 0.5, 2.0], [2.0, 0.5, OWN]])
    state = torch.get_rng_state()
    found = prior.uncertainty(levels)
    assert torch.equal(torch.get_rng_state(), state)  # measuring leaves the chains' randomness alone
    assert found.shape == (2, 3, 7)
    torch.testing.assert_close(found[0], found[1].flip(0), **ROUNDING)
    torch.testing.assert_close(found[0, 0], torch.zeros(7), rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.uncertainty(torch.tensor(0.5)), found[0, 1], **ROUNDING)
    assert bool((found >= 0).all())
    assert float(found[0, 2].mean()) < 2 * 2.0**2
    assert float(found[0, 1].mean()) <= float(found[0, 2].mean())


def test_uncertainty_in_single_precision(family):
    prior = family(12).at(OWN)
    found = prior.uncertainty(torch.tensor([0.5, 2.0], dtype=torch.float32))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), prior.uncertainty(torch.tensor([0.5, 2.0])), rtol=1e-4, atol=1e-6)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["log_prob", "score", "denoise", "draw_clean"])
def test_wrong_time_axis(family, method):
    with pytest.raises(ShapeError, match="expected frames of 12 samples"):
        getattr(family(12), method)(torch.zeros(2, 11))


def test_frame_without_an_axis(family):
    with pytest.raises(ShapeError, match="expected frames of 12"):
        family(12).log_prob(torch.tensor(0.0))


@pytest.mark.parametrize("level", [-0.1, float("nan"), torch.tensor([0.1, -0.1])])
def test_noise_level_below_zero(family, level):
    with pytest.raises(ConfigurationError, match="noise level must be at least 0"):
        family(12).at(level)


@pytest.mark.parametrize("frame", [0, -3, 2.5])
def test_frame_that_is_no_number_of_samples(family, frame):
    with pytest.raises(ConfigurationError, match="frame must be a whole number"):
        family(12).frame(frame)
    with pytest.raises(ConfigurationError, match="frame must be a whole number"):
        family(frame)


def test_sigma_min_below_zero():
    for make in (
        lambda: GaussianPrior(torch.ones(3), 8, sigma_min=-1.0),
        lambda: OscillatorPrior("saw", 8, sigma_min=-1.0),
        lambda: OscillatorPrior("saw", 8, sigma_min=0.0),  # without noise it has no density
    ):
        with pytest.raises(PyrosepError, match="sigma_min"):
            make()


def test_repr_tells_frame_and_level(family):
    assert "frame=12" in repr(family(12).at(0.25))
    assert "sigma=0.25" in repr(family(12).at(0.25))
    assert "shape (3,)" in repr(family(12).at(torch.ones(3)))


@pytest.mark.gpu
def test_on_a_gpu(family):
    here = family(12).at(0.7)
    there = here.to("cuda")
    x = here.sample((4,))
    # The same sums in another order, in double precision.
    torch.testing.assert_close(there.log_prob(x.cuda()).cpu(), here.log_prob(x), **ROUNDING)
    torch.testing.assert_close(there.denoise(x.cuda()).cpu(), here.denoise(x), **ROUNDING)
    assert there.sample((3,)).device.type == there.draw_clean(x.cuda()).device.type == "cuda"
    assert here.sample().device.type == "cpu"
