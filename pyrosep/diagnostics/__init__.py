"""Diagnosing posteriors with ArviZ: InferenceData, summaries of audio, pictures, and checks of guides."""

from pyrosep.diagnostics.draws import coverage_by_source, draw_coverage, draw_intervals, fit_draw_temperature
from pyrosep.diagnostics.guides import MixCheck, fit_temperature, importance_k_hat, interval_coverage, mix_check
from pyrosep.diagnostics.inference_data import read_netcdf, to_inference_data, write_netcdf
from pyrosep.diagnostics.modes import compare_chains, describe_modes
from pyrosep.diagnostics.plots import plot_diagnostics, plot_spectrograms
from pyrosep.diagnostics.sbc import Calibration, plot_ranks, sbc
from pyrosep.diagnostics.summaries import summarize, verdict

__all__ = [
    "Calibration",
    "MixCheck",
    "compare_chains",
    "coverage_by_source",
    "describe_modes",
    "draw_coverage",
    "draw_intervals",
    "fit_draw_temperature",
    "fit_temperature",
    "importance_k_hat",
    "interval_coverage",
    "mix_check",
    "plot_diagnostics",
    "plot_ranks",
    "plot_spectrograms",
    "read_netcdf",
    "sbc",
    "summarize",
    "to_inference_data",
    "verdict",
    "write_netcdf",
]
