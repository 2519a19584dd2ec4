"""The encoder guide as a Pyro guide: shapes, densities, and what it runs under."""

import copy

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Importance, Predictive, Trace_ELBO
from torch.distributions import MultivariateNormal, constraints
from torch.nn import functional

from pyrosep import MALA, EncoderGuide, GaussianPrior, LangevinMCMC
from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides.bounds import over_mixes
from pyrosep.guides.config import config_of
from pyrosep.guides.projection import Projection
from pyrosep.mixing import linear_mix, mean_mix, pan_gains, panned_mix, unknown_gains_mix
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.refining import UNetSize

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


@pytest.mark.parametrize("size", [TINY, BandSize(window=16, bands=3, width=4, neck=4, layers=1)])
@pytest.mark.parametrize("project", [False, True])
def test_shifts_are_an_average_over_where_the_grid_begins(size, project):
    guide = stirred(EncoderGuide(names(2), size=size, project=project, shared=True))
    mix, half = torch.randn(3, 50), size.stride // 2
    level = mix.square().mean(-1).sqrt()[:, None, None]
    seen = mix.unsqueeze(1) / level
    with torch.no_grad():
        once, found = guide.encode(mix), guide.with_shifts(2).encode(mix)
        left, right = guide.encoders(functional.pad(seen, (0, half))), guide.encoders(functional.pad(seen, (half, 0)))
        mean, scale = (
            level * (one[..., :50] + other[..., half:]) / 2 for one, other in zip(left[:2], right[:2], strict=True)
        )
        torch.testing.assert_close(found[0], mean)
        torch.testing.assert_close(found[1], scale + guide.sigma_min.unsqueeze(-1))
        for same, one in zip(guide.with_shifts(1).encode(mix), once, strict=True):
            assert torch.equal(same, one)
        averaged = guide.with_shifts(2)
        assert (guide.shifts, averaged.shifts) == (1, 2)
        assert not torch.allclose(found[0], once[0], atol=1e-3)
        # Draws are of the same average.
        draws = averaged(mix.expand(2000, 3, 50))
        mean, deviation = averaged.moments(mix)
    for k, name in enumerate(names(2)):
        z = (draws[name].mean(0) - mean[:, k]) / deviation[:, k] * 2000**0.5
        assert float(z.abs().max()) < 5


@pytest.mark.parametrize("shifts", [0, 17])
def test_shifts_out_of_range(shifts):
    with pytest.raises(ConfigurationError, match=f"shifts must be from 1 to 16; got {shifts}"):
        EncoderGuide(names(2), size=TINY).with_shifts(shifts)


def test_silence_is_no_trouble():
    values = EncoderGuide(names(2), size=TINY, project=True)(torch.zeros(20))
    assert all(bool(torch.isfinite(value).all()) for value in values.values())


# --- the projection -----------------------------------------------------------------------------------------------


def dense(guide, mix, gains):
    """The joint Gaussian over the sources at each sample given gains ``(..., [channel,] source)``, by Kalman's gain."""
    mean, scale = (value.mT for value in guide.encode(mix))
    if guide.channels is None:
        gains, mix = gains.unsqueeze(-2), mix.unsqueeze(-2)
    gains = gains.unsqueeze(-3)  # (..., 1, channel, source)
    prior = torch.diag_embed(scale.square())
    total = gains @ prior @ gains.mT + guide.noise**2 * torch.eye(gains.shape[-2], dtype=mix.dtype)
    gain = torch.linalg.solve(total, gains @ prior).mT
    left = mix.mT - (gains @ mean.unsqueeze(-1)).squeeze(-1)
    return mean + (gain @ left.unsqueeze(-1)).squeeze(-1), prior - gain @ gains @ prior


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("channels", "project"),
    [
        (None, True),
        (None, (0.3, -1.2, 2.0)),
        (1, ((0.3, -1.2, 2.0),)),
        (2, True),
        (2, ((0.3, -1.2, 2.0), (0.5, 0.7, 0.0))),
        (4, tuple((0.3 * c, 1.0, 1.0 - c) for c in range(4))),
    ],
)
def test_the_projected_density_is_that_of_a_dense_gaussian(channels, project):
    guide = stirred(EncoderGuide(names(3), size=TINY, channels=channels, project=project, noise=0.2)).double()
    mix = torch.randn(2, *(() if channels is None else (channels,)), 19)
    mean, covariance = dense(guide, mix, guide.gains)
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


DRAWN = {
    "one channel, by name": (None, "gains", {"gains": ((3,), constraints.positive)}),
    "two channels, by name": (2, "gains", {"gains": ((2, 3), constraints.real)}),
    "two channels, by a function": (
        2,
        lambda values: values["level"][..., None, None] * pan_gains(values["pans"]),
        {"pans": ((3,), constraints.interval(-1.0, 1.0)), "level": ((), constraints.positive)},
    ),
}


def gains_of(guide, values):
    return values[guide.drawn] if isinstance(guide.drawn, str) else guide.drawn(values)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", DRAWN)
