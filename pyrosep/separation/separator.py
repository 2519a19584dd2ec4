"""Separating a mix: posterior mean and standard deviation of its sources, window by window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrosep import audio
from pyrosep.audio.resampling import check_rate
from pyrosep.errors import ConfigurationError, DataError, ShapeError
from pyrosep.infer.seeding import as_usual, with_gradients
from pyrosep.priors import SourcePrior
from pyrosep.separation.gains import MeanPeriodogram, mix_gains
from pyrosep.separation.memory import KeptSummaries, give_back
from pyrosep.separation.methods import choose_method
from pyrosep.separation.problem import Estimate, Problem
from pyrosep.separation.settings import Settings
from pyrosep.signal.windows import cross_fade, windows_of
from pyrosep.zoo import PriorSet

__all__ = ["Framing", "Hearing", "Separation", "Separator", "Stream", "separate"]

#: Values of one chain state that a batch of windows may have. Larger batches are slower on a CPU, whose allocator maps
#: their tensors anew at every step, and take memory on any device: all draws of a batch are held on the host.
_BATCH_VALUES = {"cpu": 1 << 19, "cuda": 1 << 22}


@dataclass(frozen=True)
class Separation:
    """What is known of the sources of a mix.

    Attributes:
        names: of the sources.
        mean: posterior mean of each source as it is in the mix, ``(source, channel, time)``; they sum to the mix.
        stddev: posterior standard deviation of each sample, the same shape. The spread of chains from a guide with
            coupling ``"local"`` is far too small, so it is added to the guide's own deviation in quadrature.
        draws: posterior draws, ``(draw, source, channel, time)``, as many as ``Settings.keep``; each sums to the mix.
        gains: of the sources in the mix, ``(source,)``.
        summaries: of the draws, for R-hat and ESS, by name: ``(chain, draw, window, channel, ...)``; of every second,
            third, ... draw where all would take more than 32 MiB; empty for methods without chains.
    """

    names: tuple[str, ...]
    mean: Tensor
    stddev: Tensor
    draws: Tensor
    gains: Tensor
    summaries: dict[str, np.ndarray]


@dataclass(frozen=True)
class Hearing:
    """What a first pass over a whole track finds.

    Attributes:
        samples: of the track.
        level: root mean square of the mix.
        gains: of the sources in it, ``(source,)``.
        noise: standard deviation of the observation noise.
    """

    samples: int
    level: float
    gains: Tensor
    noise: float


@dataclass(frozen=True)
class Framing:
    """How a track is cut into windows.

    Attributes:
        window: samples of the track in a window.
        overlap: samples that a window has in common with the next.
        priors: for frames of a window's length, at their own rate.
    """

    window: int
    overlap: int
    priors: PriorSet

    @property
    def hop(self) -> int:
        """Samples of the track from one window to the next."""
        return self.window - self.overlap

    @property
    def frame(self) -> int:
        """Samples in a window at the priors' rate."""
        return self.priors.time

    def windows(self, samples: int) -> int:
        """How many windows a track of so many samples has."""
        return 1 + math.ceil(max(0, samples - self.window) / self.hop)


@with_gradients()
def separate(
    mix: audio.Samples,
    sample_rate: int,
    priors: Mapping[str, SourcePrior],
    settings: Settings | None = None,
    *,
    progress: Callable[[int], Any] = lambda samples: None,
    **changes: Any,
) -> Separation:
    """Separate a mix in memory: the same answer as ``pyrosep separate`` gives for the same prior set.

    Arguments:
        mix: ``(channel, time)``, tensor or array; integers of 8, 16 and 32 bits count from their full scale.
        sample_rate: Hz; it is resampled to the priors' and the sources back.
        priors: a prior set (:func:`~pyrosep.load_priors`), whose gains, guide and temperatures are taken; or any priors
            by source, see :class:`~pyrosep.zoo.PriorSet`.
        settings: see :class:`Settings`.
        progress: called with the number of samples finished, as they are.
        changes: fields of :class:`Settings` by name, such as ``method`` and ``keep``.

    Raises:
        ShapeError: the mix is of another shape, such as (time, channel).
        SampleRateError: the rate is no positive integer.
        ConfigurationError: settings that the priors can't serve; a mix of a type that is no sound's.
        DataError: the mix is silent, or has samples that are NaN or infinite.

    Example:
        >>> import pyrosep
        >>> priors = {
        ...     "low": pyrosep.GaussianPrior(torch.tensor([1.0, 0.01]), 512, sample_rate=8000),
        ...     "high": pyrosep.GaussianPrior(torch.tensor([0.01, 1.0]), 512, sample_rate=8000),
        ... }
        >>> mix = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
        >>> result = pyrosep.separate(mix, 8000, priors, method="exact")
        >>> result.mean.shape, result.mean.sum(0).allclose(mix, atol=1e-5)
        (torch.Size([2, 1, 2000]), True)
        >>> chains = pyrosep.separate(mix, 8000, priors, method=pyrosep.Chains(draws=20, ladder=None), keep=3)
        >>> chains.draws.shape
        torch.Size([3, 2, 1, 2000])
    """
    given = as_usual(audio.channels_first(mix, "a mix").detach().to(torch.get_default_dtype()))
    if not given.numel():
        raise ShapeError(f"expected a mix (channel, time) with at least one sample; got shape {tuple(given.shape)}")
    separator = Separator(priors, sample_rate, replace(settings or Settings(), **changes))
    hearing = separator.listen(windows_of(given, separator.window, separator.window))
    stream = separator.stream(windows_of(given, separator.window, separator.hop), hearing)
    blocks = []
    for block in stream:
        blocks.append(block)
        progress(block.shape[-1])
    mean, stddev, *draws = torch.cat(blocks, -1).unbind(0)
    kept = torch.stack(draws) if draws else mean.new_zeros(0, *mean.shape)
    return Separation(separator.names, mean, stddev, kept, hearing.gains, stream.summaries())


