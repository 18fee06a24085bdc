"""Programs of the loop: steps of one start after another, a limited number a call.

Where numbers are few, all of a climb can be one kernel, which takes the least time a step; but one core compiles it.
`Options.apart` asks for a climb of three kernels, M-step, pass and what ends a step, which hand each other rows:
they are compiled side by side, in two thirds of the time, and take a step of 272 points from 3 to 4.5 microseconds.
That is for runs that end by themselves, after some tens of steps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix import lean
from bayesmix.acceleration import blank
from bayesmix.compilation import kernel_of_rows, one_kernel, wide
from bayesmix.loop import Options, Rules, State, begin_turn, e_step, end_turn, step_on
from bayesmix.observations import Observations
from bayesmix.packing import Layout, Packed
from bayesmix.passes import is_few

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["advance", "is_whole", "suited"]

# The kernel of full covariances compiles longer the more features there are: from so many on it takes half a second
# more than many kernels, which passes of so many products n k p repay.
_SOON, _REPAID = 8, 1e6


@partial(wide, static_argnames=("layout", "accelerated", "options"))
def advance(
    rows: Array,
    limits: Array,
    observations: Observations,
    terms: Packed,
    layout: Layout,
    accelerated: bool,
    options: Options,
) -> Array:
    """Up to limits[s] more steps of each start s that has not ended; those without steps come last.

    States come and go as rows, and `terms` are the inverse temperature and the rules. Nothing is `filled` of their
    traces yet. If `accelerated`, they keep nothing of one call for the next, which is four fifths of a state. Where a
    climb is one kernel, so is the way from start to start.
    """
    whole = is_whole(layout.shaped(), options)
    apart = whole and options.apart

    def run(rows: Array, limits: Array, observations: Observations, terms: Packed) -> Array:
        beta, rules = terms.tree

        def end(s: Any) -> Array:
            given = Packed(rows[s], layout)
            if accelerated:
                memory = jax.tree.map(jnp.asarray, blank(layout.shaped().mixture))
                given = Packed.of(given.tree._replace(memory=memory))
            if apart:
                return _climb_apart(given, limits[s], observations, beta, rules, options).row[: layout.width]
            state = _climb(given.tree, limits[s], observations, beta, rules, options)
            return layout.pack(state._replace(memory=None) if accelerated else state)

        if rows.shape[0] == 1:  # without the loop, which is a third less to compile
            return end(0)[None]

        def body(s: Any, rows: Array) -> Array:
            return lax.dynamic_update_index_in_dim(rows, end(s), s, 0)

        return lax.fori_loop(0, jnp.sum(limits > 0), body, rows)

    return one_kernel(run, whole and not apart)(rows, limits, observations, terms)


def _climb(
    state: State, limit: Array, observations: Observations, beta: Array, rules: Rules, options: Options
) -> State:
    """Up to so many more steps of one start, none once it has ended."""
    last = state.step + limit
    return lax.while_loop(
        lambda s: (s.code == 0) & ((s.step < last) | s.skip),
        lambda s: step_on(s, observations, beta, rules, options),
        state,
    )


def _climb_apart(
    state: Packed, limit: Array, observations: Observations, beta: Array, rules: Rules, options: Options
) -> Packed:
    """The same by three kernels, of one start that has not ended."""
    held = Packed.of((state.leaf(lambda s: s.step) + limit, beta, rules))

    def begin(state: Packed, held: Packed) -> Packed:
        return Packed.of(begin_turn(state.tree, held.tree[2], options))

    def over(turn: Packed, held: Packed, observations: Observations) -> Packed:
        return Packed.of(e_step(turn.tree, observations, held.tree[1], options))

    @lean.inlined
    def end(state: Packed, turn: Packed, statistics: Packed, held: Packed) -> tuple[Packed, Array]:
        last, _, rules = held.tree
        ended = end_turn(state.tree, turn.tree, statistics.tree, rules, options)
        reasons = (ended.code == 0) & jnp.stack([ended.step < last, ended.skip])
        return Packed.of(ended), reasons.astype(jnp.float32)

    def step(carried: tuple[Packed, Array]) -> tuple[Packed, Array]:
        state, _ = carried
        turn = kernel_of_rows(begin)(state, held)
        statistics = kernel_of_rows(over)(turn, held, observations)
        return kernel_of_rows(end)(state, turn, statistics, held)

    def goes_on(carried: tuple[Packed, Array]) -> Array:
        # XLA makes one kernel of a loop if it can, which is where a library is not called, as it is here.
        return lax.top_k(carried[1], 1)[0][0] > 0

    return lax.while_loop(goes_on, step, (state, jnp.ones(2, jnp.float32)))[0]


def suited(options: Options, states: State, observations: Observations) -> Options:
    """The options with `few`, if passes of such states are to be one kernel, and with `gaps`."""
    numbers, d = states.statistics.moments.size // states.code.size, states.mixture.n_features
    products = numbers * observations.size
    row = states.mixture.covariance.row
    dtype = np.dtype(observations.x.dtype)
    doubled = options.whitened > 0 and dtype == np.float32  # see `statistics`
    raw = doubled or not options.whitened
    if not row.shared and options.responsibilities != "hard":  # then logits read x alone, see `by_lanes`
        numbers = {"full": numbers // 2, "diagonal": numbers * 3 // 4}.get(row.storage, numbers)
    gaps = observations.gaps is not None
    few = raw and not gaps and is_few(numbers, np.float64 if doubled else dtype)
    if row.storage == "full" and not row.shared and d > _SOON:
        few = few and products > _REPAID
    return options._replace(few=few and options.responsibilities != "sampled_counts", gaps=gaps)


def is_whole(state: State, options: Options) -> bool:
    """Whether all of a climb, the M-step too, is one kernel."""
    row, d = state.mixture.covariance.row, state.mixture.n_features
    return options.few and row.written_out(d, state.family is not None)
