"""Gains that nobody wrote down: two bands of noise, mixed at unknown levels.

    python examples/unknown_gains.py

Prints the posterior of the gains beside the truth, and how well the sources come out.
"""

from __future__ import annotations

import argparse

import pyro
import torch

from pyrosep import MALA, GaussianPrior, LangevinMCMC
from pyrosep.diagnostics import summarize, to_inference_data, verdict
from pyrosep.infer import ScalarMoves
from pyrosep.mixing import unknown_gains_mix


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=1024, help="samples")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--thinning", type=int, default=1)
    parser.add_argument("--gains", type=float, nargs=2, default=(1.5, 0.5), help="the true ones")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pyro.set_rng_seed(args.seed)
    frequency = torch.linspace(0, 1, 65)
    priors = {
        "low": GaussianPrior(1e-3 + torch.exp(-10 * frequency), args.frame, sample_rate=8000),
        "high": GaussianPrior(1e-3 + torch.exp(-10 * (1 - frequency)), args.frame, sample_rate=8000),
    }
    model = unknown_gains_mix(priors, noise=0.2)
    truth = {name: prior.sample() for name, prior in priors.items()}
    mix = pyro.condition(model, truth | {"gains": torch.tensor(args.gains)})().detach()

    mcmc = LangevinMCMC(
        ScalarMoves(MALA(model)),  # given the sources, gains hardly move; this moves both
        args.draws,
        args.warmup,
        num_chains=args.chains,
        thinning=args.thinning,
        init="mix",
        seed=args.seed,
    ).run(mix)
    draws = mcmc.get_samples()
    for index, name in enumerate(priors):
        gain = draws["gains"][:, index]
        # What is in the mix is the product; source and gain by themselves are known as well as the prior's level.
        part = (gain.unsqueeze(-1) * draws[name]).mean(0)
        true_part = args.gains[index] * truth[name]
        snr = 10 * torch.log10(true_part.square().sum() / (part - true_part).square().sum())
        print(f"{name}: gain {gain.mean():.2f} +- {gain.std():.2f}, true {args.gains[index]:.2f}; SNR {snr:.1f} dB")
    print(verdict(summarize(to_inference_data(mcmc, dims={"gains": ["source"]}))))


if __name__ == "__main__":
    main()
