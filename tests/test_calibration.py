"""The posterior samplers draw from the posterior: enumeration, simulation-based calibration, Geweke's test, agreement of
two samplers, and draws that others published."""

import json
import os
from functools import cache
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from enumeration import enumerate_posterior, log_evidence
from numpy.testing import assert_allclose
from reference import load
from sbc import (
    Mixtures,
    effective_sizes,
    log_joint,
    prior_of,
    probability_inside,
    quantities,
    sample,
    simulate_parameters,
    simulate_points,
    study,
    transposed,
    uniformity,
    worst,
)

import bayesmix as bm
from bayesmix.conjugate import Parameters
from bayesmix.covariance import STRUCTURES, Covariance
from bayesmix.devices import double_precision
from bayesmix.gibbs import GibbsKernel, GibbsState
from bayesmix.inputs import to_numpy
from bayesmix.observations import Observations
from bayesmix.statistics import Statistics

FETCHED = Path(
    os.environ.get("BAYESMIX_FETCHED", Path(__file__).parents[2] / "shared" / "oracle" / "fetched")
)
LEVEL = 1e-4  # of calibration: how often a right sampler would fail, were the seeds not fixed
COUNT = 200  # data sets, which is also how many chains run at once
FEW = np.array([[-1.2, 0.4], [-0.3, -0.5], [0.1, 0.9], [0.6, -0.2], [1.5, 1.1], [2.0, 0.3], [-0.8, 1.3]])


MEAN = (("mean", None),)
SUMMARY = MEAN + (("sd", None), *(("quantile", chance) for chance in (0.05, 0.25, 0.5, 0.75, 0.95)))


def estimates(draws, statistics=SUMMARY):
    """Of draws (chain, draw, ...) each statistic, and its Monte-Carlo standard error (2, statistics, ...)."""
    known = {"mean": np.mean, "sd": np.std, "quantile": np.quantile}
    flat = np.reshape(draws, (*np.shape(draws)[:2], -1))
    table = [
        [(known[name](values, *([] if chance is None else [chance])), az.mcse(values, method=name, prob=chance))
         for name, chance in statistics]
        for values in np.moveaxis(flat, -1, 0)
    ]  # fmt: skip
    return np.moveaxis(np.array(table, float), (0, 2), (-1, 0)).reshape(
        2, len(statistics), *np.shape(draws)[2:]
    )


def assert_expected(draws, exact, precision):
    """Means over draws (chain, draw, ...) are the exact ones, within their own errors, which are small enough to say so."""
    (mean,), (error,) = estimates(draws, MEAN)
    assert (np.abs(mean - exact) < 4.5 * error).all(), (mean, exact, error)
    assert (error <= precision).all(), error


# Enumeration.


@pytest.mark.parametrize("structure", [name for name, row in STRUCTURES.items() if not row.constrained])
def test_enumeration_is_the_average_over_the_prior(structure):
    """Evidence and expectations by weighting draws from the prior with their likelihood: another way to the same integrals."""
    d = STRUCTURES[structure].n_features or 2
    x, rng, count = FEW[:3, :d], np.random.default_rng(0), 40_000
    scale = {} if d == 2 else {"mean": [0.3], "scale": 1.2}
    prior = prior_of(structure, degrees_of_freedom=7.0, **scale)
    theta = simulate_parameters(prior, structure, count, rng)
    weight = np.exp(
        np.logaddexp.reduce(log_joint(theta, np.broadcast_to(x, (count, *x.shape))), axis=1).sum(axis=-1)
    )
    exact = enumerate_posterior(x, prior, 2, structure)
    assert abs(weight.mean() - np.exp(exact.log_evidence)) < 4.5 * weight.std() / np.sqrt(count)
    assert exact.log_evidence == log_evidence(x, prior, 2, structure)
    parts = (*theta, np.linalg.inv(theta.covariances))
    for drawn, expected in zip(parts, (exact.weights, exact.means, exact.covariances, exact.precisions)):
        mean = np.tensordot(weight, drawn, axes=1) / weight.sum()
        error = np.sqrt(np.tensordot(weight**2, (drawn - mean) ** 2, axes=1)) / weight.sum()
        assert (np.abs(mean - expected) < 4.5 * error + 1e-12).all()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "chains"), [("gibbs", COUNT), ("nuts", 60)])
