"""Are the points of a cluster as far from its mean as the mixture says, and is one feature distributed so?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.plots.style import COLORS, panels, style_of

if TYPE_CHECKING:
    from bayesmix.checks import FitCheck
    from bayesmix.discrepancy import DistanceCheck

__all__ = ["plot_check"]


def plot_check(check: FitCheck, *, ax: Any = None) -> np.ndarray:
    """Draw a panel a cluster: quantiles of its points' squared Mahalanobis distances against simulated ones.

    The band holds 95% of the simulated quantiles, each by itself; on the grey line data and simulation agree. The
    dotted line is the chi-square law, right for a cluster far from others. For one feature a last panel has the
    distribution function of u = P(X <= x) less that of the uniform law, between the limits that 95% of simulated
    data sets keep altogether.

    Args:
        check: what `bayesmix.check_fit` returned.
        ax: an array of Axes, one a cluster, and one more for one feature.

    Returns:
        The Axes, as many.

    Raises:
        ValueError: another number of Axes.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> mixture = bm.GaussianMixture.of([0.5, 0.5], [[-3.0], [3.0]], [[[1.0]], [[1.0]]])
        >>> check = bm.check_fit(mixture, mixture.simulate(100, key=0)[0])
        >>> len(plots.plot_check(check, ax=Figure().subplots(1, 3)))
        3
    """
    count = len(check.distances) + (check.transform is not None)
    axes = panels(ax, count, (4.3, 4.0), f"a check of {len(check.distances)} clusters")
    for cluster, (panel, distances) in enumerate(zip(axes, check.distances)):
        _draw_quantiles(panel, distances, cluster)
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    if check.transform is not None:
        _draw_transform(axes[-1], check.transform, check)
    return axes


def _draw_quantiles(ax: Any, check: DistanceCheck, cluster: int) -> None:
    color, marker = style_of(cluster)
    points = f"{check.n_points:g} point{'s' * (check.n_points != 1)}"
    ax.set_title(f"cluster {cluster}: {points}, tail {check.tail:.2g}", fontsize="medium")
    ax.set_xlabel("squared distance, simulated (median)")
    ax.set_ylabel("squared distance, data")
    if np.isnan(check.observed).any():
        return
    ends = [0, check.expected[-1]]
    ax.fill_between(
        check.expected, check.low, check.high, color="0.85", linewidth=0, label="95% of simulated data"
    )
    ax.plot(ends, ends, color="0.5", linewidth=1)
    ax.plot(check.expected, check.chi_square, ":", color="black", linewidth=1.4, label="chi-square law")
    ax.plot(check.expected, check.observed, marker, color=color, markersize=4, linestyle="", label="data")


def _draw_transform(ax: Any, transform: np.ndarray, check: FitCheck) -> None:
    """F(u) - u at its steps, from both sides."""
    order = np.argsort(transform)
    u, reached = transform[order], np.cumsum(check.weight[order]) / check.weight.sum()
    before = np.append(0.0, reached[:-1])
    corners = np.column_stack([before - u, reached - u]).ravel()
    ax.axhline(0, color="0.5", linewidth=1)
    ax.plot(np.repeat(u, 2), corners, color=COLORS[0], linewidth=1.4)
    distribution = check.checks["distribution"]
    limit = float(distribution.high[0])
    for edge, label in ((-limit, None), (limit, "limits of 95% of simulated data")):
        ax.axhline(edge, color="black", linestyle="--", linewidth=1, label=label)
    low, high = min(corners.min(), -limit), max(corners.max(), limit)
    ax.set(xlim=(0, 1), ylim=(1.15 * low, 1.4 * high))
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    ax.set_xlabel("u = P(X ≤ x)")
    ax.set_ylabel("share of data below u, less u")
    ax.set_title(
        f"distribution: K–S {distribution.observed[0]:.2g}, tail {distribution.tail:.2g}", fontsize="medium"
    )
