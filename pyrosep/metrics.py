"""Figures of merit: one definition of each, and one threshold of silence."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pyrosep.errors import MissingDependencyError

__all__ = ["SILENCE_DB", "bss_eval", "si_sdr", "sounding", "wilson_interval"]

#: Below this mean power (dB re full scale) a stem counts as silent, and is not scored: SI-SDR is not defined there.
SILENCE_DB = -60.0


def sounding(truth: Tensor) -> Tensor:
    """Which sources ``(..., source, channel, time)`` are not silent, and so are scored: ``(..., source)``."""
    return 10 * truth.square().mean((-1, -2)).clamp(min=1e-20).log10() > SILENCE_DB


def si_sdr(estimate: Tensor, truth: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019), mean over channels.

    Arguments:
        estimate, truth: ``(..., channel, time)``.

    Returns:
        ``(...)``.
    """
    try:
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
    except ImportError as error:
        raise MissingDependencyError(f"SI-SDR needs torchmetrics ({error}); install it") from error
    return scale_invariant_signal_distortion_ratio(estimate.double(), truth.double()).mean(-1)


def bss_eval(truth: Tensor, estimate: Tensor, sample_rate: int) -> dict[str, list[float]]:
    """BSS Eval v4 of sources ``(source, channel, time)``: medians over windows of one second, in dB, a list a measure.

    Raises:
        MissingDependencyError: museval can't be imported; it needs the program ffmpeg.
    """
    try:
        import museval
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"BSS Eval needs museval, which needs the programs ffmpeg and ffprobe ({error}); install ffmpeg"
        ) from error
    sdr, isr, sir, sar = museval.evaluate(
        truth.transpose(1, 2).numpy(), estimate.transpose(1, 2).numpy(), win=sample_rate, hop=sample_rate
    )
    measures = {"SDR": sdr, "ISR": isr, "SIR": sir, "SAR": sar}
    return {name: np.nanmedian(values, axis=1).tolist() for name, values in measures.items()}


def wilson_interval(share: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a binomial share (Wilson, 1927).

    Example:
        >>> [round(end, 3) for end in wilson_interval(1.0, 64)]
        [0.943, 1.0]
    """
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    # None and all: the ends are 0 and 1 but for rounding.
    return (centre - half if share > 0 else 0.0), (centre + half if share < 1 else 1.0)
