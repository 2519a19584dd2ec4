"""Joint moves of scalars and sources: against marginals that are known, and against the equation of each move."""

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyrosep import MALA, SGLD, GaussianPrior, GibbsMALA, LangevinMCMC, OscillatorPrior
from pyrosep.diagnostics import sbc
from pyrosep.errors import ConfigurationError
from pyrosep.infer import Potential, ScalarMoves
from pyrosep.infer.scales import Scale, find_scales, rescaled
from pyrosep.mixing import panned_mix, sample_sources, soft_clipped_mix, unknown_gains_mix
from pyrosep.signal.spectra import full_sum


def two_bands(time, floor=1e-3):
    frequency = torch.linspace(0, 1, 65)
    return {
        "low": GaussianPrior(floor + torch.exp(-10 * frequency), time),
        "high": GaussianPrior(floor + torch.exp(-10 * (1 - frequency)), time),
    }


def mixed(model, gains, seed=0):
    torch.manual_seed(seed)
    return pyro.condition(model, {"gains": torch.tensor(gains)})().detach()


def marginal_on_a_grid(priors, mix, noise, cells=120):
    """Mean and deviation of the logarithms of two gains, by the midpoint rule on a grid over six prior deviations."""
    spread = 6.0 / 20 * np.log(10)
    power = torch.stack([prior.variance(mix) for prior in priors.values()]).double()
    seen = torch.fft.rfft(mix.double()).abs().square() / len(mix)
    axis = 3 * spread * (2 * (torch.arange(cells) + 0.5) / cells - 1).double()
    grid = torch.cartesian_prod(axis, axis)
    total = (2 * grid).exp() @ power + noise**2
    log_density = -0.5 * full_sum(total.log() + seen / total, len(mix)) - 0.5 * (grid / spread).square().sum(-1)
    weight = log_density.softmax(0).unsqueeze(-1)
    mean = (weight * grid).sum(0)
    return mean, (weight * (grid - mean).square()).sum(0).sqrt()


# --- what they give ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda model: ScalarMoves(MALA(model)),
        lambda model: ScalarMoves(MALA(model, preconditioner="prior"), moves=2),
        lambda model: ScalarMoves(MALA(model), scales={"gains": ["low", "high"]}),
    ],
    ids=["default", "another-preconditioner", "with-rescaling"],
)
def test_gains_have_their_marginal_posterior(make, double, mean_agrees):
    """The last draws of 1,500 chains, which are independent, against the marginal on a grid."""
    priors = two_bands(16)
    model = unknown_gains_mix(priors, noise=0.3)
    mix = mixed(model, [1.5, 0.5])
    mean, deviation = marginal_on_a_grid(priors, mix, 0.3)
    mcmc = LangevinMCMC(make(model), 1, 40, num_chains=1500, thinning=10, init="mix", seed=0).run(mix)
    draws = mcmc.get_samples()["gains"].log()
    mean_agrees(draws, mean)
    mean_agrees((draws - mean).square(), deviation.square())


@pytest.mark.parametrize("time", [1024, pytest.param(16_384, marks=pytest.mark.slow)])
def test_chains_meet_in_long_frames(time):
    """Sharp observations: R-hat of gains and levels within 210 steps, and Gaussian priors accept nearly all."""
    model = unknown_gains_mix(two_bands(time), noise=0.01)
    mix = mixed(model, [1.5, 0.5])
    kernel = ScalarMoves(MALA(model))
    mcmc = LangevinMCMC(kernel, 150, 60, num_chains=4, init="mix", seed=0, disable_progbar=True).run(mix)
    draws = mcmc.get_samples(group_by_chain=True)
    levels = [draws[name].square().mean(-1) for name in ("low", "high")]
    for values in (*draws["gains"].unbind(-1), *levels):
        assert float(arviz.rhat(values.numpy())) < 1.05
    found = mcmc.diagnostics()
    assert found["acceptance of transport"] > 0.99  # it is one but for rounding to single precision
    assert found["acceptance rate"] > 0.95
    assert "acceptance of rescaling" not in found


def test_without_the_moves_chains_do_not_meet():
    """So that the test above can fail: MALA alone, as many steps."""
    model = unknown_gains_mix(two_bands(1024), noise=0.01)
    mix = mixed(model, [1.5, 0.5])
    mcmc = LangevinMCMC(MALA(model), 150, 60, num_chains=4, init="mix", seed=0, disable_progbar=True).run(mix)
    gains = mcmc.get_samples(group_by_chain=True)["gains"]
    assert float(arviz.rhat(gains[..., 0].numpy())) > 1.5


