"""Which k and which structure: a criterion's curves over all cells of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.gap import CentreSearch
from bayesmix.inputs import as_name
from bayesmix.plots.style import COLORS, MARKERS, new_axes, whole_numbers
from bayesmix.ranking import CRITERIA, Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_centres", "plot_search"]

_SHOWN = 6  # structures that are drawn in colour
_FEW = 12  # cells that are drawn whole, however high they are


def plot_search(search: Search, *, criterion: str | None = None, ax: Any = None) -> Axes:
    """Draw a criterion against k, a curve per structure: lower is better.

    The structures whose best clean cells are lowest are drawn in colour, the others in grey. Of more than 12 clean
    cells the highest quarter may lie above the axes. Cells that are not clean are left out of the curves and drawn as
    crosses, on the edge where they lie beyond it; a ring marks the choice. A criterion that is not finite is not drawn.

    Args:
        search: what `bayesmix.search` returned.
        criterion: another than the one that ranked it.
        ax: an Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: no such criterion.
    """
    criterion = as_name(search.criterion if criterion is None else criterion, "criterion", CRITERIA)
    ax = new_axes(ax)
    # A search of which nothing could be fitted has no column for the criterion.
    rows = [row for row in search.table.to_dict("records") if np.isfinite(row.get(criterion, np.nan))]
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
    if order:
        k, lowest = min(curves[order[0]].items(), key=lambda item: item[1])
        label = f"best: {order[0]}, k = {k}"
        ax.plot(k, lowest, "o", color="black", markersize=13, fillstyle="none", label=label, zorder=5)
        ax.set_ylim(_limits([list(curves[name].values()) for name in order]))
    bad = [row for row in rows if not row["clean"]]
    if bad:
        k, values = [row["n_components"] for row in bad], [row[criterion] for row in bad]
        values = np.clip(values, *ax.get_ylim()) if order else values
        ax.plot(k, values, "x", color="0.45", markersize=5, label="not clean", zorder=2.6, clip_on=False)
    ax.set_xlabel("number of clusters k")
    ax.set_ylabel(f"{criterion.upper().replace('_', ', ')} (lower is better)")
    handles, labels = ax.get_legend_handles_labels()
    ranked = sorted(zip(labels, handles), key=lambda p: order.index(p[0]) if p[0] in order else 99)
    ax.legend(
        [h for _, h in ranked], [label for label, _ in ranked], fontsize="small", ncols=2, frameon=False
    )
    whole_numbers(ax)
    return ax


def _limits(curves: list[list[float]]) -> tuple[float, float]:
    """Low and high for curves, the best first: of many cells three quarters, and the lowest of each coloured curve."""
    values = np.concatenate(curves)
    lowest, high = values.min(), values.max()
    if values.size > _FEW:
        # The highest quarter, such as one cluster or spheres, would flatten all the others.
        high = max(np.quantile(values, 0.75), *(min(curve) for curve in curves[:_SHOWN]))
    span = high - lowest
    if span <= 1e-6 * abs(high):  # one cell, or cells that differ by rounding
        span = 0.1 * abs(high) or 1.0
    return lowest - 0.06 * span, high + 0.2 * span


def plot_centres(search: CentreSearch, *, ax: Any = None) -> Axes:
    """Draw the gap with its errors, or the silhouette, against the number of centres; a ring marks the choice.

    Args:
        search: what `bayesmix.search(x, covariance="kmeans")` returned.
        ax: an Axes.

    Returns:
        The Axes.
    """
    ax = new_axes(ax)
    name = search.criterion
    table = search.table.reindex(columns=["n_components", name, "gap_error"]).dropna(subset=[name])
    if len(table):  # else nothing could be fitted, or one centre only, which has no silhouette
        values = table.set_index("n_components")[name]
        errors = table["gap_error"] if name == "gap" else None
        ax.errorbar(values.index, values, yerr=errors, color=COLORS[0], marker="o", capsize=3)
        best = search.best.mixture.n_components
        label = f"best: k = {best}"
        ax.plot(best, values[best], "o", color="black", markersize=13, fillstyle="none", label=label)
        ax.legend(frameon=False)
    ax.set_xlabel("number of centres k")
    ax.set_ylabel(f"{name} (higher is better)")
    whole_numbers(ax)
    return ax
