"""The descent of all sources together: sharing out what is left, and the draws of Gaussian sources."""

import math

import pyro
import pytest
import torch
from pyro import poutine

from pyrosep import AnnealedSearch, ContinuousFlow, GaussianPrior
from pyrosep.errors import ConfigurationError
from pyrosep.infer import DescentMoves
from pyrosep.infer.response import LinearMix
from pyrosep.infer.search.descent import share_out
from pyrosep.mixing import linear_mix, unknown_gains_mix
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser
from pyrosep.signal.spectra import ShortTimeSpectrum

BANDS = BandSize(window=16, bands=2, width=4, neck=4, layers=1, features=4)


def white(power, time=64, interference=False):
    """A white Gaussian source, for which a denoiser without training is exact."""
    return ContinuousFlow(
        BandDenoiser(BANDS, torch.full((9,), float(power)), interference=interference), time, sigma_min=0.01
    )


# --- sharing out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_white_sources_are_given_their_posterior_mean(double, channels):
    """Of white sources any short-time spectrum is as good as the samples themselves."""
    variance, gains, noise = torch.tensor([1.0, 0.3]), torch.randn(4, 2, channels), torch.full((4, 1), 0.2)
    means, observed = torch.randn(4, 2, 40), torch.randn(4, channels, 40)
    transform = ShortTimeSpectrum(16).double()
    frames = transform(means).shape[-2]
    bins = variance[:, None, None].expand(4, 2, frames, 9)
    found = share_out(means, bins, LinearMix(observed, gains, noise), transform)
    for chain in range(4):
        a = gains[chain].mT  # (channel, source)
        gain = torch.diag(variance) @ a.mT @ (a @ torch.diag(variance) @ a.mT + 0.04 * torch.eye(channels)).inverse()
        torch.testing.assert_close(found[chain], means[chain] + gain @ (observed[chain] - a @ means[chain]))


def test_what_is_left_goes_to_the_source_that_may_have_it(double):
    variance = torch.tensor([1.0, 0.0])[:, None, None].expand(1, 2, 6, 9)
    mix = LinearMix(torch.randn(1, 1, 40), torch.ones(1, 2, 1), torch.full((1, 1), 1e-6))
    found = share_out(torch.zeros(1, 2, 40), variance, mix, ShortTimeSpectrum(16).double())
    torch.testing.assert_close(found[:, 0], mix.observed[:, 0], atol=1e-6, rtol=0)
    assert float(found[:, 1].abs().max()) == 0


# --- draws ---------------------------------------------------------------------------------------------------------


def descents(priors, mix, chains, ladder, *, gains=None, noise=0.05, spread=1.0, seed=0):
    """Where chains end that start anew, ``(chains, source, time)``."""
    gains = torch.ones(len(priors)) if gains is None else torch.tensor(gains)
    model = linear_mix(priors, gains, noise)
    search = AnnealedSearch(ladder, DescentMoves(spread), "mix")
    values = search.run(model, mix, num_chains=chains, seed=seed).values()
    return torch.stack([values[name] for name in priors], 1)


@pytest.mark.parametrize("levels", [2, 5])
def test_draws_of_white_sources_are_the_posteriors(levels):
    r"""At any number of levels. What is not exact is the start, from noise in place of the posterior at the top.

    Of :math:`m = s_1 + s_2 + \epsilon` the sources' means are :math:`v_k m / V` and their covariances
    :math:`v_k \delta_{jk} - v_j v_k / V`, with :math:`V = v_1 + v_2 + \lambda^{-1}`. Tolerances are four standard
    errors of 400 chains of 64 samples, which come in pairs, and the start's share, :math:`v / \sigma_1^2`.
    """
    priors, mix = {"a": white(1.0), "b": white(0.25)}, 1.5 * torch.randn(64)
    top = 20.0
    found = descents(priors, mix, 400, [top * (0.01 / top) ** (i / (levels - 1)) for i in range(levels)]).double()
    power = torch.tensor([1.0, 0.25]).double()
    total = float(power.sum()) + 0.05**2
    off = found - power[:, None] * mix.double() / total
    spread = (power - power.square() / total).sqrt()
    assert bool((off.mean(0).abs() < 4 * spread[:, None] / math.sqrt(200) + 1 / top**2).all())
    covariance = torch.einsum("njt,nkt->jk", off, off) / off[:, 0].numel()
    expected = torch.diag(power) - power.outer(power) / total
    # A variance of n independent samples has a relative standard error of sqrt(2 / n); pairs are one sample.
    assert float((covariance - expected).abs().max()) < 4 * math.sqrt(2 / (200 * 64)) * float(expected.max()) + 2 / top


