"""Which points are together, and in how many draws of a posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.plots.style import new_axes, style_of

if TYPE_CHECKING:
    import xarray

    from bayesmix.clustering import Partition

__all__ = ["plot_coclustering"]

_MOST_ROWS = 2000  # that are drawn
_NAMED = 0.05  # share of the rows from which on a cluster's name is written


def plot_coclustering(matrix: xarray.DataArray, partition: Partition, *, ax: Any = None) -> Any:
    """Draw the probability that two points share a cluster as a heat map, rows sorted by an estimate of the clustering.

    Each cluster of the estimate is a block in a frame of its colour; inside it those come first that are most often
    together with the others. Dark blocks on a light ground are clusters that the draws agree on; a grey stripe is a
    point that they place here and there.

    Args:
        matrix: what `bayesmix.coclustering` returned, of all rows or some; above 2,000 evenly spaced ones are drawn.
        partition: what `bayesmix.partition` returned for the same posterior.
        ax: an Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: a matrix and an estimate of different rows.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> x = bm.datasets.load("old_faithful")
        >>> model = bm.MixtureModel(2, prior="weak")
        >>> posterior = bm.sample_posterior(model, x, key=0, method="gibbs", n_warmup=200, n_draws=500)
        >>> estimate = bm.partition(posterior)
        >>> ax = plots.plot_coclustering(bm.coclustering(posterior), estimate, ax=Figure().subplots())
        >>> len(ax.patches)
        2
    """
    from matplotlib.patches import Rectangle

    values, labels = np.asarray(matrix), _labels_of(matrix, partition)
    together = values @ (labels[:, None] == np.arange(partition.n_clusters))
    order = np.lexsort((-together[np.arange(labels.size), labels], labels))
    order = order[:: -(-order.size // _MOST_ROWS)]
    ax = new_axes(ax)
    image = ax.imshow(values[np.ix_(order, order)], cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("probability of sharing a cluster")
    middles, names = [], []
    for cluster in range(partition.n_clusters):
        place = np.flatnonzero(labels[order] == cluster)
        if place.size:
            corner, width = (place[0] - 0.5, place[0] - 0.5), place.size
            color = style_of(cluster)[0]
            ax.add_patch(
                Rectangle(corner, width, width, fill=False, edgecolor=color, linewidth=2, clip_on=False)
            )
        if place.size >= _NAMED * order.size:
            middles.append(place.mean())
            names.append(f"{cluster}  ({partition.sizes[cluster]})")
    ax.set_yticks(middles, names)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.set_ylabel("cluster of the estimate (rows)")
    return ax


def _labels_of(matrix: xarray.DataArray, partition: Partition) -> np.ndarray:
    """The label of each row of the matrix: of all rows in order, or of those that its coordinate names."""
    rows, n = np.asarray(matrix["obs_id"]), partition.labels.size
    if rows.size == n:
        return partition.labels
    if rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n:
        raise ValueError(
            f"matrix and partition must be of one posterior; the matrix has rows up to {rows.max()}, the partition "
            f"{n} labels"
        )
    return partition.labels[rows]
