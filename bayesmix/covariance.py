"""How the covariances of the clusters are stored, constrained and estimated: the table `STRUCTURES`.

Celeux & Govaert's family writes each covariance as Σ_k = λ_k D_k A_k D_kᵀ: volume, shape, orientation.
mclust's three letters say of each in turn whether it is Equal over the clusters, Varying, or the
Identity. A structure is a row: one of three ways to store Σ (`STORAGES`), a function that estimates it
(its M-step), and what else differs. Adding a structure is one function and one row.

The quadratic part of log p(x, z=k) is linear in the products that a storage keeps of x; `products`
computes them for a block of points, points last, and `second` reads moments back from their sums.

References:
    Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28, table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bayesmix import estimate
from bayesmix.estimate import per_cluster
from bayesmix.inputs import as_floats, is_traced

__all__ = [
    "ALIASES",
    "STORAGES",
    "STRUCTURES",
    "Covariance",
    "Storage",
    "Structure",
    "covariance_values",
    "per_cluster",
    "structure_of",
]


class Storage(NamedTuple):
    """One way to keep k covariances (or one that they share: a leading axis of length one).

    `values` below is (k|1, d, d), (k|1, d) or (k|1,). `factor` is the inverse W of the Cholesky factor
    in the same layout, so that |W (x - m)|² is the squared Mahalanobis distance.
    """

    axes: int  # trailing axes of `values`: 2, 1 or 0
    products: Callable[[Array], Array]  # block (d, b) -> (q, b), what is summed besides 1 and x
    weigh: Callable[[Array, int], Array]  # precision, d -> (k|1, q): -1/2 xᵀPx = weigh(P) @ products(x)
    size: Callable[[int], int]  # d -> q
    second: Callable[[Array, int], Array]  # sums of products (k, q) -> second moments in storage
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


@cache
def _pairs(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which products x_i x_j a block keeps, and each one's coefficient in xᵀPx.

    Up to four features the upper triangle, row by row. Beyond, cyclic shifts: x times x moved by
    0 .. d//2 places, all of one shape, which XLA turns into fewer and longer loops; where d is even
    the last shift holds each pair twice, so its coefficient is half.
    """
    if d <= 4:
        i, j = np.triu_indices(d)
    else:
        shifts = d // 2 + 1
        i = np.tile(np.arange(d), shifts)
        j = (i + np.repeat(np.arange(shifts), d)) % d
    times = np.zeros((d, d))
    np.add.at(times, (np.minimum(i, j), np.maximum(i, j)), 1.0)
    return i, j, np.where(i == j, 1.0, 2.0) / times[np.minimum(i, j), np.maximum(i, j)]


