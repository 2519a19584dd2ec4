"""Separating mixes and files: settings, methods, windows in and blocks out."""

from pyrosep.separation.chains import Chains, LocalSearch, SharedDescent
from pyrosep.separation.from_guide import FromGuide
from pyrosep.separation.methods import OnePass, Wiener, choose_method
from pyrosep.separation.problem import Estimate, Method, Problem
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
