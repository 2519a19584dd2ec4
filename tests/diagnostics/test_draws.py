"""Intervals from few draws, against Student's distribution and the coverage that it promises."""

import pytest
import torch

from pyrosep.diagnostics import draw_coverage, draw_intervals, fit_draw_temperature
from pyrosep.errors import ConfigurationError, ShapeError


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_normal_draws_hold_another_one_as_often_as_they_say(count, level):
    draws = torch.randn(count + 1, 50, 2000) * 3 + 7
    found = draw_coverage(draws[:-1], draws[-1], level)
    assert found.shape == (50,)
    # 100,000 independent values: a standard error of at most 0.0016
    assert float(found.mean()) == pytest.approx(level, abs=0.007)


def test_intervals_of_two_draws_by_hand():
    mean, half = draw_intervals(torch.tensor([[0.0], [2.0]]), 0.9)
    assert mean.tolist() == [1.0]
    # t with one degree of freedom at 0.95 is 6.3138; the deviation of (0, 2) is the root of two
    assert half.tolist() == pytest.approx([6.3138 * 2**0.5 * 1.5**0.5], rel=1e-4)


def test_the_temperature_undoes_a_spread_that_is_too_small():
    draws = torch.randn(8, 4, 3, 20_000)
    truth = torch.randn(4, 3, 20_000)
    assert fit_draw_temperature(draws, truth) == pytest.approx(1.0, abs=0.01)
    narrow = draws.mean(0) + (draws - draws.mean(0)) / 2.5
    fitted = fit_draw_temperature(narrow, truth)
    assert fitted == pytest.approx(2.5, abs=0.03)
    wide = narrow.mean(0) + fitted * (narrow - narrow.mean(0))
    assert float(draw_coverage(wide, truth).mean()) == pytest.approx(0.9, abs=1e-3)


def test_sources_count_alike_and_only_where_they_are_heard():
    torch.manual_seed(1)
    draws, truth = torch.randn(8, 5, 2, 4000), torch.randn(5, 2, 4000)
    truth[1:, 0] *= 100  # where it is not heard
    heard = torch.ones(5, 2, dtype=torch.bool)
    heard[1:, 0] = False
    truth[:, 1] *= 3
    fitted = fit_draw_temperature(draws, truth, heard)
    wide = draws.mean(0) + fitted * (draws - draws.mean(0))
    inside = draw_coverage(wide, truth)
    assert float(inside[0, 0] + inside[:, 1].mean()) / 2 == pytest.approx(0.9, abs=1e-3)


def test_what_has_no_interval_or_temperature():
    with pytest.raises(ConfigurationError, match="at least 2 draws; got 1"):
        draw_intervals(torch.zeros(1, 5))
    with pytest.raises(ConfigurationError, match="between 0 and 1; got 90"):
        draw_intervals(torch.zeros(3, 5), 90)
    with pytest.raises(ShapeError, match=r"\(8, 4, 100\) and \(4, 100\)"):
        fit_draw_temperature(torch.zeros(8, 4, 100), torch.zeros(4, 100))
    with pytest.raises(ConfigurationError, match="each source must count"):
        fit_draw_temperature(torch.randn(8, 1, 2, 9), torch.zeros(1, 2, 9), torch.tensor([[True, False]]))
    with pytest.raises(ConfigurationError, match="no temperature fits"):
        fit_draw_temperature(torch.ones(8, 1, 2, 9), torch.zeros(1, 2, 9))
