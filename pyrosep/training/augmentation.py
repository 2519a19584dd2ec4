"""Changes to recordings of a source that leave it the same source."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.training.produced import compressed, equalised, reverberated

__all__ = ["Augmentation"]

#: Samples on either side of a frame that resampling spoils: it takes what it is given for one period.
_MARGIN = 64


@dataclass(frozen=True)
class Augmentation:
    """Random changes to frames; none by default. (Shifts in time are in the crops already.)

    Attributes:
        gain_jitter: Standard deviation of a random gain of each frame, in dB.
        flip: Turn every other frame upside down.
        pitch_jitter: Largest random shift of pitch, up or down, in semitones, by resampling, which shifts formants too
            and changes the speed.
        takes: Share of the frames that are the sum of two, for a source that may sound twice at once.
        equalise: Largest gain of a random smooth filter of each frame, up or down, in dB.
        compress: Share of the frames that are compressed.
        reverb: Share of the frames that are put into a random short reverberation.
    """

    gain_jitter: float = 0.0
    flip: bool = False
    pitch_jitter: float = 0.0
    takes: float = 0.0
    equalise: float = 0.0
    compress: float = 0.0
    reverb: float = 0.0

    def __post_init__(self) -> None:
        if not (self.gain_jitter >= 0 and 0 <= self.pitch_jitter <= 12 and 0 <= self.takes <= 1):
            raise ConfigurationError(
                "an augmentation needs gain_jitter of at least 0, pitch_jitter from 0 to 12 semitones and takes from 0 "
                f"to 1; got {self}"
            )
        if not (0 <= self.equalise <= 40 and 0 <= self.compress <= 1 and 0 <= self.reverb <= 1):
            raise ConfigurationError(
                "an augmentation needs equalise from 0 to 40 dB, and compress and reverb, shares of the frames, from 0 "
                f"to 1; got {self}"
            )

    def details(self) -> dict[str, float | bool]:
        """The numbers by name. Those that came later are left out where they are 0, so that older runs can go on."""
        later = ("equalise", "compress", "reverb")
        return {name: value for name, value in asdict(self).items() if value or name not in later}

    def length(self, time: int) -> int:
        """Samples that a frame of ``time`` samples is made of."""
        return math.ceil(_whole(time) * 2 ** (self.pitch_jitter / 12)) if self.pitch_jitter else time

    def __call__(self, drawn: Tensor, time: int, sample_rate: int | None = None) -> Tensor:
        """Frames ``(n, time)`` of drawn ones, ``(n, length(time))``, by torch's own generator.

        Where frames are the sum of two, the other one is another of the batch.

        Arguments:
            drawn: recorded frames.
            time: samples in a frame.
            sample_rate: of the frames, in Hz; compression and reverberation need it.

        Raises:
            ShapeError: the frames are not of the length that is needed.
            ConfigurationError: the sample rate is needed and not given.
        """
        if drawn.ndim != 2 or drawn.shape[-1] != self.length(time):
            raise ShapeError(f"expected frames of shape (n, {self.length(time)}); got {tuple(drawn.shape)}")
        frames = torch.stack([self._shifted(one, time) for one in drawn]) if self.pitch_jitter else drawn
        count = len(frames)
        if self.equalise:
            frames = equalised(frames, self.equalise)
        for share, change in ((self.compress, compressed), (self.reverb, reverberated)):
            if share:
                if sample_rate is None:
                    raise ConfigurationError("compression and reverberation need the frames' sample rate; give it")
                chosen = torch.rand(count) < share
                frames = frames.index_put((chosen,), change(frames[chosen], sample_rate))
        if self.gain_jitter:
            frames = frames * 10 ** (self.gain_jitter / 20 * torch.randn(count, 1))
        if self.flip:
            frames = frames * (torch.randint(0, 2, (count, 1)) * 2 - 1)
        if self.takes and count > 1:
            other = frames.roll(1 + int(torch.randint(count - 1, ())), 0)
            frames = frames + other * (torch.rand(count, 1) < self.takes)
        return frames

    def _shifted(self, take: Tensor, time: int) -> Tensor:
        """``time`` samples at a random pitch, resampled in the Fourier domain."""
        ratio = 2 ** (self.pitch_jitter / 12 * (2 * float(torch.rand(())) - 1))
        whole = _whole(time)
        own = min(_quick_length(round(whole * ratio)), len(take))
        bins = torch.fft.rfft(take[:own])
        out = bins.new_zeros(whole // 2 + 1)
        kept = min(len(bins), len(out))
        out[:kept] = bins[:kept]
        return torch.fft.irfft(out, n=whole)[_MARGIN : _MARGIN + time] * (whole / own)


def _whole(time: int) -> int:
    """Samples of a frame with its margins."""
    return _quick_length(time + 2 * _MARGIN)


def _quick_length(samples: int) -> int:
    """A length of this many samples, or up to a three-hundredth more, whose Fourier transform is quick if there is one.

    Lengths with large prime factors take up to ten times as long.
    """
    from scipy.fft import next_fast_len

    quick = int(next_fast_len(samples))
    return quick if quick - samples <= samples // 300 else samples
