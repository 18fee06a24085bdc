"""How programs are compiled, and kept on disk for those who ask for it: the next process reads them instead.

XLA makes a program for a processor of many kernels. Each is compiled by itself, in 10 to 20 ms, and called by itself,
and where numbers are few that is most of the time. `one_kernel` asks for a function to be one of them, which takes half
the time to compile and three quarters to run. The part of XLA that makes it knows nothing of LAPACK, scatter, sort and
its own library of products, whose place plain loops take; so it is for small matrices, and for programs whose static
arguments say `few`, which are compiled without that library.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import update_wrapper, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.experimental.xla_metadata import set_xla_metadata

from bayesmix.devices import double_precision
from bayesmix.packing import arrays_of, row_of

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = [
    "Call",
    "enable_compilation_cache",
    "in_kernel",
    "kernel_of_rows",
    "one_at_a_time",
    "one_kernel",
    "wide",
]

# One program is traced at a time: two threads would take turns, and both would be late.
_TRACING = threading.Lock()
_NUMPYRO = threading.RLock()  # see `one_at_a_time`
_FLOAT32 = np.dtype(np.float32)  # there is one
_SMALL = 4096  # numbers, up to which an argument of a kernel is handed over with others


class _Flag(threading.local):
    now = False


_TRACING_KERNEL = _Flag()


class wide:
    """`jax.jit` for passes over data, which are never part of another program.

    In float64, where the processor has vectors of 512 bits, they are used whole and not halved as is LLVM's default: a
    tenth to a quarter of a pass. In float32 halves are as fast, and faster where responsibilities are hard.

    An argument with a field `few` that is true asks for a program without XLA's library of products, see above. Where
    XLA cannot make it, as another version of it might not, the program is that of `few=False`.
    """

    def __init__(self, function: Callable, **options: Any) -> None:
        update_wrapper(self, function)

        def program(**flags: Any) -> Any:
            return jax.jit(function, **options, compiler_options=flags or None)

        vectors = {"xla_cpu_prefer_vector_width": 512}
        self._single, self._double = program(), program(**vectors)
        self._few = program(**vectors, xla_cpu_experimental_ynn_fusion_type="")
        self._known = True  # how to make those of few numbers

    def _program(self, arguments: tuple) -> Any:
        if self._known and any(getattr(argument, "few", False) for argument in arguments):
            return self._few
        for leaf in jax.tree.leaves(arguments):
            if getattr(leaf, "dtype", None) is _FLOAT32:
                return self._single
        return self._double

    def __call__(self, *arguments: Any) -> Any:
        program = self._program(arguments)
        if program is self._few:
            try:
                return program(*arguments)
            except jax.errors.JaxRuntimeError:
                self._known = False
        return self._program(arguments)(*self._asked(arguments))

    def chosen(self, *arguments: Any) -> Callable:
        """What such a call came to, once one has been made: to find that out takes as long as the rest of a call."""
        program = self._program(arguments)
        return program if self._known else lambda *others: program(*self._asked(others))

    def lower(self, *arguments: Any) -> Any:
        """What `jax.jit` calls so: traced, to be compiled."""
        return self._program(arguments).lower(*self._asked(arguments))

    def eval_shape(self, *arguments: Any) -> Any:
        """Shapes and types of what a call returns."""
        return self._program(arguments).eval_shape(*self._asked(arguments))

    def _asked(self, arguments: tuple) -> tuple:
        if self._known:
            return arguments
        return tuple(a._replace(few=False) if getattr(a, "few", False) else a for a in arguments)

    def _cache_size(self) -> int:
        """How many programs there are, as of any function of `jax.jit`."""
        return sum(program._cache_size() for program in (self._single, self._double, self._few))


def in_kernel() -> bool:
    """Whether what is traced is to be one kernel, which is for a processor."""
    return _TRACING_KERNEL.now


@contextmanager
def _making_kernel() -> Iterator[None]:
    _TRACING_KERNEL.now = True
    try:
        yield
    finally:
        _TRACING_KERNEL.now = False


def _kernel(function: Callable, *arguments: Any) -> Any:
    """The call of a function which is to be one kernel, and in which no call is."""

    def within(*arguments: Any) -> Any:
        with set_xla_metadata(xla_cpu_small_call=None, inlineable=None):
            return function(*arguments)

    with set_xla_metadata(xla_cpu_small_call="true", inlineable="false"):
        return lax.optimization_barrier(jax.jit(within)(*arguments))


def _first(a: Array) -> Array:
    """A number of an array."""
    return lax.slice(a, [0] * a.ndim, [1] * a.ndim).astype(jnp.float64)


def one_kernel(function: Callable, few: bool) -> Callable:
    """The same function of arrays; inside a program of few numbers it is one kernel, part of another or by itself.

    XLA ends the process where such a kernel has an argument that nothing in it needs, once all is simplified. So all
    that is small, constants and arrays of the surroundings included, is handed over as one vector, and a number of each
    large one is handed back.
    """
    if not few or in_kernel():
        return function

    def call(*arguments: Any) -> Any:
        with _making_kernel():
            traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        jaxpr, leaves = traced.jaxpr, [jnp.asarray(a) for a in (*traced.consts, *jax.tree.leaves(arguments))]
        needed = {id(v) for equation in jaxpr.eqns for v in equation.invars} | {id(v) for v in jaxpr.outvars}
        needs = [id(v) in needed for v in (*jaxpr.constvars, *jaxpr.invars)]
        # Whole numbers below 2^53, words of keys and truth values are float64 too.
        kept = [a for a, need in zip(leaves, needs) if need]
        small, large = [a for a in kept if a.size <= _SMALL], [a for a in kept if a.size > _SMALL]
        shapes_of, types_of = [a.shape for a in small], [a.dtype for a in small]

        def kernel(*given: Array) -> list[Array]:
            large = given[len(packed) :]
            parts, others = iter(arrays_of(given[0], shapes_of, types_of) if packed else ()), iter(large)
            every = [
                jnp.zeros(a.shape, a.dtype) if not need else next(parts if a.size <= _SMALL else others)
                for a, need in zip(leaves, needs)
            ]
            count = len(traced.consts)
            return [*eval_jaxpr(jaxpr, every[:count], *every[count:]), *map(_first, large)]

        packed = [row_of(small)] if small else []
        results = _kernel(kernel, *packed, *large)
        return jax.tree.unflatten(jax.tree.structure(shapes), results[: len(results) - len(large)])

    return call


def kernel_of_rows(function: Callable) -> Callable:
    """The same, of a function whose arguments are few arrays and never constants: they are handed over as they are."""

    def kernel(*arguments: Any) -> tuple[Any, list[Array]]:
        with _making_kernel():
            results = function(*arguments)
        return results, [_first(a) for a in jax.tree.leaves(arguments)]

    return lambda *arguments: _kernel(kernel, *arguments)[0]


def one_at_a_time[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """The same function, in which one of a user's threads is at a time: NumPyro's handlers are one stack for all."""

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        with _NUMPYRO:
            return function(*arguments, **named)

    return call


class Call(NamedTuple):
    """A call of a function of `jax.jit` that is to come, with its arguments or what has their shapes and types."""

    function: Any
    arguments: tuple

    def traced(self) -> Callable[[], None]:
        """What compiles its program, on any thread: the call itself finds it, while no other thread compiles it too."""
        with double_precision(), _TRACING:
            lowered = self.function.lower(*self.arguments)

        def compile() -> None:
            # What XLA cannot make the call itself asks for in another way, or says so.
            with double_precision(), suppress(jax.errors.JaxRuntimeError):
                lowered.compile()

        return compile


@contextmanager
def compiling(calls: list[Call], threads: int) -> Iterator[list[Future]]:
    """Compile the programs of calls to come, in their order, beside what is done inside; a future of each.

    They are traced here: NumPyro knows one thread, and Python has one at a time.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        yield [pool.submit(call.traced()) for call in calls]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def enable_compilation_cache(folder: Any = None) -> Path:
    """Keep compiled programs in a folder, so that later processes need not compile them again.

    JAX's persistent cache, with no lower limit on how long a program compiles or how large it is: a first fit compiles
    one of about a second. It holds for everything that JAX compiles in this process from here on. Programs are for
    one version of JAX and one kind of processor; others are compiled, and kept beside them. Nothing is ever removed.

    Args:
        folder: where; by default where JAX has been told to keep programs, else `bayesmix` in the user's folder for
            caches ($XDG_CACHE_HOME, ~/.cache). It is made if it is not there.

    Returns:
        The folder.

    Raises:
        ValueError: not a folder, or one that other users may write to: what is in it runs as you.

    Example:
        >>> import bayesmix as bm
        >>> bm.enable_compilation_cache().is_dir()
        True
    """
    from jax.experimental.compilation_cache import compilation_cache

    if folder is None:
        folder = jax.config.jax_compilation_cache_dir or Path(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "bayesmix"
        )
    try:
        path = Path(folder).expanduser().resolve()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except (TypeError, OSError) as error:
        raise ValueError(f"folder must be one that can be made and written to; {folder!r}: {error}") from None
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"other users may write to {str(path)!r}, and compiled programs that they leave there would run as you; "
            "take another folder, or chmod go-w it"
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # where something was compiled before, JAX has settled on no cache
    return path
