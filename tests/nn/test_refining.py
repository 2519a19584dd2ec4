"""The networks of encoders: the harmonic gate and the U-Nets that refine each other."""

import math

import pytest
import torch

from pyrosep.errors import ConfigurationError
from pyrosep.nn.harmonic import HarmonicGate, _axis
from pyrosep.nn.refining import RefiningUNet, UNetSize

TIMES = (1, 2, 3, 100, 257)


def tone(frequency, time, amplitude=1.0):
    """Of a frequency in cycles a sample."""
    return amplitude * torch.sin(2 * math.pi * frequency * torch.arange(time, dtype=torch.float64) + 0.3)


def heard(x):
    axis = _axis(x.shape[-1], x.device, x.dtype)
    spectrum = torch.fft.rfft(x * axis.window, n=2 * x.shape[-1])
    return spectrum.abs().square() @ axis.gather


class Step(torch.nn.Module):
    """In place of the network: nothing below a position, everything from it on."""

    def __init__(self, position, count):
        super().__init__()
        self.position, self.count = position, count

    def forward(self, h):
        place = torch.arange(h.shape[-1]) >= self.position
        return torch.where(place, 40.0, -40.0).expand(len(h), self.count, -1)


# The harmonic gate


@pytest.mark.parametrize("position", [30, 150, 300, 480, 530])
@pytest.mark.parametrize("time", [4096, 16_384])
def test_a_line_has_the_power_of_its_amplitude_at_any_pitch_and_length(position, time):
    """At the centre of a position; what a frame of that length can't resolve is left out."""
    frequency = 0.5 * 2 ** ((position + 1 - 540) / 60)
    if frequency * time > 8:
        assert heard(tone(frequency, time, 0.7)).amax(-1).item() == pytest.approx(0.49, rel=0.08)


def test_harmonics_are_as_far_apart_at_any_pitch():
    """An octave is 60 positions, the octave and the fifth above it 95.1."""
    for pitch in (0.01, 0.017, 0.03):
        places = [heard(tone(number * pitch, 8192)).argmax().item() for number in (1, 2, 3)]
        assert abs(places[1] - places[0] - 60) <= 1
        assert abs(places[2] - places[0] - 60 * math.log2(3)) <= 1.5


def test_a_new_gate_lets_half_of_everything_through():
    x = torch.randn(2, 1, 300)
    out = HarmonicGate(1, 3, width=8)(x, x)
    assert out.shape == (2, 3, 300)
    assert torch.allclose(out, (x / 2).expand(2, 3, 300), atol=1e-5)


def test_a_gate_filters_at_the_frequency_that_it_says():
    """A step at the position of 0.05 cycles a sample: tones below go, tones above stay."""
    gate = HarmonicGate(1, 2, width=8).double()
    gate.net = Step(540 - 1 + 60 * math.log2(0.05 / 0.5), 2)
    low, high = tone(0.04, 4096), tone(0.06, 4096)
    out = gate((low + high)[None, None], (low + high)[None, None])
    middle = slice(500, -500)
    assert (out[0, 1] - high)[middle].square().mean() < 1e-3 * high.square().mean()


@pytest.mark.parametrize("time", TIMES)
def test_gates_take_any_length(time):
    x = torch.randn(2, 2, time)
    out = HarmonicGate(3, 2, width=4)(torch.randn(2, 3, time), x)
    assert out.shape == (2, 4, time)
    assert out.isfinite().all()


# U-Nets one after the other


def random(network):
    """Output layers start at zero: give them weights."""
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=generator)
    return network


@pytest.mark.parametrize("harmonic", [0, 4])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("time", TIMES)
def test_shapes(harmonic, passes, time):
    size = UNetSize(hop=4, width=8, levels=1, layers=1, passes=passes, harmonic=harmonic)
    network = random(RefiningUNet(2, 3, size))
    out, features = network(torch.randn(5, 2, time))
    assert out.shape == (5, 3, 2, time)
    assert features.shape == (5, 8)
    assert out.isfinite().all()


@pytest.mark.parametrize("harmonic", [0, 4])
def test_frames_of_a_batch_do_not_meet(harmonic):
    network = random(RefiningUNet(1, 2, UNetSize(hop=4, width=8, levels=1, layers=1, passes=2, harmonic=harmonic)))
    x = torch.randn(4, 1, 100)
    together = network(x)[0]
    assert torch.allclose(together[1], network(x[1:2])[0][0], atol=1e-4)


def test_each_pass_adds_to_what_is_there():
    """With the later U-Nets' output layers at zero, the first one's estimates stay."""
    size = UNetSize(hop=4, width=8, levels=1, layers=1, passes=3, harmonic=4)
    network = random(RefiningUNet(1, 2, size))
    for later in network.passes[1:]:
        torch.nn.init.zeros_(later.last.weight)
        torch.nn.init.zeros_(later.last.bias)
    x = torch.randn(2, 1, 64)
    first = network.passes[0](torch.cat([x, network.gates[0](x, x)], 1))[0]
    assert torch.allclose(network(x)[0].flatten(1, 2), first, atol=1e-5)


def test_later_passes_see_the_estimates():
    size = UNetSize(hop=4, width=8, levels=1, layers=1, passes=2, harmonic=4)
    network = random(RefiningUNet(1, 2, size))
    x = torch.randn(2, 1, 64)
    before = network(x)[0] - network.passes[0](torch.cat([x, network.gates[0](x, x)], 1))[0].unflatten(1, (-1, 2))
    network.passes[0].last.bias.data += 1
    after = network(x)[0] - network.passes[0](torch.cat([x, network.gates[0](x, x)], 1))[0].unflatten(1, (-1, 2))
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("option", [{"passes": 0}, {"harmonic": -1}, {"hop": 0}, {"levels": -1}])
def test_sizes_out_of_range(option):
    with pytest.raises(ConfigurationError, match="at least"):
        UNetSize(**option)
