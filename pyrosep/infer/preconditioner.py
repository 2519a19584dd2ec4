r"""Preconditioners: linear maps :math:`L` from white coordinates to the model's, :math:`M = L L^T`.

A Langevin step with preconditioner :math:`M` is a plain one in the coordinates :math:`w = L^{-1} z`. Kernels need
two maps only: :math:`L` for displacements and noise, :math:`L^T` for gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, InitializationError, ShapeError
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.response import random_phase
from pyrosep.priors.base import mean_spectrum

__all__ = ["IdentityPreconditioner", "Preconditioner", "SpectralPreconditioner", "make_preconditioner"]


class Preconditioner(ABC):
    """What a kernel asks of a preconditioner. Values are dictionaries of unconstrained sites, chains in front."""

    @abstractmethod
    def color(self, white: Values) -> Values:
        """``L w``: a displacement in the model's coordinates, of one in white coordinates."""

    @abstractmethod
    def whiten_gradient(self, gradient: Values) -> Values:
        """``L^T g``: the gradient in white coordinates, of one in the model's coordinates."""


class IdentityPreconditioner(Preconditioner):
    """No preconditioning."""

    def color(self, white: Values) -> Values:
        return white

    def whiten_gradient(self, gradient: Values) -> Values:
        return gradient


class SpectralPreconditioner(Preconditioner):
    r"""The inverse of the posterior's curvature, frequency by frequency and jointly over the sources.

    Sources that are stationary and mixed in a way that does not change over time have a posterior whose precision is,
    at each frequency, a small matrix over the sources,

    .. math:: \Lambda(f) = \mathrm{diag}\big(1 / (P_k(f) + \sigma^2)\big) + H(f).

    The spectra :math:`P_k` come from the priors; :math:`H`, the curvature of everything else in the model (the
    observation, whatever it is), from the model itself: products of its Hessian with signals of unit modulus and
    random phase, correlated with these signals, and smoothed over frequency where they differ. So one rule serves any
    smooth mixing model, is exact for a linear Gaussian one that does not change over time, and is a stationary
    approximation elsewhere (negative curvature is left out). :math:`M = \Lambda^{-1}` and :math:`L` is its symmetric
    root.

    Sites that are no sources (gains, pans) are scaled by the inverse root of their own curvature.

    Arguments:
        potential: of the model.
        z: unconstrained values at which the curvature is measured, averaged over the chains.
        curvature: ``"posterior"``; ``"prior"`` to leave :math:`H` out, so that :math:`w` are the coordinates in which
            the priors are white; or ``"measured"``, the model's Hessian with the priors in it, for priors that hold
            their sources far closer than a Gaussian of the same spectrum would.
        probes: Hessian products a source.
    """

    def __init__(self, potential: Potential, z: Values, *, curvature: str = "posterior", probes: int = 2) -> None:
        if curvature not in ("posterior", "prior", "measured"):
            raise ConfigurationError(f"curvature must be 'posterior', 'prior' or 'measured'; got {curvature!r}")
        self.names = list(potential.priors)
        self.rows = potential.rows
        self.scales: Values = {}
        self.root: Tensor | None = None
        rest = [name for name in z if name not in potential.priors]
        if rest:
            self.scales = diagonal_scales(potential, z, rest, probes)
        if self.names:
            shapes = {tuple(z[name].shape if self.rows.plain else z[name].shape[-1:]) for name in self.names}
            if len(shapes) > 1:
                raise ShapeError(f"the spectral preconditioner needs sources of one shape; got {sorted(shapes)}")
            self.time = z[self.names[0]].shape[-1]
            own = 1.0 / self._variances(potential, z)  # (source, bins)
            if curvature == "measured":
                precision = self._curvature(potential, z, probes, without=[])
            else:
                precision = torch.diag_embed(own.mT)  # (bins, source, source)
            if curvature == "posterior":
                precision = precision + self._curvature(potential, z, probes, without=self.names)
            eigenvalues, vectors = torch.linalg.eigh(precision)
            # Measured in a place where the density curves the other way, a precision may be none.
            eigenvalues = eigenvalues.clamp(min=own.real.amin())
            root = (vectors * eigenvalues.rsqrt().unsqueeze(-2)) @ vectors.mH
            self.root = root.permute(1, 2, 0).to(z[self.names[0]].dtype.to_complex()).contiguous()  # (i, j, bins)

    def _variances(self, potential: Potential, z: Values) -> Tensor:
        """``P_k + sigma^2``, ``(source, bins)``."""
        like = z[self.names[0]]
        rows = [
            mean_spectrum(prior).to(like).double() + prior.sigma.to(like).double().square().mean()
            for prior in self.rows.priors
        ]
        return torch.stack(rows).to(torch.complex128)

    def _curvature(self, potential: Potential, single: Values, probes: int, *, without: list[str]) -> Tensor:
        """The Hessian but for the sites ``without``, ``(bins, source, source)``, Hermitian, positive semi-definite."""
        # A sharp observation has a curvature so large that single precision would drown the priors' in its rounding.
        try:
            z = {name: value.double() for name, value in single.items()}
            product = hessian_product(potential, z, without=without)
        except RuntimeError:  # a network of single precision within the model
            product = hessian_product(potential, single, without=without)
            z = single
        like = z[self.names[0]]
        bins = self.time // 2 + 1
        size = len(self.rows)
        found = like.new_zeros(probes, bins, size, size, dtype=torch.complex128)
        for column in range(size):
            for trial in range(probes):
                probe = random_phase(self.time, like)
                image = self.rows.stacked(product(self.rows.one(column, probe, z)))
                phase = torch.fft.rfft(probe)
                for row, own in enumerate(image.unbind(-2)):
                    cross = torch.fft.rfft(own) * phase.conj()
                    found[trial, :, row, column] = cross.reshape(-1, bins).mean(0)
        if not bool(found.isfinite().all()):
            bad = ~torch.view_as_real(found).isfinite().flatten(3).all(-1).all(0).all(0)
            sites = [label for label, wrong in zip(self.rows.labels, bad, strict=True) if wrong]
            raise InitializationError(
                f"the curvature of the model in {', '.join(map(repr, sites))} is not finite where chains are, though "
                "its gradient may be (a root or a norm at zero, for instance); start elsewhere, or give the kernel "
                "preconditioner='prior' or None"
            )
        curvature = found.mean(0)
        # Of a mix that does not change over time every probe finds the same, and echoes keep their fine structure;
        # elsewhere each finds the mean over time with an error of its own, which is smoothed away.
        if float((found - curvature).norm()) > 1e-3 * float(found.norm()):
            curvature = _smooth(curvature)
        eigenvalues, vectors = torch.linalg.eigh((curvature + curvature.mH) / 2)
        return (vectors * eigenvalues.clamp(min=0).unsqueeze(-2)) @ vectors.mH

    def _filter(self, values: Values) -> Values:
        out = {name: value * self.scales[name] for name, value in values.items() if name in self.scales}
        if self.root is not None:
            bins = torch.fft.rfft(self.rows.stacked(values))
            # A matrix product at each bin; einsum would transpose everything to batch it, five times slower.
            filtered = self.root[:, 0] * bins[..., :1, :]
            for column in range(1, len(self.rows)):
                filtered.addcmul_(self.root[:, column], bins[..., column : column + 1, :])
            out |= self.rows.split(torch.fft.irfft(filtered, n=self.time), values)
        return {name: out[name] for name in values}

    # The root is Hermitian, and its own transpose as an operator on real signals.
    def color(self, white: Values) -> Values:
        return self._filter(white)

    def whiten_gradient(self, gradient: Values) -> Values:
        return self._filter(gradient)


