"""Every cell of k × structure fitted by a handful of compiled programs.

Structures of one storage differ in a small M-step only, and a mixture of k clusters is one of K whose other weights
are zero. So cells are padded to the largest k and share one program a storage: full, diagonal, spherical. Starts are
partitions that all structures share. Every start of every cell runs for a few steps; the first, the agglomerated one,
goes on to its end, and then those that are headed above the best clean end of the cell, one after another. Independent
batches run on as many threads as there are cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bayesmix import density
from bayesmix.covariance import STORAGES, STRUCTURES, Covariance, Structure
from bayesmix.inputs import double_precision
from bayesmix.loop import Options, State, advance
from bayesmix.mixture import GaussianMixture
from bayesmix.mstep import families
from bayesmix.problem import Problem, prepare
from bayesmix.results import STATUS
from bayesmix.statistics import Observations, Statistics, moments_of
from bayesmix.verdict import Verdict, verdict

__all__ = ["Cell", "CellFit", "Starts", "fit_cells"]

_CODE = {name: code for name, (code, _) in STATUS.items()}
_NAME = {code: name for name, code in _CODE.items()}
_BATCH = 16  # starts a call of a program
_FIRST = 12  # steps of every start, before only the best of each cell goes on
_MORE = 200  # steps a call after that
_WORTH = 0.01  # nats above the best end that a start must be headed for to go on
# The structure without constraints of each storage.
_GENERAL = {"full": "VVV", "diagonal": "VVI", "spherical": "VII"}
_AGREE = 0.1  # nats within which two starts count as one optimum


class Cell(NamedTuple):
    n_components: int
    covariance: str


class Starts(NamedTuple):
    """Some rows, and partitions of them into each number of clusters."""

    rows: Int[np.ndarray, " m"]
    partitions: dict[int, list[Int[np.ndarray, " m"]]]


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


@dataclass
class _Group:
    """Cells of one storage in the same units: their states, start by start, on the host."""

    problem: Problem
    cells: list[Cell]
    of: np.ndarray  # which cell each start belongs to
    states: State
    whitened: np.ndarray
    recent: np.ndarray  # the last three objectives of each start
    verdicts: dict[int, Verdict] = field(default_factory=dict)


def _unit_rows(d: int) -> dict[tuple[str, bool], Structure]:
    """Of each storage and kind of units the structure that stands for all: unshared, and first in the table."""
    rows = [row for row in STRUCTURES.values() if not row.shared and row.n_features in (None, d)]
    return {(row.storage, row.by_column): row for row in reversed(rows)}


def fit_cells(
    x: np.ndarray,
    weight: np.ndarray,
    cells: Sequence[Cell],
    starts: Starts,
    *,
    hold: tuple[str, ...],
    tol: float,
    max_steps: int,
    progress: Callable[[Cell], None],
) -> dict[Cell, CellFit]:
    """Fit every cell; `progress` is called as each ends.

    Args:
        x: all rows of positive weight (n, d), in the data's units.
        weight: (n,).
        cells: k at most n.
        starts: partitions of some rows, for each k.
        hold: as in `fit`.
        tol: as in `fit`.
        max_steps: of a start, about.
        progress: told of each cell.
    """
    groups = _groups(x, weight, cells, starts, tol)
    single = x.dtype == np.float32
    for group in groups:
        group.whitened[:] = single

    def run(jobs: list[tuple[_Group, np.ndarray, int]]) -> None:
        """Take some starts of a group so many steps further, batch by batch, on all cores."""
        batches = []
        for group, chosen, steps in jobs:
            for flag in (False, True):
                some = chosen[group.whitened[chosen] == flag]
                for i in range(0, len(some), _BATCH):
                    batches.append((group, some[i : i + _BATCH], steps, Options("soft", hold, flag)))
        # One batch of each program first, so that threads do not compile the same one twice.
        seen: set[Any] = set()
        firsts = [b for b in batches if not (_shape(b) in seen or seen.add(_shape(b)))]
        rest = [b for b in batches if not any(b is f for f in firsts)]
        for part in (firsts, rest):
            for _ in pool.map(lambda b: _advance(*b), part):
                pass

    with ThreadPoolExecutor(_cores()) as pool:
        run([(group, np.arange(len(group.of)), _FIRST) for group in groups])
        told: set[Cell] = set()
        while True:
            jobs = []
            for group in groups:
                pending = _pending(group, max_steps)
                open_cells = {group.cells[group.of[s]] for s in pending}
                for cell in group.cells:
                    if cell not in open_cells and cell not in told:
                        told.add(cell)
                        progress(cell)
                if len(pending):
                    jobs.append((group, pending, _MORE))
            if not jobs:
                break
            run(jobs)
    return _report(x, weight, groups)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shape(batch: tuple[_Group, np.ndarray, int, Options]) -> Any:
    group, _, _, options = batch
    return group.problem.structure.storage, options


def _groups(
    x: np.ndarray, weight: np.ndarray, cells: Sequence[Cell], starts: Starts, tol: float
) -> list[_Group]:
    d, largest = x.shape[1], max(cell.n_components for cell in cells)
    groups = []
    for (storage, by_column), row in _unit_rows(d).items():
        own = [
            cell
            for cell in cells
            if STRUCTURES[cell.covariance].storage == storage
            and (STRUCTURES[cell.covariance].by_column == by_column or storage != "full")
        ]
        if own:
            problem = prepare(1, row.name, x, weight, tol)
            problem = problem._replace(observations=jax.device_put(problem.observations))
            groups.append(_group(problem, own, starts, largest))
    return groups


def _group(problem: Problem, cells: list[Cell], starts: Starts, largest: int) -> _Group:
    """The states of all starts of some cells, padded to the largest k."""
    row, d = problem.structure, problem.x.shape[1]
    u, w = problem.x[starts.rows].astype(np.float64), problem.w[starts.rows]
    w = w * (problem.w.sum() / w.sum())
    first = {k: [_moments(u, w, labels, row) for labels in some] for k, some in starts.partitions.items()}
    of, weights, moments, pooled, family = [], [], [], [], []
    for index, (k, name) in enumerate(cells):
        for start, spread in first[k]:
            of.append(index)
            weights.append(np.arange(largest) < k)
            moments.append(np.concatenate([start, np.zeros((largest - k, start.shape[1]))]))
            pooled.append(spread)
            family.append(families(row.storage).index(name))
    n = len(of)
    live = np.array(weights, float)
    values = np.array(pooled)[:, None] + np.zeros((1, largest) + (1,) * row.form.axes)
    states = State(
        mixture=GaussianMixture(
            live / live.sum(axis=1, keepdims=True),
            np.zeros((n, largest, d)),
            Covariance(values, _GENERAL[row.storage]),  # one name, so one program
        ),
        statistics=Statistics(np.array(moments), np.full(n, -np.inf)),
        skip=np.zeros(n, bool),
        step=np.zeros(n, np.int64),
        gain=np.full(n, np.nan),
        calm=np.zeros(n, np.int64),
        code=np.zeros(n, np.int64),
        collapsed=np.zeros((n, largest), bool),
        tolerant=np.zeros(n, bool),
        key=None,
        redraws=np.zeros(n, np.int64),
        failed=np.zeros(n, np.int64),
        best=None,
        trace=np.zeros((n, 4)),
        chain=None,
        filled=np.zeros(n, np.int64),
        family=np.array(family, np.int32),
    )
    return _Group(problem, cells, np.array(of), states, np.zeros(n, bool), np.full((n, 3), np.nan))


def _moments(
    u: np.ndarray, w: np.ndarray, labels: np.ndarray, row: Structure
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of a partition, and its pooled covariance; that stands in for clusters of at most d + 1 points."""
    k, d = int(labels.max()) + 1, u.shape[1]
    one_hot = (labels == np.arange(k)[:, None]) * w
    count = one_hot.sum(axis=1)
    means = one_hot @ u / count[:, None]
    away = u - means[labels]
    scatter = np.stack([(part[labels == j, None] * away[labels == j]).T @ away[labels == j] for j, part in
                        enumerate(one_hot)])  # fmt: skip
    pooled = scatter.sum(axis=0) / count.sum()
    scatter = np.where((count <= d + 1)[:, None, None], pooled * count[:, None, None], scatter)
    form = STORAGES[row.storage]
    return moments_of(count, means, form.sparse(scatter), row), form.sparse(pooled[None])[0]


