"""Guides: encoders of the mix as variational posteriors, and their training."""

from pyrosep.guides.bounds import iwae, log_weights, over_mixes, simulate
from pyrosep.guides.encoder import EncoderGuide
from pyrosep.guides.training import OBJECTIVES, fit_guide
from pyrosep.guides.unet import UNetSize

__all__ = [
    "OBJECTIVES",
    "EncoderGuide",
    "UNetSize",
    "fit_guide",
    "iwae",
    "log_weights",
    "over_mixes",
    "simulate",
]
