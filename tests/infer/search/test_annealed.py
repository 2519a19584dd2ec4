"""The annealed search: it finds the sources and stays stable, and the kernels that start from it are exact."""

import math
from dataclasses import replace

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS

from pyrosep import (
    MALA,
    AnnealedSearch,
    AnnealedSGLD,
    GaussianPrior,
    GibbsMALA,
    LangevinMCMC,
    OscillatorPrior,
    Potential,
)
from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer import COUPLINGS, LangevinMoves, SweepMoves, initial_values, noised
from pyrosep.metrics import si_sdr
from pyrosep.mixing import linear_mix, mean_mix, panned_mix, soft_clipped_mix, unknown_gains_mix

LADDER = (2.0, 0.7, 0.3, 0.1)
#: For any prior; "local" is for those whose denoisers are filters of short-time spectra.
GENERAL = [name for name in COUPLINGS if name != "local"]

SEARCHES = {"sweeps": AnnealedSearch(LADDER, "sweeps", redraws=2)} | {
    f"langevin-{coupling}": AnnealedSearch(LADDER, LangevinMoves(coupling, per_level=2), redraws=2)
    for coupling in GENERAL
}
every = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
every_coupling = pytest.mark.parametrize("coupling", GENERAL)


# --- the distribution --------------------------------------------------------------------------------------------


def posterior_agrees(linear, mcmc, mean_agrees):
    """Mean and covariance of the chains' last states are the posterior's."""
    draws = linear.flat(mcmc.run(linear.mix).get_samples())
    mean_agrees(draws, linear.mean)
    deviation = draws - linear.mean
    upper = torch.triu_indices(16, 16)
    mean_agrees(deviation[:, upper[0]] * deviation[:, upper[1]], linear.covariance[upper[0], upper[1]])


@every
@pytest.mark.parametrize("sweep_every", [0, 3])
def test_chains_that_start_from_a_search_are_exact(linear, search, sweep_every, mean_agrees):
    """Last states of 2500 chains against the posterior; what the search found is forgotten in 100 steps."""
    kernel = GibbsMALA(linear.model, sweep_every=sweep_every)
    mcmc = LangevinMCMC(kernel, num_samples=1, warmup_steps=60, thinning=40, num_chains=2500, init=search, seed=0)
    posterior_agrees(linear, mcmc, mean_agrees)


def test_sweeps_alone_give_the_posterior(linear, mean_agrees):
    """With steps of next to nothing, all that moves the chains is the sweeps: from far off, 60 of them arrive."""
    kernel = GibbsMALA(linear.model, 1e-12, sweep_every=1, adapt_step_size=False)
    start = {"a": torch.full((8,), 3.0), "b": torch.full((8,), 3.0)}
    mcmc = LangevinMCMC(kernel, num_samples=1, warmup_steps=0, thinning=60, num_chains=2500, init=start, seed=0)
    posterior_agrees(linear, mcmc, mean_agrees)


@every_coupling
def test_steps_at_one_level_give_its_target(linear, coupling):
    """Plain steps without moves between levels, many at a top level alone: the noised posterior's own mean.

    Steps that are half of what is stable bias the covariance, not the mean; by the standard error of 2000 chains.
    """
    search = AnnealedSearch((0.7,), LangevinMoves(coupling, per_level=100, ancestral=False), redraws=0)
    found = search.run(linear.model, linear.mix, num_chains=2000)
    level = Potential(noised(linear.model, 0.7, coupling), (linear.mix,), num_chains=1)
    # The mode of a quadratic energy, by one Newton step from zero.
    gradient = linear.flat(level.value_and_grad(linear.split(torch.zeros(1, 16)))[1])
    rows = [linear.flat(level.value_and_grad(linear.split(row.unsqueeze(0)))[1]) - gradient for row in torch.eye(16)]
    mode = -torch.linalg.solve(torch.cat(rows), gradient.squeeze(0))
    draws = linear.flat(found.z)
    stderr = draws.std(0) / math.sqrt(2000)
    assert float(((draws.mean(0) - mode) / stderr).abs().max()) < 4.9  # 1e-4 over 3 couplings and 16 elements


# --- the search --------------------------------------------------------------------------------------------------


