"""What is a cluster? Components that overlap may be one: merge them, pair by pair, by entropy.

A mixture needs several Gaussians for one group that is not Gaussian. With r = p(z | x), the entropy

    -Σ_n Σ_k r_nk log r_nk

says how uncertain the assignment of the points is. From k clusters down to one, each step merges the pair a, b
whose union lowers it most, by

    Σ_n [ (r_na + r_nb) log(r_na + r_nb) - r_na log r_na - r_nb log r_nb ].

The density stays as it is; only what is called a cluster changes. Where the entropy stops falling fast, the
merges begin to join what is apart: the elbow.

References:
    Baudry, Raftery, Celeux, Lo & Gottardo (2010), Combining mixture components for clustering, Journal of
    Computational and Graphical Statistics 19, 332-353.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.inputs import as_count, as_name, as_points, as_weights
from bayesmix.mixture import GaussianMixture
from bayesmix.results import Fit, mixture_of

if TYPE_CHECKING:
    import pandas
    from jaxtyping import Float, Int

__all__ = ["MergeHierarchy", "merge_clusters"]

_BLOCK = 8192  # points at a time, so that a pair's columns stay in cache


@dataclass(frozen=True, eq=False)
class MergeHierarchy:
    """Clusters of a mixture, merged one pair at a time.

    A merged cluster keeps the lower number of the two that it is made of. Arrays by number of clusters m have
    their value for m at position m - 1.

    Attributes:
        mixture: whose clusters are merged.
        merges: (k-1, 2), the two clusters that each step merges, first step first, lower number first.
        entropy: (k,), -Σ r log r in nats with m clusters left; rises with m, and is zero for one.
        n_merged: (k,), how many observations the merges above one cluster down to m have touched: the total,
            over those merges, of the observations whose most probable cluster is one of the two.
        components: (n, k), the responsibilities before any merge.
    """

    mixture: GaussianMixture
    merges: Int[np.ndarray, "k-1 2"]
    entropy: Float[np.ndarray, " k"]
    n_merged: Float[np.ndarray, " k"]
    components: Float[np.ndarray, "n k"]

    @property
    def n_components(self) -> int:
        """k, before any merge."""
        return self.entropy.size

    def groups(self, m: int) -> Int[np.ndarray, " k"]:
        """The group, 0 to m - 1, of each original cluster when m are left; numbered by their lowest member."""
        m = self._count(m)
        lowest = np.arange(self.n_components)
        for a, b in self.merges[: self.n_components - m]:
            lowest[lowest == b] = a
        return np.unique(lowest, return_inverse=True)[1]

    def responsibilities(self, m: int) -> Float[np.ndarray, "n m"]:
        """p(group | x) with m groups: the sums of their members'."""
        groups = self.groups(m)
        return self.components @ (groups[:, None] == np.arange(m)).astype(self.components.dtype)

    def labels(self, m: int) -> Int[np.ndarray, " n"]:
        """The most probable of m groups for each row; a tie goes to the lowest."""
        return self.responsibilities(m).argmax(axis=1)

    def elbow(self, against: str = "merged") -> tuple[int, Float[np.ndarray, "line end 2"]]:
        """The number of clusters where two lines fit the entropy best, and those lines.

        Args:
            against: "merged", the cumulative count of merged observations, so that joining two large clusters
                may cost more than joining two small ones; or "clusters", the number of clusters, which is what
                mclust's `clustCombiOptim` looks at.

        Returns:
            m, between 2 and k - 1, the point that both lines share; and each line's two ends (place, entropy).
            With one or two clusters there is no elbow: k is returned, and no line.
        """
        as_name(against, "against", ("merged", "clusters"))
        place = self.n_merged if against == "merged" else np.arange(1.0, self.n_components + 1)
        return _elbow(place, self.entropy)

    @property
    def n_elbow(self) -> int:
        """The elbow of the entropy against the cumulative count of merged observations."""
        return self.elbow()[0]

    def summary(self) -> pandas.DataFrame:
        """A row per number of clusters, k first: which two were merged to get there, and the entropy."""
        import pandas

        counts = np.arange(self.n_components, 0, -1)
        pairs = ["", *(f"{a} + {b}" for a, b in self.merges)]
        columns = {
            "merged": pairs,
            "entropy": self.entropy[counts - 1],
            "lowered by": np.append(0.0, -np.diff(self.entropy[::-1])),
            "merged observations": self.n_merged[counts - 1],
            "elbow": counts == self.n_elbow,
        }
        return pandas.DataFrame(columns, index=pandas.Index(counts, name="clusters"))

    def plot(self, *, ax: Any = None) -> np.ndarray:
        """The tree of merges and the entropy, by `bayesmix.plots.plot_merging`."""
        from bayesmix.plots import plot_merging

        return plot_merging(self, ax=ax)

    def __repr__(self) -> str:
        steps = ", ".join(f"{a} + {b}" for a, b in self.merges)
        return f"MergeHierarchy(k={self.n_components}, n_elbow={self.n_elbow}, merges: {steps or 'none'})"

    def _count(self, m: int) -> int:
        if as_count(m, "m") > self.n_components:
            raise ValueError(f"m must be at most the {self.n_components} clusters of the mixture, not {m}")
        return int(m)


