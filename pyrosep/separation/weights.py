"""How much each chain of a window counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrosep.infer.modes import same_mode, weights_of

__all__ = ["mode_weights"]


def mode_weights(summaries: dict[str, np.ndarray]) -> Tensor:
    """Weights of the chains of each window and channel, by mode and joint density.

    Arguments:
        summaries: ``lp``, ``energy_db``, ``band_db`` and ``projection`` of every draw, ``(chain, draw, window, channel,
            ...)``.

    Returns:
        ``(chain, window, channel)``; zero for chains whose summaries are not finite.
    """
    height = summaries["lp"].mean(1)
    flat = np.concatenate(
        [summaries[name].reshape(*summaries["lp"].shape, -1) for name in ("energy_db", "band_db", "projection")], -1
    )
    means, deviations = flat.mean(1), flat.std(1)
    weight = np.zeros_like(height)
    finite = np.isfinite(height) & np.isfinite(means).all(-1)
    for cell in np.ndindex(*height.shape[1:]):
        where = (finite[(slice(None), *cell)], *cell)
        weight[where] = weights_of(height[where], same_mode(means[where], deviations[where]))
    return torch.from_numpy(weight)
