"""The M-step: from statistics to the weights, means and covariances that maximise the free energy.

With a conjugate prior it maximises the free energy plus the log prior (`penalty` has the formulas). Maximum likelihood
stays maximum likelihood: a covariance that has collapsed, and only such a one, is estimated again with the floor's
ridge added to its scatter, so that it stays of its structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from bayesmix.covariance import STRUCTURES, Covariance, Structure
from bayesmix.estimate import eve_or_vve
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import Penalty
from bayesmix.statistics import Statistics
from bayesmix.storage import per_cluster
from bayesmix.units import Floor

__all__ = ["Maximum", "families", "maximize", "restrain"]

_NEXT_TO_NOTHING = 1e-100

Estimate = Callable[[Array, Array, Array], Array]


class Maximum(NamedTuple):
    """A mixture, the Cholesky factor of its covariances, and which (k|1,) of them collapsed or are thin."""

    mixture: GaussianMixture
    factor: Array
    collapsed: Bool
    thin: Bool


def maximize(
    mixture: GaussianMixture,
    statistics: Statistics,
    floor: Floor,
    hold: tuple[str, ...] = (),
    penalty: Penalty | None = None,
    skip: Any = False,
    family: Any = None,
) -> Maximum:
    """The M-step at these statistics; `mixture` is the one before it.

    Without a prior an empty cluster keeps its mean and takes weight zero; it keeps its covariance too, but for what its
    structure has in common. With `skip` the mixture itself is factored, and nothing is estimated. `family`, a traced
    index into `families` of the mixture's storage, takes that structure's M-step in place of the mixture's own.
    """
    structure, previous = mixture.covariance.row, mixture.covariance.values
    estimate = structure.estimate if family is None else partial(_switch, structure.storage, family)
    weights, means, count, scatter = _complete(mixture, statistics, penalty)
    held = "covariance" in hold
    values, factor, collapsed = _estimate(
        structure, estimate, count, scatter, previous, floor, skip | held, lift=not held and penalty is None
    )
    storage = mixture.covariance.storage
    weights = mixture.weights if "weights" in hold else jnp.where(skip, mixture.weights, weights)
    means = jnp.where(skip, mixture.means, means)
    pivots = storage.diagonal(factor) ** 2
    thin = jnp.any(pivots < floor.thin + floor.thinness * means**2, axis=-1) & ~collapsed
    return Maximum(
        GaussianMixture(weights, means, Covariance(values, structure.name)), factor, collapsed, thin
    )


def restrain(
    mixture: GaussianMixture, factor: Array, count: Array, previous: Array, family: Any = None
) -> tuple[GaussianMixture, Array]:
    """A mixture brought into the family of its structure: the M-step at its own covariances, with its factor."""
    structure, values = mixture.covariance.row, mixture.covariance.values
    if family is None and not structure.constrained:
        return mixture, factor
    estimate = structure.estimate if family is None else partial(_switch, structure.storage, family)
    count = jnp.maximum(count, _NEXT_TO_NOTHING)  # an empty cluster has next to no say, as in the M-step
    values = estimate(count, values * per_cluster(count, structure.form.axes), previous)
    covariance = Covariance(values, structure.name)
    return replace(mixture, covariance=covariance), structure.form.cholesky(values)


def _complete(
    mixture: GaussianMixture, statistics: Statistics, penalty: Penalty | None
) -> tuple[Array, Array, Array, Array]:
    """Weights and means, and the counts (k,) and scatters about the means that go to the structure's M-step."""
    row, storage, d = mixture.covariance.row, mixture.covariance.storage, mixture.n_features
    moments = statistics.moments
    count, first = moments[:, 0], moments[:, 1 : 1 + d]

    def over(vector: Array) -> Array:
        return per_cluster(vector, storage.axes)

    occupied = count > _NEXT_TO_NOTHING
    safe = jnp.where(occupied, count, _NEXT_TO_NOTHING)
    average = first / safe[:, None]
    within = -storage.outer(average) * over(safe)
    if not row.shared:
        within = storage.second(moments[:, 1 + d :], d) + within
    if penalty is None:
        weights, means = count / jnp.sum(count), jnp.where(occupied[:, None], average, mixture.means)
        if not row.shared:  # an empty cluster has next to no say in what is common, and keeps what is its own
            within = jnp.where(over(occupied), within, _NEXT_TO_NOTHING * mixture.covariance.values)
    else:
        strength = penalty.mean_count
        means = (first + strength * penalty.mean) / (count + strength)[:, None]
        within = within + storage.outer(average - penalty.mean) * over(strength * count / (count + strength))
        weights = jnp.maximum(count + penalty.concentration - 1, 0)
        weights = weights / jnp.sum(weights)
        safe = count + 1 + penalty.count / (count.shape[0] if row.shared else 1)
    scatter = statistics.second + jnp.sum(within, axis=0, keepdims=True) if row.shared else within
    if penalty is not None:
        scatter = scatter + penalty.scatter
    return weights, means, safe, scatter


def families(storage: str) -> tuple[str, ...]:
    """The structures of a storage, in the order that `family` counts them."""
    return tuple(row.name for row in STRUCTURES.values() if row.storage == storage)


def _switch(storage: str, family: Array, count: Array, scatter: Array, previous: Array) -> Array:
    """One program for all structures of a storage: only the M-step of k small matrices differs."""

    def whole(estimate: Estimate, count: Array, scatter: Array, previous: Array) -> Array:
        return jnp.broadcast_to(estimate(count, scatter, previous), scatter.shape)

    names = families(storage)
    functions = [STRUCTURES[name].estimate for name in names]
    if storage == "full":  # EVE and VVE are the largest programs, and one with a switch inside
        first, second = names.index("EVE"), names.index("VVE")
        functions[first] = partial(eve_or_vve, varying=family == second)
        family = jnp.where(family == second, first, family)
        functions[second] = functions[names.index("VVV")]
    branches = [partial(whole, function) for function in functions]
    return lax.switch(family, branches, count, scatter, previous)


def _estimate(
    structure: Structure,
    estimate: Estimate,
    count: Array,
    scatter: Array,
    previous: Array,
    floor: Floor,
    keep: Any,
    *,
    lift: bool,
) -> tuple[Array, Array, Bool]:
    """Covariance values, their Cholesky factor, and which collapsed: those are lifted, and all estimated again."""
    storage, axes = structure.form, scatter.ndim - 1
    behind = jnp.sum(count)[None] if structure.shared else count

    def attempt(carry: tuple[Array, Array, Bool, Array]) -> tuple[Array, Array, Bool, Array]:
        _, _, collapsed, tries = carry
        ridge = jnp.where(per_cluster(collapsed, axes), floor.ridge, 0)
        added = ridge if floor.asked is None else ridge + floor.asked
        values = estimate(count, scatter + per_cluster(behind, axes) * added, previous)
        values = jnp.where(keep, previous + ridge, values)
        factor = storage.cholesky(values)
        # NaN is no factor, so it collapsed too.
        low = ~jnp.all(storage.diagonal(factor) ** 2 >= floor.collapsed, axis=-1)
        return values, factor, collapsed | low, tries + 1

    start = (previous, previous, jnp.zeros(previous.shape[0], bool), jnp.asarray(0))
    first = 2 if lift else 1
    values, factor, collapsed, _ = lax.while_loop(
        lambda carry: (carry[3] < 1) | ((carry[3] < first) & jnp.any(carry[2])), attempt, start
    )
    return values, factor, collapsed
