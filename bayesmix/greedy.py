"""The clustering that is nearest to all draws on average, by greedy search (SALSO).

With n_a, n_b the sizes of the clusters of two clusterings and n_ab those of their intersections, both losses are

    scale · [ Σ_a h(n_a) + Σ_b h(n_b) - 2 Σ_ab h(n_ab) ]

    variation of information    h(m) = m log m,    scale = 1 / n              nats, from 0 to log n
    Binder's loss               h(m) = m²,         scale = 1 / (n (n - 1))    share of the pairs that only one joins

Both are metrics. Their averages over the draws are exact: no lower bound stands in for E[VI]. A point that moves
changes few of the counts n_ab, so what a move is worth comes from looking them up in a table of differences of h.

Rows that are together in every draw move together, and nothing is lost. Let i and j be such rows, in two clusters of
sizes p and q, of which a and b share i's and j's cluster in a draw. Moving i to j, and j to i, change the loss by two
numbers with the sum D(p) + D(q) - 2 E[D(a) + D(b)], where D(m) = h(m + 1) - 2 h(m) + h(m - 1) is positive and does not
rise. As a <= p and b <= q, the sum is at most -D(p) - D(q): one of the two moves improves, so an optimum keeps i and j
together.

References:
    Dahl, Johnson & Müller (2022), Search algorithms and loss functions for Bayesian clustering, JCGS 31, 1189-1201.
    Meilă (2007), Comparing clusterings: an information based distance, J. Multivariate Analysis 98, 873-895.
    Binder (1978), Bayesian cluster analysis, Biometrika 65, 31-38.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bayesmix.allocations import Clusterings
from bayesmix.progress import Progress

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["LOSSES", "Loss", "distances_to", "search"]

_TINY = 1e-9  # a change of the bracket above that is rounding
_ATTEMPTS = 10  # clusters that a start takes apart, at most


class Loss(NamedTuple):
    """A name in words, h of counts, the scale by n, and the unit."""

    words: str
    h: Callable[[np.ndarray], np.ndarray]
    scale: Callable[[int], float]
    unit: str


LOSSES: dict[str, Loss] = {
    "vi": Loss("variation of information", lambda m: m * np.log(np.maximum(m, 1)), lambda n: 1 / n, " nats"),
    "binder": Loss("Binder loss", np.square, lambda n: 1 / max(n * (n - 1), 1), " of all pairs"),
}


class _Clustering:
    """A clustering of the groups that is being changed, with its counts n_ab against every draw; -1 is nowhere yet."""

    def __init__(self, draws: Clusterings, loss: Loss, most: int) -> None:
        m, u = draws.labels.shape
        n = int(draws.size.sum())
        self._draws, self._share = draws, draws.share
        self._h = loss.h(np.arange(n + 1.0))
        self._gains = {int(c): self._h[c:] - self._h[:-c] for c in np.unique(draws.size)}
        self._first = np.arange(u) * draws.n_labels  # of each draw's rows in `counts`
        self._looked, self._worth = np.empty((u, most), np.int32), np.empty((u, most))
        self.labels, self.sizes = np.full(m, -1), np.zeros(most, np.intp)
        self.counts = np.zeros((u * draws.n_labels, most), np.int32)

    def costs(self, group: int) -> Float[np.ndarray, " most"]:
        """By how much the loss, unscaled, rises if a group that is nowhere joins each cluster; of empty ones alike."""
        own, size, sizes = self.labels[group], int(self._draws.size[group]), self.sizes
        self.counts.take(self._place(group), axis=0, out=self._looked, mode="clip")
        if own >= 0:  # as if it had been taken out
            self._looked[:, own] -= size
            sizes = sizes.copy()
            sizes[own] -= size
        gain = self._gains[size]
        gain.take(self._looked, out=self._worth, mode="clip")
        return gain[sizes] - 2 * (self._share @ self._worth)

    def move(self, group: int, to: int) -> None:
        own, size, place = self.labels[group], self._draws.size[group], self._place(group)
        for cluster, change in ((own, -size), (to, size)):
            if cluster >= 0:
                self.counts[place, cluster] += change
                self.sizes[cluster] += change
        self.labels[group] = to

    def settle(self, order: np.ndarray) -> int:
        """Each group to where it costs least; how many moved."""
        moved = 0
        for group in order.tolist():
            own, costs = self.labels[group], self.costs(group)
            to = int(costs.argmin())
            if own < 0 or costs[to] < costs[own] - _TINY:
                self.move(group, to)
                moved += 1
        return moved

    def sweep(self, generator: np.random.Generator) -> None:
        """Again and again, in a random order each time, until no group moves."""
        while self.settle(generator.permutation(self.labels.size)):
            pass

    def take_apart(self, cluster: int, generator: np.random.Generator) -> bool:
        """A whole cluster's groups placed anew one by one; undone unless the loss falls."""
        saved, before = (self.labels.copy(), self.sizes.copy(), self.counts.copy()), self.expected()
        members = np.flatnonzero(self.labels == cluster)
        self.labels[members], self.sizes[cluster], self.counts[:, cluster] = -1, 0, 0
        self.settle(generator.permutation(members))
        better = self.expected() < before - _TINY
        if not better:
            self.labels, self.sizes, self.counts = saved
        return better

    def expected(self) -> float:
        """What of the loss depends on this clustering, unscaled, on average over the draws."""
        return float(self.bracket() @ self._share)

    def bracket(self) -> Float[np.ndarray, " u"]:
        """Σ_a h(n_a) - 2 Σ_ab h(n_ab) for each distinct draw."""
        both = self._h.take(self.counts).reshape(self._first.size, -1).sum(axis=1)
        return self._h[self.sizes].sum() - 2 * both

    def _place(self, group: int) -> np.ndarray:
        return self._first + self._draws.labels[group]


