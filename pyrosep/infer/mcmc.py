"""Many Langevin chains as one batch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.infer.mcmc.util import print_summary, select_samples
from torch import Tensor
from tqdm.auto import tqdm

from pyrosep.errors import ConfigurationError
from pyrosep.infer.initial import Initial, initial_values
from pyrosep.infer.kernel import LangevinKernel
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.search.annealed import AnnealedSearch, Found
from pyrosep.infer.seeding import as_usual, seeded

__all__ = ["ChainWarning", "LangevinMCMC"]


class ChainWarning(UserWarning):
    """Chains were stopped or never moved."""


def _advance(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


class LangevinMCMC(AbstractMCMC):
    """Runs many chains of a Langevin kernel as one batch on one device.

    The model runs once for all chains, inside an outer plate, so it must be written for leading batch axes; that the
    chains don't meet is checked once (:meth:`~pyrosep.infer.Potential.check_independence`). Each chain may have a mix
    of its own: give the model a mix of shape ``(chains, ..., time)``.

    Only every ``thinning``-th draw is kept, and kept in host memory, so that the device holds the current state alone.

    Arguments:
        kernel: a Langevin kernel (:class:`~pyrosep.infer.SGLD`, :class:`~pyrosep.infer.MALA`, ...).
        num_samples: draws kept from each chain.
        warmup_steps: steps before the first draw, in which a kernel may adapt; ``num_samples`` by default.
        num_chains: chains.
        thinning: steps from one kept draw to the next.
        init: ``"prior"``, ``"mix"``, values, a guide, or an :class:`~pyrosep.AnnealedSearch`; see
            :func:`~pyrosep.infer.initial_values`. By default the kernel's own, as a rule ``"prior"``.
        seed: if given, draws depend on it alone, and the caller's random state is left as it was.
        check: whether to check that the chains don't meet, which takes one and a half gradients of the model;
            not needed for a model that passed it before.
        disable_progbar: no progress bar. It is off by itself where standard error is no terminal.
        hook_fn: called after every step with ``(kernel, z, stage, i)``, as in :class:`pyro.infer.MCMC`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrosep import GaussianPrior, LangevinMCMC, MALA
        >>> prior = GaussianPrior(torch.ones(2), frame=8)
        >>> def model(mix):
        ...     sources = torch.stack([pyro.sample("a", prior), pyro.sample("b", prior)], -2)
        ...     pyro.sample("mix", dist.Normal(sources.sum(-2), 0.1).to_event(1), obs=mix)
        >>> mcmc = LangevinMCMC(MALA(model), num_samples=50, num_chains=4, seed=0).run(torch.zeros(8))
        >>> mcmc.get_samples(group_by_chain=True)["a"].shape
        torch.Size([4, 50, 8])
    """

    def __init__(
        self,
        kernel: LangevinKernel,
        num_samples: int,
        warmup_steps: int | None = None,
        *,
        num_chains: int = 4,
        thinning: int = 1,
        init: Initial | None = None,
        seed: int | None = None,
        check: bool = True,
        disable_progbar: bool = False,
        hook_fn: Callable[..., None] | None = None,
    ) -> None:
        if not isinstance(kernel, LangevinKernel):
            raise ConfigurationError(
                f"LangevinMCMC runs Langevin kernels; got {type(kernel).__name__}. Pyro's own kernels run the same "
                "model under pyro.infer.MCMC"
            )
        for name, number, least in (
            ("num_samples", num_samples, 1),
            ("warmup_steps", warmup_steps, 0),
            ("num_chains", num_chains, 1),
            ("thinning", thinning, 1),
        ):
            if number is not None and (int(number) != number or number < least):
                raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {number!r}")
        super().__init__(kernel, num_chains, None)
        self.num_samples = num_samples
        self.warmup_steps = num_samples if warmup_steps is None else warmup_steps
        self.thinning = thinning
        self.init = kernel.default_init if init is None else init
        #: What the search found that ``init`` was; ``None`` without one.
        self.found: Found | None = None
        self._draws: Values = {}
        self._stats: dict[str, Tensor] = {}
        self.seed = seed
        self.check = check
        self.hook_fn = hook_fn
        self.disable_progbar = disable_progbar

    def run(self, *args: Any, **kwargs: Any) -> Self:
        """Run the chains on the model called with these arguments.

        Other threads that run chains or separate wait meanwhile.

        Raises:
            ShapeError, LeakError: the model is not written for a batch of chains.
            InitializationError: there is no finite energy at the start.
            DivergenceError: every chain has diverged.
        """
        self._draws, self._stats = {}, {}  # what a run that fails leaves is not another run's
        self._args, self._kwargs = args, kwargs  # where Pyro's runs have them, for arviz.from_pyro
        with seeded(self.seed):
            self._run(as_usual(args), as_usual(kwargs))
        self._report()
        return self

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kernel = self.kernel
        potential = Potential(kernel.model, args, kwargs, num_chains=self.num_chains)
        search = self.init if isinstance(self.init, AnnealedSearch) else None
        z = initial_values(potential, self.init if search is None else search.start)
        if self.check:
            potential.check_independence(z)
        if search is not None:
            with self._bar("Search", 0) as bar:
                self.found = search.search(potential, z, partial(_advance, bar))
            z = self.found.z
        kernel.start(potential, self.warmup_steps, z)
        self.potential = potential
        self._run_stage("Warmup", self.warmup_steps)
        draws = {
            name: torch.empty(self.num_chains, self.num_samples, *value.shape[1:], dtype=value.dtype)
            for name, value in potential.constrain(kernel.state.z).items()
        }
        stats = {
            name: torch.full((self.num_chains, self.num_samples), float("nan"), dtype=torch.float64)
            for name in ("lp", "acceptance_rate", "step_size", "residual")
        }
        self._run_stage("Sample", self.num_samples * self.thinning, partial(self._keep, draws, stats))
        self._draws, self._stats = draws, stats

    def _bar(self, stage: str, steps: int) -> Any:
        quiet = True if self.disable_progbar else None  # None: off where there is no terminal
        return tqdm(total=steps, desc=stage, disable=quiet, file=sys.stderr, leave=False)

    def _run_stage(self, stage: str, steps: int, keep: Callable[[int], None] | None = None) -> None:
        kernel = self.kernel
        with self._bar(stage, steps) as bar:
            z = kernel.state.z
            for i in range(steps):
                z = kernel.sample(z)
                if self.hook_fn is not None:
                    self.hook_fn(kernel, z, stage, i)
                if keep is not None and (i + 1) % self.thinning == 0:
                    keep(i // self.thinning)
                if not bar.disable and i % 10 == 0:
                    bar.set_postfix(kernel.logging(), refresh=False)
                bar.update()

    def _keep(self, draws: Values, stats: dict[str, Tensor], draw: int) -> None:
        kernel = self.kernel
        for name, value in self.potential.constrain(kernel.state.z).items():
            draws[name][:, draw] = value.to("cpu")
        stats["lp"][:, draw] = -kernel.state.energy.to("cpu", torch.float64)
        stats["acceptance_rate"][:, draw] = kernel.accept_prob.to("cpu", torch.float64)
        stats["step_size"][:, draw] = kernel.step_sizes.to("cpu", torch.float64)
        residual = kernel.state.residual
        if residual is not None:
            stats["residual"][:, draw] = residual.to("cpu", torch.float64)

    def _report(self) -> None:
        for chain, reason in sorted(self.kernel.stopped.items()):
            warnings.warn(f"chain {chain} {reason}; its draws are left out", ChainWarning, stacklevel=3)
        if self.num_samples < 2:
            return
        energies = self._stats["lp"]
        still = [chain for chain in self.chains if bool((energies[chain] == energies[chain, 0]).all())]
        if still:
            warnings.warn(
                f"chains {still} did not move in {self.num_samples * self.thinning} steps; take a smaller step size "
                "or a longer warm-up",
                ChainWarning,
                stacklevel=3,
            )

    # --- results ----------------------------------------------------------------------------------------------

    def _check_run(self) -> None:
        if not self._draws:
            raise ConfigurationError("expected chains that have run to the end; call mcmc.run(...) first")

    @property
    def chains(self) -> list[int]:
        """Numbers of the chains that ran to the end."""
        self._check_run()
        return [chain for chain in range(self.num_chains) if chain not in self.kernel.stopped]

    @property
    def stopped(self) -> dict[int, str]:
        """Chains that were stopped, and why."""
        self._check_run()
        return dict(self.kernel.stopped)

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> Values:
        """Draws in the model's own space, on the host: ``(chains * draws, ...)``, or ``(chains, draws, ...)`` by chain.

        Chains that were stopped are left out. See :func:`pyro.infer.mcmc.util.select_samples`.

        Raises:
            ConfigurationError: the chains have not run; so do all other results.
        """
        self._check_run()
        draws = {name: value[self.chains] for name, value in self._draws.items()}
        return select_samples(draws, num_samples, group_by_chain)

    def sample_stats(self) -> dict[str, Tensor]:
        """Of every draw ``(chains, draws)``: ``lp`` (log joint density in the unconstrained space, nats, without the
        sources whose priors have no density), ``acceptance_rate``, ``step_size``, and ``residual`` (relative; NaN for
        observations without a mean)."""
        self._check_run()
        return {name: value[self.chains] for name, value in self._stats.items()}

    def all_draws(self) -> Values:
        """Draws by chain, ``(chains, draws, ...)``, those of chains that were stopped too."""
        self._check_run()
        return dict(self._draws)

    def diagnostics(self) -> dict[str, Any]:
        """Step size, acceptance, divergences and stopped chains; for R-hat and ESS see :func:`pyrosep.summarize`.

        Divergences are numbers of draws by chain, as :class:`pyro.infer.MCMC` has them.
        """
        self._check_run()
        width = len(str(self.num_chains - 1))  # ArviZ sorts them as text
        divergences = {
            f"chain {chain:0{width}d}": sorted({step // self.thinning for step in self.kernel.diverged.get(chain, [])})
            for chain in self.chains
        }
        return self.kernel.diagnostics() | {"divergences": divergences, "stopped": self.stopped}

    def summary(self, prob: float = 0.9) -> None:
        """Print Pyro's table over every sample of audio; :func:`pyrosep.summarize` is meant for audio."""
        print_summary(self.get_samples(group_by_chain=True), prob=prob)
