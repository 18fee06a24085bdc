"""A mixture over its data: one panel for one or two features, a grid of all pairs for more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesmix.inputs import as_points
from bayesmix.mixture import GaussianMixture
from bayesmix.plots.style import ellipse, mixed_colors, new_axes, new_figure, style_of
from bayesmix.spurious import spacing

__all__ = ["MOST_FEATURES", "bins", "draw_ellipses", "limits", "plot_clusters"]

_MOST_POINTS = 10_000
MOST_FEATURES = 6
_GRID = 120


def plot_clusters(
    mixture: GaussianMixture, x: Any = None, *, features: Sequence[Any] | None = None, ax: Any = None
) -> Any:
    """Draw a mixture, over the data if there are any.

    Two features: points in the mixed colours of their responsibilities, each cluster's ellipses at one
    (solid) and two (dashed) standard deviations, and contours of the density, each a third of the one inside.
    One feature: a histogram, each component (dashed, its number at the top) and their sum. More: a grid of all
    pairs, whose colours come from all features, and whose ellipses and contours from each pair's marginal.

    Args:
        mixture: what to draw.
        x: data (n, d); above 10,000 rows evenly spaced ones are drawn as points.
        features: which features, by index or name; all by default, the first six where there are more.
        ax: an Axes, or for a grid an array of them (number of features in each direction).

    Returns:
        The Axes; for a grid the array of them.

    Raises:
        ValueError: a batch of mixtures, data that do not fit the mixture, or axes that do not fit the grid.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> mixture = bm.GaussianMixture.of([0.6, 0.4], [[0, 0], [4, 4]], [1.0, 2.0], covariance="VII")
        >>> ax = plots.plot_clusters(mixture, ax=Figure().subplots())
        >>> len(ax.patches)
        4
    """
    if mixture.means.ndim != 2:
        raise ValueError(
            f"plot_clusters draws one mixture; this is a batch, with means {mixture.means.shape}"
        )
    shown = list(range(min(mixture.n_features, MOST_FEATURES))) if features is None else list(features)
    small = mixture.marginal(shown)
    names = small.feature_names
    columns = [mixture._feature(f) for f in shown]
    cloud = None
    if x is not None:
        points, given, _ = as_points(x, n_features=mixture.n_features, known=mixture.feature_names)
        named = names or tuple(given[j] for j in columns)
        step = -(-points.shape[0] // _MOST_POINTS)
        cloud = _Cloud(points[:, columns], step, mixture.responsibilities(points[::step]))
    else:
        named = names or tuple(f"x{j}" for j in columns)
    if len(shown) > 2:
        axes = _pair_grid(small, cloud, named, ax)
        if features is None and len(shown) < mixture.n_features:
            axes[0, 1].text(0, 1, f"first {len(shown)} of {mixture.n_features} features", va="top")
        return axes
    ax = new_axes(ax)
    _PANELS[len(shown)](ax, small, cloud)
    _name_axes(ax, *named)
    _legend(ax, small)
    return ax


class _Cloud(NamedTuple):
    """The data of a figure: all rows of the features drawn, every how many-th is a point, and their r."""

    points: np.ndarray
    step: int
    r: np.ndarray


def _name_axes(ax: Any, first: str, second: str = "density") -> None:
    ax.set_xlabel(first)
    ax.set_ylabel(second)


def _legend(target: Any, mixture: GaussianMixture, **where: Any) -> None:
    """A row per cluster, with its weight; above 10 clusters the numbers in the panel must do."""
    from matplotlib.lines import Line2D

    if not 1 < mixture.n_components <= 10:
        return
    handles = []
    for cluster, weight in enumerate(np.asarray(mixture.weights)):
        color, marker = style_of(cluster)
        handles.append(
            Line2D([], [], color=color, marker=marker, linestyle="", label=f"{cluster}  ({weight:.2g})")
        )
    where = where or {"loc": "best"}
    target.legend(handles=handles, title="cluster (weight)", frameon=False, **where)


def _scatter(ax: Any, xy: np.ndarray, r: np.ndarray) -> None:
    """Points in the mixed colours of their clusters, with the marker of the most probable one."""
    colors, hard = mixed_colors(r), r.argmax(axis=1)
    size = float(np.clip(9000 / len(xy), 4, 26))
    for cluster in np.unique(hard):
        mine = hard == cluster
        marker = style_of(int(cluster))[1]
        ax.scatter(
            *xy[mine].T, c=colors[mine], marker=marker, s=size, alpha=0.75, linewidths=0, rasterized=True
        )


def limits(
    values: np.ndarray, mixture: GaussianMixture, feature: int, times: float = 2.2
) -> tuple[float, float]:
    """All data, all clusters out to so many standard deviations, and a little air."""
    mean = np.asarray(mixture.means)[:, feature]
    reach = times * np.sqrt(mixture.covariances[:, feature, feature])
    low = min((mean - reach).min(), values.min(initial=math.inf))
    high = max((mean + reach).max(), values.max(initial=-math.inf))
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _draw_pair(ax: Any, mixture: GaussianMixture, cloud: _Cloud | None) -> None:
    data = np.empty((0, 2)) if cloud is None else cloud.points
    if cloud is not None:
        _scatter(ax, cloud.points[:: cloud.step], cloud.r)
    ends = [limits(data[:, j], mixture, j) for j in range(2)]
    ax.set(xlim=ends[0], ylim=ends[1])
    u, v = (np.linspace(*end, _GRID) for end in ends)
    grid = np.stack(np.meshgrid(u, v), axis=-1)
    density = mixture.log_density(grid.reshape(-1, 2)).reshape(_GRID, _GRID)
    levels = density.max() - math.log(3) * np.arange(6, 0, -1)
    ax.contour(u, v, density, levels=levels, colors="0.45", linewidths=0.7, linestyles="solid", zorder=1)
    for cluster in range(mixture.n_components):
        draw_ellipses(ax, mixture, cluster)


def draw_ellipses(ax: Any, mixture: GaussianMixture, cluster: int) -> None:
    """At one and two standard deviations, and the cluster's number."""
    covariance = np.asarray(mixture.covariances, np.float64)[cluster]
    mean, color = np.asarray(mixture.means)[cluster], style_of(cluster)[0]
    for times, line in ((1, "-"), (2, "--")):
        ax.add_patch(ellipse(mean, covariance, times, edgecolor=color, linestyle=line, linewidth=1.6))
    _number(ax, cluster, *mean)


