"""The demonstration: toy waves found in their mix, a mixing model of one's own, and a real song."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosep import audio
from pyrosep.data.toy import SAMPLE_RATE, WAVES, ToyMixes
from pyrosep.diagnostics.plots import plot_spectrograms
from pyrosep.errors import MissingDependencyError
from pyrosep.infer import AnnealedSearch, GibbsMALA, LangevinMCMC, seeded
from pyrosep.metrics import si_sdr
from pyrosep.mixing import Model, linear_mix, mean_mix
from pyrosep.priors import SourcePrior
from pyrosep.separation import Settings, choose_method, separate
from pyrosep.separation.files import separate_track
from pyrosep.zoo import load_priors

__all__ = ["MODEL", "clipped_mix", "demo_song", "run_clipped_demo", "run_song_demo", "run_toy_demo"]

#: Exact priors, with frames of so many samples; and of the waves of the clipped mix.
TOY_MODEL, FRAME, CLIPPED = "toy", 4096, ("saw", "square", "triangle")
#: Flows with a guide of their own, and Gaussian priors of the same sources beside them.
MODEL, PLAIN_MODEL = "music-small", "song-gaussian"
#: Draws that are written (all of them, if there are fewer), and that the picture's standard deviations are over.
KEPT = 16
#: Streams of the stem file after the first, which is a mix that its makers mastered.
STREAMS = ("drums", "bass", "other", "vocals")

Progress = Callable[[int, int], Any]


def run_toy_demo(
    out: Path, *, chains: int = 8, seed: int = 0, device: str = "cpu", progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Find four toy waves in their mean, by chains that know of each no more than what such a wave is.

    Writes ``mix.wav``, what was found of each wave, and ``toy.png``: spectrograms of mix, truth, estimate and standard
    deviation.

    Returns:
        ``scores``: by estimate and wave, SI-SDR in dB; ``seconds``; ``picture``: its path.
    """
    priors = load_priors(TOY_MODEL, frame=FRAME, device=device)
    mix, sources = ToyMixes(WAVES, frame=FRAME, seed=seed)[0]
    truth = dict(zip(WAVES, sources, strict=True))
    found = _sampled(mean_mix(priors), mix, list(priors), chains, seed, progress)
    return _told(out, "toy", mix, truth, {"chains": found}, "Four waves in their mean")


def clipped_mix(priors: Mapping[str, SourcePrior], ceiling: float = 1.0) -> Model:
    """A sum of sources that an amplifier clips softly: a mixing model as anyone may write one."""

    def model(mix: Tensor | None = None) -> Tensor:
        total = sum(pyro.sample(name, prior) for name, prior in priors.items())
        heard = ceiling * torch.tanh(total / ceiling)
        return pyro.sample("mix", dist.Normal(heard, 0.01).to_event(1), obs=mix)

    return model


