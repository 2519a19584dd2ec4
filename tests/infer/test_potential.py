"""The potential energy: Pyro's own, batched, and safe."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

from pyrosep import GaussianPrior, Potential
from pyrosep.errors import ConfigurationError, LeakError, ShapeError
from pyrosep.infer import initial_values
from pyrosep.mixing import linear_mix, mean_mix, panned_mix, soft_clipped_mix, unknown_gains_mix

pytestmark = pytest.mark.usefixtures("double")

TIME = 8
# The same sums in another order, in double precision.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def priors():
    return {
        "a": GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), TIME, sigma_min=0.1),
        "b": GaussianPrior(torch.tensor([0.5, 1.0, 2.0]), TIME, sigma_min=0.1),
    }


MODELS = [mean_mix, linear_mix, unknown_gains_mix, panned_mix, soft_clipped_mix]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request, priors):
    return request.param(priors, noise=0.3)


def plated(priors):
    """A user's model, with plates of its own: two channels of each source, a gain for each channel."""

    def model(mix=None):
        level = pyro.sample("level", dist.HalfNormal(1.0))
        with pyro.plate("channels", 2, dim=-1):
            gain = pyro.sample("gain", dist.Beta(2.0, 2.0))
            sources = torch.stack([pyro.sample(name, prior) for name, prior in priors.items()], -2)
            mean = level[..., None] * gain[..., None] * sources.sum(-2)
            return pyro.sample("mix", dist.Normal(mean, 0.3).to_event(1), obs=mix)

    return model


def start(potential):
    return potential.unconstrain(potential.prior_draw)


# --- the value ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [unknown_gains_mix, panned_mix, linear_mix, plated], ids=lambda make: make.__name__)
def test_equals_pyro(priors, make):
    model = make(priors)
    mix = model().detach()
    potential = Potential(model, (mix,))
    _, pyro_potential, transforms, _ = initialize_model(model, model_args=(mix,))
    assert set(potential.transforms) == set(transforms)
    for seed in range(3):
        torch.manual_seed(seed)
        z = {name: torch.randn_like(value) for name, value in start(potential).items()}
        torch.testing.assert_close(potential(z), pyro_potential(z), **ROUNDING)
        energy, gradient = potential.value_and_grad(z)
        leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
        expected = torch.autograd.grad(pyro_potential(leaves), list(leaves.values()))
        torch.testing.assert_close(energy, pyro_potential(z), **ROUNDING)
        for one, other in zip(gradient.values(), expected, strict=True):
            torch.testing.assert_close(one, other, **ROUNDING)
        for name, transform in transforms.items():
            torch.testing.assert_close(potential.constrain(z)[name], transform.inv(z[name]), **ROUNDING)


def test_batch_equals_one_by_one(model):
    mix = model().detach()
    batch, single = Potential(model, (mix,), num_chains=3), Potential(model, (mix,))
    z = start(batch)
    energy, gradient = batch.value_and_grad(z)
    assert energy.shape == (3,)
    for chain in range(3):
        one, slope = single.value_and_grad({name: value[chain] for name, value in z.items()})
        torch.testing.assert_close(energy[chain], one, **ROUNDING)
        for name in z:
            torch.testing.assert_close(gradient[name][chain], slope[name], **ROUNDING)


def test_batch_equals_one_by_one_inside_plates(priors):
    model = plated(priors)
    mix = model().detach()
    batch, single = Potential(model, (mix,), num_chains=3), Potential(model, (mix,))
    z = start(batch)
    batch.check_independence(z)
    assert z["a"].shape == (3, 2, TIME)
    assert z["gain"].shape == (3, 2)
    energy = batch(z)
    inner = {name: value.shape for name, value in start(single).items()}
    for chain in range(3):
        one = single({name: value[chain].reshape(inner[name]) for name, value in z.items()})
        torch.testing.assert_close(energy[chain], one, **ROUNDING)


def test_a_mix_for_each_chain(priors):
    model = linear_mix(priors, noise=0.3)
    mixes = torch.randn(3, TIME)
    batch = Potential(model, (mixes,), num_chains=3)
    z = start(batch)
    batch.check_independence(z)
    for chain in range(3):
        one = Potential(model, (mixes[chain],))({name: value[chain] for name, value in z.items()})
        torch.testing.assert_close(batch(z)[chain], one, **ROUNDING)


def test_sites_by_themselves_sum_to_the_whole(model):
    potential = Potential(model, (model().detach(),), num_chains=3)
    z = start(potential)
    by_site = potential.log_prob_by_site(z)
    log_volume = potential._constrain(z)[1]
    assert set(by_site) == {*z, "mix"}
    torch.testing.assert_close(-sum(by_site.values()) + log_volume, potential(z), **ROUNDING)
    without = potential(z, ["a"])
    torch.testing.assert_close(without - by_site["a"], potential(z), **ROUNDING)


