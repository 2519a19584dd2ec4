"""A mixing model of one's own: two sources, one with an echo of unknown strength, in noise of unknown level.

    python examples/custom_mixing_model.py

Prints a table of R-hat and effective sample sizes. The truth is 0.6 for ``echo`` and 0.2 for ``noise``.
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosep import MALA, GaussianPrior, LangevinMCMC
from pyrosep.diagnostics import summarize, to_inference_data, verdict

DELAY = 10  # samples from a sound to its echo


def model(priors: dict[str, GaussianPrior], mix: Tensor | None = None) -> Tensor:
    """``dry + wet + echo * delayed(wet) + noise``; everything has the chains in front, ``(..., time)``."""
    dry, wet = (pyro.sample(name, prior) for name, prior in priors.items())
    echo = pyro.sample("echo", dist.Beta(2.0, 2.0))
    noise = pyro.sample("noise", dist.LogNormal(-2.0, 1.0))
    # Circular, as the priors are. A scalar site meets (..., time) with a new last axis.
    delayed = torch.roll(wet, DELAY, -1)
    mean = dry + wet + echo[..., None] * delayed
    return pyro.sample("mix", dist.Normal(mean, noise[..., None]).to_event(1), obs=mix)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=64, help="samples")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--warmup", type=int, default=2000)
    parser.add_argument("--thinning", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pyro.set_rng_seed(args.seed)
    frequency = torch.linspace(0, 1, 65)
    priors = {
        "dry": GaussianPrior(1e-3 + torch.exp(-20 * frequency), args.frame, sample_rate=8000),
        "wet": GaussianPrior(1e-3 + torch.exp(-20 * (1 - frequency)), args.frame, sample_rate=8000),
    }
    known = {"echo": torch.tensor(0.6), "noise": torch.tensor(0.2)}
    mix = pyro.condition(model, known)(priors).detach()

    kernel = MALA(model, step_size=0.1)
    mcmc = LangevinMCMC(
        kernel, args.draws, args.warmup, num_chains=args.chains, thinning=args.thinning, init="mix", seed=args.seed
    )
    idata = to_inference_data(mcmc.run(priors, mix))
    table = summarize(idata)
    print(table.to_string(float_format="{:.3f}".format))
    print(verdict(table))


if __name__ == "__main__":
    main()
