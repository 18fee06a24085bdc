"""Cells that share a program: their states, padded to the largest k, and how these are taken further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmix.acceleration import pays
from bayesmix.compilation import Call
from bayesmix.covariance import STRUCTURES, Covariance, Structure
from bayesmix.devices import double_precision
from bayesmix.drive import remember
from bayesmix.loop import Options, Rules, State, advance, suited
from bayesmix.mixture import GaussianMixture
from bayesmix.mstep import families
from bayesmix.observations import Observations, observe
from bayesmix.partitions import Starts
from bayesmix.problem import Problem, prepare
from bayesmix.results import CODE
from bayesmix.statistics import Statistics, moments_of
from bayesmix.storage import per_cluster
from bayesmix.verdict import Verdict

__all__ = ["FIRST", "Cell", "Group", "advance_some", "begin", "compile_ahead", "group_cells"]

_PRODUCTS = 8e6  # of a step of all the starts of a call of a program,
_BATCH = (8, 64)  # which are so many
FIRST = 12  # EM's own steps of every start, before only the best of each cell goes on
_GENTLE = 1e-3  # nats a point: larger gains are those of EM's own steps, which climb the hill that is there
_PASSES = 40  # of a start, on average
_MANY = 64  # starts, that are accelerated however few the rows: a search is seldom the only one
_COMPILED: set[tuple] = set()  # programs


class Cell(NamedTuple):
    n_components: int
    covariance: str


@dataclass
class Group:
    """Cells of one storage in the same units: their states, start by start, on the host."""

    problem: Problem
    cells: list[Cell]
    hold: tuple[str, ...]
    largest: int  # k, to which all are padded
    accelerated: bool
    of: np.ndarray = field(init=False)  # which cell each start belongs to
    states: State = field(init=False)
    whitened: np.ndarray = field(init=False)
    recent: np.ndarray = field(init=False)  # the last three objectives of each start
    judged: np.ndarray = field(init=False)  # which starts have a verdict
    clean: np.ndarray = field(init=False)  # and which of them are clean
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    done: int = 0  # rounds of first steps: those of all starts, then of cells that start again

    @cached_property
    def counts(self) -> np.ndarray:
        """How many clusters each cell has."""
        return np.array([cell.n_components for cell in self.cells])

    @cached_property
    def unbounded(self) -> np.ndarray:
        """Of which cells the likelihood is unbounded."""
        return np.array([STRUCTURES[cell.covariance].unbounded for cell in self.cells])

    @property
    def products(self) -> int:
        """Of one step of a start."""
        row, d = self.problem.structure, self.problem.x.shape[1]
        return self.problem.observations.weight.size * self.largest * row.n_moments(d)

    @property
    def batch(self) -> int:
        """How many starts a call of the program takes: few where a step is long, lest a thread be left with it."""
        return int(np.clip(2 ** round(np.log2(_PRODUCTS / self.products)), *_BATCH))


def _kind(row: Structure, d: int) -> tuple[str, bool]:
    """The storage whose program serves a structure, that of diagonals spheres too; and its kind of units."""
    return "diagonal" if row.storage == "spherical" and d > 1 else row.storage, row.by_column


def group_cells(
    x: np.ndarray,
    weight: np.ndarray,
    cells: Sequence[Cell],
    n_starts: int,
    hold: tuple[str, ...],
    tol: float,
    accelerate: bool | None,
) -> list[Group]:
    """The cells by program and units, the longest program first; `begin` gives them their starts."""
    d, largest = x.shape[1], max(cell.n_components for cell in cells)
    kinds: dict[tuple[str, bool], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(_kind(STRUCTURES[cell.covariance], d), []).append(cell)
    groups = []
    for kind in sorted(kinds, key=lambda kind: (kind[0] != "full", not kind[1])):
        group = Group(_problem(x, weight, *kind, tol), kinds[kind], hold, largest, accelerate is True)
        if accelerate is None:  # alike for all that share the program
            count = n_starts * sum(len(own) for (storage, _), own in kinds.items() if storage == kind[0])
            group.accelerated = count >= _MANY or pays(count * _PASSES * group.products)
        if group.accelerated:
            rules = group.problem.rules._replace(gentle=np.float64(_GENTLE * weight.sum()))
            group.problem = group.problem._replace(rules=rules)
        groups.append(group)
    return groups


def _problem(x: np.ndarray, weight: np.ndarray, storage: str, by_column: bool, tol: float) -> Problem:
    """The data in units of a kind, laid out for the structure without constraints of a storage."""
    units = next(
        row
        for row in STRUCTURES.values()
        if not row.shared
        and row.n_features in (None, x.shape[1])
        and _kind(row, x.shape[1]) == (storage, by_column)
    )
    problem = prepare(1, units.name, x, weight, tol)
    if units.storage != storage:
        row, rules = STRUCTURES["VVI"], problem.rules
        wide = np.ones(x.shape[1])
        floor = rules.floor._replace(
            collapsed=rules.floor.collapsed * wide,
            thin=rules.floor.thin * wide,
            ridge=rules.floor.ridge * wide[None],
        )
        problem = problem._replace(
            structure=row,
            observations=observe(problem.x, problem.w, row),
            rules=rules._replace(floor=floor),
        )
    with double_precision():
        return problem._replace(
            **jax.device_put({"observations": problem.observations, "rules": problem.rules})
        )


def compile_ahead(group: Group, options: Options) -> None:
    """Compile the program of a group, unless it was before, while its starts are not known yet: no step of any."""
    row, x = group.problem.structure, group.problem.observations.x
    program = row.general, options, x.shape, x.dtype, group.largest, group.accelerated
    if program in _COMPILED:
        return
    blank = replace(group, cells=group.cells[:1], verdicts={})
    rows = np.arange(group.largest)
    begin(blank, Starts(rows, {k: [rows % k] for k, _ in blank.cells}))
    Call(
        advance,
        (*_arguments(blank, np.zeros(1, int), 0), suited(options, blank.states, group.problem.observations)),
    ).traced()()
    _COMPILED.add(program)


def begin(group: Group, starts: Starts) -> None:
    """The states of all starts of the cells, padded to the largest k."""
    problem, largest = group.problem, group.largest
    row, d = problem.structure, problem.x.shape[1]
    u, w = problem.x[starts.rows].astype(np.float64), problem.w[starts.rows]
    w = w * (problem.w.sum() / w.sum())
    features: Any = row.form.features  # of NumPy arrays too
    t = features(u.T)
    first = {k: _moments(t, w, np.array(some), row, d) for k, some in starts.partitions.items()}
    family = families(row.storage)
    of = np.repeat(np.arange(len(group.cells)), [len(first[k][1]) for k, _ in group.cells])
    n, live = len(of), np.zeros((len(of), largest))
    moments = np.zeros((n, largest, len(t)))
    pooled = np.concatenate([first[k][1] for k, _ in group.cells])
    for index, (k, _) in enumerate(group.cells):
        live[of == index, :k] = 1
        moments[of == index, :k] = first[k][0]
    values = pooled[:, None] + np.zeros((1, largest) + (1,) * row.form.axes)
    states = State(
        mixture=GaussianMixture(
            live / live.sum(axis=1, keepdims=True),
            np.zeros((n, largest, d)),
            Covariance(values, row.general),  # one name, so one program
        ),
        statistics=Statistics(moments, np.full(n, -np.inf)),
        skip=np.zeros(n, bool),
        step=np.zeros(n, np.int64),
        gain=np.full(n, np.nan),
        calm=np.zeros(n, np.int64),
        code=np.zeros(n, np.int64),
        collapsed=np.zeros((n, largest), bool),
        trace=np.zeros((n, 4)),
        filled=np.zeros(n, np.int64),
        family=np.array([family.index(cell.covariance) for cell in group.cells], np.int32)[of],
    )
    group.of, group.whitened, group.recent = of, np.zeros(n, bool), np.full((n, 3), np.nan)
    group.judged, group.clean = np.zeros((2, n), bool)
    # Copies, to be written to.
    group.states = jax.tree.map(np.array, remember(states)) if group.accelerated else states


def _moments(
    t: np.ndarray, w: np.ndarray, labels: np.ndarray, row: Structure, d: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moments (s, k, p) of partitions (s, m) of rows with features t (p, m) of d numbers, and pooled covariances.

    These stand in for clusters of at most d + 1 points.
    """
    form, k, s = row.form, int(labels.max()) + 1, len(labels)
    sums: Any = np.concatenate([((own == np.arange(k)[:, None]) * w) @ t.T for own in labels])
    count, second = sums[:, 0], form.second(sums[:, 1 + d :], d)
    means = sums[:, 1 : 1 + d] / np.where(count > 0, count, 1)[:, None]  # quantiles may leave one out
    each = per_cluster(count, form.axes)
    scatter = second - each * form.outer(means)
    total = scatter.reshape(s, k, *scatter.shape[1:]).sum(axis=1)
    pooled = total / per_cluster(count.reshape(s, k).sum(axis=1), form.axes)
    few = per_cluster(count <= d + 1, form.axes)
    scatter = np.where(few, np.repeat(pooled, k, axis=0) * each, scatter)
    return moments_of(count, means, scatter, row).reshape(s, k, -1), pooled


