"""Settings that every test shares: figures are drawn off screen, and JAX keeps its own default precision.

Compiled programs are kept in `.pytest_cache`, so that workers share them, and a second run compiles next to nothing.
"""

import gc
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

from bayesmix.compilation import wide

_MAPS = Path("/proc/self/maps")  # Linux only; no other system counts them


@pytest.fixture(autouse=True, scope="module")
def _xla_makes_every_kernel():
    """Where it cannot, an ordinary program does the work, and nobody would see it."""
    yield
    failed = [p.__name__ for p in gc.get_objects() if isinstance(p, wide) and not p._known]
    failed = [name for name in failed if name != "one_that_sorts"]  # a test's own
    assert not failed, f"these programs were not made as one kernel: {failed}"


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """A compiled program holds memory maps, and a process may have 65,530: thousands of programs crash it.

    Before that, they stay: the next file often calls the same ones.
    """
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
