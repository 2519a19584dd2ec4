"""Interference: other sources beside a source's own, what is drawn of it, and what denoisers learn of it."""

import math
from dataclasses import replace

import pytest
import torch

from pyrosep import ContinuousFlow, GaussianPrior, load_priors, save_priors
from pyrosep.errors import CheckpointError, ConfigurationError
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import DENOISERS, BandDenoiser, Denoiser
from pyrosep.training.continuousflow import denoising_loss, interfered_batch, noised_batch, train_continuousflow
from pyrosep.training.frames import Frames, toy_frames
from pyrosep.training.interference import HeardFrames, Interference
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer

training = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

TINY = DENOISERS["tiny"]
BANDS = BandSize(window=16, bands=2, width=4, neck=4, layers=1, features=4)


def denoisers(interference=True):
    torch.manual_seed(0)
    return [
        Denoiser(TINY, torch.ones(9), interference=interference),
        BandDenoiser(BANDS, torch.ones(9), interference=interference),
    ]


def shaken(network):
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network.requires_grad_(False)


# --- the frames ----------------------------------------------------------------------------------------------------


def others(count):
    """Two other sources, told apart by their size."""
    return torch.ones(count, 2, 8) * torch.tensor([1.0, 100.0])[:, None]


def test_every_other_source_comes_in_by_its_own_chance():
    torch.manual_seed(0)
    recipe = Interference(share=0.5, presence=0.6, full=1.0, gain_db=0.0, silent=0.0)
    clean, leak, told = recipe(torch.ones(20_000, 8), others)
    assert torch.equal(clean, torch.ones(20_000, 8))
    heard = told == 1
    # Four standard errors of a share of 20,000 frames, and of 10,000.
    assert float(heard.double().mean()) == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 20_000))
    assert float(leak[~heard].abs().max()) == 0
    low, high = leak[heard, 0].abs() % 10, leak[heard, 0].abs() > 50
    assert float(high.double().mean()) == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / 10_000))
    assert float((low > 0.5).double().mean()) == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / 10_000))


def test_a_source_may_be_silent_beside_others_and_never_alone():
    torch.manual_seed(0)
    clean, _, told = Interference(share=0.5, silent=0.4)(torch.ones(20_000, 8), others)
    silent = clean[:, 0] == 0
    assert not bool(silent[told == 0].any())
    assert float(silent[told == 1].double().mean()) == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 10_000))


def test_gains_are_squares_of_uniform_numbers_where_they_are_not_full():
    torch.manual_seed(0)
    recipe = Interference(share=1.0, presence=1.0, full=0.0, gain_db=0.0, silent=0.0, told="level")
    _, leak, told = recipe(torch.zeros(20_000, 8), lambda count: others(count)[:, :1])
    torch.testing.assert_close(leak[:, 0].abs(), told)
    assert float(told.sqrt().mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 20_000))


def test_others_may_be_chosen_for_their_overlap():
    """Sines of sixteen pitches: one of the frame's own is chosen, else one by chance."""
    torch.manual_seed(0)

    def sines(bins):
        return torch.sin(2 * math.pi * bins.unsqueeze(-1) * torch.arange(64) / 64 + 6 * torch.rand(*bins.shape, 1))

    own, drawn = torch.randint(2, 18, (4000,)), []

    def draw(count):
        drawn.append(count)
        return sines(torch.randint(2, 18, (count, 3)))

    recipe = Interference(share=1.0, presence=1.0, full=1.0, gain_db=0.0, silent=0.0, overlap=0.4)
    leak = recipe(sines(own), draw).leak
    assert drawn == [4000, 96]
    at_own = torch.fft.rfft(leak).abs().square()[torch.arange(4000), own] / 32**2
    # Each of three is of that pitch with probability 0.4 + 0.6 / 16, in random phase: the power is their number's mean.
    assert float(at_own.mean()) == pytest.approx(3 * (0.4 + 0.6 / 16), abs=4 * float(at_own.std()) / 4000**0.5)


