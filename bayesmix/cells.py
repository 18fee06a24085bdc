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
from typing import Any

import numpy as np

from bayesmix.checkpoints import Checkpoint, restored, stored
from bayesmix.contest import pending, split_smaller
from bayesmix.devices import lapack_on_one_thread
from bayesmix.groups import FIRST, Cell, Group, advance_some, begin, compile_ahead, group_cells
from bayesmix.inputs import Points, cores
from bayesmix.interrupts import Patience, patient
from bayesmix.loop import Options
from bayesmix.outcomes import Best, CellFit, best_of, report, sum_ahead
from bayesmix.partitions import Starts
from bayesmix.statistics import EVERY

__all__ = ["fit_cells"]

_MORE = 200  # steps a call after that
_LEAST = 4  # starts of a call, where there are enough for every core
_RESCUES = 10  # rounds in which cells below those with a cluster less start from them


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
    given: np.ndarray | None = None,
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
        given: known clusters of the rows (n,), -1 where they are not.

    Raises:
        KeyboardInterrupt: Ctrl-C before any cell ended, or twice.
    """
    groups = group_cells(x, weight, cells, n_starts, hold, tol, accelerate, given)
    kept = None if checkpoint is None else checkpoint.read()
    # Groups wait for each other in a checkpoint only, which has all of them at rest but one.
    abreast = len(groups) if checkpoint is None else 1
    interrupted = False
    with patient() as patience, lapack_on_one_thread(x.values.shape[1]):
        run = _Run(groups, Options("soft", hold, padded=True), max_steps, progress, checkpoint, patience)
        try:
            with run.pool, ThreadPoolExecutor(abreast) as climbers:
                if kept is None:
                    for group in groups:  # the longest first: while it is compiled the next is traced
                        run.program(group, run.raw)
                ahead, partitions, ways = run.pool.submit(sum_ahead, groups[0]), starts.result(), []
                for i, group in enumerate(groups):
                    begin(group, partitions)
                    if kept is not None:
                        _restore(group, i, kept)
                    ways.append(climbers.submit(run.climb, group, ahead))
                best = [way.result() for way in ways]
        except KeyboardInterrupt:
            if patience.again or not run.told:
                raise
            interrupted = True
            best = [best_of(group, groups[0].problem) for group in groups]
        if checkpoint is not None and not interrupted:
            checkpoint.write(lambda: _stored(groups), now=True)
    return report(groups, best, run.told, max_steps), interrupted


class _Run:
    """Groups on their way: each climbs in a thread of its own, and the batches of all share a pool."""

    def __init__(
        self,
        groups: list[Group],
        raw: Options,
        max_steps: int,
        progress: Callable[[Cell], None],
        checkpoint: Checkpoint | None,
        patience: Patience,
    ) -> None:
        self.groups, self.raw, self.max_steps, self.progress = groups, raw, max_steps, progress
        self.checkpoint, self.patience = checkpoint, patience
        self.told: set[Cell] = set()  # which cells have ended
        self.pool = ThreadPoolExecutor(cores())
        self._compiled: dict[Any, Future] = {}
        self._lock = threading.Lock()

    def program(self, group: Group, options: Options) -> Future:
        """The one that a group's starts need; its first user has it compiled, and the others wait for that."""
        key = group.problem.structure.storage, options
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self.pool.submit(compile_ahead, group, options)
            return self._compiled[key]

    def climb(self, group: Group, ahead: Future) -> Best:
        """From what is done of a group to its end."""
        if not group.done:
            self._begin(group, np.arange(len(group.of)))
        self._finish(group)
        while group.done <= _RESCUES and len(added := split_smaller(group)):
            self._begin(group, added)
            self._finish(group)
        ahead.result()
        return best_of(group, self.groups[0].problem)

    def _begin(self, group: Group, chosen: np.ndarray) -> None:
        self._take(group, chosen, FIRST)
        group.done += 1
        self._keep()

    def _finish(self, group: Group) -> None:
        """Take on what goes on until nothing does."""
        while True:
            goes_on = pending(group, self.max_steps)
            still = {group.cells[group.of[s]] for s in goes_on}
            with self._lock:
                for cell in group.cells:
                    if cell not in still and cell not in self.told:
                        self.told.add(cell)
                        self.progress(cell)
            if not len(goes_on):
                return
            self._take(group, goes_on, _MORE)
            self._keep()

    def _take(self, group: Group, chosen: np.ndarray, steps: int) -> None:
        """Some starts of a group so many steps further, batch by batch."""
        batches = []
        for options in (self.raw, self.raw._replace(whitened=EVERY)):
            some = chosen[group.whitened[chosen] == (options.whitened > 0)]
            if len(some):
                self.program(group, options).result()
            shares = max(-(-len(some) // group.batch), min(cores(), len(some) // _LEAST))
            parts = np.array_split(some, max(shares, 1))
            batches += [
                self.pool.submit(self._step, group, part, steps, options) for part in parts if len(part)
            ]
        for batch in batches:
            batch.result()

    def _step(self, group: Group, chosen: np.ndarray, steps: int, options: Options) -> None:
        self.patience.check()
        advance_some(group, chosen, steps, options)

    def _keep(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.write(lambda: _stored(self.groups))


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
