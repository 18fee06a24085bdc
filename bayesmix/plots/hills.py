"""The density by itself: contours, a curve, and a surface of hills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.frames import default_names
from bayesmix.inputs import as_points
from bayesmix.mixture import GaussianMixture
from bayesmix.plots.clusters import limits
from bayesmix.plots.style import COLORS, mixed_colors, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["chosen", "mass_levels", "plot_density", "plot_hills", "rows_of"]

_GRID = 120
_HILLS = 90  # points of the surface in each direction
_MASS = (0.95, 0.75, 0.5, 0.25)
_REACH = 3.5  # standard deviations, so that nearly all of the mass is on the grid


def plot_density(
    mixture: GaussianMixture, x: Any = None, *, features: Sequence[Any] | None = None, ax: Any = None
) -> Axes:
    """Draw the density of a mixture, without its clusters: a curve for one feature, contours for two.

    The contours are the edges of the smallest regions that hold 25, 50, 75 and 95% of the mass, as a grid of
    120 by 120 points tells it.

    Args:
        mixture: whose density.
        x: data (n, d), drawn as small points, for one feature as ticks.
        features: one or two, by index or name; by default the first two, or the only one. The density is their
            marginal one.
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
        >>> ax = plots.plot_density(mixture, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['25%', '50%', '75%', '95%']
    """
    small, columns, names = chosen(mixture, features)
    data = np.empty((0, len(columns)))
    if x is not None:
        points, names = rows_of(mixture, x, columns)
        data = points[:, columns]
    ax = new_axes(ax)
    ax.set_xlabel(names[0])
    if len(columns) == 1:
        _draw_curve(ax, small, data[:, 0])
        return ax
    ax.set_ylabel(names[1])
    u, v, density = _on_grid(small, data, _GRID)
    levels = mass_levels(density)
    tones = [(COLORS[0], alpha) for alpha in (0.12, 0.3, 0.5, 0.75)]
    ax.contourf(u, v, density, levels=[*levels, density.max() * 1.001], colors=tones)
    ax.contour(u, v, density, levels=levels, colors=COLORS[0], linewidths=0.9)
    if data.size:
        size = float(np.clip(4000 / len(data), 1, 8))
        ax.scatter(*data.T, s=size, color="0.15", linewidths=0, alpha=0.6, rasterized=True)
    from matplotlib.patches import Patch

    handles = [Patch(color=tone, label=f"{share:.0%}") for tone, share in zip(tones, _MASS)]
    ax.legend(handles=handles[::-1], title="holds", frameon=False, loc="upper left")
    return ax


def plot_hills(mixture: GaussianMixture, *, features: Sequence[Any] | None = None, ax: Any = None) -> Any:
    """Draw the density of two features as a surface of hills, coloured by the clusters' responsibilities.

    Args:
        mixture: whose density.
        features: which two, by index or name; the first two by default. The density is their marginal one.
        ax: an Axes with `projection="3d"`.

    Returns:
        The Axes.

    Raises:
        ValueError: a batch of mixtures, other than two features, or an Axes that is flat.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> mixture = bm.GaussianMixture.of([0.6, 0.4], [[0, 0], [4, 4]], [1.0, 2.0], covariance="VII")
        >>> ax = plots.plot_hills(mixture, ax=Figure().add_subplot(projection="3d"))
        >>> ax.get_zlabel()
        'density'
    """
    small, columns, names = chosen(mixture, features)
    if len(columns) != 2:
        raise ValueError(
            f"plot_hills shows two features, not {len(columns)}; plot_density draws one as a curve"
        )
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.figure(figsize=(6.4, 5.2), layout="constrained").add_subplot(projection="3d")
    if not hasattr(ax, "plot_surface"):
        raise ValueError(
            'plot_hills needs an Axes with projection="3d", such as figure.add_subplot(projection="3d")'
        )
    u, v, density = _on_grid(small, np.empty((0, 2)), _HILLS, times=2.8)
    grid = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    colors = mixed_colors(small.responsibilities(grid)).reshape(_HILLS, _HILLS, 3)
    height = (density / density.max())[..., None] ** 0.35
    slope = np.gradient(density, axis=1) - np.gradient(density, axis=0)
    light = 1 - 0.3 * np.clip(slope / np.abs(slope).max(), 0, 1)[..., None]  # from the left
    colors = light * (1 - height * (1 - colors))  # the plain is white
    ax.plot_surface(
        *np.meshgrid(u, v), density, facecolors=colors, rstride=1, cstride=1, linewidth=0, antialiased=False,
        shade=False, rasterized=True,
    )  # fmt: skip
    ax.set(xlabel=names[0], ylabel=names[1], zlabel="density", zlim=(0, density.max()))
    ax.view_init(elev=35, azim=-62)
    ax.zaxis.labelpad = 10
    ax.locator_params(axis="z", nbins=4)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_alpha(0)
    return ax


def chosen(
    mixture: GaussianMixture, features: Sequence[Any] | None
) -> tuple[GaussianMixture, list[int], list[str]]:
    """The marginal of one or two features, their columns, and their names."""
    if mixture.means.ndim != 2:
        raise ValueError(f"this figure draws one mixture; this is a batch, with means {mixture.means.shape}")
    shown = list(range(min(mixture.n_features, 2))) if features is None else list(features)
    if not 1 <= len(shown) <= 2:
        raise ValueError(f"this figure shows one or two features; features has {len(shown)}")
    columns = [mixture._feature(feature) for feature in shown]
    names = mixture.feature_names or default_names(mixture.n_features)
    return mixture.marginal(shown), columns, [names[j] for j in columns]


def rows_of(mixture: GaussianMixture, x: Any, columns: list[int]) -> tuple[np.ndarray, list[str]]:
    """Data (n, d), a table's columns by name, and what the drawn columns are called."""
    points, given, _ = as_points(x, n_features=mixture.n_features, known=mixture.feature_names)
    names = mixture.feature_names or given
    return points, [names[j] for j in columns]


def mass_levels(density: np.ndarray) -> np.ndarray:
    """The heights above which a grid of densities holds 95, 75, 50 and 25% of its sum; they rise."""
    falling = np.sort(density, axis=None)[::-1]
    held = np.cumsum(falling) / falling.sum()
    return falling[np.searchsorted(held, _MASS)]


def _on_grid(
    mixture: GaussianMixture, data: np.ndarray, size: int, times: float = _REACH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, v = (np.linspace(*limits(data[:, j], mixture, j, times), size) for j in range(2))
    grid = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    return u, v, np.exp(mixture.log_density(grid)).reshape(size, size)


def _draw_curve(ax: Any, mixture: GaussianMixture, data: np.ndarray) -> None:
    ends = limits(data, mixture, 0, _REACH)
    grid = np.linspace(*ends, 4 * _GRID)
    density = np.exp(mixture.log_density(grid))
    ax.fill_between(grid, density, color=COLORS[0], alpha=0.18, linewidth=0)
    ax.plot(grid, density, color=COLORS[0])
    if data.size:
        ax.plot(data, np.zeros_like(data), "|", color="0.15", markersize=9, clip_on=False)
    ax.set(ylabel="density", xlim=ends)
    ax.set_ylim(bottom=0)
