"""Guides: encoders of the mix as variational posteriors, their training, and what is kept of them on disk."""

from pyrosep.guides.bounds import iwae, log_weights, over_mixes, simulate
from pyrosep.guides.encoder import EncoderGuide
from pyrosep.guides.models import GuideInfo, find_guide, guide_info, load_guide, save_guide, shipped_guides
from pyrosep.guides.training import OBJECTIVES, fit_guide
from pyrosep.guides.unet import UNetSize

__all__ = [
    "OBJECTIVES",
    "EncoderGuide",
    "GuideInfo",
    "UNetSize",
    "find_guide",
    "fit_guide",
    "guide_info",
    "iwae",
    "load_guide",
    "log_weights",
    "over_mixes",
    "save_guide",
    "shipped_guides",
    "simulate",
]
