"""Training: one trainer, frames and what changes them, a file for each family of priors and one for guides."""
