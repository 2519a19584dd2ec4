"""Moves that redraw whole sources given the others, in mixes that are linear: sweeps, block redraws, exchanges."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrosep.errors import DivergenceError
from pyrosep.infer.response import LinearMix
from pyrosep.priors import SourcePrior
from pyrosep.priors.base import rms

__all__ = ["Redraws"]


class Redraws:
    r"""Draws of sources from their conditionals under a linear mix.

    What the others leave of the mix for source k is that source in white noise, so its conditional is the prior's own
    posterior at that noise level, :meth:`~pyrosep.SourcePrior.draw_clean`: exact for the exact priors, a short reverse
    diffusion for learned ones. At a level :math:`\sigma` of a ladder the mix's noise is widened to
    :math:`\lambda^{-1} + \bar a^2 (\sigma^2 - \sigma_0^2)`, with :math:`\bar a^2` the mean squared gain: as though one
    source were noised and the others known. A sweep leaves

    .. math:: \pi_\sigma(x) \propto \prod_k p_{\sigma_0}(x_k)\,
              N\big(m; \textstyle\sum_k a_k x_k, \lambda^{-1} + \bar a^2(\sigma^2 - \sigma_0^2)\big)

    invariant (Gibbs sampling), and at :math:`\sigma = \sigma_0` that is the model's own posterior.

    Arguments:
        priors: of the sources, in the order of the mix.
        mix: what the model is; see :func:`~pyrosep.infer.linear_mix_of`.
        reverse_steps: denoiser calls of a draw, for priors whose draws are a reverse diffusion.
    """

    def __init__(self, priors: Sequence[SourcePrior], mix: LinearMix, *, reverse_steps: int = 8) -> None:
        self.priors = [_with_steps(prior, reverse_steps) for prior in priors]
        self.mix = mix
        #: Denoiser calls so far, chain by chain; an exact draw is one.
        self.calls = torch.zeros(len(mix.observed), dtype=torch.int64)
        #: Noise levels of the priors themselves, ``(source,)``.
        self.own = torch.stack([prior.sigma.mean().to(mix.gains) for prior in self.priors])

    @property
    def floor(self) -> float:
        """The level of a source in what the mix's own noise leaves of it: lower levels of a ladder change little."""
        return float((self.mix.noise.squeeze(-1) / self.mix.power.mean(-1).sqrt()).min())

    def draw(self, sources: Tensor, index: Tensor, chains: Tensor, sigma: float) -> Tensor:
        """Source ``index`` of each of ``chains`` drawn given the others, ``(n, time)``.

        Arguments:
            sources: of those chains, ``(n, source, time)``.
            index: of a source for each chain, ``(n,)``.
            chains: their numbers, ``(n,)``.
            sigma: level of the ladder.

        A draw that a learned denoiser leads astray is NaN.
        """
        own, common = self.own[index], self.own.square().mean()
        wide = self.mix.noise[chains, 0].square()
        wide = wide + self.mix.power[chains].mean(-1) * (sigma**2 - common).clamp(min=0)
        residual = self.mix.residual(sources, index, chains, wide.sqrt())
        level = (own.square() + wide / self.mix.power[chains, index]).sqrt()
        drawn = torch.empty_like(residual)
        for number, prior in enumerate(self.priors):
            rows = torch.nonzero(index == number).flatten()
            if len(rows):
                # What the others leave is the source in noise, and while the search goes on in what they got wrong.
                others = float(prior.knows_interference and sigma > 0)
                drawn[rows] = _drawn(prior.at(level[rows], others), residual[rows], own[rows])
        cost = [1 if prior.exact_draws else prior.reverse_steps + 1 for prior in self.priors]
        self.calls[chains.cpu()] += torch.tensor(cost)[index.cpu()]
        return drawn

    def sweep(self, sources: Tensor, chains: Tensor, sigma: float, blocks: Tensor | None = None) -> Tensor:
        """Every source of ``chains``, or those in ``blocks`` ``(n, size)``, redrawn in random order."""
        sources = sources.clone()
        rows = torch.arange(len(chains), device=chains.device)
        if blocks is None:
            blocks = rows.new_tensor(range(len(self.priors))).expand(len(chains), -1)
        order = torch.rand(blocks.shape, device=blocks.device).argsort(-1)
        for index in blocks.gather(-1, order).unbind(-1):
            sources[rows, index] = self.draw(sources, index, chains, sigma)
        return sources

    def exchange(self, sources: Tensor, chains: Tensor, pairs: Tensor) -> Tensor:
        """Two sources take over what the other one explained, roughly, and settle: ``pairs`` are ``(n, 2)``.

        A search in which one source holds another's place can't be mended one source at a time; this takes four draws
        where a redraw of the pair takes dozens.
        """
        sources = sources.clone()
        rows = torch.arange(len(chains), device=chains.device)
        first, second = pairs.unbind(-1)
        # The second stands in for the first, which then sees what the second has explained so far.
        gains, power = self.mix.gains, self.mix.power
        scale = (gains[chains, second] * gains[chains, first]).sum(-1) / power[chains, second]
        sources[rows, second] = sources[rows, first] * scale.unsqueeze(-1)
        loud = max(rms(prior) for prior in self.priors) / 2
        for sigma in (loud, 0.0):
            for index in (first, second):
                sources[rows, index] = self.draw(sources, index, chains, sigma)
        return sources


def _drawn(prior: SourcePrior, value: Tensor, own: Tensor) -> Tensor:
    """Draws ``(n, time)`` at a prior's levels ``(n,)``; NaN where a learned denoiser leads one astray."""
    try:
        return prior.draw(value, own)
    except DivergenceError:
        if len(value) == 1:
            return torch.full_like(value, torch.nan)
    one = torch.arange(len(value), device=value.device).unsqueeze(-1)
    return torch.cat([_drawn(prior.at(prior.sigma[row]), value[row], own[row]) for row in one])


def _with_steps(prior: SourcePrior, steps: int) -> SourcePrior:
    if prior.exact_draws:
        return prior
    new = copy.copy(prior)
    new.reverse_steps = steps
    return new
