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


def _labels(children: list[tuple[int, int]], n: int, counts: Iterable[int]) -> dict[int, np.ndarray]:
    """The partition of n leaves into each number of groups, from merges in the manner of SciPy's linkage."""
    wanted, found = set(counts), {}
    group = np.arange(n)
    if n in wanted:
        found[n] = np.arange(n)
    for step, (a, b) in enumerate(children):
        group[(group == a) | (group == b)] = n + step
        left = n - step - 1
        if left in wanted:
            found[left] = np.unique(group, return_inverse=True)[1]
    return found


def ward(x: Float[np.ndarray, "n d"], counts: Iterable[int]) -> dict[int, Int[np.ndarray, " n"]]:
    """Ward's partitions of the rows into each number of groups; equal spheres, EII."""
    if len(x) == 1:
        return {1: np.zeros(1, int)}
    from scipy.cluster.hierarchy import linkage

    tree = linkage(x, "ward")
    return _labels([(int(a), int(b)) for a, b in tree[:, :2]], len(x), counts)


def _det(matrices: np.ndarray) -> np.ndarray:
    """Determinants; of 2 x 2 matrices, of which there are many, by the formula."""
    if matrices.shape[-1] != 2:
        return np.linalg.det(matrices)
    return matrices[..., 0, 0] * matrices[..., 1, 1] - matrices[..., 0, 1] * matrices[..., 1, 0]


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
    count, means = one_hot.sum(axis=1), one_hot @ x / one_hot.sum(axis=1)[:, None]
    second = np.einsum("mn,ni,nj->mij", one_hot, x, x, optimize=True)
    scatter = second - count[:, None, None] * means[:, :, None] * means[:, None, :]
    center = weight @ x / weight.sum()
    typical = weight @ ((x - center) ** 2).sum(axis=1) / (weight.sum() * d) or 1.0  # no two rows differ

    def cost(count: np.ndarray, scatter: np.ndarray) -> np.ndarray:
        trace = np.trace(scatter, axis1=-2, axis2=-1)
        return count * np.log(_det(scatter / count[..., None, None]).clip(0) + (trace + typical) / count)

    def joined(i: int | np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total = count[i] + count[j]
        away = means[i] - means[j]
        share = (count[i] * count[j] / total)[..., None, None]
        return total, scatter[i] + scatter[j] + share * away[..., :, None] * away[..., None, :]

    own = cost(count, scatter)
    # What each union costs: row j holds the pairs (i, j), i < j, and `least` each row's smallest.
    rises = np.full((m, m), np.inf)
    i, j = np.triu_indices(m, 1)
    rises[j, i] = cost(*joined(i, j)) - own[i] - own[j]
    least, where = rises.min(axis=1), rises.argmin(axis=1)
    names, merges = np.arange(m), []
    for step in range(m - 1):
        b = m - 1 - int(np.argmin(least[::-1]))
        a = int(where[b])
        total, together = joined(a, np.array([b]))
        means[a] = (count[a] * means[a] + count[b] * means[b]) / total[0]
        count[a], scatter[a] = total[0], together[0]
        merges.append((int(names[a]), int(names[b])))
        names[a], names[b] = m + step, -1
        rises[b], rises[:, b] = np.inf, np.inf
        others = np.flatnonzero(names >= 0)
        others = others[others != a]
        own[a] = cost(count[a : a + 1], scatter[a : a + 1])[0]
        new = cost(*joined(a, others)) - own[a] - own[others]
        rises[np.maximum(a, others), np.minimum(a, others)] = new
        above = others > a
        rows, values = others[above], new[above]
        lower = values < least[rows]
        touched = (where[rows] == a) & ~lower
        least[rows[lower]], where[rows[lower]] = values[lower], a
        lost = (where == b) & (names >= 0)
        lost[rows[touched]], lost[a] = True, True
        least[b] = np.inf
        stale = np.flatnonzero(lost)
        least[stale], where[stale] = rises[stale].min(axis=1), rises[stale].argmin(axis=1)
    return {k: labels[base] for k, labels in _labels(merges, int(m), counts).items()}
