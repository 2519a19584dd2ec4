"""Training flows: towards the exact density, resumable, on toy waves and recordings, and the seed's chain of copies."""

import math

import pytest
import torch

from pyrosep import load_priors
from pyrosep.errors import ConfigurationError
from pyrosep.priors import SIZES
from pyrosep.training.flowavenet import _Loss, finetune_flowavenet, train_flowavenet
from pyrosep.training.frames import Frames, song_frames, toy_frames
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer

# Lightning asks for worker processes, pytrees and the like.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def test_it_comes_close_to_the_exact_density(gaussian_frames):
    frames = gaussian_frames()
    settings = TrainingSettings(steps=250, batch=64, learning_rate=0.01, ema=0.98)
    prior, report = train_flowavenet(frames, SIZES["tiny"], Trainer(settings, quiet=True), sigma_min=0.05)
    white = math.sqrt(float(prior.network.variance))
    for level in (0.1, 0.36, 1.0):
        x = frames.exact.at(level).sample((500,))
        best = float(frames.exact.at(level).log_prob(x).mean())
        naive = float(torch.distributions.Normal(0.0, math.hypot(level, white)).log_prob(x).sum(-1).mean())
        # Half of what there is to learn above white noise of the source's power.
        assert float(prior.at(level).log_prob(x).mean()) > (best + naive) / 2
        assert report[f"below exact at {level:g}"] > -1  # a held-out mean above the exact one's would be a mistake
    assert (prior.sample_rate, prior.time, prior.sigma_min) == (8000, 32, 0.05)
    assert report["sigma_max"] == pytest.approx(white * math.sqrt(32), abs=2e-3)


def test_spectrum_is_the_sources(quick, gaussian_frames):
    frames = gaussian_frames()
    prior, _ = train_flowavenet(frames, SIZES["tiny"], Trainer(quick(), quiet=True))
    # A mean of 256 periodograms, each exponential about the spectrum: 1/16 of it is a standard error; five of those.
    assert float((prior.spectrum / frames.exact.spectrum).log().abs().max()) < 5 / 16


def test_resumed_it_is_the_same_bit_for_bit(tmp_path, quick, gaussian_frames):
    frames = gaussian_frames()
    arguments = {"quiet": True, "resume": True}
    unbroken, _ = train_flowavenet(frames, SIZES["tiny"], Trainer(quick(), folder=tmp_path / "a", **arguments))
    train_flowavenet(frames, SIZES["tiny"], Trainer(quick(), folder=tmp_path / "b", until=3, **arguments))
    resumed, report = train_flowavenet(frames, SIZES["tiny"], Trainer(quick(), folder=tmp_path / "b", **arguments))
    assert report["steps"] == 6
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])


def test_noise_is_at_all_levels_and_never_clamped(quick, gaussian_frames):
    frames, seen = gaussian_frames(), []

    class Watched(_Loss):
        def __call__(self, network, batch):
            seen.append(batch)
            return super().__call__(network, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrosep.training.flowavenet._Loss", Watched)
        train_flowavenet(frames, SIZES["tiny"], Trainer(quick(steps=40), quiet=True), sigma_min=0.01, sigma_max=20.0)
    x, sigma, noise = (torch.cat(part) for part in zip(*seen, strict=True))
    assert float(x.abs().max()) > 5
    torch.testing.assert_close(noise.var(), torch.tensor(1.0), atol=0.1, rtol=0)
    place = (sigma / 0.01).log() / math.log(20 / 0.01)
    assert float(place.min()) > 0
    assert float(place.max()) < 1
    # Uniform in the logarithm: 160 draws, whose mean has a standard error of 0.023; four of those.
    assert float(place.mean()) == pytest.approx(0.5, abs=0.092)


def test_score_matching_is_that_of_the_noise():
    """At the exact density of white noise the term is the part of the noise that can't be told, in closed form."""
    from pyrosep.priors import FloWaveNetwork

    network = FloWaveNetwork(SIZES["tiny"], torch.full((5,), 0.5))  # not trained: exact for white noise of power 0.5
    clean, sigma, noise = math.sqrt(0.5) * torch.randn(2000, 8), torch.full((2000,), 0.7), torch.randn(2000, 8)
    batch = (clean + 0.7 * noise, sigma, noise)
    plain, both = _Loss(0.0)(network, batch), _Loss(1.0)(network, batch)
    # E (sigma score + eps)^2 = v / (v + sigma^2); 16,000 draws of a squared normal: five standard errors.
    expected = 0.5 / (0.5 + 0.49)
    assert float((both - plain).detach()) == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / 16_000))
    both.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def test_score_matching_trains(quick, gaussian_frames):
    prior, _ = train_flowavenet(gaussian_frames(), SIZES["tiny"], Trainer(quick(), quiet=True), score_weight=0.5)
    assert bool(torch.isfinite(prior.log_prob(prior.sample((2,)))).all())


