"""Weights of modes, against a posterior that can be enumerated; and that R-hat tells where chains don't move."""

import functools

import arviz
import numpy as np
import pytest
import scipy.stats
import torch

from pyrosep import MALA, AnnealedSearch, GibbsMALA, LangevinMCMC, OscillatorPrior
from pyrosep.mixing import linear_mix

FRAME, OWN, NOISE, GAINS = 32, 0.3, 0.7, torch.tensor([1.0, 0.6], dtype=torch.float64)
PERIODS = (5, 7, 9, 11)
FALSE_ALARM = 1e-4


class Enumerated:
    """The posterior of two oscillators given a mix, over all pairs of period and phase and a grid of amplitudes.

    With the noise of the priors' own level integrated out, the mix is the waves' and white noise of variance
    ``NOISE^2 + OWN^2 sum a_k^2``. Amplitudes are on the midpoints of 40 cells each: the likelihood's logarithm changes
    by some tenths of a nat over the range, and the midpoint rule's error is of the order of its square over 40^2.
    """

    def __init__(self, mix):
        self.mix = mix
        self.priors = {
            wave: OscillatorPrior(wave, frame=FRAME, periods=PERIODS, sigma_min=OWN) for wave in ("saw", "square")
        }
        self.waves = [unit_waves(prior) for prior in self.priors.values()]
        low, high = next(iter(self.priors.values())).amplitude
        self.cell = (high - low) / 40
        self.grid = low + self.cell * (torch.arange(40, dtype=torch.float64) + 0.5)
        log_weight = torch.cat([torch.full((p,), -np.log(p)) for p in PERIODS]).double()
        self.variance = NOISE**2 + OWN**2 * float(GAINS.square().sum())
        first, second = (gain * wave for gain, wave in zip(GAINS, self.waves, strict=True))
        a, b = self.grid.reshape(-1, 1), self.grid.reshape(1, -1)

        def over(values):
            return values.reshape(*values.shape, 1, 1)

        square = over(first.square().sum(-1).unsqueeze(1)) * a**2 - 2 * over((first @ mix).unsqueeze(1)) * a
        square = square + over(second.square().sum(-1).unsqueeze(0)) * b**2 - 2 * over((second @ mix).unsqueeze(0)) * b
        square = square + 2 * over(first @ second.mT) * a * b
        log_prior = log_weight.unsqueeze(1) + log_weight.unsqueeze(0)
        log_joint = over(log_prior) - square / (2 * self.variance)
        self.probability = log_joint.flatten().softmax(0)
        self.pairs = self.probability.reshape(len(first), len(second), -1).sum(-1)

    def draw(self, number):
        """Exact draws of the sources, ``(number, source, time)``: waves, and the noise given what they leave."""
        place = np.random.default_rng(0).choice(len(self.probability), number, p=self.probability.numpy())
        i, j, a, b = (torch.from_numpy(part) for part in np.unravel_index(place, (*self.pairs.shape, 40, 40)))
        amplitude = torch.stack([self.grid[a], self.grid[b]], 1)
        amplitude = amplitude + self.cell * (torch.rand_like(amplitude) - 0.5)
        clean = amplitude.unsqueeze(-1) * torch.stack([self.waves[0][i], self.waves[1][j]], 1)
        left = self.mix - (GAINS.unsqueeze(-1) * clean).sum(1)
        mean = OWN**2 / self.variance * GAINS.reshape(1, 2, 1) * left.unsqueeze(1)
        covariance = OWN**2 * torch.eye(2) - OWN**4 / self.variance * torch.outer(GAINS, GAINS)
        root = torch.linalg.cholesky(covariance)
        return clean + mean + root @ torch.randn(number, 2, FRAME, dtype=torch.float64)

    def classify(self, sources):
        """The pair of waves nearest to each draw, by the density of the waves at amplitude 0.9 given both sources."""
        labels = []
        for source, waves in zip(sources.unbind(1), self.waves, strict=True):
            distance = 0.9**2 * waves.square().sum(-1) - 2 * 0.9 * source @ waves.mT
            labels.append(distance.argmin(-1))
        return labels[0] * len(self.waves[1]) + labels[1]

    def model(self):
        return linear_mix(self.priors, GAINS, NOISE)


