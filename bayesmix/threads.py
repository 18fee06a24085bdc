"""The same loop with its passes over the data shared among threads, for data of which a pass takes milliseconds.

XLA runs a program of small blocks on one core. Here the host turns the loop: the E-step of each part of the blocks is
a call of its own, in a thread of its own, and statistics add; the end of the step and the next M-step are one small
program. That costs one or two milliseconds a step, and no more programs are compiled than would be without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from operator import add, itemgetter
from typing import Any

import jax
import numpy as np
from jax import lax

from bayesmix.assignments import labels, sums_by_label
from bayesmix.compilation import wide
from bayesmix.devices import double_precision
from bayesmix.inputs import cores
from bayesmix.loop import Options, Rules, State, Turn, begin_turn, e_step, end_turn
from bayesmix.observations import Observations
from bayesmix.statistics import Statistics
from bayesmix.variates import split

__all__ = ["advance_by_parts", "parts_of", "tables_of"]

# Products n k p of a pass, some six milliseconds on one core: to share a step costs up to two.
_WORTH = 2e7


def parts_of(observations: Observations, products: float) -> list[Observations]:
    """The blocks in equal parts, one a thread; a single part where a pass of so many products is too short for that.

    The total second moment stays with the first part, so that statistics of the parts add up to those of the whole.
    """
    blocks = observations.x.shape[0]
    count = 1
    if products > _WORTH and isinstance(observations.x, np.ndarray):  # not on a device
        count = max(c for c in range(1, cores() + 1) if blocks % c == 0)
    if count == 1:
        return [observations]
    size = blocks // count
    second = observations.second
    return [
        Observations(
            observations.x[first : first + size],
            observations.weight[first : first + size],
            second if first == 0 or second is None else np.zeros_like(second),
        )
        for first in range(0, blocks, size)
    ]


def tables_of(parts: Sequence[Observations], options: Options) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Rows and weights of each part where an assignment is all that counts, so that its sums are made on the host.

    Not where a pass is one kernel, which makes them faster.
    """
    if len(parts) == 1 or options.few or options.responsibilities != "hard" or parts[0].second is None:
        return None
    return [
        (
            np.moveaxis(np.asarray(part.x), 1, -1).reshape(-1, part.x.shape[1]),
            np.asarray(part.weight).reshape(-1),
        )
        for part in parts
    ]


def advance_by_parts(
    states: State,
    limits: np.ndarray,
    parts: Sequence[Observations],
    beta: Any,
    rules: Rules,
    options: Options,
    pool: ThreadPoolExecutor,
    tables: list[tuple[np.ndarray, np.ndarray]] | None,
    *,
    new: bool,
) -> State:
    """What `loop.advance` does, one start after another, with the `tables_of` the parts.

    Of a `new` call the first parts go one by one: otherwise each thread would compile the same program.
    """

    # Handed over once, as `drive` does with all else: at each of the calls it would take longer than the M-step.
    numbers = jax.device_put([np.int32(i) for i in range(len(parts))])

    def pass_over(turn: Turn, part: int) -> Statistics:
        with double_precision():
            if tables is None:
                return jax.block_until_ready(_part(turn, parts[part], numbers[part], beta, options))
            label, objective = _labels(turn, parts[part])
            moments = sums_by_label(*tables[part], np.asarray(label).reshape(-1), turn.mixture.n_components)
            return Statistics(moments, objective, parts[part].second)

    def climb(state: State, limit: int, alone: bool) -> State:
        last = int(state.step) + limit
        state = jax.device_put(state._replace(filled=np.zeros_like(state.filled)))
        ahead = _look_ahead.eval_shape(state, parts[0], beta, rules, options)
        turn, statistics = jax.device_put(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), ahead))
        sums = [statistics] * len(parts)
        begun = False
        while not begun or (int(state.code) == 0 and (int(state.step) < last or bool(state.skip))):
            if begun:
                others = [] if alone else [pool.submit(pass_over, turn, i) for i in range(1, len(parts))]
                sums = [pass_over(turn, i) for i in range(len(parts) - len(others))]
                sums += [other.result() for other in others]
                alone = False
            state, turn = _next(state, turn, sums, begun, rules, options)
            begun = True
        return state

    ended = []
    for s, limit in enumerate(limits.tolist()):
        state = jax.tree.map(itemgetter(s), states)
        if state.code == 0 and (limit > 0 or state.skip):
            state = climb(state, limit, new and not ended)
        else:
            state = state._replace(filled=np.zeros_like(state.filled))
        ended.append(state)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *ended)


@partial(jax.jit, static_argnames="options")  # never compiled: its traces are kept
def _look_ahead(
    state: State, part: Observations, beta: Any, rules: Rules, options: Options
) -> tuple[Turn, Statistics]:
    turn = begin_turn(state, rules, options)
    return turn, e_step(turn, part, beta, options)


@partial(wide, static_argnames="options")
def _next(
    state: State, turn: Turn, parts: list[Statistics], begun: Any, rules: Rules, options: Options
) -> tuple[State, Turn]:
    """The end of this step, if one was begun, and the turn to the next."""
    ended = end_turn(state, turn, reduce(add, parts), rules, options)
    state = jax.tree.map(partial(lax.select, begun), ended, state)
    return state, begin_turn(state, rules, options)


@wide
def _labels(turn: Turn, observations: Observations) -> tuple[Array, Array]:
    return labels(turn.mixture, observations, turn.inverse)


@partial(wide, static_argnames="options")
def _part(turn: Turn, observations: Observations, part: Any, beta: Any, options: Options) -> Statistics:
    if turn.draw is not None:  # each part draws on its own
        turn = turn._replace(draw=split(turn.draw, 1, part)[0])
    return e_step(turn, observations, beta, options)
