"""A function of one block of points, applied to all points: where NumPy, blocks, chunks and threads are chosen.

A few points are NumPy's, which compiles nothing. Otherwise blocks that stay in cache are mapped over by one compiled
program; many points go through it a chunk at a time, in threads, so that any n shares the program and nothing of
length n is made beside the result.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.compilation import wide
from bayesmix.devices import accelerator, double_precision
from bayesmix.inputs import cores, points_last

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["each_point"]

_FEW = 2**17  # numbers n k d that NumPy is done with before anything is compiled
_BLOCKS = 32  # in a chunk
_SHORTER = 16  # times than the passes of a fit, is one that is made once
_ON_DEVICE = 2**25  # numbers n k d of a block on an accelerator, which is a chunk by itself


def each_point(
    function: Callable[..., Array], mixture: Any, points: np.ndarray, k: int, more: tuple[float, ...] = ()
) -> np.ndarray:
    """function(mixture, block (d, b), *more) -> (..., b), for points (n, d): the results (n, ...).

    Args:
        function: of NumPy and JAX arrays alike.
        mixture: a pytree of arrays.
        points: (n, d), float64 or float32.
        k: how many clusters there are, for the size of blocks.
        more: further arguments, which compile nothing when they change.
    """
    n, d = points.shape
    if n * d * k <= _FEW:
        with np.errstate(all="ignore"):
            out = function(jax.tree.map(np.asarray, mixture), np.ascontiguousarray(points.T), *more)
        return np.ascontiguousarray(np.moveaxis(np.asarray(out), -1, 0))
    device = accelerator(n * d * k / _SHORTER)
    size = min(4096, max(256, 2 ** (16 - (k * d).bit_length()))) if device is None else _ON_DEVICE // (k * d)
    rows = size * (_BLOCKS if device is None else 1)

    def piece(first: int) -> np.ndarray:
        part = points[first : first + rows]
        with double_precision():
            blocks = points_last(part, size)
            blocks = blocks if device is None else jax.device_put(blocks, device)
            out = np.asarray(_map_blocks(function, mixture, blocks, more))
        out = np.moveaxis(out, -1, 1)
        return out.reshape(-1, *out.shape[2:])[: len(part)]

    if n <= rows:
        return np.ascontiguousarray(piece(0))
    head = piece(0)  # alone, lest two threads compile the same program
    result = np.empty((n, *head.shape[1:]), head.dtype)
    result[:rows] = head

    def fill(first: int) -> None:
        result[first : first + rows] = piece(first)

    with ThreadPoolExecutor(cores() if device is None else 1) as pool:
        # The last chunk is as long as the others, so that it is no program of its own: it begins earlier.
        list(pool.map(fill, [*range(rows, n - rows, rows), n - rows]))
    return result


@partial(wide, static_argnums=0)
def _map_blocks(function: Callable, mixture: Any, blocks: Array, more: tuple) -> Array:
    if blocks.shape[0] == 1:
        return function(mixture, blocks[0], *more)[None]
    return jax.lax.map(lambda block: function(mixture, block, *more), blocks)
