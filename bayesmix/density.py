"""The density of a mixture on one block of points, points last: what `GaussianMixture`'s methods compute.

    log p(x, z=k) = log w_k - d/2 log 2π + log |W_k| - |W_k (x - m_k)|² / 2,   W_k the inverse of the
    Cholesky factor of Σ_k,

from deviations, so that it is accurate however far a point or thin a cluster is. Pure functions of pytrees and
arrays (d, b); they follow the precision that they are called in, and those that a user's points go through compute with
NumPy where they are given NumPy arrays, which for few points takes less time than compiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix import lean
from bayesmix.blocks import chunks_of
from bayesmix.compilation import in_kernel
from bayesmix.covariance import Covariance
from bayesmix.elementary import exp_below, log_positive
from bayesmix.inputs import cores
from bayesmix.maxima import largest, possible
from bayesmix.storage import numbers, slices
from bayesmix.variates import indices, uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from bayesmix.mixture import GaussianMixture

__all__ = [
    "OF_LOGITS", "classify", "draw_cluster", "factor_of", "inverse_factor", "is_single", "is_written_out",
    "log_density", "log_determinant", "log_joint", "log_sum", "log_weights", "precision_factor", "report", "reported",
    "responsibilities", "shares", "simulate", "simulate_numbers", "within_euclidean", "within_mahalanobis",
]  # fmt: skip

_SINGLE = 1e30  # far from the ends of float32
# Products of a point k d² (2 k d without correlations), and features, up to which distances are written out.
_WRITTEN, _WIDEST = 1600, 16
_ADDED_UP = 3  # features, from which distances without correlations are added up
_ADDED = 16  # clusters, up to which chances are added up one by one, and not by a product


def log_sum(logits: Float[Array, "k b"]) -> Float[Array, " b"]:
    """log Σ_k exp(logits), finite where any logit is."""
    top, each = _softmax(logits)
    return top + _log(numbers(each).sum(each, axis=0))


def _softmax(logits: Float[Array, "k b"]) -> tuple[Array, Array]:
    """The largest logit, or 0 where that is not finite, and exp of what is left without it."""
    n = numbers(logits)
    top = n.max(logits, axis=0)
    top = top if n is np else jax.lax.stop_gradient(top)
    top = n.where(n.isfinite(top), top, 0)
    if not in_kernel():
        return top, n.exp(logits - top)
    return jax.lax.optimization_barrier((top, exp_below(logits - top)))


def _log(total: Array) -> Array:
    """The log of such sums, which are zero or at least one."""
    if not in_kernel():
        return numbers(total).log(total)
    return jnp.where(total == 0, -jnp.inf, log_positive(jnp.maximum(total, 1)))


def draw_cluster(words: Array, logits: Float[Array, "k b"], first: Any = 0) -> tuple[Array, Array]:
    """A cluster of each point, drawn with the chances that the logits give, and log Σ_k exp(logits).

    One uniform number a point against the distribution function: a fifth of the time of noise on every logit. `first`
    says how many of the key's numbers other points have.
    """
    k = logits.shape[0]
    top = jnp.max(logits, axis=0)
    each = exp_below(logits - top)
    below = jnp.stack(list(accumulate(each))) if k <= _ADDED else jnp.tri(k, dtype=each.dtype) @ each
    # The last cluster is whatever is left, so that rounding never leaves a point without one.
    z = jnp.sum(uniform(words, top.shape, logits.dtype, first) * below[-1] > below[:-1], axis=0)
    return z, top + log_positive(below[-1])


def precision_factor(covariance: Covariance, n_features: int) -> tuple[Array, Array]:
    """W, the inverse of the Cholesky factor in its storage, and log |W| (k|1,)."""
    return inverse_factor(covariance, covariance.storage.cholesky(covariance.values), n_features)


def inverse_factor(covariance: Covariance, cholesky: Array, n_features: int) -> tuple[Array, Array]:
    """`precision_factor` from the Cholesky factor, where that is known already."""
    factor = covariance.storage.inverse(cholesky)
    return factor, log_determinant(covariance, factor, n_features)


@lean.inlined
def log_determinant(covariance: Covariance, factor: Array, n_features: int) -> Array:
    """log |W| (k|1,)."""
    diagonal, n = covariance.storage.diagonal(factor), numbers(factor)
    return n.sum(n.log(n.broadcast_to(diagonal, (*diagonal.shape[:-1], n_features))), axis=-1)


def log_weights(weights: Array) -> Array:
    positive, n = weights > 0, numbers(weights)
    return n.where(positive, n.log(n.where(positive, weights, 1)), -n.inf)


def _distance(
    mixture: GaussianMixture, x: Float[Array, "d b"], factor: Array | None = None
) -> tuple[Array, Array]:
    """|W_k (x - m_k)|² for every cluster (k, b), and log |W_k|; the factor in the mixture's own precision."""
    if factor is None:
        factor, log_det = precision_factor(mixture.covariance, mixture.n_features)
    else:
        log_det = log_determinant(mixture.covariance, factor, mixture.n_features)
    storage, w, means = mixture.covariance.storage, factor.astype(x.dtype), mixture.means.astype(x.dtype)
    if in_kernel() and storage.axes == 2:  # so that deviations stay in registers
        deviations = [row - mean for row, mean in zip(slices(x, 0), slices(means, 1))]
        rows = [
            reduce(add, (entry[..., 0] * y for entry, y in zip(slices(row, -1), deviations[: i + 1])))
            for i, row in enumerate(slices(w, -2))
        ]
        return reduce(add, (row * row for row in rows)), log_det
    in_loops = numbers(x) is jnp and not in_kernel() and jax.default_backend() == "cpu"
    if in_loops and storage.axes < 2 and len(x) >= _ADDED_UP:
        return _by_feature(w.reshape(len(w), -1), x, means), log_det
    y = storage.whiten(w, x - means[:, :, None])
    return numbers(y).sum(y * y, axis=1), log_det


