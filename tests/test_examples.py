"""Every example runs, with flags that make it short; the page of the command line is the one that is generated."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ["--frame", "64", "--chains", "2", "--draws", "40", "--warmup", "100", "--thinning", "1"]

EXAMPLES = {
    "custom_mixing_model": (SHORT, [r"r_hat", r"^echo ", r"^noise ", r"energy_db\[wet\]", r"largest R-hat"]),
    "unknown_gains": (SHORT, [r"^low: gain [\d.]+ \+- [\d.]+, true 1\.50; SNR", r"^high: gain", r"largest R-hat"]),
    "stereo_panning": (SHORT, [r"^low: pan -?[\d.]+ \+- [\d.]+, true -0\.600", r"^high: pan", r"largest R-hat"]),
    "stock_pyro_kernels": (
        ["--frame", "16", "--draws", "30", "--warmup", "30", "--leapfrog", "3"],
        [r"^HMC: 180 gradients, error of the mean [\d.]+ post", r"^MALA: 60 gradients"],
    ),
    "annealed_search": (
        ["--frame", "64", "--waves", "saw", "--chains", "2", "--draws", "5", "--warmup", "20", "--redraws", "1"],
        [r"^chain +log joint +calls +SI-SDR in dB of saw", r"^ +1 +-?\d+ +\d+ +-?[\d.]+$", r"mode"],
    ),
    "calibration": (
        ["--simulations", "20", "--warmup", "20"],
        [r"^MALA$", r"^SGLD$", r"^log-likelihood +[\d.e-]+ +[\d.]+ \(", r"^rejected: nothing"],
    ),
    "custom_guides": (
        ["--frame", "128", "--width", "8", "--steps", "20", "--mixes", "8", "--separated", "1", "--chains", "2"],
        [
            r"^unknown gains: 90 % intervals hold \d+ and \d+ %",
            r"^soft clipping: chi-square of the mix",
            r"and chains: ",
        ],
    ),
    "toy_exact_prior": (["--frame", "128", "--size", "2", "--sigma", "0.1", "1"], [r"^ +0\.10 +\d", r"^ +1\.00 "]),
}


def run(name, arguments):
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](arguments)


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "custom_guides" else []) for name in EXAMPLES],
)
def test_example(name, capsys):
    arguments, patterns = EXAMPLES[name]
    run(name, arguments)
    printed = capsys.readouterr().out
    for pattern in patterns:
        assert re.search(pattern, printed, re.MULTILINE), f"{pattern!r} is not in:\n{printed}"


def test_example_from_the_shell():
    command = [sys.executable, str(ROOT / "examples" / "toy_exact_prior.py"), "--frame", "64", "--size", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "denoised, dB" in done.stdout


def test_exact_prior_denoises(capsys):
    run("toy_exact_prior", ["--frame", "512", "--size", "2", "--sigma", "0.3"])
    _, noisy, denoised = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert denoised > noisy + 10


def test_command_line_page_is_what_the_commands_say():
    """``python docs/generate_cli.py`` writes it."""
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page()
