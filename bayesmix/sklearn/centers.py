"""`KMeans`: Lloyd's algorithm, the limit of the mixture, as scikit-learn's estimator."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from bayesmix.limit import kmeans
from bayesmix.sklearn.shared import key_of, rows, weights_of, with_names

__all__ = ["KMeans"]


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means, in the place of `sklearn.cluster.KMeans`: the same arguments, defaults, attributes and methods.

    The loop runs until the assignment repeats, or max_iter: an optimum exactly. Weights count as repetitions, in the
    seeds too. Seeds come from another random stream than scikit-learn's; from a given `init` the steps are the same.

    Args:
        n_clusters: the number of clusters.
        init: "k-means++", "random" (rows of different values), centres (k, d), or a function of
            (X, n_clusters, random_state=...) that returns them.
        n_init: how many starts; the smallest inertia wins. "auto": one for "k-means++" and given centres, 10 otherwise.
        max_iter: iterations at most.
        tol: kept for scikit-learn's sake: the loop stops where centres no longer move at all, which is within every
            tolerance.
        verbose: 1 prints how the fit ended.
        random_state: seeds the starts.
        copy_x: kept for scikit-learn's sake: X is never changed.
        algorithm: "lloyd"; "elkan" is another way to the same centres, and Lloyd's runs for it.

    Sparse X is made dense, which takes n d numbers.

    Attributes:
        cluster_centers_: (k, d).
        labels_: the nearest centre of each row (n,).
        inertia_: weighted sum of squared distances to the nearest centre.
        n_iter_: iterations, the one in which nothing moved included.
        fit_: the `bayesmix.Fit`, with the mixture of spheres around the centres.
        n_features_in_, feature_names_in_: of the data.

    Example:
        >>> from bayesmix.sklearn import KMeans
        >>> X = [[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]]
        >>> kmeans = KMeans(n_clusters=2, random_state=0).fit(X)
        >>> kmeans.cluster_centers_[kmeans.predict([[0, 0], [12, 3]])]
        array([[ 1., 2.],
               [10., 2.]])
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++", "random"}), callable, "array-like"],
        "n_init": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "copy_x": ["boolean"],
        "algorithm": [StrOptions({"lloyd", "elkan"})],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the centres of the points X (n, d); `y` is ignored, an integer weight is repetition."""
        X = self._rows(X)
        weight = weights_of(sample_weight, X)
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} should be >= n_clusters={self.n_clusters}.")
        if self.algorithm == "elkan" and self.n_clusters == 1:
            warnings.warn(
                "algorithm='elkan' doesn't make sense for a single cluster. Using 'lloyd' instead.",
                RuntimeWarning,
                stacklevel=2,
            )
        random_state = check_random_state(self.random_state)
        starts, self._n_init = self._starts(X, random_state)
        fits = [
            kmeans(
                with_names(self, X),
                self.n_clusters,
                init=start,
                n_starts=self._n_init if isinstance(start, str) else None,
                sample_weight=weight,
                key=key_of(random_state),
                max_steps=self.max_iter,
            )
            for start in starts
        ]
        best = int(np.argmin([each.inertia for each in fits]))
        fit, start = fits[best], starts[best]
        self.fit_ = fit
        self.cluster_centers_ = np.array(fit.mixture.means)
        self.labels_ = fit.mixture.classify(X)
        self.inertia_ = fit.inertia
        at_rest = not isinstance(start, str) and np.allclose(start, self.cluster_centers_, rtol=1e-12, atol=0)
        self.n_iter_ = min(fit.n_steps + (not at_rest), self.max_iter)
        self._n_features_out = self.n_clusters
        if self.verbose:
            print("Initialization complete")
            print(f"Iteration {self.n_iter_}, inertia {self.inertia_}.")
            if fit.converged:
                print(f"Converged: strict convergence, center shift 0 within tolerance {self.tol}.")
        distinct = len(np.unique(self.labels_))
        if distinct < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({distinct}) found smaller than n_clusters ({self.n_clusters}). Possibly "
                "due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _starts(self, X: np.ndarray, random_state: np.random.RandomState) -> tuple[list[Any], int]:
        """What `kmeans` starts from, one call each, and how many starts these are."""
        named = isinstance(self.init, str)
        several = callable(self.init) or (named and self.init == "random")
        count = (10 if several else 1) if self.n_init == "auto" else self.n_init
        if named:
            return [str(self.init)], count
        if callable(self.init):
            given = [self.init(X, self.n_clusters, random_state=random_state) for _ in range(count)]
        else:
            given = [self.init]
            if count > 1:
                warnings.warn(
                    "Explicit initial center position passed: performing only one init in KMeans instead of "
                    f"n_init={count}.",
                    RuntimeWarning,
                    stacklevel=3,
                )
        given = [check_array(centers).astype(X.dtype) for centers in given]
        for centers in given:
            wanted = {"clusters": self.n_clusters, "features of the data": X.shape[1]}
            for length, (what, count_wanted) in zip(centers.shape, wanted.items()):
                if length != count_wanted:
                    raise ValueError(
                        f"The shape of the initial centers {centers.shape} does not match the number of {what} "
                        f"{count_wanted}."
                    )
        return given, len(given)

    def _rows(self, X: Any, **options: Any) -> np.ndarray:
        X = rows(self, X, accept_sparse="csr", accept_large_sparse=False, **options)
        return X if isinstance(X, np.ndarray) else X.toarray()

    def _seen(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self._rows(X, reset=False)

    def predict(self, X: Any) -> np.ndarray:
        """The nearest centre of each point (n,)."""
        X = self._seen(X)
        return self.fit_.mixture.classify(X)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """`fit(X).labels_`."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def transform(self, X: Any) -> np.ndarray:
        """Distances (n, k) to the centres."""
        X = self._seen(X)
        return euclidean_distances(X, self.cluster_centers_)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """`fit(X).transform(X)`."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the weighted sum of squared distances to the nearest centre."""
        X = self._seen(X)
        away = X.astype(np.float64) - self.cluster_centers_[self.fit_.mixture.classify(X)]
        weight = weights_of(sample_weight, X)
        return -float(np.einsum("nd,nd,n->", away, away, np.ones(len(X)) if weight is None else weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
