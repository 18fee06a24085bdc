"""The laws of precisions and means against NumPyro's own and SciPy's."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions.transforms import LowerCholeskyTransform, biject_to
from scipy import stats

from bayesmix.covariance import STRUCTURES
from bayesmix.laws import Dirichlet, Gamma, MeansByPrecision, WishartCholeskyByRate
from bayesmix.supports import lower_cholesky, simplex

RATE = np.array([[1.3, 0.6, -0.2], [0.6, 2.0, 0.3], [-0.2, 0.3, 0.7]])
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("nu", [3.5, 9.0])
def test_a_precision_s_factor_has_numpyros_density(nu):
    law = WishartCholeskyByRate(nu, RATE)
    theirs = dist.WishartCholesky(nu, rate_matrix=RATE)
    drawn = law.sample(KEY, (20,))
    assert drawn.shape == (20, 3, 3)
    assert_allclose(law.log_prob(drawn), theirs.log_prob(drawn), rtol=1e-9)
    assert_allclose(
        jax.jit(lambda r: WishartCholeskyByRate(nu, r).log_prob(drawn))(RATE), law.log_prob(drawn), rtol=1e-12
    )
    slopes = (
        jax.grad(lambda c: law.log_prob(c).sum())(drawn),
        jax.grad(lambda c: theirs.log_prob(c).sum())(drawn),
    )
    assert_allclose(*(np.tril(slope) for slope in slopes), rtol=1e-7, atol=1e-9)


def test_draws_of_a_precision_have_the_wishart_s_moments():
    nu, drawn = 7.0, np.asarray(WishartCholeskyByRate(7.0, RATE).sample(KEY, (20_000,)))
    precision = drawn @ drawn.swapaxes(-1, -2)
    scale = np.linalg.inv(RATE)
    sd = np.sqrt(nu * (scale**2 + np.outer(np.diag(scale), np.diag(scale))))
    assert np.abs((precision.mean(axis=0) - nu * scale) / sd).max() < 4.5 / np.sqrt(20_000)


@pytest.mark.parametrize("structure", ["VVV", "EEE", "VVI", "EEI", "VII", "EII"])
def test_means_have_scipys_density_and_the_moments_of_their_law(structure):
    row, k, d, count = STRUCTURES[structure], 2, 3, 1.7
    rng = np.random.default_rng(1)
    clusters = 1 if row.shared else k
    shape = {"full": (d, d), "diagonal": (d,), "spherical": ()}[row.storage]
    factor = 0.5 + rng.random((clusters, *shape))
    if row.storage == "full":
        factor = np.triu(factor)
    dense = (
        factor
        if row.storage == "full"
        else factor[..., None] * np.eye(d)
        if shape
        else factor[:, None, None] * np.eye(d)
    )
    covariance = np.broadcast_to(np.linalg.inv(count * dense.swapaxes(-1, -2) @ dense), (k, d, d))
    center = rng.normal(size=(k, d))
    law = MeansByPrecision(center, factor, count, row)
    drawn = np.asarray(law.sample(KEY, (4_000,)))
    assert drawn.shape == (4_000, k, d)
    for j in range(k):
        theirs = stats.multivariate_normal(center[j], covariance[j])
        assert_allclose(law.log_prob(drawn)[:, j], theirs.logpdf(drawn[:, j]), rtol=1e-10)
        distance = ((drawn[:, j] - center[j]) @ np.linalg.inv(covariance[j]) * (drawn[:, j] - center[j])).sum(
            axis=1
        )
        assert stats.kstest(distance, stats.chi2(d).cdf).pvalue > 1e-4


def test_weights_and_variances_have_numpyros_density():
    concentration, weights = np.array([0.3, 1.0, 4.5]), np.array([[0.2, 0.5, 0.3], [1e-9, 0.4, 0.6 - 1e-9]])
    assert_allclose(
        Dirichlet(concentration).log_prob(weights), dist.Dirichlet(concentration).log_prob(weights)
    )
    shape, rate, value = np.array([0.5, 1.0, 9.0]), np.array([2.0, 0.1, 3.0]), np.array([1e-5, 1.0, 7.0])
    assert_allclose(Gamma(shape, rate).log_prob(value), dist.Gamma(shape, rate).log_prob(value))
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert Dirichlet(concentration, validate_args=True).log_prob(np.array([0.5, 0.1, 0.1])) == -np.inf


@pytest.mark.parametrize("k", [1, 2, 5])
def test_numbers_stand_for_weights_and_back_with_the_volume_that_they_have(k):
    to = biject_to(simplex)
    y = 2 * np.random.default_rng(k).normal(size=(3, k - 1))
    weights = to(y)
    assert weights.shape == (3, *to.forward_shape((k - 1,)))
    assert simplex(weights).all()
    assert_allclose(to.inv(weights), y, atol=1e-12)
    slopes = jax.vmap(jax.jacobian(lambda y: to(y)[:-1]))(y)
    assert_allclose(to.log_abs_det_jacobian(y, weights), np.linalg.slogdet(slopes)[1], atol=1e-10)
    turned = to(to.inv(weights[:, ::-1]))  # any order of the clusters
    assert_allclose(turned, weights[:, ::-1], atol=1e-14)


def test_weights_that_vanish_stay_above_zero_and_have_a_finite_place():
    to = biject_to(simplex)
    assert (np.asarray(to(np.array([900.0, -900.0]))) > 0).all()
    assert np.isfinite(to.inv(np.array([1.0, 0.0, 0.0]))).all()


@pytest.mark.parametrize("d", [1, 2, 6])
def test_a_triangle_is_numpyros(d):
    ours, theirs = biject_to(lower_cholesky), LowerCholeskyTransform()
    y = np.random.default_rng(d).normal(size=(3, d * (d + 1) // 2))
    factor = ours(y)
    assert lower_cholesky(factor).all()
    assert_allclose(factor, theirs(y), rtol=1e-15)
    assert_allclose(ours.inv(factor), y, atol=1e-14)
    assert_allclose(ours.log_abs_det_jacobian(y, factor), theirs.log_abs_det_jacobian(y, factor))
    assert ours.inverse_shape(factor.shape) == y.shape
