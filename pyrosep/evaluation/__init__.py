"""Scores of separations where the sources are known, baselines, and the calibration of draws."""
