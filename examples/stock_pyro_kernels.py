"""One model under Pyro's own HMC and under MALA, both driven by stock ``pyro.infer.MCMC``.

    python examples/stock_pyro_kernels.py

Prints, for each kernel, the error of its posterior mean against the exact one, in standard deviations.
"""

from __future__ import annotations

import argparse

import pyro
import torch
from pyro.infer import HMC, MCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from pyrosep import MALA, GaussianPosterior, GaussianPrior
from pyrosep.mixing import linear_mix


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=64, help="samples")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--leapfrog", type=int, default=5, help="leapfrog steps of HMC, each a gradient")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    frequency = torch.linspace(0, 1, 65)
    priors = {
        "low": GaussianPrior(1e-2 + torch.exp(-5 * frequency), args.frame),
        "high": GaussianPrior(1e-2 + torch.exp(-5 * (1 - frequency)), args.frame),
    }
    noise = 0.1
    model = linear_mix(priors, noise=noise)
    pyro.set_rng_seed(args.seed)
    mix = model().detach()
    exact = GaussianPosterior(priors, mix, noise=noise)
    kernels: dict[str, tuple[MCMCKernel, int]] = {
        "HMC": (HMC(model, num_steps=args.leapfrog), args.leapfrog),
        "MALA": (MALA(model), 1),
    }
    for name, (kernel, gradients) in kernels.items():
        pyro.set_rng_seed(args.seed)
        mcmc = MCMC(kernel, num_samples=args.draws, warmup_steps=args.warmup, disable_progbar=True)
        mcmc.run(mix)
        draws = mcmc.get_samples()
        mean = torch.stack([draws[source].mean(0) for source in priors])
        error = ((mean - exact.mean) / exact.stddev.unsqueeze(-1)).square().mean().sqrt()
        total = gradients * (args.draws + args.warmup)
        print(f"{name}: {total} gradients, error of the mean {error:.2f} posterior standard deviations")


if __name__ == "__main__":
    main()
