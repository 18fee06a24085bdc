"""Settings that every test shares: figures are drawn off screen, and JAX keeps its own default precision."""

import os

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """A compiled program holds memory maps, and a process may have some 65,000: thousands of programs crash it."""
    yield
    jax.clear_caches()
