"""Spurious clusters, which follow a few points rather than a group: a likelihood that is unbounded rewards them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesmix.mixture import GaussianMixture

__all__ = ["spacing", "spurious_clusters", "suspect"]

# A cluster whose smallest variance, in units of the pooled within-cluster covariance, is below this is spurious if
# it has up to ten times d + 1 points. Beyond, the limit on its standard deviation falls as one over the number of
# points: a few points are always near some plane, many are not unless there is one.
_RATIO = 1e-3


def spacing(column: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The spacing of the grid that a column was recorded on; zero where its values do not repeat.

    A row that weighs two or more is a repetition too.
    """
    head = column[:2000]
    values = np.unique(head)
    if values.size == head.size and (weight is None or (weight[:2000] < 2).all()):
        return 0.0
    gaps = np.diff(values if head.size == column.size else np.unique(column))
    return float(gaps.min()) if gaps.size else 0.0


def spurious_clusters(mixture: GaussianMixture, count: np.ndarray, grid: np.ndarray) -> dict[int, str]:
    """Which clusters follow a few points rather than a group, and why.

    Only where volumes vary, so that the likelihood is unbounded: at most d + 1 effective points; the smallest
    variance in units of the pooled within-cluster covariance below a thousandth, for clusters of more than
    ten times d + 1 points times (10 (d + 1) / points)²; or a variance below that of rounding to the column's grid,
    spacing² / 12.
    """
    few, ratios, thin, narrow = _signs(mixture, count, grid)
    d = mixture.n_features
    reasons = {}
    for k in np.flatnonzero(few | thin | narrow.any(axis=-1)).tolist():
        if few[k]:
            reasons[k] = f"holds {count[k]:.3g} points, no more than d + 1 = {d + 1}"
        elif thin[k]:
            reasons[k] = f"has a direction with {max(ratios[k], 0):.1e} of the pooled within-cluster variance"
        else:
            reasons[k] = f"is narrower than the rounding of feature {np.flatnonzero(narrow[k])[0]}"
    return reasons


def suspect(mixtures: GaussianMixture, count: np.ndarray, grid: np.ndarray, live: Any = True) -> np.ndarray:
    """Which of a batch of mixtures (...,) have `spurious_clusters`, all at once; those of no finite numbers have.

    Clusters that are not `live` (..., k) are padding, of no points.
    """
    few, _, thin, narrow = _signs(mixtures, count, grid)
    return ((few | thin | narrow.any(axis=-1)) & live).any(axis=-1)


def _signs(
    mixture: GaussianMixture, count: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each cluster (..., k): too few points, least variance by the pooled one, that too small, features narrow."""
    d, k = mixture.means.shape[-1], mixture.means.shape[-2]
    if not mixture.covariance.row.unbounded or k == 1:
        none = np.zeros(count.shape, bool)
        return none, np.ones(count.shape), none, np.zeros((*count.shape, d), bool)
    covariances = np.asarray(mixture.covariances, np.float64)
    finite = np.isfinite(covariances).all(axis=(-1, -2)) & np.isfinite(count)
    covariances = np.where(finite[..., None, None], covariances, np.eye(d))
    share = np.where(finite, count, 1)
    pooled = np.einsum("...k,...kij->...ij", share / share.sum(axis=-1, keepdims=True), covariances)
    deviations = np.sqrt(np.diagonal(pooled, axis1=-2, axis2=-1))
    unit = deviations[..., :, None] * deviations[..., None, :]
    values, vectors = np.linalg.eigh(pooled / unit)
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-300))[..., None, :])[..., None, :, :]
    inner = np.swapaxes(whiten, -1, -2) @ (covariances / unit[..., None, :, :]) @ whiten
    ratios = np.linalg.eigvalsh(inner)[..., 0]
    thin = ratios < _RATIO * np.minimum(1, 10 * (d + 1) / np.maximum(share, 1)) ** 2
    narrow = np.diagonal(covariances, axis1=-2, axis2=-1) < grid**2 / 12
    return (count <= d + 1) | ~finite, ratios, thin, narrow
