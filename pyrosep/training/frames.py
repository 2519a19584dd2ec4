"""Frames of one source to train a prior on, and the noise levels that it is judged at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosep.data import RandomCrops, Song
from pyrosep.data.toy import WAVES
from pyrosep.errors import ConfigurationError
from pyrosep.priors.base import SourcePrior
from pyrosep.priors.oscillator import OscillatorPrior
from pyrosep.training.augmentation import Augmentation

__all__ = ["LEVELS", "Frames", "held_out_songs", "highest_level", "noised_frames", "song_frames", "toy_frames"]

#: Noise levels at which held-out frames are judged; those of published figures among them.
LEVELS = (0.01, 0.03, 0.1, 0.36, 1.0, 3.0)


@dataclass(frozen=True)
class Frames:
    """Clean frames of one source to train on.

    Attributes:
        draw: so many random frames, ``(count, time)``, by torch's own generator.
        held_out: frames to judge by, ``(n, time)``, none of which :attr:`draw` gives.
        sample_rate: Hz.
        exact: the source's exact prior where it is known; what is held out is then judged beside it.
        draw_others: so many random frames of each of the other sources, ``(count, other, time)``: for interference or a
            contrastive term alone.
    """

    draw: Callable[[int], Tensor]
    held_out: Tensor
    sample_rate: int
    exact: SourcePrior | None = None
    draw_others: Callable[[int], Tensor] | None = None

    @property
    def time(self) -> int:
        """Samples in a frame."""
        return self.held_out.shape[-1]

    def held_out_apart(self, place: int) -> Tensor:
        """The frames held out, in an order that is another one for each source of a mix, counted from 0.

        Those that sources have in one place of their lists may be of one place in a song: shifted, they are not.
        """
        return self.held_out.roll(place, 0)


def toy_frames(wave: str, frame: int, *, held_out: int = 64, seed: int = 0) -> Frames:
    """Frames of a toy oscillator, without end."""
    exact = OscillatorPrior(wave, frame)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2**32)
        kept = exact.sample_clean((held_out,)).float()
    others = [OscillatorPrior(other, frame) for other in WAVES if other != wave]

    def draw_others(count: int) -> Tensor:
        return torch.stack([other.sample_clean((count,)).float() for other in others], 1)

    return Frames(
        lambda count: exact.sample_clean((count,)).float(), kept, int(exact.sample_rate or 0), exact, draw_others
    )


def held_out_songs(songs: Sequence[Song], source: str) -> list[Song]:
    """What is not to be trained on: every tenth of the songs that have the source, and a tenth of its solo recordings.

    Solo recordings are held out by their origin, of which a file is only a part: the longest origins that fit into a
    tenth of the recordings' whole length, one after the other; the shortest origin where none fits; nothing where
    all recordings are of one origin.
    """
    having = [song for song in songs if source in song.stems]
    return [song for song in having if song.origin is None][9::10] + _held_out_recordings(
        [song for song in having if song.origin is not None]
    )


def _held_out_recordings(recordings: Sequence[Song]) -> list[Song]:
    seconds: dict[str | None, float] = {}
    for recording in recordings:
        seconds[recording.origin] = seconds.get(recording.origin, 0.0) + recording.frames / recording.sample_rate
    if len(seconds) < 2:
        return []
    rest, chosen = sum(seconds.values()) / 10, set()
    for origin in sorted(seconds, key=lambda origin: -seconds[origin]):
        if seconds[origin] <= rest:
            rest -= seconds[origin]
            chosen.add(origin)
    chosen = chosen or {min(seconds, key=lambda origin: seconds[origin])}
    return [recording for recording in recordings if recording.origin in chosen]


def _split(songs: Sequence[Song], source: str, frame: int, rate: int | None) -> tuple[list[Song], list[Song]]:
    """What is held out and what is trained on; of solo recordings none is held out into which no frame fits."""

    def is_considered(song: Song) -> bool:
        return song.origin is None or song.frames * (rate or song.sample_rate) >= frame * song.sample_rate

    apart = held_out_songs([song for song in songs if is_considered(song)], source)
    return apart, [song for song in songs if source in song.stems and song not in apart] or list(songs)


def song_frames(
    songs: Sequence[Song],
    source: str,
    frame: int,
    *,
    sample_rate: int | None = None,
    others: Sequence[str] = (),
    augmentation: Augmentation | None = None,
    held_out: int = 64,
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
) -> Frames:
    """Random crops of a source's recordings; songs and origins are held out (:func:`held_out_songs`), else other crops.

    Other crops of all recordings are held out where that leaves nothing to hold out: of fewer than ten songs, or of
    solo recordings of a single origin.

    Of ``others``, sources of the same songs, crops are drawn too, each by itself. With an ``augmentation`` what is
    drawn is changed by it; what is held out is not. The ``shares`` of several data sets are those of
    :class:`~pyrosep.data.RandomCrops`.

    Raises:
        DataError: see :class:`~pyrosep.data.RandomCrops`.
    """
    augmentation = augmentation or Augmentation()
    length = augmentation.length(frame)
    apart, train = _split(songs, source, length, sample_rate)
    crops = RandomCrops(train, source, length, sample_rate, size=2**32, seed=seed, shares=shares)
    kept = RandomCrops(apart or train, source, frame, crops.sample_rate, size=held_out, seed=seed + 1, shares=shares)

    def drawn(crops: RandomCrops, count: int) -> Tensor:
        if not count:
            return torch.zeros(0, frame)
        indices = torch.randint(2**32, (count,)).tolist()
        return augmentation(torch.stack([crops[index] for index in indices]), frame, crops.sample_rate)

    apart_from = [
        RandomCrops(
            _split(songs, other, length, crops.sample_rate)[1],
            other,
            length,
            crops.sample_rate,
            size=2**32,
            seed=seed + 2,
            shares=shares,
        )
        for other in others
    ]

    def draw_others(count: int) -> Tensor:
        return torch.stack([drawn(other, count) for other in apart_from], 1)

    return Frames(
        lambda count: drawn(crops, count),
        torch.stack([kept[i] for i in range(held_out)]),
        crops.sample_rate,
        draw_others=draw_others if apart_from else None,
    )


def highest_level(variance: float, time: int, sigma_min: float, sigma_max: float | None = None) -> float:
    """The highest noise level to train at: the source's root mean square times the root of the frame by default.

    Raises:
        ConfigurationError: levels that do not rise from above zero.
    """
    top = math.sqrt(variance * time) if sigma_max is None else float(sigma_max)
    if not 0 < sigma_min < top:
        raise ConfigurationError(f"noise levels must rise from above 0; got {sigma_min} to {top:.4g}")
    return top


def noised_frames(clean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frames at levels ``(count,)``, never clamped; the levels; and the noise of variance 1."""
    noise = torch.randn_like(clean)
    return clean + sigma.unsqueeze(-1) * noise, sigma, noise