def distances_to(draws: Clusterings, loss: Loss, labels: Int[np.ndarray, " m"]) -> Float[np.ndarray, " u"]:
    """The loss of a clustering of the groups against each distinct draw."""
    state = _given(draws, loss, labels, int(labels.max()) + 1)
    sizes = state.counts.sum(axis=1).reshape(draws.count.size, -1)
    n = int(draws.size.sum())
    return np.maximum(loss.scale(n) * (state.bracket() + loss.h(sizes.astype(float)).sum(axis=1)), 0)


def _given(draws: Clusterings, loss: Loss, labels: np.ndarray, most: int) -> _Clustering:
    """The state of given labels; those from `most` on stay nowhere."""
    state = _Clustering(draws, loss, most)
    u, k = draws.count.size, draws.n_labels
    for cluster in range(most):
        member = np.flatnonzero(labels == cluster)
        at = state._first + draws.labels[member]
        weight = np.broadcast_to(draws.size[member, None], at.shape)
        state.counts[:, cluster] = np.bincount(at.ravel(), weight.ravel(), u * k)
        state.sizes[cluster] = draws.size[member].sum()
        state.labels[member] = cluster
    return state


def search(
    draws: Clusterings, loss: Loss, most: int, n_starts: int, generator: np.random.Generator
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " starts"]]:
    """The best clustering of the groups that several starts found, and the loss that each of them reached.

    Every second start is a draw; the others place the groups one by one in a random order, each where it costs least
    given those before. Then groups move one by one until none does, and clusters are taken apart whole.

    Args:
        draws: what to be near to.
        loss: a row of `LOSSES`.
        most: clusters, at most.
        n_starts: how many starts.
        generator: of the orders and draws.
    """
    found, reached = [], []
    for start in Progress("partition", "starts", n_starts).over(range(n_starts)):
        nowhere = np.full(draws.size.size, -1)
        drawn = draws.labels[:, draws.draw[generator.integers(draws.draw.size)]]
        state = _given(draws, loss, nowhere if start % 2 else drawn, most)
        state.settle(generator.permutation(np.flatnonzero(state.labels < 0)))
        state.sweep(generator)
        for cluster in generator.permutation(np.flatnonzero(state.sizes))[:_ATTEMPTS].tolist():
            if state.sizes[cluster] and state.take_apart(cluster, generator):
                state.sweep(generator)
        found.append(state.labels)
        reached.append(float(distances_to(draws, loss, state.labels) @ draws.share))
    return found[int(np.argmin(reached))], np.array(reached)
