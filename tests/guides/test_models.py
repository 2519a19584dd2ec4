"""Guides on disk."""

import json

import pytest
import torch
from torch.distributions import constraints

from pyrosep import EncoderGuide, GaussianPrior, load_guide, save_guide, save_priors
from pyrosep.errors import CheckpointError, ConfigurationError, UnknownModelError
from pyrosep.guides import UNetSize

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
    save_guide(tmp_path / "guide", guide())
    config = tmp_path / "guide" / "config.json"
    config.write_text(config.read_text().replace('"width": 6', '"width": 7'))
    with pytest.raises(CheckpointError, match="no whole guide"):
        load_guide(tmp_path / "guide")
    (tmp_path / "guide" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no whole guide"):
        load_guide(tmp_path / "guide")
