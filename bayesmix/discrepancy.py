"""How far out are the data among their replicates? A table of questions, and one rule that answers them all.

If x came from the mixture, then x and B simulated data sets are B + 1 sets of one kind, so the rank of any number T
of x among those of all is uniform: the tail probability

    (how many of the B + 1 sets have a T at least as far out) / (B + 1)

needs no asymptotic law. A question computes several numbers from each set, such as the kurtosis of every feature.
Each has a tail of its own; together they have that of the largest, or of the root mean square, of their departures
from the mean of the sets in standard deviations.

References:
    Besag & Clifford (1989), Generalized Monte Carlo significance tests, Biometrika 76, 633-642.
    Wilson & Hilferty (1931), The distribution of chi-square, PNAS 17, 684-688: its cube root is nearly normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.mixture import GaussianMixture
from bayesmix.replicates import (
    PAIRWISE,
    Sample,
    kolmogorov_smirnov,
    pairwise,
    probabilities,
    transform,
    weighted_quantiles,
)

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Check", "DistanceCheck", "Question", "answer", "distance_answer", "questions"]

_DIFFERS, _DOUBTFUL = 0.01, 0.05
_INTERVALS = {"both": (0.025, 0.975), "high": (0.0, 0.95), "low": (0.05, 1.0)}


@dataclass(frozen=True, eq=False)
class Check:
    """One question, as numbers of the data and what simulation gives for them.

    Attributes:
        quantities: what each number is (q,).
        observed: of the data (q,).
        expected: median of the replicates (q,).
        low: with `high`, where 95% of the replicates are, for each number by itself (q,).
        high: the upper end (q,).
        tails: the tail probability of each number by itself (q,).
        tail: that of all numbers together.
        farthest: which number departs most, in standard deviations of the replicates.
    """

    quantities: tuple[str, ...]
    observed: Float[np.ndarray, " q"]
    expected: Float[np.ndarray, " q"]
    low: Float[np.ndarray, " q"]
    high: Float[np.ndarray, " q"]
    tails: Float[np.ndarray, " q"]
    tail: float
    farthest: int

    @property
    def differs(self) -> bool:
        """Whether the tail probability is at most 0.01."""
        return self.tail <= _DIFFERS

    @property
    def verdict(self) -> str:
        """In words: "agrees", or which number departs most, and where the replicates have it."""
        if np.isnan(self.observed).any():
            return "no points"
        if self.tail > _DOUBTFUL:
            return "agrees"
        q = self.farthest
        return (
            f"{'differs' if self.differs else 'doubtful'}: {self.quantities[q]} is {self.observed[q]:.4g}, "
            f"simulated {self.low[q]:.4g} to {self.high[q]:.4g}"
        )


@dataclass(frozen=True, eq=False)
class DistanceCheck(Check):
    """The squared Mahalanobis distances of one cluster's points, by their quantiles.

    Attributes:
        probability: of each quantile (q,).
        chi_square: the quantiles of the chi-square law with d degrees, right for a cluster far from others (q,).
        n_points: how many points are assigned to the cluster.
    """

    probability: Float[np.ndarray, " q"]
    chi_square: Float[np.ndarray, " q"]
    n_points: float


class Question(NamedTuple):
    """A row of the table.

    Attributes:
        compute: numbers (q,) of a data set.
        quantities: what each of them is.
        side: which end is far out: "both", "high" or "low".
        combine: the departures of several numbers, as one: "largest", or "all" for their root mean square,
            which sees a whole curve that is off.
        stretch: of the numbers, before their departures are taken.
    """

    compute: Callable[[Sample], Any]
    quantities: tuple[str, ...]
    side: str = "both"
    combine: str = "largest"
    stretch: Callable[[np.ndarray], np.ndarray] = np.asarray


def questions(mixture: GaussianMixture, n: int, names: tuple[str, ...]) -> dict[str, Question]:
    """The table, for a mixture and data sets of n points."""
    d, clusters = mixture.n_features, range(mixture.n_components)
    pairs = [(names[i], names[j]) for i, j in zip(*np.triu_indices(d))]
    words = {
        "means": [f"mean of {name}" for name in names],
        "covariances": [f"variance of {a}" if a == b else f"covariance of {a}, {b}" for a, b in pairs],
        "skewness": [f"skewness of {name}" for name in names],
        "kurtosis": [f"excess kurtosis of {name}" for name in names],
    }
    scale = _spread(mixture)
    table = {
        "cluster sizes": Question(
            lambda s: np.bincount(s.label, s.weight, len(clusters)),
            tuple(f"points of cluster {c}" for c in clusters),
        )
    }
    table |= {f"distances in cluster {c}": _distances(mixture, n, c) for c in clusters}
    table |= {name: Question(partial(_moment, name), tuple(text)) for name, text in words.items()}
    table["pairwise distances"] = Question(
        lambda s: pairwise(s.paired / scale), tuple(map(_quantile, PAIRWISE)), combine="all"
    )
    if d == 1:
        table["distribution"] = Question(
            lambda s: [kolmogorov_smirnov(transform(mixture, s.x), s.weight)],
            ("Kolmogorov-Smirnov distance",),
            side="high",
        )
    table["lowest log density"] = Question(
        lambda s: [s.log_density.min()], ("lowest log density",), side="low"
    )
    return table


def _moment(name: str, sample: Sample) -> np.ndarray:
    return sample.moments[name]


def _quantile(probability: float) -> str:
    return f"{100 * probability:.4g}% quantile"


def _distances(mixture: GaussianMixture, n: int, cluster: int) -> Question:
    """At fixed probabilities, as many as the cluster is expected to have points."""
    probability = _cluster_probabilities(mixture, n, cluster)

    def compute(sample: Sample) -> np.ndarray:
        mine = sample.label == cluster
        return weighted_quantiles(sample.distance[mine], sample.weight[mine], probability)

    return Question(compute, tuple(map(_quantile, probability)), combine="all", stretch=np.cbrt)


def _cluster_probabilities(mixture: GaussianMixture, n: int, cluster: int) -> np.ndarray:
    return probabilities(max(1, round(n * float(mixture.weights[cluster]))))


def _spread(mixture: GaussianMixture) -> Float[np.ndarray, " d"]:
    """The mixture's standard deviation along each feature."""
    weights, means = np.asarray(mixture.weights, np.float64), np.asarray(mixture.means, np.float64)
    away = means - means[0]
    variance = weights @ (away - weights @ away) ** 2
    return np.sqrt(variance + weights @ np.diagonal(mixture.covariances, axis1=1, axis2=2))


