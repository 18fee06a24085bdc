"""k-means as the limit: soft responsibilities become hard as the sphere shrinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesmix.plots.clusters import plot_clusters
from bayesmix.plots.style import COLORS, panels
from bayesmix.results import Fit

__all__ = ["plot_kmeans_limit"]


def plot_kmeans_limit(
    fits: Sequence[Fit], kmeans: Fit, x: Any, *, n_shown: int = 3, ax: Any = None
) -> np.ndarray:
    """Draw fits whose common sphere σ² I falls, and how far their centres are from those of k-means.

    Args:
        fits: of the structure EII or E with weights and covariance held, from the largest sphere to the smallest.
        kmeans: what `bayesmix.kmeans` returned for the same data.
        x: the data (n, d).
        n_shown: how many of the fits have a panel with the data, from the first to the last.
        ax: an array of so many Axes and one more, for the distances.

    Returns:
        The Axes, as many.

    Raises:
        ValueError: fewer fits than panels, a fit without one common sphere, or another number of Axes.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> x = [0.0, 0.1, 0.2, 9.8, 9.9, 10.0, 10.1]
        >>> kmeans, held = bm.kmeans(x, 2), {"hold": ("weights", "covariance")}
        >>> spheres = [bm.GaussianMixture.of([0.5, 0.5], [0.0, 9.0], [s, s], covariance="EII") for s in (9.0, 0.25)]
        >>> fits = [bm.fit(bm.MixtureModel(2, "EII"), x, init=sphere, **held) for sphere in spheres]
        >>> axes = plots.plot_kmeans_limit(fits, kmeans, x, n_shown=2, ax=Figure().subplots(1, 3))
        >>> [ax.get_title() for ax in axes[:2]]
        ['σ = 3', 'σ = 0.5']
    """
    if not 1 <= n_shown <= len(fits):
        raise ValueError(f"n_shown must be between 1 and the {len(fits)} fits; it is {n_shown!r}")
    if any(fit.mixture.structure not in ("E", "EII") for fit in fits):
        names = [fit.mixture.structure for fit in fits]
        raise ValueError(f"fits must have one common sphere, the structure EII (or E); they have {names}")
    sigmas = [float(np.sqrt(fit.mixture.covariances[0, 0, 0])) for fit in fits]
    axes = panels(ax, n_shown + 1, (3.6, 3.4), f"a limit with n_shown={n_shown}")
    for panel, place in zip(axes, np.linspace(0, len(fits) - 1, n_shown).round().astype(int)):
        plot_clusters(fits[place].mixture, x, ax=panel)
        if panel.get_legend() is not None:
            panel.get_legend().remove()
        if kmeans.mixture.n_features == 2:
            panel.set_aspect("equal", adjustable="datalim")
        panel.set_title(f"σ = {sigmas[place]:.3g}")
    away = [_distance(fit.mixture.means, kmeans.mixture.means) for fit in fits]
    last = axes[-1]
    last.plot(sigmas, away, "o-", color=COLORS[0])
    last.set_xscale("log")
    last.set_yscale("symlog", linthresh=1e-12)
    last.set_yticks([0, *(10.0**power for power in range(-9, 10, 3) if 10.0**power <= 10 * max(*away, 1e-9))])
    last.set_ylim(-1e-12, 10 * max(*away, 1e-9))
    last.invert_xaxis()
    last.set_xlabel("σ, falling")
    last.set_title("distance to the centres of k-means")
    return axes


def _distance(means: np.ndarray, centres: np.ndarray) -> float:
    """The largest distance of a mean to the centre that is assigned to it, whatever they are called."""
    from scipy.optimize import linear_sum_assignment

    apart = np.linalg.norm(np.asarray(means)[:, None] - np.asarray(centres), axis=-1)
    return float(apart[linear_sum_assignment(apart)].max())
