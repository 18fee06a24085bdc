"""The methods of `fit` as drivers of the one loop: plain (soft, hard), annealed, stochastic, stochastic
approximation, and online.

Each takes starts to a `Path`: the state that every start ended in, with all its objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import jax
import numpy as np

from bayesmix.drive import Path, begin, run
from bayesmix.initialize import Start
from bayesmix.keys import as_generator, key_data
from bayesmix.labels import match_moments
from bayesmix.loop import Options, State
from bayesmix.observations import batches_of
from bayesmix.problem import Problem
from bayesmix.statistics import Statistics
from bayesmix.status import CODE
from bayesmix.verdict import best_start, judge_all

__all__ = ["METHODS", "Method", "batch_rows", "sampled"]


# What each start may cost, in products n k p, before only the best goes on; 20 steps at least. On a few
# thousand numbers that lets every start converge.
_SHORT_WORK = 3e8
# Of at most so many steps, the first round has five, and each other one as many as those before it. Who would not
# have caught up in so many is left out of it.
_CONVERGING, _ROUND, _REACH = 100, 5, 100

# Annealed EM: the inverse temperatures before the last, plain level, and the most steps of each. Which of two
# clusters takes the next split is a coin toss, so annealing draws several paths by default.
_LEVELS = tuple(float(beta) for beta in np.geomspace(0.15, 0.9, 12))
_LEVEL_STEPS = 300
_SPLIT = 0.02  # means nearer than this, in pooled standard deviations, are moved apart by as much

# Online EM: rows of a batch, at least, and steps by which the size of a step has decreased at the first one, since a
# start comes with statistics of all data.
_BATCH, _BEGUN = 1024, 10


def _plain(
    problem: Problem, starts: list[Start], copies: np.ndarray, options: Options, steps: int, key
) -> Path:
    """Every distinct start for a while, then the best until it has ended and is still the best.

    Where that while is too short to converge in, those leave it early that are far behind.
    """
    n, k, structure = problem.x.shape[0], problem.n_components, problem.structure
    features = starts[0].mixture.n_features * (1 if structure.shared else 1 + starts[0].mixture.n_features)
    short = int(max(20, _SHORT_WORK // (n * k * features)))
    distinct = copies == np.arange(len(starts))
    states = begin(starts, options)
    states = states._replace(skip=states.skip & distinct)
    several = distinct.sum() > 1
    short = short if several else steps
    goal = _ROUND if several and short <= _CONVERGING else short
    running, traces = distinct, [np.zeros(0)] * len(starts)
    while True:
        limits = np.where(running, np.maximum(min(goal, steps) - states.step, 0), 0)
        path = _climb(problem, states, limits, options, most=steps)
        traces = [np.concatenate(pair) for pair in zip(traces, path.traces)]
        path = path._replace(traces=traces)
        states, options = path.states, options._replace(whitened=path.whitened)
        verdicts = judge_all(problem, path, copies, relocate=options.relocate)
        winner = best_start(verdicts, path)
        if goal < min(short, steps):
            running, goal = running & _in_reach(traces, winner), min(2 * goal, short)
        elif states.code[winner] or states.step[winner] >= steps:
            return path._replace(verdicts=verdicts)
        else:
            running, goal = np.arange(len(starts)) == winner, steps


def _in_reach(traces: list[np.ndarray], winner: int) -> np.ndarray:
    """Which starts would be as far as the winner is in a hundred steps, at the pace of the later half of theirs."""
    reached = []
    for trace in traces:
        half = len(trace) // 2
        pace = (trace[-1] - trace[half]) / max(len(trace) - 1 - half, 1) if len(trace) else 0.0
        reached.append(trace[-1] + _REACH * pace if len(trace) else -np.inf)
    return np.array(reached) >= traces[winner][-1]


def _climb(
    problem: Problem,
    states: State,
    limits: np.ndarray,
    options: Options,
    *,
    beta: float = 1.0,
    title: str = "EM",
    most: int | None = None,
) -> Path:
    """Steps that climb, accelerated where the problem says so."""
    return run(
        states,
        limits,
        problem.observations,
        problem.rules,
        options,
        beta=beta,
        title=title,
        accelerate=problem.accelerate,
        most=most,
    )


def _annealed(
    problem: Problem, starts: list[Start], copies: np.ndarray, options: Options, steps: int, key
) -> Path:
    """Levels of rising β, coincident means split after each, then plain EM to convergence."""
    generator = as_generator(key)
    states = begin(starts, options)
    each = min(_LEVEL_STEPS, steps // (2 * len(_LEVELS)))  # half of the steps are for the last level
    for beta in _LEVELS:
        left = np.full(len(starts), each)
        path = _climb(problem, states, left, options, beta=beta, title="annealing")
        options = options._replace(whitened=path.whitened)
        states = _anew(path, _split(path, generator))
    return _climb(problem, states, steps - states.step, options)


def _anew(path: Path, means: np.ndarray) -> State:
    """The states made to begin again at other means."""
    states = path.states
    return states._replace(
        mixture=replace(states.mixture, means=means),
        skip=np.ones_like(states.skip),
        gain=np.full_like(states.gain, np.nan),
        calm=np.zeros_like(states.calm),
        code=np.where(states.code == CODE["converged"], 0, states.code),
    )


def _split(path: Path, generator: np.random.Generator) -> np.ndarray:
    """Means that coincide moved a little, in random directions: their common point is a saddle."""
    means = path.states.mixture.means.copy()
    for s in range(means.shape[0]):
        mixture = path.mixture(s)
        pooled = np.einsum("k,kij->ij", mixture.weights, mixture.covariances)
        deviations = np.sqrt(np.diag(pooled))
        apart = np.abs((means[s][:, None] - means[s]) / deviations).max(axis=-1)
        np.fill_diagonal(apart, np.inf)
        near = (apart < _SPLIT).any(axis=1)
        means[s] += _SPLIT * near[:, None] * generator.standard_normal(means[s].shape) * deviations
    return means


def sampled(problem: Problem) -> str:
    """The row of `statistics.RESPONSIBILITIES` that draws z: weights stand for so many draws each."""
    return "sampled" if (problem.w == 1).all() else "sampled_counts"


def _stochastic(
    problem: Problem, starts: list[Start], copies: np.ndarray, options: Options, steps: int, key
) -> Path:
    """A chain of draws from each start, then the mixture of the averaged statistics of its later half."""
    if not steps:
        return _plain(problem, starts, copies, options._replace(responsibilities="soft"), 0, key)
    options = options._replace(responsibilities=sampled(problem))
    seeds = key_data(key, len(starts))
    limits = np.full(len(starts), steps)
    chain = run(
        begin(starts, options, seeds), limits, problem.observations, problem.rules, options, title="draws"
    )
    ends = []
    for s, drawn in enumerate(chain.chains):
        later = drawn[len(drawn) // 2 :]
        second = chain.states.statistics.second
        average = _average(later, problem) if len(later) else chain.states.statistics.moments[s]
        statistics = Statistics(average, np.float64(-np.inf), None if second is None else second[s])
        ends.append(Start(chain.mixture(s), statistics))
    options = options._replace(responsibilities="soft", whitened=chain.whitened)
    rules = problem.rules._replace(tol=0.0)
    last = run(begin(ends, options), np.ones(len(ends), int), problem.observations, rules, options)
    code = np.where(chain.states.code == 0, CODE["averaged"], chain.states.code)
    return last._replace(
        states=last.states._replace(
            code=np.where(last.states.code == 0, code, last.states.code),
            step=chain.states.step,
            redraws=chain.states.redraws,
            best=chain.states.best,
        ),
        traces=[np.concatenate(pair) for pair in zip(chain.traces, last.traces)],
    )


def _approximating(
    problem: Problem, starts: list[Start], copies: np.ndarray, options: Options, steps: int, key
) -> Path:
    """Statistics that move towards each draw by a decreasing step; so they settle."""
    if not steps:
        return _plain(problem, starts, copies, options._replace(responsibilities="soft"), 0, key)
    options = options._replace(responsibilities=sampled(problem), decreasing=True)
    rules = problem.rules._replace(settle=steps // 10)
    seeds = key_data(key, len(starts))
    limits = np.full(len(starts), steps)
    path = run(begin(starts, options, seeds), limits, problem.observations, rules, options, title="draws")
    states = path.states
    return path._replace(
        states=states._replace(code=np.where(states.code == 0, CODE["settled"], states.code))
    )


def _online(
    problem: Problem, starts: list[Start], copies: np.ndarray, options: Options, steps: int, key
) -> Path:
    """A step with all data, then statistics that move towards a batch's by a decreasing step; all data once more."""
    if not steps:
        return _plain(problem, starts, copies, options, 0, key)
    every, distinct = problem.observations, copies == np.arange(len(starts))
    states = begin(starts, options)
    states = states._replace(skip=states.skip & distinct)
    first = np.where(distinct & ~states.skip, min(1, steps), 0)
    begun = run(states, first, every, problem.rules, options)
    size = problem.batch or batch_rows(problem)
    order = as_generator(key).permutation(len(problem.x))
    given = None if problem.told is None else problem.told[order]
    batches, count = batches_of(problem.x.taken(order), problem.w[order], problem.structure, size, given)
    rules = problem.rules._replace(settle=-_BEGUN, batches=np.int64(count))
    # Nothing has converged after a step, and a cluster without points in some batches is no empty one.
    own = options._replace(decreasing=True, batches=True, relocate=False, whitened=begun.whitened)
    states = begun.states
    states = states._replace(code=np.where(states.code == CODE["converged"], 0, states.code), tolerant=None)
    limits = np.where(distinct, np.maximum(steps - 1 - states.step, 0), 0)
    path = run(states, limits, batches, rules, own, title="batches")
    ends = [
        Start(path.mixture(s), jax.tree.map(itemgetter(s), path.states.statistics))
        for s in range(len(starts))
    ]
    states = begin(ends, options)._replace(code=path.states.code, step=path.states.step)
    limits = np.where(distinct, np.minimum(steps - states.step, 1), 0)
    last = run(states, limits, every, problem.rules, options._replace(whitened=path.whitened))
    code = np.where(last.states.code <= CODE["converged"], CODE["online"], last.states.code)
    traces = [np.concatenate(each) for each in zip(begun.traces, path.traces, last.traces)]
    return last._replace(states=last.states._replace(code=code), traces=traces)


