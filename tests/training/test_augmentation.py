"""Augmentation: what each change does to a frame, and that none is there unless asked for."""

import math

import pytest
import torch

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.training.augmentation import Augmentation


def test_by_default_frames_are_left_alone():
    frames, plain = torch.randn(5, 32), Augmentation()
    assert plain.length(32) == 32
    assert torch.equal(plain(frames, 32), frames)


def test_gain(mean_agrees):
    frames = torch.ones(4000, 2)
    gain_db = 20 * Augmentation(gain_jitter=3.0)(frames, 2).log10()
    assert torch.equal(gain_db[:, 0], gain_db[:, 1])
    mean_agrees(gain_db[:, 0], 0.0)
    mean_agrees(gain_db[:, 0].square(), 9.0)


def test_flip(mean_agrees):
    frames = torch.ones(4000, 3)
    flipped = Augmentation(flip=True)(frames, 3)
    assert set(flipped[:, 0].tolist()) == {-1.0, 1.0}
    assert torch.equal(flipped[:, 0], flipped[:, 2])
    mean_agrees(flipped[:, 0], 0.0)


def test_pitch():
    """A sine of 1/20 of the rate comes out within a semitone of it, as loud as it was, with nothing beside it."""
    change = Augmentation(pitch_jitter=1.0)
    time = 2048
    length = change.length(time)
    # A frame with its margins of 64 samples, or a three-hundredth more, a semitone higher.
    least = (time + 128) * 2 ** (1 / 12)
    assert least <= length < least * (1 + 1 / 300) + 1
    place = torch.arange(length, dtype=torch.float64)
    frames = torch.sin(2 * math.pi * (place / 20 + torch.rand(40, 1, dtype=torch.float64)))
    shifted = change(frames, time)
    assert shifted.shape == (40, time)
    power = torch.fft.rfft(shifted * torch.hann_window(time, dtype=torch.float64), n=16 * time).abs().square()
    semitones = 12 * (power.argmax(-1) / (16 * time) * 20).log2()
    assert float(semitones.abs().max()) < 1.02  # the peak is found to a sixteenth of a bin
    # Uniform between: the 40 cover most of the range (a fraction 40 * 0.6^39 of trials would not).
    assert float(semitones.max() - semitones.min()) > 1.2
    torch.testing.assert_close(
        shifted.square().mean(-1), torch.full((40,), 0.5, dtype=torch.float64), rtol=0.02, atol=0
    )


def test_pitch_of_none_is_the_middle_of_the_take(monkeypatch):
    change = Augmentation(pitch_jitter=2.0)
    frames = torch.randn(1, change.length(64), dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.5))
    torch.testing.assert_close(change(frames, 64), frames[:, 64:128])


def test_takes_are_summed():
    frames = torch.eye(64)
    summed = Augmentation(takes=0.5)(frames, 64)
    assert torch.equal(summed.diagonal(), torch.ones(64))
    others = (summed - frames).sum(-1)
    assert set(others.tolist()) == {0.0, 1.0}
    # Binomial, of 64 at a half: 5 standard deviations of 4.
    assert abs(float(others.sum()) - 32) < 20
    assert torch.equal(Augmentation(takes=1.0)(frames[:1], 64), frames[:1])  # there is no other


def test_mistakes():
    with pytest.raises(ConfigurationError, match="pitch_jitter from 0 to 12 semitones and takes from 0 to 1"):
        Augmentation(pitch_jitter=13.0)
    with pytest.raises(ConfigurationError, match="takes from 0 to 1"):
        Augmentation(takes=1.5)
    with pytest.raises(ShapeError, match=r"expected frames of shape \(n, 32\); got \(2, 40\)"):
        Augmentation()(torch.zeros(2, 40), 32)
