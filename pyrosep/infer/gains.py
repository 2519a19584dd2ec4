"""Gains of sources in a mix, from its spectrum."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyrosep.errors import ShapeError

__all__ = ["fit_gains"]


def fit_gains(spectra: Tensor, power: Tensor, *, spread_db: float = 6.0, bands: float = 20.0) -> Tensor:
    r"""Most probable gains :math:`a_k` of stationary Gaussian sources, given a mix's mean power spectrum.

    The log-posterior is

    .. math:: -\tfrac12 \sum_f w_f \Big[\log V_f + \frac{Q_f}{V_f}\Big] - \sum_k \frac{(\log a_k / a_0)^2}{2 \tau^2},
              \qquad V_f = \sum_k a_k^2 P_k(f)

    with :math:`Q` the mix's power and :math:`a_0` the one gain that gives all sources the mix's level. A song's
    spectrum differs from the mean one of its source in broad strokes, so its bins are no independent observations of
    the gain: the weights :math:`w_f \propto 1/f` give every octave the same say and sum to ``bands`` observations.
    Without that the fit mutes a source to mend small differences of shape.

    Arguments:
        spectra: of the sources, ``(source, bins)``, on an even grid from 0 Hz.
        power: mean power of the mix per frequency, ``(bins,)``, on the same grid and scale.
        spread_db: standard deviation :math:`\tau` of the gains about :math:`a_0`, in dB.
        bands: independent observations that the spectrum stands for.

    Returns:
        the gains, ``(source,)``, positive.

    Example:
        >>> spectra = torch.tensor([[4.0, 1.0, 0.1], [0.1, 1.0, 2.0]])
        >>> gains = fit_gains(spectra, 0.25 * spectra[0] + 4.0 * spectra[1], bands=1e6)
        >>> [round(gain, 2) for gain in gains.tolist()]
        [0.5, 2.0]
    """
    from scipy.optimize import minimize

    if spectra.ndim != 2 or power.shape != spectra.shape[1:]:
        raise ShapeError(
            f"expected spectra (source, bins) and power (bins,); got {tuple(spectra.shape)} and {tuple(power.shape)}"
        )
    # The bin at 0 Hz belongs to no octave: it counts in frames of one sample alone, which have no other.
    first = min(1, len(power) - 1)
    spectra, power = spectra[:, first:].double(), power[first:].double()
    weights = 1 / torch.arange(1, len(power) + 1, dtype=torch.float64)
    weights = bands * weights / weights.sum()
    common = 0.5 * (power.sum() / spectra.sum()).log()
    spread = spread_db / 20 * math.log(10)

    def negative_log_posterior(offset: np.ndarray) -> tuple[float, np.ndarray]:
        squares = (2 * (common + torch.from_numpy(offset))).exp()
        total = squares @ spectra
        loss = 0.5 * (weights * (total.log() + power / total)).sum().item() + 0.5 * ((offset / spread) ** 2).sum()
        slope = squares * (spectra @ (weights * (1 / total - power / total.square())))
        return float(loss), slope.numpy() + offset / spread**2

    found = minimize(negative_log_posterior, np.zeros(len(spectra)), jac=True, method="BFGS", options={"gtol": 1e-9})
    return (common + torch.from_numpy(found.x)).exp().to(torch.get_default_dtype())
