"""exp, log and cos of compiled code against extended precision, and its random bits against JAX's own generator."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

from bayesmix import variates
from bayesmix.elementary import cos_turn, exp_below, gammaln, log_positive, multigammaln

RNG = np.random.default_rng(0)


def units(found, exact):
    """The largest error, in units in the last place."""
    return np.max(np.abs(found - exact) / np.spacing(np.abs(exact).astype(float)))


def compiled(function, x):
    with (
        jax.enable_x64(True),
        jax.default_device(jax.devices("cpu")[0]),
    ):  # others have functions of their own
        return np.asarray(jax.jit(function)(x))


def test_exp():
    x = -np.concatenate([np.logspace(-300, np.log10(707.9), 20_000), RNG.uniform(0, 50, 20_000)])
    assert units(compiled(exp_below, x), np.exp(x.astype(np.longdouble))) < 1
    assert_array_equal(
        compiled(exp_below, np.array([0, -708.1, -1e30, -np.inf, np.nan])), [1, 0, 0, 0, np.nan]
    )


def test_log():
    x = np.concatenate(
        [
            1 + np.logspace(-15, 300, 20_000),
            RNG.uniform(0, 100, 20_000),
            2.0 ** np.arange(-1022, 1000),
            1 - np.logspace(-16, -1, 2000),
        ]
    )
    assert units(compiled(log_positive, x), np.log(x.astype(np.longdouble))) < 3
    assert_array_equal(compiled(log_positive, np.array([1, np.inf, np.nan])), [0, np.nan, np.nan])


@pytest.mark.parametrize(("function", "same"), [(exp_below, jax.numpy.exp), (log_positive, jax.numpy.log)])
def test_float32_has_the_library_s_own(function, same):
    x = np.float32([1.0, 1.5]) if same is jax.numpy.log else np.float32([-1.0, 0.0])
    found = compiled(function, x)
    assert found.dtype == np.float32
    assert_array_equal(found, compiled(same, x))


def test_cos():
    x = np.concatenate(
        [
            RNG.uniform(0, 1, 40_000),
            np.logspace(-300, 0, 2000),
            np.arange(9) / 8,
            1 - np.logspace(-16, -1, 2000),
        ]
    )
    exact = np.cos(2 * np.pi * x.astype(np.longdouble))
    assert np.abs(compiled(cos_turn, x) - exact).max() < 5e-16
    assert_array_equal(compiled(cos_turn, np.array([0.0, 0.25, 0.75, 1.0])), [1, 0, 0, 1])


@pytest.mark.parametrize("n", [1, 7, 300])
@pytest.mark.parametrize("stream", [0, 1, 2**31])
def test_bits_are_threefry(n, stream):
    key = np.array([0xDEADBEEF, 12345], np.uint32)
    found = jax.jit(variates._threefry, static_argnums=1)(key, n, np.uint32(stream))
    counters = np.concatenate([np.arange(n), np.full(n, stream)]).astype(np.uint32)
    assert_array_equal(np.concatenate(found), threefry_2x32(tuple(key), counters))


def test_uniform_numbers_and_keys():
    with jax.enable_x64(True):
        key = np.array([1, 2], np.uint32)
        u = np.asarray(jax.jit(lambda key: variates.uniform(key, (40, 1000)))(key))
        assert u.shape == (40, 1000)
        assert u.dtype == np.float64
        assert 0 < u.min() < 1e-4
        assert 1 - 1e-4 < u.max() <= 1
        assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
        assert abs(np.corrcoef(u.ravel()[1:], u.ravel()[:-1])[0, 1]) < 4 / 200
        single = np.asarray(variates.uniform(key, (2000,), np.float32))
        assert single.dtype == np.float32
        assert single.min() > 0
        assert stats.kstest(single, "uniform").pvalue > 0.01
        # Bits of every place are set half of the time.
        bits = (
            (u.ravel() * 2.0**52).astype(np.uint64)[:, None] >> np.arange(52, dtype=np.uint64)
        ) & np.uint64(1)
        assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / 200
        normal = np.asarray(variates.normal_of(u[:, :].reshape(2, -1)))
        assert stats.kstest(normal, "norm").pvalue > 0.01
        keys = [np.asarray(variates.split(key, 500, stream)) for stream in (0, 1)]
        assert len(np.unique(np.concatenate([*keys, key[None]]), axis=0)) == 1001


@pytest.mark.parametrize("shape", [0.05, 0.7, 1.0, 3.3, 500.0])
def test_gamma_numbers_have_scipys_law(shape):
    with jax.enable_x64(True):
        logs = np.asarray(variates.log_gamma(np.array([3, 4], np.uint32), np.full(20_000, shape)))
    assert stats.kstest(np.exp(logs), stats.gamma(shape).cdf).pvalue > 0.01


def test_log_gamma_is_scipys_and_its_derivative_too():
    x = np.concatenate([np.logspace(-300, 300, 4001), np.linspace(0.01, 30, 5000)])
    exact = special.gammaln(x)
    with jax.enable_x64(True):
        found = np.asarray(gammaln(x))
        slope = np.asarray(jax.vmap(jax.grad(gammaln))(x[4001:]))
        matrix = np.asarray(multigammaln(np.array([2.1, 7.5, 300.0]), 4))
    assert np.max(np.abs(found - exact) / np.maximum(1, np.abs(exact))) < 1e-14
    assert_allclose(slope, special.digamma(x[4001:]), rtol=1e-11, atol=1e-12)
    assert_allclose(matrix, special.multigammaln(np.array([2.1, 7.5, 300.0]), 4), rtol=1e-13)