def toy(seed, waves=("sine", "saw", "square"), frame=512, periods=range(20, 60, 2)):
    """Priors of 20 periods, a mix of theirs, and the sources in it."""
    torch.manual_seed(seed)
    priors = {wave: OscillatorPrior(wave, frame=frame, periods=periods) for wave in waves}
    sources = torch.stack([prior.sample_clean() for prior in priors.values()])
    return priors, sources.mean(0) + 0.01 * torch.randn(frame), sources


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_sources_of_a_toy_mix(seed):
    """To better than 20 dB in the chain of highest density: noise at the priors' level alone leaves about 35 dB."""
    priors, mix, truth = toy(seed)
    kernel, search = MALA(mean_mix(priors), preconditioner="measured"), AnnealedSearch()
    mcmc = LangevinMCMC(kernel, num_samples=2, warmup_steps=10, num_chains=4, init=search, seed=0).run(mix)
    draws = mcmc.get_samples(group_by_chain=True)
    best = int(mcmc.sample_stats()["lp"][:, -1].argmax())
    found = torch.stack([draws[wave][best, -1] for wave in priors])
    assert float(si_sdr(found.unsqueeze(1), truth.unsqueeze(1)).min()) > 20


@pytest.mark.slow
def test_langevin_moves_find_two_sources():
    priors, mix, truth = toy(2, ("saw", "square"), 256, (20, 27, 35, 44))
    ended = AnnealedSearch(moves="denoised", redraws=6).run(mean_mix(priors), mix, num_chains=8)
    best = int(ended.log_joint().argmax())
    found = torch.stack([ended.z[wave][best] for wave in priors])
    assert float(si_sdr(found.unsqueeze(1), truth.unsqueeze(1)).min()) > 20


@every
@pytest.mark.parametrize("chains", [None, 3])
def test_calls_are_counted(linear, search, chains):
    """A descent takes one call a source at each level's steps, and one for each move between levels."""
    found = replace(search, redraws=0).run(linear.model, linear.mix, num_chains=chains)
    # Levels below the mix's own noise in a source, 0.5 / 0.86, are left out of sweeps; the last is the model's own.
    langevin = 2 * len(LADDER) + len(LADDER) - 1
    expected = 2 * (2 + 1 if isinstance(search.moves, SweepMoves) else langevin)
    assert found.calls.tolist() == [expected] * (chains or 1)


