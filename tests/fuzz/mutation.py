"""Mutations of bytes and of JSON."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

#: Numbers at which sizes and offsets overflow, in so many bytes.
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
#: What stands where something else is expected.
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    3,
    0.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    2**31,
    2**40,
    2**70,
    "",
    "x",
    "../escaped",
    "/escaped",
    "a\0b",
    "\ud800",
    "é" * 300,
    [],
    [1],
    ["a", "a"],
    {},
    {"a": 1},
    [[[]]],
]


def mutated_bytes(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to four changes; half of them near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not changed:
            break
        reach = min(len(changed), rng.choice((64, 256, len(changed), len(changed))))
        at = rng.randrange(reach)
        size = rng.choice((1, 2, 4, 8, 16, 64, 512))
        match rng.randrange(8):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(_NUMBERS) % 256**width
                changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 3:
                del changed[at:]
            case 4:
                del changed[at : at + size]
            case 5:
                changed[at:at] = changed[at : at + size]
            case 6:
                changed[at:at] = rng.randbytes(size)
            case 7:
                other = rng.choice(others)
                begin = rng.randrange(len(other))
                changed[at : at + size] = other[begin : begin + size]
    return bytes(changed)


def mutated_json(value: Any, rng: random.Random) -> str:
    """The text of the same JSON with one or two values replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        match rng.randrange(5):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
            case 3:
                del holder[key]
            case 4 if isinstance(holder, dict):
                holder[str(rng.choice(VALUES))] = holder.pop(key)
            case _:
                holder.append(copy.deepcopy(holder[key]))
    return json.dumps(value)


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