def unit_waves(prior):
    """Every wave of a prior at amplitude one, ``(pair, time)``: periods in order, phases within."""
    rows = [(row, phase) for row, period in enumerate(PERIODS) for phase in range(period)]
    return torch.stack([prior._cycles(torch.tensor([row]), torch.tensor([phase]))[0] for row, phase in rows])


@functools.cache
def enumerated():
    """Of a mix that several pairs of waves explain about equally well."""
    generator = torch.Generator().manual_seed(1)
    priors = [OscillatorPrior(wave, frame=FRAME, periods=PERIODS) for wave in ("saw", "square")]
    first, second = unit_waves(priors[0])[14], unit_waves(priors[1])[3]
    mix = 0.9 * (GAINS[0] * first + GAINS[1] * second)
    return Enumerated(mix + 0.78 * torch.randn(FRAME, generator=generator, dtype=torch.float64))


def weights_agree(labels, expected, alarm=FALSE_ALARM):
    """Counts of the modes that hold one draw in fifty or more, and of the rest: chi-square."""
    share = torch.bincount(expected, minlength=1024).double() / len(expected)
    large = torch.nonzero(share >= 0.02).flatten()
    count = torch.bincount(labels, minlength=1024).double()
    both = np.stack([np.append(part[large], part.sum() - part[large].sum()) for part in (count, share * len(expected))])
    pvalue = scipy.stats.chi2_contingency(both).pvalue
    assert pvalue > alarm, f"weights of {len(large)} modes differ, p = {pvalue:.1e}: {both}"


@pytest.fixture
def run(double):
    def run(kernel, chains, warmup, init="prior", seed=0):
        mcmc = LangevinMCMC(
            kernel, num_samples=4, warmup_steps=warmup, thinning=10, num_chains=chains, init=init, seed=seed
        ).run(enumerated().mix)
        draws = mcmc.get_samples(group_by_chain=True)
        return torch.stack([draws[wave] for wave in ("saw", "square")], 2), mcmc.sample_stats()["lp"]

    return run


def in_one_mode(place):
    """A start at one pair of waves, given by its number, for all chains."""
    found = enumerated()
    first, second = divmod(place, len(found.waves[1]))
    return {"saw": 0.9 * found.waves[0][first], "square": 0.9 * found.waves[1][second]}


def test_the_posterior_spreads_over_modes(double):
    """So that there is something to find out: no pair holds half of it, ten hold a fiftieth."""
    pairs = enumerated().pairs.flatten()
    assert float(pairs.max()) < 0.5
    assert int((pairs > 0.02).sum()) >= 8


def test_the_enumeration_is_the_models(double):
    """Its density, up to a constant, is what the priors' own densities say: at exact draws, in double precision.

    The log joint of the model is log p(x | m) and a constant: with the two densities' ratio at the draws of one
    distribution, E[exp(log p - log q)] is the same constant. Here p is the model's, q the mixture that was drawn from.
    """
    found = enumerated()
    x = found.draw(200)
    model = sum(prior.log_prob(source) for prior, source in zip(found.priors.values(), x.unbind(1), strict=True))
    mean = (GAINS.unsqueeze(-1) * x).sum(1)
    model = model + torch.distributions.Normal(mean, NOISE).log_prob(found.mix).sum(-1)
    # The same by the grid: p(x | waves) of each source, N(a w, OWN^2), summed over waves and amplitudes.
    summed = torch.distributions.Normal(mean, NOISE).log_prob(found.mix).sum(-1)
    log_weight = torch.cat([torch.full((p,), -np.log(4 * p)) for p in PERIODS]).double()
    for source, waves in zip(x.unbind(1), found.waves, strict=True):
        square = (
            source.square().sum(-1)[:, None, None]
            - 2 * found.grid * (source @ waves.mT).unsqueeze(-1)
            + found.grid**2 * waves.square().sum(-1).unsqueeze(-1)
        )
        terms = log_weight.unsqueeze(-1) - square / (2 * OWN**2) - FRAME / 2 * np.log(2 * np.pi * OWN**2)
        summed = summed + terms.flatten(1).logsumexp(-1) - np.log(40)
    torch.testing.assert_close(model, summed, rtol=0, atol=1e-2)  # the midpoint rule over a range of two deviations


