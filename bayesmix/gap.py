"""How many centres for k-means: inertia, silhouette and the gap statistic over k.

k-means is no likelihood, so no penalised likelihood chooses its k. The silhouette asks how much nearer a point is to
its own cluster than to the next; the gap how much smaller log inertia is than for points without clusters, drawn
uniformly in the box of the data's principal axes.

References:
    Rousseeuw (1987), Silhouettes: a graphical aid to the interpretation and validation of cluster analysis.
    Tibshirani, Walther & Hastie (2001), Estimating the number of clusters in a data set via the gap statistic.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmix.inputs import Points, as_count, as_name
from bayesmix.interrupts import patient
from bayesmix.keys import as_generator
from bayesmix.limit import kmeans
from bayesmix.progress import Progress
from bayesmix.results import Fit
from bayesmix.status import NAME

if TYPE_CHECKING:
    import pandas

__all__ = ["CentreSearch", "search_centres", "silhouette"]

_INTERRUPTED = "the search was interrupted before this number of clusters was finished"
_REFERENCES = 20  # data sets without clusters
_DRAWN = 2**17  # rows of one, at most, or as many as the data have
_PAIRED = 5000  # rows whose distances the silhouette looks at, at most


@dataclass(frozen=True)
class CentreSearch:
    """k-means over k.

    Attributes:
        fits: by k.
        criterion: "gap" or "silhouette".
        silhouettes: mean silhouette by k, NaN for one cluster.
        gaps: by k: the gap, and its standard error times √(1 + 1 / references).
        reasons: k that could not be tried, or were not finished before Ctrl-C, and why.
    """

    fits: Mapping[int, Fit]
    criterion: str
    silhouettes: Mapping[int, float]
    gaps: Mapping[int, tuple[float, float]]
    reasons: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row per k: inertia, silhouette, gap and its error, steps, how many starts agree, status."""
        import pandas

        rows = [
            {
                "n_components": k,
                "covariance": "kmeans",
                "inertia": float(fit.inertia),
                "silhouette": self.silhouettes[k],
                "gap": self.gaps[k][0],
                "gap_error": self.gaps[k][1],
                "n_steps": fit.n_steps,
                "n_agree": fit.n_agree,
                "n_starts": fit.n_starts,
                "status": NAME[fit.code],
                "reason": "" if fit.converged else fit.status,
            }
            for k, fit in self.fits.items()
        ]
        rows += [
            {
                "n_components": k,
                "status": "interrupted" if why == _INTERRUPTED else "impossible",
                "reason": why,
            }
            for k, why in self.reasons.items()
        ]
        return pandas.DataFrame(rows)

    @property
    def best(self) -> Fit:
        """By the gap the smallest k whose gap is within one error of the next; or the largest silhouette.

        Raises:
            ValueError: there is no fit.
        """
        counts = list(self.fits)
        if not counts:
            raise ValueError(
                "none of the numbers of centres could be tried, for the reasons in search.table, so none is best; "
                "search fewer centres than rows"
            )
        if self.criterion == "silhouette":
            scores = [self.silhouettes[k] for k in counts]
            return self.fits[counts[int(np.nanargmax(scores))] if np.isfinite(scores).any() else counts[0]]
        for k, following in pairwise(counts):
            if self.gaps[k][0] >= self.gaps[following][0] - self.gaps[following][1]:
                return self.fits[k]
        return self.fits[counts[-1]]

    def top(self, n: int = 3) -> pandas.DataFrame:
        """The n rows with the largest gap or silhouette."""
        tried: Any = self.table[self.table["n_components"].isin(list(self.fits))]
        ranked = tried.sort_values(self.criterion, ascending=False) if self.fits else tried
        return ranked.head(as_count(n, "n"))

    def fit(self, n_components: int, covariance: str = "kmeans") -> Fit:
        """The fit with so many centres.

        Raises:
            ValueError: it was not searched.
        """
        if n_components not in self.fits or covariance != "kmeans":
            why = self.reasons.get(n_components, "it was not searched")
            raise ValueError(f"there is no k-means fit with {n_components!r} centres: {why}")
        return self.fits[n_components]

    def plot(self, *, ax: Any = None) -> Any:
        """The criterion against k; see `plots.plot_centres`."""
        from bayesmix.plots import plot_centres

        return plot_centres(self, ax=ax)


