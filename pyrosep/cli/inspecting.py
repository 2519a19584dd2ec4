"""``pyrosep models`` and ``pyrosep diagnose``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pyrosep.cli.options import Device, Json, Quiet, Seed, print_table, reported, write_json


def models(seed: Seed = 0, device: Device = "auto", quiet: Quiet = False, json_file: Json = None) -> None:
    """List the models that ship, and the guides."""
    with reported():
        from pyrosep import zoo

        found, guides = zoo.prior_sets(), zoo.guides()
        write_json(
            json_file,
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
        if quiet:
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
    posterior: Annotated[Path, typer.Argument(help="A posterior.nc, or a folder that holds one.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the pictures [beside it].")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table: the summaries of largest R-hat.")] = 20,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_file: Json = None,
) -> None:
    """R-hat, ESS and MCSE of a posterior's summaries, and ArviZ's plots of them."""
    with reported():
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
            json_file,
            {
                "verdict": verdict(table),
                "summaries": json.loads(table.to_json(orient="index")),
                "chains": [] if chains is None else json.loads(chains.to_json(orient="records")),
                "pictures": pictures,
            },
        )
        if not quiet:
            worst = table.sort_values("r_hat", ascending=False, kind="stable").dropna(axis=1, how="all").head(rows)
            typer.echo(worst.to_string(float_format="{:.3f}".format))
            typer.echo(verdict(table))
            for picture in pictures:
                typer.echo(str(picture))
