"""Which clusters merge, in which order, where the entropy has its elbow, and would one Gaussian do for two?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.inputs import as_points
from bayesmix.mixture import GaussianMixture
from bayesmix.plots.style import COLORS, ink_on, new_axes, panels, style_of, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayesmix.merging import MergeHierarchy

__all__ = ["plot_merge_likelihood", "plot_merging"]


def plot_merging(hierarchy: MergeHierarchy, *, ax: Any = None) -> np.ndarray:
    """Draw the merges as a tree, and the entropy against the number of clusters and of merged observations.

    In the tree a join's height is the number of clusters that it leaves, and beside it is by how many nats it
    lowers the entropy; below the elbow each group has one colour. In the other panels dashed lines are the
    two that fit best, and a ring marks the elbow, where they part.

    Args:
        hierarchy: what `bayesmix.merge_clusters` returned.
        ax: an array of three Axes.

    Returns:
        The three Axes.

    Raises:
        ValueError: one cluster, so that nothing merges; or another number of Axes.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> mixture = bm.GaussianMixture.of([0.3, 0.4, 0.3], [[0.0], [9.0], [1.0]], [[[1.0]]] * 3)
        >>> hierarchy = bm.merge_clusters(mixture, mixture.simulate(300, key=0)[0])
        >>> axes = plots.plot_merging(hierarchy, ax=Figure().subplots(1, 3))
        >>> [ax.get_xlabel() for ax in axes]
        ['cluster', 'number of clusters', 'merged observations, cumulated']
    """
    if hierarchy.n_components < 2:
        raise ValueError("the mixture has one cluster, so nothing merges and there is nothing to draw")
    axes = panels(ax, 3, (4.3, 3.9), "plot_merging")
    _draw_tree(axes[0], hierarchy)
    counts = np.arange(1.0, hierarchy.n_components + 1)
    for panel, against, place, name in (
        (axes[1], "clusters", counts, "number of clusters"),
        (axes[2], "merged", hierarchy.n_merged, "merged observations, cumulated"),
    ):
        elbow, lines = hierarchy.elbow(against)
        panel.plot(place, hierarchy.entropy, color="0.35", marker="o", markersize=5, linestyle="")
        for line in lines:
            panel.plot(*line.T, "--", color=COLORS[0], linewidth=1.4)
        if hierarchy.n_components > 2:  # two have no elbow
            _ring(panel, place[elbow - 1], hierarchy.entropy[elbow - 1], elbow)
        panel.set_xlabel(name)
        panel.margins(0.1)
        whole_numbers(panel)
    axes[2].locator_params(axis="x", nbins=6)
    axes[1].set_ylabel("entropy of the assignment, nats")
    return axes


def _ring(ax: Any, place: float, height: float, elbow: int) -> None:
    label = f"elbow: {elbow} clusters"
    ax.plot(place, height, "o", color="black", markersize=14, fillstyle="none", label=label)
    ax.legend(frameon=False, loc="upper left")


def _draw_tree(ax: Any, hierarchy: MergeHierarchy) -> None:
    """Leaves in an order in which no two branches cross."""
    k, elbow = hierarchy.n_components, hierarchy.n_elbow
    order = _leaves(hierarchy)
    place = {cluster: float(order.index(cluster)) for cluster in range(k)}
    height = dict.fromkeys(range(k), float(k))
    groups = hierarchy.groups(elbow)
    for step, (a, b) in enumerate(hierarchy.merges.tolist()):
        left = k - step - 1
        if left == elbow - 1:
            for group, c in enumerate(np.unique(groups, return_index=True)[1].tolist()):
                top = [height[c], elbow - 0.5]
                ax.plot([place[c]] * 2, top, color=style_of(group)[0], linewidth=1.8, zorder=3)
        color = style_of(int(groups[a]))[0] if left >= elbow else "0.35"
        xs = [place[a], place[a], place[b], place[b]]
        ax.plot(xs, [height[a], left, left, height[b]], color=color, linewidth=1.8)
        lowered = hierarchy.entropy[left] - hierarchy.entropy[left - 1]
        place[a], height[a] = (place[a] + place[b]) / 2, float(left)
        ax.annotate(
            f"{lowered:.3g}",
            (place[a], left),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize="small",
        )
    for cluster in range(k):
        color, marker = style_of(int(groups[cluster]))
        ax.plot(order.index(cluster), k, marker, color=color, markersize=7, clip_on=False)
    ax.axhline(elbow - 0.5, color="black", linestyle=":", linewidth=1)
    ax.set_xticks(range(k), [str(cluster) for cluster in order])
    ax.set_ylim(k + 0.25, 0.5)
    ax.set_yticks(range(1, k + 1) if k <= 12 else range(1, k + 1, -(-k // 12)))
    ax.set_xlim(-0.5, k - 0.5)
    ax.set_xlabel("cluster")
    ax.set_ylabel("clusters left")
    ax.set_title("joins, and the nats that each lowers", fontsize="medium")


def _leaves(hierarchy: MergeHierarchy) -> list[int]:
    members = [[cluster] for cluster in range(hierarchy.n_components)]
    for a, b in hierarchy.merges:
        members[a] = members[a] + members[b]
    return members[0]


def plot_merge_likelihood(mixture: GaussianMixture, x: Any, *, ax: Any = None) -> Axes:
    """Draw for each pair of clusters how many nats of its part of the likelihood one Gaussian in their place loses.

    The one has the pair's weight, mean and covariance. A pair's part of the log-likelihood is that of its own
    points, Σ_n (r_na + r_nb) log p_ab(x_n) with p_ab = w_a Normal(a) + w_b Normal(b); the whole log-likelihood falls by
    no more than that part does. Dark pairs are nearly one Gaussian; a frame marks the cheapest. A pair that the
    entropy merges and this does not is one cluster that is no Gaussian.

    Args:
        mixture: two clusters or more.
        x: data (n, d), usually those of the fit.
        ax: an Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: one cluster, a batch of mixtures, or data that do not fit the mixture.

    Example:
        >>> import bayesmix as bm
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> mixture = bm.GaussianMixture.of([0.3, 0.4, 0.3], [[0.0], [9.0], [1.0]], [[[1.0]]] * 3)
        >>> ax = plots.plot_merge_likelihood(mixture, mixture.simulate(300, key=0)[0], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.texts]
        ['192', '0.344', '167']
    """
    if mixture.means.ndim != 2 or mixture.n_components < 2:
        raise ValueError("plot_merge_likelihood needs one mixture of two clusters or more")
    loss = _lost(mixture, as_points(x, n_features=mixture.n_features, known=mixture.feature_names).values)
    k = mixture.n_components
    ax = new_axes(ax)
    shade = np.log1p(np.maximum(loss, 0))
    top = 1.15 * float(np.nanmax(shade)) or 1.0
    image = ax.imshow(shade, cmap="Blues_r", vmax=top, interpolation="nearest")
    for a, b in zip(*np.tril_indices(k, -1)):
        color = ink_on(image.to_rgba(shade[a, b]))
        ax.text(b, a, f"{loss[a, b]:.3g}", ha="center", va="center", color=color, fontsize=10 if k < 9 else 7)
    from matplotlib.patches import Rectangle

    a, b = np.unravel_index(np.nanargmin(loss), loss.shape)
    ax.add_patch(Rectangle((b - 0.5, a - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2.5))
    ax.set(xticks=range(k - 1), yticks=range(1, k), xlim=(-0.5, k - 1.5), ylim=(k - 0.5, 0.5))
    ax.set(xlabel="cluster", ylabel="cluster")
    ax.tick_params(length=0)
    ax.set_title("nats lost if one Gaussian replaces the two", fontsize="medium")
    return ax


def _lost(mixture: GaussianMixture, x: np.ndarray) -> np.ndarray:
    """[a, b], a > b: the fall of the pair's part of the log-likelihood; NaN elsewhere."""
    joint = mixture.log_joint(x)
    r = mixture.responsibilities(x)
    a, b = np.tril_indices(mixture.n_components, -1)
    weight = mixture.weights[a] + mixture.weights[b]
    share = np.divide(mixture.weights[a], weight, out=np.full_like(weight, 0.5), where=weight > 0)[:, None]
    apart = mixture.means[a] - mixture.means[b]
    means = share * mixture.means[a] + (1 - share) * mixture.means[b]
    within = share[..., None] * mixture.covariances[a] + (1 - share[..., None]) * mixture.covariances[b]
    between = (share * (1 - share))[..., None] * apart[:, :, None] * apart[:, None, :]
    ones = GaussianMixture.of(weight / weight.sum(), means, within + between)
    single = ones.log_joint(x) + np.log(weight.sum())
    two = np.logaddexp(joint[:, a], joint[:, b])
    both = (mixture.weights[a] > 0) & (mixture.weights[b] > 0)  # nothing is lost of one alone
    fall = (r[:, a] + r[:, b]) * np.subtract(two, single, out=np.zeros_like(two), where=both)
    lost = np.full((mixture.n_components,) * 2, np.nan)
    lost[a, b] = fall.sum(axis=0)
    return lost
