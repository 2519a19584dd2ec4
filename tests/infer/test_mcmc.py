"""Many chains as one batch: where they start, what is kept, and what happens to those that fail."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosep import MALA, SGLD, AnnealedSearch, GaussianPrior, GibbsMALA, LangevinMCMC, OscillatorPrior, Potential
from pyrosep.errors import ConfigurationError, DivergenceError, InitializationError, LeakError, ShapeError
from pyrosep.infer import ChainWarning, initial_values
from pyrosep.mixing import linear_mix, mean_mix, panned_mix, unknown_gains_mix

TIME = 8


@pytest.fixture
def priors():
    return {name: GaussianPrior(torch.tensor([1.0, 0.5]), TIME) for name in "abc"}


@pytest.fixture
def mix():
    return torch.randn(TIME)


def still(model):
    """A kernel whose draws are its start, but for steps of 1e-12."""
    return SGLD(model, 1e-12, temperature=0.0, preconditioner=None)


def starting_draws(model, mix, init, chains=3):
    mcmc = LangevinMCMC(still(model), 1, 0, num_chains=chains, init=init).run(mix)
    return mcmc.get_samples()


# --- where chains start ------------------------------------------------------------------------------------------


def test_from_the_prior(priors, mix, mean_agrees):
    draws = starting_draws(linear_mix(priors), mix, "prior", chains=5000)["a"]
    mean_agrees(draws, 0.0)
    mean_agrees(torch.fft.rfft(draws).abs().square() / TIME, priors["a"].spectrum + 1e-6)


@pytest.mark.parametrize(("make", "share"), [(linear_mix, 1 / 3), (mean_mix, 1.0)])
def test_from_the_mix(priors, mix, make, share):
    """A third of it for the sum of three, the mix itself for their mean."""
    for name, value in starting_draws(make(priors, noise=0.5), mix, "mix").items():
        torch.testing.assert_close(value, (share * mix).expand(3, -1), msg=name)


def test_from_a_mix_of_each_chain(priors):
    mixes = torch.randn(3, TIME)
    torch.testing.assert_close(starting_draws(mean_mix(priors, noise=0.5), mixes, "mix")["b"], mixes)


def test_from_a_stereo_mix(priors):
    mix = torch.randn(2, TIME)
    draws = starting_draws(panned_mix(priors, noise=0.5), mix, "mix")
    direction = torch.nn.functional.normalize(mix.mean(0), dim=0)
    along = draws["a"] @ direction
    torch.testing.assert_close(draws["a"], along.unsqueeze(-1) * direction)  # the same shape in every chain
    assert bool((draws["pans"].abs() < 1).all())


@pytest.mark.parametrize(
    "noise",
    [
        lambda mean: dist.Normal(mean, 0.1),
        lambda mean: dist.Cauchy(mean, 0.1),
        lambda mean: dist.StudentT(1.0, mean, 0.1),
        lambda mean: dist.StudentT(3.0, mean, 0.1),
    ],
    ids=["normal", "cauchy", "t1", "t3"],
)
def test_from_a_mix_of_any_noise_and_from_silence(priors, mix, noise):
    """An observation without a mean has a mode; of silence, every source is silent."""

    def model(mix):
        total = sum(pyro.sample(name, prior) for name, prior in priors.items())
        pyro.sample("mix", noise(total).to_event(1), obs=mix)

    mixes = torch.stack([mix, torch.zeros(TIME), 2 * mix])
    for given in (mixes, torch.zeros(3, TIME)):
        z = initial_values(Potential(model, (given,), num_chains=3), "mix")
        torch.testing.assert_close(z["b"], given / 3)


def test_from_values(priors, mix):
    given = {"a": torch.randn(3, TIME), "gains": torch.tensor([0.5, 1.0, 2.0])}
    draws = starting_draws(unknown_gains_mix(priors, noise=0.5), mix, given)
    torch.testing.assert_close(draws["a"], given["a"])
    torch.testing.assert_close(draws["gains"], given["gains"].expand(3, -1))
    assert not torch.equal(draws["b"][0], draws["b"][1])  # from the prior


def test_from_a_guide(priors, mix):
    def guide(mix):
        pyro.sample("a", dist.Delta(2 * mix, event_dim=1))
        pyro.sample("b", dist.Normal(torch.zeros(TIME), 1.0).to_event(1))
        pyro.sample("auxiliary", dist.Normal(0.0, 1.0))

    draws = starting_draws(linear_mix(priors, noise=0.5), mix, guide)
    torch.testing.assert_close(draws["a"], (2 * mix).expand(3, -1))
    assert not torch.equal(draws["b"][0], draws["b"][1])  # each chain has a draw of its own


def test_from_nowhere(priors, mix):
    model = unknown_gains_mix(priors, noise=0.5)
    for init, error, message in (
        ("noise", ConfigurationError, "init must be 'prior', 'mix', a mapping from sites to values, a guide, or"),
        ({"d": mix}, ConfigurationError, r"initial values for \['d'\].*latent sites are \['a', 'b', 'c', 'gains'\]"),
        ({"a": torch.zeros(4, TIME)}, ShapeError, r"site 'a' have shape \(4, 8\); expected \(3, 8\)"),
        ({"a": torch.full((TIME,), math.nan)}, InitializationError, "site 'a' are not finite"),
        ({"gains": torch.full((3,), -1.0)}, InitializationError, "site 'gains' are not finite or not in its support"),
    ):
        with pytest.raises(error, match=message):
            starting_draws(model, mix, init)


def test_from_a_mix_that_is_not_there(priors):
    def no_sources(data):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.zeros(TIME), 1.0).to_event(1), obs=data)

    def no_mix(data):
        pyro.sample("a", priors["a"])

    for model, message in ((no_sources, "needs sites with a source prior"), (no_mix, "needs an observed site of 8")):
        with pytest.raises(ConfigurationError, match=message):
            initial_values(Potential(model, (torch.zeros(TIME),), num_chains=2), "mix")


# --- what is kept ------------------------------------------------------------------------------------------------


def test_shapes(priors, mix):
    mcmc = LangevinMCMC(MALA(unknown_gains_mix(priors, noise=0.5)), 5, 4, num_chains=3).run(mix)
    by_chain = mcmc.get_samples(group_by_chain=True)
    assert {name: tuple(value.shape) for name, value in by_chain.items()} == {
        "a": (3, 5, TIME),
        "b": (3, 5, TIME),
        "c": (3, 5, TIME),
        "gains": (3, 5, 3),
    }
    assert torch.equal(mcmc.get_samples()["a"], by_chain["a"].reshape(15, TIME))
    assert mcmc.get_samples(7)["a"].shape == (7, TIME)
    assert {name: tuple(value.shape) for name, value in mcmc.sample_stats().items()} == dict.fromkeys(
        ("lp", "acceptance_rate", "step_size", "residual"), (3, 5)
    )
    assert mcmc.chains == [0, 1, 2]
    assert mcmc.diagnostics()["stopped"] == {}


@pytest.mark.parametrize("thinning", [1, 3])
def test_thinning_keeps_every_nth_state(priors, mix, thinning):
    seen = []

    def hook(kernel, z, stage, i):
        if stage == "Sample":
            seen.append(z["a"].clone())

    model = linear_mix(priors, noise=0.5)
    mcmc = LangevinMCMC(SGLD(model), 4, 2, num_chains=2, thinning=thinning, hook_fn=hook).run(mix)
    assert len(seen) == 4 * thinning
    torch.testing.assert_close(
        mcmc.get_samples(group_by_chain=True)["a"], torch.stack(seen[thinning - 1 :: thinning], 1)
    )


def test_statistics_belong_to_their_draws(priors, mix):
    model = linear_mix(priors, noise=0.5)
    mcmc = LangevinMCMC(SGLD(model), 3, 2, num_chains=2).run(mix)
    draws = mcmc.get_samples(group_by_chain=True)
    potential = Potential(model, (mix,), num_chains=2)
    for draw in range(3):
        z = {name: value[:, draw] for name, value in draws.items()}
        lp = -potential(z).double()
        torch.testing.assert_close(mcmc.sample_stats()["lp"][:, draw], lp)
        torch.testing.assert_close(mcmc.sample_stats()["residual"][:, draw], potential.residual().double())


def test_statistics_of_mala_belong_to_accepted_states(priors, mix):
    """Residual and energy of the state that is kept, not of a proposal that was rejected."""
    model = linear_mix(priors, noise=0.1)
    mcmc = LangevinMCMC(MALA(model, preconditioner="prior"), 100, 60, num_chains=4, seed=0).run(mix)
    stats, draws = mcmc.sample_stats(), mcmc.get_samples(group_by_chain=True)
    assert bool((draws["a"][:, 1:] == draws["a"][:, :-1]).any())  # some were rejected
    potential = Potential(model, (mix,), num_chains=4)
    energy, residual = [], []
    for draw in range(100):
        energy.append(potential({name: value[:, draw] for name, value in draws.items()}))
        residual.append(potential.residual())
    # The sites' log-densities are in single precision, and with a gradient they are found by another formula.
    torch.testing.assert_close(stats["lp"].float(), -torch.stack(energy, 1).float())
    torch.testing.assert_close(stats["residual"].float(), torch.stack(residual, 1).float())


def test_seed_makes_runs_identical(priors, mix):
    model = linear_mix(priors, noise=0.5)

    def run(seed):
        return LangevinMCMC(MALA(model), 5, 5, num_chains=2, seed=seed).run(mix).get_samples()["a"]

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_a_kernel_can_run_again(priors, mix):
    """A second run starts anew: it does not remember stopped chains, steps or step sizes."""
    model = linear_mix(priors, noise=0.5)
    kernel = MALA(model)
    first = LangevinMCMC(kernel, 5, 5, num_chains=2, seed=3).run(mix).get_samples()["a"]
    second = LangevinMCMC(kernel, 5, 5, num_chains=2, seed=3).run(mix).get_samples()["a"]
    assert torch.equal(first, second)


def test_model_with_plates(priors):
    def model(mix):
        with pyro.plate("channels", 2, dim=-1):
            source = pyro.sample("a", priors["a"])
            pyro.sample("mix", dist.Normal(source, 0.5).to_event(1), obs=mix)

    mcmc = LangevinMCMC(MALA(model), 4, 4, num_chains=3).run(torch.randn(2, TIME))
    assert mcmc.get_samples(group_by_chain=True)["a"].shape == (3, 4, 2, TIME)


def test_oscillators_on_their_own_mix():
    """Exact density, two sources: the chains stay at the truth that they start from."""
    priors = {wave: OscillatorPrior(wave, 64, 0.05, periods=(13, 20, 31)) for wave in ("sine", "saw")}
    model = mean_mix(priors, noise=0.02)
    truth = {name: prior.at(0.0).sample() for name, prior in priors.items()}
    mix = sum(truth.values()) / 2
    mcmc = LangevinMCMC(MALA(model, 0.05, preconditioner=None), 10, 60, num_chains=3, init=truth, seed=0).run(mix)
    for name, value in truth.items():
        error = mcmc.get_samples()[name] - value
        # The prior at this level is N(waveform, 0.05**2): of 64 samples, an rms of 0.1 (four times the variance) has a
        # probability below 1e-23.
        assert float(error.square().mean(-1).sqrt().max()) < 0.1


# --- state of the whole process ----------------------------------------------------------------------------------


def test_threads_take_turns(priors):
    """Pyro's handlers are one stack for all threads: runs in several give what each gives alone."""
    model, mixes = linear_mix(priors, noise=0.5), torch.randn(4, TIME)

    def run(seed):
        return LangevinMCMC(MALA(model), 15, 10, num_chains=2, seed=seed).run(mixes[seed]).get_samples()["a"]

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_run_in_inference_mode_is_a_run(priors, mix):
    model = linear_mix(priors, noise=0.5)

    def run(mix, kernel=MALA):
        return LangevinMCMC(kernel(model), 5, 5, num_chains=2, seed=3, init="mix").run(mix).get_samples()["a"]

    expected = run(mix)
    with torch.inference_mode():
        assert torch.equal(run(mix), expected)
        found = run(1.0 * mix)  # a tensor of inference mode
        search = AnnealedSearch(3, redraws=1).run(model, 1.0 * mix, num_chains=2, seed=0).values()["a"]
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found, expected)
    assert torch.equal(search, AnnealedSearch(3, redraws=1).run(model, mix, num_chains=2, seed=0).values()["a"])
    with torch.no_grad():
        assert torch.equal(run(mix), expected)
        assert not torch.is_grad_enabled()