def test_with_drawn_gains_the_density_is_the_heads_times_that_given_them(case):
    """Under plates over draws and mixes, each draw with gains of its own."""
    channels, project, heads = DRAWN[case]
    guide = stirred(EncoderGuide(names(3), size=TINY, channels=channels, project=project, heads=heads, noise=0.2))
    mix = torch.randn(2, *(() if channels is None else (channels,)), 11)
    with pyro.plate("draws", 4, dim=-2):
        trace = poutine.trace(over_mixes(guide, 2)).get_trace(mix)
    trace.compute_log_prob()
    values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name in {*names(3), *heads}}
    gains = gains_of(guide, values)
    assert gains.shape[:2] == (4, 2)
    assert not torch.equal(gains[0], gains[1])
    mean, covariance = dense(guide, mix, gains)
    total = sum(trace.nodes[name]["log_prob"] for name in names(3))
    stacked = torch.stack([values[name] for name in names(3)], -1)
    torch.testing.assert_close(total, MultivariateNormal(mean, covariance).log_prob(stacked).sum(-1))
    assert all(trace.nodes[name]["log_prob"].shape == (4, 2) for name in heads)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", DRAWN)
def test_moments_are_those_at_the_medians_of_drawn_gains(case):
    channels, project, heads = DRAWN[case]
    guide = stirred(EncoderGuide(names(3), size=TINY, channels=channels, project=project, heads=heads, noise=0.2))
    mix = torch.randn(2, *(() if channels is None else (channels,)), 11)
    with torch.no_grad(), pyro.plate("draws", 4001, dim=-2):
        drawn = guide(mix)
    median = {name: drawn[name].median(0).values for name in heads}
    features, level = guide._encoded(mix)[2:]
    exact = {name: head.centre(features, level) for name, head in zip(guide.head_names, guide.heads, strict=True)}
    for name, value in exact.items():
        # The median of n draws lies at the quantiles 1/2 +- 4 / (2 sqrt n).
        low, high = (drawn[name].quantile(0.5 + sign * 2 / 4001**0.5, 0) for sign in (-1, 1))
        assert bool(((low <= value) & (value <= high)).all()), (median[name], value)
    mean, covariance = dense(guide, mix, gains_of(guide, exact))
    own_mean, own_scale = guide.moments(mix)
    torch.testing.assert_close(own_mean.mT, mean)
    torch.testing.assert_close(own_scale.mT, covariance.diagonal(dim1=-2, dim2=-1).sqrt())


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_in_single_precision_little_noise_is_still_noise(channels, order):
    """Noise of 1e-3 beside sources of 1, up to two channels with two sources from nearly the same place."""
    noise, count, time = 1e-3, 4, 500
    gains = torch.randn(channels, count)
    if channels < 3:
        gains[:, 1] = gains[:, 0] * 1.01 + 1e-3 * torch.randn(channels)
    gains, scale = gains[:, order], torch.rand(count, time) + 0.5
    mean, mix = torch.randn(count, time), torch.randn(channels, time)
    projection = Projection(mix, gains, mean, scale, noise)
    # The joint density in double precision: exp(-s' J s / 2 + h' s), of which any part given the others is a block.
    wide, own = gains.double(), scale.double().mT ** -2
    precision = torch.diag_embed(own) + wide.mT @ wide / noise**2
    linear = own * mean.double().mT + (wide.mT @ mix.double()).mT / noise**2
    known = torch.zeros(time, 0, dtype=torch.float64)
    # Means by their deviations: rounding of a mix of about 5 beside a deviation of down to noise is 3e-4, and the noise
    # of the draws before, up to 4 deviations, is rounded too. Deviations hold but positive numbers.
    close = {"atol": 1e-2, "rtol": 0.0}
    for k in range(count):
        marginal, deviation = projection.marginal(k)
        covariance = precision.inverse()
        spread = covariance[:, k, k].sqrt()
        centre = (covariance @ linear.unsqueeze(-1))[:, k, 0]
        torch.testing.assert_close(marginal / spread, centre / spread, **close)
        torch.testing.assert_close(deviation.double(), spread, rtol=1e-3, atol=0.0)
        rest = precision[:, k:, k:].inverse()
        pull = linear[:, k:] - (precision[:, k:, :k] @ known.unsqueeze(-1)).squeeze(-1)
        centre, spread = (rest @ pull.unsqueeze(-1))[:, 0, 0], rest[:, 0, 0].sqrt()
        loc, deviation = projection.given_those_before(k)
        torch.testing.assert_close(loc / spread, centre / spread, **close)
        torch.testing.assert_close(deviation.double(), spread, rtol=1e-3, atol=0.0)
        value = (centre + spread * torch.randn(time, dtype=torch.float64)).float()
        projection.know(k, value)
        known = torch.cat([known, value.double().unsqueeze(-1)], -1)


