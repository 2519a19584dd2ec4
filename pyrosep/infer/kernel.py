"""What the Langevin kernels share: state, set-up, and the protocol of Pyro's kernels."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions.transforms import Transform

from pyrosep.errors import ConfigurationError, DivergenceError, InitializationError
from pyrosep.infer.initial import Initial, initial_values
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner, make_preconditioner

__all__ = ["LangevinKernel", "LangevinState"]

#: A chain whose energy is this many nats a dimension above its start is diverging: a stationary chain of any
#: log-density stays within about half a nat a dimension of its mode.
DIVERGENCE_NATS = 100.0


@dataclass(frozen=True)
class LangevinState:
    """Where the chains are, and what is known there."""

    z: Values
    energy: Tensor
    white_gradient: Values
    #: Relative residual of the observations there, if they have a mean.
    residual: Tensor | None = None

    def is_finite(self) -> Tensor:
        """Whether energy and gradient are finite, chain by chain."""
        finite = torch.isfinite(self.energy)
        for value in self.white_gradient.values():
            # A sum is finite only if every term is, and far cheaper to look at.
            finite = finite & torch.isfinite(value.reshape(*finite.shape, -1).sum(-1))
        return finite

    def where(self, mask: Tensor, other: Self) -> LangevinState:
        """This state in the chains where ``mask`` is true, the other elsewhere."""

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask.reshape(mask.shape + (1,) * (mine.ndim - mask.ndim)), mine, theirs)

        return LangevinState(
            {name: choose(self.z[name], other.z[name]) for name in self.z},
            choose(self.energy, other.energy),
            {name: choose(value, other.white_gradient[name]) for name, value in self.white_gradient.items()},
            None if self.residual is None or other.residual is None else choose(self.residual, other.residual),
        )


class LangevinKernel(MCMCKernel):
    """Base of the Langevin kernels.

    A kernel runs under stock :class:`pyro.infer.MCMC` (one chain, ``setup`` and ``sample``) and, for many chains in
    one batch, under :class:`~pyrosep.infer.LangevinMCMC` (``start`` and ``sample``). A new one implements
    :meth:`transition`, and is then tested like all others.

    Arguments:
        model: a Pyro model.
        preconditioner: ``"spectral"`` (default), ``"prior"``, ``None``, or a function of a
            :class:`~pyrosep.infer.Potential` and unconstrained values; see
            :class:`~pyrosep.infer.SpectralPreconditioner`.
    """

    #: Where chains start, unless someone says.
    default_init: Initial = "prior"

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        preconditioner: str | Callable[[Potential, Values], Preconditioner] | None = "spectral",
    ) -> None:
        self.model = model
        self.preconditioner_kind = preconditioner
        self.save_params: list[str]
        self.potential: Potential
        self.state: LangevinState
        self._given: Values | None = None
        self._refresh_at: set[int] = set()
        super().__init__()

    # --- Pyro's protocol --------------------------------------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Prepare for one chain on the model called with ``args`` and ``kwargs``."""
        potential = Potential(self.model, args, kwargs)
        given, self._given = self._given, None  # a later chain of the same kernel must not start from it
        self.start(potential, warmup_steps, initial_values(potential, self.default_init) if given is None else given)
        if hasattr(self, "save_params"):
            self.save_params = sorted(self.save_params)  # stock MCMC reads them back in sorted order

    @property
    def initial_params(self) -> Values:
        return self.state.z

    @initial_params.setter
    def initial_params(self, params: Values) -> None:
        self._given = params

    @property
    def transforms(self) -> dict[str, Transform] | None:
        return self.potential.transforms if hasattr(self, "potential") else None

    def sample(self, params: Values) -> Values:
        """One step from unconstrained ``params``."""
        if params is not self.state.z:
            self.state = self.evaluate(params)
        if self.num_steps in self._refresh_at:
            self._refresh_preconditioner()
        self.state = self.transition(self.state)
        self.num_steps += 1
        return self.state.z

    def logging(self) -> OrderedDict[str, str]:
        report = OrderedDict([("step", f"{self.step_size:.2e}"), ("acc", f"{float(self.mean_accept_prob):.2f}")])
        residual = self.state.residual
        if residual is not None:
            report["residual"] = f"{20 * torch.log10(residual).median().item():.1f} dB"
        return report

    def diagnostics(self) -> dict[str, Any]:
        if not hasattr(self, "state"):
            raise ConfigurationError("expected a kernel that has run; call run(...) of its MCMC first")
        return {
            "acceptance rate": float(self.mean_accept_prob),
            "step size": self.step_size,
            "divergences": list(self.divergences),
        }

    # --- set-up -----------------------------------------------------------------------------------------------

    def start(self, potential: Potential, warmup_steps: int, z: Values) -> None:
        """Prepare for the chains of ``potential``, from unconstrained values ``z``.

        Raises:
            InitializationError: energy or gradient is not finite there; names the chains and sites at fault.
        """
        self.potential = potential
        self.warmup_steps = warmup_steps
        self._refresh_at = set()
        self.num_steps = 0
        self.divergences: list[int] = []
        #: The same by chain.
        self.diverged: dict[int, list[int]] = {}
        self.preconditioner: Preconditioner = make_preconditioner(None, potential, z)
        self.state = self.evaluate(z)
        check_start(potential, self.state)
        self._refresh_preconditioner()
        # The curvature at the start may be far from what it is where the chains go.
        if self.preconditioner_kind is not None and warmup_steps >= 40:
            self._refresh_at = {warmup_steps // 6, warmup_steps // 3}
        size = sum(value.numel() for value in z.values()) / max(1, self.state.energy.numel())
        self._ceiling = self.state.energy + DIVERGENCE_NATS * size
        #: Chains that have been stopped, and why, by number.
        self.stopped: dict[int, str] = {}
        self._alive = torch.ones_like(self.state.energy, dtype=torch.bool)
        #: Probability with which the last step was accepted, chain by chain (1 for kernels that always accept).
        self.accept_prob = torch.ones_like(self.state.energy)
        self._accept_sum = torch.zeros_like(self.state.energy)
        self._accept_count = 0

    def evaluate(self, z: Values) -> LangevinState:
        """Energy and whitened gradient at ``z``."""
        energy, gradient = self.potential.value_and_grad(z)
        return LangevinState(z, energy, self.preconditioner.whiten_gradient(gradient), self.potential.residual())

    # --- for the kernels --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def step_size(self) -> float:
        """Size of the next step, the mean over the chains."""

    @property
    def step_sizes(self) -> Tensor:
        """Size of the next step, chain by chain."""
        return torch.full_like(self.state.energy, self.step_size)

    @abstractmethod
    def transition(self, state: LangevinState) -> LangevinState:
        """One step of the chains."""

    @property
    def warming_up(self) -> bool:
        return self.num_steps < self.warmup_steps

    @property
    def mean_accept_prob(self) -> Tensor:
        """Mean acceptance probability over the chains and the steps since warm-up (or of the last one before)."""
        if not self._accept_count:
            return self.accept_prob.mean()
        return self._accept_sum.mean() / self._accept_count

    def _refresh_preconditioner(self) -> None:
        """Make the preconditioner anew, from the curvature where the chains are."""
        if self.preconditioner_kind is None:
            return  # white is what it is from the start
        self.preconditioner = make_preconditioner(self.preconditioner_kind, self.potential, self.state.z)
        self.state = self.evaluate(self.state.z)

    def _record_acceptance(self, accept_prob: Tensor) -> None:
        self.accept_prob = accept_prob
        if not self.warming_up:
            self._accept_sum += accept_prob
            self._accept_count += 1

    def _record_divergences(self, finite: Tensor) -> None:
        """Take note of the chains whose proposal is not finite, in steps after warm-up."""
        if self.warming_up or bool(finite.all()):
            return
        self.divergences.append(self.num_steps - self.warmup_steps)
        for chain in torch.nonzero(~finite.reshape(-1)).flatten().tolist():
            self.diverged.setdefault(chain, []).append(self.divergences[-1])

    def _moved(self, state: LangevinState, white: Values) -> LangevinState:
        """The state after a displacement in white coordinates."""
        displacement = self.preconditioner.color(white)
        return self.evaluate({name: value + displacement[name] for name, value in state.z.items()})

    def _stop_diverged(self, state: LangevinState, proposed: LangevinState) -> LangevinState:
        """Stop chains whose proposal is not finite or has run away: they stay where they were for good."""
        finite = proposed.is_finite()
        fine = finite & (proposed.energy < self._ceiling)
        if bool(fine.all()):
            return proposed if not self.stopped else proposed.where(self._alive, state)
        for chain in torch.nonzero(~fine.reshape(-1) & self._alive.reshape(-1)).flatten().tolist():
            reason = "its energy ran away" if finite.reshape(-1)[chain] else "its energy or gradient is not finite"
            self.stopped[chain] = f"stopped at step {self.num_steps}: {reason} at step size {self.step_size:.3g}"
        self._alive &= fine
        if not bool(self._alive.any()):
            raise DivergenceError(
                f"{'the chain has' if self._alive.numel() == 1 else 'every chain has'} diverged by step "
                f"{self.num_steps} ({self.stopped[min(self.stopped)]}); take a smaller step size, or the spectral "
                "preconditioner"
            )
        return proposed.where(self._alive, state)


def check_start(potential: Potential, state: LangevinState) -> None:
    """Raise InitializationError where a starting state has no finite energy or gradient."""
    bad = ~state.is_finite()
    if not bool(bad.any()):
        return
    sites = [
        repr(name)
        for name, log_prob in potential.log_prob_by_site(state.z).items()
        if not bool(torch.isfinite(log_prob).all())
    ]
    sites += [
        f"{name!r} (its gradient)"
        for name, value in state.white_gradient.items()
        if not bool(torch.isfinite(value).all())
    ]
    chains = torch.nonzero(bad.reshape(-1)).flatten().tolist()
    raise InitializationError(
        f"no finite energy and gradient to start from in chains {chains}: look at the sites {', '.join(sites)}. "
        "Check the data for NaN and infinity, or start from other values"
    )


def sum_of_squares(values: Values, batch_ndim: int) -> Tensor:
    """Squared norm over all sites, chain by chain, in double precision: ``(chains,)`` or a scalar."""
    return inner_product(values, values, batch_ndim)


def inner_product(one: Values, other: Values, batch_ndim: int) -> Tensor:
    """Inner product over all sites, chain by chain, in double precision: ``(chains,)`` or a scalar."""
    parts = [(one[name] * other[name]).reshape(*value.shape[:batch_ndim], -1).sum(-1) for name, value in one.items()]
    return torch.stack([part.double() for part in parts]).sum(0)


def white_noise(like: Values) -> Values:
    """Independent standard normal values of the same shapes."""
    return {name: torch.randn_like(value) for name, value in like.items()}


def per_chain(factor: Tensor, value: Tensor) -> Tensor:
    """A value times a factor for each chain, in the value's own precision."""
    return factor.to(value.dtype).reshape(factor.shape + (1,) * (value.ndim - factor.ndim)) * value


def plus_scaled(value: Tensor, factor: Tensor, other: Tensor) -> Tensor:
    """A value plus a factor for each chain times another value, in one pass over both."""
    shaped = factor.to(value.dtype).reshape(factor.shape + (1,) * (value.ndim - factor.ndim))
    return torch.addcmul(value, shaped, other)