def test_progress_comes_to_its_end(linear):
    seen = []
    potential = linear.potential(3)
    z = initial_values(potential, "prior")
    AnnealedSearch(LADDER, redraws=3).search(potential, z, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (len(LADDER) + 3,) * 2


def test_settled_chains_are_left_alone(linear):
    """From the sources themselves a redraw is made by chains alone whose residual is above the noise."""
    priors, mix, truth = toy(3, ("saw", "square"))
    # Levels so low that the descent leaves the start as it is; chain 1 starts with the sources of another mix.
    wrong = torch.stack([prior.sample_clean() for prior in priors.values()])
    start = {wave: torch.stack([truth[k], wrong[k]]) for k, wave in enumerate(priors)}
    search = AnnealedSearch((0.02, 0.01), start=start, redraws=10)
    calls = search.run(mean_mix(priors), mix, num_chains=2).calls.tolist()
    assert calls[0] < calls[1]


# --- stability ---------------------------------------------------------------------------------------------------


@every_coupling
@pytest.mark.parametrize("ancestral", [True, False])
def test_a_stiff_mix_stays_stable(double, coupling, ancestral):
    """A noise of 1e-3 beside sources of one: the default step never leaves the sources' own range.

    Residuals are no larger than the noised sources themselves would leave at the last level but one.
    """
    spectra = ([2.0, 1.0, 0.5], [0.5, 1.0, 2.0])
    priors = {
        name: GaussianPrior(torch.tensor(spectrum), 16, sigma_min=1e-3)
        for name, spectrum in zip("ab", spectra, strict=True)
    }
    model = linear_mix(priors, [1.0, 3.0], 1e-3)
    mix = model().detach()
    ladder = tuple(torch.logspace(0.5, -3, 20).tolist())
    search = AnnealedSearch(ladder, LangevinMoves(coupling, per_level=10, ancestral=ancestral), redraws=1)
    found = search.run(model, mix, num_chains=20)
    for value in found.z.values():
        assert float(value.abs().max()) < 10  # deviations are below 1.5: beyond six of them
    residual = mix - found.z["a"] - 3 * found.z["b"]
    # At the last level the noise leaves 1e-3; half a stable step doubles a variance at most, and moves there last.
    assert float(residual.square().mean().sqrt()) < 3e-2
    assert bool(found.log_joint().isfinite().all())


def noisy_limit(sigma, noise, sources, own):
    excess = max(sigma**2 - own**2, 0)
    return 2 / (sources / (noise**2 + sources * excess) + 1 / sigma**2)


@pytest.mark.parametrize("sigma", [2.0, 0.5, 0.1])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_the_largest_step_in_closed_form(double, sigma, names):
    """For the sum of N sources under the noisy coupling: eta (N lambda + 1 / sigma^2) < 2."""
    priors = {name: GaussianPrior(torch.tensor([2.0, 1.0]), 8, sigma_min=0.1) for name in names}
    model = linear_mix(priors, noise=0.3)
    limit = noisy_limit(sigma, 0.3, len(names), 0.1)

    def run(factor):
        moves = LangevinMoves("noisy", step_size=lambda level: factor * limit)
        AnnealedSearch((sigma,), moves, redraws=0).run(model, torch.randn(8), num_chains=2)

    run(1 - 1e-4)  # the prior's level is kept in single precision
    with pytest.raises(ConfigurationError, match=f"noise level {sigma:.3g} is not stable"):
        run(1 + 1e-4)


@every_coupling
def test_the_bound_on_steps_is_above_the_largest_curvature(linear, coupling):
    r"""By the Hessian of the noised model, dense: what is enforced is stable, and no more careful than its formula."""
    for sigma in (2.0, 0.5, 0.1):
        search = AnnealedSearch((sigma,), LangevinMoves(coupling, step_size=lambda level: 1e9), redraws=0)
        with pytest.raises(ConfigurationError, match="between 0 and") as caught:
            search.run(linear.model, linear.mix, num_chains=2)
        limit = float(str(caught.value).rsplit(" ", 1)[1])
        level = Potential(noised(linear.model, sigma, coupling), (linear.mix,), num_chains=17)
        rows = linear.flat(level.value_and_grad(linear.split(torch.cat([torch.zeros(1, 16), torch.eye(16)])))[1])
        curvature = torch.linalg.matrix_norm(rows[1:] - rows[:1], 2)
        assert limit <= 2 / float(curvature) * (1 + 5e-3)  # printed to three digits
        # The observation's part is at most the whole curvature, the prior's at most 1 / sigma^2.
        assert limit >= 2 / (float(curvature) + 1 / sigma**2) * (1 - 5e-3)


# --- other models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [unknown_gains_mix, panned_mix, soft_clipped_mix])
@pytest.mark.parametrize("coupling", [None, "denoised"])
def test_mixes_that_are_not_linear_in_all_sites(double, make, coupling):
    """Finite draws, and a residual of a few times the noise: a pan that is wrong takes chains a while to mend."""
    priors = {
        name: GaussianPrior(torch.tensor(spectrum), 64, sigma_min=0.05)
        for name, spectrum in (("a", [1.0, 0.1, 0.01]), ("b", [0.01, 0.1, 1.0]))
    }
    model = make(priors, noise=0.1)
    mix = model().detach()
    moves = SweepMoves(per_level=4) if coupling is None else LangevinMoves(coupling, per_level=4)
    search = AnnealedSearch(LADDER, moves, redraws=4)
    mcmc = LangevinMCMC(
        GibbsMALA(model), num_samples=5, warmup_steps=90, thinning=10, num_chains=4, init=search, seed=0
    ).run(mix)
    for value in mcmc.get_samples().values():
        assert bool(torch.isfinite(value).all())
    relative = mcmc.sample_stats()["residual"][:, -1]
    assert float(relative.max()) < 2.5 * 0.1 / float(mix.square().mean().sqrt())


def test_heavy_tails(double):
    priors = {name: GaussianPrior(torch.tensor([1.0, 0.1]), 32, sigma_min=0.05) for name in "ab"}

    def model(mix=None):
        a, b = (pyro.sample(name, prior) for name, prior in priors.items())
        return pyro.sample("mix", dist.StudentT(4.0, a + b, 0.1).to_event(1), obs=mix)

    mix = model().detach()
    search = AnnealedSearch(LADDER, redraws=2)
    mcmc = LangevinMCMC(GibbsMALA(model), 5, 40, num_chains=3, init=search, seed=0).run(mix)
    assert float(mcmc.sample_stats()["residual"].max()) < 0.5
    with pytest.raises(ConfigurationError, match=r"StudentT.*Use LangevinMoves\('denoised'\)"):
        AnnealedSearch(LADDER, "sweeps").run(model, mix)


def test_the_constraint_needs_a_linear_mix(linear):
    model = soft_clipped_mix(linear.priors, 0.3)
    with pytest.raises(ConfigurationError, match="constraint needs a mix that is linear in its sources"):
        AnnealedSearch(LADDER, "constraint").run(model, linear.mix)


def test_one_source_alone(double):
    """There is nothing to redraw given the others: one denoising posterior, exact."""
    prior = GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), 8, sigma_min=0.1)
    for coupling in ("sweeps", "denoised"):
        model = linear_mix({"a": prior}, noise=0.5)
        search = AnnealedSearch(LADDER, coupling)
        mcmc = LangevinMCMC(GibbsMALA(model), 5, 20, num_chains=3, init=search, seed=0)
        assert bool(torch.isfinite(mcmc.run(torch.randn(8)).get_samples()["a"]).all())


