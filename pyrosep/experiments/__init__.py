"""Experiments as functions: each returns its table, and writes it with a picture."""

from pyrosep.experiments.samplers import samplers

__all__ = ["samplers"]
