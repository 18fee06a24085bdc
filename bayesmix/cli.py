"""The command `bayesmix`: from a CSV file to a mixture, its clusters and its figures, in one line.

    bayesmix fit DATA --n-components 1:9 --covariance full --out results

fits every number of clusters that is asked for and keeps the lowest BIC among the clean fits; a collapsed or
spurious one is shown with its reason and never chosen. Everything is computed and drawn before the first file
is written, so that a command that fails leaves nothing behind. Exit codes: 0, a mixture was chosen; 1, no fit
was clean; 2, the data or an option cannot be used.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas

    from bayesmix.results import Fit

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

_GOOD, _NONE_CLEAN, _BAD_INPUT = 0, 1, 2


def main() -> None:
    """The entry point."""
    app()


@app.callback()
def _about() -> None:
    """Gaussian mixtures from the command line.

    Example: bayesmix fit old_faithful --n-components 1:5 --out results
    """


@app.command("fit")
def _fit(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A CSV file with a header line and numeric columns, - for standard input, or the name of a "
            "bundled data set: old_faithful, iris, galaxies.",
        ),
    ],
    n_components: Annotated[
        str, typer.Option(help="Numbers of clusters: 3, or 1,2,5, or a range with both ends, 1:9.")
    ] = "1:9",
    covariance: Annotated[
        str, typer.Option(help="full, tied, diag, spherical, or mclust's letters such as VVI.")
    ] = "full",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results, made if needed; without it nothing is written."),
    ] = None,
    key: Annotated[int, typer.Option(help="Seeds the starts; the same key gives the same result.")] = 0,
) -> None:
    """Fit Gaussian mixtures by EM and choose the number of clusters by BIC.

    Example: bayesmix fit measurements.csv --n-components 1:5 --covariance full --out results

    The folder receives mixture.json, clusters.csv, clusters.png, bic.png and objective.png.
    Rows and clusters are numbered from 0.
    """
    try:
        counts = _counts(n_components)
        _check_folder(out)
        x = _read(data)
        fits = _fit_each(x, counts, covariance, key)
    except (OSError, ValueError) as error:
        _say(f"bayesmix: {' '.join(str(error).split())}")
        raise typer.Exit(_BAD_INPUT) from None
    best = min((k for k in fits if not fits[k].spurious), key=lambda k: fits[k].bic, default=None)
    table = _table(fits, best)
    features = f"{x.shape[1]} feature{'s' if x.shape[1] > 1 else ''}"
    _print_table(f"{data}: {x.shape[0]} rows, {features}; covariance {covariance}", table)
    if best is None:
        _say(
            "bayesmix: none of these fits is clean, for the reasons above, so none is chosen and nothing is "
            "written; ask for fewer clusters, or for a structure with equal volumes such as --covariance tied"
        )
        raise typer.Exit(_NONE_CLEAN)
    typer.echo(f"Chosen by BIC: k = {best}\n")
    typer.echo(fits[best].mixture.summary().T.to_string(float_format="{:.4g}".format))
    if out is None:
        typer.echo("\nNothing was written; --out FOLDER writes the mixture, the clusters and the figures.")
        return
    try:
        _write(out, x, fits, fits[best])
    except OSError as error:
        _say(f"bayesmix: cannot write to {out}: {error}")
        raise typer.Exit(_BAD_INPUT) from None


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _counts(text: str) -> list[int]:
    """ "3", "1,2,5" or "1:9", both ends included, as numbers in order."""
    try:
        ends = [int(part) for part in text.split(":")] if ":" in text else None
        counts = range(ends[0], ends[1] + 1) if ends and len(ends) == 2 else map(int, text.split(","))
        counts = sorted(set(counts))
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise ValueError(f"--n-components must be numbers from 1 such as 3, 1,2,5 or 1:9; it is {text!r}")
    return counts


def _check_folder(out: Path | None) -> None:
    """Before any work: a folder, or a place where one can be made."""
    if out is None:
        return
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"--out must be a folder; {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"--out: {nearest} is not writable")


def _read(data: str) -> pandas.DataFrame:
    """The table, numbers only.

    Raises:
        ValueError: no such file, or a cell that is no number; the message names its column and row.
    """
    import pandas

    from bayesmix import datasets

    if data in datasets.NAMES:
        return datasets.load(data)
    if data != "-" and not Path(data).is_file():
        raise ValueError(f"there is no file {data!r}; the bundled data sets are {', '.join(datasets.NAMES)}")
    name = "standard input" if data == "-" else data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            source = sys.stdin if data == "-" else data
            frame = pandas.read_csv(source, index_col=False)
    except pandas.errors.ParserWarning:
        raise ValueError(f"{name} cannot be read as CSV: its rows have more cells than its header") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read as CSV: {error}") from None
    return _numbers(_without_row_names(frame), name)


def _without_row_names(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Without a first column that has no name and counts the rows, as R and pandas write it."""
    first = frame.columns[0]
    if str(first) == "Unnamed: 0" and any(
        list(frame[first]) == list(range(s, s + len(frame))) for s in (0, 1)
    ):
        _say("bayesmix: the first column has no name and counts the rows, so it is left out")
        return frame.drop(columns=first)
    return frame


