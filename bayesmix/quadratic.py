"""How often are two clusters mistaken for each other? The law of a quadratic form in normal variables.

A point x of cluster i goes to cluster j when w_j Normal(x | m_j, Σ_j) > w_i Normal(x | m_i, Σ_i). Let L L' = Σ. With
x = m_i + L_i V z, z standard normal, L_j⁻¹ L_i = U diag(a) V' and b = U' L_j⁻¹ (m_i - m_j), twice the log ratio says

    T = Σ_l [ (1 - a_l²) z_l² - 2 a_l b_l z_l ]  >  t = Σ_l [ b_l² - log a_l² ] - 2 log(w_j / w_i).

Equal covariances (a = 1) make T normal, and one dimension a quadratic in z: closed forms. Otherwise P(T > t) is read
off the cumulant function K(s) = log E exp(s T), known in closed form, along a path in the upper half-plane from a
point of the real line right of zero, where all 1 - 2 s (1 - a_l²) > 0:

    P(T > t) = (1 / π) Im ∫ exp(K(s) - s t) / s ds.

By Cauchy's theorem every path gives the same number. This one starts where the integrand is smallest on the real
line and then takes the way along which its size adds up to least, so that nothing oscillates or cancels and small
probabilities keep their digits. Of P(T > t) and P(T < t) = P(-T > -t) the smaller is computed.

References:
    Maitra & Melnykov (2010), Simulating data to study performance of finite mixture modeling and clustering
    algorithms, J. Computational and Graphical Statistics 19, theorem 1.
    Imhof (1961), Computing the distribution of quadratic forms in normal variables, Biometrika 48.
    Helstrom (1996), Calculating the distribution of quadratic forms of Gaussian random variables, IEEE Trans. AES 32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

    from bayesmix.mixture import GaussianMixture

__all__ = ["misclassification", "upper_tail"]

_EQUAL = (
    1e-10  # |1 - a²| below which two covariances, and |b| below which two means, are the same to rounding
)
_BLOCK = 32  # pairs whose paths are in memory together
_REACH = 82.0  # log of the longest distance, in standard deviations of T: after it e^(-x/2) is rounding
_RADII = np.sinh(np.linspace(0, _REACH, 360))  # even steps near the start, even ratios far away
_FAR = 140.0  # log of s, per standard deviation of T, beyond which nothing is left
_GONE = -45.0  # log of the integrand times the distance, relative to the start, below which it is nothing
_ANGLES = np.pi * np.linspace(0.06, 0.94, 23)


class _Form(NamedTuple):
    """T = Σ α z² - 2 β z and the threshold t, for a batch of pairs."""

    alpha: Float[np.ndarray, "p d"]
    beta: Float[np.ndarray, "p d"]
    threshold: Float[np.ndarray, " p"]


def misclassification(mixture: GaussianMixture) -> Float[np.ndarray, "k k"]:
    """[i, j] = P(w_j Normal(x | j) > w_i Normal(x | i)) for x from cluster i; zero where i = j.

    A tie counts half: only identical clusters of one weight have any. Where a weight is zero the other cluster wins.
    """
    weights, means = np.asarray(mixture.weights), np.asarray(mixture.means)
    k = len(weights)
    factor = np.linalg.cholesky(np.asarray(mixture.covariances))
    i, j = np.nonzero(~np.eye(k, dtype=bool))
    out = np.zeros((k, k))
    out[i, j] = weights[j] > 0
    both = (weights[i] > 0) & (weights[j] > 0)
    i, j = i[both], j[both]
    if i.size:
        turned, a, _ = np.linalg.svd(np.linalg.solve(factor[j], factor[i]))
        away = np.linalg.solve(factor[j], (means[i] - means[j])[..., None])[..., 0]
        b = np.einsum("plm,pl->pm", turned, away)
        odds = 2 * np.log(weights[j] / weights[i])
        form = _Form((1 - a) * (1 + a), a * b, np.sum(b * b - 2 * np.log(a), axis=1) - odds)
        out[i, j] = _probability(form, np.abs(b).max(axis=1), odds)
    return out


def _probability(form: _Form, apart: np.ndarray, odds: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    equal = np.abs(form.alpha).max(axis=1) < _EQUAL
    same = equal & (apart < _EQUAL)
    out = np.where(odds > _EQUAL, 1.0, np.where(odds < -_EQUAL, 0.0, 0.5))
    deviation = 2 * np.sqrt(np.sum(form.beta**2, axis=1))
    normal = equal & ~same
    out[normal] = ndtr(-form.threshold[normal] / deviation[normal])
    rest = np.flatnonzero(~equal)
    law = _quadratic if form.alpha.shape[1] == 1 else upper_tail
    for block in np.split(rest, range(_BLOCK, rest.size, _BLOCK)):
        out[block] = law(*(leaf[block] for leaf in form))
    return out


def _quadratic(alpha: np.ndarray, beta: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """P(α z² - 2 β z > t), from the roots of the quadratic."""
    from scipy.special import ndtr

    alpha, beta = alpha[:, 0], beta[:, 0]
    square = beta * beta + alpha * threshold
    half = beta + np.copysign(np.sqrt(np.maximum(square, 0)), beta)
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.sort(np.stack([half / alpha, np.where(half == 0, 0, -threshold / half)]), axis=0)
    roots = np.where(roots[0] + roots[1] > 0, -roots[::-1], roots)  # both tails small, not both near one
    between = ndtr(roots[1]) - ndtr(roots[0])
    outside = ndtr(roots[0]) + ndtr(-roots[1])
    crosses = np.where(alpha > 0, outside, between)
    return np.where(square > 0, crosses, alpha > 0)


def upper_tail(
    alpha: Float[np.ndarray, "p d"], beta: Float[np.ndarray, "p d"], threshold: Float[np.ndarray, " p"]
) -> Float[np.ndarray, " p"]:
    """P(Σ_l α_l z_l² - 2 β_l z_l > t) for standard normal z, to about ten digits of the smaller tail."""
    deviation = np.sqrt(np.sum(2 * alpha**2 + 4 * beta**2, axis=1))
    form = _Form(alpha / deviation[:, None], beta / deviation[:, None], threshold / deviation)
    mirrored = _Form(-alpha, -beta, -threshold)
    above, below = _start(form), _start(mirrored)
    lower = below[1] < above[1]
    chosen = _Form(*(np.where(lower.reshape(-1, *[1] * (a.ndim - 1)), m, a) for a, m in zip(form, mirrored)))
    start = np.where(lower, below[0], above[0])
    tail = np.zeros(len(start))
    some = np.isfinite(start)
    if some.any():
        tail[some] = _along_path(_Form(*(leaf[some] for leaf in chosen)), start[some])
    return np.where(lower, 1 - tail, tail)


def _exponent(form: _Form, s: Complex[np.ndarray, "p m"]) -> Any:
    """K(s) - s t - log s (p, m).

    Far out, 2 β² s² / (1 - 2 α s) is a line and little else; the lines are added up before they meet -s t, which they
    may cancel.
    """
    total, slope = -np.log(s), np.repeat(-form.threshold[:, None], s.shape[1], axis=1)
    for alpha, beta in zip(form.alpha.T[..., None], form.beta.T[..., None]):
        left = 1 - 2 * alpha * s
        far = np.abs(alpha * s) > 1
        ratio = np.where(far, beta / np.where(alpha == 0, 1, alpha), 0)
        slope -= alpha * ratio**2
        total += np.where(far, ratio**2 / 2 * (1 / left - 1), 2 * (beta * s) ** 2 / left) - np.log(left) / 2
    return total + slope * s


def _start(form: _Form) -> tuple[np.ndarray, np.ndarray]:
    """Where on the positive real line K(s) - s t - log s is least, and its value: it is convex there.

    Infinity and minus infinity where it falls as far as numbers go: T is never above t.
    """
    alpha, beta = form.alpha, form.beta
    end = 1 / (2 * np.maximum(alpha.max(axis=1), math.exp(-_FAR) / 2))
    low, high = np.full(len(end), -_FAR), np.log(end)
    for _ in range(80):
        middle = low + (high - low) / 2
        s = np.exp(middle)[:, None]
        left = 1 - 2 * alpha * s
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope = np.sum(s * alpha / left + 4 * (beta * s) ** 2 * (1 - alpha * s) / left**2, axis=1)
        rises = ~(slope - s[:, 0] * form.threshold - 1 < 0)
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    value = _exponent(form, np.exp(low)[:, None] + 0j)[:, 0].real
    never = low > _FAR - 1
    return np.where(never, np.inf, np.exp(low)), np.where(never, -np.inf, value)


def _along_path(form: _Form, start: np.ndarray) -> np.ndarray:
    """The integral over the path that leaves `start` upwards, by Gauss's rule between its corners."""
    top = _exponent(form, start[:, None] + 0j).real
    left = 1 - 2 * form.alpha * start[:, None]
    bend = 1 / start**2 + np.sum(2 * (form.alpha / left) ** 2 + 4 * form.beta**2 / left**3, axis=1)
    corners = _path(form, start, 1 / np.sqrt(bend), top)
    step = np.diff(corners, axis=1) / 2
    total = np.zeros(len(start))
    for node, weight in zip(*np.polynomial.legendre.leggauss(8)):
        values = np.exp(_exponent(form, corners[:, :-1] + (1 + node) * step) - top)
        total += weight * np.sum((values * step).imag, axis=1)
    return np.exp(top[:, 0]) * total / np.pi


