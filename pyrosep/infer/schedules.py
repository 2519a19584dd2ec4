"""Step-size schedules: functions from the number of a step, from 0 up, to its size."""

from __future__ import annotations

import math
from collections.abc import Callable

from pyrosep.errors import ConfigurationError

__all__ = ["Schedule", "as_schedule", "cyclical", "polynomial_decay"]

Schedule = Callable[[int], float]


def polynomial_decay(initial: float, *, delay: float = 10.0, power: float = 0.55) -> Schedule:
    r""":math:`\eta_t = \eta_0 (1 + t / b)^{-\gamma}`, with delay :math:`b` and power :math:`\gamma`.

    A power in (0.5, 1] meets the conditions under which SGLD's bias vanishes (Welling & Teh, 2011).

    Example:
        >>> schedule = polynomial_decay(0.1, delay=10, power=1.0)
        >>> schedule(0), schedule(10)
        (0.1, 0.05)
    """
    _check(initial)
    if not (delay > 0 and 0 < power <= 1):
        raise ConfigurationError(f"expected delay > 0 and 0 < power <= 1; got delay={delay}, power={power}")
    return lambda step: initial * (1 + step / delay) ** -power


def cyclical(initial: float, *, period: int) -> Schedule:
    r""":math:`\eta_t = \tfrac{\eta_0}{2}[\cos(\pi (t \bmod P) / P) + 1]`, anew every :math:`P` steps (Zhang et al.,
    2020).

    Example:
        >>> schedule = cyclical(0.2, period=100)
        >>> schedule(0), round(schedule(50), 3), schedule(100)
        (0.2, 0.1, 0.2)
    """
    _check(initial)
    if period < 1:
        raise ConfigurationError(f"expected a period of at least one step; got {period}")
    return lambda step: 0.5 * initial * (math.cos(math.pi * (step % period) / period) + 1)


def as_schedule(step_size: float | Schedule) -> Schedule:
    """A schedule as it is, or a constant step size as a schedule."""
    if callable(step_size):
        return step_size
    constant = float(step_size)
    _check(constant)
    return lambda step: constant


def _check(step_size: float) -> None:
    if not (step_size > 0 and math.isfinite(step_size)):
        raise ConfigurationError(f"a step size must be positive and finite; got {step_size!r}")
