"""How sure are the clusters' weights and means: an interval each, out of replicates or draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.plots.style import panels, style_of
from bayesmix.results import Fit, mixture_of
from bayesmix.trees import flat_draws, mixtures

if TYPE_CHECKING:
    import xarray

    from bayesmix.mixture import GaussianMixture

__all__ = ["plot_intervals"]

_LABEL = 0.55  # inches that a long number such as -0.175 needs below its tick


def plot_intervals(
    draws: xarray.DataTree,
    fit: Fit | GaussianMixture | None = None,
    *,
    probability: float = 0.95,
    ax: Any = None,
) -> np.ndarray:
    """Draw an interval of equal tails for each cluster's weight and means: a panel for the weights and one a feature.

    The thick part holds half of the draws, the marker is their median, and a black line the fit's own value.

    Args:
        draws: from `bootstrap`, or a posterior whose labels mean the same in all draws.
        fit: what the replicates are of; drawn beside them where it is given.
        probability: of the thin interval.
        ax: an array of Axes, one for the weights and one a feature.

    Returns:
        The Axes, as many.

    Raises:
        ValueError: no tree of mixtures, a fit of another size, a probability outside (0, 1), or another number of Axes.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> x = bm.datasets.load("galaxies")
        >>> fit = bm.fit(bm.MixtureModel(3, "E"), x)
        >>> draws = bm.bootstrap(fit, x, n_draws=20, key=0)
        >>> axes = plots.plot_intervals(draws, fit, ax=Figure().subplots(1, 2))
        >>> [ax.get_xlabel() for ax in axes]
        ['weight', 'mean of velocity']
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must be between 0 and 1; it is {probability!r}")
    batch = flat_draws(mixtures(draws))
    names = batch.feature_names or ()
    values = np.concatenate([batch.weights[..., None], batch.means], axis=-1)  # (draws, k, 1 + d)
    own = None
    if fit is not None:
        mixture = mixture_of(fit)
        own = np.column_stack([mixture.weights, mixture.means])
        if own.shape != values.shape[1:]:
            raise ValueError(
                f"fit has {own.shape[0]} clusters and {own.shape[1] - 1} features, the draws "
                f"{values.shape[1]} and {len(names)}"
            )
    axes = panels(ax, 1 + len(names), (4.2, 0.5 * batch.n_components + 1.7), f"{len(names)} features")
    tail = (1 - probability) / 2
    low, lower, middle, upper, high = np.quantile(values, [tail, 0.25, 0.5, 0.75, 1 - tail], axis=0)
    for j, panel in enumerate(axes):
        for cluster in range(batch.n_components):
            color, marker = style_of(cluster)
            panel.hlines(cluster, low[cluster, j], high[cluster, j], color=color, linewidth=1.6)
            panel.hlines(cluster, lower[cluster, j], upper[cluster, j], color=color, linewidth=4.5)
            panel.plot(
                middle[cluster, j],
                cluster,
                marker,
                color=color,
                markersize=8,
                markeredgecolor="white",
                zorder=3,
            )
            if own is not None:
                panel.plot(
                    own[cluster, j], cluster, "|", color="black", markersize=18, markeredgewidth=1.4, zorder=2
                )
        panel.set(yticks=range(batch.n_components), ylim=(batch.n_components - 0.5, -0.5))
        panel.set_xlabel("weight" if j == 0 else f"mean of {names[j - 1]}")
        width = panel.bbox.width / panel.figure.dpi
        panel.locator_params(axis="x", nbins=max(1, int(width / _LABEL)))
    axes[0].set_ylabel("cluster")
    axes[0].set_title(f"{probability:.0%} and 50% of {len(values)} draws", fontsize="medium", loc="left")
    return axes
