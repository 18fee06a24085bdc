"""One pass over the data, which adds up what each point gives: by blocks, or as one kernel.

XLA makes a dozen kernels of a block, each of which writes what the next one reads. In one kernel few points at a time
go all the way, in vectors: two to three times as fast where a point gives few numbers. Of many XLA's library of
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

from bayesmix.observations import Observations
from bayesmix.storage import slices
from bayesmix.variates import split

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["Assign", "by_blocks", "by_lanes", "is_few"]

_FEW = {8: 784, 4: 256}  # clusters times moments, by the bytes of a number, up to which one kernel is faster
# Points at a time of one kernel, and places of its sums, in bytes: measured best of 32 to 256 points, and of 8 to 64
# places.
_CHUNK, _LANES = 512, 128

# Responsibilities (k, b) out of logits, weights and a key, and what each point adds to the objective (b,). That is
# summed in float64: gains are differences of such sums, and of float32 they would be rounding while EM still climbs.
# The key comes with the number of points of its block before these.
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


def _keys(key: Any, count: int) -> Any:
    """One for each block."""
    return None if key is None else key[None] if count == 1 else split(key, count)


def by_lanes(
    features: Callable[[Array], Array],
    assign: Assign,
    natural: Float[Array, "k p"],
    observations: Observations,
    key: Any,
    squares: bool = False,
) -> tuple[Array, Array]:
    """The same for one kernel: few points at a time, which stay in vectors, and products as sums written out.

    Where features are 1, x and their `squares`, logits may be sums of (a x + b) x: what is read is most of the time.
    Each sum has as many places as two vectors have, and these are added up at the end. XLA would compute again, in each
    of the loops that read it, what is not kept.
    """
    keep = lax.optimization_barrier
    x, weight = observations.x, observations.weight
    blocks, d, b = x.shape
    size = math.gcd(b, _CHUNK // natural.dtype.itemsize)
    lanes = math.gcd(size, _LANES // natural.dtype.itemsize)
    keys = _keys(key, blocks)
    k, p = natural.shape
    # Sums of a block are of this precision, as in `by_blocks`: to convert those of few points takes as long as they do.
    wide = natural.dtype == jnp.float64

    def terms(columns: Sequence[Array], t: Array) -> list[Array]:
        rows = slices(t, 0)
        if squares:
            pairs = zip(columns[1 : d + 1], columns[d + 1 :])
            return [(a * row + b) * row for row, (b, a) in zip(rows[1:], pairs)]
        return [column * row for column, row in zip(columns[1:], rows[1:])]

    def chunk(block: Any, i: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        first = i * size
        points = lax.dynamic_slice(x, (block, 0, first), (1, d, size))[0].astype(natural.dtype)
        counts = lax.dynamic_slice(weight, (block, first), (1, size))[0].astype(natural.dtype)
        t = keep(features(points))
        # The constant is added last, so that points on a grid that tie do so exactly.
        columns = slices(natural, 1)
        logits = keep(reduce(add, terms(columns, t)) + columns[0])
        r, own = assign(logits, counts, None if keys is None else (keys[block], first))
        r = keep(r)
        parts = [lax.split(a, [lanes] * (size // lanes), a.ndim - 1) for a in (t[:, None], r, own)]
        moments = reduce(add, (features * chances for features, chances in zip(*parts[:2])))
        objective = reduce(add, (part.astype(jnp.float64) for part in parts[2]))
        return sums[0] + moments, sums[1] + objective

    def more(block: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        own = sums if wide else (jnp.zeros(sums[0].shape, natural.dtype), sums[1])
        moments, objective = lax.fori_loop(0, b // size, partial(chunk, block), own)
        return moments if wide else sums[0] + moments.astype(jnp.float64), objective

    zero = jnp.zeros((p, k, lanes)), jnp.zeros(lanes)
    moments, objective = lax.fori_loop(0, blocks, more, zero) if blocks > 1 else more(0, zero)
    return jnp.sum(moments, axis=-1), jnp.sum(objective)
