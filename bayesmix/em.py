"""Point estimates: `fit` finds a maximum of the likelihood, from many starts, and says whether to trust it.

Every start runs for a while, the best goes on to convergence. Clean runs come before collapsed and spurious
ones, because with cluster-specific volumes the likelihood is unbounded and its largest value is not the target.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np

from bayesmix.acceleration import asked
from bayesmix.devices import blas_on_one_thread
from bayesmix.engines import METHODS, batch_rows
from bayesmix.finish import finished
from bayesmix.given import given_start
from bayesmix.initialize import Start, from_partition, known_centres, unit_spheres
from bayesmix.inputs import as_count, as_name, as_names, as_points, as_tol, as_weights, cores
from bayesmix.keys import as_generator
from bayesmix.loop import Options
from bayesmix.missing import allowed, completed
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.prior import ConjugatePrior
from bayesmix.problem import Problem, prepare
from bayesmix.results import Fit
from bayesmix.seeds import SEEDS, lloyd, nearest, sample_rows
from bayesmix.verdict import AGREE, judge

__all__ = ["fit", "optima", "solve"]

_STARTS = ("kmeans", *SEEDS)
_START_ALIASES = {"k-means": "kmeans", "kmeans++": "k-means++"}
_INTEGRATING = ("soft", "annealed")  # methods that integrate missing cells out
_FEW_ROWS = 2000  # and a hundred a cluster, at most: a start need not be exact
_LLOYD_STEPS = 100  # of k-means on those
_SEED_ROWS = 2**17  # at most, where seeds are all that there is of a start
_TOGETHER = 2**17  # numbers, k for each row, of the starts that are drawn at once


def fit(
    model: MixtureModel,
    x: Any,
    *,
    method: str = "soft",
    n_starts: int | None = None,
    init: Any = None,
    sample_weight: Any = None,
    labels: Any = None,
    missing: str | None = None,
    hold: Collection[str] = (),
    key: Any = 0,
    tol: float = 1e-4,
    max_steps: int | None = None,
    accelerate: bool | None = None,
    batch_size: int | None = None,
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
            decreasing step, so the fit settles at an optimum), "annealed" (responsibilities ∝ p(x, z)^β, β
            rising to 1) or "online" (each step sees a batch of rows alone, and the statistics move towards the
            batch's by a decreasing step: for very many rows).
        n_starts: how many starts; by default 10, 1 for stochastic EM, 4 for online EM and for annealed EM (each
            of that with draws of its own, from a given start too), 1 for a given start otherwise.
        init: "kmeans" (default: k-means from k-means++ seeds), "k-means++", "random" (k different rows); or a
            start: labels (n,), responsibilities (n, k), means (k, d), a `GaussianMixture`.
        sample_weight: (n,); an integer weight is repetition, zero is absence.
        labels: (n,) clusters that are known, -1 where they are not: such a row is wholly in its cluster and counts by
            log p(x, z), and starts grow from it. All of them known is discriminant analysis. An `init` of labels is
            where the search begins, no more.
        missing: what missing cells (NaN, null, masked) are; `None` for an error. "at_random": whether a cell is missing
            may depend on the row's known cells, never on what it would have been. Then they are integrated out, and
            what is maximised is the likelihood of the known cells, exactly; for method "soft" or "annealed".
        hold: what stays as the start has it: "weights", "covariance" or both. Starts that are no mixture
            have equal weights.
        key: seeds the starts and draws; a JAX key or an int.
        tol: stop when the gain that remains, predicted by Aitken's extrapolation, is below this many nats (never
            below rounding). Hard EM stops when the assignment repeats. 0 runs exactly `max_steps` steps, as
            stochastic and online EM always do.
        max_steps: M-steps at most; by default 10,000 (soft, annealed), 1,000 (hard, online), 300 (stochastic),
            2,000 (stochastic approximation).
        accelerate: soft and annealed EM with a memory (`acceleration`), which takes a third of the steps where
            clusters overlap, or a fiftieth, and never lets the objective fall; False: EM's own steps. It compiles a
            program of its own, so the default, None, is to take it where, or from where, that takes less time than
            the steps that are likely to come: on a few hundred rows hardly ever, with ten starts on ten thousand at
            once unless clusters are apart. Say True for many fits of one shape. `tol=0` always takes EM's own steps.
        batch_size: rows of a step of online EM, in a random order once and then in turn; by default 1,024, or as
            many as the mixture has numbers. Its first and last step see all rows.

    Returns:
        A `Fit`. Its log-likelihood is that of its mixture.

    Raises:
        ValueError: bad data or options, fewer rows than clusters, missing cells (or a row or a column that has no
            value), or a prior that is a NumPyro program.

    Status:
        converged; reached max_steps; collapsed component; spurious; degenerate data; non-finite: each with a
        sentence in `Fit.status`. Collapse never raises and never gives NaN.

    References:
        Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.
        Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
        Celeux & Govaert (1992), A classification EM algorithm for clustering and two stochastic versions.
        Ueda & Nakano (1998), Deterministic annealing EM algorithm.
        Cappé & Moulines (2009), On-line expectation-maximization algorithm for latent data models, JRSS B 71.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> fit = bm.fit(bm.MixtureModel(n_components=2), x)
        >>> round(float(fit.log_likelihood), 3), fit.status
        (-1130.264, 'converged')
    """
    if not isinstance(model, MixtureModel):
        raise ValueError(f"model must be a MixtureModel, such as MixtureModel(3); it is {model!r}")
    may = allowed(missing)
    x = as_points(x, missing=may)
    if may:
        x = completed(x, as_weights(sample_weight, len(x.values)))
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
        labels=labels,
        hold=hold,
        key=key,
        tol=tol,
        max_steps=max_steps,
        prior=prior,
        accelerate=accelerate,
        batch_size=batch_size,
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
    labels: Any = None,
    hold: Collection[str] = (),
    key: Any = 0,
    tol: float = 1e-4,
    max_steps: int | None = None,
    prior: ConjugatePrior | None = None,
    relocate: bool = False,
    accelerate: bool | None = None,
    batch_size: int | None = None,
    added_variance: float = 0.0,
) -> Fit:
    """`fit` without the model; `relocate` is k-means: emptied clusters move to far points, the sphere is a unit.

    Each M-step adds `added_variance`, in squared units of the data, to the diagonal of every covariance. Such steps
    need not climb, and nothing accelerates them.
    """
    row = METHODS[as_name(method, "method", METHODS)]
    tol = as_tol(tol)
    wanted = asked(accelerate, method, tol)
    if batch_size is not None and method != "online":
        raise ValueError(
            f"batch_size is for method='online'; method is {method!r}: leave it out, or take that"
        )
    batch_size = None if batch_size is None else as_count(batch_size, "batch_size")
    max_steps = as_count(row.max_steps if max_steps is None else max_steps, "max_steps", minimum=0)
    hold = as_names(hold, "hold", ("weights", "covariance"))
    if "covariance" in hold and not (relocate or isinstance(init, GaussianMixture)):
        raise ValueError("hold='covariance' needs init=GaussianMixture(...), which says what to hold")
    init = "kmeans" if init is None else init
    named = isinstance(init, str)
    if not (named or row.draws) and n_starts not in (None, 1):
        raise ValueError(f"a given init is one start, so n_starts must be 1, not {n_starts!r}")
    count = as_count(row.n_starts if n_starts is None else n_starts, "n_starts") if named or row.draws else 1
    problem = prepare(n_components, covariance, x, sample_weight, tol, prior, labels)
    if method not in _INTEGRATING or relocate:
        problem.without_gaps(
            "k-means" if relocate else f"method={method!r}", "use method='soft', or impute them"
        )
    climbs = (n_components > 1 or problem.gaps is not None) and not added_variance
    problem = problem._replace(accelerate=wanted if climbs else False)
    if method == "online":
        problem = problem._replace(batch=batch_size or batch_rows(problem))
    if added_variance:
        problem = problem.adding(added_variance)
    if row.responsibilities == "sampled":
        problem.whole("stochastic EM draws a whole number of points", "use method='soft'")
    numbers = problem.points.size
    if isinstance(init, str):
        name = as_name(_START_ALIASES.get(init, init), "init", _STARTS)
        with blas_on_one_thread(numbers):
            starts, copies = _own_starts(problem, name, count, key, relocate)
    else:
        with blas_on_one_thread(numbers):
            start = given_start(init, problem, relocate)
        starts, copies = [start] * count, np.zeros(count, int)
        if relocate:
            starts = [s._replace(mixture=unit_spheres(s.mixture.means)) for s in starts]
    if max_steps == 0 and starts[0].statistics is not None:
        raise ValueError(
            "max_steps must be at least 1, unless init is means or a mixture: no other start is a mixture before its "
            "first step"
        )
    if row.draws:  # the same start need not end the same
        copies = np.arange(len(starts))
    options = Options("hard" if relocate else row.responsibilities, hold, relocate=relocate)
    path = row.engine(problem, starts, copies, options, max_steps, key)
    with blas_on_one_thread(numbers):
        return finished(problem, path, copies, method, hold, max_steps, relocate, prior)


