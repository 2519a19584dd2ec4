"""A set of priors: one for each source, and what is known of all of them together."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pyrosep.errors import ConfigurationError
from pyrosep.guides import EncoderGuide
from pyrosep.naming import check_source_names
from pyrosep.priors import SourcePrior
from pyrosep.zoo.guides import GuideInfo, guide_info, load_guide
from pyrosep.zoo.weights import digest

__all__ = ["GAINS", "PriorSet", "PriorSetInfo"]

#: How loud a set's sources may be in a mix.
GAINS = ("mean", "level", "fit")


@dataclass(frozen=True)
class PriorSetInfo:
    """What a prior set is, without its tensors.

    Attributes:
        name: of the folder.
        folder: where it is.
        family: of the priors.
        sources: their names.
        sample_rate: Hz.
        frame: samples in a frame, by default.
        gains: how loud its sources are in a mix: ``"mean"`` (1/N each, as in the toy data), ``"level"`` (as they were
            recorded, up to one factor for the whole mix) or ``"fit"`` (each by its own, found from the mix).
        summary: one line.
        temperatures: by method of :func:`~pyrosep.separate`, by how much draws of these priors' search are to lie
            further from their mean than the search leaves them; 1 where there is none. See
            :func:`~pyrosep.evaluation.calibration.calibrate`.
    """

    name: str
    folder: Path
    family: str
    sources: tuple[str, ...]
    sample_rate: int
    frame: int
    gains: str
    summary: str
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of the set's files, so that a set that was trained again is told from what it was."""
        return digest(self.folder)


