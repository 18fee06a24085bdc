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
    """Of a function of such parameters, that gives (m, ...) values, at the mixture itself: (p, ...)."""
    p = mixture.n_parameters
    vectors = np.concatenate([step * _AWAY * np.eye(p) for step, _ in _DIFFERENCES])
    values = objective(*nearby(mixture, vectors))
    factors = [factor for _, factor in _DIFFERENCES]
    return np.tensordot(factors, values.reshape(len(factors), p, *values.shape[1:]), 1) / _AWAY


def hessian(mixture, objective):
    """Of a function that gives (m,) values, at the mixture itself: (p, p)."""
    p = mixture.n_parameters
    a, b = np.tril_indices(p)
    steps = _AWAY * np.eye(p)
    total = 0
    for sign, other in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        vectors = sign * steps[a] + other * steps[b]
        parts = np.split(vectors, range(MOST, len(vectors), MOST))
        total = total + sign * other * np.concatenate([objective(*nearby(mixture, some)) for some in parts])
    out = np.zeros((p, p))
    out[a, b] = out[b, a] = total / (2 * _AWAY) ** 2
    return out


def log_joint(weights, means, covariances, x):
    """log p(x_n, z = k) (m, n, k) of each of m mixtures."""
    root = np.linalg.cholesky(covariances)
    away = np.swapaxes(x - means[:, :, None], -1, -2)
    squared = (np.linalg.solve(root, away) ** 2).sum(axis=-2)
    volume = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
    d = x.shape[1]
    logs = np.log(weights)[..., None] - squared / 2 - volume[..., None] - d / 2 * np.log(2 * np.pi)
    return np.swapaxes(logs, -1, -2)
