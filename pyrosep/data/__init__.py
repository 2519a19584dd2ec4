"""Data: toy oscillators, MUSDB18, folders of stems and of solo recordings, and frames of all of them."""

from __future__ import annotations

from pyrosep.data.frames import Crop, FrameGrid, RandomCrops, SongFrame
from pyrosep.data.musdb18 import Musdb18
from pyrosep.data.solo import SoloFolder
from pyrosep.data.stems import AudioStream, Song, StemFolder
from pyrosep.data.toy import ToyMix, ToyMixes, ToyParameters, ToySource

__all__ = [
    "AudioStream",
    "Crop",
    "FrameGrid",
    "Musdb18",
    "RandomCrops",
    "SoloFolder",
    "Song",
    "SongFrame",
    "StemFolder",
    "ToyMix",
    "ToyMixes",
    "ToyParameters",
    "ToySource",
]