def _advance(group: _Group, chosen: np.ndarray, steps: int, options: Options) -> None:
    """Run some starts, and write them back; a batch is filled up with ended copies, so that its shape is one."""
    whole = np.resize(chosen, _BATCH)
    states = jax.tree.map(lambda a: a[whole], group.states)
    limits = np.where(np.arange(_BATCH) < len(chosen), steps, 0)
    problem = group.problem
    with double_precision():
        out = advance(states, limits, problem.observations, np.float64(1), problem.rules, options)
        out = jax.tree.map(np.asarray, out)
    for old, new in zip(jax.tree.leaves(group.states), jax.tree.leaves(out)):
        old[chosen] = new[: len(chosen)]
    for i, s in enumerate(chosen):
        filled = int(out.filled[i])
        group.recent[s] = out.trace[i, np.arange(filled - 3, filled) % 4] if filled >= 3 else np.nan
    thin = chosen[group.states.code[chosen] == _CODE["thin"]]
    group.states.code[thin], group.whitened[thin] = 0, True


def _judge(group: _Group, s: int) -> Verdict:
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
    found = verdict(group.problem, code, _mixture(group, s), collapsed, count)
    group.verdicts[s] = found
    return found


def _mixture(group: _Group, s: int) -> GaussianMixture:
    """The mixture of a start in loop units, without padding, as its own structure stores it."""
    k, name = group.cells[group.of[s]]
    mixture = group.states.mixture
    values = mixture.covariance.values[s][: 1 if STRUCTURES[name].shared else k]
    return GaussianMixture(mixture.weights[s, :k], mixture.means[s, :k], Covariance(values, name))


