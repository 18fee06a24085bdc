"""Where programs run: on a GPU where JAX has one and a pass over the data is long, otherwise on the processor.

A step of few points is a hundred small programs for a GPU, and one of a tenth of the time for a processor. So data
that make long passes are put on JAX's first device, and what is computed of them follows them there; all else runs
beside them on the processor. `jax.default_device`, where it is set, decides instead, for passes of any length.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

import jax
from jax.core import eval_context

__all__ = ["accelerator", "double_precision", "lapack_on_one_thread"]

_WORTH = 2**20  # numbers of a pass, points times features, that are worth a GPU
_THREADED = 24  # features, from about which LAPACK factors a matrix on several threads


class _Limit:
    """Of the threads of LAPACK: how many of our fits want it now, and what takes it back."""

    def __init__(self) -> None:
        self.lock, self.users, self.set = threading.Lock(), 0, None


_LIMIT: Any = _Limit()


def accelerator(numbers: float) -> Any:
    """The device for passes over so many numbers, None where that is the processor; ask outside `double_precision`."""
    chosen = jax.config.jax_default_device
    if chosen is None:
        return None if numbers < _WORTH or jax.default_backend() == "cpu" else jax.devices()[0]
    device = jax.devices(chosen)[0] if isinstance(chosen, str) else chosen
    return None if device.platform == "cpu" else device


def double_precision() -> AbstractContextManager[Any]:
    """The context in which the shell calls compiled code, whatever JAX's global flags and a trace around it say.

    Arrays keep the type they came with: float32 data stay float32 inside it, and where a GPU would multiply them with
    ten bits (TF32), it does not. What is not on a device already goes to the processor.
    """
    return _by_itself() if jax.default_backend() == "cpu" else _beside_accelerator()


@contextmanager
def _by_itself() -> Iterator[None]:
    # Numbers that a user's own `jit` knows are computed, not traced: as part of it they would not be float64.
    with jax.enable_x64(True), eval_context():
        yield


@contextmanager
def _beside_accelerator() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_by_itself())
        stack.enter_context(jax.default_matmul_precision("highest"))
        if jax.config.jax_default_device is None:
            # JAX may have been told to know no processor, and then all is on the GPU.
            with suppress(RuntimeError):
                stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        yield


@contextmanager
def lapack_on_one_thread(d: int) -> Iterator[None]:
    """For a time in which our own threads have all cores, with matrices of so many features.

    Those that OpenBLAS starts for a matrix go on to wait in loops, on the same cores: steps took up to twice as long.
    The limit is one for the process; of fits that overlap in a user's threads the last to end takes it back.
    """
    if d < _THREADED:
        yield
        return
    with _LIMIT.lock:
        if not _LIMIT.users:
            _LIMIT.set = _libraries().limit(limits=1, user_api="blas")
        _LIMIT.users += 1
    try:
        yield
    finally:
        with _LIMIT.lock:
            _LIMIT.users -= 1
            if not _LIMIT.users:
                _LIMIT.set.restore_original_limits()


@cache
def _libraries() -> Any:
    import scipy.linalg  # noqa: F401  whose LAPACK is JAX's
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
