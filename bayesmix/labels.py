"""Which cluster of one mixture is which of another: labels are arbitrary, so they are matched, never trusted."""

from __future__ import annotations

import numpy as np

__all__ = ["match_moments"]


def match_moments(moments: np.ndarray, reference: np.ndarray, d: int) -> np.ndarray:
    """The order of clusters in `moments` (k, p) that is nearest to `reference` (k, p).

    The assignment minimises the sum of squared distances between the clusters' means, each feature in units
    of its spread over the clusters of the reference.
    """
    from scipy.optimize import linear_sum_assignment

    means = moments[:, 1 : 1 + d] / np.maximum(moments[:, :1], 1e-300)
    target = reference[:, 1 : 1 + d] / np.maximum(reference[:, :1], 1e-300)
    unit = np.maximum(target.std(axis=0), 1e-300)
    cost = (((target[:, None] - means[None]) / unit) ** 2).sum(axis=-1)
    return linear_sum_assignment(cost)[1]
