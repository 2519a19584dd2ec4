"""The demonstration: a real song by priors that have never heard it; toy waves named, and mixes separated."""

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
from pyrosep.diagnostics.plots import plot_spectrograms
from pyrosep.errors import MissingDependencyError
from pyrosep.experiments import HeldOut, cross_likelihood
from pyrosep.experiments.guides import guides
from pyrosep.metrics import si_sdr
from pyrosep.separation import Settings, choose_method, separate
from pyrosep.separation.files import separate_track
from pyrosep.zoo import load_priors

__all__ = ["MODEL", "TOY_MODEL", "demo_song", "run_demo", "run_guide_demo", "run_toy_demo"]

#: Flows with a guide of their own, and Gaussian priors of the same sources beside them.
MODEL, PLAIN_MODEL = "music-small", "song-gaussian"
#: Flows, judged beside the exact priors on so many frames of each wave.
TOY_MODEL = "toy-flowavenet"
TOY_FRAMES = 10
TOY_LEVELS = (0.03, 0.1, 0.36, 1.0)
#: A guide, tried on so many mixes of four waves, and chains from it for each.
GUIDE, GUIDE_MIXES, GUIDE_CHAINS = "toy-guide", 5, 4
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
    """Separate the song by chains from the model's guide into ``out``, and score them beside what is quicker.

    That is the mix itself, the Wiener filter of Gaussian priors (:data:`PLAIN_MODEL`), and the guide's mean.

    Writes the stems (``out/MODEL/falcon69``), ``mix.wav`` and ``demo.png``: spectrograms of the mix, the true stems,
    the estimates and their standard deviations.

    Returns:
        ``scores``: by method and source, SI-SDR in dB; ``run``: the report of the chains; ``chains``: how many for each
        window; ``picture``: its path.
    """
    settings = settings or Settings()
    mix, truth, rate = demo_song()
    priors = load_priors(MODEL, device=device)
    method = choose_method(settings, priors)
    settings = replace(settings, keep=min(KEPT, method.count or KEPT))
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
    wiener = separate(mix, rate, plain, Settings(method="exact")).mean
    guided = separate(mix, rate, priors, replace(settings, method="guide", keep=0)).mean
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
    picture = out / "demo.png"
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


def run_toy_demo(
    out: Path, *, seed: int = 0, device: str = "cpu", progress: Callable[[int, int], Any] = lambda done, total: None
) -> dict[str, Any]:
    """Name and denoise held-out frames of the toy waves by their flow priors, beside the exact ones.

    Writes what :func:`~pyrosep.experiments.cross_likelihood` does.

    Returns:
        ``naming``: its rows over all waves, a level each; ``picture``: its path.
    """
    held_out = HeldOut(load_priors(TOY_MODEL, device=device), frames=TOY_FRAMES, seed=seed, device=device)
    naming = cross_likelihood(out, held_out, levels=TOY_LEVELS, progress=progress).naming
    rows = naming[naming.source == "all"].to_dict("records")
    return {"naming": rows, "picture": str(out / "cross-likelihood.png")}


def run_guide_demo(
    out: Path, *, seed: int = 0, progress: Callable[[int, int], Any] = lambda done, total: None
) -> dict[str, Any]:
    """Separate toy mixes of four waves by a guide, and by chains from it under the exact priors.

    Writes what :func:`~pyrosep.experiments.guides.guides` does.

    Returns:
        ``separation``: its rows, a method each; ``picture``: its path.
    """
    separation, _ = guides(
        out,
        guides=[GUIDE],
        methods=("mix", "guide", "guide+langevin"),
        frames=(4096,),
        mixes=GUIDE_MIXES,
        chains=GUIDE_CHAINS,
        seed=seed,
        workers=1,
        progress=progress,
    )
    return {"separation": separation.to_dict("records"), "picture": str(out / "guides.png")}
