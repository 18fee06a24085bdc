"""The law of θ when every point's cluster is known: conjugate, so a closed form, cluster by cluster.

With n, x̄ and W the count, mean and scatter of a cluster, κ = mean_count, m the prior mean, ν and S the prior's degrees
of freedom and scale,

    weights      ~ Dirichlet(concentration + n)
    Σ⁻¹          ~ Wishart(ν + n, (S + W + κ n / (κ + n) (x̄ - m)(x̄ - m)ᵀ)⁻¹)       gamma laws in the other storages
    means | Σ    ~ Normal((κ m + n x̄) / (κ + n), Σ / (κ + n))

A shared Σ adds up counts and scatters. Without data it is the prior. Everything is in the units of the loop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.covariance import Covariance, Structure
from bayesmix.elementary import gammaln, multigammaln
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior
from bayesmix.statistics import Statistics
from bayesmix.storage import STORAGES, inverse_cholesky, per_cluster
from bayesmix.variates import PER_GAMMA, log_gamma_of, normal_of, uniform, wishart_factor

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = [
    "Law",
    "Parameters",
    "blank",
    "conditional_law",
    "draw",
    "log_densities",
    "mixture_of",
    "parameters_of",
]


class Parameters(NamedTuple):
    """θ with each precision by its factor: C Cᵀ = Σ⁻¹ in storage (k|1, ...)."""

    weights: Any
    means: Any
    cholesky: Any


def blank(row: Structure, shape: tuple[int, int, int]) -> GaussianMixture:
    """Mixtures without numbers that are looked at, (s, k, d), which take no memory."""
    s, k, d = shape
    values = np.broadcast_to(0.0, (s, 1 if row.shared else k, *(d,) * row.form.axes))
    return GaussianMixture(
        np.broadcast_to(0.0, (s, k)), np.broadcast_to(0.0, shape), Covariance(values, row.name)
    )


def mixture_of(theta: Parameters, row: Structure) -> GaussianMixture:
    """The mixtures that parameters (..., k, ...) stand for, as NumPy arrays."""
    cholesky = np.asarray(theta.cholesky)
    if row.storage == "full":
        values = np.linalg.inv(cholesky @ np.swapaxes(cholesky, -1, -2))
        values = (values + np.swapaxes(values, -1, -2)) / 2
    else:
        values = 1 / cholesky**2
    return GaussianMixture(np.asarray(theta.weights), np.asarray(theta.means), Covariance(values, row.name))


def parameters_of(mixture: GaussianMixture) -> Parameters:
    """The parameters of mixtures (..., k, ...)."""
    values = np.asarray(mixture.covariance.values)
    full = mixture.covariance.row.storage == "full"
    return Parameters(
        mixture.weights, mixture.means, inverse_cholesky(values) if full else 1 / np.sqrt(values)
    )


class Law(NamedTuple):
    """Dirichlet, and a normal–inverse-Wishart or normal–inverse-gamma of each cluster."""

    concentration: Any  # (k,)
    strength: Any  # (k,) how many observations a mean is worth
    center: Any  # (k, d)
    degrees: Any  # (k|1,)
    scale: Any  # (k|1, ...) in storage; a sphere's is the sum over the features


def conditional_law(statistics: Statistics, prior: ConjugatePrior, row: Structure) -> Law:
    """The law of θ given the allocations, by their statistics."""
    storage, moments, d = row.form, statistics.moments, prior.n_features
    count, first = moments[:, 0], moments[:, 1 : 1 + d]
    strength = prior.mean_count + count
    mean = jnp.asarray(prior.mean)
    center = (prior.mean_count * mean + first) / strength[:, None]
    pulled = prior.mean_count * storage.outer(mean[None])
    pulled = pulled - per_cluster(strength, storage.axes) * storage.outer(center)
    if row.shared:
        scatter, behind = statistics.second + jnp.sum(pulled, axis=0, keepdims=True), jnp.sum(count)[None]
    else:
        scatter, behind = storage.second(moments[:, 1 + d :], d) + pulled, count
    cells = d if row.storage == "spherical" else 1  # a sphere's scatter is the mean over the features
    degrees, scale = prior.degrees_of_freedom + cells * behind, prior.scale + cells * scatter
    return Law(prior.concentration + count, strength, center, degrees, scale)


def draw(words: Array, law: Law, row: Structure) -> Parameters:
    """θ from its law. All random numbers come from one call: generating them is most of what is compiled."""
    axes, d = row.form.axes, law.center.shape[-1]
    shapes = per_cluster(law.degrees, axes and 1) / 2
    if axes:
        shapes = shapes - (jnp.arange(d) / 2 if axes == 2 else jnp.zeros(d))
    both = jnp.concatenate([jnp.ravel(shapes), law.concentration])
    counts = PER_GAMMA * both.size, 2 * law.center.size, 2 * law.scale.size * (axes == 2)
    gamma, mean, below = jnp.split(uniform(words, (sum(counts),)), np.cumsum(counts)[:-1])
    logs = log_gamma_of(gamma.reshape(-1, both.size), both)
    weights = jax.nn.softmax(logs[shapes.size :])
    root = jnp.exp(logs[: shapes.size].reshape(shapes.shape) / 2) * math.sqrt(2)  # of chi-squares
    if axes == 2:
        cholesky = inverse_cholesky(law.scale) @ wishart_factor(root, below.reshape(2, *law.scale.shape))
    else:
        cholesky = root / jnp.sqrt(law.scale)
    standard = normal_of(mean.reshape(2, *law.center.shape)) / jnp.sqrt(law.strength)[:, None]
    return Parameters(weights, law.center + _spread(cholesky, standard, axes), cholesky)


def _spread(cholesky: Array, standard: Array, axes: int) -> Array:
    """Noise of covariance (C Cᵀ)⁻¹ out of standard noise (k, d): C⁻ᵀ ε."""
    if axes < 2:
        return standard / (cholesky if axes == 1 else cholesky[:, None])
    storage = STORAGES["full"]
    return storage.apply(jnp.swapaxes(storage.inverse(cholesky), -1, -2), standard)


def _dirichlet_constant(law: Law) -> Array:
    """The log normaliser of the Dirichlet."""
    return gammaln(jnp.sum(law.concentration)) - jnp.sum(gammaln(law.concentration))


def log_densities(law: Law, at: Parameters, row: Structure) -> tuple[Float[Array, "k k"], Array]:
    """The log density of (weights, means, covariances) in parts.

    Returns:
        Of each of the clusters of `at` (rows) under the law of each cluster (columns), and a part that all share: the
        log density of a labelling is the sum of its k entries and that part.
    """
    storage, d = row.form, law.center.shape[-1]
    factor = jnp.swapaxes(at.cholesky, -1, -2) if storage.axes == 2 else at.cholesky
    diagonal = storage.diagonal(factor)
    own = jnp.broadcast_to(diagonal, (diagonal.shape[0], d))
    log_det = 2 * jnp.sum(jnp.log(own), axis=-1)  # of each precision (k|1,)
    y = storage.whiten(factor, jnp.swapaxes(at.means[:, None] - law.center, 1, 2))  # (k, d, laws)
    logs = jnp.log(jnp.maximum(at.weights, 1e-300))
    parts = (law.concentration - 1) * logs[:, None] - law.strength / 2 * jnp.sum(y * y, axis=1)
    parts = parts + (log_det[:, None] + d * jnp.log(law.strength / (2 * math.pi))) / 2
    precision = storage.gram(factor)
    cells = {"full": 1, "diagonal": d, "spherical": 1}[row.storage]
    axes = tuple(range(2, 2 + storage.axes))
    trace = jnp.sum(precision[:, None] * law.scale, axis=axes)  # (k|1, laws|1)
    nu = law.degrees
    if storage.axes == 2:
        log_scale = 2 * jnp.sum(jnp.log(storage.diagonal(storage.cholesky(law.scale))), axis=-1)
        constant = nu / 2 * log_scale - nu * d / 2 * math.log(2) - multigammaln(nu / 2, d)
        covariance = constant + (nu + d + 1) / 2 * log_det[:, None] - trace / 2
    else:
        logs = jnp.log(law.scale / 2).reshape(len(nu), -1).sum(axis=1)
        constant = nu / 2 * logs - cells * gammaln(nu / 2)
        of_cells = jnp.sum(jnp.log(diagonal), axis=-1) * 2  # one variance a cell
        covariance = constant + (nu / 2 + 1) * of_cells[:, None] - trace / 2
    if row.shared:
        return parts, _dirichlet_constant(law) + covariance[0, 0]
    return parts + covariance, _dirichlet_constant(law)