def test_constrain_undoes_unconstrain(model):
    potential = Potential(model, (model().detach(),), num_chains=2)
    again = potential.constrain(start(potential))
    for name, value in potential.prior_draw.items():
        torch.testing.assert_close(again[name], value, **ROUNDING)


def test_residual(linear):
    potential = linear.potential(num_chains=2)
    z = linear.split(torch.stack([linear.mean, torch.zeros_like(linear.mean)]))
    potential.value_and_grad(z)
    expected = linear.mix - linear.mixing @ linear.mean
    relative = (expected.square().mean() / linear.mix.square().mean()).sqrt()
    torch.testing.assert_close(potential.residual(), torch.stack([relative, torch.tensor(1.0)]), **ROUNDING)


def test_prior_draws_differ_between_chains(priors):
    draw = Potential(linear_mix(priors), (torch.zeros(TIME),), num_chains=2).prior_draw
    assert not torch.equal(draw["a"][0], draw["a"][1])


def test_gradients_are_counted(linear):
    potential = linear.potential(num_chains=2)
    before = potential.num_gradients
    potential.value_and_grad(start(potential))
    assert potential.num_gradients == before + 1


# --- chains that meet --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chains", [1, 2, 3, 8])
def test_mixing_models_do_not_leak(model, chains):
    potential = Potential(model, (model().detach(),), num_chains=chains)
    potential.check_independence(start(potential))


def leak_over_chains(priors):
    """Meant to take the mean over time off, takes it off over the chains."""

    def model(mix):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        pyro.sample("mix", dist.Normal(a - a.mean(0, keepdim=True) + b, 0.3).to_event(1), obs=mix)

    return model, "'a'"


def leak_by_normalising(priors):
    def model(mix):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        pyro.sample("mix", dist.Normal(a + b / b.norm(), 0.3).to_event(1), obs=mix)

    return model, "'b'"


def leak_by_summing(priors):
    def model(mix):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        pyro.sample("mix", dist.Normal(a, 0.3).to_event(1), obs=mix)
        pyro.sample("level", dist.Normal(b.sum(), 0.3), obs=mix.sum())

    return model, "'b'"


def leak_by_broadcasting(priors):
    """A gain of shape (chain,) meets (chain, time), and there are as many chains as samples."""

    def model(mix):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        gain = pyro.sample("gain", dist.LogNormal(0.0, 1.0))
        pyro.sample("mix", dist.Normal(gain * a + b, 0.3).to_event(1), obs=mix)

    return model, "'gain'"


@pytest.mark.parametrize("leak", [leak_over_chains, leak_by_normalising, leak_by_summing, leak_by_broadcasting])
def test_a_leak_is_found_and_named(priors, leak):
    model, site = leak(priors)
    potential = Potential(model, (torch.randn(TIME),), num_chains=TIME)
    with pytest.raises(LeakError, match=f"another's value of {site}\\. "):
        potential.check_independence(start(potential))


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_data_that_is_not_finite_is_no_leak(priors):
    mix = torch.randn(TIME)
    mix[2] = float("nan")
    potential = Potential(linear_mix(priors), (mix,), num_chains=4)
    potential.check_independence(start(potential))


# --- models that can't be run ------------------------------------------------------------------------------------


def test_a_model_that_is_not_written_for_batches(priors):
    def unbatched_gain(mix):
        gain = pyro.sample("gain", dist.LogNormal(0.0, 1.0))
        source = pyro.sample("a", priors["a"])
        pyro.sample("mix", dist.Normal(gain * source, 0.3).to_event(1), obs=mix)

    def undeclared_event(mix):
        pyro.sample("mix", dist.Normal(pyro.sample("a", priors["a"]), 0.3), obs=mix)

    for model in (unbatched_gain, undeclared_event):
        single = Potential(model, (torch.randn(TIME),))
        assert single(start(single)).shape == ()  # right for one chain
        with pytest.raises(ShapeError, match=r"not for 3 in a batch.*leading batch axes"):
            Potential(model, (torch.randn(TIME),), num_chains=3)


def test_subsampled_plate(priors):
    def model(mix):
        with pyro.plate("songs", 10, subsample_size=3):
            pyro.sample("a", priors["a"])

    with pytest.raises(ConfigurationError, match="plate 'songs' takes a subsample of 3 of 10"):
        Potential(model, (None,))


def test_discrete_latent(priors):
    def model(mix):
        on = pyro.sample("on", dist.Bernoulli(0.5))
        source = pyro.sample("a", priors["a"])
        pyro.sample("mix", dist.Normal(on[..., None] * source, 0.3).to_event(1), obs=mix)

    with pytest.raises(ConfigurationError, match="latent site 'on' is discrete"):
        Potential(model, (torch.zeros(TIME),))


def test_no_latent_site(priors):
    with pytest.raises(ConfigurationError, match="no latent site"):
        Potential(lambda: pyro.sample("mix", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0)))


