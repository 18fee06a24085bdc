"""One pass over the data, which adds up what each point gives: by blocks, or as one kernel.

XLA makes a dozen kernels of a block, each of which writes what the next one reads. In one kernel few points at a time
go all the way, in vectors: two to three times as fast where a point gives few numbers. Of many XLA's library of
products makes more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix.observations import Observations
from bayesmix.storage import slices
from bayesmix.variates import split

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["Assign", "by_blocks", "by_lanes", "is_few"]

_FEW = {8: 784, 4: 640}  # clusters times moments, by the bytes of a number, up to which one kernel is faster
# Points at a time of one kernel, and places of its sums, in bytes: measured best of 32 to 256 points, and of 8 to 64
# places.
_CHUNK, _LANES = 1024, 128
# Of float32 so many chunks, 4,096 points, are summed before sums are float64: to convert them takes as long as a chunk.
_TOGETHER = 16
_CHAIN = 8

# Responsibilities (k, b) out of logits, weights and a key, and what each point adds to the objective (b,). That is
# summed in float64: gains are differences of such sums, and of float32 they would be rounding while EM still climbs.
# The key comes with the number of points of its block before these.
type Pieces = Callable[[Array], list[tuple[Array, Array | None]]]  # see `storage`
type Assign = Callable[[Array, Array, Any], tuple[Array, Array]]


def is_few(numbers: int, dtype: Any = np.float64) -> bool:
    """Whether a pass over data of this type for so many moments, clusters times features, is to be one kernel."""
    return numbers <= _FEW[np.dtype(dtype).itemsize] and jax.default_backend() == "cpu"


def by_blocks(
    natural: Any, block: Callable, assign: Assign, dtype: Any, observations: Observations, key: Any
) -> tuple[Any, Array]:
    """Sums of a block function: moments, an array or several, and objective."""

    def sums(x: Array, weight: Array, key: Any) -> tuple[Any, Array]:
        numbers = None if key is None else (key, 0)
        moments, each = block(natural, x.astype(dtype), weight.astype(dtype), assign, numbers)
        return jax.tree.map(lambda a: a.astype(jnp.float64), moments), jnp.sum(each.astype(jnp.float64))

    count = observations.x.shape[0]
    keys = _keys(key, count)
    xs = (observations.x, observations.weight, keys)
    first = jax.tree.map(lambda a: a[0], xs)
    if count == 1:
        return sums(*first)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(sums, *first))
    return lax.scan(lambda c, b: (jax.tree.map(jnp.add, c, sums(*b)), None), zero, xs)[0]


def _sum(terms: Sequence[Array]) -> Array:
    """In chains of up to sixteen: a processor waits for each link of one, and does another meanwhile."""
    count = -(-len(terms) // _CHAIN)
    return reduce(add, (reduce(add, terms[i::count]) for i in range(count)))


def _keys(key: Any, count: int) -> Any:
    """One for each block."""
    return None if key is None else key[None] if count == 1 else split(key, count)


def by_lanes(
    pieces: Pieces,
    assign: Assign,
    natural: Float[Array, "k p"],
    observations: Observations,
    key: Any,
    partners: Sequence[Sequence[int]] = (),
) -> tuple[Array, Array]:
    """The same for one kernel: few points at a time, which stay in vectors, and products as sums written out.

    Moments (k, p) are of 1, x and the `pieces` of x. Logits may be sums over features i of x_i times a sum over the
    `partners` j of i of x_j: then rows of x are all that is read, which stay in registers. Each sum has as many places
    as two vectors have, and these are added up at the end. XLA would compute again, in each of the loops that read it,
    what is not kept.
    """
    keep = lax.optimization_barrier
    x, weight = observations.x, observations.weight
    blocks, d, b = x.shape
    size = math.gcd(b, _CHUNK // natural.dtype.itemsize)
    lanes = math.gcd(size, _LANES // natural.dtype.itemsize)
    keys = _keys(key, blocks)
    k = natural.shape[0]
    count = blocks * (b // size)

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

    def chunk(i: Any, sums: tuple[list[Array], Array]) -> tuple[list[Array], Array]:
        block, first = lax.div(i, b // size), lax.rem(i, b // size) * size
        points = keep(lax.dynamic_slice(x, (block, 0, first), (1, d, size))[0].astype(natural.dtype))
        counts = lax.dynamic_slice(weight, (block, first), (1, size))[0].astype(natural.dtype)
        given = [(keep(a), None) if factor is None else (a, factor) for a, factor in pieces(points)]
        # The constant is added last, so that points on a grid that tie do so exactly.
        columns = slices(natural, 1)
        logits = keep(_sum(terms(columns[1:], points, given)) + columns[0])
        r, own = assign(logits, counts, None if keys is None else (keys[block], first))
        r = parts(keep(r)[:, None])
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

    sizes = [
        1,
        d,
        *(len(a) for a, _ in jax.eval_shape(pieces, jax.ShapeDtypeStruct((d, size), natural.dtype))),
    ]
    zero = [jnp.zeros((k, m, lanes)) for m in sizes], jnp.zeros(lanes)
    if natural.dtype == jnp.float64:
        moments, objective = lax.fori_loop(0, count, chunk, zero)
    else:
        moments, objective = lax.fori_loop(0, -(-count // _TOGETHER), more, zero)
    return jnp.concatenate([jnp.sum(a, axis=-1) for a in moments], axis=1), jnp.sum(objective)
