"""Statistics add: one pass over the data gives all that an M-step needs.

log p(x, z=k) is linear in the features T(x) = [1, x, products of x], so with Θ the natural parameters

    logits = Θ @ T(x),    moments = R @ T(x)ᵀ,    R = responsibilities

and the moments of the whole are the sum of the moments of its parts. Blocks, streams and devices live
here and nowhere else. Inside a block points are the last axis; blocks are small enough to stay in cache.

Where one covariance is shared, the quadratic part of the logits is the same for every cluster: logits are
linear in x, and the total second moment is computed once, in `observations`; while "raw", see below, is the rule.

Two rules give the moments, and which one holds is a fact, not an option. "raw" sums T(x) itself, about the
data's own mean: exact to 1e-7 in float64 while no cluster is thinner than 1e-3.5 of the data's spread and of its
mean's distance; in float32 log-densities hold to 1e-4 while none is thinner than a sixteenth. "whitened" sums
T(W_k (x - m_k)) and maps back in float64; it serves from the step at which a cluster becomes thinner than that, for
the clusters that are where they are few, else for all, as where they share their covariance. Of float32 data it is raw
moments in float64 instead, which takes half the time or less: what they lose is less than rounding to float32 has cost
such data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bayesmix import lean
from bayesmix.compilation import one_kernel
from bayesmix.covariance import Structure
from bayesmix.density import draw_cluster, log_sum, precision_factor
from bayesmix.elementary import exp_below, log_positive
from bayesmix.gaps import drawn_moments, expected_moments
from bayesmix.maxima import largest
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations
from bayesmix.passes import Assign, by_blocks, by_lanes
from bayesmix.storage import Storage, numbers, per_cluster, with_one
from bayesmix.variates import split

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = [
    "EVERY", "RESPONSIBILITIES", "Statistics", "expected_log_joint", "moments_of",
    "natural_parameters", "summarize",
]  # fmt: skip

EVERY = math.inf  # cluster
_BESIDE = 2**30  # a stream of random numbers that no part of the blocks has


@jax.tree_util.register_dataclass
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


def _soft(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r = softmax; the free energy is then the log-likelihood."""
    top = lax.reduce_max(logits, [0])
    unnormalised = exp_below(logits - top)
    total = lean.sum(unnormalised, axis=0)
    return unnormalised * (weight / total), weight * (top + log_positive(total))


def _hard(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r = 1 at the largest logit, as a mask."""
    first, top = largest(logits)
    return jnp.where(_index(logits) == first, weight, 0), weight * top


def _index(logits: Float[Array, "k b"]) -> Float[Array, "k 1"]:
    """Clusters counted in numbers as wide as the logits, which vector instructions compare without conversion."""
    return jnp.arange(logits.shape[0], dtype=logits.dtype)[:, None]


def _sampled(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r drawn: one categorical draw a point. The objective is the log-likelihood."""
    words, first = key
    z, total = draw_cluster(words, logits, first)
    return jnp.where(jnp.arange(logits.shape[0])[:, None] == z, weight, 0), weight * total


def _sampled_counts(logits: Float[Array, "k b"], weight: Float[Array, " b"], key: Any) -> tuple[Array, Array]:
    """r drawn for whole-number weights: a multinomial count, which is `weight` independent draws."""
    chances = jax.nn.softmax(logits, axis=0).T
    counts = jax.random.multinomial(jax.random.wrap_key_data(key[0]), weight, chances, dtype=logits.dtype).T
    return counts, weight * log_sum(logits)


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
    whitened: float = 0,
    thin: Any = None,
    beta: Any = 1.0,
    key: Any = None,
    factor: tuple[Array, Array] | None = None,
    few: bool = False,
    padded: bool = False,
) -> Statistics:
    """One E-step: the statistics of the data under the mixture, in one pass over the blocks.

    Args:
        mixture: parameters in the units of the observations, float64.
        observations: from `observe`, for the same structure.
        responsibilities: a row of `RESPONSIBILITIES`.
        whitened: of how many clusters moments are whitened, or of `EVERY` one; see the module's text.
        thin: which clusters are first (k,).
        beta: inverse temperature.
        key: key data (2,) for the rows that draw.
        factor: `precision_factor` of the mixture's covariance, where the caller has it already.
        few: the pass is one kernel, see `compilation`; of raw moments only.
        padded: and it leaves out most of the clusters of no weight that come last.
    """
    assign = RESPONSIBILITIES[responsibilities]
    factor = precision_factor(mixture.covariance, mixture.n_features) if factor is None else factor
    shared = mixture.covariance.row.shared
    dtype = observations.x.dtype
    if whitened and dtype == jnp.float32:
        whitened, dtype = 0, jnp.float64
    if few:
        # Of hard ones points on a grid tie, exactly only where what all clusters have in common is added as one.
        storage = None if shared else mixture.covariance.storage
        over = partial(by_lanes, storage, assign, responsibilities != "hard")
        natural = _raw(mixture, dtype, beta, factor).natural
        if padded:
            over, given = partial(_by_width, over), (mixture.weights, natural)
        else:
            given = (natural,)
        moments, objective = one_kernel(over, few)(*given, observations, key)
    else:
        order, groups = None, [(whitened > 0, mixture, factor)]
        if 0 < whitened < EVERY:
            order = jnp.argsort(jnp.where(thin, mixture.weights, -1), stable=True)
            places = jnp.split(order, [order.size - int(whitened)])
            groups = [(w, *_some(mixture, factor, own)) for w, own in zip((False, True), places)]
        rules = [(_whitened if w else _raw)(own, dtype, beta, its) for w, own, its in groups]
        natural = [rule.natural for rule in rules]
        block = partial(_block, rules)
        totals, objective = by_blocks(natural, block, assign, dtype, observations, key, order)
        parts = [
            _about_origin(own, total.T, its) if w else total.T for (w, own, its), total in zip(groups, totals)
        ]
        moments = parts[0] if order is None else jnp.concatenate(parts)[jnp.argsort(order)]
    objective = objective / beta
    if not shared:
        found = Statistics(moments, objective)
    elif whitened:
        first, second = jnp.split(moments, (1 + mixture.n_features,), axis=1)
        second = lean.sum(mixture.covariance.storage.second(second, mixture.n_features), axis=0)
        found = Statistics(first, objective, second[None])
    else:
        objective = objective - _common_part(mixture, observations.second, factor)
        found = Statistics(moments, objective, jnp.asarray(observations.second))
    if observations.gaps is None:
        return found
    if responsibilities == "sampled":
        words = split(key, 1, _BESIDE)[0]  # of none of the blocks
        return found + _of_gaps(mixture, *drawn_moments(mixture, observations.gaps, words))
    count, means, scatter, objective = expected_moments(mixture, observations.gaps, assign, beta)
    return found + _of_gaps(mixture, count, means, scatter, objective / beta)