def test_no_source_prior():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ConfigurationError, match="AnnealedSearch needs a model with source priors"):
        LangevinMCMC(MALA(model), 2, 2, init=AnnealedSearch()).run()


# --- starts, and Pyro's own MCMC ---------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("kernel", [NUTS, MALA, GibbsMALA])
def test_stock_mcmc_starts_from_a_search(linear, search, kernel):
    start = search.initial_params(linear.model, linear.mix, seed=0)
    found = search.run(linear.model, linear.mix, num_chains=None, seed=0)
    assert all(torch.equal(start[name], found.z[name]) for name in ("a", "b"))
    mcmc = MCMC(kernel(linear.model), 10, 60, initial_params=start, disable_progbar=True)
    mcmc.run(linear.mix)
    samples = mcmc.get_samples()
    assert {name: tuple(value.shape) for name, value in samples.items()} == {"a": (10, 8), "b": (10, 8)}
    assert len(samples["a"].unique(dim=0)) > 1


@pytest.mark.skipif(not hasattr(arviz, "from_pyro"), reason="ArviZ 1 does not read runs of Pyro")
def test_arviz_reads_a_stock_run(linear):
    start = AnnealedSearch(LADDER, redraws=1).initial_params(linear.model, linear.mix)
    kernel = GibbsMALA(linear.model)
    mcmc = MCMC(kernel, num_samples=8, warmup_steps=4, initial_params=start, disable_progbar=True)
    mcmc.run(linear.mix)
    assert arviz.from_pyro(mcmc).posterior["a"].shape == (1, 8, 8)


def guide(mix):
    pyro.sample("a", dist.Normal(mix, 0.1).to_event(1))
    pyro.sample("b", dist.Normal(0 * mix, 0.1).to_event(1))


@pytest.mark.parametrize("coupling", ["sweeps", "denoised"])
@pytest.mark.parametrize(
    "init",
    ["prior", "mix", {"a": torch.ones(8), "b": torch.zeros(3, 8)}, guide],
    ids=["prior", "mix", "values", "guide"],
)
def test_starts(linear, coupling, init):
    search = AnnealedSearch(LADDER, coupling, init, redraws=1)
    mcmc = LangevinMCMC(GibbsMALA(linear.model), num_samples=3, warmup_steps=5, num_chains=3, init=search)
    mcmc.run(linear.mix)
    assert mcmc.found.calls.shape == (3,)
    assert mcmc.get_samples(group_by_chain=True)["a"].shape == (3, 3, 8)


