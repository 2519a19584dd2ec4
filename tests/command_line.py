"""The command ``pyrosep``, called inside of a test."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pyrosep.cli import main


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None

    @property
    def output(self):
        return self.stdout + self.stderr


def run(*arguments, env=None):
    """Call the command with words; what gets out of it but its exit is kept."""
    stdout, stderr, exception = io.StringIO(), io.StringIO(), None
    code = 0
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch.dict(os.environ, env or {}),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            exception, code = exit_, exit_.code or 0
        except Exception as error:
            exception, code = error, 1
    return Result(code, stdout.getvalue(), stderr.getvalue(), exception)


def run_trials(module, *arguments):
    """Run a module of trials in a process of its own, which ends with 0 where nothing was wrong."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", module, *arguments]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
