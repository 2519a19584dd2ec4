"""Guides on disk."""

import json

import pytest
import torch
from torch.distributions import constraints

from pyrosep import EncoderGuide, GaussianPrior, load_guide, save_guide, save_priors, zoo
from pyrosep.errors import CheckpointError, ConfigurationError, UnknownModelError
from pyrosep.nn.refining import UNetSize
from pyrosep.zoo import GuideInfo, guide_info

TINY = UNetSize(hop=4, width=6, levels=1, layers=2)


def guide(**options):
    own = EncoderGuide(
        {"a": GaussianPrior(torch.ones(2), 8), "b": GaussianPrior(torch.ones(2), 8)}, size=TINY, **options
    )
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return own


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared": True, "project": (0.25, 0.75), "noise": 0.2},
        {"channels": 2, "project": ((0.25, 0.75), (0.5, 0.1)), "noise": 0.2},
        {"project": "gains", "heads": {"gains": ((2,), constraints.positive)}, "noise": 0.2},
        {
            "channels": 2,
            "heads": {"gains": ((2,), constraints.positive), "pans": ((2,), constraints.interval(-1.0, 1.0))},
        },
    ],
)
def test_loaded_it_draws_the_same_bits(tmp_path, options):
    own = guide(**options)
    own.temperature.copy_(torch.tensor([0.5, 2.0]))
    save_guide(tmp_path / "guide", own, provenance={"steps": 12})
    loaded = load_guide(tmp_path / "guide")
    mix = torch.randn(3, *((2,) if own.channels else ()), 21)
    draws = []
    for one in (own, loaded):
        torch.manual_seed(0)
        draws.append(one(mix))
    assert list(draws[0]) == list(draws[1])
    for name, value in draws[0].items():
        assert torch.equal(value, draws[1][name])
    assert json.loads((tmp_path / "guide" / "config.json").read_text())["provenance"] == {"steps": 12}


def test_precision_is_kept(tmp_path):
    save_guide(tmp_path / "guide", guide().double())
    assert load_guide(tmp_path / "guide").temperature.dtype == torch.float64


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_weights_in_half_precision(tmp_path, dtype, bits):
    """A file of half the size; what is loaded is single, each weight rounded once, and estimates differ by little."""
    torch.manual_seed(1)
    own = EncoderGuide(["a", "b"], size=UNetSize(hop=4, width=48, levels=1, layers=2), project=True, noise=0.1)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    own.temperature.copy_(torch.tensor([1.2345678, 0.7654321]))
    save_guide(tmp_path / "full", own)
    save_guide(tmp_path / "half", own, dtype=dtype)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert 0.5 * full < half < 0.55 * full
    loaded = load_guide(tmp_path / "half")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    for name, value in own.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name], value), name
    stored = dict(loaded.named_parameters())
    for name, value in own.named_parameters():
        assert torch.equal(stored[name], value.to(dtype).float()), name
    assert all(parameter.dtype == torch.float32 for parameter in own.parameters()), "the guide itself stays as it is"
    mix = torch.randn(4, 64)
    with torch.no_grad():
        (mean, scale), (rounded, its_scale) = own.moments(mix), loaded.moments(mix)
    # Some tens of roundings in a row, each relative to what is rounded.
    assert 0 < float((rounded - mean).std() / mean.std()) < 32 * 2.0**-bits
    torch.testing.assert_close(its_scale, scale, rtol=32 * 2.0**-bits, atol=0)


def test_a_guide_that_is_half_itself_is_loaded_single(tmp_path):
    own = guide().half()
    save_guide(tmp_path / "guide", own)
    loaded = load_guide(tmp_path / "guide")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.sigma_min, own.sigma_min.float())


