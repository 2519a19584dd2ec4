"""What is measured of a model: the responses of its observations, and whether it is a linear mix."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrosep import GaussianPrior, Potential
from pyrosep.errors import ConfigurationError
from pyrosep.infer import linear_mix_of, measure_responses
from pyrosep.mixing import linear_mix, mean_mix, panned_mix, soft_clipped_mix, unknown_gains_mix

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # closed forms in double precision: rounding


def responses_of(model, mix, priors, batch=(), values=None):
    drawn = {name: torch.randn(*batch, prior.time) for name, prior in priors.items()} | (values or {})

    def run(given):
        return poutine.trace(poutine.condition(model, given)).get_trace(mix)

    return measure_responses(run, drawn, list(priors))


def observed_by(linear, mean, family=lambda mean: dist.Normal(mean, 0.5)):
    """A model that observes a function of the sources a and b."""

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("mix", family(mean(a, b)).to_event(1), obs=mix)

    return model


# --- responses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [7, 8])
def test_of_gains(linear_of, time):
    linear = linear_of(time)
    found = responses_of(linear.model, linear.mix, linear.priors)
    assert set(found) == {"mix"}
    for name, gain in zip("ab", linear.gains, strict=True):
        torch.testing.assert_close(found["mix"][name], gain.expand(time // 2 + 1) + 0j, **CLOSE)


@pytest.mark.parametrize("time", [7, 8])
def test_of_an_echo(linear_of, time):
    linear = linear_of(time)
    model = observed_by(linear, lambda a, b: 0.3 * a + b - 0.5 * b.roll(3, -1))
    echo = torch.zeros(time)
    echo[0], echo[3] = 1.0, -0.5
    found = responses_of(model, linear.mix, linear.priors)["mix"]
    torch.testing.assert_close(found["b"], torch.fft.rfft(echo), **CLOSE)
    torch.testing.assert_close(found["a"], torch.full_like(found["b"], 0.3), **CLOSE)


def test_of_a_filter_far_from_zero_is_that_of_its_tangent(linear):
    """Of a function of each sample it is the slope there: at constant sources the same for all."""
    model = observed_by(linear, lambda a, b: torch.tanh(a + 2 * b))
    values = {"a": torch.full((8,), 0.3), "b": torch.full((8,), -0.1)}
    found = responses_of(model, linear.mix, linear.priors, values=values)["mix"]
    slope = 1 - math.tanh(0.3 - 0.2) ** 2
    torch.testing.assert_close(found["a"], torch.full((5,), slope) + 0j, **CLOSE)
    torch.testing.assert_close(found["b"], torch.full((5,), 2 * slope) + 0j, **CLOSE)


def test_of_stereo(linear):
    pans = torch.tensor([-0.5, 0.4])
    model = poutine.condition(panned_mix(linear.priors, 0.3), {"pans": pans})
    found = responses_of(model, torch.randn(2, 8), linear.priors)
    assert set(found) == {"mix"}  # the pans are observed, and do not depend on the sources
    angle = math.pi / 4 * (pans + 1)
    for source, name in enumerate("ab"):
        expected = torch.stack([angle[source].cos(), angle[source].sin()]).unsqueeze(-1).expand(2, 5) + 0j
        torch.testing.assert_close(found["mix"][name], expected, **CLOSE)


def test_of_chains_with_gains_of_their_own(linear):
    gains = torch.tensor([[1.0, 2.0], [0.5, -3.0], [0.1, 0.2]])
    model = unknown_gains_mix(linear.priors, noise=0.3)
    found = responses_of(model, linear.mix, linear.priors, batch=(3,), values={"gains": gains})["mix"]
    for source, name in enumerate("ab"):
        torch.testing.assert_close(found[name], gains[:, source, None].expand(3, 5) + 0j, **CLOSE)


def test_of_several_observations(linear):
    """Each by itself; one that sees a single source has no response to the other, one that sees none is left out."""

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("both", dist.Normal(a - b, 0.5).to_event(1), obs=mix)
        pyro.sample("one", dist.StudentT(3.0, 2 * a, 0.5).to_event(1), obs=mix)
        pyro.sample("none", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))

    found = responses_of(model, linear.mix, linear.priors)
    assert {site: set(by_source) for site, by_source in found.items()} == {"both": {"a", "b"}, "one": {"a"}}
    torch.testing.assert_close(found["both"]["b"], torch.full((5,), -1.0) + 0j, **CLOSE)
    torch.testing.assert_close(found["one"]["a"], torch.full((5,), 2.0) + 0j, **CLOSE)


def test_observation_of_another_length(linear):
    def model(mix=None):
        a = pyro.sample("a", linear.priors["a"])
        pyro.sample("half", dist.Normal(a[..., ::2], 1.0).to_event(1), obs=mix)

    with pytest.raises(ConfigurationError, match=r"'half' has shape \(4,\), and sources have 8 samples"):
        responses_of(model, torch.randn(4), {"a": linear.priors["a"]})


# --- linear mixes ------------------------------------------------------------------------------------------------


def mix_of(model, mix, chains=3):
    potential = Potential(model, (mix,), num_chains=chains)
    return linear_mix_of(potential, potential.prior_draw)


@pytest.mark.parametrize("chains", [None, 3])
def test_linear_mix_of_gains(linear, chains):
    found = mix_of(linear.model, linear.mix, chains)
    rows = chains or 1
    torch.testing.assert_close(found.observed, linear.mix.expand(rows, 1, 8), **CLOSE)
    torch.testing.assert_close(found.gains, linear.gains.reshape(1, 2, 1).expand(rows, 2, 1), **CLOSE)
    torch.testing.assert_close(found.noise, torch.full((rows, 1), 0.5), **CLOSE)
    torch.testing.assert_close(found.power, torch.tensor([1.0, 0.49]).expand(rows, 2), **CLOSE)


def test_linear_mix_of_a_mean(linear):
    found = mix_of(mean_mix(linear.priors, 0.2), linear.mix)
    torch.testing.assert_close(found.gains, torch.full((3, 2, 1), 0.5), **CLOSE)
    torch.testing.assert_close(found.noise, torch.full((3, 1), 0.2), **CLOSE)


def test_linear_mix_of_a_mix_for_each_chain(linear):
    mixes = torch.randn(3, 8)
    torch.testing.assert_close(mix_of(linear.model, mixes).observed, mixes.unsqueeze(1), **CLOSE)


def test_linear_mix_of_stereo(linear):
    pans, mix = torch.tensor([-0.5, 0.4]), torch.randn(2, 8)
    found = mix_of(poutine.condition(panned_mix(linear.priors, 0.3), {"pans": pans}), mix)
    angle = math.pi / 4 * (pans + 1)
    gains = torch.stack([angle.cos(), angle.sin()], -1)
    torch.testing.assert_close(found.gains, gains.expand(3, 2, 2), **CLOSE)
    torch.testing.assert_close(found.observed, mix.expand(3, 2, 8), **CLOSE)
    torch.testing.assert_close(found.power, torch.ones(3, 2), **CLOSE)  # constant power


def test_linear_mix_with_an_offset(linear):
    """What does not come from the sources is taken off the observation."""
    hum = torch.linspace(-1, 1, 8)
    found = mix_of(observed_by(linear, lambda a, b: a - 2 * b + hum), linear.mix)
    torch.testing.assert_close(found.observed, (linear.mix - hum).expand(3, 1, 8), **CLOSE)
    torch.testing.assert_close(found.gains[0, :, 0], torch.tensor([1.0, -2.0]), **CLOSE)


def test_linear_mix_given_the_other_sites(linear):
    potential = Potential(unknown_gains_mix(linear.priors, 0.3), (linear.mix,), num_chains=3)
    gains = torch.rand(3, 2) + 0.5
    found = linear_mix_of(potential, potential.prior_draw | {"gains": gains})
    torch.testing.assert_close(found.gains.squeeze(-1), gains, **CLOSE)


def test_single_precision_is_linear_still():
    priors = {name: GaussianPrior(torch.tensor([1.0, 0.1, 0.01]), 512) for name in "abc"}
    found = mix_of(linear_mix(priors, [1.0, 0.5, 2.0], 0.01), torch.randn(512))
    # Single precision's rounding, of sums of three.
    torch.testing.assert_close(found.gains[0, :, 0], torch.tensor([1.0, 0.5, 2.0]), rtol=1e-5, atol=1e-5)


def test_residual_and_remainder(linear):
    """For a source in its own scale, by least squares over the channels: itself, and the noise over its gain."""
    pans, mix = torch.tensor([-0.5, 0.4]), torch.randn(2, 8)
    found = mix_of(poutine.condition(panned_mix(linear.priors, 0.3), {"pans": pans}), mix)
    sources, gains = torch.randn(3, 2, 8), found.gains[0]  # (source, channel)
    left = mix - torch.einsum("kc,nkt->nct", gains, sources)
    torch.testing.assert_close(found.remainder(sources), left, **CLOSE)
    index, chains = torch.tensor([1, 0]), torch.tensor([2, 0])
    expected = torch.stack(
        [
            sources[chain, k] + torch.linalg.lstsq(gains[k].unsqueeze(-1), left[chain]).solution[0]
            for chain, k in zip(chains.tolist(), index.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(found.residual(sources[chains], index, chains), expected, **CLOSE)


def two_observations(linear):
    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
        pyro.sample("mix", dist.Normal(a + b, 0.5).to_event(1), obs=mix)
        pyro.sample("again", dist.Normal(a - b, 0.5).to_event(1), obs=mix)

    return model


WHY_NOT = {
    "clipped": (lambda linear: soft_clipped_mix(linear.priors, 0.3), "in a way that changes over time"),
    "flattened": (lambda linear: observed_by(linear, lambda a, b: a + b + a.mean(-1, True) ** 2), "linear|filter"),
    "echo": (lambda linear: observed_by(linear, lambda a, b: a + b + 0.5 * b.roll(2, -1)), "'b' reaches 'mix' through"),
    "one alone": (lambda linear: observed_by(linear, lambda a, b: a), "'mix' does not depend on 'b'"),
    "heavy tails": (
        lambda linear: observed_by(linear, lambda a, b: a + b, lambda mean: dist.StudentT(4.0, mean, 0.5)),
        "is a StudentT, not a Normal",
    ),
    "uneven noise": (
        lambda linear: observed_by(
            linear, lambda a, b: a + b, lambda mean: dist.Normal(mean, torch.linspace(0.1, 1, 8))
        ),
        "not the same at all times",
    ),
    "two observations": (two_observations, "2 observed sites depend on its sources"),
}


@pytest.mark.parametrize(("make", "reason"), WHY_NOT.values(), ids=WHY_NOT.keys())
def test_says_why_a_model_is_no_linear_mix(linear, make, reason):
    found = mix_of(make(linear), linear.mix)
    assert isinstance(found, str)
    assert any(part in found for part in reason.split("|")), found


def test_gain_that_depends_on_the_level(linear):
    """All samples respond alike, so that only another point tells that it is not linear."""
    model = observed_by(linear, lambda a, b: a + b * b.detach().square().mean(-1, keepdim=True))
    assert mix_of(model, linear.mix) == "'mix' is not linear in its sources"


def test_sources_of_different_lengths_or_in_a_plate(linear):
    def lengths(mix=None):
        a, b = pyro.sample("a", linear.priors["a"]), pyro.sample("b", linear.priors["b"].frame(6))
        pyro.sample("mix", dist.Normal(a + torch.nn.functional.pad(b, (0, 2)), 0.5).to_event(1), obs=mix)

    def plate(mix=None):
        with pyro.plate("songs", 2):
            a, b = (pyro.sample(name, prior) for name, prior in linear.priors.items())
            pyro.sample("mix", dist.Normal(a + b, 0.5).to_event(1), obs=mix)

    assert mix_of(lengths, linear.mix) == "its sources differ in shape"
    assert mix_of(plate, linear.mix.expand(2, 8)) == "its sources stand in a plate"


def test_the_linear_neighbour_of_a_clipped_mix(linear):
    """Its gains are the slopes there, and its offset makes it agree with the mix at that point."""
    potential = Potential(soft_clipped_mix(linear.priors, 0.3), (linear.mix,), num_chains=3)
    a, b = torch.tensor([0.0, 0.3, -0.8]), torch.tensor([0.0, 0.1, 0.2])  # by chain, the same at all times
    values = {"a": a.unsqueeze(-1).expand(3, 8), "b": b.unsqueeze(-1).expand(3, 8)}
    found = linear_mix_of(potential, values, about=True)
    slope = 1 - torch.tanh(a + b) ** 2
    torch.testing.assert_close(found.gains, slope.reshape(3, 1, 1).expand(3, 2, 1), **CLOSE)
    left = linear.mix - torch.tanh(a + b).unsqueeze(-1)
    remainder = found.remainder(torch.stack([values["a"], values["b"]], 1))
    torch.testing.assert_close(remainder.squeeze(1), left, **CLOSE)


def test_the_linear_neighbour_of_a_linear_mix_is_itself(linear):
    potential = linear.potential(3)
    about, itself = (linear_mix_of(potential, potential.prior_draw, about=about) for about in (True, False))
    for name in ("observed", "gains", "noise"):
        torch.testing.assert_close(getattr(about, name), getattr(itself, name), **CLOSE)


@pytest.mark.parametrize("name", ["one alone", "heavy tails", "uneven noise", "two observations"])
def test_models_without_a_linear_neighbour(linear, name):
    make, reason = WHY_NOT[name]
    potential = Potential(make(linear), (linear.mix,), num_chains=3)
    found = linear_mix_of(potential, potential.prior_draw, about=True)
    assert isinstance(found, str)
    assert reason in found
