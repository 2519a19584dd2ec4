"""Separation of a mix in memory: sums, lengths and rates, the Wiener filter, and the chains against it."""

import math
import random
import re
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import arviz
import numpy as np
import pytest
import torch

from pyrosep import ContinuousFlow, EncoderGuide, FloWaveNet, GaussianPrior, OscillatorPrior, load_priors
from pyrosep.errors import ConfigurationError, DataError, SampleRateError, ShapeError
from pyrosep.infer.search.descent import LEVELS as LEVELS_DOWN
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser, Denoiser, DenoiserSize
from pyrosep.nn.refining import UNetSize
from pyrosep.priors.flowavenet import FloWaveNetwork, FlowSize
from pyrosep.separation import (
    Chains,
    FromGuide,
    LocalSearch,
    OnePass,
    Separator,
    Settings,
    SharedDescent,
    Wiener,
    choose_method,
    choose_methods,
    separate,
)
from pyrosep.separation.weights import mode_weights
from pyrosep.signal.windows import windows_of
from pyrosep.zoo import PriorSet

RATE = 16_000
FRAME = 512
EXACT = Settings(method="exact")
CHAINS = Settings(Chains(2, 20, 20, ladder=None))


def gaussians(rate=RATE, frame=FRAME):
    """A low and a high source, and one that has some of everything."""
    f = torch.linspace(0, 1, 33)
    spectra = {"low": torch.exp(-9 * f) + 1e-3, "high": 0.002 + f**4, "broad": torch.full((33,), 0.05)}
    return {name: GaussianPrior(spectrum, frame, sample_rate=rate) for name, spectrum in spectra.items()}


def noise(*shape, level=0.1):
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def db(error, reference):
    return (10 * torch.log10(error.square().mean() / reference.square().mean())).item()


# Sums, shapes, lengths, rates


