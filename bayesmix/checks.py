"""Is the model any good? The data beside data that were simulated from the fitted mixture.

All models are wrong; the question is in what, and by how much. Every check computes the same numbers from the data
and from simulated data sets of the same size:

    cluster sizes            how many points each cluster is the most probable one of
    distances in cluster k   quantiles of the squared Mahalanobis distances of those points
    means ... kurtosis       moments of each feature and pair
    pairwise distances       quantiles of the distances between points
    distribution             one feature only: u = P(X <= x) against the uniform law
    lowest log density       the point that fits worst

Points that go to their most probable cluster are cut off where another cluster begins, so their distances follow
the chi-square law only where clusters are far apart. Simulated points are assigned by the same rule, so they are
cut off alike. What the tail probabilities mean is in `discrepancy`.

References:
    Gelman, Meng & Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies,
    Statistica Sinica 6, 733-807.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.discrepancy import Check, DistanceCheck, answer, distance_answer, questions
from bayesmix.inputs import as_count, as_points, as_weights
from bayesmix.keys import as_generator
from bayesmix.mixture import GaussianMixture
from bayesmix.replicates import look, replicates, some_rows, transform
from bayesmix.results import Fit, mixture_of

if TYPE_CHECKING:
    import pandas
    from jaxtyping import Float, Int

__all__ = ["FitCheck", "check_fit"]

_N_WORST = 10


class _Worst(NamedTuple):
    """The rows that fit worst, worst first; of each the share of simulated rows that fit as badly, and that
    share times n.
    """

    row: Int[np.ndarray, " m"]
    cluster: Int[np.ndarray, " m"]
    log_density: Float[np.ndarray, " m"]
    tail: Float[np.ndarray, " m"]
    expected: Float[np.ndarray, " m"]


@dataclass(frozen=True, eq=False)
class FitCheck:
    """What of the data the mixture can and cannot reproduce.

    Attributes:
        mixture: that was asked about.
        n_draws: how many data sets were simulated.
        checks: each `Check` by its name.
        distances: the `DistanceCheck` of each cluster; they are in `checks` too.
        transform: u = P(X <= x) of each row (n,), for one feature; otherwise `None`.
        weight: how often each row counts (n,).
        lowest: the rows behind `worst`, as arrays.
    """

    mixture: GaussianMixture
    n_draws: int
    checks: Mapping[str, Check]
    distances: tuple[DistanceCheck, ...]
    transform: Float[np.ndarray, " n"] | None
    weight: Float[np.ndarray, " n"]
    lowest: _Worst

    @property
    def status(self) -> str:
        """One sentence: which checks tell the data from simulated ones, and their tail probabilities."""
        found = [f"{name} ({check.tail:.2g})" for name, check in self.checks.items() if check.differs]
        if not found:
            return f"none of {len(self.checks)} checks tells the data from simulated ones"
        verb = "tells" if len(found) == 1 else "tell"
        return f"{len(found)} of {len(self.checks)} checks {verb} the data from simulated ones: {', '.join(found)}"

    @property
    def worst(self) -> pandas.DataFrame:
        """The ten rows with the lowest log density, lowest first.

        `tail` is P(log p(X) <= log p(x)) for a simulated X, and `expected` how many rows as bad as this a data
        set of this size has: far below one, the row does not belong to the mixture.
        """
        import pandas

        return pandas.DataFrame(dict(zip(("row", "cluster", "log density", "tail", "expected"), self.lowest)))

    def summary(self) -> pandas.DataFrame:
        """A row per check: the number that departs most, where 95% of the simulated ones are, the tail
        probability of the whole check, and a verdict in words.
        """
        import pandas

        rows = {
            name: {
                "farthest": check.quantities[check.farthest],
                "observed": check.observed[check.farthest],
                "low": check.low[check.farthest],
                "high": check.high[check.farthest],
                "tail": check.tail,
                "verdict": check.verdict,
            }
            for name, check in self.checks.items()
        }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("check")

    def details(self) -> pandas.DataFrame:
        """A row per number of each check, with its own tail probability."""
        import pandas

        columns = ["observed", "expected", "low", "high", "tails"]
        parts = {
            name: pandas.DataFrame(
                {column: getattr(check, column) for column in columns},
                index=pandas.Index(check.quantities, name="quantity"),
            )
            for name, check in self.checks.items()
        }
        return pandas.concat(parts, names=["check"]).rename(columns={"tails": "tail"})

    def plot(self, *, ax: Any = None) -> np.ndarray:
        """Quantiles of each cluster's distances, and u for one feature, by `bayesmix.plots.plot_check`."""
        from bayesmix.plots import plot_check

        return plot_check(self, ax=ax)

    def __repr__(self) -> str:
        return f"FitCheck(n_draws={self.n_draws}, status={self.status!r})"