def _by_feature(w: Float[Array, "k d"], x: Float[Array, "d b"], means: Float[Array, "k d"]) -> Array:
    """|W_k (x - m_k)|² (k, b) without correlations, added up feature by feature: as one sum XLA takes no vectors."""
    w = jnp.broadcast_to(w, means.shape)

    def add_one(i: Any, total: Array) -> Array:
        own, row, mean = (lax.dynamic_index_in_dim(a, i, axis) for a, axis in ((w, 1), (x, 0), (means, 1)))
        y = own * (row - mean)
        return total + y * y

    return lax.fori_loop(0, len(x), add_one, jnp.zeros((len(means), x.shape[1]), x.dtype))


def factor_of(mixture: GaussianMixture) -> Array:
    """W alone."""
    return precision_factor(mixture.covariance, mixture.n_features)[0]


def is_single(mixture: GaussianMixture) -> bool:
    """Whether float32 holds what distances are computed with, and their squares near the clusters; in NumPy."""
    return bool(np.abs(factor_of(mixture)).max() < _SINGLE and np.abs(mixture.means).max() < _SINGLE)


def is_written_out(mixture: GaussianMixture) -> bool:
    """Whether the distances of a point from all clusters are so few products that they are to be written out."""
    k, d = mixture.means.shape
    return k * d * (d if mixture.covariance.storage.axes == 2 else 2) <= _WRITTEN and d <= _WIDEST


def log_joint(
    mixture: GaussianMixture, x: Float[Array, "d b"], factor: Array | None = None
) -> Float[Array, "k b"]:
    """log p(x, z=k); `factor` is any triangular W_k with |W_k (x - m_k)|² the squared Mahalanobis distance."""
    distance, log_det = _distance(mixture, x, factor)
    constant = log_weights(mixture.weights) + log_det - mixture.n_features / 2 * math.log(2 * math.pi)
    logits = constant.astype(x.dtype)[:, None] - distance / 2
    # In a kernel each loop that reads them would compute them again.
    return jax.lax.optimization_barrier(logits) if in_kernel() else logits


def log_density(mixture: GaussianMixture, x: Array, factor: Array | None = None) -> Array:
    return log_sum(log_joint(mixture, x, factor))


def report(
    mixture: GaussianMixture, x: Array, factor: Array | None = None, label: Array | None = None
) -> Float[Array, "4 b"]:
    """Of each point: log density, largest log joint, entropy of its responsibilities, most probable cluster.

    Where its cluster is known, not -1, that of the others is zero.
    """
    logits = log_joint(mixture, x, factor)
    return reported(logits if label is None else possible(logits, label))


def reported(logits: Float[Array, "k b"]) -> Float[Array, "4 b"]:
    """What `report` says of points with such log p(x, z)."""
    n = numbers(logits)
    top, each = _softmax(logits)
    sums = n.sum(each, axis=0)
    total = top + _log(sums)
    entropy = -n.sum(n.where(each > 0, each / sums * (logits - total), 0), axis=0)
    label, highest = _most_probable(logits)
    return n.stack([total, highest, entropy, label.astype(logits.dtype)])


def responsibilities(mixture: GaussianMixture, x: Any, factor: Any = None) -> Any:
    return shares(log_joint(mixture, x, factor))


