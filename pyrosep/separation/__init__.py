"""Separating mixes and files: settings, methods, windows in and blocks out."""

from pyrosep.separation.methods import (
    Chains,
    Estimate,
    FromGuide,
    LocalSearch,
    Method,
    OnePass,
    Problem,
    SharedDescent,
    Wiener,
    choose_method,
)
from pyrosep.separation.separator import Hearing, Separation, Separator, Stream, separate
from pyrosep.separation.settings import METHODS, Settings

__all__ = [
    "METHODS",
    "Chains",
    "Estimate",
    "FromGuide",
    "Hearing",
    "LocalSearch",
    "Method",
    "OnePass",
    "Problem",
    "Separation",
    "Separator",
    "Settings",
    "SharedDescent",
    "Stream",
    "Wiener",
    "choose_method",
    "separate",
]
