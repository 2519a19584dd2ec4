"""Two mixing models of one's own, gains that nobody wrote down and a soft clipper, each with a guide of its own.

    python examples/custom_guides.py

For each model a guide is trained on mixes that the model draws, checked, and used: its mean, and chains that start from
its draws. Nothing below `MODELS` knows which model it is. As it comes (500 steps a guide, two waves of any of 356
periods, 8 mixes) it printed, SI-SDR in dB:

    unknown gains: mix -5.9 (saw), 6.8 (square); guide 14.8, 21.1; guide and chains 34.1, 39.5
    soft clipping: mix -7.5, 8.6; guide 14.2, 22.0; guide and chains 33.4, 38.7
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from pyrosep import AnnealedSearch, EncoderGuide, GibbsMALA, LangevinMCMC, OscillatorPrior, fit_guide
from pyrosep.diagnostics import fit_temperature, interval_coverage, mix_check
from pyrosep.guides import simulate
from pyrosep.metrics import si_sdr
from pyrosep.mixing import Model, soft_clipped_mix, unknown_gains_mix
from pyrosep.nn.refining import UNetSize
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer

MODELS: dict[str, Callable[[dict[str, OscillatorPrior]], Model]] = {
    "unknown gains": lambda priors: unknown_gains_mix(priors, noise=0.02, spread_db=3.0),
    "soft clipping": lambda priors: soft_clipped_mix(priors, noise=0.02, drive=1.0),
}


def study(name: str, priors: dict[str, OscillatorPrior], args: argparse.Namespace) -> None:
    """Train a guide for a model, check it, and separate mixes that it has not seen."""
    pyro.set_rng_seed(args.seed)
    model = MODELS[name](priors)
    mixes, values = simulate(model, 2 * args.mixes)
    size = UNetSize(hop=8, width=args.width, levels=2, layers=3, passes=2, harmonic=args.width // 2)
    guide = EncoderGuide.for_model(model, mixes[0], shared=True, size=size)
    settings = TrainingSettings(
        steps=args.steps, batch=16, learning_rate=0.01, optimizer="muon", warmup=20, validate_every=args.steps
    )
    fit_guide(model, guide, trainer=Trainer(settings, quiet=True), num_samples=1)

    truth = torch.stack([values[source] for source in priors], -2)
    aside, held_out = slice(None, args.mixes), slice(args.mixes, None)
    before = interval_coverage(guide, mixes[held_out], truth[held_out])
    fit_temperature(guide, mixes[aside], truth[aside])
    after = interval_coverage(guide, mixes[held_out], truth[held_out])
    print(f"{name}: 90 % intervals hold {share(before)} % of the samples, after temperature {share(after)} %")
    check = mix_check(model, guide, mixes[args.mixes])
    print(f"{name}: chi-square of the mix by the guide {check.statistic:.0f}, expected {check.expected:.0f}")

    mix, truth = mixes[args.mixes : args.mixes + args.separated], truth[args.mixes : args.mixes + args.separated]
    mean, _ = guide.moments(mix)
    chains = torch.stack([best_chain(model, guide, one, list(priors), args) for one in mix])
    for method, found in {"mix": mix.unsqueeze(1), "guide": mean, "guide and chains": chains}.items():
        scores = si_sdr(found.expand_as(truth).unsqueeze(-2), truth.unsqueeze(-2)).mean(0)
        print(
            f"{name}: SI-SDR by {method}: " + ", ".join(f"{k} {v:.1f} dB" for k, v in zip(priors, scores, strict=True))
        )


def best_chain(model: Model, guide: EncoderGuide, mix: Tensor, names: list[str], args: argparse.Namespace) -> Tensor:
    """Posterior mean of the chain of highest joint density, from starts that the guide draws: ``(source, time)``."""
    search, kernel = AnnealedSearch(start=guide, redraws=args.redraws), GibbsMALA(model)
    mcmc = LangevinMCMC(
        kernel, args.draws, args.warmup, num_chains=args.chains, init=search, seed=args.seed, disable_progbar=True
    ).run(mix)
    best = mcmc.sample_stats()["lp"].mean(-1).argmax()
    draws = mcmc.get_samples(group_by_chain=True)
    return torch.stack([draws[name][best].mean(0) for name in names])


def share(coverage: dict[str, dict[float, float]]) -> str:
    return " and ".join(f"{100 * levels[0.9]:.0f}" for levels in coverage.values())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=512, help="samples")
    parser.add_argument("--width", type=int, default=32, help="channels of the guide's networks")
    parser.add_argument("--steps", type=int, default=500, help="of each guide's training")
    parser.add_argument("--mixes", type=int, default=64, help="for its temperature, and as many to check it")
    parser.add_argument("--separated", type=int, default=8, help="mixes to separate")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--redraws", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    priors = {wave: OscillatorPrior(wave, args.frame) for wave in ("saw", "square")}
    for name in MODELS:
        study(name, priors, args)


if __name__ == "__main__":
    main()
