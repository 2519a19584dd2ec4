"""Windows in, blocks out: the signal comes back whatever its length, and one window at a time is held."""

import pytest
import torch

from pyrosep.errors import ConfigurationError
from pyrosep.signal.windows import cross_fade, fade_in, windows_of


@pytest.mark.parametrize(("window", "hop"), [(8, 8), (8, 6), (8, 4), (9, 5), (9, 7), (2, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_windows_of_a_signal_give_it_back(window, hop, shape):
    # Shorter than a window, exact multiples of window and hop, one sample more and less of both.
    lengths = {1, window - 1, *(n * size + extra for n in (1, 2, 5) for size in (window, hop) for extra in (-1, 0, 1))}
    for length in sorted(lengths - {-1, 0}):
        signal = torch.randn(*shape, length, dtype=torch.float64)
        blocks = list(cross_fade(windows_of(signal, window, hop), window - hop))
        # The two weights of a sample sum to one up to rounding.
        torch.testing.assert_close(torch.cat(blocks, -1), signal, rtol=1e-14, atol=1e-14, msg=f"{length} samples")
        assert all(block.shape[-1] for block in blocks)


@pytest.mark.parametrize("length", [1, 5, 8, 9, 14, 15, 40])
def test_every_window_is_full_but_the_last(length):
    signal = torch.arange(length)
    windows = list(windows_of(signal, 8, 6))
    assert all(len(window) == 8 for window in windows[:-1])
    assert [int(window[0]) for window in windows] == [6 * n for n in range(len(windows))]
    assert int(windows[-1][-1]) == length - 1
    if len(windows) > 1:
        assert len(windows[-1]) > 2, "the last window must be longer than the overlap"


def test_where_windows_differ_they_are_mixed_by_squared_sines():
    blocks = torch.cat(list(cross_fade([torch.zeros(6), torch.ones(6)], overlap=4)))
    rise = torch.sin(torch.pi / 2 * (torch.arange(4) + 0.5) / 4) ** 2
    # float32 rounding of values up to one.
    torch.testing.assert_close(blocks, torch.cat([torch.zeros(2), rise, torch.ones(2)]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 1, 2, 7, 100])
def test_fade_and_its_mirror_image_sum_to_one(overlap):
    rise = fade_in(overlap, torch.zeros((), dtype=torch.float64))
    assert rise.shape == (overlap,)
    torch.testing.assert_close(rise + rise.flip(0), torch.ones(overlap, dtype=torch.float64))
    assert bool((rise.diff() > 0).all())


def test_no_more_than_one_window_is_asked_for_ahead():
    taken = []

    def windows():
        for n in range(5):
            taken.append(n)
            yield torch.full((8,), float(n))

    joined = cross_fade(windows(), overlap=2)
    assert taken == []
    for n in range(5):
        block = next(joined)
        assert taken == list(range(n + 1)), "a block comes as soon as its window is there"
        assert len(block) == 6
    assert len(next(joined)) == 2
    assert next(joined, None) is None


def test_windows_are_views():
    signal = torch.zeros(1000)
    assert all(window.untyped_storage().data_ptr() == signal.data_ptr() for window in windows_of(signal, 64, 32))


def test_no_window_gives_no_block():
    assert list(cross_fade([], overlap=2)) == []


@pytest.mark.parametrize("hop", [0, -1, 9])
def test_a_hop_out_of_range(hop):
    with pytest.raises(ConfigurationError, match="hop from 1 to the window's 8 samples"):
        next(windows_of(torch.zeros(20), 8, hop))
