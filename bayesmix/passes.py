"""One pass over the data, which adds up what each point gives: by blocks, or as one kernel.

XLA makes a dozen kernels of a block, each of which writes what the next one reads. In one kernel few points at a time
go all the way, in vectors: two to four times as fast where a point gives few numbers. Of many XLA's library of
products makes more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix import lean
from bayesmix.maxima import largest, possible
from bayesmix.observations import Observations
from bayesmix.storage import Storage, slices
from bayesmix.variates import split

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["Assign", "by_blocks", "by_lanes", "is_few", "labels"]

_FEW = {8: 784, 4: 640}  # clusters times moments, by the bytes of a number, up to which one kernel is faster
# Bytes of a feature of the points that one kernel takes at a time, and places of its sums: measured best of 256 to
# 2,048 bytes, and of 8 to 32 places.
_CHUNK, _LANES = 1024, 16
# Of float32 so many chunks, 4,096 points, are summed before sums are float64: to convert them takes as long as a chunk.
_TOGETHER = 16
_CHAIN = 8  # products that are added up one after another

# Responsibilities (k, b) out of logits, weights and a key, and what each point adds to the objective (b,). That is
# summed in float64: gains are differences of such sums, and of float32 they would be rounding while EM still climbs.
# The key comes with the number of points of its block before these.
type Assign = Callable[[Array, Array, Any], tuple[Array, Array]]


def is_few(numbers: int, dtype: Any = np.float64) -> bool:
    """Whether a pass over data of this type for so many moments, clusters times features, is to be one kernel."""
    return numbers <= _FEW[np.dtype(dtype).itemsize] and jax.default_backend() == "cpu"


def by_blocks(
    natural: Any,
    block: Callable,
    assign: Assign,
    dtype: Any,
    observations: Observations,
    key: Any,
    order: Any = None,
) -> tuple[Any, Array]:
    """Sums of a block function: moments, an array or several, and objective.

    `order` is which cluster each row of the logits is of, if not the one of its number.
    """

    def sums(x: Array, weight: Array, label: Any, key: Any) -> tuple[Any, Array]:
        numbers = None if key is None else (key, 0)
        own = assign if label is None else partial(_told, assign, label.astype(dtype), order)
        moments, each = block(natural, x.astype(dtype), weight.astype(dtype), own, numbers)
        return jax.tree.map(lambda a: a.astype(jnp.float64), moments), jnp.sum(each.astype(jnp.float64))

    count = observations.x.shape[0]
    keys = _keys(key, count)
    xs = (observations.x, observations.weight, observations.label, keys)
    first = jax.tree.map(lambda a: a[0], xs)
    if count == 1:
        return sums(*first)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(sums, *first))
    return lax.scan(lambda c, b: (jax.tree.map(jnp.add, c, sums(*b)), None), zero, xs)[0]


def _told(
    assign: Assign, label: Array, order: Any, logits: Array, weight: Array, key: Any
) -> tuple[Array, Array]:
    """Responsibilities where the clusters of some points are known."""
    return assign(possible(logits, label, order), weight, key)


def _sum(terms: Sequence[Array]) -> Array:
    """Of terms to which a constant is added last, so that points on a grid that tie do so exactly.

    In short chains: a processor waits for each link of one, and does another meanwhile.
    """
    count = -(-len(terms) // _CHAIN)
    return reduce(add, (reduce(add, terms[i::count]) for i in range(count)))


def _keys(key: Any, count: int) -> Any:
    """One for each block."""
    return None if key is None else key[None] if count == 1 else split(key, count)


def by_lanes(
    storage: Storage | None,
    assign: Assign,
    by_row: bool,
    natural: Float[Array, "k p"],
    observations: Observations,
    key: Any,
) -> tuple[Array, Array]:
    """The same for one kernel: few points at a time, which stay in vectors, and products as sums written out.

    Moments (k, p) are of 1, x and the pieces of x that a storage has. Logits `by_row` are sums over features i of x_i
    times a sum over its partners j of x_j: then rows of x are all that is read, which stay in registers. Each sum has
    as many places as one vector of float32 or two of float64, and these are added up at the end.
    """
    size, count, at = _chunks(observations, natural.dtype)
    lanes = math.gcd(size, _LANES)
    blocks, d, _ = observations.x.shape
    pieces, sizes, partners = (lambda x: []), [], []
    if storage is not None:
        pieces, sizes, partners = storage.pieces, storage.sizes(d), storage.partners(d) if by_row else []
    keys, k = _keys(key, blocks), natural.shape[0]

    def parts(a: Array) -> Sequence[Array]:
        return lax.split(a, [lanes] * (size // lanes), a.ndim - 1)

    def terms(columns: Sequence[Array], points: Array, given: list[tuple[Array, Any]]) -> list[Array]:
        linear, others, rows = columns[:d], iter(columns[d:]), slices(points, 0)
        if partners:
            return [
                reduce(add, (next(others) * rows[j] for j in own), column) * row
                for column, row, own in zip(linear, rows, partners)
            ]
        products = [row if factor is None else row * factor for a, factor in given for row in slices(a, 0)]
        return [column * row for column, row in zip(columns, [*rows, *products])]

    @lean.inlined
    def chunk(i: Any, sums: tuple[list[Array], Array]) -> tuple[list[Array], Array]:
        block, first, points, counts, label = at(i)
        given = [(_kept(a), None) if factor is None else (a, factor) for a, factor in pieces(points)]
        columns = slices(natural, 1)
        logits = _kept(_sum(terms(columns[1:], points, given)) + columns[0])
        rule = assign if label is None else partial(_told, assign, label, None)
        r, own = rule(logits, counts, None if keys is None else (keys[block], first))
        r = parts(_kept(r)[:, None])
        moments = [reduce(add, r, sums[0][0])]
        for (a, factor), total in zip([(points, None), *given], sums[0][1:]):
            chances = r if factor is None else [c * f for c, f in zip(r, parts(factor))]
            moments.append(reduce(add, (c * row for c, row in zip(chances, parts(a))), total))
        return moments, sums[1] + reduce(add, (part.astype(jnp.float64) for part in parts(own)))

    def more(group: Any, sums: tuple[list[Array], Array]) -> tuple[list[Array], Array]:
        first = group * _TOGETHER
        last = jnp.minimum(first + _TOGETHER, count)
        own = [jnp.zeros(a.shape, natural.dtype) for a in sums[0]], sums[1]
        moments, objective = lax.fori_loop(first, last, chunk, own)
        return [a + own.astype(jnp.float64) for a, own in zip(sums[0], moments)], objective

    zero = [jnp.zeros((k, m, lanes)) for m in (1, d, *sizes)], jnp.zeros(lanes)
    if natural.dtype == jnp.float64:
        moments, objective = lax.fori_loop(0, count, chunk, zero)
    else:
        moments, objective = lax.fori_loop(0, -(-count // _TOGETHER), more, zero)
    return lax.concatenate([lean.sum(a, axis=-1) for a in moments], 1), lean.sum(objective)


def labels(
    natural: Float[Array, "k p"], x: Float[Array, "blocks d b"], count: Any, few: bool, nearest: bool
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Where the largest of natural @ [1, x] is, of the first `count` points at least, and how far those may move.

    The latter if it is that of the `nearest` mean: logits are m·x - m·m/2, half of what squared distances lack of x·x.
    Then it says how much farther than the nearest mean the second nearest is, at least, whatever rounding does.
    Features are `few` in one kernel.
    """
    blocks, d, b = x.shape
    size = math.gcd(b, _CHUNK // x.dtype.itemsize) if few else b
    constant, linear = natural[:, :1], natural[:, 1:]
    error = (d + 4) * jnp.finfo(x.dtype).eps

    def apart(points: Array, top: Array, second: Array) -> Array:
        square = jnp.sum(points * points, axis=0)
        wrong = error * (square - 2 * jnp.min(constant))
        near, far = (jnp.sqrt(jnp.maximum(square - 2 * a, 0) + wrong) for a in (top, second))
        return 2 * (top - second - wrong) / (near + far)

    def chunk(i: Any, found: tuple[Array, Array]) -> tuple[Array, Array]:
        place = lax.div(i, b // size), 0, lax.rem(i, b // size) * size
        points = _kept(lax.dynamic_slice(x, place, (1, d, size), allow_negative_indices=False)[0])
        # The constant last, so that points on a grid that tie do so exactly.
        if few:
            terms = [column * row for column, row in zip(slices(linear, 1), slices(points, 0))]
            label, *tops = largest(_kept(_sum(terms) + constant), second=nearest)
        else:
            label, *tops = largest(linear @ points, constant, second=nearest)
        put = partial(lax.dynamic_update_slice, start_indices=(i * size,), allow_negative_indices=False)
        margin = apart(points, *tops) if nearest else tops[0]
        return put(found[0], label.astype(jnp.int32)), put(found[1], margin)

    zero = jnp.zeros(blocks * b, jnp.int32), jnp.zeros(blocks * b, x.dtype)
    return lax.fori_loop(0, lax.div(count + (size - 1), size), lean.inlined(chunk) if few else chunk, zero)


def _chunks(observations: Observations, dtype: Any) -> tuple[int, int, Callable]:
    """Points of a chunk, how many of them there are, and of chunk i block, first point, points, weights and labels."""
    x = observations.x
    _, d, b = x.shape
    size = math.gcd(b, _CHUNK // np.dtype(dtype).itemsize)
    slice_at = partial(lax.dynamic_slice, allow_negative_indices=False)

    def at(i: Any) -> tuple[Array, Array, Array, Array, Any]:
        block, first = lax.div(i, b // size), lax.rem(i, b // size) * size
        points = slice_at(x, (block, 0, first), (1, d, size))[0].astype(dtype)

        def beside(a: Any) -> Array:
            return slice_at(a, (block, first), (1, size))[0].astype(dtype)

        labels = None if observations.label is None else beside(observations.label)
        return block, first, _kept(points), beside(observations.weight), labels

    return size, x.shape[0] * (b // size), at


# XLA would compute again, in each of the loops that read it, what is not kept.
_kept = lax.optimization_barrier