def test_pairs_of_chains_cancel_each_others_noise():
    """White sources are linear in the noise: the mean of a pair is the posterior's own."""
    priors, mix = {"a": white(1.0), "b": white(0.25)}, 1.5 * torch.randn(64)
    found = descents(priors, mix, 6, [20.0, 1.0, 0.01]).unflatten(0, (2, 3)).mean(0)
    for own, power in enumerate((1.0, 0.25)):
        torch.testing.assert_close(found[:, own], (power * mix / 1.2525).expand(3, -1), atol=0.01, rtol=0)


def test_without_spread_chains_follow_the_means():
    priors, mix = {"a": white(1.0), "b": white(0.25)}, 1.5 * torch.randn(64)
    found = descents(priors, mix, 200, [20.0, 1.0, 0.01], spread=0.0)
    drawn = descents(priors, mix, 200, [20.0, 1.0, 0.01])
    assert float(found.std(0).mean()) < 0.8 * float(drawn.std(0).mean())
    torch.testing.assert_close(found.sum(1), mix.expand(200, -1), atol=4 * 0.05, rtol=0)  # of the mix's own noise


def test_priors_that_know_interference_start_from_the_mix():
    """Untrained they take others for as loud as the source, and each has half of the mix, but for its own noise."""
    priors, mix = {name: white(1.0, interference=True) for name in "ab"}, torch.randn(64)
    found = descents(priors, mix, 4, [0.01], noise=1e-4, spread=0.0)
    torch.testing.assert_close(found[:, 0], (mix / 2).expand(4, -1), atol=4 * 0.01, rtol=0)
    torch.testing.assert_close(found.sum(1), mix.expand(4, -1), atol=1e-3, rtol=0)


def test_gains_are_the_mixs():
    priors, mix = {"a": white(1.0), "b": white(0.25)}, torch.randn(64)
    found = descents(priors, mix, 100, [20.0, 1.0, 0.01], gains=[0.5, -2.0], noise=0.01)
    torch.testing.assert_close(0.5 * found[:, 0] - 2 * found[:, 1], mix.expand(100, -1), atol=0.06, rtol=0)


def test_several_channels_are_heard_together():
    """Two channels with other gains tell two sources apart, whatever they are."""
    priors, truth = {"a": white(1.0), "b": white(1.0)}, torch.randn(2, 64)

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        channels = torch.stack([a + 0.2 * b, 0.1 * a - b], -2)
        return pyro.sample("mix", pyro.distributions.Normal(channels, 0.01).to_event(2), obs=mix)

    mix = torch.stack([truth[0] + 0.2 * truth[1], 0.1 * truth[0] - truth[1]])
    values = AnnealedSearch([20.0, 1.0, 0.01], "shared").run(model, mix, num_chains=4, seed=0).values()
    for name, source in zip("ab", truth, strict=True):
        torch.testing.assert_close(values[name], source.expand(4, -1), atol=0.1, rtol=0)


# --- what it is not for --------------------------------------------------------------------------------------------


def test_models_and_priors_that_it_is_not_for_are_refused():
    with pytest.raises(ConfigurationError, match="short-time spectra"):
        descents({"a": GaussianPrior(torch.ones(2), 64, sigma_min=0.01)}, torch.randn(64), 2, [1.0, 0.1])
    model = poutine.condition(unknown_gains_mix({"a": white(1.0), "b": white(1.0)}), {})
    with pytest.raises(ConfigurationError, match=r"whose latent sites are sources|linear in its sources"):
        AnnealedSearch([1.0, 0.1], "shared").run(model, torch.randn(64), num_chains=2)
    with pytest.raises(ConfigurationError, match="spread must be"):
        DescentMoves(spread=3.0)


def test_a_search_alone_calls_the_denoisers_for_its_levels_and_nothing_else(monkeypatch):
    """No gradient is needed where chains stay where the search left them."""
    priors, mix, calls = {"a": white(1.0), "b": white(0.25)}, torch.randn(64), []
    network = BandDenoiser._removed
    monkeypatch.setattr(BandDenoiser, "_removed", lambda self, *given: calls.append(1) or network(self, *given))
    search = AnnealedSearch([5.0, 1.0, 0.1], "shared", "mix")
    found = search.run(linear_mix(priors, torch.ones(2), 0.05), mix, num_chains=4, seed=0)
    assert len(calls) == 2 * 3
    assert found.calls.tolist() == [2 * 3] * 4
