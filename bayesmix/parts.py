"""The laws of some of a mixture's features, alone or given the values of the others: mixtures again.

With a the free and b the given features, p(x_a | x_b) has weights proportional to w_k Normal(x_b | m_b, Σ_bb), and in
cluster k the mean m_a + Σ_ab Σ_bb⁻¹ (x_b - m_b) and the covariance Σ_aa - Σ_ab Σ_bb⁻¹ Σ_ba.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix import density
from bayesmix.covariance import Covariance
from bayesmix.devices import double_precision
from bayesmix.inputs import as_points, is_traced, to_numpy

if TYPE_CHECKING:
    from jaxtyping import Array

    from bayesmix.mixture import GaussianMixture

__all__ = ["conditional", "marginal"]


def marginal(mixture: GaussianMixture, keep: list[int]) -> GaussianMixture:
    """The law of these features."""
    values = mixture.covariance.storage.part(mixture.covariance.values, np.asarray(keep))
    return _of_features(mixture, keep, mixture.weights, mixture.means[..., keep], values)


def conditional(mixture: GaussianMixture, free: list[int], given: list[int], point: Any) -> GaussianMixture:
    """The law of the free features where the given ones are at a point."""
    indices = tuple(free), tuple(given)
    if is_traced(mixture, point):
        return _of_features(mixture, free, *_condition(mixture._arrays(), jnp.asarray(point), *indices))
    mixture._check_one()
    value, dtype = as_points([point], "given").values[0], mixture.means.dtype
    if (np.abs(value) > np.finfo(dtype).max).any():
        raise ValueError(
            f"given has {np.abs(value).max():.3g}, which {dtype}, the type of the mixture, cannot hold"
        )
    values = value.astype(dtype)
    with double_precision():
        found = to_numpy(_condition_compiled(mixture._arrays(), values, *indices))
    return _of_features(mixture, free, *found)


def _of_features(
    mixture: GaussianMixture, keep: list[int], weights: Any, means: Any, values: Any
) -> GaussianMixture:
    """A law of some features, of the mixture's own structure where that holds for parts of each covariance."""
    names = tuple(mixture.feature_names[j] for j in keep) if mixture.feature_names else None
    row = mixture.covariance.row
    kept = row.kept_by_parts or len(keep) == mixture.n_features
    covariance = Covariance(values, mixture.structure if kept else row.general)
    return type(mixture)(weights, means, covariance, names)


def _condition(
    mixture: GaussianMixture, value: Array, a: tuple[int, ...], b: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Weights, means and covariances of the free features a, the others at a value."""
    storage, means = mixture.covariance.storage, jnp.asarray(mixture.means)
    values = jnp.asarray(mixture.covariance.values)
    free, given = np.asarray(a), np.asarray(b)
    part = Covariance(storage.part(values, given), mixture.structure)
    others = replace(mixture, means=means[:, given], covariance=part)
    weights = density.responsibilities(others, value[:, None])[:, 0]
    values_free = storage.part(values, free)
    if storage.axes < 2:
        return weights, means[:, free], values_free
    cross = values[:, free][:, :, given]
    gain = jnp.swapaxes(jnp.linalg.solve(part.values, jnp.swapaxes(cross, -1, -2)), -1, -2)
    gains = jnp.broadcast_to(gain, (means.shape[0], *gain.shape[1:]))
    shift = jnp.einsum("kij,kj->ki", gains, value - means[:, given])
    return weights, means[:, free] + shift, values_free - gain @ jnp.swapaxes(cross, -1, -2)


_condition_compiled = jax.jit(_condition, static_argnums=(2, 3))
