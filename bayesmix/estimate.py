"""The M-steps of the covariance structures: Σ_k = λ_k D_k A_k D_kᵀ from counts and scatters.

Given counts n_k and scatters W_k, each function minimises over its family

    Σ_k [ n_k log |Σ_k| + tr(Σ_k⁻¹ W_k) ].

Most structures have a closed form. VEI, VEE and VEV alternate between volumes and the common shape, which is a
contraction; EVE and VVE turn their common axes (`axes`). The iterative ones begin at the previous covariances and run
until they are at rest.

References:
    Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from bayesmix.axes import TINY, common_axes, principal_axes, rebuild
from bayesmix.storage import STORAGES, per_cluster

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["each", "eev", "eve", "eve_or_vve", "evi", "evv", "pooled", "vee", "vei", "vev", "vve"]

_ROUNDS = 500  # of an iterative M-step, at most
_AT_REST = 1e-11  # relative change of a volume below which it has converged


def each(count: Array, scatter: Array, previous: Array) -> Array:
    """VVV, VVI, VII, V: Σ_k = W_k / n_k."""
    return scatter / per_cluster(count, scatter.ndim - 1)


def pooled(count: Array, scatter: Array, previous: Array) -> Array:
    """EEE, EEI, EII, E: Σ = (Σ_k W_k) / n."""
    return jnp.sum(scatter, axis=0, keepdims=True) / jnp.sum(count)


def _geometric_mean(cells: Float[Array, "k d"]) -> Float[Array, " k"]:
    return jnp.exp(jnp.mean(jnp.log(jnp.maximum(cells, TINY)), axis=-1))


def _volume(matrices: Float[Array, "k d d"]) -> Float[Array, " k"]:
    """|M|^(1/d), of matrices of any size; 0 of one that is singular."""
    storage = STORAGES["full"]
    size = jnp.maximum(jnp.trace(matrices, axis1=-2, axis2=-1), TINY)
    volume = size * _geometric_mean(storage.diagonal(storage.cholesky(matrices / size[..., None, None]))) ** 2
    return jnp.where(jnp.isnan(volume), 0, volume)


def _common_shape(
    count: Float[Array, " k"], volumes: Float[Array, " k"], fold: Callable[[Array], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Volumes λ_k and the common C, |C| = 1: λ_k = tr(W_k C⁻¹) / (d n_k) and C ∝ Σ_k W_k / λ_k in turn.

    `fold` gives that C, and tr(W_k C⁻¹) / d, of volumes.
    """

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        _, moved, rounds = carry
        return (moved > _AT_REST) & (rounds < _ROUNDS)

    def turn(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, rounds = carry
        new = jnp.maximum(fold(old)[1] / count, TINY)
        return new, jnp.max(jnp.abs(new / old - 1)), rounds + 1

    start = (jnp.maximum(volumes, TINY), jnp.asarray(jnp.inf, count.dtype), jnp.asarray(0))
    volumes, _, _ = lax.while_loop(go_on, turn, start)
    return volumes, fold(volumes)[0]


def _vei(count: Array, cells: Float[Array, "k d"], volumes: Array) -> tuple[Array, Array]:
    def fold(volumes: Array) -> tuple[Array, Array]:
        total = jnp.sum(cells / volumes[:, None], axis=0)
        shape = total / _geometric_mean(total[None])
        return shape, jnp.mean(cells / shape, axis=1)

    return _common_shape(count, volumes, fold)


def vei(count: Array, scatter: Float[Array, "k d"], previous: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Σ_k = λ_k A."""
    volumes, shape = _vei(count, scatter, _geometric_mean(previous))
    return volumes[:, None] * shape


def evi(count: Array, scatter: Float[Array, "k d"], previous: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Σ_k = λ A_k, in closed form: A_k ∝ W_k, λ = Σ_k |W_k|^(1/d) / n."""
    volumes = _geometric_mean(scatter)
    return scatter * (jnp.sum(volumes) / jnp.sum(count) / volumes)[:, None]


def vee(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ_k C."""
    d = scatter.shape[-1]

    def fold(volumes: Array) -> tuple[Array, Array]:
        total = jnp.sum(scatter / per_cluster(volumes, 2), axis=0)
        inverse, size = _inverse(total)
        return total / size, jnp.einsum("kij,ji->k", scatter, inverse) * size / d

    volumes, shape = _common_shape(count, _volume(previous), fold)
    return per_cluster(volumes, 2) * shape


def evv(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ C_k, in closed form: C_k ∝ W_k, λ = Σ_k |W_k|^(1/d) / n."""
    size = jnp.trace(scatter, axis1=-2, axis2=-1)
    volumes = jnp.maximum(_volume(scatter), 1e-12 * size + TINY)  # of a singular one rounding would decide
    return scatter * per_cluster(jnp.sum(volumes) / jnp.sum(count) / volumes, 2)


def _inverse(matrix: Float[Array, "d d"]) -> tuple[Array, Array]:
    """M⁻¹ and |M|^(1/d) of a positive-definite matrix."""
    storage = STORAGES["full"]
    factor = storage.cholesky(matrix)
    return storage.gram(storage.inverse(factor)), _geometric_mean(storage.diagonal(factor)) ** 2


def eev(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ D_k A D_kᵀ, in closed form: D_k the axes of W_k, λ A the mean of their sorted eigenvalues."""
    values, vectors = principal_axes(scatter)
    return rebuild(vectors, jnp.sum(values, axis=0) / jnp.sum(count))


def vev(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ_k D_k A D_kᵀ: D_k the axes of W_k, then VEI on their sorted eigenvalues."""
    values, vectors = principal_axes(scatter)
    volumes, shape = _vei(count, values, _volume(previous))
    return rebuild(vectors, volumes[:, None] * shape)


def vve(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ_k D A_k Dᵀ: λ_k A_k = diag(Dᵀ W_k D) / n_k, and D minimises Σ_k n_k log |diag(Dᵀ W_k D)|."""
    return eve_or_vve(count, scatter, previous, jnp.asarray(True))


def eve(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ D A_k Dᵀ: A_k ∝ δ_k = diag(Dᵀ W_k D), λ = Σ_k |δ_k|^(1/d) / n, and D minimises that sum."""
    return eve_or_vve(count, scatter, previous, jnp.asarray(False))


def eve_or_vve(count: Array, scatter: Array, previous: Array, varying: Array) -> Float[Array, "k d d"]:
    """VVE where volumes are varying, else EVE: one program for both, whose axes differ in the criterion only."""
    axes, cells = common_axes(count, scatter, previous, varying)
    return rebuild(axes, jnp.where(varying, cells / count[:, None], evi(count, cells, previous)))
