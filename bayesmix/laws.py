"""Laws of precisions and means in terms of Cholesky factors, whose densities take products alone.

NumPyro's `WishartCholesky` and `MultivariateNormal` solve by their scale in each density and gradient; a chain that
samples C, C Cᵀ = Σ⁻¹, has nothing to solve. Gamma numbers come from `variates`: NumPyro's, by `jax.random.gamma`, take
seconds to compile.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import xlogy
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from bayesmix.covariance import Structure
from bayesmix.elementary import gammaln, multigammaln
from bayesmix.inputs import is_traced
from bayesmix.storage import STORAGES, inverse_cholesky
from bayesmix.supports import lower_cholesky, simplex
from bayesmix.variates import log_gamma, split, uniform, wishart_factor, words_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = [
    "Dirichlet", "Gamma", "MeansByPrecision", "WishartCholesky", "WishartCholeskyByRate", "bartlett", "transposed",
]  # fmt: skip


class WishartCholeskyByRate(dist.Distribution):
    """C lower triangular, C Cᵀ ~ Wishart(degrees_of_freedom, rate⁻¹).

    With L Lᵀ = rate, the trace of rate C Cᵀ is the sum of squares of LᵀC.
    """

    _support = lower_cholesky
    pytree_data_fields = ("degrees_of_freedom", "rate")

    def __init__(self, degrees_of_freedom: Any, rate: Any, *, validate_args: bool | None = None) -> None:
        self.degrees_of_freedom, self.rate = degrees_of_freedom, rate
        super().__init__((), jnp.shape(rate), validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: Float[Array, "*n d d"]) -> Float[Array, "*n"]:
        nu, d = self.degrees_of_freedom, self.event_shape[-1]
        numbers = jnp if is_traced(self.rate) else np  # float32 may not hold a thin rate
        rate: Any = numbers.asarray(self.rate)
        root = jnp.asarray(STORAGES["full"].cholesky(rate))
        diagonal = STORAGES["full"].diagonal
        volume = jnp.sum(jnp.log(diagonal(root)))
        normaliser = multigammaln(nu / 2, d) + d * (nu / 2 - 1) * math.log(2) - nu * volume
        logs = jnp.log(diagonal(value)) @ (nu - 1 - jnp.arange(d))
        return logs - jnp.sum((root.T @ value) ** 2, axis=(-1, -2)) / 2 - normaliser

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n d d"]:
        assert key is not None
        d = self.event_shape[-1]
        return inverse_cholesky(self.rate) @ bartlett(key, self.degrees_of_freedom, d, sample_shape)


class WishartCholesky(dist.WishartCholesky):
    """NumPyro's, with draws that compile faster."""

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n d d"]:
        assert key is not None
        batch, d = (*sample_shape, *self.batch_shape), self.event_shape[-1]
        scale_tril: Any = self.scale_tril
        return scale_tril @ bartlett(key, self.concentration, d, batch)


class Gamma(dist.Gamma):
    """NumPyro's, with a density and draws that compile faster."""

    @validate_sample
    def log_prob(self, value: Float[Array, "*n"]) -> Float[Array, "*n"]:
        concentration, rate = cast("tuple[Array, Array]", (self.concentration, self.rate))
        normaliser = gammaln(concentration) - concentration * jnp.log(rate)
        return xlogy(concentration - 1, value) - rate * value - normaliser

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n"]:
        assert key is not None
        concentration, rate = cast("tuple[Array, Array]", (self.concentration, self.rate))
        shapes = jnp.broadcast_to(concentration, (*sample_shape, *self.batch_shape))
        return jnp.exp(log_gamma(words_of(key), shapes)) / rate


class Dirichlet(dist.Dirichlet):
    """NumPyro's, with a density and draws that compile faster."""

    support = simplex

    @validate_sample
    def log_prob(self, value: Float[Array, "*n k"]) -> Float[Array, "*n"]:
        concentration = cast("Array", self.concentration)
        normaliser = jnp.sum(gammaln(concentration), axis=-1) - gammaln(jnp.sum(concentration, axis=-1))
        return jnp.sum(xlogy(concentration - 1, value), axis=-1) - normaliser

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n k"]:
        assert key is not None
        shapes = jnp.broadcast_to(self.concentration, (*sample_shape, *self.batch_shape, *self.event_shape))
        return jax.nn.softmax(log_gamma(words_of(key), shapes), axis=-1)


class MeansByPrecision(dist.Distribution):
    """means[k] ~ Normal(center[k], (count W_kᵀW_k)⁻¹), W upper triangular in the storage of the covariances.

    Args:
        center: (k, d).
        factor: W (k|1, ...).
        count: how many points a prior mean is worth.
        row: the structure, whose storage it is.
    """

    _support = constraints.real_vector
    pytree_data_fields = ("center", "factor", "count")
    pytree_aux_fields = ("row",)

    def __init__(
        self, center: Array, factor: Array, count: Any, row: Structure, *, validate_args: bool | None = None
    ) -> None:
        self.center, self.factor, self.count, self.row = center, factor, count, row
        super().__init__(center.shape[:-1], center.shape[-1:], validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: Float[Array, "*n k d"]) -> Float[Array, "*n k"]:
        d, form = self.event_shape[0], self.row.form
        whitened = form.apply(self.factor, jnp.asarray(value) - self.center)
        roots = jnp.broadcast_to(form.diagonal(self.factor), self.center.shape)
        logs = jnp.sum(jnp.log(roots), axis=-1) + d / 2 * jnp.log(self.count / (2 * math.pi))
        return logs - self.count * jnp.sum(whitened * whitened, axis=-1) / 2

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n k d"]:
        assert key is not None
        noise = jax.random.normal(key, (*sample_shape, *self.center.shape), self.center.dtype)
        form, turned = self.row.form, transposed if self.row.form.axes == 2 else lambda factor: factor
        root = turned(form.inverse(turned(self.factor)))
        return self.center + form.apply(root, noise / jnp.sqrt(self.count))


def bartlett(key: Array, nu: Any, d: int, batch: tuple[int, ...]) -> Float[Array, "*n d d"]:
    """Lower factors of Wishart draws of unit scale."""
    above, below = split(words_of(key), 2)
    shapes = jnp.broadcast_to((jnp.asarray(nu, float)[..., None] - jnp.arange(d)) / 2, (*batch, d))
    root = jnp.sqrt(2 * jnp.exp(log_gamma(above, shapes)))
    return wishart_factor(root, uniform(below, (2, *batch, d, d)))


def transposed(factor: Array) -> Array:
    return jnp.swapaxes(factor, -1, -2)
