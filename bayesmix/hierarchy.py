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
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix.compilation import wide
from bayesmix.devices import double_precision
from bayesmix.elementary import log_positive

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["GROUPS", "POINTS", "agglomerate", "sphere", "ward"]

POINTS = 300  # that agglomeration begins with, at most; or so many of
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
    parent[np.asarray(children, int).reshape(-1, 2).T] = np.arange(n, 2 * n - 1)  # none of one leaf
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


class _Groups(NamedTuple):
    """What the cost of a group and of a union needs, groups last."""

    count: Array  # (m,)
    means: Array  # (d, m)
    scatter: Array  # (d, d, m)
    own: Array  # (m,) the group's cost, -inf where there is none

    def at(self, i: Array) -> _Groups:
        """The group i, with an axis of one."""
        return _Groups(*(lax.dynamic_slice_in_dim(a, i, 1, -1) for a in self))


def _det(scatter: Array) -> Array:
    """Determinants of semidefinite (d, d, ...) matrices, by elimination beyond 2 x 2."""
    d = len(scatter)
    if d == 1:
        return scatter[0, 0]
    if d == 2:
        return scatter[0, 0] * scatter[1, 1] - scatter[0, 1] * scatter[1, 0]

    def eliminate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, product = carry
        pivot = jnp.maximum(rest[j, j], 0)
        below = (jnp.arange(d) > j)[:, None]
        share = jnp.where(below, rest[:, j] / jnp.where(pivot > 0, pivot, 1), 0)
        return rest - share[:, None] * rest[j], product * pivot

    return lax.fori_loop(0, d, eliminate, (scatter, jnp.ones(scatter.shape[2:])))[1]


def _put(values: Array, own: Array, i: Array, axis: int = -1) -> Array:
    return lax.dynamic_update_slice_in_dim(values, own, i, axis)


@wide
def _merges(count: Array, means: Array, scatter: Array, typical: Array) -> Array:
    """Which two groups (a, b) each merge joins, a < b, in place a; of m groups those that count nothing are none.

    Kept of every pair i < j is what its union costs, in row j, and of each row the least and where that is. A merge
    computes the pairs of its group anew, and the least of a row whose own was a pair of a or b.
    """
    d, m = means.shape
    place, none = jnp.arange(m), jnp.full((1,), jnp.inf)

    def cost(count: Array, scatter: Array) -> Array:
        trace = sum(scatter[j, j] for j in range(d))
        return count * log_positive(jnp.maximum(_det(scatter / count), 0) + (trace + typical) / count)

    def union(one: _Groups, other: _Groups) -> tuple[Array, Array]:
        total, away = one.count + other.count, one.means - other.means
        apart = (one.count * other.count / total * away)[:, None] * away
        return total, one.scatter + other.scatter + apart

    def rises(groups: _Groups, j: Array) -> Array:
        one = groups.at(j)
        return jnp.where(groups.own > -jnp.inf, cost(*union(one, groups)) - one.own - groups.own, jnp.inf)

    def first(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        pairs, least, where = carry
        row = jnp.where((place < j) & live[j], rises(groups, j), jnp.inf)
        row, at = row[None], jnp.argmin(row)[None]
        return _put(pairs, row, j, 0), _put(least, row[0, at], j), _put(where, at, j)

    def merge(step: Array, carry: tuple) -> tuple:
        groups, pairs, least, where, merges = carry
        b = m - 1 - jnp.argmin(least[::-1])  # of equals the last, as mclust does
        a = where[b]
        one, other = groups.at(a), groups.at(b)
        total, scatter = union(one, other)
        mean = (one.count * one.means + other.count * other.means) / total
        new = _Groups(total, mean, scatter, one.own + other.own + least[b])
        groups = jax.tree.map(lambda values, own: _put(values, own, a), groups, new)
        groups = groups._replace(own=_put(groups.own, -none, b))
        row = rises(groups, a)
        before, after = jnp.where(place < a, row, jnp.inf), jnp.where(place > a, row, jnp.inf)
        column = jnp.where(place > a, row, pairs[:, a])
        pairs = _put(_put(pairs, column[:, None], a, 1), jnp.full((m, 1), jnp.inf), b, 1)
        pairs = _put(pairs, before[None], a, 0)
        better = (after < least) | ((after == least) & (a < where))
        stale = ((where == a) | (where == b)) & (groups.own > -jnp.inf) & (place > a) & ~better
        least, where = jnp.where(better, after, least), jnp.where(better, a, where)
        at = jnp.argmin(before)[None]
        least, where = _put(_put(least, before[at], a), none, b), _put(where, at, a)

        def look(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            stale, least, where = carry
            j = jnp.argmax(stale)
            at = jnp.argmin(pairs[j])[None]
            return _put(stale, jnp.zeros(1, bool), j), _put(least, pairs[j, at], j), _put(where, at, j)

        _, least, where = lax.while_loop(lambda carry: carry[0].any(), look, (stale, least, where))
        return groups, pairs, least, where, _put(merges, jnp.stack([a, b])[None], step, 0)

    live = count > 0
    count = jnp.where(live, count, 1)
    groups = _Groups(count, means, scatter, jnp.where(live, cost(count, scatter), -jnp.inf))
    blank = jnp.full((m, m), jnp.inf), jnp.full(m, jnp.inf), jnp.zeros(m, int)
    pairs, least, where = lax.fori_loop(0, m, first, blank)
    carry = groups, pairs, least, where, jnp.zeros((m, 2), int)
    return lax.fori_loop(0, live.sum() - 1, merge, carry)[-1]


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
    if n > POINTS:
        base = ward(x, [GROUPS])[GROUPS] if groups is None else groups
    m, size = int(base.max()) + 1, GROUPS if n > POINTS else POINTS
    one_hot = (base == np.arange(size)[:, None]) * weight
    count = one_hot.sum(axis=1)
    means = (one_hot @ x).T / np.maximum(count, 1e-300)
    second = (one_hot @ (x[:, :, None] * x[:, None]).reshape(n, -1)).T.reshape(d, d, size)
    scatter = second - count * means[:, None] * means
    center = weight @ x / weight.sum()
    typical = weight @ ((x - center) ** 2).sum(axis=1) / (weight.sum() * d) or 1.0  # no two rows differ
    with double_precision():
        merges = np.asarray(_merges(count, means, scatter, np.float64(typical)))
    names, children = list(range(m)), []
    for step, (a, b) in enumerate(merges[: m - 1].tolist()):
        children.append((names[a], names[b]))
        names[a] = m + step
    return {k: labels[base] for k, labels in _labels(children, m, counts).items()}
