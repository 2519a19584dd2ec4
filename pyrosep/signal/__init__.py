"""Signals: windows and overlap-add, spectra, summaries."""
