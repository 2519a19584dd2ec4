"""Damaged files and senseless command lines are refused by errors of the package's own."""

import pytest
from command_line import run_trials


def test_a_few_inputs():
    run_trials("tests.fuzz", "--inputs", "40")


@pytest.mark.slow
def test_more_inputs():
    run_trials("tests.fuzz", "--inputs", "400", "--seed", "1")