@pytest.mark.parametrize("settings", [EXACT, CHAINS], ids=["exact", "langevin"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [RATE, 44_100, 8_000])
def test_the_sources_sum_to_the_mix(settings, channels, rate):
    mix = noise(channels, 3 * FRAME)
    result = separate(mix, rate, gaussians(), settings)
    assert result.names == ("low", "high", "broad")
    assert result.mean.shape == result.stddev.shape == (3, channels, 3 * FRAME)
    # float32 rounding is near -150 dB of the largest term.
    assert db(result.mean.sum(0) - mix, mix) < -100
    assert bool(result.mean.isfinite().all())
    assert bool((result.stddev > 0).all())
    assert result.mean.dtype == torch.float32
    assert result.mean.device.type == "cpu"


@pytest.mark.parametrize("rate", [RATE, 44_100, 8_000])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_length_is_kept(rate, overlap):
    window = Separator(gaussians(), rate).window
    hop = window - round(overlap * window)
    for length in (1, 2, 37, window - 1, window, window + 1, hop, hop + window, hop + window + 1, 3 * window + 17):
        mix = noise(1, length)
        result = separate(mix, rate, gaussians(), method="exact", overlap=overlap)
        assert result.mean.shape == (3, 1, length), length
        assert db(result.mean.sum(0) - mix, mix) < -100
        assert bool(result.stddev.isfinite().all())


@pytest.mark.parametrize("length", [1, 100, FRAME + 1])
@pytest.mark.parametrize("gains", ["fit", "level", "mean"])
def test_chains_keep_awkward_lengths_too(length, gains):
    mix = noise(2, length)
    result = separate(mix, RATE, gaussians(), method=Chains(2, 10, 5, ladder=None), gains=gains)
    assert result.mean.shape == (3, 2, length)
    assert db(result.mean.sum(0) - mix, mix) < -100
    assert bool(result.stddev.isfinite().all())


def test_what_lies_above_the_priors_band_goes_to_sources_that_have_treble():
    time = torch.arange(44_100 // 2) / 44_100
    mix = torch.stack([torch.sin(2 * math.pi * 60 * time) + 0.1 * torch.sin(2 * math.pi * 6000 * time)])
    air = 0.1 * torch.sin(2 * math.pi * 15_000 * time)
    result = separate(mix + air, 44_100, gaussians(), EXACT)
    middle = slice(4000, -4000)
    tone = torch.sin(2 * math.pi * 15_000 * time)[middle]
    part = {name: 2 * (one[0, middle] * tone).mean() for name, one in zip(result.names, result.mean, strict=True)}
    assert part["high"] > 0.08
    assert sum(part.values()) == pytest.approx(0.1, rel=1e-2)  # the tone is no whole number of cycles


def test_windows_last_as_long_as_the_priors_frame():
    assert Separator(gaussians(), RATE).window == FRAME
    assert Separator(gaussians(), 8_000).window == FRAME // 2
    assert Separator(gaussians(), 44_100).window == math.floor(FRAME * 44_100 / RATE)
    assert Separator(gaussians(), RATE, Settings(segment=0.1)).window == 1600
    assert Separator(gaussians(), RATE, Settings(segment=0.1)).frame == 1600
    for frame in (999, 1001, 1003, 4097):  # frame / rate * rate is below frame for some
        separator = Separator(gaussians(8_000, frame), 8_000)
        assert separator.window == separator.frame == frame


@pytest.mark.parametrize("rate", [RATE, 44_100, 8_000, 22_050])
def test_frames_hold_a_window_and_no_more(rate):
    separator = Separator(gaussians(), rate)
    hearing = separator.listen([noise(2, separator.window)])
    assert separator.stream([], hearing)._at_model_rate(noise(2, separator.window)).shape == (2, separator.frame)
    assert all(prior.time == separator.frame for prior in separator.priors.values())


def test_priors_without_a_rate_take_the_tracks():
    priors = {name: GaussianPrior(prior.grid, FRAME) for name, prior in gaussians().items()}
    mix = noise(1, 2 * FRAME)
    expected = separate(mix, RATE, gaussians(), EXACT)
    torch.testing.assert_close(separate(mix, RATE, priors, EXACT).mean, expected.mean)


# Short tracks and last windows


@pytest.mark.parametrize("settings", [EXACT, replace(CHAINS, keep=2)], ids=["exact", "langevin"])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_short_track_has_a_frame_of_its_own_length(settings, rate):
    """What is not there is no silence that the priors would have to explain."""
    mix, settings = noise(1, 300), replace(settings, gains=(0.3, 2.0, 0.5))
    found = separate(mix, rate, gaussians(), settings)
    asked = separate(mix, rate, gaussians(), replace(settings, segment=300 / rate))
    for what in ("mean", "stddev", "draws"):
        assert torch.equal(getattr(found, what), getattr(asked, what))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("length", [FRAME + 1, FRAME + 200, 2 * FRAME, 3 * FRAME + 17])
def test_the_last_window_ends_where_the_track_ends(overlap, length, monkeypatch):
    heard = []
    posterior = Wiener.posterior
    monkeypatch.setattr(Wiener, "posterior", lambda self, problem: heard.append(problem) or posterior(self, problem))
    mix, settings = noise(2, length), replace(EXACT, overlap=overlap)
    found = separate(mix, RATE, gaussians(), settings)
    windows = torch.cat([problem.mix for problem in heard])
    hop = FRAME - round(overlap * FRAME)
    starts = [min(start, length - FRAME) for start in range(0, length - FRAME + hop, hop)]
    assert torch.equal(windows, torch.stack([mix[:, start : start + FRAME] for start in starts]))
    last = separate(mix[:, -FRAME:], RATE, gaussians(), replace(settings, gains=found.gains.tolist()))
    own = length - (len(starts) - 1) * hop - round(overlap * FRAME)  # samples that no other window has a say in
    # The level of the noise, 60 dB below, is that of the whole track.
    torch.testing.assert_close(found.mean[..., -own:], last.mean[..., -own:], rtol=0, atol=1e-3 * 0.1)


def test_priors_that_take_some_frames_alone_cut_a_short_track():
    """Into overlapping windows of the longest frame that they take; none reaches past the end."""
    size = FlowSize(squeeze=(4, 2), flows=(2, 2), layers=(2, 2), width=(8, 8), features=8)
    flows = {
        name: FloWaveNet(FloWaveNetwork(size, torch.ones(9)), FRAME, sigma_min=0.05, sample_rate=RATE) for name in "ab"
    }
    separator = Separator(flows, RATE)
    for samples, window in ((8, 8), (63, 56), (64, 64), (FRAME - 1, FRAME - 8), (FRAME, FRAME), (2 * FRAME, FRAME)):
        framing = separator.framing(samples)
        assert (framing.window, framing.frame, framing.priors.time) == (window, window, window)
        assert framing.overlap == round(0.25 * window)
    assert Separator(flows, 8000).framing(63).window == 60  # 120 samples at the priors' rate
    with pytest.raises(ConfigurationError, match=r"a track of 7 samples is too short for these priors: .* multiple of"):
        separator.framing(7)
    mix, settings = noise(1, 63), Settings(Chains(2, 2, 0, coupling="noisy", ladder=2, redraws=0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*did not move")
        found = separate(mix, RATE, flows, settings)
    assert found.mean.shape == (2, 1, 63)
    assert found.summaries["lp"].shape[2:] == (2, 1)
    assert db(found.mean.sum(0) - mix, mix) < -100


def test_a_short_toy_track_is_found():
    """A quarter of the frame: with silence beyond it, no period of a wave would fit."""
    priors = toy(frame=1024)
    mix, truth = toy_mix(toy(frame=256))
    settings = Settings(Chains(4, 4, 10), gains="mean")
    found = separate(mix, priors["saw"].sample_rate, priors, settings)
    assert db(found.mean[:, 0] - truth, truth) < -20


# The exact method


def wiener(mix, spectra, gains, noise_level):
    """A single-channel Wiener filter in NumPy: gain times source, given the power of each per DFT bin."""
    bins = np.fft.rfft(mix)
    total = sum(a**2 * power for a, power in zip(gains, spectra, strict=True)) + noise_level**2
    return np.stack([
        np.fft.irfft(a * (a * power / total) * bins, n=mix.shape[-1])
        for a, power in zip(gains, spectra, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("gains", [(1.0, 1.0, 1.0), (0.3, 2.0, 0.05)])
@pytest.mark.parametrize("channels", [1, 2])
def test_exact_is_the_wiener_filter(gains, channels):
    mix = noise(channels, FRAME, level=0.5).double().numpy()
    priors, level = gaussians(), math.sqrt((mix**2).mean())
    spectra = [prior.spectrum.double().numpy() + prior.sigma_min**2 for prior in priors.values()]
    for noise_db in (-100.0, -60.0):
        settings = Settings(method="exact", gains=gains, noise_db=noise_db)
        result = separate(torch.tensor(mix).float(), RATE, priors, settings)
        expected = wiener(mix, spectra, gains, level * 10 ** (noise_db / 20))
        # float32 against float64. What the filter leaves of the mix goes to the sources too: at -100 dB it is nothing.
        left = np.abs(mix - expected.sum(0)).max() if noise_db == -60 else 0.0
        np.testing.assert_allclose(result.mean.numpy(), expected, rtol=0, atol=left + 1e-4 * np.abs(expected).max())


def test_exact_deviation_is_the_posterior_one():
    priors, gains, level = gaussians(), (0.3, 2.0, 0.5), 0.5
    mix = noise(1, FRAME, level=level)
    result = separate(mix, RATE, priors, Settings(method="exact", gains=gains, noise_db=-20.0))
    noise_power = mix.square().mean().item() * 0.01
    spectra = np.stack([prior.spectrum.double().numpy() + prior.sigma_min**2 for prior in priors.values()])
    scaled = np.square(gains)[:, None] * spectra
    variance = scaled - scaled**2 / (scaled.sum(0) + noise_power)
    expected = np.sqrt((variance[:, 0] + variance[:, -1] + 2 * variance[:, 1:-1].sum(-1)) / FRAME)
    # Two closed forms, one in float32.
    expected = np.broadcast_to(expected[:, None, None], result.stddev.shape)
    np.testing.assert_allclose(result.stddev.numpy(), expected, rtol=1e-4)
    assert result.summaries == {}


def test_windows_do_not_show():
    """A stationary mix is separated alike everywhere: windows end without a click."""
    mix = noise(1, 40 * FRAME)
    result = separate(mix, RATE, gaussians(), EXACT)
    whole = separate(mix, RATE, gaussians(frame=40 * FRAME), EXACT)
    assert db(result.mean[0] - whole.mean[0], whole.mean[0]) < -20


# Chains


@pytest.mark.parametrize("channels", [1, 2])
def test_chains_agree_with_the_exact_mean_and_deviation(channels):
    priors = gaussians(frame=64)
    mix = noise(channels, 64)
    settings = Settings(Chains(8, 600, 100, ladder=None), noise_db=-20.0, seed=1)
    found, exact = separate(mix, RATE, priors, settings), separate(mix, RATE, priors, Settings("exact", noise_db=-20.0))
    # Monte Carlo errors from the effective number of draws of the worst random projection.
    ess = arviz.ess({"x": found.summaries["projection"]}, method="mean")["x"].values.min()
    assert ess > 400
    # 4 standard errors for each value of audio would be exceeded once in 16,000 values; there are up to 384.
    error = ((found.mean - exact.mean) / (exact.stddev / math.sqrt(ess))).abs()
    assert error.max() < 4
    # The standard deviation of n normal draws has a relative error of 1 / sqrt(2 n).
    spread = ((found.stddev / exact.stddev - 1) * math.sqrt(2 * ess)).abs()
    assert spread.max() < 4


def test_summaries_are_of_every_draw_of_every_window():
    mix = noise(2, 4 * FRAME)
    separator = Separator(gaussians(), RATE, CHAINS)
    found = separate(mix, RATE, gaussians(), CHAINS).summaries
    windows = len(list(windows_of(mix, separator.window, separator.hop)))
    lead = (2, 20, windows, 2)
    assert found["energy_db"].shape == (*lead, 3)
    assert found["band_db"].shape == (*lead, 3, 4)
    assert found["projection"].shape == (*lead, 3, 4)
    for name in ("lp", "acceptance_rate", "step_size", "residual"):
        assert found[name].shape == lead
        assert np.isfinite(found[name]).all()


def test_summaries_are_in_the_order_of_windows_and_channels(monkeypatch):
    """In batches of one window or of all: of a single source, the level is the mix's there and then."""
    levels = torch.tensor([1.0, 0.5, 0.8, 0.3]).repeat_interleave(FRAME) * torch.tensor([[1.0], [0.6]])
    mix = noise(2, 4 * FRAME) * levels
    priors = {"broad": gaussians()["broad"]}
    settings = Settings(Chains(3, 10, 20, ladder=None), overlap=0.0)
    expected = 10 * torch.log10(mix.reshape(2, 4, FRAME).square().mean(-1)).mT.numpy()
    for size in (1, 1 << 19):
        monkeypatch.setattr("pyrosep.separation.separator._BATCH_VALUES", {"cpu": size})
        energy = separate(mix, RATE, priors, settings).summaries["energy_db"][..., 0].mean((0, 1))
        # Noise of -60 dB, some 14 dB nearer in the quietest window, adds 0.05 dB at most.
        assert np.abs(energy - expected).max() < 0.1


def test_seeds():
    mix = noise(1, 3 * FRAME)

    def mean(seed):
        return separate(mix, RATE, gaussians(), method=Chains(2, 5, 5, ladder=None), seed=seed).mean

    first = mean(0)
    torch.manual_seed(99)
    assert torch.equal(mean(0), first)
    assert not torch.equal(mean(1), first)


def test_windows_of_different_batches_have_different_noise(monkeypatch):
    monkeypatch.setattr("pyrosep.separation.separator._BATCH_VALUES", {"cpu": 1})
    one = noise(1, FRAME)
    settings = Settings(Chains(1, 5, 5, ladder=None), overlap=0.0, noise_db=-20)
    found = separate(torch.cat([one, one], -1), RATE, gaussians(), settings)
    first, second = found.mean.split(FRAME, -1)
    assert not torch.equal(first, second)


def test_toy_sources():
    priors = {wave: OscillatorPrior(wave, 128, sigma_min=0.05, periods=(8, 16, 20)) for wave in ("sine", "square")}
    mix = (priors["sine"].sample() + priors["square"].sample()).unsqueeze(0) / 2
    settings = Settings(Chains(2, 60, 60), gains="mean", noise_db=-20)
    result = separate(mix, 14_700, priors, settings)
    assert result.gains.tolist() == [0.5, 0.5]
    assert db(result.mean.sum(0) - mix, mix) < -100
    with pytest.raises(ConfigurationError, match="needs Gaussian priors"):
        separate(mix, 14_700, priors, EXACT)


# Draws


@pytest.mark.parametrize("settings", [EXACT, CHAINS], ids=["exact", "langevin"])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_draws_that_are_kept_sum_to_the_mix(settings, rate):
    mix = noise(2, 3 * FRAME)
    result = separate(mix, rate, gaussians(), replace(settings, keep=3))
    assert result.draws.shape == (3, 3, 2, 3 * FRAME)
    for draw in result.draws:
        assert db(draw.sum(0) - mix, mix) < -100
    assert not torch.equal(result.draws[0], result.draws[1])
    assert separate(mix, rate, gaussians(), settings).draws.shape == (0, 3, 2, 3 * FRAME)


def test_all_draws_have_the_mean_and_deviation_that_are_given():
    mix = noise(1, FRAME)
    result = separate(mix, RATE, gaussians(), method=Chains(2, 8, 10, ladder=None), keep=16, overlap=0.0)
    scale = result.mean.abs().max().item()
    # The same sixteen draws: to float32 rounding, and the residual of -60 dB that each shares in its own way.
    torch.testing.assert_close(result.draws.mean(0), result.mean, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(result.draws.std(0), result.stddev, rtol=0, atol=1e-2 * scale)


# Gains


def test_gains_by_number_and_by_mean():
    mix = noise(1, FRAME)
    numbers = separate(mix, RATE, gaussians(), Settings("exact", gains=(0.1, 0.2, 0.3)))
    torch.testing.assert_close(numbers.gains, torch.tensor([0.1, 0.2, 0.3]))
    mean = separate(mix, RATE, gaussians(), Settings("exact", gains="mean"))
    torch.testing.assert_close(mean.gains, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("frame", [2, 3, 64, 65])
def test_the_level_gain_gives_the_sources_the_mixes_power(frame):
    priors = {name: prior.frame(frame) for name, prior in gaussians().items()}
    mix = noise(2, 20 * frame, level=0.3)
    gains = separate(mix, RATE, priors, EXACT).gains
    assert bool((gains == gains[0]).all())
    # The mean power of a draw is the mean of its spectrum over all DFT bins.
    weights = torch.full((frame // 2 + 1,), 2.0)
    weights[0] = 1.0
    if frame % 2 == 0:
        weights[-1] = 1.0
    power = sum((weights * prior.spectrum).sum() / frame for prior in priors.values())
    torch.testing.assert_close(gains[0].square() * power, mix.square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seconds", [0.01, 0.032, 0.04, 1.0])
def test_fitted_gains_know_the_level_however_short_the_track(seconds):
    """A track that ends within a window is as loud as it is there, and not as the window's mean."""
    priors = {"white": GaussianPrior(torch.ones(33), FRAME, sample_rate=RATE)}
    count = round(seconds * RATE)
    mix = noise(1, count, level=0.2)
    gain = separate(mix, RATE, priors, Settings("exact", gains="fit")).gains.item()
    # The mean of a tapered window's power has a relative error of about sqrt(4 / samples), the gain half of that;
    # bins are weighed by 1/f, which leaves some eight independent ones of a single window: four errors of 0.2.
    assert 0.2 * math.exp(-0.8) < gain < 0.2 * math.exp(0.8)


def test_fitted_gains_find_the_louder_source():
    low = 5 * gaussians(frame=8192)["low"].sample((1,)) + 0.1 * gaussians(frame=8192)["high"].sample((1,))
    priors = gaussians()
    del priors["broad"]
    gains = separate(low, RATE, priors, Settings("exact", gains="fit")).gains
    assert gains[0] > 2 * gains[1] > 0  # 50 times, but for the pull to the common level


@pytest.mark.parametrize("gains", [(1.0,), (1.0, 1.0, 1.0, 1.0)])
def test_wrong_number_of_gains(gains):
    with pytest.raises(ConfigurationError, match=r"expected 3 gains, one for each of \('low', 'high', 'broad'\)"):
        separate(noise(1, FRAME), RATE, gaussians(), Settings("exact", gains=gains))


@pytest.mark.parametrize("gains", ["level", "fit"])
def test_gains_from_spectra_need_spectra(gains, monkeypatch):
    monkeypatch.setattr(GaussianPrior, "spectrum", None)
    with pytest.raises(ConfigurationError, match="know their spectrum; give the gains as numbers"):
        separate(noise(1, FRAME), RATE, gaussians(), Settings(gains=gains))


# Errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "magic"}, "method must be one of"),
        ({"segment": 0.0}, "segment must be a positive number"),
        ({"segment": math.inf}, "segment must be a positive number"),
        ({"segment": math.nan}, "segment must be a positive number"),
        ({"overlap": -0.1}, "overlap must be between 0 and 0.5"),
        ({"overlap": 0.6}, "overlap must be between 0 and 0.5"),
        ({"overlap": math.nan}, "overlap must be between 0 and 0.5"),
        ({"gains": "loud"}, "gains must be 'mean', 'level', 'fit' or numbers"),
        ({"gains": (1.0, math.nan)}, "gains must be finite"),
        ({"keep": -1}, "keep must be between 0"),
        ({"noise_db": 0.0}, "noise_db must be below 0"),
        ({"noise_db": math.nan}, "noise_db must be below 0"),
    ],
)
def test_settings_out_of_range(options, match):
    with pytest.raises(ConfigurationError, match=match):
        Settings(**options)


@pytest.mark.parametrize(
    ("kind", "numbers", "match"),
    [
        *((kind, {"chains": 0}, "chains must be at least 1; got 0") for kind in (Chains, LocalSearch, SharedDescent)),
        *((kind, {"draws": 0}, "draws must be at least 1; got 0") for kind in (Chains, SharedDescent, OnePass)),
        *((kind, {"warmup": -1}, "warmup must be at least 0; got -1") for kind in (Chains, LocalSearch)),
        *((kind, {"ladder": 1}, "at least 2 levels; got 1") for kind in (Chains, LocalSearch, SharedDescent)),
        *((kind, {"ladder": (0.1, 1.0)}, "falling sequence") for kind in (Chains, LocalSearch, SharedDescent)),
        *((kind, {"temperature": 0.0}, "positive number; got 0") for kind in (SharedDescent, OnePass)),
        (Chains, {"coupling": "tight"}, "coupling must be one of"),
        (Chains, {"coupling": "local"}, "take SharedDescent or LocalSearch"),
        (Chains, {"redraws": -1}, "redraws must be at least 0"),
        (Chains, {"step_size": 0.0}, "step_size must be a positive number; got 0"),
        (LocalSearch, {"max_residual_ratio": 0.5}, "max_residual_ratio must be at least 1; got 0.5"),
        (SharedDescent, {"from_mix": 1.5}, "from_mix is a share"),
        *(
            (kind, {"warmup": 3}, "ends in one draw has no warm-up; got warmup 3")
            for kind in (LocalSearch, SharedDescent)
        ),
    ],
)
def test_numbers_out_of_range(kind, numbers, match):
    with pytest.raises(ConfigurationError, match=match):
        kind(**numbers)


def test_draws_are_at_least_two_and_at_least_those_that_are_kept():
    for chains, keep, match in ((Chains(1, 1), 0, "at least 2 chains or draws"), (Chains(2, 3), 7, "and the 6 draws")):
        with pytest.raises(ConfigurationError, match=match):
            Separator(gaussians(), RATE, Settings(chains, keep=keep))


@pytest.mark.parametrize(
    ("method", "number", "takes"),
    [
        ("exact", "chains", "no numbers"),
        ("guide", "temperature", "shifts"),
        ("one-pass", "chains", "draws, temperature"),
        ("langevin", "redraws", "chains, draws, warmup, max_residual_ratio, ladder, temperature, coupling"),
        ("langevin", "from_mix", "chains, draws, warmup, max_residual_ratio, ladder, temperature, coupling"),
        (
            "guide+langevin",
            "redraws",
            "chains, draws, warmup, max_residual_ratio, ladder, from_mix, temperature, coupling",
        ),
    ],
)
def test_a_number_that_a_method_does_not_have_is_refused_by_name(method, number, takes, told_flows):
    with pytest.raises(
        ConfigurationError, match=rf"'{re.escape(method)}' takes no {number} under .*; it takes {takes}"
    ):
        choose_method(PriorSet.of(told_flows), method, **{number: 1})


def test_numbers_of_a_search_are_for_methods_that_search(told_flows):
    """Under Gaussian priors there is none, unless one is asked for; and one that is local has no temperature."""
    with pytest.raises(ConfigurationError, match="takes no redraws under these priors"):
        choose_method(PriorSet.of(gaussians()), redraws=3)
    assert choose_method(PriorSet.of(gaussians()), redraws=3, ladder=5).redraws == 3
    with pytest.raises(ConfigurationError, match="takes no temperature"):
        choose_method(PriorSet.of(told_flows), coupling="local", temperature=2.0)
    with pytest.raises(ConfigurationError, match="'exact' takes no chains"):
        choose_method(PriorSet.of(gaussians()), Wiener(), chains=2)
    assert choose_method(PriorSet.of(gaussians()), Chains(draws=3), chains=2) == Chains(2, 3)


def test_a_number_is_for_the_methods_of_several_that_have_it(told_flows):
    found = choose_methods(PriorSet.of(told_flows), ["langevin", "one-pass", "exact"], chains=3, draws=4)
    assert found == {
        "langevin": SharedDescent(3, 4, temperature=1.0),
        "one-pass": OnePass(4, temperature=1.0),
        "exact": Wiener(),
    }
    with pytest.raises(ConfigurationError, match="none of the methods one-pass, exact takes chains"):
        choose_methods(PriorSet.of(told_flows), ["one-pass", "exact"], chains=3)


def test_changes_of_settings_may_be_given_by_name():
    mix = noise(1, FRAME)
    found = separate(mix, RATE, gaussians(), EXACT, keep=2, seed=1)
    assert torch.equal(found.draws, separate(mix, RATE, gaussians(), Settings(Wiener(), keep=2, seed=1)).draws)
    with pytest.raises(TypeError, match="chains"):
        separate(mix, RATE, gaussians(), chains=2)


@pytest.mark.parametrize("shape", [(100,), (1, 1, 100), (2, 0)])
def test_shapes(shape):
    with pytest.raises(ShapeError, match=r"a mix \(channel, time\)"):
        separate(torch.ones(shape), RATE, gaussians())


def test_a_mix_as_soundfile_gives_it_is_told_from_many_channels():
    with pytest.raises(ShapeError, match=r"got shape \(2205, 2\), which seems to be \(time, channel\)"):
        separate(torch.ones(2205, 2), RATE, gaussians())
    assert separate(torch.ones(2, 1), RATE, gaussians(), EXACT).mean.shape == (3, 2, 1)


@pytest.mark.parametrize("kind", ["float64", "float16", "int16", "int32"])
def test_a_mix_may_be_an_array_of_any_type(kind):
    mix = (0.1 * torch.randn(1, 600, generator=torch.Generator().manual_seed(0)) * 2**10).round() / 2**10
    full = {"int16": 2**15, "int32": 2**31}.get(kind, 1)
    expected = separate(mix, RATE, gaussians(), EXACT)
    for given in ((mix.double() * full).numpy().astype(kind), (mix.double() * full).to(getattr(torch, kind))):
        found = separate(given, RATE, gaussians(), EXACT)
        assert found.mean.dtype == torch.float32
        torch.testing.assert_close(found.mean, expected.mean)
    with pytest.raises(
        ConfigurationError, match="expected samples as floating-point numbers, or as integers of 8, 16 or"
    ):
        separate((mix * full).long(), RATE, gaussians(), EXACT)


@pytest.mark.parametrize("rate", [0, -1, 0.5, None, math.nan, True])
def test_a_rate_must_be_one(rate):
    with pytest.raises(SampleRateError, match="expected a sample rate that is a positive integer in Hz"):
        separate(torch.ones(1, 600), rate, gaussians(), EXACT)


@pytest.mark.parametrize("settings", [EXACT, CHAINS], ids=["exact", "langevin"])
def test_a_silent_mix(settings):
    with pytest.raises(DataError, match="silent from beginning to end"):
        separate(torch.zeros(2, 1000), RATE, gaussians(), settings)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mix_that_is_no_audio(bad):
    mix = noise(1, 1000)
    mix[0, 7] = bad
    with pytest.raises(DataError, match="NaN or infinite"):
        separate(mix, RATE, gaussians())


def test_silent_parts_are_no_matter():
    mix = torch.cat([noise(1, FRAME), torch.zeros(1, 4 * FRAME)], -1)
    for settings in (EXACT, CHAINS):
        result = separate(mix, RATE, gaussians(), settings)
        assert db(result.mean.sum(0) - mix, mix) < -100
        assert bool(result.mean.isfinite().all())


@pytest.mark.parametrize("where", ["beginning", "middle", "one channel"])
@pytest.mark.parametrize("method", ["langevin", "guide+langevin", "guide", "one-pass"])
def test_windows_of_silence_are_separated_too(where, method, told_flows):
    """Where a batch is nothing but zeros, and where some of its windows or one channel are."""
    mix = noise(2, 6 * FRAME)
    places = {"beginning": (..., slice(4 * FRAME)), "middle": (..., slice(FRAME, 4 * FRAME)), "one channel": (1,)}
    mix[places[where]] = 0.0
    priors = PriorSet(told_flows, guide=WhiteGuide(LEVELS, (1.0, 1.0)))
    numbers = {"chains": 4, "ladder": 3} if "langevin" in method else {}
    found = separate(mix, RATE, priors, method=choose_method(priors, method, **numbers), gains=(1.0, 1.0), keep=2)
    for values in (found.mean, found.stddev, found.draws):
        assert bool(values.isfinite().all())
    assert db(found.mean.sum(0) - mix, mix) < -100


def test_threads_take_turns():
    mixes = [noise(1, 3 * FRAME) * level for level in (1.0, 2.0, 0.5)]

    def draws(mix):
        return separate(mix, RATE, gaussians(), replace(CHAINS, keep=2)).draws

    alone = [draws(mix) for mix in mixes]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(draws, mixes))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("settings", [EXACT, CHAINS], ids=["exact", "langevin"])
def test_the_callers_random_state_is_left_alone(settings):
    def state():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002

    seed()
    expected = state()
    seed()
    separate(noise(1, FRAME), RATE, gaussians(), replace(settings, keep=2, seed=5))
    assert state() == expected


@pytest.mark.parametrize("name", ["toy", "band-small"])
@pytest.mark.filterwarnings("ignore:.*did not move")
def test_inference_mode_is_no_matter(name):
    own = {"toy": {"draws": 2, "warmup": 1, "redraws": 1, "ladder": 3}, "band-small": {"ladder": 2}}[name]
    samples = {"toy": 256, "band-small": 2000}[name]
    mix = noise(1, samples)

    def mean(mix):
        priors = PriorSet.of(toy()) if name == "toy" else load_priors(name)
        method = choose_method(priors, chains=2, **own)
        return separate(mix, priors.sample_rate, priors, method=method, segment=samples / priors.sample_rate).mean

    expected = mean(mix)
    with torch.inference_mode():
        assert torch.equal(mean(1.0 * mix), expected)


def test_mixes_of_other_types():
    mix = noise(2, 2 * FRAME)
    expected = separate(mix, RATE, gaussians(), EXACT).mean
    for given in (mix.numpy(), mix.clone().requires_grad_(), mix.T.contiguous().T):
        assert torch.equal(separate(given, RATE, gaussians(), EXACT).mean, expected)
    half = separate(mix.half(), RATE, gaussians(), EXACT).mean
    assert torch.equal(half, separate(mix.half().float(), RATE, gaussians(), EXACT).mean)


def test_priors_of_several_rates_or_none():
    mixed = gaussians() | {"other": GaussianPrior(torch.ones(3), FRAME, sample_rate=8_000)}
    with pytest.raises(ConfigurationError, match="one sample rate; got 16000, 8000"):
        separate(noise(1, FRAME), RATE, mixed)
    with pytest.raises(ConfigurationError, match="at least one prior"):
        separate(noise(1, FRAME), RATE, {})


@pytest.mark.parametrize("rate", [RATE, 48_000, 8_000])
def test_a_segment_of_less_than_two_samples(rate):
    with pytest.raises(ConfigurationError, match="fewer than 2 samples"):
        Separator(gaussians(), rate, Settings(segment=1.0 / RATE))


def test_a_separator_keeps_nothing_of_a_track():
    """Used twice, it reports each track by itself, and gives the same for the same."""
    separator, found = Separator(gaussians(), RATE, CHAINS), []
    for mix in (noise(2, 3 * FRAME), noise(1, FRAME), noise(2, 3 * FRAME)):
        hearing = separator.listen(windows_of(mix, separator.window, separator.window))
        stream = separator.stream(windows_of(mix, separator.window, separator.hop), hearing)
        found.append((torch.cat(list(stream), -1), stream.summaries()))
    (first, summaries), (_, short), (again, _) = found
    assert torch.equal(first, again)
    assert short["lp"].shape[2:] == (1, 1)
    assert summaries["lp"].shape[2:] == (4, 2)


@pytest.mark.parametrize("kind", ["level", "fit"])
@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
def test_gains_of_a_short_track_are_those_of_a_window_of_its_length(kind, rate):
    """Spectra of priors for another frame have another sum."""
    mix = noise(1, 3 * FRAME // 4 * rate // RATE)
    short = separate(mix, rate, gaussians(), replace(EXACT, gains=kind))
    segment = mix.shape[-1] / rate
    assert torch.equal(short.gains, separate(mix, rate, gaussians(), replace(EXACT, gains=kind, segment=segment)).gains)


# Long tracks


@pytest.mark.parametrize("settings", [EXACT, Settings(Chains(1, 2, 0, ladder=None))], ids=["exact", "langevin"])
def test_memory_does_not_grow_with_the_track(settings, monkeypatch):
    """Windows are asked for a batch at a time, and let go: never more than two batches are alive."""
    # Two windows of one chain.
    monkeypatch.setattr("pyrosep.separation.separator._BATCH_VALUES", {"cpu": 2 * 3 * FRAME})
    batch = max(1, 2 // choose_method(PriorSet.of(gaussians()), settings.method).states)
    alive, most, asked = weakref.WeakSet(), 0, 0
    separator = Separator(gaussians(), RATE, settings)

    def windows():
        nonlocal most, asked
        for _ in range(40):
            window = noise(1, FRAME)
            alive.add(window)
            most, asked = max(most, len(alive)), asked + 1
            yield window

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*did not move")
        hearing = separator.listen(windows())
        assert hearing.samples == 40 * FRAME
        assert most <= 2
        most = asked = 0
        for done, _block in enumerate(separator.stream(windows(), hearing), 1):
            assert asked <= done + 2 * batch, "windows are read as they are needed"
    assert done >= 40
    assert most <= 2 * batch + 1


def test_progress_counts_to_the_end():
    mix, steps = noise(1, 5 * FRAME + 3), []
    separate(mix, RATE, gaussians(), EXACT, progress=steps.append)
    assert sum(steps) == mix.shape[-1]
    assert len(steps) > 3


# Searches


def toy(frame=256):
    periods = [13, 17, 23, 31, 41]
    return {wave: OscillatorPrior(wave, frame, periods=periods) for wave in ("saw", "square")}


def toy_mix(priors, frames=1):
    torch.manual_seed(0)
    truth = torch.stack([prior.sample_clean((frames,)).flatten() for prior in priors.values()])
    return truth.mean(0, keepdim=True), truth / 2


def test_priors_with_many_modes_are_searched():
    priors = toy()
    mix, truth = toy_mix(priors, frames=2)
    settings = Settings(Chains(4, 8, 20), gains="mean", overlap=0.0, keep=3)
    rate = priors["saw"].sample_rate
    result = separate(mix, rate, priors, settings)
    assert db(result.mean[:, 0] - truth, truth) < -20
    # Every kept draw is from a chain of the best mode.
    assert db(result.draws[:, :, 0] - truth, truth) < -20


def test_a_chain_astray_has_no_say_in_the_mean():
    shape = (3, 5, 1, 1)  # chain, draw, window, channel
    levels = np.zeros((*shape, 2)) + 0.1 * np.random.default_rng(0).standard_normal((*shape, 2))
    levels[2] += 50.0
    part = {"lp": np.zeros(shape), "energy_db": levels, "band_db": levels, "projection": levels}
    part["lp"][2] -= 200.0
    assert mode_weights(part).flatten().tolist() == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("coupling", ["sweeps", "noisy", "denoised", "constraint"])
def test_a_search_leaves_gaussian_posteriors_as_they_are(coupling):
    mix = noise(1, FRAME)
    method = Chains(8, 60, 60, coupling=coupling, ladder=4, redraws=1)
    found = separate(mix, RATE, gaussians(), method=method, noise_db=-20.0, overlap=0.0)
    exact = separate(mix, RATE, gaussians(), Settings("exact", noise_db=-20.0, overlap=0.0))
    assert db(found.mean - exact.mean, exact.mean) < -10
    assert found.stddev.mean().item() == pytest.approx(exact.stddev.mean().item(), rel=0.15)


def test_gaussian_priors_are_not_searched_unless_asked():
    def ladder(priors, **numbers):
        return choose_method(PriorSet.of(priors), **numbers).ladder

    assert ladder(gaussians()) is None
    assert ladder(gaussians(), ladder=5) == 5
    assert ladder(gaussians(), coupling="sweeps") == 20
    assert ladder(toy()) == 20


# Guides


class WhiteGuide(EncoderGuide):
    """What it knows are the sources' levels: projected, the exact posterior of white sources."""

    def __init__(self, deviations, gains):
        super().__init__(list(deviations), project=gains, noise=1e-4, size=UNetSize(hop=4, width=4, levels=0, layers=1))
        self.deviations = torch.tensor(list(deviations.values()))

    def _encoded(self, mix):
        _, _, features, level = super()._encoded(mix)
        scale = self.deviations.unsqueeze(-1).expand(*mix.shape[:-1], -1, mix.shape[-1])
        return torch.zeros_like(scale), scale, features, level


LEVELS = {"soft": 0.05, "loud": 0.2}


def white_priors():
    return {name: GaussianPrior(torch.full((2,), level**2), FRAME, sample_rate=RATE) for name, level in LEVELS.items()}


@pytest.fixture
def white_flows(filtering_flows):
    """Nearly the white priors, by networks."""
    return filtering_flows({name: torch.full((3,), level**2) for name, level in LEVELS.items()}, FRAME, RATE)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (0.5, 0.5), (2.0, 4.0)])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_guide_that_is_exact_separates_exactly(gains, rate):
    """Trained with gains (1, 1), or (1, 2) for the last: the same ratio is all that is needed."""
    guide = WhiteGuide(LEVELS, (gains[0], gains[1]) if gains[0] == gains[1] == 1 else (0.5, 0.5 * gains[1] / gains[0]))
    mix = noise(2, 3 * FRAME + 7)
    found = separate(mix, rate, PriorSet(white_priors(), guide=guide), method="guide", gains=gains, keep=3)
    expected = separate(mix, rate, white_priors(), method="exact", gains=gains)
    assert db(found.mean - expected.mean, expected.mean) < -50
    assert found.stddev.mean((1, 2)).allclose(expected.stddev.mean((1, 2)), rtol=0.02)
    assert found.draws.shape == (3, *found.mean.shape)
    assert not found.summaries
    for draw in found.draws:
        assert draw.sum(0).allclose(mix, atol=1e-5)


def test_draws_of_a_guide_have_its_mean_and_deviation():
    guide = WhiteGuide(LEVELS, (1.0, 1.0))
    settings = Settings(FromGuide(), gains=(1.0, 1.0), keep=400)
    found = separate(noise(1, FRAME), RATE, PriorSet(white_priors(), guide=guide), settings)
    assert (found.draws.mean(0) - found.mean).std() < 3 * found.stddev.mean() / 20
    assert found.draws.std(0).mean() == pytest.approx(found.stddev.mean().item(), rel=0.02)
    again = separate(noise(1, FRAME), RATE, PriorSet(white_priors(), guide=guide), settings)
    assert torch.equal(found.draws, again.draws)
    assert not torch.equal(
        found.draws,
        separate(noise(1, FRAME), RATE, PriorSet(white_priors(), guide=guide), replace(settings, seed=1)).draws,
    )


def test_a_guide_is_averaged_over_shifts():
    torch.manual_seed(0)
    guide = EncoderGuide(
        list(LEVELS), shared=True, size=UNetSize(hop=4, width=4, levels=1, layers=1), project=[1.0, 1.0]
    )
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    mix, settings = noise(1, FRAME), Settings(FromGuide(shifts=4), gains=(1.0, 1.0), keep=200)
    found = separate(mix, RATE, PriorSet(white_priors(), guide=guide), settings)
    with torch.no_grad():
        mean, deviation = guide.with_shifts(4).moments(mix)
        once = guide.moments(mix)[0]
    assert db(found.mean - mean.transpose(0, 1), found.mean) < -50
    assert db(once.transpose(0, 1) - found.mean, found.mean) > -40
    torch.testing.assert_close(found.stddev, deviation.transpose(0, 1), rtol=1e-3, atol=1e-5)
    assert (found.draws.mean(0) - found.mean).std() < 3 * found.stddev.mean() / 200**0.5
    with pytest.raises(ConfigurationError, match=r"shifts must be at least 1; got 0"):
        FromGuide(shifts=0)


def test_networks_are_evaluated_in_half_precision_where_that_is_asked_for(white_flows):
    priors = white_flows | {"still": white_priors()["soft"]}
    separator = Separator(priors, RATE, Settings(precision="bf16-mixed"))
    assert [getattr(prior, "autocast", None) for prior in separator.priors.values()] == [torch.bfloat16] * 2 + [None]
    assert all(getattr(prior, "autocast", None) is None for prior in priors.values())
    with pytest.raises(
        ConfigurationError, match=r"precision must be one of \('32-true', 'bf16-mixed'\), or 'auto'; got 'half'"
    ):
        Settings(precision="half")


@pytest.mark.parametrize("quick", [True, False])
def test_by_default_half_precision_is_for_networks_that_stay_accurate_in_it_on_devices_that_are_quick_in_it(
    monkeypatch, white_flows, quick
):
    monkeypatch.setattr("pyrosep.nn.precision.multiplies_bfloat16", lambda device: quick)
    size = DenoiserSize(hop=4, width=8, levels=1, layers=1, heads=0, features=8)
    waveform = ContinuousFlow(Denoiser(size, torch.ones(9)), FRAME, sample_rate=RATE)
    separator = Separator(white_flows | {"waveform": waveform}, RATE, Settings(method="langevin"))
    half = torch.bfloat16 if quick else None
    assert [prior.autocast for prior in separator.priors.values()] == [half, half, None]


def test_networks_are_compiled_where_that_is_asked_for(monkeypatch, white_flows):
    def compiled(forward, **options):
        return lambda *inputs: calls.append(inputs) or forward(*inputs)

    calls: list[tuple] = []
    monkeypatch.setattr(torch, "compile", compiled)
    mix, settings = noise(1, FRAME), Settings(LocalSearch(2), precision="32-true", gains=(1.0, 1.0))
    plain = separate(mix, RATE, white_flows, settings)
    assert not calls
    found = separate(mix, RATE, white_flows, replace(settings, compile=True))
    assert calls
    torch.testing.assert_close(found.mean, plain.mean)


def test_a_guide_that_is_there_starts_the_chains(monkeypatch):
    """By default chains begin with its draws; they end where the exact posterior is."""
    guide, starts = WhiteGuide(LEVELS, (0.5, 0.5)), []
    forward = WhiteGuide.forward
    monkeypatch.setattr(WhiteGuide, "forward", lambda self, mix: starts.append(mix.shape) or forward(self, mix))
    mix, priors = noise(1, FRAME), PriorSet(white_priors(), guide=guide)
    numbers = {"chains": 2, "draws": 200, "warmup": 20}
    found = separate(mix, RATE, priors, method=choose_method(priors, **numbers), gains=(1.0, 1.0))
    assert starts == [(2, FRAME)]
    expected = separate(mix, RATE, white_priors(), replace(EXACT, gains=(1.0, 1.0)))
    assert db(found.mean - expected.mean, expected.mean) < -15
    separate(mix, RATE, priors, method=choose_method(priors, "langevin", **numbers), gains=(1.0, 1.0))
    assert len(starts) == 1


def test_deviations_of_chains_that_stay_near_a_guide_hold_its_own(white_flows):
    """The spread of the chains, and what the guide says that none of them can find out."""
    guide, mix, priors = WhiteGuide(LEVELS, (1.0, 1.0)), noise(1, FRAME), white_flows
    settings = Settings(gains=(1.0, 1.0), keep=4, overlap=0.0)
    assert choose_method(PriorSet(priors, guide=guide)) == LocalSearch(chains=4, guided=True)
    found = separate(mix, RATE, PriorSet(priors, guide=guide), settings)
    own = separate(mix, RATE, PriorSet(priors, guide=guide), replace(settings, method="guide"))
    # All four chains are kept; draws are given what they leave of the mix, the noise, 60 dB below it.
    close = {"rtol": 1e-3, "atol": 5 * 1e-3 * mix.std().item()}
    spread = found.draws.std(0)  # unbiased, as it has to be for four draws
    torch.testing.assert_close(found.stddev, (spread.square() + own.stddev.square()).sqrt(), **close)
    alone = separate(mix, RATE, priors, replace(settings, method="langevin"))
    torch.testing.assert_close(alone.stddev, alone.draws.std(0), **close)
    assert own.stddev.mean() > 0.01


@pytest.fixture
def told_flows():
    """Denoisers that filter and know interference, not trained: each takes what is beside it for as loud as itself."""
    torch.manual_seed(0)
    size = BandSize(window=64, bands=4, width=4, neck=4, layers=1, features=4)
    return {
        name: ContinuousFlow(
            BandDenoiser(size, torch.full((33,), LEVELS[name] ** 2), interference=True),
            FRAME,
            sigma_min=1e-3,
            sample_rate=RATE,
        )
        for name in LEVELS
    }


def test_filters_that_know_interference_go_down_together(told_flows, white_flows):
    """By default; one draw of each of eight chains, and each sums to the mix."""
    told = PriorSet.of(told_flows)
    assert choose_method(told) == SharedDescent(chains=8, draws=1, warmup=0, ladder=LEVELS_DOWN, temperature=1.0)
    assert choose_method(told, chains=2, draws=3, warmup=1) == SharedDescent(2, 3, 1, temperature=1.0)
    assert choose_method(PriorSet.of(white_flows)) == LocalSearch(chains=4, draws=1, warmup=0, ladder=12)
    mix = noise(1, 2 * FRAME)
    found = separate(mix, RATE, told_flows, Settings(gains=(1.0, 1.0), keep=8, overlap=0.0))
    torch.testing.assert_close(found.mean.sum(0), mix, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.draws.sum(1), mix.expand(8, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.draws.mean(0), found.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.stddev, found.draws.std(0), atol=1e-3, rtol=0.02)
    assert found.stddev.mean() > 0.01


def test_they_start_near_a_guides_mean_and_spread_by_themselves(told_flows, monkeypatch):
    """No draw of the guide's, and no deviation of its own, goes into theirs."""
    guide, drawn = WhiteGuide(LEVELS, (1.0, 1.0)), []
    forward = WhiteGuide.forward
    monkeypatch.setattr(WhiteGuide, "forward", lambda self, mix: drawn.append(mix) or forward(self, mix))
    settings = Settings(gains=(1.0, 1.0), keep=8, overlap=0.0)
    found = separate(noise(1, FRAME), RATE, PriorSet(told_flows, guide=guide), settings)
    assert not drawn
    torch.testing.assert_close(found.stddev, found.draws.std(0), atol=1e-3, rtol=0.02)


@pytest.mark.parametrize("channels", [1, 2])
def test_one_pass_shares_the_mix_out_by_one_call_of_each_prior(told_flows, monkeypatch, channels):
    """White priors' denoisers, not trained: each claims as much of the mix as its own power is of all that it hears."""
    calls = []
    filtered = ContinuousFlow.filtered
    monkeypatch.setattr(ContinuousFlow, "filtered", lambda self, x: calls.append(x.shape) or filtered(self, x))
    mix, settings = noise(channels, 2 * FRAME), Settings("one-pass", gains=(1.0, 1.0), keep=8, overlap=0.0)
    found = separate(mix, RATE, told_flows, settings)
    assert len(calls) == 2
    assert all(shape[0] == 2 * channels for shape in calls)
    torch.testing.assert_close(found.mean.sum(0), mix, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.draws.sum(1), mix.expand(8, -1, -1), atol=1e-5, rtol=0)
    off = (found.draws - found.mean).square().mean(0).sqrt()
    torch.testing.assert_close(found.stddev, off, atol=1e-3, rtol=0.02)
    assert (found.draws.mean(0) - found.mean).std() < 3 * found.stddev.mean() / 8**0.5
    again = separate(mix, RATE, told_flows, settings, keep=0, method=OnePass(temperature=2.0))
    torch.testing.assert_close(again.mean, found.mean)
    torch.testing.assert_close(again.stddev, 2 * found.stddev)
    assert not found.summaries


def test_one_pass_is_for_filters_that_know_interference(white_flows):
    for priors in (white_flows, white_priors()):
        with pytest.raises(ConfigurationError, match="'one-pass' needs priors whose denoisers filter"):
            separate(noise(1, FRAME), RATE, priors, Settings("one-pass"))


def test_a_temperature_moves_draws_about_their_mean(told_flows):
    mix, settings = noise(1, 2 * FRAME), Settings(gains=(1.0, 1.0), keep=8, overlap=0.0)
    plain = separate(mix, RATE, told_flows, settings)
    warm = separate(mix, RATE, told_flows, settings, method=SharedDescent(temperature=1.5))
    torch.testing.assert_close(warm.mean, plain.mean)
    torch.testing.assert_close(warm.stddev, 1.5 * plain.stddev)
    torch.testing.assert_close(warm.draws, plain.mean + 1.5 * (plain.draws - plain.mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(warm.draws.sum(1), mix.expand(8, -1, -1), atol=1e-5, rtol=0)


def test_a_models_temperature_is_of_the_method_and_search_that_it_was_fitted_to(told_flows, white_flows):
    def temperature(priors, **changes):
        own = {"langevin": 1.5, "guide+langevin": 2.0}
        guide = WhiteGuide(LEVELS, (1.0, 1.0)) if "guide" in str(changes.get("method")) else None
        method = choose_method(PriorSet(priors, guide=guide, temperatures=own), **changes)
        return getattr(method, "temperature", None)

    assert temperature(told_flows) == 1.5
    assert temperature(told_flows, method="guide+langevin") == 2.0
    assert temperature(told_flows, temperature=1.25) == 1.25
    assert temperature(told_flows, method="one-pass") == 1.0
    assert temperature(told_flows, coupling="local") is None
    assert temperature(white_flows) is None
    assert temperature(told_flows, method=SharedDescent(chains=4)) == 1.5
    assert temperature(told_flows, method=SharedDescent(temperature=1.25)) == 1.25
    assert choose_method(PriorSet.of(told_flows)).temperature == 1.0


@pytest.mark.parametrize(
    ("guide", "match"),
    [
        (None, "needs a guide"),
        (EncoderGuide(["loud", "soft"], project=True), "expected the priors'"),
        (EncoderGuide(["soft", "loud"]), "projected"),
    ],
)
def test_guides_that_can_not_separate(guide, match):
    with pytest.raises(ConfigurationError, match=match):
        Separator(PriorSet(white_priors(), guide=guide), RATE, Settings(method="guide"))
