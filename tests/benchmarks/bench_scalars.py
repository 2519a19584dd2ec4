"""Effective draws of unknown gains a second, with and without joint moves of gains and sources.

Not a test. One thread, four chains from the mix; seconds are of the process, warm-up left out::

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_scalars.py

Priors are two Gaussian bands of noise, an octave apart, under ``unknown_gains_mix``. ``NUTS`` is Pyro's, one chain.
"""

from __future__ import annotations

import argparse
import time
import warnings

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyrosep import MALA, GaussianPrior, LangevinMCMC
from pyrosep.infer import ScalarMoves
from pyrosep.mixing import unknown_gains_mix


def bands(frame: int) -> dict[str, GaussianPrior]:
    frequency = torch.linspace(0, 1, 65)
    return {
        "low": GaussianPrior(1e-3 + torch.exp(-10 * frequency), frame),
        "high": GaussianPrior(1e-3 + torch.exp(-10 * (1 - frequency)), frame),
    }


def judge(draws: dict[str, Tensor]) -> tuple[float, float]:
    """Smallest bulk ESS and largest R-hat of gains and of the sources' levels, of ``(chain, draw, ...)``."""
    import arviz

    columns = [*draws["gains"].unbind(-1), *(draws[name].square().mean(-1) for name in ("low", "high"))]
    sizes = [float(arviz.ess(column.numpy())) for column in columns]
    return min(sizes), max(float(arviz.rhat(column.numpy())) for column in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 1024, 16_384], help="samples")
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--draws", type=int, default=150)
    parser.add_argument("--nuts", type=int, default=0, help="draws of NUTS, as many of warm-up; 0 for none")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| samples | kernel | ms a step | smallest ESS | ESS a second | largest R-hat |\n|" + " --- |" * 6)
    for frame in args.frames:
        model = unknown_gains_mix(bands(frame), noise=args.noise)
        pyro.set_rng_seed(0)
        mix = pyro.condition(model, {"gains": torch.tensor([1.5, 0.5])})().detach()
        kernels = {"MALA": MALA(model), "ScalarMoves(MALA)": ScalarMoves(MALA(model))}
        for name, kernel in kernels.items():
            began: list[float] = []

            def clock(kernel: object, z: object, stage: str, i: int, began: list[float] = began) -> None:
                if stage == "Sample" and not began:
                    began.append(time.process_time())

            mcmc = LangevinMCMC(
                kernel, args.draws, args.warmup, init="mix", seed=0, disable_progbar=True, hook_fn=clock
            ).run(mix)
            seconds = time.process_time() - began[0]
            size, r_hat = judge(mcmc.get_samples(group_by_chain=True))
            cost = 1000 * seconds / args.draws
            print(f"| {frame} | {name} | {cost:.0f} | {size:.0f} | {size / seconds:.1f} | {r_hat:.3f} |", flush=True)
        if args.nuts:
            stock = MCMC(NUTS(model), args.nuts, args.nuts, disable_progbar=True)
            start = time.process_time()
            stock.run(mix)
            seconds = (time.process_time() - start) / 2
            size, r_hat = judge({name: value.unsqueeze(0) for name, value in stock.get_samples().items()})
            cost = 1000 * seconds / args.nuts
            print(f"| {frame} | NUTS | {cost:.0f} | {size:.0f} | {size / seconds:.1f} | {r_hat:.3f} |", flush=True)


if __name__ == "__main__":
    main()