def test_what_a_guide_is(tmp_path, monkeypatch):
    save_guide(tmp_path / "plain", guide())
    plain = guide_info(tmp_path / "plain")
    assert plain == GuideInfo("plain", tmp_path / "plain", ("a", "b"), None, None, "")
    here = zoo.guides()
    assert {"toy-guide", "band-guide", "music-guide"} <= {info.name for info in here}
    monkeypatch.setenv("PYROSEP_MODELS", str(tmp_path / "own"))
    assert zoo.guides() == here
    save_guide(tmp_path / "own" / "guides" / "named", guide(), model="toy", frame=8, summary="one line")
    named = guide_info("named")
    assert (named.name, named.model, named.frame, named.summary) == ("named", "toy", 8, "one line")
    assert {info.name for info in zoo.guides()} == {info.name for info in here} | {"named"}
    assert load_guide("named").names == named.sources
    before = named.digest()
    assert before == guide_info(tmp_path / "own" / "guides" / "named").digest() != plain.digest()
    other = guide()
    with torch.no_grad():
        other.encoders.direct.add_(1)
    save_guide(tmp_path / "own" / "guides" / "named", other, model="toy", frame=8, summary="one line")
    assert named.digest() != before
    with pytest.raises(UnknownModelError, match=r"one that is here \(.*named.*\)"):
        guide_info("nowhere")


def test_gains_by_a_function_are_kept_out_of_files(tmp_path):
    heads = {"gains": ((2,), constraints.positive)}
    own = guide(project=lambda values: 2 * values["gains"], heads=heads)
    with pytest.raises(ConfigurationError, match=r"function of its heads can't be written.*state_dict\(\)"):
        save_guide(tmp_path / "guide", own)
    assert not (tmp_path / "guide").exists()
    twin = guide(project=lambda values: 2 * values["gains"], heads=heads)
    twin.load_state_dict(own.state_dict())  # what the message says to do
    assert torch.equal(own.moments(torch.ones(21))[0], twin.moments(torch.ones(21))[0])


def test_errors(tmp_path):
    with pytest.raises(UnknownModelError, match="no guide 'nowhere'"):
        load_guide("nowhere")
    with pytest.raises(ConfigurationError, match="expected an EncoderGuide; got a Linear"):
        save_guide(tmp_path / "guide", torch.nn.Linear(1, 1))
    save_priors(tmp_path / "priors", {"a": GaussianPrior(torch.ones(2), 8)})
    with pytest.raises(ConfigurationError, match="holds a model that is no guide"):
        save_guide(tmp_path / "priors", guide())
    with pytest.raises(CheckpointError, match="is not a guide's"):
        load_guide(tmp_path / "priors")
    with pytest.raises(CheckpointError, match="is not a guide's"):
        guide_info(tmp_path / "priors")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is a file"):
        save_guide(tmp_path / "file", guide())
    with pytest.raises(ConfigurationError, match="stored as floats"):
        save_guide(tmp_path / "guide", guide(), dtype=torch.int8)
    large = guide()
    with torch.no_grad():
        large.encoders.direct.fill_(1e5)
    with pytest.raises(
        ConfigurationError, match=r"encoders.direct has values up to 1e\+05, too large for torch.float16"
    ):
        save_guide(tmp_path / "guide", large, dtype=torch.float16)
    assert not (tmp_path / "guide").exists()
    save_guide(tmp_path / "guide", guide())
    config = tmp_path / "guide" / "config.json"
    config.write_text(config.read_text().replace('"width": 6', '"width": 7'))
    with pytest.raises(CheckpointError, match="no whole guide"):
        load_guide(tmp_path / "guide")
    (tmp_path / "guide" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no whole guide"):
        load_guide(tmp_path / "guide")


@pytest.mark.parametrize("name", ["../../escaped", "/elsewhere/x", "a\0b", "", "bass.std", 3])
def test_names_of_sources_that_no_files_can_have(name, tmp_path):
    save_guide(tmp_path / "mine", EncoderGuide(["bass", "drums"]))
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    config["sources"] = ["bass", name]
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    for call in (guide_info, load_guide):
        with pytest.raises(CheckpointError, match=r"config\.json can't be used: .*ename"):
            call(tmp_path / "mine")
    if isinstance(name, str) and name and "." not in name:
        with pytest.raises(ConfigurationError, match="ename"):
            save_guide(tmp_path / "other", EncoderGuide(["bass", name]))
        assert not (tmp_path / "other").exists()
