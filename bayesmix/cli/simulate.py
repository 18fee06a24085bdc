"""`bayesmix simulate`: rows drawn from a mixture, each with the cluster that it comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from bayesmix.cli.files import TABLES, check_file, table_bytes, write
from bayesmix.cli.shared import JsonOption, KeyOption, bad_input_ends, emit
from bayesmix.cli.tables import load_mixture

__all__ = ["simulate_command"]


def simulate_command(
    mixture: Annotated[str, typer.Argument(metavar="MIXTURE", help="A mixture.json.", show_default=False)],
    n: Annotated[int, typer.Option("-n", help="How many rows.")],
    labels: Annotated[
        str, typer.Option(metavar="COLUMN", help="What the column of clusters is called.")
    ] = "z",
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file, .csv or .parquet; without it CSV on standard output."),
    ] = None,
    as_json: JsonOption = False,
    key: KeyOption = 0,
) -> None:
    """Draw rows from a mixture: first the cluster z, then x given z.

    Example: bayesmix simulate results/mixture.json -n 1000 --key 0 --out rows.csv

    The same key gives the same rows. Exit codes: 0, done; 2, the mixture or an option cannot be used.
    """
    import pandas

    with bad_input_ends():
        path = check_file(out, TABLES)
        law = load_mixture(mixture)
        names = list(law.feature_names or (f"x{j}" for j in range(law.n_features)))
        if labels in names:
            raise ValueError(
                f"--labels {labels!r} is the name of a feature; give the column of clusters another name"
            )
        x, z = law.simulate(n, key=key)
    frame = pandas.DataFrame(x, columns=names).assign(**{labels: z})
    if path is not None:
        write({path: table_bytes(frame, path.suffix)})
    if as_json:
        rows = None if path is not None else {"x": x, "z": z}
        emit(
            {
                "command": "simulate",
                "mixture": mixture,
                "n": n,
                "key": key,
                "features": names,
                "labels": labels,
            }
            | {"rows": rows, "files": [] if path is None else [path]}
        )
    elif path is None:
        typer.echo(table_bytes(frame, ".csv").decode(), nl=False)
    else:
        typer.echo(f"Wrote {len(frame)} rows to {path}")