def test_priors_made_in_inference_mode_are_refused_by_name(mix):
    with torch.inference_mode():
        learned = OscillatorPrior("saw", TIME, 0.5, periods=(4,))
        learned.sigma = learned.sigma.clone()

        def model(mix):
            level = pyro.sample("level", dist.LogNormal(0.0, 1.0))
            source = pyro.sample("a", learned)
            pyro.sample("mix", dist.Normal(level[..., None] * learned.sigma * source, 0.5).to_event(1), obs=mix)

        with pytest.raises(
            ConfigurationError, match=r"made inside of torch\.inference_mode\(\): make the priors outside"
        ):
            LangevinMCMC(MALA(model), 2, 2, num_chains=2).run(mix)


@pytest.mark.parametrize("kernel", [SGLD, MALA, GibbsMALA])
def test_copies(priors, mix, kernel):
    """Before a run and after it: a copy has the same draws, and runs by itself."""
    mcmc = LangevinMCMC(kernel(linear_mix(priors, noise=0.5)), 5, 5, num_chains=2, seed=3, init=AnnealedSearch(3))
    before = copy.deepcopy(mcmc)
    draws = mcmc.run(mix).get_samples()["a"]
    after = copy.deepcopy(mcmc)
    assert torch.equal(after.get_samples()["a"], draws)
    assert torch.equal(after.potential.residual(), mcmc.potential.residual())
    assert torch.equal(before.run(mix).get_samples()["a"], draws)
    after.run(2 * mix)
    assert torch.equal(mcmc.get_samples()["a"], draws)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_results_of_chains_that_have_not_run(priors, mix):
    mcmc = LangevinMCMC(MALA(linear_mix(priors, noise=0.5)), 5, num_chains=2)
    results = {
        "get_samples": mcmc.get_samples,
        "sample_stats": mcmc.sample_stats,
        "diagnostics": mcmc.diagnostics,
        "summary": mcmc.summary,
        "chains": lambda: mcmc.chains,
        "stopped": lambda: mcmc.stopped,
    }
    for result in (*results.values(), mcmc.kernel.diagnostics):
        with pytest.raises(ConfigurationError, match=r"expected .* run.*; call .*run\(\.\.\.\)"):
            result()
    mcmc.run(mix)
    for result in results.values():
        result()
    with pytest.raises(InitializationError):
        mcmc.run(torch.full((TIME,), math.inf))
    for result in results.values():  # and not those of the run before
        with pytest.raises(ConfigurationError, match="expected chains that have run to the end"):
            result()


