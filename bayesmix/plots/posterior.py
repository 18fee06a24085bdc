"""A posterior: the density with its credible band, and what relabelling did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.inputs import as_points
from bayesmix.plots.clusters import bins
from bayesmix.plots.style import panels, style_of
from bayesmix.questions import log_density
from bayesmix.trees import mixtures

if TYPE_CHECKING:
    import xarray

__all__ = ["plot_density_band", "plot_relabelling"]

_GRID = 200
_MOST_DRAWS = 2000


def plot_density_band(
    posterior: xarray.DataTree, x: Any = None, *, probability: float = 0.9, ax: Any = None
) -> Any:
    """The posterior predictive density of each feature with its credible band, over a histogram of the data.

    Args:
        posterior: from `sample_posterior`.
        x: data (n, d); by default those that the posterior is of, with their weights.
        probability: of the pointwise band.
        ax: an Axes, or an array with one a feature.

    Returns:
        An array of Axes, one a feature.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> x = bm.datasets.load("galaxies")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
        >>> posterior = bm.sample_posterior(bm.MixtureModel(3, "V", "weak"), x, **options)
        >>> plots.plot_density_band(posterior, ax=Figure().subplots())[0].get_xlabel()
        'velocity'
    """
    batch = mixtures(posterior)
    names = batch.feature_names or ()
    weight = None
    if x is None:
        observed = posterior["observed_data"]
        x = np.asarray(observed["x"])
        if "weight" in observed:
            weight = np.asarray(observed["weight"])
            x, weight = x[weight > 0], weight[weight > 0]
    else:
        x = as_points(x, n_features=len(names), known=tuple(names)).values
    axes = panels(ax, len(names), (4.6, 3.2), "plot_density_band")
    middle = jax.tree.map(lambda leaf: np.median(leaf, axis=(0, 1)), batch)  # says how fine the histogram is
    for j, (name, one) in enumerate(zip(names, axes)):
        known = ~np.isnan(x[:, j])
        values, counted = x[known, j], None if weight is None else weight[known]
        low, high = values.min(), values.max()
        grid = np.linspace(low - 0.15 * (high - low), high + 0.15 * (high - low), _GRID)
        alone = posterior.isel(feature=[j], feature_bis=[j], missing_dims="ignore")
        band = np.exp(log_density(alone, grid, probability=probability))
        one.hist(
            values,
            bins=bins(values, middle.marginal([j])),
            weights=counted,
            density=True,
            color="0.85",
            edgecolor="white",
            linewidth=0.5,
        )
        label = f"{probability:.0%} band"
        one.fill_between(
            grid, band["lower"], band["upper"], color=style_of(0)[0], alpha=0.35, lw=0, label=label
        )
        one.plot(grid, band["mean"], color=style_of(0)[0], linewidth=2, label="posterior predictive")
        one.set(xlabel=name, ylabel="density", xlim=(grid[0], grid[-1]))
        one.set_ylim(0, 1.25 * one.get_ylim()[1])  # with room for the legend
    axes[0].legend(frameon=False, ncols=2, loc="upper center")
    return axes


def plot_relabelling(
    before: xarray.DataTree, after: xarray.DataTree, *, feature: Any = 0, ax: Any = None
) -> Any:
    """The clusters' means draw by draw, as the sampler named them and after `relabel`; chains one behind the other.

    Args:
        before: a posterior whose labels were left as they came.
        after: the same draws relabelled.
        feature: which feature's means, by index or name.
        ax: an array of two Axes.

    Returns:
        The two Axes.

    Raises:
        ValueError: no tree of mixtures, no such feature, or another number of Axes.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> x = bm.datasets.load("galaxies")
        >>> options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200, "relabelling": None}
        >>> raw = bm.sample_posterior(bm.MixtureModel(3, "V", "weak"), x, **options)
        >>> axes = plots.plot_relabelling(raw, bm.relabel(raw), ax=Figure().subplots(1, 2))
        >>> axes[1].get_title()
        'after: ecr'
    """
    batch = mixtures(before)
    column = batch._feature(feature)
    axes = panels(ax, 2, (4.6, 3.2), "plot_relabelling")
    for one, tree, title in zip(axes, (before, after), ("as sampled", "after: ")):
        means = (
            tree["posterior"]["means"].transpose("chain", "draw", "cluster", "feature").values[..., column]
        )
        chains, draws, k = means.shape
        flat = means.reshape(-1, k)
        step = -(-len(flat) // _MOST_DRAWS)
        for cluster in range(k):
            color, marker = style_of(cluster)
            at = np.arange(0, len(flat), step)
            one.plot(
                at,
                flat[::step, cluster],
                marker,
                color=color,
                markersize=2,
                alpha=0.6,
                mew=0,
                label=str(cluster),
            )
        for chain in range(1, chains):
            one.axvline(chain * draws, color="0.8", linewidth=0.8, zorder=0)
        done = tree["posterior"].attrs.get("relabelling", "")
        one.set(
            xlabel="draw, chains one behind the other", title=title + (done if title.endswith(" ") else "")
        )
    axes[0].set_ylabel(f"mean of {(batch.feature_names or ())[column]}")
    axes[1].sharey(axes[0])
    axes[1].legend(title="cluster", frameon=False, markerscale=4, loc="center left", bbox_to_anchor=(1, 0.5))
    return axes
