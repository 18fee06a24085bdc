"""What is said of the cells of a search that ended: each one's best mixture, and its sums over the data."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix import density
from bayesmix.compilation import wide
from bayesmix.contest import as_cell, limits, winners
from bayesmix.covariance import Covariance
from bayesmix.devices import double_precision
from bayesmix.gaps import report_sums
from bayesmix.groups import Cell, Group, shapes
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations
from bayesmix.problem import Problem
from bayesmix.units import typed
from bayesmix.verdict import AGREE, Verdict

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["Best", "CellFit", "best_of", "report", "sum_ahead"]

_TOGETHER = 128  # mixtures, whose sums over the data one call makes
_SUMMED: set[tuple] = set()  # what `_sums` is compiled for


@dataclass(frozen=True)
class CellFit:
    """Where a cell came to, in the data's own units."""

    mixture: GaussianMixture
    log_likelihood: float
    classification_log_likelihood: float
    entropy: float
    verdict: Verdict
    gain: float
    n_steps: int
    n_starts: int
    n_agree: int
    n_spurious: int
    degenerate: str
    max_steps: int  # of a start, at most about so many


class Best(NamedTuple):
    """The best start of each cell of a group: mixtures in the data's units, and sums over the data of `_sums`."""

    starts: np.ndarray
    mixtures: GaussianMixture
    sums: np.ndarray


def best_of(group: Group, common: Problem) -> Best:
    starts = winners(group)
    some = jax.tree.map(itemgetter(starts.clip(max=len(group.of) - 1)), group.states.mixture)
    mixtures = group.problem.units.leave(some)
    sums = _sums_of(_dense(common.units.enter(mixtures), group), common.observations)
    sums[:, :2] += common.moved
    return Best(starts, mixtures, sums)


def report(groups: list[Group], best: list[Best], told: set[Cell], max_steps: int) -> dict[Cell, CellFit]:
    """What is said of the cells that ended."""
    found = {}
    for group, (starts, mixtures, sums) in zip(groups, best):
        ends, n, states = limits(group), len(group.cells), group.states
        own = typed(mixtures, group.problem.points.dtype)
        objective, of = np.append(states.statistics.objective, np.nan), group.of
        clean = np.append(group.clean, False)
        near = (group.clean == clean[starts][of]) & (ends >= (objective[starts] - AGREE)[of])
        n_starts, n_agree, n_spurious = (np.bincount(of[some], minlength=n).tolist() for some in
                                         (..., near, ~group.clean))  # fmt: skip
        for index, (cell, s) in enumerate(zip(group.cells, starts.tolist(), strict=True)):
            if cell not in told:
                continue
            values = Covariance(own.covariance.values[index], own.structure)
            mixture = GaussianMixture(own.weights[index], own.means[index], values)
            total, top, entropy = sums[index].tolist()
            found[cell] = CellFit(
                as_cell(cell, mixture, group.problem.names),
                total,
                top,
                entropy,
                group.verdicts[s],
                float(states.gain[s]),
                int(states.step[s]),
                n_starts[index],
                n_agree[index],
                n_spurious[index],
                group.problem.units.degenerate,
                max_steps,
            )
    return found


def sum_ahead(group: Group) -> None:
    """Compile `_sums`, and load what the table of a search will need, on a core that has nothing else to do yet."""
    import pandas  # noqa: F401

    k, d, observations = group.largest, group.problem.x.shape[1], group.problem.observations
    program = k, shapes(observations)
    if program in _SUMMED:
        return
    values = np.broadcast_to(np.eye(d), (1, k, d, d))
    blank = GaussianMixture(np.full((1, k), 1 / k), np.zeros((1, k, d)), Covariance(values, "VVV"))
    _sums_of(blank, observations)
    _SUMMED.add(program)


def _dense(mixtures: GaussianMixture, group: Group) -> GaussianMixture:
    """Mixtures of a group's cells with their covariances in full, and padding of no weight at the origin."""
    live = np.arange(group.largest) < group.counts[:, None]
    values = np.where(live[..., None, None], mixtures.covariances, np.eye(mixtures.n_features))
    return GaussianMixture(
        np.where(live, mixtures.weights, 0),
        np.where(live[..., None], mixtures.means, 0),
        Covariance(values.astype(np.float64), "VVV"),
    )


def _sums_of(mixtures: GaussianMixture, observations: Observations) -> np.ndarray:
    """Weighted sums of log density, largest log joint and entropy, of each mixture."""
    n = len(mixtures.weights)
    found = []
    for i in range(0, n, _TOGETHER):
        rows = np.arange(i, i + _TOGETHER).clip(max=n - 1)
        with double_precision():
            found.append(_sums(jax.tree.map(itemgetter(rows), mixtures), min(n - i, _TOGETHER), observations))
    return np.concatenate(found)[:n]


@wide
def _sums(mixtures: GaussianMixture, count: Array, observations: Observations) -> Array:
    """Of the first `count` of the mixtures."""

    def one(mixture: GaussianMixture) -> Array:
        factor, _ = density.precision_factor(mixture.covariance, mixture.n_features)

        def block(total: Array, part: tuple[Array, Array, Any]) -> tuple[Array, None]:
            x, weight, label = part
            sums = density.report(mixture, x, factor, label)[:3] @ weight
            return total + sums.astype(float), None

        parts, gaps = (observations.x, observations.weight, observations.label), observations.gaps
        sums = jax.lax.scan(block, jnp.zeros(3), parts)[0]
        return sums if gaps is None else sums + report_sums(mixture, gaps)

    def put(s: Array, sums: Array) -> Array:
        own = one(jax.tree.map(lambda a: a[s], mixtures))
        return jax.lax.dynamic_update_index_in_dim(sums, own, s, 0)

    return jax.lax.fori_loop(0, count, put, jnp.zeros((mixtures.weights.shape[0], 3)))