@pytest.mark.slow
def test_modes_get_their_weights(run):
    """The last draws of a thousand chains from the search, against exact ones; and R-hat says that chains agree."""
    found = enumerated()
    torch.manual_seed(1)
    exact = found.classify(found.draw(200_000))
    kernel = GibbsMALA(found.model(), sweep_every=2)
    draws, lp = run(kernel, 1000, 40, AnnealedSearch(redraws=4))
    weights_agree(found.classify(draws[:, -1]), exact)
    assert float(arviz.rhat(lp.numpy())) < 1.02
    # The comparison can tell: the same with the weights to the power of 0.8.
    tempered = found.pairs.flatten().pow(0.8)
    wrong = torch.multinomial(tempered / tempered.sum(), 1000, replacement=True)
    with pytest.raises(AssertionError, match="weights of"):
        weights_agree(wrong, exact)


@pytest.mark.slow
def test_sweeps_forget_the_mode_they_start_in(run):
    """All chains in one mode of small weight, which steps do not leave: sweeps bring the weights about."""
    found = enumerated()
    torch.manual_seed(1)
    exact = found.classify(found.draw(200_000))
    rare = int((found.pairs.flatten() - 0.004).abs().argmin())
    kernel = GibbsMALA(found.model(), sweep_every=2)
    draws, _ = run(kernel, 1000, 40, in_one_mode(rare), 2)
    weights_agree(found.classify(draws[:, -1]), exact)


def test_chains_that_do_not_mix_are_told_by_r_hat(double):
    """A sharp posterior, MALA from one pair of waves in each chain: every chain stays there, and R-hat is far above 1.

    Sweeps from the same starts move, and with the noise of the other test R-hat is near 1.
    """
    priors = {wave: OscillatorPrior(wave, frame=FRAME, periods=PERIODS, sigma_min=0.02) for wave in ("saw", "square")}
    model = linear_mix(priors, GAINS, 0.02)
    found = enumerated()
    places = torch.tensor([0, 8, 15, 30])
    start = {"saw": 0.9 * found.waves[0][places], "square": 0.9 * found.waves[1][places]}
    mix = model().detach()
    mcmc = LangevinMCMC(
        MALA(model, preconditioner="measured"), num_samples=50, warmup_steps=60, num_chains=4, init=start, seed=0
    ).run(mix)
    draws = mcmc.get_samples(group_by_chain=True)
    for wave, waves in zip(priors, found.waves, strict=True):
        nearest = (draws[wave].unsqueeze(2) - 0.9 * waves).square().sum(-1).argmin(-1)
        assert bool((nearest == places.unsqueeze(-1)).all())
    for values in (mcmc.sample_stats()["lp"], draws["saw"][..., 0], draws["square"].square().sum(-1)):
        assert float(arviz.rhat(values.numpy())) > 1.5


@pytest.mark.slow
def test_r_hat_is_near_one_where_sweeps_mix(double):
    """The same starts in the broad posterior: waves change, and R-hat of the log joint says that chains agree."""
    found = enumerated()
    places = torch.tensor([0, 8, 15, 30])
    start = {"saw": 0.9 * found.waves[0][places], "square": 0.9 * found.waves[1][places]}
    kernel = GibbsMALA(found.model(), sweep_every=1)
    mcmc = LangevinMCMC(kernel, 60, 10, num_chains=4, init=start, seed=0).run(found.mix)
    draws = mcmc.get_samples(group_by_chain=True)
    labels = found.classify(torch.stack([draws["saw"], draws["square"]], 2).flatten(0, 1)).reshape(4, -1)
    assert min(len(row.unique()) for row in labels) > 5
    # R-hat is about 1 + 2 / N for an effective size of N in all, here some dozens; chains that stay are above 1.5.
    assert float(arviz.rhat(mcmc.sample_stats()["lp"].numpy())) < 1.15
