"""Denoise a toy wave at several noise levels with its exact prior.

    python examples/toy_exact_prior.py

Prints the signal-to-noise ratio before and after, in dB: the mean over waves, in the toy data's own draws.
"""

from __future__ import annotations

import argparse

import pyro
import torch

from pyrosep import OscillatorPrior
from pyrosep.data import ToySource


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wave", default="saw", choices=("sine", "saw", "square", "triangle"))
    parser.add_argument("--frame", type=int, default=2048, help="samples")
    parser.add_argument("--size", type=int, default=8, help="waves to take the mean over")
    parser.add_argument("--sigma", type=float, nargs="+", default=(0.1, 0.3, 1.0, 3.0, 10.0), help="noise levels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pyro.set_rng_seed(args.seed)
    prior = OscillatorPrior(args.wave, args.frame)
    waves = ToySource(args.wave, frame=args.frame, size=args.size, seed=args.seed)
    clean = torch.stack([waves[index] for index in range(args.size)])
    print(f"{'sigma':>8}{'noisy, dB':>12}{'denoised, dB':>14}")
    for sigma in args.sigma:
        noisy = clean + sigma * torch.randn_like(clean)
        denoised = prior.at(sigma).denoise(noisy)
        print(f"{sigma:8.2f}{snr_db(noisy, clean):12.1f}{snr_db(denoised, clean):14.1f}")


def snr_db(estimate: torch.Tensor, clean: torch.Tensor) -> float:
    """Signal-to-noise ratio in dB, mean over frames ``(frames, time)``."""
    error = (estimate - clean).square().sum(-1).clamp(min=1e-20)
    return (10 * torch.log10(clean.square().sum(-1) / error)).mean().item()


if __name__ == "__main__":
    main()
