"""Every cell of k × structure fitted by a handful of compiled programs.

Structures of one storage differ in a small M-step only, and a mixture of k clusters is one of K whose other weights
are zero. So cells are padded to the largest k and share one program a storage: full, and diagonal for spheres too.
Starts are partitions that all structures share, found while the programs are compiled. Every start of every cell runs
for a few steps; the first, the agglomerated one, goes on to its end, and then those that are headed above the best
clean end of the cell, one after another. A cell that ends below the one with a cluster less starts again from that
one, a large cluster split. Batches of starts run on as many threads as there are cores, and those of one group while
another is judged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix import density
from bayesmix.checkpoints import Checkpoint, restored, stored
from bayesmix.compilation import wide
from bayesmix.contest import as_cell, limits, pending, split_smaller, winners
from bayesmix.covariance import Covariance
from bayesmix.devices import double_precision, lapack_on_one_thread
from bayesmix.groups import FIRST, Cell, Group, advance_some, begin, compile_ahead, group_cells
from bayesmix.inputs import Points, cores
from bayesmix.interrupts import patient
from bayesmix.loop import Options
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations
from bayesmix.partitions import Starts
from bayesmix.problem import Problem
from bayesmix.statistics import EVERY
from bayesmix.units import typed
from bayesmix.verdict import AGREE, Verdict

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["CellFit", "fit_cells"]

_MORE = 200  # steps a call after that
_LEAST = 4  # starts of a call, where there are enough for every core
_TOGETHER = 128  # mixtures, whose sums over the data one call makes
_SUMMED: set[tuple] = set()  # what `_sums` is compiled for
_RESCUES = 10  # rounds in which cells below those with a cluster less start from them


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


def fit_cells(
    x: Points,
    weight: np.ndarray,
    cells: Sequence[Cell],
    starts: Future[Starts],
    *,
    n_starts: int,
    hold: tuple[str, ...],
    tol: float,
    max_steps: int,
    accelerate: bool | None,
    progress: Callable[[Cell], None],
    checkpoint: Checkpoint | None = None,
) -> tuple[dict[Cell, CellFit], bool]:
    """Fit every cell; `progress` is called as each ends. After Ctrl-C those that ended, and that they are not all done.

    Args:
        x: all rows of positive weight (n, d), in the data's units.
        weight: (n,).
        cells: k at most n.
        starts: partitions of some rows, for each k.
        n_starts: of them, about.
        hold: as in `fit`.
        tol: as in `fit`.
        max_steps: of a start, about.
        accelerate: as in `fit`.
        progress: told of each cell.
        checkpoint: written between rounds of calls, and gone on from.

    Raises:
        KeyboardInterrupt: Ctrl-C before any cell ended, or twice.
    """
    groups = group_cells(x, weight, cells, n_starts, hold, tol, accelerate)
    raw = Options("soft", hold, padded=True)

    def program(group: Group, options: Options) -> Future:
        """The one that a group's starts need; its first user has it compiled, and the others wait for that."""
        key = group.problem.structure.storage, options
        with lock:
            if key not in compiled:
                compiled[key] = pool.submit(compile_ahead, group, options)
            return compiled[key]

    def step(group: Group, chosen: np.ndarray, steps: int, options: Options) -> None:
        patience.check()
        advance_some(group, chosen, steps, options)

    def run(group: Group, chosen: np.ndarray, steps: int) -> None:
        """Take some starts of a group so many steps further, batch by batch."""
        batches = []
        for options in (raw, raw._replace(whitened=EVERY)):
            some = chosen[group.whitened[chosen] == (options.whitened > 0)]
            if len(some):
                program(group, options).result()
            shares = max(-(-len(some) // group.batch), min(cores(), len(some) // _LEAST))
            parts = np.array_split(some, max(shares, 1))
            batches += [pool.submit(step, group, part, steps, options) for part in parts if len(part)]
        for batch in batches:
            batch.result()

    def begun(group: Group, chosen: np.ndarray) -> None:
        run(group, chosen, FIRST)
        group.done += 1
        keep()

    def finish(group: Group) -> None:
        """Take on what goes on until nothing does."""
        while True:
            goes_on = pending(group, max_steps)
            still = {group.cells[group.of[s]] for s in goes_on}
            with lock:
                for cell in group.cells:
                    if cell not in still and cell not in told:
                        told.add(cell)
                        progress(cell)
            if not len(goes_on):
                return
            run(group, goes_on, _MORE)
            keep()

    def climb(group: Group, ahead: Future) -> _Best:
        """From what is done of a group to its end."""
        if not group.done:
            begun(group, np.arange(len(group.of)))
        finish(group)
        while group.done <= _RESCUES and len(added := split_smaller(group)):
            begun(group, added)
            finish(group)
        ahead.result()
        return _best(group, groups[0].problem)

    def keep() -> None:
        if checkpoint is not None:
            checkpoint.write(lambda: _stored(groups))

    kept = None if checkpoint is None else checkpoint.read()
    told: set[Cell] = set()
    compiled: dict[Any, Future] = {}
    lock = threading.Lock()
    interrupted = False
    with patient() as patience, lapack_on_one_thread(x.values.shape[1]):
        try:
            # Groups wait for each other in a checkpoint only, which has all of them at rest but one.
            abreast = len(groups) if checkpoint is None else 1
            with ThreadPoolExecutor(cores()) as pool, ThreadPoolExecutor(abreast) as climbers:
                if kept is None:
                    for group in groups:  # the longest first: while it is compiled the next is traced
                        program(group, raw)
                ahead, partitions, ways = pool.submit(_sum_ahead, groups[0]), starts.result(), []
                for i, group in enumerate(groups):
                    begin(group, partitions)
                    if kept is not None:
                        _restore(group, i, kept)
                    ways.append(climbers.submit(climb, group, ahead))
                best = [way.result() for way in ways]
        except KeyboardInterrupt:
            if patience.again or not told:
                raise
            interrupted = True
            best = [_best(group, groups[0].problem) for group in groups]
        if checkpoint is not None and not interrupted:
            checkpoint.write(lambda: _stored(groups), now=True)
    return _report(groups, best, told), interrupted


def _stored(groups: list[Group]) -> dict[str, np.ndarray]:
    """How far the groups have come."""
    arrays = {"done": np.array([group.done for group in groups])}
    for i, group in enumerate(groups):
        arrays |= stored(f"rows{i}", group.rows)
        arrays |= {f"of{i}": group.of, f"whitened{i}": group.whitened, f"recent{i}": group.recent}
    return arrays


def _restore(group: Group, i: int, kept: dict[str, np.ndarray]) -> None:
    group.put(restored(f"rows{i}", group.rows, kept))
    group.of, group.whitened = kept[f"of{i}"], kept[f"whitened{i}"]
    group.recent, group.done = kept[f"recent{i}"], int(kept["done"][i])
    group.judged, group.clean = np.zeros((2, len(group.of)), bool)


class _Best(NamedTuple):
    """The best start of each cell of a group: mixtures in the data's units, and sums over the data of `_sums`."""

    starts: np.ndarray
    mixtures: GaussianMixture
    sums: np.ndarray


def _best(group: Group, common: Problem) -> _Best:
    starts = winners(group)
    some = jax.tree.map(itemgetter(starts.clip(max=len(group.of) - 1)), group.states.mixture)
    mixtures = group.problem.units.leave(some)
    sums = _sums_of(_dense(common.units.enter(mixtures), group), common.observations)
    sums[:, :2] += common.moved
    return _Best(starts, mixtures, sums)


def _report(groups: list[Group], best: list[_Best], told: set[Cell]) -> dict[Cell, CellFit]:
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
            )
    return found


def _sum_ahead(group: Group) -> None:
    """Compile `_sums`, and load what the table of a search will need, on a core that has nothing else to do yet."""
    import pandas  # noqa: F401

    k, d, x = group.largest, group.problem.x.shape[1], group.problem.observations.x
    program = k, x.shape, x.dtype
    if program in _SUMMED:
        return
    values = np.broadcast_to(np.eye(d), (1, k, d, d))
    blank = GaussianMixture(np.full((1, k), 1 / k), np.zeros((1, k, d)), Covariance(values, "VVV"))
    _sums_of(blank, group.problem.observations)
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

        def block(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            x, weight = pair
            sums = density.report(mixture, x, factor)[:3] @ weight
            return total + sums.astype(float), None

        return jax.lax.scan(block, jnp.zeros(3), (observations.x, observations.weight))[0]

    def put(s: Array, sums: Array) -> Array:
        own = one(jax.tree.map(lambda a: a[s], mixtures))
        return jax.lax.dynamic_update_index_in_dim(sums, own, s, 0)

    return jax.lax.fori_loop(0, count, put, jnp.zeros((mixtures.weights.shape[0], 3)))
