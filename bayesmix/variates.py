"""Random numbers for compiled code, without a loop: a fraction of `jax.random`'s kernels to compile and to run.

Bits come from Threefry with 20 rounds, JAX's own generator, whose loop over the rounds is a program by itself for each
call. A key is two words, as `jax.random.key_data` has them.

References:
    Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC11.
    Box & Muller (1958), A note on the generation of random normal deviates, Annals of Mathematical Statistics 29.
    Marsaglia & Tsang (2000), A simple method for generating gamma variables, ACM TOMS 26.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesmix.elementary import cos_turn, log_positive

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = [
    "PER_GAMMA", "indices", "log_gamma", "log_gamma_of", "normal_of", "split", "uniform", "wishart_factor", "words_of",
]  # fmt: skip

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)
_TRIES = 13  # proposals for a gamma number
PER_GAMMA = 3 * _TRIES + 1  # uniform numbers that one takes


def _threefry(words: Array, n: int, stream: Any = 0, first: Any = 0) -> tuple[Array, Array]:
    """Two random words (n,) for each of n counters of a stream, from the first on."""
    keys = words[0], words[1], words[0] ^ words[1] ^ _PARITY
    a = jnp.arange(n, dtype=jnp.uint32) + jnp.asarray(first, jnp.uint32) + keys[0]
    b = jnp.broadcast_to(jnp.asarray(stream, jnp.uint32) + keys[1], (n,))
    for i in range(5):
        for turn in _ROTATIONS[i % 2]:
            a = a + b
            b = ((b << turn) | (b >> (32 - turn))) ^ a
        a, b = a + keys[(i + 1) % 3], b + (keys[(i + 2) % 3] + np.uint32(i + 1))
    return a, b


def words_of(key: Array) -> Array:
    """The two words of a JAX key of whatever kind."""
    return jax.random.bits(key, (2,), jnp.uint32)


def split(words: Array, n: int, stream: Any = 0) -> Array:
    """Keys (n, 2) out of one, others for each stream, none of them of the counters that `uniform` takes."""
    return jnp.stack(_threefry(words, n, stream + 1), axis=1)


def uniform(words: Array, shape: tuple[int, ...], dtype: Any = float, first: Any = 0) -> Array:
    """Uniform numbers above 0, so that their logs are finite, and at most 1; `first` of them are left out."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    high, low = _threefry(words, math.prod(shape), first=first)
    if dtype == jnp.float64:
        word = jnp.uint64
        bits = (high.astype(word) << 20) | (low.astype(word) >> 12) | np.uint64(1023 << 52)
    else:
        word = jnp.uint32
        bits = (high >> 9) | np.uint32(127 << 23)
    below = jax.lax.bitcast_convert_type(bits, dtype) - 1  # of numbers from 1 to 2 all bits are set alike
    # Kept, where XLA would compute them again in each kernel that reads them.
    return jax.lax.optimization_barrier(1 - below).reshape(shape)


def normal_of(uniform: Float[Array, "2 ..."]) -> Array:
    """Normal numbers out of pairs of uniform ones, by Box and Muller."""
    return jnp.sqrt(-2 * log_positive(uniform[0])) * cos_turn(uniform[1])


def log_gamma_of(uniform: Float[Array, "u n"], shape: Float[Array, " n"]) -> Float[Array, " n"]:
    """Logs of gamma numbers: the first of `_TRIES` proposals that passes Marsaglia and Tsang's test.

    Each passes with a probability of at least 0.95, so that none passes less often than a 53-bit number rounds to zero;
    a loop until one passes would take three times as long to compile.
    """
    enlarged = jnp.where(shape < 1, shape + 1, shape)
    scale = enlarged - 1 / 3
    normal = normal_of(uniform[:-1].reshape(3, _TRIES, -1))
    cube = (1 + normal / jnp.sqrt(9 * scale)) ** 3
    log_cube = log_positive(jnp.where(cube > 0, cube, 1))
    test = normal**2 / 2 + scale * (1 - cube + log_cube)
    passes = (cube > 0) & (log_positive(uniform[2 * _TRIES : -1]) < test)
    first = jnp.argmax(passes, axis=0)
    chosen = jnp.take_along_axis(log_cube, first[None], axis=0)[0]
    return jnp.log(scale) + chosen + jnp.where(shape < 1, jnp.log(uniform[-1]) / shape, 0)


def log_gamma(words: Array, shape: Float[Array, ...]) -> Float[Array, ...]:
    """Logs of gamma numbers of these shapes and scale one."""
    flat = jnp.ravel(shape)
    return log_gamma_of(uniform(words, (PER_GAMMA, flat.size)), flat).reshape(shape.shape)


def wishart_factor(root: Float[Array, "*n d"], uniform: Float[Array, "2 *n d d"]) -> Float[Array, "*n d d"]:
    """Bartlett's lower factor of a Wishart of unit scale; `root` are roots of chi-squares of nu, nu - 1, ..."""
    return jnp.tril(normal_of(uniform), -1) + root[..., None] * jnp.eye(root.shape[-1])


def indices(weight: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn with chances proportional to weight, never one of weight zero, however u rounds. NumPy's."""
    reached = np.cumsum(weight, dtype=np.float64)
    index = np.searchsorted(reached, rng.random(size) * reached[-1], side="right")
    last = len(weight) - 1 if weight[-1] > 0 else np.flatnonzero(weight)[-1]
    return np.minimum(index, last)