def merge_clusters(fit: Fit | GaussianMixture, x: Any, *, sample_weight: Any = None) -> MergeHierarchy:
    """Merge the clusters that overlap, from k down to one, each time the pair that lowers the entropy most.

    Args:
        fit: a fit, or a mixture.
        x: data (n, d), usually those of the fit.
        sample_weight: (n,), how often each row counts.

    Returns:
        The hierarchy, whose labels and responsibilities are those of the rows of x.

    Raises:
        ValueError: no mixture, or data or weights that do not fit it.

    Example:
        >>> import bayesmix as bm
        >>> mixture = bm.GaussianMixture.of([0.3, 0.4, 0.3], [[0.0], [9.0], [1.0]], [[[1.0]]] * 3)
        >>> x, z = mixture.simulate(300, key=0)
        >>> hierarchy = bm.merge_clusters(mixture, x)
        >>> hierarchy
        MergeHierarchy(k=3, n_elbow=2, merges: 0 + 2, 0 + 1)
        >>> hierarchy.groups(2)
        array([0, 1, 0])
    """
    mixture = mixture_of(fit)
    points = as_points(x, n_features=mixture.n_features, known=mixture.feature_names)
    r = mixture.responsibilities(points.values)
    weight = as_weights(sample_weight, r.shape[0])
    merges, gains, touched = _merge(np.array(r.T, np.float64, order="C"), weight)
    return MergeHierarchy(
        mixture=mixture,
        merges=merges,
        entropy=np.append(0.0, np.cumsum(gains[::-1])),
        n_merged=np.append(0.0, np.cumsum(touched[::-1])),
        components=r,
    )


def _merge(
    r: Float[np.ndarray, "k n"], weight: np.ndarray
) -> tuple[Int[np.ndarray, "k-1 2"], np.ndarray, np.ndarray]:
    """The merges, by how much each lowers the entropy, and how many observations it touches; r is used up.

    A merge changes the gains of its own pairs only, so all of them together take O(n k²).
    """
    k = r.shape[0]
    gain = np.full((k, k), -np.inf)
    for a in range(k - 1):
        gain[a, a + 1 :] = _gain(r[a], r[a + 1 :], weight)
    merges, gains, touched = np.empty((k - 1, 2), int), np.empty(k - 1), np.empty(k - 1)
    left = np.arange(k)
    for step in range(k - 1):
        a, b = np.unravel_index(gain.argmax(), gain.shape)
        merges[step], gains[step] = (a, b), gain[a, b]
        touched[step] = weight[np.isin(r.argmax(axis=0), (a, b))].sum()
        r[a] += r[b]
        r[b] = 0
        left = left[left != b]
        gain[b] = gain[:, b] = -np.inf
        others = left[left != a]
        gain[np.minimum(a, others), np.maximum(a, others)] = _gain(r[a], r[others], weight)
    return merges, gains, touched


def _gain(one: Float[np.ndarray, " n"], others: Float[np.ndarray, "m n"], weight: np.ndarray) -> np.ndarray:
    """By how much uniting one with each of the others lowers the entropy (m,).

    With small <= large the two responsibilities of a point and t their ratio, its share is
    (small + large) log(1 + t) - small log t: no term is negative, so that nothing cancels.
    """
    from scipy.special import xlogy

    total = np.zeros(others.shape[0])
    for start in range(0, one.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        small, large = np.minimum(one[block], others[:, block]), np.maximum(one[block], others[:, block])
        ratio = np.divide(small, large, out=np.zeros_like(small), where=large > 0)
        total += ((small + large) * np.log1p(ratio) - xlogy(small, ratio)) @ weight[block]
    return total


def _elbow(place: np.ndarray, entropy: np.ndarray) -> tuple[int, Float[np.ndarray, "line end 2"]]:
    """The break with the smallest sum of squares, and the ends of its two lines, which share one point."""
    k = entropy.size
    if k < 3:
        return k, np.empty((0, 2, 2))
    fits = []
    for m in range(2, k):
        parts = [_line(place[part], entropy[part]) for part in (slice(0, m), slice(m - 1, k))]
        fits.append((sum(squares for squares, _ in parts), m, np.array([ends for _, ends in parts])))
    _, m, lines = min(fits, key=lambda fit: fit[:2])
    return m, lines


def _line(place: np.ndarray, height: np.ndarray) -> tuple[float, np.ndarray]:
    """Least squares: the sum of squares, and the two ends of the line."""
    away = place - place.mean()
    spread = away @ away
    slope = away @ height / spread if spread > 0 else 0.0
    fitted = height.mean() + slope * away
    ends = np.array([[place[0], fitted[0]], [place[-1], fitted[-1]]])
    return float(((height - fitted) ** 2).sum()), ends