# --- chains that fail --------------------------------------------------------------------------------------------


def quartic(priors):
    """Steps from far out overshoot, ever farther; near zero they are fine."""

    def model(mix):
        source = pyro.sample("a", priors["a"])
        pyro.sample("mix", dist.Normal(source.square(), 1.0).to_event(1), obs=mix)

    return model


def test_a_chain_that_diverges_is_left_out(priors):
    start = {"a": torch.tensor([0.1, 50.0, -0.1]).unsqueeze(-1).expand(3, TIME)}
    kernel = SGLD(quartic(priors), 0.01, preconditioner=None)
    mcmc = LangevinMCMC(kernel, 20, 5, num_chains=3, init=start, seed=0)
    with pytest.warns(ChainWarning, match="chain 1 stopped at step .*; its draws are left out"):
        mcmc.run(torch.zeros(TIME))
    assert mcmc.chains == [0, 2]
    assert list(mcmc.stopped) == [1]
    assert mcmc.diagnostics()["stopped"] == mcmc.stopped
    draws = mcmc.get_samples(group_by_chain=True)["a"]
    assert draws.shape == (2, 20, TIME)
    assert bool(torch.isfinite(draws).all())
    assert bool((draws.std(1) > 0).all())  # the others went on
    assert all(len(value) == 2 for value in mcmc.sample_stats().values())


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_chain_that_becomes_nan_is_left_out(priors):
    def model(mix):
        source = pyro.sample("a", priors["a"])
        # Not a number beyond 3, where it draws only the second chain, which starts near.
        pyro.factor("wall", -torch.log(3 - source).sum(-1))

    start = {"a": torch.tensor([0.0, 2.9999]).unsqueeze(-1).expand(2, TIME)}
    kernel = SGLD(model, 0.01, preconditioner=None)
    mcmc = LangevinMCMC(kernel, 10, 0, num_chains=2, init=start, seed=0)
    with pytest.warns(ChainWarning, match="chain 1 stopped at step 0: its energy or gradient is not finite"):
        mcmc.run(None)
    assert mcmc.chains == [0]


