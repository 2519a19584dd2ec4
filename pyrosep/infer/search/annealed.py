"""A search for the sources at falling noise levels: a start of chains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer.initial import Initial, Start, error_level, initial_values
from pyrosep.infer.linear import linear_mix_of
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.search.chains import Moves, SearchedChains, check_count
from pyrosep.infer.search.descent import DescentMoves
from pyrosep.infer.search.ladder import check_ladder
from pyrosep.infer.search.langevin import LangevinMoves
from pyrosep.infer.search.noising import COUPLINGS
from pyrosep.infer.search.sweeps import SweepMoves
from pyrosep.infer.seeding import as_usual, seeded

__all__ = ["AnnealedSearch", "Found", "moves_named"]

Progress = Callable[[int, int], Any]


@dataclass(frozen=True)
class Found:
    """Where the chains of a search ended.

    Attributes:
        potential: of the model.
        z: the latent sites' values in the unconstrained space, with the chains in front.
        calls: evaluations or draws of one source's prior that each chain took, ``(chains,)``.
        energy: by which the search compares states of a mix, nats, ``(chains,)``; the least is the best. It is that of
            the residual and, with sweeps under priors without a density, of how well these denoise their sources.
    """

    potential: Potential
    z: Values
    calls: Tensor
    energy: Tensor

    def values(self) -> Values:
        """The latent sites' values in the model's own space, with the chains in front."""
        with torch.no_grad():
            return self.potential.constrain(self.z)

    def log_joint(self) -> Tensor:
        """Log joint density in the unconstrained space, nats, without sources whose priors have none: ``(chains,)``."""
        with torch.no_grad():
            return -self.potential(self.z)


@dataclass(frozen=True)
class AnnealedSearch(Start):
    r"""Looks for the sources at falling noise levels: where chains are to start.

    >>> from pyrosep import MALA, AnnealedSearch, LangevinMCMC, OscillatorPrior
    >>> from pyrosep.mixing import mean_mix
    >>> model = mean_mix({wave: OscillatorPrior(wave, 256, periods=range(20, 40)) for wave in ("saw", "square")})
    >>> mcmc = LangevinMCMC(MALA(model), num_samples=20, warmup_steps=40, num_chains=4, init=AnnealedSearch(), seed=0)
    >>> mcmc.run(model().detach()).get_samples()["saw"].shape
    torch.Size([80, 256])

    Chains begin at the top of the ladder or, where it is known how far off their start is, at that level. At each level
    sites move by one of three kinds of moves: :class:`SweepMoves`, :class:`LangevinMoves`, or :class:`DescentMoves`.

    Then, again and again, a random *block* of sources is redrawn from the top of the ladder given the rest, and kept
    with probability :math:`\min(1, e^{-\Delta E / t})`, E being the energy of the residual, at a temperature t that
    falls; or, at random, two sources exchange what they explain instead (sweeps only). Chains whose residual is
    what noise alone would leave are settled and left alone; those that are not, by half of the redraws, start again.
    With sweeps under priors without a density E also has how well these denoise their sources
    (:class:`~pyrosep.infer.search.recognition.DenoisingEnergy`), and a chain is not settled while that is unusual.

    What is found is a start, and for priors without a density, whose levels below are worth more than steps at one, as
    good a draw as any (:meth:`run`). The search decides which mode a chain starts in, and short chains of a kernel
    don't leave it: weights of modes are right only where chains are seen to move between them.

    Arguments:
        ladder: falling noise levels, or how many; by default what suits the moves.
        moves: by default :class:`SweepMoves` wherever the model allows them, and else :class:`LangevinMoves`. A string
            is short for either: ``"sweeps"``, ``"shared"`` for :class:`DescentMoves`, or a coupling of
            :class:`LangevinMoves`.
        start: where chains start, see :func:`~pyrosep.infer.initial_values`.
        level: how far the sources of the start are off, rms of a sample, a float or ``(chains,)``, infinite where
            nothing is known of it; by default what the guide that they start from says
            (:meth:`~pyrosep.EncoderGuide.error_level`), and without one infinite.
        redraws: block redraws after the first descent.
        block: sources in a block.
        redraw_levels: levels of the ladder, evenly spaced, that a redraw passes through.
        exchanges: share of the redraws that are exchanges.
        acceptance: residual, relative to the mix's rms, that one unit of temperature forgives: at the first redraw, and
            at the last.
        restarts: whether chains that stay behind start again half-way.

    Raises:
        ConfigurationError: a value out of range; when it is run, a model that the moves are not for.
    """

    ladder: Sequence[float] | int | None = None
    moves: Moves | str | None = None
    start: Initial = "prior"
    level: float | Tensor | None = None
    redraws: int = 24
    block: int = 2
    redraw_levels: int = 10
    exchanges: float = 0.5
    acceptance: tuple[float, float] = (0.2, 0.05)
    restarts: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.moves, str):
            object.__setattr__(self, "moves", moves_named(self.moves))
        if isinstance(self.ladder, int):
            check_count("ladder", self.ladder, 1)
        elif self.ladder is not None:
            object.__setattr__(self, "ladder", check_ladder(self.ladder))
        for name, least in (("redraws", 0), ("block", 1), ("redraw_levels", 1)):
            check_count(name, getattr(self, name), least)
        if not 0 <= self.exchanges <= 1:
            raise ConfigurationError(f"exchanges is a share, from 0 to 1; got {self.exchanges!r}")
        if not (len(self.acceptance) == 2 and min(self.acceptance) > 0):
            raise ConfigurationError(f"acceptance must be two positive numbers; got {self.acceptance!r}")
        if isinstance(self.start, Start):
            raise ConfigurationError("a search can't start from another; give it 'prior', 'mix', values, or a guide")

    # --- what a user calls ------------------------------------------------------------------------------------

    def run(
        self, model: Callable[..., Any], *args: Any, num_chains: int | None = 4, seed: int | None = None, **kwargs: Any
    ) -> Found:
        """Search by many chains in one batch, on the model called with ``args`` and ``kwargs``.

        With ``num_chains=None`` a single chain searches, without a chain axis. With a ``seed`` the draws depend on it
        alone, and the caller's random state is left as it was.
        """
        with seeded(seed):
            return self.find(Potential(model, as_usual(args), as_usual(kwargs), num_chains=num_chains))

    def initial_params(self, model: Callable[..., Any], *args: Any, seed: int | None = None, **kwargs: Any) -> Values:
        """A start for one chain of stock Pyro, unconstrained.

        ``MCMC(NUTS(model), initial_params=search.initial_params(model, mix), ...).run(mix)``
        """
        with seeded(seed):
            return self.find(Potential(model, as_usual(args), as_usual(kwargs))).z

    # --- for kernels ------------------------------------------------------------------------------------------

    def values(self, potential: Potential) -> Values:
        return self.find(potential).z

    def find(self, potential: Potential) -> Found:
        """Search on a potential, from :attr:`start`."""
        return self.search(potential, initial_values(potential, self.start))

    def search(self, potential: Potential, z: Values, progress: Progress = lambda done, total: None) -> Found:
        """From starting values to where chains are to begin, all unconstrained.

        From a known level a descent that explains less of the mix than the start did is taken back; sweeps then begin
        from nothing, and where those don't settle either, the chain has its start again.

        Arguments:
            potential: of the model.
            z: starting values, of :attr:`start`.
            progress: called with the moves done, and all.
        """
        if not potential.priors:
            raise ConfigurationError("AnnealedSearch needs a model with source priors as sites; this one has none")
        level = error_level(potential, self.start) if self.level is None else torch.as_tensor(self.level)
        moves = self._chosen_moves(potential, z)
        given = self.ladder
        ladder = moves.ladder(potential.priors, given) if given is None or isinstance(given, int) else tuple(given)
        with torch.no_grad():
            chains = moves.on(potential, z, ladder)
            redraws = self.redraws if chains.blocks and (len(potential.rows) > 1 or not chains.exchanges) else 0
            total = len(ladder) + redraws
            lost = _first_descent(chains, level)
            start = dict(chains.z)
            if chains.exchanges and len(lost):
                chains.descend(lost, chains.ladder, None)
            progress(len(ladder), total)
            self._redraw(chains, redraws, lambda done: progress(len(ladder) + done, total))
            if len(lost):
                everyone, unsettled = torch.arange(chains.num_chains, device=lost.device), chains.unsettled()
                chains.take_back(start, torch.isin(everyone, lost) & torch.isin(everyone, unsettled))
            energy = chains.energy()
        progress(total, total)
        return Found(potential, chains.z, chains.calls, energy)

    def _chosen_moves(self, potential: Potential, z: Values) -> Moves:
        if self.moves is not None:
            assert isinstance(self.moves, Moves)
            return self.moves
        neighbour = linear_mix_of(potential, potential.constrain(z), about=True)
        return LangevinMoves() if isinstance(neighbour, str) else SweepMoves()

    def _redraw(self, chains: SearchedChains, redraws: int, progress: Callable[[int], Any]) -> None:
        """Redraw blocks of sources, or exchange two, in the chains that are not settled."""
        short = _spread(chains.ladder, self.redraw_levels)
        for number in range(redraws):
            rows = chains.unsettled()
            if not len(rows):
                break
            if self.restarts and number == redraws // 2 > 0:
                chains.attempt(0.0, partial(chains.descend, rows, chains.ladder, None))
            first, last = self.acceptance
            tolerance = first * (last / first) ** (number / max(1, redraws - 1))
            order = chains.order(rows)
            if chains.exchanges and float(torch.rand(())) < self.exchanges:
                chains.attempt(tolerance, partial(chains.exchange, rows, order[:, :2]))
            else:
                chains.attempt(tolerance, partial(chains.descend, rows, short, order[:, : self.block]))
            progress(number + 1)


def _first_descent(chains: SearchedChains, level: Tensor | None) -> Tensor:
    """Take all chains down the ladder, from the level that their start is off by: if that is not known, from the top.

    Returns:
        numbers of the chains that have their start again, for the descent explained less of the mix.
    """
    everyone = torch.arange(chains.num_chains, device=next(iter(chains.z.values())).device)
    level = (torch.tensor(math.inf) if level is None else level.to(everyone.device)).expand(chains.num_chains)
    refused, known = torch.zeros_like(everyone, dtype=torch.bool), level.isfinite()
    if not bool(known.all()):
        chains.begin(everyone[~known], chains.ladder)
    places = chains.places(level).to(everyone.device)
    for first in places[known].unique().tolist():
        rows = everyone[known & (places == first)]
        refused |= chains.refine(partial(chains.descend, rows, chains.ladder[first:], None, anew=False))
    return everyone[refused]


def _spread(ladder: Sequence[float], count: int) -> tuple[float, ...]:
    """``count`` levels of a ladder, evenly spaced, its first and last among them."""
    if count >= len(ladder):
        return tuple(ladder)
    if count == 1:
        return (ladder[-1],)
    return tuple(ladder[round(number * (len(ladder) - 1) / (count - 1))] for number in range(count))


def moves_named(coupling: str) -> Moves:
    """The moves that a word is short for: see :class:`AnnealedSearch`.

    Raises:
        ConfigurationError: an unknown word.
    """
    known = ("sweeps", "shared", *COUPLINGS)
    if coupling not in known:
        raise ConfigurationError(f"coupling must be one of {known}; got {coupling!r}")
    return {"sweeps": SweepMoves, "shared": DescentMoves}.get(coupling, partial(LangevinMoves, coupling))()
