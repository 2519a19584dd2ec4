"""What an experiment leaves in its folder: tables as CSV and as Markdown, and a picture."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrosep.results import write_text

if TYPE_CHECKING:
    import pandas

__all__ = ["picture", "write_tables"]


def write_tables(folder: str | os.PathLike[str], name: str, title: str, tables: Mapping[str, pandas.DataFrame]) -> None:
    """Write each table to ``TABLE.csv`` and all of them to ``NAME.md``, with the same figures, of six digits."""
    parts = [f"# {title}"]
    for key, table in tables.items():
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(Path(folder) / f"{key}.csv", text)
        header, *rows = csv.reader(text.splitlines())
        lines = [header, ["---"] * len(header), *rows]
        parts.append(f"## {key}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    write_text(Path(folder) / f"{name}.md", "\n\n".join(parts) + "\n")


@contextmanager
def picture(path: Path, rows: int, columns: int, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """A figure, and its axes ``(rows, columns)``, to draw on; a PNG file, written whole, when that is done."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, squeeze=False, **settings)
    try:
        yield figure, axes
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")
        figure.savefig(beside, dpi=90, format="png")
        beside.replace(path)
    finally:
        plt.close(figure)