def test_every_chain_diverges(priors, mix):
    kernel = SGLD(linear_mix(priors, noise=0.01), 10.0, preconditioner=None)
    with pytest.raises(DivergenceError, match=r"every chain has diverged by step .*smaller step size"):
        LangevinMCMC(kernel, 50, 50, num_chains=3).run(mix)


def test_the_only_chain_diverges(priors, mix):
    kernel = SGLD(linear_mix(priors, noise=0.01), 10.0, preconditioner=None)
    with pytest.raises(DivergenceError, match="the chain has diverged"):
        LangevinMCMC(kernel, 50, 50, num_chains=1).run(mix)


def test_chains_that_never_move_are_named(priors, mix):
    kernel = MALA(linear_mix(priors, noise=1e-3), 1.0, adapt_step_size=False, preconditioner=None)
    with pytest.warns(ChainWarning, match=r"chains \[0, 1\] did not move in 5 steps"):
        LangevinMCMC(kernel, 5, 0, num_chains=2).run(mix)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("chains", [1, 4])
def test_data_that_is_not_finite(priors, mix, bad, chains):
    mix[3] = bad
    for kernel in (SGLD, MALA):
        with pytest.raises(InitializationError, match=r"no finite energy and gradient .* sites 'mix'.*Check the data"):
            LangevinMCMC(kernel(linear_mix(priors)), 5, num_chains=chains).run(mix)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_data_that_is_not_finite_as_a_start(priors, mix):
    mix[3] = math.nan
    with pytest.raises(InitializationError, match=r"'a'|'mix'"):
        LangevinMCMC(SGLD(linear_mix(priors)), 5, num_chains=2, init="mix").run(mix)


