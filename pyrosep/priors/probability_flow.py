"""The probability-flow equation of a denoiser: draws from its prior, and densities of frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyrosep.nn.denoiser import Preconditioned
from pyrosep.priors.gaussian import GaussianPrior

#: Frames that the network gets at once for the trace of a density.
_ROWS = 256

__all__ = ["LogDensity", "ProbabilityFlow"]


class LogDensity(NamedTuple):
    """A log-density in nats and how well it is known.

    Attributes:
        value: ``(...)``.
        standard_error: of the trace's random estimate, ``(...)``; 0 where the trace is exact.
    """

    value: Tensor
    standard_error: Tensor


@dataclass(frozen=True)
class ProbabilityFlow:
    r"""Frames at different noise levels carried into each other (Song et al., 2021; Karras et al., 2022).

    .. math:: \frac{dy}{d\theta} = -F(y; \sigma), \qquad y = \frac{x}{\sqrt{v + \sigma^2}}, \quad
              \tan\theta = \frac{\sigma}{\sqrt v},

    by Heun's method between levels evenly spaced in :math:`\log\sigma`. At the highest level, and above, the density is
    that of a stationary Gaussian with the source's spectrum, in noise; levels below ``sigma_min`` are reached from
    there in one step.

    Attributes:
        network: whose output is F; see :class:`~pyrosep.nn.denoiser.Preconditioned`.
        sigma_min, sigma_max: lowest and highest noise level that it was trained for.
    """

    network: Preconditioned
    sigma_min: float
    sigma_max: float

    def draw(self, sigma: Tensor, time: int, steps: int) -> Tensor:
        """Frames ``(n, time)`` at noise levels ``(n,)``, by so many steps of the equation, two passes each."""
        levels = self.levels(sigma, steps).flip(0)
        start = GaussianPrior(self.network.spectrum, time, levels[0], sigma_min=0.0).sample()
        y, _ = self.carry(start / self._scale(levels[0]), levels)
        return y * self._scale(sigma)

    def log_density(self, x: Tensor, sigma: Tensor, steps: int, probes: int) -> LogDensity:
        r"""Log-density in nats of frames ``(n, time)`` at noise levels ``(n,)``, each ``(n,)``.

        .. math:: \log p_\sigma(x) = \log p_{\sigma_\mathrm{max}}(x_\mathrm{max})
                  + \frac T2 \log \frac{v + \sigma_\mathrm{max}^2}{v + \sigma^2}
                  - \int_\theta^{\theta_\mathrm{max}} \mathrm{tr} \frac{\partial F}{\partial y} d\theta

        Arguments:
            x: frames.
            sigma: their levels.
            steps: of the equation.
            probes: random signs that the trace is estimated with (Hutchinson, 1990), at least two for a standard error;
                0 for the exact trace.
        """
        time = x.shape[-1]
        if probes:
            directions = torch.randint(0, 2, (probes, *x.shape), device=x.device).to(x) * 2 - 1
        else:
            directions = torch.eye(time, dtype=x.dtype, device=x.device).unsqueeze(1).expand(-1, len(x), -1)
        levels = self.levels(sigma, steps)
        y, traces = self.carry(x / self._scale(sigma), levels, directions)
        end = GaussianPrior(self.network.spectrum.to(x), time, levels[-1], sigma_min=0.0)
        found = end.log_prob(y * self._scale(levels[-1])) - (traces.mean(0) if probes else traces.sum(0))
        found = found + time * (self._scale(levels[-1]) / self._scale(sigma)).squeeze(-1).log()
        error = traces.std(0) / math.sqrt(probes) if probes > 1 else torch.full_like(found, math.nan if probes else 0.0)
        return LogDensity(found, error.detach())

    def _scale(self, sigma: Tensor) -> Tensor:
        r""":math:`\sqrt{v + \sigma^2}` with a time axis."""
        return (self.network.variance.to(sigma) + sigma.square()).sqrt().unsqueeze(-1)

    def levels(self, sigma: Tensor, steps: int) -> Tensor:
        """From levels ``(n,)`` up to the highest, ``(step + 1, n)``, or one more where any is below the lowest."""
        low = sigma.clamp(min=self.sigma_min)
        ratio = (self.sigma_max / low).clamp(min=1.0)
        share = torch.linspace(0, 1, steps + 1, dtype=sigma.dtype, device=sigma.device).unsqueeze(-1)
        levels = low * ratio**share
        return torch.cat([sigma.unsqueeze(0), levels]) if bool((sigma < low).any()) else levels

    def carry(self, y: Tensor, levels: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames ``(n, time)`` carried through levels ``(step + 1, n)``, and the integral of ``d J d`` by directions.

        Arguments:
            directions: ``(k, n, time)``, of the Jacobian's quadratic forms; their integrals are ``(k, n)``.
        """
        angles = (levels / self.network.variance.sqrt().to(levels)).atan()
        integral = y.new_zeros(()) if directions is None else y.new_zeros(directions.shape[:2])
        flow, form = self._flow(y, levels[0], directions)
        for here, after, level in zip(angles, angles[1:], levels[1:], strict=False):
            step = (after - here).unsqueeze(-1)
            ahead, _ = self._flow(y - step * flow, level)
            y = y - step / 2 * (flow + ahead)
            before = form
            flow, form = self._flow(y, level, directions)
            integral = integral + (after - here) / 2 * (before + form)
        return y, integral

    def _flow(self, y: Tensor, sigma: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """F of frames ``(n, time)`` at levels ``(n,)``, and quadratic forms of its Jacobian, ``(k, n)``."""
        sigma = sigma.clamp(min=self.sigma_min).to(self.network.variance)
        flow = self.network(y.to(sigma), sigma).to(y.dtype)
        if directions is None:
            return flow, y.new_zeros(())
        graph = torch.is_grad_enabled()
        forms = []
        with torch.enable_grad():
            for part in directions.split(max(1, _ROWS // len(y))):
                many = y.expand(part.shape).reshape(-1, y.shape[-1])
                many = many if graph else many.detach().requires_grad_()
                out = self.network(many.to(sigma), sigma.repeat(len(part))).to(y.dtype)
                aim = part.reshape(many.shape)
                (image,) = torch.autograd.grad(out, many, aim, create_graph=graph)
                forms.append((image * aim).sum(-1).reshape(part.shape[:2]))
        return flow, torch.cat(forms)