def make_preconditioner(
    kind: str | Callable[[Potential, Values], Preconditioner] | None, potential: Potential, z: Values
) -> Preconditioner:
    """One by name, ``None``, ``"spectral"``, ``"measured"`` or ``"prior"``, or from a function."""
    if kind is None:
        return IdentityPreconditioner()
    if kind == "spectral":
        return SpectralPreconditioner(potential, z)
    if kind in ("prior", "measured"):
        return SpectralPreconditioner(potential, z, curvature=kind)
    if callable(kind):
        return kind(potential, z)
    raise ConfigurationError(
        f"preconditioner must be None, 'spectral', 'measured', 'prior' or a function; got {kind!r}"
    )


def hessian_product(potential: Potential, z: Values, without: list[str]) -> Callable[[Values], Values]:
    """The map ``v -> H v``, with ``H`` the Hessian of ``U`` but for the sites ``without``."""
    leaves = {name: value.detach().requires_grad_() for name, value in z.items()}
    with torch.enable_grad():
        energy = potential(leaves, without)
        if not energy.requires_grad:  # of a model whose priors are all there is
            return lambda vector: {name: torch.zeros_like(value) for name, value in leaves.items()}
        gradients = torch.autograd.grad(energy.sum(), list(leaves.values()), create_graph=True, materialize_grads=True)
    by_name = dict(zip(leaves, gradients, strict=True))

    def product(vector: Values) -> Values:
        outputs = [by_name[name] for name in vector]
        if not any(output.requires_grad for output in outputs):
            return {name: torch.zeros_like(value) for name, value in leaves.items()}
        images = torch.autograd.grad(
            outputs, list(leaves.values()), list(vector.values()), retain_graph=True, materialize_grads=True
        )
        return dict(zip(leaves, images, strict=True))

    return product


def diagonal_scales(potential: Potential, z: Values, names: list[str], probes: int) -> Values:
    """One over the root of each element's curvature, averaged over the chains (Hutchinson's estimate)."""
    product = hessian_product(potential, z, without=list(potential.priors))
    curvature = {name: torch.zeros_like(z[name]) for name in names}
    for _ in range(probes):
        for name in names:
            sign = torch.randint_like(z[name], 2) * 2 - 1
            curvature[name] += sign * product({name: sign})[name] / probes
    scales = {}
    for name, value in curvature.items():
        mean = value.mean(0, keepdim=True) if potential.batch_ndim else value
        scales[name] = torch.where((mean > 0) & mean.isfinite(), mean.clamp(min=1e-12).rsqrt(), torch.ones_like(mean))
    return scales


def _smooth(curvature: Tensor) -> Tensor:
    """Moving average over a 64th of the band, which keeps a flat curvature as it is."""
    bins = curvature.shape[0]
    half = bins // 128
    if not half:
        return curvature
    flat = torch.view_as_real(curvature).reshape(bins, -1).mT.unsqueeze(0)
    padded = torch.nn.functional.pad(flat, (half, half), mode="reflect")
    smooth = torch.nn.functional.avg_pool1d(padded, 2 * half + 1, stride=1)
    return torch.view_as_complex(smooth[0].mT.reshape(*curvature.shape, 2).contiguous())
