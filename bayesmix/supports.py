"""Where weights and precision factors live, as NumPyro supports, and the unconstrained numbers that stand for them.

NumPyro has a map for either, which compiles to several times the code: sticks broken off one after another, and indices
of a triangle that the program works out each time. These are one product each, and that of the weights treats all
clusters alike.

This module imports NumPyro; import it where it is used.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ParameterFreeTransform, biject_to

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["lower_cholesky", "simplex"]


# NumPyro exports what is of these classes, and not the classes.
_Base: tuple[Any, Any] = type(constraints.simplex), type(constraints.lower_cholesky)


class _Simplex(_Base[0]):
    """NumPyro's simplex, reached by isometric log ratios."""


class _LowerCholesky(_Base[1]):
    """NumPyro's lower triangles with a positive diagonal."""


simplex = _Simplex()
lower_cholesky = _LowerCholesky()


@biject_to.register(simplex)
class LogRatios(ParameterFreeTransform):
    """k - 1 numbers to k weights: softmax of their sums along an orthonormal basis of what sums to zero.

    References:
        Egozcue, Pawlowsky-Glahn, Mateu-Figueras & Barceló-Vidal (2003), Isometric logratio transformations for
        compositional data analysis, Mathematical Geology 35.
    """

    domain: Any = constraints.real_vector
    codomain: Any = simplex

    def __init__(self, support: Any = simplex) -> None:
        super().__init__()

    def __call__(self, x: Float[Array, "*n k-1"]) -> Float[Array, "*n k"]:
        weights = jax.nn.softmax(x @ _basis(x.shape[-1] + 1), axis=-1)
        return jnp.maximum(weights, jnp.finfo(weights.dtype).tiny)

    def _inverse(self, y: Float[Array, "*n k"]) -> Float[Array, "*n k-1"]:
        return jnp.log(jnp.maximum(y, jnp.finfo(y.dtype).tiny)) @ _basis(y.shape[-1]).T

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return jnp.sum(jnp.log(y), axis=-1) + math.log(y.shape[-1]) / 2

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:-1], shape[-1] + 1

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:-1], shape[-1] - 1


def _basis(k: int) -> Float[np.ndarray, "k-1 k"]:
    """Helmert's: row i sets cluster i + 1 against those before it."""
    i = np.arange(1, k)[:, None]
    columns = np.arange(k)
    return np.where(columns < i, 1, np.where(columns == i, -i, 0)) / np.sqrt(i * (i + 1))


@biject_to.register(lower_cholesky)
class LowerTriangle(ParameterFreeTransform):
    """d (d + 1) / 2 numbers to a lower triangle: what is below the diagonal row by row, then the diagonal's logs."""

    domain: Any = constraints.real_vector
    codomain: Any = lower_cholesky

    def __init__(self, support: Any = lower_cholesky) -> None:
        super().__init__()

    def __call__(self, x: Float[Array, "*n p"]) -> Float[Array, "*n d d"]:
        d = _side(x.shape[-1])
        below, logs = x[..., :-d], x[..., -d:]
        starts = [i * (i - 1) // 2 for i in range(d + 1)]
        rows = [
            jnp.pad(below[..., start:end], [(0, 0)] * (x.ndim - 1) + [(0, d - (end - start))])
            for start, end in itertools.pairwise(starts)
        ]
        return jnp.stack(rows, axis=-2) + jnp.exp(logs)[..., None] * np.eye(d)

    def _inverse(self, y: Float[Array, "*n d d"]) -> Float[Array, "*n p"]:
        rows, columns = np.tril_indices(y.shape[-1], -1)
        logs = jnp.log(jnp.diagonal(y, axis1=-2, axis2=-1))
        return jnp.concatenate([y[..., rows, columns], logs], axis=-1)

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return jnp.sum(x[..., -_side(x.shape[-1]) :], axis=-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        d = _side(shape[-1])
        return *shape[:-1], d, d

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:-2], shape[-1] * (shape[-1] + 1) // 2


def _side(p: int) -> int:
    """d of d (d + 1) / 2 numbers."""
    return (math.isqrt(8 * p + 1) - 1) // 2
