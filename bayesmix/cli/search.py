"""`bayesmix search`: every number of clusters with every structure, ranked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesmix.cli.chosen import finish, finish_without
from bayesmix.cli.files import Output, check_checkpoint
from bayesmix.cli.outcome import Choice, Picture
from bayesmix.cli.shared import (
    CheckpointOption,
    CountsOption,
    DataArgument,
    FeaturesOption,
    FormatOption,
    JsonOption,
    KeyOption,
    LabelsOption,
    MissingOption,
    OutOption,
    ReportOption,
    bad_input_ends,
    counts_of,
    plural,
    show,
    whole_results,
    words_of,
)
from bayesmix.cli.tables import read_data

if TYPE_CHECKING:
    import pandas

__all__ = ["search_command"]


def search_command(
    context: typer.Context,
    data: DataArgument,
    n_components: CountsOption = "1:9",
    covariance: Annotated[
        str, typer.Option(help="all fourteen structures, or some of them, such as full,tied or EEE,VVI,VVV.")
    ] = "all",
    criterion: Annotated[
        str,
        typer.Option(help="bic, aic, aicc, icl, icl_entropy, clc or nec; the lowest clean cell is chosen."),
    ] = "bic",
    n_starts: Annotated[int, typer.Option(help="Starts of each cell.")] = 4,
    top: Annotated[int, typer.Option(help="How many of the best cells the terminal shows.", min=1)] = 10,
    labels: LabelsOption = None,
    missing: MissingOption = None,
    features: FeaturesOption = None,
    out: OutOption = None,
    report: ReportOption = None,
    table_format: FormatOption = "csv",
    checkpoint: CheckpointOption = None,
    as_json: JsonOption = False,
    key: KeyOption = 0,
) -> None:
    """Fit every number of clusters with every covariance structure, and rank them by BIC.

    Example: bayesmix search measurements.csv --n-components 1:6 --covariance all --out results

    The folder receives search.csv, with every cell and the reason where one is never chosen, and mixture.json,
    clusters.csv, clusters.png and search.png of the best. Exit codes: 0, a mixture was chosen; 1, no cell was clean,
    and nothing is written; 2, the data or an option cannot be used.
    """
    import bayesmix as bm
    from bayesmix.inputs import as_name
    from bayesmix.ranking import CRITERIA, Search

    with bad_input_ends(), whole_results():
        counts = counts_of(n_components)
        as_name(criterion, "--criterion", CRITERIA)
        if covariance == "kmeans":
            raise ValueError(
                "--covariance must be all or structures; for k-means use bayesmix.search in Python"
            )
        output = Output.of(context, out, report, table_format, as_json)
        check_checkpoint(context, checkpoint)
        read = read_data(data, labels=labels, features=words_of(features), missing=missing)
        structures = "all" if covariance == "all" else words_of(covariance) or [covariance]
        found = bm.search(
            read.x,
            missing=missing,
            n_components=counts,
            covariance=structures,
            criterion=criterion,
            n_starts=n_starts,
            key=key,
            checkpoint=checkpoint,
        )
    assert isinstance(found, Search)
    table: Any = found.table
    document = {
        "command": "search",
        "data": read.document(),
        "criterion": criterion,
        "key": key,
        "cells": table,
    }
    shown, kinds = _shown(table, criterion)
    reasons = [
        f"{row['covariance']}, k = {row['n_components']}: {row['reason']}"
        for row in table.to_dict("records")
        if row["reason"]
    ]
    if not as_json:
        show(
            f"{read.name}: {read.size}; the best of {plural(len(table), 'cell')}",
            shown.head(top),
            kinds[:top],
        )
        _say_reasons(table, reasons, top)
    if not table["clean"].any():
        finish_without(
            "none of these cells is clean, for the reasons above, so none is chosen and nothing is written; "
            "search fewer clusters, or structures with equal volumes such as --covariance EEE",
            output,
            document,
        )
    pictures = [Picture("search", _CAPTION, lambda ax: found.plot(ax=ax))]
    record = table.iloc[0].to_dict()
    words = criterion.upper().replace("_", ", ")
    finish(
        Choice(found.best, words, shown, kinds, reasons, record, pictures, {"search": table}),
        read,
        output,
        document,
    )


_CAPTION = (
    "The criterion by number of clusters, a line a structure; lower is better, crosses are never chosen."
)


def _shown(table: pandas.DataFrame, criterion: str) -> tuple[pandas.DataFrame, list[str]]:
    """The cells for people, best first."""
    import pandas

    best = table[criterion].iloc[0]
    rows = [
        {
            "covariance": row["covariance"],
            "k": str(row["n_components"]),
            "log-likelihood": _number(row["log_likelihood"]),
            "parameters": _number(row["n_parameters"], 0),
            criterion.upper().replace("_", ", "): _number(row[criterion]),
            "difference": _number(row[criterion] - best) if row["clean"] else "",
            "agree": f"{row['n_agree']:.0f} of {row['n_starts']:.0f}"
            if row["status"] != "impossible"
            else "",
            "status": row["status"] + (", chosen" if place == 0 and row["clean"] else ""),
        }
        for place, row in enumerate(table.to_dict("records"))
    ]
    clean = list(table["clean"])
    return pandas.DataFrame(rows), [
        "dim" if not ok else "" if place else "chosen" for place, ok in enumerate(clean)
    ]


def _number(value: Any, digits: int = 3) -> str:
    return "" if value != value else f"{value:.{digits}f}"


def _say_reasons(table: Any, reasons: list[str], top: int) -> None:
    """How many cells are never chosen, and why; the others are in the table that is written."""
    never = int((~table["clean"]).sum())
    if never:
        typer.echo(f"{plural(never, 'cell')} of {len(table)} never chosen:")
    for reason in reasons[:top]:
        typer.echo(reason)
    if len(reasons) > top:
        typer.echo(f"and {len(reasons) - top} more, in search.csv (--out) and in the report (--report)")