def test_projected_draws_have_the_moments_and_meet_the_mix(mean_agrees):
    guide = stirred(EncoderGuide(names(3), size=TINY, project=True, noise=0.02))
    mix = torch.randn(6)
    mean, covariance = dense(guide, mix, guide.gains)
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


def by_pans(values):
    return pan_gains(values["pans"])


@pytest.mark.parametrize(
    ("make", "project"),
    [
        (mean_mix, False),
        (unknown_gains_mix, False),
        (panned_mix, False),
        (mean_mix, True),
        (unknown_gains_mix, "gains"),
        (panned_mix, by_pans),
    ],
)
def test_for_a_model_it_has_the_models_sites(make, project):
    priors = white([1, 2])
    model = make(priors, noise=0.5)
    mix = model().detach()
    guide = EncoderGuide.for_model(model, mix, size=TINY, project=project, noise=0.5)
    with poutine.trace() as tracer:
        guide(mix)
    latent = set(poutine.trace(model).get_trace(mix).stochastic_nodes)
    assert set(tracer.trace.stochastic_nodes) == latent
    assert float(SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(mix)) > 0


def test_what_a_model_keeps_by_pyro_deterministic_is_no_observation():
    priors = white([1, 2])
    plain = mean_mix(priors, noise=0.5)

    def model(mix=None):
        return pyro.deterministic("total", plain(mix))

    mix = plain().detach()
    found, expected = (config_of(EncoderGuide.for_model(one, mix, size=TINY)) for one in (model, plain))
    assert found == expected


def test_gains_start_at_their_prior(mean_agrees):
    """By draws from the prior of log-gains, of deviation 6 dB."""
    model = unknown_gains_mix(white([1, 1, 1]), spread_db=6.0)
    guide = EncoderGuide.for_model(model, torch.randn(TIME), size=TINY)
    with torch.no_grad(), pyro.plate("draws", 4000):
        gains = guide(torch.randn(TIME))["gains"]
    # 256 draws of the prior set the start: its standard errors, at 4 of them.
    assert float(gains.log().mean(0).abs().max()) < 4 * 0.69 / 16
    assert float((gains.log().std(0) / 0.6908 - 1).abs().max()) < 4 / (2 * 256) ** 0.5 + 0.05


def test_draws_meet_the_mix_with_the_gains_drawn_beside_them():
    model = panned_mix(white([1, 2, 1]), noise=1e-3)
    mix = model().detach()
    guide = EncoderGuide.for_model(model, mix, size=TINY, project=by_pans, noise=1e-3)
    with torch.no_grad(), pyro.plate("draws", 50):
        values = guide(mix)
    sources = torch.stack([values[name] for name in names(3)], -2)
    left = mix - by_pans(values) @ sources
    # Of two channels and three sources of about 1: chi-square of what is left is at most that of the noise, 4 of its
    # deviations allowed; but the encoders' means are fitted no closer than their deviations.
    assert float((left / 1e-3).square().mean()) < 1.5
    assert float(values["pans"].std(0).min()) > 0.1


def test_means_start_at_what_the_mix_tells_of_equal_sources():
    fixed = EncoderGuide(names(2), size=TINY, project=(2.0, 1.0), noise=1e-3)
    torch.testing.assert_close(fixed.encoders.direct.detach(), torch.tensor([[0.4], [0.2]]))
    stereo = EncoderGuide(names(2), size=TINY, channels=2, project=((1.0, 0.0), (1.0, 1.0)))
    torch.testing.assert_close(stereo.encoders.direct.detach(), torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
    model = unknown_gains_mix(white([1, 1]), spread_db=1e-2)  # gains of 1
    drawn = EncoderGuide.for_model(model, torch.randn(TIME), size=TINY, project="gains")
    torch.testing.assert_close(drawn.encoders.direct.detach(), torch.tensor([[0.5], [0.5]]), rtol=1e-2, atol=0.0)


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
        ({"priors": ["a", "b"], "project": (1.0,)}, r"gains for \['a', 'b'\] of shape \(2,\), \(source,\)"),
        ({"priors": ["a", "b"], "project": (0.0, 0.0)}, "not all zero"),
        (
            {"priors": ["a", "b"], "channels": 2, "project": (1.0, 1.0)},
            r"of shape \(2, 2\), \(channel, source\).*got \(1\.0, 1\.0\)",
        ),
        ({"priors": ["a"], "project": "gains"}, "project='gains' names no head; this guide has none"),
        (
            {"priors": ["a", "b"], "project": "gains", "heads": {"gains": ((3,), constraints.positive)}},
            r"end in \(2,\), \(source,\); got \(3,\) from project='gains'",
        ),
        (
            {"priors": ["a", "b"], "channels": 2, "project": "gains", "heads": {"gains": ((2,), constraints.positive)}},
            r"end in \(2, 2\), \(channel, source\); got \(2,\)",
        ),
        ({"priors": ["a"], "project": lambda values: values["pans"]}, "looks for site 'pans'; the heads are none"),
        ({"priors": ["a"], "project": lambda values: 1.0}, "got float from project=<function"),
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
