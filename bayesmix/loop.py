"""The one loop: responsibilities, statistics, M-step, and again.

EM, hard EM, stochastic EM, annealed EM, online EM and k-means differ in how p(z | x) becomes responsibilities (a row
of `statistics.RESPONSIBILITIES`), in the inverse temperature, in how large a step is and how many points it sees, and
in what is held fixed; each maximises the free energy  F(r, θ) = Σ_n Σ_k r_nk (log p(x_n, z=k | θ) - log r_nk)  over r
and θ in turn.

A step is an M-step, then the E-step at its result, in that order: so the state always holds the statistics and
the objective of its own mixture. `climb` makes programs of steps, which `drive` calls from the host for one start after
another and `groups` for many cells at once; `threads` shares a step's pass among threads.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix import lean
from bayesmix.acceleration import Memory, Proposal, learn, propose
from bayesmix.density import inverse_factor
from bayesmix.mixture import GaussianMixture
from bayesmix.mstep import Maximum, maximize
from bayesmix.observations import Observations
from bayesmix.penalty import Penalty, log_prior
from bayesmix.statistics import EVERY, Statistics, summarize
from bayesmix.status import CODE
from bayesmix.units import Floor
from bayesmix.variates import split

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["Options", "Rules", "State", "Turn", "begin_turn", "e_step", "end_turn", "step_on"]

_MAX_REDRAWS = 200
_BELIEVED = 100  # times what a proposal says remains is what it is taken to mean


class Options(NamedTuple):
    """What is static in the compiled loop: a different value is a different program."""

    responsibilities: str = "soft"
    hold: tuple[str, ...] = ()
    whitened: float = 0  # clusters of which moments are, the thinnest ones, or `EVERY`
    relocate: bool = False
    decreasing: bool = False  # statistics move towards each draw by a decreasing step, `step_size`
    few: bool = False  # a pass is one kernel: `suited`
    apart: bool = False  # where a climb could be one kernel it is three, see `climb`
    batches: bool = False  # a step passes over one block of points, which stands for all of them
    padded: bool = False  # the last clusters may be of no weight, and be there for the shape alone
    gaps: bool = False  # cells are missing


class Rules(NamedTuple):
    """What is dynamic: changing it compiles nothing."""

    floor: Floor
    tol: Any
    rounding: Any  # relative error of a sum over the points, with room for its order
    total: Any  # total weight times features, the size of the sum
    penalty: Penalty | None = None  # a conjugate prior
    settle: Any = 0  # steps of size one, before they decrease; below zero, how many are behind them already
    batches: Any = 1  # blocks that have points, which steps pass over in turn
    gentle: Any = np.inf  # acceleration begins with a step that gains less than so many nats


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
    trace: Any  # objectives of this call; the last of them, where there is no room for all
    filled: Any  # how many of its entries hold
    # Absent where there is no such thing, so that no code is compiled for it.
    tolerant: Any = None  # k-means: an empty cluster cannot be helped
    key: Any = None  # key data, for the rows that draw, and
    redraws: Any = None
    failed: Any = None  # redraws in a row
    best: Any = None  # (mixture, log-likelihood) seen so far, where draws make the path rise and fall
    chain: Any = None  # moments of each step of this call, where draws are averaged
    family: Any = None  # which structure of the storage, where one program serves them all
    memory: Memory | None = None  # where EM is accelerated


class Turn(NamedTuple):
    """Where the next E-step is taken, and what its end needs to know of how it came about."""

    mixture: GaussianMixture
    inverse: tuple[Array, Array]  # `inverse_factor` of its covariance
    collapsed: Array
    thin: Array
    draw: Any  # key data of this step's draws, and
    key: Any  # of the steps after it
    proposal: Proposal | None
    place: Any = None  # of the block that is passed over, where it is one


def begin_turn(state: State, rules: Rules, options: Options) -> Turn:
    """The M-step, unless it is to be skipped, and what acceleration makes of it."""
    key = draw = onward = None
    if options.responsibilities.startswith("sampled"):
        key, draw = split(state.key, 2)
    memory = state.memory
    if memory is not None:
        gentle = ~(state.gain >= rules.gentle) & ~state.skip  # no gain is known yet where it is NaN
        begun = gentle & lax.is_finite(state.statistics.objective) & (memory.radius > 0)

        def propose_on(plus: Maximum, total: Array) -> Proposal:
            own = lean.any(plus.collapsed)
            return propose(memory, state.mixture, plus.mixture, plus.factor, total, begun, own)

        onward = propose_on

    plus = maximize(
        state.mixture,
        state.statistics,
        rules.floor,
        options.hold,
        rules.penalty,
        state.skip,
        state.family,
        onward,
    )
    proposal = plus.proposal
    mixture, factor = (plus if proposal is None else proposal)[:2]
    inverse = inverse_factor(mixture.covariance, factor, state.mixture.n_features)
    place = lax.rem(state.step, rules.batches) if options.batches else None
    return Turn(mixture, inverse, plus.collapsed, plus.thin, draw, key, proposal, place)


@lean.inlined
def end_turn(state: State, turn: Turn, statistics: Statistics, rules: Rules, options: Options) -> State:
    """The state after the E-step: its statistics and objective, whether it is taken, and how the run goes on."""
    mixture, proposal = turn.mixture, turn.proposal
    draws = options.responsibilities.startswith("sampled")
    k, d = mixture.n_components, mixture.n_features
    if rules.penalty is not None:
        objective = statistics.objective + log_prior(rules.penalty, mixture, turn.inverse)
        statistics = replace(statistics, objective=objective)
    if options.decreasing:  # the objective stays that of the mixture
        size = step_size(state.step - rules.settle, options)
        if not options.batches:  # which come to statistics of all data
            size = lean.where(state.skip, 1.0, size)
        known = lax.is_finite(state.statistics.objective)
        moved = jax.tree.map(
            lambda old, new: lean.where(known, old + size * (new - old), new), state.statistics, statistics
        )
        statistics = replace(moved, objective=statistics.objective)
    count = statistics.moments[:, 0]
    finite = lax.is_finite(statistics.objective) & lean.all(lax.is_finite(statistics.moments))
    gain = statistics.objective - state.statistics.objective
    accepted, memory = jnp.ones((), bool), None
    if proposal is not None and state.memory is not None:
        accepted = proposal.plain | (finite & (gain >= 0))
        memory = learn(state.memory, proposal, turn.inverse[0], accepted)
    calm = _calm(state, statistics, gain, rules, options, proposal, accepted)
    code = lean.where(calm >= 2, CODE["converged"], 0)
    if (
        options.gaps and rules.penalty is None
    ):  # what is expected of missing cells shrinks with a cluster, on and on
        code = lean.where(lean.any(turn.collapsed), CODE["collapsed"], code)
    if options.relocate:
        code = lean.where(lean.any(count <= 0) & ~state.tolerant, CODE["empty"], code)
    bad, failed, redraws = jnp.zeros((), bool), state.failed, state.redraws
    if draws:
        # Too few points for a covariance, unless there is a prior.
        bad = finite & lean.any(count < d + 1) if rules.penalty is None else bad
        failed, redraws = lean.where(bad, failed + 1, 0), redraws + bad
        code = lean.where(failed > _MAX_REDRAWS, CODE["collapsed"], code)
    code = lean.where(finite | ~accepted, code, CODE["non_finite"])
    taken, again = finite & accepted, bad
    # Moments that are not to be trusted; of k-means, whose spheres have the size of the data, they are.
    sphere = mixture.covariance.row.shared and "covariance" in options.hold
    if not sphere and options.whitened < EVERY:
        thin = jnp.sum(turn.thin & (count > d + 1)) > options.whitened
        code, taken, again = lean.where(thin, CODE["thin"], code), taken | (thin & accepted), bad | thin
    mixture, statistics = jax.tree.map(
        partial(lax.select, taken), (mixture, statistics), (state.mixture, state.statistics)
    )
    best, chain = state.best, state.chain
    place = lax.rem(state.filled, jnp.full_like(state.filled, state.trace.shape[0]))
    if draws:
        better = finite & (statistics.objective > best[1])
        best = jax.tree.map(partial(lax.select, better), (mixture, statistics.objective), best)
        chain = lax.dynamic_update_index_in_dim(chain, statistics.moments, state.filled, 0)
    return State(
        mixture=mixture,
        statistics=statistics,
        skip=again,
        step=state.step + ~state.skip,
        gain=lean.where(accepted, lean.where(state.skip | ~lax.is_finite(gain), jnp.nan, gain), state.gain),
        calm=calm,
        code=code.astype(state.code.dtype),
        collapsed=jnp.broadcast_to(turn.collapsed, (k,)) | (statistics.moments[:, 0] <= 0),
        tolerant=state.tolerant,
        key=state.key if turn.key is None else turn.key,
        redraws=redraws,
        failed=failed,
        best=best,
        trace=lax.dynamic_update_index_in_dim(
            state.trace, statistics.objective, place, 0, allow_negative_indices=False
        ),
        chain=chain,
        filled=state.filled + ((finite | ~accepted) & ~again),
        family=state.family,
        memory=memory,
    )


def e_step(turn: Turn, observations: Observations, beta: Any, options: Options) -> Statistics:
    """The E-step: one pass over the data, or over a part of them."""
    if options.batches:
        block = partial(lax.dynamic_index_in_dim, index=turn.place, allow_negative_indices=False)
        observations = jax.tree.map(block, observations)
    return summarize(
        turn.mixture,
        observations,
        options.responsibilities,
        whitened=options.whitened,
        thin=turn.thin,
        beta=beta,
        key=turn.draw,
        factor=turn.inverse,
        few=options.few,
        padded=options.padded,
    )


def step_on(state: State, observations: Observations, beta: Any, rules: Rules, options: Options) -> State:
    """The next step."""
    turn = begin_turn(state, rules, options)
    return end_turn(state, turn, e_step(turn, observations, beta, options), rules, options)


def step_size(step: Any, options: Options) -> Any:
    """One at first, then falling so that the sum of sizes diverges, of squares not.

    Of batches by less: where clusters overlap their way is long, and of 0.55 to 0.8 it is 0.6 that ends nearest
    to the maximum after a thousand steps.
    """
    return jnp.maximum(step, 1.0) ** (-0.6 if options.batches else -0.7)


def _calm(
    state: State,
    statistics: Statistics,
    gain: Array,
    rules: Rules,
    options: Options,
    proposal: Proposal | None,
    accepted: Array,
) -> Array:
    """Steps in a row that promise to gain less than tol; two are enough. tol = 0 never stops.

    Aitken: gains of EM's own steps shrink by a = gain / previous gain a step, so gain a / (1 - a) remains. A proposal
    says itself what remains; it knows only the directions that it came by, so a hundred times as much is assumed. Hard
    responsibilities have come to rest when the statistics, so the assignment, repeat. One cluster is a closed form, but
    for missing cells.
    """
    if options.batches:
        return state.calm
    stepped = ~state.skip & (rules.tol > 0)
    if options.responsibilities == "hard":
        moved = jnp.abs(statistics.moments - state.statistics.moments)
        # Moments in a cluster's whitened coordinates come back rounded by where it was, but for the counts.
        room = rules.rounding * rules.total if options.whitened else 0.0
        repeated = lean.all(moved <= room) & lean.all(moved[:, 0] == 0)
        return lean.where(stepped & repeated, 2, 0)
    if options.responsibilities.startswith("sampled"):
        return state.calm
    if state.mixture.n_components == 1 and not options.gaps:
        return lean.where(stepped, 2, 0)
    ratio = gain / state.gain
    remaining = lean.where(ratio < 1, jnp.abs(gain * ratio / (1 - ratio)), jnp.inf)
    rounding = rules.rounding * (jnp.abs(statistics.objective) + rules.total)
    promising = (ratio > 0) & (remaining < rules.tol)
    if proposal is not None:
        promising = lean.where(
            proposal.plain, promising & proposal.steady, _BELIEVED * proposal.remaining < rules.tol
        )
    climbed = gain if rules.floor.asked is None else jnp.abs(gain)  # what is added to covariances may cost
    still = (climbed <= rounding) | promising
    return lean.where(accepted, lean.where(stepped & still, state.calm + 1, 0), state.calm)