@pytest.mark.slow
def test_calibration_of_short_frames(double):
    """400 simulations of 16 samples: gains, sources and the likelihood, at a false-alarm rate of 1e-4."""
    model = unknown_gains_mix(two_bands(16), noise=0.1)
    found = sbc(model, ScalarMoves(MALA(model)), simulations=400, warmup_steps=100, thinning=4)
    assert {"gains[0]", "gains[1]"} <= set(found.names)
    assert found.rejected() == {}, found.table()


@pytest.mark.slow
def test_calibration_of_pans_and_of_an_unknown_noise_level(double):
    def noise_level(mix=None):
        sources = sample_sources(two_bands(16))
        level = pyro.sample("level", dist.LogNormal(-1.5, 0.7)).unsqueeze(-1)
        pyro.sample("mix", dist.Normal(sources.sum(-2), level).to_event(1), obs=mix)

    for model in (panned_mix(two_bands(16), noise=0.1), noise_level):
        found = sbc(model, ScalarMoves(MALA(model)), simulations=400, warmup_steps=100, thinning=4)
        assert found.rejected() == {}, found.table()


@pytest.mark.parametrize("noise", [0.3, 0.05])
def test_the_posterior_stays_as_it_is_where_priors_are_not_gaussian(noise, double, mean_agrees):
    """A wave of unknown period beside a Gaussian. Chains start from the truth, a draw of their own posterior, and after
    some steps are another one: means over the chains don't change, of functions of gains, sources and mix."""
    wave = OscillatorPrior("square", frame=16, periods=(5, 8), sigma_min=0.1)
    model = unknown_gains_mix({"wave": wave, "hiss": GaussianPrior(0.1 * torch.ones(2), 16)}, noise=noise)
    with torch.no_grad():
        drawn = Potential(model, (), {}, num_chains=3000).run().nodes
    start = {name: drawn[name]["value"].detach() for name in ("wave", "hiss", "gains")}
    mixes = drawn["mix"]["value"].detach()
    kernel = ScalarMoves(MALA(model, 0.05, preconditioner="measured"), moves=2)
    mcmc = LangevinMCMC(kernel, 1, 0, thinning=12, num_chains=3000, init=start, seed=0, disable_progbar=True).run(mixes)
    end = mcmc.get_samples()

    def functions(values):
        left = mixes - (values["gains"].unsqueeze(-1) * torch.stack([values["wave"], values["hiss"]], 1)).sum(1)
        levels = [values[name].square().mean(-1) for name in ("wave", "hiss")]
        logs = values["gains"].log()
        columns = [*logs.unbind(-1), *logs.square().unbind(-1), logs.prod(-1), *levels, left.square().mean(-1)]
        return torch.stack([*columns, logs[:, 0] * levels[0], (mixes * values["wave"]).mean(-1)], -1)

    mean_agrees(functions(end) - functions(start), torch.zeros(10))
    moved = (end["gains"].log() - start["gains"].log()).std(0)
    assert bool((moved > 0.05).all()), moved
    seen = kernel.diagnostics()
    assert 0.05 < seen["acceptance of transport"] < 0.95
    assert 0.05 < seen["acceptance of rescaling"] < 0.95


@pytest.mark.slow
def test_it_agrees_with_nuts(agree):
    """Means and deviations of the logarithms of gains, 64 samples; standard errors by the effective sample sizes."""
    model = unknown_gains_mix(two_bands(64), noise=0.2)
    mix = mixed(model, [1.5, 0.5])
    stock = MCMC(NUTS(model), num_samples=300, warmup_steps=150, disable_progbar=True)
    pyro.set_rng_seed(1)
    stock.run(mix)
    nuts = stock.get_samples()["gains"].log().unsqueeze(0)
    mcmc = LangevinMCMC(ScalarMoves(MALA(model)), 500, 100, num_chains=4, init="mix", seed=0).run(mix)
    moves = mcmc.get_samples(group_by_chain=True)["gains"].log()

    def moments(draws):
        means, errors = [], []
        for values in (draws, (draws - nuts.mean((0, 1))).square()):
            size = np.array([float(arviz.ess(column.numpy(), method="mean")) for column in values.unbind(-1)])
            means.append(values.mean((0, 1)).numpy())
            errors.append(values.std((0, 1)).numpy() / np.sqrt(np.minimum(size, values[..., 0].numel())))
        return np.stack(means), np.stack(errors)

    (one, one_error), (other, other_error) = moments(nuts), moments(moves)
    agree(one, other, np.hypot(one_error, other_error))


# --- one move ----------------------------------------------------------------------------------------------------


