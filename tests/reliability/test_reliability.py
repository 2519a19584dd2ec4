"""Commands that are killed, lack disk space, lose their folder or meet another run: nothing half-written is final."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def trials(*arguments):
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.reliability", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_separations_that_are_killed():
    trials("--times", "3", "--command", "separate", "--how", "signal")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["separate", "train-prior", "train-guide", "evaluate"])
def test_commands_that_are_disturbed(command):
    trials("--times", "8", "--command", command)
