"""Guides: encoders of the mix as variational posteriors, their training, and what is kept of them on disk."""

from pyrosep.guides.encoder import EncoderGuide
from pyrosep.guides.unet import UNet, UNetSize

__all__ = ["EncoderGuide", "UNet", "UNetSize"]
