"""NMF and ideal masks."""

import pytest
import torch

from pyrosep.errors import ConfigurationError
from pyrosep.evaluation.baselines import Nmf, ideal_ratio_mask
from pyrosep.metrics import si_sdr

RATE = 8000


def tones(frequencies, seconds=2.0, seed=0):
    """Notes of half a second, of one of the frequencies or silent, with three partials."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(RATE // 2) / RATE
    notes = []
    for _ in range(round(2 * seconds)):
        pitch = frequencies[int(torch.randint(len(frequencies), (), generator=generator))]
        loud = float(torch.rand((), generator=generator))
        notes.append(loud * sum(torch.sin(2 * torch.pi * pitch * (k + 1) * time) / (k + 1) for k in range(3)))
    return 0.1 * torch.cat(notes)


PITCHES = {"low": (110.0, 147.0, 196.0), "high": (523.0, 659.0, 831.0)}


@pytest.fixture(scope="module")
def nmf():
    frames = {name: torch.stack([tones(own, seed=seed) for seed in range(4)]) for name, own in PITCHES.items()}
    return Nmf.learn(frames, components=6, iterations=60)


def test_nmf_separates_what_it_has_dictionaries_of(nmf):
    truth = torch.stack([tones(own, seed=9) for own in PITCHES.values()]).unsqueeze(1)
    mix = truth.sum(0)
    found = nmf(mix)
    assert found.shape == truth.shape
    torch.testing.assert_close(found.sum(0), mix, rtol=0, atol=1e-5)
    assert float((si_sdr(found, truth) - si_sdr(mix.expand_as(truth), truth)).min()) > 8


def test_nmf_keeps_the_order_of_its_dictionaries(nmf):
    turned = Nmf(dict(reversed(nmf.dictionaries.items())), hop=nmf.hop, iterations=nmf.iterations)
    mix = sum(tones(own, seed=9) for own in PITCHES.values()).expand(2, -1)
    found, other = nmf(mix), turned(mix)
    assert found.shape == (2, 2, mix.shape[-1])
    # The activations start at random numbers, which fall to others of the dictionary.
    torch.testing.assert_close(other.flip(0), found, rtol=0, atol=0.03 * float(mix.abs().max()))


def test_dictionaries_need_sound():
    with pytest.raises(ConfigurationError, match="6 components of 'low' need as many windows"):
        Nmf.learn({"low": torch.zeros(1, 4000)}, components=6)


def test_ideal_masks_sum_to_the_mix_and_separate_it():
    truth = torch.stack([tones(own, seed=9) for own in PITCHES.values()]).unsqueeze(1)
    mix = truth.sum(0)
    found = ideal_ratio_mask(truth, mix)
    torch.testing.assert_close(found.sum(0), mix, rtol=0, atol=1e-5)
    assert float((si_sdr(found, truth) - si_sdr(mix.expand_as(truth), truth)).min()) > 8
