"""The encoder guide as a Pyro guide: shapes, densities, and what it runs under."""

import copy

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Importance, Predictive, Trace_ELBO
from torch.distributions import MultivariateNormal, constraints

from pyrosep import MALA, EncoderGuide, GaussianPrior, LangevinMCMC
from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides import UNetSize
from pyrosep.guides.bounds import over_mixes
from pyrosep.mixing import linear_mix, mean_mix, panned_mix, unknown_gains_mix

TINY = UNetSize(hop=4, width=6, levels=2, layers=2)
TIME = 32


def names(count):
    return [f"source {k}" for k in range(count)]


def stirred(guide, size=0.3):
    """The guide with weights that are no longer where they started."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return guide


def white(powers, time=TIME):
    return {f"source {k}": GaussianPrior(torch.full((2,), float(p)), time) for k, p in enumerate(powers)}


# --- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("count", "project"), [(1, False), (1, True), (2, True), (5, False), (5, True)])
def test_any_number_of_sources_any_frame_any_batch(count, project, shared):
    guide = EncoderGuide(names(count), shared=shared, size=TINY, project=project)
    for shape in [(1,), (64,), (65,), (3, 50), (2, 3, 17)]:
        values = guide(torch.randn(shape))
        assert list(values) == names(count)
        assert {tuple(value.shape) for value in values.values()} == {shape}
        mean, scale = guide.moments(mix=torch.randn(shape))
        assert mean.shape == scale.shape == (*shape[:-1], count, shape[-1])


def test_a_mix_of_channels():
    guide = EncoderGuide(names(3), size=TINY, channels=2)
    assert guide(torch.randn(4, 2, 33))["source 1"].shape == (4, 33)
    with pytest.raises(ShapeError, match=r"expected a mix of shape \(\.\.\., 2, time\).*got \(4, 33\)"):
        guide(torch.randn(4, 33))


@pytest.mark.parametrize("shared", [False, True])
def test_mixes_of_a_batch_do_not_meet(shared):
    guide = stirred(EncoderGuide(names(2), shared=shared, size=TINY, project=True)).requires_grad_(False)
    mix = torch.randn(3, 50, requires_grad=True)
    for of in guide.moments(mix):
        for item in range(3):
            (gradient,) = torch.autograd.grad(of[item].sum(), mix, retain_graph=True)
            assert bool(gradient[item].any())
            assert not bool(gradient[torch.arange(3) != item].any())


def test_follows_the_level_of_the_mix():
    """All but the floor of the deviations; in single precision, through a dozen layers."""
    guide = stirred(EncoderGuide(names(2), size=TINY, sigma_min=0.0))
    mix = torch.randn(50)
    for soft, loud in zip(guide.encode(mix), guide.encode(100 * mix), strict=True):
        torch.testing.assert_close(loud, 100 * soft, rtol=1e-3, atol=1e-3)


def test_deviations_have_a_floor_and_a_temperature():
    guide = stirred(EncoderGuide(names(2), size=TINY, sigma_min=(0.5, 0.25)), 3.0).requires_grad_(False)
    scale = guide.encode(1e-3 * torch.randn(64))[1]
    assert bool((scale >= torch.tensor([[0.5], [0.25]])).all())
    guide.temperature.copy_(torch.tensor([2.0, 3.0]))
    hot = guide.encode(1e-3 * torch.randn(64))[1]
    assert float(hot[0].min()) >= 1.0
    assert float(hot[1].min()) >= 0.75
    prior = GaussianPrior(torch.ones(2), 8, sigma_min=0.125)
    assert EncoderGuide({"a": prior}, size=TINY).sigma_min.tolist() == [0.125]


def test_silence_is_no_trouble():
    values = EncoderGuide(names(2), size=TINY, project=True)(torch.zeros(20))
    assert all(bool(torch.isfinite(value).all()) for value in values.values())


# --- the projection -----------------------------------------------------------------------------------------------


def dense(guide, mix):
    """The joint Gaussian over the sources at each sample, by the update for one observation."""
    mean, scale = (value.mT for value in guide.encode(mix))
    gains = guide.gains
    prior = torch.diag_embed(scale.square())
    total = torch.einsum("i,...ij,j->...", gains, prior, gains) + guide.noise**2
    gain = prior @ gains / total.unsqueeze(-1)
    mean = mean + gain * (mix - mean @ gains).unsqueeze(-1)
    covariance = prior - total[..., None, None] * gain.unsqueeze(-1) * gain.unsqueeze(-2)
    return mean, covariance


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("project", [True, (0.3, -1.2, 2.0)])
def test_the_projected_density_is_that_of_a_dense_gaussian(project):
    guide = stirred(EncoderGuide(names(3), size=TINY, project=project, noise=0.2)).double()
    mix = torch.randn(2, 19)
    mean, covariance = dense(guide, mix)
    values = {name: torch.randn(2, 19) for name in names(3)}
    trace = poutine.trace(over_mixes(poutine.condition(guide, values), 2)).get_trace(mix)
    trace.compute_log_prob()
    total = sum(trace.nodes[name]["log_prob"] for name in names(3))
    stacked = torch.stack([values[name] for name in names(3)], -1)
    # Two closed forms in double precision: rounding.
    torch.testing.assert_close(total, MultivariateNormal(mean, covariance).log_prob(stacked).sum(-1))
    own_mean, own_scale = guide.moments(mix)
    torch.testing.assert_close(own_mean.mT, mean)
    torch.testing.assert_close(own_scale.mT, covariance.diagonal(dim1=-2, dim2=-1).sqrt())


def test_projected_draws_have_the_moments_and_meet_the_mix(mean_agrees):
    guide = stirred(EncoderGuide(names(3), size=TINY, project=True, noise=0.02))
    mix = torch.randn(6)
    mean, covariance = dense(guide, mix)
    with torch.no_grad(), pyro.plate("draws", 4000):
        values = guide(mix)
    draws = torch.stack([values[name] for name in names(3)], -1)
    mean_agrees(draws, mean.detach())
    deviation = draws - mean.detach()
    mean_agrees(deviation.unsqueeze(-1) * deviation.unsqueeze(-2), covariance.detach())
    # What is left of the mix is at most the observation noise about the shrunken residual of the means.
    left = mix - draws.mean(-1)
    assert float(left.std(0).max()) < 0.02 * 1.05
    assert float(left.mean(0).abs().max()) < 0.02


# --- other sites --------------------------------------------------------------------------------------------------


def test_heads_keep_to_their_support():
    supports = {
        "gains": ((3,), constraints.positive),
        "pans": ((2,), constraints.interval(-1.0, 1.0)),
        "weights": ((4,), constraints.simplex),
        "offset": ((), constraints.real),
        "rotation": ((2, 2), constraints.real),
    }
    guide = stirred(EncoderGuide(names(2), size=TINY, heads=supports), 0.5)
    trace = poutine.trace(over_mixes(guide, 5)).get_trace(torch.randn(5, 40))
    trace.compute_log_prob()
    for name, (shape, support) in supports.items():
        site = trace.nodes[name]
        assert site["value"].shape == (5, *shape)
        assert bool(support.check(site["value"]).all())
        assert site["log_prob"].shape == (5,)


@pytest.mark.parametrize("make", [mean_mix, unknown_gains_mix, panned_mix], ids=lambda make: make.__name__)
def test_for_a_model_it_has_the_models_sites(make):
    priors = white([1, 2])
    model = make(priors, noise=0.5)
    mix = model().detach()
    guide = EncoderGuide.for_model(model, mix, size=TINY)
    with poutine.trace() as tracer:
        guide(mix)
    latent = set(poutine.trace(model).get_trace(mix).stochastic_nodes)
    assert set(tracer.trace.stochastic_nodes) == latent
    assert float(SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(mix)) > 0


def test_gains_start_at_their_prior(mean_agrees):
    """By draws from the prior of log-gains, of deviation 6 dB."""
    model = unknown_gains_mix(white([1, 1, 1]), spread_db=6.0)
    guide = EncoderGuide.for_model(model, torch.randn(TIME), size=TINY)
    with torch.no_grad(), pyro.plate("draws", 4000):
        gains = guide(torch.randn(TIME))["gains"]
    # 256 draws of the prior set the start: its standard errors, at 4 of them.
    assert float(gains.log().mean(0).abs().max()) < 4 * 0.69 / 16
    assert float((gains.log().std(0) / 0.6908 - 1).abs().max()) < 4 / (2 * 256) ** 0.5 + 0.05


# --- under Pyro ---------------------------------------------------------------------------------------------------


@pytest.fixture
def linear():
    model = mean_mix(white([4, 0.5]), noise=0.5)
    return model, model().detach()


@pytest.mark.parametrize("project", [False, True])
def test_under_svi_predictive_and_importance(linear, project):
    model, mix = linear
    guide = EncoderGuide(white([4, 0.5]), size=TINY, project=project, noise=0.5)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    assert all(bool(torch.isfinite(torch.tensor([svi.step(mix), svi.step(mix=mix)])).all()) for _ in range(2))
    assert any(not torch.equal(old, new) for old, new in zip(before, guide.parameters(), strict=True))
    for parallel in (False, True):
        draws = Predictive(model, guide=guide, num_samples=3, parallel=parallel)(mix)
        assert draws["source 1"].reshape(3, TIME).shape == (3, TIME)
    importance = Importance(model, guide, num_samples=5).run(mix)
    assert bool(torch.isfinite(torch.stack(importance.log_weights)).all())
    trace = poutine.trace(guide).get_trace(mix)
    replayed = poutine.trace(poutine.replay(guide, trace)).get_trace(mix)
    torch.testing.assert_close(replayed.log_prob_sum(), trace.log_prob_sum())


def test_starts_chains(linear):
    model, mix = linear
    guide = EncoderGuide(white([4, 0.5]), size=TINY, project=True, noise=0.5)
    run = LangevinMCMC(MALA(model), num_samples=3, warmup_steps=5, num_chains=4, init=guide, seed=0).run(mix)
    assert run.get_samples()["source 0"].shape == (12, TIME)


def test_svi_finds_the_exact_posterior_mean_of_a_linear_gaussian_model():
    r"""White sources in white noise: the mean is the mix by :math:`P_k a / (a^2 \sum_j P_j + r)`, and the deviation of
    the best independent Gaussians :math:`(1/P_k + a^2/r)^{-1/2}`."""
    powers, noise = torch.tensor([4.0, 0.5]), 0.5
    model = mean_mix(white(powers, 16), noise=noise)
    guide = EncoderGuide(white(powers, 16), size=UNetSize(hop=1, width=4, levels=0, layers=1))
    draw = over_mixes(model, 32)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / 400)})
    svi = SVI(over_mixes(model, 32), over_mixes(guide, 32), optimizer, Trace_ELBO())
    for _ in range(400):
        svi.step(draw().detach())
    mix = over_mixes(model, 200)().detach()
    with torch.no_grad():
        mean, scale = guide.moments(mix)
    exact = powers * 0.5 / (0.25 * powers.sum() + noise**2)
    error = mean - exact.unsqueeze(-1) * mix.unsqueeze(-2)
    assert float(error.square().mean().sqrt() / mix.square().mean().sqrt()) < 0.1  # at the start 0.66
    best = (1 / powers + 0.25 / noise**2) ** -0.5
    torch.testing.assert_close(scale.mean((0, 2)), best, rtol=0.1, atol=0.0)


def test_copies_are_guides_of_their_own(linear):
    model, mix = linear
    guide = EncoderGuide(white([4, 0.5]), size=TINY)
    twin = copy.deepcopy(guide)
    for one in (guide, twin):
        before = [parameter.detach().clone() for parameter in one.parameters()]
        SVI(model, one, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(mix)
        assert any(not torch.equal(old, new) for old, new in zip(before, one.parameters(), strict=True))


@pytest.mark.gpu
def test_moves_to_a_device():
    guide = EncoderGuide(names(2), size=TINY, project=True, heads={"gains": ((2,), constraints.positive)})
    values = guide.to("cuda")(torch.randn(3, 40, device="cuda"))
    assert all(value.is_cuda for value in values.values())


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priors": []}, "one or more sources"),
        ({"priors": ["a", "a"]}, "different names"),
        ({"priors": "bass"}, "list of names; got the string 'bass'"),
        ({"priors": ["a"], "heads": {"a": ((), constraints.real)}}, "different names"),
        ({"priors": ["a"], "channels": 0}, "channels must be at least 1"),
        ({"priors": ["a"], "channels": 2, "project": True}, "a mix of one channel"),
        ({"priors": ["a", "b"], "project": (1.0,)}, r"expected gains for \['a', 'b'\]"),
        ({"priors": ["a"], "project": True, "noise": 0.0}, "noise must be positive"),
        ({"priors": ["a", "b"], "sigma_min": (1.0, 2.0, 3.0)}, "one for each"),
        ({"priors": ["a"], "heads": {"n": ((), constraints.nonnegative_integer)}}, "a head needs a support"),
    ],
)
def test_arguments_that_make_no_guide(arguments, message):
    with pytest.raises((ConfigurationError, ShapeError), match=message):
        EncoderGuide(**arguments)


def test_wrong_input():
    guide = EncoderGuide(names(2), size=TINY)
    with pytest.raises(ConfigurationError, match="needs the mix"):
        guide()
    for wrong in (torch.zeros(()), torch.zeros(0), torch.zeros(4, dtype=torch.int64), [0.0]):
        with pytest.raises(ShapeError):
            guide(wrong)
    with pytest.raises(ConfigurationError, match="U-Net needs"):
        UNetSize(width=0)


def test_models_that_it_can_not_be_the_guide_of():
    priors = white([1, 1])

    def plated(mix):
        with pyro.plate("which", 2):
            pyro.sample("gain", pyro.distributions.LogNormal(0.0, 1.0))
        linear_mix(priors)(mix)

    def discrete(mix):
        pyro.sample("on", pyro.distributions.Bernoulli(0.5))
        linear_mix(priors)(mix)

    def without(mix):
        pyro.sample("mix", pyro.distributions.Normal(0.0, 1.0).expand(mix.shape).to_event(1), obs=mix)

    for model, message in (
        (plated, "'gain' stands in a plate"),
        (discrete, "'on' is discrete"),
        (without, "source priors as sites"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            EncoderGuide.for_model(model, torch.randn(TIME), size=TINY)
