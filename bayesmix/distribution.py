"""The laws of the story as NumPyro distributions, in terms of precision factors.

    x | z ~ Normal(means[z], (WᵀW)⁻¹)                   NumPyro's MultivariateNormal, by `scale_tril`
    x     ~ Σ_k weights[k] Normal(means[k], (WᵀW)⁻¹)    `MixtureDistribution`

W is any triangular matrix in the covariance's storage with |W_k (x - m_k)|² the squared Mahalanobis distance,
such as the inverse of Σ_k's Cholesky factor, or Cᵀ where C Cᵀ = Σ_k⁻¹. Sampling C, as the sites below do, leaves
nothing to factor or to invert in the marginal density. Everything here follows the global JAX flag, as NumPyro
does.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from bayesmix.covariance import Covariance, Structure
from bayesmix.density import log_joint, log_sum, precision_factor
from bayesmix.inputs import is_traced
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior, require_site
from bayesmix.storage import STORAGES

__all__ = [
    "SITES", "MixtureDistribution", "Site", "draw_parameters", "draws", "inverse_cholesky", "scale_trils",
]  # fmt: skip


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
        block = points.reshape(-1, self.event_shape[0]).T
        return log_sum(log_joint(self.mixture, block, self.factor)).reshape(points.shape[:-1])

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n d"]:
        assert key is not None
        coin, noise = jax.random.split(key)
        z = dist.CategoricalProbs(jnp.asarray(self.mixture.weights)).sample(coin, sample_shape)
        scale_tril = scale_trils(self.mixture, self.factor)
        return dist.MultivariateNormal(jnp.asarray(self.mixture.means)[z], scale_tril=scale_tril[z]).sample(
            noise
        )


def scale_trils(mixture: GaussianMixture, factor: Array) -> Float[Array, "k d d"]:
    """Every cluster's lower Cholesky factor, dense, from W: by QR, which keeps what squaring would lose."""
    k, d = mixture.n_components, mixture.n_features
    storage = mixture.covariance.storage
    if storage.axes == 2:
        root = jnp.linalg.qr(jnp.swapaxes(jnp.linalg.inv(factor), -1, -2), mode="r")
        sign = jnp.sign(jnp.diagonal(root, axis1=-2, axis2=-1))
        dense = jnp.swapaxes(sign[..., None] * root, -1, -2)
    else:
        dense = storage.dense(1 / factor, d)
    return jnp.broadcast_to(dense, (k, d, d))


def inverse_cholesky(scale: Any) -> Any:
    """Lower L, L Lᵀ = scale⁻¹ (..., d, d); in float64 where it can be: float32 may not hold a thin scale's inverse."""
    numbers = jnp if is_traced(scale) else np
    lower = numbers.linalg.cholesky(numbers.asarray(scale)[..., ::-1, ::-1])
    inverse = STORAGES["full"].inverse(jnp.asarray(lower)) if numbers is jnp else np.linalg.inv(lower)
    return numbers.tril(numbers.swapaxes(inverse[..., ::-1, ::-1], -1, -2))


class Site(NamedTuple):
    """How a storage's precision is drawn: the site's name, its law, and the factor C, C Cᵀ = Σ⁻¹, in it."""

    name: str
    law: Callable[[ConjugatePrior], dist.Distribution]
    cholesky: Callable[[Array], Array]


SITES: dict[str, Site] = {
    "full": Site(
        "precision_cholesky",
        lambda p: dist.WishartCholesky(p.degrees_of_freedom, scale_tril=inverse_cholesky(p.scale)),
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
    """θ ~ prior: declares the sites `weights`, the storage's own, and `means`; also W of each cluster.

    Raises:
        ValueError: the structure ties the clusters in a way that no site has.
    """
    require_site(row)
    storage, site = STORAGES[row.storage], SITES[row.storage]
    concentration = jnp.broadcast_to(jnp.asarray(prior.concentration, float), (n_components,))
    weights = numpyro.sample("weights", dist.Dirichlet(concentration))
    shared: Any = numpyro.sample(site.name, site.law(prior)) if row.shared else None
    with numpyro.plate("cluster", n_components):
        drawn: Any = numpyro.sample(site.name, site.law(prior)) if shared is None else shared[None]
        cholesky = site.cholesky(drawn)
        factor = jnp.swapaxes(cholesky, -1, -2) if storage.axes == 2 else cholesky
        values = storage.gram(storage.inverse(cholesky))
        center = jnp.broadcast_to(jnp.asarray(prior.mean, float), (n_components, prior.n_features))
        mixture = GaussianMixture(weights, center, Covariance(values, row.name))
        scale_tril = scale_trils(mixture, factor) / jnp.sqrt(prior.mean_count)
        means = numpyro.sample("means", dist.MultivariateNormal(center, scale_tril=scale_tril))
    return replace(mixture, means=means), factor


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
