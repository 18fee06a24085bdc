"""Many small arrays as one row of float64, which a program is handed, copies and hands back as one.

Each array of a call takes the host some ten microseconds there and back, which is a step of EM on few points.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

__all__ = ["Layout"]


class Layout(NamedTuple):
    """Where each array of a pytree is in its row; whole numbers, below 2^53, and truth values are numbers there."""

    form: Any
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]

    @classmethod
    def of(cls, stacked: Any) -> Layout:
        """That of pytrees which are stacked, along the first axis."""
        leaves, form = jax.tree.flatten(stacked)
        return cls(form, tuple(a.shape[1:] for a in leaves), tuple(str(a.dtype) for a in leaves))

    def rows(self, stacked: Any) -> Float[np.ndarray, "n width"]:
        """One for each of stacked pytrees."""
        leaves = jax.tree.leaves(stacked)
        return np.concatenate([a.reshape(len(a), -1).astype(np.float64) for a in leaves], axis=1)

    def views(self, rows: Float[np.ndarray, "n width"]) -> Any:
        """Stacked pytrees whose arrays, all of float64, are parts of the rows: what is written to them is there."""
        parts = [
            rows[:, place].reshape(len(rows), *shape)
            for place, shape in zip(_places(self.shapes), self.shapes)
        ]
        return jax.tree.unflatten(self.form, parts)

    def unpack(self, row: Float[Array, " width"]) -> Any:
        """The pytree of a row, with the types that it had; traceable."""
        parts = [
            row[place].reshape(shape).astype(code)
            for place, shape, code in zip(_places(self.shapes), self.shapes, self.types)
        ]
        return jax.tree.unflatten(self.form, parts)

    def pack(self, tree: Any) -> Float[Array, " width"]:
        """The row of a pytree; traceable."""
        return lax.concatenate([jnp.ravel(a).astype(jnp.float64) for a in jax.tree.leaves(tree)], 0)


@cache
def _places(shapes: tuple[tuple[int, ...], ...]) -> list[slice]:
    ends = list(accumulate(map(math.prod, shapes)))
    return [slice(first, end) for first, end in zip([0, *ends], ends)]
