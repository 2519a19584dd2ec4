"""Gains of the mix that a guide is conditioned on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, ShapeError

__all__ = ["GainsOf", "MixGains"]

#: Gains of the mix by the values of the heads' sites.
GainsOf = Callable[[dict[str, Tensor]], Tensor]


class MixGains:
    """What a guide's ``project`` stands for: gains that are fixed, drawn by the heads, or none.

    Fixed gains are not kept here, for they are a buffer of the guide.

    Arguments:
        project: see :class:`~pyrosep.EncoderGuide`.
        names: of the sources.
        channels: of the mix; ``None`` for a mix without that axis.
        heads: names of the heads.

    Raises:
        ConfigurationError: the name of a head that is not there.
    """

    def __init__(self, project: Any, names: tuple[str, ...], channels: int | None, heads: tuple[str, ...]) -> None:
        self.names, self.channels = names, channels
        #: A head's name or a function, where the gains are drawn.
        self.drawn: str | GainsOf | None = project if isinstance(project, str) or callable(project) else None
        if isinstance(project, str) and project not in heads:
            raise ConfigurationError(
                f"project={project!r} names no head; this guide has {list(heads) or 'none'}. Give the name "
                "of the head that draws the gains, or a function of the heads' values"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the gains of one mix: ``(source,)``, or ``(channel, source)``."""
        return (len(self.names),) if self.channels is None else (self.channels, len(self.names))

    @property
    def _axes(self) -> str:
        return "(source,)" if self.channels is None else "(channel, source)"

    def fixed(self, project: Any) -> Tensor | None:
        """Gains of :attr:`shape` that do not depend on the mix; ``None`` where there are none, or they are drawn.

        Raises:
            ShapeError: gains that don't fit the sources and channels, or that are all zero.
        """
        if project is False or self.drawn is not None:
            return None
        gains = torch.full(self.shape, 1 / len(self.names)) if project is True else torch.as_tensor(project)
        gains = gains.to(torch.get_default_dtype(), copy=True)
        if gains.shape != self.shape or not bool(gains.any()):
            raise ShapeError(
                f"expected gains for {list(self.names)} of shape {self.shape}, {self._axes}, not all zero; got "
                f"{project!r}"
            )
        return gains

    def given(self, fixed: Tensor | None, values: Mapping[str, Tensor]) -> Tensor | None:
        """Gains ``(..., channel, source)`` by the heads' values; ``None`` where there is no projection.

        Raises:
            ConfigurationError: the function looks for a head that is not there.
            ShapeError: what was drawn does not fit the sources and channels.
        """
        if self.drawn is None:
            gains = fixed
        elif isinstance(self.drawn, str):
            gains = values[self.drawn]
        else:
            try:
                gains = self.drawn(dict(values))
            except KeyError as error:
                raise ConfigurationError(
                    f"the function given as project looks for site {error}; the heads are {list(values) or 'none'}"
                ) from error
        if gains is None:
            return None
        if not isinstance(gains, Tensor) or gains.shape[-len(self.shape) :] != self.shape:
            got = tuple(gains.shape) if isinstance(gains, Tensor) else type(gains).__name__
            raise ShapeError(
                f"expected gains for {list(self.names)} that end in {self.shape}, {self._axes}; got {got} from "
                f"project={self.drawn!r}"
            )
        return gains if self.channels is not None else gains.unsqueeze(-2)
