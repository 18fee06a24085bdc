"""How sure a point fit is: standard errors, by calculus and by resampling.

`standard_errors` takes the curvature of the log-likelihood at the fit, the observed information, in an unconstrained
parametrisation (`chart`), and maps its inverse to weights, means and covariances by the delta method. `bootstrap` and
`jackknife` fit many data sets like this one, each from this fit, each relabelled to it (`resample`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesmix import density
from bayesmix.chart import Chart, chart
from bayesmix.covariance import Covariance
from bayesmix.density import precision_factor
from bayesmix.engines import METHODS
from bayesmix.initialize import Start
from bayesmix.inputs import as_count, as_name, double_precision, to_numpy
from bayesmix.labels import match_mixtures
from bayesmix.loop import Options
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import Penalty, log_prior
from bayesmix.problem import Problem, prepare
from bayesmix.resample import Refits, refit, seeds
from bayesmix.results import Fit
from bayesmix.statistics import Observations
from bayesmix.trees import mixture_tree

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["StandardErrors", "bootstrap", "inside", "jackknife", "ordered", "problem_of"]
__all__ += ["standard_errors"]

_KINDS = ("weighted", "nonparametric", "parametric")


@dataclass(frozen=True)
class StandardErrors:
    """Standard errors of a fitted mixture, in the units of its parameters.

    Attributes:
        mixture: the estimates.
        weights: (k,).
        means: (k, d).
        covariances: (k, d, d), of the entries of the covariance matrices.
        kind: "information" or "jackknife".
    """

    mixture: GaussianMixture
    weights: Float[Any, " k"]
    means: Float[Any, "k d"]
    covariances: Float[Any, "k d d"]
    kind: str

    def summary(self) -> pandas.DataFrame:
        """A row per parameter: estimate, standard error, and the normal 95% interval."""
        import pandas

        mixture, names = self.mixture, self.mixture.feature_names
        names = names or tuple(f"x{j}" for j in range(mixture.n_features))
        rows = {}
        for k in range(mixture.n_components):
            rows[f"weight[{k}]"] = (mixture.weights[k], self.weights[k])
            for j, name in enumerate(names):
                rows[f"mean[{k}, {name}]"] = (mixture.means[k, j], self.means[k, j])
            for i, name in enumerate(names):
                for j in range(i + 1):
                    entry = mixture.covariances[k, i, j], self.covariances[k, i, j]
                    rows[f"covariance[{k}, {name}, {names[j]}]"] = entry
        table = pandas.DataFrame(rows, index=["estimate", "standard error"]).T
        table["2.5%"] = table["estimate"] - 1.959964 * table["standard error"]
        table["97.5%"] = table["estimate"] + 1.959964 * table["standard error"]
        return table


def problem_of(fit: Any, x: Any, sample_weight: Any, tol: float = 1e-4) -> Problem:
    """The problem that a fit solved, or an error that says why these are not its data."""
    if not isinstance(fit, Fit):
        raise ValueError(f"fit must be what bm.fit returned; it is {type(fit).__name__}")
    mixture = fit.mixture
    problem = prepare(mixture.n_components, mixture.structure, x, sample_weight, tol, fit.prior)
    if problem.x.shape[1] != mixture.n_features:
        raise ValueError(f"x has {problem.x.shape[1]} features, and the fit has {mixture.n_features}")
    return problem


def inside(problem: Problem, mixture: GaussianMixture) -> GaussianMixture:
    """Parameters in loop units, float64."""
    values = Covariance(np.asarray(mixture.covariance.values, np.float64), mixture.structure)
    wide = GaussianMixture(
        np.asarray(mixture.weights, np.float64), np.asarray(mixture.means, np.float64), values
    )
    return problem.units.enter(wide)


def standard_errors(fit: Fit, x: Any, *, sample_weight: Any = None) -> StandardErrors:
    """Standard errors from the observed information, by automatic differentiation.

    The Hessian of the log-likelihood (plus the log prior, for a posterior mode) at the fit, in an unconstrained
    parametrisation, inverted and mapped to weights, means and covariances by the delta method. What the fit held
    fixed has error zero. It takes a second-order pass over the data for each free parameter.

    Args:
        fit: a converged fit by EM.
        x: the data that it was fitted to (n, d).
        sample_weight: (n,), as it was in the fit.

    Raises:
        ValueError: not a fit, other data, a spurious fit or one by hard EM, whose optimum is not the likelihood's;
            or an information matrix that is not positive definite, so that the fit is at no maximum.

    References:
        McLachlan & Peel (2000), Finite Mixture Models, section 2.15.
        Boldea & Magnus (2009), Maximum likelihood estimation of the multivariate normal mixture model.

    Example:
        >>> import bayesmix as bm
        >>> x = bm.datasets.load("old_faithful")
        >>> fit = bm.fit(bm.MixtureModel(2), x)
        >>> bm.standard_errors(fit, x).weights.round(4)
        array([0.0291, 0.0291])
    """
    problem = problem_of(fit, x, sample_weight)
    if fit.spurious:
        raise ValueError(f"standard_errors needs a clean fit; this one is {fit.status}")
    if fit.method == "hard":
        raise ValueError(
            "standard_errors is about the maximum of the likelihood, and hard EM and k-means end elsewhere; "
            "start bm.fit from fit.mixture, or use bm.bootstrap"
        )
    around = chart(inside(problem, fit.mixture), fit.hold)
    held = np.asarray(around.center.weights) <= 0
    if held.any():
        raise ValueError(
            f"clusters {np.flatnonzero(held).tolist()} are empty, so they have no standard error"
        )
    with double_precision():
        observations = jax.device_put(problem.observations)
        arguments = around, observations, problem.rules.penalty
        information, jacobian = to_numpy(_curvature(*arguments, size=around.size))
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    values, vectors = np.linalg.eigh(information / scale[:, None] / scale)
    if not values[0] > 1e-10:
        raise ValueError(
            f"the observed information is not positive definite (its smallest eigenvalue, with a unit diagonal, is "
            f"{values[0]:.2g}), so the fit is at no strict maximum of the likelihood: run bm.fit with a smaller tol, "
            "fewer clusters or prior='weak', or use bm.bootstrap"
        )
    root = (vectors / np.sqrt(values)) / scale[:, None]
    weights, means, covariances = (
        np.sqrt(((part @ root) ** 2).sum(axis=-1)) for part in (jacobian[0], jacobian[1], jacobian[2])
    )
    s = problem.units.scale
    return StandardErrors(fit.mixture, weights, means * s, covariances * s[:, None] * s, "information")


@partial(jax.jit, static_argnames="size")
def _curvature(
    around: Chart, observations: Observations, penalty: Penalty | None, size: int
) -> tuple[Array, Any]:
    """Minus the Hessian of the objective at the chart's centre, and the Jacobian of the parameters."""

    def objective(vector: Array) -> Array:
        mixture = around.mixture(vector)
        factor = precision_factor(mixture.covariance, mixture.n_features)

        @jax.checkpoint
        def block(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            x, weight = pair
            logits = density.log_joint(mixture, x.astype(float), factor[0])
            return total + jnp.sum(weight * density.log_sum(logits)), None

        total, _ = jax.lax.scan(block, jnp.zeros(()), (observations.x, observations.weight))
        return total if penalty is None else total + log_prior(penalty, mixture, factor)

    zero = jnp.zeros(size)

    def column(direction: Array) -> Array:
        return jax.jvp(jax.grad(objective), (zero,), (direction,))[1]

    def parameters(vector: Array) -> tuple[Array, Array, Array]:
        mixture = around.mixture(vector)
        return mixture.weights, mixture.means, mixture.covariances

    hessian = jax.lax.map(column, jnp.eye(size))
    return -(hessian + hessian.T) / 2, jax.jacfwd(parameters)(zero)


def _refit(problem: Problem, fit: Fit, kind: str, keys: np.ndarray, title: str) -> Refits:
    """The loop on each replicate, from the fit."""
    start = inside(problem, fit.mixture)
    options = Options(
        METHODS[fit.method].responsibilities if fit.method == "hard" else "soft",
        fit.hold,
        problem.x.dtype == np.float32,
    )
    return refit(problem, kind, keys, [Start(start)], options, source=start, title=title)


def ordered(
    problem: Problem, drawn: GaussianMixture, reference: GaussianMixture
) -> tuple[GaussianMixture, np.ndarray]:
    """Mixtures (draws, ...) in the data's units, their clusters in the order of the reference; and that order."""
    mixture = problem.units.leave(drawn)
    order = match_mixtures(np.asarray(mixture.means), np.asarray(mixture.covariances), reference)
    values = np.asarray(mixture.covariance.values)
    if not mixture.covariance.row.shared:
        values = np.take_along_axis(values, order.reshape(*order.shape, *(1,) * (values.ndim - 2)), axis=1)
    return (
        replace(
            mixture,
            weights=np.take_along_axis(np.asarray(mixture.weights), order, axis=1),
            means=np.take_along_axis(np.asarray(mixture.means), order[..., None], axis=1),
            covariance=Covariance(values, mixture.structure),
            feature_names=reference.feature_names,
        ),
        order,
    )


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
        those that are not clean; none is dropped.

    Raises:
        ValueError: not a fit, other data, a kind that is not known, or for "nonparametric" and "parametric" weights
            that do not add up to a whole number of rows.

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
    total = float(problem.w.sum())
    if kind != "weighted" and abs(total - round(total)) > 1e-9 * total:
        raise ValueError(
            f"kind={kind!r} draws a whole number of rows, and the weights add up to {total:.6g}; "
            "use kind='weighted'"
        )
    refits = _refit(problem, fit, kind, seeds(key, n_draws), f"{kind} bootstrap")
    mixture, order = ordered(problem, refits.mixture, fit.mixture)
    converged = np.isin(refits.names, ("converged", "few_rows"))
    stats = {
        "objective": refits.objective + problem.units.log_volume * total,
        "steps": refits.steps,
        "clean": refits.clean,
        "converged": converged,
        "permuted": (order != np.arange(order.shape[1])).any(axis=1),
    }
    attributes = {
        "method": f"{kind} bootstrap",
        "n_draws": n_draws,
        "n_not_clean": int((~refits.clean).sum()),
        "n_not_converged": int((~converged).sum()),
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
    if (problem.w != np.round(problem.w)).any():
        raise ValueError(
            "jackknife leaves out one observation at a time, so sample_weight must be whole numbers"
        )
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
