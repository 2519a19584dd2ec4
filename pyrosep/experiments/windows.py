"""Windows of songs whose sources are known, and how much better estimates of them are than the mix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrosep.data import FrameGrid
from pyrosep.data.catalog import open_songs
from pyrosep.errors import DataError
from pyrosep.metrics import si_sdr, sounding

__all__ = ["improvements", "song_windows"]


def song_windows(
    data: str, names: Sequence[str], *, frame: int, sample_rate: int, count: int, every: tuple[int, int] = (0, 1)
) -> Tensor:
    """True sources ``(window, source, time)`` of windows in which at least two of them sound.

    Arguments:
        data: folder of songs with stems.
        names: of the sources.
        frame: samples in a window.
        sample_rate: Hz.
        count: how many, at most; they are evenly spaced over all songs.
        every: take songs whose place in the list, divided by the second number, leaves the first.

    Raises:
        DataError: there is no such window.
    """
    songs, _ = open_songs(data, subset="test", sources=names)
    first, step = every
    grid = FrameGrid(list(songs)[first::step], frame, sample_rate=sample_rate, sources=names)
    places = torch.linspace(0, len(grid) - 1, min(len(grid), 4 * count)).round().long().tolist()
    kept = []
    for place in places[1::4] + places[3::4] + places[::4] + places[2::4]:  # more are passed over where it is quiet
        sources = grid[place].sources
        if int(sounding(sources.unsqueeze(1)).sum()) >= 2:
            kept.append(sources)
        if len(kept) == count:
            break
    if not kept:
        raise DataError(f"in no window of {data} at least two of {', '.join(names)} sound")
    return torch.stack(kept)


def improvements(estimate: Tensor, truth: Tensor) -> list[float]:
    """By source, the improvement of SI-SDR over the mix as the estimate, in dB: means over windows where it sounds.

    Arguments:
        estimate, truth: ``(window, source, time)``.

    Returns:
        a number for each source; NaN for one that sounds in no window.
    """
    mix = truth.sum(1, keepdim=True)
    heard = sounding(truth.unsqueeze(2))
    gained = si_sdr(estimate.unsqueeze(2), truth.unsqueeze(2)) - si_sdr(
        mix.expand_as(truth).unsqueeze(2), truth.unsqueeze(2)
    )
    return [
        float(gained[heard[:, k], k].mean()) if bool(heard[:, k].any()) else math.nan for k in range(truth.shape[1])
    ]
