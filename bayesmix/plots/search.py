"""Which k and which structure: a criterion's curves over all cells of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.gap import CentreSearch
from bayesmix.plots.style import COLORS, MARKERS, new_axes, whole_numbers
from bayesmix.ranking import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_centres", "plot_search"]

_SHOWN = 6  # structures that are drawn in colour


def plot_search(search: Search, *, criterion: str | None = None, ax: Any = None) -> Axes:
    """Draw a criterion against k, a curve per structure: lower is better.

    The structures whose best clean cells are lowest are drawn in colour, the others in grey. Cells that are not clean
    are left out of the curves and drawn as crosses; a ring marks the choice.

    Args:
        search: what `bayesmix.search` returned.
        criterion: another than the one that ranked it.
        ax: an Axes.

    Returns:
        The Axes.
    """
    ax = new_axes(ax)
    criterion = search.criterion if criterion is None else criterion
    rows = [row for row in search.table.to_dict("records") if row["status"] != "impossible"]
    curves: dict[str, dict[int, float]] = {}
    for row in sorted((row for row in rows if row["clean"]), key=lambda row: row["n_components"]):
        curves.setdefault(row["covariance"], {})[row["n_components"]] = row[criterion]
    order = sorted(curves, key=lambda name: min(curves[name].values()))
    for rank, name in enumerate(order):
        curve = curves[name]
        k = range(min(curve), max(curve) + 1)
        style = {"color": "0.8", "linewidth": 1, "marker": ".", "markersize": 4}
        if rank < _SHOWN:
            style = {"color": COLORS[rank], "marker": MARKERS[rank], "markersize": 5, "label": name}
        ax.plot(k, [curve.get(j, np.nan) for j in k], zorder=2 + (rank < _SHOWN) - rank / 100, **style)
    bad = [row for row in rows if not row["clean"] and np.isfinite(row[criterion])]
    if bad:
        k, values = [row["n_components"] for row in bad], [row[criterion] for row in bad]
        ax.plot(k, values, "x", color="0.45", markersize=5, label="not clean", zorder=1.5)
    if order:
        name = order[0]
        k, lowest = min(curves[name].items(), key=lambda item: item[1])
        label = f"best: {name}, k = {k}"
        ax.plot(k, lowest, "o", color="black", markersize=13, fillstyle="none", label=label, zorder=5)
        # The highest quarter, such as one cluster or spheres, would flatten all the others.
        high = np.quantile([value for curve in curves.values() for value in curve.values()], 0.75)
        ax.set_ylim(lowest - 0.06 * (high - lowest + 1e-12), high + 0.2 * (high - lowest + 1e-12))
    ax.set_xlabel("number of clusters k")
    ax.set_ylabel(f"{criterion.upper().replace('_', ', ')} (lower is better)")
    handles, labels = ax.get_legend_handles_labels()
    ranked = sorted(zip(labels, handles), key=lambda p: order.index(p[0]) if p[0] in order else 99)
    ax.legend(
        [h for _, h in ranked], [label for label, _ in ranked], fontsize="small", ncols=2, frameon=False
    )
    whole_numbers(ax)
    return ax


def plot_centres(search: CentreSearch, *, ax: Any = None) -> Axes:
    """Draw the gap with its errors, or the silhouette, against the number of centres; a ring marks the choice.

    Args:
        search: what `bayesmix.search(x, covariance="kmeans")` returned.
        ax: an Axes.

    Returns:
        The Axes.
    """
    ax = new_axes(ax)
    table = search.table[search.table["status"] != "impossible"].set_index("n_components")
    values = table[search.criterion]
    errors = table["gap_error"] if search.criterion == "gap" else None
    ax.errorbar(values.index, values, yerr=errors, color=COLORS[0], marker="o", capsize=3)
    best = search.best.mixture.n_components
    ax.plot(
        best, values[best], "o", color="black", markersize=13, fillstyle="none", label=f"best: k = {best}"
    )
    ax.set_xlabel("number of centres k")
    ax.set_ylabel(f"{search.criterion} (higher is better)")
    ax.legend(frameon=False)
    whole_numbers(ax)
    return ax
