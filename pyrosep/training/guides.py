"""Training a guide: by the ELBO on mixes, or by maximum likelihood on mixes that the model itself draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides.bounds import check_independence, iwae, log_weights, over_mixes, simulate
from pyrosep.guides.encoder import EncoderGuide, check_mix
from pyrosep.infer.response import base_distribution
from pyrosep.metrics import si_sdr, sounding
from pyrosep.mixing import at_level, plate_nesting
from pyrosep.priors import SourcePrior, scores_suffice
from pyrosep.priors.base import rms
from pyrosep.reading import Reading
from pyrosep.training.objectives import OBJECTIVES, GuideObjective
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer, TrainingResult, trainer_or_preset

__all__ = ["OBJECTIVES", "fit_guide"]

#: The least root mean square of a mix that deviations are compared with.
_QUIET = 1e-4
#: Mixes that are validated on, at most, and how many are simulated where none are held out.
_HELD_OUT = 64


def fit_guide(
    model: Callable[..., Any],
    guide: EncoderGuide,
    data: Any = None,
    *,
    objective: str = "simulated",
    trainer: Trainer | None = None,
    stems: Mapping[str, Callable[[int], Tensor]] | None = None,
    cuts: Sequence[int] = (),
    beta: float = 0.0,
    held_out: Any = None,
    num_samples: int = 16,
    sigma_max: float | None = None,
    annealing: float = 0.7,
) -> TrainingResult:
    r"""Train a guide in place. No mix is ever seen together with its own sources.

    The objective is ``"simulated"``, by pairs that the model draws from its priors or from unpaired ``stems``;
    ``"elbo"``, the evidence lower bound of mixes alone; or ``"both"``, one after the other: see
    :class:`~pyrosep.training.objectives.GuideObjective`.

    The loss is in nats for each sample of a source. The priors must be on the device that ``settings`` names.

    Arguments:
        model: a Pyro model, called with a mix; for simulation also without arguments, when it must draw one at a site
            ``mix``. Written for leading batch axes.
        guide: of the same latent sites.
        data: mixes to train on, for the ELBO: a tensor ``(mix, ..., time)``, a data set whose items are mixes or begin
            with one (what follows it is not looked at), or a function that draws so many by torch's generator.
        objective: see above.
        trainer: with the settings, and a folder for checkpoints; a batch is one of mixes. By default it has the preset.
        stems: by source, a function that draws so many frames ``(count, time)`` of that source alone; for simulation.
        cuts: lengths in samples that simulated mixes are cut into, at random one of them or none in a step: for a guide
            that is to read frames of several lengths. Of a model in which a piece of a mix is the mix of the pieces.
        beta: for simulation, from 0, the likelihood, to 1, at which quiet passages count for less.
        held_out: mixes to validate on, as ``data``; where they come with their sources, SI-SDR is reported. By default
            mixes simulated once, if the objective simulates.
        num_samples: draws behind the bounds of the validation; 0 leaves ``elbo`` and ``iwae`` out, which ask the priors
            for densities as nothing else of the simulated objective does.
        sigma_max: where the annealing begins; by default a third of the loudest prior's rms times
            :math:`\sqrt{\mathrm{time}}`.
        annealing: part of the steps.

    Returns:
        the run; :attr:`~pyrosep.training.trainer.TrainingResult.history` has, for each validation, ``elbo`` and
        ``iwae`` (nats a mix), ``log_q`` of simulated sources (nats a mix), and ``si_sdr SOURCE`` (dB, over mixes in
        which the source is not silent).

    Raises:
        ConfigurationError: an unknown objective, data that is missing or of another kind, sites that the guide lacks.
        ShapeError: mixes that don't fit the guide, or a model that is not written for leading batch axes.
        LeakError: a model in which the mixes of a batch meet.

    Example:
        >>> from pyrosep import EncoderGuide, GaussianPrior
        >>> from pyrosep.nn import UNetSize
        >>> from pyrosep.mixing import mean_mix
        >>> priors = {"a": GaussianPrior(torch.ones(2), 32), "b": GaussianPrior(torch.ones(2), 32)}
        >>> guide = EncoderGuide(priors, size=UNetSize(hop=4, width=8, levels=1, layers=2))
        >>> model = mean_mix(priors, noise=0.1)
        >>> result = fit_guide(model, guide, trainer=Trainer(TrainingSettings(steps=2, batch=4), quiet=True))
        >>> sorted(result.history[-1])
        ['elbo', 'iwae', 'log_q', 'step']
    """
    trainer = trainer_or_preset(trainer, "guide")
    goal = GuideObjective(objective, tuple(cuts), beta, sigma_max, annealing)
    goal.check_data(data, stems)
    if not isinstance(guide, EncoderGuide):
        raise ConfigurationError(f"fit_guide trains an EncoderGuide; got a {type(guide).__name__}: use pyro.infer.SVI")
    if num_samples < 0:
        raise ConfigurationError(f"num_samples must be at least 0; got {num_samples!r}")
    # What the guide registers in Pyro's param store is the trainer's to optimise, and nobody else's.
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        run = _Run(model, guide, data, goal, trainer.settings, stems)
        validate = _Validation(run, held_out, num_samples)
        result = trainer.fit(run.counted, run.loss, run.draw, validate=validate, about=goal.about)
    guide.requires_grad_(True)
    result.network = guide
    return result


class _Counted(nn.Module):
    """A guide and the steps it has made: kept with its weights, so that a resumed run goes on where it was."""

    def __init__(self, guide: EncoderGuide) -> None:
        super().__init__()
        self.guide = guide
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.steps: Tensor

    def forward(self, mix: Tensor) -> Any:
        return self.guide(mix)


class _Run:
    """The draws and the loss of a training."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: EncoderGuide,
        data: Any,
        objective: GuideObjective,
        settings: TrainingSettings,
        stems: Mapping[str, Callable[[int], Tensor]] | None = None,
    ) -> None:
        self.model, self.stems, self.settings, self.beta = model, stems, settings, objective.beta
        self.counted = _Counted(guide)
        self.simulated = objective.simulated_steps(settings.steps)
        self.annealed = objective.annealed_steps(settings.steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.mixes = _mixes(data) if objective.needs_mixes else None
            mix = simulate(model, 2, stems=stems)[0] if self.mixes is None else self.mixes(2)
            check_mix(mix, guide.channels)
            if mix.ndim != (2 if guide.channels is None else 3):
                raise ShapeError(f"expected mixes one after the other, (mix, ..., time); got shape {tuple(mix.shape)}")
            with poutine.block():
                single = poutine.trace(model).get_trace(mix[0])
            priors = {n: s["fn"] for n, s in single.nodes.items() if isinstance(s.get("fn"), SourcePrior)}
            if not priors:
                raise ConfigurationError("the model has no site with a source prior, so that there is nothing to guide")
            if wrong := {name: prior.time for name, prior in priors.items() if prior.time != mix.shape[-1]}:
                raise ShapeError(
                    f"the mixes have {mix.shape[-1]} samples, the priors {wrong}; cut the mixes, or take prior.frame"
                )
            away = [name for name, prior in priors.items() if prior.sigma.device.type != settings.accelerator]
            if away:
                raise ConfigurationError(
                    f"training is to run on {settings.accelerator!r}, but the priors of {away} are elsewhere; "
                    f"move them: prior.to({settings.accelerator!r})"
                )
            if mix.device == guide.temperature.device:  # else the trainer moves the guide to where the priors are
                check_independence(model, guide, mix)
        self.nesting = plate_nesting(single)
        self.names, self.time = list(priors), mix.shape[-1]
        if bad := [cut for cut in objective.cuts if not 0 < cut < self.time]:
            raise ConfigurationError(f"cuts must be from 1 to below the mixes' {self.time} samples; got {bad}")
        self.lengths = [self.time, *objective.cuts]
        self.samples = sum(prior.time for prior in priors.values())
        self.bottom = max(min(float(prior.sigma.min()) for prior in priors.values()), 1e-6)
        sigma_max = objective.sigma_max
        if sigma_max is None:
            sigma_max = max(rms(prior) * math.sqrt(prior.time) for prior in priors.values()) / 3
        self.top = max(float(sigma_max), self.bottom)

    def draw(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        if int(self.counted.steps) < self.simulated or self.mixes is None:
            mix, values = simulate(self.model, count, stems=self.stems)
            length = self.lengths[int(torch.randint(len(self.lengths), ()))] if len(self.lengths) > 1 else self.time
            return (mix, values) if length == self.time else self._cut(mix, values, length)
        return self.mixes(count), {}

    def _cut(self, mix: Tensor, values: dict[str, Tensor], length: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mixes and their values in pieces, one after the other on the first axis; what is left over is dropped."""
        count = self.time // length

        def pieces(x: Tensor) -> Tensor:
            return x[..., : count * length].unflatten(-1, (count, length)).movedim(-2, 1).flatten(0, 1)

        return pieces(mix), {
            name: pieces(value) if name in self.names else value.repeat_interleave(count, 0)
            for name, value in values.items()
        }

    def loss(self, guide: nn.Module, batch: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        mix, values = batch
        step = int(self.counted.steps)
        self.counted.steps += 1
        scale = len(mix) * self.samples * mix.shape[-1] / self.time
        batched = over_mixes(guide, len(mix), self.nesting)
        if values:
            found = conditioned(batched, mix, values)
            return -(self._weighted(found, mix) if self.beta else found.log_prob_sum()) / scale
        model = over_mixes(at_level(self.model, self.level(step - self.simulated)), len(mix), self.nesting)
        with scores_suffice():
            return Trace_ELBO().differentiable_loss(model, batched, mix) / scale

    def _weighted(self, found: poutine.Trace, mix: Tensor) -> Tensor:
        """The log-density with each sample of a source weighed by its own deviation."""
        level = mix.square().flatten(1).mean(-1).sqrt().clamp(min=_QUIET)
        total = mix.new_zeros(())
        for name, site in found.nodes.items():
            if site["type"] != "sample" or poutine.util.site_is_subsample(site):
                continue
            if name in self.names:
                normal = base_distribution(site["fn"])
                relative = normal.scale.detach() / level.view(-1, *[1] * (normal.scale.ndim - 1))
                total = total + (relative ** (2 * self.beta) * normal.log_prob(site["value"])).sum()
            else:
                total = total + site["fn"].log_prob(site["value"]).sum()
        return total

    def level(self, step: int) -> float:
        """The noise level of the priors in a step of those by the ELBO."""
        return self.top * (self.bottom / self.top) ** min(1.0, step / self.annealed)


def conditioned(guide: Callable[..., Any], mix: Tensor, values: Mapping[str, Tensor]) -> poutine.Trace:
    """The guide's trace with its sites at these values."""
    with poutine.block():
        return poutine.trace(poutine.condition(guide, values)).get_trace(mix)


def log_q(guide: Callable[..., Any], mix: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """The guide's log-density of the values of its sites, summed over mixes, in nats."""
    return conditioned(guide, mix, values).log_prob_sum()


class _Validation:
    """The guide's figures on held-out mixes, and on simulated ones."""

    def __init__(self, run: _Run, held_out: Any, num_samples: int) -> None:
        self.run, self.num_samples = run, num_samples
        self.simulated: tuple[Tensor, dict[str, Tensor]] | None = None
        self.truth: Tensor | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.settings.seed + 2**32)
            if run.simulated:
                self.simulated = simulate(run.model, _HELD_OUT, stems=run.stems)
            if held_out is not None:
                self.mix: Tensor | None = _mixes(held_out, first=True)(_HELD_OUT)
                self.truth = _truth(held_out, len(self.mix), len(run.counted.guide.names))
            else:
                self.mix = None if self.simulated is None else self.simulated[0]
            if self.mix is not None and num_samples:
                priors = Reading.of(poutine.trace(run.model).get_trace(self.mix[0])).priors
                if not all(prior.has_density for prior in priors.values()):
                    self.num_samples = 0  # there is no bound without densities

    def __call__(self, network: nn.Module) -> dict[str, float]:
        guide, run = self.run.counted.guide, self.run
        device = guide.temperature.device
        torch.manual_seed(run.settings.seed)  # the same draws at every validation
        figures: dict[str, float] = {}
        if self.mix is not None:
            mix = self.mix.to(device)
            if self.num_samples:
                weights = torch.cat(
                    [log_weights(run.model, guide, part, self.num_samples, batched=True) for part in mix.split(8)], 1
                )
                figures |= {"elbo": float(weights.mean()), "iwae": float(iwae(weights).mean())}
            if self.truth is not None:
                mean = torch.cat([guide.moments(part)[0] for part in mix.split(8)])
                figures |= _si_sdr(guide.names, mean.cpu(), self.truth)
        if self.simulated is not None:
            mix, values = self.simulated[0].to(device), {k: v.to(device) for k, v in self.simulated[1].items()}
            figures["log_q"] = float(log_q(over_mixes(guide, len(mix), run.nesting), mix, values)) / len(mix)
        return figures


def _mixes(data: Any, first: bool = False) -> Callable[[int], Tensor]:
    """A function that gives so many mixes: random ones, or the first ones (and no more than there are)."""
    if callable(data) and not isinstance(data, Tensor):
        return data
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, str | Mapping):
        raise ConfigurationError(
            f"expected mixes as a tensor, a data set, or a function of a count; got a {type(data).__name__}"
        )
    if not len(data):
        raise ConfigurationError("expected at least one mix; the data set is empty")

    def draw(count: int) -> Tensor:
        chosen = range(min(count, len(data))) if first else torch.randint(len(data), (count,)).tolist()
        items = [data[index] for index in chosen]
        mixes = [item[0] if isinstance(item, tuple | list) else item for item in items]
        if not all(isinstance(mix, Tensor) and mix.shape == mixes[0].shape for mix in mixes):
            shapes = sorted({str(tuple(getattr(mix, "shape", ()))) for mix in mixes})
            raise ShapeError(f"expected mixes as tensors of one shape; got {', '.join(shapes)}")
        return torch.stack(mixes)

    return draw


def _truth(data: Any, count: int, sources: int) -> Tensor | None:
    """The sources ``(mix, source, time)`` that come with held-out mixes, or ``None``."""
    if callable(data) or isinstance(data, Tensor):
        return None
    items = [data[index] for index in range(count)]
    if not all(isinstance(item, tuple | list) and len(item) > 1 for item in items):
        return None
    truth = torch.stack([item[1] for item in items])
    if truth.ndim != 3 or truth.shape[1] != sources:
        raise ShapeError(f"expected {sources} sources beside each held-out mix, (source, time); got {truth.shape[1:]}")
    return truth


def _si_sdr(names: tuple[str, ...], estimate: Tensor, truth: Tensor) -> dict[str, float]:
    values, heard = si_sdr(estimate.unsqueeze(2), truth.unsqueeze(2)), sounding(truth.unsqueeze(2))
    return {
        f"si_sdr {name}": float(values[:, k][heard[:, k]].mean()) for k, name in enumerate(names) if heard[:, k].any()
    }
