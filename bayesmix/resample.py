"""Many data sets like this one, and the loop run on each: one compiled program.

A replicate is made inside the program from its key, in the blocks and units of the original data, so that memory does
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

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesmix import density
from bayesmix.acceleration import pays
from bayesmix.covariance import Structure
from bayesmix.drive import begin, remember
from bayesmix.initialize import Start
from bayesmix.inputs import cores, double_precision, points_last
from bayesmix.interrupts import Patience, patient
from bayesmix.loop import Options, Rules, State, climb, map_starts
from bayesmix.mixture import GaussianMixture
from bayesmix.problem import Problem
from bayesmix.results import CODE
from bayesmix.statistics import Observations
from bayesmix.verdict import Verdict, best, verdict

__all__ = ["RESAMPLE", "Refits", "refit", "stacked"]

_PASSES = 50  # of a replicate, on average
_BATCH = 32  # replicates a call: the progress bar moves by as many


def _weighted(key: Array, observations: Observations, source: GaussianMixture, n: int) -> Observations:
    weight = observations.weight
    drawn = jax.random.gamma(key, jnp.where(weight > 0, weight, 1)) * (weight > 0)
    return replace(observations, weight=drawn * (jnp.sum(weight) / jnp.sum(drawn)))


def _nonparametric(key: Array, observations: Observations, source: GaussianMixture, n: int) -> Observations:
    weight = observations.weight.reshape(-1)
    cumulative = jnp.cumsum(weight.astype(float))
    places = jax.random.uniform(key, (n,), cumulative.dtype) * cumulative[-1]
    rows = jnp.searchsorted(cumulative, places, side="right")
    rows = jnp.minimum(rows, jnp.max(jnp.where(weight > 0, jnp.arange(weight.size), 0)))
    counts = jnp.zeros_like(weight).at[rows].add(1)
    return replace(observations, weight=counts.reshape(observations.weight.shape))


def _parametric(key: Array, observations: Observations, source: GaussianMixture, n: int) -> Observations:
    blocks, d, size = observations.x.shape
    x, _ = density.simulate(source, key, n)
    padded = jnp.zeros((blocks * size, d)).at[:n].set(x).reshape(blocks, size, d)
    return replace(observations, x=jnp.moveaxis(padded, -1, 1).astype(observations.x.dtype))


def _leave_one_out(key: Array, observations: Observations, source: GaussianMixture, n: int) -> Observations:
    weight = observations.weight.reshape(-1)
    row = jax.random.key_data(key)[1]
    return replace(
        observations, weight=jnp.maximum(weight.at[row].add(-1), 0).reshape(observations.weight.shape)
    )


RESAMPLE: dict[str, Callable[[Array, Observations, GaussianMixture, int], Observations]] = {
    "weighted": _weighted,
    "nonparametric": _nonparametric,
    "parametric": _parametric,
    "leave_one_out": _leave_one_out,
}


def _second(observations: Observations, structure: Structure) -> Array:
    """The total second moment of weighted blocks, in storage (1, ...)."""
    d = observations.x.shape[1]

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        x, weight = block
        return total + structure.form.features(x)[1 + d :] @ weight, None

    zero = jnp.zeros(structure.form.size(d), observations.x.dtype)
    total, _ = jax.lax.scan(add, zero, (observations.x, observations.weight))
    return structure.form.second(total[None].astype(float), d)


class _End(NamedTuple):
    """What is kept of a state."""

    mixture: GaussianMixture
    objective: Any
    count: Any
    collapsed: Any
    code: Any
    step: Any


@partial(jax.jit, static_argnames=("kind", "n", "options"))
def _run(
    keys: Array,
    starts: State,
    limit: Array,
    observations: Observations,
    source: GaussianMixture,
    rules: Rules,
    kind: str,
    n: int,
    options: Options,
) -> _End:
    """Every start (replicates, starts, ...) on the replicate of its key."""
    structure = starts.mixture.covariance.row

    def one(pair: tuple[Array, State]) -> _End:
        words, states = pair
        drawn = RESAMPLE[kind](jax.random.wrap_key_data(words), observations, source, n)
        if structure.shared:
            drawn = replace(drawn, second=_second(drawn, structure))
        ends = map_starts(lambda s: climb(s, limit, drawn, jnp.asarray(1.0), rules, options), states)
        return _End(
            ends.mixture,
            ends.statistics.objective,
            ends.statistics.moments[..., 0],
            ends.collapsed,
            ends.code,
            ends.step,
        )

    return jax.lax.map(one, (keys, starts))


class Refits(NamedTuple):
    """The best start of each replicate: its mixture in loop units, and how it ended."""

    mixture: GaussianMixture  # leaves (replicates, ...)
    objective: np.ndarray
    names: np.ndarray  # of `STATUS`
    clean: np.ndarray
    steps: np.ndarray


def stacked(starts: Sequence[Sequence[Start]], options: Options) -> State:
    """The starts of each replicate, or those of all, as one state (replicates|1, starts, ...)."""
    each = [begin(own, options)._replace(trace=np.zeros((len(own), 1))) for own in starts]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def refit(
    problem: Problem,
    kind: str,
    keys: np.ndarray,
    starts: State,
    options: Options,
    *,
    source: GaussianMixture,
    max_steps: int = 10_000,
    title: str = "replicates",
    partial_on_interrupt: bool = False,
) -> Refits:
    """Run the loop on each replicate, and judge where it ended.

    With `partial_on_interrupt`, after Ctrl-C the first replicates, as many as are finished.

    Args:
        problem: the data.
        kind: a row of `RESAMPLE`.
        keys: (replicates, 2) key data.
        starts: `stacked`, of each replicate or once for all.
        options: of the loop.
        source: what "parametric" draws from, in loop units.
        max_steps: of each run.
        title: of the progress bar.
        partial_on_interrupt: whether fewer replicates than keys are of use.

    Raises:
        KeyboardInterrupt: Ctrl-C where they are not, or before any is finished, or twice.
    """
    from tqdm import tqdm

    n = round(problem.w.sum())
    observations = problem.observations
    if kind == "parametric":
        blank = np.zeros((n, problem.x.shape[1]), problem.x.dtype)
        size = observations.x.shape[-1]
        observations = Observations(points_last(blank, size), points_last(np.ones(n, blank.dtype), size))
    else:
        observations = replace(observations, second=None)
    work = len(keys) * starts.code.shape[1] * _PASSES * observations.weight.size
    if problem.n_components > 1 and pays(work * starts.statistics.moments[0, 0].size):
        starts = remember(starts)
    slices = [np.arange(i, min(i + _BATCH, len(keys))) for i in range(0, len(keys), _BATCH)]
    same = len(starts.code) == 1

    def batch(rows: np.ndarray, options: Options) -> tuple[np.ndarray, _End]:
        whole = np.resize(rows, min(_BATCH, len(keys)) if len(rows) < _BATCH else len(rows))
        states = jax.tree.map(lambda a: a[np.where(same, 0, whole)], starts)
        with double_precision():
            arguments = keys[whole], states, np.int64(max_steps), observations, source, problem.rules
            ends = _run(*arguments, kind=kind, n=n, options=options)
            return rows, jax.tree.map(lambda a: np.asarray(a)[: len(rows)], ends)

    with double_precision():
        observations = jax.device_put(observations)
    ends: list[_End] = []
    joined: _End | None = None
    finished = len(keys)
    with tqdm(desc=title, total=len(keys), delay=2, disable=None, leave=False) as bar, patient() as patience:
        try:
            for _, end in _each(batch, slices, options, bar, patience):
                ends.append(end)
            joined = _joined(ends)
            thin = np.flatnonzero((joined.code == CODE["thin"]).any(axis=1))
            slices = [thin[i : i + _BATCH] for i in range(0, len(thin), _BATCH)]
            # Too thin for raw moments: again, in whitened coordinates.
            for rows, again in _each(batch, slices, options._replace(whitened=True), bar, patience):
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
    """The batches on as many threads as there are cores, each a call of the same program; in order."""

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
        mixture = jax.tree.map(lambda a: a[b, s], ends.mixture)
        return verdict(problem, int(ends.code[b, s]), mixture, ends.collapsed[b, s], ends.count[b, s])

    replicates, starts = ends.code.shape
    rows = np.arange(replicates)
    verdicts = [[judge(b, s) for s in range(starts)] for b in rows]
    names = np.array([[v.name for v in row] for row in verdicts])
    clean = np.array([[v.clean for v in row] for row in verdicts])
    chosen = np.array([best(*pair) for pair in zip(ends.objective, clean)])
    mixture = jax.tree.map(lambda a: a[rows, chosen], ends.mixture)
    return Refits(mixture, *(part[rows, chosen] for part in (ends.objective, names, clean, ends.step)))
