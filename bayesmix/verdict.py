"""The verdict on a run: is it clean, and which run is best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bayesmix.drive import Path
from bayesmix.mixture import GaussianMixture
from bayesmix.problem import Problem
from bayesmix.spurious import spurious_clusters
from bayesmix.status import CODE, NAME, STATUS

__all__ = [
    "AGREE", "Verdict", "agreeing", "best_of_each", "best_start", "headed_for", "judge", "judge_all", "verdict",
]  # fmt: skip

_SHRANK = "shrank onto a point, line or plane, where the variance floor held it"
AGREE = 0.1  # nats within which two runs count as one optimum


class Verdict(NamedTuple):
    """A name of `STATUS`, and a reason per cluster for those that are not clean."""

    name: str
    reasons: Mapping[int, str] = {}

    @property
    def clean(self) -> bool:
        return STATUS[self.name].clean

    @property
    def converged(self) -> bool:
        return STATUS[self.name].converged


def judge(problem: Problem, path: Path, s: int, *, relocate: bool = False) -> Verdict:
    """Whether start s is clean; k-means (`relocate`) may shrink to nothing, which is its best."""
    code, states = int(path.states.code[s]), path.states
    if relocate and code != CODE["non_finite"]:
        return Verdict("few_rows" if states.tolerant is not None and states.tolerant[s] else NAME[code])
    return verdict(problem, code, path.mixture(s), states.collapsed[s], states.statistics.moments[s, :, 0])


def judge_all(problem: Problem, path: Path, copies: np.ndarray, *, relocate: bool = False) -> list[Verdict]:
    """Of each start, of which some are copies of others; those that have been passed already are not passed again."""
    if path.verdicts is not None:
        return path.verdicts
    known = {s: judge(problem, path, s, relocate=relocate) for s in set(copies.tolist())}
    return [known[s] for s in copies.tolist()]


def verdict(
    problem: Problem,
    code: int,
    mixture: GaussianMixture | None,
    collapsed: np.ndarray,
    count: np.ndarray,
) -> Verdict:
    """Whether a run is clean, from its code, its mixture in loop units, which clusters the floor held, and counts.

    Without a mixture it is known already that no cluster is spurious.
    """
    if code == CODE["non_finite"]:
        return Verdict("non_finite")
    if problem.rules.penalty is not None:  # the posterior is bounded
        return Verdict(NAME[code])
    if problem.units.degenerate and problem.rules.floor.asked is None:
        return Verdict("degenerate")
    held = np.flatnonzero(collapsed)
    if held.size or code == CODE["collapsed"]:
        if not held.size:
            return Verdict("collapsed", {int(np.argmin(count)): "was drawn too few points, again and again"})
        return Verdict(
            "collapsed", {c: _SHRANK if count[c] > 0 else "holds no points" for c in held.tolist()}
        )
    reasons = {} if mixture is None else spurious_clusters(mixture, count, problem.grid)
    return Verdict("spurious", reasons) if reasons else Verdict(NAME[code])


def best_of_each(objective: np.ndarray, clean: np.ndarray, of: np.ndarray, n: int) -> np.ndarray:
    """Of each of n groups the run with the largest objective among its clean ones, or among all where none is.

    Of runs that are equal up to rounding the first wins, so that rounding does not choose the labels. A group without
    runs has their number.
    """
    some = np.zeros(n, bool)
    some[of[clean]] = True
    ranked = np.where((clean | ~some[of]) & ~np.isnan(objective), objective, -np.inf)
    top = np.full(n, -np.inf)
    np.maximum.at(top, of, ranked)
    near = np.flatnonzero(ranked >= (top - 1e-10 * abs(top))[of])
    first = np.full(n, len(of))
    np.minimum.at(first, of[near], near)
    return first


def best_start(verdicts: list[Verdict], path: Path) -> int:
    """The best start of a path; one that left the finite numbers is the last resort."""
    clean = np.array([v.clean for v in verdicts])
    usable = clean if clean.any() else np.array([v.name != "non_finite" for v in verdicts])
    objective = path.states.statistics.objective
    return int(best_of_each(objective, usable, np.zeros(objective.size, int), 1)[0])


def headed_for(objective: np.ndarray, recent: np.ndarray) -> np.ndarray:
    """Where runs (s,) are headed by Aitken's extrapolation of their last three objectives (s, 3), NaN where ended."""
    first, second = np.diff(recent, axis=1).T
    rising = (first > second) & (second > 0)
    ratio = np.divide(second, first, out=np.zeros_like(second), where=rising)
    return objective + np.where(rising, second * ratio / (1 - ratio), 0)


def agreeing(path: Path, verdicts: list[Verdict], copies: np.ndarray, winner: int) -> int:
    """How many starts reached the winner's optimum, or are headed there."""
    objective, codes = path.states.statistics.objective, path.states.code
    none = np.full(3, np.nan)
    recent = [t[-3:] if t.size >= 3 and not code else none for t, code in zip(path.traces, codes)]
    near = headed_for(objective, np.array(recent)) >= objective[winner] - AGREE
    return sum(bool(near[s]) and verdicts[s].clean == verdicts[winner].clean for s in copies)
