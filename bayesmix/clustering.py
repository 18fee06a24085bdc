"""One clustering for a posterior, and how far the others are from it.

Each draw of z is a clustering of the rows. The estimate is the one whose loss against them is lowest on average. Its
credible ball is the smallest ball around it, in the metric of the loss, that holds a given share of the draws. Names of
clusters play no role: the estimate needs no relabelling, and may have fewer clusters than the mixture has.

References:
    Wade & Ghahramani (2018), Bayesian cluster analysis: point estimation and credible balls, Bayesian Analysis 13,
    559-626.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.allocations import Clusterings, allocations_of, clusterings
from bayesmix.greedy import LOSSES, distances_to, search
from bayesmix.inputs import as_count, as_name, as_share
from bayesmix.keys import as_generator

if TYPE_CHECKING:
    import pandas
    import xarray
    from jaxtyping import Float, Int

__all__ = ["Bound", "Partition", "partition"]

_TINY = 1e-12  # a difference of distances that is rounding


class Bound(NamedTuple):
    """A clustering on the edge of a credible ball: labels (n,), and its distance from the estimate."""

    labels: Int[np.ndarray, " n"]
    distance: float

    @property
    def n_clusters(self) -> int:
        """How many clusters this clustering has."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True, eq=False)
class Partition:
    """A point estimate of the clustering, with its credible ball.

    Clusters are numbered by size, the largest first. Distances are in nats (at most log n) for "vi", and the share of
    pairs of rows that one clustering joins and the other parts for "binder". The bounds are draws in the ball.

    Attributes:
        labels: the cluster of each row (n,).
        loss: "vi" or "binder".
        expected_loss: the mean distance of the draws from the estimate.
        coverage: the share of the draws that the ball holds, at least.
        radius: of the ball.
        upper: vertical upper bound: of the draws in the ball with the fewest clusters, the farthest.
        lower: vertical lower bound: of those with the most clusters, the farthest.
        horizontal: the farthest of all draws in the ball.
        distance: of each draw (chain, draw).
        reached: the expected loss that each start of the search ended with.
    """

    labels: Int[np.ndarray, " n"]
    loss: str
    expected_loss: float
    coverage: float
    radius: float
    upper: Bound
    lower: Bound
    horizontal: Bound
    distance: Float[np.ndarray, "chain draw"]
    reached: Float[np.ndarray, " starts"]

    @property
    def n_clusters(self) -> int:
        """How many clusters this clustering has."""
        return int(self.labels.max()) + 1

    @property
    def sizes(self) -> Int[np.ndarray, " clusters"]:
        """How many rows each cluster has."""
        return np.bincount(self.labels)

    @property
    def n_agree(self) -> int:
        """How many starts of the search ended with the loss of the estimate."""
        return int((self.reached <= self.expected_loss + 1e-9).sum())

    def summary(self) -> pandas.DataFrame:
        """The estimate and the bounds of its ball: how many clusters, of which sizes, how far from the estimate."""
        import pandas

        rows = {"estimate": Bound(self.labels, 0.0)}
        rows |= {"vertical upper": self.upper, "vertical lower": self.lower, "horizontal": self.horizontal}
        columns = {
            "clusters": [row.n_clusters for row in rows.values()],
            "distance": [row.distance for row in rows.values()],
            "sizes": [", ".join(map(str, np.bincount(row.labels))) for row in rows.values()],
        }
        return pandas.DataFrame(columns, index=pandas.Index(rows, name="clustering"))

    def __str__(self) -> str:
        words, unit = LOSSES[self.loss].words, LOSSES[self.loss].unit
        fewest, most = self.upper.n_clusters, self.lower.n_clusters
        kinds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        return (
            f"{_clusters(self.n_clusters)}, of {', '.join(map(str, self.sizes))} rows, "
            f"minimise{'s' * (self.n_clusters == 1)} the expected {words}: "
            f"{self.expected_loss:.3g}{unit} ({self.n_agree} of {self.reached.size} starts ended there). "
            f"{self.coverage:.0%} of the draws are within {self.radius:.3g}{unit}, with {kinds} clusters."
        )

    def __repr__(self) -> str:
        return (
            f"Partition(n_clusters={self.n_clusters}, loss={self.loss!r}, expected_loss={self.expected_loss:.4g}, "
            f"radius={self.radius:.4g})"
        )


def partition(
    posterior: xarray.DataTree,
    *,
    loss: str = "vi",
    max_clusters: int | None = None,
    coverage: float = 0.95,
    n_starts: int = 8,
    key: Any = 0,
) -> Partition:
    """The clustering with the lowest posterior expected loss, and its credible ball.

    Expectations are over the draws of z, exactly. Every row counts once, whatever its weight. The search is greedy:
    `n_agree` says how many starts ended at the same loss.

    Args:
        posterior: a tree with draws of z in the group `allocations`, as from `sample_posterior`; labels need not be
            undone of switching.
        loss: "vi", the variation of information, or "binder", which splits off more small clusters.
        max_clusters: of the estimate; by default the most that a draw has.
        coverage: share of the draws in the credible ball.
        n_starts: starts of the search.
        key: a JAX key or an int; seeds the search.

    Raises:
        ValueError: a tree without z, or options that are out of range.

    References:
        Wade & Ghahramani (2018), Bayesian Analysis 13, sections 3 and 4: credible balls and their bounds.
        Dahl, Johnson & Müller (2022), JCGS 31: the search.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> model = bm.MixtureModel(2, prior="weak")
        >>> posterior = bm.sample_posterior(model, x, key=0, method="gibbs", n_warmup=200, n_draws=500)
        >>> bm.partition(posterior).sizes
        array([175,  97])
    """
    z = allocations_of(posterior, "partition")
    as_name(loss, "loss", LOSSES)
    n_starts = as_count(n_starts, "n_starts")
    coverage = as_share(coverage, "coverage")
    draws = clusterings(z.values.reshape(-1, z.sizes["obs_id"]))
    most = draws.n_labels if max_clusters is None else as_count(max_clusters, "max_clusters")
    best, reached = search(draws, LOSSES[loss], min(most, draws.size.size), n_starts, as_generator(key))
    distance = distances_to(draws, LOSSES[loss], best)
    each = distance[draws.draw]
    radius = float(np.sort(each)[math.ceil(coverage * each.size) - 1])
    inside = np.flatnonzero(distance <= radius + _TINY)
    clusters = draws.labels[:, inside].max(axis=0) + 1
    return Partition(
        labels=_by_size(draws, best),
        loss=loss,
        expected_loss=float(distance @ draws.share),
        coverage=coverage,
        radius=radius,
        upper=_farthest(draws, distance, inside[clusters == clusters.min()]),
        lower=_farthest(draws, distance, inside[clusters == clusters.max()]),
        horizontal=_farthest(draws, distance, inside),
        distance=each.reshape(z.shape[:2]),
        reached=reached,
    )


def _farthest(draws: Clusterings, distance: np.ndarray, among: np.ndarray) -> Bound:
    one = among[np.argmax(distance[among])]
    return Bound(_by_size(draws, draws.labels[:, one]), float(distance[one]))


def _by_size(draws: Clusterings, labels: np.ndarray) -> np.ndarray:
    """The cluster of each row, 0 the largest; of equals the first that appears."""
    rows = labels[draws.group]
    _, first, dense, sizes = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
    return np.lexsort((first, -sizes)).argsort()[dense]


def _clusters(count: int) -> str:
    return f"{count} cluster{'s' * (count != 1)}"