def _of_gaps(
    mixture: GaussianMixture, count: Array, means: Array, scatter: Array, objective: Array
) -> Statistics:
    """What the rows with missing cells add."""
    storage, row = mixture.covariance.storage, mixture.covariance.row
    scatter = jnp.mean(scatter, axis=1) if storage.axes == 0 else scatter
    second = None
    if row.shared:
        second = jnp.sum(scatter + storage.outer(means) * per_cluster(count, storage.axes), axis=0)[None]
    return Statistics(moments_of(count, means, scatter, row), objective, second)


def _some(
    mixture: GaussianMixture, factor: tuple[Array, Array], places: Array
) -> tuple[GaussianMixture, tuple[Array, Array]]:
    """Some of the clusters, and of their factors."""
    return jax.tree.map(lambda a: a[places], (mixture, factor))


class _Rule(NamedTuple):
    """How logits and moments of a block are computed, of some clusters or all."""

    natural: Any  # what is computed once a pass, and then
    logits: Callable[[Any, Array], tuple[Array, Array]]  # of it and a block (d, b): logits (k, b), and what
    moments: Callable[[Array, Array], Array]  # with responsibilities (k, b) gives moments (p, k)


def _block(
    rules: list[_Rule], natural: list, x: Array, weight: Array, assign: Assign, key: Any
) -> tuple[list[Array], Array]:
    logits, kept = zip(*(rule.logits(own, x) for rule, own in zip(rules, natural)))
    r, objective = assign(logits[0] if len(rules) == 1 else jnp.concatenate(logits), weight, key)
    parts = lax.split(r, [own.shape[0] for own in logits])
    return [rule.moments(own, part) for rule, own, part in zip(rules, kept, parts)], objective


