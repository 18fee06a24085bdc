"""How much of a mixture lies below x, and below which x lies how much? Distribution and quantiles in one dimension.

    F(x) = Σ_k w_k Φ((x - m_k) / s_k),        quantile(p) = the x with F(x) = p.

Neither tail is lost to rounding: the smaller of F and 1 - F is summed from its own small terms. So is F(x) - p, which
counts clusters wholly below x by their weights,

    F(x) - p = (Σ_{m_k < x} w_k - p) - Σ_{m_k < x} w_k Φ(-|z_k|) + Σ_{m_k >= x} w_k Φ(-|z_k|),

and so has a clear sign even in a wide gap between clusters, where F is flat to rounding. A quantile lies between the
smallest and the largest of the clusters' own quantiles; within that bracket Newton's steps on log F (above the middle
on log(1 - F)) are taken where they stay inside and shrink, and bisection elsewhere. Weights are divided by their sum.

References:
    Press et al. (2007), Numerical Recipes, 3rd ed., section 9.4: Newton's steps within a bracket.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix.blocks import points_last
from bayesmix.devices import double_precision
from bayesmix.frames import table_of
from bayesmix.inputs import as_floats, as_points, is_traced

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from bayesmix.mixture import GaussianMixture

__all__ = ["cdf", "cumulative", "inverse", "quantile"]

_STEPS = 200


def cumulative(mixture: GaussianMixture, x: Any) -> Any:
    """`cdf` of any numbers or infinities, (n,) or (n, 1), or of one.

    Raises:
        ValueError: more than one feature, a batch of mixtures, or points that do not fit.
    """
    if not is_traced(x) and table_of(x) is not None:  # of which columns are taken by name
        x = as_points(x, n_features=mixture.n_features, known=mixture.feature_names, infinite=True).values
    points = jnp.asarray(x) if is_traced(x) else as_floats(x, "x", infinite=True)
    if points.ndim > 2 or points.shape[1:] not in ((), (1,)):
        raise ValueError(f"x must be (n,) or (n, 1), points of one feature; it has shape {points.shape}")
    return _evaluate(cdf, mixture, points.reshape(np.shape(x)[:1]))


def inverse(mixture: GaussianMixture, p: Any) -> Any:
    """`quantile` of probabilities of any shape.

    Raises:
        ValueError: more than one feature, a batch of mixtures, or a p that is no probability.
    """
    shares = jnp.asarray(p) if is_traced(p) else as_floats(p, "p")
    if not is_traced(p) and ((shares < 0) | (shares > 1)).any():
        wrong = float(shares[(shares < 0) | (shares > 1)].reshape(-1)[0])
        raise ValueError(f"p must be probabilities, between 0 and 1; one of them is {wrong}")
    return _evaluate(quantile, mixture, shares.reshape(np.shape(p)))


def _evaluate(function: Callable[..., Array], mixture: GaussianMixture, values: Any) -> Any:
    """Of values of any shape; in float64, unless something is traced."""
    if mixture.n_features != 1:
        raise ValueError(
            f"{function.__name__} is for one feature, and this mixture has {mixture.n_features}; take the law of one "
            f"of them first, such as mixture.marginal([0]).{function.__name__}(...)"
        )
    mixture = replace(mixture, feature_names=None)
    if is_traced(mixture, values):
        return function(mixture, jnp.asarray(values).reshape(-1)).reshape(values.shape)
    mixture._check_one()
    if not values.size:
        return np.zeros(values.shape)
    flat = values.reshape(-1).astype(np.float64)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mixture)
    with double_precision():
        out = np.asarray(_compiled(function, double, points_last(flat, max(1, flat.size))[0]))
    return out[: flat.size].reshape(values.shape)[()]


@partial(jax.jit, static_argnums=0)
def _compiled(function: Callable[..., Array], mixture: GaussianMixture, values: Array) -> Array:
    return function(mixture, values)


def _line(mixture: GaussianMixture) -> tuple[Array, Array, Array]:
    """Weights, means and standard deviations (k, 1) of a mixture in one dimension."""
    weights = jnp.asarray(mixture.weights)
    deviations = jnp.sqrt(jnp.asarray(mixture.covariances)[:, 0])
    return (weights / weights.sum())[:, None], jnp.asarray(mixture.means), deviations


def _below(z: Float[Array, "k n"], weights: Float[Array, "k 1"]) -> tuple[Array, Array]:
    """F and 1 - F, each from its own terms."""
    from jax.scipy.special import ndtr  # not at the top: it takes a tenth of `import bayesmix`

    return jnp.sum(weights * ndtr(z), axis=0), jnp.sum(weights * ndtr(-z), axis=0)


def cdf(mixture: GaussianMixture, x: Float[Array, " n"]) -> Float[Array, " n"]:
    """F(x), the share of the mixture below x."""
    weights, means, deviations = _line(mixture)
    lower, upper = _below((x - means) / deviations, weights)
    return jnp.where(lower < upper, lower, 1 - upper)


def quantile(mixture: GaussianMixture, p: Float[Array, " n"]) -> Float[Array, " n"]:
    """The x below which a share p of the mixture lies; NaN where p is no probability.

    Its derivatives are those of the root x of F(x) = p, dx = (dp - dF) / F'(x), not of the steps that find it.
    """
    x = _root(*lax.stop_gradient((mixture, p)))
    inside = (p > 0) & (p < 1)
    ends = jnp.where(p == 0, -jnp.inf, jnp.where(p == 1, jnp.inf, jnp.nan))
    place = jnp.where(inside, x, 0)
    weights, means, deviations = lax.stop_gradient(_line(mixture))
    slope = jnp.sum(weights / deviations * _bell((place - means) / deviations), axis=0)
    miss = p - cdf(mixture, place)
    moved = (miss - lax.stop_gradient(miss)) / jnp.maximum(slope, jnp.finfo(slope.dtype).tiny)  # by nothing
    return jnp.where(inside, place + moved, ends)


def _bell(z: Array) -> Array:
    """The density of a standard normal."""
    return jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _root(mixture: GaussianMixture, p: Float[Array, " n"]) -> Float[Array, " n"]:
    """The x with F(x) = p."""
    from jax.scipy.special import ndtr, ndtri

    weights, means, deviations = _line(mixture)
    own = jnp.where(weights > 0, means + deviations * ndtri(p), jnp.nan)
    low, high = jnp.nanmin(own, axis=0), jnp.nanmax(own, axis=0)
    left = p <= 0.5
    share = jnp.where(left, p, 1 - p)

    def miss(x: Array) -> tuple[Array, Array]:
        """F(x) - p, and Newton's step on the log of the smaller tail."""
        z = (x - means) / deviations
        tail = weights * ndtr(-jnp.abs(z))
        behind = jnp.sum(jnp.where(z > 0, weights, 0), axis=0)
        ahead = jnp.sum(jnp.where(z > 0, 0, weights), axis=0)
        passed = jnp.where(left, behind - p, share - ahead)
        excess = passed + jnp.sum(jnp.where(z > 0, -tail, tail), axis=0)
        slope = jnp.sum(weights / deviations * _bell(z), axis=0)
        more = jnp.where(left, excess, -excess)
        step = jnp.log1p(more / share) * (share + more) / slope
        return excess, jnp.where(left, -step, step)

    def go_on(carry: tuple) -> Array:
        low, high, x, _, steps = carry
        return jnp.any((low < x) & (x < high)) & (steps < _STEPS)

    def turn(carry: tuple) -> tuple:
        low, high, x, last, steps = carry
        excess, step = miss(x)
        inside = (low < x) & (x < high)
        low, high = jnp.where(inside & (excess <= 0), x, low), jnp.where(inside & (excess >= 0), x, high)
        newton = x + step
        trusted = (low < newton) & (newton < high) & (jnp.abs(step) < last / 2)
        following = jnp.where(trusted, newton, low / 2 + high / 2)
        last = jnp.where(trusted, jnp.abs(step), high - low)
        return low, high, jnp.where(inside & (newton != x), following, x), last, steps + 1

    start = (low, high, low / 2 + high / 2, high - low, jnp.asarray(0))
    return lax.while_loop(go_on, turn, start)[2]
