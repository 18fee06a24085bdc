"""How many clusters: the likelihood-ratio test of k against k + 1, its null law by the parametric bootstrap.

The usual chi-square law does not hold, since under the null a weight is at the boundary, so data are simulated from the
fit with k clusters and both models are fitted to each. The larger model starts from the fit with k + 1 clusters and
from each cluster of the replicate's own smaller fit split in two along its longest axis, from where EM can only
rise: a negative statistic is a failed fit.

References:
    McLachlan (1987), On bootstrapping the likelihood ratio test statistic for the number of components in a normal
    mixture, Applied Statistics 36. McLachlan & Peel (2000), Finite Mixture Models, section 6.4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.em import fit
from bayesmix.initialize import splits
from bayesmix.inputs import as_count, as_list, as_points, as_share
from bayesmix.keys import as_generator, key_words
from bayesmix.loop import Options
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.problem import Problem, inside, problem_of
from bayesmix.resample import Refits, refit
from bayesmix.results import Fit

if TYPE_CHECKING:
    import pandas

__all__ = ["LikelihoodRatioTest", "likelihood_ratio_test"]

_BELOW = 1e-3  # nats by which a statistic may be negative, since a loop stops short of its optimum


@dataclass(frozen=True)
class LikelihoodRatioTest:
    """Tests of k clusters against k + 1, one a row.

    Attributes:
        n_components: the k of each null hypothesis.
        statistics: 2 (log L of k + 1 - log L of k), observed.
        p_values: (1 + draws at or above the observed) / (1 + draws that were fitted).
        draws: statistics under each null (tests, n_draws); NaN where a fit failed.
        n_failed: replicates without a clean fit of both models, or with a negative statistic, of each test.
        fits: the fits compared, k first, one more than tests where the k follow each other.
        level: the level at which the sequence stops.
    """

    n_components: tuple[int, ...]
    statistics: np.ndarray
    p_values: np.ndarray
    draws: np.ndarray
    n_failed: np.ndarray
    fits: dict[int, Fit]
    level: float

    @property
    def chosen(self) -> int:
        """The first k that is not rejected at the level; one more than the last tested where all are."""
        kept = np.flatnonzero(self.p_values > self.level)
        return self.n_components[kept[0]] if kept.size else self.n_components[-1] + 1

    def summary(self) -> pandas.DataFrame:
        """A row per test: the statistic, its null quantiles, the p-value, and how many replicates failed."""
        import pandas

        levels = (0.5, 0.95, 0.99)
        rows = []
        for i, k in enumerate(self.n_components):
            good = self.draws[i][np.isfinite(self.draws[i])]
            quantiles = np.quantile(good, levels) if good.size else np.full(len(levels), np.nan)
            rows.append(
                {
                    "null": k,
                    "alternative": k + 1,
                    "statistic": self.statistics[i],
                    "p_value": self.p_values[i],
                }
                | {f"null {level:.0%}": q for level, q in zip(levels, quantiles)}
                | {"draws": self.draws.shape[1], "failed": int(self.n_failed[i])}
            )
        return pandas.DataFrame(rows).set_index("null")


def likelihood_ratio_test(
    x: Any,
    model: MixtureModel,
    n_components: int | Collection[int] = range(1, 10),
    *,
    n_draws: int = 999,
    key: Any = 0,
    level: float = 0.05,
    n_starts: int = 10,
) -> LikelihoodRatioTest:
    """Test k clusters against k + 1 by the parametric bootstrap, for one k after another until one is not rejected.

    Args:
        x: data (n, d).
        model: the covariance structure, without a prior; its own `n_components` is not used.
        n_components: the k of the null hypotheses in rising order, or one k.
        n_draws: how many data sets are simulated under each null.
        key: seeds starts and simulations.
        level: the sequence stops at the first test whose p-value exceeds it; 1 tests every k.
        n_starts: of the fits to the data; one that gives a negative statistic gets ten times as many.

    Returns:
        A `LikelihoodRatioTest`; `.summary()` is its table.

    Raises:
        ValueError: bad data or options, a model with a prior, or no clean fit to the data of a k that is needed.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> test = bm.likelihood_ratio_test(x, bm.MixtureModel(1, "V"), [1, 2], n_draws=99)
        >>> test.p_values.round(2), test.chosen
        (array([0.01, 0.01]), 3)
    """
    if not isinstance(model, MixtureModel):
        raise ValueError(f"model must be a MixtureModel, such as MixtureModel(1, 'VVV'); it is {model!r}")
    if model.prior is not None:
        raise ValueError(
            "the likelihood-ratio test is about maximum likelihood, so the model's prior must be None"
        )
    level = as_share(level, "level", whole=True)
    counts = [as_count(k, "n_components") for k in as_list(n_components)]
    if not counts or counts != sorted(set(counts)):
        raise ValueError(
            f"n_components must be one number or different ones in rising order; it is {n_components!r}"
        )
    n_draws = as_count(n_draws, "n_draws")
    points = as_points(x)
    fits: dict[int, Fit] = {}
    tests = []
    for k in counts:
        for count in (k, k + 1):
            if count not in fits:
                fits[count] = _best_fit(
                    points.values, replace(model, n_components=count), n_starts, key, fits
                )
        own = as_generator(key).spawn(k + 1)[k]  # so that tests are independent
        keys = key_words(own, n_draws)
        tests.append(_test(points.values, fits[k], fits[k + 1], keys))
        if tests[-1][1] > level:
            break
    statistics, p_values, draws, failed = zip(*tests)
    return LikelihoodRatioTest(
        tuple(counts[: len(tests)]),
        np.array(statistics),
        np.array(p_values),
        np.array(draws),
        np.array(failed),
        fits,
        level,
    )


def _best_fit(x: np.ndarray, model: MixtureModel, n_starts: int, key: Any, fits: dict[int, Fit]) -> Fit:
    """The best clean fit, and never below that with a cluster less, which is one of its starts."""
    smaller = fits.get(model.n_components - 1)
    found = [fit(model, x, n_starts=n_starts, key=key)]
    if smaller is not None:
        found += [fit(model, x, init=mixture) for mixture in splits(smaller.mixture)]
    clean = [f for f in found if not f.spurious]
    floor = -np.inf if smaller is None else smaller.log_likelihood - _BELOW
    if not clean or max(f.log_likelihood for f in clean) < floor:
        found.append(fit(model, x, n_starts=10 * n_starts, key=key))
        clean = [f for f in found if not f.spurious]
    if not clean:
        raise ValueError(
            f"{model.n_components} clusters of structure {model.covariance} have no clean fit to these data "
            f"({found[0].status}); test fewer clusters, or a structure with equal volumes"
        )
    return max(clean, key=lambda f: f.log_likelihood)


def _test(x: np.ndarray, null: Fit, other: Fit, keys: np.ndarray) -> tuple[float, float, np.ndarray, int]:
    """The statistic, its p-value, the draws under the null, and how many of them failed."""
    problem = problem_of(null, x, None)
    wider = problem_of(other, x, None)
    source, start = inside(problem, null.mixture), inside(wider, other.mixture)
    options = Options("soft")
    k = source.n_components

    def refits(problem: Problem, starts: list[list[GaussianMixture]], k: int) -> Refits:
        each = [jax.tree.map(lambda *leaves: np.stack(leaves), *own) for own in starts]
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        title = f"{k} clusters, simulated"
        return refit(problem, "parametric", keys, batch, options, source=source, title=title)

    small = refits(problem, [[source]], k)
    drawn = [jax.tree.map(itemgetter(b), small.mixture) for b in range(len(keys))]
    large = refits(wider, [[start, *splits(mixture)] for mixture in drawn], k + 1)
    draws = 2 * (large.objective - small.objective)
    good = small.clean & large.clean & (draws >= -2 * _BELOW)
    statistic = 2 * float(other.log_likelihood - null.log_likelihood)
    draws = np.where(good, draws, np.nan)
    p_value = (1 + int((draws[good] >= statistic).sum())) / (1 + int(good.sum()))
    return statistic, p_value, draws, int((~good).sum())
