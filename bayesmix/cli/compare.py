"""`bayesmix compare`: mixtures by their criteria, or posteriors by what they predict and by their evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bayesmix.cli.files import TABLES, check_file, table_bytes, write
from bayesmix.cli.outcome import agreement_of
from bayesmix.cli.shared import (
    DataArgument,
    FeaturesOption,
    JsonOption,
    KeyOption,
    LabelsOption,
    bad_input_ends,
    counts_of,
    emit,
    plural,
    show,
    whole_results,
    words_of,
)
from bayesmix.cli.tables import POSTERIORS, Data, load_mixture, load_posterior, named, read_data
from bayesmix.progress import Progress

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["compare_command"]


def compare_command(
    data: DataArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="mixture.json files, or posteriors of these data, .nc or .zarr; without any, posteriors are sampled.",
            show_default=False,
        ),
    ] = None,
    n_components: Annotated[
        str, typer.Option("--n-components", "-k", help="Without files: 3, or 1,2,5, or 1:4.")
    ] = "1:4",
    covariance: Annotated[
        str, typer.Option(help="Without files: structures, such as full,spherical.")
    ] = "full",
    n_warmup: Annotated[
        int, typer.Option(help="Without files: steps of each chain before its draws.")
    ] = 1000,
    n_draws: Annotated[int, typer.Option(help="Without files: draws of each chain.")] = 1000,
    labels: LabelsOption = None,
    features: FeaturesOption = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="The table as a file, .csv or .parquet.")
    ] = None,
    as_json: JsonOption = False,
    key: KeyOption = 0,
) -> None:
    """Put mixtures or posteriors of the same data side by side, the best first.

    Example: bayesmix compare measurements.csv two/mixture.json three/mixture.json

    Mixtures are ranked by BIC on the data, which is meant for the data that they were fitted to. Posteriors are ranked
    by leave-one-out cross-validation, beside their evidence; without files they are sampled by Gibbs under the weak
    prior, one for each number of clusters and structure. Exit codes: 0, done; 2, a file or an option cannot be used.
    """
    import bayesmix as bm

    with bad_input_ends(), whole_results():
        path = check_file(out, TABLES)
        given = list(files or ())
        kinds = {Path(name).suffix for name in given}
        if not kinds <= {".json"} and not kinds <= set(POSTERIORS):
            raise ValueError(
                f"files must all end in .json, or all in .nc or .zarr; they are {', '.join(given)}"
            )
        if len(set(given)) != len(given):
            raise ValueError(f"a file is given twice: {', '.join(given)}")
        read = read_data(data, labels=labels, features=words_of(features))
        if kinds == {".json"}:
            table, what = _mixtures(read, given), "mixtures by BIC on these data"
        else:
            if labels is not None:
                raise ValueError(
                    "--labels goes with mixture.json files; bayesmix sample compares a posterior's clusters"
                )
            options = n_components, covariance, n_warmup, n_draws, key
            trees = _loaded(read, given) if given else _sampled(read, *options)
            table = bm.compare(trees, key=key).astype(float).rename_axis("posterior")
            what = "posteriors by leave-one-out cross-validation"
    if path is not None:
        write({path: table_bytes(table, path.suffix)})
    if as_json:
        emit(
            {"command": "compare", "data": {"name": read.name, "n_rows": len(read.x)}, "key": key}
            | {"table": table.reset_index(), "files": [] if path is None else [path]}
        )
        return
    shown = table.reset_index().map(_text)
    show(f"{read.name}: {read.size}; {what}", shown, ["chosen", *[""] * (len(shown) - 1)])
    if path is not None:
        typer.echo(f"Wrote {path}")


def _mixtures(data: Data, files: list[str]) -> pandas.DataFrame:
    """A row a mixture, as `Fit` has it of a mixture that is taken as it is."""
    import pandas

    from bayesmix.finish import likelihoods
    from bayesmix.results import Fit
    from bayesmix.status import CODE

    rows = {}
    for file in files:
        mixture = load_mixture(file)
        names = named(mixture.feature_names, data.x)
        missing = [name for name in names or () if name not in data.x]
        if missing:
            raise ValueError(f"{file} has a feature {missing[0]!r}, and {data.name} has no such column")
        x = data.x[names] if names else data.x
        if x.shape[1] != mixture.n_features:
            raise ValueError(
                f"{data.name} has {plural(x.shape[1], 'feature')}, and {file} has {mixture.n_features}; choose them by "
                "--features"
            )
        points = x.to_numpy()
        (total, top, entropy), labels = likelihoods(mixture, points, np.ones(len(points)))
        fit = Fit(
            mixture=mixture,
            objective=np.array([total]),
            log_likelihood=total,
            classification_log_likelihood=top,
            entropy=entropy,
            labels=labels,
            n_observations=float(len(points)),
            method="soft",
            n_steps=0,
            code=CODE["converged"],
            status="given",
        )
        rows[file] = {
            "n_components": mixture.n_components,
            "covariance": mixture.structure,
            "log_likelihood": fit.log_likelihood,
            "n_parameters": fit.n_parameters,
            "bic": fit.bic,
            "aic": fit.aic,
            "icl": fit.icl,
            "entropy": fit.entropy,
        }
        agreement = agreement_of(data, labels, mixture.n_components)
        if agreement is not None:
            rows[file]["adjusted_rand_index"] = agreement.index
    table = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("mixture").sort_values("bic")
    table.insert(5, "difference", table["bic"] - table["bic"].iloc[0])
    return table


def _loaded(data: Data, files: list[str]) -> dict[str, xarray.DataTree]:
    """Posteriors of these data."""
    from bayesmix.inputs import as_points

    trees = {}
    for file in files:
        tree = load_posterior(file)
        seen = as_points(tree["observed_data"]["x"], missing=True) if "observed_data" in tree else None
        x = data.x[list(seen.names)] if seen and set(seen.names) <= set(data.x) else data.x
        if seen is None or not np.array_equal(seen.values, x):
            raise ValueError(f"{file} is a posterior of other data than {data.name}")
        trees[file] = tree
    if len(files) < 2:
        raise ValueError(f"compare needs two posteriors at least; {files[0]} is one")
    return trees


def _sampled(
    data: Data, n_components: str, covariance: str, n_warmup: int, n_draws: int, key: int
) -> dict[str, xarray.DataTree]:
    """A posterior by Gibbs for each number of clusters and structure."""
    import bayesmix as bm

    counts = counts_of(n_components, most=len(data.x))
    models = [bm.MixtureModel(k, name, prior="weak") for name in words_of(covariance) or () for k in counts]
    if len(models) < 2:
        raise ValueError(
            "compare needs two posteriors at least; ask for several --n-components or --covariance"
        )
    return {
        f"{model.covariance}, k = {model.n_components}": bm.sample_posterior(
            model, data.x, key=key, method="gibbs", n_warmup=n_warmup, n_draws=n_draws
        )
        for model in Progress("sampling", "posteriors", len(models)).over(models)
    }


def _text(value: Any) -> str:
    if not isinstance(value, float | np.floating):
        return str(value)
    if np.isnan(value):
        return ""
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}" if abs(value) < 10 else f"{value:.3f}"
