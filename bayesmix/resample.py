"""Many data sets like this one, and the loop run on each, by the program that fitted the first.

A replicate is made from its key, in the blocks and units of the original data, when its turn comes, so that memory does
not grow with their number:

    weighted        the same rows with weights from a flat Dirichlet: Gamma(weight), scaled to the same total
    nonparametric   the same rows, each as often as it is drawn with replacement
    parametric      as many rows drawn from a mixture
    leave_one_out   one observation of a row less; its key is the row

A weight of three and three copies of a row give replicates of the same law.

References:
    Rubin (1981), The Bayesian bootstrap. Newton & Raftery (1994), Approximate Bayesian inference with the weighted
    likelihood bootstrap. O'Hagan, Murphy, Scrucca & Gormley (2019), Investigation of parameter uncertainty in
    clustering using a Gaussian mixture model via jackknife, bootstrap and weighted likelihood bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmix import density
from bayesmix.acceleration import pays
from bayesmix.climb import advance, suited
from bayesmix.devices import double_precision, lapack_on_one_thread
from bayesmix.drive import begin, remember
from bayesmix.initialize import Start
from bayesmix.inputs import cores
from bayesmix.interrupts import Patience, patient
from bayesmix.loop import Options, State
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations, observe
from bayesmix.packing import Layout, Packed
from bayesmix.problem import Problem
from bayesmix.progress import Progress
from bayesmix.spurious import suspect
from bayesmix.statistics import EVERY
from bayesmix.status import CODE
from bayesmix.units import Rows
from bayesmix.verdict import Verdict, best_of_each, verdict

__all__ = ["RESAMPLE", "Refits", "refit"]

_SAVED = 5  # passes of a replicate that acceleration would save, at least: it starts near its optimum
_Drawn = tuple[Rows | np.ndarray, np.ndarray]  # points in loop units, and their weights
_STEPS = 10_000  # of a replicate, at most
_BATCH = 32  # replicates that a thread takes at a time: the progress bar moves by as many


def _weighted(words: np.ndarray, problem: Problem, source: GaussianMixture) -> _Drawn:
    drawn = np.random.default_rng(words).standard_gamma(problem.w)
    return problem.x, drawn * (problem.w.sum() / drawn.sum())


def _nonparametric(words: np.ndarray, problem: Problem, source: GaussianMixture) -> _Drawn:
    total = problem.w.sum()
    times = np.random.default_rng(words).multinomial(round(total), problem.w / total)
    return problem.x, times.astype(np.float64)


def _parametric(words: np.ndarray, problem: Problem, source: GaussianMixture) -> _Drawn:
    n = round(problem.w.sum())
    x, _ = density.simulate_numbers(source, np.random.default_rng(words), n)
    return x.astype(problem.x.dtype), np.ones(n)


def _leave_one_out(words: np.ndarray, problem: Problem, source: GaussianMixture) -> _Drawn:
    weight = problem.w.astype(np.float64)
    weight[words[1]] -= 1
    return problem.x, weight


RESAMPLE: dict[str, Callable[[np.ndarray, Problem, GaussianMixture], _Drawn]] = {
    "weighted": _weighted,
    "nonparametric": _nonparametric,
    "parametric": _parametric,
    "leave_one_out": _leave_one_out,
}


class _End(NamedTuple):
    """What is kept of a state."""

    mixture: GaussianMixture
    objective: Any
    moments: Any
    collapsed: Any
    code: Any
    step: Any


def _run(
    replicates: Iterable[tuple[Observations, np.ndarray]],
    limit: Any,
    terms: Packed,
    layout: Layout,
    options: Options,
) -> _End:
    """Each start, a row, on the data of its replicate, a call each of one program: (replicates, starts, ...)."""
    ends = []
    for data, rows in replicates:
        with double_precision():
            some = [
                advance(rows[s : s + 1], limit, data, terms, layout, False, options) for s in range(len(rows))
            ]
            # Waited for, so that no more data are held than each thread's own.
            ends.append(_kept(layout.restored(np.concatenate(some))))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *ends)


def _kept(state: State) -> _End:
    statistics = state.statistics
    return _End(
        state.mixture, statistics.objective, statistics.moments, state.collapsed, state.code, state.step
    )


class Refits(NamedTuple):
    """The best start of each replicate: its mixture in loop units, and how it ended."""

    mixture: GaussianMixture  # leaves (replicates, ...)
    objective: np.ndarray
    clean: np.ndarray
    converged: np.ndarray
    steps: np.ndarray


def refit(
    problem: Problem,
    kind: str,
    keys: np.ndarray,
    starts: GaussianMixture,
    options: Options,
    *,
    source: GaussianMixture,
    title: str = "replicates",
    partial_on_interrupt: bool = False,
) -> Refits:
    """Run the loop on each replicate, and judge where it ended.

    With `partial_on_interrupt`, after Ctrl-C the first replicates, as many as are finished.

    Args:
        problem: the data.
        kind: a row of `RESAMPLE`.
        keys: (replicates, 2) key data.
        starts: mixtures in loop units, leaves (replicates, starts, ...), or (1, starts, ...) for all replicates.
        options: of the loop.
        source: what "parametric" draws from, in loop units.
        title: of the progress bar.
        partial_on_interrupt: whether fewer replicates than keys are of use.

    Raises:
        KeyboardInterrupt: Ctrl-C where they are not, or before any is finished, or twice.
    """
    problem = problem._replace(x=np.asarray(problem.x))  # every replicate asks for all of them
    same, count = np.shape(starts.weights)[0] == 1, np.shape(starts.weights)[1]
    first = begin([Start(jax.tree.map(itemgetter((0, 0)), starts))], options)
    first = first._replace(trace=first.trace[:, :4])  # that nobody looks at
    work = len(keys) * count * _SAVED * problem.observations.size
    if problem.n_components > 1 and pays(work * first.statistics.moments[0].size):
        first = remember(first)
    slices = [np.arange(i, min(i + _BATCH, len(keys))) for i in range(0, len(keys), _BATCH)]
    layout = Layout.of(first)
    blank = layout.rows(first)
    with double_precision():  # handed over once: with each call it would take longer than the call itself
        limit, terms = jax.device_put((np.full(1, _STEPS), Packed.by_host((1.0, problem.rules))))
        known = replace(problem.observations, x=jax.device_put(problem.observations.x))

    def replicate(row: int) -> tuple[Observations, np.ndarray]:
        drawn, weight = RESAMPLE[kind](keys[row], problem, source)
        if drawn is problem.x:
            data = observe(drawn, weight, problem.structure, known, problem.told, problem.seen)
        else:
            data = observe(drawn, weight, problem.structure)
        rows = np.repeat(blank, count, axis=0)
        places = jax.tree.leaves(layout.views(rows).mixture)
        for place, values in zip(places, jax.tree.leaves(starts), strict=True):
            place[...] = values[0 if same else row]
        return data, rows

    def batch(rows: np.ndarray, options: Options) -> tuple[np.ndarray, _End]:
        own = suited(options, first, problem.observations)
        return rows, _run(map(replicate, rows.tolist()), limit, terms, layout, own)

    ends: list[_End] = []
    joined: _End | None = None
    finished = len(keys)
    with (
        Progress(title, "data sets", len(keys)) as bar,
        patient() as patience,
        lapack_on_one_thread(problem.x.shape[1]),
    ):
        try:
            for _, end in _each(batch, slices, options, bar, patience):
                ends.append(end)
            joined = _joined(ends)
            thin = np.flatnonzero((joined.code == CODE["thin"]).any(axis=1))
            slices = [thin[i : i + _BATCH] for i in range(0, len(thin), _BATCH)]
            # Too thin for raw moments: again, in whitened coordinates.
            for rows, again in _each(batch, slices, options._replace(whitened=EVERY), bar, patience):
                for old, new in zip(jax.tree.leaves(joined), jax.tree.leaves(again)):
                    old[rows] = new
        except KeyboardInterrupt:
            if patience.again or not partial_on_interrupt or not ends:
                raise
            joined = _joined(ends) if joined is None else joined
            still = (joined.code == CODE["thin"]).any(axis=1)
            finished = int(np.argmax(still)) if still.any() else len(still)
            if not finished:
                raise
    return _best(problem, jax.tree.map(lambda a: a[:finished], joined))


def _each(
    batch: Callable, slices: list[np.ndarray], options: Options, bar: Any, patience: Patience
) -> Iterator[tuple[np.ndarray, _End]]:
    """The batches on as many threads as there are cores, in order."""

    def step(rows: np.ndarray) -> tuple[np.ndarray, _End]:
        patience.check()
        return batch(rows, options)

    with ThreadPoolExecutor(cores()) as pool:
        for part in (slices[:1], slices[1:]):  # the first by itself, lest two threads compile one program
            for rows, ends in pool.map(step, part):
                bar.update(len(rows))
                yield rows, ends


def _joined(ends: list[_End]) -> _End:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *ends)


def _best(problem: Problem, ends: _End) -> Refits:
    """The best start of each replicate."""

    def judge(b: int, s: int) -> Verdict:
        mixture = jax.tree.map(lambda a: a[b, s], ends.mixture) if suspects[b, s] else None
        return verdict(problem, int(ends.code[b, s]), mixture, ends.collapsed[b, s], count[b, s])

    count = ends.moments[..., 0]
    suspects = suspect(ends.mixture, count, problem.grid)
    replicates, starts = ends.code.shape
    rows = np.arange(replicates)
    verdicts = [[judge(b, s) for s in range(starts)] for b in rows]
    clean, converged = np.array([[(v.clean, v.converged) for v in row] for row in verdicts]).transpose(
        2, 0, 1
    )
    flat = best_of_each(ends.objective.ravel(), clean.ravel(), np.repeat(rows, starts), replicates)
    chosen = flat - rows * starts
    mixture = jax.tree.map(lambda a: a[rows, chosen], ends.mixture)
    return Refits(mixture, *(part[rows, chosen] for part in (ends.objective, clean, converged, ends.step)))
