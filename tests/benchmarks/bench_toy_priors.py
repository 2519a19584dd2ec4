"""How well trained priors of the toy waves do, beside the exact ones.

Not a test. Frames that no training saw; the same frames and the same noise for both models::

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_toy_priors.py --model toy-flowavenet --frames 100

For each noise level: the log-density of held-out noised frames in nats a frame; how often the largest of the waves'
log-densities names the wave, and which it names; the SNR of the denoised frame. And how smoothly the log-density under
the prior of one level falls as noise is added to clean frames.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from pyrosep import SourcePrior, load_priors
from pyrosep.data import ToySource

LEVELS = (0.01, 0.03, 0.1, 0.36, 1.0, 3.0)


def held_out(waves: list[str], frame: int, count: int, seed: int) -> Tensor:
    """Clean frames ``(wave, frames, time)`` of another generator and seed than the training's."""
    return torch.stack([torch.stack([ToySource(w, frame, count, seed)[i] for i in range(count)]) for w in waves])


def log_probs(priors: dict[str, SourcePrior], x: Tensor, sigma: float) -> Tensor:
    """Under each prior: ``(prior, wave, frames)``."""
    with torch.no_grad():
        return torch.stack(
            [
                torch.cat([prior.at(sigma).log_prob(part) for part in x.flatten(0, 1).split(16)])
                for prior in priors.values()
            ]
        ).reshape(len(priors), *x.shape[:-1])


def snr(clean: Tensor, estimate: Tensor) -> Tensor:
    return 10 * torch.log10(clean.square().sum(-1) / (estimate - clean).square().sum(-1))


def denoised(prior: SourcePrior, x: Tensor, sigma: float) -> Tensor:
    return torch.cat([prior.at(sigma).denoise(part) for part in x.split(16)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy-flowavenet", help="name of a model that ships, or a folder of one")
    parser.add_argument("--exact", default="toy", help="the model to judge it by")
    parser.add_argument("--frame", type=int, default=2048)
    parser.add_argument("--frames", type=int, default=100, help="of each wave")
    parser.add_argument("--denoised", type=int, default=32, help="frames of each wave that are denoised")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    learned = load_priors(args.model, frame=args.frame)
    waves = list(learned)
    exact = load_priors(args.exact, frame=args.frame, sources=waves)
    clean = held_out(waves, args.frame, args.frames, args.seed)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(args.seed))
    print(f"{args.model}, frames of {args.frame} samples, {args.frames} a wave, seed {args.seed}")
    confusions = []
    for sigma in LEVELS:
        x = clean + sigma * noise
        found, best = log_probs(learned, x, sigma), log_probs(exact, x, sigma)
        named, named_best = found.argmax(0), best.argmax(0)
        truth = torch.arange(len(waves)).unsqueeze(-1)
        print(
            f"\nsigma {sigma:g}: named right {100 * (named == truth).float().mean():.1f} %, "
            f"by the exact priors {100 * (named_best == truth).float().mean():.1f} %"
        )
        print(f"{'':10}{'nats':>10}{'exact':>10}{'below':>9}{'right %':>9}{'SNR dB':>9}{'exact':>8}{'noisy':>8}")
        for k, wave in enumerate(waves):
            few = slice(0, args.denoised)
            mine = snr(clean[k, few], denoised(learned[wave], x[k, few], sigma)).mean()
            theirs = snr(clean[k, few], denoised(exact[wave], x[k, few], sigma)).mean()
            print(
                f"{wave:10}{found[k, k].mean():10.1f}{best[k, k].mean():10.1f}{(best - found)[k, k].mean():9.1f}"
                f"{100 * (named[k] == k).float().mean():9.1f}{mine:9.1f}{theirs:8.1f}"
                f"{snr(clean[k, few], x[k, few]).mean():8.1f}",
                flush=True,
            )
        confusions.append((sigma, torch.stack([(named == k).float().mean(-1) for k in range(len(waves))], -1)))
    print("\nnamed as, per cent (rows: the wave)")
    for sigma, table in confusions:
        rows = "; ".join(f"{w} " + " ".join(f"{100 * v:.0f}" for v in table[k]) for k, w in enumerate(waves))
        print(f"  sigma {sigma:g}: {rows}")
    print("\nmean log-density of a wave with noise of another level, under its prior at sigma 0.1 (nats)")
    steps = torch.linspace(0, 0.5, 11).tolist()
    print(f"{'noise':10}" + "".join(f"{step:>10.2f}" for step in steps))
    for k, wave in enumerate(waves):
        for name, prior in (("", learned[wave]), (" exact", exact[wave])):
            values = [prior.at(0.1).log_prob(clean[k, :16] + step * noise[k, :16]).mean().item() for step in steps]
            print(f"{wave + name:16}"[:16].rjust(10) + "".join(f"{value:>10.0f}" for value in values))


if __name__ == "__main__":
    main()
