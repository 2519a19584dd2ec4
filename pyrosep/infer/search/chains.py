"""What the chains of a search are, whatever moves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.response import base_distribution, has_location
from pyrosep.infer.search.ladder import noise_ladder
from pyrosep.infer.search.widening import noise_variance
from pyrosep.priors import SourcePrior
from pyrosep.reading import kept_of

__all__ = ["Moves", "SearchedChains", "check_count"]

#: A chain is settled when its residual has at most this multiple of the power that noise alone would leave.
SETTLED = 1.5


class SearchedChains(ABC):
    """The chains of a search: all unconstrained values, and what moves some of the chains.

    Arguments:
        potential: of the model.
        z: where the chains start, unconstrained.
        ladder: falling noise levels.
    """

    def __init__(self, potential: Potential, z: Values, ladder: Sequence[float]) -> None:
        self.potential = potential
        self.z = dict(z)
        self.ladder = tuple(ladder)
        self.names = list(potential.priors)
        #: The sources, each by itself.
        self.rows = potential.rows
        self.num_chains = potential.num_chains or 1
        #: Evaluations or draws of one source's prior so far, chain by chain.
        self.calls = torch.zeros(self.num_chains, dtype=torch.int64)

    @abstractmethod
    def descend(self, chains: Tensor, ladder: Sequence[float], blocks: Tensor | None, *, anew: bool = True) -> None:
        """Take sources of ``chains`` down a ladder, given the rest: those in ``blocks`` ``(n, size)``, or all.

        ``anew`` forgets where they were; else they start from there, as far as the top of the ladder leaves anything.
        """

    def begin(self, chains: Tensor, ladder: Sequence[float]) -> None:
        """The first descent of ``chains`` whose start is no guide's."""
        self.descend(chains, ladder, None, anew=False)

    def places(self, levels: Tensor) -> Tensor:
        """Where chains whose start is off by ``levels`` come into the ladder, ``(chains,)`` each.

        At the lowest level that is not below their own, for noise of that level hides what is wrong with their start.
        """
        above = torch.tensor(self.ladder, dtype=torch.float64) >= levels.cpu().double().unsqueeze(-1)
        return (above.sum(-1) - 1).clamp(min=0)

    def exchange(self, chains: Tensor, pairs: Tensor) -> None:
        """Let two sources of each chain, ``pairs`` ``(n, 2)``, take over what the other one explained."""
        raise NotImplementedError

    #: Whether :meth:`exchange` is there.
    exchanges = False
    #: Whether :meth:`descend` can take some sources of a chain down, given the rest.
    blocks = True

    def energy(self) -> Tensor:
        """Of the observations given all else, in nats: ``(chains,)``. Needs no prior."""
        return self._per_chain(self.potential(self.z, without=list(self.z)))

    def residual(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean square of what is left of the observations, of the observations, and of their noise: ``(chains,)``."""
        left, power, noise, kept = [], [], [], []
        trace = self.potential.run(self.potential.constrain(self.z))
        for name, value in self.potential.observed.items():
            fn, heard = trace.nodes[name]["fn"], kept_of(trace.nodes[name])
            if not has_location(fn):
                continue
            base = base_distribution(fn)
            shape = base.loc.shape
            left.append(self._per_chain(value - base.loc).square())
            power.append(self._per_chain(value.expand(shape)).square())
            noise.append(self._per_chain(noise_variance(base).expand(shape)))
            heard = torch.ones((), dtype=torch.bool, device=value.device) if heard is None else heard
            kept.append(self._per_chain(heard.expand(shape)))
        if not left:
            raise ConfigurationError(
                "a search needs an observation with a mean and a scale (Normal, StudentT, Laplace)"
            )
        counted = torch.cat(kept, -1)
        if bool(counted.all()):
            return tuple(torch.cat(part, -1).mean(-1) for part in (left, power, noise))  # type: ignore[return-value]
        weight = counted / counted.sum(-1, keepdim=True).clamp(min=1)
        return tuple(  # type: ignore[return-value]
            (torch.cat(part, -1) * weight).where(counted, 0.0).sum(-1) for part in (left, power, noise)
        )

    def unsettled(self) -> Tensor:
        """Chains whose residual is more than what noise would leave: their numbers."""
        left, _, noise = self.residual()
        return torch.nonzero(left > SETTLED * (noise + self._own_noise())).flatten()

    @abstractmethod
    def _own_noise(self) -> Tensor:
        """Variance that the sources' own noise, at their priors' level, has in the mix: ``(chains,)``."""

    def order(self, chains: Tensor) -> Tensor:
        """The sources of ``chains`` in an order in which they are to be redrawn, ``(n, source)``: random."""
        return torch.rand(len(chains), len(self.rows), device=chains.device).argsort(-1)

    def attempt(self, tolerance: float, move: Callable[[], None]) -> None:
        r"""Make a move, and take it back where it raises the energy by more than chance forgives.

        It is kept with probability :math:`e^{-\Delta E / t}`, with the temperature t for which a residual of
        ``tolerance`` times the mix's rms is one noise's standard deviation.
        """
        _, power, noise = self.residual()
        before, energy = dict(self.z), self.energy()
        move()
        after = self.energy()
        temperature = max(tolerance, 1e-9) ** 2 * power / noise
        chance = ((energy - after) / temperature).clamp(max=0).exp()
        self.take_back(before, ~(torch.rand_like(after) < chance) | ~after.isfinite())

    def refine(self, move: Callable[[], None]) -> Tensor:
        """Make a move that is to refine a start; take it back where it leaves more unexplained than there was.

        Chains whose residual is down to the noise keep it in any case. Returns those where it was taken back, a mask.
        """
        before, was = dict(self.z), self.residual()[0]
        try:
            move()
        except DivergenceError:
            self.z = before
            return torch.ones_like(was, dtype=torch.bool)
        left, _, noise = self.residual()
        refused = (left > was) & (left > SETTLED * (noise + self._own_noise())) | ~left.isfinite()
        self.take_back(before, refused)
        return refused

    def take_back(self, before: Values, chains: Tensor) -> None:
        """Put chains, by a mask ``(chains,)``, back to where they were."""
        for name, value in self.z.items():
            mask = chains.reshape((-1,) + (1,) * (value.ndim - 1)) if self.potential.batch_ndim else chains
            self.z[name] = torch.where(mask, before[name], value)

    def _finite(self) -> Tensor:
        """Chains all of whose values are finite, a mask ``(chains,)``."""
        return torch.stack([self._per_chain(value).isfinite().flatten(1).all(-1) for value in self.z.values()]).all(0)

    def _sources(self, chains: Tensor) -> Tensor:
        """The sources of ``chains``, ``(n, source, time)``."""
        return self.rows.stacked(self.z).reshape(self.num_chains, len(self.rows), -1)[chains]

    def _put(self, chains: Tensor, sources: Tensor) -> None:
        """Give the sources of ``chains`` these values, ``(n, source, time)``."""
        stacked = self.rows.stacked(self.z)
        flat = stacked.reshape(self.num_chains, len(self.rows), -1).clone()
        flat[chains] = sources
        self.z |= self.rows.split(flat.reshape(stacked.shape), self.z)

    def _per_chain(self, value: Tensor) -> Tensor:
        if self.potential.batch_ndim:
            return value if value.ndim == 1 else value.reshape(self.num_chains, -1)
        return value.reshape(1) if value.ndim == 0 else value.reshape(1, -1)


class Moves(ABC):
    """How the chains of an :class:`~pyrosep.AnnealedSearch` move, with all its numbers."""

    def ladder(self, priors: Mapping[str, SourcePrior], levels: int | None = None) -> tuple[float, ...]:
        """The noise levels that suit the moves; ``levels`` says how many."""
        return noise_ladder(priors, self.levels if levels is None else levels)

    #: Levels of the ladder where nobody says.
    levels: ClassVar[int] = 20

    @abstractmethod
    def on(self, potential: Potential, z: Values, ladder: Sequence[float]) -> SearchedChains:
        """Chains that move like this.

        Arguments:
            potential: of the model.
            z: where they start, unconstrained.
            ladder: falling noise levels.

        Raises:
            ConfigurationError: a model or priors that the moves are not for.
        """


def check_count(name: str, number: int, least: int) -> None:
    """Raise ConfigurationError for what is no whole number, or below the least."""
    if int(number) != number or number < least:
        raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {number!r}")
