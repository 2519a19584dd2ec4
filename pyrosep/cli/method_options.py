"""The numbers of the methods of separation as options: the fields of their classes, with their help and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Optional, TypeVar, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse

from pyrosep.separation.chains import Chains, LocalSearch, SharedDescent
from pyrosep.separation.methods import FromGuide, OnePass

__all__ = ["MethodOptions", "Numbers"]

#: Whose fields are options, and how each is asked for.
_KINDS: dict[type[Any], str] = {
    Chains: "chains",
    SharedDescent: "`shared`",
    LocalSearch: "`local`",
    OnePass: "`one-pass`",
    FromGuide: "`guide`",
}
_Options = TypeVar("_Options")


def whole_or_numbers(kind: Any, tokens: Sequence[Any]) -> int | tuple[float, ...]:
    """One whole number, or numbers by commas."""
    (text,) = (token.value for token in tokens)
    try:
        return int(text) if "," not in text and "." not in text else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected a whole number, or numbers by commas; got {text!r}") from None


#: What is not plain from a field's type and help. The coupling says which kind of chains is meant, too.
_WRITTEN: dict[str, dict[str, Any]] = {
    "ladder": {"converter": whole_or_numbers, "n_tokens": 1},
    "coupling": {
        "help": "How the search goes: `sweeps`, `shared` (a descent of all sources together), or Langevin moves "
        "`noisy`, `denoised`, `constraint` or `local`. By default `shared` with priors that filter and know "
        "interference, `local` with others that filter, no search with Gaussian priors, else `sweeps`."
    },
}


def _help(name: str, kinds: Sequence[type[Any]]) -> str:
    """What a field is, as the first of its classes says, and its defaults."""
    told = {one.arg_name: one.description for base in kinds[0].__mro__ for one in parse(base.__doc__ or "").params}
    text = told[name] or ""
    if Chains not in kinds:
        text += f" Only with {' and '.join(_KINDS[kind] for kind in kinds)}."
    asked: dict[Any, list[str]] = {}
    for kind in kinds:
        asked.setdefault(getattr(kind, name), []).append(_KINDS[kind])
    if None in asked:  # it depends on more than the kind
        return text
    (usual, _), *others = asked.items()
    defaults = [str(usual), *(f"{value} with {' and '.join(by)}" for value, by in others)]
    return f"{text} By default {', or '.join(defaults)}."


def _with_numbers(options: type[_Options]) -> type[_Options]:
    """Let options have every number of a method, ``None`` where it isn't given; what a name says is left out."""
    kinds: dict[str, list[type[Any]]] = {}
    for kind in _KINDS:
        for one in fields(kind):
            if one.name != "guided":
                kinds.setdefault(one.name, []).append(kind)
    numbers = [
        (
            name,
            Annotated[
                Optional[get_type_hints(own[0])[name]],  # noqa: UP045
                Parameter(**({"help": _help(name, own)} | _WRITTEN.get(name, {}))),
            ],
            field(default=None),
        )
        for name, own in kinds.items()
    ]
    return make_dataclass(
        options.__name__,
        numbers,
        bases=(options,),
        frozen=True,
        namespace={"__doc__": options.__doc__, "__module__": options.__module__},
    )


@_with_numbers
@dataclass(frozen=True)
class MethodOptions:
    """Numbers of methods on the command line."""

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return {number: value for number, value in asdict(self).items() if value is not None}


Numbers = Annotated[MethodOptions, Parameter(name="*")]