class Separator:
    """Separates tracks in two passes over their windows, so that memory does not grow with a track.

    The first pass (:meth:`listen`) finds the level of the mix and the gains. The second (:meth:`stream`) gives the
    sources of consecutive blocks. A separator keeps nothing of a track, so it may separate any number of them.

    Arguments:
        priors: see :func:`separate`.
        sample_rate: of the tracks, Hz.
        settings: see :class:`Settings`.

    Raises:
        SampleRateError: the rate is no positive integer.
        ConfigurationError: settings that the priors can't serve.
    """

    @with_gradients()
    def __init__(self, priors: Mapping[str, SourcePrior], sample_rate: int, settings: Settings | None = None) -> None:
        sample_rate = check_rate(sample_rate)
        given = PriorSet.of(priors)
        self.settings = settings or Settings()
        self.names = tuple(given)
        self.sample_rate = sample_rate = audio.check_rate(sample_rate)
        self.model_rate = given.sample_rate or sample_rate
        segment = self.settings.segment or given.time / self.model_rate
        #: Samples of the track in a window, and from one window to the next.
        self.window = math.floor(segment * sample_rate + 1e-6)  # frame / rate * rate may round to just below frame
        self.overlap = round(self.settings.overlap * self.window)
        self.hop = self.window - self.overlap
        #: Samples in a window at the priors' rate.
        self.frame = math.ceil(self.window * self.model_rate / sample_rate)
        if min(self.window, self.frame) < 2:
            rate = min(sample_rate, self.model_rate)
            raise ConfigurationError(f"a segment of {segment} s has fewer than 2 samples at {rate} Hz")
        framed = given.frame(self.frame)
        #: The method, with all its numbers.
        self.method = choose_method(framed, self.settings.method)
        self.method.check(framed, self.settings.keep)
        self.priors = framed.with_precision(self.settings.precision, compiled=self.settings.compile)
        #: How loud the sources are in a mix, see :class:`Settings`.
        self.gains = given.gains if self.settings.gains is None else self.settings.gains

    # --- first pass -------------------------------------------------------------------------------------------

    @with_gradients()
    def listen(self, windows: Iterable[Tensor]) -> Hearing:
        """Find level and gains of a track from all of its windows ``(channel, time)``, end to end.

        Raises:
            ConfigurationError: gains that are not one for each source, or for priors that know no spectrum; see also
                :meth:`framing`.
            DataError: the track is silent, or has samples that are NaN or infinite.
        """
        heard, total, samples = MeanPeriodogram(self.frame), 0.0, 0
        start: list[Tensor] = []  # of a track that is shorter than a window
        for window in windows:
            samples += window.shape[-1]
            total += window.double().square().mean(0).sum().item()
            heard.add(audio.resample(window, self.sample_rate, self.model_rate))
            start = [*start, window] if samples < self.window else []
        if not math.isfinite(total):
            raise DataError("the mix has samples that are NaN or infinite; there is nothing to hear in them")
        if not total > 0:
            raise DataError("the mix is silent from beginning to end; there is nothing to separate")
        framing = self.framing(samples)
        if start:
            heard = MeanPeriodogram(framing.frame)
            for part in windows_of(torch.cat(start, -1), framing.window, framing.window):
                heard.add(audio.resample(part, self.sample_rate, self.model_rate))
        level = math.sqrt(total / samples)
        noise = level * 10 ** (self.settings.noise_db / 20)
        return Hearing(samples, level, mix_gains(self.gains, framing.priors, heard.mean(), level), noise)

    # --- second pass ------------------------------------------------------------------------------------------

    @with_gradients()
    def framing(self, samples: int) -> Framing:
        """How a track of so many samples is cut: into windows of :attr:`window`, or into one if it is shorter.

        A prior takes what lies beyond the end of a track for sound, so no window reaches beyond it. If the priors take
        no frame as long as a short track, the track is cut into windows of the longest frame that they take.

        Raises:
            ConfigurationError: the track is shorter than any frame that the priors take.
        """
        if samples >= self.window:
            return Framing(self.window, self.overlap, self.priors)
        longest = math.ceil(samples * self.model_rate / self.sample_rate)
        refusal: ConfigurationError | None = None
        for frame in range(longest, 0, -1):
            try:
                priors = self.priors.frame(frame)
            except ConfigurationError as error:
                refusal = refusal or error
                continue
            window = samples if frame == longest else math.floor(frame * self.sample_rate / self.model_rate + 1e-6)
            return Framing(window, round(self.settings.overlap * window), priors)
        raise ConfigurationError(
            f"a track of {samples} samples is too short for these priors: {refusal}; take other priors, or join it "
            "with what comes after it"
        )

    def stream(self, windows: Iterable[Tensor], hearing: Hearing) -> Stream:
        """The sources of a track.

        Arguments:
            windows: ``(channel, time)`` of :attr:`window` samples each, :attr:`hop` apart; the last may be shorter.
            hearing: what :meth:`listen` gave of the same track.
        """
        return Stream(self, windows, hearing)


