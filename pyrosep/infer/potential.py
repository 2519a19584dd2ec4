"""The potential energy of a Pyro model, for one chain or for many chains in one batch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyrosep.errors import ConfigurationError, LeakError, ShapeError
from pyrosep.infer.batching import ADVICE, ChainAxis, Seen, StandIns, check_observations, relative_residual
from pyrosep.infer.stacking import SourceRows
from pyrosep.priors import SourcePrior, scores_suffice
from pyrosep.reading import Reading, kept_of, role_of, source_prior

__all__ = ["Potential", "Values"]

Values = dict[str, Tensor]


@dataclass(frozen=True)
class _Latent:
    to_unconstrained: Transform
    identity: bool


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
        self._seen: list[Seen] = []

        with torch.no_grad(), StandIns() as stand_ins:
            single = poutine.trace(model).get_trace(*args, **self.kwargs)
            check_observations(single)
            #: What the model is made of.
            self.reading = Reading.of(single)
            self._axis = ChainAxis(num_chains, self.reading)
            prototype = single if num_chains is None else self._first_run()
        for name, site in self.reading.subsamples.items():
            _refuse_subsampling(name, site.fn)
        self._latents = {name: _latent(name, prototype.nodes[name]["fn"]) for name in self.reading.latent}
        #: The sites that are sources, in the model's order, with their priors.
        self.priors: dict[str, SourcePrior] = self.reading.priors
        #: The observed sites' values.
        self.observed: Values = {name: site.value.detach() for name, site in self.reading.data.items()}
        if not self._latents:
            raise ConfigurationError("the model has no latent site to sample; is every site observed?")
        #: Values of the latent sites' shapes, in the constrained space, for every chain: a draw of each from its prior,
        #: but for sources that take long to draw, which are noise as loud as they are.
        self.placeholder: Values = {name: prototype.nodes[name]["value"].detach() for name in self._latents}
        self._prior_draw = None if stand_ins.used else self.placeholder
        #: The sources one below the other.
        self.rows = SourceRows(self.reading, self.batch_ndim)

    def _first_run(self) -> poutine.Trace:
        """A run for all chains, which finds where their axis is."""
        try:
            prototype = self.run()
            self._log_joint(prototype)
            return prototype
        except (RuntimeError, ValueError, IndexError) as error:
            if self._axis.nesting:
                # The model may forget a plate's axis outside of it.
                outside, self._axis = self._axis, ChainAxis(self.num_chains, self.reading, beside=True)
                with contextlib.suppress(RuntimeError, ValueError, IndexError):
                    prototype = self.run()
                    self._log_joint(prototype)
                    return prototype
                self._axis = outside
            raise ShapeError(
                f"the model runs for one chain, but not for {self.num_chains} in a batch: {error}"
                f"{'' if ADVICE in str(error) else f'. {self._axis.advice}'}"
            ) from error

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
        """In which a model or guide runs once for all chains, if there are any."""
        return self._axis.context()

    def run(self, values: Values | None = None) -> poutine.Trace:
        """One run of the model at given constrained values, else with latents drawn from the prior."""
        model = self.model if values is None else poutine.condition(self.model, values)
        with pyro.validation_enabled(False), poutine.trace() as tracer, self.chains():
            model(*self.args, **self.kwargs)
        return tracer.trace

    def log_probs(self, trace: poutine.Trace, without: Collection[str] = ()) -> dict[str, Tensor]:
        """The log-density of every site of a run but those ``without``, in nats: each ``(chains,)``, or a scalar."""
        counted = [
            name
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and name not in without and role_of(node) not in ("subsample", "deterministic")
        ]
        # A proposal out of bounds is the kernel's to reject.
        with pyro.validation_enabled(False), scores_suffice():
            trace.compute_log_prob(lambda name, site: name in counted)
        return {name: self._axis.per_chain(name, trace.nodes[name]["log_prob"]) for name in counted}

    def _log_joint(self, trace: poutine.Trace, without: Collection[str] = ()) -> Tensor:
        # Energies of large frames are large: in single precision their sum would lose tenths of a nat.
        parts = [value.double() for value in self.log_probs(trace, without).values()]
        return torch.stack(parts).sum(0) if parts else self._nothing()

    def _nothing(self) -> Tensor:
        """The log-density of no site: zero, ``(chains,)`` or a scalar."""
        device = next(iter(self.placeholder.values())).device
        return torch.zeros(() if self.num_chains is None else (self.num_chains,), dtype=torch.float64, device=device)

    def __call__(self, z: Values, without: Collection[str] = ()) -> Tensor:
        """``U`` in nats, but for the sites ``without``: ``(chains,)``, or a scalar without chains."""
        values, log_volume = self._constrain(z)
        trace = self.run(values)
        energy = -self._log_joint(trace, without) + log_volume
        # What the observations were expected to be, without the graph that it came by.
        self._seen = []
        for name in self.observed:
            node = trace.nodes[name]
            if source_prior(node["fn"]) is not None:
                continue  # a source that is given
            with contextlib.suppress(AttributeError, NotImplementedError):  # which have no mean
                self._seen.append((node["fn"].mean.detach(), node["value"].detach(), kept_of(node)))
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
        return relative_residual(self._seen, self.batch_ndim)

    def log_prob_by_site(self, z: Values) -> dict[str, Tensor]:
        """The log-probability of every site by itself, each ``(chains,)`` or a scalar."""
        with torch.no_grad():
            trace = self.run(self._constrain(z)[0])
            return self.log_probs(trace)

    @functools.cached_property
    def source_terms(self) -> list[str]:
        """The sites whose log-density changes with the sources, besides the sources themselves."""
        with torch.enable_grad():
            leaves = {name: self.placeholder[name].clone().requires_grad_() for name in self.priors}
            terms = self.log_probs(self.run(self.placeholder | leaves), without=list(leaves))
            return [
                name
                for name, value in terms.items()
                if value.requires_grad
                and any(
                    gradient is not None
                    for gradient in torch.autograd.grad(
                        value.sum(), list(leaves.values()), retain_graph=True, allow_unused=True
                    )
                )
            ]

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
                f"{names}. Some operation reduces over the leading axis, which holds the chains. {self._axis.advice}"
            )


def _refuse_subsampling(name: str, fn: Any) -> None:
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
