"""Rows with missing cells: what those that are known say, of the density and of the others.

Of a cluster N(m, Σ), with o the cells that are known and u those that are not, the known ones have the law
N(m_o, Σ_oo), and given them the others have the mean m_u + Σ_uo Σ_oo⁻¹ (x_o - m_o) and the covariance
Σ_uu - Σ_uo Σ_oo⁻¹ Σ_ou. That is all that the likelihood needs where cells are missing at random: where whether a cell
is known may depend on the known ones, never on what it would have been.

References:
    Rubin (1976), Inference and missing data, Biometrika 63.
    Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix import density
from bayesmix.inputs import Gaps, Points, as_name
from bayesmix.storage import STORAGES, Storage, numbers

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from bayesmix.mixture import GaussianMixture

__all__ = [
    "Looked", "allowed", "completed", "covariance_of", "groups_of", "imputed", "log_joint_of_seen", "look",
]  # fmt: skip

_NUMBERS = 2**21  # of the matrices of a stretch of rows, and of the moments of all patterns
_STEPS, _SETTLED = 500, 1e-6  # of one Gaussian, at most, and the change in standard deviations that ends them


class Regression(NamedTuple):
    """Of covariances (..., d, d) and the cells that are known, ones of `seen` (..., d)."""

    whiten: (
        Any  # W: |W e|² is the squared Mahalanobis distance of deviations e, zero where they are not known
    )
    log_det: Any  # log |W| of the known part
    lift: Any  # with y = W e the expected deviations of the others are lift @ y, of the known ones zero
    hidden: Any  # covariance of the others given the known ones, zero elsewhere


def regression(covariances: Float[Any, "... d d"], seen: Float[Any, "... d"]) -> Regression:
    """The regression of cells that are not known on those that are."""
    n, full = numbers(covariances), STORAGES["full"]
    unseen = 1 - seen
    known = covariances * (seen[..., :, None] * seen[..., None, :])
    # Ones in the place of unknown variances: cells that say nothing, and of which the determinant is one.
    whiten = full.inverse(full.cholesky(known + unseen[..., None] * np.eye(seen.shape[-1])))
    log_det = n.sum(n.log(full.diagonal(whiten)), axis=-1)
    lift = (covariances * (unseen[..., :, None] * seen[..., None, :])) @ n.swapaxes(whiten, -1, -2)
    between = unseen[..., :, None] * unseen[..., None, :]
    return Regression(whiten, log_det, lift, between * (covariances - lift @ n.swapaxes(lift, -1, -2)))


class Looked(NamedTuple):
    """Blocks of points (..., d, b), each with the same cells known, under a mixture."""

    logits: Any  # log p(x, z) of the cells that are known (..., k, b)
    own: Regression  # (..., k|1, ...)
    away: Any  # deviations from the means, zero where they are not known (..., k, d, b)
    y: Any  # and whitened


def look(mixture: GaussianMixture, x: Float[Any, "... d b"], seen: Float[Any, "... d"]) -> Looked:
    """What the known cells say of the clusters, and of the other cells."""
    n, means = numbers(x), mixture.means
    covariances = mixture.covariance.storage.dense(mixture.covariance.values, means.shape[-1])
    own = regression(covariances, seen[..., None, :])
    away = (x[..., None, :, :] - means[:, :, None]) * seen[..., None, :, None]
    y = own.whiten @ away
    cells = own.log_det - n.sum(seen, axis=-1)[..., None] / 2 * math.log(2 * math.pi)
    logits = density.log_weights(mixture.weights)[:, None] + (cells[..., None] - n.sum(y * y, axis=-2) / 2)
    return Looked(logits, own, away, y)


def covariance_of(storage: Storage, factor: Any) -> Any:
    """Covariances in a storage of their factors W, of whatever triangle."""
    if storage.axes < 2:
        return 1 / (factor * factor)
    inverse = storage.inverse(storage.cholesky(storage.gram(factor)))
    return numbers(inverse).swapaxes(inverse, -1, -2) @ inverse


def patterns_of(seen: Bool[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different rows (p, d), which of them each row is (n,), and how often (p,)."""
    bits = np.packbits(seen, axis=1)
    # Eight bytes as one number are sorted in a tenth of the time of rows.
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    keys = bits.view(np.uint64) if bits.shape[1] == 8 else bits.view(f"V{bits.shape[1]}")
    _, first, which, counts = np.unique(
        keys[:, 0], return_index=True, return_inverse=True, return_counts=True
    )
    return seen[first], which, counts


