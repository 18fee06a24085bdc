"""Stochastic EM: its chain has a law around the maximum, and with decreasing steps it settles there by itself."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from reference import rows

import bayesmix as bm

CASES = [
    ("faithful", 2, "VVV"),
    ("faithful", 3, "EEE"),
    ("iris", 3, "EEE"),
    ("iris", 3, "VVV"),
    ("galaxies_mass", 3, "V"),
]


@pytest.mark.parametrize(("name", "k", "structure"), CASES)
def test_the_mean_of_the_chain_is_near_an_optimum(name, k, structure):
    x = rows(name)
    model = bm.MixtureModel(k, structure)
    tree = bm.stochastic_chain(model, x, key=0, n_draws=500, n_chains=2)
    posterior = tree["posterior"].to_dataset()
    mean = posterior.mean(["chain", "draw"])
    start = bm.GaussianMixture.of(
        mean["weights"].values, mean["means"].values, mean["covariances"].values, covariance=structure
    )
    ten = bm.fit(model, x, init=start, max_steps=10, tol=0)
    optimum = bm.fit(model, x, init=start, tol=1e-6)
    assert optimum.log_likelihood - ten.log_likelihood < 1e-2
    assert dict(tree["posterior"].sizes)["draw"] == 500
    objective = tree["sample_stats"]["objective"].values
    weights, means = posterior["weights"].values[1, 3], posterior["means"].values[1, 3]
    third = bm.GaussianMixture.of(
        weights / weights.sum(), means, posterior["covariances"].values[1, 3], covariance=structure
    )
    assert_allclose(third.log_density(x).sum(), objective[1, 3], rtol=1e-9)


@pytest.mark.parametrize(("name", "k", "structure"), CASES)
def test_stochastic_approximation_settles_at_an_optimum_by_itself(name, k, structure):
    x = rows(name)
    model = bm.MixtureModel(k, structure)
    for key in range(3):
        settled = bm.fit(model, x, method="stochastic_approximation", key=key)
        assert settled.converged
        assert settled.status.startswith("finished")
        assert settled.n_steps == 2000
        optimum = bm.fit(model, x, init=settled.mixture, tol=1e-6)
        assert optimum.log_likelihood - settled.log_likelihood < 1e-2
        assert settled.log_likelihood == pytest.approx(settled.mixture.log_density(x).sum(), rel=1e-12)


def test_the_chain_repeats_with_its_key_and_refuses_fractional_weights():
    x = rows("faithful")[:80]
    model = bm.MixtureModel(2, "EEE")
    a, b = (bm.stochastic_chain(model, x, key=4, n_draws=20, n_chains=2) for _ in range(2))
    assert_allclose(a["posterior"]["means"], b["posterior"]["means"])
    assert a["posterior"]["means"].values[0].std() > 0
    whole = bm.stochastic_chain(model, x, key=4, n_draws=20, n_chains=1, sample_weight=np.full(80, 2))
    assert np.isfinite(whole["posterior"]["means"]).all()
    for method in (
        lambda w: bm.stochastic_chain(model, x, key=0, sample_weight=w),
        lambda w: bm.fit(model, x, method="stochastic_approximation", sample_weight=w),
    ):
        with pytest.raises(ValueError, match="whole numbers"):
            method(np.full(80, 0.5))
