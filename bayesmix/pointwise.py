"""What each draw of a posterior says of each point, streamed over draws: nothing of draws × n × k is ever made."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.blocks import points_last
from bayesmix.compilation import Call, one_kernel, wide
from bayesmix.density import draw_cluster, log_joint, log_sum, responsibilities
from bayesmix.devices import double_precision
from bayesmix.elementary import exp_below
from bayesmix.inputs import cores, to_numpy
from bayesmix.labels import permuted
from bayesmix.mixture import GaussianMixture
from bayesmix.passes import is_few
from bayesmix.variates import split

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = [
    "Points",
    "allocate",
    "log_likelihoods",
    "call_of_allocate",
    "mean_in_order",
    "mean_responsibilities",
    "relabelling_costs",
    "with_points",
]

_BLOCK = 4096
_CHUNK = 64  # points of a block, of one kernel
_MOVED = 2**22  # responsibilities, that NumPy computes in less time than their program compiles


class Way(NamedTuple):
    """How draws are looked at; a different value is a different program."""

    few: bool  # all of them by one kernel


class Points(NamedTuple):
    """Points in blocks, points last: x (blocks, d, b), the given cluster of each or -1 (blocks, b), and how many."""

    x: Any
    given: Any
    n: int
    way: Way


def with_points(x: Any, mixture: GaussianMixture, given: np.ndarray | None = None) -> Points:
    """Blocks of the rows (n, d), the last filled up, for mixtures such as this one."""
    x = np.asarray(x, np.float64)
    given = np.full(len(x), -1) if given is None else given
    k, d = mixture.means.shape[-2:]
    row = mixture.covariance.row
    few = is_few(k * row.n_moments(d)) and row.written_out(d)
    size = _CHUNK if few else min(_BLOCK, max(64, -(-len(x) // 64) * 64))
    return Points(points_last(x, size), points_last(given.astype(np.int32), size), len(x), Way(few))


def _logits(mixture: GaussianMixture, x: Array, given: Array) -> Array:
    """log p(x, z=k) (k, b), and minus infinity for clusters other than a given one."""
    logits = log_joint(mixture, x)
    known = (given >= 0) & (jnp.arange(logits.shape[0])[:, None] != given)
    return jnp.where(known, -jnp.inf, logits)


def _softmax(logits: Array) -> Array:
    unnormalised = exp_below(logits - jnp.max(logits, axis=0))
    return unnormalised / jnp.sum(unnormalised, axis=0)


def _each(one: Callable, way: Way) -> Callable:
    """one(draw, *points) of each draw, as a function of all."""

    def every(draws: Any, *points: Any) -> Any:
        return jax.lax.map(lambda draw: one(draw, *points), draws)

    return one_kernel(every, way.few)


def _by_core(function: Any, draws: Any, *points: Any, then: Callable | None = None) -> list[Any]:
    """function(draws, *points) of as many equal parts of the draws (s, ...) as there are cores, or of all.

    Or what `then` makes of each, and of the number of draws before it.
    """
    parts = _parts(draws)
    with ThreadPoolExecutor(len(parts)) as pool:
        Call(function, (parts[0], *points)).traced()()  # lest two threads do

        def of(i: int, part: Any) -> Any:
            with double_precision():
                found = to_numpy(function(part, *points))
            return found if then is None else then(i * len(jax.tree.leaves(part)[0]), found)

        return list(pool.map(of, range(len(parts)), parts))


def _parts(draws: Any) -> list[Any]:
    s = jax.tree.leaves(draws)[0].shape[0]
    size = s // math.gcd(s, cores())
    return [jax.tree.map(lambda a, i=i: a[i : i + size], draws) for i in range(0, s, size)]


@partial(wide, static_argnames="way")
def _allocate(
    draws: tuple[GaussianMixture, Array], x: Array, given: Array, way: Way
) -> tuple[Array, Array, Array]:
    """log p(x) and z of each draw, and the responsibilities added up over all."""

    def every(draws: tuple[GaussianMixture, Array], x: Array, given: Array) -> tuple[Array, Array, Array]:
        def one(sums: Array, pair: tuple[GaussianMixture, Array]) -> tuple[Array, tuple[Array, Array]]:
            mixture, words = pair
            keys = words[None] if x.shape[0] == 1 else split(words, x.shape[0])

            def block(part: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                logits = _logits(mixture, *part[:2])
                z, total = draw_cluster(part[2], logits)
                return total, z.astype(jnp.int32), _softmax(logits)

            logs, z, own = jax.lax.map(block, (x, given, keys))
            return sums + own, (logs, z)

        zero = jnp.zeros((x.shape[0], draws[0].n_components, x.shape[-1]))
        sums, (logs, z) = jax.lax.scan(one, zero, draws)
        return logs, z, sums

    return one_kernel(every, way.few)(draws, x, given)


def allocate(
    mixtures: GaussianMixture, points: Points, words: np.ndarray
) -> tuple[Float[np.ndarray, "s n"], Int[np.ndarray, "s n"], Float[np.ndarray, "n k"]]:
    """log p(x_n) of each draw (jointly with a cluster that is given), z drawn from p(z | x, draw), and p(z | x).

    The last is the mean over the draws, with their labels as they are.

    Args:
        mixtures: leaves (s, ...), in the units of the points.
        points: from `with_points`.
        words: key data (s, 2).
    """
    shape = len(words), points.n
    logs, z = np.empty(shape), np.empty(shape, np.min_scalar_type(mixtures.n_components))

    def write(first: int, found: tuple[np.ndarray, ...]) -> np.ndarray:
        for whole, part in zip((logs, z), found):
            whole[first : first + len(part)] = part.reshape(len(part), -1)[:, : points.n]
        return found[2]

    draws = mixtures._arrays(), words
    sums = sum(_by_core(_allocate, draws, points.x, points.given, points.way, then=write))
    return logs, z, _by_point(sums, points.n) / len(words)


def _by_point(sums: Any, n: int) -> np.ndarray:
    """Blocks (blocks, k, b) as (n, k)."""
    return np.moveaxis(sums, 1, -1).reshape(-1, sums.shape[1])[:n]


def call_of_allocate(mixtures: GaussianMixture, points: Points) -> Call:
    """That of `allocate`, for mixtures of these shapes."""
    draws = mixtures._arrays(), np.zeros((len(mixtures.weights), 2), np.uint32)
    return Call(_allocate, (_parts(draws)[0], points.x, points.given, points.way))


@partial(wide, static_argnames="way")
def _log_likelihoods(mixtures: GaussianMixture, x: Array, given: Array, weight: Array, way: Way) -> Array:
    def one(mixture: GaussianMixture, x: Array, given: Array, weight: Array) -> Array:
        def block(part: tuple[Array, Array, Array]) -> Array:
            return jnp.sum(log_sum(_logits(mixture, *part[:2])) * part[2])

        return jnp.sum(jax.lax.map(block, (x, given, weight)))

    return _each(one, way)(mixtures, x, given, weight)


def log_likelihoods(
    mixtures: GaussianMixture, points: Points, weight: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " s"]:
    """Σ w_n log p(x_n) of each draw (s, ...), jointly with the clusters that are given."""
    blocks = points_last(np.asarray(weight, np.float64), points.x.shape[-1])
    parts = _by_core(_log_likelihoods, mixtures._arrays(), points.x, points.given, blocks, points.way)
    return np.concatenate(parts)


@partial(wide, static_argnames="way")
def _responsibilities(mixtures: GaussianMixture, x: Array, given: Array, way: Way) -> Array:
    """Their mean over the draws."""

    def mean(mixtures: GaussianMixture, x: Array, given: Array) -> Array:
        def add(total: Array, mixture: GaussianMixture) -> tuple[Array, None]:
            own = jax.lax.map(lambda part: _softmax(_logits(mixture, *part)), (x, given))
            return total + own, None

        zero = jnp.zeros((x.shape[0], mixtures.n_components, x.shape[-1]))
        return jax.lax.scan(add, zero, mixtures)[0] / mixtures.means.shape[0]

    return one_kernel(mean, way.few)(mixtures, x, given)


def mean_responsibilities(mixtures: GaussianMixture, points: Points) -> Float[np.ndarray, "n k"]:
    """p(z | x) averaged over draws (s, ...), whose labels must mean the same."""
    parts = _by_core(_responsibilities, mixtures._arrays(), points.x, points.given, points.way)
    return _by_point(np.mean(parts, axis=0), points.n)


def mean_in_order(
    mean: Float[np.ndarray, "n k"],
    mixtures: GaussianMixture,
    order: Int[np.ndarray, "s k"],
    x: Float[np.ndarray, "n d"],
    given: Int[np.ndarray, " n"] | None,
) -> Float[np.ndarray, "n k"]:
    """The `mean` p(z | x) of draws (s, ...) once the clusters of each are in an order, which few need; by NumPy."""
    s, k = order.shape
    moved = np.flatnonzero((order != np.arange(k)).any(axis=1))
    if moved.size * mean.size > _MOVED:
        return mean_responsibilities(permuted(mixtures, order), with_points(x, mixtures, given))
    free = np.ones(len(x), bool) if given is None else given < 0  # a cluster that is given is so in any order
    for draw in moved.tolist():
        own = responsibilities(jax.tree.map(itemgetter(draw), mixtures._arrays()), x.T)
        mean = mean + np.where(free, own[order[draw]] - own, 0).T / s
    return mean


@partial(wide, static_argnames="way")
def _costs(mixtures: GaussianMixture, x: Array, given: Array, weight: Array, logs: Array, way: Way) -> Array:
    def one(mixture: GaussianMixture, x: Array, given: Array, weight: Array, logs: Array) -> Array:
        def add(total: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
            x, given, weight, logs = part
            r = _softmax(_logits(mixture, x, given)) * weight
            own = jnp.sum(jnp.where(r > 0, r * jnp.log(jnp.where(r > 0, r, 1)), 0), axis=1)
            return total + own[:, None] - r @ logs.T, None

        k = mixture.n_components
        return jax.lax.scan(add, jnp.zeros((k, k)), (x, given, weight, logs))[0]

    return _each(one, way)(mixtures, x, given, weight, logs)


def relabelling_costs(
    mixtures: GaussianMixture, points: Points, mean: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "s k k"]:
    """Stephens' costs Σ_n r_nj log(r_nj / q_nl), of each draw, of calling its cluster j the cluster l of a mean q."""
    size = points.x.shape[-1]
    logs = points_last(np.log(np.maximum(mean, 1e-300)), size)
    weight = points_last(np.ones(points.n), size)
    parts = _by_core(_costs, mixtures._arrays(), points.x, points.given, weight, logs, points.way)
    return np.concatenate(parts)
