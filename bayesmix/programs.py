"""What priors have in common that are NumPyro programs with numbers in them: weights and means.

    weights ~ Dirichlet(concentration)
    means_k ~ Normal(mean, spread²), each feature by itself

Unlike in the conjugate prior the means know nothing of the covariances; what is said of those is in `hierarchical` and
`lkj`. Such a family is closed under moving and rescaling the data, so chains run in the units of the loop. To add one:
a subclass, and a word for it in `model.NAMED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from bayesmix.covariance import Structure, structure_of
from bayesmix.inputs import as_count, as_floats
from bayesmix.mixture import GaussianMixture
from bayesmix.prior import ConjugatePrior, require_site
from bayesmix.units import Units

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["FixedPrior", "ProgramPrior", "cells", "positive"]


@dataclass(frozen=True)
class ProgramPrior:
    """What the two share: k clusters of a structure, the laws of the weights and of the means.

    Calling one declares its sites and returns the mixture, so it is a NumPyro program like any other; its numbers are
    leaves of a pytree, so compiled code is shared by all that differ in numbers only.
    """

    word: ClassVar[str]  # that the model and a posterior's attributes have for it

    n_components: int = field(metadata={"static": True})
    covariance: str = field(metadata={"static": True})
    concentration: Any
    mean: Any
    spread: Any

    @classmethod
    def _common(
        cls, n_components: Any, covariance: Any, concentration: Any, mean: Any, spread: Any
    ) -> dict[str, Any]:
        """Checked values of the five fields."""
        k = as_count(n_components, "n_components")
        center = np.atleast_1d(as_floats(mean, "mean")).astype(np.float64)
        if center.ndim != 1:
            raise ValueError(f"mean must be (d,), a number for each feature; it has shape {center.shape}")
        row = structure_of(covariance, center.size)
        require_site(row, f"the prior {cls.word!r}")
        return {
            "n_components": k,
            "covariance": row.name,
            "concentration": positive(concentration, "concentration", (k,)),
            "mean": center,
            "spread": positive(spread, "spread", center.shape),
        }

    @property
    def n_features(self) -> int:
        return np.shape(self.mean)[-1]

    @property
    def row(self) -> Structure:
        return structure_of(self.covariance)

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """The sites that a reader of draws sees beside weights, means and covariances, and their dimensions."""
        raise NotImplementedError

    def require(self, n_components: int, row: Structure) -> None:
        """Refuse another number of clusters or another structure than its own.

        Raises:
            ValueError: they differ.
        """
        if (n_components, row.name) != (self.n_components, self.covariance):
            raise ValueError(
                f"prior is for {self.n_components} clusters and {self.covariance}; the model has {n_components} and "
                f"{row.name}"
            )

    def __call__(self) -> GaussianMixture:
        return self.draw()[0]

    def draw(self) -> tuple[GaussianMixture, Array]:
        """θ ~ prior: declares its sites; also W of each cluster, |W (x - m)|² the squared Mahalanobis distance."""
        import numpyro.distributions as dist

        from bayesmix.distribution import declare

        mean, spread = jnp.asarray(self.mean, float), jnp.asarray(self.spread, float)
        law = dist.Normal(mean, spread).to_event(1)
        return declare(self.concentration, self.n_components, self.row, self._covariance(), lambda *_: law)

    def _covariance(self) -> Callable[[], tuple[Array, Array]]:
        """Declares what clusters share; then a function that declares one cluster's covariance, as `declare` says."""
        raise NotImplementedError

    def rescaled(self, units: Units) -> Self:
        """The same prior for parameters in the units of the loop."""
        return replace(self, mean=units.of(self.mean), spread=self.spread / units.scale)

    def shown(self, sites: dict[str, Any], scale: np.ndarray) -> dict[str, Any]:
        """The sites of `dims`, for parameters that are so many times as large in each feature (d,)."""
        raise NotImplementedError

    def sites_of(self, mixture: GaussianMixture, shown: dict[str, Any] | None = None) -> dict[str, Any]:
        """Values of all sampled sites at a mixture (..., k, ...).

        What no mixture determines comes from `shown`, or without it is the mean of its law given the mixture.
        """
        raise NotImplementedError


def cells(size: np.ndarray, row: Structure) -> Any:
    """Sizes (d,), or for spheres the one that has their mean square."""
    return np.sqrt(np.mean(size**2)) if row.storage == "spherical" else size


def positive(value: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    numbers = as_floats(value, name).astype(np.float64).reshape(np.shape(value))
    if numbers.shape not in ((), shape) or (numbers <= 0).any():
        one = "one positive number" if not shape else f"positive, one number or {shape}"
        raise ValueError(f"{name} must be {one}; it is {numbers.tolist()}")
    return np.array(np.broadcast_to(numbers, shape))


# Priors whose numbers travel through compiled code as arguments; any other program is part of that code.
FixedPrior = ConjugatePrior | ProgramPrior
