"""Independent Gaussian sources, conditioned on a linear mix of them."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

from torch import Tensor

__all__ = ["Projection"]


class Projection:
    r"""Sources :math:`s_k \sim N(\mu_k, \sigma_k^2)` given :math:`m = \sum_k a_k s_k + \epsilon`, sample by sample.

    With :math:`\epsilon \sim N(0, rI)` over the channels and :math:`B = rI + \sum_{j \in J} \sigma_j^2 a_j a_j^T` for
    the sources J that are unknown beside source k, and :math:`\ell` what the known ones and the means of all others
    leave of the mix,

    .. math:: s_k \sim N\Big(\mu_k + \frac{\sigma_k^2}{1 + \sigma_k^2 g}\, a_k^T B^{-1} \ell,\;
              \frac{\sigma_k^2}{1 + \sigma_k^2 g}\Big), \qquad g = a_k^T B^{-1} a_k.

    B is kept as :math:`L D L^T` and grows by one source at a time (Gill, Golub, Murray & Saunders, 1974, method C1).
    Nothing is ever taken off D, so that an r far below the variances survives single precision.

    Arguments:
        mix: ``(..., channel, time)``.
        gains: ``(..., channel, source)``.
        mean, scale: of the sources, ``(..., source, time)``.
        noise: :math:`r^{1/2}`.
    """

    def __init__(self, mix: Tensor, gains: Tensor, mean: Tensor, scale: Tensor, noise: float) -> None:
        channels = range(gains.shape[-2])
        self.sources = range(gains.shape[-1])
        self.gains = [[gains[..., c, k, None] for c in channels] for k in self.sources]
        self.mean, self.scale, self.variance = mean.unbind(-2), scale.unbind(-2), scale.square().unbind(-2)
        #: What the means of all sources leave of each channel; and what the known ones and the means of the others do.
        self.left = [mix[..., c, :] - (gains[..., c, :, None] * mean).sum(-2) for c in channels]
        self.left_by_known = self.left
        self._white = _Factor([noise**2 for _ in channels], {(row, c): 0.0 for row in channels for c in range(row)})
        self._behind = [self._white]
        for k in reversed(self.sources[1:]):
            self._behind.append(self._grown(self._behind[-1], k))

    def given_those_before(self, k: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of source k, the sources before it :meth:`known`; ``(..., time)``."""
        return self._conditional(k, self.left_by_known, self._behind[-1 - k])

    def know(self, k: int, value: Tensor) -> None:
        """Source k has this value, ``(..., time)``."""
        off = value - self.mean[k]
        self.left_by_known = [x - gain * off for x, gain in zip(self.left_by_known, self.gains[k], strict=True)]

    def marginal(self, k: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of source k, given no other source; ``(..., time)``."""
        others = (j for j in self.sources if j != k)
        return self._conditional(k, self.left, reduce(self._grown, others, self._white))

    def _conditional(self, k: int, left: list[Tensor], factor: _Factor) -> tuple[Tensor, Tensor]:
        own, left = factor.solved(self.gains[k]), factor.solved(left)
        weights = [value / d for value, d in zip(own, factor.diagonal, strict=True)]
        precision = sum(w * value for w, value in zip(weights, own, strict=True))
        pull = sum(w * value for w, value in zip(weights, left, strict=True))
        shrunken = 1 + self.variance[k] * precision
        return self.mean[k] + self.variance[k] / shrunken * pull, self.scale[k] / shrunken.sqrt()

    def _grown(self, factor: _Factor, k: int) -> _Factor:
        """With source k among those unknown."""
        variance, rest = self.variance[k], list(self.gains[k])
        diagonal, lower = list(factor.diagonal), dict(factor.lower)
        channels = range(len(rest))
        for c in channels:
            before, diagonal[c] = diagonal[c], diagonal[c] + rest[c].square() * variance
            for row in channels[c + 1 :]:
                rest[row] = rest[row] - lower[row, c] * rest[c]
                lower[row, c] = lower[row, c] + variance * rest[c] / diagonal[c] * rest[row]
            if c < channels[-1]:
                variance = variance * (before / diagonal[c])
        return _Factor(diagonal, lower)


class _Factor(NamedTuple):
    """A covariance over channels, ``L D L^T``, each element ``(..., time)``: D, and L below its unit diagonal."""

    diagonal: list[Tensor | float]
    lower: dict[tuple[int, int], Tensor | float]

    def solved(self, values: list[Tensor]) -> list[Tensor]:
        """``L^-1`` times a value for each channel."""
        done: list[Tensor] = []
        for row, value in enumerate(values):
            done.append(value - sum(self.lower[row, c] * done[c] for c in range(row)) if row else value)
        return done
