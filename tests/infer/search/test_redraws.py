"""Sweeps of draws of each source given the others, against the distribution that they leave as it is."""

import math

import pytest
import torch
from pyro import poutine

from pyrosep import GaussianPrior, OscillatorPrior, Potential
from pyrosep.infer import LinearMix, Redraws, linear_mix_of
from pyrosep.mixing import mean_mix, panned_mix

CHAINS = 4000
OWN = 0.1  # the priors' level


def redraws_of(linear, chains=CHAINS, mix=None):
    potential = Potential(linear.model, (linear.mix if mix is None else mix,), num_chains=chains)
    return Redraws(list(linear.priors.values()), linear_mix_of(potential, potential.prior_draw))


def settled(prior_covariance, mixing, mix, noise, power, sigma):
    """Mean and covariance of prod p(x_k) N(m; A x, noise^2 + power (sigma^2 - sigma_0^2)), dense."""
    wide = noise**2 + power * max(sigma**2 - OWN**2, 0.0)
    covariance = torch.linalg.inv(torch.linalg.inv(prior_covariance) + mixing.mT @ mixing / wide)
    return covariance @ mixing.mT @ mix / wide, covariance


def at_level(linear, sigma):
    power = float(linear.gains.square().mean())
    return settled(linear.prior_covariance, linear.mixing, linear.mix, linear.noise, power, sigma)


def draws_of(mean, covariance, number=CHAINS):
    """``(number, source, time)``."""
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    return normal.sample((number,)).unflatten(-1, (-1, 8))


@pytest.fixture
def check_moments(mean_agrees):
    def check(sources, mean, covariance):
        draws = sources.flatten(1)
        mean_agrees(draws, mean)
        upper = torch.triu_indices(*covariance.shape)
        deviation = draws - mean
        mean_agrees(deviation[:, upper[0]] * deviation[:, upper[1]], covariance[upper[0], upper[1]])

    return check


# --- the distribution --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 3.0])
def test_a_sweep_leaves_its_distribution_as_it_is(linear, check_moments, sigma):
    mean, covariance = at_level(linear, sigma)
    sources = redraws_of(linear).sweep(draws_of(mean, covariance), torch.arange(CHAINS), sigma)
    check_moments(sources, mean, covariance)


def test_the_test_can_tell_levels_apart(linear, check_moments):
    sources = redraws_of(linear).sweep(draws_of(*at_level(linear, 0.5)), torch.arange(CHAINS), 0.5)
    with pytest.raises(AssertionError, match="standard errors"):
        check_moments(sources, *at_level(linear, 0.8))


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_sweeps_from_anywhere_come_to_it(linear, check_moments, sigma):
    """A sweep shrinks what is left of the start by at least the sources' largest correlation: as many as 1e-5 takes."""
    mean, covariance = at_level(linear, sigma)
    first, second = (torch.linalg.cholesky(block) for block in (covariance[:8, :8], covariance[8:, 8:]))
    white = torch.linalg.solve(first, torch.linalg.solve(second, covariance[:8, 8:].mT).mT)
    correlation = float(torch.linalg.matrix_norm(white, 2))
    redraws, sources = redraws_of(linear), torch.full((CHAINS, 2, 8), 5.0)
    for _ in range(math.ceil(math.log(1e-5) / math.log(correlation))):
        sources = redraws.sweep(sources, torch.arange(CHAINS), sigma)
    check_moments(sources, mean, covariance)


@pytest.mark.parametrize("sigma", [0.0, OWN])
def test_at_the_bottom_it_is_the_models_own_posterior(linear, sigma):
    mean, covariance = at_level(linear, sigma)
    torch.testing.assert_close(mean, linear.mean)
    torch.testing.assert_close(covariance, linear.covariance)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_a_draw_is_the_conditional(linear, mean_agrees, index, sigma):
    """Given one and the same state of the other source, with unequal gains: mean and covariance by partition."""
    mean, covariance = at_level(linear, sigma)
    precision = torch.linalg.inv(covariance)
    state = torch.randn(2, 8)
    mine = torch.arange(8) + 8 * index
    theirs = torch.arange(8) + 8 * (1 - index)
    inside = torch.linalg.inv(precision[mine][:, mine])
    center = mean[mine] - inside @ precision[mine][:, theirs] @ (state[1 - index] - mean[theirs])
    number = 20_000
    redraws = redraws_of(linear, number)
    drawn = redraws.draw(state.expand(number, 2, 8), torch.full((number,), index), torch.arange(number), sigma)
    mean_agrees(drawn, center)
    deviation = drawn - center
    mean_agrees(deviation.unsqueeze(-1) * deviation.unsqueeze(-2), inside)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_the_level_of_a_draw(linear, monkeypatch, sigma):
    """The prior's own, the mix's noise and the widening, in the scale of the source; it comes back at its own."""
    seen = []

    def draw(self, value, to):
        seen.append((self.sigma, to))
        return value

    monkeypatch.setattr(GaussianPrior, "draw", draw)
    redraws_of(linear, 2).draw(torch.randn(2, 2, 8), torch.tensor([0, 1]), torch.arange(2), sigma)
    for (level, to), gain in zip(seen, (1.0, 0.7), strict=True):
        wide = 0.5**2 + (1 + 0.7**2) / 2 * max(sigma**2 - OWN**2, 0)
        # The prior's own level is kept in the default precision, double here.
        torch.testing.assert_close(level, torch.tensor([OWN**2 + wide / gain**2]).sqrt())
        torch.testing.assert_close(to, torch.tensor([OWN]))


