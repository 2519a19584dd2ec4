"""Commands that are killed, lack disk space, lose their folder or meet another run: nothing half-written is final."""

import pytest
from command_line import run_trials


def test_separations_that_are_killed():
    run_trials("tests.reliability", "--times", "3", "--command", "separate", "--how", "signal")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["separate", "train-prior", "train-guide", "evaluate"])
def test_commands_that_are_disturbed(command):
    run_trials("tests.reliability", "--times", "8", "--command", command)
