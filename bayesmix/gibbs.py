"""Conjugate blocked Gibbs sampling: all z given θ, then all of θ given z, as a NumPyro kernel.

A sweep draws z in the one pass over the data that gives EM its statistics, then, with n, x̄ and W the count, mean and
scatter of a cluster (of z), κ = mean_count, m the prior mean, ν and S the prior's degrees of freedom and scale,

    weights      ~ Dirichlet(concentration + n)
    Σ⁻¹          ~ Wishart(ν + n, (S + W + κ n / (κ + n) (x̄ - m)(x̄ - m)ᵀ)⁻¹)       gamma laws in the other storages
    means | Σ    ~ Normal((κ m + n x̄) / (κ + n), Σ / (κ + n))

Nothing is rejected or tuned. A shared Σ adds up counts and scatters. Everything is in the units of the loop.

This module imports NumPyro; import it where it is used.

References:
    Diebolt & Robert (1994), Estimation of finite mixture distributions through Bayesian sampling, JRSS B 56.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from bayesmix.covariance import Covariance, Structure
from bayesmix.density import log_determinant
from bayesmix.distribution import inverse_cholesky
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior
from bayesmix.statistics import Observations, Statistics, summarize
from bayesmix.storage import per_cluster

__all__ = ["GibbsKernel", "GibbsState", "Parameters", "conditional_draw"]


class Parameters(NamedTuple):
    """θ with each precision by its factor: C Cᵀ = Σ⁻¹ in storage (k|1, ...)."""

    weights: Any
    means: Any
    cholesky: Any


class GibbsState(NamedTuple):
    """What the chain carries; `z` is NumPyro's name for what is sampled."""

    z: Parameters
    rng_key: Any


def conditional_draw(key: Array, statistics: Statistics, prior: ConjugatePrior, row: Structure) -> Parameters:
    """θ given the allocations, by their statistics."""
    storage = row.form
    moments, d = statistics.moments, prior.n_features
    count, first = moments[:, 0], moments[:, 1 : 1 + d]
    chance, below, noise = jax.random.split(key, 3)
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
    # One call for all gamma laws, whose sampler is the largest part of the program.
    shapes = per_cluster(degrees, storage.axes and 1) / 2
    if storage.axes:
        shapes = shapes - (jnp.arange(d) / 2 if storage.axes == 2 else jnp.zeros(d))
    logs = jax.random.loggamma(chance, jnp.concatenate([jnp.ravel(shapes), prior.concentration + count]))
    weights = jax.nn.softmax(logs[shapes.size :])
    root = jnp.exp(logs[: shapes.size].reshape(shapes.shape) / 2) * math.sqrt(2)  # of chi-squares
    if storage.axes == 2:  # Bartlett: the lower factor of a Wishart
        normal = jnp.tril(jax.random.normal(below, scale.shape), -1)
        cholesky = inverse_cholesky(scale) @ (normal + root[:, :, None] * jnp.eye(d))
    else:
        cholesky = root / jnp.sqrt(scale)
    standard = jax.random.normal(noise, center.shape) / jnp.sqrt(strength)[:, None]
    return Parameters(weights, center + _spread(cholesky, standard, storage.axes), cholesky)


def _spread(cholesky: Array, standard: Array, axes: int) -> Array:
    """Noise of covariance (C Cᵀ)⁻¹ out of standard noise (k, d): C⁻ᵀ ε."""
    k, d = standard.shape
    if axes < 2:
        return standard / (cholesky if axes == 1 else cholesky[:, None])
    factor = jnp.broadcast_to(cholesky, (k, d, d))
    solved = lax.linalg.triangular_solve(
        factor, standard[..., None], left_side=True, lower=True, transpose_a=True
    )
    return solved[..., 0]


class GibbsKernel(MCMCKernel):
    """The sweep as a kernel of `numpyro.infer.MCMC`; chains are vectorised.

    Args:
        observations: points whose cluster is unknown.
        fixed: statistics of the points whose cluster is given.
        prior: in the units of the observations.
        row: a structure whose clusters share everything or nothing.
        counts: weights are whole numbers other than one, each so many draws of z.
        permute: permute the labels at random after each sweep, which visits all k! of them alike.
    """

    def __init__(
        self,
        observations: Observations,
        fixed: Statistics,
        prior: ConjugatePrior,
        row: Structure,
        *,
        counts: bool = False,
        permute: bool = False,
    ) -> None:
        self._observations, self._fixed, self._prior, self._row = observations, fixed, prior, row
        self._responsibilities = "sampled_counts" if counts else "sampled"
        self._permute = permute

    @property
    def sample_field(self) -> str:
        return "z"

    def init(
        self,
        rng_key: Any,
        num_warmup: int,
        init_params: Parameters,
        model_args: tuple,
        model_kwargs: dict,
    ) -> GibbsState:
        return GibbsState(init_params, rng_key)

    def sample(self, state: GibbsState, model_args: tuple, model_kwargs: dict) -> GibbsState:
        return self._sweep(state) if is_prng_key(state.rng_key) else jax.vmap(self._sweep)(state)

    def _sweep(self, state: GibbsState) -> GibbsState:
        key, coin, noise, shuffle = jax.random.split(state.rng_key, 4)
        weights, means, cholesky = state.z
        structure, axes = self._row, self._row.form.axes
        factor = jnp.swapaxes(cholesky, -1, -2) if axes == 2 else cholesky
        # The values are not looked at: the factor says all.
        mixture = GaussianMixture(weights, means, Covariance(factor, structure.name))
        log_det = log_determinant(mixture.covariance, factor, means.shape[-1])
        statistics = summarize(
            mixture, self._observations, self._responsibilities, key=coin, factor=(factor, log_det)
        )
        drawn = conditional_draw(noise, statistics + self._fixed, self._prior, structure)
        if self._permute:
            order = jax.random.permutation(shuffle, weights.shape[0])
            drawn = drawn._replace(weights=drawn.weights[order], means=drawn.means[order])
            if not structure.shared:
                drawn = drawn._replace(cholesky=drawn.cholesky[order])
        return GibbsState(drawn, key)
