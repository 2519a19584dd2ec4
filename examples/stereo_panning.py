"""Two mono sources at unknown places of a stereo mix.

    python examples/stereo_panning.py

Prints the posterior of the pans (-1 left, 1 right) beside the truth.
"""

from __future__ import annotations

import argparse

import pyro
import torch

from pyrosep import MALA, GaussianPrior, LangevinMCMC
from pyrosep.diagnostics import summarize, to_inference_data, verdict
from pyrosep.infer import ScalarMoves
from pyrosep.mixing import panned_mix


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=1024, help="samples")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--thinning", type=int, default=1)
    parser.add_argument("--pans", type=float, nargs=2, default=(-0.6, 0.3), help="the true ones")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pyro.set_rng_seed(args.seed)
    frequency = torch.linspace(0, 1, 65)
    priors = {
        "low": GaussianPrior(1e-2 + torch.exp(-10 * frequency), args.frame, sample_rate=8000),
        "high": GaussianPrior(1e-2 + torch.exp(-10 * (1 - frequency)), args.frame, sample_rate=8000),
    }
    model = panned_mix(priors, noise=0.1)
    mix = pyro.condition(model, {"pans": torch.tensor(args.pans)})().detach()  # (2, time)

    mcmc = LangevinMCMC(
        ScalarMoves(MALA(model)),  # given the sources, pans hardly move; this moves both
        args.draws,
        args.warmup,
        num_chains=args.chains,
        thinning=args.thinning,
        init="mix",
        seed=args.seed,
    ).run(mix)
    pans = mcmc.get_samples()["pans"]
    for index, name in enumerate(priors):
        one = pans[:, index]
        print(f"{name}: pan {one.mean():.3f} +- {one.std():.3f}, true {args.pans[index]:.3f}")
    print(verdict(summarize(to_inference_data(mcmc, dims={"pans": ["source"]}))))


if __name__ == "__main__":
    main()
