"""Where programs run: on a GPU where JAX has one and a pass over the data is long, otherwise on the processor.

A step of few points is a hundred small programs for a GPU, and one of a tenth of the time for a processor. So data
that make long passes are put on JAX's first device, and what is computed of them follows them there; all else runs
beside them on the processor. `jax.default_device`, where it is set, decides instead, for passes of any length.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import jax
from jax.core import eval_context

__all__ = ["accelerator", "blas_on_one_thread", "double_precision", "lapack_on_one_thread"]

_WORTH = 2**20  # numbers of a pass, points times features, that are worth a GPU
_THREADED = 24  # features, from about which LAPACK factors a matrix on several threads
_SHARED = 2**15  # numbers of data, below which our own threads share no pass


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


class _Limit:
    """One thread for BLAS while anyone wants that, and then as many as there were.

    The limit is one for the process; of fits that overlap in a user's threads the last to end takes it back.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.both, self.set = threading.Lock(), 0, False, None

    @contextmanager
    def held(self, both: bool) -> Iterator[None]:
        """Of NumPy's library, or of `both`: JAX's LAPACK is SciPy's."""
        with self.lock:
            if not self.users or both > self.both:
                self._restore()
                self.set, self.both = _libraries(both).limit(limits=1, user_api="blas"), both
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self._restore()

    def _restore(self) -> None:
        if self.set is not None:
            self.set.restore_original_limits()
        self.set, self.both = None, False


_LIMIT: Any = _Limit()


def blas_on_one_thread(numbers: float = math.inf) -> AbstractContextManager[Any]:
    """For what NumPy computes of so many numbers of data just before our own threads take all cores.

    Threads of OpenBLAS go on to wait in loops, for 25 milliseconds: k-means of 100,000 rows took half as long again.
    """
    return _LIMIT.held(False) if numbers >= _SHARED else nullcontext()


def lapack_on_one_thread(d: int) -> AbstractContextManager[Any]:
    """For a time in which our own threads have all cores, with matrices of so many features.

    Those that OpenBLAS starts for a matrix wait in loops on the same cores: steps took up to twice as long.
    """
    return _LIMIT.held(True) if d >= _THREADED else nullcontext()


@cache
def _libraries(both: bool) -> Any:
    if both:
        import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
