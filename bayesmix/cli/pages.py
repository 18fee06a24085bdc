"""What a report says: the sections of a page about a fit or a posterior, on `bayesmix.report`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix import report
from bayesmix.cli.outcome import Agreement, Choice, Picture, cross_table
from bayesmix.cli.shared import plural
from bayesmix.cli.tables import Data
from bayesmix.report import Html

if TYPE_CHECKING:
    import pandas
    import xarray

    from bayesmix.diagnosis import Diagnosis
    from bayesmix.mixture import GaussianMixture
    from bayesmix.results import Fit

__all__ = ["agreement_section", "choice_page", "data_section", "as_text", "drawings", "now", "posterior_page"]

_MOST_PARAMETERS = 400  # whose standard errors a report has: each takes a pass over the data
_MOST_ROWS = 50_000  # that a report checks by simulation
_FIRST = 6
_FORMS = {"ess_bulk": ".0f", "ess_tail": ".0f", "r_hat": ".3f"}


def choice_page(
    choice: Choice, data: Data, agreement: Agreement | None, pictures: list[Picture], command: str
) -> str:
    """The page about a search and the mixture that it chose."""
    fit, mixture = choice.fit, choice.fit.mixture
    chosen = choice.kinds.index("chosen")
    numbers = {
        "clusters": mixture.n_components,
        "covariance": mixture.structure,
        "rows": f"{len(data.x):,}",
        "features": data.x.shape[1],
    }
    numbers |= {name: choice.shown[name][chosen] for name in ("log-likelihood", choice.criterion)}
    if agreement is not None:
        numbers["adjusted Rand index"] = f"{agreement.index:.3f}"
    trust = f"{plural(fit.n_agree, 'start')} of {fit.n_starts} reached this optimum; status: {fit.status}."
    header = [
        report.paragraph(f"{choice.headline}, covariance {mixture.structure}.", "lead"),
        report.paragraph(trust, "" if fit.converged else "warn"),
        report.facts(numbers),
        report.code(command),
    ]
    sections = [
        report.section("The clusters", _clusters(pictures[0], mixture)),
        *agreement_section(agreement),
        report.section("How it was chosen", *_how(choice), drawings(pictures[1:])),
        report.section("How sure are these numbers?", *_errors(fit, data.x)),
        report.section("Is the model any good?", *_check(fit, data.x)),
        data_section(data),
    ]
    return report.page(f"Gaussian mixture of {Path(data.name).name}", header, sections, made=now())


def posterior_page(
    data: Data,
    agreement: Agreement | None,
    diagnosis: Diagnosis,
    trusted: bool,
    summary: pandas.DataFrame,
    posterior: xarray.DataTree,
    pictures: list[Picture],
    command: str,
) -> str:
    """The page about a posterior."""
    sizes, known = posterior["posterior"].sizes, posterior["posterior"].attrs
    numbers = {
        "clusters": sizes["cluster"],
        "covariance": known["covariance"],
        "prior": known["prior"].rpartition(", ")[2],
        "method": known["method"],
        "chains × draws": f"{sizes['chain']} × {sizes['draw']:,}",
        "rows": f"{len(data.x):,}",
        "features": data.x.shape[1],
    }
    if agreement is not None:
        numbers["adjusted Rand index"] = f"{agreement.index:.3f}"
    words = "The draws can be trusted." if trusted else "The draws cannot be trusted."
    header = [
        report.paragraph(words, "lead"),
        report.paragraph(diagnosis.verdict, "" if trusted else "warn"),
        report.facts(numbers),
        report.code(command),
    ]
    caption = "Posterior means, standard deviations and 95% intervals; effective draws, R-hat and Monte-Carlo errors"
    table = diagnosis.table
    kinds = ["chosen" if row in diagnosis.complaints.index else "" for row in table.index]
    sections = [
        report.section("The parameters", *_estimates(summary, caption)),
        report.section("Figures", drawings(pictures)),
        *agreement_section(agreement),
        report.section(
            "Can the draws be trusted?",
            report.paragraph("What labels cannot touch comes first; complaints are bold."),
            report.table(as_text(table), "Quantity by quantity", kinds=kinds),
        ),
        data_section(data),
    ]
    return report.page(
        f"Posterior of a Gaussian mixture of {Path(data.name).name}", header, sections, made=now()
    )


def now() -> datetime:
    return datetime.now(UTC)


def as_text(frame: pandas.DataFrame, digits: int = 4) -> pandas.DataFrame:
    """Numbers with so many digits, or as many as the column deserves; what is missing as a dash."""

    def cell(value: Any, form: str) -> str:
        if isinstance(value, float | np.floating):
            return "–" if np.isnan(value) else format(value, form)
        return str(value)

    text = frame.astype(object)
    for place, name in enumerate(frame.columns):
        form = _FORMS.get(name, f".{digits}g")
        text.isetitem(place, [cell(value, form) for value in frame.iloc[:, place]])
    return text


def drawings(pictures: Iterable[Picture]) -> Html:
    """Figures side by side; one with several panels takes the whole width."""
    return report.beside(*map(_drawing, pictures))


def _drawing(picture: Picture) -> Html:
    return report.figure(picture.svg(), picture.caption, wide=picture.panels != (1, 1))


def data_section(data: Data) -> Html:
    """How many rows and columns, each column in five numbers, and the first rows."""
    columns: Any = data.x.agg(["mean", "std", "min", "median", "max"]).T.rename(columns={"std": "sd"})
    first: Any = data.x.head(_FIRST)
    if data.labels is not None:
        first = first.assign(**{f"{data.column} (left out of the fit)": data.labels[:_FIRST]})
    return report.section(
        "The data",
        report.paragraph(f"{data.name}: {data.size}{'' if data.n_missing else ', none missing'}."),
        report.table(as_text(columns).rename_axis("feature"), "Each feature"),
        report.table(as_text(first, 6).rename_axis("row"), "The first rows"),
    )


def agreement_section(agreement: Agreement | None) -> list[Html]:
    if agreement is None:
        return []
    counts = report.table(cross_table(agreement), f"Rows of each {agreement.column} in each cluster")
    return [report.section("Beside the known classes", report.paragraph(agreement.sentence), counts)]


def _clusters(picture: Picture, mixture: GaussianMixture) -> Html:
    return report.beside(_drawing(picture), report.group(*_parameters(mixture)))


def _parameters(mixture: GaussianMixture) -> list[Html]:
    """Weights, means and standard deviations, a column a cluster; correlations on request."""
    summary = as_text(mixture.summary()).T.rename_axis("parameter")
    summary.columns = [f"cluster {k}" for k in summary.columns]
    pieces = [
        report.table(summary, "Weight, mean and standard deviation of each cluster, in the data's units")
    ]
    if mixture.n_features > 1:
        names = list(mixture.feature_names or (f"x{j}" for j in range(mixture.n_features)))
        pieces.append(report.details("Correlations within clusters", *_correlations(mixture, names)))
    return pieces


def _correlations(mixture: GaussianMixture, names: list[str]) -> list[Html]:
    import pandas

    tables = []
    for k, covariance in enumerate(np.asarray(mixture.covariances)):
        deviation = np.sqrt(np.diag(covariance))
        values = pandas.DataFrame(covariance / deviation / deviation[:, None], names, names)
        tables.append(report.table(as_text(values, 3).rename_axis("feature"), f"Cluster {k}"))
    return tables


def _how(choice: Choice) -> list[Html]:
    words = (
        f"Of {plural(len(choice.shown), 'fit')} the clean one with the lowest {choice.criterion} is chosen."
    )
    pieces = [report.paragraph(words), report.table(choice.shown, "All fits", kinds=choice.kinds)]
    if choice.reasons:
        pieces.append(
            report.details("What is wrong with some of them", *map(report.paragraph, choice.reasons))
        )
    return pieces


def _errors(fit: Fit, x: pandas.DataFrame) -> list[Html]:
    """Standard errors from the observed information, or why there are none."""
    from bayesmix.information import standard_errors

    if fit.n_parameters > _MOST_PARAMETERS:
        why = f"there are {fit.n_parameters} parameters, and a report computes at most {_MOST_PARAMETERS}"
        return [report.paragraph(f"No standard errors: {why}; use bayesmix.bootstrap.")]
    try:
        table = standard_errors(fit, x).summary()
    except ValueError as error:
        return [report.paragraph(f"No standard errors: {error}.", "warn")]
    words = (
        "Standard errors come from the observed information, the curvature of the log-likelihood at the fit, and say "
        "nothing of the choice of k."
    )
    caption = "Estimates with standard errors and normal 95% intervals"
    return [report.paragraph(words), *_estimates(table, caption)]


def _estimates(table: pandas.DataFrame, caption: str) -> list[Html]:
    """A row a parameter; covariances, which are many, on request."""
    text: Any = as_text(table).rename_axis("parameter")
    spread = text.index.str.startswith("covariance")
    return [
        report.table(text[~spread], caption),
        report.details("Covariances", report.table(text[spread], caption)),
    ]


def _check(fit: Fit, x: pandas.DataFrame) -> list[Html]:
    """The data beside data sets that were simulated from the mixture."""
    from bayesmix import plots
    from bayesmix.checks import check_fit

    if len(x) > _MOST_ROWS:
        return [
            report.paragraph(
                f"Not checked: a report simulates at most {_MOST_ROWS:,} rows; use bayesmix.check_fit."
            )
        ]
    if fit.n_missing:
        return [report.paragraph("Not checked: rows with missing cells have no distance from their cluster.")]
    check = check_fit(fit, x)
    differs = any(one.differs for one in check.checks.values())
    count = len(check.distances) + (check.transform is not None)
    columns = min(count, 2)
    rows = -(-count // columns)

    def draw(axes: Any) -> None:
        cells = np.atleast_1d(axes).ravel()
        plots.plot_check(check, ax=cells[:count])
        for spare in cells[count:]:
            spare.set_axis_off()

    caption = "Distances of each cluster's points from its mean, beside those of simulated data."
    picture = Picture("check", caption, draw, (rows, columns), (4.0 * columns, 3.6 * rows))
    words = (
        f"{check.n_draws} data sets of the same size were simulated from the mixture: {check.status}. A small tail "
        "probability says that the data differ there; the fit has seen these data, so the check is lenient."
    )
    return [
        report.paragraph(words, "warn" if differs else ""),
        drawings([picture]),
        report.table(as_text(check.summary(), 3), "Checks, and where 95% of simulated data sets are"),
        report.details("Rows that fit worst", report.table(as_text(check.worst, 3), "Rows that fit worst")),
    ]