def test_chains_with_mixes_of_their_own(linear, mean_agrees):
    """Some of the chains, in any order: each sees its own mix."""
    mixes = torch.randn(3, 8)
    number = 4000
    redraws = redraws_of(linear, 3 * number, mixes.repeat_interleave(number, 0))
    chains = torch.cat([torch.arange(2 * number, 3 * number), torch.arange(number)])
    sources = torch.zeros(2 * number, 2, 8)
    for _ in range(60):
        sources = redraws.sweep(sources, chains, 0.0)
    mean_agrees(sources[:number].flatten(1), linear.mean_given(mixes[2]))
    mean_agrees(sources[number:].flatten(1), linear.mean_given(mixes[0]))


def test_stereo(linear, check_moments):
    """Two channels, three sources: the mean squared gain is one, by constant power."""
    priors = {**linear.priors, "c": GaussianPrior(torch.tensor([0.3, 2.0, 0.1]), 8, sigma_min=OWN)}
    pans, mix = torch.tensor([-0.5, 0.4, 0.9]), torch.randn(2, 8)
    model = poutine.condition(panned_mix(priors, 0.5), {"pans": pans})
    angle = math.pi / 4 * (pans + 1)
    mixing = torch.kron(torch.stack([angle.cos(), angle.sin()]), torch.eye(8))
    basis = torch.eye(8)
    last = -torch.stack([priors["c"].score(row) for row in basis])  # the precision, by rows
    prior = torch.block_diag(linear.prior_covariance, torch.linalg.inv(last))
    mean, covariance = settled(prior, mixing, mix.flatten(), 0.5, 1.0, 0.5)
    potential = Potential(model, (mix,), num_chains=CHAINS)
    redraws = Redraws(list(priors.values()), linear_mix_of(potential, potential.prior_draw))
    sources = redraws.sweep(draws_of(mean, covariance), torch.arange(CHAINS), 0.5)
    check_moments(sources, mean, covariance)
    for _ in range(3):
        sources = redraws.sweep(sources, torch.arange(CHAINS), 0.5)
    check_moments(sources, mean, covariance)


def test_blocks_leave_it_as_it_is_too(linear, check_moments):
    mean, covariance = at_level(linear, 0.5)
    sources = redraws_of(linear).sweep(
        draws_of(mean, covariance), torch.arange(CHAINS), 0.5, torch.randint(2, (CHAINS, 1))
    )
    check_moments(sources, mean, covariance)


def test_oscillators_too(double, mean_agrees):
    """A draw of an oscillator in white noise, at its own level: the prior's own posterior, by the moments of the two.

    With sources drawn from the model, and the mix of each chain from them, a sweep leaves them as they were.
    """
    priors = {wave: OscillatorPrior(wave, frame=24, periods=(4, 5, 7), sigma_min=0.2) for wave in ("saw", "square")}
    number = 4000
    sources = torch.stack([prior.sample((number,)) for prior in priors.values()], 1)
    mixes = sources.mean(1) + 0.8 * torch.randn(number, 24)
    potential = Potential(mean_mix(priors, 0.8), (mixes,), num_chains=number)
    redraws = Redraws(list(priors.values()), linear_mix_of(potential, potential.prior_draw))
    swept = redraws.sweep(sources, torch.arange(number), 0.0)

    def moments(x):
        return torch.cat(
            [x.flatten(1), x.square().flatten(1), x.prod(1), (x * x.roll(1, -1)).flatten(1), x.mean(1) * mixes], -1
        )

    mean_agrees(moments(swept) - moments(sources), 0.0)
    assert float((swept - sources).square().mean()) > 0.16  # they move by more than twice their own noise's power


