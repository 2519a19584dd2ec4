"""Recordings of other sources beside a source's own: what a denoiser learns to tell apart from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyrosep.errors import ConfigurationError

__all__ = ["TOLD", "HeardFrames", "Interference"]

#: What a network may be told of the interference in a frame.
TOLD = ("nothing", "presence", "level", "apart")
#: Frames of each other source to choose from by their overlap.
_POOL = 96


class HeardFrames(NamedTuple):
    """Frames of a source, and what else is heard in them.

    Attributes:
        clean: of the source, ``(n, time)``; silent in some.
        leak: the sum of other sources, ``(n, time)``; zero where there is none.
        told: the level of the interference that the network is told, ``(n,)``.
    """

    clean: Tensor
    leak: Tensor
    told: Tensor


@dataclass(frozen=True)
class Interference:
    r"""How frames of other sources are added to a source's own, :math:`x = s + \alpha i + \sigma\epsilon`.

    The errors of a separation are the other sources. A denoiser that has met its source in white noise alone takes
    them for its source where the noise is low; one that has met them too removes them. The recordings are of no song
    together: a source's frames and those of the others are drawn by themselves.

    Attributes:
        share: Share of the frames that other sources are mixed into. The others stay as they are.
        presence: Chance of each other source to be in such a frame.
        full: Chance that such a frame is a mix, with all other sources in it as loud as they were recorded. Otherwise
            the gain of each is the square of a uniform number, as of what a separation leaves over.
        gain_db: Standard deviation of the gain of each other source on top of that, in dB.
        silent: Share of the frames with interference in which the source itself is silent.
        overlap: Chance of each other source to be chosen for how much its spectrum overlaps that of the frame, of
            several that are drawn. By chance waves seldom meet in pitch, and are then the hardest to tell apart.
        told: What the network is told: ``presence`` (1 where there is interference, else 0), ``level`` (the largest
            gain of another source, without the deviation), or ``nothing``. With ``apart`` a second network is trained
            on these frames, and told nothing; the network of the prior to start from stays as it is.
    """

    share: float = 0.5
    presence: float = 0.8
    full: float = 0.5
    gain_db: float = 3.0
    silent: float = 0.1
    overlap: float = 0.0
    told: str = "presence"

    def __post_init__(self) -> None:
        shares = (self.share, self.presence, self.full, self.silent, self.overlap)
        if not (all(0 <= share <= 1 for share in shares) and self.gain_db >= 0):
            raise ConfigurationError(
                f"interference needs shares and chances from 0 to 1 and gain_db of at least 0; got {self}"
            )
        if self.told not in TOLD:
            raise ConfigurationError(f"a network may be told {', '.join(TOLD)} of interference; got {self.told!r}")

    def __call__(self, clean: Tensor, draw_others: Callable[[int], Tensor]) -> HeardFrames:
        """Add other sources' frames to a source's, by torch's own generator.

        Arguments:
            clean: frames of the source, ``(n, time)``.
            draw_others: draws so many frames of each of the other sources, ``(count, other, time)``.
        """
        count = len(clean)
        heard = torch.rand(count) < self.share
        others = draw_others(int(heard.sum()))
        if self.overlap:
            others = self._overlapping(clean[heard], others, draw_others(_POOL))
        chance = torch.rand(2, *others.shape[:2])
        mixes = torch.rand(len(others), 1) < self.full
        gains = torch.where(mixes, 1.0, chance[0].square()) * (chance[1] < self.presence)
        signs = torch.randint(0, 2, gains.shape) * 2 - 1
        jitter = 10 ** (self.gain_db / 20 * torch.randn(gains.shape))
        leak = torch.zeros_like(clean)
        leak[heard] = ((gains * signs * jitter).unsqueeze(-1) * others).sum(1)
        silent = heard & (torch.rand(count) < self.silent)
        clean = torch.where(silent.unsqueeze(-1), 0.0, clean)
        told = torch.zeros(count)
        if self.told not in ("nothing", "apart"):
            # A frame in which chance put no other source has interference as a search has where it is right already.
            told[heard] = 1.0 if self.told == "presence" else gains.amax(1)
        return HeardFrames(clean, leak, told)

    def _overlapping(self, clean: Tensor, others: Tensor, pool: Tensor) -> Tensor:
        """Some of the others ``(n, other, time)`` taken from a pool ``(count, other, time)`` instead."""
        overlap = torch.einsum("nf,pof->npo", _magnitudes(clean), _magnitudes(pool))
        best = overlap.argmax(1)  # (n, other)
        chosen = pool[best, torch.arange(pool.shape[1])]
        return torch.where(torch.rand(best.shape).unsqueeze(-1) < self.overlap, chosen, others)


def _magnitudes(frames: Tensor) -> Tensor:
    """Magnitudes of spectra ``(..., bins)``, of norm 1; of silence 0."""
    return functional.normalize(torch.fft.rfft(frames).abs(), dim=-1)
