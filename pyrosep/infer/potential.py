"""The potential energy of a Pyro model, for one chain or for many chains in one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyrosep.errors import ConfigurationError, LeakError, ShapeError
from pyrosep.mixing import plate_nesting
from pyrosep.priors import SourcePrior
from pyrosep.priors.base import rms

__all__ = ["Potential", "Values", "source_prior"]

Values = dict[str, Tensor]

_ADVICE = (
    "Write the model for tensors with leading batch axes: count axes from the end (mean(-2), not mean(0)), declare "
    "an observation's axes with .to_event(n), and write gain[..., None] where a scalar site meets (..., time)"
)


def source_prior(fn: Any) -> SourcePrior | None:
    """The source prior inside a site's distribution, under any ``Independent`` or mask; ``None`` if there is none."""
    while fn is not None and not isinstance(fn, SourcePrior):
        fn = getattr(fn, "base_dist", None)
    return fn


@dataclass(frozen=True)
class _Latent:
    to_unconstrained: Transform
    identity: bool


class _StandIns(Messenger):
    """Outside of all plates: sources that take long to draw are noise where nobody asks for a draw."""

    used = False

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        prior = source_prior(msg["fn"])
        if prior is None or prior.quick_draws or msg["value"] is not None or msg["done"]:
            return
        self.used = True
        shape = msg["fn"].batch_shape + msg["fn"].event_shape
        msg["value"] = rms(prior) * torch.randn(shape, dtype=prior.sigma.dtype, device=prior.sigma.device)


