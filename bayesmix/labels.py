"""Which cluster of one mixture is which of another: labels are arbitrary, so they are matched, never trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.covariance import Covariance
from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["assigned", "exchangeable", "match_mixtures", "match_moments", "permuted", "unnamed"]


def unnamed(given: Int[np.ndarray, " n"], k: int) -> Bool[np.ndarray, " k"]:
    """Which clusters none of the rows names."""
    return ~np.isin(np.arange(k), given)


def exchangeable(
    free: Bool[np.ndarray, " k"], concentration: Any, alike: np.ndarray | bool = True
) -> Bool[np.ndarray, "k k"]:
    """Which cluster may take which label: its own, and those that are free and equally concentrated each other's."""
    every = np.broadcast_to(np.asarray(concentration, float), free.shape)
    return np.eye(len(free), dtype=bool) | (free[:, None] & free & (every[:, None] == every) & alike)


def match_moments(
    moments: np.ndarray, reference: np.ndarray, d: int, may: np.ndarray | None = None
) -> np.ndarray:
    """The order of clusters in `moments` (k, p) that is nearest to `reference` (k, p).

    The assignment minimises the sum of squared distances between the clusters' means, each feature in units
    of its spread over the clusters of the reference.
    """
    means = moments[:, 1 : 1 + d] / np.maximum(moments[:, :1], 1e-300)
    target = reference[:, 1 : 1 + d] / np.maximum(reference[:, :1], 1e-300)
    unit = np.maximum(target.std(axis=0), 1e-300)
    cost = (((target[:, None] - means[None]) / unit) ** 2).sum(axis=-1)
    return assigned(cost[None], may)[0]


def match_mixtures(
    means: np.ndarray, covariances: np.ndarray, reference: GaussianMixture, may: np.ndarray | None = None
) -> np.ndarray:
    """For mixtures (b, k, d), (b, k, d, d) the order (b, k) of their clusters that is nearest to a reference.

    The assignment minimises the sum of the clusters' Bhattacharyya distances, which see means and covariances and no
    units.
    """
    target, spread = np.asarray(reference.means), np.asarray(reference.covariances)
    between = (covariances[:, None] + spread[:, None]) / 2  # (b, reference, cluster, d, d)
    away = (means[:, None] - target[:, None])[..., None]
    squared = (away * np.linalg.solve(between, away)).sum(axis=(-2, -1))
    logs = [np.linalg.slogdet(c)[1] for c in (between, covariances, spread)]
    cost = squared / 8 + (logs[0] - (logs[1][:, None] + logs[2][:, None]) / 2) / 2
    return assigned(cost, may)


def assigned(
    cost: Float[np.ndarray, "s k k"], may: Bool[np.ndarray, "k k"] | None = None
) -> Int[np.ndarray, "s k"]:
    """For each of many costs[target, own] the order of the clusters that costs least: order[target] = own.

    `may` is which cluster may take which label, if not any.
    """
    from scipy.optimize import linear_sum_assignment

    if may is not None:
        cost = np.where(may, cost, np.inf)
    own = np.arange(cost.shape[1])
    order = np.tile(own, (len(cost), 1))
    for s in np.flatnonzero((cost.argmin(axis=2) != own).any(axis=1)):  # others are at rest
        order[s] = linear_sum_assignment(cost[s])[1]
    return order


def permuted(mixture: GaussianMixture, order: np.ndarray) -> GaussianMixture:
    """Mixtures (s, ...) with their clusters in the order (s, k)."""

    def take(a: Any) -> np.ndarray:
        return np.take_along_axis(
            np.asarray(a), order.reshape(*order.shape, *(1,) * (np.ndim(a) - 2)), axis=1
        )

    covariance = mixture.covariance
    if not covariance.row.shared:
        covariance = Covariance(take(covariance.values), mixture.structure)
    return replace(mixture, weights=take(mixture.weights), means=take(mixture.means), covariance=covariance)