def _full_products(x: Float[Array, "d b"]) -> Float[Array, "q b"]:
    d = x.shape[0]
    if d <= 4:
        return jnp.concatenate([x[i : i + 1] * x[i:] for i in range(d)])
    shifted = jnp.concatenate([x, x[: d // 2]])
    return jnp.concatenate([x * shifted[s : s + d] for s in range(d // 2 + 1)])


def _full_weigh(precision: Float[Array, "k d d"], d: int) -> Float[Array, "k q"]:
    i, j, coefficient = _pairs(d)
    return -0.5 * precision[:, i, j] * coefficient


def _full_second(moments: Float[Array, "k q"], d: int) -> Float[Array, "k d d"]:
    i, j, _ = _pairs(d)
    where = np.empty((d, d), int)
    where[i, j] = where[j, i] = np.arange(i.size)
    return moments[:, where]


def _full_inverse(factor: Float[Array, "k d d"]) -> Float[Array, "k d d"]:
    identity = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
    return lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)


def _diagonal(values: Any) -> Any:
    return (jnp if isinstance(values, jax.Array) else np).diagonal(values, axis1=-2, axis2=-1)


def _identity(values: Any, d: int) -> Any:
    return (jnp if isinstance(values, jax.Array) else np).eye(d, dtype=bool)


def _over_features(sphere: Array) -> Array:
    return sphere[..., None]


STORAGES: dict[str, Storage] = {
    "full": Storage(
        axes=2,
        products=_full_products,
        weigh=_full_weigh,
        size=lambda d: len(_pairs(d)[0]),
        second=_full_second,
        pack=lambda v, d: v[:, *_pairs(d)[:2]],
        outer=lambda m: m[:, :, None] * m[:, None, :],
        cholesky=jnp.linalg.cholesky,
        inverse=_full_inverse,
        diagonal=lambda f: jnp.diagonal(f, axis1=-2, axis2=-1),
        gram=lambda w: jnp.swapaxes(w, -1, -2) @ w,
        apply=lambda a, m: jnp.einsum("...kij,...kj->...ki", jnp.broadcast_to(a, (*m.shape, m.shape[-1])), m),
        whiten=lambda w, y: jnp.broadcast_to(w, (y.shape[0], *w.shape[1:])) @ y,
        spread=lambda r, y: (r[:, None] * y) @ jnp.swapaxes(y, -1, -2),
        unwhiten=lambda f, v: f @ v @ jnp.swapaxes(f, -1, -2),
        dense=lambda v, d: v,
        sparse=lambda v: v,
        rescale=lambda v, s: v * (s[:, None] * s),
        part=lambda v, j: v[..., j, :][..., j],
    ),
    "diagonal": Storage(
        axes=1,
        products=lambda x: x * x,
        weigh=lambda p, d: -0.5 * p,
        size=lambda d: d,
        second=lambda q, d: q,
        pack=lambda v, d: v,
        outer=lambda m: m * m,
        cholesky=jnp.sqrt,
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
        products=lambda x: jnp.mean(x * x, axis=0, keepdims=True),
        weigh=lambda p, d: -0.5 * d * p[:, None],
        size=lambda d: 1,
        second=lambda q, d: q[:, 0],
        pack=lambda v, d: v[:, None],
        outer=lambda m: (m * m).mean(-1),
        cholesky=jnp.sqrt,
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


class Structure(NamedTuple):
    """One row of `STRUCTURES`.

    Attributes:
        name: mclust's letters.
        storage: which row of `STORAGES`.
        estimate: the M-step, (count (k,), scatter in storage (k|1, ...), previous values) -> values.
            An iterative M-step starts from the previous values.
        by_column: the family is closed under rescaling each column by itself, not only all by one number.
        n_features: the only number of features that it is for, if there is one.
    """

    name: str
    storage: str
    estimate: Callable[[Array, Array, Array], Array]
    by_column: bool
    n_features: int | None = None

    @property
    def letters(self) -> str:
        """Volume, shape, orientation, each Equal, Varying or the Identity."""
        return self.name if len(self.name) == 3 else self.name + "II"

    @property
    def form(self) -> Storage:
        return STORAGES[self.storage]

    @property
    def shared(self) -> bool:
        """One Σ for all clusters, so logits are linear in x and only the total scatter is needed."""
        return "V" not in self.letters

    @property
    def constrained(self) -> bool:
        """Clusters have something in common and something of their own, so no site of one cluster makes it."""
        return not self.shared and "E" in self.letters

    @property
    def unbounded(self) -> bool:
        """Volumes vary, so a cluster that shrinks to a point drives the likelihood to infinity."""
        return self.letters[0] == "V"

    def n_parameters(self, k: int, d: int) -> int:
        """Free parameters of the covariances: a volume, d - 1 ratios of axes and d (d - 1) / 2 angles, each
        once where it is equal and k times where it varies.
        """
        times = {"E": 1, "V": k, "I": 0}
        volume, shape, orientation = (times[letter] for letter in self.letters)
        return volume + shape * (d - 1) + orientation * d * (d - 1) // 2


STRUCTURES: dict[str, Structure] = {
    row.name: row
    for row in (
        Structure("E", "spherical", estimate.pooled, False, 1),
        Structure("V", "spherical", estimate.each, False, 1),
        Structure("EII", "spherical", estimate.pooled, False),
        Structure("VII", "spherical", estimate.each, False),
        Structure("EEI", "diagonal", estimate.pooled, True),
        Structure("VEI", "diagonal", estimate.vei, True),
        Structure("EVI", "diagonal", estimate.evi, True),
        Structure("VVI", "diagonal", estimate.each, True),
        Structure("EEE", "full", estimate.pooled, True),
        Structure("VEE", "full", estimate.vee, True),
        Structure("EVE", "full", estimate.eve, False),
        Structure("VVE", "full", estimate.vve, False),
        Structure("EEV", "full", estimate.eev, False),
        Structure("VEV", "full", estimate.vev, False),
        Structure("EVV", "full", estimate.evv, True),
        Structure("VVV", "full", estimate.each, True),
    )
}

ALIASES = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}


def structure_of(covariance: Any, n_features: int | None = None) -> Structure:
    """The row for mclust's letters or scikit-learn's word.

    Raises:
        ValueError: no such structure, or one that is for another number of features.
    """
    name = ALIASES.get(covariance, covariance) if isinstance(covariance, str) else covariance
    if not isinstance(name, str) or name not in STRUCTURES:
        known = ", ".join([*STRUCTURES, *ALIASES])
        raise ValueError(f"covariance must be one of {known}; it is {covariance!r}")
    row = STRUCTURES[name]
    if n_features is not None and row.n_features not in (None, n_features):
        raise ValueError(
            f"covariance {name!r} is for {row.n_features} feature, and the data have {n_features}; "
            f"use {name + 'II'!r} or another three-letter structure"
        )
    return row


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["structure"])
@dataclass(frozen=True)
class Covariance:
    """Covariances in their structure's storage: `values` (k|1, d, d), (k|1, d) or (k|1,)."""

    values: Any
    structure: str

    @property
    def row(self) -> Structure:
        return STRUCTURES[self.structure]

    @property
    def storage(self) -> Storage:
        return STORAGES[self.row.storage]


def covariance_values(covariances: Any, row: Structure, k: int, d: int) -> Any:
    """Covariances in the row's storage, from dense matrices (k, d, d) or from the storage itself.

    Values are checked unless they are traced, where only shapes can be.

    Raises:
        ValueError: shapes that do not fit, a matrix that is not symmetric, not positive definite or not of the
            structure.
    """
    storage = STORAGES[row.storage]
    given = jnp.asarray(covariances) if is_traced(covariances) else as_floats(covariances, "covariances")
    if d == 1 and given.shape == (k,):
        given = given[:, None, None]
    leading = 1 if row.shared else k
    stored = (leading,) + (d,) * storage.axes
    if given.shape == (k, d, d):
        values = storage.sparse(given)[:leading]
    elif given.shape == stored or (row.shared and given.shape == stored[1:]):
        values = given.reshape(stored)
    else:
        raise ValueError(
            f"covariances have shape {given.shape}; {row.name} with {k} clusters and {d} features takes "
            f"{(k, d, d)} or {stored}"
        )
    if isinstance(given, np.ndarray):
        _check(given, np.broadcast_to(storage.dense(values, d), (k, d, d)), row)
    return values


def _check(given: np.ndarray, dense: np.ndarray, row: Structure) -> None:
    if given.shape == dense.shape and not np.allclose(
        given, dense, rtol=1e-6, atol=1e-9 * np.abs(given).max()
    ):
        raise ValueError(
            f"covariances are not of the structure {row.name}: as {row.name} they would be {dense.tolist()}"
        )
    for index, matrix in enumerate(dense):
        if np.abs(matrix - matrix.T).max() > 1e-6 * np.abs(matrix).max():
            raise ValueError(f"covariance {index} is not symmetric: {matrix.tolist()}")
        lowest = np.linalg.eigvalsh(matrix.astype(np.float64))[0]
        if lowest <= 0:
            raise ValueError(
                f"covariance {index} is not positive definite (smallest eigenvalue {lowest:.3g}): "
                f"{matrix.tolist()}"
            )
    differ = _unequal(dense.astype(np.float64), row, 1e-6 if dense.dtype == np.float64 else 1e-3)
    if differ:
        raise ValueError(
            f"covariances are not of the structure {row.name}, which has equal {differ}: {dense.tolist()}"
        )


def _unequal(dense: np.ndarray, row: Structure, tolerance: float) -> str:
    """What the structure says is equal over the clusters and is not; empty where all is well."""
    volume, shape, orientation = row.letters
    d = dense.shape[-1]
    values = np.linalg.eigvalsh(dense) if orientation != "I" else np.diagonal(dense, axis1=1, axis2=2)
    volumes = np.exp(np.log(values).mean(axis=1))
    unit = dense / volumes[:, None, None]
    shapes = values / volumes[:, None]
    if volume == "E" and np.ptp(volumes) > tolerance * volumes.max():
        return f"volumes, |Σ|^(1/{d}), but they are {volumes.tolist()}"
    if shape == "E" and (np.ptp(shapes, axis=0) > tolerance * shapes.max()).any():
        return f"shapes, but the normalised eigenvalues are {shapes.tolist()}"
    if shape == orientation == "E" and (np.ptp(unit, axis=0) > tolerance * np.abs(unit).max()).any():
        return "shapes and orientations, but the matrices over their volumes differ"
    if orientation == "E" and d > 1:
        products = unit[:, None] @ unit[None]
        size = np.abs(unit).max(axis=(1, 2))
        apart = np.abs(products - np.swapaxes(products, -1, -2)).max(axis=(2, 3)) / np.outer(size, size)
        if apart.max() > tolerance:
            return "orientations, but these matrices have no common axes"
    return ""
