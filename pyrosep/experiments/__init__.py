"""Experiments as functions: each returns its table, and writes it with a picture."""

from pyrosep.experiments.held_out import HeldOut, LogDensities
from pyrosep.experiments.likelihoods import constant_inputs, cross_likelihood, noised_likelihood
from pyrosep.experiments.samplers import samplers

__all__ = ["HeldOut", "LogDensities", "constant_inputs", "cross_likelihood", "noised_likelihood", "samplers"]
