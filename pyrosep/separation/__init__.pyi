"""Separating mixes and files: settings, methods, windows in and blocks out."""

from .chains import Chains, LocalSearch, SharedDescent
from .methods import METHODS, FromGuide, OnePass, Wiener, choose_method, choose_methods
from .problem import Estimate, Method, Problem
from .separator import Hearing, Separation, Separator, Stream, separate
from .settings import Settings

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
    "choose_methods",
    "separate",
]
