"""The largest of the logits of each point, and which it is, in fewer instructions than `argmax` takes on a CPU; and
which of them are possible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from bayesmix.compilation import in_kernel
from bayesmix.storage import slices

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["largest", "possible"]

_FOLDED = 128  # clusters, up to which the largest of logits is found by comparing one after another


def largest(
    logits: Float[Array, "k b"], constant: Float[Array, "k 1"] | None = None, *, second: bool = False
) -> tuple[Array, ...]:
    """Where the largest logit is, a tie going to the lowest index, and what it is; faster than argmax.

    In numbers as wide as the logits, which vector instructions compare without conversion. A constant of each cluster
    that logits are still without is added on the way. With `second` also the next largest, on a processor.
    """
    k = logits.shape[0]
    one_way = jax.default_backend() == "cpu" and (k > _FOLDED or not in_kernel())
    if constant is not None and not one_way:
        logits = logits + constant
    if jax.default_backend() != "cpu":  # reductions, as many at a time as there are points
        top, index = jnp.max(logits, axis=0), jnp.arange(k, dtype=logits.dtype)[:, None]
        return jnp.min(jnp.where(logits == top, index, k), axis=0), top

    def of(i: Any, row: Array) -> tuple[Array, ...]:
        return jnp.full_like(row, i), row, *([jnp.full_like(row, -jnp.inf)] if second else [])

    if one_way:  # where two reductions would take a third of a pass

        def at(i: Any) -> tuple[Array, ...]:
            row = lax.dynamic_index_in_dim(logits, i, keepdims=False)
            return of(i, row if constant is None else row + constant[i])

        with jax.disable_jit(False):  # a loop, also in a function that is inlined
            return lax.fori_loop(1, k, lambda i, best: _larger(best, at(i)), at(0))
    rows = [of(i, row) for i, row in enumerate(slices(logits, 0))]
    while len(rows) > 1:  # by eights, which stay in registers
        rows = [lax.optimization_barrier(reduce(_larger, rows[i : i + 8])) for i in range(0, len(rows), 8)]
    return tuple(a[0] for a in rows[0])


def possible(
    logits: Float[Array, "k b"], label: Float[Array, " b"], order: Any = None
) -> Float[Array, "k b"]:
    """The logits where the clusters of some points are known, not -1: of no other is there a chance.

    `order` is which cluster each row of the logits is of, if not the one of its number.
    """
    clusters = jnp.arange(len(logits)) if order is None else order
    own = label == clusters.astype(label.dtype)[:, None]
    return jnp.where((label < 0) | own, logits, -jnp.inf)


def _larger(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
    better = b[1] > a[1]
    seconds = [lax.max(lax.min(a[1], b[1]), lax.max(a[2], b[2]))] if len(a) > 2 else []
    return lax.select(better, b[0], a[0]), lax.select(better, b[1], a[1]), *seconds
