"""``pyrosep demo | separate | evaluate | calibrate | train-prior | train-guide | experiment | models | diagnose``.

A command's module is imported when it is called, so that help and mistakes are answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App, Parameter

from pyrosep.cli.manners import described, reported
from pyrosep.version import __version__

__all__ = ["app", "main"]

app = App(
    name="pyrosep",
    help="Bayesian musical source separation: posterior samples of the sources of a mix.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    # A switch has no opposite unless it says so, a list can't be emptied, and of an option given twice the last counts.
    default_parameter=Parameter(negative="", allow_repeating=True),
)
train_app = App(name="train-prior", help="Train a source's prior on recordings of that source alone.")
experiment_app = App(name="experiment", help="Experiments: each writes its table and its picture.")

for parent, place, name, text in (
    (app, "separating:separate", "separate", "Separate files into OUT/MODEL/TRACK/{source}.wav."),
    (app, "demonstrating:demo", "demo", "Separate toy waves, a mix that was clipped, and a real song, and score them."),
    (app, "evaluating:evaluate", "evaluate", "Score separations of songs whose stems are known."),
    (app, "calibrating:calibrate", "calibrate", "Calibrate draws, so that 90 % intervals hold 90 % of the samples."),
    (app, "guiding:train_guide", "train-guide", "Train a guide, an encoder from mixes to their sources."),
    (app, "inspecting:models", "models", "List the models that ship, and the guides."),
    (app, "inspecting:diagnose", "diagnose", "Print R-hat, ESS and MCSE of a posterior's summaries, and plot them."),
    (train_app, "training:gaussian", "gaussian", "Fit stationary Gaussian priors, a mean power spectrum each."),
    (train_app, "training:flowavenet", "flowavenet", "Train normalizing flows (FloWaveNet) on noised recordings."),
    (train_app, "training:continuousflow", "continuousflow", "Train denoisers for all noise levels (ContinuousFlow)."),
    (train_app, "together:together", "together", "Train a model's denoisers inside of the search that uses them."),
    (experiment_app, "experimenting:samplers", "samplers", "Sources that each sampler finds, by its denoiser calls."),
    (experiment_app, "experimenting:guides", "guides", "What guides find alone, and as starts of chains."),
    (experiment_app, "experimenting:flows", "flows", "Toy mixes under learned flows: redraws, chains and a guide."),
    (experiment_app, "experimenting:music", "music", "SI-SDR, cost and trust of all methods on songs."),
    (experiment_app, "experimenting:sets", "sets", "Mixes of fewer and of more sources than a model has."),
    (experiment_app, "experimenting:audit", "audit", "Searches on songs by the number of noise levels and draws."),
    (experiment_app, "experimenting:cross_likelihood", "cross-likelihood", "Every prior on frames of every source."),
    (experiment_app, "experimenting:noised_likelihood", "noised-likelihood", "Frames with more and more noise."),
    (experiment_app, "experimenting:constant_inputs", "constant-inputs", "Constants and noise beside real frames."),
):
    parent.command(f"pyrosep.cli.{place}", name=name, help=text)
app.command(train_app)
app.command(experiment_app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command ``pyrosep``, and of programs that call it with words of their own."""
    with reported():
        words, path, _ = app.parse_commands(arguments)
        for word, command in zip(words, path[1:], strict=False):
            if command.default_command is not None and not word.startswith("-"):
                # In place of the line that stands for it among other commands.
                command.help = described(command.default_command)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_none")
