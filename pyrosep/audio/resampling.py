"""Sample rates: of recordings, and inside of models."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyrosep.audio.samples import Samples, floating
from pyrosep.errors import ConfigurationError, MissingDependencyError, SampleRateError

__all__ = ["check_rate", "differentiable_resample", "resample"]

#: Of SoX's resampler: linear phase, stop band below -120 dB.
_QUALITY = "VHQ"
#: librosa's "kaiser_best": zero crossings a side, end of the pass band by the lower Nyquist frequency, and the window.
_CROSSINGS, _ROLLOFF, _BETA = 64, 0.9475937167399596, 14.769656459379492


def resample(samples: Samples, from_rate: int, to_rate: int) -> Tensor:
    """Resample a recording by SoX's resampler, in any ratio of rates.

    The pass band ends at 91 % of the lower Nyquist frequency. Away from the edges a sine at a quarter of the lower rate
    survives going there and back at over 100 dB SNR; at 35 % of it, it loses 0.001 dB each way. Equal rates return
    `samples` itself. It is computed on the CPU and has no gradient: inside of a model use
    :func:`differentiable_resample`.

    Arguments:
        samples: `(..., time)`, floating point; or an array, or integers, which become floating point of full scale 1.0.
        from_rate: their rate in Hz.
        to_rate: the wanted rate in Hz.

    Returns:
        Tensor `(..., ceil(time * to_rate / from_rate))`, of the samples' type and on their device.

    Raises:
        SampleRateError: a rate is no positive integer.
        ConfigurationError: the samples want a gradient, or are of a type that is no sound's.

    Example:
        >>> resample(torch.zeros(2, 44_100), 44_100, 16_000).shape
        torch.Size([2, 16000])
    """
    import soxr

    from_rate, to_rate = check_rate(from_rate), check_rate(to_rate)
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        samples = floating(samples)
    if from_rate == to_rate:
        return samples
    if samples.requires_grad and torch.is_grad_enabled():
        raise ConfigurationError("resample has no gradient; use audio.differentiable_resample, or samples.detach()")
    time = samples.shape[-1]
    length = -(-time * to_rate // from_rate)
    if samples.numel() == 0:
        return samples.new_zeros(*samples.shape[:-1], length)
    dtype = torch.promote_types(samples.dtype, torch.float32)
    # The resampler rounds lengths down; silence after the end makes room for the last sample.
    rows = torch.nn.functional.pad(samples.detach().to("cpu", dtype).reshape(-1, time), (0, 2 + from_rate // to_rate))
    found = soxr.resample(rows.mT.contiguous().numpy(), from_rate, to_rate, quality=_QUALITY)[:length]
    return torch.from_numpy(found).mT.reshape(*samples.shape[:-1], length).to(samples)


def differentiable_resample(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample inside of a model: with a gradient, on the samples' device.

    By torchaudio's windowed sinc (Kaiser window, 64 zero crossings a side), whose pass band ends at 95 % of the lower
    Nyquist frequency. Equal rates return `samples` itself.

    Arguments:
        samples: `(..., time)`, floating point.
        from_rate: their rate in Hz.
        to_rate: the wanted rate in Hz.

    Returns:
        Tensor `(..., ceil(time * to_rate / from_rate))`.

    Raises:
        SampleRateError: a rate is no positive integer, or the two have so small a common divisor that the
            filter bank would not fit into memory.
        MissingDependencyError: torchaudio can't be imported.

    Example:
        >>> x = torch.zeros(2, 44_100, requires_grad=True)
        >>> differentiable_resample(x, 44_100, 14_700).requires_grad
        True
    """
    from_rate, to_rate = check_rate(from_rate), check_rate(to_rate)
    if from_rate == to_rate:
        return samples
    divisor = math.gcd(from_rate, to_rate)
    source, target = from_rate // divisor, to_rate // divisor
    if target * (source + 2 * 70 * max(1.0, source / target)) > 2**27:
        raise SampleRateError(
            f"can't resample from {from_rate} to {to_rate} Hz: their greatest common divisor, {divisor} Hz, "
            "is too small; go by way of a rate that shares a larger divisor with both"
        )
    length = -(-samples.shape[-1] * target // source)
    if samples.numel() == 0:
        return samples.new_zeros(*samples.shape[:-1], length)
    return _resampler(source, target, samples.dtype, samples.device)(samples.contiguous())[..., :length]


@functools.lru_cache(maxsize=16)
def _resampler(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Tensor]:
    # Kept, as its filters take ten times as long to compute as a frame to be resampled by them.
    try:
        from torchaudio.transforms import Resample
    except Exception as error:  # a mismatched pair raises OSError or AttributeError as well as ImportError
        raise MissingDependencyError(
            f"differentiable_resample needs torchaudio, which can't be imported beside torch {torch.__version__} "
            f"({error}); install a pair of torch and torchaudio that are built for the same CUDA version, such as "
            "'torch==2.11.*' and 'torchaudio==2.11.*'"
        ) from error
    with torch.inference_mode(False):  # what is kept must also serve where gradients are wanted
        module = Resample(
            source,
            target,
            lowpass_filter_width=_CROSSINGS,
            rolloff=_ROLLOFF,
            resampling_method="sinc_interp_kaiser",
            beta=_BETA,
            dtype=None if dtype == torch.float32 else dtype,  # None computes in float64 and rounds to float32
        )
    resampler: Callable[[Tensor], Tensor] = module.to(device)
    return resampler


def check_rate(rate: int) -> int:
    """The rate, or an error where it is no positive integer."""
    try:
        whole = int(rate)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if isinstance(rate, bool) or whole != rate or whole <= 0:
        raise SampleRateError(f"expected a sample rate that is a positive integer in Hz, got {rate!r}")
    return whole
