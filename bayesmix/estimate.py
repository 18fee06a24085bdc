"""The M-steps of the covariance structures: Σ_k = λ_k D_k A_k D_kᵀ from counts and scatters.

Given counts n_k and scatters W_k, each function minimises over its family

    Σ_k [ n_k log |Σ_k| + tr(Σ_k⁻¹ W_k) ].

Six structures have a closed form here beside the two that pool or do not; VEI, VEE and VEV alternate between volumes
and the common shape, which is a contraction; EVE and VVE turn their common axes pair by pair, each turn to the exact
minimum over its angle, so no turn can raise the criterion (with two features the one turn is the global minimum).
The iterative ones begin at the previous covariances and run until they are at rest.

References:
    Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28.
    Flury & Gautschi (1986), An algorithm for simultaneous orthogonal transformation of several positive definite
    symmetric matrices to nearly diagonal form, SIAM J. Sci. Stat. Comput. 7.
    Browne & McNicholas (2014), Orthogonal Stiefel manifold optimization for eigen-decomposed covariance parameter
    estimation in mixture models, Statistics and Computing 24.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

__all__ = ["each", "eev", "eve", "evi", "evv", "per_cluster", "pooled", "vee", "vei", "vev", "vve"]

_ROUNDS = 500  # of an iterative M-step, at most
_AT_REST = 1e-11  # relative change of a volume, or angle of a turn, below which it has converged
_ANGLES = 16  # where the criterion is looked at before Newton's steps, over half a turn of 2 θ
_TINY = 1e-300


def per_cluster(vector: Array, axes: int) -> Array:
    """A number a cluster (k,), shaped to multiply values with so many trailing axes."""
    return vector.reshape((-1,) + (1,) * axes)


def each(count: Array, scatter: Array, previous: Array) -> Array:
    """VVV, VVI, VII, V: Σ_k = W_k / n_k."""
    return scatter / per_cluster(count, scatter.ndim - 1)


def pooled(count: Array, scatter: Array, previous: Array) -> Array:
    """EEE, EEI, EII, E: Σ = (Σ_k W_k) / n."""
    return jnp.sum(scatter, axis=0, keepdims=True) / jnp.sum(count)


def _geometric_mean(cells: Float[Array, "k d"]) -> Float[Array, " k"]:
    return jnp.exp(jnp.mean(jnp.log(jnp.maximum(cells, _TINY)), axis=-1))


def _volume(matrices: Float[Array, "k d d"]) -> Float[Array, " k"]:
    """|M|^(1/d)."""
    return jnp.exp(jnp.linalg.slogdet(matrices)[1] / matrices.shape[-1])


def _common_shape(
    count: Float[Array, " k"],
    volumes: Float[Array, " k"],
    shape_of: Callable[[Array], Array],
    traces: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """Volumes λ_k and the common C, |C| = 1: λ_k = tr(W_k C⁻¹) / (d n_k) and C ∝ Σ_k W_k / λ_k in turn."""

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        _, moved, rounds = carry
        return (moved > _AT_REST) & (rounds < _ROUNDS)

    def turn(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, rounds = carry
        new = jnp.maximum(traces(shape_of(old)) / count, _TINY)
        return new, jnp.max(jnp.abs(new / old - 1)), rounds + 1

    start = (jnp.maximum(volumes, _TINY), jnp.asarray(jnp.inf, count.dtype), jnp.asarray(0))
    volumes, _, _ = lax.while_loop(go_on, turn, turn(start))
    return volumes, shape_of(volumes)


def _vei(count: Array, cells: Float[Array, "k d"], volumes: Array) -> tuple[Array, Array]:
    def shape_of(volumes: Array) -> Array:
        total = jnp.sum(cells / volumes[:, None], axis=0)
        return total / _geometric_mean(total[None])

    return _common_shape(count, volumes, shape_of, lambda shape: jnp.mean(cells / shape, axis=1))


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

    def shape_of(volumes: Array) -> Array:
        total = jnp.sum(scatter / per_cluster(volumes, 2), axis=0)
        return total / _volume(total)

    def traces(shape: Array) -> Array:
        return jnp.einsum("kij,ji->k", scatter, jnp.linalg.inv(shape)) / d

    volumes, shape = _common_shape(count, _volume(previous), shape_of, traces)
    return per_cluster(volumes, 2) * shape


def evv(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ C_k, in closed form: C_k ∝ W_k, λ = Σ_k |W_k|^(1/d) / n."""
    volumes = _volume(scatter)
    return scatter * per_cluster(jnp.sum(volumes) / jnp.sum(count) / volumes, 2)


def _axes(scatter: Float[Array, "k d d"]) -> tuple[Array, Array]:
    """Eigenvalues in ascending order, never negative, and their vectors as columns."""
    values, vectors = jnp.linalg.eigh(scatter)
    return jnp.maximum(values, 0), vectors


