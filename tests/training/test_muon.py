"""Muon: its updates are orthogonal, its momentum is Nesterov's, and it learns what it is given."""

import pytest
import torch
from torch import nn

from pyrosep.errors import ConfigurationError
from pyrosep.training.muon import Muon, is_matrix, orthogonalize
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer


@pytest.mark.parametrize("shape", [(8, 8), (3, 24, 16), (2, 16, 64)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -1.5, u.shape[-1])  # a condition number of 32
    ortho = orthogonalize(u * values @ v)
    diagonal = u.mT @ ortho @ v.mT
    found = diagonal.diagonal(dim1=-2, dim2=-1)
    assert 0.55 < float(found.min()) <= float(found.max()) < 1.35
    off = diagonal - torch.diag_embed(found)
    assert float(off.abs().max()) < 0.05  # bfloat16
    torch.testing.assert_close(orthogonalize(100 * u * values @ v), ortho)


def test_a_zero_gradient_moves_nothing():
    assert torch.equal(orthogonalize(torch.zeros(8, 9)), torch.zeros(8, 9))


def test_a_step_by_hand():
    torch.manual_seed(1)
    conv, other = nn.Parameter(torch.randn(16, 4, 3)), nn.Parameter(torch.randn(16, 12))
    frozen = nn.Parameter(torch.randn(8, 8))
    began, optimizer = conv.detach().clone(), Muon([conv, other, frozen], 0.1, momentum=0.9, weight_decay=0.5)
    momentum, expected = torch.zeros(16, 12), began.clone()
    for _ in range(3):
        gradient = torch.randn(16, 4, 3)
        conv.grad, other.grad = gradient.clone(), torch.randn(16, 12)
        momentum = 0.9 * momentum + 0.1 * gradient.reshape(16, 12)
        update = orthogonalize(0.9 * momentum + 0.1 * gradient.reshape(16, 12))
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (16 / 12) ** 0.5 * update.reshape(16, 4, 3)
        before = frozen.detach().clone()
        assert optimizer.step(lambda: 3.0) == 3.0
        assert torch.equal(frozen, before)
    # The two are worked on in one stack, here one is alone: sums are in another order, in bfloat16.
    torch.testing.assert_close(conv.detach(), expected, atol=0.01, rtol=0)


def test_what_is_a_matrix():
    shapes = {(8, 8): True, (8, 2, 4): True, (7, 64): False, (64, 7): False, (64,): False, (): False}
    assert {shape: is_matrix(torch.zeros(shape)) for shape in shapes} == shapes
    with pytest.raises(ConfigurationError, match=r"8 rows and columns or more; got shapes \[\(7, 9\)\]"):
        Muon([torch.zeros(8, 8), torch.zeros(7, 9)])
    with pytest.raises(ConfigurationError, match="lr > 0"):
        Muon([torch.zeros(8, 8)], lr=0.0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_in_training_it_takes_the_matrices_and_resumes_to_the_same_bits(tmp_path):
    settings = TrainingSettings(steps=240, batch=32, learning_rate=0.03, optimizer="muon", ema=0.9, save_every=10)
    torch.manual_seed(2)
    target = torch.randn(12, 16) / 4

    def fitted(folder, **arguments):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 12))
        trainer = Trainer(settings, folder=folder, quiet=True)
        return trainer.fit(
            net,
            lambda net, x: (net(x) - x @ target.T).square().mean(),
            lambda count: torch.randn(count, 16),
            **arguments,
        )

    one = fitted(tmp_path / "one")
    x = torch.randn(500, 16)
    error = (one.network(x) - x @ target.T).square().mean() / (x @ target.T).square().mean()
    assert float(error) < 0.01
    fitted(tmp_path / "two", until=50)
    two = fitted(tmp_path / "two", resume=True)
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(a, b)
    state = torch.load(tmp_path / "one" / "checkpoint.pt", weights_only=True)
    assert [len(own["state"]) for own in state["optimizers"]] == [2, 2]  # two matrices, two biases