def optima(problem: Problem, *, key: Any = 0) -> list[tuple[float, GaussianMixture]]:
    """The distinct clean optima of soft EM from ten k-means starts, best first: objective and mixture in loop units."""
    row = METHODS["soft"]
    starts, copies = _own_starts(problem, "kmeans", 10, key, False)
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
    every, w, k, units = problem.x, problem.w, problem.n_components, problem.units
    measured = every.measured(units.deviation) if problem.structure.by_column else every
    draw = SEEDS["k-means++" if name == "kmeans" else name]
    generators = as_generator(key).spawn(1 if k == 1 else count)
    rough = name == "kmeans" and k > 1 and not bare
    few = _FEW_ROWS + 100 * k
    some = sample_rows(w, few if rough or problem.batch else max(few, _SEED_ROWS), as_generator(key))
    x, told = measured[some], None if problem.told is None else problem.told[some]
    named, centres = np.empty(0, int), None
    if problem.told is not None:
        named, centres = known_centres(measured, w, problem.told, k, problem.structure)
    others = np.setdiff1d(np.arange(k), named)
    whole = len(x) == len(every)
    points = every if not whole else x if measured is every else every[:]
    own = w if whole else np.maximum(w[some], w.sum() / len(x))  # those of all, by the chances of being drawn

    def grown(rngs: Sequence[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """Seeds of some starts (starts, k, d), and what tells one start from another."""
        seeds = np.empty((len(rngs), k, x.shape[1]), x.dtype)
        seeds[:, others] = draw(x, own, len(others), rngs, centres)
        if centres is not None:
            seeds[:, named] = centres
        return (seeds, seeds) if bare else lloyd(x, own, seeds, _LLOYD_STEPS if rough else 0, told)

    together = max(1, _TOGETHER // (k * len(x)))
    batches = [generators[first : first + together] for first in range(0, len(generators), together)]
    with ThreadPoolExecutor(cores()) as pool:  # a thread takes longer to start than few rows take
        found = list(pool.map(grown, batches) if len(batches) > 1 else map(grown, batches))
    starts: list[Start] = []
    marks, copies = [], []
    for seed, near in (pair for batch in found for pair in zip(*batch)):
        marks.append(seed[np.lexsort(seed.T)].tobytes() if bare else _partition(near, k))
        copies.append(marks.index(marks[-1]))
        means = seed * (measured.units.scale / units.scale)
        if copies[-1] < len(starts):
            starts.append(starts[copies[-1]])
        elif bare:
            starts.append(Start(unit_spheres(means)))
        else:
            near = near if whole else nearest(measured, seed)
            near = near if problem.told is None else np.where(problem.told >= 0, problem.told, near)
            starts.append(from_partition(points, w, means, near, problem.structure))
    return starts, np.array(copies)


def _partition(labels: np.ndarray, k: int) -> bytes:
    """A digest of which rows are together, whatever the numbers of the clusters."""
    first, backwards = np.full(k, len(labels)), np.arange(len(labels))[::-1]
    first[labels[backwards]] = backwards  # of a label that comes again, what is written last stays
    ranks = np.argsort(np.argsort(first)).astype(np.min_scalar_type(k))
    return blake2b(ranks[labels].tobytes()).digest()