@pytest.mark.parametrize("chains", [0, -1])
def test_number_of_chains(priors, chains):
    with pytest.raises(ConfigurationError, match="at least one chain"):
        Potential(linear_mix(priors), (torch.zeros(TIME),), num_chains=chains)


# --- every kind of site ------------------------------------------------------------------------------------------


def with_deterministic(priors):
    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        pyro.deterministic("sum", a + b)
        pyro.deterministic("level", a.square().mean(-1))
        return pyro.sample("mix", dist.Normal(a + b, 0.3).to_event(1), obs=mix)

    return model


@pytest.mark.parametrize("chains", [None, 3])
def test_deterministic_values_are_no_data(priors, chains):
    """They have no part in the energy, in the residual, and in where chains start."""
    mix = torch.randn(TIME)
    found, plain = (
        Potential(make(priors), (mix,), num_chains=chains)
        for make in (with_deterministic, lambda priors: linear_mix(priors, noise=0.3))
    )
    assert list(found.observed) == ["mix"]
    z = {name: torch.randn_like(value) for name, value in start(found).items()}
    torch.testing.assert_close(found(z), plain(z), **ROUNDING)
    torch.testing.assert_close(found.residual(), plain.residual(), **ROUNDING)
    for name, value in initial_values(plain, "mix").items():
        torch.testing.assert_close(initial_values(found, "mix")[name], value, **ROUNDING)
    found.value_and_grad(z)
    assert not found.residual().requires_grad


def test_residual_is_of_what_is_heard(priors):
    kept = torch.arange(TIME) < 3

    def model(mix):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        pyro.sample("mix", dist.Normal(a + b, 0.3).mask(kept).to_event(1), obs=mix)

    mix = torch.where(kept, torch.randn(TIME), 1e6)
    potential = Potential(model, (mix,), num_chains=2)
    z = {name: torch.randn_like(value) for name, value in start(potential).items()}
    potential(z)
    left = (mix - z["a"] - z["b"])[:, :3].square().sum(-1)
    torch.testing.assert_close(potential.residual(), (left / mix[:3].square().sum()).sqrt(), **ROUNDING)


@pytest.mark.parametrize("unheard", [0.0, 1e6, float("nan")])
def test_the_start_from_a_mix_is_of_what_is_heard(priors, unheard):
    kept = torch.arange(TIME) < 3

    def model(mix):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        pyro.sample("mix", dist.Normal(a + b, 0.3).mask(kept).to_event(1), obs=mix)

    mix = torch.where(kept, torch.linspace(1.0, 2.0, TIME), unheard)
    found = initial_values(Potential(model, (mix,), num_chains=2), "mix")
    for value in found.values():
        torch.testing.assert_close(value, torch.where(kept, mix / 2, 0.0).expand(2, TIME), **ROUNDING)


# --- plates of sources -------------------------------------------------------------------------------------------


def plate_of_sources(keepdim):
    prior = GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), TIME, sigma_min=0.1)

    def model(mix):
        with pyro.plate("k", 2):
            sources = pyro.sample("s", prior)
            gains = pyro.sample("gain", dist.LogNormal(0.0, 1.0))
        total = (gains[..., None] * sources).sum(-2, keepdim=keepdim)
        pyro.sample("mix", dist.Normal(total, 0.3).to_event(1), obs=mix)

    return model


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_plate_of_sources(keepdim):
    """The chains find their axis whether or not the model keeps that of the plate outside of it."""
    model, mix = plate_of_sources(keepdim), torch.randn(TIME)
    batch, single = Potential(model, (mix,), num_chains=3), Potential(model, (mix,))
    z = start(batch)
    batch.check_independence(z)
    assert z["s"].shape == (3, 2, TIME)
    energy, gradient = batch.value_and_grad(z)
    for chain in range(3):
        one, slope = single.value_and_grad({name: value[chain] for name, value in z.items()})
        torch.testing.assert_close(energy[chain], one, **ROUNDING)
        torch.testing.assert_close(gradient["s"][chain], slope["s"], **ROUNDING)


def test_a_plate_whose_axis_is_lost_is_named(priors):
    """What stands outside of the plate and meets what is in it can't tell the plate from the chains."""

    def model(mix):
        level = pyro.sample("level", dist.LogNormal(0.0, 1.0))
        with pyro.plate("k", 2):
            sources = level[..., None] * pyro.sample("s", priors["a"])
        pyro.sample("mix", dist.Normal(sources.sum(-2), 0.3).to_event(1), obs=mix)

    with pytest.raises(ShapeError, match=r"one chain, but not for 3.*sources\.sum\(-2, keepdim=True\)"):
        Potential(model, (torch.randn(TIME),), num_chains=3)


@pytest.mark.parametrize("chains", [None, 4])
def test_a_mix_of_another_length_is_named_with_both(priors, chains):
    with pytest.raises(ShapeError, match=r"'mix' has values of shape \(6,\); the model expects \(8,\)"):
        Potential(linear_mix(priors), (torch.randn(6),), num_chains=chains)
