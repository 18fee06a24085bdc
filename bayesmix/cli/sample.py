"""`bayesmix sample`: the posterior of a mixture, and whether its draws can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bayesmix.cli.files import Output, check_checkpoint, saved_bytes, write
from bayesmix.cli.outcome import Agreement, Picture, agreement_of, cluster_rows, cross_table
from bayesmix.cli.pages import as_text, posterior_page
from bayesmix.cli.shared import (
    DONE,
    NOT_CLEAN,
    CheckpointOption,
    CovarianceOption,
    DataArgument,
    FeaturesOption,
    FormatOption,
    JsonOption,
    KeyOption,
    LabelsOption,
    OutOption,
    ReportOption,
    bad_input_ends,
    emit,
    say,
    show,
    whole_results,
    words_of,
)
from bayesmix.cli.tables import read_data, require_netcdf

if TYPE_CHECKING:
    import pandas
    import xarray

    from bayesmix.diagnosis import Diagnosis

__all__ = ["sample_command"]

_SHOWN = ["mean", "sd", "2.5%", "97.5%", "ess_bulk", "r_hat"]


def sample_command(
    context: typer.Context,
    data: DataArgument,
    n_components: Annotated[int, typer.Option("--n-components", "-k", help="The number of clusters.")],
    covariance: CovarianceOption = "full",
    prior: Annotated[str, typer.Option(help="weak, hierarchical or lkj.")] = "weak",
    method: Annotated[
        str, typer.Option(help="nuts or gibbs; or a normal approximation, laplace or vi.")
    ] = "nuts",
    n_chains: Annotated[int, typer.Option(help="How many chains.")] = 4,
    n_warmup: Annotated[int, typer.Option(help="Steps of each chain before its draws.")] = 1000,
    n_draws: Annotated[int, typer.Option(help="Draws of each chain.")] = 1000,
    labels: LabelsOption = None,
    features: FeaturesOption = None,
    out: OutOption = None,
    report: ReportOption = None,
    table_format: FormatOption = "csv",
    checkpoint: CheckpointOption = None,
    as_json: JsonOption = False,
    key: KeyOption = 0,
) -> None:
    """Sample the posterior of a mixture, and say in words whether the draws can be trusted.

    Example: bayesmix sample measurements.csv -k 3 --method gibbs --out posterior

    The folder receives posterior.nc (netCDF, for ArviZ), summary.csv, diagnosis.csv, clusters.csv, density.png and
    labels.png. Exit codes: 0, the draws can be trusted; 1, the chains disagree, are short, or the sampler complains:
    everything is still written, to see why; 2, the data or an option cannot be used.
    """
    import bayesmix as bm

    with bad_input_ends(), whole_results():
        output = Output.of(context, out, report, table_format, as_json)
        if output.folder is not None:
            require_netcdf()
        check_checkpoint(context, checkpoint)
        read = read_data(data, labels=labels, features=words_of(features))
        raw = bm.sample_posterior(
            bm.MixtureModel(n_components, covariance, prior=prior),
            read.x,
            key=key,
            method=method,
            n_chains=n_chains,
            n_warmup=n_warmup,
            n_draws=n_draws,
            relabelling=None,
            checkpoint=checkpoint,
        )
    posterior = bm.relabel(raw) if n_components > 1 else raw
    diagnosis = bm.diagnose(posterior)
    complaints = diagnosis.complaints
    trusted = bool((complaints["group"] == "relabelled").all())
    summary = _summary(posterior)
    clusters = _clusters(posterior)
    agreement = agreement_of(read, clusters["cluster"].to_numpy(), n_components)
    if not as_json:
        _say_found(f"{read.name}: {read.size}; k = {n_components}, {method}", diagnosis, summary, agreement)
    pictures = _pictures(raw, posterior)
    files: dict[Path, bytes] = {}
    if output.folder is not None:
        files[output.folder / "posterior.nc"] = saved_bytes(posterior, ".nc")
        files |= output.tables({"summary": summary, "diagnosis": diagnosis.table, "clusters": clusters})
        files |= {output.folder / f"{picture.name}.png": picture.png() for picture in pictures}
    if output.report is not None:
        page = posterior_page(
            read, agreement, diagnosis, trusted, summary, posterior, pictures, output.command
        )
        files[output.report] = page.encode()
    write(files)
    if as_json:
        emit(
            {
                "command": "sample",
                "data": read.document(),
                "n_components": n_components,
                "covariance": posterior["posterior"].attrs["covariance"],
                "prior": prior,
                "method": method,
                "key": key,
                "trusted": trusted,
                "verdict": diagnosis.verdict,
                "diagnosis": diagnosis.table,
                "summary": summary.reset_index(),
                "labels": None if agreement is None else agreement.document(),
                "files": list(files),
            }
        )
    else:
        output.say_written(files, "the draws, their summary and the figures")
    if not trusted:
        say("bayesmix: these draws cannot be trusted, for the reasons above")
    raise typer.Exit(DONE if trusted else NOT_CLEAN)


def _summary(posterior: xarray.DataTree) -> pandas.DataFrame:
    """A row a parameter: mean, standard deviation, 95% interval, effective draws and R-hat; covariances once."""
    import arviz

    table: Any = arviz.summary(
        posterior, var_names=["weights", "means", "covariances"], ci_prob=0.95, ci_kind="eti", round_to="none"
    )
    names = {"eti95_lb": "2.5%", "eti95_ub": "97.5%"}
    _, _, k, d, _ = posterior["posterior"]["covariances"].shape
    twice = np.tile(np.triu(np.ones((d, d), bool), 1).ravel(), k)  # covariances are the last rows
    table = table[np.concatenate([np.ones(len(table) - twice.size, bool), ~twice])]
    return table.astype(float).rename(columns=names).rename_axis("parameter")


def _clusters(posterior: xarray.DataTree) -> pandas.DataFrame:
    """Each row's most probable cluster, and its probability of each: means over the relabelled draws."""
    group = posterior["allocations"]
    r = (
        np.asarray(group["responsibilities"])
        if "responsibilities" in group
        else np.ones((group.sizes["obs_id"], 1))
    )
    return cluster_rows(r.argmax(axis=1), r)


def _say_found(
    title: str, diagnosis: Diagnosis, summary: pandas.DataFrame, agreement: Agreement | None
) -> None:
    few = summary.loc[~summary.index.str.startswith("covariances"), _SHOWN]
    show(title, as_text(few).reset_index())
    typer.echo(diagnosis.verdict)
    if agreement is not None:
        show(f"\n{agreement.sentence}", cross_table(agreement))


def _pictures(raw: xarray.DataTree, posterior: xarray.DataTree) -> list[Picture]:
    from bayesmix import plots

    d = posterior["posterior"].sizes["feature"]
    columns = min(d, 2)
    rows = -(-d // columns)

    def band(axes: Any) -> None:
        cells = np.atleast_1d(axes).ravel()
        plots.plot_density_band(posterior, ax=cells[:d])
        for spare in cells[d:]:
            spare.set_axis_off()

    pictures = [
        Picture(
            "density",
            "Posterior predictive density of each feature with its 90% band, over a histogram of the data.",
            band,
            (rows, columns),
            (4.6 * columns, 3.4 * rows),
        )
    ]
    if raw is not posterior:
        caption = "The clusters' means, draw by draw: as sampled, and with label switching undone."
        pictures.append(
            Picture(
                "labels",
                caption,
                lambda ax: plots.plot_relabelling(raw, posterior, ax=ax),
                (1, 2),
                (9.2, 3.4),
            )
        )
    return pictures
