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

import jax
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

_NUMBERS = 2**21  # of the matrices of a stretch of rows
_ROUNDS = 3  # of filling in


class Regression(NamedTuple):
    """Of covariances (..., d, d), or variances (..., d), and the cells that are known, ones of `seen` (..., d).

    Attributes:
        whiten: W: |W e|² is the squared Mahalanobis distance of deviations e, zero where they are not known.
        log_det: log |W| of the known part.
        lift: with y = W e the expected deviations of the others are lift @ y; `None` where they are zero, of variances.
        hidden: covariance, or variance, of the others given the known ones, zero elsewhere.
    """

    whiten: Any
    log_det: Any
    lift: Any
    hidden: Any


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


def _alone(variances: Float[Any, "... d"], seen: Float[Any, "... d"]) -> Regression:
    """The same of cells that say nothing of each other."""
    n = numbers(variances)
    logs = n.log(variances) * seen
    return Regression(seen / n.sqrt(variances), -n.sum(logs, axis=-1) / 2, None, (1 - seen) * variances)


def _regressed(mixture: GaussianMixture, seen: Float[Any, "... 1 d"]) -> Regression:
    """Of the clusters of a mixture (..., k|1, ...)."""
    values, storage, d = mixture.covariance.values, mixture.covariance.storage, mixture.means.shape[-1]
    if storage.axes == 2:
        return regression(values, seen)
    values = values if storage.axes else values[..., None]
    return _alone(numbers(values).broadcast_to(values, (*values.shape[:-1], d)), seen)


class Looked(NamedTuple):
    """Blocks of points (..., d, b), each with the same cells known, under a mixture."""

    logits: Any  # log p(x, z) of the cells that are known (..., k, b)
    own: Regression  # (..., k|1, ...)
    away: Any  # deviations from the means, zero where they are not known (..., k, d, b)
    y: Any  # and whitened


def look(mixture: GaussianMixture, x: Float[Any, "... d b"], seen: Float[Any, "... d"]) -> Looked:
    """What the known cells say of the clusters, and of the other cells."""
    n, means = numbers(x), mixture.means
    own = _regressed(mixture, seen[..., None, :])
    away = (x[..., None, :, :] - means[:, :, None]) * seen[..., None, :, None]
    y = own.whiten[..., None] * away if own.lift is None else own.whiten @ away
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
    if missing is None:
        return False
    if not isinstance(missing, str):  # an array would be shown whole
        raise ValueError(f"missing must be None or 'at_random'; it is {type(missing).__name__}")
    return bool(as_name(missing, "missing", ("at_random",)))


class _Some(NamedTuple):
    """Some rows under the clusters of a mixture, in NumPy."""

    rows: np.ndarray  # which (r,)
    joint: np.ndarray  # log p(x, z) of what is known (k, r)
    expected: np.ndarray  # deviations from the means, those that are not known expected (r, k, d)
    hidden: np.ndarray  # (r, k, d, d), or without correlations (r, k, d)


