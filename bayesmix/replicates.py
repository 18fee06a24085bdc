"""Replicates of the data, and the numbers that are computed from each data set alike.

A replicate is a data set of the same size that was simulated from the mixture and assigned to its clusters by the
same rule. Which number answers which question is the table in `discrepancy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["PAIRWISE", "Sample", "kolmogorov_smirnov", "look", "pairwise", "probabilities", "replicates"]
__all__ += ["some_rows", "transform", "weighted_quantiles"]

PAIRWISE = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_MOST_PAIRED = 500
_MOST_QUANTILES = 200


class Sample(NamedTuple):
    """One data set under the mixture: its rows, and of each the cluster, squared distance and log density."""

    x: Float[np.ndarray, "n d"]
    weight: Float[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    log_density: Float[np.ndarray, " n"]
    moments: dict[str, np.ndarray]
    paired: Float[np.ndarray, "m d"]


def look(mixture: GaussianMixture, x: np.ndarray, weight: np.ndarray, paired: Any) -> Sample:
    """The data set, with `paired` the rows whose distances from each other are looked at.

    log p(x, z=k) is largest at the cluster's mean m_k, so the squared Mahalanobis distance to the most probable
    cluster is 2 (log p(m_k, z=k) - log p(x, z=k)).
    """
    joint = mixture.log_joint(x)
    label = joint.argmax(axis=1)
    top = joint[np.arange(label.size), label]
    highest = np.diagonal(mixture.log_joint(np.asarray(mixture.means, np.float64)))
    with np.errstate(invalid="ignore"):
        log_density = top + np.log(np.exp(joint - top[:, None]).sum(axis=1))
    return Sample(
        x=x,
        weight=weight,
        label=label,
        distance=np.maximum(2 * (highest[label] - top), 0),
        log_density=log_density,
        moments=_moments(x, weight),
        paired=x[paired],
    )


def replicates(
    mixture: GaussianMixture, n: int, n_draws: int, generator: np.random.Generator
) -> Iterator[Sample]:
    """Simulated data sets of n rows, one after another."""
    for seed in generator.integers(2**63, size=n_draws):
        x = mixture.simulate(n, key=int(seed))[0].astype(np.float64)
        yield look(mixture, x, np.ones(n), slice(_MOST_PAIRED))


def some_rows(weight: np.ndarray, n: int, generator: np.random.Generator) -> Int[np.ndarray, " m"]:
    """At most 500 of n repetitions of the rows, as many each as its weight says, as row numbers."""
    repetition = np.arange(n)
    if n > _MOST_PAIRED:
        repetition = generator.choice(n, _MOST_PAIRED, replace=False)
    reached = np.cumsum(weight)
    return np.searchsorted(reached, (repetition + 0.5) * (reached[-1] / n), side="right")


def _moments(x: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Means, covariances (upper triangle), skewness and excess kurtosis, those of a population."""
    share = weight / weight.sum()
    mean = x[0] + share @ (x - x[0])
    away = x - mean
    scale = np.abs(away).max(axis=0)
    away /= np.where(scale > 0, scale, 1)
    covariance = (away * share[:, None]).T @ away
    variance = np.diagonal(covariance)
    standard = away / np.sqrt(np.where(variance > 0, variance, 1))
    square = standard * standard
    return {
        "means": mean,
        "covariances": (covariance * np.outer(scale, scale))[np.triu_indices(x.shape[1])],
        "skewness": share @ (square * standard),
        "kurtosis": share @ (square * square) - 3,
    }


def pairwise(x: np.ndarray) -> np.ndarray:
    """Quantiles of the distances between all pairs of rows."""
    from scipy.spatial.distance import pdist

    distances = np.sort(pdist(x))  # a third of the time of np.quantile, which partitions
    return np.interp(np.multiply(PAIRWISE, distances.size - 1), np.arange(distances.size), distances)


def probabilities(count: int) -> np.ndarray:
    """(rank - ½) / count: of every rank, or of 200 that lie evenly along the axis of an exponential law."""
    if count <= _MOST_QUANTILES:
        return (np.arange(count) + 0.5) / count
    even = np.linspace(-np.log1p(-0.5 / count), -np.log(0.5 / count), _MOST_QUANTILES)
    ranks = np.unique(np.clip(np.ceil(-np.expm1(-even) * count), 1, count))
    return (ranks - 0.5) / count


def weighted_quantiles(values: np.ndarray, weight: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """The smallest value whose cumulative weight reaches the probability; NaN where there is no weight."""
    if not values.size:
        return np.full(probability.shape, np.nan)
    order = np.argsort(values)
    reached = np.cumsum(weight[order])
    place = np.searchsorted(reached, probability * reached[-1])
    return values[order][np.minimum(place, values.size - 1)]


def transform(mixture: GaussianMixture, x: np.ndarray) -> Float[np.ndarray, " n"]:
    """u = P(X <= x) for one feature, Σ_k w_k Φ((x - m_k) / s_k); uniform under the mixture."""
    from scipy.special import ndtr

    means, weights = np.asarray(mixture.means, np.float64), np.asarray(mixture.weights, np.float64)
    deviations = np.sqrt(np.asarray(mixture.covariances, np.float64)[:, 0, 0])
    u = np.zeros(x.shape[0])
    for weight, mean, deviation in zip(weights, means[:, 0], deviations):
        u += weight * ndtr((x[:, 0] - mean) / deviation)
    return np.minimum(u, 1)


def kolmogorov_smirnov(u: np.ndarray, weight: np.ndarray) -> float:
    """The largest distance between the distribution function of u and the uniform law's."""
    order = np.argsort(u)
    reached = np.append(0.0, np.cumsum(weight[order]) / weight.sum())
    return float(np.maximum(reached[1:] - u[order], u[order] - reached[:-1]).max())
