"""A search by Langevin steps on the noised model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer.linear import linear_mix_of
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import diagonal_scales
from pyrosep.infer.response import Responses, base_distribution, measure_responses
from pyrosep.infer.search.chains import Moves, SearchedChains, check_count
from pyrosep.infer.search.noising import COUPLINGS, Noised

__all__ = ["LangevinMoves"]


@dataclass(frozen=True)
class LangevinMoves(Moves):
    r"""Langevin steps on the :func:`~pyrosep.noised` model, for any model.

    At each level :math:`x \leftarrow x - \eta_i \nabla U_i(x) + \sqrt{2\eta_i}\,\epsilon`, with
    :math:`\eta_i (\Lambda_i + 1/\sigma_i^2) < 2`, :math:`\Lambda_i` the precision that the observation has at that
    level for the sources together (:math:`N\lambda` for the sum of N); and between levels, with ``ancestral``,
    :math:`x \leftarrow \hat s + \tfrac{\sigma_{i+1}^2}{\sigma_i^2}(x - \hat s) + \dots\epsilon` from the mean
    :math:`\hat s = x - \sigma_i^2 \nabla U_i(x)` (Song & Ermon, 2019; Jayaram & Thickstun, 2020; Ho et al., 2020).

    Attributes:
        coupling: ``"noisy"``, ``"denoised"``, ``"constraint"`` or ``"local"``, see :func:`~pyrosep.noised`.
        per_level: steps at each level.
        ancestral: whether a reverse-diffusion move from level to level follows them.
        step_size: :math:`\eta` as a function of :math:`\sigma`; by default half of what is stable.
    """

    coupling: str = "denoised"
    per_level: int = 1
    ancestral: bool = True
    step_size: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ConfigurationError(f"coupling must be one of {COUPLINGS}; got {self.coupling!r}")
        check_count("per_level", self.per_level, 1)

    def on(self, potential: Potential, z: Values, ladder: Sequence[float]) -> SearchedChains:
        return LangevinChains(potential, z, ladder, self)


class LangevinChains(SearchedChains):
    """Chains that move by Langevin steps: see :class:`LangevinMoves`.

    Raises:
        ConfigurationError: the constraint for a model that is not linear; a step that is not stable.
    """

    def __init__(self, potential: Potential, z: Values, ladder: Sequence[float], moves: LangevinMoves) -> None:
        super().__init__(potential, z, ladder)
        self.steps, self.ancestral, self.step_size = moves.per_level, moves.ancestral, moves.step_size
        coupling = moves.coupling
        self.others = [name for name in z if name not in self.names]
        # Where responses are measured: the sources as they are known so far, at first nothing.
        self.clean = {name: torch.zeros_like(z[name]) if name in self.names else z[name] for name in z}
        found = linear_mix_of(potential, potential.constrain(self.clean))
        if isinstance(found, str) and coupling in ("constraint", "local"):
            raise ConfigurationError(f"the constraint needs a mix that is linear in its sources; {found}")
        self._fixed = not isinstance(found, str) and not self.others
        self.noised = Noised(potential.model, 0.0, coupling, responses=self._responses(), density=False)
        self.noised.rows = None if self.rows.plain else self.rows
        if not self.noised.responses:
            raise ConfigurationError(
                "a search needs an observation that depends on its sources; this model has none, whatever its factors "
                f"are. Its observed sites are {list(potential.observed)}"
            )
        self.noised.sigma = {name: potential.priors[name].sigma for name in self.names}
        self.level = Potential(self.noised, potential.args, potential.kwargs, num_chains=potential.num_chains)

    def _responses(self) -> Responses:
        rows = None if self.rows.plain else self.rows
        return measure_responses(self.potential.run, self.potential.constrain(self.clean), self.names, rows)

    def _own_noise(self) -> Tensor:
        total: Tensor | float = 0.0
        for by_source in (self.noised.responses or {}).values():
            for label, response in by_source.items():
                prior = self.rows.priors[self.rows.labels.index(label)]
                power = prior.sigma.square().mean() * response.abs().square()
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
                    "step_size, or look at the data"
                )
            self.take_back(before, ~finite)

    def _active(self, chains: Tensor, blocks: Tensor | None) -> dict[str, Tensor]:
        """Which chains move which source, in the batch shape of each source."""
        chosen = torch.zeros(self.num_chains, len(self.rows), dtype=torch.bool, device=chains.device)
        if blocks is None:
            chosen[chains] = True
        else:
            chosen[chains.unsqueeze(-1), blocks] = True
        active = {}
        for name in self.names:
            batch, numbers = self.z[name].shape[:-1], self.rows.of_site(name)
            if len(numbers) > 1:
                active[name] = chosen[:, numbers].to(self.z[name].device).reshape(batch)
                continue
            column = chosen[:, numbers[0]].to(self.z[name].device)
            active[name] = column.reshape((-1,) + (1,) * (len(batch) - 1)).expand(batch) if batch else column[0]
        return active

    def _gradient(self) -> Values:
        self.calls += len(self.rows)
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
            scale = trace.nodes[site]["scale"]
            noise = noise / (scale.max() if isinstance(scale, Tensor) else scale)
            columns, spread, slopes = [], [], []
            for label, response in by_source.items():
                number = self.rows.labels.index(label)
                name = self.rows.sites[number]
                prior = self.potential.priors[name]
                sigma, added = self.noised.level(name, prior)
                power = added.unsqueeze(-1) if local else self.noised.uncertainty(prior, prior.at(sigma), added)
                bins = response.shape[-1]
                columns.append(response.expand(*fn.mean.shape[:-1], bins).reshape(self.num_chains, -1, bins))
                lead = self.z[name].shape[:-1]
                wide = self._per_row(number, power.expand(*lead, bins)).reshape(-1, 1, bins)
                spread.append(wide)
                excess = self._per_row(number, added.expand(lead).unsqueeze(-1)).reshape(-1, 1, 1)
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

    def _per_row(self, number: int, value: Tensor) -> Tensor:
        """A source's own, by chain, of a value by site."""
        return self._per_chain(value) if self.rows.plain else self.rows.pick(number, value)

    def _scales(self) -> Values:
        """Steps of the sites that are no sources: one over the root of their curvature, and at most one."""
        if not self.others:
            return {}
        scales = diagonal_scales(self.potential, self.clean | {n: self.z[n] for n in self.others}, self.others, 2)
        return {name: (scale.square() / (1 + scale.square())).sqrt() for name, scale in scales.items()}
