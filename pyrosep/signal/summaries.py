"""Summaries of audio: a few numbers in place of many samples."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["BAND_EDGES", "audio_summaries"]

#: Edges of the bands in Hz; the last ends at half the sample rate.
BAND_EDGES = (0.0, 250.0, 1000.0, 4000.0)
NUM_PROJECTIONS = 4
_FLOOR = 1e-12  # power that counts as silence, -120 dB


def audio_summaries(
    sources: np.ndarray, sample_rate: float, *, projections: int = NUM_PROJECTIONS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Scalars of draws of sources ``(..., source, time)``.

    Returns:
        ``energy_db`` ``(..., source)``: mean power in dB; ``band_db`` ``(..., source, band)``: the power in each
        band of :data:`BAND_EDGES`; ``projection`` ``(..., source, direction)``: inner products with fixed random
        directions of unit length, which see phase and shape where the others see only level.
    """
    time = sources.shape[-1]
    # Torch's transform takes a quarter of NumPy's time.
    power = torch.view_as_real(torch.fft.rfft(torch.from_numpy(sources))).square().sum(-1).numpy() / time**2
    power[..., 1 : (time + 1) // 2] *= 2
    frequency = np.fft.rfftfreq(time, 1 / sample_rate)
    edges = np.searchsorted(frequency, [edge for edge in BAND_EDGES if edge < sample_rate / 2])
    edges = np.minimum(edges, len(frequency) - 1)  # a frame of one sample has one frequency
    bands = np.add.reduceat(power, edges, axis=-1)
    directions = np.random.default_rng(seed).standard_normal((projections, time))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return {
        "energy_db": _decibel(power.sum(-1)),
        "band_db": _decibel(bands),
        "projection": sources @ directions.T.astype(sources.dtype),
    }


def _decibel(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, _FLOOR))
