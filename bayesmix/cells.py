"""Every cell of k × structure fitted by a handful of compiled programs.

Structures of one storage differ in a small M-step only, and a mixture of k clusters is one of K whose other weights
are zero. So cells are padded to the largest k and share one program a storage: full, diagonal, spherical. Starts are
partitions that all structures share. Every start of every cell runs for a few steps; the first, the agglomerated one,
goes on to its end, and then those that are headed above the best clean end of the cell, one after another. A cell
that ends below the one with a cluster less starts again from that one, a large cluster split. Independent batches
run on as many threads as there are cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesmix import density
from bayesmix.covariance import Covariance
from bayesmix.groups import (
    BATCH,
    Cell,
    Group,
    advance_some,
    group_cells,
    judge_start,
    limits,
    mixture_of_start,
    pending,
    split_smaller,
    winner,
)
from bayesmix.inputs import cores, double_precision
from bayesmix.loop import Options
from bayesmix.mixture import GaussianMixture
from bayesmix.partitions import Starts
from bayesmix.statistics import Observations
from bayesmix.verdict import AGREE, Verdict

__all__ = ["CellFit", "fit_cells"]

_FIRST = 12  # steps of every start, before only the best of each cell goes on
_MORE = 200  # steps a call after that
_RESCUES = 10  # rounds in which cells below those with a cluster less start from them


@dataclass(frozen=True)
class CellFit:
    """Where a cell came to, in the data's own units."""

    mixture: GaussianMixture
    log_likelihood: float
    classification_log_likelihood: float
    entropy: float
    verdict: Verdict
    gain: float
    n_steps: int
    n_starts: int
    n_agree: int
    n_spurious: int
    degenerate: str


def fit_cells(
    x: np.ndarray,
    weight: np.ndarray,
    cells: Sequence[Cell],
    starts: Starts,
    *,
    hold: tuple[str, ...],
    tol: float,
    max_steps: int,
    accelerate: bool | None,
    progress: Callable[[Cell], None],
) -> dict[Cell, CellFit]:
    """Fit every cell; `progress` is called as each ends.

    Args:
        x: all rows of positive weight (n, d), in the data's units.
        weight: (n,).
        cells: k at most n.
        starts: partitions of some rows, for each k.
        hold: as in `fit`.
        tol: as in `fit`.
        max_steps: of a start, about.
        accelerate: as in `fit`.
        progress: told of each cell.
    """
    groups = group_cells(x, weight, cells, starts, hold, tol, accelerate)

    def run(jobs: list[tuple[Group, np.ndarray, int]]) -> None:
        """Take some starts of a group so many steps further, batch by batch, on all cores."""
        batches = []
        for group, chosen, steps in jobs:
            for flag in (False, True):
                some = chosen[group.whitened[chosen] == flag]
                for i in range(0, len(some), BATCH):
                    batches.append((group, some[i : i + BATCH], steps, Options("soft", hold, flag)))
        # One batch of each program first, so that threads do not compile the same one twice.
        seen: set[Any] = set()
        firsts = [b for b in batches if not (_shape(b) in seen or seen.add(_shape(b)))]
        rest = [b for b in batches if not any(b is f for f in firsts)]
        for part in (firsts, rest):
            for _ in pool.map(lambda b: advance_some(*b), part):
                pass

    def finish(told: set[Cell]) -> None:
        """Take on what goes on until nothing does."""
        while True:
            jobs = []
            for group in groups:
                goes_on = pending(group, max_steps)
                open_cells = {group.cells[group.of[s]] for s in goes_on}
                for cell in group.cells:
                    if cell not in open_cells and cell not in told:
                        told.add(cell)
                        progress(cell)
                if len(goes_on):
                    jobs.append((group, goes_on, _MORE))
            if not jobs:
                return
            run(jobs)

    with ThreadPoolExecutor(cores()) as pool:
        run([(group, np.arange(len(group.of)), _FIRST) for group in groups])
        told: set[Cell] = set()
        finish(told)
        for _ in range(_RESCUES):
            added = [(group, split_smaller(group), _FIRST) for group in groups]
            if not any(len(chosen) for _, chosen, _ in added):
                break
            run(added)
            finish(told)
    return _report(x, weight, groups)


def _shape(batch: tuple[Group, np.ndarray, int, Options]) -> Any:
    group, _, _, options = batch
    return group.problem.structure.storage, options


def _report(x: np.ndarray, weight: np.ndarray, groups: list[Group]) -> dict[Cell, CellFit]:
    """Winners in the data's units, with the sums over the data that the criteria need: one program for all."""
    wide = groups[0].problem
    largest = groups[0].states.mixture.means.shape[1]
    winners = [(group, winner(group, index)) for group in groups for index in range(len(group.cells))]
    outer = [group.problem.units.leave(mixture_of_start(group, s)) for group, s in winners]
    padded = [_padded(wide.units.enter(_dense(mixture)), largest) for mixture in outer]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    with double_precision():
        sums = np.asarray(_sums(stacked, wide.observations))
    moved = wide.units.log_volume * wide.w.sum()
    ends = {id(group): limits(group) for group in groups}
    found = {}
    for (group, s), mixture, (total, top, entropy) in zip(winners, outer, sums):
        cell = group.cells[group.of[s]]
        own = np.flatnonzero(group.of == group.of[s])
        judged = [judge_start(group, o) for o in own.tolist()]
        best = judge_start(group, s)
        target = group.states.statistics.objective[s] - AGREE
        agree = [v.clean == best.clean and ends[id(group)][o] >= target for o, v in zip(own, judged)]
        dtype = x.dtype
        values = Covariance(mixture.covariance.values.astype(dtype), mixture.structure)
        found[cell] = CellFit(
            replace(
                mixture,
                weights=mixture.weights.astype(dtype),
                means=mixture.means.astype(dtype),
                covariance=values,
            ),
            float(total + moved),
            float(top + moved),
            float(entropy),
            best,
            float(group.states.gain[s]),
            int(group.states.step[s]),
            len(own),
            int(np.sum(agree)),
            sum(not v.clean for v in judged),
            group.problem.units.degenerate,
        )
    return found


def _dense(mixture: GaussianMixture) -> GaussianMixture:
    return replace(mixture, covariance=Covariance(np.array(mixture.covariances, np.float64), "VVV"))


def _padded(mixture: GaussianMixture, largest: int) -> GaussianMixture:
    k, d = mixture.means.shape
    extra = largest - k
    identity = np.broadcast_to(np.eye(d), (extra, d, d))
    return GaussianMixture(
        np.append(mixture.weights, np.zeros(extra)),
        np.concatenate([mixture.means, np.zeros((extra, d))]),
        Covariance(np.concatenate([mixture.covariance.values, identity]), "VVV"),
    )


@jax.jit
def _sums(mixtures: GaussianMixture, observations: Observations) -> Array:
    """Weighted sums of log density, largest log joint and entropy, of each mixture."""

    def one(mixture: GaussianMixture) -> Array:
        factor, _ = density.precision_factor(mixture.covariance, mixture.n_features)

        def block(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            x, weight = pair
            sums = density.report(mixture, x, factor)[:3] @ weight
            return total + sums.astype(float), None

        return jax.lax.scan(block, jnp.zeros(3), (observations.x, observations.weight))[0]

    return jax.lax.map(one, mixtures)
