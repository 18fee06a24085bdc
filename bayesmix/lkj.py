"""Half-normal standard deviations with Lewandowski, Kurowicka & Joe's correlations.

    deviations_k ~ HalfNormal(scale)
    Σ_k = diag(deviations_k) R_k diag(deviations_k),   p(R_k) ∝ |R_k|^(correlation_concentration - 1)

Diagonal and spherical storage, and one feature, have no R. A tied structure draws its one Σ once. Weights and means:
`programs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.covariance import structure_of
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import moments
from bayesmix.programs import ProgramPrior, cells, positive
from bayesmix.units import Units

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["LKJPrior", "lkj_prior"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LKJPrior(ProgramPrior):
    """Half-normal standard deviations, and correlations from Lewandowski, Kurowicka & Joe's law.

        weights      ~ Dirichlet(concentration),   means_k ~ Normal(mean, spread²)
        deviations_k ~ HalfNormal(scale)
        Σ_k = diag(deviations_k) R_k diag(deviations_k),   p(R_k) ∝ |R_k|^(correlation_concentration - 1)

    Diagonal and spherical storage, and one feature, have no correlations. Make one with `LKJPrior.of`, which checks, or
    `lkj_prior`, which reads it off the data.

    Attributes:
        n_components: k.
        covariance: the structure, one whose covariances share everything or nothing.
        concentration: of the Dirichlet (k,).
        mean: (d,), where the clusters' means are expected, in the data's units.
        spread: (d,), the standard deviation of the means about it.
        scale: of the half-normal, in the data's units: (d,), or one number for spheres.
        correlation_concentration: 1 is uniform over correlation matrices; more of it is nearer to none.

    References:
        Lewandowski, Kurowicka & Joe (2009), Generating random correlation matrices based on vines and extended onion
        method, Journal of Multivariate Analysis 100.

    Example:
        >>> import bayesmix as bm
        >>> prior = bm.LKJPrior.of(n_components=2, mean=[0.0, 0.0], spread=5.0, scale=[1.0, 2.0])
        >>> bm.MixtureModel(2, "full", prior).prior_predictive(3, key=0)["prior"]["deviations"].shape
        (1, 3, 2, 2)
    """

    word = "lkj"

    scale: Any
    correlation_concentration: Any

    @classmethod
    def of(
        cls,
        *,
        n_components: int,
        mean: Any,
        spread: Any,
        scale: Any,
        covariance: str = "VVV",
        correlation_concentration: float = 2.0,
        concentration: Any = 1.0,
    ) -> LKJPrior:
        """A proper prior out of plain numbers.

        Raises:
            ValueError: a number that is not positive and finite or does not fit the others; a structure whose
                covariances share a part.
        """
        common = cls._common(n_components, covariance, concentration, mean, spread)
        shape = () if structure_of(common["covariance"]).storage == "spherical" else common["mean"].shape
        eta = float(positive(correlation_concentration, "correlation_concentration", ()))
        return cls(**common, scale=positive(scale, "scale", shape), correlation_concentration=eta)

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return {"deviations": ("cluster",) * (not self.row.shared) + ("feature",) * (self.row.form.axes > 0)}

    def _covariance(self) -> Callable[[], tuple[Array, Array]]:
        import numpyro
        import numpyro.distributions as dist

        from bayesmix.laws import transposed

        storage, d = self.row.form, self.n_features
        deviation = dist.HalfNormal(jnp.asarray(self.scale, float)).to_event(min(storage.axes, 1))

        def covariance() -> tuple[Array, Array]:
            cholesky: Any = numpyro.sample("deviations", deviation)
            if storage.axes < 2:
                return storage.gram(cholesky), storage.inverse(cholesky)
            cholesky = cholesky[..., None]
            if d > 1:
                law = dist.LKJCholesky(d, jnp.asarray(self.correlation_concentration, float))
                cholesky = cholesky * numpyro.sample("correlation_cholesky", law)
            return storage.gram(transposed(cholesky)), storage.inverse(cholesky)

        return covariance

    def rescaled(self, units: Units) -> LKJPrior:
        return replace(super().rescaled(units), scale=self.scale / cells(units.scale, self.row))

    def shown(self, sites: dict[str, Any], scale: np.ndarray) -> dict[str, Any]:
        return {"deviations": sites["deviations"] * cells(scale, self.row)}

    def sites_of(self, mixture: GaussianMixture, shown: dict[str, Any] | None = None) -> dict[str, Any]:
        storage, axis = self.row.form, -1 - self.row.form.axes
        cholesky = storage.cholesky(jnp.asarray(mixture.covariance.values))
        cholesky = jnp.squeeze(cholesky, axis=axis) if self.row.shared else cholesky
        own = {"deviations": cholesky}
        if storage.axes == 2:
            own = {"deviations": jnp.linalg.norm(cholesky, axis=-1)}
            if self.n_features > 1:
                own["correlation_cholesky"] = cholesky / own["deviations"][..., None]
        return {"weights": mixture.weights, **own, "means": mixture.means}


def lkj_prior(x: Any, *, n_components: int, covariance: str = "VVV", sample_weight: Any = None) -> LKJPrior:
    """Half-normal scales and LKJ(2) correlations, for data whose columns have the standard deviations s.

        mean = mean(x),  spread = 2.5 s,  scale = s,  correlation_concentration = 2,  weights ~ Dirichlet(1)

    A sphere takes the root mean square of s; s has divisor n - 1, and constant columns the repairs of `weak_prior`.

    A half-normal has density at zero. So where volumes vary and rows share a value exactly, as in rounded data, the
    posterior has infinite mass at a cluster that shrinks to that value. Chains begin far from there, and
    `sample_posterior` warns if one arrives; under `weak_prior` it cannot happen.

    Raises:
        ValueError: data that are not numeric, weights that do not fit, a structure that is not known or whose
            covariances share a part.

    Example:
        >>> import bayesmix as bm
        >>> prior = bm.lkj_prior([[0.0], [2.0], [4.0]], n_components=2)
        >>> prior.mean, prior.spread, prior.scale
        (array([2.]), array([5.]), array([2.]))
    """
    mean, _, deviation = moments(x, sample_weight)
    row = structure_of(covariance, mean.size)
    return LKJPrior.of(
        n_components=n_components,
        covariance=row.name,
        mean=mean,
        spread=2.5 * deviation,
        scale=cells(deviation, row),
    )
