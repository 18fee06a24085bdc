"""How sure a point fit is, by resampling: the fit again on many data sets like this one, each relabelled to it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesmix.information import StandardErrors
from bayesmix.inputs import as_count, as_name
from bayesmix.keys import key_data
from bayesmix.labels import match_mixtures, permuted
from bayesmix.loop import Options
from bayesmix.mixture import GaussianMixture
from bayesmix.problem import Problem, inside, problem_of
from bayesmix.resample import Refits, refit
from bayesmix.results import Fit
from bayesmix.trees import mixture_tree

if TYPE_CHECKING:
    import xarray

__all__ = ["bootstrap", "jackknife", "ordered"]

_KINDS = ("weighted", "nonparametric", "parametric")


def _refit(
    problem: Problem, fit: Fit, kind: str, keys: np.ndarray, title: str, *, partial: bool = False
) -> Refits:
    """The loop on each replicate, from the fit; after Ctrl-C, where a part is of use, those that are finished."""
    start = inside(problem, fit.mixture)
    options = Options("hard" if fit.hard else "soft", fit.hold)
    starts = jax.tree.map(lambda leaf: leaf[None, None], start)
    return refit(
        problem, kind, keys, starts, options, source=start, title=title, partial_on_interrupt=partial
    )


def ordered(
    problem: Problem, drawn: GaussianMixture, reference: GaussianMixture
) -> tuple[GaussianMixture, np.ndarray]:
    """Mixtures (draws, ...) in the data's units, their clusters in the order of the reference; and that order."""
    mixture = problem.units.leave(drawn)
    order = match_mixtures(np.asarray(mixture.means), np.asarray(mixture.covariances), reference, problem.may)
    return replace(permuted(mixture, order), feature_names=reference.feature_names), order


def bootstrap(
    fit: Fit,
    x: Any,
    *,
    key: Any,
    kind: str = "weighted",
    n_draws: int = 999,
    sample_weight: Any = None,
) -> xarray.DataTree:
    """The fit again on many data sets like this one: their spread is its uncertainty.

    Every replicate starts at the fit, runs to convergence, and is relabelled to it; all are one compiled program on
    as many threads as there are cores.

    Args:
        fit: a fit by any method.
        x: the data that it was fitted to (n, d).
        key: a JAX key or an int.
        kind: "weighted" (the weighted likelihood bootstrap: the rows with weights from a flat Dirichlet, so that no
            cluster loses all its rows), "nonparametric" (rows drawn with replacement) or "parametric" (rows drawn
            from the fitted mixture).
        n_draws: how many replicates.
        sample_weight: (n,), as it was in the fit.

    Returns:
        A tree with the group `posterior` (weights, means, covariances; chain, draw, cluster, ...), which ArviZ
        summarises and plots, and `sample_stats`: the objective, steps, whether the replicate is `clean` (not
        collapsed or spurious), whether it `converged`, and whether its labels were `permuted`. The attributes count
        those that are not clean; none is dropped. After Ctrl-C, with a warning, the first replicates, as many as are
        finished; the attribute `status` says so.

    Raises:
        ValueError: not a fit, other data, a kind that is not known, or for "nonparametric" and "parametric" weights
            that do not add up to a whole number of rows; "parametric" of a fit that was told labels.
        KeyboardInterrupt: Ctrl-C before any replicate was finished, or twice.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> fit = bm.fit(bm.MixtureModel(2), x)
        >>> tree = bm.bootstrap(fit, x, key=0, n_draws=200)
        >>> float(tree["posterior"]["weights"].std("draw")[0, 0].round(2))
        0.03
    """
    as_name(kind, "kind", _KINDS)
    n_draws = as_count(n_draws, "n_draws")
    problem = problem_of(fit, x, sample_weight)
    if kind == "parametric" and problem.given is not None:
        raise ValueError(
            "kind='parametric' draws new rows, of which no cluster is known, and the fit knew some; "
            "use kind='weighted' or 'nonparametric'"
        )
    if kind == "parametric":
        problem.without_gaps(
            "kind='parametric' draws whole rows, so it", "use kind='weighted' or 'nonparametric'"
        )
    total = float(problem.w.sum())
    if kind != "weighted" and abs(total - round(total)) > 1e-9 * total:
        raise ValueError(
            f"kind={kind!r} draws a whole number of rows, and the weights add up to {total:.6g}; "
            "use kind='weighted'"
        )
    refits = _refit(problem, fit, kind, key_data(key, n_draws), f"{kind} bootstrap", partial=True)
    done, status = len(refits.steps), "complete"
    if done < n_draws:
        status = f"interrupted: {done} of {n_draws} replicates"
        warnings.warn(
            f"the bootstrap was interrupted: {done} of {n_draws} replicates are finished", stacklevel=2
        )
    mixture, order = ordered(problem, refits.mixture, fit.mixture)
    stats = {
        "objective": refits.objective + problem.moved,
        "steps": refits.steps,
        "clean": refits.clean,
        "converged": refits.converged,
        "permuted": (order != np.arange(order.shape[1])).any(axis=1),
    }
    attributes = {
        "method": f"{kind} bootstrap",
        "n_draws": done,
        "status": status,
        "n_not_clean": int((~refits.clean).sum()),
        "n_not_converged": int((~refits.converged).sum()),
        "n_permuted": int(stats["permuted"].sum()),
        "estimate_log_likelihood": float(fit.log_likelihood),
    }
    chains = jax.tree.map(lambda a: np.asarray(a)[None], mixture)
    return mixture_tree(chains, {name: value[None] for name, value in stats.items()}, attributes)


def jackknife(fit: Fit, x: Any, *, sample_weight: Any = None) -> StandardErrors:
    """Standard errors by leaving out one observation at a time: deterministic, n fits, each from the fit.

    se² = (n - 1) / n Σ_i (θ_(i) - mean θ_(·))². A row of weight w stands for w observations, of which one is left out.

    Args:
        fit: a fit by any method.
        x: the data that it was fitted to (n, d).
        sample_weight: (n,), whole numbers, as in the fit.

    Raises:
        ValueError: not a fit, other data, or weights that are not whole numbers.

    References:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("galaxies")
        >>> fit = bm.fit(bm.MixtureModel(3, "E"), x)
        >>> bm.jackknife(fit, x).means.shape
        (3, 1)
    """
    # Leaving out one of n moves the fit by about its standard error over √n: the loop must end much nearer than that.
    problem = problem_of(fit, x, sample_weight, tol=1e-9)
    problem.whole("jackknife leaves out one observation at a time", "use bootstrap(kind='weighted')")
    rows = np.arange(problem.x.shape[0], dtype=np.uint32)
    keys = np.stack([np.zeros_like(rows), rows], axis=1)
    refits = _refit(problem, fit, "leave_one_out", keys, "jackknife")
    mixture, _ = ordered(problem, refits.mixture, fit.mixture)
    total = problem.w.sum()

    def error(values: Any) -> np.ndarray:
        values = np.asarray(values, np.float64)
        away = values - np.tensordot(problem.w, values, axes=1) / total
        return np.sqrt((total - 1) / total * np.tensordot(problem.w, away**2, axes=1))

    weights, means, covariances = map(error, (mixture.weights, mixture.means, mixture.covariances))
    return StandardErrors(fit.mixture, weights, means, covariances, "jackknife")
