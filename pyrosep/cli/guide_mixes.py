"""The mixes that ``pyrosep train-guide`` trains, validates and calibrates a guide on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyrosep.cli.options import Data
from pyrosep.errors import ConfigurationError
from pyrosep.training.augmentation import Augmentation

if TYPE_CHECKING:
    from torch import Tensor

    from pyrosep.mixing import Model
    from pyrosep.priors import SourcePrior
    from pyrosep.training.frames import Frames
    from pyrosep.zoo import PriorSetInfo

__all__ = ["GuideMixes"]


@dataclass(frozen=True)
class GuideMixes:
    """Mixes of a model's sources, by draws of its priors or by recordings of no song together.

    Attributes:
        info: of the prior set.
        priors: by source, on the CPU.
        gains: one for each source.
        noise: standard deviation of the observation noise.
        data: what the sources are.
        augmentation: of recordings.
        held_out: mixes that are not trained on.
        seed: of all that is random.
        device: where the mixes go.
    """

    info: PriorSetInfo
    priors: Mapping[str, SourcePrior]
    gains: Sequence[float]
    noise: float
    data: Data
    augmentation: Augmentation
    held_out: int
    seed: int
    device: Any

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.priors)

    @property
    def time(self) -> int:
        return next(iter(self.priors.values())).time

    @cached_property
    def mixing(self) -> Model:
        """The model of a mix, with the priors on the device."""
        from pyrosep.mixing import linear_mix

        return linear_mix({name: prior.to(self.device) for name, prior in self.priors.items()}, self.gains, self.noise)

    @cached_property
    def frames(self) -> dict[str, Frames]:
        """Frames of each source by itself, none where the priors are to draw them."""
        from pyrosep.data.toy import WAVES
        from pyrosep.training.frames import song_frames, toy_frames

        if self.data.data == ["priors"]:
            return {}
        if not self.data.simulated:
            songs = self.data.open(self.names)
            return {
                name: song_frames(
                    songs,
                    name,
                    self.time,
                    sample_rate=self.info.sample_rate,
                    augmentation=self.augmentation,
                    held_out=self.held_out,
                    seed=self.seed,
                    shares=songs.shares,
                )
                for name in self.names
            }
        if strange := [name for name in self.names if name not in WAVES]:
            raise ConfigurationError(
                f"toy data has the sources {', '.join(WAVES)}, not {', '.join(strange)} of model {self.info.name!r}; "
                "give other data, or the sources"
            )
        return {name: toy_frames(name, self.time, held_out=self.held_out, seed=self.seed) for name in self.names}

    @property
    def stems(self) -> dict[str, Callable[[int], Tensor]]:
        """Draws of frames of each source alone, where the priors don't draw them."""
        return {name: self._here(own.draw) for name, own in self.frames.items()}

    def draws(self) -> Callable[[int], Tensor]:
        """Draws of mixes: of songs as they were recorded, where there are such, else simulated."""
        import torch

        from pyrosep.data import RandomCrops
        from pyrosep.guides import simulate
        from pyrosep.training.frames import held_out_songs

        songs = None if self.data.simulated else self.data.open(self.names)
        mixed = [] if songs is None else [song for song in songs if song.origin is None]
        if songs is None or not mixed:  # solo recordings are no mixes
            return self._here(lambda count: simulate(self.mixing, count, stems=self.stems)[0])
        apart = [song for name in self.names for song in held_out_songs(mixed, name)]
        kept = [song for song in mixed if song not in apart]
        crops = RandomCrops(kept, None, self.time, self.info.sample_rate, 2**32, self.seed, shares=songs.shares)
        return self._here(
            lambda count: torch.stack([crops[index] for index in torch.randint(2**32, (count,)).tolist()])
        )

    def simulated(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """So many mixes that are not trained on, and their sources: ``(mix, time)`` and ``(mix, source, time)``.

        Of recordings, those from ``first`` on of the frames that are held out.
        """
        import torch

        from pyrosep.guides import simulate

        def given(k: int, name: str) -> Callable[[int], Tensor]:
            kept = self.frames[name].held_out_apart(k)[first:]
            return lambda number: kept[:number]

        stems = {name: given(k, name) for k, name in enumerate(self.names) if name in self.frames}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 2**33 + first)
            mix, values = simulate(self.mixing, count, stems=stems)
        return mix.cpu(), torch.stack([values[name] for name in self.names], 1).cpu()

    def about(self) -> dict[str, Any]:
        """What a training on these is known by."""
        label = self.data.label
        plain = self.augmentation.details() == Augmentation().details()
        return {
            "model": f"{self.info.name} ({self.info.digest()[:8]})",
            "data": label if label in ("priors", "toy", "musdb") else "songs",
            **self.data.details(),
            "sources": list(self.names),
            "gains": list(self.gains),
            "noise": self.noise,
            "frame": self.time,
            **({} if plain else {"augmentation": self.augmentation.details()}),
        }

    def provenance(self) -> dict[str, Any]:
        """What is kept of them beside the weights."""
        return {
            "data": self.data.label,
            **self.data.details(),
            "gains": list(self.gains),
            "noise": self.noise,
            "model_digest": self.info.digest(),
        }

    def _here(self, draw: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        return lambda count: draw(count).to(self.device)
