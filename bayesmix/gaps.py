"""The pass over rows with missing cells: each adds what is expected of it, so that statistics add as of whole rows.

Rows that lack the same cells share a regression of these on the others (`missing`), so they are laid out together: in
groups, of which several make a step of the pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix.density import draw_cluster, log_sum, reported
from bayesmix.maxima import possible
from bayesmix.missing import Looked, groups_of, look
from bayesmix.storage import STORAGES
from bayesmix.variates import normal_of, split, uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from bayesmix.mixture import GaussianMixture
    from bayesmix.passes import Assign

__all__ = ["GapRows", "drawn_moments", "expected_moments", "lay_out", "log_likelihood", "report_sums"]

_GROUP = 8, 256  # rows of a group, at least and at most
_STEP = 512  # rows of a step, about
_NUMBERS = 2**16  # of matrices of one cluster, of all groups of a step, at most


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
    patterns, places = groups_of(seen[rows], *_GROUP)
    (groups, size), d = places.shape, seen.shape[1]
    each = max(1, min(_STEP // size, _NUMBERS // (d * d)))
    steps = -(-groups // each)
    unit = max(1, 2 ** (steps.bit_length() - 4))
    steps = -(-steps // unit) * unit  # so that few shapes serve every n
    points, known = np.zeros((steps * each, d, size)), np.ones((steps * each, d))
    row = np.full((steps * each, size), -1, np.int32)
    known[:groups] = patterns
    row[:groups] = np.where(places >= 0, rows[places], -1)
    group, place = np.nonzero(row >= 0)
    own = row[group, place]
    points[group, :, place] = np.where(seen[own], x[own], 0)
    row = row.reshape(steps, -1)
    own = np.where(row >= 0, weight[row], 0.0)
    label = None if given is None else np.where(row >= 0, given[row], -1).astype(np.float64)
    return GapRows(points.reshape(steps, each, d, size), known.reshape(steps, each, d), own, row, label)


def _logits(looked: Looked, label: Any, beta: Any = 1.0) -> Array:
    """log p(x, z) of a step (k, groups * rows), times `beta`; where a cluster is known no other is possible."""
    logits = jnp.moveaxis(looked.logits, 1, 0)
    logits = beta * logits.reshape(len(logits), -1)
    return logits if label is None else possible(logits, label)


def _whole(looked: Looked) -> Array:
    """Deviations from the means, those that are not known expected."""
    own = looked.own
    return looked.away if own.lift is None else looked.away + own.lift @ looked.y


def expected_moments(
    mixture: GaussianMixture, gaps: GapRows, assign: Assign, beta: Any
) -> tuple[Array, Array, Array, Array]:
    """Counts (k,), means (k, d) and scatters about them of what is expected of the rows, and the objective.

    Scatters are (k, d, d), or (k, d) where covariances are without correlations. `assign` and `beta` are as in
    `statistics.summarize`; it is no row that draws.
    """

    def of(rows: GapRows, looked: Looked, words: Any) -> tuple[Array, Array, Array, Array]:
        r, objective = assign(_logits(looked, rows.label, beta), rows.weight, None)
        return r, _whole(looked), looked.own.hidden, objective

    return _moments(mixture, gaps, of, None)


def drawn_moments(mixture: GaussianMixture, gaps: GapRows, words: Array) -> tuple[Array, Array, Array, Array]:
    """The same where z is drawn given the known cells, and the others given both; of rows that weigh one each."""
    full, eye = STORAGES["full"], jnp.eye(mixture.n_features)

    def of(rows: GapRows, looked: Looked, words: Array) -> tuple[Array, Array, Array, Array]:
        hidden = looked.own.hidden
        z, total = draw_cluster(words, _logits(looked, rows.label))
        r = jnp.where(jnp.arange(mixture.n_components)[:, None] == z, rows.weight, 0)
        seen = rows.seen[:, None, :, None]
        noise = normal_of(uniform(split(words, 1)[0], (2, *rows.x.shape)))[:, None]
        if looked.own.lift is None:
            drawn = jnp.sqrt(hidden)[..., None] * noise
        else:  # a little more, so that rounding leaves it positive
            more = 1e-13 * full.diagonal(hidden)[..., None] + seen
            drawn = full.cholesky(hidden + more * eye) @ noise
        return r, _whole(looked) + (1 - seen) * drawn, jnp.zeros_like(hidden), total * rows.weight

    return _moments(mixture, gaps, of, split(words, gaps.weight.shape[0]))


def _moments(
    mixture: GaussianMixture, gaps: GapRows, of: Callable, words: Any
) -> tuple[Array, Array, Array, Array]:
    """Out of what a step says `of` its rows: r (k, groups * rows), deviations, a covariance beside them, objective."""
    (k, d), correlated = mixture.means.shape, mixture.covariance.storage.axes == 2

    def step(total: tuple, part: tuple[GapRows, Any]) -> tuple[tuple, None]:
        rows, words = part
        r, whole, beside, objective = of(rows, look(mixture, rows.x, rows.seen), words)
        r = jnp.moveaxis(r.reshape(k, *rows.x.shape[::2]), 0, 1)  # (groups, k, rows)
        count, own = jnp.sum(r, axis=2), r[:, :, None] * whole
        if correlated:
            spread = own @ jnp.swapaxes(whole, -1, -2) + count[..., None, None] * beside
        else:
            spread = jnp.sum(own * whole, axis=3) + count[..., None] * beside
        sums = count, jnp.sum(own, axis=3), spread
        sums = *(jnp.sum(a, axis=0) for a in sums), jnp.sum(objective)
        return tuple(map(jnp.add, total, sums)), None

    zero = jnp.zeros(k), jnp.zeros((k, d)), jnp.zeros((k, d, d) if correlated else (k, d)), jnp.zeros(())
    (count, first, spread, objective), _ = lax.scan(step, zero, (gaps, words))
    moved = first / jnp.maximum(count, 1e-300)[:, None]
    outer = first[:, :, None] * moved[:, None] if correlated else first * moved
    return count, mixture.means + moved, spread - outer, objective


def report_sums(mixture: GaussianMixture, gaps: GapRows) -> Float[Array, " 3"]:
    """Weighted sums of log density, largest log joint and entropy, as of `density.report`."""

    def step(total: Array, rows: GapRows) -> tuple[Array, None]:
        return total + reported(_logits(look(mixture, rows.x, rows.seen), rows.label))[:3] @ rows.weight, None

    return lax.scan(step, jnp.zeros(3), gaps)[0]


def log_likelihood(mixture: GaussianMixture, gaps: GapRows) -> Array:
    """Σ weight log p of the known cells; of known clusters log p(x, z)."""

    def step(total: Array, rows: GapRows) -> tuple[Array, None]:
        return total + log_sum(_logits(look(mixture, rows.x, rows.seen), rows.label)) @ rows.weight, None

    return lax.scan(jax.checkpoint(step), jnp.zeros(()), gaps)[0]
