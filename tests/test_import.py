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
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_import_leaves_the_heavy_packages_alone():
    done = run(f"import sys, pyrosep; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_torch_is_imported_when_it_is_first_needed():
    done = run("import sys, pyrosep; print('torch' in sys.modules, pyrosep.MALA.__name__, 'torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "MALA", "True"]


def test_parts_of_the_package_need_no_import_of_their_own():
    done = run("import pyrosep; print(pyrosep.mixing.mean_mix.__name__, pyrosep.audio.read.__name__); pyrosep.nothing")
    assert done.stdout.split() == ["mean_mix", "read"]
    assert done.stderr.splitlines()[-1].startswith("AttributeError: ")


def test_works_where_torchaudio_can_not_be_imported():
    done = run(
        "import sys; sys.modules['torchaudio'] = None\n"
        "import torch, pyrosep\n"
        "from pyrosep.mixing import linear_mix\n"
        "priors = pyrosep.load_priors('toy', frame=64, sources=['sine', 'saw'])\n"
        "priors = {name: prior.at(0.5) for name, prior in priors.items()}\n"
        "mix = linear_mix(priors, noise=0.5)()\n"
        "kernel = pyrosep.SGLD(linear_mix(priors, noise=0.5), 0.01)\n"
        "mcmc = pyrosep.LangevinMCMC(kernel, 2, num_chains=2).run(mix)\n"
        "print(tuple(mcmc.get_samples()['saw'].shape))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 64)"


def test_every_public_name_is_there():
    done = run("import pyrosep; [getattr(pyrosep, name) for name in pyrosep.__all__]; print(pyrosep.__version__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
