"""Seeds: rows that k clusters may grow from, and where Lloyd's steps take them.

They are drawn before anything is compiled, in NumPy, for several starts at once, each with a generator of its own.
Draws go by cumulative weight and exclude rows by equal value, so that a weight of three and three copies of a row give
the same starts. Seeds are distinct unless the data have fewer distinct rows than clusters.

References:
    Arthur & Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
    Grunau, Özüdoğru, Rozhoň & Tětek (2023), A nearly tight analysis of greedy k-means++, SODA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bayesmix.blocks import CACHED, chunks_of
from bayesmix.variates import indices

__all__ = ["SEEDS", "lloyd", "nearest", "plus_plus", "sample_rows", "squared_distances"]

_PRODUCTS = 2**18  # that are made at once, so that they stay in a cache

type Generators = Sequence[np.random.Generator]


def random_rows(
    x: np.ndarray, weight: np.ndarray, k: int, rngs: Generators, given: np.ndarray | None = None
) -> np.ndarray:
    """k rows of different values (starts, k, d), drawn by weight, whatever is given beside them."""
    seeds = np.empty((len(rngs), k, x.shape[1]), x.dtype)
    for chosen, rng in zip(seeds, rngs):
        free = weight.copy()
        for j in range(k):
            pick = indices(free if free.any() else weight, 1, rng)[0]
            chosen[j] = x[pick]
            free[(x == x[pick]).all(axis=1)] = 0
    return seeds


def plus_plus(
    x: np.ndarray, weight: np.ndarray, k: int, rngs: Generators, given: np.ndarray | None = None
) -> np.ndarray:
    """Greedy k-means++ (starts, k, d): each next row drawn by squared distance to those chosen, best of 2 + ln k.

    Centres that are given (m, d) count as chosen already.
    """
    if given is not None:  # as rows that are never drawn
        x, weight = np.concatenate([x, given.astype(x.dtype)]), np.append(weight, np.zeros(len(given)))
    starts, d = np.arange(len(rngs)), x.shape[1]
    away = np.full((len(rngs), len(x)), np.inf, x.dtype)  # squared, from the nearest of those chosen
    left = np.empty((len(rngs), 2 + int(math.log(max(k, 1))), len(x)), x.dtype)
    # Squared distances are a product, [-2 y, 1, y·y] @ [x, x·x, 1]; equal rows are at distance zero, as squares are
    # taken to be less by more than the rounding of the terms.
    less = (4 + math.sqrt(d)) * np.finfo(x.dtype).eps
    lengths = np.einsum("nd,nd->n", x, x) * (1 - less)
    columns = np.column_stack([x, lengths, np.ones_like(lengths)])
    shares = (weight / weight.max()).astype(x.dtype)

    def sums(rows: np.ndarray, left: np.ndarray) -> np.ndarray:
        """What would be `left` of that for each of some rows (starts, some), and its weighted sums."""
        seeds, total = columns[rows.ravel()], np.zeros(rows.shape)
        seeds = np.column_stack([-2 * seeds[:, :d], seeds[:, :-3:-1]])
        for part in chunks_of(len(x), max(1, _PRODUCTS // rows.size)):
            squared = (seeds @ columns[part].T).reshape(*rows.shape, -1)
            np.maximum(squared, 0, out=squared)
            total += np.minimum(away[:, None, part], squared, out=left[:, :, part]) @ shares[part]
        return total

    def drawn(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if chances.any():
            return indices(chances, left.shape[1], rng)
        return np.repeat(indices(weight, 1, rng), left.shape[1])  # no row is away from those chosen

    chosen = np.empty((len(rngs), 0), np.intp)
    if given is None:
        chosen = np.stack([indices(weight, 1, rng) for rng in rngs])
        sums(chosen, away[:, None])
    else:
        for row in range(len(x) - len(given), len(x)):
            sums(np.full((len(rngs), 1), row), away[:, None])
    while chosen.shape[1] < k:
        candidates = np.stack([drawn(own, rng) for own, rng in zip(weight * away, rngs)])
        best = np.argmin(sums(candidates, left), axis=1)
        chosen = np.column_stack([chosen, candidates[starts, best]])
        away[:] = left[starts, best]
    return x[chosen]


SEEDS: dict[str, Callable[[np.ndarray, np.ndarray, int, Generators, np.ndarray | None], np.ndarray]] = {
    "k-means++": plus_plus,
    "random": random_rows,
}


def nearest(x: Any, means: np.ndarray) -> np.ndarray:
    """The nearest mean of each row (n,) of an array or `units.Rows`, a tie to the lowest index."""
    labels = np.empty(x.shape[0], np.int64)
    half = np.einsum("kd,kd->k", means, means) / 2
    for rows in chunks_of(x.shape[0], CACHED):
        logits = x[rows] @ means.T
        logits -= half
        labels[rows] = np.argmax(logits, axis=1)
    return labels


def squared_distances(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """That of each row to its nearest mean (n,)."""
    labels, squared = nearest(x, means), np.empty(len(x))
    for rows in chunks_of(len(x), CACHED):
        away = x[rows] - np.take(means, labels[rows], axis=0)
        squared[rows] = np.einsum("nd,nd->n", away, away)
    return squared


def sample_rows(weight: np.ndarray, most: int, rng: np.random.Generator) -> Any:
    """All rows, or so many different ones drawn by weight, which are positive, one after the other."""
    if len(weight) <= most:
        return slice(None)
    free, some = weight.astype(np.float64), np.empty(0, np.intp)
    while len(some) < most:
        drawn = indices(free, most - len(some), rng)
        free[drawn] = 0
        some = np.union1d(some, drawn)
    return some


def lloyd(
    x: np.ndarray, weight: np.ndarray, means: np.ndarray, max_steps: int, given: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Means (starts, k, d) taken towards their k-means optima, and the nearest mean of each row (starts, n).

    One that loses all points moves to the farthest. Rows whose cluster is given (n,), not -1, stay in it. For starts
    only, of few points: compiling the loop would take longer. `kmeans` is the loop itself.
    """
    means, labels = means.copy(), _labels(x, means, given)
    going = np.arange(len(means))
    for _ in range(max_steps):
        last, before = labels[going], means[going]
        sums = (last[:, None] == np.arange(means.shape[1])[:, None]) * weight
        count = sums.sum(axis=2)[..., None]
        now = np.where(count > 0, sums @ x / np.where(count > 0, count, 1), before).astype(x.dtype)
        for s in np.flatnonzero((count == 0).any(axis=(1, 2))):
            squared = squared_distances(x, before[s])
            for empty in np.flatnonzero(count[s] == 0):
                now[s, empty] = x[np.argmax(squared)]
                squared[(x == now[s, empty]).all(axis=1)] = 0
        means[going], labels[going] = now, _labels(x, now, given)
        going = going[(labels[going] != last).any(axis=1)]
        if not going.size:
            break
    return means, labels


def _labels(x: np.ndarray, means: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    """As `nearest` has them, for several starts (starts, n), or as they are given."""
    labels = np.empty((len(means), len(x)), np.intp)
    half = np.einsum("skd,skd->sk", means, means)[..., None] / 2
    for part in chunks_of(len(x), CACHED):
        labels[:, part] = np.argmax(means @ x[part].T - half, axis=1)
    return labels if given is None else np.where(given >= 0, given, labels)
