"""The demonstration: a real song by Gaussian priors that have never seen it, and a toy mix by flow priors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrosep import audio
from pyrosep.data import ToyMixes
from pyrosep.diagnostics.plots import plot_spectrograms, plot_waveforms
from pyrosep.errors import MissingDependencyError
from pyrosep.evaluate import si_sdr
from pyrosep.priors import load_priors, model_info
from pyrosep.separate import Settings, separate
from pyrosep.tracks import separate_track

__all__ = ["MODEL", "TOY_MODELS", "demo_song", "run_demo", "run_toy_demo"]

MODEL = "song-gaussian"
#: Learned priors, and the exact ones to judge them by.
TOY_MODELS = ("toy-flowavenet", "toy")
TOY_WAVES = ("sine", "saw")
#: Draws that are written (all of them, if there are fewer), and that the picture's standard deviations are over.
KEPT = 16
#: Streams of the stem file after the first, which is a mix that its makers mastered.
STREAMS = ("drums", "bass", "other", "vocals")


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


def run_demo(
    out: Path,
    *,
    settings: Settings | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, Any]:
    """Separate the song by Langevin chains into ``out``, and score it beside the mix and the exact posterior mean.

    Writes the stems (``out/MODEL/falcon69``), ``mix.wav`` and ``demo.png``: spectrograms of the mix, the true stems,
    the estimates and their standard deviations.

    Returns:
        ``scores``: by method and source, SI-SDR in dB; ``run``: the report of the chains; ``picture``: its path.
    """
    settings = settings or Settings()
    settings = replace(settings, keep=min(KEPT, settings.chains * settings.draws))
    mix, truth, rate = demo_song()
    priors = load_priors(MODEL, device=device)
    info = model_info(MODEL)
    names = list(priors)
    reference = torch.stack([truth[name] for name in names])
    out.mkdir(parents=True, exist_ok=True)
    audio.write(out / "mix.wav", mix, rate)
    folder = out / MODEL / "falcon69"
    run = separate_track(
        out / "mix.wav",
        folder,
        priors,
        settings,
        model=info,
        overwrite=True,
        progress=progress,
    )
    chains = torch.stack([audio.read(folder / f"{name}.wav").samples for name in names])
    draws = {
        name: np.stack(
            [audio.read(folder / f"{name}.draw{number}.wav").samples.mean(0).numpy() for number in range(settings.keep)]
        )
        for name in names
    }
    exact = separate(mix, rate, priors, replace(settings, method="exact", keep=0), model_gains=info.gains).mean
    estimates = {"mix as estimate": mix.expand_as(reference), "exact posterior mean": exact, "Langevin chains": chains}
    scores = {
        method: dict(zip(names, si_sdr(estimate, reference).tolist(), strict=True))
        for method, estimate in estimates.items()
    }

    def mono(values: Tensor) -> dict[str, Any]:
        return dict(zip(names, values.mean(1).numpy(), strict=True))

    rows = {
        "mix": {"mix": mix.mean(0).numpy()},
        "truth": mono(reference),
        "estimate": mono(chains),
        "standard deviation": draws,
    }
    picture = out / "demo.png"
    plot_spectrograms(rows, rate, picture, title="The Easton Ellises - Falcon 69, by Gaussian priors and MALA chains")
    residual = (mix - chains.sum(0)).square().mean() / mix.square().mean()
    return {
        "scores": scores,
        "run": run,
        "folder": str(folder),
        "picture": str(picture),
        "sum_residual_db": 10 * torch.log10(residual.clamp(min=1e-20)).item(),
    }


def run_toy_demo(
    out: Path,
    *,
    settings: Settings | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, Any]:
    """Separate a mix of two toy waves by their learned priors, and by their exact ones beside them.

    Writes ``toy.png``: the waves, what the learned priors make of them, and two standard deviations about it.

    Returns:
        ``scores``: by method and source, SI-SDR in dB; ``picture``: its path.
    """
    settings = settings or Settings(chains=4, draws=25, warmup=25, redraws=6)
    mixes = ToyMixes(TOY_WAVES, frame=model_info(TOY_MODELS[0]).frame, size=settings.seed + 1)
    mix, truth = mixes[settings.seed]
    results = {}
    for done, model in enumerate(TOY_MODELS):
        priors = load_priors(model, frame=len(mix), sources=TOY_WAVES, device=device)
        info = model_info(model)
        results[model] = separate(mix.unsqueeze(0), info.sample_rate, priors, settings, model_gains=info.gains)
        progress(done + 1, len(TOY_MODELS))
    estimates = {"mix as estimate": mix.expand_as(truth)}
    estimates |= {f"model {model}": result.mean[:, 0] for model, result in results.items()}
    scores = {
        method: dict(zip(TOY_WAVES, si_sdr(estimate, truth).tolist(), strict=True))
        for method, estimate in estimates.items()
    }
    learned = results[TOY_MODELS[0]]
    rows = {
        wave: {"truth": truth[k] / len(TOY_WAVES), "mean": learned.mean[k, 0], "stddev": learned.stddev[k, 0]}
        for k, wave in enumerate(TOY_WAVES)
    }
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "toy.png"
    plot_waveforms(rows, info.sample_rate, picture, title=f"Two toy waves by {TOY_MODELS[0]}, from their mean")
    return {"scores": scores, "picture": str(picture)}
