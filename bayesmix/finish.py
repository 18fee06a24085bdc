"""A `Fit` of the runs of a problem: the best of them in the data's own units, with its verdict."""

from __future__ import annotations

import jax
import numpy as np

from bayesmix import density
from bayesmix.covariance import Covariance
from bayesmix.drive import Path
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import to_data_units
from bayesmix.prior import ConjugatePrior
from bayesmix.problem import Problem
from bayesmix.results import CODE, Fit
from bayesmix.verdict import agreeing, best_start, judge, sentence

__all__ = ["finished", "likelihoods"]

_REPORTED = 2**19  # rows at once


def likelihoods(
    mixture: GaussianMixture, points: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums of log density, largest log joint and entropy; and the most probable cluster of each row."""
    sums, labels = np.zeros(3), np.empty(len(points), np.int64)
    ends = np.linspace(0, len(points), 1 + -(-len(points) // _REPORTED), dtype=int)
    for part in map(slice, ends[:-1], ends[1:]):
        report = mixture._each(density.report, points[part], last=True)
        sums += report[:3].astype(np.float64) @ weight[part]
        labels[part] = report[3]
    return sums, labels


def finished(
    problem: Problem,
    path: Path,
    copies: np.ndarray,
    method: str,
    hold: tuple[str, ...],
    max_steps: int,
    relocate: bool,
    prior: ConjugatePrior | None,
) -> Fit:
    """The best run in the data's own units, with its verdict."""
    verdicts = [judge(problem, path, s, relocate=relocate) for s in copies]
    winner = best_start(verdicts, path)
    states, units = path.states, problem.units
    mixture = _outside(problem, path.mixture(winner))
    (total_log, top, entropy), labels = likelihoods(mixture, problem.points, problem.weight)
    total = float(problem.weight.sum())
    name, reasons = verdicts[winner]
    gain = float(states.gain[winner])
    name = "max_steps" if name == "running" else name
    k = problem.n_components
    best = None
    if states.best is not None:
        best = _outside(problem, jax.tree.map(lambda a: a[winner], states.best[0]))
    moved = 0.0 if prior is None else to_data_units(units, problem.structure, k)
    moved += units.log_volume * total
    return Fit(
        mixture=mixture,
        objective=path.traces[winner] + moved,
        log_likelihood=total_log,
        classification_log_likelihood=top,
        entropy=entropy,
        labels=labels,
        n_observations=total,
        method=method,
        n_steps=int(states.step[winner]),
        code=CODE[name],
        status=sentence(
            name,
            reasons,
            labels,
            max_steps=max_steps,
            gain=gain,
            columns=units.degenerate,
            structure=problem.structure.name,
            k=k,
        ),
        n_starts=len(copies),
        n_agree=agreeing(path, verdicts, copies, winner),
        n_spurious=sum(not v.clean for v in verdicts),
        n_redraws=0 if states.redraws is None else int(states.redraws[winner]),
        hold=hold,
        best_visited=best,
        prior=prior,
        traces=tuple(path.traces[s] + moved for s in np.flatnonzero(copies == np.arange(len(copies)))),
    )


def _outside(problem: Problem, mixture: GaussianMixture) -> GaussianMixture:
    """A mixture of the loop in the data's own units, type and names."""
    outer = problem.units.leave(mixture)
    dtype = problem.points.dtype
    values = Covariance(outer.covariance.values.astype(dtype), outer.structure)
    return GaussianMixture(outer.weights.astype(dtype), outer.means.astype(dtype), values, problem.names)
