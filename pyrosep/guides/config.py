"""What a guide is built from, but for its weights: for a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from pyrosep.errors import ConfigurationError
from pyrosep.guides.encoder import EncoderGuide
from pyrosep.guides.heads import Head
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.refining import UNetSize

__all__ = ["config_of", "guide_from"]


def config_of(guide: EncoderGuide) -> dict[str, Any]:
    """What a guide is built from, of types that JSON has.

    Raises:
        ConfigurationError: the gains are drawn by a function, which no file can hold.
    """
    if callable(guide.drawn):
        raise ConfigurationError(
            "a guide whose gains are a function of its heads can't be written to a file; keep its state_dict(), "
            "and load that into a guide that is built by the same call. A head's own value, by name, can be written"
        )
    heads = zip(guide.head_names, cast("Iterable[Head]", guide.heads), strict=True)
    return {
        "sources": list(guide.names),
        "shared": guide.shared,
        "size": dict(vars(guide.size)),
        "project": guide.drawn or (False if guide.gains is None else guide.gains.tolist()),
        "noise": guide.noise,
        "channels": guide.channels,
        "heads": {name: head.config for name, head in heads},
    }


def guide_from(config: Mapping[str, Any]) -> EncoderGuide:
    """A guide as :func:`config_of` tells, its weights new."""
    heads = {name: (own["shape"], Head.support(own)) for name, own in config["heads"].items()}
    return EncoderGuide(
        config["sources"],
        shared=config["shared"],
        size=BandSize(**config["size"]) if "window" in config["size"] else UNetSize(**config["size"]),
        project=config["project"],
        noise=config["noise"],
        channels=config["channels"],
        heads=heads,
    )
