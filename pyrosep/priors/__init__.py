"""Source priors: the interface, the exact families and the learned ones."""

from pyrosep.priors.base import SourcePrior
from pyrosep.priors.continuousflow import ContinuousFlow
from pyrosep.priors.flowavenet import SIZES, FloWaveNet, FloWaveNetwork, FlowSize
from pyrosep.priors.gaussian import GaussianPrior, fit_spectrum
from pyrosep.priors.oscillator import OscillatorPrior
from pyrosep.priors.scores import scores_suffice

__all__ = [
    "SIZES",
    "ContinuousFlow",
    "FloWaveNet",
    "FloWaveNetwork",
    "FlowSize",
    "GaussianPrior",
    "OscillatorPrior",
    "SourcePrior",
    "fit_spectrum",
    "scores_suffice",
]