def _rebuild(vectors: Array, values: Array) -> Array:
    """D diag(values) Dᵀ."""
    return (vectors * values[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)


def eev(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ D_k A D_kᵀ, in closed form: D_k the axes of W_k, λ A the mean of their sorted eigenvalues."""
    values, vectors = _axes(scatter)
    return _rebuild(vectors, jnp.sum(values, axis=0) / jnp.sum(count))


def vev(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ_k D_k A D_kᵀ: D_k the axes of W_k, then VEI on their sorted eigenvalues."""
    values, vectors = _axes(scatter)
    volumes, shape = _vei(count, values, _volume(previous))
    return _rebuild(vectors, volumes[:, None] * shape)


def _diagonal(matrices: Float[Array, "k d d"]) -> Float[Array, "k d"]:
    return jnp.diagonal(matrices, axis1=-2, axis2=-1)


def vve(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ_k D A_k Dᵀ: λ_k A_k = diag(Dᵀ W_k D) / n_k, and D minimises Σ_k n_k log |diag(Dᵀ W_k D)|."""

    def slopes(logs: Array, others: Array) -> tuple[Array, Array, Array]:
        return count * logs, count, jnp.zeros_like(count)

    axes, turned = _common_axes(scatter, previous, slopes)
    return _rebuild(axes, _diagonal(turned) / count[:, None])


def eve(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ D A_k Dᵀ: A_k ∝ δ_k = diag(Dᵀ W_k D), λ = Σ_k |δ_k|^(1/d) / n, and D minimises that sum."""
    d = scatter.shape[-1]

    def slopes(logs: Array, others: Array) -> tuple[Array, Array, Array]:
        volumes = jnp.exp((logs + others) / d)
        return volumes, volumes / d, volumes / d**2

    axes, turned = _common_axes(scatter, previous, slopes)
    return _rebuild(axes, evi(count, _diagonal(turned), previous))


# Of a pair of axes: (log of the product of their two diagonal entries, sum of the logs of the others), both a number
# a cluster, to the criterion's terms and their first and second derivatives by the former.
Slopes = Callable[[Array, Array], tuple[Array, Array, Array]]


def _common_axes(scatter: Array, previous: Array, slopes: Slopes) -> tuple[Array, Array]:
    """The common axes D (columns), and Dᵀ W_k D; from the axes of the previous covariances, which share them."""
    k, d = scatter.shape[:2]
    i, j = np.triu_indices(d, 1)
    pairs = jnp.asarray(np.stack([i, j], axis=1))
    # Generic multipliers, so that eigenvalues which are equal in the sum are not so by accident.
    mix = 1 + np.modf(np.arange(1, k + 1) * math.sqrt(2))[0]
    blend = jnp.sum(previous * per_cluster(jnp.asarray(mix) / _volume(previous), 2), axis=0)
    start = jnp.linalg.eigh(blend)[1]

    def sweep(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        axes, turned, _, rounds = carry

        def turn(pair: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            axes, turned, most = carry
            i, j = pairs[pair]
            angle = _best_angle(turned, i, j, slopes)
            c, s = jnp.cos(angle), jnp.sin(angle)

            def columns(m: Array) -> Array:
                a, b = m[..., i], m[..., j]
                return m.at[..., i].set(c * a + s * b).at[..., j].set(c * b - s * a)

            rows = jnp.swapaxes(columns(turned), -1, -2)
            return columns(axes), columns(rows), jnp.maximum(most, jnp.abs(angle))

        start = (axes, turned, jnp.zeros((), scatter.dtype))
        axes, turned, most = lax.fori_loop(0, len(pairs), turn, start)
        return axes, turned, most, rounds + 1

    turned = jnp.swapaxes(start, -1, -2) @ scatter @ start
    if d == 1:
        return start, turned
    axes, turned, _, _ = lax.while_loop(
        lambda carry: (carry[2] > _AT_REST) & (carry[3] < _ROUNDS),
        sweep,
        sweep((start, turned, jnp.zeros((), scatter.dtype), jnp.asarray(0))),
    )
    return axes, turned


def _best_angle(turned: Array, i: Array, j: Array, slopes: Slopes) -> Array:
    """The angle θ by which to turn axes i and j, in (-π/4, π/4].

    With w = u cos 2θ + v sin 2θ, u = (W_ii - W_jj) / 2, v = W_ij and m = (W_ii + W_jj) / 2 the two diagonal entries
    become m ± w, so the criterion depends on their product m² - w² only: it is looked at on a grid that holds
    θ = 0, then Newton's steps go to the minimum, and are taken where they are lower.
    """
    logs = jnp.log(jnp.maximum(_diagonal(turned), _TINY))
    a, b, v = turned[:, i, i], turned[:, j, j], turned[:, i, j]
    others = jnp.sum(logs, axis=1) - logs[:, i] - logs[:, j]
    m, u = (a + b) / 2, (a - b) / 2

    def product(phi: Array) -> tuple[Array, Array, Array]:
        c, s = jnp.cos(phi), jnp.sin(phi)
        w, slope = u * c + v * s, v * c - u * s
        return w, slope, jnp.maximum(m * m - w * w, 1e-15 * m * m + _TINY)

    def criterion(phi: Array) -> Array:
        return jnp.sum(slopes(jnp.log(product(phi)[2]), others)[0])

    def newton(_: int, phi: Array) -> Array:
        w, slope, q = product(phi)
        first = -2 * w * slope / q
        second = (-2 * slope * slope + 2 * w * w) / q - first * first
        _, by_log, by_log_twice = slopes(jnp.log(q), others)
        gradient = jnp.sum(by_log * first)
        curvature = jnp.sum(by_log * second + by_log_twice * first * first)
        step = -gradient / jnp.maximum(jnp.abs(curvature), _TINY)
        return phi + jnp.clip(step, -math.pi / _ANGLES, math.pi / _ANGLES)

    grid = jnp.asarray(np.linspace(0, math.pi, _ANGLES, endpoint=False))
    values = jax.vmap(criterion)(grid)
    nearest = grid[jnp.argmin(values)]
    phi = lax.fori_loop(0, 6, newton, nearest)
    phi = jnp.where(criterion(phi) <= jnp.min(values), phi, nearest)
    phi = phi - math.pi * jnp.round(phi / math.pi)  # m ± w change places after half a turn
    return jnp.where(jnp.isfinite(phi), phi / 2, 0)
