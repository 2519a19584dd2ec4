"""A search that takes all sources down the noise levels together, and shares out what they leave of the mix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyrosep.errors import ConfigurationError, DivergenceError
from pyrosep.infer.linear import linear_mix_of
from pyrosep.infer.potential import Potential, Values
from pyrosep.infer.response import LinearMix
from pyrosep.infer.search.chains import Moves, SearchedChains
from pyrosep.infer.search.ladder import noise_ladder
from pyrosep.infer.search.widening import common_transform, required_transform
from pyrosep.priors import SourcePrior
from pyrosep.priors.base import rms
from pyrosep.signal.spectra import ShortTimeSpectrum

__all__ = ["LEVELS", "Descent", "DescentMoves", "Heard", "descends_from_mix", "descent_ladder", "share_out"]

#: Noise levels, by default.
LEVELS = 4

#: How far chains go from a guide's start to the mix.
_DOUBT = 0.25


class Heard(NamedTuple):
    """What denoisers make of sources at a level, each by itself.

    Attributes:
        clean: their means, ``(chains, source, time)`` with some samples more at both ends.
        claims: in each bin, by how much what is left of the mix is due to each, ``(chains, source, frame, bin)``.
        variance: of what they don't know, the same shape.
        before: samples more at the beginning.
        time: samples that are asked for.
    """

    clean: Tensor
    claims: Tensor
    variance: Tensor
    before: int
    time: int


class Descent:
    r"""Ancestral descent of all sources at once, for priors whose denoisers filter one short-time spectrum.

    At a level :math:`\sigma` every denoiser gives its source's mean :math:`D_k` in each bin given :math:`x_k` alone, by
    a filter :math:`g_k`, and with it a variance :math:`C_k`. A draw of the sources given the mix too is then, by
    Matheron's rule, a draw without the mix, moved to where it explains the mix:

    .. math:: s_k = \tilde s_k + g_k a_k^T \Big(\frac{1}{\lambda\sigma^2} I + \sum_j g_j a_j a_j^T\Big)^{-1}
              \Big(m - \sum_j a_j \tilde s_j - \lambda^{-1/2} \epsilon_0\Big), \qquad
              \tilde s_k = D_k + \sqrt{C_k}\, \epsilon_k,

    and the chain goes on to the next level :math:`\sigma'` given these (Ho et al., 2020):

    .. math:: x_k \leftarrow s_k + r (x_k - s_k) + \sigma' \sqrt{1 - r}\, \epsilon, \qquad r = \sigma'^2 / \sigma^2.

    With :math:`C_k = g_k \sigma^2` that is exact, at any number of levels, for sources that are Gaussian in each bin.
    No step is corrected by a gradient. With ``spread=0`` the chain follows the means instead, all :math:`\epsilon` but
    those of the noise levels left out.

    Denoisers that know interference are told of it all the way, for what is wrong with :math:`s_k` is other sources.
    What they don't know is then more than noise, and its power in a bin is read off the signal:
    :math:`C_k = g_k (1 - g_k) |X_k|^2`.

    The spectra's windows lie elsewhere at each level, at random, so that what they do at their edges averages out.
    The second half of the chains has the noise of the first half with the other sign: each chain by itself is a draw,
    and in the mean of two the errors that noise makes in first order cancel (antithetic draws, Hammersley & Morton,
    1956).

    Arguments:
        priors: in the order of the mix's sources.
        spread: of the draws at a level about their means, relative to the deviations that the denoisers tell.

    Raises:
        ConfigurationError: priors that it is not for.

    Shapes: sources are ``(chains, source, time)``.
    """

    def __init__(self, priors: Sequence[SourcePrior], *, spread: float = 1.0) -> None:
        self.spread = spread
        self.transform = required_transform(list(priors), "shared")
        self.priors = [prior.frame(prior.time + self.transform.hop) for prior in priors]
        #: Whether all priors know interference.
        self.told = all(prior.knows_interference for prior in priors)

    def start(self, mix: LinearMix) -> Tensor:
        """Where a descent begins that knows nothing: the mix, if all priors know interference, and else silence.

        The mix is each source with all others for interference.
        """
        if not self.told:
            return mix.observed.new_zeros(*mix.gains.shape[:2], mix.observed.shape[-1])
        return mix.gains @ mix.observed / mix.power.unsqueeze(-1).clamp(min=1e-30)

    def down(self, sources: Tensor, mix: LinearMix, ladder: Sequence[float]) -> Tensor:
        """The sources at the end of a ladder of falling levels, from what they are taken for at its top."""
        return self.drawn(self.at_last_level(sources, mix, ladder), mix, ladder[-1])

    def at_last_level(self, sources: Tensor, mix: LinearMix, ladder: Sequence[float]) -> Tensor:
        """The sources' values at the last level of a ladder, from what they are taken for at its top."""
        x = sources + ladder[0] * _noise(sources)
        for number, (sigma, after) in enumerate(itertools.pairwise(ladder)):
            sources = self.drawn(x, mix, sigma)
            # What x was started with is no draw given the mix: its noise alone is.
            share = (after / sigma) ** 2 if number else 0.0
            x = sources + share * (x - sources) + after * (1 - share) ** 0.5 * _noise(x)
        return x

    def drawn(self, x: Tensor, mix: LinearMix, sigma: float, *, spread: float | None = None) -> Tensor:
        """The sources given their values at a level, and the mix; ``spread=0`` for their means."""
        return self.given(self.heard(x, sigma), mix, spread=spread)

    def heard(self, x: Tensor, sigma: float) -> Heard:
        """What the denoisers make of the sources' values at a level, each by itself: one call of each."""
        hop, time = self.transform.hop, x.shape[-1]
        before = int(torch.randint(hop, ()))
        x = pad(x, (before, hop - before))
        clean, gain, variance = [], [], []
        for prior, own in zip(self.priors, x.unbind(1), strict=True):
            found, share = prior.at(max(sigma, prior.sigma_min), interference=float(prior.knows_interference)).filtered(
                own
            )
            clean.append(found)
            gain.append(share)
            if prior.knows_interference:
                variance.append(share * (1 - share) * torch.view_as_real(self.transform(own)).square().sum(-1))
            else:
                variance.append(sigma**2 * share)
        return Heard(torch.stack(clean, 1), sigma**2 * torch.stack(gain, 1), torch.stack(variance, 1), before, time)

    def given(self, heard: Heard, mix: LinearMix, *, spread: float | None = None) -> Tensor:
        """A draw of the sources given what the denoisers heard, and the mix; ``spread=0`` for their means."""
        spread = self.spread if spread is None else spread
        clean, hop = heard.clean, self.transform.hop
        observed = pad(mix.observed, (heard.before, hop - heard.before))
        if spread:
            deviation = spread * heard.variance.sqrt()
            clean = clean + self.transform.inverse(deviation * self.transform(_noise(clean)), clean.shape[-1])
            observed = observed - spread * mix.noise.unsqueeze(-1) * _noise(observed)
        found = share_out(clean, heard.claims, LinearMix(observed, mix.gains, mix.noise), self.transform)
        return found[..., heard.before : heard.before + heard.time]


