"""The M-steps of the covariance structures: Σ_k = λ_k D_k A_k D_kᵀ from counts and scatters.

Given counts n_k and scatters W_k, each function minimises over its family

    Σ_k [ n_k log |Σ_k| + tr(Σ_k⁻¹ W_k) ].

Most structures have a closed form. VEI, VEE and VEV alternate between volumes and the common shape, which is a
contraction; EVE and VVE turn their common axes, by Newton's method over all angles near the minimum and pair by pair
to the lowest point over each angle elsewhere, so nothing can raise the criterion. The iterative ones begin at the
previous covariances and run until they are at rest.

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

__all__ = ["each", "eev", "eve", "evi", "evv", "per_cluster", "pooled", "vee", "vei", "vev", "vve"]

_ROUNDS = 500  # of an iterative M-step, at most
_AT_REST = 1e-11  # relative change of a volume below which it has converged
_STILL = 1e-7  # largest angle of a last turn; Newton's next step would be its square
_SMALL_TURN = 0.2  # largest angle of a step of Newton that is taken
_ANGLES = 16  # points of a grid of angles over half a turn of 2 θ
_TINY = 1e-300


def per_cluster(vector: Any, axes: int) -> Any:
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
    """|M|^(1/d), of matrices of any size."""
    size = jnp.maximum(jnp.trace(matrices, axis1=-2, axis2=-1), _TINY)
    unit = matrices / size[..., None, None]
    return size * jnp.exp(jnp.linalg.slogdet(unit)[1] / matrices.shape[-1])


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

    def terms(logs: Array) -> Array:
        return count * logs

    axes, turned = _common_axes(scatter, previous, terms)
    return _rebuild(axes, _diagonal(turned) / count[:, None])


def eve(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ D A_k Dᵀ: A_k ∝ δ_k = diag(Dᵀ W_k D), λ = Σ_k |δ_k|^(1/d) / n, and D minimises that sum."""
    d = scatter.shape[-1]

    def terms(logs: Array) -> Array:
        return jnp.exp(logs / d)

    axes, turned = _common_axes(scatter, previous, terms)
    return _rebuild(axes, evi(count, _diagonal(turned), previous))


# log |diag(Dᵀ W_k D)|, a number a cluster, to the terms of the criterion that D minimises.
Terms = Callable[[Array], Array]


