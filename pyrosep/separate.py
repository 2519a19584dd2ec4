"""Separating a mix: posterior mean and standard deviation of its sources, window by window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrosep import audio, mixing
from pyrosep.diagnostics.modes import same_mode, weights_of
from pyrosep.diagnostics.summaries import audio_summaries
from pyrosep.errors import ConfigurationError, DataError, ShapeError
from pyrosep.guides import EncoderGuide
from pyrosep.infer import (
    MALA,
    AnnealedSGLD,
    GaussianPosterior,
    LangevinKernel,
    LangevinMCMC,
    fit_gains,
    noise_ladder,
)
from pyrosep.infer.annealed import check_coupling
from pyrosep.infer.descent import LEVELS, Descent, descends_from_mix, descent_ladder
from pyrosep.infer.ladder import check_ladder
from pyrosep.infer.noising import common_transform
from pyrosep.infer.response import LinearMix
from pyrosep.precision import chosen_precision
from pyrosep.priors import GaussianPrior, SourcePrior
from pyrosep.priors.base import full_sum
from pyrosep.priors.continuousflow import prepared
from pyrosep.windows import cross_fade, windows_of

__all__ = ["METHODS", "Separation", "Separator", "Settings", "separate"]

METHODS = ("langevin", "one-pass", "exact", "guide", "guide+langevin")

#: Levels of a search with the local coupling.
_LOCAL_LEVELS = 12
#: Chains that leave so many times the power of the mix that the best one leaves are passed over, without a density.
_FAR = 4.0
#: Values of one chain state that a batch of windows may have. Larger batches are slower on a CPU, whose allocator maps
#: their tensors anew at every step, and take memory on any device: all draws of a batch are held on the host.
_BATCH_VALUES = {"cpu": 1 << 19, "cuda": 1 << 22}


@dataclass(frozen=True)
class Settings:
    """How a mix is separated.

    Attributes:
        method: ``"langevin"`` (chains of :class:`~pyrosep.MALA`, after a search by :class:`~pyrosep.AnnealedSGLD` where
            the posterior may have several modes), ``"guide+langevin"`` (the same, each chain from a draw of the guide),
            ``"guide"`` (the guide's own mean and deviation), ``"exact"`` (closed form; Gaussian priors only), or
            ``"one-pass"`` (one call of each prior's denoiser, on the mix itself, for priors whose denoisers are filters
            and know interference: a :class:`~pyrosep.infer.descent.Descent` of one level).
            ``None`` is ``"guide+langevin"`` where there is a guide, else ``"langevin"``.
        coupling: of the search: ``"sweeps"``, ``"shared"``, or a coupling of :func:`~pyrosep.noised` for Langevin
            moves, see :class:`~pyrosep.AnnealedSGLD`; ``None`` for ``"shared"`` with priors whose denoisers are filters
            and know interference, ``"local"`` with other filters, sweeps with others that are not Gaussian, and no
            search with those that are.
        ladder: noise levels of the search, or how many; ``None`` for 20, with ``"local"`` 12, with ``"shared"`` 4.
            Giving either makes a search.
        redraws: block redraws of the search; see :class:`~pyrosep.AnnealedSGLD`.
        chains: chains for each window and channel; ``None`` for 4, with coupling ``"shared"`` 8. With ``"one-pass"``,
            as many draws, all from one call.
        draws: draws kept from each chain; ``None`` for 100, with couplings ``"local"`` and ``"shared"`` 1: where the
            search ends.
        warmup: steps before the first draw; ``None`` for 50, with couplings ``"local"`` and ``"shared"`` 0.
        segment: seconds in a window; ``None`` for the model's own frame.
        overlap: share of a window that it has in common with the next, below or equal to a half.
        gains: ``"mean"``, ``"level"``, ``"fit"``, or one gain a source; ``None`` for the model's own way; see
            :class:`~pyrosep.priors.ModelInfo`.
        precision: ``"32-true"`` or ``"bf16-mixed"``, of networks that can be evaluated in half precision; see
            :meth:`~pyrosep.ContinuousFlow.with_autocast`; ``"auto"`` for half precision of networks that stay
            accurate in it, on devices that are quicker in it.
        compile: whether networks are compiled by ``torch.compile``, which takes a minute or more at first; for many or
            long tracks. See :meth:`~pyrosep.ContinuousFlow.compiled`.
        noise_db: level of the observation noise below the mix's, in dB.
        keep: draws of the sources to give beside their mean: spread evenly over all draws, chain after chain. Each is a
            draw within its windows, which are independent of each other, cross-faded.
        temperature: by how much draws lie further from their mean than the chains of a search left them, so that
            intervals by them hold what they say; the mean stays. ``None`` for the model's own where it has one for the
            method (:func:`~pyrosep.calibration.calibrate`) and ``coupling`` is ``"shared"``, else 1.
        seed: of the chains.
    """

    method: str | None = None
    coupling: str | None = None
    ladder: int | Sequence[float] | None = None
    redraws: int = 24
    chains: int | None = None
    draws: int | None = None
    warmup: int | None = None
    segment: float | None = None
    overlap: float = 0.25
    gains: str | Sequence[float] | None = None
    precision: str = "auto"
    compile: bool = False
    noise_db: float = -60.0
    keep: int = 0
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS):
            raise ConfigurationError(f"method must be one of {METHODS}; got {self.method!r}")
        check_coupling(self.coupling)
        if self.ladder is not None and not isinstance(self.ladder, int):
            check_ladder(self.ladder)
        if isinstance(self.ladder, int) and self.ladder < 2:
            raise ConfigurationError(f"a ladder needs at least 2 levels; got {self.ladder}")
        for name, least in (("chains", 1), ("draws", 1), ("warmup", 0), ("redraws", 0)):
            if (given := getattr(self, name)) is not None and given < least:
                raise ConfigurationError(f"{name} must be at least {least}; got {given}")
        if self.method not in ("exact", "guide") and self.draws is not None and self.chains is not None:
            self.check_draws(self.chains, self.draws)
        if self.keep < 0:
            raise ConfigurationError(f"keep must be between 0 and the draws that there are; got {self.keep}")
        if self.segment is not None and not 0 < self.segment < math.inf:
            raise ConfigurationError(f"segment must be a positive number of seconds; got {self.segment}")
        if not 0 <= self.overlap <= 0.5:
            raise ConfigurationError(f"overlap must be between 0 and 0.5 of a window; got {self.overlap}")
        if isinstance(self.gains, str) and self.gains not in ("mean", "level", "fit"):
            raise ConfigurationError(f"gains must be 'mean', 'level', 'fit' or numbers; got {self.gains!r}")
        if self.gains is not None and not isinstance(self.gains, str) and not all(map(math.isfinite, self.gains)):
            raise ConfigurationError(f"gains must be finite; got {self.gains}")
        chosen_precision(self.precision, "cpu")  # whose error tells of others
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ConfigurationError(f"temperature must be a positive number; got {self.temperature}")
        if not self.noise_db < 0:
            raise ConfigurationError(f"noise_db must be below 0, under the mix; got {self.noise_db}")

    def check_draws(self, chains: int, draws: int) -> None:
        """Raise ConfigurationError where so many draws of each chain are too few."""
        if chains * draws < 2:
            raise ConfigurationError("one draw has no standard deviation; take at least 2 chains or draws")
        if self.keep > (most := chains * draws):
            raise ConfigurationError(f"keep must be between 0 and the {most} draws that there are; got {self.keep}")

    def chosen_method(self, guided: bool) -> str:
        """The method, or what ``None`` comes to with a guide or without one."""
        return self.method or ("guide+langevin" if guided else "langevin")

    def chosen_coupling(self, priors: Mapping[str, SourcePrior]) -> str | None:
        """The coupling, or what ``None`` comes to with these priors: still ``None`` where the kernel chooses."""
        if self.coupling is not None or common_transform(list(priors.values())) is None:
            return self.coupling
        return "shared" if descends_from_mix(list(priors.values())) else "local"

    def sampling(self, priors: Mapping[str, SourcePrior]) -> tuple[int, int, int]:
        """Chains, draws of each and steps before the first, or what ``None`` comes to with these priors."""
        coupling = self.chosen_coupling(priors)
        chains, draws, warmup = {"shared": (8, 1, 0), "local": (4, 1, 0)}.get(coupling or "", (4, 100, 50))
        return (
            chains if self.chains is None else self.chains,
            draws if self.draws is None else self.draws,
            warmup if self.warmup is None else self.warmup,
        )


@dataclass(frozen=True)
class Separation:
    """What is known of the sources of a mix.

    Attributes:
        names: of the sources.
        mean: posterior mean of each source as it is in the mix, ``(source, channel, time)``; they sum to the mix.
        stddev: posterior standard deviation of each sample, the same shape. Of chains from a guide with coupling
            ``"local"``, whose spread is far too small for one, in quadrature with the guide's own deviation.
        draws: posterior draws, ``(draw, source, channel, time)``, as many as ``Settings.keep``; each sums to the mix.
        gains: of the sources in the mix, ``(source,)``.
        summaries: of every draw, for R-hat and ESS, by name: ``(chain, draw, window, channel, ...)``; empty for the
            exact method.
    """

    names: tuple[str, ...]
    mean: Tensor
    stddev: Tensor
    draws: Tensor
    gains: Tensor
    summaries: dict[str, np.ndarray]


def separate(
    mix: Tensor,
    sample_rate: int,
    priors: Mapping[str, SourcePrior],
    settings: Settings | None = None,
    *,
    guide: EncoderGuide | None = None,
    model_gains: str = "level",
    model_temperatures: Mapping[str, float] | None = None,
    progress: Callable[[int], Any] = lambda samples: None,
) -> Separation:
    """Separate a mix in memory.

    Arguments:
        mix: ``(channel, time)``.
        sample_rate: Hz; it is resampled to the priors' and the sources back.
        priors: by source; see :func:`~pyrosep.load_priors`.
        settings: see :class:`Settings`.
        guide: of these sources, see :func:`~pyrosep.load_guide`; projected onto mixes of one channel.
        model_gains: what ``Settings.gains`` of ``None`` stands for; of a model that ships, ``model_info(name).gains``.
        model_temperatures: by method, what ``Settings.temperature`` of ``None`` stands for; likewise.
        progress: called with the number of samples finished, as they are.

    Raises:
        ShapeError: the mix is of another shape.
        ConfigurationError: settings that the priors can't serve.
        DataError: the mix is silent.

    Example:
        >>> from pyrosep import GaussianPrior
        >>> priors = {
        ...     "low": GaussianPrior(torch.tensor([1.0, 0.01]), 512, sample_rate=8000),
        ...     "high": GaussianPrior(torch.tensor([0.01, 1.0]), 512, sample_rate=8000),
        ... }
        >>> mix = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
        >>> result = separate(mix, 8000, priors, Settings(method="exact"))
        >>> result.mean.shape, result.mean.sum(0).allclose(mix, atol=1e-5)
        (torch.Size([2, 1, 2000]), True)
    """
    if mix.ndim != 2 or not mix.shape[1]:
        raise ShapeError(f"expected a mix (channel, time) with at least one sample; got shape {tuple(mix.shape)}")
    separator = Separator(
        priors, sample_rate, settings, guide=guide, model_gains=model_gains, model_temperatures=model_temperatures
    )
    separator.listen(windows_of(mix, separator.window, separator.window))
    blocks = []
    for block in separator.stream(windows_of(mix, separator.window, separator.hop)):
        blocks.append(block)
        progress(block.shape[-1])
    mean, stddev, *draws = torch.cat(blocks, -1).unbind(0)
    kept = torch.stack(draws) if draws else mean.new_zeros(0, *mean.shape)
    return Separation(separator.names, mean, stddev, kept, separator.gains, separator.summaries())


class Separator:
    """Separates one track in two passes over its windows, so that memory does not grow with the track.

    First :meth:`listen` to all of it, for the level of the mix and the gains; then :meth:`stream` gives the sources of
    consecutive blocks.

    Arguments:
        priors: by source, all of one sample rate.
        sample_rate: of the track, Hz.
        settings: see :class:`Settings`.
        guide: of these sources.
        model_gains: what ``Settings.gains`` of ``None`` stands for.
        model_temperatures: by method, what ``Settings.temperature`` of ``None`` stands for.
    """

    def __init__(
        self,
        priors: Mapping[str, SourcePrior],
        sample_rate: int,
        settings: Settings | None = None,
        *,
        guide: EncoderGuide | None = None,
        model_gains: str = "level",
        model_temperatures: Mapping[str, float] | None = None,
    ) -> None:
        if not priors:
            raise ConfigurationError("expected at least one prior; got none")
        self.settings = settings or Settings()
        self.names = tuple(priors)
        #: What is done, the settings' own method or what their ``None`` comes to.
        self.method = self.settings.chosen_method(guide is not None)
        self.guide = _checked(guide, self.names) if "guide" in self.method else None
        self.sample_rate = sample_rate
        first = next(iter(priors.values()))
        rates = {prior.sample_rate for prior in priors.values()}
        if len(rates) > 1:
            raise ConfigurationError(f"the priors differ in sample rate: {sorted(map(str, rates))}")
        self.model_rate = first.sample_rate or sample_rate
        segment = self.settings.segment or first.time / self.model_rate
        #: Samples of the track in a window, and from one window to the next.
        self.window = math.floor(segment * sample_rate + 1e-6)  # frame / rate * rate may round to just below frame
        self.overlap = round(self.settings.overlap * self.window)
        self.hop = self.window - self.overlap
        #: Samples in a window at the priors' rate.
        self.frame = math.ceil(self.window * self.model_rate / sample_rate)
        if min(self.window, self.frame) < 2:
            rate = min(sample_rate, self.model_rate)
            raise ConfigurationError(f"a segment of {segment} s has fewer than 2 samples at {rate} Hz")
        framed = {name: prior.frame(self.frame) for name, prior in priors.items()}
        self.priors = prepared(framed, self.settings.precision, self.settings.compile)
        #: Where the chains run.
        self.device = first.sigma.device
        self._gains_kind = self.settings.gains if self.settings.gains is not None else model_gains
        if self.method == "exact" and not all(isinstance(p, GaussianPrior) for p in priors.values()):
            raise ConfigurationError("the exact method needs Gaussian priors; use method 'langevin' for others")
        #: Of the search, or ``None`` for the kernel's own.
        self.coupling = self.settings.chosen_coupling(self.priors)
        own = (model_temperatures or {}).get(self.method, 1.0) if self.coupling == "shared" else 1.0
        #: Of the draws about their mean.
        self.temperature = own if self.settings.temperature is None else self.settings.temperature
        #: For each window and channel, from each chain, and before; only where there is a sampling.
        self.chains, self.draws, self.warmup = self.settings.sampling(self.priors)
        if self.method not in ("exact", "guide"):
            self.settings.check_draws(self.chains, self.draws)
        if self.method == "one-pass" and not descends_from_mix(list(self.priors.values())):
            raise ConfigurationError(
                "method 'one-pass' needs priors whose denoisers filter short-time spectra and know interference; use "
                "'langevin' for others"
            )
        self._parts: list[dict[str, np.ndarray]] = []
        self._batches_drawn = 0
        self._heard = False

    # --- first pass -------------------------------------------------------------------------------------------

    def listen(self, windows: Iterable[Tensor]) -> int:
        """Find level and gains from all windows ``(channel, time)``, end to end; returns the track's length in samples.

        Raises:
            DataError: the track is silent, or has samples that are NaN or infinite.
        """
        power, weight, total, samples = torch.zeros(self.frame // 2 + 1, dtype=torch.float64), 0.0, 0.0, 0
        for window in windows:
            samples += window.shape[-1]
            total += window.double().square().mean(0).sum().item()
            heard = audio.resample(window, self.sample_rate, self.model_rate)[..., : self.frame].double()
            # The last window may be shorter, and is tapered where it ends; its power counts by its length.
            bins = torch.fft.rfft(heard * _taper(heard.shape[-1]), n=self.frame)
            power += bins.abs().square().mean(0) / self.frame
            weight += heard.shape[-1] / self.frame
        if not math.isfinite(total):
            raise DataError("the mix has samples that are NaN or infinite; there is nothing to hear in them")
        if not total > 0:
            raise DataError("the mix is silent from beginning to end; there is nothing to separate")
        level = math.sqrt(total / samples)
        self._noise = level * 10 ** (self.settings.noise_db / 20)
        self.gains = self._choose_gains(power / weight, level)
        self._heard = True
        return samples

    def _choose_gains(self, power: Tensor, level: float) -> Tensor:
        kind, count = self._gains_kind, len(self.names)
        if not isinstance(kind, str):
            gains = torch.as_tensor(kind, dtype=torch.get_default_dtype())
            if gains.shape != (count,):
                raise ConfigurationError(f"expected {count} gains, one for each of {self.names}; got {kind}")
            return gains
        if kind == "mean":
            return torch.full((count,), 1 / count)
        spectra = [prior.spectrum for prior in self.priors.values()]
        if any(spectrum is None for spectrum in spectra):
            raise ConfigurationError(f"gains={kind!r} needs priors that know their spectrum; give the gains as numbers")
        stacked = torch.stack([cast(Tensor, spectrum).cpu().double() for spectrum in spectra])
        if kind == "fit":
            # Far below the loudest band there is nothing but quantisation noise to fit.
            return fit_gains(stacked, power.clamp(min=power.max() * 1e-8))
        whole = full_sum(stacked.sum(0), self.frame)
        return torch.full((count,), level / math.sqrt(whole.item() / self.frame))

    # --- second pass ------------------------------------------------------------------------------------------

    def stream(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        """Mean, standard deviation and draws of the sources, in blocks ``(2 + keep, source, channel, time)``.

        Arguments:
            windows: ``(channel, time)`` of :attr:`window` samples each, :attr:`hop` apart; the last may be shorter.
        """
        if not self._heard:
            raise ConfigurationError("listen to the track before separating it")
        yield from cross_fade(self._separated(windows), self.overlap)

    def _separated(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in self._batches(windows):
            lengths = [window.shape[-1] for window in batch]
            mix = torch.stack([self._padded(window) for window in batch])
            found, stddev = self._posterior(torch.stack([self._at_model_rate(window) for window in batch]))
            found = self._shared_residual(mix, self._at_track_rate(found), found[0])
            stddev = torch.nn.functional.interpolate(
                stddev.flatten(0, 2).unsqueeze(1), self.window, mode="linear", align_corners=False
            ).reshape(found[0].shape)
            for index, length in enumerate(lengths):
                yield torch.stack([found[0, index], stddev[index], *found[1:, index]])[..., :length]

    def _batches(self, windows: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        windows = iter(windows)
        for window in windows:
            rows = self.chains * window.shape[0]
            size = max(1, _BATCH_VALUES[self.device.type] // (rows * len(self.names) * self.frame))
            yield [window, *itertools.islice(windows, size - 1)]

    def _posterior(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior of mixes ``(window, channel, frame)``.

        Returns:
            mean and kept draws ``(1 + keep, window, source, channel, frame)``, and standard deviation
            ``(window, source, channel, frame)``.
        """
        mix = mix.to(self.device)
        if self.method == "guide":
            return self._guided(mix)
        if self.method == "one-pass":
            return self._heard_once(mix)
        if self.method != "exact":
            return self._sampled(mix)
        posterior = GaussianPosterior(
            cast("Mapping[str, GaussianPrior]", self.priors), mix, gains=self.gains, noise=self._noise
        )
        scale = self.gains[:, None, None]
        draws = (
            posterior.sample((self.settings.keep,)) if self.settings.keep else mix.new_zeros(0, *posterior.mean.shape)
        )
        found = torch.cat([posterior.mean.unsqueeze(0), draws]).transpose(2, 3).cpu() * scale
        return found, (posterior.stddev.cpu()[:, None, None] * scale).expand(found.shape[1:])

    def _guided(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self._guide_moments(mix)
        if not self.settings.keep:
            return mean.unsqueeze(0), deviation
        with self._drawing():
            drawn = _Start(self.guide, self.gains)(mix.expand(self.settings.keep, *mix.shape))
        draws = torch.stack([drawn[name] for name in self.names], 2).cpu() * self.gains[:, None, None]
        return torch.cat([mean.unsqueeze(0), draws]), deviation

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Without gradients, and with a seed of its own for each batch."""
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(self.settings.seed + self._batches_drawn)
            self._batches_drawn += 1
            yield

    def _heard_once(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        rows = mix.flatten(0, 1).unsqueeze(1)
        gains = self.gains.to(mix).reshape(1, -1, 1).expand(len(rows), -1, -1)
        linear = LinearMix(rows, gains, mix.new_full((len(rows), 1), self._noise))
        descent = Descent(list(self.priors.values()))
        ladder = descent_ladder(self.priors, 1)
        with self._drawing():
            heard = descent.heard(descent.at_last_level(descent.start(linear), linear, ladder), ladder[-1])
            mean = descent.given(heard, linear, spread=0.0)
            draws = torch.stack([descent.given(heard, linear) for _ in range(self.chains)])
        found = torch.cat([mean.unsqueeze(0), mean + self.temperature * (draws - mean)]).cpu()
        # (..., window * channel, source, frame) to (..., window, source, channel, frame)
        found = found.unflatten(1, mix.shape[:2]).transpose(2, 3) * self.gains[:, None, None]
        deviation = (found[1:] - found[0]).square().mean(0).sqrt()
        return found[: 1 + self.settings.keep], deviation

    def _guide_moments(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the sources as they are in the mix, ``(window, source, channel, frame)``."""
        scale = self.gains[:, None, None]
        with torch.no_grad():
            mean, deviation = _Start(self.guide, self.gains).moments(mix)
        return mean.transpose(1, 2).cpu() * scale, deviation.transpose(1, 2).cpu() * scale.abs()

    def _sampled(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        chains, draws = self.chains, self.draws
        count, channels, frame = mix.shape
        model = mixing.linear_mix(self.priors, self.gains, self._noise)
        # Every window and channel has chains of its own, all of them in one batch.
        rows = mix.reshape(1, -1, frame).expand(chains, -1, -1).reshape(-1, frame)
        mcmc = LangevinMCMC(
            self._kernel(model),
            num_samples=draws,
            warmup_steps=self.warmup,
            num_chains=len(rows),
            init="mix" if self.guide is None else _Start(self.guide, self.gains, drawn=self.coupling != "shared"),
            seed=self.settings.seed + len(self._parts),
            check=False,  # the model is this library's own
            disable_progbar=True,
        )
        mcmc.run(rows)
        samples = mcmc.get_samples(group_by_chain=True)
        stacked = torch.stack([samples[name] for name in self.names], 2) * self.gains[:, None]
        shape = (chains, count, channels, draws)
        stacked = stacked.reshape(*shape, len(self.names), frame)
        found = audio_summaries(stacked.numpy(), self.model_rate)
        found |= {name: value.reshape(shape).numpy() for name, value in mcmc.sample_stats().items()}
        self._parts.append({name: np.moveaxis(value, 3, 1) for name, value in found.items()})
        by_draw = stacked.permute(0, 3, 1, 4, 2, 5).flatten(0, 1)  # (chain * draw, window, source, channel, frame)
        if not self.searches:
            spread, mean = torch.std_mean(by_draw, 0)
            kept = torch.arange(self.settings.keep) * len(by_draw) // max(1, self.settings.keep)
            return torch.cat([mean.unsqueeze(0), by_draw[kept]]), spread
        dense = all(prior.has_density for prior in self.priors.values())
        weight = self._weights(self._parts[-1]) if dense else self._fair_weights(mix, stacked)
        weight = weight.repeat_interleave(draws, 0) / draws  # (chain * draw, window, channel)
        wide = weight[:, :, None, :, None].to(by_draw)
        mean = (wide * by_draw).sum(0)
        # Of few draws the mean is drawn to each of them. A single one that counts has no spread at all.
        freedom = (1 - wide.square().sum(0)).clamp(min=1e-9)
        variance = (wide * (by_draw - mean).square()).sum(0) / freedom
        if self.guide is not None and self.coupling == "local":
            # Such a search stays near where it starts: what it can't find out, all of its chains get wrong alike.
            variance = variance + self._guide_moments(mix)[1].square()
        # The kept draws are as many from each chain as its weight asks for, window by window.
        place = (torch.arange(self.settings.keep, dtype=torch.float64) + 0.5) / max(1, self.settings.keep)
        running = weight.cumsum(0).permute(1, 2, 0).contiguous()
        index = torch.searchsorted(running, place.expand(count, channels, -1).contiguous()).clamp(max=len(weight) - 1)
        index = index.permute(2, 0, 1)[:, :, None, :, None].expand(-1, -1, len(self.names), -1, frame)
        drawn = mean + self.temperature * (by_draw.gather(0, index) - mean)
        return torch.cat([mean.unsqueeze(0), drawn]), self.temperature * variance.sqrt()

    @property
    def searches(self) -> bool:
        """Whether the chains look for modes first."""
        known = all(isinstance(prior, GaussianPrior) for prior in self.priors.values())
        return not known or self.coupling is not None or self.settings.ladder is not None

    def _kernel(self, model: mixing.Model) -> LangevinKernel:
        if not self.searches:
            return MALA(model, 0.5)
        settings = self.settings
        if self.coupling == "shared":
            count = settings.ladder or LEVELS
            falling = descent_ladder(self.priors, count) if isinstance(count, int) else count
            last = self.draws > 1
            return AnnealedSGLD(model, falling, coupling="shared", sample_last=last, preconditioner=None)
        local = self.coupling == "local"
        levels = _LOCAL_LEVELS if local and settings.ladder is None else settings.ladder
        ladder = noise_ladder(self.priors, levels) if isinstance(levels, int) else levels
        if local:  # what its search is of is no density, and where it ends is as good a draw as steps from there
            return AnnealedSGLD(
                model, ladder, coupling="local", redraws=0, sample_last=self.draws > 1, preconditioner=None
            )
        return AnnealedSGLD(model, ladder, coupling=self.coupling, redraws=settings.redraws, step_size=0.5)

    @staticmethod
    def _fair_weights(mix: Tensor, found: Tensor) -> Tensor:
        """Of chains whose priors have no density: alike, but for those that leave far more of the mix than the best.

        Arguments:
            mix: ``(window, channel, frame)``.
            found: as they are in the mix, ``(chain, window, channel, draw, source, frame)``.
        """
        left = (mix.cpu().unsqueeze(2) - found.sum(4)).double().square().mean((-1, -2))
        fair = (left <= _FAR * left.amin(0)).double()
        return fair / fair.sum(0)

    @staticmethod
    def _weights(part: dict[str, np.ndarray]) -> Tensor:
        """Of the chains of each window and channel, by mode and joint density: ``(chain, window, channel)``."""
        height = part["lp"].mean(1)
        flat = np.concatenate(
            [part[name].reshape(*part["lp"].shape, -1) for name in ("energy_db", "band_db", "projection")], -1
        )
        means, deviations = flat.mean(1), flat.std(1)
        weight = np.empty_like(height)
        for cell in np.ndindex(*height.shape[1:]):
            where = (slice(None), *cell)
            weight[where] = weights_of(height[where], same_mode(means[where], deviations[where]))
        return torch.from_numpy(weight)

    def summaries(self) -> dict[str, np.ndarray]:
        """The summaries of every draw so far, ``(chain, draw, window, channel, ...)``; empty for the exact method."""
        if not self._parts:
            return {}
        return {name: np.concatenate([part[name] for part in self._parts], 2) for name in self._parts[0]}

    # --- rates ------------------------------------------------------------------------------------------------

    def _padded(self, window: Tensor) -> Tensor:
        return torch.nn.functional.pad(window, (0, self.window - window.shape[-1]))

    def _at_model_rate(self, window: Tensor) -> Tensor:
        """A window of the track, padded to full length, at the priors' rate: ``(channel, frame)``."""
        return audio.resample(self._padded(window), self.sample_rate, self.model_rate)[..., : self.frame]

    def _at_track_rate(self, sources: Tensor) -> Tensor:
        resampled = audio.resample(sources, self.model_rate, self.sample_rate)[..., : self.window]
        return torch.nn.functional.pad(resampled, (0, self.window - resampled.shape[-1]))

    def _shared_residual(self, mix: Tensor, found: Tensor, mean: Tensor) -> Tensor:
        """Give what the sources leave of the mix to them, so that they sum to it.

        Arguments:
            mix: ``(window, channel, time)``.
            found: mean and draws at the track's rate, ``(1 + keep, window, source, channel, time)``.
            mean: the mean at the priors' rate, ``(window, source, channel, frame)``.

        What is left is the observation noise and, where the track's rate is higher than the priors', all above the
        priors' band. Of that the priors know nothing; it is shared in each window as the sources' power in the
        top octave of the band is.
        """
        octave = torch.fft.rfft(mean)[..., self.frame // 4 :]
        power = octave.abs().square().sum(-1, keepdim=True) + 1e-12
        share = power / power.sum(1, keepdim=True)
        return found + share * (mix - found.sum(2)).unsqueeze(2)


class _Start:
    """A guide for a mix with other gains than it was trained with: it gives sources as they are in the mix.

    A guide's sources grow with the mix, so that gains in the same ratios make no difference at all.

    Called, it draws them, or with ``drawn=False`` gives their means.
    """

    def __init__(self, guide: EncoderGuide | None, gains: Tensor, *, drawn: bool = True) -> None:
        assert guide is not None
        assert guide.gains is not None
        self.guide, self.drawn, own = guide, drawn, guide.gains
        gains = gains.to(own)
        #: Between the levels of the two mixes, and of each source.
        self.level = gains.norm() / own.norm()
        self.scale = (self.level * own / gains).unsqueeze(-1)

    def __call__(self, mix: Tensor) -> dict[str, Tensor]:
        if self.drawn:
            with poutine.block():
                values = self.guide(mix / self.level)
        else:
            values = dict(zip(self.guide.names, self.guide.moments(mix / self.level)[0].unbind(-2), strict=True))
        scaled = {name: value * scale for (name, value), scale in zip(values.items(), self.scale, strict=True)}
        return {name: pyro.sample(name, dist.Delta(value).to_event(1)) for name, value in scaled.items()}

    def moments(self, mix: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self.guide.moments(mix / self.level)
        return mean * self.scale, deviation * self.scale.abs()


def _checked(guide: EncoderGuide | None, names: tuple[str, ...]) -> EncoderGuide:
    if guide is None:
        raise ConfigurationError("this method needs a guide; train one (pyrosep train-guide), or use 'langevin'")
    if guide.names != names:
        raise ConfigurationError(f"the guide's sources are {list(guide.names)}; expected the priors', {list(names)}")
    if guide.gains is None or guide.channels is not None or guide.head_names:
        raise ConfigurationError(
            "to separate a track a guide must be projected onto mixes of one channel, with fixed gains and no other "
            "sites: EncoderGuide(priors, project=True or gains)"
        )
    return guide


def _taper(time: int) -> Tensor:
    """A Hann window of unit mean square, nowhere zero."""
    taper = (math.pi * (torch.arange(time, dtype=torch.float64) + 0.5) / time).sin().square()
    return taper / taper.square().mean().sqrt()
