"""Many small arrays as one row of float64, which a program is handed, copies and hands back as one.

Each array of a call takes the host some ten microseconds there and back, which is a step of EM on few points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["Layout", "Packed", "arrays_of", "row_of"]


class Layout(NamedTuple):
    """Where each array of a pytree is in its row; whole numbers, below 2^53, and truth values are numbers there."""

    form: Any
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]

    @classmethod
    def like(cls, tree: Any) -> Layout:
        """That of a pytree."""
        leaves, form = jax.tree.flatten(tree)
        return cls(form, tuple(a.shape for a in leaves), tuple(a.dtype.str for a in leaves))

    @classmethod
    def of(cls, stacked: Any) -> Layout:
        """That of pytrees which are stacked, along the first axis."""
        whole = cls.like(stacked)
        return whole._replace(shapes=tuple(shape[1:] for shape in whole.shapes))

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return sum(map(math.prod, self.shapes))

    def shaped(self) -> Any:
        """A pytree of arrays of these shapes, of no meaning."""
        return jax.tree.unflatten(self.form, [np.empty(shape) for shape in self.shapes])

    def row(self, tree: Any) -> Float[np.ndarray, " width"]:
        """That of one pytree, on the host."""
        return np.concatenate([np.ravel(a).astype(np.float64) for a in jax.tree.leaves(tree)])

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
        return jax.tree.unflatten(self.form, arrays_of(row, self.shapes, self.types))

    def pack(self, tree: Any) -> Float[Array, " width"]:
        """The row of a pytree; traceable."""
        return row_of(jax.tree.leaves(tree))

    def restored(self, rows: Float[np.ndarray, "n width"]) -> Any:
        """Stacked pytrees with the types that they had, that can be written to."""
        views, form = jax.tree.flatten(self.views(rows))
        return form.unflatten([view.astype(code) for view, code in zip(views, self.types)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A pytree as its row, as which a program hands it from one of its kernels to the next; traceable."""

    row: Float[Array, " width"]
    layout: Layout = field(metadata={"static": True})

    @classmethod
    def of(cls, tree: Any) -> Packed:
        return cls(row_of(jax.tree.leaves(tree)), Layout.like(tree))

    @classmethod
    def by_host(cls, tree: Any) -> Packed:
        """The same of NumPy's arrays and Python's numbers, as NumPy's."""
        tree = jax.tree.map(np.asarray, tree)
        layout = Layout.like(tree)
        row: Any = layout.row(tree)
        return cls(row, layout)

    @property
    def tree(self) -> Any:
        return self.layout.unpack(self.row)

    def leaf(self, of: Callable[[Any], Any]) -> Array:
        """One array of the tree, without the others."""
        shapes, types = self.layout.shapes, self.layout.types
        i = of(jax.tree.unflatten(self.layout.form, range(len(shapes))))
        part = lax.slice_in_dim(self.row, _places(shapes)[i].start, _places(shapes)[i].stop)
        return lax.convert_element_type(lax.reshape(part, shapes[i]), types[i])


def row_of(arrays: list[Array]) -> Float[Array, " width"]:
    """Arrays as one; traceable, without the checks of `jax.numpy`, which take longer than all else here."""
    return lax.concatenate(
        [lax.convert_element_type(lax.reshape(a, (a.size,)), np.float64) for a in arrays], 0
    )


def arrays_of(
    row: Float[Array, " width"], shapes: Sequence[tuple[int, ...]], types: Sequence[Any]
) -> list[Array]:
    """The arrays of a row; traceable."""
    parts = lax.split(row, list(map(math.prod, shapes)))
    return [
        lax.convert_element_type(lax.reshape(part, shape), code)
        for part, shape, code in zip(parts, shapes, types)
    ]


@cache
def _places(shapes: tuple[tuple[int, ...], ...]) -> list[slice]:
    ends = list(accumulate(map(math.prod, shapes)))
    return [slice(first, end) for first, end in zip([0, *ends], ends)]
