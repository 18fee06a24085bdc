"""The M-steps of the covariance structures: Σ_k = λ_k D_k A_k D_kᵀ from counts and scatters.

Given counts n_k and scatters W_k, each function minimises over its family

    Σ_k [ n_k log |Σ_k| + tr(Σ_k⁻¹ W_k) ].

Most structures have a closed form. VEI, VEE and VEV alternate between volumes and the common shape, which is a
contraction; EVE and VVE turn their common axes, all pairs at once by Newton's method near the minimum and pair by pair
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

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

__all__ = [
    "common_axes",
    "each",
    "eev",
    "eve",
    "evi",
    "evv",
    "per_cluster",
    "pooled",
    "vee",
    "vei",
    "vev",
    "vve",
]

_ROUNDS = 500  # of an iterative M-step, at most
_AT_REST = 1e-11  # relative change of a volume below which it has converged
_STILL = 1e-9  # largest angle of a last turn
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
        new = jnp.maximum(fold(old)[1] / count, _TINY)
        return new, jnp.max(jnp.abs(new / old - 1)), rounds + 1

    start = (jnp.maximum(volumes, _TINY), jnp.asarray(jnp.inf, count.dtype), jnp.asarray(0))
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
    volumes = jnp.maximum(_volume(scatter), 1e-12 * size + _TINY)  # of a singular one rounding would decide
    return scatter * per_cluster(jnp.sum(volumes) / jnp.sum(count) / volumes, 2)


def _inverse(matrix: Float[Array, "d d"]) -> tuple[Array, Array]:
    """M⁻¹ and |M|^(1/d) of a positive-definite matrix."""
    d = matrix.shape[0]
    factor = jnp.linalg.cholesky(matrix)
    root = lax.linalg.triangular_solve(factor, jnp.eye(d, dtype=matrix.dtype), left_side=True, lower=True)
    return root.T @ root, jnp.exp(2 * jnp.mean(jnp.log(jnp.diagonal(factor))))


def _axes(scatter: Float[Array, "k d d"]) -> tuple[Array, Array]:
    """Eigenvalues in ascending order, never negative, and their vectors as columns."""
    values, vectors = _eigh(scatter)
    return jnp.maximum(values, 0), vectors


def _eigh(matrices: Float[Array, "*k d d"]) -> tuple[Array, Array]:
    """Eigenvalues in ascending order and their vectors; two features, which are common, have a formula."""
    if matrices.shape[-1] != 2:
        return jnp.linalg.eigh(matrices)
    a, b, c = matrices[..., 0, 0], matrices[..., 0, 1], matrices[..., 1, 1]
    half = jnp.arctan2(2 * b, a - c) / 2  # of the longer axis
    x, y = jnp.cos(half), jnp.sin(half)
    vectors = jnp.stack([jnp.stack([-y, x], axis=-1), jnp.stack([x, y], axis=-1)], axis=-1)
    return _diagonal(jnp.swapaxes(vectors, -1, -2) @ matrices @ vectors), vectors


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
    return common_axes(count, scatter, previous, jnp.asarray(True))


def eve(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """Σ_k = λ D A_k Dᵀ: A_k ∝ δ_k = diag(Dᵀ W_k D), λ = Σ_k |δ_k|^(1/d) / n, and D minimises that sum."""
    return common_axes(count, scatter, previous, jnp.asarray(False))


# log |diag(Dᵀ W_k D)|, a number a cluster, to the terms of the criterion and their first two derivatives.
Terms = Callable[[Array], tuple[Array, Array, Array]]


def common_axes(count: Array, scatter: Array, previous: Array, varying: Array) -> Float[Array, "k d d"]:
    """VVE where volumes are varying, else EVE: one program for both, whose axes differ in the criterion only.

    They begin at the axes of the previous covariances, which share them. Newton's step for every pair at once is
    taken where it is small and lowers the criterion; otherwise the axes are turned pair by pair.
    """
    k, d = scatter.shape[:2]

    def terms(logs: Array) -> tuple[Array, Array, Array]:
        sizes = jnp.exp(logs / d)
        return (
            jnp.where(varying, count * logs, sizes),
            jnp.where(varying, count, sizes / d),
            jnp.where(varying, 0, sizes / d**2),
        )

    # Generic multipliers, so that eigenvalues which are equal in the sum are not so by accident.
    mix = 1 + np.modf(np.arange(1, k + 1) * math.sqrt(2))[0]
    size = jnp.maximum(jnp.trace(previous, axis1=-2, axis2=-1), _TINY)
    blend = jnp.sum(previous * per_cluster(jnp.asarray(mix) / size, 2), axis=0)
    axes = _eigh(blend)[1]
    turned = jnp.swapaxes(axes, -1, -2) @ scatter @ axes

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

    if d > 1:
        axes, turned, _, _ = lax.while_loop(
            lambda carry: (carry[2] > _STILL) & (carry[3] < _ROUNDS),
            improve,
            (axes, turned, jnp.asarray(jnp.inf, scatter.dtype), jnp.asarray(0)),
        )
    cells = _diagonal(turned)
    values = jnp.where(varying, cells / count[:, None], evi(count, cells, previous))
    return _rebuild(axes, values)


def _criterion(turned: Array, terms: Terms) -> Array:
    return jnp.sum(terms(jnp.sum(jnp.log(jnp.maximum(_diagonal(turned), _TINY)), axis=1))[0])


def _newton(turned: Array, terms: Terms) -> tuple[Array, Array]:
    """Newton's step for the angle of each pair by itself, all in one rotation; and the largest: NaN if not convex.

    Turning axes a and b by a small θ changes D_b = W_bb by 2 θ W_ab + θ² (W_aa - W_bb), and D_a the other way.
    """
    d = turned.shape[-1]
    cells = jnp.maximum(_diagonal(turned), _TINY)
    _, first, second = terms(jnp.sum(jnp.log(cells), axis=1))
    inverse = 1 / cells
    apart = inverse[:, None, :] - inverse[:, :, None]  # 1 / D_b - 1 / D_a
    slope = 2 * turned * apart
    squares = inverse[:, None, :] ** 2 + inverse[:, :, None] ** 2
    bend = 2 * (cells[:, :, None] - cells[:, None, :]) * apart - 4 * turned**2 * squares
    gradient = jnp.einsum("k,kab->ab", first, slope)
    curvature = jnp.einsum("k,kab->ab", first, bend) + jnp.einsum("k,kab->ab", second, slope**2)
    lower = jnp.asarray(np.tri(d, k=-1, dtype=bool))
    step = jnp.where(lower, -gradient / jnp.where(lower & (curvature > 0), curvature, jnp.nan), 0)
    largest = jnp.max(jnp.abs(step))
    skew = (step - step.T) / 2
    return jnp.linalg.solve(jnp.eye(d) - skew, jnp.eye(d) + skew), largest


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
        return jnp.sum(terms(jnp.log(product) + others)[0], axis=1)

    offsets = jnp.asarray(np.arange(_ANGLES) - _ANGLES // 2)

    def closer(level: Any, phi: Array) -> Array:
        grid = phi + offsets * (math.pi / _ANGLES) * (2.0 / _ANGLES) ** level
        values = criterion(grid)
        lowest = jnp.argmin(values)
        return jnp.where(values[lowest] < values[_ANGLES // 2], grid[lowest], phi)

    phi = lax.fori_loop(0, 4, closer, jnp.zeros((), turned.dtype))
    phi = phi - math.pi * jnp.round(phi / math.pi)  # m ± w change places after half a turn
    return jnp.where(jnp.isfinite(phi), phi / 2, 0)
