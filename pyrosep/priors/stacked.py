"""Several priors of one architecture, evaluated as one call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.priors.continuousflow import ContinuousFlow

__all__ = ["StackedFlows"]


class StackedFlows:
    """The denoisers and scores of several sources, each by its own weights, in one pass.

    Their weights are stacked, copied once, and every operation is done for all sources together; convolutions become
    grouped ones. That saves the cost of many small operations; where the frames of a call are many or long, it saves
    little.

    Arguments:
        priors: :class:`~pyrosep.ContinuousFlow` of one size and one frame, in the order of the source axis.

    Raises:
        ConfigurationError: no priors, or such as can't be stacked.

    Example:
        >>> from pyrosep.nn import DENOISERS, Denoiser
        >>> priors = [ContinuousFlow(Denoiser(DENOISERS["tiny"], torch.ones(9)), frame=32) for _ in range(3)]
        >>> StackedFlows(priors).at(0.5).denoise(torch.randn(2, 3, 32)).shape
        torch.Size([2, 3, 32])
    """

    def __init__(self, priors: Sequence[ContinuousFlow]) -> None:
        if strange := [prior for prior in priors if not isinstance(prior, ContinuousFlow)]:
            raise ConfigurationError(f"expected ContinuousFlow priors; got {strange}")
        kinds = {
            (
                type(prior.network),
                prior.network.size,
                prior.time,
                prior.knows_interference,
                prior.network.variance.dtype,
            )
            for prior in priors
        }
        if len(kinds) != 1:
            raise ConfigurationError(f"priors that are stacked must share size, frame and precision; got {kinds}")
        self.time, self.count = priors[0].time, len(priors)
        networks = [prior.network for prior in priors]
        if len({len(network.spectrum) for network in networks}) > 1:
            raise ConfigurationError("priors that are stacked must have spectra of one length; train them alike")
        if any(isinstance(module, nn.RNNBase) for module in networks[0].modules()):
            raise ConfigurationError("recurrent networks can't be stacked, for torch maps no LSTM over weights")
        self.parameters, self.buffers = stack_module_state(list(networks))
        #: Mean squares of the sources, ``(source,)``.
        self.variance: Tensor = self.buffers["variance"]
        #: Noise levels, of shape ``(..., source)`` or any that broadcasts with it.
        self.sigma = torch.stack([prior.sigma.to(self.variance).mean() for prior in priors])
        self._network = copy.deepcopy(networks[0]).to("meta")

    def at(self, sigma: float | Tensor) -> Self:
        """The same sources at noise levels, a number or ``(..., source)``."""
        new = copy.copy(self)
        new.sigma = torch.as_tensor(sigma).to(self.variance)
        return new

    def denoise(self, value: Tensor) -> Tensor:
        """Posterior means of the clean sources: ``(..., source, time)`` to ``(..., source, time)``."""
        flow, sigma, root, scale = self._parts(value)
        return (root / scale).square() * value + sigma * root / scale * flow

    def score(self, value: Tensor) -> Tensor:
        """Gradients of the sources' log-densities: ``(..., source, time)`` to ``(..., source, time)``."""
        flow, sigma, root, scale = self._parts(value)
        return (root / sigma * flow - value / scale) / scale

    def _parts(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""F, :math:`\sigma`, :math:`\sqrt v` and :math:`\sqrt{v + \sigma^2}`, to be combined with ``value``."""
        if value.ndim < 2 or value.shape[-2:] != (self.count, self.time):
            raise ShapeError(f"expected (..., {self.count} sources, {self.time} samples); got {tuple(value.shape)}")
        sigma = self.sigma.expand(value.shape[:-1])
        level, root = sigma.to(value).unsqueeze(-1), self.variance.to(value).sqrt().unsqueeze(-1)
        scale = (root.square() + level.square()).sqrt()
        y = (value / scale).to(self.variance).reshape(-1, self.count, self.time)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], y: Tensor, sigma: Tensor) -> Tensor:
            return functional_call(self._network, (parameters, buffers), (y, sigma))

        flow = vmap(one, in_dims=(0, 0, 1, 1), out_dims=1)(
            self.parameters, self.buffers, y, sigma.reshape(-1, self.count)
        )
        return flow.to(value.dtype).reshape(value.shape), level, root, scale
