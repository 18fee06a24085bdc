"""Hard responsibilities of many points where one covariance is shared, which is k-means: labels, and sums by label.

All that counts of a point is its cluster. So a compiled pass gives labels alone, and the host adds up what has one
label: a mask's product, which `statistics.summarize` takes for few points, is half of a step. Soon few labels change
from one step to the next, and only what has changed is added up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.compilation import one_kernel
from bayesmix.inputs import chunks_of
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations
from bayesmix.passes import labels_by_lanes, largest
from bayesmix.statistics import common_part, natural_parameters

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["Sums", "labels", "sums_by_label"]

_MANY = 8  # one of so many labels has changed: then it is faster to add up all


def labels(
    mixture: GaussianMixture, observations: Observations, factor: tuple[Array, Array], few: bool = False
) -> tuple[Array, Array]:
    """The most probable cluster of every point (blocks, b), where one covariance is shared, and the hard objective.

    By one kernel if features are `few`, since products are then no more than comparisons.
    """
    natural = natural_parameters(mixture, factor).astype(observations.x.dtype)

    def by_blocks(natural: Array, observations: Observations) -> tuple[Array, Array]:
        constant, linear = natural[:, :1], natural[:, 1:]

        def block(total: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
            x, weight = part
            # The constant last, so that points on a grid that tie do so exactly.
            first, top = largest(linear @ x, constant)
            return total + jnp.sum(weight * top).astype(jnp.float64), first.astype(jnp.int32)

        total, first = jax.lax.scan(block, jnp.zeros(()), (observations.x, observations.weight))
        return first, total

    over = one_kernel(labels_by_lanes, True) if few else by_blocks
    first, total = over(natural, replace(observations, second=None))
    return first, total - common_part(mixture, observations.second, factor)


class Sums:
    """Σ w [1, x] of some rows by their labels, where labels come again and again and few of them change."""

    def __init__(self, rows: Float[np.ndarray, "n d"], weight: Float[np.ndarray, " n"], k: int) -> None:
        self._rows, self._weight, self._k = rows, weight, k
        self._label = np.full(len(rows), -1, np.int32)  # no label
        self._moments = np.zeros((k, 1 + rows.shape[1]))

    def at(self, label: Int[np.ndarray, " n"]) -> Float[np.ndarray, "k p"]:
        """Those of these labels; the same array as before where none has changed."""
        before, self._label = self._label, label
        changed = np.flatnonzero(label != before)
        if changed.size * _MANY > label.size:
            self._moments = sums_by_label(self._rows, self._weight, label, self._k)
        elif changed.size:  # in float64, so that many small changes lose nothing
            rows, weight = self._rows[changed].astype(float), self._weight[changed].astype(float)
            self._moments = self._moments + sums_by_label(
                np.concatenate([rows, rows]),
                np.concatenate([weight, -weight]),
                np.concatenate([label[changed], before[changed]]),
                self._k,
            )
        return self._moments


def sums_by_label(
    rows: Float[np.ndarray, "n d"], weight: Float[np.ndarray, " n"], label: np.ndarray, k: int
) -> Float[np.ndarray, "k p"]:
    """Σ w [1, x] over the points of each label: a sparse product, which takes d sums a point where a mask takes k d."""
    from scipy.sparse import csc_array

    n, d = rows.shape
    sums = np.zeros((k, 1 + d))
    sums[:, 0] = np.bincount(label, weight, k)
    # Rows few enough to add in float32, and many enough that threads seldom wait for each other's Python.
    for part in chunks_of(n, 16384):
        count = part.stop - part.start
        mask = csc_array((weight[part], label[part], np.arange(count + 1, dtype=np.int32)), (k, count))
        sums[:, 1:] += mask @ rows[part]
    return sums
