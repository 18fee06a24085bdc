"""Partitions of the rows for a search to start from: agglomerated, Ward's, by quantiles, and drawn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.hierarchy import GROUPS, POINTS, agglomerate, sphere, ward
from bayesmix.keys import as_generator
from bayesmix.labels import assigned
from bayesmix.seeds import nearest, plus_plus

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["Starts", "partition"]

_SUBSET = 2000  # rows that starts are drawn from, at most


class Starts(NamedTuple):
    """Some rows, and partitions of them into each number of clusters."""

    rows: Int[np.ndarray, " m"]
    partitions: dict[int, list[Int[np.ndarray, " m"]]]


def partition(
    x: np.ndarray,
    weight: np.ndarray,
    counts: list[int],
    n_starts: int,
    key: Any,
    given: np.ndarray | None = None,
) -> Starts:
    """Partitions of the rows, or of a subset drawn without replacement, into each number of clusters.

    Of rows whose clusters are given, not -1, half of the subset at most; they are in them.
    """
    generator = as_generator(key)
    rows = np.arange(len(x))
    if len(x) > _SUBSET:
        told = np.empty(0, np.intp) if given is None else np.flatnonzero(given >= 0)
        if len(told) > _SUBSET // 2:
            told = generator.choice(told, _SUBSET // 2, replace=False)
        others = np.setdiff1d(rows, told)
        drawn = others[generator.choice(len(others), _SUBSET - len(told), replace=False)]
        rows = np.sort(np.concatenate([told, drawn]))
        counts = [k for k in counts if k <= _SUBSET]
    w = weight[rows]
    away = x[rows].astype(np.float64) - x[rows[0]].astype(np.float64)
    z = sphere(away - w @ away / w.sum(), w)
    if not z.shape[1]:  # all rows are equal
        z = np.zeros((len(rows), 1))
    with ThreadPoolExecutor(1) as beside:
        many = len(z) > POINTS  # so agglomeration needs Ward's groups
        wards = ward(z, [*counts, GROUPS]) if many else {}
        merged = beside.submit(agglomerate, z, w, counts, wards.get(GROUPS))
        trees = [_quantile_groups(z[:, 0], w, counts)] if x.shape[1] == 1 else []
        drawn = {
            k: [nearest(z, plus_plus(z, w, k, [generator])[0]) for _ in range(n_starts - 2 - len(trees))]
            for k in counts
        }
        wards = wards if many else ward(z, counts)
        trees += [merged.result(), wards]
    partitions = {}
    for k in counts:
        some = [tree[k] for tree in trees[:n_starts]]
        some += [np.unique(labels, return_inverse=True)[1] for labels in drawn[k]]
        whole = [labels for labels in some if labels.max() + 1 == k]
        partitions[k] = (whole or some[:1]) if k > 1 else some[:1]
        if given is not None:
            partitions[k] = [_with_known(labels, given[rows], k) for labels in partitions[k]]
    return Starts(rows, partitions)


def _with_known(labels: np.ndarray, given: np.ndarray, k: int) -> np.ndarray:
    """The partition under the names that agree with most of the known clusters, and in agreement with them all."""
    known = given >= 0
    shared = np.zeros((k, k))  # of groups and of clusters
    np.add.at(shared, (labels[known], given[known]), 1)
    return np.where(known, given, assigned(-shared[None])[0][labels])


def _quantile_groups(z: np.ndarray, weight: np.ndarray, counts: list[int]) -> dict[int, np.ndarray]:
    """One feature cut at its quantiles, so that groups are equally heavy: mclust's start there."""
    order = np.argsort(z, kind="stable")
    last = np.cumsum(weight[order])  # repetitions of order[i] end before this place of the sorted sample
    total = last[-1]

    def quantile(share: float) -> float:
        place = share * (total - 1)
        low, high = (z[order[np.searchsorted(last, p, side="right").clip(max=len(z) - 1)]] for p in
                     (np.floor(place), np.floor(place) + 1))  # fmt: skip
        return low + (place - np.floor(place)) * (high - low)

    return {k: np.searchsorted([quantile(i / k) for i in range(1, k)], z, side="left") for k in counts}
