"""Networks, with no idea of what a prior or a guide is."""

from pyrosep.nn.bandnet import BandNet, BandSize
from pyrosep.nn.denoiser import DENOISERS, BandDenoiser, Denoiser, DenoiserSize
from pyrosep.nn.refining import UNetSize

__all__ = ["DENOISERS", "BandDenoiser", "BandNet", "BandSize", "Denoiser", "DenoiserSize", "UNetSize"]