class Stream:
    """The sources of one track, as they are found: an iterator over consecutive blocks.

    A block is ``(2 + keep, source, channel, time)``: mean, standard deviation and draws.

    Attributes:
        framing: how the track is cut. The last window ends where the track ends, so it overlaps more with the window
            before it than the others do.
    """

    def __init__(self, separator: Separator, windows: Iterable[Tensor], hearing: Hearing) -> None:
        self._separator, self._hearing = separator, hearing
        self.framing = separator.framing(hearing.samples)
        self._kept = KeptSummaries(self.framing.windows(hearing.samples))
        self._blocks = cross_fade(self._separated(self._cut(windows)), self.framing.overlap)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    @with_gradients()
    def __next__(self) -> Tensor:
        return next(self._blocks)

    def summaries(self) -> dict[str, np.ndarray]:
        """The summaries of the draws so far, see :class:`Separation`; empty without chains."""
        return self._kept.joined()

    def _cut(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        """The windows of the framing, of which the last may be shorter, from those of the separator."""
        if self.framing.window == self._separator.window:
            return iter(windows)
        # The track is shorter than a window of the separator: there is one.
        return (part for whole in windows for part in windows_of(whole, self.framing.window, self.framing.hop))

    def _separated(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        for number, batch in enumerate(self._batches(self._filled(windows))):
            give_back()
            mix = torch.stack([window for window, _ in batch])
            estimate = self._posterior(self._at_model_rate(mix), number)
            found = torch.cat([estimate.mean.unsqueeze(0), estimate.draws])
            found = self._shared_residual(mix, self._at_track_rate(found), estimate.mean)
            stddev = torch.nn.functional.interpolate(
                estimate.stddev.flatten(0, 2).unsqueeze(1),
                self.framing.window,
                mode="linear",
                align_corners=False,
            ).reshape(found[0].shape)
            for index, (_, length) in enumerate(batch):
                yield torch.stack([found[0, index], stddev[index], *found[1:, index]])[..., -length:]

    def _filled(self, windows: Iterable[Tensor]) -> Iterator[tuple[Tensor, int]]:
        """Windows of full length, each with the number of samples at its end that are its own.

        A shorter window, which is the last, is filled with what comes before it in the track.
        """
        before: Tensor | None = None
        for window in windows:
            whole = window
            if before is not None and window.shape[-1] < self.framing.window:
                whole = torch.cat([before[..., : self.framing.hop], window], -1)[..., -self.framing.window :]
            yield whole, window.shape[-1]
            before = whole

    def _batches(self, windows: Iterator[tuple[Tensor, int]]) -> Iterator[list[tuple[Tensor, int]]]:
        own = self._separator
        for first in windows:
            values = own.method.states * first[0].shape[0] * len(own.names) * self.framing.frame
            size = max(1, _BATCH_VALUES[own.priors.device.type] // values)
            yield [first, *itertools.islice(windows, size - 1)]

    def _posterior(self, mix: Tensor, number: int) -> Estimate:
        own = self._separator
        estimate = own.method.posterior(
            Problem(
                mix.to(own.priors.device),
                self.framing.priors,
                self._hearing.gains,
                self._hearing.noise,
                own.settings.keep,
                own.settings.seed + number,
                own.model_rate,
            )
        )
        self._kept.add(estimate.summaries)
        return estimate

    # --- rates ------------------------------------------------------------------------------------------------

    def _at_model_rate(self, windows: Tensor) -> Tensor:
        """Windows of the track at the priors' rate: ``(..., channel, frame)``."""
        return audio.resample(windows, self._separator.sample_rate, self._separator.model_rate)[
            ..., : self.framing.frame
        ]

    def _at_track_rate(self, sources: Tensor) -> Tensor:
        own, window = self._separator, self.framing.window
        resampled = audio.resample(sources, own.model_rate, own.sample_rate)[..., :window]
        return torch.nn.functional.pad(resampled, (0, window - resampled.shape[-1]))

    @staticmethod
    def _shared_residual(mix: Tensor, found: Tensor, mean: Tensor) -> Tensor:
        """Share the residual of the mix among the sources, so that they sum to the mix.

        Arguments:
            mix: ``(window, channel, time)``.
            found: mean and draws at the track's rate, ``(1 + keep, window, source, channel, time)``.
            mean: the mean at the priors' rate, ``(window, source, channel, frame)``.

        The residual is the observation noise and, if the track's rate is higher than the priors', everything above the
        priors' band. The priors know nothing of it. In each window it is shared in proportion to the sources' power in
        the top octave of the band.
        """
        octave = torch.fft.rfft(mean)[..., mean.shape[-1] // 4 :]
        power = octave.abs().square().sum(-1, keepdim=True) + 1e-12
        share = power / power.sum(1, keepdim=True)
        return found + share * (mix - found.sum(2)).unsqueeze(2)
