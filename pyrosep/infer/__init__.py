"""Sampling the posterior: potential, Langevin kernels, and many chains in a batch."""

from pyrosep.infer.annealed import AnnealedSGLD
from pyrosep.infer.exact import GaussianPosterior
from pyrosep.infer.gains import fit_gains
from pyrosep.infer.initial import initial_values
from pyrosep.infer.kernel import LangevinKernel, LangevinState
from pyrosep.infer.ladder import exchange_rate, noise_ladder
from pyrosep.infer.mala import MALA
from pyrosep.infer.mcmc import ChainWarning, LangevinMCMC
from pyrosep.infer.noising import COUPLINGS, Noised, StationaryNormal, noised
from pyrosep.infer.potential import Potential
from pyrosep.infer.preconditioner import IdentityPreconditioner, Preconditioner, SpectralPreconditioner
from pyrosep.infer.redraws import Redraws
from pyrosep.infer.response import LinearMix, linear_mix_of, measure_responses
from pyrosep.infer.schedules import cyclical, polynomial_decay
from pyrosep.infer.sgld import SGLD

__all__ = [
    "COUPLINGS",
    "MALA",
    "SGLD",
    "AnnealedSGLD",
    "ChainWarning",
    "GaussianPosterior",
    "IdentityPreconditioner",
    "LangevinKernel",
    "LangevinMCMC",
    "LangevinState",
    "LinearMix",
    "Noised",
    "Potential",
    "Preconditioner",
    "Redraws",
    "SpectralPreconditioner",
    "StationaryNormal",
    "cyclical",
    "exchange_rate",
    "fit_gains",
    "initial_values",
    "linear_mix_of",
    "measure_responses",
    "noise_ladder",
    "noised",
    "polynomial_decay",
]
