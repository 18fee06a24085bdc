"""What a prior believes of data: some that are drawn from it, beside those that were observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.inputs import as_count, as_points
from bayesmix.mixture import GaussianMixture
from bayesmix.plots.clusters import draw_ellipses
from bayesmix.plots.style import panels, style_of
from bayesmix.trees import flat_draws, mixtures

if TYPE_CHECKING:
    import xarray

__all__ = ["plot_prior"]

_BINS = 60
_MOST_POINTS = 2000


def plot_prior(
    draws: xarray.DataTree,
    x: Any = None,
    *,
    n_draws: int = 5,
    features: Sequence[Any] | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Draw the first data sets of a prior, a panel each, with the mixture that each came from, beside the data.

    One feature: the share of points in each bin, stacked by the cluster that they came from, and the line of what the
    mixture expects there. Two: points in the colour and marker of that cluster, and each cluster's ellipses at one
    (solid) and two (dashed) standard deviations. All panels have the same limits, those of the data and of nearly all
    points drawn, so that the prior is seen at the data's own scale.

    Args:
        draws: what `MixtureModel.prior_predictive` returned, best with `like=x`, so that a draw has as many rows.
        x: the data (n, d).
        n_draws: how many of the draws.
        features: which one or two features, by index or name; the first two by default.
        ax: an array of Axes, one a draw, and one more before them for the data.

    Returns:
        The Axes, as many.

    Raises:
        ValueError: a tree without a prior, more than two features, fewer draws, data that do not fit, or another
            number of Axes.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> prior = bm.ConjugatePrior.of(mean=[0.0], degrees_of_freedom=3, scale=[[1.0]])
        >>> draws = bm.MixtureModel(2, "full", prior).prior_predictive(3, key=0)
        >>> len(plots.plot_prior(draws, n_draws=3, ax=Figure().subplots(1, 3)))
        3
    """
    batch = flat_draws(mixtures(draws, group="prior"))
    columns = [batch._feature(feature) for feature in features or range(min(batch.n_features, 2))]
    if len(columns) > 2:
        raise ValueError(f"plot_prior shows one or two features; features has {len(columns)}")
    if as_count(n_draws, "n_draws") > len(batch.weights):
        raise ValueError(f"n_draws is {n_draws}, but the tree has {len(batch.weights)} draws")
    points, z = (flat_draws(draws["prior_predictive"][name])[:n_draws] for name in ("x", "z"))
    points, small = points[:, :, columns], batch.marginal(columns)
    data = None
    if x is not None:
        data = as_points(x, n_features=batch.n_features, known=batch.feature_names).values[:, columns]
    extra = "" if data is None else " and the data"
    axes = panels(ax, n_draws + (data is not None), (3.6, 3.0), f"a prior of {n_draws} draws{extra}")
    limits = _limits(points, jax.tree.map(lambda leaf: leaf[:n_draws], small), data)
    if data is not None:
        _draw_panel(axes[0], limits, data, np.zeros(len(data), int), None, "data")
    for draw, panel in enumerate(axes[-n_draws:]):
        one = jax.tree.map(lambda leaf, draw=draw: leaf[draw], small)
        _draw_panel(panel, limits, points[draw], z[draw], one, f"draw {draw} of the prior")
    for panel in axes:
        panel.set_xlabel(small.feature_names[0])
        panel.set_ylabel("share of points" if len(columns) == 1 else small.feature_names[1])
    return axes


def _limits(points: np.ndarray, mixtures: GaussianMixture, data: np.ndarray | None) -> np.ndarray:
    """Low and high (2, features): all of the data, nearly all points drawn and ends of clusters, and a little air."""
    reach = 2 * np.sqrt(np.diagonal(np.asarray(mixtures.covariances), axis1=-2, axis2=-1))
    drawn = np.concatenate([points, mixtures.means - reach, mixtures.means + reach], axis=1)
    low, high = np.quantile(drawn, [0.005, 0.995], axis=(0, 1))
    if data is not None:
        low, high = np.minimum(low, data.min(axis=0)), np.maximum(high, data.max(axis=0))
    return np.stack([low, high]) + 0.05 * np.array([[-1], [1]]) * (high - low)


def _draw_panel(
    ax: Any, limits: np.ndarray, x: np.ndarray, z: np.ndarray, mixture: GaussianMixture | None, title: str
) -> None:
    """Points and the mixture that they came from; without one they are grey."""
    clusters = range(1 if mixture is None else mixture.n_components)
    styles = [("0.45", "o") if mixture is None else style_of(cluster) for cluster in clusters]
    if x.shape[1] == 1:
        edges = np.linspace(limits[0, 0], limits[1, 0], _BINS + 1)
        if len(x) > 1:  # one point says nothing of shares
            parts = [x[z == cluster, 0] for cluster in clusters]
            shares = [np.full(part.size, 1 / len(x)) for part in parts]
            colors = [color for color, _ in styles]
            ax.hist(
                parts, edges, weights=shares, color=colors, stacked=True, edgecolor="white", linewidth=0.3
            )
        if mixture is not None:
            ax.stairs(np.diff(mixture.cdf(edges)), edges, color="black", linewidth=1)
    else:
        some = slice(None, None, -(-len(x) // _MOST_POINTS))
        for cluster, (color, marker) in enumerate(styles):
            mine = x[some][z[some] == cluster]
            ax.plot(
                *mine.T, marker, color=color, markersize=3, alpha=0.75, markeredgewidth=0, rasterized=True
            )
            if mixture is not None:
                draw_ellipses(ax, mixture, cluster)
        ax.set_ylim(limits[:, 1])
    ax.set_xlim(limits[:, 0])
    ax.set_title(title, fontsize="medium")
