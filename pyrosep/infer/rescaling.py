"""Joint moves of scalars and sources as a kernel around a kernel, where each holds the other fast."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.kernel import LangevinKernel, LangevinState
from pyrosep.infer.metropolis import acceptance
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner, diagonal_scales
from pyrosep.infer.scales import Scale, find_scales, rescaled
from pyrosep.infer.seeding import seeded
from pyrosep.infer.surrogate import Conditional, ConditionalPreconditioner, Surrogate
from pyrosep.infer.walks import Walk

__all__ = ["ScalarMoves"]

#: Sites of more elements than this are left to the kernel within.
MAX_ELEMENTS = 32
#: How often in warm-up the curvature that scalars walk by is measured.
CURVATURES = 10


class ScalarMoves(LangevinKernel):
    r"""A kernel, and before each of its steps moves of scalars together with the sources.

    Given the sources, a frame of T samples holds gains, pans and noise levels within :math:`1/\sqrt{T}` of where they
    are, and given the scalars a sharp observation holds the sources: neither moves while the other stays. Two moves
    change both, each accepted with the probability that leaves the posterior as it is:

    .. math:: \text{transport:}\quad \theta' = \theta + \delta, \quad
              s' = \mu(\theta') + L(\theta') L(\theta)^{-1} (s - \mu(\theta)), \qquad
              \alpha = 1 \wedge e^{U(\theta, s) - U(\theta', s')}\, |L(\theta')| / |L(\theta)|

    .. math:: \text{rescaling:}\quad g' = c g, \quad s' = s / c, \qquad
              \alpha = 1 \wedge e^{U(g, s) - U(g', s')}\, c^{1 - \dim s}

    (the last in the scalar's own space). In *transport*, :math:`N(\mu(\theta), L L^T(\theta))` is what the sources'
    posterior given :math:`\theta` would be if the priors were Gaussian of their spectra
    (:class:`~pyrosep.infer.surrogate.Surrogate`): of Gaussian priors it is, the ratio is that of the marginal
    posterior :math:`p(\theta | m)`, and the move is one of the scalars alone, with the sources integrated out. It is
    for every scalar of a model whose mix is linear and time-invariant in the sources. *Rescaling* keeps the product and
    so the likelihood, for priors that are far from Gaussian; it is the non-centred step of an interweaving (Yu & Meng,
    2011). Which scalar multiplies which source is found by trying, or told and then checked.

    The step :math:`\delta` is where ``moves`` steps of a random walk end that leaves :math:`q(\theta | m)` as it is,
    the marginal posterior if the priors were Gaussian. For it, :math:`\alpha` has the factor
    :math:`q(\theta | m) / q(\theta' | m)` (delayed acceptance; Christen & Fox, 2005), and is one for Gaussian priors.
    Steps of the walk take their covariance from the curvature of :math:`q` and a scale that each chain adapts in
    warm-up. The steps :math:`\log c` of all scalars are made at once.

    Where transport is possible, a kernel with the preconditioner ``"spectral"`` gets :math:`L(\theta)` of each chain's
    own scalars in its place, and moves the sources alone. Where all priors are Gaussian too, nothing is rescaled unless
    ``scales`` says so.

    A step costs a further gradient, two evaluations of the model without one, another for rescaling, and for each step
    of the walk a run of the model without its densities, two where a silent mix is not silent.

    Arguments:
        kernel: any kernel of :mod:`pyrosep.infer`.
        scales: by site of one element the source that it multiplies, or several; by site of more elements a source for
            each. By default they are found, among sites of up to 32 elements.
        moves: steps of the walk before each step of the kernel.

    Raises:
        ConfigurationError: at the start: the model has nothing that these moves can move, priors without a density, or
            no scalar that does what ``scales`` says.
    """

    def __init__(
        self,
        kernel: LangevinKernel,
        *,
        scales: Mapping[str, str | Sequence[str]] | None = None,
        moves: int = 8,
    ) -> None:
        if not isinstance(kernel, LangevinKernel):
            raise ConfigurationError(f"expected a kernel of pyrosep.infer; got {type(kernel).__name__}")
        if int(moves) != moves or moves < 1:
            raise ConfigurationError(f"moves must be a whole number, at least 1; got {moves!r}")
        super().__init__(kernel.model, preconditioner=kernel.preconditioner_kind)
        self.kernel = kernel
        self.declared = scales
        self.moves = moves
        self.default_init = kernel.default_init
        #: The scalars that are rescaled, found or declared.
        self.scales: list[Scale] = []
        #: The map by which scalars are transported; ``None`` for a model that is not linear in its sources.
        self.surrogate: Surrogate | None = None

    # --- set-up -----------------------------------------------------------------------------------------------

    def start(self, potential: Potential, warmup_steps: int, z: Values) -> None:
        self.potential = potential
        self.warmup_steps = warmup_steps
        self.num_steps = 0
        self._count = potential.num_chains or 1
        self._refresh_at = set()
        if not potential.has_density:
            without = [name for name, prior in potential.priors.items() if not prior.has_density]
            raise ConfigurationError(
                f"expected priors with a density; those of {without} have none, and joint moves are accepted by "
                "differences of energies. Take priors with a density, or known gains"
            )
        self.scalars = [
            name
            for name in z
            if name not in potential.priors and z[name].numel() <= MAX_ELEMENTS * self._count and z[name].numel()
        ]
        with seeded(0), torch.no_grad():  # of measurements, and no draws
            surrogate = Surrogate(potential, self.scalars)
            self.scales = find_scales(potential, self.scalars, self.declared)
        self.surrogate = surrogate if surrogate.reason is None and self.scalars else None
        if self.surrogate is None and not self.scales:
            raise ConfigurationError(
                "expected a model with scalars to move together with its sources; this one has "
                + (
                    f"{self.scalars}, none of which multiplies a source, and {surrogate.reason}"
                    if self.scalars
                    else "none"
                )
            )
        device = next(iter(z.values())).device
        size = sum(z[name].numel() // self._count for name in self.scalars)
        self._transport = Walk(self._count, size, device) if self.surrogate is not None else None
        # Where all priors are Gaussian, transport leaves nothing for rescaling to do.
        idle = self._transport is not None and all(prior.is_gaussian for prior in potential.priors.values())
        rescales = self.scales and not (idle and self.declared is None)
        self._rescaling = Walk(self._count, len(self.scales), device) if rescales else None
        # A kernel that moves the sources alone, by a preconditioner of each chain's own scalars.
        self._conditions = self.preconditioner_kind == "spectral" and self.surrogate is not None
        self.kernel.preconditioner_kind = self._measured if self._conditions else self.preconditioner_kind
        self._scales: Values = {}
        self._conditional: Conditional | None = None
        self.kernel.start(potential, warmup_steps, z)
        self._follow()

    def _measured(self, potential: Potential, z: Values) -> Preconditioner:
        """The preconditioner of the chains' own scalars, with the scales of sites that are neither, measured anew."""
        others = [name for name in z if name not in self.scalars and name not in potential.priors]
        self._scales = diagonal_scales(potential, z, others, 2) if others else {}
        return self._conditioned(z)

    def _conditioned(self, z: Values) -> Preconditioner:
        assert self.surrogate is not None
        return ConditionalPreconditioner(self.surrogate, self._at(z), self._scales)

    def _at(self, z: Values) -> Conditional:
        """The surrogate at the chains' scalars, which is kept for as long as these stay."""
        assert self.surrogate is not None
        if self._conditional is None:
            with torch.no_grad():
                self._conditional = self.surrogate.given(self.potential.constrain(z))
        return self._conditional

    def _follow(self) -> None:
        """Show what the kernel within shows."""
        self.state = self.kernel.state
        self.preconditioner = self.kernel.preconditioner
        self.accept_prob, self.stopped = self.kernel.accept_prob, self.kernel.stopped
        self.divergences, self.diverged = self.kernel.divergences, self.kernel.diverged

    @property
    def step_size(self) -> float:
        return self.kernel.step_size

    @property
    def step_sizes(self) -> Tensor:
        return self.kernel.step_sizes

    @property
    def mean_accept_prob(self) -> Tensor:
        return self.kernel.mean_accept_prob

    def _walks(self) -> dict[str, Walk]:
        pairs = (("transport", self._transport), ("rescaling", self._rescaling))
        return {name: walk for name, walk in pairs if walk is not None}

    def diagnostics(self) -> dict[str, Any]:
        """Those of the kernel within, and the share of joint moves that were accepted, by kind."""
        found = super().diagnostics()
        return found | {f"acceptance of {name}": walk.acceptance for name, walk in self._walks().items()}

    def logging(self) -> OrderedDict[str, str]:
        report = super().logging()
        report.update((name, f"{walk.acceptance:.2f}") for name, walk in self._walks().items())
        return report

    # --- a step -----------------------------------------------------------------------------------------------

    def transition(self, state: LangevinState) -> LangevinState:
        if state is not self.kernel.state:
            self.kernel.state = state
            self._conditional = None
        z = state.z
        alive = torch.tensor([chain not in self.kernel.stopped for chain in range(self._count)])
        with torch.no_grad():
            energy = self._energy(z)
            alive = alive.to(energy.device)
            if self._transport is not None:
                z, energy = self._transported(self._transport, z, energy, alive)
            if self._rescaling is not None:
                z, energy = self._rescaled(self._rescaling, z, energy, alive)
        if self._conditions:
            self.kernel.preconditioner = self._conditioned(z)
        self.kernel.state = self.kernel.evaluate(z)
        self.kernel.sample(self.kernel.state.z)
        if not self._conditions:
            self._conditional = None  # the scalars have moved too
        self._follow()
        return self.kernel.state

    def _energy(self, z: Values) -> Tensor:
        return self.potential(z).reshape(self._count)

    def _accepted(self, walk: Walk, log_ratio: Tensor, alive: Tensor) -> Tensor:
        """Which chains take what a walk has led to; where too few do, it takes smaller steps."""
        accepted, accept_prob = metropolis(torch.where(alive, log_ratio, -math.inf))
        walk.record(accept_prob, adapting=self.warming_up)
        # A walk on the surrogate has an acceptance of its own to go by; it takes smaller steps where that misleads.
        if self.warming_up and (walk is self._rescaling or bool((accept_prob < walk.target).any())):
            limit = accept_prob if walk is self._rescaling else accept_prob.clamp(max=walk.target)
            walk.adapt(limit)
        return accepted

    def _transported(self, walk: Walk, z: Values, energy: Tensor, alive: Tensor) -> tuple[Values, Tensor]:
        assert self.surrogate is not None
        here = self._at(z)
        measured = self.num_steps % max(1, self.warmup_steps // CURVATURES) == 0
        new, log_marginals = walked(
            walk, self.surrogate, z, self.moves, adapting=self.warming_up, measured=self.warming_up and measured
        )
        there = self.surrogate.given(self.potential.constrain(new))
        sources, log_det = self.surrogate.transport(z, here, there)
        new |= sources
        proposed = self._energy(new)
        log_ratio = energy - proposed + log_det + log_marginals[0] - log_marginals[1]
        accepted = self._accepted(walk, log_ratio, alive)
        self._conditional = there.where(accepted, here)
        return mixed(accepted, new, z), torch.where(accepted, proposed, energy)

    def _rescaled(self, walk: Walk, z: Values, energy: Tensor, alive: Tensor) -> tuple[Values, Tensor]:
        values = self.potential.constrain(z)
        step = walk.propose()
        moved, log_volume = rescaled(values, self.scales, step, self._count)
        sites = {one.site for one in self.scales}
        transforms = self.potential.transforms
        new = dict(z)
        for name, value in moved.items():
            if name not in sites:
                new[name] = value  # sources are their own unconstrained values
                continue
            new[name] = transforms[name](value)
            for sign, place, free in ((1, value, new[name]), (-1, values[name], z[name])):
                log_det = transforms[name].log_abs_det_jacobian(place, free)
                log_volume = log_volume + sign * log_det.reshape(self._count, -1).sum(-1)
        proposed = self._energy(new)
        accepted = self._accepted(walk, energy - proposed + log_volume, alive)
        if bool(accepted.any()):
            self._conditional = None
        return mixed(accepted, new, z), torch.where(accepted, proposed, energy)


def mixed(accepted: Tensor, new: Values, old: Values) -> Values:
    """The new values in the chains ``(chains,)`` that accept them, the old ones elsewhere."""

    def choose(one: Tensor, other: Tensor) -> Tensor:
        if one.shape[:1] != accepted.shape or len(accepted) == 1:  # a single chain, which may have no axis
            return one if bool(accepted) else other
        return torch.where(accepted.reshape(-1, *(1,) * (one.ndim - 1)), one, other)

    return {name: value if value is old[name] else choose(value, old[name]) for name, value in new.items()}


def walked(
    walk: Walk, surrogate: Surrogate, z: Values, steps: int, *, adapting: bool, measured: bool
) -> tuple[Values, tuple[Tensor, Tensor]]:
    """Scalars after a walk on the surrogate's marginal density, and the logarithm of that before and after.

    Arguments:
        walk: whose steps are made.
        surrogate: of the model.
        z: unconstrained values by site.
        steps: number of steps.
        adapting: whether the walk adapts its scale.
        measured: whether it takes its covariance from the curvature where it begins.
    """
    sizes = [z[name].numel() // surrogate.count for name in surrogate.scalars]

    def at(place: Tensor) -> tuple[Values, Tensor]:
        parts = zip(surrogate.scalars, place.split(sizes, 1), strict=True)
        there = z | {name: part.reshape(z[name].shape).to(z[name]) for name, part in parts}
        return there, surrogate.log_marginal(surrogate.potential.constrain(there))

    place = torch.cat([z[name].reshape(surrogate.count, -1) for name in surrogate.scalars], 1).double()
    if measured:
        walk.follow(-hessian(lambda place: at(place)[1], place))
    first = last = at(place)[1]
    for _ in range(steps):
        proposed = place + walk.propose()
        found = at(proposed)[1]
        accepted, accept_prob = metropolis(found - last)
        if adapting:
            walk.adapt(accept_prob)
        place = torch.where(accepted.unsqueeze(-1), proposed, place)
        last = torch.where(accepted, found, last)
    return at(place)[0], (first, last)


def metropolis(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Which proposals are accepted, and with what probability; never where the ratio is not finite."""
    accept_prob = acceptance(log_ratio, torch.isfinite(log_ratio))
    return torch.rand_like(accept_prob) < accept_prob, accept_prob


def hessian(function: Callable[[Tensor], Tensor], place: Tensor) -> Tensor:
    """Second derivatives of a function of ``(chains, size)`` whose chains don't meet: ``(chains, size, size)``."""
    with torch.enable_grad():
        leaf = place.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
        rows = [torch.autograd.grad(slope[:, i].sum(), leaf, retain_graph=True)[0] for i in range(place.shape[1])]
    return torch.stack(rows, 1)
