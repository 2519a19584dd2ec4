"""Simulation-based calibration of a sampler that is right, and of one that is not.

    python examples/calibration.py ranks.png

Two Gaussian sources in a mix of known gains: MALA, which accepts or rejects its steps, against SGLD, which does not and
is biased at a large step. Prints a table for each, and what is rejected at a false-alarm rate of 1e-4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pyrosep import MALA, SGLD, GaussianPrior
from pyrosep.diagnostics import plot_ranks, sbc
from pyrosep.mixing import linear_mix


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, help="the file for a picture of rank histograms")
    parser.add_argument("--frame", type=int, default=16, help="samples")
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--step-size", type=float, default=0.8, help="of SGLD")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    frequency = torch.linspace(0, 1, 65)
    priors = {
        "low": GaussianPrior(1e-3 + torch.exp(-5 * frequency), args.frame),
        "high": GaussianPrior(1e-3 + torch.exp(-5 * (1 - frequency)), args.frame),
    }
    model = linear_mix(priors, noise=0.1)
    kernels = {"MALA": MALA(model), "SGLD": SGLD(model, args.step_size)}
    found = {
        name: sbc(model, kernel, simulations=args.simulations, warmup_steps=args.warmup, seed=args.seed)
        for name, kernel in kernels.items()
    }
    for name, calibration in found.items():
        print(f"{name}\n{calibration.table()}")
        print(f"rejected: {', '.join(calibration.rejected()) or 'nothing'}\n")
    if args.picture:
        print(plot_ranks(found, args.picture))


if __name__ == "__main__":
    main()
