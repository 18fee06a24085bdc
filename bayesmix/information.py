"""How sure a point fit is, by calculus: the curvature of the log-likelihood at the fit.

The observed information is taken in an unconstrained parametrisation (`chart`), and its inverse mapped to weights,
means and covariances by the delta method.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesmix import density
from bayesmix.chart import Chart, chart
from bayesmix.density import precision_factor
from bayesmix.inputs import double_precision, to_numpy
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import Penalty, log_prior
from bayesmix.problem import inside, problem_of
from bayesmix.results import Fit
from bayesmix.statistics import Observations

if TYPE_CHECKING:
    import pandas

__all__ = ["StandardErrors", "standard_errors"]


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
