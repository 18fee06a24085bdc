"""First mixtures: where a search for an optimum starts, out of seeds, means, responsibilities or labels.

A start is made before anything is compiled, in NumPy, on centred and scaled data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bayesmix.blocks import CACHED, chunks_of
from bayesmix.covariance import Covariance, Structure, structure_of
from bayesmix.mixture import GaussianMixture
from bayesmix.statistics import Statistics, moments_of
from bayesmix.storage import STORAGES, per_cluster

__all__ = [
    "Start",
    "from_means",
    "from_partition",
    "from_responsibilities",
    "known_centres",
    "known_statistics",
    "splits",
    "unit_spheres",
]


class Start(NamedTuple):
    """A mixture, or statistics from which the first M-step makes one (the mixture then fills empty clusters)."""

    mixture: GaussianMixture
    statistics: Statistics | None = None


def _cluster_moments(
    x: Any, shares: Callable[[slice], Iterator[tuple[Any, np.ndarray]]], k: int, structure: Structure
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (k,), means (k, d) and scatters about the means in storage.

    Of a stretch of rows `shares` says which are each cluster's, and their weights. Stretches add up as parts of a
    sample do: their scatters, and that of their means.
    """
    d, form = x.shape[1], STORAGES[structure.storage]
    counts, means, scatters = np.zeros(k), np.zeros((k, d)), np.zeros((k, *(d,) * form.axes))
    for part in chunks_of(len(x), 2 * CACHED):
        some = x[part]
        for j, (members, weight) in enumerate(shares(part)):
            count = weight.sum()
            if not count > 0:
                continue
            points = some[members].astype(np.float64)
            mean = weight @ points / count
            points -= mean
            if form.axes == 2:
                scatter = (points * weight[:, None]).T @ points
            else:
                scatter = weight @ (points * points)
                scatter = scatter if form.axes else scatter.mean()
            if not counts[j]:
                counts[j], means[j], scatters[j] = count, mean, scatter
                continue
            share = count / (counts[j] + count)
            away = mean - means[j]
            scatters[j] += scatter + counts[j] * share * form.outer(away[None])[0]
            means[j] += share * away
            counts[j] += count
    return counts, means, scatters


def _by_label(labels: np.ndarray, weight: np.ndarray, k: int) -> Callable:
    """The shares of clusters of whole points, for `_cluster_moments`."""

    def shares(part: slice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        own, w = labels[part], weight[part]
        return ((members, w[members]) for members in ((own == j).nonzero()[0] for j in range(k)))

    return shares


def _mixture(means: np.ndarray, values: np.ndarray, structure: Structure) -> GaussianMixture:
    k = means.shape[0]
    values = np.broadcast_to(values, (1 if structure.shared else k, *values.shape[1:])).copy()
    return GaussianMixture(np.full(k, 1 / k), means.astype(np.float64), Covariance(values, structure.name))


def from_means(
    x: Any, weight: np.ndarray, means: np.ndarray, labels: np.ndarray, structure: Structure, floor: Any
) -> Start:
    """Equal weights, these means, and the pooled covariance of a partition; with a ridge where that is singular."""
    k = len(means)
    _, _, scatters = _cluster_moments(x, _by_label(labels, weight, k), k, structure)
    pooled: Any = scatters.sum(axis=0)[None] / weight.sum()
    deviations = structure.form.diagonal(structure.form.cholesky(pooled))
    if not (deviations**2 > floor.collapsed).all():
        pooled = pooled + floor.ridge
    return Start(_mixture(means, pooled, structure))


def unit_spheres(means: np.ndarray) -> GaussianMixture:
    """K-means: assignments do not depend on the size of the sphere, and ties stay ties."""
    return _mixture(means, np.ones(1), structure_of("EII"))


def from_partition(
    x: Any, weight: np.ndarray, seeds: np.ndarray, labels: np.ndarray, structure: Structure
) -> Start:
    """Our own starts: each cluster's own moments, but the pooled covariance where it has at most d + 1 points."""
    k, d = seeds.shape
    axes = STORAGES[structure.storage].axes
    counts, means, scatters = _cluster_moments(x, _by_label(labels, weight, k), k, structure)
    pooled = scatters.sum(axis=0)[None] / counts.sum()
    means = np.where(counts[:, None] > 0, means, seeds)
    few = counts <= d + 1
    scatters = np.where(per_cluster(few, axes), pooled * per_cluster(counts, axes), scatters)
    return Start(_mixture(means, pooled, structure), _statistics(counts, means, scatters, structure))


def known_statistics(
    x: Any, weight: np.ndarray, labels: np.ndarray, k: int, structure: Structure
) -> Statistics:
    """The statistics of the rows with a label from 0 to k - 1, each wholly in that cluster; others do not count."""
    return _statistics(*_cluster_moments(x, _by_label(labels, weight, k), k, structure), structure)


def known_centres(
    x: Any, weight: np.ndarray, labels: np.ndarray, k: int, structure: Structure
) -> tuple[np.ndarray, np.ndarray]:
    """Which clusters have rows, of those with a label from 0 to k - 1, and the means of these (m, d)."""
    moments = known_statistics(x, weight, labels, k, structure).moments
    named = np.flatnonzero(moments[:, 0] > 0)
    return named, moments[named, 1 : 1 + x.shape[1]] / moments[named, :1]


def from_responsibilities(x: Any, weight: np.ndarray, r: np.ndarray, k: int, structure: Structure) -> Start:
    """The M-step from given responsibilities (n, k), or labels (n,)."""

    def shares(part: slice) -> Iterator[tuple[slice, np.ndarray]]:
        return ((slice(None), own) for own in (r[part].T * weight[part]))

    parts = _by_label(r, weight, k) if r.ndim == 1 else shares
    counts, means, scatters = _cluster_moments(x, parts, k, structure)
    pooled = scatters.sum(axis=0)[None] / counts.sum()
    return Start(_mixture(means, pooled, structure), _statistics(counts, means, scatters, structure))


def _statistics(
    counts: np.ndarray, means: np.ndarray, scatters: np.ndarray, structure: Structure
) -> Statistics:
    second = None
    if structure.shared:
        storage = STORAGES[structure.storage]
        second = (scatters + storage.outer(means) * per_cluster(counts, storage.axes)).sum(axis=0)[None]
    return Statistics(moments_of(counts, means, scatters, structure), np.float64(-np.inf), second)


def splits(mixture: GaussianMixture) -> list[GaussianMixture]:
    """The mixtures with one cluster more in which one cluster is two, half a deviation apart along its longest axis."""
    found = []
    covariances = np.asarray(mixture.covariances, np.float64)
    for k in range(mixture.n_components):
        values, vectors = np.linalg.eigh(covariances[k])
        away = 0.5 * np.sqrt(values[-1]) * vectors[:, -1]
        weights = np.append(mixture.weights, mixture.weights[k] / 2)
        weights[k] /= 2
        means = np.concatenate([mixture.means, mixture.means[k : k + 1] - away])
        means[k] += away
        stored = np.asarray(mixture.covariance.values)
        stored = stored if mixture.covariance.row.shared else np.concatenate([stored, stored[k : k + 1]])
        found.append(GaussianMixture(weights, means, Covariance(stored, mixture.structure)))
    return found