def _path(form: _Form, start: np.ndarray, width: np.ndarray, top: np.ndarray) -> Complex[np.ndarray, "p m"]:
    """Corners at `_RADII` times the width, each at one of `_ANGLES`, between neighbours at the same or the next one.

    Of all such paths the one along which the integrand's size adds up to least, by dynamic programming; it stays
    where it is once the integrand is nothing.
    """
    upright = _exponent(form, start[:, None] + 1j * width[:, None] * _RADII).real - top
    upright[:, 1:] += np.log(_RADII[1:])
    radii = _RADII[: 2 + np.count_nonzero((upright > _GONE).any(axis=0))]
    places = start[:, None, None] + width[:, None, None] * radii[1:, None] * np.exp(1j * _ANGLES)
    height = _exponent(form, places.reshape(len(start), -1)).real.reshape(places.shape) - top[..., None]
    cost = np.exp(np.minimum(height, 300)) * np.diff(radii)[:, None]
    total = np.zeros((len(start), _ANGLES.size))
    moves = np.empty(places.shape, np.int8)
    for radius in range(places.shape[1]):
        sides = np.pad(total, ((0, 0), (1, 1)), constant_values=np.inf)
        ways = np.stack([total, sides[:, :-2], sides[:, 2:]])
        moves[:, radius] = np.array([0, -1, 1])[np.argmin(ways, axis=0)]
        total = ways.min(axis=0) + cost[:, radius]
    rows, angle = np.arange(len(start)), np.argmin(total, axis=1)
    corners, gone = np.empty(places.shape[:2], complex), np.ones(places.shape[:2], bool)
    for radius in reversed(range(places.shape[1])):
        corners[:, radius] = places[rows, radius, angle]
        gone[:, radius] = height[rows, radius, angle] + np.log(radii[radius + 1]) < _GONE
        angle = angle + moves[rows, radius, angle]
    gone[:, -1] = True
    last = np.argmax(gone, axis=1)[:, None]
    corners = np.take_along_axis(corners, np.minimum(np.arange(last.max() + 1), last), axis=1)
    return np.concatenate([start[:, None] + 0j, corners], axis=1)