def test_rescaling_is_its_equation(double):
    """The product stays, and the log-volume is that of autograd's Jacobian: of a gain of one, and of one of two."""
    values = {"gains": torch.rand(3, 2) + 0.5, "volume": torch.rand(3) + 0.5}
    values |= {name: torch.randn(3, 4) for name in "ab"}
    scales = [Scale("gains", 1, ("b",)), Scale("volume", 0, ("a", "b"))]
    log_factor = torch.randn(3, 2)
    moved, volume = rescaled(values, scales, log_factor, 3)
    c, d = log_factor.exp().unbind(-1)
    torch.testing.assert_close(moved["gains"], values["gains"] * torch.stack([torch.ones(3), c], -1))
    torch.testing.assert_close(moved["volume"], values["volume"] * d)
    torch.testing.assert_close(moved["a"], values["a"] / d.unsqueeze(-1))
    torch.testing.assert_close(moved["b"], values["b"] / (c * d).unsqueeze(-1))

    def of_first(flat):
        parts = dict(zip(("gains", "volume", "a", "b"), flat.split([2, 1, 4, 4]), strict=True))
        own = {name: part.reshape(1, *values[name].shape[1:]) for name, part in parts.items()}
        return torch.cat([value.reshape(-1) for value in rescaled(own, scales, log_factor[:1], 1)[0].values()])

    jacobian = torch.autograd.functional.jacobian(of_first, torch.rand(11))
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], volume[0])


def test_a_rescaling_is_accepted_by_the_density_in_the_scalars_own_space(double):
    """By hand: log p(c g, s / c) - log p(g, s) + (1 - dim s) log c, of a model that can't be transported."""

    def model(mix=None):
        source = pyro.sample("a", GaussianPrior(torch.ones(2), 4))
        gain = pyro.sample("gain", dist.Gamma(3.0, 2.0)).unsqueeze(-1)
        pyro.sample("mix", dist.Normal(torch.tanh(gain * source), 0.1).to_event(1), obs=mix)

    mix = 0.3 * torch.randn(4)
    kernel = ScalarMoves(SGLD(model, 1e-12, temperature=0.0))
    potential = Potential(model, (mix,), num_chains=500)
    kernel.start(potential, 100, potential.unconstrain(potential.prior_draw))
    assert kernel.surrogate is None
    assert kernel.scales == [Scale("gain", 0, ("a",))]
    z = kernel.state.z
    torch.manual_seed(5)
    step = kernel._rescaling.propose()
    torch.manual_seed(5)
    before = kernel._rescaling.log_scale
    kernel.sample(z)
    values = potential.constrain(z)
    changed = {"gain": values["gain"] * step[:, 0].exp(), "a": values["a"] / step.exp()}

    def log_density(at):
        own = dist.Gamma(3.0, 2.0).log_prob(at["gain"]) + GaussianPrior(torch.ones(2), 4).log_prob(at["a"])
        return own + dist.Normal(torch.tanh(at["gain"].unsqueeze(-1) * at["a"]), 0.1).log_prob(mix).sum(-1)

    wanted = (log_density(changed) - log_density(values) + (1 - 4) * step[:, 0]).exp().clamp(max=1.0)
    # The first step of the adaptation takes the acceptance as it is.
    torch.testing.assert_close(kernel._rescaling.log_scale - before + kernel._rescaling.target, wanted)
    new = potential.constrain(kernel.state.z)
    took = (new["gain"] / values["gain"] - 1).abs() > 1e-9
    torch.testing.assert_close(new["gain"][took], changed["gain"][took])
    torch.testing.assert_close(new["a"][took], changed["a"][took], rtol=0, atol=1e-9)
    torch.testing.assert_close(new["a"][~took], values["a"][~took], rtol=0, atol=1e-9)
    assert 0 < int(took.sum()) < 500


def test_a_transport_is_accepted_by_the_marginals(double):
    """Gaussian priors: the energy and the log-determinant come to the ratio of marginals, so that all are accepted."""
    model = unknown_gains_mix(two_bands(16), noise=0.1)
    potential = Potential(model, (mixed(model, [1.5, 0.5]).double(),), num_chains=50)
    kernel = ScalarMoves(SGLD(model, 1e-12, temperature=0.0))
    kernel.start(potential, 0, potential.unconstrain(potential.prior_draw))
    before = kernel.state.z["gains"]
    for _ in range(3):
        kernel.sample(kernel.state.z)
    assert kernel.diagnostics()["acceptance of transport"] == pytest.approx(1.0, abs=1e-9)  # rounding
    assert bool((kernel.state.z["gains"] != before).any(-1).sum() > 10)
    torch.testing.assert_close(kernel.state.energy, potential(kernel.state.z))


# --- which scalars -----------------------------------------------------------------------------------------------


