"""Model-based agglomerative clustering: partitions into every number of clusters, without luck.

Groups are merged two at a time, the pair first whose union costs the classification likelihood least:

    cost of a group = n log( |W / n| + (tr W + t / N d) / n ),   W its scatter, t the trace of that of all N points

where the second term lets a few points have a cost at all: they are judged by distance, and larger groups by their own
shape. Agglomeration begins with the points, or with Ward's groups where there are many. Of pairs that cost the same the
last is merged, as mclust does.

References:
    Fraley (1998), Algorithms for model-based Gaussian hierarchical clustering, SIAM J. Sci. Comput. 20.
    Ward (1963), Hierarchical grouping to optimize an objective function. Scrucca & Raftery (2015), Improved
    initialisation of model-based clustering using Gaussian hierarchical partitions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

__all__ = ["GROUPS", "agglomerate", "sphere", "ward"]

_POINTS = 300  # that agglomeration begins with, at most; or so many of
GROUPS = 120  # Ward's groups


def sphere(x: Float[np.ndarray, "n d"], weight: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
    """Centred rows of standardised columns in their principal axes, each divided by the root of its singular value.

    So the first axes still count for more, but less than they did: the scaling of Scrucca & Raftery. Axes without
    variance are dropped.
    """
    deviation = np.sqrt(weight @ (x * x) / max(weight.sum() - 1, weight.sum() / 2))
    unit = x / np.where(deviation > 0, deviation, 1)
    values, vectors = np.linalg.eigh((weight * unit.T) @ unit)
    keep = values > 1e-10 * max(values[-1], 1e-300)
    return unit @ (vectors[:, keep] / values[keep] ** 0.25)[:, ::-1]


def _labels(children: Any, n: int, counts: Iterable[int]) -> dict[int, np.ndarray]:
    """The partition of n leaves into each number of groups up to n, from merges in the manner of SciPy's linkage."""
    parent = np.arange(2 * n - 1)
    parent[np.reshape(children, (-1, 2)).T] = np.arange(n, 2 * n - 1)
    found = {}
    for k in (k for k in counts if k <= n):
        nodes = np.arange(2 * n - k)  # those there are when k groups are left
        above = np.where(parent[nodes] < nodes.size, parent[nodes], nodes)
        while (above != above[above]).any():
            above = above[above]
        found[k] = np.unique(above[:n], return_inverse=True)[1]
    return found


def ward(x: Float[np.ndarray, "n d"], counts: Iterable[int]) -> dict[int, Int[np.ndarray, " n"]]:
    """Ward's partitions of the rows into each number of groups; equal spheres, EII."""
    if len(x) == 1:
        return {1: np.zeros(1, int)}
    from scipy.cluster.hierarchy import linkage

    tree = linkage(x, "ward")
    return _labels(tree[:, :2].astype(int), len(x), counts)


def _det(scatter: np.ndarray) -> np.ndarray:
    """Determinants of (d, d, ...) matrices; of small ones, of which there are many, by the formula."""
    if len(scatter) == 1:
        return scatter[0, 0]
    if len(scatter) == 2:
        return scatter[0, 0] * scatter[1, 1] - scatter[0, 1] * scatter[1, 0]
    return np.linalg.det(np.moveaxis(scatter, (0, 1), (-2, -1)))


def agglomerate(
    x: Float[np.ndarray, "n d"],
    weight: Float[np.ndarray, " n"],
    counts: Iterable[int],
    groups: Int[np.ndarray, " n"] | None = None,
) -> dict[int, Int[np.ndarray, " n"]]:
    """Partitions of the rows into each number of groups by the classification likelihood with free covariances.

    Args:
        x: sphered rows.
        weight: (n,), positive.
        counts: how many groups; more than there are rows are left out.
        groups: Ward's partition into `GROUPS`, where it is known already.
    """
    counts = [k for k in counts if k <= len(x)]
    n, d = x.shape
    base = np.arange(n)
    if n > _POINTS:
        base = ward(x, [GROUPS])[GROUPS] if groups is None else groups
    m = base.max() + 1
    one_hot = (base == np.arange(m)[:, None]) * weight
    # Groups last: each of the few numbers of a group is then a row, and NumPy is called for rows only.
    count = one_hot.sum(axis=1)
    means = (one_hot @ x).T / count
    second = (one_hot @ (x[:, :, None] * x[:, None]).reshape(n, -1)).T.reshape(d, d, m)
    scatter = second - count * means[:, None] * means
    center = weight @ x / weight.sum()
    typical = weight @ ((x - center) ** 2).sum(axis=1) / (weight.sum() * d) or 1.0  # no two rows differ

    def cost(count: np.ndarray, scatter: np.ndarray) -> np.ndarray:
        trace = sum(scatter[j, j] for j in range(d))
        return count * np.log(np.maximum(_det(scatter / count), 0) + (trace + typical) / count)

    def joined(i: tuple, j: tuple) -> tuple[np.ndarray, np.ndarray]:
        total = count[*i] + count[*j]
        away = means[..., *i] - means[..., *j]
        apart = (count[*i] * count[*j] / total * away)[:, None] * away
        return total, scatter[..., *i] + scatter[..., *j] + apart

    own = cost(count, scatter)
    # What the union of i and j, i < j, costs, at [m - 1 - j, i]: the first of the least is the pair to merge.
    rises = np.full((m, m), np.inf)
    for j in range(1, m):
        first, second = (slice(j),), (slice(j, j + 1),)
        rises[m - 1 - j, :j] = cost(*joined(first, second)) - own[:j] - own[j]
    names, merges = np.arange(m), []
    for step in range(m - 1):
        if m - step <= 0.75 * len(names):
            keep = own > -np.inf
            count, means, scatter, own, names = (v[..., keep] for v in (count, means, scatter, own, names))
            rises = rises[keep[::-1]][:, keep]
        last = len(names) - 1
        row, a = divmod(int(rises.argmin()), last + 1)
        b = last - row
        merges.append((int(names[a]), int(names[b])))
        names[a] = m + step
        one = (slice(a, a + 1),)
        total, together = joined(one, (slice(b, b + 1),))
        means[:, a] = (count[a] * means[:, a] + count[b] * means[:, b]) / total
        count[a], scatter[..., a] = total[0], together[..., 0]
        own[a] += own[b] + rises[row, a]
        own[b] = -np.inf  # gone, so that no union with it costs less than infinity
        rises[row], rises[:, b] = np.inf, np.inf
        new = cost(*joined(one, (slice(None),))) - own[a] - own
        rises[last - a, :a] = new[:a]
        rises[: last - a, a] = new[:a:-1]
    return {k: labels[base] for k, labels in _labels(merges, int(m), counts).items()}
