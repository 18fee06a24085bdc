"""What scikit-learn's `weights_init`, `means_init` and `precisions_init` may be, in scikit-learn's own words."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_array

from bayesmix.covariance import ALIASES

__all__ = ["given_parts"]

Part = np.ndarray | None


def given_parts(
    weights_init: Any, means_init: Any, precisions_init: Any, covariance_type: str, shape: tuple[int, int]
) -> tuple[Part, Part, Part]:
    """The parts of a start that were given, as weights (k,), means (k, d) and covariances; `None` for the others.

    Raises:
        ValueError: a wrong shape, weights that are no probabilities, precisions that are not positive definite.
    """
    k, d = shape
    weights = _array(weights_init, "weights", (k,))
    if weights is not None:
        if (weights < 0).any() or (weights > 1).any():
            # scikit-learn's words, which take the one for the other, and which its tests pin; then what is so.
            low, high = weights.min(), weights.max()
            raise ValueError(
                f"The parameter 'weights' should be in the range [0, 1], but got max value {low:.5f}, "
                f"min value {high:.5f}: weights_init goes from {low:.5g} to {high:.5g}"
            )
        if abs(weights.sum() - 1) > (1e-6 if weights.dtype == np.float32 else 1e-8):
            raise ValueError(
                f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
            )
    word = covariance_type if covariance_type in ALIASES else "full"
    shapes = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
    precisions = _array(precisions_init, f"{word} precision", shapes[word])
    covariances = None if precisions is None else _covariances(precisions, word)
    return weights, _array(means_init, "means", (k, d)), covariances


def _covariances(precisions: np.ndarray, word: str) -> np.ndarray:
    if word in ("diag", "spherical"):
        if (precisions <= 0).any():
            raise ValueError(f"'{word} precision' should be positive")
        return 1 / precisions
    symmetric = np.allclose(precisions, precisions.swapaxes(-1, -2))
    if not (symmetric and (np.linalg.eigvalsh(precisions) > 0).all()):
        raise ValueError(f"'{word} precision' should be symmetric, positive-definite")
    return np.linalg.inv(precisions)


def _array(given: Any, name: str, shape: tuple[int, ...]) -> Part:
    if given is None:
        return None
    array = check_array(given, ensure_2d=False, allow_nd=True)
    array = array.astype(np.float32 if array.dtype == np.float32 else np.float64)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return array
