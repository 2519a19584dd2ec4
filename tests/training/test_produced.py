"""What makes dry recordings sound produced: the spectrum, the tail, the crest factor, and what is left as it was."""

import math

import pytest
import torch

from pyrosep.errors import ConfigurationError
from pyrosep.training.augmentation import Augmentation
from pyrosep.training.produced import compressed, equalised, reverberated

RATE = 8000
ALL = {"equalise": 6.0, "compress": 0.5, "reverb": 0.5}


def rms(frames):
    return frames.square().mean(-1).sqrt()


def changes():
    return [
        pytest.param(lambda frames: equalised(frames, 6.0), id="equalised"),
        pytest.param(lambda frames: reverberated(frames, RATE), id="reverberated"),
        pytest.param(lambda frames: compressed(frames, RATE), id="compressed"),
    ]


@pytest.mark.parametrize("change", changes())
@pytest.mark.parametrize("time", [1, 2, 333, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frames_stay_finite_and_silence_silent(change, time, dtype):
    frames = torch.randn(5, time, dtype=dtype)
    frames[1] = 0
    frames[2] *= 1e-30
    frames[3] *= 1e6
    frames[4, 1:] = 0  # a click
    changed = change(frames)
    assert (changed.shape, changed.dtype) == (frames.shape, dtype)
    assert changed.isfinite().all()
    assert not changed[1].any()
    assert change(frames[:0]).shape == (0, time)


@pytest.mark.parametrize("change", changes()[1:])
def test_the_level_is_kept(change):
    frames = torch.randn(6, 4096) * torch.tensor([1e-3, 0.01, 0.1, 0.3, 1.0, 10.0]).unsqueeze(-1)
    torch.testing.assert_close(rms(change(frames)), rms(frames))


@pytest.mark.parametrize("change", changes())
def test_the_seed_decides(change):
    frames = torch.randn(3, 4096)
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(change(frames))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    # Frames are changed each in its own way.
    torch.manual_seed(1)
    same = change(frames[:1].expand(3, -1))
    assert not torch.allclose(same[0], same[1])


def test_the_equaliser_stays_within_its_gain():
    """The spectrum of an impulse is the filter: within 6 dB, and using most of that."""
    impulse = torch.zeros(40, 16_384, dtype=torch.float64)
    impulse[:, 8192] = 1
    curve = 20 * torch.fft.rfft(equalised(impulse, 6.0)).abs().log10()
    assert float(curve.abs().max()) < 6.1  # the frame is a little shorter than what is filtered
    assert float(curve.max(-1).values.mean()) > 3.5  # the largest of ten uniform values is 4.9 in the mean
    assert float(curve.min(-1).values.mean()) < -3.5
    # Smooth: within a sixth of an octave it moves by less than a third of what it may in an octave.
    octave = curve[:, [1024, 1149]]
    assert float(octave.diff().abs().max()) < 4.0


def test_the_equaliser_does_not_carry_the_end_to_the_beginning():
    frames = torch.zeros(8, 8192, dtype=torch.float64)
    frames[:, -1000:] = torch.randn(8, 1000, dtype=torch.float64)
    changed = equalised(frames, 12.0)
    assert float(changed[:, :1000].abs().max()) < 1e-3
    # A constant is filtered to a constant: the ends don't stand out.
    level = equalised(torch.ones(8, 8192, dtype=torch.float64), 12.0)
    torch.testing.assert_close(level, level[:, 4000:4001].expand(-1, 8192))


def test_reverberation_is_a_decaying_tail():
    """After an impulse: noise that is 60 dB down after 0.1 to 0.8 s, of at most half of the power."""
    time, place = 4 * RATE, RATE
    impulse = torch.zeros(40, time, dtype=torch.float64)
    impulse[:, place] = 1
    changed = reverberated(impulse, RATE)
    tail = changed[:, place + 1 :].square()
    share = tail.sum(-1) / changed.square().sum(-1)
    assert float(share.max()) < 0.52  # the first sample of the response is on the impulse
    assert float(share.std()) > 0.08  # uniform up to a half: 0.14
    assert not (changed[:, :place].abs() > 1e-9).any()
    # The time in which the energy that is still to come falls from -5 to -35 dB is half of that for 60 dB.
    rest = 10 * (tail.flip(-1).cumsum(-1).flip(-1) / tail.sum(-1, keepdim=True)).log10()
    fall = 2 * ((rest > -35).sum(-1) - (rest > -5).sum(-1)) / RATE
    assert float(fall.min()) > 0.08
    assert float(fall.max()) < 0.9
    assert float(fall.max()) > 2 * float(fall.min())


def bursts(count, time=4 * RATE):
    """A tone that is loud for a quarter of each half second, and 26 dB softer between."""
    place = torch.arange(time, dtype=torch.float64)
    loud = (place % (RATE // 2)) < RATE // 8
    tone = torch.sin(2 * math.pi * 500 / RATE * place)
    return (tone * torch.where(loud, 1.0, 0.05)).expand(count, -1), loud


def test_compression_lowers_the_crest_factor():
    frames, loud = bursts(40)
    changed = compressed(frames, RATE)
    crest = changed.abs().amax(-1) / rms(changed)
    assert (crest < frames.abs().amax(-1) / rms(frames)).all()
    # The loud parts stand out less, by no more than three quarters of the 26 dB.
    before, after = (20 * (rms(one[:, loud]) / rms(one[:, ~loud])).log10() for one in (frames, changed))
    assert (after < before - 0.3).all()
    assert (after > before / 4).all()
    assert float((before - after).mean()) > 2


def test_compression_has_no_clicks():
    """The gain moves by at most 2 dB in a millisecond where the level jumps by 26."""
    frames = bursts(40)[0]
    gain_db = 20 * (compressed(frames, RATE) / frames)[:, 1::2].log10()  # off the tone's zeros
    assert float(gain_db.diff().abs().max()) < 2.0 * 2 / RATE * 1000


def test_compression_leaves_an_even_level_alone():
    tone = torch.sin(2 * math.pi * 500 / RATE * torch.arange(RATE, dtype=torch.float64)).expand(5, -1)
    torch.testing.assert_close(compressed(tone, RATE), tone, rtol=1e-4, atol=1e-4)


def test_switches():
    frames = torch.randn(64, 1024)
    torch.manual_seed(3)
    assert torch.equal(Augmentation()(frames, 1024, RATE), frames)
    untouched = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(torch.rand(()), untouched), "nothing is drawn where all is off"
    for name in ("compress", "reverb"):
        changed = Augmentation(**{name: 0.25})(frames, 1024, RATE)
        share = float((changed != frames).any(-1).float().mean())
        assert 0.02 < share < 0.55  # binomial, of 64 at a quarter: five standard deviations
    assert (Augmentation(equalise=3.0)(frames, 1024) != frames).any(-1).all()
    torch.manual_seed(5)
    first = Augmentation(**ALL)(frames, 1024, RATE)
    torch.manual_seed(5)
    assert torch.equal(Augmentation(**ALL)(frames, 1024, RATE), first)
    assert first.isfinite().all()


def test_older_switches_draw_what_they_drew():
    frames = torch.randn(6, 256)
    torch.manual_seed(7)
    changed = Augmentation(gain_jitter=3.0, flip=True)(frames, 256, RATE)
    torch.manual_seed(7)
    gain = 10 ** (3.0 / 20 * torch.randn(6, 1))
    assert torch.equal(changed, frames * gain * (torch.randint(0, 2, (6, 1)) * 2 - 1))


def test_details():
    usual = {"gain_jitter": 3.0, "flip": False, "pitch_jitter": 0.0, "takes": 0.0}
    assert Augmentation(gain_jitter=3.0).details() == usual
    assert Augmentation(reverb=0.5).details()["reverb"] == 0.5


def test_mistakes():
    for wrong in ({"equalise": -1.0}, {"equalise": 41.0}, {"compress": 1.1}, {"reverb": -0.1}, {"reverb": math.nan}):
        with pytest.raises(ConfigurationError, match="equalise from 0 to 40 dB, and compress and reverb, shares"):
            Augmentation(**wrong)
    for name in ("compress", "reverb"):
        with pytest.raises(ConfigurationError, match="need the frames' sample rate"):
            Augmentation(**{name: 0.5})(torch.randn(2, 64), 64)
