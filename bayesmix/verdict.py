"""The verdict on a run: is it clean, which run is best, and the sentence that a user reads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bayesmix.covariance import Covariance
from bayesmix.drive import Path
from bayesmix.mixture import GaussianMixture
from bayesmix.problem import Problem
from bayesmix.results import STATUS
from bayesmix.units import spurious_clusters

__all__ = ["Verdict", "agreeing", "best_start", "judge", "mixture_at", "verdict"]

_CODE = {name: code for name, (code, _) in STATUS.items()}
_NAME = {code: name for name, code in _CODE.items()}
_AGREE = 0.1  # nats within which two runs count as one optimum


class Verdict(NamedTuple):
    """A name of `STATUS`, and a reason per cluster for those that are not clean."""

    name: str
    reasons: Mapping[int, str] = MappingProxyType({})

    @property
    def clean(self) -> bool:
        return self.name in ("running", "converged", "averaged", "settled", "few_rows")


def mixture_at(path: Path, s: int) -> GaussianMixture:
    """The mixture of start s, in loop units."""
    mixture = path.states.mixture
    return GaussianMixture(
        mixture.weights[s],
        mixture.means[s],
        Covariance(mixture.covariance.values[s], mixture.structure),
    )


def judge(problem: Problem, path: Path, s: int, *, relocate: bool = False) -> Verdict:
    """Whether start s is clean; k-means (`relocate`) may shrink to nothing, which is its best."""
    code, states = int(path.states.code[s]), path.states
    if relocate and code != _CODE["non_finite"]:
        return Verdict("few_rows" if states.tolerant[s] else _NAME[code])
    return verdict(
        problem, code, mixture_at(path, s), states.collapsed[s], states.statistics.moments[s, :, 0]
    )


def verdict(
    problem: Problem, code: int, mixture: GaussianMixture, collapsed: np.ndarray, count: np.ndarray
) -> Verdict:
    """Whether a run is clean, from its code, its mixture in loop units, which clusters the floor held, and counts."""
    if code == _CODE["non_finite"]:
        return Verdict("non_finite")
    if problem.rules.penalty is not None:  # the posterior is bounded
        return Verdict(_NAME[code])
    if problem.units.degenerate:
        return Verdict("degenerate")
    held = np.flatnonzero(collapsed)
    if held.size or code == _CODE["collapsed"]:
        return Verdict("collapsed", dict.fromkeys(held.tolist(), ""))
    reasons = spurious_clusters(mixture, count, problem.grid)
    return Verdict("spurious", reasons) if reasons else Verdict(_NAME[code])


def best_start(verdicts: list[Verdict], path: Path) -> int:
    """The start with the largest objective among the clean ones, or among all where none is clean.

    Of starts that are equal up to rounding the first wins, so that rounding does not choose the labels.
    """
    objective = np.where(
        np.isnan(path.states.statistics.objective), -np.inf, path.states.statistics.objective
    )
    clean = np.array([v.clean for v in verdicts])
    usable = clean if clean.any() else np.array([v.name != "non_finite" for v in verdicts])
    objective = np.where(usable | ~usable.any(), objective, -np.inf)
    return int(np.argmax(objective >= objective.max() - 1e-10 * abs(objective.max())))


def agreeing(path: Path, verdicts: list[Verdict], copies: np.ndarray, winner: int) -> int:
    """How many starts reached the winner's optimum, or are headed there by Aitken's extrapolation."""
    target = path.states.statistics.objective[winner] - _AGREE

    def limit(s: int) -> float:
        trace = path.traces[s][-3:]
        objective = float(path.states.statistics.objective[s])
        if path.states.code[s] or trace.size < 3 or not (gains := np.diff(trace))[0] > gains[1] > 0:
            return objective
        ratio = gains[1] / gains[0]
        return objective + gains[1] * ratio / (1 - ratio)

    same = [verdicts[s].clean == verdicts[winner].clean and limit(s) >= target for s in copies]
    return int(np.sum(same))