def _numbers(frame: pandas.DataFrame, name: str) -> pandas.DataFrame:
    """The table as float64, or the first cell that is no finite number."""
    import numpy as np
    import pandas

    if all(_is_number(column) for column in frame.columns):
        raise ValueError(f"{name} has no header line: its first line is all numbers; add the columns' names")
    if frame.empty:
        raise ValueError(f"{name} has no rows")
    for column in frame.columns:
        values = np.asarray(pandas.to_numeric(frame[column], errors="coerce"), np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if not bad.size:
            continue
        cell = frame[column].iloc[bad[0]]
        what = "has no value" if pandas.isna(cell) else f"holds {str(cell)!r}, not a finite number,"
        more = f" ({bad.size} of {len(frame)} rows are affected)" if bad.size > 1 else ""
        raise ValueError(
            f"{name}: column {str(column)!r} {what} in row {bad[0]}{more}; drop the column or such rows "
            "(the first row is row 0)"
        )
    return frame.astype(np.float64)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def _fit_each(x: pandas.DataFrame, counts: list[int], covariance: str, key: int) -> dict[int, Fit]:
    from tqdm import tqdm

    import bayesmix as bm

    if counts[-1] > len(x):
        raise ValueError(
            f"--n-components asks for {counts[-1]} clusters, and there are only {len(x)} rows; ask for fewer"
        )
    models = [bm.MixtureModel(k, covariance) for k in counts]
    bar = tqdm(models, desc="fitting", unit=" k", delay=2, disable=None, leave=False)
    return {model.n_components: bm.fit(model, x, key=key) for model in bar}


def _table(fits: dict[int, Fit], best: int | None) -> list[dict[str, Any]]:
    """A row per number of clusters, as it is printed and written."""
    from bayesmix.results import STATUS

    words = {code: word for word, (code, _) in STATUS.items()}
    return [
        {
            "n_components": k,
            "covariance": fit.mixture.structure,
            "log_likelihood": float(fit.log_likelihood),
            "n_parameters": fit.n_parameters,
            "bic": float(fit.bic),
            "n_agree": fit.n_agree,
            "n_starts": fit.n_starts,
            "status": words[fit.code],
            "spurious": fit.spurious,
            "chosen": k == best,
            "reason": "" if fit.status == words[fit.code] else fit.status,
        }
        for k, fit in fits.items()
    ]


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    typer.echo(title)
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in ("k", "log-likelihood", "parameters", "BIC", "agree", "status"):
        shown.add_column(heading, justify="left" if heading == "status" else "right")
    for row in rows:
        shown.add_row(
            str(row["n_components"]),
            f"{row['log_likelihood']:.3f}",
            str(row["n_parameters"]),
            f"{row['bic']:.3f}",
            f"{row['n_agree']} of {row['n_starts']}",
            row["status"] + (", chosen" if row["chosen"] else ""),
            style="bold" if row["chosen"] else "dim" if row["spurious"] else None,
        )
    Console().print(shown)
    for row in rows:
        if row["reason"]:
            typer.echo(f"k = {row['n_components']}: {row['reason']}")


def _write(out: Path, x: pandas.DataFrame, fits: dict[int, Fit], best: Fit) -> None:
    """All files into a folder of their own first, then into place."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        best.mixture.save(made / "mixture.json")
        _clusters(best, x).to_csv(made / "clusters.csv")
        _draw(made, x, fits, best)
        out.mkdir(parents=True, exist_ok=True)
        files = sorted(made.iterdir())
        for file in files:
            shutil.copyfile(file, out / file.name)
    typer.echo(f"\nWrote {', '.join(file.name for file in files)} to {out}")


def _clusters(fit: Fit, x: pandas.DataFrame) -> pandas.DataFrame:
    """Each row's most probable cluster and its probability of each."""
    import pandas

    r = fit.mixture.responsibilities(x)
    columns = {"cluster": fit.labels} | {f"p{k}": r[:, k] for k in range(r.shape[1])}
    return pandas.DataFrame(columns, index=pandas.RangeIndex(len(x), name="row"))


def _draw(folder: Path, x: pandas.DataFrame, fits: dict[int, Fit], best: Fit) -> None:
    """The figures; made without pyplot, so that no display and no global state is touched."""
    from matplotlib.figure import Figure

    from bayesmix import plots

    panels = min(x.shape[1], plots.MOST_FEATURES) if x.shape[1] > 2 else 1
    wide = (2.4 * panels, 2.2 * panels) if panels > 1 else (6.4, 4.8)
    for name, rows, size, draw in (
        ("clusters.png", panels, wide, lambda ax: plots.plot_clusters(best.mixture, x, ax=ax)),
        ("bic.png", 1, (6.4, 4.8), lambda ax: plots.plot_criterion(fits, ax=ax)),
        ("objective.png", 1, (6.4, 4.8), lambda ax: plots.plot_objective(best, ax=ax)),
    ):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(rows, rows))
        figure.savefig(folder / name, dpi=150)
