"""``pyrosep train-prior gaussian | flowavenet | continuousflow``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from pyrosep.cli.jobs import FamilyOptions, Job, Trained, train_all
from pyrosep.cli.manners import figures_line, progress_bar, say, write_json
from pyrosep.cli.options import (
    Data,
    Out,
    Report,
    Reporting,
    Seed,
)
from pyrosep.cli.training_options import (
    AugmentationOptions,
    Half,
    InterferenceOptions,
    Summary,
    TrainingOptions,
    with_preset,
)
from pyrosep.errors import ConfigurationError
from pyrosep.training.augmentation import Augmentation
from pyrosep.training.interference import Interference

if TYPE_CHECKING:
    from pyrosep.training.frames import Frames
    from pyrosep.training.trainer import Trainer


@with_preset("flowavenet")
class FlowTraining(TrainingOptions):
    """Training settings with the flows' preset."""


@with_preset("continuousflow")
class DenoiserTraining(TrainingOptions):
    """Training settings with the denoisers' preset."""


def gaussian(
    *,
    data: Annotated[Data, Parameter(name="*")],
    out: Out,
    sample_rate: PositiveInt | None = None,
    frame: int = 16_384,
    window: int = 2048,
    gains: str = "level",
    summary: Summary = "",
    seed: Seed = 0,
    report: Report = Reporting(),
) -> None:
    """Fit stationary Gaussian priors (a mean power spectrum each) and add them to the model in OUT.

    Other sources that the model has already stay in it.

    Example:
        $ pyrosep train-prior gaussian --data ROOT --source bass --source drums --sample-rate 16000 -o my-model

    Arguments:
        sample_rate: Sample rate in Hz. By default the recordings' own.
        frame: Samples in a frame of the prior.
        window: Samples in a window of the spectral estimate.
        gains: How loud sources are in a mix: ``level``, ``fit`` or ``mean``.
        seed: Seed of the toy waves.
    """
    from pyrosep.training.gaussian import train_gaussian
    from pyrosep.zoo import save_priors

    takes, shares = _recordings(data, sample_rate, seed)
    priors, figures = {}, {}
    for name, own in takes.items():
        with progress_bar(0, f"fitting {name}", report.quiet) as bar:
            counted = [map(partial(_count, bar), part) for part in own.values()]
            own_shares = None if shares is None else [shares[data_set] for data_set in own]
            priors[name], figures[name] = train_gaussian(*counted, frame=frame, window=window, shares=own_shares)
        if not report.quiet:
            say(f"{name}: {figures_line(figures[name])}")
    save_priors(out, priors, gains=gains, summary=summary, provenance=figures)
    write_json(report.json, figures)
    if not report.quiet:
        say(f"written to {out}")


def _recordings(
    data: Data, sample_rate: int | None, seed: int
) -> tuple[dict[str, dict[str, Iterator[Any]]], Mapping[str, float] | None]:
    """Recordings by source and data set, and what share of the fit each data set has."""
    from pyrosep.data.toy import WAVES
    from pyrosep.naming import check_source_names
    from pyrosep.training.gaussian import recordings, recordings_by_set, toy_recordings

    if data.simulated:
        check_source_names(names := tuple(data.source or WAVES))
        return {wave: {"toy": toy_recordings(wave, seed=seed)} for wave in names}, None
    songs = data.open(data.source)
    check_source_names(songs.sources)  # before the work, not after it
    if songs.shares is None:
        return {name: {"": recordings(songs, name, sample_rate)} for name in songs.sources}, None
    return {name: recordings_by_set(songs, name, sample_rate) for name in songs.sources}, songs.shares


def _count(bar: Any, take: Any) -> Any:
    bar.update()
    return take


@dataclass(frozen=True)
class FlowRecipe:
    """How flows are trained.

    Attributes:
        size: Size of the network: ``tiny``, ``small`` or ``talk``.
        score_weight: Weight of denoising score matching in the loss.
        contrast: Weight of telling the source from constants, silence and other sources.
        finetune: Train a copy for each noise level, one after the other, instead of one flow for all levels.
        level: A level of the copies; may be given again. By default those up to 0.36.
    """

    size: str = "small"
    score_weight: float = 0.0
    contrast: float = 0.0
    finetune: bool = False
    level: list[float] | None = None

    family: ClassVar[str] = "flowavenet"
    augmentation: ClassVar[Augmentation] = Augmentation()

    def __post_init__(self) -> None:
        from pyrosep.priors import SIZES

        if self.size not in SIZES:
            raise ConfigurationError(f"size must be one of {', '.join(SIZES)}; got {self.size!r}")
        if self.finetune and self.contrast:
            raise ConfigurationError("a contrast is for one flow of all levels, not for copies that are finetuned")
        if self.level and not self.finetune:
            raise ConfigurationError("levels are for copies that are finetuned; without those, leave them out")

    @property
    def hears_others(self) -> bool:
        return bool(self.contrast)

    def train(self, job: Job, frames: Frames, trainer: Trainer) -> Trained:
        from pyrosep.priors import SIZES
        from pyrosep.training.flowavenet import finetune_flowavenet, train_flowavenet
        from pyrosep.training.frames import LEVELS

        begun = job.begun()
        if not self.finetune:
            prior, report = train_flowavenet(
                frames,
                SIZES[self.size] if begun is None else begun.network.size,
                trainer,
                sigma_min=job.options.sigma_min,
                sigma_max=job.options.sigma_max,
                contrast=self.contrast,
                start=begun,
                score_weight=self.score_weight,
            )
            return {"": prior}, report
        if begun is not None:
            raise ConfigurationError("a model to start from is for one flow of all levels, not for finetuned copies")
        levels = tuple(self.level or (level for level in LEVELS if level <= 0.36))
        copies, reports = finetune_flowavenet(
            frames, SIZES[self.size], trainer, levels=levels, name=job.source, score_weight=self.score_weight
        )
        places = {level: f"sigma-{level:g}" for level in copies}
        return (
            {places[level]: prior for level, prior in copies.items()},
            {places[level]: reports.get(level, {}) for level in copies},
        )