def shares(logits: Any) -> Any:
    """exp(logits) over their sum; equal ones of a point so far away that none is finite."""
    _, each = _softmax(logits)
    n, total = numbers(logits), each.sum(axis=0)
    return n.where(total > 0, each, 1) / n.where(total > 0, total, len(logits))


def classify(mixture: GaussianMixture, x: Array, factor: Array | None = None) -> Array:
    return _most_probable(log_joint(mixture, x, factor))[0].astype(int)


def _most_probable(logits: Float[Array, "k b"]) -> tuple[Array, ...]:
    """The cluster of the largest logit, and it."""
    if numbers(logits) is np:
        return logits.argmax(axis=0), logits.max(axis=0)
    return largest(logits if in_kernel() else lax.optimization_barrier(logits))


# What the functions of a mixture and points make of log p(x, z) (k, b), which `missing` computes otherwise.
OF_LOGITS: dict[Callable, Callable] = {
    log_joint: lambda logits: logits,
    log_density: log_sum,
    responsibilities: shares,
    classify: lambda logits: _most_probable(logits)[0],
    report: reported,
}


def _nearest(distance: Array, z_score: Array, radius: float) -> Array:
    n = numbers(distance)
    nearest = n.argmin(distance, axis=0)
    closest = n.take_along_axis(z_score, nearest[None], axis=0)[0]
    return n.where(closest < radius, nearest, -1)


def within_mahalanobis(
    mixture: GaussianMixture, x: Array, radius: float, factor: Array | None = None
) -> Array:
    squared, _ = _distance(mixture, x, factor)
    distance = numbers(squared).sqrt(squared)
    return _nearest(distance, distance, radius)


def within_euclidean(mixture: GaussianMixture, x: Array, radius: float) -> Array:
    n, covariances = numbers(x), mixture.covariances
    unit = n.exp2(n.round(n.log2(covariances.max()) / 2))  # of lengths, so that their squares can be held
    deviations = (x - mixture.means.astype(x.dtype)[:, :, None]) / unit.astype(x.dtype)
    squared = n.sum(deviations**2, axis=1)
    away = squared > 0
    length = n.sqrt(n.where(away, squared, 1))
    way = deviations / length[:, None]
    along = n.sum(way * ((covariances / unit**2).astype(x.dtype) @ way), axis=1)
    score = n.where(away, length / n.sqrt(n.where(away, along, 1)), 0)
    return _nearest(squared, score, radius)


def simulate(mixture: GaussianMixture, key: Array, n: int) -> tuple[Array, Array]:
    """Traced, block by block, so that no (n, d, d) array of factors is ever made."""
    k, d, size = mixture.n_components, mixture.n_features, min(n, 4096)
    means = jnp.asarray(mixture.means)
    storage = mixture.covariance.storage
    factor = storage.cholesky(jnp.asarray(mixture.covariance.values))
    factor = jnp.broadcast_to(factor, (k, *factor.shape[1:]))
    logits = log_weights(jnp.asarray(mixture.weights))

    def block(key: Array) -> tuple[Array, Array]:
        coin, noise = jax.random.split(key)
        z = jax.random.categorical(coin, logits, shape=(size,))
        standard = jax.random.normal(noise, (size, d), means.dtype)
        return means[z] + storage.apply(factor[z], standard), z

    x, z = jax.lax.map(block, jax.random.split(key, -(-n // size)))
    return x.reshape(-1, d)[:n], z.reshape(-1)[:n]


def simulate_numbers(
    mixture: GaussianMixture, generator: np.random.Generator, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same law in NumPy, which compiles nothing and draws faster, cluster by cluster."""
    means, weights = np.asarray(mixture.means), np.asarray(mixture.weights)
    values: Any = np.asarray(mixture.covariance.values)
    k, d = means.shape
    storage = mixture.covariance.storage
    factor = np.asarray(storage.cholesky(values))
    factor = np.broadcast_to(factor, (k, *factor.shape[1:]))
    x, z = np.empty((n, d), means.dtype), np.empty(n, np.int64)

    def draw(rows: slice, generator: np.random.Generator) -> None:
        drawn = indices(weights, rows.stop - rows.start, generator)
        noise, used = generator.standard_normal((drawn.size, d), means.dtype), 0
        for j in range(k):
            own = np.flatnonzero(drawn == j)
            some, used = noise[used : used + own.size], used + own.size
            x[rows.start + own] = means[j] + (some @ factor[j].T if storage.axes == 2 else some * factor[j])
        z[rows] = drawn

    parts = list(chunks_of(n))
    own_generators = generator.spawn(len(parts))  # so that draws do not depend on the cores
    if len(parts) == 1:  # a thread takes longer to start than few points take
        draw(parts[0], own_generators[0])
    else:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(draw, parts, own_generators))
    return x, z
