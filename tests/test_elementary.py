"""exp and log of the passes over the data, against extended precision."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bayesmix.elementary import exp_below, log_above

RNG = np.random.default_rng(0)


def units(found, exact):
    """The largest error, in units in the last place."""
    return np.max(np.abs(found - exact) / np.spacing(np.abs(exact).astype(float)))


def compiled(function, x):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(x))


def test_exp():
    x = -np.concatenate([np.logspace(-300, np.log10(707.9), 20_000), RNG.uniform(0, 50, 20_000)])
    assert units(compiled(exp_below, x), np.exp(x.astype(np.longdouble))) < 1
    assert_array_equal(
        compiled(exp_below, np.array([0, -708.1, -1e30, -np.inf, np.nan])), [1, 0, 0, 0, np.nan]
    )


def test_log():
    x = np.concatenate(
        [1 + np.logspace(-15, 300, 20_000), RNG.uniform(1, 100, 20_000), 2.0 ** np.arange(1, 60)]
    )
    assert units(compiled(log_above, x), np.log(x.astype(np.longdouble))) < 3
    assert_array_equal(compiled(log_above, np.array([1, np.inf, np.nan])), [0, np.nan, np.nan])


@pytest.mark.parametrize(("function", "same"), [(exp_below, jax.numpy.exp), (log_above, jax.numpy.log)])
def test_float32_has_the_library_s_own(function, same):
    x = np.float32([1.0, 1.5]) if same is jax.numpy.log else np.float32([-1.0, 0.0])
    found = compiled(function, x)
    assert found.dtype == np.float32
    assert_array_equal(found, compiled(same, x))
