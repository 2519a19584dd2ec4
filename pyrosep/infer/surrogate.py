r"""What the sources would be given a model's other sites, were they stationary Gaussians: a map for joint moves.

A model whose observation is linear in the sources, :math:`M = b(\theta) + H(\theta) S + n(\theta)\,\epsilon` at each
frequency, has given :math:`\theta` a Gaussian posterior of sources with the priors' spectra P. In the coordinates
:math:`S = P^{1/2} X` and with :math:`B = H P^{1/2} / n` it is

.. math:: X \sim N(\mu, R R^H), \qquad R = (I + B^H B)^{-1/2}, \qquad \mu = R^2 B^H (M - b) / n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.preconditioner import Preconditioner
from pyrosep.infer.response import base_distribution, has_location
from pyrosep.priors.base import mean_spectrum
from pyrosep.signal.spectra import full_sum

__all__ = ["Conditional", "ConditionalPreconditioner", "Surrogate"]

#: Deviation of a mean from a linear map that counts as rounding, relative to its size.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class _Measured:
    """What a model is at given values of its other sites: H, :math:`m - b`, n, and those sites' own log-density.

    Attributes:
        response: ``(chains, channel, source, bins or 1)``.
        residual: in the frequency domain, ``(chains, channel, bins)``.
        noise: ``(chains, channel, 1)``.
        log_prior: of the scalars, in the unconstrained space, with data that tell of them alone, ``(chains,)``.
    """

    response: Tensor
    residual: Tensor
    noise: Tensor
    log_prior: Tensor


@dataclass(frozen=True)
class Conditional:
    """The Gaussian of the sources given other sites, for each chain, in the coordinates in which priors are white.

    Attributes:
        coupling: B, ``(chains, channel, source, bins)``.
        mean: of X, ``(chains, source, bins)``.
        values: eigenvalues of :math:`B B^H`, ``(chains, channel, bins)``.
        vectors: its eigenvectors, ``(chains, channel, channel, bins)``; of one channel, ones.
        log_det: of R over all real dimensions, ``(chains,)``.
    """

    coupling: Tensor
    mean: Tensor
    values: Tensor
    vectors: Tensor
    log_det: Tensor

    @classmethod
    def of(cls, coupling: Tensor, residual: Tensor, time: int) -> Conditional:
        """By B and :math:`(M - b) / n` at the bins of real signals of ``time`` samples."""
        if coupling.shape[1] == 1:
            values = coupling.abs().square().sum(2)
            vectors = torch.ones_like(values).unsqueeze(1)
        else:
            gram = (coupling.unsqueeze(2) * coupling.unsqueeze(1).conj()).sum(3)  # (chains, channel, channel, bins)
            found, columns = torch.linalg.eigh(gram.movedim(-1, 1))
            values, vectors = found.clamp(min=0).movedim(1, -1), columns.movedim(1, -1)
        log_det = -0.5 * full_sum(values.log1p().sum(1), time)
        new = cls(coupling, residual, values, vectors, log_det)
        pulled = new._spread(new._apply(1 / (1 + values), residual))
        return cls(coupling, pulled, values, vectors, log_det)

    def _apply(self, factor: Tensor, value: Tensor) -> Tensor:
        """A function of :math:`B B^H`, by its eigenvalues, times a vector ``(chains, channel, bins)``."""
        if self.coupling.shape[1] == 1:
            return factor * value
        inner = (self.vectors.conj() * value.unsqueeze(2)).sum(1)
        return (self.vectors * (factor * inner).unsqueeze(1)).sum(2)

    def _gather(self, x: Tensor) -> Tensor:
        return (self.coupling * x.unsqueeze(1)).sum(2)

    def _spread(self, value: Tensor) -> Tensor:
        return (self.coupling.conj() * value.unsqueeze(2)).sum(1)

    def root(self, x: Tensor) -> Tensor:
        """``R x``, of ``(chains, source, bins)``."""
        root = (1 + self.values).sqrt()
        return x - self._spread(self._apply(1 / (root * (1 + root)), self._gather(x)))

    def inverse_root(self, x: Tensor) -> Tensor:
        """``R^-1 x``, of ``(chains, source, bins)``."""
        root = (1 + self.values).sqrt()
        return x + self._spread(self._apply(1 / (1 + root), self._gather(x)))

    def where(self, mask: Tensor, other: Conditional) -> Conditional:
        """This one in the chains where ``mask`` ``(chains,)`` is true, the other elsewhere."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Conditional(*(torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in pairs))


