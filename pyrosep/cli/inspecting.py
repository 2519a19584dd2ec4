"""``pyrosep models`` and ``pyrosep diagnose``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from rich.table import Table

from pyrosep.cli.manners import print_table, say, write_json
from pyrosep.cli.options import Report, Reporting


def models(*, report: Report = Reporting()) -> None:
    """List the models that ship, and the guides.

    The command prints the name, the family of priors, the sources and the sample rate of each model, and what it was
    fitted to. For each guide it prints the model that the guide is for.

    Example:
        $ pyrosep models
    """
    from pyrosep import zoo

    found, guides = zoo.prior_sets(), zoo.guides()
    write_json(
        report.json,
        [
            {
                "name": info.name,
                "family": info.family,
                "sources": info.sources,
                "sample_rate": info.sample_rate,
                "guides": [guide.name for guide in guides if guide.model == info.name],
            }
            for info in found
        ],
    )
    if report.quiet:
        return
    table = Table()
    for column in ("model", "priors", "sources", "rate", "about"):
        table.add_column(column)
    for info in found:
        table.add_row(info.name, info.family, ", ".join(info.sources), f"{info.sample_rate} Hz", info.summary)
    print_table(table)
    if guides:
        table = Table()
        for column in ("guide", "model", "sources", "frame", "about"):
            table.add_column(column)
        for one in guides:
            table.add_row(one.name, one.model, ", ".join(one.sources), str(one.frame or ""), one.summary)
        print_table(table)


def diagnose(
    posterior: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    rows: PositiveInt = 20,
    report: Report = Reporting(),
) -> None:
    """Print R-hat, ESS and MCSE of a posterior's summaries, and draw ArviZ's plots of them.

    The command prints a verdict in words, and draws trace, rank, autocorrelation and log joint density. With fewer than
    four draws a chain, as ``music-small`` gives with its guide, it prints means and deviations, and draws the draws.

    Example:
        $ pyrosep diagnose separated/song-gaussian/song

    Arguments:
        posterior: A posterior.nc, or a folder that holds one.
        out: Folder for the pictures. By default ``diagnostics``, beside the posterior.
        rows: Rows of the table: the summaries of largest R-hat.
    """
    from pyrosep.diagnostics import compare_chains, plot_diagnostics, read_netcdf, summarize, verdict
    from pyrosep.diagnostics.arviz_versions import group

    path = posterior / "posterior.nc" if posterior.is_dir() else posterior
    idata = read_netcdf(path)
    table = summarize(idata)
    # Of few draws there is no telling which mode a chain is in.
    compared = "few" not in table.attrs and "lp" in group(idata, "sample_stats")
    chains = compare_chains(idata) if compared else None
    pictures = plot_diagnostics(idata, out or path.parent / "diagnostics")
    write_json(
        report.json,
        {
            "verdict": verdict(table),
            "summaries": json.loads(table.to_json(orient="index")),
            "chains": [] if chains is None else json.loads(chains.to_json(orient="records")),
            "pictures": pictures,
        },
    )
    if not report.quiet:
        worst = table.sort_values("r_hat", ascending=False, kind="stable").dropna(axis=1, how="all").head(rows)
        say(worst.to_string(float_format="{:.3f}".format))
        say(verdict(table))
        for picture in pictures:
            say(str(picture))
