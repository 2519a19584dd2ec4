"""What a Langevin step costs beside the gradient it needs, and how many independent draws a second of it buys.

Not a test. All figures of a table come from one run, its rows timed in turn, medians over the repeats::

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_langevin.py

1. a step of MALA and SGLD, with and without the spectral preconditioner, against the bare gradient of the same
   Gaussian priors (sum of their log-densities and its gradient by autograd), for a batch of chains;
2. the same with a stand-in network prior of about a million parameters;
3. the batch of chains against one chain;
4. Pyro's HMC, one chain, for each of its gradients;
5. effective draws a second, by preconditioner and kernel, where spectra span 60 dB: what the default was chosen by.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pyro
import torch
from pyro.infer import HMC
from torch import Tensor, nn

from pyrosep import MALA, SGLD, GaussianPosterior, GaussianPrior, LangevinMCMC, Potential, SourcePrior
from pyrosep.infer import LangevinKernel
from pyrosep.mixing import linear_mix
from pyrosep.signal.summaries import audio_summaries

SOURCES = ("bass", "drums", "vocals", "other")
SAMPLE_RATE = 16_000
NOISE_DB = -60.0
LEAPFROG_STEPS = 4


class NetworkPrior(SourcePrior):
    """A stand-in for a learned prior: white noise plus the energy of a convolutional network that nobody trained."""

    has_density = False

    def __init__(self, frame: int, channels: int = 256, layers: int = 5) -> None:
        super().__init__(frame, sigma_min=0.0, sample_rate=SAMPLE_RATE)
        body: list[nn.Module] = [nn.Conv1d(1, channels, 16, stride=16)]
        for _ in range(layers):
            body += [nn.SiLU(), nn.Conv1d(channels, channels, 3, padding=1)]
        self.network = nn.Sequential(*body, nn.SiLU(), nn.Conv1d(channels, 1, 1)).eval().requires_grad_(False)

    def _at_frame(self, time: int) -> None:
        """The network takes any length."""

    def _log_prob(self, value: Tensor) -> Tensor:
        energy = self.network(value.reshape(-1, 1, self.time)).sum((-1, -2)).reshape(value.shape[:-1])
        return -energy - 0.5 * value.square().sum(-1)

    def _log_prob_and_score(self, value: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            log_prob = self._log_prob(leaf)
            (score,) = torch.autograd.grad(log_prob.sum(), leaf)
        return log_prob.detach(), score

    def score(self, value: Tensor) -> Tensor:
        return self._log_prob_and_score(value)[1]

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return torch.randn(torch.Size(sample_shape) + self.batch_shape + self.event_shape)


def gaussian_priors(frame: int) -> dict[str, SourcePrior]:
    """Sources with a peak each, an octave and a half apart, and 60 dB below it elsewhere."""
    octave = torch.linspace(0, 1, 513).clamp(min=1e-3).log2()
    return {
        name: GaussianPrior(10 ** -(3 * (octave + 1.5 * k).abs()).clamp(max=6), frame, sample_rate=SAMPLE_RATE)
        for k, name in enumerate(SOURCES)
    }


def timed(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Milliseconds of the processor's time that each function takes, called in turn so that whatever else runs disturbs
    all alike: ``(repeats,)``."""
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            spent[name].append(1000 * (time.process_time() - start))
    return {name: np.array(values[1:]) for name, values in spent.items()}


def stepper(kernel: LangevinKernel, mix: Tensor, num_chains: int) -> Callable[[], object]:
    """One step of chains that are on their way."""
    potential = Potential(kernel.model, (mix,), num_chains=num_chains)
    kernel.start(potential, 0, potential.unconstrain(potential.prior_draw))
    return lambda: kernel.sample(kernel.state.z)


def model_gradient(model: Callable[..., Tensor], mix: Tensor, num_chains: int) -> Callable[[], object]:
    """The potential of the whole model and its gradient, for a batch of chains."""
    potential = Potential(model, (mix,), num_chains=num_chains)
    z = potential.unconstrain(potential.prior_draw)
    return lambda: potential.value_and_grad(z)


def bare_gradient(priors: dict[str, SourcePrior], num_chains: int) -> Callable[[], object]:
    """The sum of the priors' log-densities and its gradient, nothing else."""
    values = [prior.sample((num_chains,)) for prior in priors.values()]

    def gradient() -> object:
        leaves = [value.detach().requires_grad_() for value in values]
        total = sum(prior.log_prob(leaf).sum() for prior, leaf in zip(priors.values(), leaves, strict=True))
        return torch.autograd.grad(total, leaves)

    return gradient


