"""Driving the loop from the host: starts become states, and states are taken as far as they may go.

A limited number of steps a call lets the host show progress, be interrupted, and see to what is rare outside
compiled code: an emptied cluster of k-means, a cluster that became too thin for raw moments.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmix.acceleration import blank, pays
from bayesmix.blocks import chunks_of
from bayesmix.climb import advance, suited
from bayesmix.devices import double_precision, lapack_on_one_thread
from bayesmix.initialize import Start
from bayesmix.loop import Options, Rules, State
from bayesmix.mixture import GaussianMixture
from bayesmix.mstep import thin_clusters
from bayesmix.observations import Observations
from bayesmix.packing import Layout, Packed
from bayesmix.progress import Progress
from bayesmix.seeds import squared_distances
from bayesmix.statistics import EVERY, Statistics
from bayesmix.status import CODE
from bayesmix.threads import advance_by_parts, assigned_of, parts_of
from bayesmix.units import Floor

__all__ = ["Path", "begin", "remember", "run"]

_CAPACITY = 2048  # steps a call at most; the length of the trace that the device keeps
_DRAWN = 256  # of rows that draw, which keep the moments of every step too
_FIRST = 16  # steps of the first call, or those of so many products in all, which take some 50 milliseconds
_QUICK = 5e8
# What EM's own steps from a start are counted as, or as few where its means are all so many deviations apart.
_PASSES, _FEW, _APART = 100, 10, 4
_STRETCH = 2**16  # points, of which the farthest is looked for at once


def begin(starts: Sequence[Start], options: Options, seeds: np.ndarray | None = None) -> State:
    """The states of some starts, stacked; `seeds` (starts, 2) is key data for rows that draw."""
    draws = options.responsibilities.startswith("sampled")

    def state(start: Start, seed: Any) -> State:
        mixture = start.mixture
        k, d, row = mixture.n_components, mixture.n_features, mixture.covariance.row
        statistics = start.statistics
        if statistics is None:
            width = row.n_moments(d)
            second = np.zeros_like(mixture.covariance.values) if row.shared else None
            statistics = Statistics(np.zeros((k, width)), np.float64(-np.inf), second)
        capacity = max(16, min(_DRAWN, 2**24 // statistics.moments.size)) if draws else _CAPACITY
        return State(
            mixture=mixture,
            statistics=statistics,
            skip=np.bool_(start.statistics is None),
            step=np.int64(0),
            gain=np.float64(np.nan),
            calm=np.int64(0),
            code=np.int64(0),
            collapsed=np.zeros(k, bool),
            tolerant=np.bool_(False) if options.relocate else None,
            key=seed,
            redraws=np.int64(0) if draws else None,
            failed=np.int64(0) if draws else None,
            best=(mixture, np.float64(-np.inf)) if draws else None,
            trace=np.zeros(capacity + 1),
            chain=np.zeros((capacity + 1, *statistics.moments.shape)) if draws else None,
            filled=np.int64(0),
        )

    states = [state(start, None if seeds is None else seeds[i]) for i, start in enumerate(starts)]
    return jax.tree.map(lambda *leaves: np.array(leaves), *states)


class Path(NamedTuple):
    """Where `run` came to: the states, and per start the objectives (and moments) of all its steps."""

    states: State
    traces: list[np.ndarray]
    chains: list[np.ndarray]
    whitened: float  # what of `Options` its moments came to follow
    verdicts: Any = None  # of all starts, where they have been passed

    def mixture(self, s: int) -> GaussianMixture:
        """The mixture of start s, in loop units."""
        return jax.tree.map(lambda a: a[s], self.states.mixture)


def run(
    states: State,
    limits: np.ndarray,
    observations: Observations,
    rules: Rules,
    options: Options,
    *,
    beta: float = 1.0,
    title: str = "",
    accelerate: bool | None = False,
    most: int | None = None,
) -> Path:
    """Take each start up to limits[s] steps further, with a progress bar where that takes over two seconds.

    With `accelerate` None, from where the steps that are likely still to come cost as much as compiling acceleration,
    of `most` in all where a start is to be taken further later.
    """
    sampled = options.responsibilities.startswith("sampled")
    ends_itself = float(rules.tol) > 0 and not (sampled or options.batches)
    options = suited(options._replace(apart=ends_itself), states, observations)
    ends = states.step + limits
    till = ends if most is None else most
    each = observations.size * states.statistics.moments[0].size
    moved = {}
    decide = accelerate is None and pays(_PASSES * len(ends) * each)
    expected = _passes(states.mixture) if decide else np.zeros_like(states.step)
    capacity = states.trace.shape[1] - 1
    traces: list[list[np.ndarray]] = [[] for _ in ends]
    chains: list[list[np.ndarray]] = [[] for _ in ends]
    chunk = int(np.clip(_QUICK // (each * len(ends)), _FIRST, capacity))
    parts = [observations] if options.batches else parts_of(observations, each)
    terms = Packed.by_host((beta, rules))  # where there are threads, these pack their own
    with double_precision():  # handed over once, where there will be more calls than one or two
        if len(parts) > 1:
            parts = jax.device_put(parts)
        elif chunk < capacity:
            parts, terms = jax.device_put((parts, terms))
    assigned = assigned_of(parts, options, states)
    with (
        lapack_on_one_thread(states.mixture.n_features if len(parts) > 1 else 1),
        ThreadPoolExecutor(len(parts)) as pool,
        Progress(title, "steps") as bar,
    ):
        while ((states.code == 0) & ((states.step < ends) | states.skip)).any():
            before = states.step.sum()
            clock = time.perf_counter()
            with double_precision():
                budget = np.where(states.code == 0, np.minimum(ends - states.step, min(chunk, capacity)), 0)
                # Of a run whose end is not in sight, about as many steps are to come as it has taken.
                ahead = np.minimum(np.maximum(states.step, expected), till - states.step)
                likely = int(ahead[budget > 0].sum())
                if states.memory is None and (pays(likely * each) if accelerate is None else accelerate):
                    states = remember(states)
                if len(parts) == 1:
                    states = _one_by_one(states, budget, parts[0], terms, options)
                else:
                    states = advance_by_parts(states, budget, parts, beta, rules, options, pool, assigned)
                    states = jax.tree.map(np.array, states)
            seconds = time.perf_counter() - clock
            done = int(states.step.sum() - before)
            bar.update(done)
            chunk = int(np.clip(chunk * 0.5 / max(seconds, 1e-3), 4, capacity))
            for s, filled in enumerate(states.filled):
                traces[s].append(states.trace[s, :filled])
                if states.chain is not None:
                    chains[s].append(states.chain[s, :filled])
            if (states.code == CODE["thin"]).any():
                options = suited(_careful(options, states, rules.floor, observations), states, observations)
                assigned = assigned_of(parts, options, states)
                states = states._replace(code=np.where(states.code == CODE["thin"], 0, states.code))
            for s in np.flatnonzero(states.code == CODE["empty"]).tolist():
                moved[s] = _relocate(states, s, observations, moved.get(s))
    return Path(
        states,
        [np.concatenate(t) if t else np.zeros(0) for t in traces],
        [np.concatenate(c) if c else np.zeros(0) for c in chains],
        options.whitened,
    )


def _careful(options: Options, states: State, floor: Floor, observations: Observations) -> Options:
    """Whitened moments for as many clusters as are thin, up to the next power of two; for all, where those are many."""
    mixture, storage = states.mixture, states.mixture.covariance.storage
    k, d = mixture.means.shape[1:]
    thin = thin_clusters(mixture.means, storage.cholesky(mixture.covariance.values), floor, storage)
    found = (thin & (states.statistics.moments[..., 0] > d + 1))[states.code == CODE["thin"]]
    count = max(1 << int(found.sum(axis=-1).max() - 1).bit_length(), 2 * options.whitened)
    apart = observations.x.dtype == np.float64 and 2 * count <= k and not mixture.covariance.row.shared
    return options._replace(whitened=count if apart else EVERY)


def _one_by_one(
    states: State, budget: np.ndarray, observations: Observations, terms: Packed, options: Options
) -> State:
    """`advance`, each start in a call of its own: one program serves any number of them, and compiles in less time."""
    states = states._replace(filled=np.zeros_like(states.filled))
    layout = Layout.of(states)
    rows = layout.rows(states)
    going = np.flatnonzero((states.code == 0) & ((budget > 0) | states.skip))
    ends = [
        advance(rows[s : s + 1], budget[s : s + 1], observations, terms, layout, False, options)
        for s in going.tolist()
    ]
    for s, end in zip(going, ends, strict=True):
        rows[s] = np.asarray(end)[0]
    return layout.restored(rows)


def remember(states: State) -> State:
    """Stacked states, along one axis or more, that accelerate from their next step; what they remember is a view."""
    lead = states.code.shape
    memory = blank(jax.tree.map(lambda a: a[(0,) * len(lead)], states.mixture))

    def for_all(a: Any) -> np.ndarray:  # `np.broadcast_to`, in a tenth of the time
        a = np.asarray(a)
        return np.ndarray((*lead, *a.shape), a.dtype, a, strides=(0,) * len(lead) + a.strides)

    return states._replace(memory=jax.tree.map(for_all, memory))


def _passes(mixture: GaussianMixture) -> np.ndarray:
    """How many steps are expected of each start (s,)."""
    means, values = mixture.means, mixture.covariance.values
    variances: Any = mixture.covariance.storage.diagonal(values)
    pooled = (mixture.weights[..., None] * variances).sum(axis=1)
    y = means / np.sqrt(np.where(pooled > 0, pooled, np.inf))[:, None]
    lengths = (y * y).sum(axis=-1)
    squared = lengths[:, :, None] + lengths[:, None] - 2 * y @ np.swapaxes(y, 1, 2)
    away = squared[:, ~np.eye(means.shape[1], dtype=bool)].min(axis=1, initial=np.inf)
    return np.where(away < _APART**2, _PASSES, _FEW)


def _relocate(
    states: State, s: int, observations: Observations, before: tuple[int, np.ndarray] | None
) -> tuple[int, np.ndarray]:
    """Move the emptied clusters of k-means to the points farthest from their own centres, one each.

    Where no point is away from its centre, or a cluster that was moved onto one does not hold it, as rounding makes
    its distance from the other centre the same, there are fewer distinct rows than clusters, and they stay empty.

    Returns:
        At which step clusters were moved, and which; this is `before` when any are empty again.
    """
    means = states.mixture.means[s].copy()
    empty = np.flatnonzero(states.statistics.moments[s, :, 0] <= 0)
    step = int(states.step[s])
    in_vain = before is not None and before[0] == step and np.isin(before[1], empty).any()
    states.tolerant[s] |= in_vain
    for k in () if in_vain else empty:
        occupied = np.setdiff1d(np.arange(means.shape[0]), empty[np.searchsorted(empty, k) :])
        squared, point = _farthest(observations, means[occupied])
        if squared <= 0:
            states.tolerant[s] = True
            break
        means[k] = point
    states.mixture.means[s] = means
    states.code[s], states.skip[s] = 0, True
    return step, empty


def _farthest(observations: Observations, means: np.ndarray) -> tuple[float, np.ndarray]:
    """The point farthest from the nearest of some means, the first of several, and its squared distance."""
    x, weight = np.asarray(observations.x), np.asarray(observations.weight)
    count, d, size = x.shape
    most, point = -np.inf, x[0, :, 0]
    for part in chunks_of(count, max(1, _STRETCH // size)):
        points = np.moveaxis(x[part], 1, -1).reshape(-1, d)
        squared = np.where(weight[part].ravel() > 0, squared_distances(points, means.astype(x.dtype)), 0)
        farthest = int(np.argmax(squared))
        if squared[farthest] > most:
            most, point = squared[farthest], points[farthest]
    return most, point
