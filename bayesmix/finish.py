"""A `Fit` of the runs of a problem: the best of them in the data's own units, with its verdict."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from bayesmix import density
from bayesmix.blocks import CACHED, chunks_of
from bayesmix.covariance import Covariance
from bayesmix.drive import Path
from bayesmix.initialize import known_centres
from bayesmix.inputs import Gaps, Points
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior
from bayesmix.problem import Problem
from bayesmix.results import Fit
from bayesmix.seeds import nearest
from bayesmix.status import CODE, sentence
from bayesmix.units import typed
from bayesmix.verdict import agreeing, best_start, judge_all

__all__ = ["finished", "likelihoods"]

_REPORTED = 2**19  # rows at once


def likelihoods(
    mixture: GaussianMixture,
    points: np.ndarray,
    weight: np.ndarray,
    given: np.ndarray | None = None,
    gaps: Gaps | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums of log density, largest log joint and entropy; and the most probable cluster of each row.

    Of a row whose cluster is given, not -1, there is no other, and what counts is the log joint density. `gaps` says
    which cells count, where not all do.
    """

    def of(rows: slice | np.ndarray) -> Points:
        return Points(points[rows], mixture.feature_names or (), None if gaps is None else gaps.taken(rows))

    sums, labels = np.zeros(3), np.empty(len(points), np.int64)
    ends = np.linspace(0, len(points), 1 + -(-len(points) // _REPORTED), dtype=int)
    for part in map(slice, ends[:-1], ends[1:]):
        report = mixture._each(density.report, of(part), last=True)
        if given is not None and (rows := np.flatnonzero(given[part] >= 0)).size:
            own = given[part][rows]
            report[:2, rows] = mixture.log_joint(of(part.start + rows))[np.arange(rows.size), own]
            report[2:, rows] = np.stack([np.zeros_like(own), own])
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
    verdicts = judge_all(problem, path, copies, relocate=relocate)
    winner = best_start(verdicts, path)
    states, units = path.states, problem.units
    mixture, inertia = _outside(problem, path.mixture(winner)), None
    if relocate:
        near: Any = nearest(problem.x, path.mixture(winner).means.astype(problem.x.dtype))
        mixture, inertia = _around_centres(problem, near, mixture)
    given, gaps = problem.given, problem.gaps
    (total_log, top, entropy), labels = likelihoods(mixture, problem.points, problem.weight, given, gaps)
    # Where rounding decides it is that of the data's own units.
    if relocate and verdicts[winner].name in ("converged", "few_rows"):
        counted = states.statistics.moments[winner, :, 0]
        if _other_counts(problem, labels[problem.keep], counted):
            mixture, near = _recentred(problem, labels[problem.keep], mixture), None
            _, labels = likelihoods(mixture, problem.points, problem.weight)
    if relocate and not np.array_equal(labels[problem.keep], near):
        mixture, inertia = _around_centres(problem, labels[problem.keep], mixture)
        (total_log, top, entropy), labels = likelihoods(mixture, problem.points, problem.weight)
    total = float(problem.weight.sum())
    name, reasons = verdicts[winner]
    gain = float(states.gain[winner])
    name = "max_steps" if name == "running" else name
    if name == "few_rows" and np.bincount(labels, minlength=problem.n_components).all():
        name = "converged"
    k = problem.n_components
    best = None
    if states.best is not None:
        best = _outside(problem, jax.tree.map(lambda a: a[winner], states.best[0]))
    traces = [_of_spheres(problem, trace) if relocate else trace + problem.moved for trace in path.traces]
    objective = traces[winner].copy()
    if not len(objective):  # of a run that took no step; what a prior adds nobody has computed
        objective = np.array([np.nan if prior is not None else top if method == "hard" else total_log])
    if inertia is not None:
        objective[-1:] = _energy(problem, inertia)
    return Fit(
        mixture=mixture,
        objective=objective,
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
        known_labels=given,
        n_missing=0 if gaps is None else int((~gaps.seen).sum()),
        prior=prior,
        inertia=inertia,
        traces=tuple(traces[s] for s in np.flatnonzero(copies == np.arange(len(copies)))),
    )


def _outside(problem: Problem, mixture: GaussianMixture) -> GaussianMixture:
    """A mixture of the loop in the data's own units, type and names."""
    outer = typed(problem.units.leave(mixture), problem.points.dtype)
    return replace(outer, feature_names=problem.names)


def _other_counts(problem: Problem, labels: np.ndarray, counted: np.ndarray) -> bool:
    """Whether clusters have other weights by their labels than the loop counted, by more than rounding."""
    counts = np.bincount(labels, problem.w, problem.n_components)
    return bool((np.abs(counts - counted) > np.maximum(problem.w.min() / 2, 1e-5 * counted)).any())


def _recentred(problem: Problem, labels: np.ndarray, mixture: GaussianMixture) -> GaussianMixture:
    """The centres at the means of what the labels give them, in the data's own units."""
    named, centres = known_centres(
        _kept_points(problem), problem.w, labels, problem.n_components, problem.structure
    )
    means = mixture.means.copy()
    means[named] = centres
    return replace(mixture, means=means)


def _kept_points(problem: Problem) -> np.ndarray:
    """The rows of positive weight, in the data's own units."""
    return problem.points if problem.keep.all() else problem.points[problem.keep]


def _around_centres(
    problem: Problem, labels: np.ndarray, mixture: GaussianMixture
) -> tuple[GaussianMixture, float]:
    """K-means: each centre with the sphere σ² = inertia / (n d) around it, and the inertia, in the data's own units."""
    points = _kept_points(problem)
    centres, inertia = mixture.means.astype(np.float64), 0.0
    for rows in chunks_of(len(points), CACHED):
        away = points[rows] - np.take(centres, labels[rows], axis=0)
        inertia += float(problem.w[rows] @ np.einsum("nd,nd->n", away, away))
    values = Covariance(np.atleast_1d(_variance(problem, inertia)), mixture.structure)
    return typed(replace(mixture, covariance=values), problem.points.dtype), inertia


def _variance(problem: Problem, inertia: Any) -> Any:
    """That of the sphere which an inertia makes, of which nothing is next to nothing."""
    least = 1e-12 * problem.units.scale[0] ** 2
    return np.maximum(inertia / (problem.w.sum() * problem.x.shape[1]), least)


def _energy(problem: Problem, inertia: Any) -> Any:
    """The free energy of the sphere that an inertia makes, in the data's own units."""
    variance = _variance(problem, inertia)
    return -_constant(problem, variance) - inertia / (2 * variance)


def _of_spheres(problem: Problem, energies: np.ndarray) -> np.ndarray:
    """The same of free energies of unit spheres, in the loop's units, which say what the inertia was."""
    unit = problem.units.scale[0] ** 2
    return _energy(problem, -2 * unit * (energies + _constant(problem, 1.0)))


def _constant(problem: Problem, variance: Any) -> Any:
    """What the free energy of spheres has besides the inertia, with its sign changed."""
    d = problem.x.shape[1]
    return problem.w.sum() * (d / 2 * np.log(2 * math.pi * variance) + math.log(problem.n_components))
