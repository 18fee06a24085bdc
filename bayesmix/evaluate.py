"""A function of one block of points, applied to all points: where NumPy, blocks, chunks and threads are chosen.

A few points are NumPy's, which compiles nothing. Otherwise blocks that stay in cache are mapped over by one compiled
program, where clusters and features are few by one kernel; many points go through it a chunk at a time, in threads, so
that any n shares the program and nothing of length n is made beside the result.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bayesmix.blocks import points_last
from bayesmix.compilation import one_kernel, wide
from bayesmix.devices import accelerator, double_precision
from bayesmix.inputs import cores

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["each_point"]

_FEW = 2**17  # numbers n k d that NumPy is done with before anything is compiled
_KERNEL = 1024  # bytes of a feature, in a block of one kernel
_ROWS = 2**15  # of a chunk of such blocks
_SHORTER = 16  # times than the passes of a fit, is one that is made once
_ON_DEVICE = 2**25  # numbers n k d of a block on an accelerator, which is a chunk by itself


class _Way(NamedTuple):
    """What is static of a call."""

    function: Callable[..., Array]
    once: Callable[[Any], Any] | None
    few: bool  # all is one kernel


def each_point(
    function: Callable[..., Array],
    mixture: Any,
    points: np.ndarray,
    k: int,
    more: tuple[float, ...] = (),
    once: Callable[[Any], Any] | None = None,
    last: bool = False,
) -> np.ndarray:
    """function(mixture, block (d, b), *more) -> (..., b), for points (n, d): the results (n, ...).

    Args:
        function: of NumPy and JAX arrays alike.
        mixture: a pytree of arrays.
        points: (n, d), float64 or float32.
        k: how many clusters there are, for the size of blocks.
        more: further arguments, which compile nothing when they change.
        once: given where a pass can be one kernel, in which the function takes `factor=once(mixture)`.
        last: results are (..., n), as they are computed.
    """
    n, d = points.shape
    if n * d * k <= _FEW:
        with np.errstate(all="ignore"):
            out = function(jax.tree.map(np.asarray, mixture), np.ascontiguousarray(points.T), *more)
        return np.asarray(out) if last else np.ascontiguousarray(np.moveaxis(np.asarray(out), -1, 0))
    device = accelerator(n * d * k / _SHORTER)
    way = _Way(function, once, once is not None and jax.default_backend() == "cpu")
    if device is not None:
        rows = size = _ON_DEVICE // (k * d)
    else:
        own = min(4096, max(256, 2 ** (16 - (k * d).bit_length())))
        size = _KERNEL // points.dtype.itemsize if way.few else own
        rows = _ROWS if way.few else 32 * size

    def begun(first: int) -> Array:
        with double_precision():
            blocks = points_last(points[first : first + rows], size)
            return _map_blocks(
                way, mixture, blocks if device is None else jax.device_put(blocks, device), more
            )

    def put(first: int, out: Array) -> None:
        place, found = slice(first, min(first + rows, n)), np.asarray(out)  # (blocks, ..., size)
        count = place.stop - first
        if last:
            result[..., place] = np.moveaxis(found, 0, -2).reshape(*shape, -1)[..., :count]
        else:
            result[place] = np.moveaxis(found, -1, 1).reshape(-1, *shape)[:count]

    head = begun(0)  # before the others, which would otherwise compile the same program
    shape = head.shape[1:-1]
    result = np.empty((*shape, n) if last else (n, *shape), head.dtype)
    with ThreadPoolExecutor(cores() if device is None else 1) as pool:
        # The last chunk is as long as the others, so that it is no program of its own: it begins earlier.
        firsts = [*range(rows, n - rows, rows), n - rows] if n > rows else []
        others = [pool.submit(lambda first: put(first, begun(first)), first) for first in firsts]
        put(0, head)
        for other in others:
            other.result()
    return result


@partial(wide, static_argnums=0)
def _map_blocks(way: _Way, mixture: Any, blocks: Array, more: tuple) -> Array:
    if blocks.shape[0] == 1 and not way.few:
        return way.function(mixture, blocks[0], *more)[None]
    known = {"factor": way.once(mixture)} if way.once is not None and way.few else {}

    def over(mixture: Any, blocks: Array, more: tuple, known: dict) -> Array:
        return jax.lax.map(lambda block: way.function(mixture, block, *more, **known), blocks)

    return one_kernel(over, way.few)(mixture, blocks, more, known)