# --- bookkeeping -------------------------------------------------------------------------------------------------


@pytest.fixture
def three(linear):
    priors = [*linear.priors.values(), linear.priors["a"]]
    gains = torch.tensor([1.0, 0.7, -0.4]).reshape(1, 3, 1).expand(5, 3, 1)
    return Redraws(priors, LinearMix(torch.randn(5, 1, 8), gains, torch.full((5, 1), 0.5)))


def changed(before, after):
    return (before != after).any(-1)


def test_a_sweep_moves_all_and_blocks_their_own(three):
    sources, chains = torch.randn(5, 3, 8), torch.arange(5)
    before = sources.clone()
    assert bool(changed(sources, three.sweep(sources, chains, 0.5)).all())
    blocks = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    expected = torch.zeros(5, 3, dtype=torch.bool).scatter(1, blocks, True)
    assert torch.equal(changed(sources, three.sweep(sources, chains, 0.5, blocks)), expected)
    assert torch.equal(changed(sources, three.exchange(sources, chains, blocks)), expected)
    assert torch.equal(sources, before)  # what was given is left as it was


def test_calls_are_counted_by_chain(three):
    sources, chains = torch.randn(2, 3, 8), torch.tensor([4, 1])
    three.sweep(sources, chains, 0.5)
    assert three.calls.tolist() == [0, 3, 0, 0, 3]
    three.sweep(sources[:1], chains[:1], 0.5, torch.tensor([[0, 2]]))
    assert three.calls.tolist() == [0, 3, 0, 0, 5]
    three.exchange(sources, chains, torch.tensor([[0, 1], [2, 0]]))
    assert three.calls.tolist() == [0, 7, 0, 0, 9]
    three.draw(sources, torch.tensor([2, 2]), chains, 0.0)
    assert three.calls.tolist() == [0, 8, 0, 0, 10]


def test_exchange_mends_sources_that_hold_each_others_place():
    """A saw has found the square's waveform, and the other way round.

    Exchanged, they explain the mix to within its noise; drawn one at a time they stay where they are.
    """
    priors = {
        "low": OscillatorPrior("saw", frame=256, periods=(11, 17, 23)),
        "high": OscillatorPrior("square", frame=256, periods=(11, 17, 23)),
    }
    chains = 32
    low, high = (prior.sample() for prior in priors.values())
    mix = (low + high) / 2
    potential = Potential(mean_mix(priors, 0.01), (mix,), num_chains=chains)
    redraws = Redraws(list(priors.values()), linear_mix_of(potential, potential.prior_draw))
    everyone = torch.arange(chains)
    swapped = torch.stack(
        [
            priors["low"].at(3.0).draw_clean(high.expand(chains, -1)),
            priors["high"].at(3.0).draw_clean(low.expand(chains, -1)),
        ],
        1,
    )

    def solved(sources):
        left = redraws.mix.remainder(sources).squeeze(1).square().mean(-1).sqrt()
        return float((left < 0.03).double().mean())  # the noise is 0.01, as are the priors' own

    pairs = torch.tensor([[0, 1]]).expand(chains, 2)
    assert solved(redraws.exchange(swapped, everyone, pairs)) == 1
    assert solved(redraws.sweep(swapped, everyone, 0.0)) == 0


def test_floor_is_the_level_of_a_source_in_the_mixs_noise(three):
    power = (1 + 0.7**2 + 0.4**2) / 3
    assert three.floor == pytest.approx(0.5 / math.sqrt(power))


# --- interference --------------------------------------------------------------------------------------------------


def test_draws_are_told_of_others_while_the_search_goes_on(linear):
    """What the others leave of the mix is the source beside their errors, until the last level."""

    class Told(GaussianPrior):
        knows_interference = True

        def draw(self, value, to):
            told.append(self.interference)
            return super().draw(value, to)

    told = []
    priors = [Told(prior.grid, prior.time, sigma_min=prior.sigma_min) for prior in linear.priors.values()]
    potential = Potential(linear.model, (linear.mix,), num_chains=2)
    redraws = Redraws(priors, linear_mix_of(potential, potential.prior_draw))
    for sigma, expected in ((1.0, {1.0}), (0.0, {0.0})):
        told.clear()
        redraws.sweep(torch.zeros(2, len(priors), linear.mix.shape[-1]), torch.arange(2), sigma)
        assert set(told) == expected