def groups_of(
    seen: Bool[np.ndarray, "n d"], least: int, most: int
) -> tuple[Bool[np.ndarray, "g d"], Int[np.ndarray, "g m"]]:
    """Groups of rows with the same cells known: those cells, and which rows, -1 where a group has fewer than others."""
    patterns, which, counts = patterns_of(seen)
    size = int(np.clip(2 ** int(np.ceil(np.log2(counts.mean()))), least, most))
    groups = -(-counts // size)
    rank = np.arange(len(seen)) - np.repeat(np.cumsum(counts) - counts, counts)
    group = np.repeat(np.cumsum(groups) - groups, counts) + rank // size
    rows = np.full((groups.sum(), size), -1)
    rows[group, rank % size] = np.argsort(which, kind="stable")
    return np.repeat(patterns, groups, axis=0), rows


def allowed(missing: Any) -> bool:
    """Whether cells may be missing: whether a user said "at_random"."""
    return missing is not None and bool(as_name(missing, "missing", ("at_random",)))


class _Some(NamedTuple):
    """Some rows under the clusters of a mixture, in NumPy."""

    rows: np.ndarray  # which (r,)
    joint: np.ndarray  # log p(x, z) of what is known (k, r)
    expected: np.ndarray  # deviations from the means, those that are not known expected (r, k, d)
    hidden: np.ndarray  # (r, k, d, d)


def _stretches(mixture: GaussianMixture, values: np.ndarray, seen: np.ndarray) -> Iterator[_Some]:
    """All rows, in stretches of which the matrices are not too many."""
    weights, means = (np.asarray(a, np.float64) for a in (mixture.weights, mixture.means))
    covariances = np.asarray(mixture.covariances, np.float64)
    k, d = means.shape
    patterns, which, _ = patterns_of(seen)
    order, size = np.argsort(which, kind="stable"), max(1, _NUMBERS // (k * d * d))
    with np.errstate(divide="ignore"):
        constant = np.log(weights)
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        own, place = np.unique(which[rows], return_inverse=True)
        some = regression(covariances, patterns[own, None].astype(np.float64))
        known = seen[rows, None]
        away = np.where(known, values[rows, None] - means, 0)
        y = np.einsum("rkij,rkj->rki", some.whiten[place], away)
        part = some.log_det[place] - seen[rows].sum(axis=1)[:, None] / 2 * np.log(2 * np.pi)
        joint = constant + part - np.einsum("rki,rki->rk", y, y) / 2
        yield _Some(rows, joint.T, away + np.einsum("rkij,rkj->rki", some.lift[place], y), some.hidden[place])


def log_joint_of_seen(
    mixture: GaussianMixture, values: np.ndarray, seen: Bool[np.ndarray, "n d"]
) -> np.ndarray:
    """log p(x, z) of the known cells of each row (k, n), float64; without any it is log p(z)."""
    found = np.empty((len(mixture.weights), len(values)))
    for some in _stretches(mixture, values, seen):
        found[:, some.rows] = some.joint
    return found


def imputed(
    mixture: GaussianMixture,
    values: np.ndarray,
    seen: Bool[np.ndarray, "n d"],
    generator: np.random.Generator | None,
) -> np.ndarray:
    """The rows with their missing cells as expected given the known ones, or drawn given these."""
    found, means = values.copy(), np.asarray(mixture.means, np.float64)
    for rows, joint, expected, hidden in _stretches(mixture, values, seen):
        if generator is None:
            shares = density.shares(joint).T
            whole = np.einsum("rk,rkd->rd", shares, means + expected)
        else:
            each = np.arange(len(rows))
            z = (joint + generator.gumbel(size=joint.shape)).argmax(axis=0)
            noise = generator.standard_normal((len(rows), values.shape[1]))
            # A square root that singular matrices have too.
            spread, axes = np.linalg.eigh(hidden[each, z])
            noise = np.einsum("rij,rj->ri", axes * np.sqrt(np.maximum(spread, 0))[:, None], noise)
            whole = means[z] + expected[each, z] + noise
        found[rows] = np.where(seen[rows], values[rows], whole)
    return found


def completed(points: Points, weight: np.ndarray, name: str = "x") -> Points:
    """Data with missing cells as those that one Gaussian, fitted to the known ones, expects; and `Gaps` beside them.

    Where nothing is missing they are as they came.

    Raises:
        ValueError: a row, or a column, without any value.
    """
    values, names = points.values, points.names
    seen = ~np.isnan(values)
    if points.gaps is not None or seen.all():
        return points
    counted = seen & (weight > 0)[:, None]
    for axis, what in ((0, "column"), (1, "row")):
        empty = np.flatnonzero(~(counted if axis == 0 else seen).any(axis=axis)).tolist()
        if empty:
            which = ", ".join(repr(names[j]) if axis == 0 else str(j) for j in empty[:20])
            raise ValueError(
                f"{name} has no value at all in {what} {which}, so nothing is known of it; drop it"
                if len(empty) == 1
                else f"{name} has no value at all in {len(empty)} {what}s, the first of them {which}; drop them"
            )
    patterns, which, counts = patterns_of(seen)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(counts)[:-1])
    origin = np.array([_middle(values[counted[:, j], j]) for j in range(len(names))])
    scale = np.array([np.abs(values[counted[:, j], j] - origin[j]).max() or 1.0 for j in range(len(names))])
    mean, covariance = _one_gaussian((values - origin) / scale, weight, patterns, members)
    filled, hidden = values.copy(), np.zeros_like(covariance)
    for pattern, rows in zip(patterns, members):
        if pattern.all():
            continue
        own = regression(covariance, pattern.astype(np.float64))
        away = np.where(pattern, (values[rows] - origin) / scale - mean, 0)
        there = (mean + away @ own.whiten.T @ own.lift.T) * scale + origin
        filled[rows] = np.where(pattern, values[rows], there)
        hidden += weight[rows].sum() * own.hidden
    return Points(filled, names, Gaps(seen, hidden * np.outer(scale, scale) / weight.sum()))


def _middle(column: np.ndarray) -> float:
    """Half way between the ends, which no sum can overflow."""
    return float(column.min() / 2 + column.max() / 2)


def _one_gaussian(
    values: np.ndarray, weight: np.ndarray, patterns: np.ndarray, members: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of one Gaussian by EM, of the moments of all rows that lack the same cells.

    Where those are too many numbers, of every so many-th row.
    """
    d = values.shape[1]
    every = -(-len(patterns) * d * d // _NUMBERS)
    kept = [rows[rows % every == 0] for rows in members]
    counted = np.array([weight[rows].any() for rows in kept])
    kept, patterns = [rows for rows in kept if weight[rows].any()], patterns[counted]
    seen = patterns.astype(np.float64)
    count = np.array([weight[rows].sum() for rows in kept])
    first, second = np.zeros((len(kept), d)), np.zeros((len(kept), d, d))
    for p, rows in enumerate(kept):
        some = np.where(patterns[p], values[rows], 0)
        first[p], second[p] = weight[rows] @ some, (some * weight[rows, None]).T @ some
    total, known = count.sum(), np.maximum(count @ seen, 1e-300)
    mean = first.sum(axis=0) / known
    variance = np.diagonal(second.sum(axis=0)) / known - mean**2
    covariance = np.diag(np.where(variance > 1e-12, variance, 1.0))
    for _ in range(_STEPS):
        own = regression(covariance, seen)
        if not np.isfinite(own.whiten).all():  # columns that determine each other
            break
        whole = own.lift @ own.whiten + seen[:, None] * np.eye(
            d
        )  # deviations of the known cells to those of all
        away = first - count[:, None] * seen * mean
        cross = away[:, :, None] * (seen * mean)[:, None]
        about = second - np.swapaxes(first[:, :, None] * (seen * mean)[:, None], 1, 2) - cross
        moved = np.einsum("pij,pj->i", whole, away) / total
        spread = (whole @ about @ np.swapaxes(whole, 1, 2) + count[:, None, None] * own.hidden).sum(axis=0)
        new = spread / total - np.outer(moved, moved)
        new = (new + new.T) / 2
        size = np.sqrt(np.diagonal(new))
        if not (size > 0).all():
            break
        change = max(np.abs(moved / size).max(), np.abs((new - covariance) / np.outer(size, size)).max())
        mean, covariance = mean + moved, new
        if change < _SETTLED:
            break
    return mean, covariance
