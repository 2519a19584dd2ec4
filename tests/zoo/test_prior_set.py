"""A prior set is a mapping that knows its gains, rate, guide and digest, whatever is made of it."""

import pytest
import torch

from pyrosep import ContinuousFlow, EncoderGuide, GaussianPrior, PriorSet, load_priors, save_guide, save_priors
from pyrosep.errors import ConfigurationError
from pyrosep.nn.refining import UNetSize
from pyrosep.zoo import guide_info

RATE, FRAME = 8_000, 64
TINY = UNetSize(hop=4, width=4, levels=0, layers=1)


def gaussians(*names, frame=FRAME, rate=RATE):
    return {name: GaussianPrior(torch.ones(3), frame, sample_rate=rate) for name in names}


def guide_of(*names):
    return EncoderGuide(list(names), size=TINY, project=True)


def test_it_is_a_mapping():
    plain = gaussians("a", "b")
    priors = PriorSet(plain, gains="mean")
    assert dict(priors) == plain
    assert (list(priors), len(priors), "a" in priors, "c" in priors) == (["a", "b"], 2, True, False)
    assert (priors.sample_rate, priors.time, priors.gains) == (RATE, FRAME, "mean")
    assert (priors.name, priors.digest, priors.guide(), priors.has_guide) == ("priors", None, None, False)
    assert PriorSet.of(priors) is priors
    assert PriorSet.of(plain).gains == "level"


def test_one_on_disk_knows_its_files(tmp_path):
    save_priors(tmp_path / "own", PriorSet(gaussians("a", "b"), gains="fit"))
    priors = load_priors(tmp_path / "own")
    assert (priors.name, priors.gains) == ("own", "fit")
    before = priors.digest
    assert before == priors.frame(32).digest == load_priors(tmp_path / "own").digest
    save_priors(tmp_path / "own", gaussians("c"))
    assert load_priors(tmp_path / "own").digest != before


def test_its_guide_is_loaded_when_it_is_asked_for(tmp_path, monkeypatch):
    save_priors(tmp_path / "own", gaussians("a", "b"))
    assert not load_priors(tmp_path / "own").has_guide
    save_guide(tmp_path / "own" / "guide", guide_of("a", "b"))
    calls = []
    monkeypatch.setattr(
        "pyrosep.zoo.prior_set.load_guide", lambda folder, device: calls.append(folder) or guide_of("a", "b")
    )
    priors = load_priors(tmp_path / "own")
    assert priors.has_guide
    assert not calls
    assert priors.frame(32).guide() is priors.with_precision("auto").guide() is priors.guide()
    assert calls == [tmp_path / "own" / "guide"]
    assert not priors.with_guide(None).has_guide
    assert priors.with_guide(None).guide() is None


def test_what_is_made_of_a_set_keeps_what_it_knows():
    guide = guide_of("a", "b")
    priors = PriorSet(gaussians("a", "b"), gains="mean", temperatures={"langevin": 2.0}, guide=guide)
    for other in (priors.frame(32), priors.to("cpu"), priors.with_precision("32-true"), priors.only(["a", "b"])):
        assert (other.gains, other.temperatures, list(other)) == ("mean", {"langevin": 2.0}, ["a", "b"])
        assert other.guide().names == ("a", "b")
    assert priors.frame(32).time == 32
    assert priors.time == FRAME


def test_other_sources_have_neither_guide_nor_temperatures():
    priors = PriorSet(gaussians("a", "b"), gains="mean", temperatures={"langevin": 2.0}, guide=guide_of("a", "b"))
    for other in (priors.only(["b"]), priors.only(["b", "a"]), priors | gaussians("c")):
        assert (other.gains, other.temperatures, other.has_guide) == ("mean", {}, False)
    assert list(priors | gaussians("c")) == ["a", "b", "c"]
    assert list(priors.only(["b", "a"])) == ["b", "a"]


def test_precision_is_for_those_that_have_one(filtering_flows):
    flows = filtering_flows({"a": torch.ones(3)}, FRAME, RATE)
    priors = PriorSet(flows | gaussians("b"))
    half = priors.with_precision("bf16-mixed")
    assert isinstance(half["a"], ContinuousFlow)
    assert half["a"].autocast == torch.bfloat16
    assert half["b"] is priors["b"]
    assert priors["a"].autocast is None


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PriorSet({}), "at least one prior"),
        (lambda: PriorSet(gaussians("a"), gains="loud"), "gains must be one of"),
        (lambda: PriorSet(gaussians("a"), temperatures={"langevin": 0.0}), "temperatures must be positive"),
        (lambda: PriorSet(gaussians("a") | gaussians("b", rate=16_000)), "one sample rate; got 16000, 8000"),
        (lambda: PriorSet(gaussians("a") | gaussians("b", frame=32)), "one frame; got 32, 64"),
        (lambda: PriorSet(gaussians("a", "b"), guide=guide_of("b", "a")), "expected the priors'"),
        (lambda: PriorSet(gaussians("a", "b")).only(["c"]), "asked for .'c'"),
        (lambda: PriorSet(gaussians("a", "b")).only([]), "at least one"),
        (lambda: PriorSet({"": GaussianPrior(torch.ones(2), 8)}), "name"),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ConfigurationError, match=match):
        make()


def test_a_guide_on_disk_of_other_sources_is_refused_when_it_is_asked_for(tmp_path):
    save_guide(tmp_path / "guide", guide_of("b", "a"))
    priors = PriorSet(gaussians("a", "b"), guide=guide_info(tmp_path / "guide"))
    with pytest.raises(ConfigurationError, match="expected the priors'"):
        priors.guide()
