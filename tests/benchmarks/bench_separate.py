"""Seconds of computing a second of audio, by method, beside the bare calls of the networks that it cannot do without.

Not a test. All figures are of one thread, medians over the repeats::

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_separate.py

1. each method of ``separate`` on noise of a few windows, and the same with half precision and compiled networks;
2. the networks' passes alone: as many frames of the same length as the chains take down the levels;
3. the networks of all sources as one call, weights stacked, against one call each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from pyrosep import ContinuousFlow
from pyrosep.infer.search.descent import LEVELS
from pyrosep.nn.precision import multiplies_bfloat16
from pyrosep.separation import Settings, choose_method, separate
from pyrosep.zoo import load_priors, prior_set_info


def seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def passes(priors: list[ContinuousFlow], frames: Tensor) -> None:
    with torch.no_grad():
        for prior in priors:
            for part in frames.split(32):
                prior.at(0.1, interference=1.0).filtered(part)


def stacked_networks(priors: list[ContinuousFlow], spectra: Tensor, level: Tensor) -> Callable[[], object]:
    nets = [prior.network.net for prior in priors]
    parameters, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    base = nets[0]

    def one(own: dict[str, Tensor], more: dict[str, Tensor]) -> Tensor:
        return functional_call(base, (own, more), (spectra, level))[0]

    return lambda: vmap(one)(parameters, buffers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="band-small", help="whose denoisers filter and know interference")
    parser.add_argument("--windows", type=int, default=3, help="of the model's frame")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="time compiled networks too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    info = prior_set_info(args.model)
    priors = load_priors(args.model)
    flows = [prior for prior in priors.values() if isinstance(prior, ContinuousFlow)]
    settings = Settings(overlap=0.0)
    audio = 0.1 * torch.randn(1, args.windows * info.frame)
    length = audio.shape[-1] / info.sample_rate
    half = multiplies_bfloat16(torch.device("cpu"))
    print(f"{args.model}, {length:.1f} s, bfloat16 products {'quick' if half else 'slow'} here")
    arms = {"one-pass": replace(settings, method="one-pass"), "langevin": replace(settings, method="langevin")}
    arms["langevin, 32-true"] = replace(arms["langevin"], precision="32-true")
    arms["langevin, bf16-mixed"] = replace(arms["langevin"], precision="bf16-mixed")
    if args.compile:
        arms["langevin, compiled"] = replace(arms["langevin"], compile=True)
    for name, own in arms.items():
        taken = seconds(lambda own=own: separate(audio, info.sample_rate, priors, own), args.repeats)  # type: ignore[misc]
        print(f"{name:>24}: {taken / length:.3f} s for a second")
    chains = choose_method(priors, "langevin").states
    frames = 0.1 * torch.randn(chains * LEVELS * args.windows, info.frame)
    for name, own in (("passes", flows), ("passes, bf16", [flow.with_autocast() for flow in flows])):
        print(f"{name:>24}: {seconds(lambda own=own: passes(own, frames), args.repeats) / length:.3f} s for a second")  # type: ignore[misc]
    with torch.no_grad():
        network = flows[0].network
        spectra = network.transform(0.1 * torch.randn(chains, info.frame)).unsqueeze(1)  # type: ignore[operator]
        level = network.embedding(torch.ones(1))
        together = stacked_networks(flows, spectra, level)
        each = seconds(lambda: [flow.network.net(spectra, level) for flow in flows], 3 * args.repeats)  # type: ignore[operator]
        print(f"{'networks, one by one':>24}: {1e3 * each:.0f} ms for {chains} frames of each source")
        print(f"{'networks, stacked':>24}: {1e3 * seconds(together, 3 * args.repeats):.0f} ms")


if __name__ == "__main__":
    main()
