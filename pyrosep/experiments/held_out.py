"""Held-out frames of every source, and what a set of priors says of frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrosep.data import RandomCrops, ToySource
from pyrosep.data.catalog import open_songs
from pyrosep.data.toy import WAVES
from pyrosep.errors import ConfigurationError, DataError
from pyrosep.metrics import SILENCE_DB
from pyrosep.priors import OscillatorPrior, SourcePrior

__all__ = ["HeldOut", "LogDensities"]

#: Added to the seed, so that frames are others than those that a prior is fitted to with the same seed.
_APART = 2**32
#: Frames at a time.
_BATCH = 16


class LogDensities(NamedTuple):
    """Of frames under one prior, in nats, ``(n,)`` each.

    Attributes:
        nats: the log-density.
        latent: of a flow, the log-density of its white noise, without any log-determinant; else None.
        talk: of a flow, that of its latent variables under their split priors, without the log-determinants of
            couplings and normalisations; else None.
        exact: the log-density under the exact prior, where that is known; else None.
    """

    nats: Tensor
    latent: Tensor | None
    talk: Tensor | None
    exact: Tensor | None

    def row(self, time: int) -> dict[str, Any]:
        """Means over the frames of ``time`` samples, as they stand in a table; NaN where there is none."""

        def mean(values: Tensor | None, per: int = 1) -> float:
            return math.nan if values is None else values.mean().item() / per

        count = len(self.nats)
        return {
            "frames": count,
            "nats_per_frame": mean(self.nats),
            "std_error": self.nats.std().item() / count**0.5 if count > 1 else math.nan,
            "nats_per_sample": mean(self.nats, time),
            "latent_per_sample": mean(self.latent, time),
            "talk_per_sample": mean(self.talk, time),
            "exact_per_frame": mean(self.exact),
            "below_exact": mean(self.exact) - mean(self.nats),
        }


class HeldOut:
    r"""Clean frames that no prior was fitted to, and the priors that judge them.

    Arguments:
        priors: by source. All must have densities, and one sample rate.
        data: ``"toy"``, whose exact priors are known; or recordings of the sources that the priors were not fitted
            to: ``"musdb"``, or a folder of stems. Of recordings random crops are taken, silent ones (below -60 dB)
            passed over.
        frame: samples in a frame.
        frames: of each source.
        seed: of frames and noise. The noise of a frame is the same at every level.
        subset: of MUSDB18, ``"train"`` or ``"test"``.
        device: where the priors are.

    Attributes:
        clean: ``(source, frame, time)``, in double precision.
        noise: white, of variance 1, of the same shape.
        exact: the exact priors by source; empty where they are not known.

    Raises:
        ConfigurationError: no priors, priors without a density or of other sources than the data's, a bad size.
        DataError, MissingFileError: recordings that lack a source, or in which it hardly sounds.
    """

    def __init__(
        self,
        priors: Mapping[str, SourcePrior],
        data: str = "toy",
        *,
        frame: int = 2048,
        frames: int = 100,
        seed: int = 0,
        subset: str = "test",
        device: str | torch.device = "cpu",
    ) -> None:
        if not priors or frames < 1:
            raise ConfigurationError(
                f"expected at least one prior and one frame; got {len(priors)} priors and frames={frames}"
            )
        if bare := [name for name, prior in priors.items() if not prior.has_density]:
            raise ConfigurationError(
                f"the priors of {bare} have no density: their log_prob only has the gradient of one, and says "
                "nothing of how likely a frame is; give priors of another family"
            )
        if len(rates := {prior.sample_rate for prior in priors.values()}) > 1:
            raise ConfigurationError(f"expected priors of one sample rate; got {rates}: give those of one model")
        self.sources = list(priors)
        self.priors = {name: prior.frame(frame) for name, prior in priors.items()}
        self.time, self.data = frame, data
        self.exact: dict[str, OscillatorPrior] = {}
        if data == "toy":
            if unknown := [name for name in priors if name not in WAVES]:
                raise ConfigurationError(
                    f"toy data has the sources {WAVES}; the priors are of {unknown}: give data that has those"
                )
            self.exact = {name: OscillatorPrior(name, frame).to(device) for name in priors}
            toys = [ToySource(name, frame, frames, seed + _APART) for name in priors]
            clean = [[toy[index] for index in range(frames)] for toy in toys]
        else:
            songs, _ = open_songs(data, subset=subset, sources=self.sources)
            (rate,) = rates
            clean = [_sounding(songs, name, frame, rate, frames, seed + _APART) for name in priors]
        self.clean = torch.stack([torch.stack(one) for one in clean]).double().to(device)
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(self.clean.shape, generator=generator).to(self.clean)

    def checked_levels(self, levels: Sequence[float], *, least: float | None = None) -> list[float]:
        """Noise levels, rising, each once; refused below the priors' lowest (or below ``least``).

        Raises:
            ConfigurationError: there is none, or one is too low.
        """
        lowest = max(prior.sigma_min for prior in self.priors.values()) if least is None else least
        if not levels or not all(lowest * (1 - 1e-6) <= level < math.inf for level in levels):
            raise ConfigurationError(
                f"expected noise levels of at least {lowest:g}, the lowest that there is; got {list(levels)}"
            )
        return sorted(set(levels))

    def noised(self, source: str, sigma: float) -> Tensor:
        """The source's frames with noise of a level, ``(frame, time)``."""
        index = self.sources.index(source)
        return self.clean[index] + sigma * self.noise[index]

    def judge(self, source: str, x: Tensor, sigma: float) -> LogDensities:
        """Log-densities of frames ``(n, time)`` under the source's prior at a noise level."""
        prior, exact = self.priors[source].at(sigma), self.exact.get(source)
        with torch.no_grad():
            parts = [
                _log_densities(prior, None if exact is None else exact.at(sigma), part) for part in x.split(_BATCH)
            ]
        columns: list[Any] = [None if one[0] is None else torch.cat(one) for one in zip(*parts, strict=True)]
        return LogDensities(*columns)

    def denoise(self, source: str, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Frames ``(n, time)`` denoised by the source's prior, and by its exact one; NaN where that is not known."""
        prior, exact = self.priors[source].at(sigma), self.exact.get(source)
        mine = torch.cat([prior.denoise(part) for part in x.split(_BATCH)])
        if exact is None:
            return mine, torch.full_like(x, math.nan)
        return mine, torch.cat([exact.at(sigma).denoise(part) for part in x.split(_BATCH)])


def _log_densities(prior: SourcePrior, exact: SourcePrior | None, x: Tensor) -> LogDensities:
    true = None if exact is None else exact.log_prob(x)
    parts = prior.log_prob_parts(x)
    if parts is None:
        return LogDensities(prior.log_prob(x), None, None, true)
    white, log_det, splits = parts
    return LogDensities(white + log_det, white, white + splits, true)


def _sounding(songs: Any, source: str, frame: int, rate: int | None, count: int, seed: int) -> list[Tensor]:
    crops = RandomCrops(songs, source, frame, rate, size=20 * count, seed=seed)
    loud = (
        crop for crop in (crops[index] for index in range(len(crops))) if crop.square().mean() > 10 ** (SILENCE_DB / 10)
    )
    found = list(islice(loud, count))
    if len(found) < count:
        raise DataError(
            f"of {len(crops)} random frames of {source!r} only {len(found)} are above {SILENCE_DB:g} dB; {count} were "
            "asked for: take fewer frames, or recordings in which it plays more"
        )
    return found
