"""Guides: encoders of the mix as variational posteriors."""

from pyrosep.guides.bounds import iwae, log_weights, over_mixes, simulate
from pyrosep.guides.encoder import EncoderGuide

__all__ = [
    "EncoderGuide",
    "iwae",
    "log_weights",
    "over_mixes",
    "simulate",
]
