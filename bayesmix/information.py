"""How sure a point fit is, by calculus: the curvature of the log-likelihood at the fit.

The observed information is taken in an unconstrained parametrisation (`chart`), and its inverse mapped to weights,
means and covariances by the delta method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.chart import Chart, chart
from bayesmix.density import precision_factor
from bayesmix.devices import double_precision
from bayesmix.gaps import GapRows, log_likelihood
from bayesmix.inputs import to_numpy
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import Penalty, log_prior
from bayesmix.problem import Problem, inside, problem_of
from bayesmix.results import Fit

if TYPE_CHECKING:
    import pandas
    from jaxtyping import Array, Float

__all__ = ["StandardErrors", "standard_errors"]

_NUMBERS = 1 << 22  # that a block of points may take


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
    """Standard errors from the observed information.

    The Hessian of the log-likelihood (plus the log prior, for a posterior mode) at the fit, in an unconstrained
    parametrisation, inverted and mapped to weights, means and covariances by the delta method. What the fit held
    fixed has error zero. The data enter by Louis' formula, in one pass; the parametrisation is differentiated
    automatically, as is what rows with missing cells add.

    Args:
        fit: a fit by EM that ended at a maximum; of one that ended early the numbers are about where it stopped.
        x: the data that it was fitted to (n, d).
        sample_weight: (n,), as it was in the fit.

    Raises:
        ValueError: not a fit, other data, a spurious fit or one by hard EM, whose optimum is not the likelihood's;
            or an information matrix that is not positive definite, so that the fit is at no maximum.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44.
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
    if fit.hard:
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
    information, jacobian = _information(problem, around)
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


