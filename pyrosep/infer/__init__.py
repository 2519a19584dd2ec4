"""Sampling the posterior: potential, Langevin kernels, and many chains in a batch."""

from pyrosep.infer.exact import GaussianPosterior
from pyrosep.infer.gains import fit_gains
from pyrosep.infer.initial import initial_values
from pyrosep.infer.kernel import LangevinKernel, LangevinState
from pyrosep.infer.mala import MALA
from pyrosep.infer.mcmc import ChainWarning, LangevinMCMC
from pyrosep.infer.potential import Potential
from pyrosep.infer.preconditioner import IdentityPreconditioner, Preconditioner, SpectralPreconditioner
from pyrosep.infer.schedules import cyclical, polynomial_decay
from pyrosep.infer.sgld import SGLD

__all__ = [
    "MALA",
    "SGLD",
    "ChainWarning",
    "GaussianPosterior",
    "IdentityPreconditioner",
    "LangevinKernel",
    "LangevinMCMC",
    "LangevinState",
    "Potential",
    "Preconditioner",
    "SpectralPreconditioner",
    "cyclical",
    "fit_gains",
    "initial_values",
    "polynomial_decay",
]