def _winner(group: _Group, cell: int) -> int:
    """The best of the starts of a cell that ended: clean ones first, then by objective, the first of equals."""
    own = np.flatnonzero((group.of == cell) & (group.states.code != 0))
    objective = group.states.statistics.objective[own]
    objective = np.where(np.isnan(objective), -np.inf, objective)
    clean = np.array([_judge(group, s).clean for s in own.tolist()])
    objective = np.where(clean | ~clean.any(), objective, -np.inf)
    top = objective.max()
    near = objective >= top - 1e-10 * abs(top) if np.isfinite(top) else objective == top
    return int(own[np.argmax(near)])


def _pending(group: _Group, max_steps: int) -> np.ndarray:
    """The start of each cell that goes on: the first to its end, then the one headed highest, if above that."""
    states, limits = group.states, _limits(group)
    states.code[(states.code == 0) & (states.step >= max_steps)] = _CODE["max_steps"]
    chosen = []
    for cell in range(len(group.cells)):
        own = np.flatnonzero(group.of == cell)
        running = own[states.code[own] == 0]
        if not running.size:
            continue
        ended = [s for s in own.tolist() if states.code[s] and _judge(group, s).clean]
        reached = max((states.statistics.objective[s] for s in ended), default=-np.inf)
        best = running[0] if running[0] == own[0] else running[np.argmax(limits[running])]
        if running[0] == own[0] or limits[best] > reached + _WORTH:
            chosen.append(best)
    return np.array(chosen, int)


def _limits(group: _Group) -> np.ndarray:
    """The objective where each start is headed by Aitken's extrapolation."""
    objective = group.states.statistics.objective
    first, second = np.diff(group.recent, axis=1).T
    rising = (first > second) & (second > 0) & (group.states.code == 0)
    ratio = np.divide(second, first, out=np.zeros_like(second), where=rising)
    return objective + np.where(rising, second * ratio / (1 - ratio), 0)


def _report(x: np.ndarray, weight: np.ndarray, groups: list[_Group]) -> dict[Cell, CellFit]:
    """Winners in the data's units, with the sums over the data that the criteria need: one program for all."""
    wide = prepare(1, "VVV", x, weight, 0.0)
    largest = groups[0].states.mixture.means.shape[1]
    winners = [(group, _winner(group, index)) for group in groups for index in range(len(group.cells))]
    outer = [group.problem.units.leave(_mixture(group, s)) for group, s in winners]
    padded = [_padded(wide.units.enter(_dense(mixture)), largest) for mixture in outer]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    with double_precision():
        sums = np.asarray(_sums(stacked, wide.observations))
    moved = wide.units.log_volume * wide.w.sum()
    limits = {id(group): _limits(group) for group in groups}
    found = {}
    for (group, s), mixture, (total, top, entropy) in zip(winners, outer, sums):
        cell = group.cells[group.of[s]]
        own = np.flatnonzero(group.of == group.of[s])
        judged = [_judge(group, o) for o in own.tolist()]
        best = _judge(group, s)
        target = group.states.statistics.objective[s] - _AGREE
        agree = [v.clean == best.clean and limits[id(group)][o] >= target for o, v in zip(own, judged)]
        dtype = x.dtype
        values = Covariance(mixture.covariance.values.astype(dtype), mixture.structure)
        found[cell] = CellFit(
            replace(
                mixture,
                weights=mixture.weights.astype(dtype),
                means=mixture.means.astype(dtype),
                covariance=values,
            ),
            float(total + moved),
            float(top + moved),
            float(entropy),
            best,
            float(group.states.gain[s]),
            int(group.states.step[s]),
            len(own),
            int(np.sum(agree)),
            sum(not v.clean for v in judged),
            group.problem.units.degenerate,
        )
    return found


def _dense(mixture: GaussianMixture) -> GaussianMixture:
    return replace(mixture, covariance=Covariance(np.array(mixture.covariances, np.float64), "VVV"))


def _padded(mixture: GaussianMixture, largest: int) -> GaussianMixture:
    k, d = mixture.means.shape
    extra = largest - k
    identity = np.broadcast_to(np.eye(d), (extra, d, d))
    return GaussianMixture(
        np.append(mixture.weights, np.zeros(extra)),
        np.concatenate([mixture.means, np.zeros((extra, d))]),
        Covariance(np.concatenate([mixture.covariance.values, identity]), "VVV"),
    )


@jax.jit
def _sums(mixtures: GaussianMixture, observations: Observations) -> Array:
    """Weighted sums of log density, largest log joint and entropy, of each mixture."""

    def one(mixture: GaussianMixture) -> Array:
        factor, _ = density.precision_factor(mixture.covariance, mixture.n_features)

        def block(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            x, weight = pair
            logits = density.log_joint(mixture, x, factor)
            logs = density.log_sum(logits)
            r = jnp.exp(logits - logs)
            entropy = -jnp.sum(jnp.where(r > 0, r * jnp.log(jnp.where(r > 0, r, 1)), 0), axis=0)
            sums = jnp.stack([logs, jnp.max(logits, axis=0), entropy]) @ weight
            return total + sums.astype(float), None

        return jax.lax.scan(block, jnp.zeros(3), (observations.x, observations.weight))[0]

    return jax.lax.map(one, mixtures)