def kernels(model: Callable[..., Tensor], tiny: float = 1e-9) -> dict[str, LangevinKernel]:
    """By name; without a preconditioner the steps are tiny, so that nothing diverges."""
    return {
        "MALA, spectral": MALA(model, 0.1),
        "SGLD, spectral": SGLD(model, 0.1),
        "MALA, no preconditioner": MALA(model, tiny, preconditioner=None),
        "SGLD, no preconditioner": SGLD(model, tiny, preconditioner=None),
    }


def bench_overhead(title: str, priors: dict[str, SourcePrior], chains: int, repeats: int) -> None:
    model = linear_mix(priors)
    with torch.no_grad():
        mix = model()
    functions = {"bare gradient of the priors": bare_gradient(priors, chains)}
    functions["gradient of the whole model"] = model_gradient(model, mix, chains)
    functions |= {name: stepper(kernel, mix, chains) for name, kernel in kernels(model).items()}
    found = timed(functions, repeats)
    bare = found["bare gradient of the priors"]
    print(f"\n{title}; {repeats} repeats\n{'':30}{'ms':>10}{'overhead ms':>14}{'per cent':>10}")
    for name, ms in found.items():
        # The difference of one round: what slows the machine for a while is in both of its terms.
        over = np.median(ms - bare)
        print(f"{name:30}{np.median(ms):10.1f}{over:14.1f}{100 * over / np.median(bare):10.1f}")


def bench_chains(title: str, priors: dict[str, SourcePrior], chains: int, repeats: int) -> None:
    model = linear_mix(priors)
    with torch.no_grad():
        mix = model()
    found = timed({f"{n} chains": stepper(MALA(model, 0.1), mix, n) for n in (1, chains)}, repeats)
    one = np.median(found["1 chains"])
    print(f"\n{title}, MALA, spectral; {repeats} repeats\n{'':30}{'ms':>10}{'ms a chain':>14}{'of one':>10}")
    for n in (1, chains):
        ms = np.median(found[f"{n} chains"])
        print(f"{n:3} in a batch{'':16}{ms:10.1f}{ms / n:14.1f}{ms / n / one:10.2f}")


def bench_hmc(priors: dict[str, SourcePrior], chains: int, repeats: int) -> None:
    model = linear_mix(priors)
    with torch.no_grad(), pyro.validation_enabled(False):  # as under pyro.infer.MCMC
        mix = model()
    hmc = HMC(model, step_size=1e-9, num_steps=LEAPFROG_STEPS, adapt_step_size=False, adapt_mass_matrix=False)
    hmc.setup(0, mix)
    state = {"z": hmc.initial_params}

    def step() -> None:
        with pyro.validation_enabled(False):
            state["z"] = hmc.sample(state["z"])

    functions: dict[str, Callable[[], object]] = {"Pyro HMC, 1 chain": step}
    gradients = {"Pyro HMC, 1 chain": LEAPFROG_STEPS}
    for n in (1, chains):
        functions |= {
            f"gradient alone, {n} chains": model_gradient(model, mix, n),
            f"SGLD, spectral, {n} chains": stepper(SGLD(model, 0.1), mix, n),
            f"MALA, spectral, {n} chains": stepper(MALA(model, 0.1), mix, n),
        }
    found = timed(functions, repeats)
    print(
        f"\n4. per gradient of one chain, Gaussian priors; HMC with {LEAPFROG_STEPS} leapfrog steps; {repeats} repeats"
    )
    print(f"{'':30}{'ms a step':>10}{'ms a gradient':>14}")
    for name, ms in found.items():
        count = gradients.get(name) or int(name.split()[-2])
        print(f"{name:30}{np.median(ms):10.1f}{np.median(ms) / count:14.2f}")


def stiffest(priors: dict[str, GaussianPrior], noise: float, kind: str | None) -> float:
    """Largest eigenvalue of the posterior's precision in the coordinates that a preconditioner makes white."""
    power = torch.stack([prior.variance(torch.zeros(1)) for prior in priors.values()]).double().mT  # (bins, source)
    precision = torch.diag_embed(1 / power) + 1 / noise**2
    if kind == "spectral":
        return 1.0
    if kind == "prior":
        precision = power.sqrt().unsqueeze(-1) * precision * power.sqrt().unsqueeze(-2)
    return torch.linalg.eigvalsh(precision).max().item()


def contenders(
    model: Callable[..., Tensor], priors: dict[str, GaussianPrior], noise: float
) -> Iterator[tuple[str, str, LangevinKernel]]:
    """Preconditioner, kernel's name, kernel; SGLD at the step that widens no variance by more than 5 per cent."""
    for kind in (None, "prior", "spectral"):
        step = 0.1 / stiffest(priors, noise, kind)
        for proposal in ("euler", "ornstein-uhlenbeck"):
            # Without a fitting preconditioner the steps are small, and dual averaging needs a start of their size.
            yield str(kind), f"MALA {proposal}", MALA(model, step, proposal=proposal, preconditioner=kind)
        yield str(kind), "SGLD", SGLD(model, step, preconditioner=kind)