def _stretches(mixture: GaussianMixture, values: np.ndarray, seen: np.ndarray) -> Iterator[_Some]:
    """All rows, in stretches of which the matrices are not too many."""
    mixture = jax.tree.map(lambda a: np.asarray(a, np.float64), mixture)
    means, correlated = mixture.means, mixture.covariance.storage.axes == 2
    k, d = means.shape
    patterns, which, _ = patterns_of(seen)
    order, size = np.argsort(which, kind="stable"), max(1, _NUMBERS // (k * d * (d if correlated else 1)))
    constant = density.log_weights(mixture.weights)
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        own, place = np.unique(which[rows], return_inverse=True)
        some = _regressed(mixture, patterns[own, None].astype(np.float64))
        # Of a covariance that all share there is one.
        whiten, hidden, log_det = (
            np.broadcast_to(a, (len(own), k, *a.shape[2:]))[place]
            for a in (some.whiten, some.hidden, some.log_det)
        )
        away = np.where(seen[rows, None], values[rows, None] - means, 0)
        if some.lift is None:
            y, whole = whiten * away, away
        else:
            lift = np.broadcast_to(some.lift, (len(own), k, d, d))[place]
            y = np.einsum("rkij,rkj->rki", whiten, away)
            whole = away + np.einsum("rkij,rkj->rki", lift, y)
        part = log_det - seen[rows].sum(axis=1)[:, None] / 2 * np.log(2 * np.pi)
        joint = constant + part - np.einsum("rki,rki->rk", y, y) / 2
        yield _Some(rows, joint.T, whole, hidden)


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
            if hidden.ndim == 3:
                noise = np.sqrt(hidden[each, z]) * noise
            else:  # a square root that singular matrices have too
                spread, axes = np.linalg.eigh(hidden[each, z])
                noise = np.einsum("rij,rj->ri", axes * np.sqrt(np.maximum(spread, 0))[:, None], noise)
            whole = means[z] + expected[each, z] + noise
        found[rows] = np.where(seen[rows], values[rows], whole)
    return found


def completed(points: Points, weight: np.ndarray, name: str = "x") -> Points:
    """Data with missing cells filled as one Gaussian expects them, and `Gaps`: for starts, units and priors.

    The Gaussian has the means and variances of the known cells, and correlations of rows filled with means, which are
    pulled towards zero by what is missing; then those of the rows as it fills them, and so on, a few times. A share of
    d / (rows + d) of each correlation is left out, so that few rows do not predict from chance. Where nothing is
    missing the data are as they came.

    Raises:
        ValueError: a row of positive weight, or a column in such rows, without any value.
    """
    values, names = points.values, points.names
    seen = ~np.isnan(values)
    if points.gaps is not None or seen.all():
        return points
    counted = seen & (weight > 0)[:, None]
    for axis, what, known in ((0, "column", counted), (1, "row", seen | (weight <= 0)[:, None])):
        empty = np.flatnonzero(~known.any(axis=axis)).tolist()
        if empty:
            which = repr(names[empty[0]]) if axis == 0 else str(empty[0])
            where = " in rows of positive weight" if axis == 0 and not (weight > 0).all() else ""
            few = len(empty) == 1
            raise ValueError(
                f"{name} has no value at all{where} in {what if few else f'{len(empty)} {what}s, the first of them'} "
                f"{which}, so nothing is known of {'it; drop it' if few else 'them; drop them'}"
            )
    # Half way between the ends, and the longest way from there, which no sum can overflow.
    ends = np.where(counted, values, np.inf).min(axis=0), np.where(counted, values, -np.inf).max(axis=0)
    middle, reach = ends[0] / 2.0 + ends[1] / 2.0, ends[1] / 2.0 - ends[0] / 2.0
    reach = np.where(reach > 0, reach, 1.0)
    away = np.where(seen, values - middle, 0) / reach
    share = weight / weight.sum()
    part = share @ seen  # of the rows that know a column
    mean = share @ away / part
    deviation = np.sqrt(share @ np.where(seen, (away - mean) ** 2, 0) / part)
    deviation = np.where(deviation > 0, deviation, 1.0)
    y, correlation = np.where(seen, (away - mean) / deviation, 0), None
    rows, d = np.count_nonzero(weight), len(names)
    hidden = np.diag(1 - part)
    for _ in range(_ROUNDS):
        center = share @ y
        covariance = (y * share[:, None]).T @ y - np.outer(center, center) + hidden
        size = np.sqrt(np.diagonal(covariance))
        size = np.where(size > 0, size, 1.0)
        correlation = covariance / np.outer(size, size) * (rows / (rows + d))
        np.fill_diagonal(correlation, 1)
        y, hidden = _predicted(y, seen, share, center, correlation * np.outer(size, size))
    scale = deviation * reach
    filled = np.where(seen, values, (y * deviation + mean) * reach + middle).astype(values.dtype)
    return Points(filled, names, Gaps(seen, hidden * np.outer(scale, scale)))


def _predicted(
    y: np.ndarray, seen: np.ndarray, share: np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows with their missing cells as one Gaussian expects them, and the mean covariance that this leaves open."""
    found, hidden, d = y.copy(), np.zeros_like(covariance), len(covariance)
    patterns, which, counts = patterns_of(seen)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(counts)[:-1])
    step = max(1, _NUMBERS // (8 * d * d))
    for first in range(0, len(patterns), step):
        own = regression(covariance, patterns[first : first + step].astype(np.float64))
        maps = own.lift @ own.whiten
        for p, (way, rows) in enumerate(zip(maps, members[first : first + step]), first):
            if patterns[p].all():
                continue
            away = np.where(patterns[p], y[rows] - mean, 0)
            found[rows] = np.where(patterns[p], y[rows], mean + away @ way.T)
            hidden += share[rows].sum() * own.hidden[p - first]
    return found, hidden