@dataclass(frozen=True)
class DescentMoves(Moves):
    """All sources go down the levels together: a :class:`Descent`.

    One that starts anew begins where nothing is known, with priors that know interference at the mix; the ladder then
    needs no levels above the sources' own loudness. From a guide's start it goes a quarter of the way to the mix,
    and through the lower half of the ladder: what the guide took from a source comes back with other sources around it,
    which such denoisers know what to do with.

    For linear mixes of fixed gains with Normal noise, and priors whose denoisers filter one short-time spectrum.

    Attributes:
        spread: of the draws at a level about their means: 1 for draws, 0 for the estimate of least squared error.
    """

    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 2:
            raise ConfigurationError(f"spread must be from 0 to 2; got {self.spread!r}")

    def ladder(self, priors: Mapping[str, SourcePrior], levels: int | None = None) -> tuple[float, ...]:
        return descent_ladder(priors, LEVELS if levels is None else levels)

    def on(self, potential: Potential, z: Values, ladder: Sequence[float]) -> SearchedChains:
        return DescendedChains(potential, z, ladder, self.spread)


class DescendedChains(SearchedChains):
    """Chains that go down the levels by a :class:`Descent`: see :class:`DescentMoves`."""

    blocks = False

    def __init__(self, potential: Potential, z: Values, ladder: Sequence[float], spread: float) -> None:
        super().__init__(potential, z, ladder)
        found = linear_mix_of(potential, potential.constrain(z))
        if isinstance(found, str):
            raise ConfigurationError(f"a descent needs a mix that is linear in its sources; {found}")
        if others := [name for name in z if name not in self.names]:
            raise ConfigurationError(
                f"a descent needs a model whose latent sites are sources; {', '.join(others)} are none. Give "
                "them values (poutine.condition), or use SweepMoves()"
            )
        if found.kept is not None:
            raise ConfigurationError(
                "a descent needs an observation of every sample, and this one is masked; use SweepMoves()"
            )
        self.mix = found
        self.descent = Descent(potential.rows.priors, spread=spread)

    def descend(self, chains: Tensor, ladder: Sequence[float], blocks: Tensor | None, *, anew: bool = True) -> None:
        assert blocks is None, "all sources go down together"
        mix = LinearMix(self.mix.observed[chains], self.mix.gains[chains], self.mix.noise[chains])
        sources = self.descent.start(mix)
        if not anew:
            given = self._sources(chains)
            sources = given + (_DOUBT * (sources - given) if self.descent.told else 0.0)
        sources = self.descent.down(sources, mix, ladder)
        self.calls[chains.cpu()] += len(ladder) * len(self.rows)
        if not bool(sources.isfinite().flatten(1).all(-1).any()):
            raise DivergenceError("no chain is finite any more at the end of the search; look at the data")
        self._put(chains, sources)

    def begin(self, chains: Tensor, ladder: Sequence[float]) -> None:
        self.descend(chains, ladder, None)

    def places(self, levels: Tensor) -> Tensor:
        # A guide knows what the upper half of the ladder is there to find out, whatever its deviations say.
        return torch.full((len(levels),), len(self.ladder) // 2 if self.descent.told else 0)

    def _own_noise(self) -> Tensor:
        own = torch.stack([prior.sigma.mean().to(self.mix.gains) for prior in self.rows.priors])
        return (self.mix.power * own.square()).sum(-1) / self.mix.observed.shape[1]


def descends_from_mix(priors: Sequence[SourcePrior]) -> bool:
    """Whether a :class:`Descent` of these can start from the mix: they filter one spectrum and know interference."""
    return common_transform(list(priors)) is not None and all(prior.knows_interference for prior in priors)


def descent_ladder(priors: Mapping[str, SourcePrior], levels: int = LEVELS) -> tuple[float, ...]:
    """Noise levels for a :class:`Descent`, in equal ratios.

    If all priors know interference, from two and a half times as loud as the loudest source down to a sixth of
    that: above it a source is lost, and below it little changes; a single level is in their middle. Else those of
    :func:`~pyrosep.infer.noise_ladder`.

    Arguments:
        priors: by source.
        levels: how many.
    """
    if not all(prior.knows_interference for prior in priors.values()):
        return noise_ladder(priors, levels)
    top = 2.5 * max(map(rms, priors.values()))
    return (top / math.sqrt(6),) if levels == 1 else noise_ladder(priors, levels, top=top, bottom=top / 6)


def share_out(clean: Tensor, variance: Tensor, mix: LinearMix, transform: ShortTimeSpectrum) -> Tensor:
    r"""Means of Gaussian sources given a linear mix of them, bin by bin: see :class:`Descent`.

    Arguments:
        clean: their means without the mix, :math:`D_k`, ``(chains, source, time)``.
        variance: in the bins of the short-time spectrum, :math:`C_k`, ``(chains, source, frame, bin)``.
        mix: observation, gains and noise.
        transform: of the short-time spectrum.

    Returns:
        ``(chains, source, time)``.
    """
    left = transform(mix.remainder(clean))  # (chains, channel, frame, bin)
    seen = variance.unsqueeze(2) * mix.gains[..., None, None]  # C_k a_k, (chains, source, channel, frame, bin)
    noise = mix.noise.square()[..., None, None]
    if left.shape[1] == 1:
        total = (seen * mix.gains[..., None, None]).sum(1) + noise
        shared = seen[:, :, 0] * (left / total)
    else:
        covariance = torch.einsum("nkctf,nkd->ntfcd", seen, mix.gains)
        covariance = covariance + torch.diag_embed(noise.expand(covariance.shape[:-1]))
        pull = torch.linalg.solve(covariance + 0j, left.permute(0, 2, 3, 1).unsqueeze(-1)).squeeze(-1)
        shared = torch.einsum("nkctf,ntfc->nktf", seen + 0j, pull)
    return clean + transform.inverse(shared, clean.shape[-1])


def _noise(like: Tensor) -> Tensor:
    """White noise; that of the second half of the chains is the first half's with the other sign."""
    half = torch.randn(-(-len(like) // 2), *like.shape[1:], dtype=like.dtype, device=like.device)
    return torch.cat([half, -half])[: len(like)]
