"""Richardson & Green's prior, in which the clusters' sizes are learned from all of them.

    full storage             B ~ Wishart(2 rate_shape, (2 diag(rate_rate))⁻¹),   Σ_k⁻¹ | B ~ Wishart(2 shape, (2 B)⁻¹)
    diagonal and spherical   rate ~ Gamma(rate_shape, rate_rate),   1/σ²_k | rate ~ Gamma(shape, rate), each cell

which are the same for one feature. A tied structure draws its one Σ once. Weights and means: `programs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.covariance import structure_of
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import counted_rows, filled
from bayesmix.programs import ProgramPrior, cells, positive
from bayesmix.units import Units

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["HierarchicalPrior", "hierarchical_prior"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HierarchicalPrior(ProgramPrior):
    """Richardson & Green's prior: how large a cluster is, is learned from all of them.

        weights ~ Dirichlet(concentration),             means ~ Normal(mean, spread²)
        rate    ~ Gamma(rate_shape, rate_rate),         1/σ²_k | rate ~ Gamma(shape, rate)

    for one feature and for each cell of diagonal and spherical storage; for full storage the gamma laws are Wishart
    laws, rate ~ Wishart(2 rate_shape, (2 diag(rate_rate))⁻¹) and Σ_k⁻¹ | rate ~ Wishart(2 shape, (2 rate)⁻¹). Make one
    with `HierarchicalPrior.of`, which checks, or `hierarchical_prior`, which reads it off the data.

    Attributes:
        n_components: k.
        covariance: the structure, one whose covariances share everything or nothing.
        concentration: of the Dirichlet (k,).
        mean: (d,), where the clusters' means are expected, in the data's units.
        spread: (d,), the standard deviation of the means about it.
        shape: how many half observations each σ² is worth, about.
        rate_shape: of the law of the rate.
        rate_rate: of the law of the rate, one over the data's units squared: (d,), or one number for spheres.

    References:
        Richardson & Green (1997), On Bayesian analysis of mixtures with an unknown number of components, JRSS B 59.

    Example:
        >>> import bayesmix as bm
        >>> prior = bm.HierarchicalPrior.of(n_components=3, mean=[20.0], spread=[25.0])
        >>> prior.shape, prior.rate_shape, prior.rate_rate
        (2.0, 0.2, array([0.016]))
        >>> model = bm.MixtureModel(3, "full", prior)
    """

    word = "hierarchical"

    shape: Any
    rate_shape: Any
    rate_rate: Any

    @classmethod
    def of(
        cls,
        *,
        n_components: int,
        mean: Any,
        spread: Any,
        covariance: str = "VVV",
        shape: float | None = None,
        rate_shape: float | None = None,
        rate_rate: Any = None,
        concentration: Any = 1.0,
    ) -> HierarchicalPrior:
        """A proper prior out of plain numbers; `hierarchical_prior` has the defaults of the last four.

        Raises:
            ValueError: a number that is not positive and finite or does not fit the others; for full storage shapes
                that do not exceed (d - 1) / 2; a structure whose covariances share a part.
        """
        common = cls._common(n_components, covariance, concentration, mean, spread)
        row, d = structure_of(common["covariance"]), common["mean"].size
        lowest = (d - 1) / 2 if row.storage == "full" else 0.0
        own: dict[str, Any] = {"shape": 2.0 + lowest if shape is None else shape}
        own["rate_shape"] = 0.2 + lowest if rate_shape is None else rate_shape
        for name, value in own.items():
            own[name] = float(positive(value, name, ()))
            if own[name] <= lowest:
                raise ValueError(f"{name} must exceed (d - 1) / 2 = {lowest}; it is {own[name]}")
        size = cells(common["spread"], row)
        default = 100 * own["rate_shape"] / own["shape"] / size**2
        rate = positive(default if rate_rate is None else rate_rate, "rate_rate", np.shape(size))
        return cls(**common, **own, rate_rate=rate)

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return {"rate": ("feature", "feature_bis")[: self.row.form.axes]}

    def _covariance(self) -> Callable[[], tuple[Array, Array]]:
        import numpyro

        from bayesmix.distribution import SITES, by_precision
        from bayesmix.laws import WishartCholesky, transposed

        site, d, rate_rate = SITES[self.row.storage], self.n_features, jnp.asarray(self.rate_rate, float)
        if self.row.storage == "full":
            # The Cholesky factor of the rate with its features in reverse order: U Uᵀ = rate with U upper, so U⁻ᵀ is
            # the lower factor of the rate's inverse as it stands; a draw may be too thin to be factored again.
            prior = site.law(2 * self.rate_shape, 2 * jnp.diag(rate_rate[::-1]), d)
            root = jnp.asarray(numpyro.sample("rate_root", prior))
            upper = _reversed(root)
            numpyro.deterministic("rate", upper @ transposed(upper))
            lower = transposed(_reversed(self.row.form.inverse(root)))
            law = WishartCholesky(2 * self.shape, scale_tril=lower / jnp.sqrt(2))
        else:
            rate: Any = numpyro.sample("rate", site.law(2 * self.rate_shape, 2 * rate_rate, d))
            law = site.law(2 * self.shape, 2 * rate, d)
        return partial(by_precision, self.row, law)

    def rescaled(self, units: Units) -> HierarchicalPrior:
        return replace(super().rescaled(units), rate_rate=self.rate_rate * cells(units.scale, self.row) ** 2)

    def shown(self, sites: dict[str, Any], scale: np.ndarray) -> dict[str, Any]:
        return {"rate": self.row.form.rescale(sites["rate"], scale)}

    def sites_of(self, mixture: GaussianMixture, shown: dict[str, Any] | None = None) -> dict[str, Any]:
        from bayesmix.distribution import precision_sites

        full, axis = self.row.storage == "full", -1 - self.row.form.axes
        if shown is None:
            values = jnp.asarray(mixture.covariance.values)
            inverse = jnp.linalg.inv if full else jnp.reciprocal
            behind = jnp.sum(inverse(values), axis=axis)
            before = jnp.diag(jnp.asarray(self.rate_rate)) if full else jnp.asarray(self.rate_rate)
            rate = (self.rate_shape + self.shape * values.shape[axis]) * inverse(before + behind)
        else:
            rate = jnp.asarray(shown["rate"])
        own = {"rate_root": jnp.linalg.cholesky(_reversed(rate))} if full else {"rate": rate}
        return own | precision_sites(mixture)


def _reversed(matrix: Array) -> Array:
    return matrix[..., ::-1, ::-1]


def hierarchical_prior(
    x: Any, *, n_components: int, covariance: str = "VVV", sample_weight: Any = None
) -> HierarchicalPrior:
    """Richardson & Green's default, and its form for several features, for data whose columns have the range R.

        mean = midrange,  spread = R,  weights ~ Dirichlet(1),  rate_rate = 100 rate_shape / (shape R²)
        shape = 2 + (d - 1) / 2,  rate_shape = 0.2 + (d - 1) / 2        full storage
        shape = 2,                rate_shape = 0.2                      diagonal and spherical storage

    so that for one feature rate_rate is 10 / R². A sphere takes the root mean square of the columns' R, and a constant
    column that of the others (1 if every column is constant). Rows of weight zero are absent; other weights do not
    matter to a range. For several features the shapes grow as Frühwirth-Schnatter's do, from Richardson & Green's at
    d = 1; with Stephens's 3 and 0.3 at d = 2 the law of the rate is improper.

    Where volumes vary and many rows share a value exactly, as in rounded data, the posterior has infinite mass at a
    cluster that shrinks to that value (for one feature and k = 2 six such rows are enough). Chains begin far from
    there, and `sample_posterior` warns if one arrives; under `weak_prior` it cannot happen.

    Raises:
        ValueError: data that are not numeric, weights that do not fit, a structure that is not known or whose
            covariances share a part, or data so large or small that their square is not a number.

    References:
        Richardson & Green (1997), On Bayesian analysis of mixtures with an unknown number of components, JRSS B 59.
        Stephens (2000), Bayesian analysis of mixture models with an unknown number of components, Annals of Statistics
        28, section 4.
        Frühwirth-Schnatter (2006), Finite mixture and Markov switching models, section 6.3.2.

    Example:
        >>> import bayesmix as bm
        >>> prior = bm.hierarchical_prior([[0.0], [2.0], [10.0]], n_components=2, covariance="V")
        >>> prior.mean, prior.spread, prior.rate_rate
        (array([5.]), array([10.]), array(0.1))
    """
    values, _ = counted_rows(x, sample_weight)
    low, high = values.min(axis=0), values.max(axis=0)
    size = filled(high - low, high == low)
    return HierarchicalPrior.of(
        n_components=n_components, covariance=covariance, mean=low + (high - low) / 2, spread=size
    )
