"""The posterior mode: mclust's numbers, SciPy's density, and no collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NAMES, K, data
from nearby import gradient, log_joint
from numpy.testing import assert_allclose
from reference import load, rows
from scipy import stats

import bayesmix as bm
from bayesmix.covariance import STRUCTURES


def map_cases():
    for run in load("map_prior.json.gz")["runs"]:
        if run["model"] in STRUCTURES and run["checked"]:
            yield pytest.param(run, id=f"{run['dataset']}-{run['model']}-{run['G']}-{run['stage']}")


@pytest.mark.parametrize("run", list(map_cases()))
def test_the_posterior_mode_is_mclusts(run):
    x = rows(run["dataset"]) / run["divided_by"]
    given = run["prior"]
    d = x.shape[1]
    scale = np.asarray(given["scale"])
    scale = scale.reshape(d, d) if STRUCTURES[run["model"]].storage == "full" else float(scale)
    prior = bm.ConjugatePrior.of(
        mean=given["mean"], mean_count=given["shrinkage"], degrees_of_freedom=given["dof"], scale=scale
    )
    first = run["stage"] == "iter1"
    fit = bm.fit(
        bm.MixtureModel(run["G"], run["model"], prior),
        x,
        init=np.array(run["z_in_class"]) - 1,
        tol=0 if first else 1e-9,
        max_steps=1 if first else 100_000,
    )
    assert fit.converged or first
    assert_allclose(fit.log_likelihood, run["loglik"], rtol=1e-8 if first else 1e-5)
    rtol = 1e-8 if first else 2e-3
    assert_allclose(fit.mixture.weights, run["pro"], rtol=rtol)
    assert_allclose(fit.mixture.means, np.reshape(run["mean"], fit.mixture.means.shape), rtol=rtol)
    covariances = run["covariances"] if run.get("covariances") else run["variances"]
    assert_allclose(
        fit.mixture.covariances,
        np.reshape(covariances, fit.mixture.covariances.shape),
        rtol=rtol,
        atol=rtol * np.abs(covariances).max(),
    )


def priors(name):
    d = data(name)[0].shape[1]
    storage = STRUCTURES[name].storage
    scale = {"full": 0.7 * np.eye(d) + 0.2, "diagonal": np.linspace(0.5, 1.5, d), "spherical": 0.8}[storage]
    return bm.ConjugatePrior.of(
        mean=np.full(d, 0.3),
        mean_count=0.4,
        degrees_of_freedom=d + 3.5,
        scale=scale,
        concentration=[1.5, 2.0, 3.0],
    )


def scipy_log_prior(prior, m, name):
    """The density as it is written down, one site at a time."""
    row, d = STRUCTURES[name], m.n_features
    covariances = m.covariances[:1] if row.shared else m.covariances
    total = stats.dirichlet.logpdf(m.weights / m.weights.sum(), prior.concentration)
    for mean, covariance in zip(m.means, m.covariances, strict=True):
        total += stats.multivariate_normal.logpdf(mean, prior.mean, covariance / prior.mean_count)
    a = prior.degrees_of_freedom / 2
    for covariance in covariances:
        if row.storage == "full":
            total += stats.invwishart.logpdf(covariance, prior.degrees_of_freedom, prior.scale)
        elif row.storage == "diagonal":
            total += stats.invgamma.logpdf(
                np.diag(covariance), a, scale=np.broadcast_to(prior.scale, (d,)) / 2
            ).sum()
        else:
            total += stats.invgamma.logpdf(covariance[0, 0], a, scale=float(prior.scale) / 2)
    return float(total)


BOTH = [("soft", name) for name in NAMES] + [("hard", name) for name in ("V", "EII", "VVV")]


@pytest.mark.parametrize(("method", "name"), BOTH)
def test_the_objective_is_the_free_energy_plus_the_log_prior_and_rises(name, method):
    x, z = data(name)
    x = 3.3 * x + 100  # the prior is in the data's own units
    model = bm.MixtureModel(K, name, priors(name))
    fit = bm.fit(model, x, method=method, init=z)
    assert fit.converged
    assert np.diff(fit.objective).min() >= -1e-9 * abs(fit.objective[-1])
    energy = fit.log_likelihood if method == "soft" else fit.classification_log_likelihood
    assert_allclose(fit.objective[-1], energy + scipy_log_prior(priors(name), fit.mixture, name), rtol=1e-9)
    assert "posterior mode" in str(fit.summary().index)


def log_posterior(weights, means, covariances, x, prior, row):
    """By the formulas, for any structure: dense covariances, each with its own prior, or the one that all share."""
    k, d = means.shape[1:]
    total = np.logaddexp.reduce(log_joint(weights, means, covariances, x), axis=2).sum(axis=1)
    total += ((prior.concentration - 1) * np.log(weights)).sum(axis=1)
    away, inverse = means - prior.mean, np.linalg.inv(covariances)
    logs = np.linalg.slogdet(covariances)[1]
    squared = np.einsum("mki,mkij,mkj->mk", away, inverse, away)
    total -= (prior.mean_count * squared / 2 + logs / 2).sum(axis=1)
    nu = prior.degrees_of_freedom
    if row.storage == "full":
        each = (nu + d + 1) / 2 * logs + np.einsum("mkij,ji->mk", inverse, prior.scale) / 2
    else:
        cells = np.diagonal(covariances, axis1=2, axis2=3)[..., : d if row.storage == "diagonal" else 1]
        each = ((nu + 2) / 2 * np.log(cells) + prior.scale / cells / 2).sum(axis=2)
    return total - each.sum(axis=1) / (k if row.shared else 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_log_posterior_is_zero_at_the_mode(name):
    """In the free parameters of the structure; the density is that of weights, means and covariances themselves."""
    x, z = data(name)
    prior = priors(name)
    m = bm.fit(bm.MixtureModel(K, name, prior), x, init=z, tol=1e-11).mixture
    assert_allclose(gradient(m, lambda *at: log_posterior(*at, x, prior, STRUCTURES[name])), 0, atol=2e-3)


SITED = [name for name in NAMES if len({*STRUCTURES[name].letters} - {"I"}) == 1]


@pytest.mark.parametrize("name", SITED)
def test_the_mode_is_that_of_the_numpyro_model_with_the_jacobian_of_its_site(name):
    """log p(weights, means, Σ) from NumPyro's density of (weights, means, site), plus log |d site / d Σ|."""
    from numpyro.infer.util import log_density

    x, z = data(name)
    prior, row = priors(name), STRUCTURES[name]
    model = bm.MixtureModel(K, name, prior)
    m = bm.fit(model, x, init=z, tol=1e-11).mixture
    d = m.n_features

    def site(values):
        """The site of stored covariances, and the log-Jacobian of the map from the covariances' free entries."""
        if row.storage != "full":
            return 1 / values, jnp.sum(-2 * jnp.log(values))

        def entries(vector):
            matrix = jnp.zeros((d, d)).at[np.tril_indices(d)].set(vector)
            matrix = matrix + jnp.tril(matrix, -1).T
            return jnp.linalg.cholesky(jnp.linalg.inv(matrix))[np.tril_indices(d)]

        def one(matrix):
            vector = matrix[np.tril_indices(d)]
            return jnp.linalg.cholesky(jnp.linalg.inv(matrix)), jnp.linalg.slogdet(
                jax.jacfwd(entries)(vector)
            )[1]

        sites, logs = jax.vmap(one)(values)
        return sites, jnp.sum(logs)

    def total(weights, means, values):
        sites, jacobian = site(values)
        sites = sites[0] if row.shared else sites
        own = {"full": "precision_cholesky", "diagonal": "precisions", "spherical": "precision"}[row.storage]
        parameters = {"weights": weights, "means": means, own: sites}
        return log_density(model.marginal, (x,), {}, parameters)[0] + jacobian

    with jax.enable_x64(True):
        arguments = m.weights, m.means, m.covariance.values
        by_weights, by_means, by_values = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*arguments)
    assert_allclose(by_means, 0, atol=1e-3)
    symmetric = by_values + np.swapaxes(by_values, -1, -2) if row.storage == "full" else by_values
    assert_allclose(symmetric, 0, atol=4e-3)
    assert_allclose(by_weights, by_weights[0], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_weak_prior_moves_with_the_data(name):
    x, z = data(name)
    model = bm.MixtureModel(K, name, "weak")
    plain = bm.fit(model, x, init=z, tol=1e-10)
    moved = bm.fit(model, -5e-7 * x + 1e-3, init=z, tol=1e-10)
    assert_allclose((moved.mixture.means - 1e-3) / -5e-7, plain.mixture.means, atol=1e-4)
    assert_allclose(moved.mixture.covariances / 25e-14, plain.mixture.covariances, rtol=1e-4, atol=1e-5)


def test_the_weak_prior_is_the_remedy_that_a_collapsed_fit_names():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 2)), np.full((5, 2), 6.0)])
    labels = np.repeat([0, 1], [60, 5])
    collapsed = bm.fit(bm.MixtureModel(2), x, init=labels)
    assert 'prior="weak"' in collapsed.status
    cured = bm.fit(bm.MixtureModel(2, prior="weak"), x, init=labels)
    assert cured.converged
    assert np.linalg.eigvalsh(cured.mixture.covariances).min() > 1e-2


def test_weights_are_repetition_for_the_weak_prior_too():
    x = data("VVV")[0][:40]
    weight = np.arange(40) % 3
    model = bm.MixtureModel(2, prior="weak")
    a = bm.fit(model, x, sample_weight=weight, tol=1e-9)
    b = bm.fit(model, np.repeat(x, weight, axis=0), tol=1e-9)
    assert_allclose(a.mixture.means, b.mixture.means, rtol=1e-5, atol=1e-6)
    assert_allclose(a.objective[-1], b.objective[-1], rtol=1e-8)
