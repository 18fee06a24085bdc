"""Axes of covariances: of one matrix, rotations, and the common ones of several scatters.

Common axes are turned all pairs at once by Newton's method near the minimum, and pair by pair to the lowest point over
each angle elsewhere, so nothing can raise the criterion by more than its rounding.

References:
    Flury & Gautschi (1986), An algorithm for simultaneous orthogonal transformation of several positive definite
    symmetric matrices to nearly diagonal form, SIAM J. Sci. Stat. Comput. 7.
    Browne & McNicholas (2014), Orthogonal Stiefel manifold optimization for eigen-decomposed covariance parameter
    estimation in mixture models, Statistics and Computing 24.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix.elementary import log_positive
from bayesmix.storage import STORAGES, per_cluster

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["TINY", "common_axes", "diagonal", "eigh", "generic", "principal_axes", "rebuild", "rotation"]

TINY = 1e-300
_ROUNDS = 500  # turns of the common axes, at most
_STILL = 1e-9  # largest angle that is left to turn
_COUPLED = 12  # features, at most, for Newton's step of all d (d - 1) / 2 angles together
_FLAT = 1e-10  # of the mean curvature, added, lest there be directions without any
_SMALL_TURN = 0.2  # largest angle of a step of Newton that is taken
_ROUNDING = 1e-14  # of the criterion: so near the minimum Newton's step is right, and cannot be seen to be
_ANGLES = 16  # points of a grid of angles over half a turn of 2 θ


def generic(k: int) -> np.ndarray:
    """Multipliers (k,) for a sum of matrices, so that eigenvalues which are equal in it are not so by accident."""
    return 1 + np.modf(np.arange(1, k + 1) * math.sqrt(2))[0]


@jax.custom_jvp
def rotation(skew: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """Cayley's rotation R = (I - S)⁻¹ (I + S) of a skew-symmetric S.

    As (I + S)(I - S) is positive definite, it is had by a Cholesky factor; pivots would be ten kernels to compile.
    As (I - S)⁻¹ = (I + R) / 2, its derivatives are products: dR = (I + R) dS (I + R) / 2.
    """
    storage, forth = STORAGES["full"], jnp.eye(skew.shape[-1]) + skew
    root = storage.inverse(storage.cholesky(forth @ jnp.swapaxes(forth, -1, -2)))
    return storage.gram(root) @ (forth @ forth)


@rotation.defjvp
def _turned(point: tuple[Array], direction: tuple[Array]) -> tuple[Array, Array]:
    turn = rotation(*point)
    both = jnp.eye(turn.shape[-1]) + turn
    return turn, both @ direction[0] @ both / 2


def diagonal(matrices: Float[Array, "k d d"]) -> Float[Array, "k d"]:
    return STORAGES["full"].diagonal(matrices)


def principal_axes(scatter: Float[Array, "k d d"]) -> tuple[Array, Array]:
    """Eigenvalues in ascending order, never negative, and their vectors as columns."""
    values, vectors = eigh(scatter)
    return jnp.maximum(values, 0), vectors


def eigh(matrices: Float[Array, "*k d d"]) -> tuple[Array, Array]:
    """Eigenvalues in ascending order and their vectors; up to two features, which are common, have a formula."""
    if matrices.shape[-1] == 1:
        return matrices[..., 0], jnp.ones_like(matrices)
    if matrices.shape[-1] > 2:
        return jnp.linalg.eigh(matrices)
    a, b, c = matrices[..., 0, 0], matrices[..., 0, 1], matrices[..., 1, 1]
    half = jnp.arctan2(2 * b, a - c) / 2  # of the longer axis
    x, y = jnp.cos(half), jnp.sin(half)
    vectors = jnp.stack([jnp.stack([-y, x], axis=-1), jnp.stack([x, y], axis=-1)], axis=-1)
    return diagonal(jnp.swapaxes(vectors, -1, -2) @ matrices @ vectors), vectors


def rebuild(vectors: Array, values: Array) -> Array:
    """D diag(values) Dᵀ."""
    return (vectors * values[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)


# log |diag(Dᵀ W_k D)|, a number a cluster, to the terms of the criterion and their first two derivatives.
type Terms = Callable[[Array], tuple[Array, Array, Array]]


def common_axes(
    count: Array, scatter: Float[Array, "k d d"], previous: Float[Array, "k d d"], varying: Array
) -> tuple[Float[Array, "d d"], Float[Array, "k d"]]:
    """The axes D that VVE, where volumes are varying, else EVE give scatters W_k; and diag(Dᵀ W_k D).

    They begin at the axes of the previous covariances, which share them. Newton's step for every pair at once is
    taken where it is small and does not raise the criterion; otherwise the axes are turned pair by pair.
    """
    k, d = scatter.shape[:2]

    def terms(logs: Array) -> tuple[Array, Array, Array]:
        sizes = jnp.exp(logs / d)
        return (
            jnp.where(varying, count * logs, sizes),
            jnp.where(varying, count, sizes / d),
            jnp.where(varying, 0, sizes / d**2),
        )

    size = jnp.maximum(jnp.trace(previous, axis1=-2, axis2=-1), TINY)
    axes = eigh(jnp.sum(previous * per_cluster(jnp.asarray(generic(k)) / size, 2), axis=0))[1]
    turned = jnp.swapaxes(axes, -1, -2) @ scatter @ axes

    def improve(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        axes, turned, _, rounds = carry
        turn, angle = _newton(turned, terms)
        moved = jnp.swapaxes(turn, -1, -2) @ turned @ turn
        before = _criterion(turned, terms)
        lower = _criterion(moved, terms) <= before + _ROUNDING * jnp.abs(before)
        left = angle * angle if d <= _COUPLED else angle  # by such a step
        axes, turned, angle = lax.cond(
            lower & (angle < _SMALL_TURN),
            lambda: (axes @ turn, moved, left),
            lambda: _sweep(axes, turned, terms),
        )
        return axes, turned, angle, rounds + 1

    if d > 1:
        axes, turned, _, _ = lax.while_loop(
            lambda carry: (carry[2] > _STILL) & (carry[3] < _ROUNDS),
            improve,
            (axes, turned, jnp.asarray(jnp.inf, scatter.dtype), jnp.asarray(0)),
        )
    return axes, diagonal(turned)


def _criterion(turned: Array, terms: Terms) -> Array:
    return jnp.sum(terms(jnp.sum(log_positive(jnp.maximum(diagonal(turned), TINY)), axis=1))[0])


def _newton(turned: Array, terms: Terms) -> tuple[Array, Array]:
    """Newton's step for the angles of all pairs of axes, in one rotation; and the largest: NaN if not convex.

    With a skew S and s_a its columns, the diagonal of Rᵀ W R at R = I + S + S²/2 is

        D_a = W_aa + 2 w_aᵀ s_a + s_aᵀ W s_a + (W S²)_aa,        Σ_a v_a (W S²)_aa = -Σ_a s_aᵀ diag(v) W s_a

    so what is multiplied by a cluster's v_a = 1 / D_a is quadratic in each column by itself. With many features each
    pair is turned as if no other were.
    """
    d = turned.shape[-1]
    cells = jnp.maximum(diagonal(turned), TINY)
    _, first, second = terms(jnp.sum(log_positive(cells), axis=1))
    inverse = 1 / cells
    apart = inverse[:, None, :] - inverse[:, :, None]
    slope = 2 * turned * apart  # of log |D|, by S
    if d > _COUPLED:
        squares = inverse[:, None, :] ** 2 + inverse[:, :, None] ** 2
        bend = 2 * (cells[:, :, None] - cells[:, None, :]) * apart - 4 * turned**2 * squares
        gradient = jnp.einsum("k,kab->ab", first, slope)
        curvature = jnp.einsum("k,kab->ab", first, bend) + jnp.einsum("k,kab->ab", second, slope**2)
        others = ~np.eye(d, dtype=bool)
        skew = jnp.where(others, -gradient / jnp.where(others & (curvature > 0), curvature, jnp.nan), 0)
    else:
        upper, lower = np.triu_indices(d, 1)
        share = (first[:, None] * inverse)[:, :, None, None]
        lines = turned[:, :, :, None] * turned[:, :, None, :] * inverse[:, :, None, None]
        mixed = jnp.sum(share[..., 0] * turned, axis=0)
        columns = jnp.sum(share * (turned[:, None] - 2 * lines), axis=0) - (mixed + mixed.T) / 2
        # By rows c of column a and e of column b: (a, c, b, e).
        blocks = columns[:, :, None, :] * np.eye(d)[:, None, :, None]
        blocks = blocks[lower, upper] - blocks[upper, lower]
        blocks = blocks[:, lower, upper] - blocks[:, upper, lower]
        slopes = slope[:, upper, lower]
        common = jnp.sum(second[:, None, None] * slopes[:, :, None] * slopes[:, None, :], axis=0)
        curvature = 2 * blocks + common
        flat = _FLAT * jnp.trace(jnp.abs(curvature))
        storage = STORAGES["full"]
        root = storage.inverse(storage.cholesky(curvature + flat * np.eye(len(upper))))
        half = jnp.sum(root * jnp.sum(first[:, None] * slopes, axis=0), axis=1)
        pair = np.arange(len(upper))
        signs = np.zeros((len(upper), d, d))
        signs[pair, upper, lower], signs[pair, lower, upper] = -1, 1
        skew = jnp.sum(jnp.sum(root * half[:, None], axis=0)[:, None, None] * signs, axis=0)
    return rotation(skew / 2), jnp.max(jnp.abs(skew))


def _sweep(axes: Array, turned: Array, terms: Terms) -> tuple[Array, Array, Array]:
    """Each pair of axes turned to the minimum over its angle; and the largest angle."""
    pairs = jnp.asarray(np.stack(np.triu_indices(axes.shape[0], 1), axis=1))

    def turn(pair: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        axes, turned, most = carry
        i, j = pairs[pair]
        angle = _best_angle(turned, i, j, terms)
        c, s = jnp.cos(angle), jnp.sin(angle)

        def columns(m: Array) -> Array:
            a, b, column = m[..., i, None], m[..., j, None], jnp.arange(m.shape[-1])
            return jnp.where(column == i, c * a + s * b, jnp.where(column == j, c * b - s * a, m))

        rows = jnp.swapaxes(columns(turned), -1, -2)
        return columns(axes), columns(rows), jnp.maximum(most, jnp.abs(angle))

    return lax.fori_loop(0, len(pairs), turn, (axes, turned, jnp.zeros((), turned.dtype)))


def _best_angle(turned: Array, i: Array, j: Array, terms: Terms) -> Array:
    """The angle θ by which to turn axes i and j, in (-π/4, π/4].

    With w = u cos 2θ + v sin 2θ, u = (W_ii - W_jj) / 2, v = W_ij and m = (W_ii + W_jj) / 2 the two diagonal entries
    become m ± w, so the criterion depends on their product m² - w² only. It is looked at on ever finer grids, each
    around the lowest point of the last; θ = 0 is on the first, so the criterion cannot rise.
    """
    logs = log_positive(jnp.maximum(diagonal(turned), TINY))
    a, b, v = turned[:, i, i], turned[:, j, j], turned[:, i, j]
    others = jnp.sum(logs, axis=1) - logs[:, i] - logs[:, j]
    m, u = (a + b) / 2, (a - b) / 2

    def criterion(phi: Float[Array, " g"]) -> Float[Array, " g"]:
        w = u * jnp.cos(phi)[:, None] + v * jnp.sin(phi)[:, None]
        product = jnp.maximum(m * m - w * w, 1e-15 * m * m + TINY)
        return jnp.sum(terms(log_positive(product) + others)[0], axis=1)

    offsets = jnp.asarray(np.arange(_ANGLES) - _ANGLES // 2)

    def closer(level: Any, phi: Array) -> Array:
        grid = phi + offsets * (math.pi / _ANGLES) * (2.0 / _ANGLES) ** level
        values = criterion(grid)
        lowest = jnp.argmin(values)
        return jnp.where(values[lowest] < values[_ANGLES // 2], grid[lowest], phi)

    phi = lax.fori_loop(0, 4, closer, jnp.zeros((), turned.dtype))
    phi = phi - math.pi * jnp.round(phi / math.pi)  # m ± w change places after half a turn
    return jnp.where(jnp.isfinite(phi), phi / 2, 0)