def _information(problem: Problem, around: Chart) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Minus the Hessian of the objective at the chart's centre, and the Jacobian of the parameters there.

    With f the derivative of log p(x, z) and r = p(z | x), Louis' formula asks for products of the data alone:

        ∇² Σ log p(x) = Σ E[∇² log p(x, z)] + Σ E[f fᵀ] - Σ E[f] E[f]ᵀ,   expectations under r.

    Around its own mean and covariance L Lᵀ a cluster moves by (log w, v, S) to w, m + L v, L (I + S) Lᵀ, and what is
    asked are polynomials of y = L⁻¹ (x - m). How these coordinates curve along the chart is differentiated.
    """
    mixture, p = around.center, around.size
    d, eye = mixture.n_features, np.eye(mixture.n_features)
    with double_precision():
        weights, means, covariances = jacobian = to_numpy(_jacobian(around, size=p))
    inverse = np.linalg.inv(np.linalg.cholesky(mixture.covariances))
    i, j = np.tril_indices(d) if mixture.covariance.storage.axes == 2 else np.diag_indices(d)
    within = np.einsum("kab,kbcp,kec->kaep", inverse, covariances, inverse, optimize=True)[:, i, j]
    inner = np.concatenate([(weights / mixture.weights[:, None])[:, None], inverse @ means, within], axis=1)
    constant = np.log(mixture.weights) + np.log(np.diagonal(inverse, axis1=1, axis2=2)).sum(axis=1)
    moments, between = np.zeros((*inner.shape[:2], inner.shape[1])), np.zeros((p, p))
    step, told = max(64, _NUMBERS // (p + inner[..., 0].size)), problem.told
    whole = np.arange(len(problem.x)) if problem.seen is None else np.flatnonzero(problem.seen.all(axis=1))
    for first in range(0, len(whole), step):
        rows = whole[first : first + step]
        x, w = problem.x[rows].astype(np.float64), problem.w[rows]
        y = inverse @ (x.T - mixture.means[:, :, None])
        logits = constant[:, None] - (y * y).sum(axis=1) / 2
        if told is not None:
            own = told[rows]
            logits[(own >= 0) & (own != np.arange(len(logits))[:, None])] = -np.inf
        r = np.exp(logits - logits.max(axis=0))
        r /= r.sum(axis=0)
        slope = (y[:, i] * y[:, j] - eye[i, j][:, None]) * np.where(i == j, 0.5, 1)[:, None]
        f = np.concatenate([np.ones_like(y[:, :1]), y, slope], axis=1)
        moments += (f * (r * w)[:, None]) @ np.swapaxes(f, 1, 2)
        mean = np.tensordot(inner, f * r[:, None], ((0, 1), (0, 1)))
        between += (mean * w) @ mean.T
    count, first_moment = moments[:, 0, 0], moments[:, 0, 1 : d + 1]
    excess = moments[:, 1 : d + 1, 1 : d + 1] - count[:, None, None] * eye  # Σ r (y yᵀ - I)
    entry = np.zeros((len(i), d, d))
    entry[np.arange(len(i)), i, j] = entry[np.arange(len(i)), j, i] = 1
    # Of log Normal(y | v, I + S): its second derivatives at v = 0, S = 0, summed with r.
    second = moments
    second[:, 1 : d + 1, 1 : d + 1] -= count[:, None, None] * eye
    cross = entry @ first_moment[:, None, :, None]
    second[:, d + 1 :, 1 : d + 1] -= cross[..., 0]
    second[:, 1 : d + 1, d + 1 :] -= np.swapaxes(cross[..., 0], 1, 2)
    pull = np.tensordot(entry @ (excess + count[:, None, None] / 2 * eye)[:, None], entry, ((2, 3), (2, 1)))
    second[:, d + 1 :, d + 1 :] -= (pull + np.swapaxes(pull, 1, 2)) / 2
    slopes = np.swapaxes(inverse, 1, 2) @ (excess / 2) @ inverse  # by the covariances
    with double_precision():
        bend = to_numpy(_bend(around, count, slopes, problem.rules.penalty, size=p))
    hessian = (np.swapaxes(inner, 1, 2) @ second @ inner).sum(axis=0) - between + bend
    gaps = problem.observations.gaps
    if gaps is not None:
        with double_precision():
            hessian = hessian + to_numpy(_of_gaps(around, gaps, size=p))
    return -(hessian + hessian.T) / 2, jacobian


@partial(jax.jit, static_argnames="size")
def _jacobian(around: Chart, size: int) -> tuple[Array, Array, Array]:
    """Of weights, means and covariances by the chart's vector, at its centre: (..., p)."""

    def parameters(vector: Array) -> tuple[Array, Array, Array]:
        mixture = around.mixture(vector)
        return mixture.weights, mixture.means, mixture.covariances

    return jax.jacfwd(parameters)(jnp.zeros(size))


@partial(jax.jit, static_argnames="size")
def _bend(around: Chart, count: Array, slopes: Array, penalty: Penalty | None, size: int) -> Array:
    """The Hessian of Σ count log w + Σ slopes Σ_k, which is that of the chart, and of the log prior."""

    def objective(vector: Array) -> Array:
        mixture = around.mixture(vector)
        total = count @ jnp.log(mixture.weights) + jnp.sum(slopes * mixture.covariances)
        if penalty is None:
            return total
        return total + log_prior(penalty, mixture, precision_factor(mixture.covariance, mixture.n_features))

    return _hessian(objective, size)


@partial(jax.jit, static_argnames="size")
def _of_gaps(around: Chart, gaps: GapRows, size: int) -> Array:
    """The Hessian of what the rows with missing cells add to the log-likelihood."""
    return _hessian(lambda vector: log_likelihood(around.mixture(vector), gaps), size)


def _hessian(objective: Callable[[Array], Array], size: int) -> Array:
    """Of a function of the chart's vector at its centre, column by column."""
    zero = jnp.zeros(size)

    def column(direction: Array) -> Array:
        return jax.jvp(jax.grad(objective), (zero,), (direction,))[1]

    return jax.lax.map(column, jnp.eye(size))
