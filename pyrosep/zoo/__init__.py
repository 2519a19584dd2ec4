"""Prior sets and guides, on disk and by name."""

from pyrosep.zoo.guides import GuideInfo, find_guide, guide_info, guides, load_guide, save_guide
from pyrosep.zoo.prior_set import PriorSet, PriorSetInfo
from pyrosep.zoo.store import load_priors, prior_set_info, prior_sets, save_priors, save_temperatures

__all__ = [
    "GuideInfo",
    "PriorSet",
    "PriorSetInfo",
    "find_guide",
    "guide_info",
    "guides",
    "load_guide",
    "load_priors",
    "prior_set_info",
    "prior_sets",
    "save_guide",
    "save_priors",
    "save_temperatures",
]
