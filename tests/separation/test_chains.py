"""Which chains of a guided separation start where."""

import pytest
import torch

from pyrosep import EncoderGuide, load_priors
from pyrosep.errors import ConfigurationError
from pyrosep.separation.chains import SharedDescent
from pyrosep.separation.from_guide import GuideStart
from pyrosep.separation.problem import Problem


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