def flowavenet(
    *,
    data: Annotated[Data, Parameter(name="*")],
    out: Out,
    options: Annotated[FamilyOptions, Parameter(name="*")] = FamilyOptions(),
    recipe: Annotated[FlowRecipe, Parameter(name="*")] = FlowRecipe(),
    training: Annotated[FlowTraining, Parameter(name="*")] = FlowTraining(),
    report: Report = Reporting(),
) -> None:
    """Train normalizing flows (FloWaveNet) on noised recordings and add them to the model in OUT.

    Checkpoints and TensorBoard logs are in ``OUT/training/SOURCE``. The same command continues a run that was stopped,
    and ends with the same result as without a break. At the end it prints the held-out log-density in nats a frame, and
    for the toy waves how much it is below the exact one.

    Example:
        $ pyrosep train-prior flowavenet --data toy -o toy-flows --workers 4
    """
    train_all(data, out, options, recipe, training.here(), report)


@dataclass(frozen=True)
class DenoiserSizeOptions:
    """How denoisers are made and trained.

    Attributes:
        size: Size of the network: ``tiny``, ``small``, ``music`` or ``large``.
        spread: Standard deviation of the logarithm of the noise levels about the source's root mean square; 0 for a
            logarithm that is uniform.
    """

    size: str = "small"
    spread: float = 1.5

    def __post_init__(self) -> None:
        from pyrosep.nn.denoiser import DENOISERS

        if self.size not in DENOISERS:
            raise ConfigurationError(f"size must be one of {', '.join(DENOISERS)}; got {self.size!r}")
        if self.spread < 0:
            raise ConfigurationError(f"spread must be at least 0; got {self.spread}")


@dataclass(frozen=True)
class DenoiserRecipe:
    """How denoisers are trained: :class:`DenoiserSizeOptions`, with changes to frames and other sources in them."""

    family: ClassVar[str] = "continuousflow"

    options: DenoiserSizeOptions
    augmentation: Augmentation
    interference: Interference | None

    @property
    def hears_others(self) -> bool:
        return self.interference is not None

    def train(self, job: Job, frames: Frames, trainer: Trainer) -> Trained:
        from pyrosep.nn.denoiser import DENOISERS
        from pyrosep.training.continuousflow import train_continuousflow
        from pyrosep.zoo import prior_set_info
        from pyrosep.zoo.weights import load_weights

        begun = job.begun()
        prior, report = train_continuousflow(
            frames,
            DENOISERS[self.options.size] if begun is None else begun.network.size,
            trainer,
            sigma_min=job.options.sigma_min,
            sigma_max=job.options.sigma_max,
            spread=self.options.spread or None,
            interference=self.interference,
            start=begun,
        )
        if prior.interfered is not None and job.options.start is not None:  # what is told of the first network stays
            before = load_weights(prior_set_info(job.options.start).folder)[0]["priors"][job.source]
            report = before | {"second network": report}
        return {"": prior}, report


def continuousflow(
    *,
    data: Annotated[Data, Parameter(name="*")],
    out: Out,
    options: Annotated[FamilyOptions, Parameter(name="*")] = FamilyOptions(),
    network: Annotated[DenoiserSizeOptions, Parameter(name="*")] = DenoiserSizeOptions(),
    augmentation: Annotated[AugmentationOptions, Parameter(name="*")] = AugmentationOptions(),
    interference: Annotated[InterferenceOptions, Parameter(name="*")] = InterferenceOptions(),
    training: Annotated[DenoiserTraining, Parameter(name="*")] = DenoiserTraining(),
    half: Half = True,
    report: Report = Reporting(),
) -> None:
    """Train denoisers for all noise levels (ContinuousFlow) on recordings and add them to the model in OUT.

    Checkpoints, logs and continuing are as for ``flowavenet``. At the end the command prints the SNR of held-out frames
    after denoising, in dB. For the toy waves it prints that of the exact denoiser too, and with ``--interference`` that
    of the same frames with other sources.

    Example:
        $ pyrosep train-prior continuousflow --data toy -o toy-continuous --gains mean --workers 2
        $ pyrosep train-prior continuousflow --data ROOT --data solo:RECORDINGS --weight 1 --weight 2 \\
              --map guitar=other,piano=other --sample-rate 16000 --interference 0.5 -o my-model
    """
    import torch

    recipe = DenoiserRecipe(network, augmentation, interference.asked())
    dtype = torch.float16 if half else None
    train_all(data, out, options, recipe, training.here(), report, dtype=dtype)
