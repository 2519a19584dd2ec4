"""Guides that mask the mix's short-time spectrum, and their loss."""

from dataclasses import replace

import pyro
import pytest
import torch
from pyro import poutine

from pyrosep import EncoderGuide, GaussianPrior, fit_guide
from pyrosep.errors import ConfigurationError
from pyrosep.mixing import linear_mix
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.masking import MaskingNet
from pyrosep.training.guides import _Run
from pyrosep.training.objectives import GuideObjective
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer
from pyrosep.zoo import load_guide, save_guide

TINY = BandSize(window=16, bands=3, width=4, neck=4, layers=2)
RECURRENT = replace(TINY, recurrent=True, phases=True)
SIZES = pytest.mark.parametrize(
    "size", [TINY, RECURRENT, replace(RECURRENT, neck=0)], ids=["convolutions", "recurrent", "no neck"]
)
NAMES = ("a", "b", "c")


def shaken(module, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return module.eval().requires_grad_(False)


@SIZES
@pytest.mark.parametrize("shared", [True, False])
def test_each_mean_starts_as_its_share_of_the_mix(shared, size):
    guide, mix = EncoderGuide(NAMES, shared=shared, size=size), torch.randn(5, 50)
    mean, deviation = guide.moments(mix)
    torch.testing.assert_close(mean, mix.unsqueeze(1).expand(5, 3, 50), rtol=0, atol=1e-5)  # gains of a mean: 1/3 each
    assert float(deviation.detach().min()) > 0


@SIZES
def test_means_share_the_mix_out(size):
    guide, mix = shaken(EncoderGuide(NAMES, shared=True, size=size)), torch.randn(5, 50)
    guide.encoders.direct.fill_(1 / 3)
    mean, _ = guide.moments(mix)
    torch.testing.assert_close(mean.sum(1), mix, rtol=0, atol=1e-5)
    assert float((mean[:, 0] - mean[:, 1]).abs().max()) > 0.1


def test_masks_change_phases_where_the_size_says_so():
    """Shifted by a quarter of a period, a bin stays in phase with itself under real masks alone."""
    mix = torch.randn(5, 64)
    for size, turned in ((TINY, False), (RECURRENT, True)):
        network = shaken(MaskingNet(1, 2, 2, size))
        told = network.net(network.transform(mix.unsqueeze(1)))[0]
        assert (told.shape[1] > 2) is turned
        if turned:
            masks = network._turned(told[:, 2:])
            assert float(masks.imag.abs().max()) > 0.1
            torch.testing.assert_close(masks.sum(1), torch.zeros_like(masks[:, 0]), rtol=0, atol=1e-5)


def test_deviations_are_those_of_the_shares():
    """Of equal shares of two, of white noise of variance one: 4 d^2 g (1 - g) = 1/4 with d = 1/2, g = 1/2."""
    network = MaskingNet(1, 2, 2, TINY)
    _, deviation, _ = network(torch.randn(500, 1, 64), torch.full((2, 1), 0.5))
    middle = deviation.detach()[..., 16:48].square().mean()
    assert float(middle) == pytest.approx(0.25, rel=0.1)


@SIZES
def test_mixes_of_a_batch_do_not_meet(size):
    guide, mix = shaken(EncoderGuide(NAMES, shared=True, size=size)), torch.randn(3, 50)
    other = mix.clone()
    other[1] = torch.randn(50)
    changed = [
        (new != old).flatten(1).any(-1).tolist()
        for new, old in zip(guide.moments(other), guide.moments(mix), strict=True)
    ]
    assert changed == [[False, True, False]] * 2


@SIZES
def test_it_is_written_and_loaded(tmp_path, size):
    guide, mix = shaken(EncoderGuide(NAMES, shared=True, size=size, project=True)), torch.randn(2, 50)
    save_guide(tmp_path, guide)
    again = load_guide(tmp_path)
    assert again.size == size
    for found, expected in zip(again.moments(mix), guide.moments(mix), strict=True):
        torch.testing.assert_close(found, expected)


# --- the weighed likelihood --------------------------------------------------------------------------------------

SPECTRA = {"low": [4.0, 0.01, 0.01], "high": [0.01, 0.01, 4.0]}


@pytest.fixture
def priors():
    return {name: GaussianPrior(torch.tensor(own), 64) for name, own in SPECTRA.items()}


def run_of(priors, guide, beta):
    model = linear_mix(priors, [1.0, 1.0], 0.1)
    settings = TrainingSettings(steps=2, batch=4)
    return _Run(model, guide, None, GuideObjective(beta=beta), settings)


def test_without_beta_it_is_the_likelihood(priors):
    guide = shaken(EncoderGuide(priors, shared=True, size=TINY))
    likelihood, weighed = (run_of(priors, guide, beta) for beta in (0.0, 1e-6))
    batch = likelihood.draw(4)
    assert float(weighed.loss(guide, batch)) == pytest.approx(float(likelihood.loss(guide, batch)), rel=1e-4)


def test_with_beta_of_one_means_have_the_gradient_of_the_squared_error(priors):
    guide = shaken(EncoderGuide(priors, shared=True, size=TINY)).requires_grad_(True)
    run = run_of(priors, guide, 1.0)
    mix, values = run.draw(4)
    mean, deviation = guide.encode(mix)
    level = mix.square().mean(-1).sqrt()
    truth = torch.stack([values[name] for name in SPECTRA], 1)
    # What the deviations add is taken out by holding them.
    squared = ((mean - truth).square() / 2 / level.square()[:, None, None]).sum() / truth.numel()
    normal = torch.distributions.Normal(mean.detach(), deviation)
    weight = (deviation.detach() / level[:, None, None]).square()
    rest = -(weight * normal.log_prob(truth)).sum() / truth.numel()
    parameters = [p for name, p in guide.named_parameters() if "trust" not in name]
    expected = torch.autograd.grad(squared + rest, parameters, allow_unused=True)
    found = torch.autograd.grad(run.loss(guide, (mix, values)), parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@SIZES
def test_it_learns(priors, size):
    """Two sources apart in frequency, in a few steps: better than the mix as estimate by some decibels."""
    pyro.set_rng_seed(0)
    guide = EncoderGuide(priors, shared=True, size=size, project=[1.0, 1.0], noise=0.1)
    model = linear_mix(priors, [1.0, 1.0], 0.1)
    settings = TrainingSettings(steps=60, batch=8, learning_rate=0.02, optimizer="muon", warmup=5, ema=0.9)
    fit_guide(model, guide, trainer=Trainer(settings, quiet=True), beta=0.5, num_samples=0)
    with torch.no_grad(), poutine.block(), pyro.plate("mixes", 64):
        trace = poutine.trace(model).get_trace()
    truth = torch.stack([trace.nodes[name]["value"] for name in SPECTRA], 1)
    mean = guide.moments(trace.nodes["mix"]["value"])[0].detach()
    error = (mean - truth).square().sum() / truth.square().sum()
    assert float(error) < 0.2, "the mix itself has 1, an exact Wiener filter 0.05"


def test_beta_out_of_range(priors):
    guide = EncoderGuide(priors, shared=True, size=TINY)
    with pytest.raises(ConfigurationError, match="beta must be from 0 to 1"):
        fit_guide(linear_mix(priors, [1.0, 1.0], 0.1), guide, beta=2.0, trainer=Trainer(quiet=True))