def bench_ess(frame: int, chains: int, draws: int) -> None:
    import arviz

    priors = gaussian_priors(frame)
    with torch.no_grad():
        sources = torch.stack([prior.sample() for prior in priors.values()])
        mix = sources.sum(0)
        noise = mix.square().mean().sqrt().item() * 10 ** (NOISE_DB / 20)
        mix = mix + noise * torch.randn_like(mix)
    model = linear_mix(priors, noise=noise)
    # Every chain starts from an exact draw of the posterior: what differs is how fast it forgets it.
    start = GaussianPosterior(priors, mix, noise=noise).sample((chains,))
    init = dict(zip(SOURCES, start.unbind(-2), strict=True))
    print(
        f"\n5. effective draws, {len(SOURCES)} Gaussian sources x {frame} samples x {chains} chains, spectra of 60 dB, "
        f"noise {NOISE_DB:.0f} dB,\n   {draws} steps of warm-up and {draws} draws, started from exact draws"
    )
    print(f"{'preconditioner':16}{'kernel':26}{'step':>9}{'accept':>8}{'s':>7}{'min ESS':>11}{'ESS/s':>10}{'R-hat':>7}")
    for kind, name, kernel in contenders(model, priors, noise):
        began: list[float] = []

        def clock(kernel: object, z: object, stage: str, i: int, began: list[float] = began) -> None:
            if stage == "Sample" and not began:
                began.append(time.perf_counter())

        mcmc = LangevinMCMC(
            kernel, draws, draws, num_chains=chains, init=init, seed=0, hook_fn=clock, disable_progbar=True
        ).run(mix)
        seconds = time.perf_counter() - began[0]
        samples = mcmc.get_samples(group_by_chain=True)
        # Chain by chain: the spectra of all draws at once would take several times their memory.
        found = [
            audio_summaries(torch.stack([samples[source][chain] for source in SOURCES], -2).numpy(), SAMPLE_RATE)
            for chain in range(len(mcmc.chains))
        ]
        summaries = arviz.convert_to_dataset({name: np.stack([one[name] for one in found]) for name in found[0]})
        ess = min(float(values.min()) for values in arviz.ess(summaries, method="bulk").data_vars.values())
        r_hat = max(float(values.max()) for values in arviz.rhat(summaries).data_vars.values())
        bound = "<" if r_hat > 1.1 else " "  # chains apart: each counts as a draw at least, however little it moved
        print(
            f"{kind:16}{name:26}{kernel.step_size:9.1e}{float(kernel.mean_accept_prob):8.2f}{seconds:7.1f}"
            f"  {bound}{ess:8.1f} {bound}{ess / seconds:8.2f}{r_hat:7.2f}",
            flush=True,
        )
    print("<: R-hat is above 1.1, the chains have not met, and their ESS is a bound that says little")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=16_384, help="samples in a frame of sections 1 to 4")
    parser.add_argument("--ess-frame", type=int, default=4096, help="samples in a frame of section 5")
    parser.add_argument("--chains", type=int, default=8, help="chains in a batch")
    parser.add_argument("--repeats", type=int, default=30, help="repeats of each timing; a fifth of it for the network")
    parser.add_argument("--draws", type=int, default=1000, help="draws a chain of section 5")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--sections", default="12345", help="which sections, as digits")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"chains .* did not move")
    torch.set_num_threads(args.threads)
    pyro.set_rng_seed(0)
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs, "
        f"{args.threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    gaussian = gaussian_priors(args.frame)
    size = f"{len(SOURCES)} sources x {args.frame} samples x {args.chains} chains"
    few = max(3, args.repeats // 5)
    if "1" in args.sections:
        bench_overhead(f"1. a step, Gaussian priors, {size}", gaussian, args.chains, args.repeats)
    if set("23") & set(args.sections):
        network: dict[str, SourcePrior] = {name: NetworkPrior(args.frame) for name in SOURCES}
        count = sum(value.numel() for value in network["bass"].network.parameters())
    if "2" in args.sections:
        bench_overhead(f"2. a step, networks of {count / 1e6:.2f} M parameters, {size}", network, args.chains, few)
    if "3" in args.sections:
        bench_chains("3. chains, Gaussian priors", gaussian, args.chains, args.repeats)
        bench_chains("   chains, network priors", network, args.chains, few)
    if "4" in args.sections:
        bench_hmc(gaussian, args.chains, args.repeats)
    if "5" in args.sections:
        bench_ess(args.ess_frame, args.chains, args.draws)


if __name__ == "__main__":
    main()
