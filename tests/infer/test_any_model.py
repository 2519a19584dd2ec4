"""Whatever Gaussian model a user writes, each sampler has its posterior: by Pyro's own density, in closed form.

Standard errors are those of independent chains, one draw of each; the false-alarm rate is that of `agree`.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size

from pyrosep import MALA, AnnealedSearch, EncoderGuide, GaussianPrior, GibbsMALA, LangevinMCMC, Potential
from pyrosep.errors import ConfigurationError
from pyrosep.infer import SweepMoves, linear_mix_of
from pyrosep.mixing import linear_mix

pytestmark = pytest.mark.usefixtures("double")

TIME, CHAINS = 8, 1500
SPECTRA = {"a": [2.0, 1.0, 0.5], "b": [0.5, 1.0, 2.0]}


def prior_of(name):
    return GaussianPrior(torch.tensor(SPECTRA[name]), TIME, sigma_min=0.1)


def sources():
    return [pyro.sample(name, prior_of(name)) for name in SPECTRA]


def heard(name, mean, mix, scale=0.5, kept=None):
    normal = dist.Normal(mean, scale)
    pyro.sample(name, (normal if kept is None else normal.mask(kept)).to_event(1), obs=mix)


def plain(mix):
    linear_mix({name: prior_of(name) for name in SPECTRA}, [1.0, 0.7], 0.5)(mix)


def masked(mix):
    a, b = sources()
    heard("mix", a + b, mix, kept=torch.arange(TIME) < 5)


def masked_by_handler(mix):
    a, b = sources()
    heard("one", a - b, mix)
    with poutine.mask(mask=torch.tensor(False)):
        heard("none", a + b, mix)


def scaled(mix):
    a, b = sources()
    with poutine.scale(scale=0.25):
        heard("mix", a + b, mix)


def factored(mix):
    a, b = sources()
    heard("mix", a + b, mix)
    pyro.factor("smooth", -2 * a.square().sum(-1))


def deterministic(mix):
    a, b = sources()
    heard("mix", pyro.deterministic("sum", a + 0.7 * b), mix)


def plate_of_sources(mix):
    with pyro.plate("k", 2):
        s = pyro.sample("s", prior_of("a"))
    heard("mix", (s * torch.tensor([[1.0], [0.7]])).sum(-2), mix)


def event_of_sources(mix):
    s = pyro.sample("s", prior_of("a").expand([2]).to_event(1))
    heard("mix", (s * torch.tensor([[1.0], [0.7]])).sum(-2), mix)


def conditioned(mix):
    model = linear_mix({name: prior_of(name) for name in SPECTRA} | {"c": prior_of("a")}, noise=0.5)
    return poutine.condition(model, {"c": torch.linspace(-1, 1, TIME)})(mix)


def two_observations(mix):
    a, b = sources()
    heard("mix", a + b, mix)
    heard("again", a - 0.5 * b, mix.flip(-1), 0.3)


def uneven(mix):
    a, b = sources()
    heard("mix", a + b, mix, torch.linspace(0.3, 1.0, TIME))


def echo(mix):
    a, b = sources()
    heard("mix", a + b + 0.02 * a.roll(3, -1), mix)


#: Each with why sweeps can't draw from it; ``None`` where they can.
MODELS = {
    "plain": (plain, None),
    "masked": (masked, None),
    "masked by a handler": (masked_by_handler, "2 observed sites depend on its sources, not one"),
    "scaled": (scaled, None),
    "a factor": (factored, "the density of 'smooth' depends on its sources too"),
    "deterministic": (deterministic, None),
    "a plate of sources": (plate_of_sources, None),
    "an event of sources": (event_of_sources, None),
    "conditioned": (conditioned, None),
    "two observations": (two_observations, "2 observed sites depend on its sources, not one"),
    "uneven noise": (uneven, "the noise of 'mix' is not the same at all times"),
    "a faint echo": (echo, "filter"),
}
every = pytest.mark.parametrize(("model", "reason"), MODELS.values(), ids=MODELS)


@pytest.fixture
def mix():
    return torch.randn(TIME, generator=torch.Generator().manual_seed(1))


class Posterior:
    """Mean and covariance, from Pyro's own density of one run, which is quadratic."""

    def __init__(self, model, mix):
        self.shapes = {name: value.shape for name, value in Potential(model, (mix,)).placeholder.items()}

        def energy(flat):
            with pyro.validation_enabled(False):
                return -poutine.trace(poutine.condition(model, self.split(flat))).get_trace(mix).log_prob_sum()

        zero = torch.zeros(sum(shape.numel() for shape in self.shapes.values()))
        precision = torch.autograd.functional.hessian(energy, zero)
        self.covariance = torch.linalg.inv((precision + precision.mT) / 2)
        self.mean = -self.covariance @ torch.autograd.functional.jacobian(energy, zero)

    def split(self, flat):
        parts = flat.split([shape.numel() for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(flat.shape[:-1] + shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flat(self, values):
        return torch.cat([values[name].flatten(1) for name in self.shapes], -1)

    def draws(self, count):
        return self.split(torch.distributions.MultivariateNormal(self.mean, self.covariance).sample((count,)))


@pytest.fixture
def check(mean_agrees):
    def moments(posterior, values):
        draws = posterior.flat(values)
        mean_agrees(draws, posterior.mean)
        upper = torch.triu_indices(*posterior.covariance.shape)
        deviation = draws - posterior.mean
        mean_agrees(deviation[:, upper[0]] * deviation[:, upper[1]], posterior.covariance[upper[0], upper[1]])

    return moments


@every
@pytest.mark.parametrize("kernel", [MALA, GibbsMALA], ids=lambda kernel: kernel.__name__)
def test_kernels_leave_the_posterior_as_it_is(model, reason, kernel, mix, check):
    """From draws of the posterior, fifty steps of a sampler that accepts by the model's density."""
    posterior = Posterior(model, mix)
    start = {name: value.reshape(CHAINS, *posterior.shapes[name]) for name, value in posterior.draws(CHAINS).items()}
    own = kernel(model, 0.5) if kernel is MALA else kernel(model, 0.5, sweep_every=5)
    mcmc = LangevinMCMC(own, 1, 0, thinning=50, num_chains=CHAINS, init=start, seed=0).run(mix)
    check(posterior, mcmc.get_samples())
    assert kernel is MALA or (own._redraws is None) == (reason is not None)


@every
def test_the_last_level_of_a_search(model, reason, mix, check):
    """Sweeps at the model's own noise find the posterior from silence, or are refused by name."""
    posterior = Posterior(model, mix)
    potential = Potential(model, (mix,), num_chains=CHAINS)
    z = {name: torch.zeros_like(value) for name, value in potential.placeholder.items()}
    if reason is not None:
        found = linear_mix_of(potential, z)
        assert isinstance(found, str)
        assert reason in found
        return
    chains = SweepMoves().on(potential, z, (1.0, 0.5))
    chains.descend(torch.arange(CHAINS), (1.0, 0.5) + (0.0,) * 60, None)
    check(posterior, chains.z)


def test_a_search_of_every_model_runs_or_says_why_not(mix):
    for model, _ in MODELS.values():
        found = AnnealedSearch((1.0, 0.5), redraws=2).run(model, mix, num_chains=4, seed=0)
        assert all(bool(value.isfinite().all()) for value in found.values().values())


def test_an_unheard_sample_is_as_the_prior_has_it(check):
    """White sources, a mix of twos whose second half is masked: mean 0 and deviation 1.42 of the sum there."""
    kept = torch.arange(TIME) < TIME // 2

    def model(mix):
        a, b = (pyro.sample(name, GaussianPrior(torch.ones(2), TIME, sigma_min=0.1)) for name in "ab")
        heard("mix", a + b, mix, kept=kept)

    mix = torch.full((TIME,), 2.0)
    kernel = GibbsMALA(model, 0.5, sweep_every=2)
    mcmc = LangevinMCMC(kernel, 1, 60, num_chains=CHAINS, init=AnnealedSearch((1.0, 0.5), redraws=0), seed=0).run(mix)
    draws = mcmc.get_samples()
    check(Posterior(model, mix), draws)
    total = (draws["a"] + draws["b"])[:, ~kept]
    assert total.std().item() == pytest.approx(2**0.5 * 1.01**0.5, abs=4 * 1.42 / (2 * total.numel()) ** 0.5)


def test_what_is_nearly_linear_is_told_by_the_noise():
    """An echo of 3e-4 is nothing beside noise of 0.5, and several times a noise of 1e-4."""

    def model(noise):
        def run(mix):
            a, b = (pyro.sample(name, GaussianPrior(torch.ones(2), 64)) for name in "ab")
            heard("mix", a + b + 3e-4 * a.roll(5, -1), mix, noise)

        potential = Potential(run, (torch.zeros(64),), num_chains=2)
        return linear_mix_of(potential, potential.prior_draw)

    assert isinstance(model(1e-4), str)
    assert not isinstance(model(0.5), str)


def test_noise_that_depends_on_a_source_is_no_linear_mix(mix):
    def model(mix):
        a, b = sources()
        heard("mix", a + b, mix, 0.5 + a.detach().abs().mean(-1, keepdim=True))

    potential = Potential(model, (mix,), num_chains=2)
    found = linear_mix_of(potential, potential.prior_draw)
    assert found == "the density of 'mix' is not that of a linear mix with noise of one level"


def test_a_factor_alone_is_no_observation():
    def model():
        a, _ = sources()
        pyro.factor("loud", -a.square().sum(-1))

    with pytest.raises(
        ConfigurationError, match="needs an observation that depends on its sources; this model has none"
    ):
        AnnealedSearch((1.0, 0.5), redraws=0).run(model, num_chains=2)


def test_guides_of_models_with_every_kind_of_site(mix):
    """Deterministic values and factors are no observations; several sources of one site have no encoders."""

    def whole(mix):
        deterministic(mix)
        pyro.factor("loud", torch.zeros(()))

    assert EncoderGuide.for_model(whole, mix).names == ("a", "b")
    for model in (plate_of_sources, event_of_sources):
        with pytest.raises(ConfigurationError, match="site 's' stands for sources of shape"):
            EncoderGuide.for_model(model, mix)


# --- noise whose level is unknown: no Gaussian, but one given the level -------------------------------------------


def unknown_noise(mix):
    a, b = sources()
    level = pyro.sample("level", dist.LogNormal(-0.5, 0.5))
    heard("mix", a + 0.7 * b, mix, level[..., None])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["MALA", "NUTS"])
def test_noise_of_unknown_level(mix, agree, kernel):
    """Moments of the level and of the sources' mean by quadrature over the level; stderr by the draws' ESS."""
    prior = Posterior(lambda mix: sources(), mix).covariance
    mixing = torch.cat([torch.eye(TIME), 0.7 * torch.eye(TIME)], -1)
    grid = torch.linspace(-3.5, 2.5, 1201)
    logs, means = [], []
    for level in grid.exp():
        total = mixing @ prior @ mixing.mT + level**2 * torch.eye(TIME)
        logs.append(torch.distributions.MultivariateNormal(torch.zeros(TIME), total).log_prob(mix))
        means.append(prior @ mixing.mT @ torch.linalg.solve(total, mix))
    weight = (torch.stack(logs) + dist.Normal(-0.5, 0.5).log_prob(grid)).softmax(0)
    log_level, mean = (weight * grid).sum(), (weight.unsqueeze(-1) * torch.stack(means)).sum(0)
    if kernel == "MALA":
        mcmc = LangevinMCMC(MALA(unknown_noise), 1, 300, thinning=1, num_chains=1000, seed=0)
        draws, independent = mcmc.run(mix).get_samples(), 1000
    else:
        mcmc = MCMC(NUTS(unknown_noise), 800, warmup_steps=200, disable_progbar=True)
        mcmc.run(mix)
        draws = mcmc.get_samples()
        independent = float(effective_sample_size(draws["level"].log().unsqueeze(0)).clamp(max=800)) / 2
    found = torch.cat([draws["level"].log().unsqueeze(-1), draws["a"], draws["b"]], -1)
    agree(found.mean(0), torch.cat([log_level.reshape(1), mean]), found.std(0) / independent**0.5)
