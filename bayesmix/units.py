"""The units of the loop: data about their own mean, divided by a power of two.

    u = (x - origin) / scale

Powers of two make the way back exact, so that a fit of a x + c is the fit of x moved and rescaled, at
1e±12 and at offset 1e8. The scale is per feature where the structure's family is closed under it, one number
otherwise. What a collapsed, a thin or a spurious cluster is, is said here too, relative to the data themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmix.covariance import Covariance, Structure
from bayesmix.inputs import CACHED, chunks_of, require_squares
from bayesmix.mixture import GaussianMixture
from bayesmix.storage import STORAGES

__all__ = [
    "SPURIOUS_RATIO",
    "Floor",
    "Rows",
    "Units",
    "spacing",
    "spurious_clusters",
    "standardize",
    "suspect",
    "typed",
]

# A cluster collapses where its variance, given the features before it, falls below `relative` times that of
# the data, or below `absolute` times the feature's own; float32 data carry fewer digits.
_COLLAPSE = {"float64": (1e-12, 1e-13), "float32": (1e-6, 1e-6)}
# Below this share of a feature's variance plus its squared mean, raw moments keep fewer than 8 digits of a cluster's
# own in float64, and its log-densities fewer than 4 decimals in float32.
_THIN = {"float64": 1e-7, "float32": 4e-3}
# A cluster whose smallest variance, in units of the pooled within-cluster covariance, is below this is spurious if
# it has up to ten times d + 1 points. Beyond, the limit on its standard deviation falls as one over the number of
# points: a few points are always near some plane, many are not unless there is one.
SPURIOUS_RATIO = 1e-3
_NUMBERS = 2**15  # of a stretch of rows


class Floor(NamedTuple):
    """Limits on the squared diagonal of a cluster's Cholesky factor, and what is added below them."""

    collapsed: np.ndarray
    thin: np.ndarray
    ridge: np.ndarray
    thinness: float  # `thin` grows by so many squared means
    asked: np.ndarray | None = None  # added to every covariance, where a user asked for it

    def summed_in(self, dtype: Any) -> Floor:
        """The same where moments are sums in another precision than the data's."""
        thinness = _THIN[np.dtype(dtype).name]
        return self._replace(thin=self.thin * (thinness / self.thinness), thinness=thinness)


@dataclass(frozen=True)
class Units:
    """The map between the data's units and those of the loop.

    Attributes:
        origin: (d,).
        scale: (d,), powers of two.
        deviation: (d,), standard deviations in the data's units; of a constant column a typical one.
        floor: in the units of the loop.
        degenerate: a sentence part that names constant or collinear columns, empty where there are none.
    """

    origin: np.ndarray
    scale: np.ndarray
    deviation: np.ndarray
    floor: Floor
    degenerate: str

    def of(self, points: Any) -> np.ndarray:
        """Points (..., d) in the units of the loop."""
        return (points - self.origin) / self.scale

    def enter(self, mixture: GaussianMixture) -> GaussianMixture:
        """Parameters in the units of the loop."""
        return self._map(mixture, self.of(mixture.means), 1 / self.scale)

    def leave(self, mixture: GaussianMixture) -> GaussianMixture:
        """Parameters in the data's own units."""
        return self._map(mixture, mixture.means * self.scale + self.origin, self.scale)

    def _map(self, mixture: GaussianMixture, means: Any, scale: np.ndarray) -> GaussianMixture:
        values = mixture.covariance.storage.rescale(np.asarray(mixture.covariance.values), scale)
        return replace(mixture, means=means, covariance=Covariance(values, mixture.structure))

    @property
    def log_volume(self) -> float:
        """log |du/dx| of one point: add it to a log-density in loop units to have the data's."""
        return -float(np.log(self.scale).sum())


def typed(mixture: GaussianMixture, dtype: Any) -> GaussianMixture:
    """A mixture, or a batch, in the type of its data; in float64 where variances are too large or small for that."""
    values: Any = np.asarray(mixture.covariance.values)
    variances, held = mixture.covariance.storage.diagonal(values), np.finfo(dtype)
    if ((variances < held.tiny) | (variances > held.max)).any():
        dtype = np.float64
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), mixture)


def _power_of_two(scale: np.ndarray) -> np.ndarray:
    return np.exp2(np.round(np.log2(scale)))


