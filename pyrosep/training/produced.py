"""Changes that make dry recordings sound produced: equalisation, compression and reverberation.

Frames are ``(n, time)``. Each function changes every frame in its own way, all at once, by torch's own generator.
Silent frames stay silent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["compressed", "equalised", "reverberated"]

_OCTAVES = 10
"""Octaves below the Nyquist frequency that the equaliser's curve changes in."""

_EDGE = 2048
"""Samples of a frame's ends that are mirrored beyond them while it is equalised."""

_REVERBERATION = (0.1, 0.8)
"""Seconds in which the reverberation falls by 60 dB, shortest and longest."""

_WETTEST = 0.5
"""The largest share of a frame's power that is reverberation."""

_RATIO = (1.5, 4.0)
"""What a rise of the level in dB is divided by above the threshold, least and most."""

_THRESHOLD_DB = (-12.0, 0.0)
"""Threshold of the compressor over the frame's own level."""

_RELEASE = (0.05, 0.3)
"""Seconds in which the compressor lets go of 10 dB."""

_ATTACK, _BLOCK = 0.01, 0.002
"""Seconds that the compressor looks ahead, and seconds whose power is one value of the level."""

_FLOOR = 1e-6
"""Power, of a frame's mean power, below which it counts as silence to the compressor."""


def equalised(frames: Tensor, gain_db: float) -> Tensor:
    """Frames through random smooth filters that raise or lower every frequency by at most ``gain_db`` dB.

    The gain in dB is uniform at each of ten frequencies an octave apart, down from the Nyquist frequency. It follows a
    cosine from each of them to the next, and is constant below the lowest. The filters have no delay. The frame's ends
    are mirrored beyond them, so that a filter does not carry its end over to its beginning.
    """
    count, time = frames.shape
    if not count:
        return frames  # the transform refuses to be of nothing
    nodes = (gain_db * (2 * torch.rand(count, _OCTAVES) - 1)).to(frames)
    edge = min(_EDGE, time - 1)
    whole = functional.pad(frames.unsqueeze(1), (edge, edge), mode="reflect").squeeze(1) if edge else frames
    length = whole.shape[-1]
    share = torch.arange(length // 2 + 1, device=frames.device).clamp(min=1) / (length / 2)  # of the Nyquist frequency
    place = (share.to(frames).log2() + _OCTAVES - 1).clamp(0, _OCTAVES - 1)
    distance = (place - torch.arange(_OCTAVES, device=frames.device).to(frames).unsqueeze(-1)).abs().clamp(max=1)
    curve = nodes @ ((1 + torch.cos(math.pi * distance)) / 2)
    filtered = torch.fft.irfft(torch.fft.rfft(whole) * _factor(curve), n=length)
    return filtered[:, edge : edge + time]


def reverberated(frames: Tensor, sample_rate: int) -> Tensor:
    """Frames in random short reverberation, as loud as they were.

    The response of a room is white noise that decays by 60 dB in 0.1 to 0.8 s, uniform, and makes up a uniform share of
    the frame's power, up to a half. What sounds at a frame's end sounds on at its beginning: a beginning without
    anything before it would be drier than the rest, as no crop of a produced recording is.
    """
    count, time = frames.shape
    if not count:
        return frames
    decay = _uniform(count, *_REVERBERATION).to(frames)
    wet = (_WETTEST * torch.rand(count, 1)).to(frames)
    length = min(time, math.ceil(_REVERBERATION[1] * sample_rate))
    seconds = torch.arange(length, device=frames.device).to(frames) / sample_rate
    response = torch.randn(count, length).to(frames) * _factor(-60 * seconds / decay)
    sound = torch.fft.irfft(torch.fft.rfft(frames) * torch.fft.rfft(response, n=time), n=time)
    return _as_loud((1 - wet).sqrt() * frames + wet.sqrt() * _as_loud(sound, frames), frames)


def compressed(frames: Tensor, sample_rate: int) -> Tensor:
    r"""Frames through a random light compressor, as loud as they were.

    The level in dB, of blocks of 2 ms, is followed upwards at once, 10 ms ahead, and downwards at 10 dB in 0.05 to
    0.3 s. Where it is above a threshold, 0 to 12 dB below the frame's own level, what is above it is divided by a ratio
    of 1.5 to 4. All three are uniform. The gain is linear between the middles of blocks.
    """
    count, time = frames.shape
    ratio, threshold = _uniform(count, *_RATIO).to(frames), _uniform(count, *_THRESHOLD_DB).to(frames)
    release = _uniform(count, *_RELEASE).to(frames)
    block, ahead = max(1, round(_BLOCK * sample_rate)), max(1, round(_ATTACK / _BLOCK))
    power = functional.avg_pool1d(frames.square().unsqueeze(1), block, ceil_mode=True, count_include_pad=False).squeeze(
        1
    )
    mean = frames.square().mean(-1, keepdim=True)
    level = 10 * (power / mean.clamp(min=torch.finfo(frames.dtype).tiny) + _FLOOR).log10()
    # max_k (level[b - k] - k * fall): what the level is held at while it falls.
    fallen = 10 * block / sample_rate / release * torch.arange(level.shape[-1], device=frames.device).to(frames)
    held = (level + fallen).cummax(-1).values - fallen
    # The mean of a window over the maximum of a wider one is smooth, and nowhere below the level. It is wider by a
    # block on either side, since the gains of neighbours meet between the middles of blocks.
    held = functional.max_pool1d(held.unsqueeze(1), 2 * ahead + 3, 1, ahead + 1)
    held = functional.avg_pool1d(functional.pad(held, (ahead, ahead), mode="replicate"), 2 * ahead + 1, 1)
    gain_db = (1 / ratio - 1) * (held.squeeze(1) - threshold).clamp(min=0)
    gain = functional.interpolate(_factor(gain_db).unsqueeze(1), size=gain_db.shape[-1] * block, mode="linear")
    return _as_loud(frames * gain[:, 0, :time], frames)


def _factor(gain_db: Tensor) -> Tensor:
    return (gain_db * (math.log(10) / 20)).exp()  # a power of 10 takes several times as long


def _as_loud(changed: Tensor, frames: Tensor) -> Tensor:
    """Changed frames at the root mean square of the unchanged ones."""
    before, after = (torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (frames, changed))
    return changed * (before / after.clamp(min=torch.finfo(frames.dtype).tiny))


def _uniform(count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, 1)