@pytest.mark.parametrize("coupling", ["sweeps", "denoised"])
def test_a_start_is_kept_as_far_as_the_ladder_leaves_it(coupling):
    """From the sources themselves, a ladder whose top tells waveforms apart stays with them; from noise it does not.

    Only one descent: chains that start with the sources end with a residual of the noise.
    """
    priors, mix, truth = toy(4, ("saw", "square"))
    search = AnnealedSearch((0.05, 0.02, 0.01), coupling, dict(zip(priors, truth, strict=True)), redraws=0)
    ended = search.run(mean_mix(priors), mix, num_chains=3)
    found = torch.stack([ended.z[wave] for wave in priors], 1)
    assert float(si_sdr(found.reshape(-1, 1, 512), truth.repeat(3, 1).unsqueeze(1)).min()) > 20


def test_mixes_of_their_own(double):
    """Each chain has its own mix; all find theirs."""
    toys = [toy(seed, ("saw", "square")) for seed in (5, 6, 7)]
    priors, mix = toys[0][0], torch.stack([mix for _, mix, _ in toys])
    ended = AnnealedSearch().run(mean_mix(priors), mix, num_chains=3)
    for chain, (_, _, truth) in enumerate(toys):
        found = torch.stack([ended.z[wave][chain] for wave in priors])
        assert float(si_sdr(found.unsqueeze(1), truth.unsqueeze(1)).min()) > 20, chain


def test_stereo_with_known_pans(double):
    priors, _, truth = toy(8, ("saw", "square"))
    model = poutine.condition(panned_mix(priors, 0.01), {"pans": torch.tensor([-0.3, 0.5])})
    mix = poutine.condition(model, dict(zip(priors, truth, strict=True)))().detach()
    ended = AnnealedSearch(moves="sweeps").run(model, mix, num_chains=4)
    best = int(ended.log_joint().argmax())
    found = torch.stack([ended.z[wave][best] for wave in priors])
    assert float(si_sdr(found.unsqueeze(1), truth.unsqueeze(1)).min()) > 20


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moves": "jumps"}, "coupling must be one of"),
        ({"ladder": (0.1, 1.0)}, "falling sequence"),
        ({"ladder": ()}, "falling sequence"),
        ({"ladder": 0}, "ladder must be a whole number, at least 1"),
        ({"start": AnnealedSearch()}, "can't start from another"),
        ({"redraws": -1}, "redraws must be a whole number, at least 0"),
        ({"block": 0}, "block must be a whole number, at least 1"),
        ({"redraw_levels": 0}, "redraw_levels must be a whole number, at least 1"),
        ({"exchanges": 1.5}, "exchanges is a share"),
        ({"acceptance": (0.0, 1.0)}, "acceptance must be two positive numbers"),
        ({"acceptance": (0.1,)}, "acceptance must be two positive numbers"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigurationError, match=message):
        AnnealedSearch(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: LangevinMoves("loose"), "coupling must be one of"),
        (lambda model: LangevinMoves(per_level=0), "per_level must be a whole number, at least 1"),
        (lambda model: LangevinMoves(per_level=1.5), "per_level must be a whole number"),
        (lambda model: SweepMoves(per_level=0), "per_level must be a whole number, at least 1"),
        (lambda model: SweepMoves(reverse_steps=0), "reverse_steps must be a whole number, at least 1"),
        (lambda model: GibbsMALA(model, sweep_every=-1), "sweep_every must be a whole number, at least 0"),
        (lambda model: GibbsMALA(model, 2.0), "step_size must be in"),
    ],
)
def test_bad_numbers_of_moves_and_kernels(linear, make, message):
    with pytest.raises(ConfigurationError, match=message):
        make(linear.model)


def test_the_old_name_starts_from_its_search_and_says_what_to_write(linear):
    with pytest.warns(DeprecationWarning, match=r"GibbsMALA\(model\), init=AnnealedSearch"):
        kernel = AnnealedSGLD(linear.model, LADDER, coupling="noisy", redraws=1)
    mcmc = LangevinMCMC(kernel, num_samples=2, warmup_steps=2, num_chains=3, seed=0).run(linear.mix)
    search = AnnealedSearch(LADDER, "noisy", redraws=1)
    again = LangevinMCMC(GibbsMALA(linear.model), 2, 2, num_chains=3, init=search, seed=0).run(linear.mix)
    assert torch.equal(mcmc.get_samples()["a"], again.get_samples()["a"])


