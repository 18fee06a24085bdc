"""Functions of `jax.numpy` as the operations of `lax` that they come to, for what a first fit traces.

The first call for each shape takes half a millisecond to two of `jax.numpy`, of `lax` a twentieth of that, and half
the time that it took to trace a program of EM was such calls. Nothing is promoted: arguments are arrays of one type,
or Python's numbers that it can hold. An array's own operators are calls of `jax.numpy` too; in a function that is
`inlined` they take a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

__all__ = ["all", "any", "inlined", "sum", "where"]


def inlined[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """The same function, traced without a function for each operation; it has no loop, which would be unrolled."""

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        with jax.disable_jit():
            return function(*arguments, **named)

    return call


def where(condition: Bool, a: Any, b: Any) -> Array:
    """a where the condition holds, else b; of the shape that all three have together."""
    kinds = [v.dtype for v in (a, b) if hasattr(v, "dtype")]
    kind = kinds[0] if kinds else np.result_type(a, b)
    shape = np.broadcast_shapes(*(np.shape(v) for v in (condition, a, b)))
    first, second = (
        _spread(v if hasattr(v, "dtype") else np.asarray(v).astype(kind, casting="same_kind"), shape)
        for v in (a, b)
    )
    return lax.select(condition if np.shape(condition) == () else _spread(condition, shape), first, second)


def _spread(a: Any, shape: tuple[int, ...]) -> Array:
    own, missing = np.shape(a), len(shape) - np.ndim(a)
    kept = [i for i, size in enumerate(own) if size == shape[missing + i]]
    a = a if len(kept) == len(own) else lax.reshape(a, [own[i] for i in kept])
    return a if own == shape else lax.broadcast_in_dim(a, shape, [missing + i for i in kept])


def sum(a: Array, axis: int | None = None) -> Array:
    return lax.reduce_sum(a, _axes(a, axis))


def any(a: Bool, axis: int | None = None) -> Bool:
    return lax.reduce_or(a, _axes(a, axis))


def all(a: Bool, axis: int | None = None) -> Bool:
    return lax.reduce_and(a, _axes(a, axis))


def _axes(a: Array, axis: int | None) -> list[int]:
    return list(range(a.ndim)) if axis is None else [axis % a.ndim]
