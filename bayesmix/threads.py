"""The same loop with its passes over the data shared among threads, for data of which a pass takes a millisecond.

XLA runs a program of small blocks on one core. Here each part of the blocks is passed over by a call of its own, in a
thread of its own, and statistics add. A call ends the step of which all parts are known, takes the next M-step, and
passes over its part: so each does the little that is not a pass, and a step is one call of each thread. They are made
one step ahead of what is known to have been computed, which hides the tenth of a millisecond that the host takes; a
call after the end of a run makes no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial, reduce
from operator import add, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesmix.assignments import Assigned
from bayesmix.climb import is_whole
from bayesmix.compilation import one_kernel, wide
from bayesmix.devices import double_precision
from bayesmix.inputs import cores
from bayesmix.loop import Options, Rules, State, Turn, begin_turn, e_step, end_turn
from bayesmix.mixture import GaussianMixture
from bayesmix.observations import Observations
from bayesmix.packing import Layout, Packed
from bayesmix.statistics import Statistics, expected_log_joint, natural_parameters
from bayesmix.variates import split

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["advance_by_parts", "assigned_of", "parts_of"]

# Bytes of the products n k p of a pass, from which it is shared: a millisecond or two on one core. Steps take a fifth
# to two fifths less; from half as many on long runs would gain too, and those of few steps lose.
_WORTH = 4e7
_HOST = 200  # moments, from which the host adds up labels in less time than a kernel takes for masks


def parts_of(observations: Observations, products: float) -> list[Observations]:
    """The blocks in equal parts, one a thread; a single part where a pass of so many products is too short.

    The total second moment stays with the first part, so that statistics of the parts add up to those of the whole.
    """
    blocks, gaps = observations.x.shape[0], observations.gaps
    steps = 0 if gaps is None else gaps.weight.shape[0]
    count = 1
    on_device = not isinstance(observations.x, np.ndarray)
    if products * observations.x.dtype.itemsize > _WORTH and not on_device:
        count = max(c for c in range(1, cores() + 1) if blocks % c == steps % c == 0)
    if count == 1:
        return [observations]
    second = observations.second

    def part(i: int) -> Observations:
        def own(a: Any) -> Any:
            size = len(a) // count
            return a[i * size : (i + 1) * size]

        some: Observations = jax.tree.map(own, replace(observations, second=None))
        return replace(some, second=second if i == 0 or second is None else np.zeros_like(second))

    return [part(i) for i in range(count)]


def assigned_of(parts: Sequence[Observations], options: Options, states: State) -> list[Assigned]:
    """What finds the labels of each part where an assignment is all that counts; else there are none.

    Nor where a pass for so many moments, clusters times features, is one kernel, which sums them faster than the host.
    """
    moments = states.statistics.moments
    shared = len(parts) > 1 and parts[0].second is not None and jax.default_backend() == "cpu"
    shared = shared and not options.whitened and parts[0].label is None and parts[0].gaps is None
    if not shared or options.responsibilities != "hard" or (options.few and moments[0].size < _HOST):
        return []
    nearest = _is_nearest(states.mixture, options)
    return [Assigned(part, moments.shape[1], nearest) for part in parts]


def _is_nearest(mixture: GaussianMixture, options: Options) -> bool:
    """Whether clusters are and stay spheres of one weight, so that all that counts is which mean is nearest."""
    held = {"covariance", "weights"} <= set(options.hold) and mixture.covariance.structure in ("EII", "E")
    return held and bool((mixture.weights == mixture.weights[..., :1]).all())


def advance_by_parts(
    states: State,
    limits: np.ndarray,
    parts: Sequence[Observations],
    beta: Any,
    rules: Rules,
    options: Options,
    pool: ThreadPoolExecutor,
    assigned: list[Assigned],
) -> State:
    """What `loop.advance` does, one start after another, with the `assigned_of` the parts."""
    ended = []
    for s, limit in enumerate(limits.tolist()):
        state = jax.tree.map(itemgetter(s), states)
        if state.code == 0 and (limit > 0 or state.skip):
            state = _climb(state, limit, parts, beta, rules, options, pool, assigned)
        else:
            state = state._replace(filled=np.zeros_like(state.filled))
        ended.append(state)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *ended)


class _Way(NamedTuple):
    """What is static of a call."""

    carried: Layout  # of a `_Carried`
    sums: Layout  # of the statistics of a part
    held: Layout  # of a `_Held`
    labelled: bool  # the host makes statistics, out of labels under the natural parameters that it is given


class _Held(NamedTuple):
    """What is the same for all calls, as one row: each array that is handed over takes the host some microseconds."""

    last: Any  # step
    beta: Any
    rules: Rules


class _Carried(NamedTuple):
    """What goes from one call to the next, as one row; what the host reads of it comes first."""

    going: Any  # whether there is a pass at this turn
    filled: Any  # as the state's own, and
    objective: Any  # the last objective
    state: State  # with room for one objective
    turn: Turn


def _climb(
    state: State,
    limit: int,
    parts: Sequence[Observations],
    beta: Any,
    rules: Rules,
    options: Options,
    pool: ThreadPoolExecutor,
    assigned: list[Assigned],
) -> State:
    """Up to so many more steps of one start."""
    sphere = float(np.ravel(state.mixture.covariance.values)[0])
    chain = None if state.chain is None else state.chain[:1]
    room = state._replace(trace=np.zeros(1), chain=chain, filled=np.zeros_like(state.filled))
    with double_precision():
        ahead = _first_turn.eval_shape(room, jax.tree.map(np.asarray, rules), options)
        turn = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), ahead)
        carried = _Carried(np.bool_(False), room.filled, np.float64(0), room, turn)
        held = Packed.by_host(_Held(state.step + limit, beta, rules))
        like = Layout.like
        way = _Way(like(carried), like(state.statistics), held.layout, bool(assigned))
        rows = way.carried.row(carried), held.row, np.zeros(way.sums.width)
        row, fixed, nothing, *numbers = jax.device_put((*rows, *np.arange(len(parts), dtype=np.int32)))
        sums = [nothing] * len(parts)

    def call(part: int, row: Array, sums: list[Any]) -> tuple[Array, Any]:
        with double_precision():
            return program(row, sums, fixed, parts[part], numbers[part], way, options)

    def labelled(part: int, natural: np.ndarray) -> np.ndarray:
        moments = assigned[part].at(natural, sphere)
        return way.sums.row(Statistics(moments, np.float64(0), np.asarray(parts[part].second)))

    # Compiled beside the program of the rest of a step.
    compiled = [pool.submit(own.compile) for own in assigned[:1]]
    objectives, moments = [], []
    program, before = _follow, None
    while True:
        follows, own = call(0, row, sums)  # before the others, which would otherwise compile the same program
        if not assigned:
            others = [pool.submit(call, i, row, sums) for i in range(1, len(parts))]
            sums = [own, *(each.result()[1] for each in others)]
        elif np.asarray(follows)[0]:  # there is a pass
            natural = np.asarray(own)
            wait(compiled)
            others = [pool.submit(labelled, i, natural) for i in range(1, len(parts))]
            sums = [labelled(0, natural), *(each.result() for each in others)]
        row = follows
        if program is _follow:
            program = _follow.chosen(row, sums, fixed, parts[0], numbers[0], way, options)
        if before is not None:
            values = np.asarray(before)
            going, filled, objective = values[:3].tolist()
            if filled > len(objectives):
                objectives.append(objective)
                if chain is not None:
                    moments.append(way.carried.restored(values[None]).state.chain[0, 0])
            if not going:
                break
        before = row
    end = jax.tree.map(itemgetter(0), way.carried.restored(values[None])).state
    trace = np.zeros_like(state.trace)
    trace[: len(objectives)] = objectives
    if chain is not None:
        chain = np.zeros_like(state.chain)
        chain[: len(moments)] = moments
    return end._replace(trace=trace, chain=chain)


def _over(way: _Way, options: Options, turn: Turn, part: Observations, number: Any, beta: Any) -> Any:
    """The pass over a part: a row of statistics."""
    if turn.draw is not None:  # each part draws on its own
        turn = turn._replace(draw=split(turn.draw, 1, number)[0])
    return way.sums.pack(e_step(turn, part, beta, options))


@partial(jax.jit, static_argnames="options")  # never compiled: its traces are kept
def _first_turn(state: State, rules: Rules, options: Options) -> Turn:
    return begin_turn(state, rules, options)


@partial(wide, static_argnames=("way", "options"))
def _follow(
    row: Float[Array, " width"],
    sums: list[Float[Array, " width"]],
    fixed: Float[Array, " width"],
    part: Observations,
    number: Array,
    way: _Way,
    options: Options,
) -> tuple[Array, Any]:
    """The end of a step of which the sums of all parts are known, the turn to the next, and its pass over one part."""
    over = partial(_over, way, options)

    def follow(
        row: Array, sums: list[Array], fixed: Array, part: Observations, number: Array
    ) -> tuple[Array, Any]:
        known, (last, beta, rules) = way.carried.unpack(row), way.held.unpack(fixed)
        statistics = reduce(add, map(way.sums.unpack, sums))
        if way.labelled:
            value = expected_log_joint(known.turn.mixture, statistics, known.turn.inverse)
            statistics = replace(statistics, objective=value)
        ended = end_turn(known.state, known.turn, statistics, rules, options)
        state = jax.tree.map(partial(lax.select, known.going), ended, known.state)
        going = (state.code == 0) & ((state.step < last) | state.skip)
        turn = begin_turn(state, rules, options)
        if way.labelled:
            own = natural_parameters(turn.mixture, turn.inverse)
        else:
            shapes = jax.eval_shape(over, turn, part, number, beta)
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            own = lax.cond(going, over, lambda *_: nothing, turn, part, number, beta)
        carried = _Carried(going, state.filled, state.trace[0], state, turn)
        return way.carried.pack(carried), own

    whole = is_whole(way.carried.shaped().state, options)
    return one_kernel(follow, whole)(row, sums, fixed, part, number)
