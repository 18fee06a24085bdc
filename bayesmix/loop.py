"""The one loop: responsibilities, statistics, M-step, and again.

EM, hard EM, stochastic EM, annealed EM and k-means differ in how p(z | x) becomes responsibilities (a row of
`statistics.RESPONSIBILITIES`), in the inverse temperature, and in what is held fixed; each maximises the free
energy  F(r, θ) = Σ_n Σ_k r_nk (log p(x_n, z=k | θ) - log r_nk)  over r and θ in turn.

A step is an M-step, then the E-step at its result, in that order: so the state always holds the statistics and
the objective of its own mixture. `advance` is the compiled part: a `lax.while_loop` a start, `lax.map` over starts,
a limited number of steps a call; `drive` calls it from the host.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from bayesmix.covariance import Covariance, per_cluster
from bayesmix.density import inverse_factor
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import Penalty, log_prior
from bayesmix.results import STATUS
from bayesmix.statistics import Observations, Statistics, summarize
from bayesmix.units import Floor

__all__ = ["Options", "Rules", "State", "advance", "maximize"]

_CODE = {name: code for name, (code, _) in STATUS.items()}
_MAX_REDRAWS = 200


class Options(NamedTuple):
    """What is static in the compiled loop: a different value is a different program."""

    responsibilities: str = "soft"
    hold: tuple[str, ...] = ()
    whitened: bool = False
    relocate: bool = False


class Rules(NamedTuple):
    """What is dynamic: changing it compiles nothing."""

    floor: Floor
    tol: Any
    rounding: Any  # relative error of a sum of the data's precision
    total: Any  # total weight times features, the size of the sum
    penalty: Penalty | None = None  # a conjugate prior


class State(NamedTuple):
    """What the loop carries: `mixture`, the statistics at it, and how the run is going."""

    mixture: GaussianMixture
    statistics: Statistics
    skip: Any  # no M-step next: the mixture was given, or the draw at it is to be repeated
    step: Any  # M-steps done
    gain: Any  # what the last step added to the objective
    calm: Any  # steps in a row whose predicted remaining gain is below tol
    code: Any
    collapsed: Any  # (k,) clusters that the floor holds, or that are empty
    tolerant: Any  # k-means: an empty cluster cannot be helped
    key: Any  # key data, for the rows that draw
    redraws: Any
    failed: Any  # redraws in a row
    best: Any  # (mixture, log-likelihood) seen so far, where draws make the path rise and fall
    trace: Any  # objectives of this call, and
    chain: Any  # moments of each step of this call, where draws are averaged
    filled: Any  # how many entries of them hold


def maximize(
    mixture: GaussianMixture,
    statistics: Statistics,
    hold: tuple[str, ...] = (),
    penalty: Penalty | None = None,
) -> tuple[Array, Array, Array]:
    """The M-step: weights, means and covariance values that maximise F, plus the log prior if there is one.

    Without a prior an empty cluster keeps the mean and covariance of `mixture` and takes weight zero.
    """
    row, storage, d = mixture.covariance.row, mixture.covariance.storage, mixture.n_features
    moments = statistics.moments
    count, first = moments[:, 0], moments[:, 1 : 1 + d]

    def over(vector: Array) -> Array:
        return per_cluster(vector, storage.axes)

    safe = jnp.maximum(count, 1e-300)
    average = first / safe[:, None]
    within = -storage.outer(average) * over(safe)
    if not row.shared:
        within = storage.second(moments[:, 1 + d :], d) + within
    weights, means = count / jnp.sum(count), average
    if penalty is not None:
        strength = penalty.mean_count
        means = (first + strength * penalty.mean) / (count + strength)[:, None]
        within = within + storage.outer(average - penalty.mean) * over(strength * count / (count + strength))
        weights = jnp.maximum(count + penalty.concentration - 1, 0)
        weights = weights / jnp.sum(weights)
        safe = count + 1 + penalty.count / (count.shape[0] if row.shared else 1)
    scatter = statistics.second + jnp.sum(within, axis=0, keepdims=True) if row.shared else within
    if penalty is not None:
        scatter = scatter + penalty.scatter
    values = row.estimate(safe, scatter, mixture.covariance.values)
    if penalty is None:
        means = jnp.where((count > 0)[:, None], means, mixture.means)
        values = values if row.shared else jnp.where(over(count > 0), values, mixture.covariance.values)
    weights = mixture.weights if "weights" in hold else weights
    values = mixture.covariance.values if "covariance" in hold else values
    return weights, means, values


def _factorize(covariance: Covariance, floor: Floor, held: bool) -> tuple[Array, Array, Bool, Bool]:
    """Covariance values that have a Cholesky factor, the factor, and which (k|1,) collapsed or are thin."""
    storage = covariance.storage

    def pivots(factor: Array) -> Array:
        return storage.diagonal(factor) ** 2

    factor = storage.cholesky(covariance.values)
    collapsed = ~jnp.all(pivots(factor) >= floor.collapsed, axis=-1)  # NaN is no factor, so it collapsed too
    values = covariance.values
    if not held:

        def raised(_: None) -> tuple[Array, Array]:
            each = per_cluster(collapsed, storage.axes)
            lifted = jnp.where(each, values + floor.ridge, values)
            return lifted, storage.cholesky(lifted)

        values, factor = jax.lax.cond(jnp.any(collapsed), raised, lambda _: (values, factor), None)
    return values, factor, collapsed, jnp.any(pivots(factor) < floor.thin, axis=-1) & ~collapsed


def _step(state: State, observations: Observations, beta: Array, rules: Rules, options: Options) -> State:
    """One M-step, unless it is to be skipped, and the E-step after it."""
    draws = options.responsibilities.startswith("sampled")
    k, d, structure = state.mixture.n_components, state.mixture.n_features, state.mixture.structure
    weights, means, values = jax.tree.map(
        lambda old, new: jnp.where(state.skip, old, new),
        (state.mixture.weights, state.mixture.means, state.mixture.covariance.values),
        maximize(state.mixture, state.statistics, options.hold, rules.penalty),
    )
    values, factor, collapsed, thin = _factorize(
        Covariance(values, structure), rules.floor, "covariance" in options.hold or rules.penalty is not None
    )
    mixture = GaussianMixture(weights, means, Covariance(values, structure))
    key, draw = jax.random.split(jax.random.wrap_key_data(state.key)) if draws else (None, None)
    inverse = inverse_factor(mixture.covariance, factor, d)
    statistics = summarize(
        mixture,
        observations,
        options.responsibilities,
        whitened=options.whitened,
        beta=beta,
        key=draw,
        factor=inverse,
    )
    if rules.penalty is not None:
        objective = statistics.objective + log_prior(rules.penalty, mixture, inverse)
        statistics = replace(statistics, objective=objective)
    count = statistics.moments[:, 0]
    finite = jnp.isfinite(statistics.objective) & jnp.all(jnp.isfinite(statistics.moments))
    gain = statistics.objective - state.statistics.objective
    calm = _calm(state, statistics, gain, rules, options)
    code = jnp.where(calm >= 2, _CODE["converged"], 0)
    if not options.whitened and not mixture.covariance.row.shared:
        code = jnp.where(jnp.any(thin & (count > d + 1)), _CODE["thin"], code)
    if options.relocate:
        code = jnp.where(jnp.any(count <= 0) & ~state.tolerant, _CODE["empty"], code)
    bad = finite & jnp.any(count < d + 1) if draws else jnp.zeros((), bool)
    failed = jnp.where(bad, state.failed + 1, 0)
    code = jnp.where(failed > _MAX_REDRAWS, _CODE["collapsed"], code)
    code = jnp.where(finite, code, _CODE["non_finite"])
    mixture, statistics = jax.tree.map(
        lambda old, new: jnp.where(finite, new, old), (state.mixture, state.statistics), (mixture, statistics)
    )
    best, chain = state.best, state.chain
    if draws:
        better = finite & (statistics.objective > best[1])
        best = jax.tree.map(
            lambda old, new: jnp.where(better, new, old), best, (mixture, statistics.objective)
        )
        chain = chain.at[state.filled].set(statistics.moments, mode="drop")
    return State(
        mixture=mixture,
        statistics=statistics,
        skip=bad,
        step=state.step + ~state.skip,
        gain=jnp.where(state.skip | ~jnp.isfinite(gain), jnp.nan, gain),
        calm=calm,
        code=code.astype(state.code.dtype),
        collapsed=jnp.broadcast_to(collapsed, (k,)) | (count <= 0),
        tolerant=state.tolerant,
        key=state.key if key is None else jax.random.key_data(key),
        redraws=state.redraws + bad,
        failed=failed,
        best=best,
        trace=state.trace.at[state.filled].set(statistics.objective, mode="drop"),
        chain=chain,
        filled=state.filled + (finite & ~bad),
    )


def _calm(state: State, statistics: Statistics, gain: Array, rules: Rules, options: Options) -> Array:
    """Steps in a row that promise to gain less than tol; two are enough. tol = 0 never stops.

    Aitken: gains shrink by a = gain / previous gain a step, so gain a / (1 - a) remains. Hard responsibilities
    have come to rest when the statistics, so the assignment, repeat exactly. One cluster is a closed form.
    """
    stepped = ~state.skip & (rules.tol > 0)
    if options.responsibilities == "hard":
        return jnp.where(stepped & jnp.all(statistics.moments == state.statistics.moments), 2, 0)
    if options.responsibilities != "soft":
        return state.calm
    if state.mixture.n_components == 1:
        return jnp.where(stepped, 2, 0)
    ratio = gain / state.gain
    remaining = jnp.where(ratio < 1, gain * ratio / (1 - ratio), jnp.inf)
    rounding = rules.rounding * (jnp.abs(statistics.objective) + rules.total)
    still = (gain <= rounding) | ((gain > 0) & (state.gain > 0) & (remaining < rules.tol))
    return jnp.where(stepped & still, state.calm + 1, 0)


@partial(jax.jit, static_argnames="options")
def advance(
    states: State, limits: Array, observations: Observations, beta: Array, rules: Rules, options: Options
) -> State:
    """Up to limits[s] more steps of each start s, none of one that has ended."""

    def one(pair: tuple[State, Array]) -> State:
        state, limit = pair
        state = state._replace(filled=jnp.zeros_like(state.filled))
        last = state.step + limit
        return jax.lax.while_loop(
            lambda s: (s.code == 0) & ((s.step < last) | s.skip),
            lambda s: _step(s, observations, beta, rules, options),
            state,
        )

    return jax.lax.map(one, (states, limits))
