"""Hard responsibilities of many points where one covariance is shared, which is k-means: labels, and sums by label.

All that counts of a point is its cluster. So a compiled pass gives labels alone, and the host adds up what has one
label. Soon few labels change from one step to the next, and only what has changed is added up.

Nor is every point looked at. Where the cluster of a point is its nearest mean, a mean that moves by s changes its
distance by s at most: while the two means that moved farthest have moved less, in all, than the second nearest was
farther than the nearest, the point stays where it is. That takes one number a point, and after some steps a few
points of a hundred are left.

References:
    Hamerly (2010), Making k-means even faster: of its bounds, that on the difference of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bayesmix.blocks import aligned, chunks_of
from bayesmix.compilation import one_kernel, wide
from bayesmix.devices import double_precision
from bayesmix.observations import Observations
from bayesmix.passes import labels

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["Assigned", "sums_by_label"]

_NARROW = 20  # features, up to which one kernel finds labels: products are no more than comparisons there
_CALL = 32768  # points of a call
_MOST = 0.6  # of the points are to be looked at: then it is faster to look at all
_MANY = 8  # one of so many labels has changed: then it is faster to add up all


class _Form(NamedTuple):
    """What is static of a pass: `passes.labels`."""

    few: bool
    nearest: bool


class Assigned:
    """Labels of points, and their Σ w [1, x], under mixtures that come one after another.

    If all that counts is which mean is `nearest`, clusters being spheres of one size and weight, it looks at no more
    points than it must.
    """

    def __init__(self, observations: Observations, k: int, nearest: bool) -> None:
        x, weight = np.asarray(observations.x), np.asarray(observations.weight).reshape(-1)
        blocks, d, b = x.shape
        n = int(np.flatnonzero(weight).max(initial=-1)) + 1  # without what pads the last block
        self._rows, self._weight, self._k = np.moveaxis(x, 1, -1).reshape(-1, d)[:n], weight[:n], k
        self._form = _Form(d <= _NARROW, nearest)
        self._label = np.full(n, -1, np.int32)  # no label
        self._until = np.full(n, -np.inf, x.dtype)  # how far means may move in all until a label is in doubt,
        self._moved = 0.0  # and how far they have
        self._means = np.full((k, d), np.inf)
        self._moments = np.zeros((k, 1 + d))
        # Points of a call: all in their order, or some that are written where a program finds them when it is called.
        each = min(blocks, -(-_CALL // b))
        self._taken, self._some = np.zeros((each * b, d), x.dtype), aligned((each, d, b), x.dtype)
        with double_precision():
            self._found = jax.dlpack.from_dlpack(self._some, copy=False)
            pieces = [x[i : i + each] for i in range(0, blocks, each)]
            pieces[-1] = np.resize(pieces[-1], self._some.shape)
            self._pieces = jax.device_put(pieces, self._found.device)  # the same memory, but for the last

    def compile(self) -> None:
        """Look at no point, so that what does it is compiled."""
        self._call(self._on_device(self._moments), self._found, slice(0, 0))

    def at(self, natural: Float[np.ndarray, "k p"], sphere: float) -> Float[np.ndarray, "k p"]:
        """The sums where logits are natural @ [1, x]; the same array as before where no label has changed.

        `sphere` is the variance of all clusters, if they are spheres.
        """
        places = None
        if self._form.nearest:
            means = natural[:, 1:] * sphere
            natural = np.concatenate([-(means**2).sum(axis=1, keepdims=True) / 2, means], axis=1)
            places = self._doubtful(means)
        changed, before = [], []
        for own, label, margin in self._labels(natural, places):
            last = self._label[own]
            other = np.flatnonzero(label != last)
            if other.size:
                changed.append(other + own.start if places is None else own[other])
                before.append(last[other])
            self._label[own] = label
            self._until[own] = self._moved + margin
        if changed:
            self._add(np.concatenate(changed), np.concatenate(before))
        return self._moments

    def _labels(self, natural: np.ndarray, places: np.ndarray | None) -> Iterator[tuple[Any, ...]]:
        """What `_pass` says of all points or those in places, in stretches: which, labels, margins."""
        given, size = self._on_device(natural), len(self._taken)
        count = len(self._rows) if places is None else len(places)
        parts, calls = list(chunks_of(count, size)), []
        if places is None:  # all at once
            calls = [self._call(given, *each) for each in zip(self._pieces, parts)]
        for i, part in enumerate(parts):
            own: Any = part if places is None else places[part]
            label, margin = calls[i] if places is None else self._call(given, self._gathered(own), part)
            yield own, *(np.asarray(a)[: part.stop - part.start] for a in (label, margin))

    def _gathered(self, places: Any) -> Array:
        """These points, as a call finds them."""
        b = self._some.shape[-1]
        np.take(self._rows, places, axis=0, out=self._taken[: len(places)], mode="clip")
        used = -(-len(places) // b)
        np.copyto(self._some[:used], np.moveaxis(self._taken[: used * b].reshape(used, b, -1), 1, 2))
        return self._found

    def _on_device(self, natural: np.ndarray) -> Array:
        with double_precision():
            return jax.device_put(natural, self._found.device)

    def _call(self, natural: Array, points: Array, part: slice) -> tuple[Array, Array]:
        with double_precision():
            return _pass(natural, points, np.int64(part.stop - part.start), self._form)

    def _doubtful(self, means: Float[np.ndarray, "k d"]) -> Int[np.ndarray, " m"] | None:
        """The points of which another mean may have become the nearest, in order; none where they are most."""
        away = np.sqrt(((means - self._means) ** 2).sum(axis=1))
        self._means = means
        self._moved += float(np.sort(away)[-2:].sum())
        rounding = 4 * np.finfo(self._until.dtype).eps
        known = self._until >= self._until.dtype.type(self._moved * (1 + rounding))  # not what is NaN
        places = np.flatnonzero(~known)
        if len(places) < _MOST * len(known):
            return places
        self._moved = 0.0
        return None

    def _add(self, changed: Int[np.ndarray, " m"], before: Int[np.ndarray, " m"]) -> None:
        """Add up what has changed its label, or all if that takes less time."""
        if changed.size * _MANY > self._label.size:
            self._moments = sums_by_label(self._rows, self._weight[:, None], self._label[:, None], self._k)
            return
        # In float64, so that many small changes lose nothing.
        rows, weight = np.take(self._rows, changed, axis=0).astype(float), self._weight[changed].astype(float)
        weight, label = (
            np.stack(pair, axis=1) for pair in ((weight, -weight), (self._label[changed], before))
        )
        self._moments = self._moments + sums_by_label(rows, weight, label, self._k)


@partial(wide, static_argnames="form")
def _pass(
    natural: Float[Array, "k p"], points: Float[Array, "blocks d b"], count: Array, form: _Form
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """`passes.labels`."""

    def over(natural: Array, points: Array, count: Array) -> tuple[Array, Array]:
        return labels(natural.astype(points.dtype), points, count, *form)

    return one_kernel(over, form.few)(natural, points, count)


def sums_by_label(
    rows: Float[np.ndarray, "n d"], weight: Float[np.ndarray, "n c"], label: Int[np.ndarray, "n c"], k: int
) -> Float[np.ndarray, "k p"]:
    """Σ w [1, x] over the points of each label, of which a point may have several, each with a weight.

    A sparse product, which takes d sums a point where a mask takes k d.
    """
    from scipy.sparse import csc_array

    n, d = rows.shape
    each = weight.shape[1]
    sums = np.zeros((k, 1 + d))
    sums[:, 0] = np.bincount(label.ravel(), weight.ravel(), k)
    # Rows few enough to add in float32, and many enough that threads seldom wait for each other's Python.
    for part in chunks_of(n, 16384):
        ends = np.arange(0, each * (part.stop - part.start) + 1, each, dtype=np.int32)
        mask = csc_array((weight[part].ravel(), label[part].ravel(), ends), (k, len(ends) - 1))
        sums[:, 1:] += mask @ rows[part]
    return sums
