"""How a fit got where it is, and which number of clusters a criterion prefers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.inputs import as_name
from bayesmix.plots.style import COLORS, MARKERS, new_axes, whole_numbers
from bayesmix.results import Fit

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["plot_criterion", "plot_objective"]

_FLAT = 1e-3  # nats; what differs by less is rounding, and no reason to stretch the axis
_CRITERIA = {"bic": "BIC", "aic": "AIC", "icl": "ICL"}


def plot_objective(fit: Fit, *, ax: Any = None) -> Axes:
    """Draw the objective, in nats, after each step of each start; the one that won is in colour.

    Starts that lead to the same optimum meet at one height; those that end lower are local optima. Only the winner is
    taken to its end where the data are many. The vertical axis begins where the lowest start ends, and a little below.

    Args:
        fit: what `bayesmix.fit` or `bayesmix.kmeans` returned.
        ax: an Axes.

    Returns:
        The Axes.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> fit = bm.kmeans([0.0, 0.1, 0.2, 9.8, 9.9, 10.0, 10.1], 2)
        >>> ax = plots.plot_objective(fit, ax=Figure().subplots())
        >>> len(ax.lines) == len(fit.traces)
        True
    """
    ax = new_axes(ax)
    objective = np.asarray(fit.objective)
    first = 0 if fit.method == "annealed" else fit.n_steps + 1 - objective.size
    others = [trace for trace in fit.traces if not np.array_equal(trace[:-1], objective[:-1])]
    marker = "o" if objective.size <= 40 else ""
    behind = [
        ax.plot(np.arange(len(trace)) + first, trace, color="0.6", linewidth=1, zorder=1.5)[0]
        for trace in others
    ]
    (won,) = ax.plot(
        np.arange(objective.size) + first, objective, color=COLORS[0], marker=marker, markersize=4
    )
    if others:
        behind[0].set_label(f"{len(others)} other start{'s' * (len(others) > 1)}")
        won.set_label("the start that won")
        ax.legend(frameon=False, loc="lower right")
    ends = [trace[-1] for trace in (*others, objective) if len(trace)]
    if len(objective) > 1 and np.isfinite(ends).all():
        room = max(max(ends) - min(ends), 0.35 * (max(ends) - objective[0]), _FLAT)
        ax.set_ylim(min(ends) - room, max(ends) + 0.08 * room)
    ax.set_xlabel("step of the last level" if fit.method == "annealed" else "step")
    ax.set_ylabel("objective (free energy), nats")
    ax.set_title(f"{fit.mixture.structure}, k = {fit.mixture.n_components}, {fit.method} responsibilities")
    whole_numbers(ax)
    ax.ticklabel_format(axis="y", useOffset=False, style="plain")
    return ax


def plot_criterion(
    fits: Mapping[int, Fit] | pandas.DataFrame, *, criterion: str = "bic", ax: Any = None
) -> Axes:
    """Draw a criterion against the number of clusters, a line per covariance structure; lower is better.

    Spurious fits are hollow and off the line; one outside the range of the clean fits sits on the edge. A
    ring marks the lowest clean fit.

    Args:
        fits: a `Fit` for each number of clusters; or a table with the columns `n_components`, `covariance`,
            `spurious` and the criterion.
        criterion: "bic", "aic" or "icl".
        ax: an Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: no such criterion, no fits, or a table that lacks a column.
    """
    as_name(criterion, "criterion", _CRITERIA)
    rows = _rows(fits, criterion)
    ax = new_axes(ax)
    clean = [row for row in rows if not row.spurious and math.isfinite(row.value)]
    low, high = _range([row.value for row in clean or rows])
    ax.set_ylim(low, high)
    structures = list(dict.fromkeys(row.structure for row in rows))
    for index, structure in enumerate(structures):
        style = {"color": COLORS[index % 7], "marker": MARKERS[index % 7], "markersize": 6}
        line = sorted((row.k, row.value) for row in clean if row.structure == structure)
        ax.plot(*np.transpose(line or [(math.nan, math.nan)]), label=structure, **style)
        off = [
            (row.k, np.clip(row.value, low, high))
            for row in rows
            if row.spurious and row.structure == structure
        ]
        if off:
            ax.plot(*np.transpose(off), linestyle="", fillstyle="none", clip_on=False, **style)
    if any(row.spurious for row in rows):
        ax.plot([], [], "o", color="0.3", fillstyle="none", label="spurious, never chosen")
    if clean:
        best = min(clean, key=lambda row: row.value)
        label = f"lowest: k = {best.k}"
        ax.plot(best.k, best.value, "o", color="black", markersize=14, fillstyle="none", label=label)
    ax.set_xlabel("number of clusters k")
    ax.set_ylabel(f"{_CRITERIA[criterion]} (lower is better)")
    whole_numbers(ax)
    ax.ticklabel_format(axis="y", useOffset=False, style="plain")
    ax.legend(frameon=False)
    return ax


class _Row(NamedTuple):
    k: int
    structure: str
    value: float
    spurious: bool


def _rows(fits: Any, criterion: str) -> list[_Row]:
    if isinstance(fits, Mapping):
        rows = [
            _Row(int(k), fit.mixture.structure, float(getattr(fit, criterion)), fit.spurious)
            for k, fit in fits.items()
        ]
    else:
        columns = ["n_components", "covariance", criterion, "spurious"]
        missing = [name for name in columns if name not in fits]
        if missing:
            raise ValueError(f"fits must be a mapping of k to Fit or a table; the table lacks {missing}")
        rows = [
            _Row(int(k), str(s), float(v), bool(off)) for k, s, v, off in zip(*(fits[c] for c in columns))
        ]
    if not rows:
        raise ValueError("fits is empty, so there is nothing to draw")
    return rows


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    margin = 0.08 * (max(finite) - min(finite)) or 1.0
    return min(finite) - margin, max(finite) + margin
