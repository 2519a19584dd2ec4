"""What a search for the sources does at falling noise levels: by sweeps of draws, or by Langevin steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer.noising import Noised
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import diagonal_scales
from pyrosep.infer.redraws import Redraws
from pyrosep.infer.response import (
    LinearMix,
    Responses,
    base_distribution,
    has_location,
    linear_mix_of,
    measure_responses,
)

__all__ = ["LangevinSearch", "Search", "SweepSearch"]

#: A chain is settled when its residual has at most this multiple of the power that noise alone would leave.
SETTLED = 1.5


class Search(ABC):
    """The chains of a search: all unconstrained values, and moves of some of the chains.

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
        left, power, noise = [], [], []
        trace = self.potential.run(self.potential.constrain(self.z))
        for name, value in self.potential.observed.items():
            fn = trace.nodes[name]["fn"]
            if not has_location(fn):
                continue
            base = base_distribution(fn)
            shape = base.loc.shape
            left.append(self._per_chain(value - base.loc).square())
            power.append(self._per_chain(value.expand(shape)).square())
            noise.append(self._per_chain(base.scale.expand(shape)).square())
        if not left:
            raise ConfigurationError(
                "a search needs an observation with a mean and a scale (Normal, StudentT, Laplace)"
            )
        return tuple(torch.cat(part, -1).mean(-1) for part in (left, power, noise))  # type: ignore[return-value]

    def unsettled(self) -> Tensor:
        """Chains whose residual is more than what noise would leave: their numbers."""
        left, _, noise = self.residual()
        return torch.nonzero(left > SETTLED * (noise + self._own_noise())).flatten()

    @abstractmethod
    def _own_noise(self) -> Tensor:
        """Variance that the sources' own noise, at their priors' level, has in the mix: ``(chains,)``."""

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
        rows = [self.z[name].reshape(self.num_chains, -1)[chains] for name in self.names]
        return torch.stack(rows, 1)

    def _put(self, chains: Tensor, sources: Tensor) -> None:
        """Give the sources of ``chains`` these values, ``(n, source, time)``."""
        for number, name in enumerate(self.names):
            flat = self.z[name].reshape(self.num_chains, -1).clone()
            flat[chains] = sources[:, number]
            self.z[name] = flat.reshape(self.z[name].shape)

    def _per_chain(self, value: Tensor) -> Tensor:
        if self.potential.batch_ndim:
            return value if value.ndim == 1 else value.reshape(self.num_chains, -1)
        return value.reshape(1) if value.ndim == 0 else value.reshape(1, -1)


