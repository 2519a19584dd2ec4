"""What a run of a model is made of: every kind of site is told from the others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrosep import GaussianPrior
from pyrosep.reading import Reading, kept_of, plate_nesting

TIME = 8
PRIOR = GaussianPrior(torch.ones(2), TIME)


def model(mix, heard=None):
    """Every kind of site that Pyro has."""
    a, b = pyro.sample("a", PRIOR), pyro.sample("b", PRIOR)
    gain = pyro.sample("gain", dist.LogNormal(0.0, 1.0))
    pyro.deterministic("sum", a + gain[..., None] * b)
    pyro.factor("smooth", -a.diff().square().sum(-1))
    with pyro.plate("members", 3, dim=-1):
        pyro.sample("c", PRIOR)
    with pyro.plate("songs", 2, dim=-2):
        pyro.sample("d", PRIOR)
        pyro.sample("songs heard", dist.Normal(torch.zeros(TIME), 1.0).to_event(1), obs=mix.expand(2, 1, TIME))
    pyro.sample("e", PRIOR.expand([2]).to_event(1))
    with poutine.scale(scale=0.25):
        pyro.sample("mix", dist.Normal(a + b, 0.5).mask(torch.arange(TIME) < 3).to_event(1), obs=mix)
    with poutine.mask(mask=torch.tensor(False)):
        pyro.sample("again", dist.Normal(a - b, 0.5).to_event(1), obs=mix)


@pytest.fixture
def reading():
    return Reading.of(poutine.trace(model).get_trace(torch.zeros(TIME)))


def test_roles(reading):
    assert list(reading.latent) == ["a", "b", "gain", "c", "d", "e"]
    assert list(reading.data) == ["songs heard", "mix", "again"]
    assert list(reading.deterministic) == ["sum"]
    assert list(reading.factors) == ["smooth"]
    assert list(reading.subsamples) == ["members", "songs"]
    assert list(reading.priors) == ["a", "b", "c", "d", "e"]
    assert all(isinstance(prior, GaussianPrior) for prior in reading.priors.values())


def test_masks_scales_and_plates(reading):
    assert [name for name, site in reading.sites.items() if site.masked] == ["mix", "again"]
    assert [name for name, site in reading.sites.items() if site.scaled] == ["mix"]
    assert dict(reading.sites["c"].plates) == {"members": 3}
    assert reading.sites["c"].axes == 1
    assert reading.sites["d"].axes == 2


def test_sources_of_one_site(reading):
    """A plate without data holds the sources of one mix; one with data holds mixes."""
    assert reading.members == {"a": 1, "b": 1, "c": 3, "d": 1, "e": 2}
    assert reading.labels("a") == ["a"]
    assert reading.labels("c") == ["c[0]", "c[1]", "c[2]"]


def test_sources_of_one_prior(reading):
    assert reading.alike == [("a", "b", "c[0]", "c[1]", "c[2]", "d", "e[0]", "e[1]")]
    other = GaussianPrior(torch.ones(2), TIME)

    def apart():
        pyro.sample("a", PRIOR)
        pyro.sample("b", other)

    assert Reading.of(poutine.trace(apart).get_trace()).alike == []


def test_what_a_mask_keeps():
    trace = poutine.trace(model).get_trace(torch.zeros(TIME))
    assert kept_of(trace.nodes["mix"]).tolist() == [True] * 3 + [False] * 5
    assert kept_of(trace.nodes["again"]).tolist() == [False]
    assert kept_of(trace.nodes["songs heard"]) is None
    with poutine.trace() as tracer, poutine.mask(mask=torch.tensor([True, False])), pyro.plate("two", 2):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2, 3]).mask(torch.tensor([True, True, False])).to_event(1))
    assert kept_of(tracer.trace.nodes["x"]).tolist() == [[True, True, False], [False, False, False]]


def test_what_is_conditioned_is_data():
    trace = poutine.trace(poutine.condition(model, {"a": torch.zeros(TIME), "gain": torch.tensor(1.0)}))
    reading = Reading.of(trace.get_trace(torch.zeros(TIME)))
    assert set(reading.data) == {"a", "gain", "songs heard", "mix", "again"}
    assert "a" not in reading.priors


def test_observations_with_gaps():
    """Pyro's ``obs_mask`` makes a latent site of what is not observed."""

    def gaps(mix):
        kept = torch.arange(TIME) < 3
        with pyro.plate("time", TIME):
            pyro.sample("mix", dist.Normal(0.0, 1.0), obs=mix, obs_mask=kept)

    reading = Reading.of(poutine.trace(gaps).get_trace(torch.zeros(TIME)))
    assert list(reading.latent) == ["mix_unobserved"]
    assert list(reading.data) == ["mix_observed"]
    assert list(reading.deterministic) == ["mix"]


def test_plate_nesting():
    assert plate_nesting(poutine.trace(model).get_trace(torch.zeros(TIME))) == 2
