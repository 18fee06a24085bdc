"""Where are the hills of the density, and which cluster climbs to which? Every peak of log p(x).

A peak is no cluster: three clusters may share one, and two may make three. Where one could be is known for a pair:
all critical points of two clusters lie on their ridgeline (Ray & Lindsay),

    x(a) = [(1 - a) P_1 + a P_2]⁻¹ [(1 - a) P_1 m_1 + a P_2 m_2],    0 <= a <= 1,    P_k = Σ_k⁻¹,

so climbs start from every mean, along every pair's ridgeline, and where three clusters meet (a third peak in the
middle of a triangle is on no ridgeline). A climb looks at x through the metric M = Σ_k r_k P_k, in which

    gradient of log p = Σ_k r_k s_k,    s_k = -P_k (x - m_k),    Hessian = Cov_r(s) - M  >=  -M:

one step of EM goes along the gradient by M⁻¹, never descends, and makes long strides where one cluster rules; near a
peak Newton's step is quadratically fast. The climb takes whichever rises highest of that EM step, Newton's steps
with every curvature turned downward (at most half a standard deviation long, or as long as EM's), and, where some
curvature is positive, steps to both sides along it, so that no climb rests on a saddle. All of this commutes with
affine maps of x. It runs in the mixture's own units, its mean and standard deviations, for all starts in one program.

References:
    Ray & Lindsay (2005), The topography of multivariate normal mixtures, Annals of Statistics 33, eq. 4.
    Carreira-Perpiñán (2000), Mode-finding for mixtures of Gaussian distributions, IEEE PAMI 22.
    Li, Ray & Lindsay (2007), A nonparametric statistical approach to clustering via mode identification, JMLR 8.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.blocks import points_last
from bayesmix.devices import double_precision
from bayesmix.inputs import to_numpy

if TYPE_CHECKING:
    import pandas
    from jaxtyping import Array, Bool, Float

    from bayesmix.mixture import GaussianMixture

__all__ = ["Modes", "find_modes", "ridgeline"]

_CHUNK = 64  # starts that climb together
_STEPS, _CALM_STEPS = 200, 20_000
_ALONG = 33  # places along a ridgeline, fewer where there are many pairs
_BUDGET = 4096  # places along all ridgelines, and triples of clusters
_AT_REST = 1e-10  # Newton's step, in standard deviations of the clusters that rule there
_NEAR = 1e-8  # promised gain in nats, below which Newton's step needs no proof by a higher log p
_FLAT = 1e-5  # curvature relative to the clusters' own, below which a peak must prove itself beside itself
_ROUNDINGS = 8  # of coordinates about the mixture's mean, that a climb may be off by
_SAME = 1e-10  # nats that the curvature says one point lies below another, for both to be one peak


@dataclass(frozen=True, eq=False)
class Modes:
    """The peaks of a mixture's density, the highest first; `len(modes)` of them, iterated point by point.

    Attributes:
        points: where they are (m, d), in the data's units.
        log_density: log p there (m,), in nats.
        cluster_mode: the peak that each cluster's mean climbs to (k,).
        curvature: the negative Hessian of log p there (m, d, d), positive definite; its inverse is the covariance
            of the normal law that fits the top of the hill.
        feature_names: a name per feature, or `None`.

    Example:
        >>> import bayesmix as bm
        >>> modes = bm.GaussianMixture.of([0.5, 0.3, 0.2], [-4.0, 0.0, 0.5], [1.0, 1.0, 1.0]).modes()
        >>> len(modes), modes.cluster_mode
        (2, array([0, 1, 1]))
    """

    points: np.ndarray
    log_density: np.ndarray
    cluster_mode: np.ndarray
    curvature: np.ndarray
    feature_names: tuple[str, ...] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.points)

    def summary(self) -> pandas.DataFrame:
        """A row per peak: where it is, log p there, and the clusters whose means climb to it."""
        import pandas

        names = self.feature_names or [f"x{j}" for j in range(self.points.shape[1])]
        columns: dict[str, Any] = {name: self.points[:, j] for j, name in enumerate(names)}
        columns["log_density"] = self.log_density
        columns["clusters"] = [np.flatnonzero(self.cluster_mode == i).tolist() for i in range(len(self))]
        return pandas.DataFrame(columns, index=pandas.RangeIndex(len(self), name="mode"))


class _Hills(NamedTuple):
    """A mixture as its climbers see it; W_k is the inverse of the Cholesky factor of Σ_k."""

    constant: Any  # (k,) log w_k + log |W_k| - d/2 log 2π
    means: Any  # (k, d)
    factor: Any  # (k, d, d) W
    precision: Any  # (k, d, d) WᵀW


class _End(NamedTuple):
    """Where a climb ended."""

    x: Any  # (d,)
    height: Any
    curvature: Any  # (d, d)
    peak: Any  # whether it is one
    blur: Any  # by how many standard deviations of the clusters there rounding may move x


def find_modes(mixture: GaussianMixture) -> Modes:
    """All peaks of the density that climbs from means, ridgelines and triples find, each verified.

    A peak has a gradient of zero up to rounding and a negative definite Hessian; where that is flat to rounding, as
    between two clusters about to part, log p must fall to both sides.
    """
    weights, means = np.asarray(mixture.weights), np.asarray(mixture.means)
    covariances = np.asarray(mixture.covariances)
    center = means[0] + weights @ (means - means[0])
    within = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    largest = np.maximum(within, np.abs(means - center)).max(axis=0)  # whose square may be too large
    scale = largest * np.sqrt(weights @ ((within / largest) ** 2 + ((means - center) / largest) ** 2))
    hills = _hills(weights, (means - center) / scale, covariances / scale[:, None] / scale)
    # Means climb twice: as EM does, to the peaks that are theirs, and like all other starts.
    starts = np.concatenate([hills.means, _starts(hills, np.flatnonzero(weights > 0))])
    calm = np.arange(len(starts)) < len(means)
    with double_precision():
        blocks = to_numpy(_climb_all(hills, points_last(starts, _CHUNK), points_last(calm, _CHUNK)))
    ends = _End(*(leaf.reshape(-1, *leaf.shape[2:])[: len(starts)] for leaf in blocks))
    chosen, which = _distinct(ends)
    return Modes(
        points=center + scale * ends.x[chosen],
        log_density=ends.height[chosen] - np.log(scale).sum(),
        cluster_mode=which[: len(means)],
        curvature=ends.curvature[chosen] / scale[:, None] / scale,
        feature_names=mixture.feature_names,
    )


def _hills(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> _Hills:
    d = means.shape[1]
    factor = np.linalg.inv(np.linalg.cholesky(covariances))
    log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    with np.errstate(divide="ignore"):
        constant = np.log(weights) + log_det - d / 2 * math.log(2 * math.pi)
    return _Hills(constant, means, factor, np.swapaxes(factor, 1, 2) @ factor)


def ridgeline(
    means: Float[np.ndarray, "2 d"], covariances: Float[np.ndarray, "2 d d"], n_points: int = 200
) -> Float[np.ndarray, "m d"]:
    """Points along the ridgeline of two clusters, from the first mean to the second.

    In the first cluster's whitened axes, turned to those of the second, coordinate l is s(t + log λ_l) ζ_l for
    t = log a/(1 - a), s the logistic function, λ the second cluster's precision there and ζ its mean: each leaves
    one end for the other around t = -log λ_l, so even steps in t miss none, however thin a cluster is.
    """
    first, second = np.linalg.cholesky(covariances)
    _, stretch, turn = np.linalg.svd(np.linalg.solve(second, first))
    away = turn @ np.linalg.solve(first, means[1] - means[0])
    middle = -2 * np.log(stretch)
    reach = 3 + np.log1p(np.abs(away).max())
    t = np.linspace(middle.min() - reach, middle.max() + reach, n_points - 2)
    inner = means[0] + (away / (1 + np.exp(middle - t[:, None]))) @ turn @ first.T
    return np.concatenate([means[:1], inner, means[1:]])


def _starts(hills: _Hills, active: np.ndarray) -> np.ndarray:
    """Every mean, in order; then places along the ridgelines of all pairs; then where three clusters meet."""
    means, precision = hills.means, hills.precision
    factors = np.linalg.inv(hills.factor)
    covariances = factors @ np.swapaxes(factors, 1, 2)
    pairs = list(itertools.combinations(active, 2))
    count = min(_ALONG, max(7, _BUDGET // max(1, len(pairs))))
    lines = [ridgeline(means[list(pair)], covariances[list(pair)], count + 2)[1:-1] for pair in pairs]
    triples = np.array(list(itertools.combinations(active, 3)), int).reshape(-1, 3)
    triples = triples[:: 1 + len(triples) // _BUDGET]
    pull = np.einsum("tkij,tkj->ti", precision[triples], means[triples])
    meets = np.linalg.solve(precision[triples].sum(axis=1), pull[..., None])[..., 0]
    return np.concatenate([means, *lines, meets])


class _View(NamedTuple):
    """What a climber sees at x, in axes where the metric M is the identity and the Hessian is diagonal."""

    height: Any  # log p
    slope: Any  # (d,) the gradient
    bend: Any  # (d,) the Hessian, ascending, from -1
    axes: Any  # (d, d) from there to x: columns
    curvature: Any  # (d, d) minus the Hessian, in x's own axes, and
    metric: Any  # (d, d) M


def _parts(hills: _Hills, x: Float[Array, " d"]) -> tuple[Array, Array]:
    y = jnp.einsum("kij,kj->ki", hills.factor, x - hills.means)
    return hills.constant - jnp.sum(y * y, axis=-1) / 2, y


def _height(hills: _Hills, x: Float[Array, " d"]) -> Array:
    return jax.nn.logsumexp(_parts(hills, x)[0])


def _view(hills: _Hills, x: Float[Array, " d"]) -> _View:
    logits, y = _parts(hills, x)
    r = jax.nn.softmax(logits)
    scores = -jnp.einsum("kij,ki->kj", hills.factor, y)
    gradient = r @ scores
    apart = (scores - gradient).T
    metric = jnp.einsum("k,kij->ij", r, hills.precision)
    factor = jnp.linalg.cholesky(metric)
    whitened = jax.lax.linalg.triangular_solve(factor, apart, left_side=True, lower=True)
    spread, turn = jnp.linalg.eigh((whitened * r) @ whitened.T)
    axes = jax.lax.linalg.triangular_solve(factor.T, turn, left_side=True)
    curvature = metric - (apart * r) @ apart.T
    return _View(jax.nn.logsumexp(logits), gradient @ axes, spread - 1, axes, curvature, metric)


def _step(hills: _Hills, x: Float[Array, " d"], calm: Array) -> tuple[Array, Array]:
    """The next place, and whether the climb ends there.

    A `calm` climb goes by steps of EM, which do not leave a hill for another, but where it rests on a saddle.
    """
    view = _view(hills, x)
    newton = view.slope / jnp.clip(jnp.abs(view.bend), 1e-12, 1)
    length, em_length = jnp.linalg.norm(newton), jnp.linalg.norm(view.slope)
    short = jnp.minimum(1, jnp.maximum(0.5, em_length) / jnp.where(length > 0, length, 1)) * newton
    aside = jnp.zeros_like(newton).at[-1].set(jnp.sqrt(jnp.clip(view.bend[-1], 0, 1)) / 2)
    ways = jnp.stack([0 * newton, view.slope, short, short / 4, short / 16, aside, -aside])
    places = x + ways @ view.axes.T
    heights = jax.vmap(_height, (None, 0))(hills, places)
    moving = em_length > _AT_REST
    barred = calm & jnp.array([False, False, True, True, True, moving, moving])
    heights = jnp.where(barred, -jnp.inf, heights)
    best = jnp.argmax(heights)
    near = (view.bend[-1] < 0) & (jnp.sum(view.slope * newton) < 2 * _NEAR)
    ended = jnp.where(near, (length <= _AT_REST) | (em_length <= _AT_REST**1.5), heights[best] <= heights[0])
    return jnp.where(near, x + view.axes @ newton, places[best]), ended


def _end(hills: _Hills, x: Float[Array, " d"]) -> _End:
    view = _view(hills, x)
    newton = view.slope / jnp.clip(jnp.abs(view.bend), 1e-12, 1)
    far = jnp.abs(x)
    blur = _ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.sqrt(far @ jnp.abs(view.metric) @ far)
    level = (jnp.linalg.norm(view.slope) < jnp.maximum(1e-6, blur)) & (
        jnp.sum(view.slope * newton) < jnp.maximum(2 * _NEAR, blur**2)
    )
    beside = jax.vmap(_height, (None, 0))(hills, x + jnp.array([[0.1], [-0.1]]) * view.axes[:, -1])
    falls = (view.bend[-1] < -_FLAT) | ((view.bend[-1] < _FLAT) & jnp.all(beside < view.height))
    return _End(x, view.height, view.curvature, level & falls & (blur < 0.1), blur)


@jax.jit
def _climb_all(hills: _Hills, blocks: Float[Array, "c d b"], calm: Bool[Array, "c b"]) -> _End:
    def climb(part: tuple[Array, Array]) -> _End:
        block, calm = part

        def go_on(carry: tuple) -> Array:
            _, ended, steps = carry
            return jnp.any(~ended & (calm | (steps < _STEPS))) & (steps < _CALM_STEPS)

        def turn(carry: tuple) -> tuple:
            x, ended, steps = carry
            moved, arrived = jax.vmap(_step, (None, 0, 0))(hills, x, calm)
            return jnp.where(ended[:, None], x, moved), ended | arrived, steps + 1

        start = (block.T, jnp.zeros(block.shape[1], bool), jnp.asarray(0))
        x, _, _ = jax.lax.while_loop(go_on, turn, start)
        return jax.vmap(_end, (None, 0))(hills, x)

    hills = _Hills(*map(jnp.asarray, hills))
    return jax.lax.map(climb, (blocks, calm))


def _below(ends: _End, i: int, points: np.ndarray) -> np.ndarray:
    """How far below peak i its curvature puts points, in nats; a flat top counts as slightly round."""
    away = points - ends.x[i]
    return np.einsum("ni,ij,nj->n", away, ends.curvature[i] + 1e-6 * np.eye(away.shape[1]), away) / 2


def _distinct(ends: _End) -> tuple[list[int], np.ndarray]:
    """The ends that stand for a peak each, the highest first, and each end's peak.

    Equal heights go by the order of the starts. An end that is no peak counts to the nearest one.
    """
    found = np.flatnonzero(ends.peak)
    if not found.size:
        raise ValueError(
            "the peaks of this mixture cannot be told: its clusters are more of their standard deviations apart than "
            "float64 has digits for; look at parts of it"
        )
    found = found[np.argsort(-np.round(ends.height[found], 10), kind="stable")]
    chosen: list[int] = []
    free = np.ones(len(found), bool)
    while free.any():
        top = int(found[np.argmax(free)])
        chosen.append(top)
        free &= _below(ends, top, ends.x[found]) > max(_SAME, float(ends.blur[top]) ** 2)
    return chosen, np.argmin([_below(ends, i, ends.x) for i in chosen], axis=0)
