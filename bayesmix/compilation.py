"""How programs are compiled, and kept on disk for those who ask for it: the next process reads them instead."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmix.devices import double_precision

__all__ = ["Call", "enable_compilation_cache", "wide"]

# One program is traced at a time: two threads would take turns, and both would be late.
_TRACING = threading.Lock()
_FLOAT32 = np.dtype(np.float32)  # there is one


class wide:
    """`jax.jit` for passes over data, which are never part of another program.

    In float64, where the processor has vectors of 512 bits, they are used whole and not halved as is LLVM's default: a
    tenth to a quarter of a pass. In float32 halves are as fast, and faster where responsibilities are hard.
    """

    def __init__(self, function: Callable, **options: Any) -> None:
        update_wrapper(self, function)
        self._single: Any = jax.jit(function, **options)
        self._double: Any = jax.jit(
            function, **options, compiler_options={"xla_cpu_prefer_vector_width": 512}
        )

    def _program(self, arguments: tuple) -> Any:
        for leaf in jax.tree.leaves(arguments):
            if getattr(leaf, "dtype", None) is _FLOAT32:
                return self._single
        return self._double

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._program(arguments)(*arguments, **options)

    def lower(self, *arguments: Any, **options: Any) -> Any:
        """What `jax.jit` calls so: traced, to be compiled."""
        return self._program(arguments).lower(*arguments, **options)

    def _cache_size(self) -> int:
        """How many programs there are, as of any function of `jax.jit`."""
        return sum(program._cache_size() for program in (self._single, self._double))


class Call(NamedTuple):
    """A call of a function of `jax.jit` that is to come, with its arguments or what has their shapes and types."""

    function: Any
    arguments: tuple

    def traced(self) -> Callable[[], None]:
        """What compiles its program, on any thread: the call itself finds it, while no other thread compiles it too."""
        with double_precision(), _TRACING:
            lowered = self.function.lower(*self.arguments)

        def compile() -> None:
            with double_precision():
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