def test_contrast_is_the_cross_entropy_of_telling_strangers():
    from pyrosep.priors import FloWaveNetwork

    network = FloWaveNetwork(SIZES["tiny"], torch.full((5,), 0.5))
    x, y, noise, sigma = torch.randn(6, 8), 3 * torch.randn(6, 8), torch.randn(6, 8), torch.linspace(0.1, 0.6, 6)
    own, other = network(x, sigma), network(y, sigma)
    expected = -(own.exp() / (own.exp() + other.exp())).log().mean() / 8
    trained_on = (torch.randn(6, 8), sigma, noise)
    extra = _Loss(0.0, 2.0)(network, (*trained_on, x, y)) - _Loss(0.0)(network, trained_on)
    torch.testing.assert_close(extra, 2 * expected)


def test_pairs_have_the_same_noise_up_to_their_level():
    from pyrosep.training.flowavenet import _pairs

    clean, strangers, sigma = torch.zeros(4000, 16), torch.ones(4000, 16), torch.full((4000,), 0.3)
    own, other = _pairs(clean, strangers, sigma)
    torch.testing.assert_close(other - own, strangers)
    level = own.square().mean(-1).sqrt()
    assert 0.2 < float((level == 0).float().mean()) < 0.3  # a quarter: standard deviation 0.007
    assert float(level.max()) < 0.3 * 2  # 16 samples of noise of that level
    assert 0.4 < float((level / 0.3).mean()) < 0.6


def test_strangers_are_constants_silence_and_other_waves():
    from pyrosep.data.toy import WAVES
    from pyrosep.priors import OscillatorPrior
    from pyrosep.training.flowavenet import _strangers

    strangers = _strangers(toy_frames("saw", 64, held_out=1), 300)
    flat = strangers.std(-1) == 0
    silent = flat & (strangers[:, 0] == 0)
    assert 60 < int(silent.sum()) < 140  # 100 of 300, standard deviation 8: five of those
    assert 60 < int((flat & ~silent).sum()) < 140
    assert float(strangers[flat].abs().max()) <= 1
    waves = strangers[~flat]
    nats = torch.stack([OscillatorPrior(wave, 64).log_prob(waves) for wave in WAVES])
    named = [WAVES[i] for i in nats.argmax(0).tolist()]
    assert named.count("saw") <= 3  # of short periods waves are alike
    assert all(named.count(wave) > 10 for wave in WAVES if wave != "saw")


@pytest.mark.slow
def test_contrast_tells_constants_apart_where_the_likelihood_alone_does_not():
    """A source near zero, of which constants and silence are the likeliest frames of all."""
    held_out = 0.05 * torch.randn(50, 32)
    frames = Frames(lambda count: 0.05 * torch.randn(count, 32), held_out, 8000)
    settings = TrainingSettings(steps=150, batch=32, learning_rate=0.01, ema=0.95)
    x, silence = held_out + 0.02 * torch.randn(50, 32), 0.02 * torch.randn(50, 32)

    def margin(prior):
        return float((prior.at(0.02).log_prob(x) - prior.at(0.02).log_prob(silence)).mean())

    plain, _ = train_flowavenet(frames, SIZES["tiny"], Trainer(settings, quiet=True), sigma_min=0.01, sigma_max=0.04)
    assert margin(plain) < 0
    told, report = train_flowavenet(
        frames, SIZES["tiny"], Trainer(settings, quiet=True), sigma_min=0.01, sigma_max=0.04, contrast=10.0, start=plain
    )
    assert report["contrast"] == 10.0
    assert margin(told) > 0
    assert float(told.at(0.02).log_prob(x).mean()) <= float(plain.at(0.02).log_prob(x).mean()) + 0.5


