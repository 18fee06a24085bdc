"""Point estimates: `fit` finds a maximum of the likelihood, from many starts, and says whether to trust it.

Every start runs for a while, the best goes on to convergence. Clean runs come before collapsed and spurious
ones, because with cluster-specific volumes the likelihood is unbounded and its largest value is not the target.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from bayesmix import density
from bayesmix.acceleration import asked
from bayesmix.covariance import Covariance
from bayesmix.drive import Path
from bayesmix.engines import METHODS
from bayesmix.initialize import (
    SEEDS,
    Start,
    from_means,
    from_partition,
    given_start,
    lloyd,
    nearest,
    sample_rows,
)
from bayesmix.inputs import as_count, as_generator, as_name
from bayesmix.loop import Options
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.penalty import to_data_units
from bayesmix.prior import ConjugatePrior
from bayesmix.problem import Problem, prepare
from bayesmix.results import CODE, Fit
from bayesmix.verdict import AGREE, agreeing, best_start, judge, sentence

__all__ = ["fit", "likelihoods", "optima", "solve"]

_STARTS = ("kmeans", *SEEDS)
_START_ALIASES = {"k-means": "kmeans", "kmeans++": "k-means++"}
_REPORTED = 2**19  # rows at once
_LLOYD_ROWS = 2000  # and a hundred a cluster, at most: a start need not be exact


def fit(
    model: MixtureModel,
    x: Any,
    *,
    method: str = "soft",
    n_starts: int | None = None,
    init: Any = None,
    sample_weight: Any = None,
    hold: Collection[str] = (),
    key: Any = 0,
    tol: float = 1e-4,
    max_steps: int | None = None,
    accelerate: bool | None = None,
) -> Fit:
    """Maximise the likelihood Π_n Σ_k w_k Normal(x_n | m_k, Σ_k), or the posterior where the model has a prior.

    The posterior's mode is the one with respect to (weights, means, covariances), as in mclust.

    Args:
        model: the number of clusters, the covariance structure, and a prior: `None` for maximum likelihood,
            "weak" or a `ConjugatePrior` for the posterior mode.
        x: data (n, d), or (n,) for one feature.
        method: "soft" (EM), "hard" (classification EM: each point wholly in its most probable cluster),
            "stochastic" (z drawn each step; the mixture of the averaged statistics of the later half of
            `max_steps` is returned), "stochastic_approximation" (the statistics move towards each draw by a
            decreasing step, so the fit settles at an optimum) or "annealed" (responsibilities ∝ p(x, z)^β, β
            rising to 1).
        n_starts: how many starts; by default 10, 1 for stochastic EM, 4 for annealed EM (each with draws of its
            own, from a given start too), 1 for a given start otherwise.
        init: "kmeans" (default: k-means from k-means++ seeds), "k-means++", "random" (k different rows); or a
            start: labels (n,), responsibilities (n, k), means (k, d), a `GaussianMixture`.
        sample_weight: (n,); an integer weight is repetition, zero is absence.
        hold: what stays as the start has it: "weights", "covariance" or both. Starts that are no mixture
            have equal weights.
        key: seeds the starts and draws; a JAX key or an int.
        tol: stop when the gain that remains, predicted by Aitken's extrapolation, is below this many nats (never
            below rounding). Hard EM stops when the assignment repeats. 0 runs exactly `max_steps` steps.
        max_steps: M-steps at most; by default 10,000 (soft, annealed), 1,000 (hard), 300 (stochastic), 2,000
            (stochastic approximation).
        accelerate: soft and annealed EM with a memory (`acceleration`), which takes a third of the steps where
            clusters overlap, or a fiftieth, and never lets the objective fall; False: EM's own steps. It compiles a
            program of its own, so the default, None, is to begin with it once that takes less time than the steps:
            on a few hundred rows hardly ever, on a hundred thousand at once. Say True for many fits of one shape.
            `tol=0` always takes EM's own steps.

    Returns:
        A `Fit`. Its log-likelihood is that of its mixture.

    Raises:
        ValueError: bad data or options, fewer rows than clusters, or a prior that is a NumPyro program.

    Status:
        converged; reached max_steps; collapsed component; spurious; degenerate data; non-finite: each with a
        sentence in `Fit.status`. Collapse never raises and never gives NaN.

    References:
        Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
        Celeux & Govaert (1992), A classification EM algorithm for clustering and two stochastic versions.
        Ueda & Nakano (1998), Deterministic annealing EM algorithm.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> fit = bm.fit(bm.MixtureModel(n_components=2), x)
        >>> round(float(fit.log_likelihood), 3), fit.status
        (-1130.264, 'converged')
    """
    if not isinstance(model, MixtureModel):
        raise ValueError(f"model must be a MixtureModel, such as MixtureModel(3); it is {model!r}")
    prior = None if model.prior is None else model.resolve(x, sample_weight=sample_weight).prior
    if not (prior is None or isinstance(prior, ConjugatePrior)):
        raise ValueError(
            "fit needs a prior with a closed M-step: None, 'weak' or a ConjugatePrior; "
            "for any other use sample_posterior"
        )
    return solve(
        model.n_components,
        model.covariance,
        x,
        method=method,
        n_starts=n_starts,
        init=init,
        sample_weight=sample_weight,
        hold=hold,
        key=key,
        tol=tol,
        max_steps=max_steps,
        prior=prior,
        accelerate=accelerate,
    )


def solve(
    n_components: int,
    covariance: str,
    x: Any,
    *,
    method: str = "soft",
    n_starts: int | None = None,
    init: Any = None,
    sample_weight: Any = None,
    hold: Collection[str] = (),
    key: Any = 0,
    tol: float = 1e-4,
    max_steps: int | None = None,
    prior: ConjugatePrior | None = None,
    relocate: bool = False,
    accelerate: bool | None = None,
    added_variance: float = 0.0,
) -> Fit:
    """`fit` without the model; `relocate` is k-means: emptied clusters move to far points, the sphere is a unit.

    Each M-step adds `added_variance`, in squared units of the data, to the diagonal of every covariance. Such steps
    need not climb, and nothing accelerates them.
    """
    row = METHODS[as_name(method, "method", METHODS)]
    if not (isinstance(tol, int | float | np.number) and 0 <= tol < np.inf):
        raise ValueError(f"tol must be a number of nats, zero or more; it is {tol!r}")
    wanted = asked(accelerate, method, tol)
    max_steps = as_count(row.max_steps if max_steps is None else max_steps, "max_steps", minimum=0)
    hold = (hold,) if isinstance(hold, str) else tuple(sorted(hold))
    for name in hold:
        as_name(name, "hold", ("weights", "covariance"))
    if "covariance" in hold and not (relocate or isinstance(init, GaussianMixture)):
        raise ValueError("hold='covariance' needs init=GaussianMixture(...), which says what to hold")
    init = "kmeans" if init is None else init
    named = isinstance(init, str)
    if not (named or row.draws) and n_starts not in (None, 1):
        raise ValueError(f"a given init is one start, so n_starts must be 1, not {n_starts!r}")
    count = as_count(row.n_starts if n_starts is None else n_starts, "n_starts") if named or row.draws else 1
    problem = prepare(n_components, covariance, x, sample_weight, float(tol), prior)
    problem = problem._replace(accelerate=wanted if n_components > 1 and not added_variance else False)
    if added_variance:
        problem = problem.adding(added_variance)
    if row.responsibilities == "sampled":
        problem.whole("stochastic EM draws a whole number of points", "use method='soft'")
    if isinstance(init, str):
        name = as_name(_START_ALIASES.get(init, init), "init", _STARTS)
        starts, copies = _own_starts(problem, name, count, key, relocate)
    else:
        starts, copies = [given_start(init, problem)] * count, np.zeros(count, int)
        if max_steps == 0 and starts[0].statistics is not None:
            raise ValueError("max_steps must be at least 1 for a start from labels or responsibilities")
    if relocate:  # one sphere of unit size: assignments do not depend on it, and ties stay ties
        sphere = Covariance(np.ones(1), "EII")
        weights = np.full(n_components, 1 / n_components)
        starts = [s._replace(mixture=replace(s.mixture, weights=weights, covariance=sphere)) for s in starts]
    if row.draws:  # the same start need not end the same
        copies = np.arange(len(starts))
    options = Options(row.responsibilities, hold, relocate=relocate)
    path = row.engine(problem, starts, copies, options, max_steps, key)
    return _finish(problem, path, copies, method, hold, max_steps, relocate, prior)


def optima(problem: Problem, *, n_starts: int = 10, key: Any = 0) -> list[tuple[float, GaussianMixture]]:
    """The distinct clean optima of soft EM from k-means starts, best first: objective and mixture in loop units."""
    row = METHODS["soft"]
    starts, copies = _own_starts(problem, "kmeans", n_starts, key, False)
    options = Options("soft")
    path = row.engine(problem, starts, copies, options, row.max_steps, key)
    objective = path.states.statistics.objective
    found: list[tuple[float, GaussianMixture]] = []
    for s in np.argsort(-objective, kind="stable").tolist():
        new = all(abs(objective[s] - other) > AGREE for other, _ in found)
        if copies[s] == s and new and judge(problem, path, s).clean:
            found.append((float(objective[s]), path.mixture(s)))
    return found


def _own_starts(
    problem: Problem, name: str, count: int, key: Any, bare: bool
) -> tuple[list[Start], np.ndarray]:
    """Starts by name, and for each the index of the first that is the same one.

    Distances count each feature in its own standard deviations where the family is closed under that, so that
    starts do not depend on the units of the columns.
    """
    x, w, k = problem.x, problem.w, problem.n_components
    unit = np.ones(x.shape[1])
    if problem.structure.by_column:
        unit = np.sqrt(w @ (x * x) / w.sum())
        unit[unit == 0] = 1
        x = x / unit.astype(x.dtype)
    draw = SEEDS["k-means++" if name == "kmeans" else name]
    generators = as_generator(key).spawn(1 if k == 1 else count)
    seeds = [draw(x, w, k, generator) for generator in generators]
    if name == "kmeans" and k > 1 and not bare:
        some = sample_rows(w, _LLOYD_ROWS + 100 * k, as_generator(key))
        seeds = [lloyd(x[some], w[some], seed) for seed in seeds]
    starts, marks = [], []
    for seed in seeds:
        labels, squared = nearest(x, seed.astype(x.dtype))
        means = seed.astype(np.float64) * unit
        make = from_means if bare else from_partition
        starts.append(make(problem.x, w, means, labels, problem.structure))
        sizes = np.sort(np.bincount(labels, weights=w, minlength=k))
        marks.append((*sizes, f"{w @ squared:.9g}"))
    return starts, np.array([marks.index(mark) for mark in marks])


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


def _finish(
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
