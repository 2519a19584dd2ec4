"""``pyrosep train-guide``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from pyrosep.cli.guide_mixes import GuideMixes
from pyrosep.cli.manners import figures_line, finite, say, write_json
from pyrosep.cli.options import (
    Data,
    Gains,
    Model,
    Out,
    Report,
    Reporting,
)
from pyrosep.cli.training_options import (
    Anew,
    AugmentationOptions,
    Half,
    Summary,
    TrainingOptions,
    with_preset,
)
from pyrosep.errors import ConfigurationError
from pyrosep.training.objectives import GuideObjective

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from pyrosep.guides import EncoderGuide
    from pyrosep.nn.bandnet import BandSize
    from pyrosep.nn.refining import UNetSize
    from pyrosep.training.trainer import Trainer, TrainingResult
    from pyrosep.zoo import PriorSetInfo

#: Mixes that are validated on.
_HELD_OUT = 64
#: The longest frame that is taken by default.
_LONGEST = 4096
#: Level of the intervals whose coverage the temperatures see to, and the levels that are reported.
_LEVEL, _LEVELS = 0.9, (0.5, 0.9)


@with_preset("guide")
class GuideTraining(TrainingOptions):
    """Training settings with the guides' preset."""


@dataclass(frozen=True)
class ObjectiveOptions(GuideObjective):
    """:class:`~pyrosep.training.objectives.GuideObjective` on the command line."""

    name: Annotated[str, Parameter(name="--objective")] = "simulated"
    cuts: Annotated[tuple[int, ...], Parameter(name="--cut")] = ()

    def fit(
        self,
        run: GuideMixes,
        guide: EncoderGuide,
        held_out: tuple[Tensor, Tensor],
        trainer: Trainer,
        bound_draws: int | None,
    ) -> TrainingResult:
        """Train a guide, and validate it on mixes with their sources."""
        from pyrosep.training.guides import fit_guide

        return fit_guide(
            run.mixing,
            guide,
            run.draws() if self.needs_mixes else None,
            objective=self.name,
            trainer=trainer,
            stems=run.stems if self.simulates else None,
            cuts=self.cuts,
            beta=self.beta,
            held_out=[*zip(*held_out, strict=True)],
            num_samples=(4 if self.needs_mixes else 0) if bound_draws is None else bound_draws,
            sigma_max=self.sigma_max,
            annealing=self.annealing,
        )


@dataclass(frozen=True)
class GuideAugmentation(AugmentationOptions):
    """Changes to frames of sources that are mixed."""

    takes: Annotated[float, Parameter(parse=False)] = 0.0


@dataclass(frozen=True)
class GuideData(Data):
    """What is trained on: draws of the priors themselves, unless recordings are given.

    Attributes:
        data: ``priors`` (draws of them) or ``toy``; or, once or more: ``musdb`` (at MUSDB_PATH), a folder
            ``ROOT/SONG/STEM.wav``, or ``solo:ROOT`` of ``SOURCE/NAME.wav``. By default ``priors``.
    """

    data: list[str] = field(default_factory=lambda: ["priors"])

    simulators: ClassVar[tuple[str, ...]] = ("priors", "toy")


