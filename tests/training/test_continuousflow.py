"""Training continuous flows: towards the exact denoiser, resumable, at the levels that are asked for."""

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch

from pyrosep import ContinuousFlow
from pyrosep.errors import CheckpointError, ConfigurationError
from pyrosep.nn.denoiser import DENOISERS, Denoiser, DenoiserSize
from pyrosep.training.continuousflow import denoising_loss, noised_batch, train_continuousflow, training_levels
from pyrosep.training.settings import PRESETS, TrainingSettings
from pyrosep.training.trainer import Trainer

# Lightning asks for worker processes, pytrees and the like.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

TINY = DENOISERS["tiny"]


@pytest.mark.slow
def test_it_comes_close_to_the_exact_denoiser(gaussian_frames):
    """Of what an untrained one, white noise's, is off by, less than a fifth is left; and the density follows."""
    frames = gaussian_frames()
    settings = TrainingSettings(steps=250, batch=64, learning_rate=0.02, optimizer="muon", ema=0.98, warmup=20)
    prior, report = train_continuousflow(frames, TINY, Trainer(settings, quiet=True), sigma_min=0.05)
    untrained = ContinuousFlow(Denoiser(TINY, prior.network.spectrum), 32, sigma_min=0.05)
    for level in (0.1, 0.36, 1.0, 3.0):
        x = frames.exact.at(level).sample((500,))
        best = frames.exact.at(level).denoise(x)
        off, was = ((one.at(level).denoise(x) - best).square().mean() for one in (prior, untrained))
        assert float(off) < 0.2 * float(was)
        density, naive, true = (
            float(one.mean())
            for one in (
                prior.at(level).log_density(x[:20], steps=16).value,
                untrained.at(level).log_density(x[:20], steps=1).value,
                frames.exact.at(level).log_prob(x[:20]),
            )
        )
        if level < 1:  # at high levels there is hardly a difference to be learned
            assert abs(density - true) < 0.1 * (true - naive)
    for level in (0.1, 0.36, 1, 3):
        assert report[f"SNR at {level}"] == pytest.approx(report[f"exact at {level}"], abs=1)
        assert report[f"SNR at {level}"] < report[f"exact at {level}"] + 0.01
    assert (prior.sample_rate, prior.time, prior.sigma_min) == (8000, 32, 0.05)
    assert prior.sigma_max == pytest.approx(math.sqrt(float(prior.network.variance) * 32))


def test_batch_is_what_the_denoiser_is_to_give():
    """D(x) = s exactly where F is what it is trained to give; which has variance 1 at every level."""
    network = Denoiser(TINY, torch.full((5,), 0.5))
    clean, sigma = math.sqrt(0.5) * torch.randn(4, 20_000), torch.tensor([0.01, 0.5, 1.0, 20.0])
    y, levels, aim = noised_batch(clean, sigma, 0.5)
    assert torch.equal(levels, sigma)
    x = y * (0.5 + sigma.square()).sqrt().unsqueeze(-1)
    network.forward = lambda *_: aim
    torch.testing.assert_close(network.denoise(x, sigma), clean, rtol=0, atol=1e-5)
    noise = (x - clean) / sigma.unsqueeze(-1)
    # Variances of 20,000 normal numbers: a standard error of 1 per cent, and five of those.
    torch.testing.assert_close(noise.var(-1), torch.ones(4), rtol=0, atol=0.05)
    torch.testing.assert_close(y.var(-1), torch.ones(4), rtol=0, atol=0.05)
    torch.testing.assert_close(aim.var(-1), torch.ones(4), rtol=0, atol=0.05)


