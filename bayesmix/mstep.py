"""The M-step: from statistics to the weights, means and covariances that maximise the free energy.

With a conjugate prior it maximises the free energy plus the log prior (`penalty` has the formulas). Maximum likelihood
stays maximum likelihood: a covariance that has collapsed, and only such a one, is estimated again with the floor's
ridge added to its scatter, so that it stays of its structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from bayesmix import lean
from bayesmix.acceleration import Proposal, own_step
from bayesmix.covariance import STRUCTURES, Covariance, Structure
from bayesmix.estimate import eve_or_vve
from bayesmix.mixture import GaussianMixture
from bayesmix.penalty import Penalty
from bayesmix.statistics import Statistics
from bayesmix.storage import Storage, numbers, per_cluster
from bayesmix.units import Floor

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

__all__ = ["Maximum", "families", "maximize", "thin_clusters"]

_NEXT_TO_NOTHING = 1e-100

type Estimate = Callable[[Array, Array, Array], Array]
type Onward = Callable[[Maximum, Array], Proposal]  # from a maximum, with the number of points


class Maximum(NamedTuple):
    """A mixture, the Cholesky factor of its covariances, and which (k|1,) of them collapsed or are thin."""

    mixture: GaussianMixture
    factor: Array
    collapsed: Bool
    thin: Bool
    proposal: Proposal | None = None  # that went on from there, within the family


@lean.inlined
def thin_clusters(means: Any, factor: Any, floor: Floor, storage: Storage) -> Any:
    """Whose raw moments keep too few digits (k,), by the Cholesky factors of their covariances."""
    low = storage.diagonal(factor) ** 2 < floor.thin + floor.thinness * means**2
    return numbers(means).any(low, axis=-1)


def maximize(
    mixture: GaussianMixture,
    statistics: Statistics,
    floor: Floor,
    hold: tuple[str, ...] = (),
    penalty: Penalty | None = None,
    skip: Any = False,
    family: Any = None,
    onward: Onward | None = None,
) -> Maximum:
    """The M-step at these statistics; `mixture` is the one before it.

    Without a prior an empty cluster keeps its mean and takes weight zero; it keeps its covariance too, but for what its
    structure has in common. With `skip` the mixture itself is factored, and nothing is estimated. `family`, a traced
    index into `families` of the mixture's storage, takes that structure's M-step in place of the mixture's own.
    `onward` makes of the maximum a proposal of any covariances, and the M-step at these brings it into the family.
    """
    structure, previous = mixture.covariance.row, mixture.covariance.values
    estimate = structure.estimate if family is None else partial(_switch, structure.storage, family)
    weights, means, count, scatter = _complete(mixture, statistics, penalty)
    held = "covariance" in hold
    storage = mixture.covariance.storage
    weights = mixture.weights if "weights" in hold else lean.where(skip, mixture.weights, weights)
    means = lean.where(skip, mixture.means, means)

    def at(count: Array, scatter: Array, keep: Any, lift: Any) -> tuple[Array, Array, Bool]:
        return _estimate(structure, estimate, count, scatter, previous, floor, keep, lift=lift)

    def maximum(values: Array, factor: Array, collapsed: Bool) -> Maximum:
        thin = thin_clusters(means, factor, floor, storage) & ~collapsed
        found = GaussianMixture(weights, means, Covariance(values, structure.name))
        return Maximum(found, factor, collapsed, thin)

    lift, keep = not held and penalty is None, skip | held
    if onward is None:
        return maximum(*at(count, scatter, keep, lift))
    total = lean.sum(statistics.moments[:, 0])

    def first(values: Array, factor: Array, collapsed: Bool) -> Maximum:
        found = maximum(values, factor, collapsed)
        return found._replace(proposal=onward(found, total))

    if family is None and not structure.constrained:
        return first(*at(count, scatter, keep, lift))

    # One loop for both: the estimate is the largest part of the program, and would be compiled twice.
    def turn(carry: tuple) -> tuple:
        turns, count, scatter, _, known = carry
        found = at(count, scatter, keep & (turns == 0), lift & (turns == 0))
        known = lax.cond(turns == 0, lambda: first(*found), lambda: known)
        there = known.proposal.mixture
        count = jnp.maximum(total * there.weights, _NEXT_TO_NOTHING)  # an empty cluster has next to no say
        scatter = there.covariance.values * per_cluster(count, storage.axes)
        return turns + 1, count, scatter, found, known

    none = (previous, previous, jnp.zeros(previous.shape[0], bool))
    nothing = maximum(*none)  # of no meaning, but of the form that is carried
    known: Any = nothing._replace(proposal=own_step(nothing.mixture, nothing.factor))
    _, _, _, (values, factor, _), known = lax.while_loop(
        lambda carry: (carry[0] == 0) | ((carry[0] == 1) & ~carry[-1].proposal.plain),
        turn,
        (jnp.asarray(0), count, scatter, none, known),
    )
    # Where the proposal is EM's own step, the last of the loop is that step.
    there = replace(known.proposal.mixture, covariance=Covariance(values, structure.name))
    return known._replace(proposal=known.proposal._replace(mixture=there, factor=factor))


@lean.inlined
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
    safe = lean.where(occupied, count, _NEXT_TO_NOTHING)
    average = first / safe[:, None]
    within = -storage.outer(average) * over(safe)
    if not row.shared:
        within = storage.second(moments[:, 1 + d :], d) + within
    if penalty is None:
        weights, means = count / lean.sum(count), lean.where(occupied[:, None], average, mixture.means)
        if not row.shared:  # an empty cluster has next to no say in what is common, and keeps what is its own
            within = lean.where(over(occupied), within, _NEXT_TO_NOTHING * mixture.covariance.values)
    else:
        strength = penalty.mean_count
        means = (first + strength * penalty.mean) / (count + strength)[:, None]
        within = within + storage.outer(average - penalty.mean) * over(strength * count / (count + strength))
        weights = jnp.maximum(count + penalty.concentration - 1, 0)
        weights = weights / lean.sum(weights)
        safe = count + 1 + penalty.count / (count.shape[0] if row.shared else 1)
    scatter = statistics.second + lean.sum(within, axis=0)[None] if row.shared else within
    if penalty is not None:
        scatter = scatter + penalty.scatter
    return weights, means, safe, scatter


def families(storage: str) -> tuple[str, ...]:
    """The structures that one program of a storage serves, in the order that `family` counts them."""
    stored = ("diagonal", "spherical") if storage == "diagonal" else (storage,)
    return tuple(row.name for row in STRUCTURES.values() if row.storage in stored)


def _switch(storage: str, family: Array, count: Array, scatter: Array, previous: Array) -> Array:
    """One program for all structures of a storage: only the M-step of k small matrices differs."""

    def whole(estimate: Estimate, count: Array, scatter: Array, previous: Array) -> Array:
        return jnp.broadcast_to(estimate(count, scatter, previous), scatter.shape)

    def sphere(estimate: Estimate, count: Array, scatter: Array, previous: Array) -> Array:
        values = estimate(count, jnp.mean(scatter, axis=1), jnp.mean(previous, axis=1))
        return jnp.broadcast_to(values[:, None], scatter.shape)

    names = families(storage)
    rows = [STRUCTURES[name] for name in names]
    branches = [partial(whole if row.storage == storage else sphere, row.estimate) for row in rows]
    if storage == "full":  # EVE and VVE are the largest programs, and one with a switch inside
        first, second = names.index("EVE"), names.index("VVE")
        branches[first] = partial(whole, partial(eve_or_vve, varying=family == second))
        family = lean.where(family == second, first, family)
        branches[second] = branches[names.index("VVV")]
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
    lift: Any,
) -> tuple[Array, Array, Bool]:
    """Covariance values, their Cholesky factor, and which collapsed: those are lifted, and all estimated again."""
    storage, axes = structure.form, scatter.ndim - 1
    behind = lean.sum(count)[None] if structure.shared else count

    def attempt(carry: tuple[Array, Array, Bool, Array]) -> tuple[Array, Array, Bool, Array]:
        _, _, collapsed, tries = carry
        ridge = lean.where(per_cluster(collapsed, axes), floor.ridge, 0)
        added = ridge if floor.asked is None else ridge + floor.asked
        values = estimate(count, scatter + per_cluster(behind, axes) * added, previous)
        values = lean.where(keep, previous + ridge, values)
        factor = storage.cholesky(values)
        # NaN is no factor, so it collapsed too.
        low = ~lean.all(storage.diagonal(factor) ** 2 >= floor.collapsed, axis=-1)
        return values, factor, collapsed | low, tries + 1

    start = (previous, previous, jnp.zeros(previous.shape[0], bool), jnp.asarray(0))
    values, factor, collapsed, _ = lax.while_loop(
        lambda carry: (carry[3] < 1) | ((carry[3] < 2) & lift & lean.any(carry[2])), attempt, start
    )
    return values, factor, collapsed