@dataclass(frozen=True)
class NetworkOptions:
    """The guide's network: what isn't given is that of :data:`~pyrosep.nn.encoders.ENCODERS`.

    Attributes:
        network: ``waves``, or ``bands``: masks of short-time spectra, for music.
        width: Channels of the network. By default 64, with bands 48.
        layers: Of waves: layers at each level, down and up, by default 4. Of bands: how many layers, by default 8.
        hop: Of waves: samples that become one position. By default 16.
        levels: Of waves: halvings of the number of positions. By default 3.
        passes: Of waves: networks one after the other, each refining the last. By default 3.
        harmonic: Of waves: channels of the harmonic gates; 0 for none. By default 48.
        window: Of bands: samples in a window of the spectrum. By default 2048.
        bands: Of bands: how many. By default 32.
        neck: Of bands: channels of a window, by which its bands meet; 0 for recurrent layers along them. By default
            192.
        recurrent: Of bands: layers look along time by LSTMs instead of convolutions.
        phases: Of bands: read phases too, and mask with complex numbers.
        shared: One network for all sources, or one each.
        start: A guide to start from, which gives the network's size.
    """

    network: str = "waves"
    width: int | None = None
    layers: int | None = None
    hop: int | None = None
    levels: int | None = None
    passes: int | None = None
    harmonic: int | None = None
    window: int | None = None
    bands: int | None = None
    neck: int | None = None
    recurrent: Annotated[bool | None, Parameter(negative="")] = None
    phases: Annotated[bool | None, Parameter(negative="")] = None
    shared: Annotated[bool, Parameter(negative="--apart")] = True
    start: str | None = None

    def size(self) -> UNetSize | BandSize:
        """The size of a new network.

        Raises:
            ConfigurationError: an unknown network, or numbers that are another network's.
        """
        from pyrosep.nn.encoders import ENCODERS

        if self.network not in ENCODERS:
            raise ConfigurationError(f"network must be one of {', '.join(ENCODERS)}; got {self.network!r}")
        usual = ENCODERS[self.network]
        apart = ("network", "shared", "start")
        given = {name: value for name, value in vars(self).items() if value is not None and name not in apart}
        if strange := sorted(set(given) - {one.name for one in fields(usual)}):
            raise ConfigurationError(f"a network of {self.network} has no {', '.join(strange)}; leave that out")
        return replace(usual, **given)

    def guide(self, priors: Mapping[str, Any], seed: int, **options: Any) -> EncoderGuide:
        """A new guide, or one with a start's networks; its gains, noise and temperatures are this run's."""
        import torch

        from pyrosep.guides import EncoderGuide
        from pyrosep.zoo import load_guide

        begun = None if self.start is None else load_guide(self.start)
        if begun is not None and (begun.names != tuple(priors) or begun.channels or begun.head_names):
            raise ConfigurationError(
                f"expected a guide to start from of the sources {', '.join(priors)}, in this order, of one channel and "
                f"without other sites; {self.start} has {', '.join((*begun.names, *begun.head_names))}, channels "
                f"{begun.channels}"
            )
        size, shared = (self.size(), self.shared) if begun is None else (begun.size, begun.shared)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            guide = EncoderGuide(priors, size=size, shared=shared, **options)
        if begun is not None:
            guide.encoders.load_state_dict(begun.encoders.state_dict())
        return guide


@dataclass(frozen=True)
class MixingOptions:
    """The mixes that a guide is for.

    Attributes:
        gains: ``mean``, ``level``, or one number for each source, by commas. By default the model's own.
        noise: Standard deviation of the observation noise.
        frame: Samples in a mix. By default the model's frame, up to 4096.
        project: Condition the sources on the mix.
    """

    gains: Gains = None
    noise: float = 0.01
    frame: PositiveInt | None = None
    project: Annotated[bool, Parameter(negative="--no-project")] = True

    def weights(self, info: PriorSetInfo, names: Sequence[str]) -> list[float]:
        """One gain a source, as mixes are simulated."""
        kind = self.gains or info.gains
        if kind == "fit":
            raise ConfigurationError(
                f"the gains of model {info.name!r} are found from each mix ('fit'); to simulate mixes, give gains: "
                f"mean, level, or a number for each of {', '.join(names)}"
            )
        if isinstance(kind, str):
            return [1 / len(names) if kind == "mean" else 1.0] * len(names)
        if len(kind) != len(names):
            raise ConfigurationError(
                f"expected {len(names)} gains, one for each of {', '.join(names)}; got {len(kind)}"
            )
        return list(kind)


@dataclass(frozen=True)
class WritingOptions:
    """How a guide is written."""

    half: Half = True
    summary: Summary = ""

    def save(self, out: Path, guide: EncoderGuide, info: PriorSetInfo, frame: int, provenance: dict[str, Any]) -> None:
        """Write a guide of a prior set, for mixes of so many samples."""
        import torch

        from pyrosep.zoo import save_guide

        save_guide(
            out,
            guide.cpu(),
            model=info.name,
            frame=frame,
            summary=self.summary,
            dtype=torch.float16 if self.half else None,
            provenance=finite(provenance),
        )


