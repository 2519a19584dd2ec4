"""Which chains are in one mode, and what a mode weighs by its joint density."""

from __future__ import annotations

import numpy as np

__all__ = ["APART", "same_mode", "weights_of"]

#: Standard deviations within a chain by which two chains' means of any summary differ, if they are in two modes.
APART = 5.0


def same_mode(means: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Modes of chains by the summaries of their draws, numbered from 0: ``(chains,)``.

    Arguments:
        means, deviations: of every summary within each chain, ``(chains, summaries)``.

    Two chains are in one mode if no summary's means differ by more than :data:`APART` of its standard deviations, or
    if a row of others leads from one to the other.
    """
    from scipy.sparse.csgraph import connected_components

    spread = np.sqrt((deviations[:, None] ** 2 + deviations[None] ** 2) / 2)
    scale = np.maximum(spread, 1e-6 * (1e-12 + np.abs(means).max(0)))
    near = (np.abs(means[:, None] - means[None]) <= APART * scale).all(-1)
    return connected_components(near, directed=False)[1]


def weights_of(log_joint: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Weights of chains by joint density: of a mode, the exponential of its chains' mean, shared among them.

    It is the height of a mode, not its mass: a wide low one may hold more of the posterior.
    """
    height = np.array([log_joint[modes == mode].mean() for mode in range(modes.max() + 1)])
    weight = np.exp(height - height.max())
    weight /= weight.sum()
    return weight[modes] / np.bincount(modes)[modes]
