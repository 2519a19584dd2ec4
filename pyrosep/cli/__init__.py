"""``pyrosep demo | separate | evaluate | calibrate | train-prior | train-guide | experiment | models | diagnose``."""

from __future__ import annotations

import typer

from pyrosep.cli.calibrating import calibrate
from pyrosep.cli.evaluating import evaluate
from pyrosep.cli.experimenting import (
    audit_command,
    constant_inputs_command,
    cross_likelihood_command,
    flows_command,
    guides_command,
    music_command,
    noised_likelihood_command,
    samplers_command,
    sets_command,
)
from pyrosep.cli.guiding import train_guide_command
from pyrosep.cli.inspecting import diagnose, models
from pyrosep.cli.separating import demo, separate
from pyrosep.cli.together import train_together_command
from pyrosep.cli.training import train_continuousflow_command, train_flowavenet_command, train_gaussian_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="pyrosep",
    help="Bayesian musical source separation: posterior samples of the sources of a mix.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which would swallow [what stands in brackets]
    add_completion=False,
)
train_app = typer.Typer(
    help="Train a source's prior on recordings of that source alone.", no_args_is_help=True, rich_markup_mode=None
)
experiment_app = typer.Typer(
    help="Experiments: each writes its table and its picture.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(experiment_app, name="experiment")
app.add_typer(train_app, name="train-prior")

for command in (demo, separate, evaluate, calibrate, models, diagnose):
    app.command()(command)
app.command("train-guide")(train_guide_command)
experiment_app.command("samplers")(samplers_command)
experiment_app.command("guides")(guides_command)
experiment_app.command("flows")(flows_command)
experiment_app.command("music")(music_command)
experiment_app.command("audit")(audit_command)
experiment_app.command("sets")(sets_command)
experiment_app.command("cross-likelihood")(cross_likelihood_command)
experiment_app.command("noised-likelihood")(noised_likelihood_command)
experiment_app.command("constant-inputs")(constant_inputs_command)
train_app.command("continuousflow")(train_continuousflow_command)
train_app.command("flowavenet")(train_flowavenet_command)
train_app.command("gaussian")(train_gaussian_command)
train_app.command("together")(train_together_command)


def main() -> None:
    """Entry point of the command ``pyrosep``."""
    app()