def check_fit(
    fit: Fit | GaussianMixture, x: Any, *, sample_weight: Any = None, n_draws: int = 199, key: Any = 0
) -> FitCheck:
    """Compare data with data sets of the same size that are simulated from the mixture.

    The mixture is taken as it is: simulated data are not fitted again. If x are the data that it was fitted to, it
    has adapted to them, and tail probabilities are larger than they should be (the check is conservative): a
    difference that is found is one, but a tail of .3 says less for the model than it seems to. For known
    parameters, and for data that were held back from a fit on many more, they are right. Of 100 checks that the
    model passes, one is expected to differ at the level of 0.01.

    Args:
        fit: a fit, or a mixture.
        x: data (n, d).
        sample_weight: (n,), how often each row counts; simulated data have the total, rounded, as their size.
        n_draws: how many data sets are simulated, one held at a time. No tail can be below 1 / (n_draws + 1).
        key: a JAX key or an int; seeds the simulations, and above 500 points the choice of those whose pairwise
            distances are compared. These are in the mixture's standard deviation of each feature.

    Returns:
        The checks, the rows that fit worst, and one sentence.

    Raises:
        ValueError: no mixture, data or weights that do not fit it, fewer than two points or 99 draws, or a
            mixture with a singular covariance.

    Example:
        >>> import bayesmix as bm
        >>> mixture = bm.GaussianMixture.of([0.7, 0.3], [[-2.0], [2.0]], [[[1.0]], [[1.0]]])
        >>> x, z = mixture.simulate(300, key=1)
        >>> bm.check_fit(mixture, x)
        FitCheck(n_draws=199, status='none of 10 checks tells the data from simulated ones')
        >>> check = bm.check_fit(mixture, [*x[:, 0], 40.0])
        >>> int(check.worst["row"][0]), check.checks["lowest log density"].differs
        (300, True)
    """
    mixture = mixture_of(fit)
    points = as_points(x, n_features=mixture.n_features, known=mixture.feature_names)
    weight = as_weights(sample_weight, points.values.shape[0])
    n_draws = as_count(n_draws, "n_draws", 99)
    n = round(float(weight.sum()))
    if n < 2:
        raise ValueError(f"check_fit needs two points at least; the weights add up to {weight.sum():g}")
    rows, generator = np.flatnonzero(weight), as_generator(key)
    values = points.values[rows].astype(np.float64)
    data = look(mixture, values, weight[rows], some_rows(weight[rows], n, generator))
    if not np.isfinite(data.log_density).all():
        raise ValueError(
            "the mixture has no finite density at these data, so there is nothing to compare; a singular covariance "
            'is avoided by prior="weak", fewer clusters, or a structure with equal volumes'
        )
    table = questions(mixture, n, mixture.feature_names or points.names)
    lowest = np.argsort(data.log_density, kind="stable")[:_N_WORST]
    as_bad = np.zeros(lowest.size)
    sets = {name: [question.compute(data)] for name, question in table.items()}
    for draw in replicates(mixture, n, n_draws, generator):
        for name, question in table.items():
            sets[name].append(question.compute(draw))
        place = np.searchsorted(data.log_density[lowest], draw.log_density)
        as_bad += np.cumsum(np.bincount(place, minlength=lowest.size + 1)[:-1])
    checks = {name: answer(question, np.array(sets[name])) for name, question in table.items()}
    sizes = np.bincount(data.label, data.weight, mixture.n_components)
    distances = {
        name: distance_answer(mixture, n, c, float(sizes[c]), checks[name])
        for c, name in enumerate(f"distances in cluster {c}" for c in range(mixture.n_components))
    }
    tail = (1 + as_bad) / (1 + n_draws * n)
    one = mixture.n_features == 1
    return FitCheck(
        mixture=mixture,
        n_draws=n_draws,
        checks=MappingProxyType(checks | distances),
        distances=tuple(distances.values()),
        transform=transform(mixture, points.values.astype(np.float64)) if one else None,
        weight=weight,
        lowest=_Worst(rows[lowest], data.label[lowest], data.log_density[lowest], tail, n * tail),
    )