def _repeated(row: np.ndarray, n: int) -> np.ndarray:
    """A row (d,) for each of n: NumPy's loops then run over all numbers of a stretch, not d at a time."""
    return np.repeat(row[None], n, axis=0)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of data (n, d) in the units of the loop, in the data's precision, computed where they are asked for.

    So nothing of the data's size is made of them.
    """

    points: np.ndarray  # in the data's units
    units: Units
    order: np.ndarray | None = None  # places of the rows, where they are not all of the points as they come

    def taken(self, order: np.ndarray) -> Rows:
        """Rows by their places."""
        return replace(self, order=order if self.order is None else self.order[order])

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self), self.points.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """That of the data."""
        return self.points.dtype

    def __len__(self) -> int:
        """How many there are."""
        return len(self.points if self.order is None else self.order)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Those of a slice, a mask or an array of places."""
        points = self.points[rows if self.order is None else self.order[rows]]
        some = np.empty(points.shape, self.dtype)
        origin, scale = self._repeated
        for part in chunks_of(len(points), CACHED):
            own = slice(part.stop - part.start)
            np.divide(points[part] - origin[own], scale[own], out=some[part], casting="same_kind")
        return some

    @cached_property
    def _repeated(self) -> tuple[np.ndarray, np.ndarray]:
        """Origin and scale of a stretch of rows."""
        n = min(len(self), CACHED)
        return _repeated(self.units.origin, n), _repeated(self.units.scale, n)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them."""
        return self[:].astype(dtype or self.dtype, copy=False)


@np.errstate(over="ignore", invalid="ignore")  # of data that are refused
def standardize(x: np.ndarray, weight: np.ndarray, names: tuple[str, ...], structure: Structure) -> Units:
    """The units of the loop for these data."""
    total, d = weight.sum(), x.shape[1]
    size = min(len(x), max(256, _NUMBERS // d))
    parts = [(rows, slice(rows.stop - rows.start)) for rows in chunks_of(len(x), size)]
    first = x[0].astype(np.float64)
    begin, moved, farthest = _repeated(first, size), np.zeros(d), np.zeros((size, d))
    for rows, own in parts:
        away = x[rows] - begin[own]
        moved += weight[rows] @ away
        np.maximum(farthest[own], np.abs(away, out=away), out=farthest[own])
    largest = farthest.max(axis=0)
    origin, constant = first + moved / total, largest == 0
    largest[constant] = 1
    held = _power_of_two(largest)  # squares in these units can be held
    begin, unit, covariance = _repeated(origin, size), _repeated(held, size), np.zeros((d, d))
    for rows, own in parts:
        away = x[rows] - begin[own]
        away /= unit[own]
        covariance += (away * weight[rows, None]).T @ away
    covariance /= total
    deviation = held * np.sqrt(np.diag(covariance))
    varying = deviation[~constant]
    typical = np.sqrt(np.mean((varying / varying.max()) ** 2)) * varying.max() if varying.size else 1.0
    deviation[constant] = typical
    scale = _power_of_two(deviation if structure.by_column else np.full(d, typical))
    require_squares(x, scale)
    ratio = held / scale
    floor, degenerate = _floor(covariance * np.outer(ratio, ratio), constant, names, structure, x.dtype.name)
    return Units(origin, scale, deviation, floor, degenerate)


def _floor(
    covariance: np.ndarray,
    constant: np.ndarray,
    names: tuple[str, ...],
    structure: Structure,
    dtype: str,
) -> tuple[Floor, str]:
    """Limits from the data's own covariance, and which columns have no variance of their own."""
    (relative, absolute), thinness = _COLLAPSE[dtype], _THIN[dtype]
    storage = STORAGES[structure.storage]
    variance = np.diag(covariance).copy()
    variance[constant] = variance.max() or 1.0
    degenerate = [f"column {names[j]!r} is constant" for j in np.flatnonzero(constant)]
    if structure.storage == "spherical":
        mean = np.array([variance.mean()])
        degenerate = degenerate if constant.all() else []
        return Floor(mean * relative, mean * thinness, mean * relative, thinness), "; ".join(degenerate)
    if structure.storage == "diagonal":
        ridge = variance[None] * relative
        return Floor(variance * relative, variance * thinness, ridge, thinness), "; ".join(degenerate)
    correlation = covariance / np.sqrt(np.outer(variance, variance))
    pivots = np.diag(np.linalg.cholesky(correlation + 0.5 * absolute * np.eye(len(variance)))) ** 2
    degenerate += [
        f"column {names[j]!r} is a linear combination of those before it"
        for j in np.flatnonzero((pivots < 2 * absolute) & ~constant)
    ]
    ridge = relative * covariance + absolute * np.diag(variance)
    limit = variance * np.maximum(relative * pivots, 0.5 * absolute)
    floor = Floor(limit, variance * thinness, storage.sparse(ridge[None]), thinness)
    return floor, "; ".join(degenerate)


