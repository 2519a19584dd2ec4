"""Bayesian musical source separation in Pyro: a prior for each source, the mix as a model, samples of the sources.

Names are imported when they are first used, so that the command line can answer and can be interrupted before torch is
imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrosep.version import __version__

if TYPE_CHECKING:
    from pyrosep.diagnostics import compare_chains, summarize, to_inference_data
    from pyrosep.guides import EncoderGuide
    from pyrosep.infer import (
        MALA,
        SGLD,
        AnnealedSearch,
        AnnealedSGLD,
        GaussianPosterior,
        GibbsMALA,
        LangevinMCMC,
        Potential,
        SpectralPreconditioner,
        noise_ladder,
        noised,
    )
    from pyrosep.priors import ContinuousFlow, FloWaveNet, GaussianPrior, OscillatorPrior, SourcePrior, fit_spectrum
    from pyrosep.separation import Separation, Separator, Settings, separate
    from pyrosep.training.guides import fit_guide
    from pyrosep.zoo import PriorSet, load_guide, load_priors, save_guide, save_priors
else:
    #: Where each public name is defined; the imports above say the same to type checkers.
    _HOMES = {
        "diagnostics": ("compare_chains", "summarize", "to_inference_data"),
        "guides": ("EncoderGuide",),
        "infer": (
            "MALA",
            "SGLD",
            "AnnealedSearch",
            "AnnealedSGLD",
            "GaussianPosterior",
            "GibbsMALA",
            "LangevinMCMC",
            "Potential",
            "SpectralPreconditioner",
            "noise_ladder",
            "noised",
        ),
        "priors": ("ContinuousFlow", "FloWaveNet", "GaussianPrior", "OscillatorPrior", "SourcePrior", "fit_spectrum"),
        "separation": ("Separation", "Separator", "Settings", "separate"),
        "training.guides": ("fit_guide",),
        "zoo": ("PriorSet", "load_guide", "load_priors", "save_guide", "save_priors"),
    }
    _HOME = {name: f"pyrosep.{module}" for module, names in _HOMES.items() for name in names}

    def __getattr__(name: str) -> Any:
        import importlib

        if name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
        else:
            try:  # a module of the package
                value = importlib.import_module(f"pyrosep.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"pyrosep.{name}":
                    raise
                raise AttributeError(f"module 'pyrosep' has no attribute {name!r}") from None
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "MALA",
    "SGLD",
    "AnnealedSGLD",
    "AnnealedSearch",
    "ContinuousFlow",
    "EncoderGuide",
    "FloWaveNet",
    "GaussianPosterior",
    "GaussianPrior",
    "GibbsMALA",
    "LangevinMCMC",
    "OscillatorPrior",
    "Potential",
    "PriorSet",
    "Separation",
    "Separator",
    "Settings",
    "SourcePrior",
    "SpectralPreconditioner",
    "__version__",
    "compare_chains",
    "fit_guide",
    "fit_spectrum",
    "load_guide",
    "load_priors",
    "noise_ladder",
    "noised",
    "save_guide",
    "save_priors",
    "separate",
    "summarize",
    "to_inference_data",
]