def _number(ax: Any, cluster: int, across: float, up: float, lift: float = 0) -> None:
    """The cluster's number at that place, lifted by so many points."""
    from matplotlib.patheffects import withStroke

    style = {"weight": "bold", "path_effects": [withStroke(linewidth=3, foreground="white")], "clip_on": True}
    place = {"xytext": (0, lift), "textcoords": "offset points", "ha": "center", "va": "center"}
    ax.annotate(str(cluster), (across, up), **place, **style)


def _draw_single(ax: Any, mixture: GaussianMixture, cloud: _Cloud | None) -> None:
    data = np.empty(0) if cloud is None else cloud.points[:, 0]
    if cloud is not None:
        ax.hist(data, bins=bins(data, mixture), density=True, color="0.85", edgecolor="white", linewidth=0.5)
    ends = limits(data, mixture, 0)
    grid = np.linspace(*ends, 4 * _GRID)
    parts = np.exp(mixture.log_joint(grid))
    ax.plot(grid, parts.sum(axis=1), color="0.35", linewidth=2.2)
    for cluster in range(mixture.n_components):
        color, marker = style_of(cluster)
        part = np.where(parts[:, cluster] > 0.01 * parts[:, cluster].max(), parts[:, cluster], math.nan)
        ax.plot(grid, part, "--", color=color)
        top = grid[np.nanargmax(part)], np.nanmax(part)
        ax.plot(*top, marker, color=color, markersize=7)
        _number(ax, cluster, *top, lift=10)
    ax.margins(y=0.15)  # for the number above the highest
    ax.set_xlim(ends)
    ax.set_ylim(bottom=0)


def bins(data: np.ndarray, mixture: GaussianMixture) -> np.ndarray:
    """Bins half a standard deviation of the narrowest cluster wide, aligned with a grid of values."""
    span = float(np.ptp(data)) or 1.0
    narrowest = float(np.sqrt(mixture.covariances.min()))
    width = span / np.clip(2 * span / narrowest, 8, min(60, 4 * math.sqrt(data.size) + 8))
    grid = spacing(data)
    width = max(1, round(width / grid)) * grid if grid > 0 and span < 200 * grid else width
    return data.min() - grid / 2 + width * np.arange(math.ceil((span + grid) / width) + 1)


_PANELS = {1: _draw_single, 2: _draw_pair}


def _pair_grid(mixture: GaussianMixture, cloud: _Cloud | None, names: tuple[str, ...], ax: Any) -> np.ndarray:
    """Marginals on the diagonal, pairs below it, nothing above."""
    d = mixture.n_features
    if ax is None:
        ax = new_figure(d, d, (2.4, 2.2))
    axes: Any = np.asarray(ax)
    if axes.shape != (d, d):
        raise ValueError(f"{d} features need ax as a ({d}, {d}) array of Axes, not {axes.shape}")
    for i, j in np.ndindex(d, d):
        panel, shown = axes[i, j], [i] if i == j else [j, i]
        if j > i:
            panel.set_axis_off()
            continue
        part = None if cloud is None else cloud._replace(points=cloud.points[:, shown])
        _PANELS[len(shown)](panel, mixture.marginal(shown), part)
        if i == j:
            panel.set_yticks([])
        bottom, left = i == d - 1, j == 0 and i > 0
        _name_axes(panel, names[j] if bottom else "", names[i] if left else "")
        panel.tick_params(labelbottom=bottom, labelleft=left)
    _legend(axes[0, -1], mixture, loc="upper right")
    return axes