def train_guide(
    *,
    model: Model,
    out: Out,
    data: Annotated[GuideData, Parameter(name="*")] = GuideData(),
    objective: Annotated[ObjectiveOptions, Parameter(name="*")] = ObjectiveOptions(),
    mixing: Annotated[MixingOptions, Parameter(name="*")] = MixingOptions(),
    network: Annotated[NetworkOptions, Parameter(name="*")] = NetworkOptions(),
    training: Annotated[GuideTraining, Parameter(name="*")] = GuideTraining(),
    augmentation: Annotated[GuideAugmentation, Parameter(name="*")] = GuideAugmentation(),
    bound_draws: NonNegativeInt | None = None,
    temperature_mixes: NonNegativeInt = 64,
    writing: Annotated[WritingOptions, Parameter(name="*")] = WritingOptions(),
    overwrite: Anew = False,
    report: Report = Reporting(),
) -> None:
    """Train a guide, an encoder from mixes to their sources, for a model's posterior, and write it to OUT.

    Checkpoints and TensorBoard logs are in ``OUT/training``. The same command continues from the last checkpoint, and
    ends with the same result as without a break. At the end it prints figures on mixes that were not trained on, and
    keeps them in ``OUT/config.json``: SI-SDR of every source, the log-density of true sources, and the share of them
    that lies in the guide's intervals before and after these are calibrated.

    Example:
        $ pyrosep train-guide -n toy -o toy-guide
        $ pyrosep train-guide -n band-gaussian --data ROOT --frame 4096 -o band-guide

    Arguments:
        bound_draws: Draws behind the held-out ELBO. By default none if all is simulated, else 4.
        temperature_mixes: Mixes that its intervals are calibrated on; 0 leaves them as they are.
    """
    from pyrosep.training.trainer import Trainer, launch
    from pyrosep.zoo import load_priors, prior_set_info
    from pyrosep.zoo.guides import check_guide_folder

    data.check_augmentation(augmentation)
    check_guide_folder(out)
    settings, info = training.here(), prior_set_info(model)
    names = tuple(data.source or info.sources)
    time = mixing.frame or min(info.frame, _LONGEST)
    weights = mixing.weights(info, names)
    priors = load_priors(info.folder, frame=time, sources=names)
    project = weights if mixing.project else False
    guide = network.guide(priors, settings.seed, project=project, noise=mixing.noise)
    fabric = launch(settings)
    kept, seed = _HELD_OUT + temperature_mixes, settings.seed
    run = GuideMixes(info, priors, weights, mixing.noise, data, augmentation, kept, seed, fabric.device)
    about = run.about() | vars(guide.size) | {"shared": guide.shared, "project": mixing.project}
    held_out = run.simulated(0, _HELD_OUT)
    trainer = Trainer(
        settings,
        folder=out / "training",
        resume=not overwrite,
        label=info.name,
        quiet=report.quiet,
        fabric=fabric,
        about=about,
    )
    result = objective.fit(run, guide.to(fabric.device), held_out, trainer, bound_draws)
    if not fabric.is_global_zero:
        return
    figures: dict[str, Any] = {"objective": objective.name, **result.report()}
    lines = [figures_line(figures)]
    if temperature_mixes:
        trust = _calibrated(guide, run.simulated(_HELD_OUT, temperature_mixes), held_out, (time, *objective.cuts))
        figures, lines = figures | trust, lines + _trust_lines(trust, names)
    writing.save(
        out, guide, info, time, figures | run.provenance() | {"start": network.start, "settings": asdict(settings)}
    )
    write_json(report.json, about | figures)
    for line in (*lines, f"written to {out}") if not report.quiet else ():
        say(line)


def _trust_lines(trust: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What the calibration came to, a line for each source and length."""
    return [
        f"{name}: temperature {trust['temperature'][name]}; in {length} samples intervals of {_LEVEL} cover "
        f"{part['before'][name][str(_LEVEL)]}, by temperature {part['after'][name][str(_LEVEL)]}"
        for name in names
        for length, part in trust["coverage"].items()
    ]


def _calibrated(
    guide: EncoderGuide, fresh: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], lengths: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Set the temperatures by mixes that are not trained on; coverage on others, by length, before and after.

    For several lengths they are the geometric means of what each calls for.
    """
    import torch

    from pyrosep.diagnostics import fit_temperature, interval_coverage

    def beginnings(mixes: tuple[Tensor, Tensor], length: int) -> tuple[Tensor, Tensor]:
        return mixes[0][..., :length], mixes[1][..., :length]

    def coverage() -> dict[int, dict[str, dict[str, float]]]:
        found = {length: interval_coverage(guide, *beginnings(held_out, length), levels=_LEVELS) for length in lengths}
        return {
            length: {name: {str(level): round(x, 3) for level, x in own.items()} for name, own in shares.items()}
            for length, shares in found.items()
        }

    before, fitted = coverage(), []
    for length in lengths:
        guide.temperature.fill_(1.0)
        fit_temperature(guide, *beginnings(fresh, length), level=_LEVEL)
        fitted.append(guide.temperature.log())
    guide.temperature.copy_(torch.stack(fitted).mean(0).exp())
    after = coverage()
    return {
        "temperature": dict(zip(guide.names, (round(value, 3) for value in guide.temperature.tolist()), strict=True)),
        "coverage": {str(length): {"before": before[length], "after": after[length]} for length in lengths},
    }
