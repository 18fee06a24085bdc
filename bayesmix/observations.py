"""Data laid out for passes over them: blocks, points last, that stay in cache, or few large ones on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bayesmix.blocks import CACHED, chunks_of, points_last
from bayesmix.covariance import Structure
from bayesmix.devices import accelerator, double_precision
from bayesmix.gaps import GapRows, lay_out
from bayesmix.storage import STORAGES

__all__ = ["Observations", "batches_of", "observe"]

_MULTIPLE = 256  # batches have a multiple of so many rows, as one kernel takes them
_DEVICE_BLOCK = 2**25  # numbers of the features of a block on an accelerator, at most


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observations:
    """Data in blocks, points last.

    Attributes:
        x: (blocks, d, b).
        weight: (blocks, b); padding weighs nothing.
        label: (blocks, b), the cluster of each point, -1 where it is not known; absent where none is.
        second: for a shared covariance the total second moment in storage (1, ...), else absent.
        gaps: the rows with missing cells, which are not in the above; absent where all are known.
    """

    x: Any
    weight: Any
    label: Any = None
    second: Any = None
    gaps: GapRows | None = None

    @property
    def size(self) -> int:
        """How many rows a pass goes over."""
        return self.weight.size + (0 if self.gaps is None else self.gaps.weight.size)


def observe(
    x: Any,
    weight: np.ndarray,
    structure: Structure,
    known: Observations | None = None,
    given: np.ndarray | None = None,
    seen: np.ndarray | None = None,
) -> Observations:
    """Blocks of the rows of x (n, d), an array or `units.Rows`, centred and scaled, with weights (n,).

    `given` says which clusters are known (n,), `seen` which cells (n, d).

    Long passes are laid out for an accelerator and put there, see `devices`; float32 data are float64 there where
    covariances are full. `known` are those of the same rows with other weights.
    """
    gaps = None
    if seen is not None:
        rows = None if known is None else known.gaps
        gaps = lay_out(x, seen, weight, given) if rows is None else rows.weighing(weight)
        whole = np.flatnonzero(seen.all(axis=1))
        if whole.size:
            x, weight, given = x[whole], weight[whole], None if given is None else given[whole]
        else:
            x, weight, given = x[:1], np.zeros(1), None if given is None else np.full(1, -1)
    n, d = x.shape
    features = structure.n_moments(d)
    blocks, device = None if known is None else known.x, None
    if blocks is None:
        device = accelerator(n * features)
        # A device multiplies float64 faster than it whitens float32: 4 and 9 ms for 1e7 points, d = 4, k = 8.
        wide = device is not None and STORAGES[structure.storage].axes == 2 and not structure.shared
        size = _block_size(n, features) if device is None else _on_device(features)
        blocks = points_last(x, size, np.float64 if wide else x.dtype)
    weights, labels = _beside(blocks, weight, given)
    if device is not None:
        with double_precision():
            blocks, weights, labels = jax.device_put((blocks, weights, labels), device)
    second = None
    if structure.shared:
        second = sum(_second_moment(x[rows], weight[rows], structure) for rows in chunks_of(n, CACHED))
        second = np.asarray(second)[None]
    return Observations(blocks, weights, labels, second, gaps)


def _beside(
    blocks: np.ndarray, weight: np.ndarray, given: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and labels of the points of some blocks."""
    size, dtype = blocks.shape[-1], blocks.dtype
    return points_last(weight, size, dtype), None if given is None else points_last(given, size, dtype)


def batches_of(
    x: Any, weight: np.ndarray, structure: Structure, size: int, given: np.ndarray | None = None
) -> tuple[Observations, int]:
    """The rows of x (n, d) as batches of some `size`, each a block, and how many have rows.

    Weights of a batch are such that they add up to those of all: its sums are estimates of those of all data.
    """
    count = -(-len(x) // size)
    size = -(-len(x) // count)
    size += -size % _MULTIPLE
    weight = weight.copy()
    rows = [slice(first, first + size) for first in range(0, len(x), size)]
    total = weight.sum()
    for own in rows:
        weight[own] *= total / weight[own].sum()
    blocks = points_last(x, size, x.dtype)
    second = None
    if structure.shared:
        each = [_second_moment(x[own], weight[own], structure) for own in rows]
        second = np.zeros((len(blocks), *np.shape(each[0])))
        second[: len(each)] = each
    return Observations(blocks, *_beside(blocks, weight, given), second), len(rows)


def _block_size(n: int, features: int) -> int:
    """On a processor features take about 200 kB: measured best of 128 to 8,192 points at d = 2, 4, 10 and 32."""
    if n <= 2048 and n * features <= 2**16:  # one block is faster than a few
        return 2048
    return 2 ** int(math.log2(min(2048 if features <= 8 else 1024, max(256, 24576 // features))))


def _on_device(features: int) -> int:
    """On an accelerator as few blocks as its memory has room for."""
    return 2 ** int(math.log2(_DEVICE_BLOCK / features))


def _second_moment(x: np.ndarray, weight: np.ndarray, structure: Structure) -> np.ndarray:
    x = x.astype(np.float64)
    if structure.storage == "full":
        return (x * weight[:, None]).T @ x
    by_feature = weight @ (x * x)
    return by_feature if structure.storage == "diagonal" else np.asarray(by_feature.mean())
