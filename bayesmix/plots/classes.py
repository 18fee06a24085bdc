"""Which cluster each point goes to, and how doubtful that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.mixture import GaussianMixture
from bayesmix.plots.clusters import limits
from bayesmix.plots.hills import chosen, rows_of
from bayesmix.plots.style import ellipse, new_axes, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_classification", "plot_uncertainty"]

_GRID = 200
_LARGEST = 90.0  # square points, of a point that could be in any cluster


def plot_classification(
    mixture: GaussianMixture, x: Any, *, features: Sequence[Any] | None = None, ax: Any = None
) -> Axes:
    """Draw each point in the colour and marker of its most probable cluster, and where one gives way to the next.

    Two features: each cluster's ground is shaded, up to the border on which the two most probable ones tie, and its
    ellipse is at one standard deviation. A mixture of more features classifies by all of them, so that borders in two
    would mislead: ellipses only. One feature: a row per cluster.

    Args:
        mixture: that classifies.
        x: data (n, d).
        features: one or two, by index or name; the first two by default.
        ax: an Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: a batch of mixtures, more than two features, or data that do not fit the mixture.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> mixture = bm.GaussianMixture.of([0.6, 0.4], [[0, 0], [4, 4]], [1.0, 2.0], covariance="VII")
        >>> ax = plots.plot_classification(mixture, [[0, 0], [1, 0], [4, 4]], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['0  (2)', '1  (1)']
    """
    small, data, r, ax = _prepare(mixture, x, features, ax)
    labels = r.argmax(axis=1)
    if data.shape[1] == 2:
        ends = [limits(data[:, j], small, j) for j in range(2)]
        if mixture.n_features == 2 and mixture.n_components > 1:
            _shade(ax, small, ends)
        ax.set(xlim=ends[0], ylim=ends[1])
        _draw_ellipses(ax, small)
    for cluster in np.unique(labels):
        color, marker = style_of(int(cluster))
        mine = data[labels == cluster]
        across = mine[:, 1] if mine.shape[1] == 2 else np.full(len(mine), cluster)
        ax.scatter(
            mine[:, 0], across, color=color, marker=marker, s=20, linewidths=0.4, edgecolors="white",
            label=f"{cluster}  ({len(mine)})", rasterized=True,
        )  # fmt: skip
    if data.shape[1] == 1:
        ax.set(ylabel="cluster", yticks=range(mixture.n_components), ylim=(-0.7, mixture.n_components - 0.3))
    if mixture.n_components <= 10:
        ax.legend(title="cluster (points)", frameon=False)
    return ax


def plot_uncertainty(
    mixture: GaussianMixture, x: Any, *, features: Sequence[Any] | None = None, ax: Any = None
) -> Axes:
    """Draw how doubtful each point's cluster is: 1 - max r, the probability that its most probable one is wrong.

    Two features: the area of a point is that probability, and the darker the doubtfuller. One feature: its height.

    Args:
        mixture: that classifies, by all of its features.
        x: data (n, d).
        features: one or two to draw, by index or name; the first two by default.
        ax: an Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: a batch of mixtures, more than two features, or data that do not fit the mixture.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> mixture = bm.GaussianMixture.of([0.6, 0.4], [[0, 0], [4, 4]], [1.0, 2.0], covariance="VII")
        >>> ax = plots.plot_uncertainty(mixture, [[0, 0], [1, 0], [4, 4]], ax=Figure().subplots())
        >>> ax.get_legend().get_title().get_text()
        '1 - max r'
    """
    small, data, r, ax = _prepare(mixture, x, features, ax)
    doubt = 1 - r.max(axis=1)
    if data.shape[1] == 1:
        labels = r.argmax(axis=1)
        for cluster in np.unique(labels):
            color, marker = style_of(int(cluster))
            mine = labels == cluster
            ax.vlines(data[mine, 0], 0, doubt[mine], color=color, linewidth=1)
            ax.scatter(data[mine, 0], doubt[mine], color=color, marker=marker, s=18, label=str(cluster))
        ax.set(ylabel="1 - max r", ylim=(0, None))
        ax.legend(title="cluster", frameon=False)
        return ax
    _draw_ellipses(ax, small)
    most = 1 - 1 / max(mixture.n_components, 2)
    order = np.argsort(doubt)  # the doubtful ones on top
    edge = {"linewidths": 0.4, "edgecolors": "0.2"}
    tones = _tone(doubt[order], most)
    ax.scatter(*data[order].T, s=_area(doubt[order], most), color=tones, rasterized=True, **edge)
    keys = [
        ax.scatter([], [], s=_area(d, most), color=_tone(d, most), label=f"{d:.2g}", **edge)
        for d in np.linspace(0, most, 4)
    ]
    ax.set(xlim=limits(data[:, 0], small, 0), ylim=limits(data[:, 1], small, 1))
    ax.legend(handles=keys, title="1 - max r", frameon=False)
    return ax


def _prepare(
    mixture: GaussianMixture, x: Any, features: Sequence[Any] | None, ax: Any
) -> tuple[GaussianMixture, np.ndarray, np.ndarray, Any]:
    """The marginal and the data of the features drawn, responsibilities by all features, and Axes with names."""
    small, columns, _ = chosen(mixture, features)
    points, names = rows_of(mixture, x, columns)
    ax = new_axes(ax)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[-1])
    return small, points[:, columns], mixture.responsibilities(points), ax


def _draw_ellipses(ax: Any, mixture: GaussianMixture) -> None:
    for cluster, (mean, covariance) in enumerate(zip(mixture.means, mixture.covariances)):
        color = style_of(cluster)[0]
        ax.add_patch(ellipse(mean, covariance, 1, edgecolor=color, linewidth=1.8))


def _area(doubt: Any, most: float) -> Any:
    return 4 + (_LARGEST - 4) * np.asarray(doubt) / most


def _tone(doubt: Any, most: float) -> Any:
    from matplotlib import colormaps

    return colormaps["Greys"](0.25 + 0.75 * np.asarray(doubt) / most)


def _shade(ax: Any, mixture: GaussianMixture, ends: list[tuple[float, float]]) -> None:
    """Each cluster's ground lightly in its colour, and the borders between them."""
    u, v = (np.linspace(*end, _GRID) for end in ends)
    grid = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    joint = mixture.log_joint(grid).reshape(_GRID, _GRID, -1)
    for cluster in range(mixture.n_components):
        lead = joint[..., cluster] - np.delete(joint, cluster, axis=-1).max(axis=-1)
        if lead.max() <= 0:
            continue
        color = style_of(cluster)[0]
        ax.contourf(u, v, lead, levels=[0, np.inf], colors=[(color, 0.10)], zorder=0)
        if lead.min() < 0:
            ax.contour(u, v, lead, levels=[0], colors="0.4", linewidths=0.8, zorder=0.5)
