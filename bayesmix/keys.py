"""Keys: what seeds a search or makes draws, as JAX's keys, as NumPy's generators, and as the words of both."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from bayesmix.devices import double_precision
from bayesmix.inputs import is_traced

__all__ = ["as_generator", "as_key", "as_words", "folded", "key_data", "key_words"]

_IMPLEMENTATIONS = {2: "threefry2x32", 4: "rbg"}  # of JAX's keys, by how many words they have


def _is_typed(key: Any) -> bool:
    return (
        isinstance(key, jax.Array) and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    )


def _is_words(key: Any) -> bool:
    """Whether it is a key of the old kind: its words themselves."""
    arrays = isinstance(key, jax.Array | np.ndarray)
    return arrays and key.dtype == np.uint32 and key.ndim == 1 and key.size in _IMPLEMENTATIONS


def as_words(key: Any) -> np.ndarray:
    """The 32-bit words behind a key: for an int the two that `jax.random.key` gives it under x64."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return np.array(divmod(int(key) % 2**64, 2**32), dtype=np.uint32)
    if _is_typed(key) or _is_words(key):
        with double_precision():
            return np.asarray(jax.random.key_data(key) if _is_typed(key) else key)
    raise ValueError(f"key must be an int or one JAX key such as jax.random.key(0); it is {key!r}")


def as_key(key: Any) -> jax.Array:
    """A JAX key out of an int or a key; ints mean the same under every setting of JAX."""
    if _is_typed(key):
        return key
    words = key if _is_words(key) else as_words(key)
    with nullcontext() if is_traced(key) else double_precision():
        return jax.random.wrap_key_data(jax.numpy.asarray(words), impl=_IMPLEMENTATIONS[words.size])


def folded(key: Any, number: int) -> jax.Array:
    """Another key for each number."""
    with double_precision():
        return jax.random.fold_in(as_key(key), number)


def as_generator(key: Any) -> np.random.Generator:
    """A NumPy generator for what is drawn outside compiled code: starts, simulated points."""
    return np.random.default_rng([int(word) for word in as_words(key)])


def key_data(key: Any, count: int) -> np.ndarray:
    """Key data (count, 2) of as many independent JAX keys."""
    return key_words(as_generator(key), count)


def key_words(generator: np.random.Generator, count: int) -> np.ndarray:
    """The same, out of a generator that goes on."""
    return generator.integers(0, 2**32, size=(count, 2), dtype=np.uint32)
