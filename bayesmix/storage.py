"""Three ways to keep covariances: dense matrices, diagonals, one variance each; the table `STORAGES`.

log p(x, z=k) is linear in 1, x and the products that a storage keeps of x; `features` computes them for a block
of points, points last, and `second` reads moments back from their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, reduce
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix import lean
from bayesmix.inputs import is_traced

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = [
    "STORAGES",
    "WRITTEN_OUT",
    "Storage",
    "inverse_cholesky",
    "numbers",
    "per_cluster",
    "slices",
    "with_one",
]


def numbers(values: Any) -> Any:
    """The library of an array: `jax.numpy` for JAX's own, traced ones included, otherwise `numpy`."""
    return jnp if isinstance(values, jax.Array) else np


def per_cluster(vector: Any, axes: int) -> Any:
    """A number a cluster (k,), shaped to multiply values with so many trailing axes."""
    return vector.reshape((-1,) + (1,) * axes)


class Storage(NamedTuple):
    """One way to keep k covariances (or one that they share: a leading axis of length one).

    `values` below is (k|1, d, d), (k|1, d) or (k|1,). `factor` is the inverse W of the Cholesky factor
    in the same layout, so that |W (x - m)|² is the squared Mahalanobis distance.
    """

    axes: int  # trailing axes of `values`: 2, 1 or 0
    features: Callable[[Array], Array]  # block (d, b) -> T(x) (1 + d + q, b): 1, x, and q products of x
    # The products for a pass that is one kernel: rows (m, b) and, unless it is None, what they are to be multiplied
    # by (1, b), so that they need not be kept.
    pieces: Callable[[Array], list[tuple[Array, Any]]]
    weigh: Callable[[Array, int], Array]  # precision, d -> (k|1, q): -1/2 xᵀPx = weigh(P) @ those products
    sizes: Callable[[int], Sequence[int]]  # d -> rows of each of the pieces, q together
    # d -> by which x_j each x_i is multiplied, in the order of q; none of a sphere.
    partners: Callable[[int], list]
    second: Callable[[Array, int], Array]  # sums of the products (k, q) -> second moments in storage
    pack: Callable[[Any, int], Any]  # and back
    outer: Callable[[Any], Any]  # means (k, d) -> the storage's part of m mᵀ
    cholesky: Callable[[Array], Array]
    inverse: Callable[[Array], Array]  # Cholesky factor -> W
    diagonal: Callable[[Array], Array]  # of a factor: (k|1, d) or, for a sphere, (k|1, 1)
    gram: Callable[[Array], Array]  # W -> precision WᵀW
    apply: Callable[[Array, Array], Array]  # matrices in storage times vectors (k, d)
    whiten: Callable[[Array, Array], Array]  # W times deviations (k, d, b)
    spread: Callable[[Array, Array], Array]  # sum over points of r y yᵀ; r (k, b), y (k, d, b)
    unwhiten: Callable[[Array, Array], Array]  # Cholesky factor L, second moments V -> L V Lᵀ
    dense: Callable[[Any, int], Any]  # (..., k|1, d, d)
    sparse: Callable[[Any], Any]  # dense -> values, dropping what the storage does not keep
    rescale: Callable[[Any, Any], Any]  # covariance of scale * x; scale (d,)
    part: Callable[[Any, Any], Any]  # the rows and columns of some features


WRITTEN_OUT = 4  # features, up to which matrices are factored without LAPACK


