"""Factors of dense covariances: written out for a few features, LAPACK's for more, and the same numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from bayesmix.storage import STORAGES, inverse_cholesky

FULL = STORAGES["full"]


def matrices(d):
    """Fifty positive-definite matrices, some nearly singular."""
    rng = np.random.default_rng(d)
    turn = np.linalg.qr(rng.normal(size=(50, d, d)))[0]
    return (turn * 10.0 ** rng.uniform(-8, 0, size=(50, 1, d))) @ np.swapaxes(turn, 1, 2)


def traced(function, *arguments):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(*arguments))


@pytest.mark.parametrize("d", range(1, 7))
def test_traced_factors_are_numpys(d):
    values = matrices(d)
    values = (values + np.swapaxes(values, 1, 2)) / 2
    factor = traced(FULL.cholesky, values)
    size = np.sqrt(np.trace(values, axis1=1, axis2=2))[:, None, None]
    assert (np.triu(factor, 1) == 0).all()
    assert_allclose(factor @ np.swapaxes(factor, 1, 2) / size**2, values / size**2, atol=1e-15)
    assert_allclose(factor / size, np.linalg.cholesky(values) / size, atol=1e-10)
    inverse = traced(FULL.inverse, factor)
    assert_allclose(inverse @ factor, np.broadcast_to(np.eye(d), factor.shape), atol=1e-10)
    root = traced(inverse_cholesky, values)
    assert_allclose(root, inverse_cholesky(values), rtol=1e-6, atol=1e-8 * np.abs(root).max())


@pytest.mark.parametrize("d", [2, 4, 5])
def test_what_is_not_positive_definite_has_no_factor(d):
    values = np.broadcast_to(np.eye(d), (3, d, d)).copy()
    values[0, 1, 1], values[1, 0, 0] = -1, 0
    found = FULL.diagonal(traced(FULL.cholesky, values))
    assert np.isnan(found).any(axis=1).tolist() == [True, True, False]


@pytest.mark.parametrize("d", [2, 3, 4])
def test_gradients_are_those_of_lapacks_factor(d):
    values, weight = matrices(d)[:5] + 0.1 * np.eye(d), np.random.default_rng(0).normal(size=(5, d, d))

    def through(cholesky):
        return lambda v: jnp.sum(weight * FULL.inverse(cholesky(v)))

    ours = traced(jax.grad(through(FULL.cholesky)), values)
    theirs = traced(jax.grad(through(jnp.linalg.cholesky)), values)
    assert_allclose(ours, np.swapaxes(ours, 1, 2), rtol=1e-12)
    assert_allclose(ours, theirs, rtol=1e-8)