def _by_width(
    over: Callable, weights: Array, natural: Array, observations: Observations, key: Any
) -> tuple[Array, Array]:
    """A pass over half of the clusters, if those with a weight reach no further, or over all: both are compiled."""
    k = weights.shape[0]
    half = -(-k // 2)

    def pass_of(width: int) -> tuple[Array, Array]:
        moments, objective = over(natural[:width], observations, key)
        return jnp.pad(moments, ((0, k - width), (0, 0))), objective

    return lax.cond(jnp.any(weights[half:] > 0), partial(pass_of, k), partial(pass_of, half))


def _common_part(mixture: GaussianMixture, second: Any, factor: tuple[Array, Array]) -> Array:
    """Σ w xᵀPx / 2, the same for every cluster where P is, so that logits leave it out: tr(P Σ w x xᵀ) / 2."""
    storage = mixture.covariance.storage
    times = 1 if storage.axes else mixture.n_features
    return times * jnp.sum(storage.gram(factor[0]) * second) / 2


def expected_log_joint(
    mixture: GaussianMixture, statistics: Statistics, factor: tuple[Array, Array]
) -> Array:
    """Σ r log p(x, z) in nats, from the moments of the responsibilities r alone."""
    storage, d = mixture.covariance.storage, mixture.n_features
    constant, linear, precision = _parts(mixture, factor)
    count, first, rest = jnp.split(statistics.moments, (1, 1 + d), axis=1)
    total = jnp.sum(count[:, 0] * constant) + jnp.sum(first * linear)
    if mixture.covariance.row.shared:
        return total - _common_part(mixture, statistics.second, factor)
    # Moments are unpacked, where Θ would be packed: to differentiate by the latter is a scatter.
    return total - (1 if storage.axes else d) * jnp.sum(precision * storage.second(rest, d)) / 2


def _constant(mixture: GaussianMixture, log_det: Array) -> Array:
    positive = mixture.weights > 0  # an empty cluster takes no point, and makes no NaN
    logs = lean.where(positive, lax.log(lean.where(positive, mixture.weights, 1)), -1e30)
    return logs + log_det - mixture.n_features / 2 * math.log(2 * math.pi)


def _parts(mixture: GaussianMixture, factor: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """Constant and linear part of log p(x, z), and the precision in its storage."""
    w, log_det = factor
    precision = mixture.covariance.storage.gram(w)
    linear = mixture.covariance.storage.apply(precision, mixture.means)
    return _constant(mixture, log_det) - lean.sum(linear * mixture.means, axis=1) / 2, linear, precision


@lean.inlined
def natural_parameters(mixture: GaussianMixture, factor: tuple[Array, Array]) -> Float[Array, "k p"]:
    """The natural parameters Θ: constant, linear and, unless one covariance is shared, quadratic part."""
    constant, linear, precision = _parts(mixture, factor)
    parts = [constant[:, None], linear]
    if not mixture.covariance.row.shared:
        parts.append(mixture.covariance.storage.weigh(precision, mixture.n_features))
    return jnp.concatenate(parts, axis=1)


def _raw(mixture: GaussianMixture, dtype: Any, beta: Any, factor: tuple) -> _Rule:
    """Natural parameters Θ, with which all is two products."""
    shared, features = mixture.covariance.row.shared, mixture.covariance.storage.features

    def logits(natural: Array, x: Array) -> tuple[Array, Array]:
        t = with_one(x) if shared else features(x)
        # The constant is added last where it can be, so that points on a grid that tie do so exactly.
        return natural[:, 1:] @ x + natural[:, :1] if shared else natural @ t, t

    # t @ r.T is faster than r @ t.T.
    return _Rule((beta * natural_parameters(mixture, factor)).astype(dtype), logits, lambda t, r: t @ r.T)


def _whitened(mixture: GaussianMixture, dtype: Any, beta: Any, factor: tuple) -> _Rule:
    """The same in each cluster's whitened coordinates y = W_k (x - m_k): no large numbers cancel."""
    storage = mixture.covariance.storage
    w, log_det = factor
    natural = (
        (beta * _constant(mixture, log_det)).astype(dtype)[:, None],
        mixture.means.astype(dtype),
        w.astype(dtype),
        jnp.asarray(beta, dtype),
    )

    def logits(natural: tuple, x: Array) -> tuple[Array, Array]:
        constant, means, w, beta = natural
        y = storage.whiten(w, x - means[:, :, None])
        return constant - beta / 2 * jnp.sum(y * y, axis=1), y

    def moments(y: Array, r: Array) -> Array:
        spread = storage.spread(r, y)
        parts = [
            jnp.sum(r, axis=1, keepdims=True),
            jnp.einsum("kb,kdb->kd", r, y),
            spread.reshape(spread.shape[0], -1),
        ]
        return jnp.concatenate(parts, axis=1).T

    return _Rule(natural, logits, moments)


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
    return _with_second(count[:, 0], mean, about_mean, storage)


def moments_of(count: Any, means: Any, scatter: Any, structure: Structure) -> Any:
    """Moments (k, p) about the origin from counts (k,), means (k, d) and scatters about the means in storage."""
    if structure.shared:
        return numbers(count).concatenate([count[:, None], count[:, None] * means], axis=1)
    return _with_second(count, means, scatter, structure.form)


def _with_second(count: Any, means: Any, scatter: Any, storage: Storage) -> Any:
    second = scatter + storage.outer(means) * per_cluster(count, storage.axes)
    parts = [count[:, None], count[:, None] * means, storage.pack(second, means.shape[1])]
    return numbers(count).concatenate(parts, axis=1)