@cache
def _pairs(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Which products x_i x_j a block keeps: the upper triangle, row by row."""
    return np.triu_indices(d)


def slices(values: Array, axis: int) -> Sequence[Array]:
    """Those of length one along an axis; one operation, of which indices take two each and longer to trace."""
    return lax.split(values, [1] * values.shape[axis], axis % values.ndim)


def with_one(x: Float[Array, "d b"]) -> Float[Array, "d+1 b"]:
    """[1, x]: all the features that are needed where one covariance is shared."""
    return numbers(x).concatenate([numbers(x).ones_like(x[:1]), x])


# Products of rows of [1, x], so that T is one kernel: to write it piece by piece and put the pieces together costs
# half as much again at run time, and three times as much to compile.
def _products(x: Float[Array, "d b"], i: np.ndarray, j: np.ndarray) -> Float[Array, "p b"]:
    y = with_one(x)
    return y[i] * y[j]


def _full_features(x: Float[Array, "d b"]) -> Float[Array, "p b"]:
    return _products(x, *np.triu_indices(len(x) + 1))


def _full_pieces(x: Float[Array, "d b"]) -> list[tuple[Array, Array | None]]:
    return [(lax.slice_in_dim(x, i, len(x)), row) for i, row in enumerate(slices(x, 0))]


def _diagonal_features(x: Float[Array, "d b"]) -> Float[Array, "p b"]:
    alone, each = np.zeros(len(x) + 1, int), np.arange(1, len(x) + 1)
    return _products(x, np.r_[alone, each], np.r_[: len(x) + 1, each])


def _spherical_features(x: Float[Array, "d b"]) -> Float[Array, "p b"]:
    return numbers(x).concatenate([with_one(x), (x * x).mean(axis=0, keepdims=True)])


def _full_pack(values: Float[Array, "k d d"], d: int) -> Float[Array, "k q"]:
    if numbers(values) is jnp and d <= WRITTEN_OUT:  # by indices it is a gather, which takes them from memory
        return jnp.concatenate([values[:, a, a:] for a in range(d)], axis=1)
    return values[:, *_pairs(d)]


def _full_weigh(precision: Float[Array, "k d d"], d: int) -> Float[Array, "k q"]:
    return _full_pack(precision * lean.where(_eye(d), -0.5, -1.0), d)


def _full_whiten(factor: Float[Array, "k d d"], y: Float[Array, "k d b"]) -> Float[Array, "k d b"]:
    d = y.shape[1]
    if numbers(factor) is jnp and d <= WRITTEN_OUT:
        rows = [sum(factor[:, i, j, None] * y[:, j] for j in range(d)) for i in range(d)]
        return jnp.stack(rows, axis=1)
    return numbers(factor).broadcast_to(factor, (y.shape[0], *factor.shape[1:])) @ y


def _full_apply(factor: Float[Any, "... k d d"], m: Float[Any, "... k d"]) -> Float[Any, "... k d"]:
    n = numbers(m)
    return n.einsum("...kij,...kj->...ki", n.broadcast_to(factor, (*m.shape, m.shape[-1])), m)


def _full_second(moments: Float[Array, "k q"], d: int) -> Float[Array, "k d d"]:
    i, j = _pairs(d)
    where = np.empty((d, d), int)
    where[i, j] = where[j, i] = np.arange(i.size)
    if numbers(moments) is jnp and d <= WRITTEN_OUT:
        each = slices(moments, 1)
        return jnp.concatenate([each[place] for place in where.ravel().tolist()], axis=1).reshape(-1, d, d)
    return moments[:, where]


def _full_cholesky(values: Any) -> Any:
    """NaN where a matrix is not positive definite."""
    if numbers(values) is jnp:
        return _small_cholesky(values) if values.shape[-1] <= WRITTEN_OUT else jnp.linalg.cholesky(values)
    try:
        return np.linalg.cholesky(values)
    except np.linalg.LinAlgError:
        if values.ndim == 2:
            return np.full_like(values, np.nan)
        return np.stack([_full_cholesky(matrix) for matrix in values])


def _entries(matrix: Float[Array, "... d d"]) -> list[Sequence[Array]]:
    """Of a matrix, row by row, each (..., 1, 1)."""
    return [slices(row, -1) for row in slices(matrix, -2)]


def _assembled(entries: list[list[Array]]) -> Array:
    """A lower triangular matrix (..., d, d) of its entries, row by row."""
    zero, d = jnp.zeros_like(entries[0][0]), len(entries)
    rows = [jnp.concatenate([*row, *[zero] * (d - len(row))], axis=-1) for row in entries]
    return jnp.concatenate(rows, axis=-2)


# A call of LAPACK for a few numbers takes longer than the numbers do, and to get them there and back is five kernels
# to compile; written out they are one.
@lean.inlined
def _small_cholesky(values: Float[Array, "... d d"]) -> Float[Array, "... d d"]:
    rows: list[list[Array]] = []
    given = _entries(values)
    for i in range(len(given)):
        row: list[Array] = []
        for j in range(i + 1):
            left = given[i][i] if i == j else (given[i][j] + given[j][i]) / 2
            for a, b in zip(row, rows[j] if j < i else row):
                left = left - a * b
            row.append(left / rows[j][j] if j < i else lax.sqrt(lean.where(left > 0, left, np.nan)))
        rows.append(row)
    return _assembled(rows)


@lean.inlined
def _small_inverse(factor: Float[Array, "... d d"]) -> Float[Array, "... d d"]:
    rows: list[list[Array]] = []
    given = _entries(factor)
    for i in range(len(given)):
        pivot = 1 / given[i][i]
        row = [-pivot * reduce(add, (given[i][m] * rows[m][j] for m in range(j, i))) for j in range(i)]
        rows.append([*row, pivot])
    return _assembled(rows)


def _full_inverse(factor: Any) -> Any:
    if numbers(factor) is np:  # row by row, as exact as a triangular solve
        inverse, identity = np.zeros_like(factor), np.eye(factor.shape[-1], dtype=factor.dtype)
        for i in range(factor.shape[-1]):
            known = (factor[..., i, None, :i] @ inverse[..., :i, :])[..., 0, :]
            inverse[..., i, :] = (identity[i] - known) / factor[..., i, i, None]
        return inverse
    if factor.shape[-1] <= WRITTEN_OUT:
        return _small_inverse(factor)
    identity = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
    return lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)


def _diagonal(values: Any) -> Any:
    if numbers(values) is np:
        return np.diagonal(values, axis1=-2, axis2=-1)
    # Not by a gather, of which the derivative is a scatter.
    return lean.sum(lean.where(_eye(values.shape[-1]), values, 0), axis=-1)


def _eye(d: int) -> Bool[Array, "d d"]:
    return lax.eq(*(lax.broadcasted_iota(np.int32, (d, d), axis) for axis in range(2)))


def _identity(values: Any, d: int) -> Any:
    return numbers(values).eye(d, dtype=bool)


def _over_features(sphere: Array) -> Array:
    return sphere[..., None]


STORAGES: dict[str, Storage] = {
    "full": Storage(
        axes=2,
        features=_full_features,
        pieces=_full_pieces,
        weigh=_full_weigh,
        sizes=lambda d: range(d, 0, -1),
        partners=lambda d: [range(i, d) for i in range(d)],
        second=_full_second,
        pack=_full_pack,
        outer=lambda m: m[:, :, None] * m[:, None, :],
        cholesky=_full_cholesky,
        inverse=_full_inverse,
        diagonal=_diagonal,
        gram=lambda w: numbers(w).swapaxes(w, -1, -2) @ w,
        apply=_full_apply,
        whiten=_full_whiten,
        spread=lambda r, y: (r[:, None] * y) @ jnp.swapaxes(y, -1, -2),
        unwhiten=lambda f, v: f @ v @ jnp.swapaxes(f, -1, -2),
        dense=lambda v, d: v,
        sparse=lambda v: v,
        rescale=lambda v, s: v * (s[:, None] * s),
        part=lambda v, j: v[..., j, :][..., j],
    ),
    "diagonal": Storage(
        axes=1,
        features=_diagonal_features,
        pieces=lambda x: [(x * x, None)],
        weigh=lambda p, d: -0.5 * p,
        sizes=lambda d: [d],
        partners=lambda d: [[i] for i in range(d)],
        second=lambda q, d: q,
        pack=lambda v, d: v,
        outer=lambda m: m * m,
        cholesky=lambda v: numbers(v).sqrt(v),
        inverse=lambda f: 1 / f,
        diagonal=lambda f: f,
        gram=lambda w: w * w,
        apply=lambda a, m: a * m,
        whiten=lambda w, y: w[:, :, None] * y,
        spread=lambda r, y: jnp.einsum("kb,kdb->kd", r, y * y),
        unwhiten=lambda f, v: f * f * v,
        dense=lambda v, d: v[..., None] * _identity(v, d),
        sparse=lambda v: _diagonal(v),
        rescale=lambda v, s: v * (s * s),
        part=lambda v, j: v[..., j],
    ),
    # One number a cluster, the mean over features: so one division serves every storage's M-step.
    "spherical": Storage(
        axes=0,
        features=_spherical_features,
        pieces=lambda x: [((x * x).mean(axis=0, keepdims=True), None)],
        weigh=lambda p, d: -0.5 * d * p[:, None],
        sizes=lambda d: [1],
        partners=lambda d: [],
        second=lambda q, d: q[:, 0],
        pack=lambda v, d: v[:, None],
        outer=lambda m: (m * m).mean(-1),
        cholesky=lambda v: numbers(v).sqrt(v),
        inverse=lambda f: 1 / f,
        diagonal=_over_features,
        gram=lambda w: w * w,
        apply=lambda a, m: a[..., None] * m,
        whiten=lambda w, y: w[:, None, None] * y,
        spread=lambda r, y: jnp.einsum("kb,kdb->k", r, y * y) / y.shape[1],
        unwhiten=lambda f, v: f * f * v,
        dense=lambda v, d: v[..., None, None] * _identity(v, d),
        sparse=lambda v: _diagonal(v).mean(-1),
        rescale=lambda v, s: v * (s[0] * s[0]),
        part=lambda v, j: v,
    ),
}


def inverse_cholesky(scale: Any) -> Any:
    """Lower L, L Lᵀ = scale⁻¹ (..., d, d); in float64 where it can be: float32 may not hold a thin scale's inverse."""
    library = jnp if is_traced(scale) else np
    turned = library.asarray(scale)[..., ::-1, ::-1]
    inverse = _full_inverse(_full_cholesky(turned) if library is jnp else np.linalg.cholesky(turned))
    return library.tril(library.swapaxes(inverse[..., ::-1, ::-1], -1, -2))