def search_centres(
    x: Points, weight: np.ndarray, counts: list[int], *, n_starts: int, criterion: str | None, key: Any
) -> CentreSearch:
    """k-means for each k, and what is known of how many centres the data have."""
    chosen = as_name("gap" if criterion is None else criterion, "criterion", ("gap", "silhouette"))
    generator = as_generator(key)
    points, keep = x.values, weight > 0
    rows, w = points[keep], weight[keep]
    fits, silhouettes, gaps, reasons = {}, {}, {}, {}
    # Whole-number weights are repetitions: then a reference has as many rows, up to a limit, each of the same weight.
    total, count = float(w.sum()), len(rows)
    repeated = _repeats(w)
    if repeated:
        count = int(min(total, max(count, _DRAWN)))
    reference_weight = np.full(count, total / count) if repeated else w
    references = [_uniform(rows, w, count, generator) for _ in range(_REFERENCES)]
    paired = np.arange(len(points))[keep]
    if len(paired) > _PAIRED:
        paired = np.sort(generator.choice(paired, _PAIRED, replace=False))
    with patient() as patience:
        try:
            for k in Progress("k-means", "k", len(counts)).over(counts):
                if k > len(rows):
                    reasons[k] = f"x has {len(rows)} rows, fewer than {k} clusters"
                    continue
                patience.check()
                fit = kmeans(x, k, sample_weight=weight, n_starts=n_starts, key=key)
                logs = []
                for r in references:
                    patience.check()
                    logs.append(
                        _log_inertia(kmeans(r, k, sample_weight=reference_weight, n_starts=n_starts, key=key))
                    )
                silhouettes[k] = silhouette(points[paired], fit.labels[paired], weight[paired])
                error = float(np.std(logs) * np.sqrt(1 + 1 / _REFERENCES))
                gaps[k] = float(np.mean(logs)) - _log_inertia(fit), error
                fits[k] = fit
        except KeyboardInterrupt:
            if patience.again or not fits:
                raise
            rest = [k for k in counts if k not in fits and k not in reasons]
            reasons |= dict.fromkeys(rest, _INTERRUPTED)
            warnings.warn(
                f"the search was interrupted: {len(fits)} of {len(counts)} numbers of clusters are finished",
                stacklevel=3,
            )
    return CentreSearch(fits, chosen, silhouettes, gaps, reasons)


def _repeats(weight: np.ndarray) -> bool:
    """Whether weights are whole numbers, which are repetitions."""
    return bool((weight == np.round(weight)).all())


def _log_inertia(fit: Fit) -> float:
    return float(np.log(max(float(fit.inertia), 1e-300)))


def _uniform(x: np.ndarray, weight: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """So many rows drawn uniformly in the box of the data along their principal axes."""
    center = weight @ x / weight.sum()
    away = x - center
    axes = np.linalg.svd(np.sqrt(weight)[:, None] * away, full_matrices=False)[2]
    turned = away @ axes.T
    drawn = generator.uniform(turned.min(axis=0), turned.max(axis=0), (n, turned.shape[1]))
    return (drawn @ axes + center).astype(x.dtype)


def silhouette(x: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """The weighted mean silhouette (b - a) / max(a, b) of rows (n, d) with labels (n,); NaN for one cluster.

    a is a point's mean distance to the others of its cluster, b to the nearest other cluster; a point alone in its
    cluster has 0. Whole-number weights are repetitions, so that the others are all but one of them; of other weights
    they are the other rows, and only their ratios count.
    """
    from scipy.spatial.distance import cdist

    names, labels = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    one_hot = (labels[:, None] == np.arange(len(names))) * weight[:, None]
    size, repeated = one_hot.sum(axis=0), _repeats(weight)
    x = x.astype(np.float64)
    x = x / (np.abs(x).max() or 1)
    total = 0.0
    for i in range(0, len(x), 1000):
        some = slice(i, i + 1000)
        sums = cdist(x[some], x) @ one_hot
        own = labels[some]
        index = np.arange(len(own))
        others = size[own] - (1 if repeated else weight[some])
        a = sums[index, own] / np.maximum(others, 1e-300)
        means = sums / size
        means[index, own] = np.inf
        b = means.min(axis=1)
        larger = np.maximum(a, b)
        alone = others <= 1e-12 * size[own]
        value = np.where(~alone & (larger > 0), (b - a) / np.where(larger > 0, larger, 1), 0)
        total += float(weight[some] @ value)
    return total / float(weight.sum())