def _common_axes(scatter: Array, previous: Array, terms: Terms) -> tuple[Array, Array]:
    """The common axes D (columns), and Dᵀ W_k D; from the axes of the previous covariances, which share them.

    Newton's step over all angles at once is taken where it is small, at a minimum and lower; otherwise the axes are
    turned pair by pair. Neither can raise the criterion.
    """
    k, d = scatter.shape[:2]
    # Generic multipliers, so that eigenvalues which are equal in the sum are not so by accident.
    mix = 1 + np.modf(np.arange(1, k + 1) * math.sqrt(2))[0]
    blend = jnp.sum(previous * per_cluster(jnp.asarray(mix) / _volume(previous), 2), axis=0)
    start = jnp.linalg.eigh(blend)[1]
    turned = jnp.swapaxes(start, -1, -2) @ scatter @ start
    if d == 1:
        return start, turned

    def improve(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        axes, turned, _, rounds = carry
        rotation, angle = _newton(turned, terms)
        moved = jnp.swapaxes(rotation, -1, -2) @ turned @ rotation
        lower = _criterion(moved, terms) <= _criterion(turned, terms)
        axes, turned, angle = lax.cond(
            lower & (angle < _SMALL_TURN),
            lambda: (axes @ rotation, moved, angle),
            lambda: _sweep(axes, turned, terms),
        )
        return axes, turned, angle, rounds + 1

    axes, turned, _, _ = lax.while_loop(
        lambda carry: (carry[2] > _STILL) & (carry[3] < _ROUNDS),
        improve,
        (start, turned, jnp.asarray(jnp.inf, scatter.dtype), jnp.asarray(0)),
    )
    return axes, turned


def _criterion(turned: Array, terms: Terms) -> Array:
    return jnp.sum(terms(jnp.sum(jnp.log(jnp.maximum(_diagonal(turned), _TINY)), axis=1)))


def _newton(turned: Array, terms: Terms) -> tuple[Array, Array]:
    """Newton's step as a rotation, and its largest angle: NaN where the criterion is not convex."""
    d = turned.shape[-1]
    lower = np.tril_indices(d, -1)

    def rotation(angles: Array) -> Array:
        skew = jnp.zeros((d, d)).at[lower].set(angles / 2)
        skew = skew - skew.T
        return jnp.linalg.solve(jnp.eye(d) - skew, jnp.eye(d) + skew)

    def criterion(angles: Array) -> Array:
        # To second order in the angles, which is all that Newton's step sees.
        skew = jnp.zeros((d, d)).at[lower].set(angles)
        skew = skew - skew.T
        turn = jnp.eye(d) + skew + skew @ skew / 2
        cells = jnp.einsum("ij,kil,lj->kj", turn, turned, turn)
        return jnp.sum(terms(jnp.sum(jnp.log(jnp.maximum(cells, _TINY)), axis=1)))

    zero = jnp.zeros(d * (d - 1) // 2)
    gradient, hessian = jax.grad(criterion)(zero), jax.hessian(criterion)(zero)
    factor = jnp.linalg.cholesky(hessian)
    half = lax.linalg.triangular_solve(factor, gradient[:, None], left_side=True, lower=True)
    step = -lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[:, 0]
    return rotation(step), jnp.max(jnp.abs(step))


def _sweep(axes: Array, turned: Array, terms: Terms) -> tuple[Array, Array, Array]:
    """Each pair of axes turned to the minimum over its angle; and the largest angle."""
    pairs = jnp.asarray(np.stack(np.triu_indices(axes.shape[0], 1), axis=1))

    def turn(pair: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        axes, turned, most = carry
        i, j = pairs[pair]
        angle = _best_angle(turned, i, j, terms)
        c, s = jnp.cos(angle), jnp.sin(angle)

        def columns(m: Array) -> Array:
            a, b = m[..., i], m[..., j]
            return m.at[..., i].set(c * a + s * b).at[..., j].set(c * b - s * a)

        rows = jnp.swapaxes(columns(turned), -1, -2)
        return columns(axes), columns(rows), jnp.maximum(most, jnp.abs(angle))

    return lax.fori_loop(0, len(pairs), turn, (axes, turned, jnp.zeros((), turned.dtype)))


def _best_angle(turned: Array, i: Array, j: Array, terms: Terms) -> Array:
    """The angle θ by which to turn axes i and j, in (-π/4, π/4].

    With w = u cos 2θ + v sin 2θ, u = (W_ii - W_jj) / 2, v = W_ij and m = (W_ii + W_jj) / 2 the two diagonal entries
    become m ± w, so the criterion depends on their product m² - w² only. It is looked at on ever finer grids, each
    around the lowest point of the last; θ = 0 is on the first, so the criterion cannot rise.
    """
    logs = jnp.log(jnp.maximum(_diagonal(turned), _TINY))
    a, b, v = turned[:, i, i], turned[:, j, j], turned[:, i, j]
    others = jnp.sum(logs, axis=1) - logs[:, i] - logs[:, j]
    m, u = (a + b) / 2, (a - b) / 2

    def criterion(phi: Float[Array, " g"]) -> Float[Array, " g"]:
        w = u * jnp.cos(phi)[:, None] + v * jnp.sin(phi)[:, None]
        product = jnp.maximum(m * m - w * w, 1e-15 * m * m + _TINY)
        return jnp.sum(terms(jnp.log(product) + others), axis=1)

    offsets = jnp.asarray(np.arange(_ANGLES) - _ANGLES // 2)

    def closer(level: Any, phi: Array) -> Array:
        grid = phi + offsets * (math.pi / _ANGLES) * (2.0 / _ANGLES) ** level
        values = criterion(grid)
        lowest = jnp.argmin(values)
        return jnp.where(values[lowest] < values[_ANGLES // 2], grid[lowest], phi)

    phi = lax.fori_loop(0, 4, closer, jnp.zeros((), turned.dtype))
    phi = phi - math.pi * jnp.round(phi / math.pi)  # m ± w change places after half a turn
    return jnp.where(jnp.isfinite(phi), phi / 2, 0)
