"""Every mixing model, under every kernel."""

import functools
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC

from pyrosep import MALA, SGLD, GaussianPrior, LangevinMCMC, OscillatorPrior, Potential
from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.mixing import linear_mix, mean_mix, panned_mix, sample_sources, soft_clipped_mix, unknown_gains_mix

TIME = 8
MODELS = [mean_mix, linear_mix, unknown_gains_mix, panned_mix, soft_clipped_mix]
KERNELS = {
    "sgld": functools.partial(SGLD, step_size=0.02),
    "mala-euler": functools.partial(MALA, step_size=0.02, proposal="euler", preconditioner="prior"),
    "mala-ou": functools.partial(MALA, step_size=0.1),
}


@pytest.fixture
def priors():
    return {
        "a": GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), TIME),
        "b": GaussianPrior(torch.tensor([0.5, 2.0]), TIME),
        "c": OscillatorPrior("saw", TIME, 0.3, periods=(3, 5)),
    }


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def make(request):
    return request.param


def mix_shape(make):
    return (2, TIME) if make is panned_mix else (TIME,)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_runs_under_every_kernel(make, kernel, priors):
    model = make(priors, noise=0.3)
    mix = model().detach()
    assert mix.shape == mix_shape(make)
    mcmc = LangevinMCMC(kernel(model), num_samples=4, warmup_steps=60, thinning=10, num_chains=3, seed=0).run(mix)
    draws = mcmc.get_samples(group_by_chain=True)
    others = set(draws) - set(priors)
    assert others == {unknown_gains_mix: {"gains"}, panned_mix: {"pans"}}.get(make, set())
    for name, value in draws.items():
        assert value.shape == (3, 4, TIME if name in priors else 3)
        assert bool(torch.isfinite(value).all())
        assert not torch.equal(value[0], value[1])
    if "gains" in draws:
        assert bool((draws["gains"] > 0).all())
    if "pans" in draws:
        assert bool((draws["pans"].abs() <= 1).all())


def test_runs_under_hamiltonian_monte_carlo(make, priors):
    model = make(priors, noise=0.3)
    mcmc = MCMC(HMC(model, step_size=0.05, num_steps=2, adapt_step_size=False), 3, 1, disable_progbar=True)
    mcmc.run(model().detach())
    assert mcmc.get_samples()["c"].shape == (3, TIME)


def test_chains_do_not_meet(make, priors):
    """In as many chains as there are samples, sources or channels too, where shapes could match by accident."""
    model = make(priors, noise=0.3)
    for chains in (2, 3, TIME):
        potential = Potential(model, (model().detach(),), num_chains=chains)
        potential.check_independence(potential.unconstrain(potential.prior_draw))


def test_conditions_on_a_mix(make, priors):
    model = make(priors, noise=0.3)
    mix = torch.randn(mix_shape(make))
    trace = poutine.trace(model).get_trace(mix)
    site = trace.nodes["mix"]
    assert site["is_observed"]
    assert torch.equal(site["value"], mix)
    assert torch.equal(trace.nodes["_RETURN"]["value"], mix)
    assert not poutine.trace(model).get_trace().nodes["mix"]["is_observed"]
    assert [name for name in trace.nodes if name in priors] == list(priors)


def expected_mix(make, sources, noise):
    """The mix's mean where sources, gains and pans are given."""
    data = dict(zip("abc", sources, strict=True))
    data |= {"gains": torch.tensor([0.5, 1.0, 2.0]), "pans": torch.tensor([-1.0, 0.0, 1.0])}
    model = make({name: GaussianPrior(torch.ones(2), TIME) for name in "abc"}, noise=noise)
    trace = poutine.trace(poutine.condition(model, data)).get_trace()
    return trace.nodes["mix"]["fn"]


def test_equations():
    sources = torch.randn(3, TIME)
    half = math.sqrt(0.5)
    left, right = torch.tensor([1.0, half, 0.0]), torch.tensor([0.0, half, 1.0])
    for make, mean in (
        (mean_mix, sources.mean(0)),
        (linear_mix, sources.sum(0)),
        (functools.partial(linear_mix, gains=[1.0, -2.0, 0.5]), torch.tensor([1.0, -2.0, 0.5]) @ sources),
        (unknown_gains_mix, torch.tensor([0.5, 1.0, 2.0]) @ sources),
        (panned_mix, torch.stack([left @ sources, right @ sources])),
        (functools.partial(soft_clipped_mix, drive=2.0), torch.tanh(2 * sources.sum(0)) / 2),
    ):
        fn = expected_mix(make, sources, 0.25)
        torch.testing.assert_close(fn.mean, mean)
        torch.testing.assert_close(fn.stddev, torch.full_like(mean, 0.25))


def test_noise_of_a_drawn_mix(priors, mean_agrees):
    """Drawn given the sources, the mix differs from its mean by the noise, without correlation."""
    sources = {name: torch.randn(TIME) for name in "abc"}
    with pyro.plate("draws", 4000):
        mixes = pyro.condition(linear_mix(priors, noise=0.3), sources)()
    error = mixes - sum(sources.values())
    mean_agrees(error, 0.0)
    mean_agrees(error.unsqueeze(-1) * error.unsqueeze(-2), 0.09 * torch.eye(TIME))


def test_levels_of_unknown_gains(mean_agrees):
    """In dB, the gains have mean zero and the deviation that is asked for."""
    priors = {name: GaussianPrior(torch.ones(2), 4) for name in "ab"}
    with pyro.plate("draws", 4000):
        trace = poutine.trace(unknown_gains_mix(priors, spread_db=3.0)).get_trace()
    level = 20 * trace.nodes["gains"]["value"].log10()
    mean_agrees(level, 0.0)
    mean_agrees(level.square(), 9.0)


def test_sources_are_stacked_before_time(priors):
    with pyro.plate("songs", 5):
        assert sample_sources(priors).shape == (5, 3, TIME)


@pytest.mark.parametrize("noise", [0.0, -0.1, math.nan])
def test_noise_must_be_positive(make, priors, noise):
    with pytest.raises(ConfigurationError, match="observation noise must be positive"):
        make(priors, noise=noise)


def test_gains_must_be_as_many_as_sources(priors):
    for gains in ([1.0, 2.0], [[1.0, 2.0, 3.0]], 1.0):
        with pytest.raises(ShapeError, match="expected 3 gains"):
            linear_mix(priors, gains)


@pytest.mark.parametrize("drive", [0.0, -1.0, math.nan])
def test_drive_must_be_positive(priors, drive):
    with pytest.raises(ConfigurationError, match="drive must be positive"):
        soft_clipped_mix(priors, drive=drive)


@pytest.mark.parametrize("spread", [0.0, -1.0, math.nan])
def test_spread_of_gains_must_be_positive(priors, spread):
    with pytest.raises(ConfigurationError, match="spread_db must be positive"):
        unknown_gains_mix(priors, spread_db=spread)


@pytest.mark.parametrize("empty", [mean_mix, linear_mix])
def test_a_mix_of_nothing(empty):
    with pytest.raises(ConfigurationError, match="at least one"):
        empty({})