def test_two_clusters_are_those_of_enumeration(method, chains):
    """Many short chains on the same points, in the programs that calibration below has compiled."""
    prior = prior_of("VVV", degrees_of_freedom=7.0, concentration=[3.0, 1.0])
    x = np.broadcast_to(FEW, (chains, *FEW.shape))
    exact = enumerate_posterior(FEW, prior, 2)
    draws, _ = sample(method, x, prior, "VVV", 1)
    joint = log_joint(draws, x)
    r = np.exp(joint - np.logaddexp.reduce(joint, axis=-2)[..., None, :])
    together = np.einsum("...kn,...km->...nm", r, r)
    assert_expected(together[..., *np.triu_indices(7, 1)], exact.together[np.triu_indices(7, 1)], 0.03)
    assert_expected(r, exact.responsibilities.T, 0.05)
    assert_expected(draws.weights, exact.weights, 0.02)
    assert_expected(draws.means, exact.means, 0.05)
    assert_expected(draws.covariances, exact.covariances, 0.05)
    assert_expected(np.linalg.inv(draws.covariances), exact.precisions, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "n_draws"), [("gibbs", 12_000), ("nuts", 10_000)])
def test_three_clusters_are_those_of_enumeration(method, n_draws):
    """Through the public face, z too; draws enough that errors can be judged, for NUTS goes from hill to hill slowly."""
    prior = prior_of("VVV", degrees_of_freedom=7.0, concentration=[2.5, 1.5, 0.8])
    exact = enumerate_posterior(FEW, prior, 3)
    tree = bm.sample_posterior(
        bm.MixtureModel(3, "VVV", prior), FEW, key=1, method=method, n_warmup=400, n_draws=n_draws, relabelling=None
    )  # fmt: skip
    z = tree["allocations"]["z"].values[..., None] == np.arange(3)
    assert_expected(z.astype(float), exact.responsibilities, 0.05)
    draws = tree["posterior"]
    for name, precision in (("weights", 0.02), ("means", 0.05), ("covariances", 0.05)):
        assert_expected(draws[name].values, getattr(exact, name), precision)
    assert_expected(np.linalg.inv(draws["covariances"].values), exact.precisions, 0.5)


# Simulation-based calibration.


@cache
def calibration(method, structure="VVV"):
    return study(method, structure, COUNT, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "structure"), [("gibbs", "VVV"), ("nuts", "VVV")])
def test_the_truth_ranks_like_a_draw(method, structure):
    found = calibration(method, structure)
    assert len(found.ranks) == 8
    p, name = worst(found.ranks)
    assert p > LEVEL, name
    for name, chains in found.chains.items():  # the draws that ranks count are nearly independent
        assert np.quantile(effective_sizes(chains[:100]), 0.25) > 19, name
    assert found.diverging < 0.01 * chains.size