class Surrogate:
    """The Gaussian posterior of a model's sources given its other sites, measured from the model.

    The model is not asked, but run: without sources it gives the offset and the noise, and with impulses for sources
    its responses to them. A model that mixes sample by sample needs one run for it, or two where it has an offset; one
    with filters as many as there are sources, and one.

    Arguments:
        potential: of the model.
        scalars: the other sites, as far as they move.

    Attributes:
        reason: in words, why there is none; ``None`` where there is one.
    """

    def __init__(self, potential: Potential, scalars: Sequence[str]) -> None:
        self.potential = potential
        self.scalars = list(scalars)
        self.names = list(potential.priors)
        self.count = potential.num_chains or 1
        self.reason: str | None = None
        if not self.names:
            self.reason = "it has no source"
            return
        shapes = {tuple(potential.placeholder[name].shape[potential.batch_ndim :]) for name in self.names}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            self.reason = "its sources differ in shape, or stand in a plate"
            return
        self.time = next(iter(shapes))[0]
        like = potential.placeholder[self.names[0]]
        rows = [
            mean_spectrum(prior).to(like).double() + prior.sigma.to(like).double().square().mean()
            for prior in potential.priors.values()
        ]
        self.power = torch.stack(rows)  # (source, bins)
        self.sites: list[str] = []
        self.filters = False
        self._silence = False  # whether silent sources give a silent mix
        self._steady = False  # whether its noise is the same at all times
        self._observed: Tensor | None = None
        self._choose()

    def _choose(self) -> None:
        """Find the observed sites that depend on the sources, and in which way."""
        random = {name: torch.randn_like(self.potential.placeholder[name]) for name in self.names}
        values = self.potential.placeholder | random
        try:
            silent, heard = self._nodes(self._silent(values)), self._nodes(values)
            found = {name: (self._mean(silent[name]), self._mean(heard[name])) for name in self.potential.observed}
        except (AttributeError, NotImplementedError):
            self.reason = "an observation has no mean"
            return
        self.sites = [name for name, (one, other) in found.items() if not torch.equal(one, other)]
        if not self.sites or any(found[name][0].shape[-1] != self.time for name in self.sites):
            self.reason = "no observation has as many samples as the sources"
            return
        self._steady = all(not bool(_spread_over_time(heard[name]["fn"])) for name in self.sites)
        self._silence = all(not bool(found[name][0].any()) for name in self.sites)
        sources = torch.fft.rfft(self._stack(random).double())
        wanted = torch.cat([found[name][1] - found[name][0] for name in self.sites], 1)
        for filters in (False, True):
            self.filters = filters
            response = self._measure(values).response
            guess = torch.fft.irfft((response * sources.unsqueeze(1)).sum(2), n=self.time)
            if float((guess - wanted).abs().max()) <= _ROUNDING * float(wanted.abs().max()):
                return
        self.reason = "its observation is not a linear, time-invariant function of the sources"

    # --- the model, run ---------------------------------------------------------------------------------------

    def _nodes(self, values: Values) -> dict[str, Any]:
        nodes = self.potential.run(values).nodes
        return {name: nodes[name] for name in (*self.potential.observed, *self.scalars)}

    def _mean(self, node: Any) -> Tensor:
        base = base_distribution(node["fn"])
        mean = base.loc if has_location(node["fn"]) else node["fn"].mean
        return mean.double().reshape(self.count, -1, mean.shape[-1])

    def _silent(self, values: Values) -> Values:
        return values | {name: torch.zeros_like(values[name]) for name in self.names}

    def _stack(self, values: Values) -> Tensor:
        """Sources as ``(chains, source, time)``."""
        return torch.stack([values[name].reshape(self.count, self.time) for name in self.names], 1)

    def _log_prior(self, nodes: dict[str, Any]) -> Tensor:
        total = self.power.new_zeros(self.count)
        for name in self.scalars:
            value, to_unconstrained = nodes[name]["value"], self.potential.transforms[name]
            log_prob = nodes[name]["fn"].log_prob(value).double().reshape(self.count, -1).sum(-1)
            volume = to_unconstrained.log_abs_det_jacobian(value, to_unconstrained(value))
            total = total + log_prob - volume.double().reshape(self.count, -1).sum(-1)
        for name in self.potential.observed:
            if name not in self.sites:  # which tell of the scalars alone
                node = nodes[name]
                total = total + node["fn"].log_prob(node["value"]).double().reshape(self.count, -1).sum(-1)
        return total

    def _levels(self, nodes: dict[str, Any]) -> Tensor:
        """Noise of each channel, ``(chains, channel, 1)``; where it changes over time, by its mean precision."""
        noise = []
        for name in self.sites:
            fn = nodes[name]["fn"]
            base = base_distribution(fn)
            scale = base.scale if has_location(fn) else base.variance.sqrt()
            scale = scale.double().expand(base.batch_shape + base.event_shape).reshape(self.count, -1, self.time)
            noise.append(scale[..., :1] if self._steady else scale.square().reciprocal().mean(-1, keepdim=True).rsqrt())
        return torch.cat(noise, 1)

    def _residual(self, nodes: dict[str, Any], offset: Tensor | float) -> Tensor:
        """The data less the offset, in the frequency domain."""
        if self._observed is None:
            rows = []
            for name in self.sites:
                fn, value = nodes[name]["fn"], nodes[name]["value"].double()
                rows.append(value.expand(fn.batch_shape + fn.event_shape).reshape(self.count, -1, self.time))
            self._observed = torch.cat(rows, 1)
            self._observed_bins = torch.fft.rfft(self._observed)
        return self._observed_bins if isinstance(offset, float) else torch.fft.rfft(self._observed - offset)

    def _heard(self, nodes: dict[str, Any]) -> Tensor:
        return torch.cat([self._mean(nodes[name]) for name in self.sites], 1)

    def _measure(self, values: Values) -> _Measured:
        offset: Tensor | float = 0.0
        silent = self._silent(values)
        if not self._silence:
            offset = self._heard(self._nodes(silent))
        if self.filters:
            rows = []
            for name in self.names:
                impulse = torch.zeros_like(silent[name])
                impulse[..., 0] = 1.0
                nodes = self._nodes(silent | {name: impulse})
                rows.append(torch.fft.rfft(self._heard(nodes) - offset))
            response = torch.stack(rows, 2)
        else:
            places = [(2 * k + 1) * self.time // (2 * len(self.names)) for k in range(len(self.names))]
            for name, place in zip(self.names, places, strict=True):
                silent[name][..., place] = 1.0
            nodes = self._nodes(silent)
            response = (self._heard(nodes) - offset)[..., places].unsqueeze(-1)
        return _Measured(response, self._residual(nodes, offset), self._levels(nodes), self._log_prior(nodes))

    # --- what it is for ---------------------------------------------------------------------------------------

    def given(self, values: Values) -> Conditional:
        """The Gaussian of the sources given constrained ``values`` of the other sites."""
        found = self._measure(values)
        coupling = found.response * self.power.sqrt() / found.noise.unsqueeze(-1)
        return Conditional.of(coupling, found.residual / found.noise, self.time)

    def log_marginal(self, values: Values) -> Tensor:
        r"""Log-density of the scalars given the data, up to a constant, with the sources integrated out: ``(chains,)``.

        In nats, in the unconstrained space, by the covariance :math:`V = H P H^H + n^2` of the data at each frequency.
        """
        found = self._measure(values)
        residual, squares = found.residual, found.noise.square()
        if residual.shape[1] == 1:
            gains = found.response.abs().square().squeeze(1)  # (chains, source, bins or 1)
            power = gains[..., 0] @ self.power if gains.shape[-1] == 1 else (gains * self.power).sum(1)
            total = power + squares[:, 0]
            misfit = residual[:, 0].abs().square() / total
            log_det = total.log()
        else:
            scaled = found.response * self.power.sqrt()
            cross = (scaled.unsqueeze(2) * scaled.unsqueeze(1).conj()).sum(3).movedim(-1, 1)
            root = torch.linalg.cholesky(cross + torch.diag_embed(squares.squeeze(-1)).unsqueeze(1))
            log_det = 2 * root.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
            column = residual.mT.unsqueeze(-1).to(root.dtype if root.is_complex() else residual.dtype)
            misfit = torch.linalg.solve_triangular(root.to(column.dtype), column, upper=False)
            misfit = misfit.abs().square().sum((-1, -2))
        return found.log_prior - 0.5 * full_sum(log_det + misfit / self.time, self.time)

    def transport(self, values: Values, here: Conditional, there: Conditional) -> tuple[Values, Tensor]:
        r"""Sources taken from one Gaussian's place to the same place of another, and the log-determinant of that.

        :math:`X' = \mu' + R' R^{-1} (X - \mu)`: where the sources are a draw of the first, they become one of the
        second, and the way back is the inverse map.

        Returns:
            the sources by name, in the shape and precision of ``values``, and ``(chains,)``.
        """
        amplitude = self.power.sqrt()
        x = torch.fft.rfft(self._stack(values).double()) / amplitude
        moved = there.mean + there.root(here.inverse_root(x - here.mean))
        sources = torch.fft.irfft(amplitude * moved, n=self.time)
        new = {
            name: sources[:, k].reshape(values[name].shape).to(values[name].dtype) for k, name in enumerate(self.names)
        }
        return new, there.log_det - here.log_det


class ConditionalPreconditioner(Preconditioner):
    """The root of the surrogate's covariance at each chain's own values of the other sites.

    Arguments:
        surrogate: of the model.
        given: the Gaussian at the chains' values.
        scales: of sites that are no sources; those that are left out don't move.
    """

    def __init__(self, surrogate: Surrogate, given: Conditional, scales: Values) -> None:
        self.names, self.time, self.count = surrogate.names, surrogate.time, surrogate.count
        self.scales = scales
        dtype = surrogate.potential.placeholder[self.names[0]].dtype

        def cast(value: Tensor) -> Tensor:
            return value.to(dtype.to_complex() if value.is_complex() else dtype)

        self._amplitude = cast(surrogate.power.sqrt())
        self._given = Conditional(*(cast(getattr(given, field.name)) for field in fields(given)))

    def _bins(self, values: Values) -> Tensor:
        return torch.fft.rfft(torch.stack([values[name].reshape(self.count, self.time) for name in self.names], 1))

    def _back(self, bins: Tensor, values: Values) -> Values:
        sources = torch.fft.irfft(bins, n=self.time)
        out = {name: sources[:, k].reshape(values[name].shape) for k, name in enumerate(self.names)}
        for name in values:
            if name not in out:
                out[name] = values[name] * self.scales[name] if name in self.scales else torch.zeros_like(values[name])
        return {name: out[name] for name in values}

    def color(self, white: Values) -> Values:
        return self._back(self._amplitude * self._given.root(self._bins(white)), white)

    def whiten_gradient(self, gradient: Values) -> Values:
        return self._back(self._given.root(self._amplitude * self._bins(gradient)), gradient)


def _spread_over_time(fn: Any) -> Tensor:
    base = base_distribution(fn)
    scale = (base.scale if has_location(fn) else base.variance.sqrt()).expand(base.batch_shape + base.event_shape)
    return (scale - scale[..., :1]).abs().max()