class PriorSet(Mapping[str, SourcePrior]):
    """Priors by source, and what is known of them together: what :func:`~pyrosep.load_priors` gives.

    It is a mapping as any other, ``{source: prior}``. A plain mapping of priors does wherever a set is asked for: it is
    one with gains ``"level"``, without a guide.

    Arguments:
        priors: by source, all of one frame and sample rate, on one device.
        gains: how loud the sources are in a mix, see :class:`PriorSetInfo`.
        temperatures: of draws by method, see :class:`PriorSetInfo`.
        guide: of these sources, in this order; or what it is on disk, and it is loaded when it is asked for.
        info: what the set is on disk, for one that is.

    Raises:
        ConfigurationError: no priors, or such as don't go together; a guide of other sources.

    Example:
        >>> from pyrosep import OscillatorPrior
        >>> priors = PriorSet({wave: OscillatorPrior(wave, 512) for wave in ("sine", "saw")}, gains="mean")
        >>> list(priors), priors.time, priors.sample_rate, priors.guide()
        (['sine', 'saw'], 512, 14700, None)
    """

    def __init__(
        self,
        priors: Mapping[str, SourcePrior],
        *,
        gains: str = "level",
        temperatures: Mapping[str, float] | None = None,
        guide: EncoderGuide | GuideInfo | None = None,
        info: PriorSetInfo | None = None,
    ) -> None:
        if not priors:
            raise ConfigurationError("expected at least one prior; got none")
        if gains not in GAINS:
            raise ConfigurationError(f"gains must be one of {GAINS}; got {gains!r}")
        check_source_names(priors)
        for what, found in (
            ("frame", {prior.time for prior in priors.values()}),
            ("sample rate", {prior.sample_rate for prior in priors.values()}),
            ("device", {prior.sigma.device for prior in priors.values()}),
        ):
            if len(found) > 1:
                raise ConfigurationError(
                    f"the priors of a set have one {what}; got {', '.join(sorted(map(str, found)))}. Change some by "
                    "prior.frame(...) or prior.to(...), or train them at one rate"
                )
        self._priors = dict(priors)
        self.gains = gains
        self.temperatures = dict(temperatures or {})
        if wrong := {method: t for method, t in self.temperatures.items() if not 0 < t < math.inf}:
            raise ConfigurationError(f"temperatures must be positive numbers; got {wrong}")
        #: What the set is on disk, or ``None``.
        self.info = info
        self._guide = _Guide(guide)
        if isinstance(guide, EncoderGuide):  # one on disk is looked at when it is asked for
            self._check_sources(guide.names)

    @classmethod
    def of(cls, priors: Mapping[str, SourcePrior]) -> PriorSet:
        """The set itself, or one of a plain mapping of priors."""
        return priors if isinstance(priors, PriorSet) else cls(priors)

    # --- a mapping --------------------------------------------------------------------------------------------

    def __getitem__(self, source: str) -> SourcePrior:
        return self._priors[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._priors)

    def __len__(self) -> int:
        return len(self._priors)

    def __or__(self, other: Mapping[str, SourcePrior]) -> PriorSet:
        """The set with the priors of more sources, or others of its own; like :meth:`only`, without a guide."""
        return PriorSet({**self, **other}, gains=self.gains)

    def __repr__(self) -> str:
        rate = "" if self.sample_rate is None else f", {self.sample_rate} Hz"
        guide = ", with a guide" if self.has_guide else ""
        return f"<PriorSet {self.name}: {', '.join(self)}; {self.time} samples{rate}, gains {self.gains!r}{guide}>"

    # --- what it knows ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the folder; ``"priors"`` for a set that is on no disk."""
        return "priors" if self.info is None else self.info.name

    @property
    def digest(self) -> str | None:
        """SHA-256 of the set's files, or ``None`` for a set that is on no disk."""
        return None if self.info is None else self.info.digest()

    @property
    def _any(self) -> SourcePrior:
        return next(iter(self._priors.values()))

    @property
    def sample_rate(self) -> int | None:
        """Hz, or ``None`` for priors that don't say."""
        return self._any.sample_rate

    @property
    def time(self) -> int:
        """Samples in a frame."""
        return self._any.time

    @property
    def device(self) -> torch.device:
        """Where the priors' tensors are."""
        return self._any.sigma.device

    @property
    def has_guide(self) -> bool:
        """Whether there is a guide."""
        return self._guide.given is not None

    @property
    def guide_info(self) -> GuideInfo | None:
        """What the guide is on disk, or ``None``."""
        return self._guide.given if isinstance(self._guide.given, GuideInfo) else None

    def guide(self) -> EncoderGuide | None:
        """The guide, on the priors' device; loaded when it is asked for first. ``None`` where there is none.

        Raises:
            ConfigurationError: it is of other sources.
            CheckpointError: its files are damaged.
        """
        if self.guide_info is not None:
            self._check_sources(self.guide_info.sources)
        return self._guide.loaded(self.device)

    # --- the same set, otherwise ------------------------------------------------------------------------------

    def frame(self, time: int) -> PriorSet:
        """The same set for frames of another length in samples."""
        return self._mapped(lambda prior: prior.frame(time))

    def to(self, device: torch.device | str) -> PriorSet:
        """The same set on a device."""
        new = self._mapped(lambda prior: prior.to(device))
        given = self._guide.given
        new._guide = _Guide(copy.deepcopy(given).to(device) if isinstance(given, EncoderGuide) else given)
        return new

    def with_precision(self, precision: str, *, compiled: bool = False) -> PriorSet:
        """The same set, its priors' networks evaluated in a precision.

        Arguments:
            precision: ``"32-true"``, ``"bf16-mixed"``, or ``"auto"``: half precision for networks that stay accurate in
                it, on devices that are quicker in it.
            compiled: whether networks are compiled too, see :meth:`~pyrosep.ContinuousFlow.compiled`.
        """
        return self._mapped(lambda prior: prior.with_precision(precision, compiled=compiled))

    def with_guide(self, guide: EncoderGuide | GuideInfo | str | os.PathLike[str] | None) -> PriorSet:
        """The same set with a guide: one, or the folder or the name of one; with ``None`` without its guide.

        Raises:
            ConfigurationError: the guide is of other sources.
            UnknownModelError, CheckpointError: see :func:`~pyrosep.load_guide`.
        """
        given = guide_info(guide) if isinstance(guide, str | os.PathLike) else guide
        return PriorSet(self._priors, gains=self.gains, temperatures=self.temperatures, guide=given, info=self.info)

    def only(self, sources: Iterable[str]) -> PriorSet:
        """The priors of some sources, in this order.

        A guide is of all of them in their order, and temperatures are of draws of all together: a set of others has
        neither.

        Raises:
            ConfigurationError: a source that the set doesn't have, or one that is given twice.
        """
        chosen = chosen_sources(sources, tuple(self), self.name)
        if chosen == tuple(self):
            return self
        return PriorSet({name: self._priors[name] for name in chosen}, gains=self.gains, info=self.info)

    def _mapped(self, change: Callable[[SourcePrior], SourcePrior]) -> PriorSet:
        return self._like({name: change(prior) for name, prior in self._priors.items()})

    def _like(self, priors: Mapping[str, SourcePrior]) -> PriorSet:
        new = PriorSet(priors, gains=self.gains, temperatures=self.temperatures, info=self.info)
        new._guide = self._guide
        return new

    def _check_sources(self, names: tuple[str, ...]) -> None:
        if names != tuple(self):
            raise ConfigurationError(f"the guide's sources are {list(names)}; expected the priors', {list(self)}")


class _Guide:
    """A guide or what it is on disk: loaded once, for all sets that are made of one another."""

    def __init__(self, given: EncoderGuide | GuideInfo | None) -> None:
        self.given = given
        self._loaded = given if isinstance(given, EncoderGuide) else None

    def loaded(self, device: torch.device) -> EncoderGuide | None:
        if self._loaded is None and isinstance(self.given, GuideInfo):
            self._loaded = load_guide(self.given.folder, device=device)
        return self._loaded


def chosen_sources(asked: Iterable[str], there: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The sources that are asked for, of those that the set of a name has.

    Raises:
        ConfigurationError: a source that the set doesn't have, or one that is given twice.
    """
    chosen = tuple(asked)
    check_source_names(chosen)
    if unknown := [source for source in chosen if source not in there]:
        raise ConfigurationError(f"{name!r} has the sources {list(there)}; asked for {unknown}")
    return chosen