MUTATIONS = {
    "degrees_of_freedom + 1": {"degrees_of_freedom": 5.5},
    "degrees_of_freedom - 1": {"degrees_of_freedom": 3.5},
    "concentration + 1": {"concentration": [5.0, 2.2]},
    "concentration - 1": {"concentration": [3.0, 0.2]},
    "scale LᵀL": {"scale": transposed(prior_of("VVV").scale)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["degrees_of_freedom + 1", "scale LᵀL"])  # Geweke's test below finds all
def test_a_wrong_prior_fails_calibration(name):
    wrong = study("gibbs", "VVV", COUNT, 1, believed=prior_of("VVV", **MUTATIONS[name]), search=False)
    assert worst(wrong.ranks)[0] < LEVEL


@pytest.mark.slow
def test_a_transposed_factor_fails_calibration(monkeypatch):
    from bayesmix import conjugate

    right = conjugate.inverse_cholesky

    def wrong_in_a_sweep(scale):
        return right(scale) if isinstance(scale, np.ndarray) else jnp.swapaxes(right(scale), -1, -2)

    monkeypatch.setattr(conjugate, "inverse_cholesky", wrong_in_a_sweep)
    # Another number of steps is another program: the one that is compiled knows the right factor.
    wrong = study("gibbs", "VVV", COUNT, 1, steps=(161, 40), search=False)
    assert worst(wrong.ranks)[0] < LEVEL


@pytest.mark.slow
def test_what_is_calibrated_is_what_the_public_face_does():
    found, prior = calibration("gibbs"), prior_of("VVV")
    for number in range(2):
        tree = bm.sample_posterior(
            bm.MixtureModel(2, "VVV", prior), found.x[number], key=1 + number, method="gibbs",
            n_chains=1, n_warmup=160, n_draws=80, thinning=1, relabelling=None,
        )  # fmt: skip
        for name in Mixtures._fields:
            ours = getattr(found.draws, name)[number, :80]
            assert_allclose(tree["posterior"][name].values[0], ours, rtol=1e-8, atol=1e-10)
        lp = tree["sample_stats"]["lp"].values[0]
        assert np.ptp(lp - found.chains["log joint"][number, :80]) < 1e-8


def test_uniform_ranks_pass_and_others_do_not():
    rng = np.random.default_rng(0)
    p = np.array([uniformity(rng.integers(0, 20, 60)) for _ in range(400)])
    for level in (
        0.05,
        0.2,
        0.5,
    ):  # counts are whole numbers, so that p-values are at most a little too large
        assert -0.08 < (p <= level).mean() - level < 0.05
    assert uniformity(np.repeat(np.arange(20), 10)) == pytest.approx(1)
    assert uniformity(rng.binomial(19, 0.5, 200)) < 1e-10
    # Two ranks of two values have one edge and counts 0, 1, 2: only 1 is above a level of one half.
    assert probability_inside(0.5, 2, 2) == pytest.approx(0.5)


# Geweke's joint test.


@jax.jit
def _successive(start, x, keys, prior, noise):
    """Chains of θ given x by a sweep of the package's, x given θ anew: θ (chains, steps, ...) and x.

    `noise` holds keys (chains, steps); `keys` the words (chains, steps, 2) of those of the sweeps.
    """
    d, k = x.shape[-1], start.weights.shape[-1]
    row = STRUCTURES["VVV"]
    nothing = Statistics(jnp.zeros((k, 1 + d + d * (d + 1) // 2)), 0.0)

    def step(state, key):
        theta, x = state
        observations = Observations(x.T[None], jnp.ones((1, len(x))))
        kernel = GibbsKernel(observations, nothing, prior, row)
        theta = kernel.sample(GibbsState(theta, key[0]), (), {}).z
        coin, normal = jax.random.split(key[1])
        z = jax.random.categorical(coin, jnp.log(theta.weights), shape=x.shape[:1])
        standard = jax.random.normal(normal, x.shape)
        upper = jnp.swapaxes(theta.cholesky, -1, -2)  # Σ⁻¹ = C Cᵀ, so that C⁻ᵀ ε has covariance Σ
        x = theta.means[z] + jnp.linalg.solve(upper[z], standard[..., None])[..., 0]
        return (theta, x), (theta, x)

    def chain(start, x, keys):
        return jax.lax.scan(step, (start, x), keys)[1]

    return jax.vmap(chain)(start, x, (keys, noise))


def geweke(believed, seed, chains=400, steps=200, n=8):
    """z-scores of first and second moments of the joint law of θ and x, by chains that believe a prior, against independent draws."""
    prior, rng = prior_of("VVV"), np.random.default_rng(seed)
    start = simulate_parameters(prior, "VVV", chains, rng)
    x = simulate_points(start, n, rng)
    keys = jax.random.split(jax.random.key(seed), (2, chains, steps))
    theta = Parameters(start.weights, start.means, np.linalg.cholesky(np.linalg.inv(start.covariances)))
    with double_precision():
        found, points = to_numpy(_successive(theta, x, jax.random.key_data(keys[0]), believed, keys[1]))
    covariances = np.linalg.inv(found.cholesky @ np.swapaxes(found.cholesky, -1, -2))
    flat = [
        np.reshape(a, (chains * steps, *a.shape[2:]))
        for a in (found.weights, found.means, covariances, points)
    ]
    ours = _moments(prior, Mixtures(*flat[:3]), flat[3]).reshape(chains, steps, -1).mean(axis=1)
    truth = simulate_parameters(prior, "VVV", 40_000, rng)
    theirs = _moments(prior, truth, simulate_points(truth, n, rng))
    error = np.sqrt(ours.var(axis=0) / chains + theirs.var(axis=0) / len(theirs))
    return (ours.mean(axis=0) - theirs.mean(axis=0)) / error


def _moments(prior, theta, x):
    """Functions of θ and x that have light tails, and their squares (count, 2 * functions)."""
    precisions = np.linalg.inv(theta.covariances)
    factor = np.linalg.cholesky(precisions)
    standard = np.einsum("akij,aki->akj", factor, theta.means - prior.mean)
    likelihood = np.logaddexp.reduce(log_joint(theta, x), axis=1).sum(axis=1)
    parts = [
        np.log(theta.weights),
        standard,
        factor[:, :, *np.tril_indices(2)],
        np.tanh(x).mean(axis=1),
        likelihood,
    ]
    values = np.concatenate([part.reshape(len(x), -1) for part in parts], axis=1)
    return np.concatenate([values, values**2], axis=1)


@pytest.mark.slow
def test_gewekes_joint_test():
    """Chains are independent, and begin at draws of the very law: their means' spread is the standard error."""
    prior = prior_of("VVV")
    assert np.abs(geweke(prior, 1)).max() < 4.5
    for name in MUTATIONS:
        assert np.abs(geweke(prior_of("VVV", **MUTATIONS[name]), 2)).max() > 6, name


# Agreement.


@pytest.mark.slow
def test_gibbs_and_nuts_agree_on_overlapping_clusters():
    rng, prior = np.random.default_rng(3), prior_of("VVV")
    truth = Mixtures(
        np.array([[0.6, 0.4]]), np.array([[[-0.8, 0.0], [0.9, 0.4]]]),
        np.array([[[[1.0, 0.4], [0.4, 1.0]], [[0.6, -0.2], [-0.2, 0.8]]]]),
    )  # fmt: skip
    x = simulate_points(truth, 60, rng)
    found = {}
    for method, chains in (("gibbs", COUNT), ("nuts", 60)):
        repeated = np.broadcast_to(x, (chains, *x.shape[1:]))
        draws, _ = sample(method, repeated, prior, "VVV", 5)
        found[method] = estimates(np.stack(list(quantities(draws, repeated, prior, "VVV").values()), axis=-1))
    (gibbs, error), (nuts, other) = found["gibbs"], found["nuts"]
    apart = np.abs(gibbs - nuts) / np.hypot(error, other)
    # A spread with heavy tails is known less well, and how well is not known either.
    known = [name != "sd" for name, _ in SUMMARY]
    assert (apart[known] < 4.5).all()
    assert (apart < 6).all()
    assert (other[known] < 0.12 * nuts[1]).all()  # the comparison says something


# Published draws.


def faithful_program():
    """The prior of the JAGS run: means that do not know their covariances, so that it is not conjugate."""
    scale = np.array([[0.5, 0.0], [0.0, 100.0]])
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("cluster", 2):
        factor = numpyro.sample("factor", dist.WishartCholesky(4.0, rate_matrix=scale))
        means = numpyro.sample(
            "means", dist.Normal(jnp.array([3.5, 70.0]), jnp.array([2.0, 20.0])).to_event(1)
        )
    covariances = jnp.linalg.inv(factor @ jnp.swapaxes(factor, -1, -2))
    return bm.GaussianMixture(weights, means, Covariance(covariances, "VVV"))


def in_order(tree):
    """weights, means and covariances with the clusters of each draw in the order of their first means."""
    order = np.argsort(tree["posterior"]["means"].values[..., 0], axis=-1)
    return [
        np.take_along_axis(values, order.reshape(*order.shape, *(1,) * (values.ndim - 3)), axis=2)
        for values in (tree["posterior"][name].values for name in Mixtures._fields)
    ]


@pytest.mark.slow
def test_jags_draws_are_reproduced_by_a_program():
    published = load("jags_posterior.json")["results"][0]
    model = bm.MixtureModel(2, "VVV", faithful_program)
    tree = bm.sample_posterior(model, bm.datasets.load("old_faithful"), key=1, n_warmup=400, n_draws=1000)
    assert {"weights", "factor", "means", "covariances"} == set(tree["posterior"].data_vars)
    assert {"weights", "factor", "means"} == set(tree["log_prior"].data_vars)
    weights, means, covariances = in_order(tree)
    shape = weights.shape[:2]
    likelihood = tree["log_likelihood"]["x"].values.sum(axis=-1)[..., None]
    ours = np.concatenate(
        [weights, means.reshape(*shape, 4), covariances.reshape(*shape, 8), likelihood], axis=-1
    )
    names = published["names"]
    assert names[2:5] == ["mean1.1", "mean1.2", "mean2.1"]
    assert names[6:8] == ["cov1.1.1", "cov1.1.2"]
    assert names[-1] == "loglik"
    values, errors = estimates(ours)
    theirs = np.array([published[name] for name in ("mean", "sd", "q05", "q50", "q95")])
    rows = [0, 1, 2, 4, 6]
    # Their error of a quantile or an sd is ours, scaled as the error of the mean.
    total = errors[rows] * np.sqrt(1 + (np.array(published["mcse"]) / errors[0]) ** 2)
    assert (np.abs(values[rows] - theirs) < 4.5 * total).all()
    assert (errors[0] < 0.05 * values[1]).all()


def gauss_program():
    """posteriordb's low_dim_gauss_mix; its order of the means is put in afterwards, since nothing else tells labels apart."""
    means = numpyro.sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    return bm.GaussianMixture(jnp.stack([theta, 1 - theta]), means[:, None], Covariance(sigma**2, "V"))


@pytest.mark.slow
@pytest.mark.skipif(not FETCHED.exists(), reason="needs posteriordb's low_dim_gauss_mix in BAYESMIX_FETCHED")
def test_posteriordbs_draws_are_reproduced_by_a_program():
    published = json.loads((FETCHED / "low_dim_gauss_mix_reference_summary.json").read_text())["params"]
    y = np.array(json.loads((FETCHED / "low_dim_gauss_mix.json").read_text())["y"])
    tree = bm.sample_posterior(bm.MixtureModel(2, "V", gauss_program), y, key=1, n_warmup=300, n_draws=1000)
    weights, means, covariances = in_order(tree)
    sigma = np.sqrt(covariances[..., 0, 0])
    ours = np.concatenate([means[..., 0], sigma, weights[..., :1]], axis=-1)
    rows = [published[name] for name in ("mu[1]", "mu[2]", "sigma[1]", "sigma[2]", "theta")]
    theirs = np.array(
        [[row[name] for row in rows] for name in ("mean", "sd", "q05", "q25", "q50", "q75", "q95")]
    )
    values, errors = estimates(ours)
    total = errors * np.sqrt(1 + (np.array([row["mcse_mean"] for row in rows]) / errors[0]) ** 2)
    assert (np.abs(values - theirs)[[0, 1, 2, 4, 6, 3, 5]] < 4.5 * total[[0, 1, 2, 4, 6, 3, 5]]).all()
