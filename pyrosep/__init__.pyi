"""Bayesian musical source separation in Pyro: a prior for each source, the mix as a model, samples of the sources."""

from . import audio, data, diagnostics, evaluation, guides, infer, mixing, nn, priors, separation, training, zoo
from .diagnostics import compare_chains, summarize, to_inference_data
from .guides import EncoderGuide
from .infer import (
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
from .priors import ContinuousFlow, FloWaveNet, GaussianPrior, OscillatorPrior, SourcePrior, fit_spectrum
from .separation import Separation, Separator, Settings, separate
from .training.guides import fit_guide
from .version import __version__
from .zoo import PriorSet, load_guide, load_priors, save_guide, save_priors

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
    "audio",
    "compare_chains",
    "data",
    "diagnostics",
    "evaluation",
    "fit_guide",
    "fit_spectrum",
    "guides",
    "infer",
    "load_guide",
    "load_priors",
    "mixing",
    "nn",
    "noise_ladder",
    "noised",
    "priors",
    "save_guide",
    "save_priors",
    "separate",
    "separation",
    "summarize",
    "to_inference_data",
    "training",
    "zoo",
]
