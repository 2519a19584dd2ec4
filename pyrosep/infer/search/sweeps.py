"""A search by sweeps: each source drawn given the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer.linear import linear_mix_of
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import diagonal_scales
from pyrosep.infer.response import LinearMix
from pyrosep.infer.search.chains import Moves, SearchedChains, check_count
from pyrosep.infer.search.recognition import DenoisingEnergy
from pyrosep.infer.search.redraws import Redraws

__all__ = ["SweepMoves"]

#: A chain is not settled while its sources have energies of more than so many times those of draws of the priors.
_UNUSUAL = 1.5


@dataclass(frozen=True)
class SweepMoves(Moves):
    """Sweeps: every source in turn is drawn given the others, :class:`~pyrosep.infer.search.redraws.Redraws`.

    For models with one Normal observation, a sample for each of the sources'. In a linear mix of known gains these are
    draws from the conditionals. Where gains are latent, the other sites move by Langevin steps after each sweep, and
    the draws are given their values; where the mix is not linear, each draw is from its linear neighbour at the state
    (:func:`~pyrosep.infer.linear_mix_of`). That is a search only: what it finds is for a kernel to make right.

    Attributes:
        per_level: sweeps at each level.
        reverse_steps: denoiser calls of a draw, for priors whose draws are a reverse diffusion.
    """

    per_level: int = 1
    reverse_steps: int = 4

    def __post_init__(self) -> None:
        check_count("per_level", self.per_level, 1)
        check_count("reverse_steps", self.reverse_steps, 1)

    def on(self, potential: Potential, z: Values, ladder: Sequence[float]) -> SearchedChains:
        found = linear_mix_of(potential, potential.constrain(z))
        # With other latent sites the mix changes as they move.
        mix = None if isinstance(found, str) or set(z) != set(potential.priors) else found
        return SweptChains(potential, z, ladder, mix, sweeps=self.per_level, reverse_steps=self.reverse_steps)


class SweptChains(SearchedChains):
    """Chains that move by draws of each source given the others: see :class:`SweepMoves`.

    Arguments:
        mix: the model as a linear mix; ``None`` where it changes with the state.
        sweeps: at each level.
        reverse_steps: see :class:`SweepMoves`.
    """

    exchanges = True

    def __init__(
        self,
        potential: Potential,
        z: Values,
        ladder: Sequence[float],
        mix: LinearMix | None,
        *,
        sweeps: int = 1,
        reverse_steps: int = 4,
    ) -> None:
        super().__init__(potential, z, ladder)
        self.sweeps = sweeps
        self.others = [name for name in z if name not in self.names]
        self.fixed = mix is not None
        #: Draws of each source in this descent, and those that were finite: ``(source, 2)``.
        self._found = torch.zeros(len(self.rows), 2, dtype=torch.int64)
        # The prior's own draws are far from any mix; about silence a neighbour is what it is for quiet sources.
        quiet = {name: torch.zeros_like(z[name]) if name in self.names else z[name] for name in z}
        self.redraws = Redraws(potential.rows.priors, mix or self._neighbour(quiet), reverse_steps=reverse_steps)
        self.calls = self.redraws.calls
        #: States whose energies are known, the last two, and those energies.
        self.judged: list[tuple[Tensor, Tensor]] = []
        # Levels below what the mix's own noise leaves of a source are one and the same; the last is the model's own.
        above = [level for level in self.ladder if level > self.redraws.floor]
        self.ladder = (*above, 0.0)

    def _neighbour(self, z: Values) -> LinearMix:
        found = linear_mix_of(self.potential, self.potential.constrain(z), about=True)
        if isinstance(found, str):
            raise ConfigurationError(
                "sweeps draw each source given the others, which needs one Normal observation of them all with a "
                f"sample for each of theirs; here {found}. Use LangevinMoves('denoised')"
            )
        return found

    def descend(self, chains: Tensor, ladder: Sequence[float], blocks: Tensor | None, *, anew: bool = True) -> None:
        if anew:
            sources = self._sources(chains)
            if blocks is None:
                sources.zero_()
            else:
                sources[torch.arange(len(chains), device=chains.device).unsqueeze(-1), blocks] = 0.0
            self._put(chains, sources)
        self._found = torch.zeros(len(self.rows), 2, dtype=torch.int64, device=chains.device)
        for sigma in ladder:
            for _ in range(self.sweeps):
                self._sweep(chains, sigma, blocks)
            if self.others:
                self._move_others(chains, sigma)
        drawn, fine = self._found.unbind(-1)
        if lost := [label for label, bad in zip(self.rows.labels, (drawn > 0) & (fine == 0), strict=True) if bad]:
            raise DivergenceError(
                f"no draw of {', '.join(map(repr, lost))} given the other sources was finite and of a possible size, "
                f"from noise level {ladder[0]:.3g} down: its prior's denoiser is of no use here. Give the search a "
                "lower ladder, or start chains elsewhere"
            )

    def _sweep(self, chains: Tensor, sigma: float, blocks: Tensor | None) -> None:
        if blocks is None:
            blocks = torch.arange(len(self.rows), device=chains.device).expand(len(chains), -1)
        order = torch.rand(blocks.shape, device=blocks.device).argsort(-1)
        rows = torch.arange(len(chains), device=chains.device)
        for index in blocks.gather(-1, order).unbind(-1):
            if not self.fixed:
                self.redraws.mix = self._neighbour(self.z)
            sources = self._sources(chains)
            drawn = self.redraws.draw(sources, index, chains, sigma)
            # A learned denoiser may lead a draw astray.
            fine = drawn.isfinite().all(-1)
            self._found.index_add_(0, index, torch.stack([torch.ones_like(index), fine.to(index)], -1))
            sources[rows, index] = torch.where(fine.unsqueeze(-1), drawn, sources[rows, index])
            self._put(chains, sources)

    def _move_others(self, chains: Tensor, sigma: float, steps: int = 3, size: float = 0.5) -> None:
        """Langevin steps of the sites that are no sources, the observation widened as it is for a draw."""
        mix, own = self.redraws.mix, self.redraws.own.square().mean()
        noise = mix.noise.squeeze(-1).square()
        warmth = 1 + mix.power.mean(-1) * (sigma**2 - own).clamp(min=0) / noise  # (chains,)
        scales = diagonal_scales(self.potential, self.z, self.others, 2)
        moving = torch.zeros(self.num_chains, dtype=torch.bool, device=chains.device)
        moving[chains] = True
        for _ in range(steps):
            with torch.enable_grad():
                leaves = self.z | {name: self.z[name].detach().requires_grad_() for name in self.others}
                misfit = self._per_chain(self.potential(leaves, without=[*self.z])) / warmth
                rest = self.potential(leaves, without=[*self.names, *self.potential.observed])
                gradients = torch.autograd.grad(misfit.sum() + rest.sum(), [leaves[name] for name in self.others])
            for name, gradient in zip(self.others, gradients, strict=True):
                value = self.z[name]
                lead = (-1,) + (1,) * (value.ndim - 1) if self.potential.batch_ndim else ()
                # The prior's share of the curvature is about one in the unconstrained space.
                scale = (1 / (1 / (scales[name].square() * warmth.reshape(lead).to(value)) + 1)).sqrt()
                # A drift cut short, for far from where the curvature was measured it may be anything.
                drift = -size * (scale * gradient).clamp(-2, 2)
                moved = value + scale * (drift + math.sqrt(2 * size) * torch.randn_like(value))
                self.z[name] = torch.where(moving.reshape(lead), moved, value)

    def exchange(self, chains: Tensor, pairs: Tensor) -> None:
        if not self.fixed:
            self.redraws.mix = self._neighbour(self.z)
        self._put(chains, self.redraws.exchange(self._sources(chains), chains, pairs))

    @cached_property
    def judge(self) -> DenoisingEnergy | None:
        """Tells the energies of sources whose priors have no density."""
        priors = self.potential.rows.priors
        return None if any(prior.has_density for prior in priors) else DenoisingEnergy(priors)

    @cached_property
    def _unusual(self) -> float:
        """Energy of all sources above which a chain is not settled, nats."""
        assert self.judge is not None
        self.calls += -(-self.judge.usual_calls * len(self.rows) // self.num_chains)
        return _UNUSUAL * sum(float(self.judge.usual(k)) for k in range(len(self.rows)))

    def energy(self) -> Tensor:
        energy = super().energy()
        return energy if self.judge is None else energy + self._source_energies().sum(-1)

    def unsettled(self) -> Tensor:
        rows = super().unsettled()
        if self.judge is None:
            return rows
        wrong = torch.nonzero(self._source_energies().sum(-1) > self._unusual).flatten()
        return torch.cat([rows, wrong]).unique()

    def order(self, chains: Tensor) -> Tensor:
        if self.judge is None:
            return super().order(chains)
        # Such as the others are least like what they are to be come first: a race of exponential times.
        energies = self._source_energies()[chains]
        return (-torch.rand(energies.shape, device=chains.device).log() / energies).argsort(-1)

    def _source_energies(self) -> Tensor:
        """Of every chain's sources, nats, ``(chains, source)``; only what has changed is denoised."""
        assert self.judge is not None
        everyone = torch.arange(self.num_chains, device=self.redraws.own.device)
        sources = self._sources(everyone)
        energies = sources.new_full(sources.shape[:2], math.nan, dtype=torch.float64)
        for state, known in self.judged:
            energies = torch.where((state == sources).all(-1), known, energies)
        for index in range(len(self.rows)):
            rows = torch.nonzero(energies[:, index].isnan()).flatten()
            if len(rows):
                energies[rows, index] = self.judge(index, sources[rows, index])
                self.calls[rows.cpu()] += self.judge.calls
        self.judged = [*self.judged[-1:], (sources, energies)]
        return energies

    def _own_noise(self) -> Tensor:
        mix = self.redraws.mix
        return (mix.power * self.redraws.own.square()).sum(-1) / mix.observed.shape[1]
