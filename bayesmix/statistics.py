"""Statistics add: one pass over the data gives all that an M-step needs.

log p(x, z=k) is linear in the features T(x) = [1, x, products of x], so with Θ the natural parameters

    logits = Θ @ T(x),    moments = R @ T(x)ᵀ,    R = responsibilities

and the moments of the whole are the sum of the moments of its parts. Blocks, streams and devices live
here and nowhere else. Inside a block points are the last axis; blocks are small enough to stay in cache.

Where one covariance is shared, the quadratic part of the logits is the same for every cluster: logits are
linear in x, and the total second moment is computed once, in `observe`.

Two rules give the moments, and which one holds is a fact, not an option. "raw" sums T(x) itself, about the
data's own mean: exact to 1e-7 in float64 while no cluster is thinner than 1e-3.5 of the data's spread and of its
mean's distance; in float32 log-densities hold to 1e-4 while none is thinner than a sixteenth. "whitened" sums
T(W_k (x - m_k)) and maps back in float64; it serves from the step at which a cluster becomes thinner than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesmix.covariance import Structure
from bayesmix.density import draw_cluster, log_sum, precision_factor
from bayesmix.devices import accelerator, double_precision
from bayesmix.elementary import exp_below, log_above
from bayesmix.inputs import chunks_of, points_last
from bayesmix.mixture import GaussianMixture
from bayesmix.storage import STORAGES, numbers, per_cluster, with_one

__all__ = [
    "RESPONSIBILITIES", "Observations", "Statistics", "expected_log_joint", "moments_of", "observe", "summarize",
]  # fmt: skip

_DEVICE_BLOCK = 2**25  # numbers of the features of a block on an accelerator, at most


@partial(jax.tree_util.register_dataclass, data_fields=["x", "weight", "second"], meta_fields=[])
@dataclass(frozen=True)
class Observations:
    """Data in blocks, points last.

    Attributes:
        x: (blocks, d, b).
        weight: (blocks, b); padding weighs nothing.
        second: for a shared covariance the total second moment in storage (1, ...), else absent.
    """

    x: Any
    weight: Any
    second: Any = None


@partial(jax.tree_util.register_dataclass, data_fields=["moments", "objective", "second"], meta_fields=[])
@dataclass(frozen=True)
class Statistics:
    """What the data say to an M-step; `+` adds the statistics of two parts of the data.

    Attributes:
        moments: sums over points of r T(x) (k, p), float64: counts, first moments and products.
        objective: the free energy Σ r (log_joint - log r / β) of these responsibilities, in nats.
        second: total second moment (1, ...) where the covariance is shared, else absent.
    """

    moments: Any
    objective: Any
    second: Any = None

    def __add__(self, other: Statistics) -> Statistics:
        return jax.tree.map(jnp.add, self, other)


def observe(x: np.ndarray, weight: np.ndarray, structure: Structure, blocks: Any = None) -> Observations:
    """Blocks of the rows of x (n, d), which should be centred and scaled, with weights (n,).

    Long passes are laid out for an accelerator and put there, see `devices`; float32 data are float64 there where
    covariances are full or features many. `blocks` are those of x where they are known, from other weights.
    """
    n, d = x.shape
    features = 1 + d + (0 if structure.shared else STORAGES[structure.storage].size(d))
    device = accelerator(n * features) if blocks is None else None
    if blocks is None:
        # A device multiplies float64 faster than it whitens float32: for full covariances 4 and 9 ms for 1e7 points,
        # d = 4, k = 8; for diagonal ones 1.3 and 2.0 for 1e6, d = 32, k = 16, but 3.3 and 1.9 for 1e7, d = 4, k = 8.
        many = STORAGES[structure.storage].axes == 2 or d > 16
        wide = device is not None and not structure.shared and many
        size = _block_size(n, features) if device is None else _on_device(features)
        blocks = points_last(x.astype(np.float64) if wide else x, size)
    weights = points_last(weight.astype(blocks.dtype), blocks.shape[-1])
    if device is not None:
        with double_precision():
            blocks, weights = jax.device_put((blocks, weights), device)
    second = None
    if structure.shared:
        second = sum(_second_moment(x[rows], weight[rows], structure) for rows in chunks_of(n))
        second = np.asarray(second)[None]
    return Observations(blocks, weights, second)


def _block_size(n: int, features: int) -> int:
    """On a processor features take about 200 kB: measured best of 128 to 8,192 points at d = 2, 4, 10 and 32."""
    if n <= 2048 and n * features <= 2**16:  # one block is faster than a few
        return 2048
    return 2 ** int(math.log2(min(2048 if features <= 8 else 1024, max(256, 24576 // features))))


def _on_device(features: int) -> int:
    """On an accelerator as few blocks as its memory has room for."""
    return 2 ** int(math.log2(_DEVICE_BLOCK / features))


def _second_moment(x: np.ndarray, weight: np.ndarray, structure: Structure) -> np.ndarray:
    x = x.astype(np.float64)
    if structure.storage == "full":
        return (x * weight[:, None]).T @ x
    by_feature = weight @ (x * x)
    return by_feature if structure.storage == "diagonal" else np.asarray(by_feature.mean())


Assign = Callable[[Array, Array, Any], tuple[Array, Array]]


def _soft(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r = softmax; the free energy is then the log-likelihood."""
    top = jnp.max(logits, axis=0)
    unnormalised = exp_below(logits - top)
    total = jnp.sum(unnormalised, axis=0)
    return unnormalised * (weight / total), jnp.sum(weight * (top + log_above(total)))


