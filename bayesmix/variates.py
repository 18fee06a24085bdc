"""Random numbers of other laws out of uniform ones, without a loop: a fraction of `jax.random`'s kernels to compile.

References:
    Box & Muller (1958), A note on the generation of random normal deviates, Annals of Mathematical Statistics 29.
    Marsaglia & Tsang (2000), A simple method for generating gamma variables, ACM TOMS 26.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["PER_GAMMA", "indices", "log_gamma", "log_gamma_of", "normal_of", "uniform", "wishart_factor"]

_TRIES = 13  # proposals for a gamma number
PER_GAMMA = 3 * _TRIES + 1  # uniform numbers that one takes


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform numbers above 0, so that their logs are finite, and at most 1."""
    return 1 - jax.random.uniform(key, shape, float)


def normal_of(uniform: Float[Array, "2 ..."]) -> Array:
    """Normal numbers out of pairs of uniform ones, by Box and Muller."""
    return jnp.sqrt(-2 * jnp.log(uniform[0])) * jnp.cos(2 * math.pi * uniform[1])


def log_gamma_of(uniform: Float[Array, "u n"], shape: Float[Array, " n"]) -> Float[Array, " n"]:
    """Logs of gamma numbers: the first of `_TRIES` proposals that passes Marsaglia and Tsang's test.

    Each passes with a probability of at least 0.95, so that none passes less often than a 53-bit number rounds to zero;
    a loop until one passes would take three times as long to compile.
    """
    enlarged = jnp.where(shape < 1, shape + 1, shape)
    scale = enlarged - 1 / 3
    normal = normal_of(uniform[:-1].reshape(3, _TRIES, -1))
    cube = (1 + normal / jnp.sqrt(9 * scale)) ** 3
    log_cube = jnp.log(jnp.where(cube > 0, cube, 1))
    test = normal**2 / 2 + scale * (1 - cube + log_cube)
    passes = (cube > 0) & (jnp.log(uniform[2 * _TRIES : -1]) < test)
    first = jnp.argmax(passes, axis=0)
    chosen = jnp.take_along_axis(log_cube, first[None], axis=0)[0]
    return jnp.log(scale) + chosen + jnp.where(shape < 1, jnp.log(uniform[-1]) / shape, 0)


def log_gamma(key: Array, shape: Float[Array, ...]) -> Float[Array, ...]:
    """Logs of gamma numbers of these shapes and scale one."""
    flat = jnp.ravel(shape)
    return log_gamma_of(uniform(key, (PER_GAMMA, flat.size)), flat).reshape(shape.shape)


def wishart_factor(root: Float[Array, "*n d"], uniform: Float[Array, "2 *n d d"]) -> Float[Array, "*n d d"]:
    """Bartlett's lower factor of a Wishart of unit scale; `root` are roots of chi-squares of nu, nu - 1, ..."""
    return jnp.tril(normal_of(uniform), -1) + root[..., None] * jnp.eye(root.shape[-1])


def indices(weight: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn with chances proportional to weight, never one of weight zero, however u rounds. NumPy's."""
    reached = np.cumsum(weight, dtype=np.float64)
    index = np.searchsorted(reached, rng.random(size) * reached[-1], side="right")
    return np.minimum(index, np.flatnonzero(weight)[-1])