def test_loss_is_the_papers():
    """Karras et al. (2022), eq. 2 and table 1: (v + sigma^2) / (v sigma^2) times the mean square error."""
    network = Denoiser(TINY, torch.full((5,), 0.5)).requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    clean, sigma = torch.randn(6, 32), torch.tensor([0.05, 0.1, 0.5, 1.0, 3.0, 9.0])
    batch = noised_batch(clean, sigma, 0.5)
    x = batch[0] * (0.5 + sigma.square()).sqrt().unsqueeze(-1)
    error = (network.denoise(x, sigma) - clean).square().mean(-1)
    expected = ((0.5 + sigma.square()) / (0.5 * sigma.square()) * error).mean()
    torch.testing.assert_close(denoising_loss(network, batch), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("spread", [1.5, None])
def test_levels_have_the_distribution_that_is_asked_for(spread):
    """Kolmogorov-Smirnov, false-alarm rate 1e-4."""
    sigma = training_levels(5000, 0.5, 0.01, 8.0, spread)
    assert 0.01 <= float(sigma.min()) < float(sigma.max()) <= 8
    low, high = math.log(0.01), math.log(8.0)
    if spread is None:
        distribution = scipy.stats.uniform(low, high - low)
    else:
        centre = math.log(0.5)
        distribution = scipy.stats.truncnorm((low - centre) / 1.5, (high - centre) / 1.5, centre, 1.5)
    assert scipy.stats.kstest(sigma.log().numpy(), distribution.cdf).pvalue > 1e-4


def test_resumed_it_is_the_same_bit_for_bit(tmp_path, quick, gaussian_frames):
    frames = gaussian_frames()
    arguments = {"quiet": True, "resume": True}
    unbroken, _ = train_continuousflow(frames, TINY, Trainer(quick(), folder=tmp_path / "a", **arguments))
    train_continuousflow(frames, TINY, Trainer(quick(), folder=tmp_path / "b", until=3, **arguments))
    resumed, report = train_continuousflow(frames, TINY, Trainer(quick(), folder=tmp_path / "b", **arguments))
    assert report["steps"] == 6
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])
    with pytest.raises(CheckpointError, match=r"other settings \(spread 1\.5, not None\)"):
        train_continuousflow(frames, TINY, Trainer(quick(), folder=tmp_path / "b", **arguments), spread=None)


def test_in_mixed_precision(quick, gaussian_frames):
    prior, report = train_continuousflow(gaussian_frames(), TINY, Trainer(quick(precision="bf16-mixed"), quiet=True))
    assert report["parameters"] == sum(value.numel() for value in prior.network.parameters())
    assert {value.dtype for value in prior.network.state_dict().values()} == {torch.float32}


def test_spectrum_is_the_sources(quick, gaussian_frames):
    frames = gaussian_frames()
    prior, _ = train_continuousflow(frames, TINY, Trainer(quick(), quiet=True))
    # A mean of 1024 periodograms, each exponential about the spectrum: 1/32 of it is a standard error; five of those.
    assert float((prior.spectrum / frames.exact.spectrum).log().abs().max()) < 5 / 32


def test_it_goes_on_from_another_prior(quick, gaussian_frames):
    frames = gaussian_frames()
    first, _ = train_continuousflow(frames, TINY, Trainer(quick(), quiet=True))
    x = frames.exact.at(0.5).sample((3,))
    before = first.at(0.5).denoise(x)
    slow = quick(steps=1, learning_rate=1e-9)
    second, _ = train_continuousflow(frames, TINY, Trainer(slow, quiet=True), start=first)
    torch.testing.assert_close(second.at(0.5).denoise(x), before, rtol=0, atol=1e-4)
    third, _ = train_continuousflow(frames, TINY, Trainer(quick(), quiet=True), start=first)
    assert not torch.allclose(third.at(0.5).denoise(x), before, atol=1e-4)
    assert torch.equal(first.at(0.5).denoise(x), before)
    with pytest.raises(ConfigurationError, match="must be of this size"):
        train_continuousflow(frames, DenoiserSize(width=8), Trainer(quick(), quiet=True), start=first)


def test_levels_out_of_order(quick, gaussian_frames):
    with pytest.raises(ConfigurationError, match=r"must rise from above 0; got 2\.0 to 1"):
        train_continuousflow(gaussian_frames(), TINY, Trainer(quick(), quiet=True), sigma_min=2.0, sigma_max=1.0)


def test_without_a_trainer_the_preset_is_taken(monkeypatch, gaussian_frames):
    monkeypatch.setitem(PRESETS, "continuousflow", replace(PRESETS["continuousflow"], steps=2, batch=3))
    assert train_continuousflow(gaussian_frames(), TINY)[1]["steps"] == 2
