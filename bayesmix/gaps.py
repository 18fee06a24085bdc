"""The pass over rows with missing cells: each adds what is expected of it, so that statistics add as of whole rows.

Rows that lack the same cells share a regression of these on the others (`missing`), so they are laid out together: in
groups, of which several make a step of the pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix.density import log_sum, log_weights, reported
from bayesmix.maxima import possible
from bayesmix.missing import Regression, regression

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from bayesmix.mixture import GaussianMixture
    from bayesmix.passes import Assign

__all__ = ["GapRows", "expected_moments", "lay_out", "log_likelihood", "report_sums"]

_GROUP = 8, 256  # rows of a group, at least and at most
_STEP = 512  # rows of a step, about


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GapRows:
    """Rows with missing cells, float64, in steps of groups of rows.

    Attributes:
        x: (steps, groups, d, rows); zero where a cell is missing.
        seen: (steps, groups, d), one where cells are known.
        weight: (steps, groups * rows); padding weighs nothing.
        row: (steps, groups * rows), the place of each among the rows of the data; of padding -1.
        label: (steps, groups * rows), as in `Observations`.
    """

    x: Any
    seen: Any
    weight: Any
    row: Any
    label: Any = None

    def weighing(self, weight: np.ndarray) -> GapRows:
        """The same rows with other weights, of all rows of the data (n,)."""
        own = np.where(self.row >= 0, weight[self.row], 0)
        return GapRows(self.x, self.seen, own, self.row, self.label)


def lay_out(
    x: Any, seen: Bool[np.ndarray, "n d"], weight: np.ndarray, given: np.ndarray | None
) -> GapRows | None:
    """The rows of x (n, d), in loop units, that have missing cells; `None` if none has."""
    rows = np.flatnonzero(~seen.all(axis=1))
    if not rows.size:
        return None
    patterns, which, counts = np.unique(seen[rows], axis=0, return_inverse=True, return_counts=True)
    least, most = _GROUP
    size = int(np.clip(2 ** int(np.ceil(np.log2(counts.mean()))), least, most))
    groups = -(-counts // size)  # of each pattern
    each = max(1, _STEP // size)
    steps = -(-int(groups.sum()) // each)
    unit = max(1, 2 ** (steps.bit_length() - 4))
    steps = -(-steps // unit) * unit  # so that few shapes serve every n
    order = np.argsort(which, kind="stable")
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(np.cumsum(groups) - groups, counts)
    group, place = first + rank // size, rank % size
    d = seen.shape[1]
    points, row = np.zeros((steps * each, d, size)), np.full((steps * each, size), -1, np.int32)
    known = np.ones((steps * each, d))
    known[: groups.sum()] = np.repeat(patterns, groups, axis=0)
    rows = rows[order]
    points[group, :, place] = np.where(seen[rows], x[rows], 0)
    row[group, place] = rows
    row = row.reshape(steps, -1)
    own = np.where(row >= 0, weight[row], 0.0)
    label = None if given is None else np.where(row >= 0, given[row], -1).astype(np.float64)
    return GapRows(points.reshape(steps, each, d, size), known.reshape(steps, each, d), own, row, label)


class _Looked(NamedTuple):
    """A step of rows under a mixture."""

    logits: Array  # log p(x, z) of the cells that are known (k, groups * rows)
    own: Regression  # (groups, k|1, ...)
    away: Array  # deviations from the means, zero where they are not known (groups, k, d, rows)
    y: Array  # and whitened


def _look(mixture: GaussianMixture, rows: GapRows, beta: Any = 1.0) -> _Looked:
    covariances = mixture.covariance.storage.dense(mixture.covariance.values, mixture.n_features)
    own = regression(covariances, rows.seen[:, None])
    away = (rows.x[:, None] - mixture.means[:, :, None]) * rows.seen[:, None, :, None]
    y = own.whiten @ away
    cells = own.log_det - jnp.sum(rows.seen, axis=1)[:, None] / 2 * math.log(2 * math.pi)
    logits = log_weights(mixture.weights)[:, None] + (cells[..., None] - jnp.sum(y * y, axis=2) / 2)
    logits = beta * jnp.moveaxis(logits, 1, 0).reshape(mixture.n_components, -1)
    return _Looked(logits if rows.label is None else possible(logits, rows.label), own, away, y)


def expected_moments(
    mixture: GaussianMixture, gaps: GapRows, assign: Assign, beta: Any
) -> tuple[Array, Array, Array, Array]:
    """Counts (k,), means (k, d) and scatters about them (k, d, d) of what is expected of the rows, and the objective.

    `assign` and `beta` are as in `statistics.summarize`; it is no row that draws.
    """
    k, d = mixture.means.shape

    def step(total: tuple, rows: GapRows) -> tuple[tuple, None]:
        logits, own, away, y = _look(mixture, rows, beta)
        r, objective = assign(logits, rows.weight, None)
        r = jnp.moveaxis(r.reshape(k, *rows.x.shape[::2]), 0, 1)  # (groups, k, rows)
        whole = away + own.lift @ y
        count = jnp.sum(r, axis=2)
        spread = (r[:, :, None] * whole) @ jnp.swapaxes(whole, -1, -2) + count[..., None, None] * own.hidden
        first = jnp.sum(r[:, :, None] * whole, axis=3)
        sums = jnp.sum(count, axis=0), jnp.sum(first, axis=0), jnp.sum(spread, axis=0), jnp.sum(objective)
        return tuple(map(jnp.add, total, sums)), None

    zero = jnp.zeros(k), jnp.zeros((k, d)), jnp.zeros((k, d, d)), jnp.zeros(())
    (count, first, spread, objective), _ = lax.scan(step, zero, gaps)
    moved = first / jnp.maximum(count, 1e-300)[:, None]
    scatter = spread - first[:, :, None] * moved[:, None]
    return count, mixture.means + moved, scatter, objective


def report_sums(mixture: GaussianMixture, gaps: GapRows) -> Float[Array, " 3"]:
    """Weighted sums of log density, largest log joint and entropy, as of `density.report`."""

    def step(total: Array, rows: GapRows) -> tuple[Array, None]:
        return total + reported(_look(mixture, rows).logits)[:3] @ rows.weight, None

    return lax.scan(step, jnp.zeros(3), gaps)[0]


def log_likelihood(mixture: GaussianMixture, gaps: GapRows) -> Array:
    """Σ weight log p of the known cells; of known clusters log p(x, z)."""

    def step(total: Array, rows: GapRows) -> tuple[Array, None]:
        return total + log_sum(_look(mixture, rows).logits) @ rows.weight, None

    return lax.scan(jax.checkpoint(step), jnp.zeros(()), gaps)[0]
