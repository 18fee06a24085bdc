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
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from bayesmix.covariance import Covariance, Structure
from bayesmix.density import log_joint, log_sum, precision_factor
from bayesmix.laws import Dirichlet, Gamma, MeansByPrecision, WishartCholeskyByRate, transposed
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior, require_site
from bayesmix.storage import inverse_cholesky

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = [
    "SITES", "MixtureDistribution", "Site", "by_precision", "declare", "draw_parameters", "draws",
    "precision_sites", "scale_trils",
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
    """Every cluster's lower Cholesky factor, dense, from W: by QR, which keeps what squaring would lose.

    With its features in reverse order W is Q R, so Σ⁻¹ is RᵀR, and the reverse of R⁻¹ is lower.
    """
    k, d = mixture.n_components, mixture.n_features
    storage = mixture.covariance.storage
    if storage.axes == 2:
        root = transposed(jnp.linalg.qr(factor[..., ::-1], mode="r"))
        sign = jnp.sign(jnp.diagonal(root, axis1=-2, axis2=-1))
        dense = transposed(storage.inverse(root * sign[..., None, :]))[..., ::-1, ::-1]
    else:
        dense = storage.dense(1 / factor, d)
    return jnp.broadcast_to(dense, (k, d, d))


class Site(NamedTuple):
    """How a storage's precision is drawn: the site's name, its law, and the factor C, C Cᵀ = Σ⁻¹, in it."""

    name: str
    law: Callable[[Any, Any, int], dist.Distribution]  # degrees of freedom, scale, number of features
    cholesky: Callable[[Array], Array]


SITES: dict[str, Site] = {
    "full": Site(
        "precision_cholesky",
        lambda nu, scale, d: WishartCholeskyByRate(nu, scale),
        lambda c: c,
    ),
    "diagonal": Site(
        "precisions",
        lambda nu, scale, d: Gamma(nu / 2, jnp.broadcast_to(jnp.asarray(scale) / 2, (d,))).to_event(1),
        jnp.sqrt,
    ),
    "spherical": Site(
        "precision",
        lambda nu, scale, d: Gamma(nu / 2, jnp.asarray(scale) / 2),
        jnp.sqrt,
    ),
}


def declare(
    concentration: Any,
    n_components: int,
    row: Structure,
    covariance: Callable[[], tuple[Array, Array]],
    means: Callable[[Covariance, Array], dist.Distribution],
) -> tuple[GaussianMixture, Array]:
    """Declares `weights`, what `covariance` declares, and `means`; returns the mixture, and W of each cluster.

    Args:
        concentration: of the Dirichlet, one number or (k,).
        n_components: k.
        row: the structure.
        covariance: declares a cluster's covariance and returns it in its storage, with W; it is called inside the plate
            `cluster`, or before it where all clusters share one.
        means: the law of a cluster's mean, given the covariances and W.
    """
    every = jnp.broadcast_to(jnp.asarray(concentration, float), (n_components,))
    weights: Any = numpyro.sample("weights", Dirichlet(every))
    shared = covariance() if row.shared else None
    with numpyro.plate("cluster", n_components):
        values, factor = covariance() if shared is None else (part[None] for part in shared)
        centers: Any = numpyro.sample("means", means(Covariance(values, row.name), factor))
    return GaussianMixture(weights, centers, Covariance(values, row.name)), factor


def by_precision(row: Structure, law: dist.Distribution) -> tuple[Array, Array]:
    """Declares the storage's own site under this law; the covariance in its storage, and W."""
    site = SITES[row.storage]
    cholesky = site.cholesky(jnp.asarray(numpyro.sample(site.name, law)))
    values = row.form.gram(row.form.inverse(cholesky))
    return values, transposed(cholesky) if row.form.axes == 2 else cholesky


def draw_parameters(
    prior: ConjugatePrior, n_components: int, row: Structure
) -> tuple[GaussianMixture, Array]:
    """θ ~ prior: declares the sites `weights`, the storage's own, and `means`; also W of each cluster.

    Raises:
        ValueError: the structure ties the clusters in a way that no site has.
    """
    require_site(row)
    d = prior.n_features
    center = jnp.broadcast_to(jnp.asarray(prior.mean, float), (n_components, d))

    def means(covariance: Covariance, factor: Array) -> dist.Distribution:
        return MeansByPrecision(center, factor, prior.mean_count, row)

    law = SITES[row.storage].law(prior.degrees_of_freedom, prior.scale, d)
    return declare(prior.concentration, n_components, row, lambda: by_precision(row, law), means)


def precision_sites(mixture: GaussianMixture) -> dict[str, Any]:
    """The values of the sites `weights`, the storage's own and `means` at a mixture (..., k, ...)."""
    row, values = mixture.covariance.row, jnp.asarray(mixture.covariance.values)
    drawn = inverse_cholesky(values) if row.storage == "full" else 1 / values
    if row.shared:
        drawn = jnp.squeeze(drawn, axis=-1 - row.form.axes)
    return {"weights": mixture.weights, SITES[row.storage].name: drawn, "means": mixture.means}


@partial(jax.jit, static_argnums=(0, 3, 4))
def draws(
    story: Callable[[Any, int], tuple[GaussianMixture, dict[str, Array]]],
    prior: Any,
    keys: Array,
    n: int,
    shown: tuple[str, ...] | None,
) -> tuple[GaussianMixture, dict[str, Array], dict[str, Array]]:
    """The story once for each key: the mixtures, the prior's sites that are `shown`, and z and x of n points.

    Draw by draw, so that beyond what is returned the memory is that of one draw.
    """

    def draw(key: Array) -> tuple[GaussianMixture, dict[str, Array], dict[str, Array]]:
        with handlers.trace() as sites, handlers.seed(rng_seed=key):
            mixture, drawn = story(prior, n)
        own = {
            name: site["value"]
            for name, site in sites.items()
            if site["type"] in ("sample", "deterministic")
            and name not in drawn
            and (shown is None or name in shown)
        }
        return jax.tree.map(jnp.asarray, mixture), own, drawn

    return jax.lax.map(draw, keys)
