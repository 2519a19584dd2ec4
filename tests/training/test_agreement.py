"""Stretches are chosen and shifted so that keys and beats meet."""

import math

import pytest
import torch

from pyrosep.errors import ConfigurationError
from pyrosep.training.agreement import AgreeingFrames, onset_strength, pitch_classes

RATE = 16_000
STEP = 256


def tone(hertz, seconds=1.0):
    time = torch.arange(round(seconds * RATE)) / RATE
    return torch.sin(2 * math.pi * hertz * time)


def clicks(*steps, length):
    """Bursts of noise that begin at these steps."""
    found = 1e-3 * torch.randn(length)
    for step in steps:
        found[step * STEP : (step + 6) * STEP] += torch.randn(6 * STEP) * torch.linspace(1, 0, 6 * STEP)
    return found


@pytest.mark.parametrize(("hertz", "expected"), [(440.0, 0), (110.0, 0), (466.16, 1), (261.63, 3), (1661.2, 11)])
def test_pitch_classes_are_those_that_sound(hertz, expected):
    found = pitch_classes(tone(hertz).unsqueeze(0), RATE)[0]
    assert int(found.argmax()) == expected
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)


def test_octaves_agree_and_semitones_do_not():
    low, high, other = pitch_classes(torch.stack([tone(220.0), tone(880.0), tone(233.08)]), RATE)
    assert float(low @ high) > 0.9
    assert float(low @ other) < 0.1


def test_silence_has_neither_pitch_nor_onsets():
    silent = torch.zeros(2, RATE)
    assert torch.equal(pitch_classes(silent, RATE), torch.zeros(2, 12))
    assert torch.equal(onset_strength(silent, RATE), torch.zeros_like(onset_strength(silent, RATE)))


def test_onsets_are_where_something_begins():
    torch.manual_seed(0)
    strength = onset_strength(clicks(10, 30, length=RATE).unsqueeze(0), RATE)[0]
    first, second = sorted(strength.topk(2).indices.tolist())
    assert second - first == 20
    # A window is four steps long and sees an onset when it begins to reach over it.
    assert abs(first - 10) <= 4


def test_a_stretch_is_shifted_to_the_beat_of_the_first():
    """Pools of one rhythm each, at another time of each stretch: in a mix they begin together."""
    torch.manual_seed(0)
    length, time = 100 * STEP, 64 * STEP

    def draw(count):
        starts = torch.randint(4, 24, (count,)).tolist()
        return torch.stack([clicks(at, at + 17, at + 45, length=length) for at in starts])

    mixes = AgreeingFrames([draw, draw], time, RATE, pool=16)(16, 0)
    assert mixes.shape == (16, 2, time)
    found = onset_strength(mixes.flatten(0, 1), RATE).unflatten(0, (16, 2))
    found = found - found.mean(-1, keepdim=True)
    agree = (found[:, 0] * found[:, 1]).sum(-1) / (found[:, 0].norm(dim=-1) * found[:, 1].norm(dim=-1))
    assert agree.median() > 0.7
    apart = (found[:, 0] * found[:, 1].roll(1, 0)).sum(-1) / (found[:, 0].norm(dim=-1) * found[:, 1].norm(dim=-1))
    assert agree.median() > apart.median() + 0.3


def test_a_stretch_is_chosen_by_its_key():
    """Of tones held, whose beats say nothing, the second source's is nearly always of the first one's pitch class."""
    torch.manual_seed(0)
    classes = [220.0 * 2 ** (k / 12) for k in range(12)]

    def draw(count):
        return torch.stack([tone(classes[k]) for k in torch.randint(12, (count,)).tolist()])

    mixes = AgreeingFrames([draw, draw], RATE, RATE, pool=60)(24, 0)
    first, second = pitch_classes(mixes.flatten(0, 1), RATE).unflatten(0, (24, 2)).unbind(1)
    assert float((first.argmax(-1) == second.argmax(-1)).float().mean()) > 0.9


def test_a_call_depends_on_its_number_alone():
    """A training that goes on where it was stopped meets the mixes that it would have met."""
    drawn = []

    def draw(count):
        drawn.append(count)
        return torch.randn(count, 4_000)

    def call(agreeing, number):
        torch.manual_seed(number)
        return agreeing(2, number)

    agreeing, again = (AgreeingFrames([draw, draw, draw], 3_000, RATE, pool=5, lasting=4, seed=7) for _ in range(2))
    expected = [call(agreeing, number) for number in range(6)]
    assert expected[0].shape == (2, 3, 3_000)
    assert drawn == [5] * 6, "a pool lasts for four calls"
    assert torch.equal(call(again, 5), expected[5])
    assert torch.equal(call(again, 2), expected[2])
    other = AgreeingFrames([draw, draw, draw], 3_000, RATE, pool=5, lasting=4, seed=8)
    assert not torch.equal(call(other, 2), expected[2])


def test_the_pools_leave_the_random_numbers_of_the_caller_alone():
    agreeing = AgreeingFrames([lambda count: torch.randn(count, 4_000)] * 2, 4_000, RATE, pool=3)
    torch.manual_seed(0)
    agreeing(1, 0)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    agreeing(1, 1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_mistakes():
    agreeing = AgreeingFrames([lambda count: torch.randn(count, 1_000)] * 2, 1_000, RATE, pool=3)
    with pytest.raises(ConfigurationError, match="at most 3 mixes"):
        agreeing(4, 0)
    with pytest.raises(ConfigurationError, match="1000 samples at 16000 Hz are too short to agree in beat"):
        agreeing(2, 0)
