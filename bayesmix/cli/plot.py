"""`bayesmix plot`: one figure of a mixture or of a posterior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer

from bayesmix.cli.files import SINGLE, check_file, drawn, write
from bayesmix.cli.outcome import clusters_picture
from bayesmix.cli.shared import JsonOption, KeyOption, bad_input_ends, emit, plural
from bayesmix.cli.tables import POSTERIORS, load_mixture, load_posterior, read_data

if TYPE_CHECKING:
    import pandas
    import xarray

    from bayesmix.mixture import GaussianMixture

__all__ = ["KINDS", "plot_command"]

_SUFFIXES = (".png", ".svg", ".pdf")


class _Figure(NamedTuple):
    draw: Callable[[Any], Any]
    panels: tuple[int, int] = (1, 1)
    size: tuple[float, float] = SINGLE


def _clusters(mixture: GaussianMixture, x: pandas.DataFrame | None, key: int) -> _Figure:
    picture = clusters_picture(mixture, x)
    return _Figure(picture.draw, picture.panels, picture.size)


def _density(mixture: GaussianMixture, x: pandas.DataFrame | None, key: int) -> _Figure:
    return _clusters(mixture, None, key)


def _check(mixture: GaussianMixture, x: pandas.DataFrame | None, key: int) -> _Figure:
    from bayesmix import plots
    from bayesmix.checks import check_fit

    check = check_fit(mixture, x, key=key)
    return _grid(
        lambda axes: plots.plot_check(check, ax=axes), mixture.n_components + (mixture.n_features == 1)
    )


def _merging(mixture: GaussianMixture, x: pandas.DataFrame | None, key: int) -> _Figure:
    from bayesmix import plots
    from bayesmix.merging import merge_clusters

    if mixture.n_components == 1:
        raise ValueError("--kind merging needs at least two clusters, and the mixture has one")
    hierarchy = merge_clusters(mixture, x)
    return _grid(lambda axes: plots.plot_merging(hierarchy, ax=axes), 3)


def _band(posterior: xarray.DataTree, x: pandas.DataFrame | None, key: int) -> _Figure:
    from bayesmix import plots

    return _grid(
        lambda axes: plots.plot_density_band(posterior, x, ax=axes), posterior["posterior"].sizes["feature"]
    )


def _coclustering(posterior: xarray.DataTree, x: pandas.DataFrame | None, key: int) -> _Figure:
    from bayesmix import plots
    from bayesmix.allocations import coclustering
    from bayesmix.clustering import partition

    estimate, matrix = partition(posterior, key=key), coclustering(posterior)
    return _Figure(lambda ax: plots.plot_coclustering(matrix, estimate, ax=ax), size=(6.4, 5.6))


def _grid(draw: Callable[[Any], Any], count: int) -> _Figure:
    """So many panels, three a line."""
    columns = min(count, 3)
    rows = -(-count // columns)

    def each(axes: Any) -> None:
        cells = np.atleast_1d(axes).ravel()
        draw(cells[:count])
        for spare in cells[count:]:
            spare.set_axis_off()

    return _Figure(each, (rows, columns), (4.3 * columns, 3.9 * rows))


class _Kind(NamedTuple):
    figure: Callable[[Any, Any, int], _Figure]
    of: str
    needs_data: bool = False


KINDS = {
    "clusters": _Kind(_clusters, "mixture"),
    "density": _Kind(_density, "mixture"),
    "check": _Kind(_check, "mixture", needs_data=True),
    "merging": _Kind(_merging, "mixture", needs_data=True),
    "band": _Kind(_band, "posterior"),
    "coclustering": _Kind(_coclustering, "posterior"),
}


def plot_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MIXTURE", help="A mixture.json, or a posterior, .nc or .zarr.", show_default=False
        ),
    ],
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="The data, as for bayesmix fit.", show_default=False),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="Of a mixture: clusters, density (without data), check, merging; of a posterior: band, coclustering."
        ),
    ] = "clusters",
    out: Annotated[str, typer.Option(metavar="FILE", help="A file, .png, .svg or .pdf.")] = "figure.png",
    as_json: JsonOption = False,
    key: KeyOption = 0,
) -> None:
    """Draw a mixture over data, or what a posterior says.

    Example: bayesmix plot results/mixture.json measurements.csv --kind clusters --out clusters.png

    Columns are found by the names of the features, or by position where these were never named. Exit codes: 0, done;
    2, a file or an option cannot be used.
    """
    from bayesmix.inputs import as_name

    with bad_input_ends():
        row = KINDS[as_name(kind, "--kind", KINDS)]
        path = check_file(out, _SUFFIXES)
        assert path is not None
        if row.needs_data and data is None:
            raise ValueError(f"--kind {kind} needs the data: bayesmix plot {source} DATA --kind {kind}")
        if (Path(source).suffix.lower() in POSTERIORS) != (row.of == "posterior"):
            others = ", ".join(name for name, other in KINDS.items() if other.of != row.of)
            raise ValueError(f"--kind {kind} is of a {row.of}; of {source} there are {others}")
        loaded: Any = (load_mixture if row.of == "mixture" else load_posterior)(source)
        mixture = row.of == "mixture"
        names = loaded.feature_names if mixture else loaded["posterior"]["feature"].values.tolist()
        x = None if data is None else read_data(data, known=names).x
        d = loaded.n_features if mixture else len(names)
        if x is not None and x.shape[1] != d:
            raise ValueError(f"{data} has {plural(x.shape[1], 'feature')}, and {source} has {d}")
        figure = row.figure(loaded, x, key)
    content = drawn(figure.draw, panels=figure.panels, size=figure.size, kind=path.suffix[1:].lower())
    write({path: content})
    if as_json:
        emit({"command": "plot", "source": source, "data": data, "kind": kind, "files": [path]})
    else:
        typer.echo(f"Wrote {path}")