def test_a_seed_leaves_the_callers_random_state_alone(linear):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = AnnealedSearch(LADDER, redraws=1).run(linear.model, linear.mix, num_chains=2, seed=7)
    LangevinMCMC(MALA(linear.model), 2, 2, num_chains=2, seed=7).run(linear.mix)
    assert torch.equal(torch.rand(3), expected)
    again = AnnealedSearch(LADDER, redraws=1).run(linear.model, linear.mix, num_chains=2, seed=7)
    assert torch.equal(first.z["a"], again.z["a"])


@pytest.mark.parametrize("step", [0.0, -1.0, 1e3, float("nan")])
def test_a_step_that_is_not_stable_names_the_level(linear, step):
    moves = LangevinMoves("denoised", step_size=lambda sigma: step if sigma == 0.5 else 1e-3)
    with pytest.raises(ConfigurationError, match=r"at noise level 0\.5 is not stable; expected one between 0 and"):
        AnnealedSearch((2.0, 0.5, 0.1), moves).run(linear.model, linear.mix)


@pytest.mark.gpu
@pytest.mark.parametrize("coupling", ["sweeps", "noisy", "denoised", "constraint"])
def test_on_a_gpu(coupling):
    priors = {wave: OscillatorPrior(wave, 128, periods=(13, 17)).to("cuda") for wave in ("saw", "square")}
    mix = torch.stack([prior.sample_clean() for prior in priors.values()]).mean(0)
    search = AnnealedSearch(moves=coupling, redraws=2)
    mcmc = LangevinMCMC(GibbsMALA(mean_mix(priors)), 5, 20, num_chains=3, init=search, seed=0)
    assert mcmc.run(mix).kernel.state.energy.device.type == "cuda"
    assert bool(mcmc.sample_stats()["lp"].isfinite().all())


# --- starts from a guide -----------------------------------------------------------------------------------------


class Near:
    """A guide that gives the true sources with an error, and says how large it is."""

    def __init__(self, truth, error):
        self.truth, self.error = truth, error

    def __call__(self, mix):
        for name, value in self.truth.items():
            pyro.sample(name, dist.Normal(value.expand(mix.shape), self.error + 1e-6).to_event(1))

    def error_level(self, mix):
        return torch.as_tensor(self.error).expand(mix.shape[:-1])


@pytest.fixture(scope="module")
def oscillating():
    pyro.set_rng_seed(3)
    priors = {wave: OscillatorPrior(wave, 512) for wave in ("saw", "square", "sine")}
    truth = {name: prior.sample() for name, prior in priors.items()}
    mix = torch.stack(list(truth.values())).mean(0) + 0.01 * torch.randn(512)
    return mean_mix(priors), truth, mix


@pytest.mark.parametrize(("error", "sweeps"), [(0.0, 1), (0.05, 2), (0.5, 4), (0.9, 5), (50.0, 5)])
def test_chains_come_in_at_the_level_of_their_guides_error(oscillating, error, sweeps):
    """A ladder of four levels, and a last sweep at the model's own noise; one call a source in a sweep."""
    model, truth, mix = oscillating
    search = AnnealedSearch((2.0, 0.7, 0.3, 0.1), start=Near(truth, error), redraws=0)
    assert search.run(model, mix, num_chains=4, seed=0).calls.tolist() == [3 * sweeps] * 4


def test_each_chain_comes_in_at_its_own_level(oscillating):
    model, truth, mix = oscillating
    errors = torch.tensor([0.05, 1.0])
    start = Near(truth, 0.1)
    start.error_level = lambda mixes: errors
    search = AnnealedSearch((2.0, 0.7, 0.3, 0.1), start=start, redraws=0)
    assert search.run(model, mix.expand(2, -1), num_chains=2, seed=0).calls.tolist() == [6, 15]
    # The same where a caller knows it.
    search = replace(search, start=truth, level=errors)
    assert search.run(model, mix.expand(2, -1), num_chains=2, seed=0).calls.tolist() == [6, 15]
    # Nothing is known of the second chain's start: it comes in at the top, as all would without a level.
    search = replace(search, level=torch.tensor([0.05, math.inf]))
    assert search.run(model, mix.expand(2, -1), num_chains=2, seed=0).calls.tolist() == [6, 15]