def advance_some(group: Group, chosen: np.ndarray, steps: int, options: Options) -> None:
    """Run some starts, and write them back; a batch is filled up with ended copies, so that its shape is one."""
    with double_precision():
        own = suited(options, group.states, group.problem.observations)
        out = jax.tree.map(np.asarray, advance(*_arguments(group, chosen, steps), own))
    for old, new in zip(jax.tree.leaves(group.states), jax.tree.leaves(out)):
        old[chosen] = new[: len(chosen)]
    filled = out.filled[: len(chosen), None]
    last = out.trace[np.arange(len(chosen))[:, None], (filled + np.arange(-3, 0)) % 4]
    group.recent[chosen] = np.where(filled >= 3, last, np.nan)
    thin = chosen[group.states.code[chosen] == CODE["thin"]]
    group.states.code[thin], group.whitened[thin] = 0, True


def _arguments(
    group: Group, chosen: np.ndarray, steps: int
) -> tuple[State, np.ndarray, Observations, Any, Rules]:
    whole = np.full(group.batch, chosen[0])
    whole[: len(chosen)] = chosen
    states = jax.tree.map(lambda a: a[whole], group.states)
    limits = np.where(np.arange(group.batch) < len(chosen), steps, 0)
    return states, limits, group.problem.observations, np.float64(1), group.problem.rules