def test_a_model_whose_chains_meet(priors, mix):
    def model(mix):
        source = pyro.sample("a", priors["a"])
        pyro.sample("mix", dist.Normal(source / source.abs().max(), 0.5).to_event(1), obs=mix)

    with pytest.raises(LeakError, match="'a'"):
        LangevinMCMC(MALA(model), 5, num_chains=4).run(mix)


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("num_samples", 0),
        ("num_samples", 2.5),
        ("warmup_steps", -1),
        ("num_chains", 0),
        ("num_chains", 1.5),
        ("thinning", 0),
    ],
)
def test_numbers_out_of_range(priors, name, bad):
    arguments = {"num_samples": 5, name: bad}
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number, at least"):
        LangevinMCMC(MALA(linear_mix(priors)), **arguments)


def test_a_kernel_of_another_kind(priors):
    with pytest.raises(ConfigurationError, match=r"got HMC\. Pyro's own kernels run the same model under"):
        LangevinMCMC(pyro.infer.HMC(linear_mix(priors)), 5)


def test_warm_up_is_as_long_as_the_run_by_default(priors):
    assert LangevinMCMC(MALA(linear_mix(priors)), 7).warmup_steps == 7


def test_progress_bar(priors, mix, capsys):
    """None where standard error is no terminal."""
    LangevinMCMC(MALA(linear_mix(priors, noise=0.5)), 3, 3).run(mix)
    assert capsys.readouterr() == ("", "")


def test_summary_of_pyro(priors, mix, capsys):
    LangevinMCMC(MALA(linear_mix(priors, noise=0.5)), 8, 8, num_chains=2).run(mix).summary()
    assert "a[0]" in capsys.readouterr().out


def test_the_check_of_chains_can_be_left_out(monkeypatch, priors, mix):
    checked = []
    monkeypatch.setattr(Potential, "check_independence", lambda self, z: checked.append(1))
    for check, times in ((True, 1), (False, 1)):
        LangevinMCMC(MALA(mean_mix(priors)), 1, 0, num_chains=2, check=check, disable_progbar=True).run(mix)
        assert len(checked) == times
