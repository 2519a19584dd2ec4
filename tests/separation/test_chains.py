"""Which chains of a guided separation start where."""

import numpy as np
import pytest
import torch

from pyrosep import MALA, AnnealedSearch, EncoderGuide, GaussianPrior, load_priors
from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer import ChainWarning
from pyrosep.separation.chains import Chains, LocalSearch, SharedDescent
from pyrosep.separation.from_guide import GuideStart
from pyrosep.separation.problem import Problem
from pyrosep.zoo import PriorSet


@pytest.fixture(scope="module")
def problem():
    priors = load_priors("band-small", frame=8192)
    mix = 0.1 * torch.randn(2, 1, 8192, generator=torch.Generator().manual_seed(0))
    return Problem(mix, priors, torch.ones(4), 1e-4, keep=4, seed=0, sample_rate=16_000)


def draws(problem, **numbers):
    return SharedDescent(chains=4, draws=1, **numbers).posterior(problem).draws  # one of each chain, chain by chain


def test_a_quarter_of_the_chains_from_a_guide_start_from_the_mix(problem):
    def apart(one, other):
        return float((one.mean(0) - other.mean(0)).square().mean())

    alone, guided = draws(problem), draws(problem, guided=True, from_mix=0.0)
    hedged = draws(problem, guided=True)
    assert torch.equal(draws(problem, guided=True, from_mix=1.0), alone)
    assert apart(hedged[3:], alone) < apart(hedged[3:], guided)
    assert apart(hedged[:3], guided) < apart(hedged[:3], alone)


def test_a_single_chain_starts_from_the_guide(problem):
    one = SharedDescent(chains=1, draws=1, guided=True)
    none = SharedDescent(chains=1, draws=1, guided=True, from_mix=0.0)
    assert torch.equal(one.posterior(problem).mean, none.posterior(problem).mean)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(ConfigurationError, match="from_mix is a share, from 0 to 1"):
        SharedDescent(from_mix=share)


def test_the_guide_reads_each_window_once_whatever_the_number_of_chains(problem, monkeypatch):
    seen, moments = [], EncoderGuide.moments

    def counted(guide, mix, *more):
        seen.append(len(mix))
        return moments(guide, mix, *more)

    monkeypatch.setattr(EncoderGuide, "moments", counted)
    draws(problem, guided=True)
    assert seen == [2]


def test_a_start_of_copies_is_that_of_each_of_them(problem):
    guide, rows = problem.priors.guide(), problem.rows(3)
    once = GuideStart(guide, problem.gains, drawn=False, copies=3)
    each = GuideStart(guide, problem.gains, drawn=False)
    with torch.no_grad():
        for name, value in each(rows).items():
            # Batches of other sizes are rounded in another order.
            torch.testing.assert_close(once(rows)[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(once.error_level(rows), each.error_level(rows), rtol=1e-4, atol=0)


# Chains that are lost


RATE = 8_000


def gaussian_problem(windows=2, frame=64):
    generator = torch.Generator().manual_seed(0)
    spectra = {"low": [1.0, 0.1, 0.01], "high": [0.01, 0.1, 1.0]}
    priors = {name: GaussianPrior(torch.tensor(own), frame, sample_rate=RATE) for name, own in spectra.items()}
    mix = 0.5 * torch.randn(windows, 1, frame, generator=generator)
    return Problem(mix, PriorSet.of(priors), torch.ones(2), 0.1, keep=2, seed=0, sample_rate=RATE)


class Stopping(MALA):
    """One of whose chains is stopped at its third step."""

    lost = (1,)

    def transition(self, state):
        moved = super().transition(state)
        if self.num_steps < 3:
            return moved
        z = {name: value.clone() for name, value in moved.z.items()}
        for value in z.values():
            value[list(self.lost)] = float("nan")
        return self._stop_diverged(state, self.evaluate(z))


@pytest.mark.parametrize("ladder", [None, 3], ids=["free", "searched"])
def test_a_chain_that_is_stopped_is_left_out(ladder, monkeypatch):
    """Chain 0 of window 1 is row 1 of 3 chains of 2 windows; the others count as they are."""
    problem = gaussian_problem()
    method = Chains(chains=3, draws=6, warmup=4, ladder=ladder, redraws=0)
    monkeypatch.setattr(Chains, "_kernel", lambda self, model: Stopping(model, 0.5))
    with (
        pytest.warns(ChainWarning, match="its draws are left out"),
        pytest.warns(ChainWarning, match="1 of 6 chains were stopped, or have draws that are not finite"),
    ):
        found = method.posterior(problem)
    for value in (found.mean, found.stddev, found.draws):
        assert bool(value.isfinite().all())
    lost = np.isnan(found.summaries["energy_db"]).all((1, 3, 4))
    assert lost.tolist() == [[False, True], [False, False], [False, False]]
    if ladder is None:  # the chains that are left count alike
        kept = found.summaries["projection"][1:, :, 1, 0].reshape(12, 2, -1).mean(0)
        directions = np.random.default_rng(0).standard_normal((4, 64))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        np.testing.assert_allclose(found.mean[1, :, 0].numpy() @ directions.T, kept, atol=1e-4)


def test_a_window_whose_chains_are_all_stopped_is_an_error(monkeypatch):
    monkeypatch.setattr(Stopping, "lost", (1, 3, 5))
    monkeypatch.setattr(Chains, "_kernel", lambda self, model: Stopping(model, 0.5))
    with (
        pytest.warns(ChainWarning, match="its draws are left out"),
        pytest.raises(DivergenceError, match="every chain of 1 windows"),
    ):
        Chains(chains=3, draws=6, warmup=4, ladder=None).posterior(gaussian_problem())


@pytest.mark.parametrize(
    "method", [SharedDescent(chains=4, draws=1), LocalSearch(chains=4, draws=1)], ids=["shared", "local"]
)
def test_a_search_that_loses_a_chain_goes_on_with_the_others(method, problem, monkeypatch):
    search = AnnealedSearch.run

    def losing(self, *arguments, **options):
        found = search(self, *arguments, **options)
        found.z["bass"][2] = float("nan")  # of 4 chains of 2 windows: chain 1 of window 0
        return found

    whole = method.posterior(problem)
    monkeypatch.setattr(AnnealedSearch, "run", losing)
    with pytest.warns(ChainWarning, match="1 of 8 chains"):
        found = method.posterior(problem)
    assert bool(found.mean.isfinite().all())
    assert bool(found.stddev.isfinite().all())
    assert torch.equal(found.mean[1], whole.mean[1])
    chains = whole.draws[:, 0]
    torch.testing.assert_close(found.mean[0], chains[[0, 2, 3]].mean(0), rtol=1e-4, atol=1e-6)
