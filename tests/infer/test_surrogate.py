"""The Gaussian of the sources given scalars, against dense linear algebra."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosep import GaussianPrior, OscillatorPrior
from pyrosep.infer import Potential, Surrogate
from pyrosep.mixing import panned_mix, sample_sources, soft_clipped_mix, unknown_gains_mix

TIME = 8
SPECTRA = ([2.0, 1.0, 0.5], [0.5, 1.0, 2.0], [1.0, 0.1, 1.0])


def priors_of(count):
    return {name: GaussianPrior(torch.tensor(row), TIME) for name, row in zip("abc"[:count], SPECTRA, strict=False)}


def echo_mix(priors):
    """Gains, an echo of unknown weight, an offset and an unknown noise level."""

    def model(mix=None):
        sources = sample_sources(priors)
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.3))
        dry = sources.sum(-2)
        mean = dry + weight.unsqueeze(-1) * dry.roll(3, -1) + 0.2
        return pyro.sample("mix", dist.Normal(mean, noise.unsqueeze(-1)).to_event(1), obs=mix)

    return model


def heard_mix(priors):
    """Gains of which something is known beside the mix."""

    def model(mix=None):
        sources = sample_sources(priors)
        gains = pyro.sample("gains", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
        pyro.sample("meter", dist.Normal(gains.log(), 0.2).to_event(1), obs=torch.tensor([0.3, -0.4]))
        mean = (gains.unsqueeze(-1) * sources).sum(-2)
        return pyro.sample("mix", dist.Normal(mean, 0.3).to_event(1), obs=mix)

    return model


MODELS = {
    "beside-the-mix": (heard_mix, 2),
    "gains": (lambda priors: unknown_gains_mix(priors, 0.3), 3),
    "pans": (lambda priors: panned_mix(priors, 0.3), 3),
    "echo": (echo_mix, 2),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def known(request, double):
    """A potential, its surrogate, two values of the scalars, and at each the exact Gaussian and log marginal."""
    make, count = request.param
    model = make(priors_of(count))  # in double precision
    mix = pyro.poutine.trace(model).get_trace().nodes["mix"]["value"].detach()
    potential = Potential(model, (mix,), num_chains=2)
    scalars = [name for name in potential.placeholder if name not in potential.priors]
    surrogate = Surrogate(potential, scalars)
    assert surrogate.reason is None
    return potential, surrogate, [dict(Potential(model, (mix,), num_chains=2).prior_draw) for _ in range(2)], count


def dense(potential, values, count, chain):
    """Mean and covariance of the sources given the scalars, and the log-density of scalars and mix, of one chain."""
    names = list(potential.priors)

    def mean_of(sources):
        at = values | {name: values[name].clone() for name in names}
        for k, name in enumerate(names):
            at[name][chain] = sources[k]
        return potential.run(at).nodes["mix"]["fn"].mean[chain].reshape(-1)

    zero = torch.zeros(count, TIME)
    offset = mean_of(zero)
    columns = [mean_of(unit.reshape(count, TIME)) - offset for unit in torch.eye(count * TIME)]
    mixing = torch.stack(columns, 1)
    nodes = potential.run(values).nodes
    noise = float(nodes["mix"]["fn"].stddev[chain].reshape(-1)[0])
    blocks = []
    for prior in potential.priors.values():
        kernel = torch.fft.irfft(prior.variance(zero), n=TIME)
        blocks.append(torch.stack([kernel.roll(shift) for shift in range(TIME)]))
    prior = torch.block_diag(*blocks)
    total = mixing @ prior @ mixing.mT + noise**2 * torch.eye(len(mixing))
    residual = nodes["mix"]["value"].reshape(-1) - offset
    gain = prior @ mixing.mT @ torch.linalg.inv(total)
    marginal = dist.MultivariateNormal(torch.zeros(len(total)), total).log_prob(residual)
    for name in potential.observed:
        if name != "mix":
            marginal = marginal + nodes[name]["fn"].log_prob(nodes[name]["value"])[chain]
    for name in values:
        if name not in names:
            to_unconstrained = potential.transforms[name]
            value = values[name]
            volume = to_unconstrained.log_abs_det_jacobian(value, to_unconstrained(value))
            marginal = marginal + (nodes[name]["fn"].log_prob(value).reshape(2, -1).sum(-1))[chain]
            marginal = marginal - volume.reshape(2, -1).sum(-1)[chain]
    return gain @ residual, prior - gain @ mixing @ prior, marginal


def test_transport_takes_one_posterior_to_the_other(known):
    """An affine map with the right image of the mean and of the covariance, whose log-determinant is autograd's."""
    potential, surrogate, (one, other), count = known
    here, there = surrogate.given(one), surrogate.given(other)
    names = list(potential.priors)

    def moved(flat):
        values = {name: flat.reshape(2, count, TIME)[:, k] for k, name in enumerate(names)}
        return torch.stack(list(surrogate.transport(values, here, there)[0].values()), 1)

    zero = torch.zeros(2, count, TIME)
    jacobian = torch.autograd.functional.jacobian(moved, zero.reshape(-1)).reshape(2, count * TIME, 2, count * TIME)
    log_det = surrogate.transport({name: zero[:, k] for k, name in enumerate(names)}, here, there)[1]
    for chain in range(2):
        mean, covariance, _ = dense(potential, one, count, chain)
        wanted_mean, wanted, _ = dense(potential, other, count, chain)
        matrix = jacobian[chain, :, chain]
        shift = moved(zero.reshape(-1))[chain].reshape(-1)
        torch.testing.assert_close(matrix @ mean + shift, wanted_mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(matrix @ covariance @ matrix.mT, wanted, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(torch.linalg.slogdet(matrix)[1], log_det[chain], rtol=1e-8, atol=1e-8)


def test_the_way_back_is_the_inverse(known):
    _, surrogate, (one, other), _ = known
    here, there = surrogate.given(one), surrogate.given(other)
    moved, log_det = surrogate.transport(one, here, there)
    back, log_det_back = surrogate.transport(moved, there, here)
    for name, value in back.items():
        torch.testing.assert_close(value, one[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det, -log_det_back)


def test_the_marginal_density_is_that_of_the_data(known):
    """Up to one constant, here between two values of the scalars."""
    potential, surrogate, (one, other), count = known
    found = surrogate.log_marginal(one) - surrogate.log_marginal(other)
    for chain in range(2):
        wanted = dense(potential, one, count, chain)[2] - dense(potential, other, count, chain)[2]
        torch.testing.assert_close(found[chain], wanted, rtol=1e-8, atol=1e-8)


def test_the_root_and_its_inverse(known):
    _, surrogate, (one, _), count = known
    given = surrogate.given(one)
    x = torch.randn(2, count, TIME // 2 + 1) + 0j
    torch.testing.assert_close(given.inverse_root(given.root(x)), x, rtol=1e-9, atol=1e-9)


def test_other_priors_are_taken_by_their_spectra(double):
    priors = {"saw": OscillatorPrior("saw", frame=16, periods=(4, 5)), "white": GaussianPrior(torch.ones(2), 16)}
    potential = Potential(unknown_gains_mix(priors), (torch.randn(16),), num_chains=3)
    surrogate = Surrogate(potential, ["gains"])
    assert surrogate.reason is None
    torch.testing.assert_close(surrogate.power[1], torch.full((9,), 1.0 + 1e-6))


def masked(mix=None):
    """A gap, which is a noise that changes over time, leaves the mean as it is."""
    source = pyro.sample("a", GaussianPrior(torch.ones(2), TIME))
    gain = pyro.sample("gain", dist.LogNormal(0.0, 0.5)).unsqueeze(-1)
    scale = torch.tensor([0.1] * 4 + [10.0] * 4)
    pyro.sample("mix", dist.Normal(gain * source, scale).to_event(1), obs=mix)


def faded(mix=None):
    source = pyro.sample("a", GaussianPrior(torch.ones(2), TIME))
    gain = pyro.sample("gain", dist.LogNormal(0.0, 0.5)).unsqueeze(-1)
    pyro.sample("mix", dist.Normal(gain * source * torch.linspace(0, 1, TIME), 0.1).to_event(1), obs=mix)


def shorter(mix=None):
    source = pyro.sample("a", GaussianPrior(torch.ones(2), TIME))
    pyro.sample("mix", dist.Normal(source[..., :4], 0.1).to_event(1), obs=mix)


def no_source(mix=None):
    pyro.sample("gain", dist.Normal(0.0, 1.0))
    pyro.sample("mix", dist.Normal(torch.zeros(TIME), 1.0).to_event(1), obs=mix)


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        (soft_clipped_mix(priors_of(2)), TIME, "not a linear"),
        (faded, TIME, "not a linear"),
        (shorter, 4, "as many samples"),
        (no_source, TIME, "no source"),
    ],
)
def test_where_there_is_none_it_says_why(model, size, reason, double):
    potential = Potential(model, (torch.randn(size),), num_chains=2)
    assert reason in (Surrogate(potential, []).reason or "")


def test_noise_that_changes_over_time_counts_by_its_mean_precision(double):
    potential = Potential(masked, (torch.randn(TIME),), num_chains=2)
    surrogate = Surrogate(potential, ["gain"])
    values = dict(potential.prior_draw)
    precision = surrogate.given(values).coupling.square()[:, 0, 0] / (values["gain"].reshape(-1, 1).square())
    wanted = (0.5 / 0.1**2 + 0.5 / 10.0**2) * surrogate.power[0]
    torch.testing.assert_close(precision, wanted.expand(2, -1))
