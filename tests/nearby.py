"""The mixtures of a structure around one: vectors of its chart as dense parameters, and gradients by differences.

One small program a structure serves all tests; densities are NumPy's.
"""

import jax
import numpy as np

from bayesmix.chart import chart
from bayesmix.inputs import to_numpy

MOST = 400  # vectors at once
_AWAY = 1e-3
_DIFFERENCES = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # exact for polynomials of degree four


@jax.jit
def _dense(around, vectors):
    def one(vector):
        mixture = around.mixture(vector)
        return mixture.weights, mixture.means, mixture.covariances

    return jax.vmap(one)(vectors)


def nearby(mixture, vectors):
    """Weights (m, k), means (m, k, d) and covariances (m, k, d, d) at vectors (m, p) of the mixture's chart."""
    padded = np.zeros((MOST, vectors.shape[1]))
    padded[: len(vectors)] = vectors
    with jax.enable_x64(True):
        return [part[: len(vectors)] for part in to_numpy(_dense(chart(mixture), padded))]


def gradient(mixture, objective):
    """Of a function of such parameters, that gives (m,) values, at the mixture itself."""
    identity = np.eye(chart(mixture).size)
    vectors = [step * _AWAY * identity for step, _ in _DIFFERENCES]
    values = objective(*nearby(mixture, np.concatenate(vectors))).reshape(len(_DIFFERENCES), -1)
    return np.array([factor for _, factor in _DIFFERENCES]) @ values / _AWAY


def jacobian(mixture):
    """Of all weights, means and covariances, put end to end, by the chart's vector: (numbers, p)."""

    def flat(weights, means, covariances):
        return np.concatenate(
            [part.reshape(len(weights), -1) for part in (weights, means, covariances)], axis=1
        )

    identity = np.eye(chart(mixture).size)
    total = 0
    for step, factor in _DIFFERENCES:
        total = total + factor * flat(*nearby(mixture, step * _AWAY * identity)).T
    return total / _AWAY


def log_joint(weights, means, covariances, x):
    """log p(x_n, z = k) (m, n, k) of each of m mixtures."""
    root = np.linalg.cholesky(covariances)
    away = np.swapaxes(x - means[:, :, None], -1, -2)
    squared = (np.linalg.solve(root, away) ** 2).sum(axis=-2)
    volume = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
    d = x.shape[1]
    logs = np.log(weights)[..., None] - squared / 2 - volume[..., None] - d / 2 * np.log(2 * np.pi)
    return np.swapaxes(logs, -1, -2)
