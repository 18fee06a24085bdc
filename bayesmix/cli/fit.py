"""`bayesmix fit`: Gaussian mixtures by EM, and the number of clusters by BIC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesmix.cli.chosen import finish, finish_without
from bayesmix.cli.files import Output
from bayesmix.cli.outcome import Choice, Picture
from bayesmix.cli.shared import (
    CountsOption,
    CovarianceOption,
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
    show,
    words_of,
)
from bayesmix.cli.tables import Data, read_data
from bayesmix.progress import Progress

if TYPE_CHECKING:
    import pandas

    from bayesmix.results import Fit

__all__ = ["fit_command"]

_CRITERIA = ("bic", "aic", "icl")


def fit_command(
    context: typer.Context,
    data: DataArgument,
    n_components: CountsOption = "1:9",
    covariance: CovarianceOption = "full",
    prior: Annotated[
        str | None, typer.Option(help="weak: the posterior's mode, which keeps clusters from collapsing.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="bic, aic or icl; the lowest clean fit is chosen.")] = "bic",
    n_starts: Annotated[
        int | None, typer.Option(help="Starts of each fit; by default as many as bayesmix.fit runs.")
    ] = None,
    labels: LabelsOption = None,
    missing: MissingOption = None,
    features: FeaturesOption = None,
    out: OutOption = None,
    report: ReportOption = None,
    table_format: FormatOption = "csv",
    as_json: JsonOption = False,
    key: KeyOption = 0,
) -> None:
    """Fit Gaussian mixtures by EM and choose the number of clusters by BIC.

    Example: bayesmix fit measurements.csv --n-components 1:5 --covariance full --out results --report report.html

    The folder receives mixture.json, clusters.csv, clusters.png, bic.png (named after the criterion) and objective.png.
    Rows and clusters are numbered from 0. Exit codes: 0, a mixture was chosen; 1, no fit was clean, and nothing is
    written; 2, the data or an option cannot be used.
    """
    from bayesmix.inputs import as_name

    with bad_input_ends():
        counts_of(n_components)
        as_name(criterion, "--criterion", _CRITERIA)
        output = Output.of(context, out, report, table_format, as_json)
        read = read_data(data, labels=labels, features=words_of(features), missing=missing)
        counts = counts_of(n_components, most=len(read.x))
        fits = _fit_each(read, counts, covariance, prior, n_starts, key, missing)
    clean = [k for k in fits if not fits[k].spurious]
    best = min(clean, key=lambda k: getattr(fits[k], criterion), default=None)
    records = _records(fits, best)
    shown, kinds = _shown(records, criterion)
    reasons = [f"k = {row['n_components']}: {row['reason']}" for row in records if row["reason"]]
    if not as_json:
        show(f"{read.name}: {read.size}; covariance {covariance}", shown, kinds)
        for reason in reasons:
            typer.echo(reason)
    document = {
        "command": "fit",
        "data": read.document(),
        "criterion": criterion,
        "key": key,
        "fits": records,
    }
    if best is None:
        finish_without(
            "none of these fits is clean, for the reasons above, so none is chosen and nothing is "
            "written; ask for fewer clusters, for --prior weak, or for a structure with equal volumes such as "
            "--covariance tied",
            output,
            document,
        )
    record = next(row for row in records if row["chosen"])
    pictures = _pictures(fits, fits[best], criterion)
    finish(
        Choice(fits[best], criterion.upper(), shown, kinds, reasons, record, pictures, {}),
        read,
        output,
        document,
    )


def _fit_each(
    data: Data,
    counts: list[int],
    covariance: str,
    prior: str | None,
    n_starts: int | None,
    key: int,
    missing: str | None,
) -> dict[int, Fit]:
    import bayesmix as bm

    models = [bm.MixtureModel(k, covariance, prior=prior) for k in counts]
    bar = Progress("fitting", "k", len(models))
    return {
        model.n_components: bm.fit(model, data.x, missing=missing, n_starts=n_starts, key=key)
        for model in bar.over(models)
    }


def _records(fits: dict[int, Fit], best: int | None) -> list[dict[str, Any]]:
    """A row per number of clusters, for scripts."""
    from bayesmix.status import NAME

    return [
        {
            "n_components": k,
            "covariance": fit.mixture.structure,
            "log_likelihood": float(fit.log_likelihood),
            "n_parameters": fit.n_parameters,
            "bic": float(fit.bic),
            "aic": float(fit.aic),
            "icl": float(fit.icl),
            "n_steps": fit.n_steps,
            "n_agree": fit.n_agree,
            "n_starts": fit.n_starts,
            "status": NAME[fit.code],
            "spurious": fit.spurious,
            "chosen": k == best,
            "reason": "" if fit.status == NAME[fit.code] else fit.status,
        }
        for k, fit in fits.items()
    ]


def _shown(records: list[dict[str, Any]], criterion: str) -> tuple[pandas.DataFrame, list[str]]:
    """The same for people."""
    import pandas

    rows = [
        {
            "k": str(row["n_components"]),
            "log-likelihood": f"{row['log_likelihood']:.3f}",
            "parameters": str(row["n_parameters"]),
            criterion.upper(): f"{row[criterion]:.3f}",
            "agree": f"{row['n_agree']} of {row['n_starts']}",
            "status": row["status"] + (", chosen" if row["chosen"] else ""),
        }
        for row in records
    ]
    kinds = ["chosen" if row["chosen"] else "dim" if row["spurious"] else "" for row in records]
    return pandas.DataFrame(rows), kinds


def _pictures(fits: dict[int, Fit], best: Fit, criterion: str) -> list[Picture]:
    from bayesmix import plots

    return [
        Picture(
            criterion,
            f"{criterion.upper()} by number of clusters; lower is better.",
            lambda ax: plots.plot_criterion(fits, criterion=criterion, ax=ax),
        ),
        Picture(
            "objective",
            "The objective after each step of the start that won.",
            lambda ax: plots.plot_objective(best, ax=ax),
        ),
    ]
