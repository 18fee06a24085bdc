"""Rows in stretches, and in blocks with points last: how data are gone through that are more than a cache, or memory.

Data that come as a memory map may be more than memory. Their blocks are a memory map too, of a temporary file, so that
the operating system keeps of both as much as there is room for.
"""

from __future__ import annotations

import math
import mmap
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["CACHED", "aligned", "chunks_of", "is_mapped", "points_last"]

CACHED = 8192  # rows of a stretch, where it is handled more than once
_ALIGNED = 64  # bytes
_FILED = 2**28  # bytes of a memory map, from which its blocks are in a file


def chunks_of(n: int, size: int = 65536) -> Iterator[slice]:
    """The rows in stretches that fit into a processor's cache, for passes that need nothing of the data's size."""
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def is_mapped(values: Any) -> bool:
    """Whether an array is a view of a memory map, and too large for blocks in memory."""
    large = math.prod(values.shape) * values.dtype.itemsize >= _FILED
    while large and values is not None and not isinstance(values, mmap.mmap):
        values = getattr(values, "base", None)
    return large and values is not None


def points_last(values: Any, size: int, dtype: Any = None) -> np.ndarray:
    """(n, ...) as blocks of `size` points, points last: (blocks, ..., size), the rest zero.

    Values may be anything that has rows, which are asked for in stretches.

    Below one block n is padded to a multiple of 64, from 2,048 on of a sixteenth of a power of two, above it the
    number of blocks is rounded up to eighths of one, so that few shapes, and few compilations, serve every n.

    Raises:
        OSError: the blocks of a memory map have no room among temporary files.
    """
    n = values.shape[0]
    if n <= size:
        unit = max(64, 2 ** (n.bit_length() - 5))
        count, size = 1, -(-n // unit) * unit
    else:
        count = -(-n // size)
        step = max(1, 2 ** (count.bit_length() - 4))
        count = -(-count // step) * step
    shape = (count, *values.shape[1:], size)
    blocks = aligned(shape, dtype or values.dtype, is_mapped(values))
    whole = n // size
    for own in chunks_of(whole, max(1, CACHED // size)):
        some = values[own.start * size : own.stop * size]
        blocks[own] = np.moveaxis(some.reshape(-1, size, *shape[1:-1]), 1, -1)
    if n % size:
        blocks[whole, ..., : n % size] = np.moveaxis(values[whole * size :], 0, -1)
    return blocks


def aligned(shape: tuple[int, ...], dtype: Any, filed: bool = False) -> np.ndarray:
    """Zeros that begin where a program may use them as they are, without a copy; in memory or in a temporary file."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = _in_file(size) if filed else np.zeros(size + _ALIGNED, np.uint8)
    first = -raw.ctypes.data % _ALIGNED
    return raw[first : first + size].view(dtype).reshape(shape)


def _in_file(size: int) -> np.ndarray:
    """Zero bytes in a temporary file without a name, which is gone when nothing refers to them."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"x is a memory map, and what is computed of it needs {size / 1e9:.3g} GB for a temporary file, of which "
            f"{folder} has {free / 1e9:.3g}; set the environment variable TMPDIR to a folder with more room"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=(size,))
