"""Bayesian musical source separation in Pyro: a prior for each source, the mix as a model, samples of the sources."""

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
from pyrosep.version import __version__
from pyrosep.zoo import PriorSet, load_guide, load_priors, save_guide, save_priors

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
