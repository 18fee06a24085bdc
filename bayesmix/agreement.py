"""How far two clusterings of the same rows agree, whatever their clusters are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["adjusted_rand_index", "cross_counts"]


def adjusted_rand_index(first: Any, second: Any) -> float:
    """The share of pairs of rows on which two clusterings agree, moved so that chance is zero and the most is one.

    Names of clusters play no role. Pairs that both put together are counted, less what is expected where rows
    are dealt at random to clusters of the same sizes; below zero is less than chance.

    Args:
        first: the cluster of each row (n,): numbers or words.
        second: that of the other clustering (n,).

    Returns:
        One where the two are the same up to names; also where both join all rows, or both none.

    Raises:
        ValueError: not two lists of the same length, or empty ones.

    References:
        Hubert & Arabie (1985), Comparing partitions, Journal of Classification 2, 193-218.

    Example:
        >>> import bayesmix as bm
        >>> bm.adjusted_rand_index([0, 0, 1, 1], ["b", "b", "a", "a"])
        1.0
        >>> round(bm.adjusted_rand_index([0, 0, 1, 1], [0, 0, 1, 2]), 4)
        0.5714
    """
    counts = cross_counts(first, second)[2]
    both, n = int(_pairs(counts)), int(counts.sum())
    one, other = (int(_pairs(counts.sum(axis=axis))) for axis in (1, 0))
    if both == one == other:  # the same; also both one cluster, or both one a row, where chance agrees too
        return 1.0
    expected = one * other / _pairs(n)
    return float((both - expected) / ((one + other) / 2 - expected))


def cross_counts(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray, Int[np.ndarray, "a b"]]:
    """The names of both clusterings, in order, and how many rows are in each pair of clusters.

    Raises:
        ValueError: not two lists of the same length, or empty ones.
    """
    one, other = np.asarray(first), np.asarray(second)
    if one.ndim != 1 or one.shape != other.shape or not one.size:
        raise ValueError(
            f"two clusterings of the same rows are needed, (n,) each; these have shapes {one.shape} and {other.shape}"
        )
    (rows, i), (columns, j) = (np.unique(labels, return_inverse=True) for labels in (one, other))
    counts = np.zeros((rows.size, columns.size), np.int64)
    np.add.at(counts, (i, j), 1)
    return rows, columns, counts


def _pairs(counts: Any) -> Any:
    """How many pairs there are within groups of these sizes."""
    return (np.asarray(counts, np.int64) * (np.asarray(counts, np.int64) - 1) // 2).sum()