def spacing(column: np.ndarray) -> float:
    """The spacing of the grid that a column was recorded on; zero where its values do not repeat."""
    head = column[:2000]
    values = np.unique(head)
    if values.size == head.size:
        return 0.0
    gaps = np.diff(values if head.size == column.size else np.unique(column))
    return float(gaps.min()) if gaps.size else 0.0


def spurious_clusters(mixture: GaussianMixture, count: np.ndarray, grid: np.ndarray) -> dict[int, str]:
    """Which clusters follow a few points rather than a group, and why.

    Only where volumes vary, so that the likelihood is unbounded: at most d + 1 effective points; the smallest
    variance in units of the pooled within-cluster covariance below `SPURIOUS_RATIO`, for clusters of more than
    ten times d + 1 points times (10 (d + 1) / points)²; or a variance below that of rounding to the column's grid,
    spacing² / 12.
    """
    few, ratios, thin, narrow = _signs(mixture, count, grid)
    d = mixture.n_features
    reasons = {}
    for k in np.flatnonzero(few | thin | narrow.any(axis=-1)).tolist():
        if few[k]:
            reasons[k] = f"holds {count[k]:.3g} points, no more than d + 1 = {d + 1}"
        elif thin[k]:
            reasons[k] = f"has a direction with {max(ratios[k], 0):.1e} of the pooled within-cluster variance"
        else:
            reasons[k] = f"is narrower than the rounding of feature {np.flatnonzero(narrow[k])[0]}"
    return reasons


def suspect(mixtures: GaussianMixture, count: np.ndarray, grid: np.ndarray, live: Any = True) -> np.ndarray:
    """Which of a batch of mixtures (...,) have `spurious_clusters`, all at once; those of no finite numbers have.

    Clusters that are not `live` (..., k) are padding, of no points.
    """
    few, _, thin, narrow = _signs(mixtures, count, grid)
    return ((few | thin | narrow.any(axis=-1)) & live).any(axis=-1)


def _signs(
    mixture: GaussianMixture, count: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each cluster (..., k): too few points, least variance by the pooled one, that too small, features narrow."""
    d, k = mixture.means.shape[-1], mixture.means.shape[-2]
    if not mixture.covariance.row.unbounded or k == 1:
        none = np.zeros(count.shape, bool)
        return none, np.ones(count.shape), none, np.zeros((*count.shape, d), bool)
    covariances = np.asarray(mixture.covariances, np.float64)
    finite = np.isfinite(covariances).all(axis=(-1, -2)) & np.isfinite(count)
    covariances = np.where(finite[..., None, None], covariances, np.eye(d))
    share = np.where(finite, count, 1)
    pooled = np.einsum("...k,...kij->...ij", share / share.sum(axis=-1, keepdims=True), covariances)
    deviations = np.sqrt(np.diagonal(pooled, axis1=-2, axis2=-1))
    unit = deviations[..., :, None] * deviations[..., None, :]
    values, vectors = np.linalg.eigh(pooled / unit)
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-300))[..., None, :])[..., None, :, :]
    inner = np.swapaxes(whiten, -1, -2) @ (covariances / unit[..., None, :, :]) @ whiten
    ratios = np.linalg.eigvalsh(inner)[..., 0]
    thin = ratios < SPURIOUS_RATIO * np.minimum(1, 10 * (d + 1) / np.maximum(share, 1)) ** 2
    narrow = np.diagonal(covariances, axis1=-2, axis2=-1) < grid**2 / 12
    return (count <= d + 1) | ~finite, ratios, thin, narrow