class Potential:
    r"""The potential energy :math:`U(z) = -\log p(z, \mathrm{observed})` of a model, in nats.

    ``z`` are the latent sites' values in the unconstrained space, the change of volume included, as in
    :func:`pyro.infer.mcmc.util.initialize_model`.

    With ``num_chains``, the model runs once for all chains, inside an outer plate: every latent has the chains as
    its leading axis, and so has ``U``, ``(chains,)``. That is right only for a model in which the chains don't meet;
    :meth:`check_independence` finds out.

    Arguments:
        model: a Pyro model with continuous latent sites.
        args, kwargs: what it is called with, the observed mix among them.
        num_chains: chains in a batch, or ``None`` for a single chain without a chain axis.

    Raises:
        ConfigurationError: a discrete latent, a subsampled plate, or no latent site at all.
        ShapeError: the model runs for one chain, but not for a batch of them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        num_chains: int | None = None,
    ) -> None:
        if num_chains is not None and num_chains < 1:
            raise ConfigurationError(f"expected at least one chain; got {num_chains}")
        self.model = model
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.num_chains = num_chains
        #: Leading axes that count chains: 1 with a batch of chains, else 0.
        self.batch_ndim = 0 if num_chains is None else 1
        #: Evaluations of the model with a gradient so far.
        self.num_gradients = 0
        self._seen: list[tuple[Tensor, Tensor]] = []

        with torch.no_grad(), _StandIns() as stand_ins:
            single = poutine.trace(model).get_trace(*args, **self.kwargs)
            self._chain_dim = -1 - plate_nesting(single)
            prototype = single
            if num_chains is not None:
                try:
                    prototype = self.run()
                    self._log_joint(prototype)
                except (RuntimeError, ValueError, IndexError) as error:
                    raise ShapeError(
                        f"the model runs for one chain, but not for {num_chains} in a batch: {error}. {_ADVICE}"
                    ) from error

        self._latents: dict[str, _Latent] = {}
        #: The sites that are sources, in the model's order, with their priors.
        self.priors: dict[str, SourcePrior] = {}
        #: The observed sites' values.
        self.observed: Values = {}
        for name, site in single.nodes.items():
            if site["type"] != "sample":
                continue
            if isinstance(site["fn"], _Subsample):
                _refuse_subsampling(name, site["fn"])
            elif not site["is_observed"]:
                self._latents[name] = _latent(name, prototype.nodes[name]["fn"])
                if prior := source_prior(site["fn"]):
                    self.priors[name] = prior
            elif site["value"].numel():
                self.observed[name] = site["value"].detach()
        if not self._latents:
            raise ConfigurationError("the model has no latent site to sample; is every site observed?")
        #: Values of the latent sites' shapes, in the constrained space, for every chain: a draw of each from its prior,
        #: but for sources that take long to draw, which are noise as loud as they are.
        self.placeholder: Values = {name: prototype.nodes[name]["value"].detach() for name in self._latents}
        self._prior_draw = None if stand_ins.used else self.placeholder

    @property
    def prior_draw(self) -> Values:
        """One draw of the latent sites from the prior, in the constrained space, for every chain; always the same."""
        if self._prior_draw is None:
            with torch.no_grad():
                drawn = self.run()
            self._prior_draw = {name: drawn.nodes[name]["value"].detach() for name in self._latents}
        return self._prior_draw

    @property
    def transforms(self) -> dict[str, Transform]:
        """From the constrained to the unconstrained space, for every latent site (as Pyro's kernels have them)."""
        return {name: latent.to_unconstrained for name, latent in self._latents.items()}

    @property
    def has_density(self) -> bool:
        """Whether ``U`` is an energy; else, for a prior whose ``log_prob`` is no density, it only has the gradient."""
        return all(prior.has_density for prior in self.priors.values())

    # --- running the model ------------------------------------------------------------------------------------

    def chains(self) -> contextlib.AbstractContextManager[Any]:
        """The outer plate over the chains, if there are any."""
        if self.num_chains is None:
            return contextlib.nullcontext()
        return pyro.plate("_pyrosep_chains", self.num_chains, dim=self._chain_dim)

    def run(self, values: Values | None = None) -> poutine.Trace:
        """One run of the model at given constrained values, else with latents drawn from the prior."""
        model = self.model if values is None else poutine.condition(self.model, values)
        with pyro.validation_enabled(False), poutine.trace() as tracer, self.chains():
            model(*self.args, **self.kwargs)
        return tracer.trace

    def _log_probs(self, trace: poutine.Trace, without: Collection[str] = ()) -> dict[str, Tensor]:
        with pyro.validation_enabled(False):  # a proposal out of bounds is the kernel's to reject
            trace.compute_log_prob(lambda name, site: name not in without)
        return {
            name: self._per_chain(name, site["log_prob"])
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and name not in without and not isinstance(site["fn"], _Subsample)
        }

    def _log_joint(self, trace: poutine.Trace, without: Collection[str] = ()) -> Tensor:
        # Energies of large frames are large: in single precision their sum would lose tenths of a nat.
        return torch.stack([value.double() for value in self._log_probs(trace, without).values()]).sum(0)

    def _per_chain(self, name: str, log_prob: Tensor) -> Tensor:
        if self.num_chains is None:
            return log_prob.sum()
        if log_prob.ndim != -self._chain_dim or log_prob.shape[0] != self.num_chains:
            raise ShapeError(
                f"site {name!r} has a log-probability of shape {tuple(log_prob.shape)}; expected {self.num_chains} "
                f"chains on the first of {-self._chain_dim} axes. {_ADVICE}"
            )
        return log_prob.reshape(self.num_chains, -1).sum(-1)

    def __call__(self, z: Values, without: Collection[str] = ()) -> Tensor:
        """``U`` in nats, but for the sites ``without``: ``(chains,)``, or a scalar without chains."""
        values, log_volume = self._constrain(z)
        trace = self.run(values)
        energy = -self._log_joint(trace, without) + log_volume
        # What the observations were expected to be, without the graph that it came by.
        self._seen = []
        for name in self.observed:
            with contextlib.suppress(AttributeError, NotImplementedError):  # which have no mean
                self._seen.append((trace.nodes[name]["fn"].mean.detach(), trace.nodes[name]["value"].detach()))
        return energy

    def value_and_grad(self, z: Values) -> tuple[Tensor, Values]:
        r"""``U`` and :math:`\nabla_z U`, one pass forward and one back."""
        leaves = {name: value.detach().requires_grad_() for name, value in z.items()}
        self.num_gradients += 1
        with torch.enable_grad():
            energy = self(leaves)
            gradients = torch.autograd.grad(energy.sum(), list(leaves.values()))
        return energy.detach(), dict(zip(leaves, gradients, strict=True))

    # --- the unconstrained space ------------------------------------------------------------------------------

    def _constrain(self, z: Values) -> tuple[Values, Tensor | float]:
        """Constrained values, and the log-volume to add to ``U``."""
        values: Values = {}
        log_volume: Tensor | float = 0.0
        for name, unconstrained in z.items():
            latent = self._latents[name]
            if latent.identity:
                values[name] = unconstrained
            else:
                values[name] = latent.to_unconstrained.inv(unconstrained)
                log_det = latent.to_unconstrained.log_abs_det_jacobian(values[name], unconstrained)
                log_volume = log_volume + log_det.reshape(*unconstrained.shape[: self.batch_ndim], -1).sum(-1)
        return values, log_volume

    def constrain(self, z: Values) -> Values:
        """Values in the model's own space, of unconstrained ones."""
        return {name: self._latents[name].to_unconstrained.inv(value) for name, value in z.items()}

    def unconstrain(self, values: Values) -> Values:
        """Unconstrained values, of values in the model's own space."""
        return {name: self._latents[name].to_unconstrained(values[name]) for name in self._latents}

    # --- what can be said of a state --------------------------------------------------------------------------

    def residual(self) -> Tensor | None:
        """Relative residual of the observations at the last evaluation, ``(chains,)`` or a scalar.

        The root mean square of observed minus expected over that of the observed; ``None`` for a model whose
        observations have no mean.
        """
        error: Tensor | float = 0.0
        power: Tensor | float = 0.0
        for mean, value in self._seen:
            shape = mean.shape[: self.batch_ndim]
            error = error + (value - mean).square().reshape(*shape, -1).mean(-1)
            power = power + value.expand(mean.shape).square().reshape(*shape, -1).mean(-1)
        return (error / power).sqrt() if isinstance(error, Tensor) and isinstance(power, Tensor) else None

    def log_prob_by_site(self, z: Values) -> dict[str, Tensor]:
        """The log-probability of every site by itself, each ``(chains,)`` or a scalar."""
        with torch.no_grad():
            trace = self.run(self._constrain(z)[0])
            return self._log_probs(trace)

    def check_independence(self, z: Values) -> None:
        r"""Make sure that :math:`\partial U_i / \partial z_j = 0` for chains :math:`i \ne j`.

        The chains are put into two halves at random, and the energy of either half is differentiated: the gradient in
        the other half's values must be zero, exactly. Costs one pass forward and two back.

        Raises:
            LeakError: it isn't so; names the sites through which one chain reaches another.
        """
        if self.num_chains is None or self.num_chains < 2:
            return
        half = torch.randperm(self.num_chains) < self.num_chains // 2
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in z.items()}
            energy = self(leaves)
            leaks = set()
            for inside in (half, ~half):
                inside = inside.to(energy.device)
                gradients = torch.autograd.grad(energy[inside].sum(), list(leaves.values()), retain_graph=True)
                leaks |= {
                    name
                    for name, gradient in zip(leaves, gradients, strict=True)
                    if bool(gradient[~inside.to(gradient.device)].nan_to_num(0.0).any())
                }
        if leaks:
            names = ", ".join(repr(name) for name in z if name in leaks)
            raise LeakError(
                f"the chains of this model are not independent: the energy of one changes with another's value of "
                f"{names}. Some operation reduces over the leading axis, which holds the chains. {_ADVICE}"
            )


def _refuse_subsampling(name: str, fn: _Subsample) -> None:
    if fn.subsample_size is not None and fn.subsample_size < fn.size:
        raise ConfigurationError(
            f"plate {name!r} takes a subsample of {fn.subsample_size} of {fn.size}; chains need the whole plate: "
            "call the model with all of its data"
        )


def _latent(name: str, fn: Any) -> _Latent:
    if fn.has_enumerate_support or fn.support.is_discrete:
        raise ConfigurationError(
            f"latent site {name!r} is discrete; Langevin kernels move continuous sites only: observe it, or sum it out"
        )
    to_unconstrained = biject_to(fn.support).inv
    probe = torch.full((1, *fn.event_shape), 0.5)
    try:
        identity = to_unconstrained(probe) is probe
    except (RuntimeError, ValueError):
        identity = False
    return _Latent(to_unconstrained, identity)
