"""What `fit` and `search` do with the fit that they choose: say it, and write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import typer

from bayesmix.cli.files import Output, saved_bytes, write
from bayesmix.cli.outcome import (
    Choice,
    agreement_of,
    cluster_rows,
    clusters_picture,
    cross_table,
)
from bayesmix.cli.pages import choice_page
from bayesmix.cli.shared import NOT_CLEAN, emit, say, show
from bayesmix.cli.tables import Data

__all__ = ["finish", "finish_without"]


def finish_without(reason: str, output: Output, document: Mapping[str, Any]) -> NoReturn:
    """Say why nothing is chosen, write nothing, and end the command.

    Raises:
        typer.Exit: always, with the code that says so.
    """
    say(f"bayesmix: {reason}")
    if output.as_json:
        emit({**document, "chosen": None, "mixture": None, "labels": None, "files": []})
    raise typer.Exit(NOT_CLEAN)


def finish(choice: Choice, data: Data, output: Output, document: Mapping[str, Any]) -> None:
    """Say what was chosen, and write it."""
    fit, mixture = choice.fit, choice.fit.mixture
    agreement = agreement_of(data, np.asarray(fit.labels), mixture.n_components)
    if not output.as_json:
        typer.echo(f"{choice.headline}\n")
        typer.echo(mixture.summary().T.to_string(float_format="{:.4g}".format))
        if agreement is not None:
            show(f"\n{agreement.sentence}", cross_table(agreement))
    pictures = [clusters_picture(mixture, data.x), *choice.pictures]
    files: dict[Path, bytes] = {}
    if output.folder is not None:
        rows = mixture.responsibilities(data.x, missing="at_random")
        tables = {"clusters": cluster_rows(fit.labels, rows), **choice.tables}
        if fit.n_missing:
            tables["imputed"] = mixture.impute(data.x, as_frame=True).rename_axis("row")
        files[output.folder / "mixture.json"] = saved_bytes(mixture, ".json")
        files |= output.tables(tables)
        files |= {output.folder / f"{picture.name}.png": picture.png() for picture in pictures}
    if output.report is not None:
        files[output.report] = choice_page(choice, data, agreement, pictures, output.command).encode()
    write(files)
    if output.as_json:
        known = None if agreement is None else agreement.document()
        emit(
            {
                **document,
                "chosen": choice.record,
                "mixture": json.loads(saved_bytes(mixture, ".json")),
                "labels": known,
            }
            | {"files": list(files)}
        )
    else:
        output.say_written(files, "the mixture, the clusters and the figures")
