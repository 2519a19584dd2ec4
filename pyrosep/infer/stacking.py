"""The sources of a model as the rows of one tensor, those of a plate or an event each by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrosep.errors import ShapeError
from pyrosep.priors import SourcePrior
from pyrosep.priors.base import element_of
from pyrosep.reading import Reading

__all__ = ["SourceRows"]


class SourceRows:
    """Which sources a model has, a row each, and their values ``(..., source, time)``.

    Most sites are one source. A site in a plate without data, or of an event ``(n, time)``, is several.

    Arguments:
        reading: of the model.
        batch_ndim: axes in front that count chains.

    Attributes:
        labels: what each row is called.
        sites: the site that each is of.
        priors: the prior that each is of.
    """

    def __init__(self, reading: Reading, batch_ndim: int = 0) -> None:
        self.counts = {name: reading.members[name] for name in reading.priors}
        self.labels = [label for name in self.counts for label in reading.labels(name)]
        self.sites = [name for name, count in self.counts.items() for _ in range(count)]
        self.priors: list[SourcePrior] = [
            reading.priors[name] if count == 1 else element_of(reading.priors[name], member)
            for name, count in self.counts.items()
            for member in range(count)
        ]
        self._batch_ndim = batch_ndim
        #: Whether each source is a site.
        self.plain = all(count == 1 for count in self.counts.values())

    def __len__(self) -> int:
        return len(self.labels)

    def stacked(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values by site as rows, ``(..., source, time)``; the chains, and plates that all sites stand in, in front.

        Raises:
            ShapeError: the sources differ in their shapes.
        """
        shapes = {name: tuple(values[name].shape) for name in self.counts}
        if self.plain:
            if len(set(shapes.values())) > 1:
                raise ShapeError(f"expected sources of one shape; got {shapes}")
            return torch.stack([values[name] for name in self.counts], -2)
        others = [values[name].shape[self._batch_ndim : -1].numel() != count for name, count in self.counts.items()]
        if len({shape[-1] for shape in shapes.values()}) > 1 or any(others):
            raise ShapeError(f"expected sources of one length, all of one mix; got {shapes}")
        return torch.cat(
            [values[name].reshape(*shapes[name][: self._batch_ndim], count, -1) for name, count in self.counts.items()],
            -2,
        )

    def split(self, rows: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values by site, of the shapes that they have in ``like``, of rows ``(..., source, time)``."""
        parts = rows.unbind(-2) if self.plain else rows.split(list(self.counts.values()), -2)
        return {name: part.reshape(like[name].shape) for name, part in zip(self.counts, parts, strict=True)}

    def one(self, number: int, value: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values by site that are zero but for one row, which is ``value`` ``(time,)`` in every chain."""
        found = {name: torch.zeros_like(like[name]) for name in self.counts}
        name = self.sites[number]
        if self.counts[name] == 1:
            found[name] = value.expand_as(like[name])
            return found
        member = number - self.sites.index(name)
        shape = like[name].shape
        flat = found[name].reshape(*shape[: self._batch_ndim], self.counts[name], -1).clone()
        flat[..., member, :] = value
        found[name] = flat.reshape(shape)
        return found

    def of_site(self, name: str) -> list[int]:
        """The numbers of a site's rows."""
        return [number for number, site in enumerate(self.sites) if site == name]

    def pick(self, number: int, value: Tensor) -> Tensor:
        """What a row has of a value by site, ``(..., x)``: of several sources of one site its own."""
        count = self.counts[self.sites[number]]
        if count == 1 or value.shape[:-1].numel() < count:
            return value
        member = number - self.sites.index(self.sites[number])
        own = value.reshape(-1, count, value.shape[-1])[:, member]
        return own if len(own) > 1 else own[0]
