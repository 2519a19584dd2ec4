"""Step-size schedules."""

import pytest

from pyrosep import SGLD
from pyrosep.errors import ConfigurationError
from pyrosep.infer import cyclical, polynomial_decay


def test_polynomial_decay():
    schedule = polynomial_decay(0.2, delay=5, power=0.5)
    assert [schedule(step) for step in (0, 15)] == pytest.approx([0.2, 0.1])


def test_cyclical():
    schedule = cyclical(0.2, period=4)
    assert [schedule(step) for step in (0, 2, 4, 6)] == pytest.approx([0.2, 0.1, 0.2, 0.1])
    assert all(schedule(step) > 0 for step in range(20))


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_step_size_must_be_positive_and_finite(size):
    for make in (polynomial_decay, lambda s: cyclical(s, period=3), lambda s: SGLD(lambda: None, s)):
        with pytest.raises(ConfigurationError, match="step size must be positive and finite"):
            make(size)


def test_bad_arguments():
    with pytest.raises(ConfigurationError, match="period"):
        cyclical(0.1, period=0)
    for wrong in ({"delay": 0.0}, {"power": 0.0}, {"power": 1.5}):
        with pytest.raises(ConfigurationError, match="expected delay > 0"):
            polynomial_decay(0.1, **wrong)
