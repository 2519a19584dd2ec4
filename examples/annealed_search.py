"""Find toy sources in a mix through a soft clipper, whose posterior has thousands of modes.

    python examples/annealed_search.py

The same program with --pans has them panned to unknown places in stereo instead. Prints each chain's SI-SDR of every
source, its log joint density, and in words which chains found which mode.
"""

from __future__ import annotations

import argparse

import pyro
import torch
from pyro import poutine

from pyrosep import AnnealedSearch, GibbsMALA, LangevinMCMC, OscillatorPrior, compare_chains, to_inference_data
from pyrosep.diagnostics import describe_modes
from pyrosep.metrics import si_sdr
from pyrosep.mixing import panned_mix, soft_clipped_mix


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waves", nargs="+", default=("sine", "saw", "square"), help="of the sources")
    parser.add_argument("--pans", action="store_true", help="unknown pans in place of the clipper")
    parser.add_argument("--frame", type=int, default=1024, help="samples")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--redraws", type=int, default=24, help="block redraws of the search")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pyro.set_rng_seed(args.seed)
    priors = {wave: OscillatorPrior(wave, args.frame) for wave in args.waves}
    model = panned_mix(priors) if args.pans else soft_clipped_mix(priors)
    trace = poutine.trace(model).get_trace()  # a mix, and what it was made of
    truth = torch.stack([trace.nodes[wave]["value"] for wave in args.waves])

    search = AnnealedSearch(redraws=args.redraws)
    mcmc = LangevinMCMC(GibbsMALA(model), args.draws, args.warmup, num_chains=args.chains, init=search, seed=args.seed)
    mcmc.run(trace.nodes["mix"]["value"])
    draws = mcmc.get_samples(group_by_chain=True)
    joint = mcmc.sample_stats()["lp"].mean(1)
    print(f"{'chain':>5}{'log joint':>12}{'calls':>7}  SI-SDR in dB of {', '.join(args.waves)}")
    for row, chain in enumerate(mcmc.chains):
        found = torch.stack([draws[wave][row].mean(0) for wave in args.waves])
        scores = " ".join(f"{score:7.1f}" for score in si_sdr(found.unsqueeze(1), truth.unsqueeze(1)).tolist())
        print(f"{chain:5d}{joint[row]:12.0f}{mcmc.found.calls[chain]:7d} {scores}")
    print(describe_modes(compare_chains(to_inference_data(mcmc))))


if __name__ == "__main__":
    main()
