"""Ladders of noise levels: where they begin and end, and that states can be exchanged between neighbours."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from pyrosep import GaussianPrior, OscillatorPrior
from pyrosep.errors import ConfigurationError
from pyrosep.infer import exchange_rate, noise_ladder
from pyrosep.infer.search.ladder import check_ladder

FALSE_ALARM = 1e-4


def white(frame, power=1.0):
    return GaussianPrior(torch.full((2,), power), frame, sigma_min=0.01)


def ratios(ladder):
    return [high / low for high, low in itertools.pairwise(ladder)]


# --- the levels --------------------------------------------------------------------------------------------------


def test_top_is_a_third_of_the_norm_and_bottom_the_priors_own():
    ladder = noise_ladder(white(900, 4.0), levels=7)  # rms 2
    assert ladder[0] == pytest.approx(2 * 30 / 3)
    assert ladder[-1] == pytest.approx(0.01)
    assert len(ladder) == 7
    assert ratios(ladder) == pytest.approx([(20 / 0.01) ** (1 / 6)] * 6)


def test_several_priors_take_the_loudest_and_the_cleanest():
    priors = {
        "loud": GaussianPrior(torch.full((2,), 9.0), 100, sigma_min=0.1),
        "clean": GaussianPrior(torch.full((2,), 1.0), 100, sigma_min=0.02),
    }
    ladder = noise_ladder(priors, levels=3)
    assert ladder[0] == pytest.approx(3 * 10 / 3)
    assert ladder[-1] == pytest.approx(0.02)


def test_levels_can_be_given():
    assert noise_ladder(white(64), levels=3, top=4.0, bottom=0.25) == pytest.approx((4.0, 1.0, 0.25))


def test_top_grows_with_the_root_of_the_frame():
    tops = [noise_ladder(OscillatorPrior("saw", frame=frame, periods=(8, 16)), levels=2)[0] for frame in (256, 4096)]
    assert tops[1] / tops[0] == pytest.approx(4, rel=1e-3)  # whole periods at both lengths: the same rms


@pytest.mark.parametrize("frame", [256, 4096, 65_536])
def test_default_spacing(frame):
    """A ratio near 1 + 2 / sqrt(T), and no coarser than the overlap of 5 per cent asks for."""
    ladder = noise_ladder(white(frame))
    for ratio in ratios(ladder):
        # The root of two over erfc's inverse at 0.05 is 1.96, the exponential adds its square over two.
        assert ratio == pytest.approx(1 + 2 / math.sqrt(frame), abs=0.05 / math.sqrt(frame) + 2 / frame)
        assert 0.05 <= exchange_rate(ratio, frame) < 0.06


@pytest.mark.parametrize("overlap", [0.01, 0.3, 0.7])
def test_spacing_is_the_inverse_of_the_exchange_rate(overlap):
    """The number of levels is rounded up, so that the rate is a little above what was asked for."""
    ladder = noise_ladder(white(4096), overlap=overlap)
    coarser = (ladder[0] / ladder[-1]) ** (1 / (len(ladder) - 2))
    assert exchange_rate(ratios(ladder)[0], 4096) >= overlap > exchange_rate(coarser, 4096)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0.5, "bottom": 0.5}, "0 < bottom < top; got bottom 0.5 and top 0.5"),
        ({"top": 0.005}, "0 < bottom < top"),
        ({"bottom": 0.0}, "0 < bottom < top"),
        ({"levels": 1}, "at least 2 levels; got 1"),
        ({"overlap": 0.0}, "overlap must be in"),
        ({"overlap": 1.0}, "overlap must be in"),
    ],
)
def test_ladders_that_are_none(options, message):
    with pytest.raises(ConfigurationError, match=message):
        noise_ladder(white(64), **options)


def test_no_prior():
    with pytest.raises(ConfigurationError, match="at least one prior"):
        noise_ladder({})


@pytest.mark.parametrize("ladder", [(), (1.0, 1.0), (0.5, 1.0), (1.0, 0.0), (1.0, float("nan"))])
def test_sequences_that_are_no_ladder(ladder):
    with pytest.raises(ConfigurationError, match="falling sequence"):
        check_ladder(ladder)


# --- exchanges between neighbours --------------------------------------------------------------------------------


def accepted(prior, high, low, number):
    """How many exchanges of draws at two levels are accepted."""
    above, below = prior.at(high), prior.at(low)
    x, y = above.sample((number,)).double(), below.sample((number,)).double()
    log_ratio = above.log_prob(y) + below.log_prob(x) - above.log_prob(x) - below.log_prob(y)
    return int((torch.rand(number) < log_ratio.clamp(max=0).exp()).sum())


@pytest.mark.parametrize("frame", [64, 256, 2048])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_exchange_rate_of_white_noise_in_closed_form(frame, rate):
    """The mean of min(1, R) over an involution is 2 P(R > 1): 2 P(F < 1 / r^2), F the ratio of two chi-squares.

    Its logarithm is normal but for a term of order 1 / T.
    """
    ratio = math.exp(math.sqrt(2 / frame) * scipy.special.erfcinv(rate))
    exact = 2 * scipy.stats.f.cdf(ratio**-2, frame, frame)
    assert exchange_rate(ratio, frame) == pytest.approx(exact, abs=0.25 / frame)
    assert exchange_rate(1 / ratio, frame) == pytest.approx(exchange_rate(ratio, frame))
    assert exchange_rate(1.0, frame) == 1.0


@pytest.mark.parametrize("overlap", [0.05, 0.4])
def test_exchanges_of_white_noise_are_accepted_at_the_rate(double, overlap):
    """Counts are binomial; the rate's own error, below 0.25 / T, is that of the test above."""
    prior, number = white(256, 1e-12), 5000
    ladder = noise_ladder(prior, top=1.0, bottom=0.5, overlap=overlap)
    for high, low in itertools.pairwise(ladder):
        rate = exchange_rate(high / low, 256)
        count = accepted(prior, high, low, number)
        limit = scipy.stats.norm.isf(FALSE_ALARM / (2 * len(ladder))) * math.sqrt(rate * (1 - rate) / number)
        assert abs(count / number - rate) <= limit + 0.25 / 256
        assert scipy.stats.binomtest(count, number, 2 * rate).pvalue < FALSE_ALARM  # it can tell


@pytest.mark.parametrize(
    "prior",
    [
        GaussianPrior(torch.tensor([4.0, 1.0, 0.01, 1e-4]), 256, sigma_min=0.01),
        OscillatorPrior("saw", frame=256, periods=(5, 9, 16)),
        OscillatorPrior("square", frame=256, periods=(8, 12), amplitude=(0.2, 1.5)),
    ],
    ids=["coloured", "saw", "square"],
)
def test_neighbouring_levels_of_a_source_overlap_at_least_as_much(double, prior):
    """Counted between every two neighbours of the default ladder, top to bottom: binomial, one-sided, Bonferroni."""
    ladder, number = noise_ladder(prior), 1000
    assert len(ladder) > 20
    counts = np.array([accepted(prior, high, low, number) for high, low in itertools.pairwise(ladder)])
    rate = exchange_rate(ladder[0] / ladder[1], 256)
    assert rate >= 0.05
    for count in counts:
        alarm = FALSE_ALARM / len(counts)
        assert scipy.stats.binomtest(int(count), number, rate, alternative="less").pvalue > alarm
    if isinstance(prior, OscillatorPrior):
        # At the bottom it is all noise but for the amplitude, one dimension of 256: hardly more than the rate.
        assert counts[-1] < 0.1 * number
