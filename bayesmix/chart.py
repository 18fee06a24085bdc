"""A mixture as a vector of free numbers: an unconstrained parametrisation around it, for each structure.

The vector is zero at the mixture itself, has as many entries as there are free parameters, and any vector is again a
mixture of the same structure. With v the entries that each part takes,

    weights      softmax(log w + [v, 0])                                              k - 1
    means        m + L v,  L the Cholesky factor of the cluster's covariance          k d
    volumes      λ exp(v)                                                             1 or k
    shapes       A exp([v, -Σ v])                                                     d - 1, once or k times
    axes         D (I - S)⁻¹ (I + S),  S skew-symmetric with the entries v            d (d - 1) / 2, once or k times

Where shape and orientation are both equal or both vary, the two together are a matrix C of determinant one: C = T Tᵀ
with T = L(C) times a lower triangle of determinant one, which has no trouble where axes are of equal length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.axes import generic, rotation
from bayesmix.covariance import Covariance
from bayesmix.mixture import GaussianMixture

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["Chart", "chart"]


class Chart(NamedTuple):
    """The map from vectors (p,) to mixtures; a pytree, `Chart.mixture` is what to trace."""

    center: GaussianMixture  # no cluster of it is empty
    root: Any  # Cholesky factors of its covariances, in their storage
    volumes: Any  # (k|1,)
    axes: Any  # (k|1, d, d), where the structure has any
    shapes: Any  # (k|1, d)
    held: Any  # which parts stay: a dictionary without values, so that it is static
    size: Any

    def mixture(self, vector: Float[Array, " p"]) -> GaussianMixture:
        """The mixture at a vector."""
        center, row = self.center, self.center.covariance.row
        k, d = center.n_components, center.n_features
        taken = 0

        def take(*shape: int) -> Array:
            nonlocal taken
            size = int(np.prod(shape))
            taken += size
            return vector[taken - size : taken].reshape(shape)

        weights = jnp.asarray(center.weights)
        if "weights" not in self.held:
            weights = jax.nn.softmax(jnp.log(weights) + jnp.append(take(k - 1), 0))
        means = jnp.asarray(center.means) + center.covariance.storage.apply(self.root, take(k, d))
        if "covariance" in self.held:
            return replace(center, weights=weights, means=means)
        times = {"E": 1, "V": k, "I": 0}
        volume, shape, orientation = (times[letter] for letter in row.letters)
        volumes = self.volumes * jnp.exp(take(volume))
        if row.storage == "spherical":
            return replace(center, weights=weights, means=means, covariance=Covariance(volumes, row.name))
        logs = take(shape, d - 1)
        stretch = jnp.exp(jnp.concatenate([logs, -jnp.sum(logs, axis=1, keepdims=True)], axis=1))
        if row.storage == "diagonal":
            values = volumes[:, None] * (self.shapes * stretch)
        else:
            turn = (
                jnp.zeros((orientation, d, d))
                .at[:, *np.tril_indices(d, -1)]
                .set(take(orientation, d * (d - 1) // 2))
            )
            if shape == orientation:
                factor = self.axes @ (turn + stretch[:, :, None] * jnp.eye(d))
            else:
                skew = (turn - jnp.swapaxes(turn, -1, -2)) / 2
                factor = self.axes @ rotation(skew) * jnp.sqrt(self.shapes * stretch)[:, None, :]
            values = volumes[:, None, None] * (factor @ jnp.swapaxes(factor, -1, -2))
        return replace(center, weights=weights, means=means, covariance=Covariance(values, row.name))


def chart(mixture: GaussianMixture, hold: tuple[str, ...] = ()) -> Chart:
    """The chart around a mixture on ordinary arrays, in float64, and how long its vectors are."""
    row, k, d = mixture.covariance.row, mixture.n_components, mixture.n_features
    mixture = replace(mixture, feature_names=None)
    values: Any = np.asarray(mixture.covariance.values, np.float64)
    held = dict.fromkeys(hold)
    size = (0 if "weights" in held else k - 1) + k * d
    size += 0 if "covariance" in held else row.n_parameters(k, d)
    axes = shapes = None
    volume, shape, orientation = row.letters
    if row.storage == "spherical":
        volumes = values
    elif row.storage == "diagonal":
        volumes = np.exp(np.log(values).mean(axis=1))
        shapes = values / volumes[:, None]
    else:
        volumes = np.exp(np.linalg.slogdet(values)[1] / d)
        unit = values / volumes[:, None, None]
        if shape == orientation:
            axes = np.linalg.cholesky(unit)
        elif orientation == "E":
            axes = np.linalg.eigh(np.tensordot(generic(len(unit)), unit, axes=1))[1][None]
            shapes = np.diagonal(np.swapaxes(axes, -1, -2) @ unit @ axes, axis1=1, axis2=2)
        else:
            shapes, axes = np.linalg.eigh(unit)
    once = {"volume": volume, "shape": shape, "axes": orientation}
    volumes = volumes[:1] if once["volume"] == "E" else volumes
    if shapes is not None:
        shapes = shapes[:1] if once["shape"] == "E" else shapes
    if axes is not None:
        axes = axes[:1] if once["axes"] == "E" else axes
    root = mixture.covariance.storage.cholesky(values)
    return Chart(mixture, root, volumes, axes, shapes, held, size)
