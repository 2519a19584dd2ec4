"""One training for each source of a prior set, in this process or in several; each result is written at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cyclopts.types import PositiveInt

from pyrosep.cli.manners import figures_line, say, write_json
from pyrosep.cli.options import Data, Reporting, chosen_device
from pyrosep.cli.training_options import Anew, Summary
from pyrosep.errors import ConfigurationError, DataError
from pyrosep.interruption import leave_signals_to_parent
from pyrosep.training.augmentation import Augmentation
from pyrosep.training.settings import TrainingSettings

if TYPE_CHECKING:
    from pyrosep.data.catalog import DataSets
    from pyrosep.priors import SourcePrior
    from pyrosep.training.frames import Frames
    from pyrosep.training.trainer import Trainer

__all__ = ["FamilyOptions", "Job", "Recipe", "Trained", "train_all"]

#: Priors by the folder below the set's own that they go to ("" for its own), and figures.
Trained = tuple[dict[str, "SourcePrior"], dict[str, Any]]


class Recipe(Protocol):
    """How a family is trained, with the numbers that only this family has."""

    @property
    def family(self) -> str:
        """The name of the family, as model folders have it."""
        ...

    @property
    def hears_others(self) -> bool:
        """Whether frames of other sources are heard too."""
        ...

    @property
    def augmentation(self) -> Augmentation: ...

    def train(self, job: Job, frames: Frames, trainer: Trainer) -> Trained: ...


@dataclass(frozen=True)
class FamilyOptions:
    """What the trainings of all learned families take.

    Attributes:
        sample_rate: Sample rate in Hz. By default the recordings' own.
        frame: Samples in a frame.
        sigma_min: Lowest noise level.
        sigma_max: Highest noise level. By default the source's root mean square times the root of the frame.
        start: A model whose priors to start from. By default random weights.
        workers: Sources trained side by side, a process each.
        gains: How loud sources are in a mix: ``level``, ``fit`` or ``mean``.
    """

    sample_rate: PositiveInt | None = None
    frame: PositiveInt = 2048
    sigma_min: float = 0.01
    sigma_max: float | None = None
    start: str | None = None
    workers: PositiveInt = 1
    gains: str = "level"
    summary: Summary = ""
    overwrite: Anew = False


@dataclass(frozen=True)
class Job:
    """The training of one source.

    Attributes:
        source: its name.
        folder: for checkpoints.
        songs: what is trained on; ``None`` for toy waves.
        options: of all families.
        recipe: of this one.
        settings: of the training.
        quiet: no progress bar.
    """

    source: str
    folder: Path
    songs: DataSets | None
    options: FamilyOptions
    recipe: Recipe
    settings: TrainingSettings
    quiet: bool

    def begun(self) -> Any:
        """The prior of the recipe's family that is started from, if there is one."""
        from pyrosep.zoo import load_priors, prior_set_info

        start, family = self.options.start, self.recipe.family
        if start is None:
            return None
        if (found := prior_set_info(start).family) != family:
            raise ConfigurationError(f"expected a model of {family} priors to start from; {start} has {found} priors")
        return load_priors(start, frame=self.options.frame, sources=[self.source])[self.source]

    def run(self, fabric: Any = None) -> tuple[Trained, bool]:
        """The result of the training, and whether this process is the one that writes."""
        from pyrosep.training.trainer import Trainer, launch

        chosen_device(self.settings.accelerator)  # for the number of threads
        fabric = fabric or launch(self.settings)
        trainer = Trainer(
            self.settings,
            folder=self.folder,
            resume=not self.options.overwrite,
            label=self.source,
            quiet=self.quiet,
            fabric=fabric,
        )
        return self.recipe.train(self, self._frames(), trainer), fabric.is_global_zero

    def _frames(self) -> Frames:
        from pyrosep.training.frames import song_frames, toy_frames

        frame, seed = self.options.frame, self.settings.seed
        if self.songs is None:
            return toy_frames(self.source, frame, seed=seed)
        others = self.songs.sources if self.recipe.hears_others else ()
        return song_frames(
            self.songs,
            self.source,
            frame,
            sample_rate=self.options.sample_rate,
            others=tuple(other for other in others if other != self.source),
            augmentation=self.recipe.augmentation,
            seed=seed,
            shares=self.songs.shares,
        )


def train_all(
    data: Data,
    out: Path,
    options: FamilyOptions,
    recipe: Recipe,
    settings: TrainingSettings,
    report: Reporting,
    *,
    dtype: Any = None,
) -> None:
    """Train a prior for every source, and add each to the prior set in ``out`` as soon as it is there.

    Arguments:
        dtype: of the weights on disk; their own by default.
    """
    from pyrosep.zoo import save_priors

    if options.workers > 1 and settings.devices * settings.nodes > 1:
        raise ConfigurationError("several workers take one device a source; ask for either them or several devices")
    data.check_augmentation(recipe.augmentation)
    songs, names = _opened(data, recipe)
    jobs = [Job(name, out / "training" / name, songs, options, recipe, settings, report.quiet) for name in names]
    reports = {}
    for job, ((priors, figures), lead) in zip(jobs, _results(jobs, options.workers), strict=True):
        reports[job.source] = figures
        if not lead:
            continue
        for folder, prior in priors.items():
            own = figures[folder] if folder else figures
            save_priors(
                out / folder,
                {job.source: prior},
                gains=options.gains,
                summary=options.summary,
                dtype=dtype,
                provenance={job.source: own},
            )
        if not report.quiet:
            say(f"{job.source}: {figures_line(figures)}")
    write_json(report.json, reports)
    if not report.quiet:
        say(f"written to {out}")


def _opened(data: Data, recipe: Recipe) -> tuple[DataSets | None, tuple[str, ...]]:
    """Songs, all of whose sources are there where others are heard, and the names of the sources to train on."""
    from pyrosep.data.toy import WAVES
    from pyrosep.naming import check_source_names

    songs = None if data.simulated else data.open(None if recipe.hears_others else data.source)
    names = tuple(data.source or (WAVES if songs is None else songs.sources))
    check_source_names(names)  # before the work, and before one of them becomes the name of a folder
    if songs is not None and (unknown := [name for name in names if name not in songs.sources]):
        raise DataError(f"none of the data sets has a source {unknown[0]!r}; there are {', '.join(songs.sources)}")
    return songs, names


def _results(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Trained, bool]]:
    """The jobs' results in their order, each as soon as it and those before it are done."""
    if workers == 1:
        from pyrosep.training.trainer import launch

        fabric = launch(jobs[0].settings)
        yield from (job.run(fabric) for job in jobs)
        return
    # A process that has used torch's threads can't be forked.
    with ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=leave_signals_to_parent,
    ) as pool:
        yield from pool.map(Job.run, jobs)
