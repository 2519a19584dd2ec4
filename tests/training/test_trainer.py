"""The training loop: it learns, resumes to the same bits, and says what went wrong."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pyrosep.errors import CheckpointError, ConfigurationError, DivergenceError
from pyrosep.training.settings import PRESETS, TrainingSettings
from pyrosep.training.trainer import Trainer, trainer_or_preset

# Lightning asks for worker processes and the like; a person at the command line sees it, a test does not care.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

SETTINGS = {
    "steps": 12,
    "batch": 4,
    "learning_rate": 0.05,
    "warmup": 2,
    "ema": 0.9,
    "validate_every": 4,
    "save_every": 4,
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def draw(count):
    return torch.randn(count, 3)


def loss(net, x):
    return (net(x) - x.prod(-1, keepdim=True)).square().mean()


def fitted(folder=None, settings=None, **arguments):
    trainer = Trainer(TrainingSettings(**(SETTINGS | (settings or {}))), folder=folder, quiet=True)
    return trainer.fit(network(), loss, draw, **arguments)


def weights(result):
    return torch.cat([parameter.flatten() for parameter in result.network.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_others():
    assert torch.equal(weights(fitted()), weights(fitted()))
    assert not torch.equal(weights(fitted()), weights(fitted(settings={"seed": 1})))


def test_resumed_it_ends_where_an_unbroken_run_does_bit_for_bit(tmp_path):
    unbroken = fitted(tmp_path / "unbroken", validate=lambda net: {"bias": float(net[2].bias)})
    parts = {"folder": tmp_path / "parts", "validate": lambda net: {"bias": float(net[2].bias)}, "resume": True}
    assert fitted(until=6, **parts).step == 6
    torch.manual_seed(99)  # the caller's random state has no part in it
    resumed = fitted(**parts)
    assert resumed.step == unbroken.step == 12
    assert torch.equal(weights(resumed), weights(unbroken))
    assert resumed.history[-1] == unbroken.history[-1]
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("unbroken", "parts"))
    for name, value in one["network"].items():
        assert torch.equal(value, other["network"][name])


def test_a_finished_run_is_not_trained_on(tmp_path):
    first = fitted(tmp_path)
    again = fitted(tmp_path, resume=True)
    assert again.step == 12
    assert torch.equal(weights(again), weights(first))


def test_the_caller_keeps_its_random_state():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    made, net = Trainer(TrainingSettings(**SETTINGS), quiet=True), nn.Linear(3, 1, bias=False)
    torch.manual_seed(5)
    made.fit(net, loss, draw, validate=lambda net: {"random": float(torch.rand(()))})
    assert torch.equal(torch.randn(3), expected)


def test_it_returns_the_averaged_weights_and_validates_with_them():
    """By the recursion of the average, done beside it at a rate of learning that moves every step."""
    seen, own = [], []

    def watched(net, x):
        own.append(torch.cat([p.detach().flatten().clone() for p in net.parameters()]))
        return loss(net, x)

    trainer = Trainer(TrainingSettings(**SETTINGS), quiet=True)
    result = trainer.fit(
        network(), watched, draw, validate=lambda net: seen.append(weights(type("Net", (), {"network": net}))) or {}
    )
    average = own[0]
    for step, value in enumerate(own[1:]):  # a step's weights are seen at the next
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    last_decay = min(0.9, 12 / 21)
    assert len(seen) == 3
    assert torch.equal(seen[-1], weights(result))
    # The last step's weights are not seen; they are what is left after the average's share.
    last = (weights(result) - last_decay * average) / (1 - last_decay)
    assert float((last - own[-1]).abs().max()) < 0.05 * 2  # AdamW moves a weight by at most about the rate a step
    assert not result.network.training
    assert not any(parameter.requires_grad for parameter in result.network.parameters())


@pytest.mark.parametrize("kind", PRESETS)
def test_without_a_trainer_a_training_has_the_preset_of_its_kind(kind):
    assert trainer_or_preset(None, kind).settings == PRESETS[kind].here()
    own = Trainer(quiet=True)
    assert trainer_or_preset(own, kind) is own


def test_learning_rate_rises_and_falls():
    settings = TrainingSettings(steps=100, warmup=9, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] == pytest.approx(0.02, abs=0.002)
    assert TrainingSettings(schedule="constant", warmup=0, learning_rate=0.5).rate(4000) == 0.5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_learns(precision):
    settings = {"steps": 300, "batch": 16, "learning_rate": 0.02, "precision": precision}
    result = fitted(settings=settings)
    x = torch.randn(1000, 3)
    # A network that knows nothing is off by the variance of the product, 1.
    assert float(loss(result.network, x)) < 0.5
    assert next(result.network.parameters()).dtype == torch.float32


def test_mixed_precision_leaves_the_inputs_alone():
    """Noise at the lowest levels is below what half precision can tell."""
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append((x.dtype, super().forward(x).dtype))
            return super().forward(x)

    fitter = Trainer(TrainingSettings(**(SETTINGS | {"precision": "bf16-mixed"})), quiet=True)
    fitter.fit(Watched(3, 1), lambda net, x: net(x).float().square().mean(), draw)
    assert set(seen) == {(torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_of_all_parameters_are_clipped_together(optimizer):
    norms = []

    def steep(net, x):
        norms.append([p.grad.norm() for p in net.parameters() if p.grad is not None])  # of the step before
        return 1000 * loss(net, x)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    settings = SETTINGS | {"optimizer": optimizer, "clip": 0.5}
    Trainer(TrainingSettings(**settings), quiet=True).fit(net, steep, lambda count: torch.randn(count, 8))
    assert [float(torch.stack(one).norm()) for one in norms[1:]] == pytest.approx([0.5] * 11, rel=1e-4)


def test_gradients_that_are_not_finite_change_nothing_and_end_the_run_if_they_stay():
    calls = []

    def sometimes(net, x):
        calls.append(None)
        return loss(net, x) * (float("nan") if len(calls) in (3, 4) else 1)

    trainer = Trainer(TrainingSettings(**SETTINGS), quiet=True)
    result = trainer.fit(network(), sometimes, draw)
    assert result.skipped == 2
    assert bool(torch.isfinite(weights(result)).all())
    with pytest.raises(
        DivergenceError, match="25 steps in a row is not finite, at step 25; train with a learning rate"
    ):
        Trainer(TrainingSettings(**(SETTINGS | {"steps": 40})), quiet=True).fit(
            network(), lambda net, x: loss(net, x) * float("inf"), draw
        )


def test_checkpoints_of_other_settings_and_damaged_ones(tmp_path):
    fitted(tmp_path)
    with pytest.raises(CheckpointError, match=r"other settings \(learning_rate 0\.05, not 0\.1\)"):
        fitted(tmp_path, {"learning_rate": 0.1}, resume=True)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"can't be resumed from .*; remove it to start anew"):
        fitted(tmp_path, resume=True)
    assert fitted(tmp_path).step == 12  # without resume it is not looked at


def test_logs_for_tensorboard(tmp_path):
    fitted(tmp_path, validate=lambda net: {"nats": 1.0})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"training/loss", "training/gradient_norm", "training/learning_rate", "validation/nats"} == set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("validation/nats")] == [4, 8, 12]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"ema": 1.0},
        {"schedule": "steps"},
        {"precision": "8-bit"},
        {"optimizer": "sgd"},
        {"batch": 3, "devices": 2},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigurationError):
        TrainingSettings(**wrong)


TWO = """
import json, sys, torch
sys.path.insert(0, {here!r})
from test_trainer import *
settings = TrainingSettings(**(SETTINGS | {{"devices": int(sys.argv[1]), "ema": 0.0}}))
trainer = Trainer(settings, quiet=True)
ranks = []
def fixed(count):
    torch.manual_seed(7)
    x = torch.randn(settings.batch, 3)
    rank = trainer.fabric.global_rank
    ranks.append(len(x[rank * count:(rank + 1) * count]))
    return x[rank * count:(rank + 1) * count]
result = trainer.fit(network(), loss, fixed)
if trainer.fabric.is_global_zero:
    print("RESULT", json.dumps([ranks[0], trainer.fabric.world_size, weights(result).tolist()]))
"""


@pytest.mark.slow
def test_two_processes_on_a_cpu_do_what_one_does(tmp_path):
    """Data parallel: each has half of the same batch; the average of two means of halves is the mean of the whole."""
    script = tmp_path / "two.py"
    script.write_text(TWO.format(here=os.path.dirname(__file__)))
    found = {}
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(devices)],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        found[devices] = json.loads(line.removeprefix("RESULT"))
    assert [found[1][:2], found[2][:2]] == [[4, 1], [2, 2]]
    # Sums in another order, single precision, through a dozen steps of Adam.
    torch.testing.assert_close(torch.tensor(found[2][2]), torch.tensor(found[1][2]), rtol=1e-3, atol=1e-4)


def test_a_checkpoint_on_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    """The one before is kept, and nothing half-written is left."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(Trainer, "_writer", lambda self, step: None)  # whose thread would run out of space first
    fitted(tmp_path, until=4)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            fitted(tmp_path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
