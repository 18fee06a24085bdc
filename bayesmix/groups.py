"""Cells that share a program: their states, padded to the largest k, and how these are taken further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmix.acceleration import pays
from bayesmix.climb import advance, suited
from bayesmix.compilation import Call
from bayesmix.covariance import STRUCTURES, Covariance, Structure
from bayesmix.devices import double_precision
from bayesmix.inputs import Points
from bayesmix.loop import Options, State
from bayesmix.mixture import GaussianMixture
from bayesmix.mstep import families
from bayesmix.observations import Observations, observe
from bayesmix.packing import Layout, Packed
from bayesmix.partitions import Starts
from bayesmix.problem import Problem, prepare
from bayesmix.statistics import Statistics, moments_of
from bayesmix.status import CODE
from bayesmix.storage import per_cluster
from bayesmix.verdict import Verdict

__all__ = ["FIRST", "Cell", "Group", "advance_some", "begin", "compile_ahead", "group_cells", "shapes"]

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
    layout: Layout = field(init=False)
    rows: np.ndarray = field(init=False)  # the state of each start, and
    states: State = field(init=False)  # the same by name, all of float64
    whitened: np.ndarray = field(init=False)
    recent: np.ndarray = field(init=False)  # the last three objectives of each start
    judged: np.ndarray = field(init=False)  # which starts have a verdict
    clean: np.ndarray = field(init=False)  # and which of them are clean
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    done: int = 0  # rounds of first steps: those of all starts, then of cells that start again

    def put(self, rows: np.ndarray) -> None:
        """Other rows, and the states that are views of them."""
        self.rows, self.states = rows, self.layout.views(rows)

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
        return self.problem.observations.size * self.largest * row.n_moments(d)

    @cached_property
    def terms(self) -> Packed:
        """What `advance` takes besides data: the inverse temperature and the rules."""
        return Packed.by_host((1.0, self.problem.rules))

    @cached_property
    def batch(self) -> int:
        """How many starts a call of the program takes: few where a step is long, lest a thread be left with it."""
        return int(np.clip(2 ** round(np.log2(_PRODUCTS / self.products)), *_BATCH))


def _kind(row: Structure, d: int) -> tuple[str, bool]:
    """The storage whose program serves a structure, that of diagonals spheres too; and its kind of units."""
    return "diagonal" if row.storage == "spherical" and d > 1 else row.storage, row.by_column


def group_cells(
    x: Points,
    weight: np.ndarray,
    cells: Sequence[Cell],
    n_starts: int,
    hold: tuple[str, ...],
    tol: float,
    accelerate: bool | None,
    given: np.ndarray | None = None,
) -> list[Group]:
    """The cells by program and units, the longest program first; `begin` gives them their starts."""
    d, largest = x.values.shape[1], max(cell.n_components for cell in cells)
    kinds: dict[tuple[str, bool], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(_kind(STRUCTURES[cell.covariance], d), []).append(cell)
    groups = []
    for kind in sorted(kinds, key=lambda kind: (kind[0] != "full", not kind[1])):
        problem = _problem(x, weight, *kind, tol, largest, given)
        group = Group(problem, kinds[kind], hold, largest, accelerate is True)
        if accelerate is None:  # alike for all that share the program
            count = n_starts * sum(len(own) for (storage, _), own in kinds.items() if storage == kind[0])
            group.accelerated = count >= _MANY or pays(count * _PASSES * group.products)
        if group.accelerated:
            rules = group.problem.rules._replace(gentle=np.float64(_GENTLE * weight.sum()))
            group.problem = group.problem._replace(rules=rules)
        groups.append(group)
    return groups


def _problem(
    x: Points,
    weight: np.ndarray,
    storage: str,
    by_column: bool,
    tol: float,
    largest: int,
    given: np.ndarray | None,
) -> Problem:
    """The data in units of a kind, laid out for the structure without constraints of a storage."""
    d = x.values.shape[1]
    units = next(
        row
        for row in STRUCTURES.values()
        if not row.shared and row.n_features in (None, d) and _kind(row, d) == (storage, by_column)
    )
    problem = prepare(largest, units.name, x, weight, tol, labels=given)
    if units.storage != storage:
        row, rules = STRUCTURES["VVI"], problem.rules
        wide = np.ones(d)
        floor = rules.floor._replace(
            collapsed=rules.floor.collapsed * wide,
            thin=rules.floor.thin * wide,
            ridge=rules.floor.ridge * wide[None],
        )
        problem = problem._replace(
            structure=row,
            observations=observe(problem.x, problem.w, row, given=problem.told, seen=problem.seen),
            rules=rules._replace(floor=floor),
        )
    with double_precision():
        return problem._replace(observations=jax.device_put(problem.observations))


def shapes(observations: Observations) -> tuple:
    """What of the data a program is compiled for."""
    leaves, form = jax.tree.flatten(observations)
    return form, *((a.shape, str(a.dtype)) for a in leaves)


def compile_ahead(group: Group, options: Options) -> None:
    """Compile the program of a group, unless it was before, while its starts are not known yet: no step of any."""
    row, observations = group.problem.structure, group.problem.observations
    program = row.general, options, shapes(observations), group.largest, group.accelerated
    if program in _COMPILED:
        return
    blank = replace(group, cells=group.cells[:1], verdicts={})
    rows = np.arange(group.largest)
    begin(blank, Starts(rows, {k: [rows % k] for k, _ in blank.cells}))
    Call(advance, _arguments(blank, np.zeros(1, int), 0, options)).traced()()
    _COMPILED.add(program)


def begin(group: Group, starts: Starts) -> None:
    """The states of all starts of the cells, padded to the largest k."""
    problem, largest = group.problem, group.largest
    row, d = problem.structure, problem.x.shape[1]
    size = np.array([k for k, some in starts.partitions.items() for _ in some])
    first, pooled = _moments(problem, starts, size, largest)
    which = [np.flatnonzero(size == k) for k, _ in group.cells]
    of = np.repeat(np.arange(len(group.cells)), [len(own) for own in which])
    every, n = np.concatenate(which), len(of)
    live = (np.arange(largest) < size[every, None]) / size[every, None]
    family = families(row.storage)
    states = State(
        mixture=GaussianMixture(
            live,
            np.zeros((n, largest, d)),
            # One name, so one program.
            Covariance(pooled[every, None] + np.zeros((1, largest) + (1,) * row.form.axes), row.general),
        ),
        statistics=Statistics(first[every], np.full(n, -np.inf)),
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
    group.layout = Layout.of(states)
    group.put(group.layout.rows(states))


def _moments(
    problem: Problem, starts: Starts, size: np.ndarray, largest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moments (s, largest, p) of all partitions, into `size` (s,) clusters, and pooled covariances (s, ...).

    These stand in for clusters of at most d + 1 points.
    """
    row, d = problem.structure, problem.x.shape[1]
    u, w = problem.x[starts.rows].astype(np.float64), problem.w[starts.rows]
    w = w * (problem.w.sum() / w.sum())
    form: Any = row.form  # of NumPy arrays too
    t = form.features(u.T)
    sums = np.concatenate(
        [
            ((labels == np.arange(k)[:, None]) * w) @ t.T
            for k, some in starts.partitions.items()
            for labels in some
        ]
    )
    begins = np.cumsum(size) - size
    owner = np.repeat(np.arange(len(size)), size)
    place = np.arange(len(owner)) - begins[owner]
    count, second = sums[:, 0], form.second(sums[:, 1 + d :], d)
    means = sums[:, 1 : 1 + d] / np.where(count > 0, count, 1)[:, None]  # quantiles may leave one out
    each = per_cluster(count, form.axes)
    scatter = second - each * form.outer(means)
    pooled = np.add.reduceat(scatter, begins) / per_cluster(np.add.reduceat(count, begins), form.axes)
    scatter = np.where(per_cluster(count <= d + 1, form.axes), pooled[owner] * each, scatter)
    moments = np.zeros((len(size), largest, t.shape[0]))
    moments[owner, place] = moments_of(count, means, scatter, row)
    return moments, pooled


def advance_some(group: Group, chosen: np.ndarray, steps: int, options: Options) -> None:
    """Run some starts, and write them back; a batch is filled up with ended copies, so that its shape is one."""
    with double_precision():
        out = np.asarray(advance(*_arguments(group, chosen, steps, options)))[: len(chosen)]
    group.rows[chosen] = out
    state = group.layout.views(out)
    filled = state.filled[:, None].astype(int)
    last = state.trace[np.arange(len(chosen))[:, None], (filled + np.arange(-3, 0)) % 4]
    group.recent[chosen] = np.where(filled >= 3, last, np.nan)
    thin = chosen[state.code == CODE["thin"]]
    if thin.size:
        group.states.code[thin], group.whitened[thin] = 0, True


def _arguments(group: Group, chosen: np.ndarray, steps: int, options: Options) -> tuple:
    whole = np.full(group.batch, chosen[0])
    whole[: len(chosen)] = chosen
    limits = np.where(np.arange(group.batch) < len(chosen), steps, 0)
    observations = group.problem.observations
    own = suited(options._replace(apart=True), group.states, observations)
    rows = group.rows[whole]
    group.layout.views(rows).filled[:] = 0
    return rows, limits, observations, group.terms, group.layout, group.accelerated, own
