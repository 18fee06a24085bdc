"""The units of the loop: data about their own mean, divided by a power of two.

    u = (x - origin) / scale

Powers of two make the way back exact, so that a fit of a x + c is the fit of x moved and rescaled, at
1e±12 and at offset 1e8. The scale is per feature where the structure's family is closed under it, one number
otherwise. What a collapsed or a thin cluster is, is said here too, relative to the data themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmix.blocks import CACHED, chunks_of
from bayesmix.covariance import Covariance, Structure
from bayesmix.inputs import require_alike, require_squares
from bayesmix.mixture import GaussianMixture
from bayesmix.storage import STORAGES

__all__ = [
    "Floor",
    "Rows",
    "Units",
    "standardize",
    "typed",
]

# A cluster collapses where its variance, given the features before it, falls below `relative` times that of
# the data, or below `absolute` times the feature's own; float32 data carry fewer digits.
_COLLAPSE = {"float64": (1e-12, 1e-13), "float32": (1e-6, 1e-6)}
# Below this share of a feature's variance plus its squared mean, raw moments keep fewer than 8 digits of a cluster's
# own in float64, and its log-densities fewer than 4 decimals in float32.
_THIN = {"float64": 1e-7, "float32": 4e-3}
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

    def measured(self, scale: Any) -> Rows:
        """The same rows about the same origin by another scale (d,)."""
        return replace(self, units=replace(self.units, scale=np.broadcast_to(scale, self.units.scale.shape)))

    @property
    def base(self) -> np.ndarray:
        """What they are computed from."""
        return self.points

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
        origin, scale = self._stretch
        for part in chunks_of(len(points), CACHED):
            own = slice(part.stop - part.start)
            np.divide(points[part] - origin[own], scale[own], out=some[part], casting="same_kind")
        return some

    @cached_property
    def _stretch(self) -> tuple[np.ndarray, np.ndarray]:
        """Origin and scale of a stretch of rows."""
        n = min(len(self), CACHED)
        return _repeated(self.units.origin, n), _repeated(self.units.scale, n)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them."""
        return self[:].astype(dtype or self.dtype, copy=False)


@np.errstate(over="ignore", invalid="ignore")  # of data that are refused
def standardize(
    x: np.ndarray,
    weight: np.ndarray,
    names: tuple[str, ...],
    structure: Structure,
    hidden: np.ndarray | None = None,
) -> Units:
    """The units of the loop for these data, whose covariance (d, d) is larger by what is `hidden` of it."""
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
    if hidden is not None:
        covariance += hidden / np.outer(held, held)
    deviation = held * np.sqrt(np.diag(covariance))
    varying = deviation[~constant]
    typical = np.sqrt(np.mean((varying / varying.max()) ** 2)) * varying.max() if varying.size else 1.0
    deviation[constant] = typical
    scale = _power_of_two(deviation if structure.by_column else np.full(d, typical))
    require_squares(x, scale)
    if structure.storage == "full" and not structure.by_column and varying.size:
        require_alike(varying, structure.name)
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