def test_a_start_is_copied_and_kept_as_it_was(quick, gaussian_frames):
    frames = gaussian_frames()
    first, _ = train_flowavenet(frames, SIZES["tiny"], Trainer(quick(), quiet=True))
    x = torch.randn(3, 32)
    before = first.log_prob(x)
    slow = quick(steps=1, learning_rate=1e-9)
    second, _ = train_flowavenet(frames, SIZES["tiny"], Trainer(slow, quiet=True), start=first)
    torch.testing.assert_close(second.log_prob(x), before, rtol=0, atol=1e-3)
    third, _ = train_flowavenet(frames, SIZES["tiny"], Trainer(quick(), quiet=True), start=first)
    assert not torch.equal(third.log_prob(x), before)
    assert torch.equal(first.log_prob(x), before)
    with pytest.raises(ConfigurationError, match="must be of this size"):
        train_flowavenet(frames, SIZES["small"], Trainer(quick(), quiet=True), start=first)


def test_fine_tuned_copies(tmp_path, quick, gaussian_frames):
    frames, levels = gaussian_frames(), (0.05, 0.2, 0.8)
    arguments = {"levels": levels, "name": "wave"}
    copies, reports = finetune_flowavenet(
        frames, SIZES["tiny"], Trainer(quick(steps=8), folder=tmp_path, quiet=True), **arguments
    )
    assert tuple(copies) == levels
    assert [report["steps"] for report in reports.values()] == [4, 6, 8]
    assert [prior.sigma_min for prior in copies.values()] == list(levels)
    x = copies[0.2].sample((2,))
    assert not torch.equal(copies[0.2].log_prob(x), copies[0.8].at(0.2).log_prob(x))
    for level in levels:
        kept = load_priors(tmp_path / f"sigma-{level:g}")["wave"]
        assert torch.equal(kept.log_prob(x), copies[level].log_prob(x))
    again, nothing = finetune_flowavenet(
        frames, SIZES["tiny"], Trainer(quick(steps=8), folder=tmp_path, resume=True, quiet=True), **arguments
    )
    assert nothing == {}
    assert torch.equal(again[0.8].log_prob(x), copies[0.8].log_prob(x))


def test_toy_frames_are_the_waves_and_held_out_ones_are_not_drawn():
    frames = toy_frames("saw", 64, held_out=5, seed=3)
    assert frames.held_out.shape == (5, 64)
    assert frames.sample_rate == 14_700
    torch.manual_seed(3)
    drawn = frames.draw(200)
    assert drawn.shape == (200, 64)
    assert 0.8 <= float(drawn.abs().max()) <= 1.0
    assert float((drawn.unsqueeze(1) - frames.held_out).square().mean(-1).min()) > 0
    assert torch.equal(toy_frames("saw", 64, held_out=5, seed=3).held_out, frames.held_out)


def test_mistakes(quick, gaussian_frames):
    frames = gaussian_frames()
    with pytest.raises(ConfigurationError, match="multiple of 512 samples for this size; got 32"):
        train_flowavenet(frames, SIZES["small"], Trainer(quick(), quiet=True))
    with pytest.raises(ConfigurationError, match=r"must rise from above 0; got 2\.0 to 1"):
        train_flowavenet(frames, SIZES["tiny"], Trainer(quick(), quiet=True), sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ConfigurationError, match="needs a folder"):
        finetune_flowavenet(frames, SIZES["tiny"], Trainer(quick(), quiet=True), levels=(0.1, 0.2))
    with pytest.raises(ConfigurationError, match="two or more rising levels"):
        finetune_flowavenet(frames, SIZES["tiny"], Trainer(quick(), folder="nowhere", quiet=True), levels=(0.2, 0.1))


def test_song_frames_hold_out_songs(tmp_path):
    import soundfile

    from pyrosep.data import StemFolder

    torch.manual_seed(0)
    for i in range(10):
        folder = tmp_path / f"song{i}"
        folder.mkdir()
        level = 0.5 if i == 9 else 0.01  # the tenth is the one that is held out
        for name in ("bass", "drums"):
            soundfile.write(folder / f"{name}.wav", level * torch.randn(4000).clamp(-1, 1).numpy(), 8000)
    frames = song_frames(StemFolder(tmp_path), "bass", 256, held_out=6)
    assert frames.held_out.shape == (6, 256)
    assert frames.sample_rate == 8000
    assert float(frames.held_out.std()) > 0.2
    assert float(frames.draw(8).std()) < 0.1