@pytest.mark.parametrize("coupling", ["sweeps", *GENERAL])
def test_a_near_start_is_kept(oscillating, coupling):
    """From a start that is off by 0.1 with a ladder from 5 on: the search ends nearer to the truth than it began."""
    model, truth, mix = oscillating
    search = AnnealedSearch((5.0, 1.0, 0.3, 0.15, 0.1, 0.05, 0.02, 0.01), coupling, Near(truth, 0.1), redraws=0)
    mcmc = LangevinMCMC(MALA(model), 1, 0, num_chains=4, init=search, seed=0).run(mix)
    for name, value in mcmc.get_samples().items():
        assert (si_sdr(value.reshape(4, 1, -1), truth[name].expand(4, 1, -1)) > 20).all()


def test_a_descent_that_explains_less_than_the_start_is_taken_back(oscillating):
    """A guide that is right but says it knows nothing: from the top of a short ladder few chains find the way again."""
    model, truth, mix = oscillating
    start = Near(truth, 0.0)
    start.error_level = lambda mixes: torch.tensor(50.0)
    search = AnnealedSearch((8.0, 0.5), redraws=0)
    lost = search.run(model, mix, num_chains=8, seed=0)
    kept = replace(search, start=start).run(model, mix, num_chains=8, seed=0)

    def worst(found):
        scores = [si_sdr(v.reshape(8, 1, -1), truth[k].expand(8, 1, -1)) for k, v in found.values().items()]
        return torch.stack(scores).amin(0)

    assert (worst(kept) > 20).all()
    assert (worst(lost) < 10).any()


class Astray(OscillatorPrior):
    """A prior whose draws, and what it denoises, are not numbers now and then."""

    def draw(self, value, level):
        drawn = super().draw(value, level)
        return torch.where(torch.rand(drawn.shape[:-1]).unsqueeze(-1) < 0.2, torch.nan, drawn)

    def denoise(self, value):
        clean = super().denoise(value)
        return torch.where(torch.rand(clean.shape[:-1]).unsqueeze(-1) < 0.05, torch.nan, clean)


@pytest.mark.parametrize("coupling", ["sweeps", "noisy"])
def test_a_prior_that_leads_chains_astray_does_not_end_the_search(oscillating, coupling):
    _, truth, mix = oscillating
    model = mean_mix({wave: Astray(wave, 512) for wave in truth})
    search = AnnealedSearch((1.0, 0.3, 0.1, 0.03, 0.01), coupling, truth, redraws=4)
    assert all(value.isfinite().all() for value in search.run(model, mix, num_chains=6).z.values())


def test_a_search_in_which_nothing_is_finite_says_so(oscillating):
    class Lost(OscillatorPrior):
        def denoise(self, value):
            return torch.nan * super().denoise(value)

    _, truth, mix = oscillating
    model = mean_mix({wave: Lost(wave, 512) for wave in truth})
    with pytest.raises(DivergenceError, match=r"no chain is finite any more at noise level 1"):
        AnnealedSearch((1.0, 0.1), "noisy", truth, redraws=0).run(model, mix, num_chains=2)
    # Where it is known how far off the start is, there is somewhere to go back to.
    found = AnnealedSearch((1.0, 0.1), "noisy", truth, level=1.0, redraws=0).run(model, mix, num_chains=2)
    for name, value in truth.items():
        torch.testing.assert_close(found.values()[name], value.expand(2, -1))


def test_a_start_that_explains_the_mix_by_no_sources_is_left(oscillating):
    """Every source the mix itself, and sure of it: no descent from there is kept; the search begins from nothing."""
    model, truth, mix = oscillating
    start = Near(dict.fromkeys(truth, mix), 0.01)
    found = AnnealedSearch(start=start).run(model, mix, num_chains=8, seed=0)
    scores = [si_sdr(v.reshape(8, 1, -1), truth[k].expand(8, 1, -1)) for k, v in found.values().items()]
    assert (torch.stack(scores).amin(0) > 20).sum() >= 4
