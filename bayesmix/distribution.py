"""The laws of the story as NumPyro distributions, in terms of precision factors.

    x | z ~ Normal(means[z], (WᵀW)⁻¹)          `ClusterNormal`
    x     ~ Σ_k weights[k] Normal(means[k], (WᵀW)⁻¹)    `MixtureDistribution`

W is any matrix in the covariance's storage with |W_k (x - m_k)|² the squared Mahalanobis distance, such as
the inverse of Σ_k's Cholesky factor, or Cᵀ where C Cᵀ = Σ_k⁻¹. Sampling C, as the sites below do, leaves
nothing to factor or to invert in the density. Everything here follows the global JAX flag, as NumPyro does.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from bayesmix.covariance import STORAGES, Structure
from bayesmix.inputs import is_traced
from bayesmix.mixture import Covariance, GaussianMixture, log_sum, precision_factor
from bayesmix.prior import ConjugatePrior

__all__ = ["SITES", "ClusterNormal", "MixtureDistribution", "Site", "draw_parameters", "draws"]


class ClusterNormal(dist.Distribution):
    """Normal(means, (WᵀW)⁻¹), of every cluster, or of the cluster z that each draw belongs to.

    Args:
        means: (..., d).
        factor: W in the storage's layout, one a mean or one for all.
        storage: a row of `STORAGES`.
        z: which mean and factor each draw takes; `None` takes each once.
    """

    _support = constraints.real_vector
    pytree_data_fields = ("means", "factor", "z")
    pytree_aux_fields = ("storage",)

    def __init__(
        self,
        means: Float[Array, "*k d"],
        factor: Array,
        storage: str,
        z: Int[Array, "*n"] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.means = jnp.asarray(means)
        self.factor = jnp.asarray(factor)
        self.storage, self.z = storage, z
        batch = _leading(self.means, self.factor, storage) if z is None else jnp.shape(z)
        super().__init__(batch, self.means.shape[-1:], validate_args=validate_args)

    def _of_draws(self, matrices: Array) -> tuple[Array, Array]:
        """Means and matrices, each taken at z."""
        if self.z is None:
            return self.means, matrices
        leading = _leading(self.means, self.factor, self.storage)
        matrices = jnp.broadcast_to(matrices, leading + matrices.shape[matrices.ndim - _axes(self.storage) :])
        return self.means[self.z], matrices[self.z]

    @validate_sample
    def log_prob(self, value: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        d = self.event_shape[0]
        means, factor = self._of_draws(self.factor)
        y = _apply(self.storage, factor, value - means)
        return _log_det(self.storage, factor, d) - d / 2 * math.log(2 * math.pi) - jnp.sum(y * y, axis=-1) / 2

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n d"]:
        means, root = self._of_draws(_inverse(self.storage, self.factor))
        assert key is not None
        standard = jax.random.normal(key, sample_shape + self.batch_shape + self.event_shape, means.dtype)
        return means + _apply(self.storage, root, standard)


class MixtureDistribution(dist.Distribution):
    """p(x) = Σ_k weights[k] Normal(x | means[k], covariances[k]): a `GaussianMixture` as a NumPyro site.

    Args:
        mixture: the parameters; under NumPyro they may be traced.
        factor: W of each cluster where it is known, so that nothing is factored.

    Example:
        >>> import bayesmix as bm
        >>> import numpy as np
        >>> from bayesmix.distribution import MixtureDistribution
        >>> mixture = bm.GaussianMixture.of([0.5, 0.5], [[-1.0], [1.0]], [[[1.0]], [[1.0]]])
        >>> round(float(MixtureDistribution(mixture).log_prob(np.array([0.0]))), 3)
        -1.419
    """

    _support = constraints.real_vector
    pytree_data_fields = ("mixture", "factor")

    def __init__(
        self,
        mixture: GaussianMixture,
        factor: Array | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.mixture = mixture
        self.factor = (
            precision_factor(mixture.covariance, mixture.n_features)[0] if factor is None else factor
        )
        super().__init__((), (mixture.n_features,), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return False  # no gradient flows through z

    @validate_sample
    def log_prob(self, value: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        points = jnp.asarray(value)
        d = self.event_shape[0]
        storage = STORAGES[self.mixture.covariance.row.storage]
        weights = jnp.asarray(self.mixture.weights)
        # The points come last here, as everywhere inside a block: XLA vectorises along them.
        deviations = points.reshape(-1, d).T - jnp.asarray(self.mixture.means)[:, :, None]
        y = storage.whiten(self.factor, deviations)
        log_det = _log_det(self.mixture.covariance.row.storage, self.factor, d)
        positive = weights > 0
        log_weights = jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)), -jnp.inf)
        constant = log_weights + log_det - d / 2 * math.log(2 * math.pi)
        return log_sum(constant[:, None] - jnp.sum(y * y, axis=1) / 2).reshape(points.shape[:-1])

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n d"]:
        assert key is not None
        coin, noise = jax.random.split(key)
        z = dist.CategoricalProbs(jnp.asarray(self.mixture.weights)).sample(coin, sample_shape)
        return ClusterNormal(self.mixture.means, self.factor, self.mixture.covariance.row.storage, z).sample(
            noise
        )


def _axes(storage: str) -> int:
    return STORAGES[storage].axes


def _leading(means: Array, factor: Array, storage: str) -> tuple[int, ...]:
    return jnp.broadcast_shapes(means.shape[:-1], factor.shape[: factor.ndim - _axes(storage)])


def _apply(storage: str, matrices: Array, vectors: Array) -> Array:
    return STORAGES[storage].apply(matrices, vectors)


def _inverse(storage: str, factor: Array) -> Array:
    return jnp.linalg.inv(factor) if _axes(storage) == 2 else 1 / factor


def _log_det(storage: str, factor: Array, d: int) -> Array:
    diagonal = STORAGES[storage].diagonal(factor)
    return jnp.sum(jnp.log(jnp.broadcast_to(diagonal, (*diagonal.shape[:-1], d))), axis=-1)


def _inverse_cholesky(scale: Any) -> Any:
    """Lower L, L Lᵀ = scale⁻¹; in float64 where it can be, as float32 may not hold a thin scale's inverse."""
    numbers = jnp if is_traced(scale) else np
    upper = numbers.linalg.cholesky(numbers.asarray(scale)[::-1, ::-1])[::-1, ::-1]
    return jnp.tril(numbers.linalg.inv(upper).T)


