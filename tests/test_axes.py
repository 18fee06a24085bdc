"""Common axes: Newton's step is that of automatic differentiation, and turning ends where no rotation is lower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import expm

from bayesmix import axes
from bayesmix.devices import double_precision

COUNT = np.array([10.0, 20.0, 15.0])


def scatters(d, seed, tilt):
    """Three scatters whose axes are nearly common."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.5, 4, (3, d)) * COUNT[:, None]
    skew = tilt * rng.normal(size=(3, d, d))
    turns = np.stack([expm(s - s.T) for s in skew])
    return np.einsum("kij,kj,klj->kil", turns, values, turns)


def criterion(turned, varying):
    """Σ n_k log |diag(W_k)| for VVE, Σ |diag(W_k)|^(1/d) for EVE; of NumPy and JAX arrays."""
    cells = jnp.diagonal(turned, axis1=1, axis2=2)
    logs = jnp.sum(jnp.log(cells), axis=1)
    return jnp.sum(COUNT * logs) if varying else jnp.sum(jnp.exp(logs / cells.shape[1]))


def terms(varying, d):
    def of(logs):
        sizes = jnp.exp(logs / d)
        return (COUNT * logs, COUNT + 0 * logs, 0 * logs) if varying else (sizes, sizes / d, sizes / d**2)

    return of


@pytest.mark.parametrize("varying", [True, False], ids=["VVE", "EVE"])
@pytest.mark.parametrize("d", [2, 5])
def test_newtons_step_turns_all_pairs_together(monkeypatch, d, varying):
    with double_precision():
        w = jnp.asarray(scatters(d, d, 0.05))
        upper = np.triu_indices(d, 1)

        def turned(angles):
            skew = jnp.zeros((d, d)).at[upper].set(angles)
            turn = jax.scipy.linalg.expm(skew - skew.T)
            return criterion(turn.T @ w @ turn, varying)

        zero = jnp.zeros(len(upper[0]))
        gradient, hessian = jax.grad(turned)(zero), jax.hessian(turned)(zero)
        assert np.linalg.eigvalsh(hessian)[0] > 0
        step = -np.linalg.solve(hessian, gradient)
        turn, largest = axes._newton(w, terms(varying, d))
        assert_allclose(largest, np.abs(step).max(), rtol=1e-7)
        # Cayley's rotation of S/2 is exp(S) to third order.
        skew = np.zeros((d, d))
        skew[upper] = step
        assert_allclose(turn, axes.rotation((skew - skew.T) / 2), atol=1e-8)
        # Each pair by itself: the diagonal of that matrix.
        monkeypatch.setattr(axes, "_COUPLED", 0)
        _, alone = axes._newton(w, terms(varying, d))
        assert_allclose(alone, np.abs(gradient / np.diagonal(hessian)).max(), rtol=1e-7)


@pytest.mark.parametrize("varying", [True, False], ids=["VVE", "EVE"])
@pytest.mark.parametrize(("d", "tilt"), [(3, 0.05), (3, 1.0), (6, 0.3), (axes._COUPLED + 1, 0.1)])
def test_axes_end_where_no_rotation_is_lower(d, tilt, varying):
    w = scatters(d, 7, tilt)
    with double_precision():
        found, cells = axes.common_axes(
            jnp.asarray(COUNT), jnp.asarray(w), jnp.asarray(w / COUNT[:, None, None]), jnp.asarray(varying)
        )
        found = np.asarray(found)
        turned = found.T @ w @ found
        assert_allclose(found.T @ found, np.eye(d), atol=1e-12)
        assert_allclose(cells, np.diagonal(turned, axis1=1, axis2=2), rtol=1e-12)
        lowest = float(criterion(turned, varying))
        rng = np.random.default_rng(d)
        for size in (1e-3, 1e-2, 0.1):
            for _ in range(20):
                skew = size * rng.normal(size=(d, d))
                turn = expm(skew - skew.T)
                assert float(criterion(turn.T @ turned @ turn, varying)) > lowest
        # The gradient is zero: of log |D_k| by the angle of a pair it is 2 W_ij (1 / D_j - 1 / D_i).
        logs = np.log(np.diagonal(turned, axis1=1, axis2=2)).sum(axis=1)
        first = COUNT if varying else np.exp(logs / d) / d
        inverse = 1 / np.diagonal(turned, axis1=1, axis2=2)
        slope = 2 * turned * (inverse[:, None, :] - inverse[:, :, None])
        assert np.abs(np.einsum("k,kij->ij", first, slope)).max() < 1e-6 * first.sum()
