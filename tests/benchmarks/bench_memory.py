"""Peak memory of a separated track by its length, for every method.

Not a test. Each track is separated in a process of its own, by ``separate_track``; a figure is the most that the
process had in memory, with the libraries, the priors and the summaries of the draws (Linux; MiB)::

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_memory --seconds 10 150 1200 --draws 20 --levels 4

Memory does not depend on how many steps there are, but the time does: fewer draws and levels serve as well.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch

from pyrosep import Settings, audio, load_priors
from pyrosep.separation import Chains, FromGuide, LocalSearch, Method, OnePass, SharedDescent, Wiener
from pyrosep.separation.files import separate_track
from pyrosep.zoo import PriorSet

RATE = 16_000


def arms(chains: int, draws: int, levels: int) -> dict[str, tuple[str, Method]]:
    """A prior set and a method, by name."""
    return {
        "exact": ("band-gaussian", Wiener()),
        "guide": ("band-small", FromGuide()),
        "one-pass": ("band-small", OnePass()),
        "chains": ("band-gaussian", Chains(chains, draws, 0, ladder=None)),
        "chains after sweeps": ("band-gaussian", Chains(chains, draws, 0, ladder=levels, redraws=0)),
        "descents": ("band-small", SharedDescent(chains, ladder=levels)),
        "descents from the guide": ("band-small", SharedDescent(chains, guided=True, ladder=levels)),
        "local search": ("band-small", LocalSearch(chains, ladder=levels)),
    }


def noise(path: Path, seconds: int) -> Path:
    """A track of noise, written a second at a time."""
    generator = torch.Generator().manual_seed(0)
    with audio.Writer(path, RATE, 1, "pcm16") as writer:
        for _ in range(seconds):
            writer.write(0.1 * torch.randn(1, RATE, generator=generator).clamp(-5, 5))
    return path


def peak(track: Path, folder: Path, priors: PriorSet, settings: Settings) -> float:
    """Most MiB that a process has which separates a track: a fork of this one."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            warnings.simplefilter("ignore")
            separate_track(track, folder, priors, settings)
            status = 0
        finally:
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"{settings} ended with {os.waitstatus_to_exitcode(status)}")
    return float(used.ru_maxrss) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 150, 1200])
    parser.add_argument("--method", action="append", help="which arm; may be given again [all]")
    parser.add_argument("--chains", type=int, default=4, help="of each window")
    parser.add_argument("--draws", type=int, default=20, help="of each chain")
    parser.add_argument("--levels", type=int, default=4, help="of a search")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import arviz  # noqa: F401  (what every process needs is imported once)

    with tempfile.TemporaryDirectory() as place:
        tracks = [noise(Path(place, f"{seconds}.wav"), seconds) for seconds in args.seconds]
        print(f"{'':>24}", *(f"{seconds:>6} s" for seconds in args.seconds), "  posterior.nc, MiB")
        for name, (prior_set, method) in arms(args.chains, args.draws, args.levels).items():
            if args.method and name not in args.method:
                continue
            priors, began, figures, sizes = load_priors(prior_set), time.monotonic(), [], []
            for track in tracks:
                folder = Path(place, name, track.stem)
                figures.append(f"{peak(track, folder, priors, Settings(method)):>8.0f}")
                posterior = folder / "posterior.nc"
                sizes.append(f"{posterior.stat().st_size / 2**20:.1f}" if posterior.exists() else "none")
            print(f"{name:>24}", *figures, " ", *sizes, f" ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