class Site(NamedTuple):
    """How a storage's precision is drawn: the site's name, its law, and the factor C, C Cᵀ = Σ⁻¹, in it."""

    name: str
    law: Callable[[ConjugatePrior], dist.Distribution]
    cholesky: Callable[[Array], Array]


SITES: dict[str, Site] = {
    "full": Site(
        "precision_cholesky",
        lambda p: dist.WishartCholesky(p.degrees_of_freedom, scale_tril=_inverse_cholesky(p.scale)),
        lambda c: c,
    ),
    "diagonal": Site(
        "precisions",
        lambda p: dist.Gamma(
            p.degrees_of_freedom / 2, jnp.broadcast_to(jnp.asarray(p.scale) / 2, (p.n_features,))
        ).to_event(1),
        jnp.sqrt,
    ),
    "spherical": Site(
        "precision",
        lambda p: dist.Gamma(p.degrees_of_freedom / 2, jnp.asarray(p.scale) / 2),
        jnp.sqrt,
    ),
}


def draw_parameters(
    prior: ConjugatePrior, n_components: int, row: Structure
) -> tuple[GaussianMixture, Array]:
    """θ ~ prior: declares the sites `weights`, the storage's own, and `means`; also W of each cluster."""
    storage, site = STORAGES[row.storage], SITES[row.storage]
    concentration = jnp.broadcast_to(jnp.asarray(prior.concentration, float), (n_components,))
    weights = numpyro.sample("weights", dist.Dirichlet(concentration))
    shared: Any = numpyro.sample(site.name, site.law(prior)) if row.shared else None
    with numpyro.plate("cluster", n_components):
        drawn: Any = numpyro.sample(site.name, site.law(prior)) if shared is None else shared[None]
        cholesky = site.cholesky(drawn)
        factor = jnp.swapaxes(cholesky, -1, -2) if storage.axes == 2 else cholesky
        law = ClusterNormal(prior.mean, jnp.sqrt(prior.mean_count) * factor, row.storage)
        means = numpyro.sample("means", law)
    values = storage.gram(storage.inverse(cholesky))
    return GaussianMixture(weights, means, Covariance(values, row.name)), factor


@partial(jax.jit, static_argnums=(0, 3))
def draws(
    story: Callable[[ConjugatePrior | None, int], tuple[GaussianMixture, dict[str, Array]]],
    prior: ConjugatePrior | None,
    keys: Array,
    n: int,
) -> tuple[GaussianMixture, dict[str, Array], dict[str, Array]]:
    """The story once for each key: the mixtures, a program's own sites, and z and x of n points.

    Draw by draw, so that beyond what is returned the memory is that of one draw.
    """

    def draw(key: Array) -> tuple[GaussianMixture, dict[str, Array], dict[str, Array]]:
        with handlers.trace() as sites, handlers.seed(rng_seed=key):
            mixture, drawn = story(prior, n)
        own = {
            name: site["value"]
            for name, site in sites.items()
            if prior is None and site["type"] in ("sample", "deterministic") and name not in drawn
        }
        return jax.tree.map(jnp.asarray, mixture), own, drawn

    return jax.lax.map(draw, keys)
