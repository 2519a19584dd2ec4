"""What all commands do alike: errors in one line, tables, progress, figures as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from pyrosep.errors import PyrosepError
from pyrosep.interruption import raise_again

__all__ = [
    "complain",
    "described",
    "figures_line",
    "finite",
    "one_line",
    "print_table",
    "progress_bar",
    "reported",
    "say",
    "track_progress",
    "write_json",
]


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Errors end with one clear line and an exit status that is not zero, never with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding lacks: that is no reason to end.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: complain("warning", str(message))
        # ArviZ 0.23 announces its 1.0 on every import.
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        try:
            try:
                yield
            except Exception:
                raise_again()  # a signal may come out as another exception
                raise
        except KeyboardInterrupt:
            complain("interrupted", "what was finished is kept; run the same command again to go on")
            raise SystemExit(130) from None
        except CycloptsError as error:
            complain("error", " ".join(str(error).split()))
            raise SystemExit(2) from None
        except Exception as error:
            complain("error", one_line(error))
            raise SystemExit(1) from None


def described(command: Callable[..., Any]) -> str:
    """What a command does, as Markdown: the text of its docstring above its arguments, and its example."""
    import inspect
    import re

    from docstring_parser import parse

    text = inspect.getdoc(command) or ""
    told = parse(text)
    description = "\n\n".join(part for part in (told.short_description, told.long_description) if part)
    description = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", description).replace("``", "`")
    shown = re.search(r"^Example:\n((?: {4}.*\n?)+)", text, re.MULTILINE)
    if shown is None:
        return description
    lines = "\n".join(line[4:] for line in shown[1].rstrip().splitlines())
    return f"{description}\n\n```console\n{lines}\n```"


def one_line(error: BaseException) -> str:
    """An error in one line; with ``PYROSEP_DEBUG`` its traceback is printed before."""
    if os.environ.get("PYROSEP_DEBUG"):
        traceback.print_exception(error)
    # torch names its own error after what it is for; it isn't imported for an error that came before it was.
    ran_out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if ran_out or "can't allocate memory" in str(error):
        return "out of memory; take fewer --chains or --draws, a shorter --segment, or another --device"
    if isinstance(error, PyrosepError | OSError):
        return " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (PYROSEP_DEBUG=1 shows where)"


def complain(kind: str, text: str) -> None:
    """One line on standard error."""
    print(f"pyrosep: {kind}: {text}", file=sys.stderr)


def say(text: str) -> None:
    """Text on standard output."""
    print(text)


def print_table(table: Table) -> None:
    """Print a table as wide as its figures need, on a narrow terminal too: a figure cut short says something else."""
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, needed)).print(table)


def progress_bar(total: int, label: str, quiet: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit_scale=True, disable=quiet or None, leave=False)


def track_progress(label: str, quiet: bool) -> tuple[Any, Any]:
    """A bar whose total is known on the way, and the function that moves it: of what is done, and all there is."""
    bar = progress_bar(1, label, quiet)

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, update


def figures_line(report: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in report.items())


def write_json(path: Path | None, figures: Any) -> None:
    """Figures as JSON, where a path was given."""
    if path is not None:
        from pyrosep.results import write_text

        write_text(path, json.dumps(finite(figures), indent=2, ensure_ascii=False, default=str) + "\n")


def finite(figures: Any) -> Any:
    """The same figures with null for those that JSON has no number for."""
    if isinstance(figures, dict):
        return {key: finite(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [finite(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures
