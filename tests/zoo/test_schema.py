"""Folders that others wrote: whatever ``config.json`` and the weights hold, they load or are refused, soon."""

import copy
import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyrosep import (
    ContinuousFlow,
    EncoderGuide,
    FloWaveNet,
    GaussianPrior,
    OscillatorPrior,
    load_guide,
    load_priors,
    save_guide,
    save_priors,
)
from pyrosep.errors import CheckpointError, PyrosepError
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser, Denoiser, DenoiserSize
from pyrosep.nn.refining import UNetSize
from pyrosep.priors.flowavenet import FloWaveNetwork, FlowSize

FRAME = 64
BANDS = BandSize(window=64, bands=4, width=4, neck=4, layers=1, features=4)
WRONG = [
    *(None, True, "x", "", [], {}, [1], ["x"], [[]], {"x": 1}),
    *(-1, 0, 0.5, 3, 1e-300, 1e300, float("nan"), float("inf"), 2**16, 2**31, 2**40, 10**400),
    [2**40, 2**40],
]


def prior_sets():
    flow = FlowSize(squeeze=(4, 2), flows=(2, 2), layers=(2, 2), width=(8, 8), features=8)
    wave = DenoiserSize(hop=4, width=8, levels=1, layers=1, heads=2, features=8)
    return {
        "gaussian": GaussianPrior(torch.ones(9), FRAME),
        "oscillator": OscillatorPrior("saw", FRAME, periods=(5, 7)),
        "flowavenet": FloWaveNet(FloWaveNetwork(flow, torch.ones(9)), FRAME, sigma_min=0.05),
        "denoiser": ContinuousFlow(Denoiser(wave, torch.ones(9)), FRAME),
        "bands": ContinuousFlow(BandDenoiser(BANDS, torch.ones(9)), FRAME),
    }


def guides():
    wave = UNetSize(hop=4, width=6, levels=1, layers=2)
    heads = {"gains": ((2,), torch.distributions.constraints.positive)}
    return {
        "waves": EncoderGuide(["a", "b"], size=wave, project="gains", heads=heads),
        "bands": EncoderGuide(["a", "b"], size=BANDS, project=(0.5, 0.5), shared=True),
    }


def places(config):
    """Paths to all values in a configuration, at any depth."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in places(value))


def changed(config, place, value):
    new = copy.deepcopy(config)
    inner = new
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return new


def check_all(folder, load):
    """Every value of the configuration replaced by every wrong one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for place in places(config):
        for value in WRONG:
            path.write_text(json.dumps(changed(config, place, value)))
            began = time.perf_counter()
            try:
                load(folder)
            except PyrosepError:
                pass
            except Exception as error:
                pytest.fail(f"{place} of {value!r}: {type(error).__name__}: {error}")
            assert time.perf_counter() - began < 20, (place, value)


@pytest.mark.parametrize("family", ["gaussian", "oscillator", "flowavenet", "denoiser", "bands"])
def test_any_value_in_a_prior_sets_configuration(family, tmp_path):
    save_priors(tmp_path, {"a": prior_sets()[family]})
    load_priors(tmp_path)
    check_all(tmp_path, load_priors)


@pytest.mark.parametrize("name", ["waves", "bands"])
def test_any_value_in_a_guides_configuration(name, tmp_path):
    save_guide(tmp_path, guides()[name])
    load_guide(tmp_path)
    check_all(tmp_path, load_guide)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("sample_rate",), [], r"expected a whole number from 1 to 10000000, or null for 'sample_rate'; got \[\]"),
        (("gains",), {}, "expected 'mean', 'level' or 'fit' for 'gains'"),
        (("priors", "a", "size", "width"), 2**40, "expected numbers up to 65536 by name for 'size'"),
        (("priors", "a", "size", "width"), 2**16, "a network far larger than the weights"),
        (("priors", "a", "size", "layers"), 2**16, "a network far larger than the weights"),
        (("priors", "a", "size", "width"), [4], "has a wrong value for source 'a'"),
        (("priors", "a", "sigma_min"), "low", "expected a number of at least 0 for 'sigma_min'; got low"),
        (("frame",), 2**40, "expected a whole number from 1 to 67108864 for 'frame'"),
    ],
)
def test_what_errors_of_prior_sets_say(place, value, message, tmp_path):
    save_priors(tmp_path, {"a": prior_sets()["denoiser"]})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    with pytest.raises(CheckpointError, match=message):
        load_priors(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("heads",), 1e-300, "expected an object with the shape, the support and its two bounds of each head"),
        (("size", "layers"), 2**16, "a network far larger than the weights"),
        (("size", "width"), 7, "no whole guide: it has a wrong value .*size mismatch|loading state_dict"),
        (("shared",), 3, "expected true or false for 'shared'; got 3"),
    ],
)
def test_what_errors_of_guides_say(place, value, message, tmp_path):
    save_guide(tmp_path, guides()["waves"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    with pytest.raises(CheckpointError, match=message):
        load_guide(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.int(), r"expected floats for 'spectrum'; got torch\.int32"),
        (lambda tensor: tensor / 0, "'spectrum' has values that are NaN or infinite"),
        (lambda tensor: tensor[:0], "wrong value|spectrum"),
        (lambda tensor: tensor.expand(2, -1), "wrong value|spectrum"),
        (lambda tensor: -tensor, "wrong value|spectrum"),
    ],
)
@pytest.mark.parametrize("family", ["gaussian", "denoiser"])
def test_weights_that_are_no_spectrum(family, change, message, tmp_path):
    save_priors(tmp_path, {"a": prior_sets()[family]})
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"a.spectrum": change(tensors["a.spectrum"]).contiguous()}, path)
    with pytest.raises(PyrosepError, match=message):
        load_priors(tmp_path)
