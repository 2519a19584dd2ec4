"""Toy oscillators: waves against scipy's, draws pinned for good, and their distributions."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from torch.utils.data import DataLoader

from pyrosep.data import toy
from pyrosep.errors import ConfigurationError

FALSE_ALARM = 1e-4
"""Share of seeds for which one of the goodness-of-fit tests below would fail although the draws are right."""


@pytest.mark.parametrize("period", [13, 32, 101, 534])
def test_cycles_equal_scipys(period: int) -> None:
    time = 2 * np.pi * np.arange(period) / period
    np.testing.assert_allclose(toy.cycle("sine", period), np.sin(time), atol=1e-12)
    np.testing.assert_allclose(toy.cycle("saw", period), scipy.signal.sawtooth(time), atol=1e-12)
    np.testing.assert_allclose(toy.cycle("triangle", period), scipy.signal.sawtooth(time, 0.5), atol=1e-12)
    square = toy.cycle("square", period)
    assert square[: (period + 1) // 2].tolist() == [1.0] * ((period + 1) // 2)
    assert square[(period + 1) // 2 :].tolist() == [-1.0] * (period // 2)


@pytest.mark.parametrize("wave", toy.WAVES)
def test_waveform_is_the_formula(wave: str) -> None:
    got = toy.waveform(wave, 37, 11, 0.9, 100)
    expected = [0.9 * toy.cycle(wave, 37)[(t + 11) % 37] for t in range(100)]
    assert got.tolist() == expected
    item = toy.ToySource(wave, frame=1000, size=5, seed=3)
    expected_item = toy.waveform(wave, *item.parameters(4), 1000)
    torch.testing.assert_close(item[4], torch.from_numpy(expected_item).to(torch.float32), rtol=0, atol=0)


def test_keys_and_periods() -> None:
    assert len(toy.KEYS) == 640
    np.testing.assert_allclose([toy.KEYS[0], toy.KEYS[-1]], [1.0, 64.9], rtol=0)
    # No key's period is so close to a whole number that rounding could decide it.
    exact = toy.SAMPLE_RATE / (440 * 2 ** ((toy.KEYS - 49) / 12))
    assert np.abs(exact - np.rint(exact)).min() > 1e-6
    periods, weights = toy.period_prior()
    assert len(periods) == 356
    assert (periods[0], periods[-1]) == (13, 534)
    assert (np.diff(periods) > 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert dict(zip(periods.tolist(), weights.tolist(), strict=True))[13] == np.mean(np.floor(exact) == 13)


def test_draws_are_pinned() -> None:
    pinned = {
        "sine": [(51, 27, 0.8933043983624486), (13, 4, 0.8061340127065831)],
        "saw": [(64, 40, 0.8103701717864676), (33, 4, 0.9681507068198929)],
        "square": [(55, 31, 0.8995691592246828), (223, 69, 0.8731767631964045)],
        "triangle": [(250, 193, 0.8185971482046238), (111, 105, 0.8735622084592067)],
    }
    checks = {"sine": -38.02051840, "saw": 169.51438384, "square": -183.36711824, "triangle": 539.02723305}
    for wave, (first, fourth) in pinned.items():
        source = toy.ToySource(wave, frame=64, size=5, seed=7)
        assert source.parameters(0) == first
        assert source.parameters(3) == fourth
        check = float(source[3].double() @ torch.arange(64.0, dtype=torch.float64))
        assert check == pytest.approx(checks[wave], abs=1e-4)
    mixes = toy.ToyMixes(frame=64, size=5, seed=7)
    assert mixes.parameters(2)[3] == (256, 86, 0.9251675024891783)
    check = float(mixes[2].mix.double() @ torch.arange(64.0, dtype=torch.float64))
    assert check == pytest.approx(612.54913452, abs=1e-4)


def test_mix_is_the_mean_and_sources_depend_on_their_wave_alone() -> None:
    mixes = toy.ToyMixes(frame=512, size=10, seed=1)
    mix, sources = mixes[6]
    assert mix.shape == (512,)
    assert sources.shape == (4, 512)
    torch.testing.assert_close(mix, sources.mean(0))
    two = toy.ToyMixes(("square", "sine"), frame=512, size=10, seed=1)[6].sources
    assert torch.equal(two, sources[[2, 0]])
    for k, wave in enumerate(toy.WAVES):
        assert not torch.equal(sources[k], toy.ToySource(wave, frame=512, size=10, seed=1)[6])


def test_workers_change_nothing() -> None:
    mixes = toy.ToyMixes(frame=128, size=8, seed=2)
    batches = list(DataLoader(mixes, batch_size=4, num_workers=1))
    assert batches[0].sources.shape == (4, 4, 128)
    assert torch.equal(torch.cat([batch.mix for batch in batches]), torch.stack([item.mix for item in mixes]))


def drawn(size: int) -> list[tuple[toy.ToyParameters, ...]]:
    mixes = toy.ToyMixes(frame=1, size=size, seed=11)
    return [mixes.parameters(index) for index in range(size)]


def test_draws_have_the_stated_distribution() -> None:
    rows = list(itertools.chain.from_iterable(drawn(4000)))
    # Periods: those of small weight are put together until 50 draws are expected of each group.
    periods, weights = toy.period_prior()
    counts = Counter(row.period for row in rows)
    assert set(counts) <= set(periods.tolist())
    observed, expected, waiting = [], [], [0.0, 0.0]
    for one, weight in zip(periods.tolist(), weights.tolist(), strict=True):
        waiting = [waiting[0] + counts[one], waiting[1] + weight * len(rows)]
        if waiting[1] >= 50:
            observed.append(waiting[0])
            expected.append(waiting[1])
            waiting = [0.0, 0.0]
    observed[-1] += waiting[0]
    expected[-1] += waiting[1]
    assert scipy.stats.chisquare(observed, expected).pvalue > FALSE_ALARM
    # Phases: in eighths of the cycle, of which a period that is no multiple of 8 has unequal shares.
    bins = np.zeros(8)
    shares = np.zeros(8)
    for row in rows:
        bins[row.phase * 8 // row.period] += 1
        shares += np.bincount(np.arange(row.period) * 8 // row.period, minlength=8) / row.period
    assert scipy.stats.chisquare(bins, shares).pvalue > FALSE_ALARM
    assert all(0 <= row.phase < row.period for row in rows)
    # Amplitudes.
    amplitudes = [row.amplitude for row in rows]
    assert scipy.stats.kstest(amplitudes, "uniform", args=(0.8, 0.2)).pvalue > FALSE_ALARM


def test_sources_items_and_parameters_are_independent() -> None:
    rows = drawn(3000)
    source = toy.ToySource("sine", frame=1, size=3001, seed=11)
    alone = [source.parameters(index) for index in range(3001)]
    other = toy.ToySource("sine", frame=1, size=3000, seed=12)
    columns = {f"{wave} {name}": [getattr(row[k], name) for row in rows] for k, wave in enumerate(toy.WAVES)
               for name in ("period", "amplitude")}  # fmt: skip
    columns["relative phase"] = [row[0].phase / row[0].period for row in rows]
    columns["alone"] = [row.period for row in alone[:3000]]
    columns["next alone"] = [row.period for row in alone[1:]]
    columns["other seed"] = [other.parameters(index).period for index in range(3000)]
    pairs = list(itertools.combinations(columns, 2))
    values = [scipy.stats.spearmanr(columns[one], columns[two]).pvalue for one, two in pairs]
    assert min(values) > FALSE_ALARM / len(pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wave": "noise"}, "sine, saw, square, triangle; got 'noise'"),
        ({"frame": 0}, "frame of at least 1"),
        ({"frame": -5}, "frame of at least 1"),
        ({"size": -1}, "size from 0"),
        ({"seed": -1}, "seed from 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        toy.ToySource(**{"wave": "sine", **arguments})
    mixes = {"waves": (arguments.pop("wave", "sine"),), **arguments}
    with pytest.raises(ConfigurationError, match=message):
        toy.ToyMixes(**mixes)


def test_other_mistakes() -> None:
    with pytest.raises(ConfigurationError, match="index from 0 to 4, got -1"):
        toy.ToySource("sine", size=5)[-1]
    with pytest.raises(IndexError, match="got 5"):
        toy.ToyMixes(size=5)[5]
    with pytest.raises(ConfigurationError, match="different waves"):
        toy.ToyMixes(("sine", "sine"))
    with pytest.raises(ConfigurationError, match="different waves"):
        toy.ToyMixes(())
    with pytest.raises(ConfigurationError, match="period of at least 1"):
        toy.cycle("sine", 0)
    with pytest.raises(ConfigurationError, match="frame of at least 0"):
        toy.waveform("sine", 10, 0, 1.0, -1)