def both_kinds(mix=None):
    """Two gains in one site, a volume over all, a product of two scalars, and a noise level that scales nothing."""
    sources = sample_sources(two_bands(16))
    gains = pyro.sample("gains", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    volume = pyro.sample("volume", dist.HalfNormal(1.0)).unsqueeze(-1)
    level = pyro.sample("level", dist.LogNormal(0.0, 0.1)).unsqueeze(-1)
    mean = volume * (gains.unsqueeze(-1) * sources).sum(-2)
    pyro.sample("mix", dist.Normal(mean, level).to_event(1), obs=mix)


@pytest.mark.parametrize("num_chains", [None, 3])
def test_scales_are_found_by_trying(num_chains):
    potential = Potential(both_kinds, (torch.randn(16),), num_chains=num_chains)
    found = find_scales(potential, ["gains", "volume", "level"])
    assert found == [
        Scale("gains", 0, ("low",)),
        Scale("gains", 1, ("high",)),
        Scale("volume", 0, ("low", "high")),
    ]
    assert find_scales(potential, ["volume"], {"volume": ["low", "high"]}) == found[2:]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"level": "low"}, "expected element 0 of 'level' to multiply"),
        ({"volume": "low"}, "expected element 0 of 'volume' to multiply"),
        ({"gains": ["high", "low"]}, "expected element 0 of 'gains' to multiply"),
        ({"gains": "low"}, "has 2 elements; expected a source for each"),
        ({"pan": "low"}, "expected scales from the sites"),
        ({"volume": "middle"}, "expected scales from the sites"),
    ],
)
def test_scales_that_are_none_are_refused(declared, message):
    kernel = ScalarMoves(MALA(both_kinds), scales=declared)
    with pytest.raises(ConfigurationError, match=message):
        LangevinMCMC(kernel, 1, 0, num_chains=2, disable_progbar=True).run(torch.randn(16))


def test_models_that_these_moves_are_not_for(filtering_flows):
    clipped = soft_clipped_mix(two_bands(16))

    def with_pan(mix=None):
        pan = pyro.sample("pan", dist.Uniform(0.0, 1.0)).unsqueeze(-1)
        source = pyro.sample("a", GaussianPrior(torch.ones(2), 16))
        pyro.sample("mix", dist.Normal(torch.tanh(source + pan), 0.1).to_event(1), obs=mix)

    flows = filtering_flows({"a": torch.ones(65), "b": torch.ones(65)}, 128, 8000)
    for model, message, size in (
        (clipped, "this one has none", 16),
        (with_pan, "none of which multiplies a source, and its observation is not a linear", 16),
        (unknown_gains_mix(flows), "expected priors with a density", 128),
    ):
        with pytest.raises(ConfigurationError, match=message):
            LangevinMCMC(ScalarMoves(MALA(model)), 1, 0, num_chains=2, disable_progbar=True).run(torch.randn(size))
    with pytest.raises(ConfigurationError, match="moves must be a whole number"):
        ScalarMoves(MALA(clipped), moves=0)
    with pytest.raises(ConfigurationError, match=r"expected a kernel of pyrosep\.infer"):
        ScalarMoves(NUTS(clipped))


# --- as a kernel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [MALA, SGLD, GibbsMALA])
def test_around_any_kernel_and_under_stock_mcmc(inner):
    model = unknown_gains_mix(two_bands(16), noise=0.3)
    mix = mixed(model, [1.5, 0.5])
    mcmc = LangevinMCMC(ScalarMoves(inner(model)), 5, 20, num_chains=3, seed=0, disable_progbar=True).run(mix)
    assert mcmc.get_samples(group_by_chain=True)["gains"].shape == (3, 5, 2)
    assert bool(torch.isfinite(mcmc.sample_stats()["lp"]).all())
    assert mcmc.diagnostics()["divergences"] == {"chain 0": [], "chain 1": [], "chain 2": []}
    again = LangevinMCMC(ScalarMoves(inner(model)), 5, 20, num_chains=3, seed=0, disable_progbar=True).run(mix)
    assert torch.equal(mcmc.get_samples()["low"], again.get_samples()["low"])
    stock = MCMC(ScalarMoves(inner(model)), num_samples=5, warmup_steps=5, disable_progbar=True)
    stock.run(mix)
    assert stock.get_samples()["gains"].shape == (5, 2)
    assert len(stock.get_samples()["gains"].unique(dim=0)) > 1


def test_each_chain_may_have_a_mix_of_its_own():
    """Gains follow the mixes: ten times as loud, ten times the gain, as far as their prior lets them."""
    model = unknown_gains_mix(two_bands(256), noise=0.01, spread_db=20)
    mix = mixed(model, [1.0, 1.0])
    mixes = torch.stack([mix, 10 * mix])
    mcmc = LangevinMCMC(ScalarMoves(MALA(model)), 20, 60, num_chains=2, init="mix", seed=0, disable_progbar=True)
    means = mcmc.run(mixes).get_samples(group_by_chain=True)["gains"].mean(1)
    assert (means[1] / means[0]).tolist() == pytest.approx([10.0, 10.0], rel=0.3)
