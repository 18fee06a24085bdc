"""Which starts of a cell go on, which of them wins, and which cells start again from the one with a cluster less."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter

import jax
import numpy as np

from bayesmix.covariance import STRUCTURES, Covariance
from bayesmix.groups import Cell, Group
from bayesmix.initialize import splits
from bayesmix.loop import State
from bayesmix.mixture import GaussianMixture
from bayesmix.spurious import suspect
from bayesmix.status import CODE
from bayesmix.verdict import best_of_each, headed_for, verdict

__all__ = ["as_cell", "judge", "limits", "pending", "split_smaller", "winners"]

_WORTH = 0.01  # nats above the best end that a start must be headed for to go on
_SPLITS = 3  # clusters that are split, each in a start of its own


def judge(group: Group) -> np.ndarray:
    """Which starts are clean: once ended, by their verdict, which is kept; before, unless the floor holds them."""
    states, degenerate = group.states, group.problem.units.degenerate
    counts = group.counts[group.of]
    live = np.arange(group.largest) < counts[:, None]
    held = ((states.collapsed > 0) & live).any(axis=1)
    clean = np.where(group.judged, group.clean, ~held & (not degenerate))
    new = (states.code != 0) & ~group.judged
    some = np.flatnonzero(new & group.unbounded[group.of] & (counts > 1))
    suspects = np.zeros(len(new), bool)
    if some.size:
        mixtures, number = jax.tree.map(itemgetter(some), (states.mixture, states.statistics.moments[..., 0]))
        suspects[some] = suspect(mixtures, number, group.problem.grid, live[some])
    for s in np.flatnonzero(new).tolist():
        mixture, own = _mixture_of(group, s) if suspects[s] else None, slice(counts[s])
        found = verdict(
            group.problem,
            int(states.code[s]),
            mixture,
            states.collapsed[s, own],
            states.statistics.moments[s, own, 0],
        )
        group.verdicts[s], clean[s] = found, found.clean
    group.clean, group.judged = clean, group.judged | new
    return clean


def _mixture_of(group: Group, s: int) -> GaussianMixture:
    """The mixture of a start in loop units, without padding, as its own structure stores it."""
    return as_cell(group.cells[group.of[s]], jax.tree.map(lambda a: a[s], group.states.mixture))


def as_cell(
    cell: Cell, mixture: GaussianMixture, feature_names: tuple[str, ...] | None = None
) -> GaussianMixture:
    """A mixture without padding, as the cell's own structure stores it."""
    k, row = cell.n_components, STRUCTURES[cell.covariance]
    values = mixture.covariance.values[: 1 if row.shared else k]
    values = values if row.storage == mixture.covariance.row.storage else values.mean(axis=-1)
    covariance = Covariance(values, cell.covariance)
    return GaussianMixture(mixture.weights[:k], mixture.means[:k], covariance, feature_names)


def winners(group: Group) -> np.ndarray:
    """The best of the starts that ended of each cell: clean ones first, then by objective, the first of equals.

    Where none ended it is the number of starts.
    """
    clean, ended = judge(group), np.flatnonzero(group.states.code != 0)
    objective, n = group.states.statistics.objective, len(group.cells)
    chosen = best_of_each(objective[ended], clean[ended], group.of[ended], n)
    return np.append(ended, len(group.of))[chosen]


def pending(group: Group, max_steps: int) -> np.ndarray:
    """The start of each cell that goes on: the first to its end, then the one headed highest, if above that."""
    states, ends, of = group.states, limits(group), group.of
    states.code[(states.code == 0) & (states.step >= max_steps)] = CODE["max_steps"]
    clean, n = judge(group), len(group.cells)
    running = states.code == 0
    reached = np.full(n, -np.inf)
    np.maximum.at(reached, of, np.where(running | ~clean, -np.inf, states.statistics.objective))
    order = np.flatnonzero(running)
    order = order[np.lexsort((order, -ends[order], of[order]))]
    highest, cell = np.full(n, -1), of[order]
    highest[cell[::-1]] = order[::-1]
    first = np.unique(of, return_index=True)[1]
    chosen = np.where(running[first], first, highest)
    goes_on = (chosen >= 0) & (running[first] | (ends[chosen] > reached + _WORTH))
    return chosen[goes_on]


def split_smaller(group: Group) -> np.ndarray:
    """New starts for cells that ended below the one with a cluster less: that one with a large cluster split."""
    objective, clean = group.states.statistics.objective, judge(group)
    best = dict(zip(group.cells, winners(group).tolist(), strict=True))
    rows, of = [], []
    for index, (k, name) in enumerate(group.cells):
        smaller, own = best.get(Cell(k - 1, name)), best[Cell(k, name)]
        if smaller is None or not clean[smaller]:
            continue
        if clean[own] and objective[own] >= objective[smaller] + _WORTH:
            continue
        state = _state(group, own)
        halves = splits(_general(group, smaller))
        largest = np.argsort(-group.states.mixture.weights[smaller, : k - 1], kind="stable")[:_SPLITS]
        for mixture in (halves[j] for j in largest):
            values = state.mixture.covariance.values.copy()
            values[:k] = mixture.covariance.values
            means = state.mixture.means.copy()
            means[:k] = mixture.means
            weights = np.append(mixture.weights, np.zeros(len(means) - k))
            held = state.mixture.weights if "weights" in group.hold else weights
            covariance = Covariance(values, state.mixture.structure)
            rows.append(
                state._replace(
                    mixture=GaussianMixture(held, means, covariance),
                    statistics=replace(state.statistics, objective=np.float64(-np.inf)),
                    skip=np.bool_(True),
                    step=np.int64(0),
                    gain=np.float64(np.nan),
                    calm=np.int64(0),
                    code=np.int64(0),
                )
            )
            of.append(index)
    if rows:
        added = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        group.put(np.concatenate([group.rows, group.layout.rows(added)]))
        group.of = np.append(group.of, of)
        no = np.zeros(len(of), bool)
        group.judged, group.clean = np.append(group.judged, no), np.append(group.clean, no)
        group.whitened = np.append(group.whitened, no | group.whitened.any())
        group.recent = np.concatenate([group.recent, np.full((len(of), 3), np.nan)])
    return np.arange(len(group.of) - len(of), len(group.of))


def _general(group: Group, s: int) -> GaussianMixture:
    """The mixture of a start in loop units, without padding, each cluster with its own covariance."""
    k = group.cells[group.of[s]].n_components
    mixture = group.states.mixture
    values = Covariance(mixture.covariance.values[s, :k], mixture.structure)
    return GaussianMixture(mixture.weights[s, :k], mixture.means[s, :k], values)


def _state(group: Group, s: int) -> State:
    return jax.tree.map(lambda a: a[s], group.states)


def limits(group: Group) -> np.ndarray:
    """The objective where each start is headed."""
    running = group.states.code == 0
    recent = np.where(running[:, None], group.recent, np.nan)
    return headed_for(group.states.statistics.objective, recent)
