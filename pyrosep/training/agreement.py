"""Frames of no song together that go together: in one key, and with beats that meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError

__all__ = ["AgreeingFrames", "onset_strength", "pitch_classes"]

#: Seconds of the windows that pitch and onsets are read in; a quarter of them to the next window.
_PITCH_WINDOW, _ONSET_WINDOW = 0.256, 0.064
#: Hz between which pitches are read: from A1, five octaves.
_LOWEST, _HIGHEST = 55.0, 1760.0
#: Power of a window beside which a rise counts for nothing, relative to the mean.
_ONSET_FLOOR = 1e-4
#: Spread of chance in the choice, beside correlations.
_CHANCE = 0.1


class _Heard(NamedTuple):
    """Stretches ``(n, time)``, their pitch classes ``(n, 12)`` and their onset strength ``(n, step)``."""

    stretches: Tensor
    classes: Tensor
    onsets: Tensor


class AgreeingFrames:
    """Mixes of recordings of no song together, chosen so that they agree as the parts of a song do.

    The parts of a song share their key, so that their partials meet, and their beat, so that they begin together. Of
    recordings drawn by chance neither is true, and a separator that has met only such mixes takes what begins together
    for one source. Here a stretch of one source, drawn by chance, is joined by stretches of the others, one source
    after the other. Of a pool of the next source's stretches, and of the shifts of each in time, the one is taken whose
    pitch classes and onsets correlate most with what is there already, but for a little chance. No mix of a song, and
    no two parts of one, are needed.

    Arguments:
        draws: for each source, what draws so many stretches ``(count, length)`` of it, by torch's own generator.
        time: samples in a frame; what stretches are longer by is room to shift them in.
        sample_rate: Hz.
        pool: stretches of each source to choose from.
        lasting: calls that choose from one pool.
        seed: of the pools.
    """

    def __init__(
        self,
        draws: Sequence[Callable[[int], Tensor]],
        time: int,
        sample_rate: int,
        *,
        pool: int,
        lasting: int = 8,
        seed: int = 0,
    ) -> None:
        self.draws, self.time, self.sample_rate = list(draws), time, sample_rate
        self.pool, self.lasting, self.seed = pool, lasting, seed
        self._step = _onset_step(sample_rate)
        self._pools: list[_Heard] = []
        self._number = -1

    def __call__(self, count: int, number: int) -> Tensor:
        """So many mixes' sources, ``(count, source, time)``, by torch's own generator.

        Arguments:
            count: at most as many as a pool has stretches.
            number: of the call. Which pool it chooses from depends on that alone, whatever calls went before.

        Raises:
            ConfigurationError: more mixes than stretches, or stretches too short to tell beats in.
        """
        if count > self.pool:
            raise ConfigurationError(f"expected at most {self.pool} mixes from a pool of as many; got {count}")
        if self.time < 8 * self._step:
            raise ConfigurationError(
                f"frames of {self.time} samples at {self.sample_rate} Hz are too short to agree in beat; take at least "
                f"{8 * self._step}, or no agreement"
            )
        if number // self.lasting != self._number:
            self._number = number // self.lasting
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed((self.seed * 1_000_003 + self._number) % 2**63)
                self._pools = [self._heard(draw(self.pool)) for draw in self.draws]
        return torch.stack([self._mixed(row) for row in torch.randperm(self.pool)[:count].tolist()])

    def _heard(self, stretches: Tensor) -> _Heard:
        return _Heard(
            stretches, pitch_classes(stretches, self.sample_rate), onset_strength(stretches, self.sample_rate)
        )

    def _mixed(self, row: int) -> Tensor:
        """The sources of one mix, led by one of the stretches."""
        first, *others = torch.randperm(len(self.draws)).tolist()
        lead, found = self._pools[first], self._pools[first].stretches.new_zeros(len(self.draws), self.time)
        spare = (lead.stretches.shape[-1] - self.time) // self._step
        start = int(torch.randint(spare + 1, ()))
        length = lead.onsets.shape[-1] - spare
        found[first] = self._cut(lead.stretches[row], start)
        classes, onsets = lead.classes[row], lead.onsets[row, start : start + length]
        for place in others:
            pool = self._pools[place]
            # Of each stretch the best shift, then of all of them the best stretch.
            fit, shift = (_standardised(pool.onsets.unfold(-1, length, 1)) @ _standardised(onsets)).max(-1)
            chosen = int((fit + pool.classes @ classes + _CHANCE * torch.randn(len(fit))).argmax())
            start = int(shift[chosen])
            found[place] = self._cut(pool.stretches[chosen], start)
            classes = _standardised(classes + pool.classes[chosen])
            onsets = onsets + pool.onsets[chosen, start : start + length]
        return found

    def _cut(self, stretch: Tensor, start: int) -> Tensor:
        return stretch[start * self._step :][: self.time]


def pitch_classes(frames: Tensor, sample_rate: int) -> Tensor:
    """How much each of the twelve pitch classes sounds in frames, standardised to mean 0 and norm 1.

    The magnitudes of short-time spectra from 55 to 1760 Hz, each bin's at the pitch class next to it (Fujishima, 1999).

    Arguments:
        frames: ``(n, time)``.
        sample_rate: Hz.

    Returns:
        ``(n, 12)``, from A; zero for silence.
    """
    size = min(round(_PITCH_WINDOW * sample_rate), frames.shape[-1])
    heard = _power(frames, size).sqrt().mean(-2)
    frequency = torch.arange(heard.shape[-1]) * sample_rate / size
    inside = (frequency >= _LOWEST) & (frequency <= _HIGHEST)
    classes = (12 * (frequency[inside] / 440.0).log2()).round().long() % 12
    return _standardised(heard.new_zeros(len(frames), 12).index_add(1, classes, heard[:, inside]))


def onset_strength(frames: Tensor, sample_rate: int) -> Tensor:
    """How much begins in frames at each time: the rises of the logarithm of power, in the mean over frequencies.

    Arguments:
        frames: ``(n, time)``.
        sample_rate: Hz.

    Returns:
        ``(n, step)``, at steps of 16 ms, not below 0.
    """
    size = 4 * _onset_step(sample_rate)
    floor = _ONSET_FLOOR * size * frames.square().mean(-1).clamp(min=1e-12)
    level = (_power(frames, size) + floor[:, None, None]).log()
    return level.diff(dim=-2).clamp(min=0).mean(-1)


def _onset_step(sample_rate: int) -> int:
    return max(1, round(_ONSET_WINDOW * sample_rate / 4))


def _power(frames: Tensor, size: int) -> Tensor:
    """Of short-time spectra, ``(n, step, bin)``."""
    return torch.fft.rfft(frames.unfold(-1, size, max(1, size // 4)) * torch.hann_window(size)).abs().square()


def _standardised(values: Tensor) -> Tensor:
    """Less their mean, and of norm 1."""
    values = values - values.mean(-1, keepdim=True)
    return values / values.norm(dim=-1, keepdim=True).clamp(min=1e-9)
