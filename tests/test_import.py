"""What importing the package costs and needs."""

import os
import subprocess
import sys

HEAVY = [
    "arviz",
    "av",
    "librosa",
    "lightning",
    "matplotlib",
    "musdb",
    "museval",
    "pandas",
    "soundfile",
    "tensorboard",
    "torchaudio",
    "torchmetrics",
    "cyclopts",
    "xarray",
]


def run(code):
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600, check=False
    )


def test_import_leaves_the_heavy_packages_alone():
    done = run(f"import sys, pyrosep; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_of_what_separates_needs_no_torch():
    commands = ("separate", "evaluate", "calibrate", "demo", "diagnose", "models")
    done = run(
        "import sys; from pyrosep.cli import main\n"
        f"for command in {commands}:\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules, command"
    )
    assert done.returncode == 0, done.stderr
    for command in commands:
        assert f"Usage: pyrosep {command}" in done.stdout


def test_names_are_imported_when_they_are_first_needed():
    """Torch with them; and parts of the package need no import of their own."""
    done = run(
        "import sys, pyrosep\n"
        "print('torch' in sys.modules, pyrosep.MALA.__name__, 'torch' in sys.modules)\n"
        "print(pyrosep.mixing.mean_mix.__name__, pyrosep.audio.read.__name__)\n"
        "[getattr(pyrosep, name) for name in pyrosep.__all__]\n"
        "print(pyrosep.__version__)\n"
        "pyrosep.nothing"
    )
    assert done.stdout.split()[:5] == ["False", "MALA", "True", "mean_mix", "read"], done.stderr
    assert done.stdout.split()[5], "every public name is there"
    assert done.stderr.splitlines()[-1].startswith("AttributeError: ")


def test_works_where_torchaudio_can_not_be_imported():
    done = run(
        "import sys; sys.modules['torchaudio'] = None\n"
        "import torch, pyrosep\n"
        "from pyrosep.mixing import linear_mix\n"
        "priors = pyrosep.load_priors('song-gaussian', frame=64, sources=['bass', 'drums'])\n"
        "priors = {name: prior.at(0.5) for name, prior in priors.items()}\n"
        "mix = linear_mix(priors, noise=0.5)()\n"
        "kernel = pyrosep.SGLD(linear_mix(priors, noise=0.5), 0.01)\n"
        "mcmc = pyrosep.LangevinMCMC(kernel, 2, num_chains=2).run(mix)\n"
        "print(tuple(mcmc.get_samples()['bass'].shape))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 64)"