def batch_rows(problem: Problem) -> int:
    """Rows of a step of online EM: a thousand, or as many as the mixture has numbers."""
    numbers = problem.n_components * problem.structure.n_moments(problem.x.shape[1])
    return max(_BATCH, 1 << int(numbers - 1).bit_length())


def _average(moments: np.ndarray, problem: Problem) -> np.ndarray:
    """The mean of moments (steps, k, p), each step's clusters matched to the running mean."""
    average, d, may = moments[0], problem.x.shape[1], problem.may
    for i, drawn in enumerate(moments[1:], start=2):
        average = average + (drawn[match_moments(drawn, average, d, may)] - average) / i
    return average


class Method(NamedTuple):
    """A driver, its row of `statistics.RESPONSIBILITIES`, defaults, and whether runs from one start differ."""

    engine: Callable[..., Path]
    responsibilities: str
    n_starts: int
    max_steps: int
    draws: bool


METHODS: dict[str, Method] = {
    "soft": Method(_plain, "soft", 10, 10_000, False),
    "hard": Method(_plain, "hard", 10, 1_000, False),
    "stochastic": Method(_stochastic, "sampled", 1, 300, True),
    "stochastic_approximation": Method(_approximating, "sampled", 1, 2_000, True),
    "online": Method(_online, "soft", 4, 1_000, False),
    "annealed": Method(_annealed, "soft", 4, 10_000, True),
}
