"""Diagnosing posteriors with ArviZ: InferenceData, summaries of audio, and pictures."""

from pyrosep.diagnostics.inference_data import read_netcdf, to_inference_data, write_netcdf
from pyrosep.diagnostics.modes import compare_chains, describe_modes
from pyrosep.diagnostics.plots import plot_diagnostics, plot_spectrograms
from pyrosep.diagnostics.summaries import audio_summaries, summarize, verdict

__all__ = [
    "audio_summaries",
    "compare_chains",
    "describe_modes",
    "plot_diagnostics",
    "plot_spectrograms",
    "read_netcdf",
    "summarize",
    "to_inference_data",
    "verdict",
    "write_netcdf",
]
