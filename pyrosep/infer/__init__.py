"""Sampling the posterior: potential, Langevin kernels, many chains in a batch, and searches for where they start."""

from pyrosep.infer.exact import GaussianPosterior
from pyrosep.infer.gains import fit_gains
from pyrosep.infer.gibbs import AnnealedSGLD, GibbsMALA
from pyrosep.infer.initial import initial_values
from pyrosep.infer.kernel import LangevinKernel, LangevinState
from pyrosep.infer.linear import linear_mix_of
from pyrosep.infer.mala import MALA
from pyrosep.infer.mcmc import ChainWarning, LangevinMCMC
from pyrosep.infer.potential import Potential
from pyrosep.infer.preconditioner import IdentityPreconditioner, Preconditioner, SpectralPreconditioner
from pyrosep.infer.rescaling import ScalarMoves
from pyrosep.infer.response import LinearMix, measure_responses
from pyrosep.infer.schedules import cyclical, polynomial_decay
from pyrosep.infer.search.annealed import AnnealedSearch, Found
from pyrosep.infer.search.descent import DescentMoves
from pyrosep.infer.search.ladder import exchange_rate, noise_ladder
from pyrosep.infer.search.langevin import LangevinMoves
from pyrosep.infer.search.noising import COUPLINGS, Noised, noised
from pyrosep.infer.search.redraws import Redraws
from pyrosep.infer.search.sweeps import SweepMoves
from pyrosep.infer.search.widened import StationaryNormal
from pyrosep.infer.seeding import seeded
from pyrosep.infer.sgld import SGLD
from pyrosep.infer.surrogate import Surrogate
from pyrosep.infer.underdamped import UnderdampedLangevin

__all__ = [
    "COUPLINGS",
    "MALA",
    "SGLD",
    "AnnealedSGLD",
    "AnnealedSearch",
    "ChainWarning",
    "DescentMoves",
    "Found",
    "GaussianPosterior",
    "GibbsMALA",
    "IdentityPreconditioner",
    "LangevinKernel",
    "LangevinMCMC",
    "LangevinMoves",
    "LangevinState",
    "LinearMix",
    "Noised",
    "Potential",
    "Preconditioner",
    "Redraws",
    "ScalarMoves",
    "SpectralPreconditioner",
    "StationaryNormal",
    "Surrogate",
    "SweepMoves",
    "UnderdampedLangevin",
    "cyclical",
    "exchange_rate",
    "fit_gains",
    "initial_values",
    "linear_mix_of",
    "measure_responses",
    "noise_ladder",
    "noised",
    "polynomial_decay",
    "seeded",
]
