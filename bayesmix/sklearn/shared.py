"""What the estimators share: scikit-learn's checks at the door, and its names and shapes for what comes out."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bayesmix.covariance import ALIASES

__all__ = ["Density", "average", "in_words", "key_of", "rows", "sample_size", "weights_of", "with_names"]

_FLOATS = [np.float64, np.float32]


def rows(estimator: BaseEstimator, X: Any, **options: Any) -> Any:
    """Points (n, d), float64 or float32, as scikit-learn checks them."""
    return validate_data(estimator, X, dtype=_FLOATS, **options)


def weights_of(sample_weight: Any, X: np.ndarray) -> np.ndarray | None:
    """Observation weights (n,), or `None`."""
    if sample_weight is None:
        return None
    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)


def average(values: np.ndarray, sample_weight: Any, X: np.ndarray) -> float:
    return float(np.average(values, weights=weights_of(sample_weight, X)))


def with_names(estimator: Any, X: np.ndarray) -> Any:
    """The points with the column names that scikit-learn saw, so that mixtures and statuses speak of them."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return X
    import pandas

    return pandas.DataFrame(X, columns=names)


def key_of(random_state: Any) -> int:
    """An int key out of scikit-learn's random_state; an int always gives the same."""
    return int(check_random_state(random_state).randint(2**31 - 1))


def sample_size(n_samples: Any) -> int:
    """The number of points to draw, in scikit-learn's words where there are none."""
    if n_samples < 1:
        raise ValueError(
            f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample."
        )
    return int(n_samples)


def in_words(dense: np.ndarray, covariance_type: str) -> dict[str, np.ndarray]:
    """Dense covariances (k, d, d) as scikit-learn's attributes: its own shapes for its four words, dense for others."""
    structure = covariance_type if covariance_type in ALIASES else "full"
    if structure in ("diag", "spherical"):
        values = np.diagonal(dense, axis1=1, axis2=2)
        values = (values if structure == "diag" else values[:, 0]).copy()
        return {
            "covariances_": values,
            "precisions_": 1 / values,
            "precisions_cholesky_": 1 / np.sqrt(values),
        }
    values = dense[0] if structure == "tied" else dense
    factor = np.linalg.inv(np.linalg.cholesky(values.astype(np.float64))).swapaxes(-1, -2)
    precisions = factor @ factor.swapaxes(-1, -2)
    found = {"covariances_": values, "precisions_": precisions, "precisions_cholesky_": factor}
    return {name: array.astype(dense.dtype) for name, array in found.items()}


class Density(DensityMixin, BaseEstimator):
    """What both mixtures do alike once `score_samples` and `predict` are there."""

    def score_samples(self, X: Any) -> np.ndarray:
        raise NotImplementedError

    def predict(self, X: Any) -> np.ndarray:
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        raise NotImplementedError

    def _seen(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return rows(self, X, reset=False)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """`fit(X).predict(X)`."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean log density of the points, in nats."""
        values = self.score_samples(X)
        return average(values, sample_weight, values)
