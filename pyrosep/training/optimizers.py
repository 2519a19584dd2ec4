"""Optimizers of a training: AdamW, or Muon for matrices with AdamW beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyrosep.training.muon import Muon, is_matrix
from pyrosep.training.settings import TrainingSettings

__all__ = ["optimizers_of", "set_rate"]

#: Beside Muon, what is not a matrix is trained by AdamW, at this part of the learning rate.
_BESIDE_MUON = 0.15


def optimizers_of(network: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """Each parameter in one of them; their groups keep the rate that is theirs at the schedule's height."""
    parameters, rate, decay = list(network.parameters()), settings.learning_rate, settings.weight_decay
    matrices = [one for one in parameters if settings.optimizer == "muon" and is_matrix(one)]
    others = [one for one in parameters if settings.optimizer != "muon" or not is_matrix(one)]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, rate, weight_decay=decay))
        rate = _BESIDE_MUON * rate
    if others:
        optimizers.append(torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=decay, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def set_rate(optimizers: list[Any], rate: float, largest: float) -> None:
    """Set the learning rates of all groups, each in proportion to its own largest one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate / largest