def answer(question: Question, sets: Float[np.ndarray, "set q"]) -> Check:
    """The data's numbers, first row, among those of all sets; sets without any (NaN) are left out."""
    observed, usable = sets[0], sets[np.isfinite(sets).all(axis=1)]
    if np.isnan(observed).any() or len(usable) < 2:
        nothing = np.full(observed.size, np.nan)
        return Check(question.quantities, nothing, nothing, nothing, nothing, np.ones(observed.size), 1.0, 0)
    away = _departures(question.stretch(usable))
    signed = {"both": np.abs(away), "high": away, "low": -away}[question.side]
    size = signed.max(axis=1) if question.combine == "largest" else np.sqrt((signed**2).mean(axis=1))
    low, high = np.quantile(usable[1:], _INTERVALS[question.side], axis=0)
    return Check(
        quantities=question.quantities,
        observed=observed,
        expected=np.median(usable[1:], axis=0),
        low=low,
        high=high,
        tails=_tails(usable, question.side),
        tail=float((size >= size[0]).mean()),
        farthest=int(np.abs(away[0]).argmax()),
    )


def distance_answer(
    mixture: GaussianMixture, n: int, cluster: int, n_points: float, check: Check
) -> DistanceCheck:
    """A cluster's check, with what a figure of quantiles needs."""
    from scipy.special import gammaincinv

    probability = _cluster_probabilities(mixture, n, cluster)
    chi_square = 2 * gammaincinv(mixture.n_features / 2, probability)
    return DistanceCheck(**vars(check), probability=probability, chi_square=chi_square, n_points=n_points)


def _departures(values: Float[np.ndarray, "set q"]) -> Float[np.ndarray, "set q"]:
    """Each set's numbers less their mean over the sets, in their standard deviations."""
    away = values - values[0]
    away -= away.mean(axis=0)
    deviation = away.std(axis=0)
    return np.divide(away, deviation, out=np.zeros_like(away), where=deviation > 0)


def _tails(values: Float[np.ndarray, "set q"], side: str) -> Float[np.ndarray, " q"]:
    """Of the first set's numbers among all: at least as high, as low, or twice the smaller of the two."""
    high, low = (values >= values[0]).mean(axis=0), (values <= values[0]).mean(axis=0)
    return {"high": high, "low": low, "both": np.minimum(1, 2 * np.minimum(high, low))}[side]