class SweepSearch(Search):
    """Search by draws of each source given the others.

    In a linear mix of known gains these are draws from its conditional. Where gains are latent, the other sites move
    by Langevin steps after each sweep, and the draws are given their values; where the mix is not linear, each draw is
    from its linear neighbour at the state (:func:`~pyrosep.infer.linear_mix_of`). That is a search only: what it finds
    is for the chains at the last level to make right.

    Arguments:
        mix: the model as a linear mix; ``None`` where it changes with the state.
        sweeps: at each level.
        reverse_steps: denoiser calls of a draw, for priors whose draws are a reverse diffusion.
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
        reverse_steps: int = 8,
    ) -> None:
        super().__init__(potential, z, ladder)
        self.sweeps = sweeps
        self.others = [name for name in z if name not in self.names]
        self.fixed = mix is not None
        # The prior's own draws are far from any mix; about silence a neighbour is what it is for quiet sources.
        quiet = {name: torch.zeros_like(z[name]) if name in self.names else z[name] for name in z}
        priors = list(potential.priors.values())
        self.redraws = Redraws(priors, mix or self._neighbour(quiet), reverse_steps=reverse_steps)
        self.calls = self.redraws.calls
        # Levels below what the mix's own noise leaves of a source are one and the same; the last is the model's own.
        above = [level for level in self.ladder if level > self.redraws.floor]
        self.ladder = (*above, 0.0)

    def _neighbour(self, z: Values) -> LinearMix:
        found = linear_mix_of(self.potential, self.potential.constrain(z), about=True)
        if isinstance(found, str):
            raise ConfigurationError(
                "sweeps draw each source given the others, which needs one Normal observation of them all with a "
                f"sample for each of theirs; here {found}. Use coupling='denoised'"
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
        for sigma in ladder:
            for _ in range(self.sweeps):
                self._sweep(chains, sigma, blocks)
            if self.others:
                self._move_others(chains, sigma)

    def _sweep(self, chains: Tensor, sigma: float, blocks: Tensor | None) -> None:
        if blocks is None:
            blocks = torch.arange(len(self.names), device=chains.device).expand(len(chains), -1)
        order = torch.rand(blocks.shape, device=blocks.device).argsort(-1)
        rows = torch.arange(len(chains), device=chains.device)
        for index in blocks.gather(-1, order).unbind(-1):
            if not self.fixed:
                self.redraws.mix = self._neighbour(self.z)
            sources = self._sources(chains)
            drawn = self.redraws.draw(sources, index, chains, sigma)
            # A learned denoiser may lead a draw astray.
            sources[rows, index] = torch.where(drawn.isfinite().all(-1, keepdim=True), drawn, sources[rows, index])
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

    def _own_noise(self) -> Tensor:
        mix = self.redraws.mix
        return (mix.power * self.redraws.own.square()).sum(-1) / mix.observed.shape[1]


class LangevinSearch(Search):
    r"""Search by Langevin steps on the noised model; for any model.

    Arguments:
        coupling: see :func:`~pyrosep.infer.noised`.
        steps: at each level.
        ancestral: whether a move from level to level follows them.
        step_size: :math:`\eta` as a function of :math:`\sigma`; by default half of what is stable.

    Raises:
        ConfigurationError: the constraint for a model that is not linear; a step that is not stable.
    """

    def __init__(
        self,
        potential: Potential,
        z: Values,
        ladder: Sequence[float],
        *,
        coupling: str,
        steps: int,
        ancestral: bool,
        step_size: Callable[[float], float] | None,
    ) -> None:
        super().__init__(potential, z, ladder)
        self.steps, self.ancestral, self.step_size = steps, ancestral, step_size
        self.others = [name for name in z if name not in self.names]
        # Where responses are measured: the sources as they are known so far, at first nothing.
        self.clean = {name: torch.zeros_like(z[name]) if name in self.names else z[name] for name in z}
        found = linear_mix_of(potential, potential.constrain(self.clean))
        if isinstance(found, str) and coupling in ("constraint", "local"):
            raise ConfigurationError(f"the constraint needs a mix that is linear in its sources; {found}")
        self._fixed = not isinstance(found, str) and not self.others
        self.noised = Noised(potential.model, 0.0, coupling, responses=self._responses(), density=False)
        self.noised.sigma = {name: potential.priors[name].sigma for name in self.names}
        self.level = Potential(self.noised, potential.args, potential.kwargs, num_chains=potential.num_chains)

    def _responses(self) -> Responses:
        return measure_responses(self.potential.run, self.potential.constrain(self.clean), self.names)

    def _own_noise(self) -> Tensor:
        total: Tensor | float = 0.0
        for by_source in (self.noised.responses or {}).values():
            for name, response in by_source.items():
                power = self.potential.priors[name].sigma.square().mean() * response.abs().square()
                total = total + self._per_chain(power).mean(-1)
        assert isinstance(total, Tensor)
        return total

    def descend(self, chains: Tensor, ladder: Sequence[float], blocks: Tensor | None, *, anew: bool = True) -> None:
        active = self._active(chains, blocks)
        own = {name: self.potential.priors[name].sigma.to(self.z[name]) for name in self.names}
        for number, sigma in enumerate(ladder):
            levels = {name: torch.where(active[name], own[name].clamp(min=sigma), own[name]) for name in self.names}
            added = {name: levels[name].square() - own[name].square() for name in self.names}
            if number == 0:
                for name in self.names:
                    kept = torch.where(active[name] & anew, 0.0, 1.0).unsqueeze(-1)
                    spread = added[name].sqrt().unsqueeze(-1)
                    self.z[name] = kept * self.z[name] + spread * torch.randn_like(self.z[name])
            before = dict(self.z)
            self.noised.sigma = levels
            if not self._fixed:
                self.noised.responses = self._responses()
            step = self._step(sigma)
            scales = self._scales()
            for _ in range(self.steps):
                gradient = self._gradient()
                for name, value in self.z.items():
                    if name in self.names:
                        eta = step.reshape(active[name].shape[:1] + (1,) * (active[name].ndim - 1)) * active[name]
                        eta = eta.unsqueeze(-1)
                    else:
                        eta = 0.2 * scales[name].square()
                    self.z[name] = value - eta * gradient[name] + (2 * eta).sqrt() * torch.randn_like(value)
            after = ladder[number + 1] if number + 1 < len(ladder) else None
            if after is not None and (self.ancestral or not self._fixed):
                self._move_on(active, own, added, after)
            finite = self._finite()
            if not bool(finite.any()):
                raise DivergenceError(
                    f"no chain is finite any more at noise level {sigma:.3g} of the search; take a smaller "
                    "langevin_step, or look at the data"
                )
            self.take_back(before, ~finite)

    def _active(self, chains: Tensor, blocks: Tensor | None) -> dict[str, Tensor]:
        """Which chains move which source, in the batch shape of each source."""
        chosen = torch.zeros(self.num_chains, len(self.names), dtype=torch.bool, device=chains.device)
        if blocks is None:
            chosen[chains] = True
        else:
            chosen[chains.unsqueeze(-1), blocks] = True
        active = {}
        for number, name in enumerate(self.names):
            batch = self.z[name].shape[:-1]
            column = chosen[:, number].to(self.z[name].device)
            active[name] = column.reshape((-1,) + (1,) * (len(batch) - 1)).expand(batch) if batch else column[0]
        return active

    def _gradient(self) -> Values:
        self.calls += len(self.names)
        return self.level.value_and_grad(self.z)[1]

    def _move_on(
        self, active: dict[str, Tensor], own: dict[str, Tensor], added: dict[str, Tensor], after: float
    ) -> None:
        """From a level to the next, by the mean of the sources there given the state and the mix."""
        gradient = self._gradient()
        for name in self.names:
            value, excess = self.z[name], added[name].unsqueeze(-1)
            mean = value - excess * gradient[name]
            self.clean[name] = mean
            if self.ancestral:
                low = own[name].clamp(min=after).square() - own[name].square()
                share = (low.unsqueeze(-1) / excess.clamp(min=1e-30)).clamp(max=1.0)
                spread = (excess * share * (1 - share)).sqrt()
                moved = mean + share * (value - mean) + spread * torch.randn_like(value)
                self.z[name] = torch.where(active[name].unsqueeze(-1), moved, value)
        self.clean |= {name: self.z[name] for name in self.others}

    def _step(self, sigma: float) -> Tensor:
        r"""The step at a level, ``(chains,)``: stable while :math:`\eta (\Lambda + 1/\sigma^2) < 2`."""
        own = min(float(prior.sigma.min()) for prior in self.potential.priors.values())
        total = self._precision() + 1 / max(sigma, own) ** 2
        if self.step_size is None:
            return 1 / total
        eta = self.step_size(sigma)
        limit = float(2 / total.max())
        if not 0 < eta < limit:
            raise ConfigurationError(
                f"a step of {eta:.3g} at noise level {sigma:.3g} is not stable; expected one between 0 and {limit:.3g}"
            )
        return torch.full_like(total, eta)

    def _precision(self) -> Tensor:
        r"""The observations' precision for all sources, ``(chains,)``: :math:`\max_f \sum_k J_k^2 H_k^* V^{-1} H_k`.

        :math:`J_k` is the Jacobian of what the model sees of a source, as a stationary Gaussian has it; with the local
        coupling it is at most one in any bin, and the precision at most that for ones.
        """
        local = self.noised.coupling == "local"
        trace = self.potential.run(self.potential.constrain(self.clean))
        total: Tensor | float = 0.0
        for site, by_source in (self.noised.responses or {}).items():
            fn = trace.nodes[site]["fn"]
            noise = self._per_chain(base_distribution(fn).scale.expand(fn.mean.shape)).square().amin(-1)
            columns, spread, slopes = [], [], []
            for name, response in by_source.items():
                prior = self.potential.priors[name]
                sigma, added = self.noised.level(name, prior)
                power = added.unsqueeze(-1) if local else self.noised.uncertainty(prior, prior.at(sigma), added)
                bins = response.shape[-1]
                columns.append(response.expand(*fn.mean.shape[:-1], bins).reshape(self.num_chains, -1, bins))
                wide = self._per_chain(power.expand(*self.z[name].shape[:-1], bins)).reshape(-1, 1, bins)
                spread.append(wide)
                excess = self._per_chain(added.expand(self.z[name].shape[:-1]).unsqueeze(-1)).reshape(-1, 1, 1)
                slopes.append(torch.where(excess > 0, wide / excess.clamp(min=1e-30), torch.ones_like(wide)))
            matrix = torch.stack(columns, -1).permute(0, 2, 1, 3)  # (chains, bins, channel, source)
            powers = torch.stack(spread, -1).permute(0, 2, 1, 3)
            covariance = (matrix * powers) @ matrix.mH
            eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
            covariance = covariance + noise[:, None, None, None] * eye
            seen = matrix * torch.stack(slopes, -1).permute(0, 2, 1, 3)
            found = (seen.conj() * torch.linalg.solve(covariance, seen)).real.sum((-2, -1))
            total = total + found.amax(-1)
        assert isinstance(total, Tensor)
        return total

    def _scales(self) -> Values:
        """Steps of the sites that are no sources: one over the root of their curvature, and at most one."""
        if not self.others:
            return {}
        scales = diagonal_scales(self.potential, self.clean | {n: self.z[n] for n in self.others}, self.others, 2)
        return {name: (scale.square() / (1 + scale.square())).sqrt() for name, scale in scales.items()}
