"""Damaged files and senseless command lines are refused by errors of the package's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fuzz(*arguments):
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_few_inputs():
    fuzz("--inputs", "40")


@pytest.mark.slow
def test_more_inputs():
    fuzz("--inputs", "400", "--seed", "1")