def _hard(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r = 1 at the largest logit, a tie going to the lowest index; faster than argmax and one-hot."""
    top = jnp.max(logits, axis=0)
    index = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    first = jnp.min(jnp.where(logits == top, index, logits.shape[0]), axis=0)
    return jnp.where(index == first, weight, 0), jnp.sum(weight * top)


def _sampled(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r drawn: one categorical draw a point. The objective is the log-likelihood."""
    z, total = draw_cluster(key, logits)
    return jnp.where(jnp.arange(logits.shape[0])[:, None] == z, weight, 0), jnp.sum(weight * total)


def _sampled_counts(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r drawn for whole-number weights: a multinomial count, which is `weight` independent draws."""
    chances = jax.nn.softmax(logits, axis=0).T
    counts = jax.random.multinomial(key, weight, chances, dtype=logits.dtype).T
    return counts, jnp.sum(weight * log_sum(logits))


# How p(z | x) becomes responsibilities, which carry the observation's weight. Logits come multiplied by the
# inverse temperature β, so "soft" at β < 1 is the tempered step of annealed EM.
RESPONSIBILITIES: dict[str, Assign] = {
    "soft": _soft,
    "hard": _hard,
    "sampled": _sampled,
    "sampled_counts": _sampled_counts,
}


def summarize(
    mixture: GaussianMixture,
    observations: Observations,
    responsibilities: str = "soft",
    *,
    whitened: bool = False,
    beta: Any = 1.0,
    key: Any = None,
    factor: tuple[Array, Array] | None = None,
) -> Statistics:
    """One E-step: the statistics of the data under the mixture, in one pass over the blocks.

    Args:
        mixture: parameters in the units of the observations, float64.
        observations: from `observe`, for the same structure.
        responsibilities: a row of `RESPONSIBILITIES`.
        whitened: the rule for the moments; see the module's text. No matter where Σ is shared.
        beta: inverse temperature.
        key: for the rows that draw.
        factor: `precision_factor` of the mixture's covariance, where the caller has it already.
    """
    assign = RESPONSIBILITIES[responsibilities]
    factor = precision_factor(mixture.covariance, mixture.n_features) if factor is None else factor
    shared = mixture.covariance.row.shared
    natural, block = (_whitened if whitened and not shared else _raw)(
        mixture, observations.x.dtype, beta, factor
    )

    def sums(x: Array, weight: Array, key: Any) -> tuple[Array, ...]:
        return tuple(part.astype(jnp.float64) for part in block(natural, x, weight, assign, key))

    count = observations.x.shape[0]
    keys = None if key is None else jax.random.split(key, count)
    xs = (observations.x, observations.weight, keys)
    first = jax.tree.map(lambda a: a[0], xs)
    if count == 1:
        totals = sums(*first)
    else:
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(sums, *first))
        totals, _ = jax.lax.scan(lambda c, b: (jax.tree.map(jnp.add, c, sums(*b)), None), zero, xs)
    moments, objective = totals[0].T, totals[1] / beta
    if shared:
        # -xᵀPx/2, the same for every cluster, was left out of the logits: add its sum, -tr(P Σ w x xᵀ)/2.
        precision = mixture.covariance.storage.gram(factor[0])
        times = 1 if mixture.covariance.storage.axes else mixture.n_features
        objective = objective - times * jnp.sum(precision * observations.second) / 2
        return Statistics(moments, objective, jnp.asarray(observations.second))
    if whitened:
        moments = _about_origin(mixture, moments, factor)
    return Statistics(moments, objective)


def expected_log_joint(
    mixture: GaussianMixture, statistics: Statistics, factor: tuple[Array, Array]
) -> Array:
    """Σ r log p(x, z) in nats, from the moments of the responsibilities r alone."""
    storage, d = mixture.covariance.storage, mixture.n_features
    precision = storage.gram(factor[0])
    total = jnp.sum(_natural(mixture, factor) * statistics.moments)
    if mixture.covariance.row.shared:
        times = 1 if storage.axes else d
        total = total - times * jnp.sum(precision * statistics.second) / 2
    return total


def _constant(mixture: GaussianMixture, log_det: Array) -> Array:
    positive = mixture.weights > 0  # an empty cluster takes no point, and makes no NaN
    logs = jnp.where(positive, jnp.log(jnp.where(positive, mixture.weights, 1)), -1e30)
    return logs + log_det - mixture.n_features / 2 * math.log(2 * math.pi)


def _natural(mixture: GaussianMixture, factor: tuple[Array, Array]) -> Float[Array, "k p"]:
    """The natural parameters Θ: constant, linear and, unless one covariance is shared, quadratic part."""
    storage = mixture.covariance.storage
    w, log_det = factor
    precision = storage.gram(w)
    linear = storage.apply(precision, mixture.means)
    constant = _constant(mixture, log_det) - jnp.sum(linear * mixture.means, axis=1) / 2
    parts = [constant[:, None], linear]
    if not mixture.covariance.row.shared:
        parts.append(storage.weigh(precision, mixture.n_features))
    return jnp.concatenate(parts, axis=1)


def _raw(mixture: GaussianMixture, dtype: Any, beta: Any, factor: tuple) -> tuple[Array, Callable]:
    """Natural parameters Θ, and the block function that uses them."""
    shared, features = mixture.covariance.row.shared, mixture.covariance.storage.features

    def block(natural: Array, x: Array, weight: Array, assign: Assign, key: Any) -> tuple[Array, Array]:
        t = with_one(x) if shared else features(x)
        # The constant is added last where it can be, so that points on a grid that tie do so exactly.
        logits = natural[:, 1:] @ x + natural[:, :1] if shared else natural @ t
        r, objective = assign(logits, weight, key)
        return t @ r.T, objective  # faster than r @ t.T

    return (beta * _natural(mixture, factor)).astype(dtype), block


def _whitened(mixture: GaussianMixture, dtype: Any, beta: Any, factor: tuple) -> tuple[tuple, Callable]:
    """The same in each cluster's whitened coordinates y = W_k (x - m_k): no large numbers cancel."""
    storage = mixture.covariance.storage
    w, log_det = factor
    natural = (
        (beta * _constant(mixture, log_det)).astype(dtype)[:, None],
        mixture.means.astype(dtype),
        w.astype(dtype),
        jnp.asarray(beta, dtype),
    )

    def block(natural: tuple, x: Array, weight: Array, assign: Assign, key: Any) -> tuple[Array, Array]:
        constant, means, w, beta = natural
        y = storage.whiten(w, x - means[:, :, None])
        r, objective = assign(constant - beta / 2 * jnp.sum(y * y, axis=1), weight, key)
        spread = storage.spread(r, y)
        parts = [
            jnp.sum(r, axis=1, keepdims=True),
            jnp.einsum("kb,kdb->kd", r, y),
            spread.reshape(spread.shape[0], -1),
        ]
        return jnp.concatenate(parts, axis=1).T, objective

    return natural, block


def _about_origin(mixture: GaussianMixture, moments: Array, factor: tuple) -> Array:
    """Moments of y = W (x - m) as moments of x: from x = m + L y, in float64."""
    storage, d, means = mixture.covariance.storage, mixture.n_features, mixture.means
    cholesky = storage.cholesky(mixture.covariance.values)
    count, first, spread = moments[:, :1], moments[:, 1 : 1 + d], moments[:, 1 + d :]
    spread = spread.reshape(-1, *(d,) * storage.axes)
    moved = storage.apply(cholesky, first)  # Σ r (x - m)
    mean = means + moved / jnp.maximum(count, 1e-300)
    about_mean = storage.unwhiten(
        cholesky, spread - storage.outer(first) / per_cluster(jnp.maximum(count, 1e-300), storage.axes)
    )
    return moments_of(count[:, 0], mean, about_mean, mixture.covariance.row)


def moments_of(count: Any, means: Any, scatter: Any, structure: Structure) -> Any:
    """Moments (k, p) about the origin from counts (k,), means (k, d) and scatters about the means in storage."""
    storage, d = STORAGES[structure.storage], means.shape[1]
    parts = [count[:, None], count[:, None] * means]
    if not structure.shared:
        second = scatter + storage.outer(means) * per_cluster(count, storage.axes)
        parts.append(storage.pack(second, d))
    return numbers(count).concatenate(parts, axis=1)
