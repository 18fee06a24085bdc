"""Which starts of a cell go on, which of them wins, and which cells start again from the one with a cluster less."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from bayesmix.covariance import STRUCTURES, Covariance
from bayesmix.groups import Cell, Group
from bayesmix.initialize import splits
from bayesmix.loop import State
from bayesmix.mixture import GaussianMixture
from bayesmix.results import CODE
from bayesmix.verdict import Verdict, best, headed_for, verdict

__all__ = ["judge_start", "limits", "mixture_of_start", "pending", "split_smaller", "winner"]

_WORTH = 0.01  # nats above the best end that a start must be headed for to go on
_SPLITS = 3  # clusters that are split, each in a start of its own


def judge_start(group: Group, s: int) -> Verdict:
    """The verdict on a start, kept once it has ended; one that was left is clean unless the floor holds it."""
    if s in group.verdicts:
        return group.verdicts[s]
    cell, states = group.cells[group.of[s]], group.states
    k, code = cell.n_components, int(states.code[s])
    collapsed = states.collapsed[s, :k]
    if code == 0:
        held = collapsed.any() or group.problem.units.degenerate
        return Verdict("collapsed" if held else "running")
    count = states.statistics.moments[s, :k, 0]
    found = verdict(group.problem, code, mixture_of_start(group, s), collapsed, count)
    group.verdicts[s] = found
    return found


def mixture_of_start(group: Group, s: int) -> GaussianMixture:
    """The mixture of a start in loop units, without padding, as its own structure stores it."""
    k, name = group.cells[group.of[s]]
    mixture = group.states.mixture
    row = STRUCTURES[name]
    values = mixture.covariance.values[s][: 1 if row.shared else k]
    values = values if row.storage == mixture.covariance.row.storage else values.mean(axis=-1)
    return GaussianMixture(mixture.weights[s, :k], mixture.means[s, :k], Covariance(values, name))


def winner(group: Group, cell: int) -> int:
    """The best of the starts of a cell that ended: clean ones first, then by objective, the first of equals."""
    own = np.flatnonzero((group.of == cell) & (group.states.code != 0))
    clean = np.array([judge_start(group, s).clean for s in own.tolist()])
    return int(own[best(group.states.statistics.objective[own], clean)])


def pending(group: Group, max_steps: int) -> np.ndarray:
    """The start of each cell that goes on: the first to its end, then the one headed highest, if above that."""
    states, ends = group.states, limits(group)
    states.code[(states.code == 0) & (states.step >= max_steps)] = CODE["max_steps"]
    chosen = []
    for cell in range(len(group.cells)):
        own = np.flatnonzero(group.of == cell)
        running = own[states.code[own] == 0]
        if not running.size:
            continue
        ended = [s for s in own.tolist() if states.code[s] and judge_start(group, s).clean]
        reached = max((states.statistics.objective[s] for s in ended), default=-np.inf)
        next_ = running[0] if running[0] == own[0] else running[np.argmax(ends[running])]
        if running[0] == own[0] or ends[next_] > reached + _WORTH:
            chosen.append(next_)
    return np.array(chosen, int)


def split_smaller(group: Group) -> np.ndarray:
    """New starts for cells that ended below the one with a cluster less: that one with a large cluster split."""
    winners = {cell: winner(group, index) for index, cell in enumerate(group.cells)}
    objective = group.states.statistics.objective
    rows, of = [], []
    for index, (k, name) in enumerate(group.cells):
        smaller = winners.get(Cell(k - 1, name))
        if smaller is None or not judge_start(group, smaller).clean:
            continue
        own = winners[Cell(k, name)]
        if judge_start(group, own).clean and objective[own] >= objective[smaller] + _WORTH:
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
        group.states = jax.tree.map(lambda a, b: np.concatenate([a, b]), group.states, added)
        group.of = np.append(group.of, of)
        group.whitened = np.append(group.whitened, np.full(len(of), group.whitened.any()))
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
