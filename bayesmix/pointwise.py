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
from bayesmix.missing import groups_of, look
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
    """Points in blocks, points last."""

    x: Any  # (blocks, d, b); zero where a cell is missing
    given: Any  # the given cluster of each or -1 (blocks, b)
    seen: Any  # which cells the points of a block have (blocks, d), where some are missing, else `None`
    place: (
        Any  # where each row is among the points of all blocks (n,), where that is not in order, else `None`
    )
    n: int
    way: Way

    @property
    def blocks(self) -> tuple[Any, Any, Any]:
        """What functions of a block are given."""
        return self.x, self.given, self.seen

    def by_row(self, values: np.ndarray) -> np.ndarray:
        """Values of all places (..., blocks * b) as those of the rows (..., n)."""
        return values[..., : self.n] if self.place is None else values[..., self.place]

    def in_blocks(self, values: np.ndarray) -> np.ndarray:
        """Values of the rows (n, ...) in blocks (blocks, ..., b)."""
        if self.place is None:
            return points_last(values, self.x.shape[-1])
        every = np.zeros((self.given.size, *values.shape[1:]), values.dtype)
        every[self.place] = values
        return np.moveaxis(every.reshape(*self.given.shape, *values.shape[1:]), 1, -1)


def with_points(x: Any, mixture: GaussianMixture, given: np.ndarray | None = None) -> Points:
    """Blocks of the rows (n, d), the last filled up, for mixtures such as this one; NaN are missing cells."""
    x = np.asarray(x, np.float64)
    given = np.full(len(x), -1) if given is None else given
    if np.isnan(x).any():
        return _with_gaps(x, given.astype(np.int32))
    k, d = mixture.means.shape[-2:]
    row = mixture.covariance.row
    few = is_few(k * row.n_moments(d)) and row.written_out(d)
    size = _CHUNK if few else min(_BLOCK, max(64, -(-len(x) // 64) * 64))
    blocks = points_last(x, size), points_last(given.astype(np.int32), size)
    return Points(*blocks, None, None, len(x), Way(few))


def _with_gaps(x: np.ndarray, given: np.ndarray) -> Points:
    """The same, rows that lack the same cells together."""
    seen, rows = groups_of(~np.isnan(x), 8, _BLOCK)
    filled = np.where(rows >= 0, rows, 0)
    points = np.moveaxis(np.nan_to_num(x[filled]), 1, 2)
    place = np.empty(len(x), int)
    place[rows[rows >= 0]] = np.flatnonzero(rows.ravel() >= 0)
    known = np.where(rows >= 0, given[filled], -1).astype(np.int32)
    return Points(points, known, seen.astype(np.float64), place, len(x), Way(False))


def _logits(mixture: GaussianMixture, block: tuple[Array, Array, Any]) -> Array:
    """log p(x, z=k) (k, b), and minus infinity for clusters other than a given one."""
    x, given, seen = block
    logits = log_joint(mixture, x) if seen is None else look(mixture, x, seen).logits
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
def _allocate(draws: tuple[GaussianMixture, Array], blocks: tuple, way: Way) -> tuple[Array, Array, Array]:
    """log p(x) and z of each draw, and the responsibilities added up over all."""

    def every(draws: tuple[GaussianMixture, Array], blocks: tuple) -> tuple[Array, Array, Array]:
        x = blocks[0]

        def one(sums: Array, pair: tuple[GaussianMixture, Array]) -> tuple[Array, tuple[Array, Array]]:
            mixture, words = pair
            keys = words[None] if x.shape[0] == 1 else split(words, x.shape[0])

            def block(part: tuple[tuple, Array]) -> tuple[Array, Array, Array]:
                logits = _logits(mixture, part[0])
                z, total = draw_cluster(part[1], logits)
                return total, z.astype(jnp.int32), _softmax(logits)

            logs, z, own = jax.lax.map(block, (blocks, keys))
            return sums + own, (logs, z)

        zero = jnp.zeros((x.shape[0], draws[0].n_components, x.shape[-1]))
        sums, (logs, z) = jax.lax.scan(one, zero, draws)
        return logs, z, sums

    return one_kernel(every, way.few)(draws, blocks)


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
            whole[first : first + len(part)] = points.by_row(part.reshape(len(part), -1))
        return found[2]

    draws = mixtures._arrays(), words
    sums = sum(_by_core(_allocate, draws, points.blocks, points.way, then=write))
    return logs, z, _by_point(sums, points) / len(words)


def _by_point(sums: Any, points: Points) -> np.ndarray:
    """Blocks (blocks, k, b) as (n, k)."""
    return points.by_row(np.moveaxis(sums, 1, 0).reshape(sums.shape[1], -1)).T


def call_of_allocate(mixtures: GaussianMixture, points: Points) -> Call:
    """That of `allocate`, for mixtures of these shapes."""
    draws = mixtures._arrays(), np.zeros((len(mixtures.weights), 2), np.uint32)
    return Call(_allocate, (_parts(draws)[0], points.blocks, points.way))


@partial(wide, static_argnames="way")
def _log_likelihoods(mixtures: GaussianMixture, blocks: tuple, weight: Array, way: Way) -> Array:
    def one(mixture: GaussianMixture, blocks: tuple, weight: Array) -> Array:
        def block(part: tuple[tuple, Array]) -> Array:
            return jnp.sum(log_sum(_logits(mixture, part[0])) * part[1])

        return jnp.sum(jax.lax.map(block, (blocks, weight)))

    return _each(one, way)(mixtures, blocks, weight)


def log_likelihoods(
    mixtures: GaussianMixture, points: Points, weight: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " s"]:
    """Σ w_n log p(x_n) of each draw (s, ...), jointly with the clusters that are given."""
    own = points.in_blocks(np.asarray(weight, np.float64))
    parts = _by_core(_log_likelihoods, mixtures._arrays(), points.blocks, own, points.way)
    return np.concatenate(parts)


@partial(wide, static_argnames="way")
def _responsibilities(mixtures: GaussianMixture, blocks: tuple, way: Way) -> Array:
    """Their mean over the draws."""

    def mean(mixtures: GaussianMixture, blocks: tuple) -> Array:
        x = blocks[0]

        def add(total: Array, mixture: GaussianMixture) -> tuple[Array, None]:
            return total + jax.lax.map(lambda part: _softmax(_logits(mixture, part)), blocks), None

        zero = jnp.zeros((x.shape[0], mixtures.n_components, x.shape[-1]))
        return jax.lax.scan(add, zero, mixtures)[0] / mixtures.means.shape[0]

    return one_kernel(mean, way.few)(mixtures, blocks)


def mean_responsibilities(mixtures: GaussianMixture, points: Points) -> Float[np.ndarray, "n k"]:
    """p(z | x) averaged over draws (s, ...), whose labels must mean the same."""
    parts = _by_core(_responsibilities, mixtures._arrays(), points.blocks, points.way)
    return _by_point(np.mean(parts, axis=0), points)


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
    if moved.size * mean.size > _MOVED or np.isnan(x).any():
        return mean_responsibilities(permuted(mixtures, order), with_points(x, mixtures, given))
    free = np.ones(len(x), bool) if given is None else given < 0  # a cluster that is given is so in any order
    for draw in moved.tolist():
        own = responsibilities(jax.tree.map(itemgetter(draw), mixtures._arrays()), x.T)
        mean = mean + np.where(free, own[order[draw]] - own, 0).T / s
    return mean


@partial(wide, static_argnames="way")
def _costs(mixtures: GaussianMixture, blocks: tuple, weight: Array, logs: Array, way: Way) -> Array:
    def one(mixture: GaussianMixture, blocks: tuple, weight: Array, logs: Array) -> Array:
        def add(total: Array, part: tuple[tuple, Array, Array]) -> tuple[Array, None]:
            block, weight, logs = part
            r = _softmax(_logits(mixture, block)) * weight
            own = jnp.sum(jnp.where(r > 0, r * jnp.log(jnp.where(r > 0, r, 1)), 0), axis=1)
            return total + own[:, None] - r @ logs.T, None

        k = mixture.n_components
        return jax.lax.scan(add, jnp.zeros((k, k)), (blocks, weight, logs))[0]

    return _each(one, way)(mixtures, blocks, weight, logs)


def relabelling_costs(
    mixtures: GaussianMixture, points: Points, mean: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "s k k"]:
    """Stephens' costs Σ_n r_nj log(r_nj / q_nl), of each draw, of calling its cluster j the cluster l of a mean q."""
    logs, weight = (points.in_blocks(a) for a in (np.log(np.maximum(mean, 1e-300)), np.ones(points.n)))
    parts = _by_core(_costs, mixtures._arrays(), points.blocks, weight, logs, points.way)
    return np.concatenate(parts)
