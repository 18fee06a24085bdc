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
_MOST_NAMES = 25  # that fit beside the picture
_MARGIN = 14  # points between the names and the picture


def plot_coclustering(matrix: xarray.DataArray, partition: Partition, *, ax: Any = None) -> Any:
    """Draw the probability that two points share a cluster as a heat map, rows sorted by an estimate of the clustering.

    Each cluster of the estimate is a block in a frame of its colour; inside it those come first that are most often
    together with the others. Dark blocks on a light ground are clusters that the draws agree on; a grey stripe is a
    point that they place here and there. Of more than 25 clusters the smallest share a name.

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
    # A layout counts the room for the names from the left of the picture.
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, panchor=(0, 0.5))
    bar.set_label("probability of sharing a cluster")
    clusters, starts, widths = np.unique(labels[order], return_index=True, return_counts=True)
    for cluster, corner, width in zip(clusters, starts - 0.5, widths):
        color = style_of(int(cluster))[0]
        block = Rectangle((corner, corner), width, width, edgecolor=color, linewidth=2)
        block.set(fill=False, clip_on=False)
        ax.add_patch(block)
    _name_blocks(ax, partition.sizes, clusters, np.append(starts, order.size) - 0.5)
    ax.set_xticks([])
    ax.set_title("cluster of the estimate (rows)", fontsize="medium", loc="left")
    return ax


def _name_blocks(ax: Any, sizes: np.ndarray, clusters: np.ndarray, edges: np.ndarray) -> None:
    """Names beside the picture, far enough apart to be read, each with a line to the middle of its block."""
    names = [f"{cluster}  ({sizes[cluster]})" for cluster in clusters[:_MOST_NAMES]]
    if len(clusters) > _MOST_NAMES:
        rest = clusters[_MOST_NAMES - 1 :]
        names[-1] = f"{rest[0]} to {rest[-1]}  ({sizes[rest].sum()})"
        edges = np.append(edges[:_MOST_NAMES], edges[-1])
    middles = (edges[:-1] + edges[1:]) / 2
    apart = (edges[-1] - edges[0]) / _MOST_NAMES
    places = edges[0] + apart * (np.arange(len(names)) + 0.5)  # as high as they can be
    room = edges[-1] - apart / 2
    for block in reversed(range(len(names))):  # the smallest are last, and move up
        places[block] = max(places[block], min(middles[block], room))
        room = places[block] - apart
    ax.set_yticks(places, names, fontsize="small")
    ax.tick_params(length=0, pad=_MARGIN)
    across: Any = ("axes points", "data")
    for cluster, middle, place in zip(clusters, middles, places):
        line = {"arrowstyle": "-", "color": style_of(int(cluster))[0], "shrinkA": 0, "shrinkB": 0}
        ends = {"xytext": (2 - _MARGIN, place), "xycoords": across, "textcoords": across}
        ax.annotate("", (0, middle), **ends, arrowprops=line, annotation_clip=False)


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
