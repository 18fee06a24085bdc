"""Where do the likeliest values lie? The smallest region that holds a stated share of a mixture.

    R = {x : log p(x) >= level},    the level such that P(x in R) = coverage.

Of all regions with that coverage this one is the smallest, and it may come in several pieces (Hyndman). Two cases are
exact: one cluster, an ellipsoid by the chi-square law of the squared Mahalanobis distance; and one dimension, where
log p rises to each peak and falls to the next valley, so that each end of an interval is the only root in its bracket,
and the level is the root of the coverage, which the normal distribution function gives. Otherwise the level is a
quantile of log p over draws, and the region holds the coverage up to sampling error.

References:
    Hyndman (1996), Computing and graphing highest density regions, American Statistician 50.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.inputs import as_count, as_points, as_share
from bayesmix.peaks import find_modes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from bayesmix.mixture import GaussianMixture

__all__ = ["HighestDensityRegion", "densest_region"]

_HALVINGS = 110  # of a bracket, down to neighbouring numbers
_LEAST = 1e-6  # coverage in one dimension
_FEWEST = 20  # draws that must fall on either side of the level


@dataclass(frozen=True, eq=False)
class HighestDensityRegion:
    """The smallest region with a stated coverage, {x : log p(x) >= log_level}.

    Attributes:
        coverage: the probability that it was asked to hold.
        log_level: log p on its boundary, in nats.
        coverage_error: standard error of the coverage that it does hold, from the draws behind the level; zero where
            the level is exact: in one dimension, or with one cluster.
        intervals: its pieces (m, 2) in ascending order in one dimension, in the data's units; `None` in more.
        mixture: whose region it is.

    Example:
        >>> import bayesmix as bm
        >>> two = bm.GaussianMixture.of([0.5, 0.5], [-5.0, 5.0], [1.0, 1.0])
        >>> region = two.highest_density_region(0.9)
        >>> region.intervals.round(2)
        array([[-6.64, -3.36], [ 3.36, 6.64]])
        >>> region.contains([0.0, 4.0])
        array([False, True])
    """

    coverage: float
    log_level: float
    coverage_error: float
    intervals: np.ndarray | None
    mixture: GaussianMixture = field(repr=False)

    def contains(self, x: Any) -> Bool[np.ndarray, " n"]:
        """Whether each point lies in the region.

        Raises:
            ValueError: points that do not fit the mixture.
        """
        mixture = self.mixture
        points = as_points(x, n_features=mixture.n_features, known=mixture.feature_names).values.astype(
            np.float64
        )
        return self.mixture.log_density(points) >= self.log_level


def densest_region(mixture: GaussianMixture, coverage: Any, key: Any, n_draws: int) -> HighestDensityRegion:
    """The highest-density region of a mixture in float64.

    Raises:
        ValueError: a coverage that is not between 0 and 1, or so near either that the draws cannot tell, or rounding.
    """
    share = as_share(coverage, "coverage")
    n_draws = as_count(n_draws, "n_draws")
    if mixture.n_features == 1:
        if share < _LEAST:
            raise ValueError(
                f"coverage must be at least {_LEAST} in one dimension, not {share}: so near a peak rounding hides what "
                "the density falls by; the peaks are mixture.modes()"
            )
        level, intervals = _on_a_line(mixture, share)
        return HighestDensityRegion(share, level, 0.0, intervals, mixture)
    active = np.flatnonzero(mixture.weights > 0)
    if active.size == 1:
        return HighestDensityRegion(share, _of_one_cluster(mixture, share, active), 0.0, None, mixture)
    if n_draws * min(share, 1 - share) < _FEWEST:
        enough = math.ceil(_FEWEST / min(share, 1 - share))
        raise ValueError(
            f"n_draws={n_draws} draws say too little about a coverage of {share}; it needs at least {enough}"
        )
    heights = mixture.log_density(mixture.simulate(n_draws, key=key)[0])
    error = math.sqrt(share * (1 - share) / n_draws)
    return HighestDensityRegion(share, float(np.quantile(heights, 1 - share)), error, None, mixture)


def _of_one_cluster(mixture: GaussianMixture, coverage: float, active: np.ndarray) -> float:
    """log p at the mean, less half the chi-square quantile."""
    from scipy.special import gammainccinv, gammaincinv

    half = mixture.n_features / 2
    below = gammaincinv(half, coverage) if coverage < 0.5 else gammainccinv(half, 1 - coverage)
    return float(mixture.log_density(mixture.means[active])[0] - below)


class _Line(NamedTuple):
    """A mixture in one dimension: log weights, weights that add up to one, means and standard deviations (k,)."""

    log_weights: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    deviations: np.ndarray

    def height(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return np.logaddexp.reduce(self.logits(x), axis=1)

    def logits(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
        z = (x[:, None] - self.means) / self.deviations
        return self.log_weights - np.log(self.deviations) - 0.5 * math.log(2 * math.pi) - z * z / 2

    def rises(self, x: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """The sign of p'(x), whatever is underflowing."""
        logits = self.logits(x)
        parts = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.sum(parts * (self.means - x[:, None]) / self.deviations**2, axis=1) > 0

    def mass(self, low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"]) -> float:
        """P(x in any of the disjoint intervals), each cluster from the tail that keeps its digits."""
        from scipy.special import ndtr

        a, b = ((end[:, None] - self.means) / self.deviations for end in (low, high))
        a, b = np.where(a + b > 0, -b, a), np.where(a + b > 0, -a, b)
        return float(np.sum((ndtr(b) - ndtr(a)) @ self.weights))


def _bisect(inside: Any, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where `inside` turns from false, at `low`, to true, at `high`, whichever of them is larger."""
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2
        true = inside(middle)
        low, high = np.where(true, low, middle), np.where(true, middle, high)
    return high


def _on_a_line(mixture: GaussianMixture, coverage: float) -> tuple[float, np.ndarray]:
    """The level and the intervals (m, 2), by root finding between neighbouring peaks and valleys."""
    from scipy.optimize import brentq

    active = mixture.weights > 0
    weights, means = mixture.weights[active], mixture.means[active, 0]
    line = _Line(np.log(weights), weights / weights.sum(), means, np.sqrt(mixture.covariances[active, 0, 0]))
    peaks = np.sort(find_modes(mixture).points[:, 0])
    valleys = _bisect(line.rises, peaks[:-1], peaks[1:])
    heights = line.height(peaks)
    top, most = heights.max(), 1 - coverage

    def pieces(level: float) -> tuple[np.ndarray, np.ndarray]:
        reach = np.sqrt(2 * np.maximum(0, -level - np.log(line.deviations) - 0.5 * math.log(2 * math.pi)))
        reach = (reach + 1) * line.deviations
        left = np.concatenate([[(means - reach).min()], valleys])
        right = np.concatenate([valleys, [(means + reach).max()]])
        high = heights >= level
        ends = []
        for outer in (left[high], right[high]):
            root = _bisect(lambda x: line.height(x) >= level, outer, peaks[high])
            ends.append(np.where(line.height(outer) >= level, outer, root))
        apart = ends[1][:-1] < ends[0][1:]
        return ends[0][np.append(True, apart)], ends[1][np.append(apart, True)]

    def excess(level: float) -> float:
        """How much the region holds too much, from the smaller of what it holds and what it leaves out."""
        low, high = pieces(level)
        if coverage < 0.5:
            return line.mass(low, high) - coverage
        return most - line.mass(np.append(-np.inf, high), np.append(low, np.inf))

    depth = 1.0
    while excess(top - depth) < 0:
        depth *= 2
    level: Any = brentq(excess, top - depth, top, xtol=1e-15, rtol=4 * np.finfo(float).eps)
    return float(level), np.stack(pieces(level), axis=1)