def run_clipped_demo(
    out: Path, *, chains: int = 4, seed: int = 0, device: str = "cpu", progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Separate a mix that was clipped, which no guide was trained for, under :func:`clipped_mix` and under a plain sum.

    Writes and returns what :func:`run_toy_demo` does.
    """
    priors = load_priors(TOY_MODEL, frame=FRAME, sources=list(CLIPPED), device=device)
    sources = ToyMixes(CLIPPED, frame=FRAME, seed=seed)[0][1]
    truth = dict(zip(CLIPPED, sources, strict=True))
    with seeded(seed):
        mix = pyro.condition(clipped_mix(priors), truth)().detach()
    models = {"chains, a plain sum": linear_mix(priors, noise=0.01), "chains, with the clipper": clipped_mix(priors)}
    found = {}
    for number, (name, model) in enumerate(models.items()):

        def of_both(done: int, total: int, number: int = number) -> None:
            progress(done + number * total, len(models) * total)

        found[name] = _sampled(model, mix, list(CLIPPED), chains, seed, of_both)
    return _told(out, "clipped", mix, truth, found, "Three waves whose sum was clipped")


def _sampled(model: Model, mix: Tensor, names: list[str], chains: int, seed: int, progress: Progress) -> Tensor:
    """Draws of the chain of highest joint density, ``(source, draw, time)``."""
    draws, warmup, thinning = 10, 60, 10
    total = warmup + draws * thinning
    mcmc = LangevinMCMC(
        GibbsMALA(model),
        draws,
        warmup,
        num_chains=chains,
        thinning=thinning,
        init=AnnealedSearch(),
        seed=seed,
        disable_progbar=True,
        hook_fn=lambda kernel, z, stage, i: progress(i + 1 + (warmup if stage == "Sample" else 0), total),
    ).run(mix)
    best = int(mcmc.sample_stats()["lp"].mean(1).argmax())
    samples = mcmc.get_samples(group_by_chain=True)
    return torch.stack([samples[name][best] for name in names])


def _told(
    out: Path, name: str, mix: Tensor, truth: Mapping[str, Tensor], found: Mapping[str, Tensor], title: str
) -> dict[str, Any]:
    """Scores of what was found, by estimate; sound and picture of the last."""
    reference = torch.stack(list(truth.values()))
    means = {"mix as estimate": mix.expand_as(reference)} | {key: value.mean(1) for key, value in found.items()}
    scores = {
        key: dict(zip(truth, si_sdr(value.unsqueeze(1), reference.unsqueeze(1)).tolist(), strict=True))
        for key, value in means.items()
    }
    folder, last = out / name, list(found)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    loud = 0.5 / float(mix.abs().max())
    for source, samples in {"mix": mix, **dict(zip(truth, means[last], strict=True))}.items():
        audio.write(folder / f"{source}.wav", loud * samples.cpu().repeat(4).unsqueeze(0), SAMPLE_RATE)
    rows = {
        "mix": {"mix": mix.cpu().numpy()},
        "truth": {source: samples.cpu().numpy() for source, samples in truth.items()},
        "estimate": dict(zip(truth, means[last].cpu().numpy(), strict=True)),
        "standard deviation": dict(zip(truth, found[last].cpu().numpy(), strict=True)),
    }
    picture = out / f"{name}.png"
    plot_spectrograms(rows, SAMPLE_RATE, picture, title=title)
    return {"scores": scores, "folder": str(folder), "picture": str(picture)}


def demo_song() -> tuple[Tensor, dict[str, Tensor], int]:
    """ "The Easton Ellises - Falcon 69", which comes with stempeg: mix ``(channel, time)``, stems by name, and rate
    in Hz.

    The mix is the sum of the stems. Reading it needs neither stempeg's code nor the ffmpeg program.

    Raises:
        MissingDependencyError: stempeg's files are not there.
    """
    spec = importlib.util.find_spec("stempeg")  # found, not imported: importing it needs ffmpeg
    places = list(spec.submodule_search_locations or []) if spec else []
    song = next((found for place in places for found in Path(place).glob("data/*.stem.mp4")), None)
    if song is None:
        raise MissingDependencyError("the demo song comes with the package stempeg; install it: pip install stempeg")
    stems = {name: audio.read(song, stream=stream + 1) for stream, name in enumerate(STREAMS)}
    samples = {name: stem.samples for name, stem in stems.items()}
    return torch.stack(list(samples.values())).sum(0), samples, stems[STREAMS[0]].sample_rate


def run_song_demo(
    out: Path,
    *,
    chains: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Separate a real song that the priors have never heard, by chains from their guide.

    They are scored beside what is quicker: the mix itself, the Wiener filter of Gaussian priors (:data:`PLAIN_MODEL`),
    and the guide's mean.

    Writes the stems (``out/MODEL/falcon69``), ``mix.wav`` and ``song.png``: spectrograms of the mix, the true stems,
    the estimates and their standard deviations.

    Returns:
        ``scores``: by method and source, SI-SDR in dB; ``run``: the report of the chains; ``chains``: how many for each
        window; ``picture``: its path.
    """
    mix, truth, rate = demo_song()
    priors = load_priors(MODEL, device=device)
    method = choose_method(priors, chains=chains)
    settings = Settings(method, keep=min(KEPT, method.count or KEPT), seed=seed)
    names = list(priors)
    reference = torch.stack([truth[name] for name in names])
    out.mkdir(parents=True, exist_ok=True)
    audio.write(out / "mix.wav", mix, rate)
    folder = out / MODEL / "falcon69"
    run = separate_track(out / "mix.wav", folder, priors, settings, overwrite=True, progress=progress)
    found = torch.stack([audio.read(folder / f"{name}.wav").samples for name in names])
    draws = {
        name: np.stack(
            [audio.read(folder / f"{name}.draw{number}.wav").samples.mean(0).numpy() for number in range(settings.keep)]
        )
        for name in names
    }
    plain = load_priors(PLAIN_MODEL, sources=names, device=device)
    wiener = separate(mix, rate, plain, method="exact").mean
    guided = separate(mix, rate, priors, method="guide", seed=seed).mean
    estimates = {
        "mix as estimate": mix.expand_as(reference),
        "Gaussian priors": wiener,
        "guide": guided,
        "chains from the guide": found,
    }
    scores = {
        method: dict(zip(names, si_sdr(estimate, reference).tolist(), strict=True))
        for method, estimate in estimates.items()
    }

    def mono(values: Tensor) -> dict[str, Any]:
        return dict(zip(names, values.mean(1).numpy(), strict=True))

    rows = {
        "mix": {"mix": mix.mean(0).numpy()},
        "truth": mono(reference),
        "estimate": mono(found),
        "standard deviation": draws,
    }
    picture = out / "song.png"
    plot_spectrograms(rows, rate, picture, title="The Easton Ellises - Falcon 69, by chains from a guide")
    residual = (mix - found.sum(0)).square().mean() / mix.square().mean()
    return {
        "scores": scores,
        "run": run,
        "chains": method.states,
        "folder": str(folder),
        "picture": str(picture),
        "sum_residual_db": 10 * torch.log10(residual.clamp(min=1e-20)).item(),
    }
