"""The two normal approximations: against Gibbs where the posterior is nearly normal, and refused or warned of where not."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import bayesmix as bm
from bayesmix.covariance import Covariance

METHODS = ["laplace", "vi"]


def sample():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(-3.0, 1.0, 240), rng.normal(3.0, 0.7, 160)]) * 1e3 + 1e6


@pytest.mark.parametrize("method", METHODS)
def test_an_approximation_is_the_posterior_where_that_is_nearly_normal(method):
    """Data at a thousand standard deviations from zero, in units of a thousand."""
    x, model = sample(), bm.MixtureModel(2, "V", prior="weak")
    options = {"key": 0, "n_draws": 1000}
    exact = bm.sample_posterior(model, x, method="gibbs", n_warmup=200, **options)
    tree = bm.sample_posterior(model, x, method=method, **options)
    assert tree["posterior"].attrs["method"] == method
    assert tree["posterior"].attrs["pareto_k"] < 0.7
    assert tree["sample_stats"]["log_weight"].dims == ("chain", "draw")
    order = np.argsort(exact["posterior"]["means"].values[0, 0, :, 0])
    ours = np.argsort(tree["posterior"]["means"].values[0, 0, :, 0])
    for name in ("weights", "means", "covariances"):
        target, found = (
            exact["posterior"][name].values[:, :, order],
            tree["posterior"][name].values[:, :, ours],
        )
        sd = target.std(axis=(0, 1))
        assert (np.abs(found.mean(axis=(0, 1)) - target.mean(axis=(0, 1))) < 0.15 * sd).all(), name
        assert_allclose(found.std(axis=(0, 1)), sd, rtol=0.15)
    assert set(tree.children) == set(exact.children)


@pytest.mark.parametrize("method", METHODS)
def test_weights_labels_and_starts_are_taken(method):
    x, model = sample(), bm.MixtureModel(2, "V", prior="weak")
    labels = np.full(len(x), -1)
    labels[[0, -1]] = [1, 0]
    start = bm.fit(model, x).mixture
    tree = bm.sample_posterior(
        model, x, key=0, method=method, n_draws=200, labels=labels, sample_weight=np.full(len(x), 1.5),
        init=start if start.means[0, 0] > start.means[1, 0] else bm.GaussianMixture.of(start.weights[::-1], start.means[::-1], start.covariances[::-1], covariance="V"),
    )  # fmt: skip
    assert (tree["allocations"]["z"].values[:, :, [0, -1]] == [1, 0]).all()
    assert (np.diff(tree["posterior"]["means"].values[..., 0], axis=-1) < 0).all()


def flat_direction():
    """A prior with a site on which neither it nor the data have a say."""
    free = numpyro.sample("nothing", dist.Normal(0, 1))
    numpyro.factor("flattened", free**2 / 2)
    means = numpyro.sample("means", dist.Normal(0, 4).expand([2]).to_event(1))
    return bm.GaussianMixture(
        jax.numpy.array([0.5, 0.5]), means[:, None], Covariance(jax.numpy.ones(2), "VII")
    )


def test_laplace_is_refused_where_the_hessian_is_not_positive_definite():
    model = bm.MixtureModel(2, "VII", flat_direction)
    with pytest.raises(
        ValueError, match=r"laplace is refused: the Hessian.*along 'nothing'.*use method='nuts'"
    ):
        bm.sample_posterior(model, np.array([-1.0, 1.0, 1.2]), key=0, method="laplace", n_draws=10)


def test_a_poor_approximation_says_so():
    """Eight points under a prior with a scale of its own: the posterior is far from normal."""
    model = bm.MixtureModel(2, "V", prior="hierarchical")
    x = np.random.default_rng(1).normal(size=8)
    with pytest.warns(UserWarning, match=r"the Pareto k of 'laplace' is .*above 0.7"):
        tree = bm.sample_posterior(model, x, key=0, method="laplace", n_draws=500)
    # Of the largest weights, not the smallest.
    weight = np.sort(np.exp(tree["sample_stats"]["log_weight"].values.ravel()))
    tail = int(3 * np.sqrt(weight.size))
    shape = stats.genpareto.fit(weight[-tail:] - weight[-tail - 1], floc=0)[0]
    assert tree["posterior"].attrs["pareto_k"] == pytest.approx(shape, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_draws", [1, 24])
def test_of_few_draws_nothing_is_said_of_the_tail(method, n_draws):
    model, options = bm.MixtureModel(2, "V", prior="weak"), {"key": 0, "n_chains": 1, "n_warmup": 50}
    tree = bm.sample_posterior(model, sample(), method=method, n_draws=n_draws, **options)
    assert np.isnan(tree["posterior"].attrs["pareto_k"])


def test_vi_needs_a_step():
    with pytest.raises(ValueError, match="n_warmup is the number of steps of 'vi', at least 1; it is 0"):
        bm.sample_posterior(bm.MixtureModel(2, "V", "weak"), sample(), key=0, method="vi", n_warmup=0)


@pytest.mark.parametrize(("structure", "d"), [("VVV", 2), ("EEE", 2), ("VVI", 2), ("V", 1)])
def test_fishers_identity_is_the_gradient(structure, d):
    """Against differentiating the pass over the data itself, and the second derivative against differences."""
    from bayesmix import potential
    from bayesmix.density import precision_factor
    from bayesmix.devices import double_precision
    from bayesmix.observations import observe
    from bayesmix.statistics import summarize

    x = np.random.default_rng(0).normal(size=(40, d))
    row = bm.MixtureModel(2, structure).structure
    observations = observe(x, np.ones(40), row)
    mixture = bm.fit(bm.MixtureModel(2, structure), x, max_steps=3).mixture

    def plain(m):
        return summarize(
            m, observations, "soft", factor=precision_factor(m.covariance, m.n_features)
        ).objective

    def fisher(m):
        return potential._log_density(m, precision_factor(m.covariance, m.n_features), observations)

    with double_precision():
        m = jax.tree.map(jax.numpy.asarray, mixture)
        (value, gradient), (other, expected) = jax.jit(
            lambda m: (jax.value_and_grad(fisher)(m), jax.value_and_grad(plain)(m))
        )(m)
        along = jax.tree.map(lambda leaf: leaf * 0.1, m)
        second, expected_second = jax.jit(
            lambda m: [jax.jvp(jax.grad(f), (m,), (along,))[1] for f in (fisher, plain)]
        )(m)
    assert_allclose(value, other, rtol=1e-13)
    for ours, theirs in ((gradient, expected), (second, expected_second)):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
            assert_allclose(a, b, rtol=1e-9, atol=1e-9)
