"""Bayesian musical source separation in Pyro."""

__version__ = "0.1.0"