def test_networks_may_be_told_nothing():
    assert float(Interference(share=1.0, told="nothing")(torch.ones(5, 8), others).told.max()) == 0


@pytest.mark.parametrize("bad", [{"share": 1.5}, {"presence": -0.1}, {"gain_db": -1.0}, {"told": "all"}])
def test_a_recipe_out_of_range_is_refused(bad):
    with pytest.raises(ConfigurationError, match=r"from 0 to 1|may be told"):
        Interference(**bad)


def test_toy_frames_have_the_other_waves():
    found = toy_frames("saw", 64, held_out=1).draw_others(5)
    assert found.shape == (5, 3, 64)
    assert float((found[:, 0] - found[:, 1]).abs().max()) > 0.1


# --- the networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", range(2))
def test_told_of_none_it_is_the_network_that_it_started_from(network):
    plain = shaken(denoisers(interference=False)[network])
    told = denoisers()[network]
    told.start_from(plain)
    x, sigma = torch.randn(3, 40), torch.tensor([0.1, 0.5, 2.0])
    torch.testing.assert_close(told.denoise(x, sigma), plain.denoise(x, sigma))
    torch.testing.assert_close(told.denoise(x, sigma, torch.zeros(3)), plain.denoise(x, sigma))
    mixed = told.denoise(x, sigma, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(mixed[[0, 2]], plain.denoise(x, sigma)[[0, 2]])


def test_a_start_of_another_size_is_refused():
    waves, bands = denoisers()
    with pytest.raises(ConfigurationError, match="of this size"):
        waves.start_from(bands)
    with pytest.raises(ConfigurationError, match="no more of interference"):
        denoisers(interference=False)[0].start_from(waves)


def test_untrained_filters_take_others_for_as_loud_as_the_source():
    r"""P = Q = 1 in every bin: the filter is :math:`1 / (2 + \sigma^2)`, that of a Gaussian beside its like."""
    network, x = denoisers()[1].requires_grad_(False), torch.randn(3, 40)
    torch.testing.assert_close(network.denoise(x, torch.tensor([0.7]), torch.ones(1)), x / 2.49)
    _, gain = network.filtered(x, torch.tensor([0.7]), torch.ones(1))
    torch.testing.assert_close(gain, torch.full_like(gain, 1 / 2.49))


@pytest.mark.parametrize("network", range(2))
def test_a_network_of_its_source_alone_can_not_be_told(network):
    with pytest.raises(ConfigurationError, match="trained on its source alone"):
        denoisers(interference=False)[network].denoise(torch.randn(2, 40), torch.ones(1), torch.ones(1))


# --- the priors ----------------------------------------------------------------------------------------------------


def test_a_prior_with_interference_denoises_and_is_no_density():
    prior = ContinuousFlow(shaken(denoisers()[0]), 40)
    x = torch.randn(2, 40)
    alone, heard = prior.at(0.3), prior.at(0.3, interference=1.0)
    assert prior.knows_interference
    assert float((alone.denoise(x) - heard.denoise(x)).abs().max()) > 1e-3
    torch.testing.assert_close(heard.at(0.3, interference=0.0).denoise(x), alone.denoise(x))
    torch.testing.assert_close(heard.at(0.3).denoise(x), heard.denoise(x))
    for call in (heard.score, heard.log_prob, heard.log_density):
        with pytest.raises(ConfigurationError, match="interference=0"):
            call(x)
    assert heard.draw_clean(x).shape == x.shape


def test_interference_is_refused_where_it_means_nothing():
    with pytest.raises(ConfigurationError, match="only heard its own source"):
        GaussianPrior(torch.ones(2), 8).at(0.1, interference=0.5)
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        ContinuousFlow(denoisers()[0], 40).at(0.1, interference=2.0)
    assert GaussianPrior(torch.ones(2), 8).at(0.1, interference=0.0).interference == 0


@pytest.mark.parametrize("network", range(2))
def test_models_keep_it(tmp_path, network):
    prior = ContinuousFlow(shaken(denoisers()[network]), 40, sample_rate=8000)
    save_priors(tmp_path / "model", {"one": prior})
    found, x = load_priors(tmp_path / "model")["one"], torch.randn(2, 40)
    torch.testing.assert_close(found.at(0.3, 1.0).denoise(x), prior.at(0.3, 1.0).denoise(x))


@pytest.mark.parametrize("network", range(2))
def test_a_second_network_is_asked_where_there_is_interference(tmp_path, network):
    first, second = (shaken(denoisers(interference=False)[network]) for _ in range(2))
    prior = ContinuousFlow(first, 40, sigma_max=2.0, sample_rate=8000, interfered=second)
    alone, other = (ContinuousFlow(one, 40, sigma_max=2.0) for one in (first, second))
    x = torch.randn(2, 40)
    assert prior.knows_interference
    torch.testing.assert_close(prior.at(0.3).denoise(x), alone.at(0.3).denoise(x))
    torch.testing.assert_close(prior.at(0.3).score(x), alone.at(0.3).score(x))
    torch.testing.assert_close(prior.at(0.3, 0.5).denoise(x), other.at(0.3).denoise(x))
    save_priors(tmp_path / "model", {"one": prior})
    found = load_priors(tmp_path / "model")["one"]
    for level in (0.0, 1.0):
        torch.testing.assert_close(found.at(0.3, level).denoise(x), prior.at(0.3, level).denoise(x))
    if prior.transform is not None:
        torch.testing.assert_close(prior.at(0.3, 1.0).filtered(x), other.at(0.3).filtered(x))


def test_of_two_networks_none_is_told():
    with pytest.raises(ConfigurationError, match="neither of two networks is told"):
        ContinuousFlow(denoisers()[0], 40, interfered=denoisers(interference=False)[0])


# --- training ------------------------------------------------------------------------------------------------------


def test_the_batch_is_what_the_denoiser_is_to_give():
    """Where F is what it is trained to give, D(x) = s, whatever else is heard."""
    v, sigma = 0.5, torch.tensor([0.01, 0.5, 1.0, 20.0])
    clean, leak = torch.randn(4, 100).double(), torch.randn(4, 100).double()
    y, levels, aim, weight, told = interfered_batch(HeardFrames(clean, leak, torch.ones(4)), sigma.double(), v)
    scale = (v + levels.square()).sqrt().unsqueeze(-1)
    found = v / scale**2 * (y * scale) + levels.unsqueeze(-1) * math.sqrt(v) / scale * aim
    torch.testing.assert_close(found, clean)
    out = v * levels.square() / (v + levels.square())
    torch.testing.assert_close(weight, out / (out + leak.square().mean(-1) / 2))
    assert torch.equal(told, torch.ones(4))


def test_without_other_sources_the_loss_is_the_one_without():
    network, clean, sigma = denoisers()[0], torch.randn(4, 40), torch.full((4,), 0.5)
    torch.manual_seed(3)
    plain = denoising_loss(network, noised_batch(clean, sigma, 1.0))
    torch.manual_seed(3)
    nothing = HeardFrames(clean, torch.zeros(4, 40), torch.zeros(4))
    torch.testing.assert_close(denoising_loss(network, interfered_batch(nothing, sigma, 1.0)), plain)


@training
@pytest.mark.parametrize(
    ("size", "lowest", "share"),
    [pytest.param(TINY, 0.5, 0.5, marks=pytest.mark.slow), (BANDS, 0.1, 0.1)],
    ids=["waves", "bands"],
)
def test_it_learns_both_posterior_means(size, lowest, share):
    r"""Of a Gaussian source beside its like E[s | x] is :math:`x / (2 + \sigma^2)`, alone :math:`x / (1 + \sigma^2)`.

    The error is at most a share of the one that the other mean would make: of filters a tenth. A network of waves has
    to give what grows as one over the noise, and learns it more slowly.
    """
    exact = GaussianPrior(torch.ones(2), 32, sigma_min=0.0, sample_rate=8000)
    frames = Frames(
        lambda count: exact.sample((count,)), exact.sample((8,)), 8000, draw_others=lambda n: exact.sample((n, 1))
    )
    settings = TrainingSettings(steps=300, batch=64, learning_rate=0.02, optimizer="muon", ema=0.98, warmup=20)
    recipe = Interference(presence=1.0, full=1.0, gain_db=0.0, silent=0.0)
    prior, report = train_continuousflow(
        frames, size, Trainer(settings, quiet=True), sigma_min=0.05, sigma_max=4.0, interference=recipe
    )
    for level in (lowest, 1.0):  # at higher ones the two means are all but the same
        x = math.sqrt(2 + level**2) * torch.randn(500, 32)
        means = [x / (2 + level**2), x / (1 + level**2)]
        found = prior.at(level, interference=1.0).denoise(x)
        right, wrong = (float((found - mean).square().mean()) for mean in means)
        assert right < share * wrong
        x = math.sqrt(1 + level**2) * torch.randn(500, 32)
        found = prior.at(level).denoise(x)
        wrong, right = (float((found - x / (n + level**2)).square().mean()) for n in (2, 1))
        assert right < share * wrong
    # Of a source beside its like no more than half can be told: 3 dB; of eight frames, give or take one.
    assert report["SNR with others at 0.1"] == pytest.approx(3.0, abs=1)


def test_training_needs_others_to_hear(gaussian_frames, quick):
    with pytest.raises(ConfigurationError, match="draw_others"):
        train_continuousflow(gaussian_frames(), TINY, Trainer(quick()), interference=Interference())


@training
def test_a_run_with_another_recipe_is_not_resumed(tmp_path, quick):
    frames = toy_frames("sine", 32, held_out=4)
    run = {"folder": tmp_path, "quiet": True}
    train_continuousflow(frames, TINY, Trainer(quick(), **run), interference=Interference())
    other = replace(Interference(), presence=0.1)
    with pytest.raises(CheckpointError, match="of other settings"):
        train_continuousflow(frames, TINY, Trainer(quick(), resume=True, **run), interference=other)


@training
def test_a_second_network_learns_beside_the_first(quick):
    """The first stays as it is to the bit; without a start there is none."""
    exact = GaussianPrior(torch.ones(2), 32, sigma_min=0.0, sample_rate=8000)
    frames = Frames(
        lambda count: exact.sample((count,)), exact.sample((8,)), 8000, draw_others=lambda n: exact.sample((n, 1))
    )
    recipe = Interference(share=1.0, presence=1.0, full=1.0, gain_db=0.0, silent=0.0, told="apart")
    start = ContinuousFlow(denoisers(interference=False)[1], 32, sigma_min=0.05, sigma_max=4.0)
    settings = TrainingSettings(steps=300, batch=64, learning_rate=0.02, optimizer="muon", ema=0.98, warmup=20)
    prior, report = train_continuousflow(
        frames, start.network.size, Trainer(settings, quiet=True), interference=recipe, start=start
    )
    x = math.sqrt(3) * torch.randn(500, 32)
    torch.testing.assert_close(prior.at(1.0).denoise(x), start.at(1.0).denoise(x), rtol=0, atol=0)
    right, wrong = (float((prior.at(1.0, 1.0).denoise(x) - x / n).square().mean()) for n in (3, 2))
    assert right < 0.1 * wrong
    assert (prior.sigma_min, prior.sigma_max) == (0.05, 4.0)
    assert "SNR with others at 1" in report
    assert "SNR at 1" not in report
    with pytest.raises(ConfigurationError, match="as the start"):
        train_continuousflow(frames, TINY, Trainer(quick()), interference=recipe)
