"""How a conjugate prior enters the loop: as pseudo-observations in the M-step and as a term of the objective.

Under the normal–inverse-Wishart and normal–inverse-gamma of `ConjugatePrior` the posterior mode with respect to
(weights, means, covariances) has the closed form of the M-step itself, with κ = mean_count, ν the degrees of freedom
and m the prior mean:

    mean_k    = (n_k x̄_k + κ m) / (n_k + κ)
    scatter_k = W_k + κ n_k / (n_k + κ) (x̄_k - m)(x̄_k - m)ᵀ + scale
    count_k   = n_k + 1 + (ν + d + 1)        full storage; ν + 2 diagonal; (ν + 2) / d spherical

and Σ_k = scatter_k / count_k; a shared Σ adds the scatters and the n_k + 1, and `scale` and the rest once.

References:
    Fraley & Raftery (2007), Bayesian regularization for normal mixture estimation and model-based clustering,
    Journal of Classification 24, tables 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.covariance import Structure
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior
from bayesmix.storage import numbers
from bayesmix.units import Units

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["Penalty", "log_prior", "log_prior_parts", "penalty", "rescaled", "to_data_units"]


class Penalty(NamedTuple):
    """A conjugate prior in the units of the loop, in the terms of its M-step."""

    concentration: Any  # (k,)
    mean: Any  # (d,)
    mean_count: Any
    count: Any  # pseudo-observations behind each covariance
    scatter: Any  # their scatter in storage (1, ...)
    constant: Any  # log normaliser of the density of (weights, means, covariances)


def rescaled(prior: ConjugatePrior, units: Units, row: Structure) -> ConjugatePrior:
    """The same prior for parameters in the units of the loop."""
    scale = np.asarray(prior.scale, np.float64)
    by = {
        "full": np.outer(units.scale, units.scale),
        "diagonal": units.scale**2,
        "spherical": units.scale[0] ** 2,
    }
    center = units.of(np.asarray(prior.mean, np.float64))
    return replace(prior, mean=center, scale=scale / by[row.storage])


def penalty(prior: ConjugatePrior, units: Units, row: Structure, k: int) -> Penalty:
    """The prior in the units of the loop."""
    prior = rescaled(prior, units, row)
    d, nu = prior.n_features, float(prior.degrees_of_freedom)
    concentration = np.broadcast_to(np.asarray(prior.concentration, np.float64), (k,))
    own = 1 if row.shared else k
    kappa = float(prior.mean_count)
    if row.storage == "full":
        scatter = np.asarray(prior.scale)
        log_det = np.linalg.slogdet(scatter)[1]
        gammas = sum(math.lgamma((nu - j) / 2) for j in range(d)) + d * (d - 1) / 4 * math.log(math.pi)
        constant = nu / 2 * log_det - nu * d / 2 * math.log(2) - gammas
        count = nu + d + 1
    else:
        cells = d if row.storage == "diagonal" else 1
        rates = np.broadcast_to(prior.scale, (cells,)) / 2
        constant = float(np.sum(nu / 2 * np.log(rates))) - cells * math.lgamma(nu / 2)
        scatter = 2 * rates if row.storage == "diagonal" else 2 * rates[0] / d
        count = nu + 2 if row.storage == "diagonal" else (nu + 2) / d
    dirichlet = math.lgamma(concentration.sum()) - sum(map(math.lgamma, concentration))
    constant = own * constant + dirichlet + k * d / 2 * math.log(kappa / (2 * math.pi))
    return Penalty(concentration, prior.mean, kappa, count, np.asarray(scatter)[None], constant)


def to_data_units(units: Units, row: Structure, k: int) -> float:
    """What to add to `log_prior` in loop units to have the density of parameters in the data's own units."""
    logs = np.log(units.scale)
    axes = {"full": (len(logs) + 1) * logs.sum(), "diagonal": 2 * logs.sum(), "spherical": 2 * logs[0]}
    return -float(k * logs.sum() + (1 if row.shared else k) * axes[row.storage])


def log_prior(penalty: Penalty, mixture: GaussianMixture, factor: tuple[Array, Array]) -> Array:
    """log p(weights, means, covariances), normalised, in loop units; `factor` is `precision_factor`'s."""
    return sum(log_prior_parts(penalty, mixture, factor).values(), penalty.constant)


def log_prior_parts(
    penalty: Penalty, mixture: GaussianMixture, factor: tuple[Array, Array]
) -> dict[str, Array]:
    """The terms of `log_prior` by parameter, without its constant; means given covariances.

    Also of mixtures (...,) on NumPy arrays, of each.
    """
    storage, k, d = mixture.covariance.storage, mixture.n_components, mixture.n_features
    w, log_det = factor
    n, lead = numbers(w), mixture.weights.shape[:-1]

    def total(terms: Any) -> Any:
        return terms.reshape(*lead, -1).sum(axis=-1)

    y = storage.apply(w, mixture.means - penalty.mean)
    times = 1 if storage.axes else d
    # 0 log 0 = 0: with a concentration of one, an empty cluster is as likely as another.
    logs = n.log(n.maximum(mixture.weights, 1e-300))
    return {
        "weights": total((penalty.concentration - 1) * logs),
        "means": total(n.broadcast_to(log_det, (*lead, k))) - penalty.mean_count / 2 * total(y * y),
        "covariances": penalty.count * total(log_det) - times / 2 * total(storage.gram(w) * penalty.scatter),
    }
