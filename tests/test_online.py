"""Online EM and mini-batch k-means: the recursion of Cappé and Moulines, written out with NumPy, and where it ends."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import bayesmix as bm
from bayesmix.covariance import structure_of
from bayesmix.keys import as_generator
from bayesmix.observations import batches_of

K, N, D = 3, 1500, 2
MEANS = np.array([[0.0, 0.0], [2.5, 1.0], [0.0, 3.0]])


def sample(n, seed=0):
    rng = np.random.default_rng(seed)
    return MEANS[rng.choice(K, n, p=[0.5, 0.3, 0.2])] + rng.normal(size=(n, D)) * [1.0, 0.6]


@pytest.fixture(scope="module")
def x():
    return sample(N)


@pytest.fixture(scope="module")
def many():
    return sample(20_000, 1)


def sums(x, weight, weights, means, covariances):
    """Σ w r [1, x, x xᵀ] (k, ...), from densities that are SciPy's."""
    logs = (
        np.stack([multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances)])
        + np.log(weights)[:, None]
    )
    r = np.exp(logs - logsumexp(logs, axis=0)) * weight
    return r.sum(axis=1), r @ x, np.einsum("kn,ni,nj->kij", r, x, x)


def maximum(counts, first, second, name):
    means = first / counts[:, None]
    within = second - np.einsum("k,ki,kj->kij", counts, means, means)
    if name == "EEE":
        covariances = np.tile(within.sum(axis=0) / counts.sum(), (K, 1, 1))
    else:
        covariances = within / counts[:, None, None]
        if name == "VVI":
            covariances = covariances * np.eye(D)
    return counts / counts.sum(), means, covariances


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI"])
def test_steps_are_those_of_the_recursion(x, name, weighted):
    weight = 1.0 + np.arange(N) % 3 if weighted else np.ones(N)
    start = bm.fit(bm.MixtureModel(K, name), x, n_starts=1, max_steps=1).mixture
    steps, batch = 9, 512
    fit = bm.fit(
        bm.MixtureModel(K, name), x, method="online", init=start, max_steps=steps, batch_size=batch, key=4,
        sample_weight=weight,
    )  # fmt: skip
    order = as_generator(4).permutation(N)
    y, w = x[order], weight[order]
    theta = start.weights, start.means, start.covariances
    known = sums(y, w, *theta)
    for step in range(steps - 1):
        theta = maximum(*known, name)
        own = slice(step % 3 * batch, (step % 3 + 1) * batch)
        scale = w.sum() / w[own].sum()
        found = sums(y[own], scale * w[own], *theta)
        size = (step + 10) ** -0.6
        known = [old + size * (new - old) for old, new in zip(known, found)]
    weights, means, covariances = maximum(*known, name)
    assert fit.n_steps == steps
    assert_allclose(fit.mixture.weights, weights, rtol=1e-9)
    assert_allclose(fit.mixture.means, means, rtol=1e-9, atol=1e-9)
    assert_allclose(fit.mixture.covariances, covariances, rtol=1e-9, atol=1e-9)
    assert_allclose(fit.log_likelihood, weight @ fit.mixture.log_density(x), rtol=1e-12)
    assert_allclose(fit.objective[-1], fit.log_likelihood, rtol=1e-9)


@pytest.mark.parametrize(("n", "size"), [(1500, 512), (1500, 400), (5000, 300), (100, 512), (9000, 1)])
@pytest.mark.parametrize("name", ["VVV", "EEE", "EEI", "EII"])
def test_batches_have_every_row_once_and_each_the_weight_of_all(n, size, name):
    rng = np.random.default_rng(n)
    x, weight, order = rng.normal(size=(n, D)), rng.uniform(1, 2, size=n), rng.permutation(n)
    found, count = batches_of(x[order], weight[order], structure_of(name), size)
    assert count == -(-n // found.x.shape[-1])
    assert found.x.shape[-1] % 64 == 0
    assert_allclose(found.weight[:count].sum(axis=1), weight.sum())
    assert not found.weight[count:].any()
    rows = np.moveaxis(found.x, 1, -1)[found.weight > 0]
    assert_array_equal(rows, x[order])
    if found.second is not None:
        square = np.einsum("bin,bjn,bn->bij", found.x, found.x, found.weight)
        own = np.diagonal(square, axis1=1, axis2=2)
        expected = {"EEE": square, "EEI": own, "EII": own.mean(axis=1)}[name]
        assert_allclose(found.second, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI", "EII", "VVE"])
def test_it_ends_near_the_maximum(many, name, dtype):
    data, model = many.astype(dtype), bm.MixtureModel(K, name)
    best = bm.fit(model, data)
    fit = bm.fit(model, data, method="online")
    assert fit.status.startswith("finished: the mixture that the statistics of 1000 batches settled at")
    assert not fit.spurious
    assert fit.n_steps == 1000
    assert fit.mixture.means.dtype == dtype
    # The noise of the statistics is that of a hundred thousand rows.
    assert -0.1 < best.log_likelihood - fit.log_likelihood < 10
    more = bm.fit(model, data, init=fit.mixture)
    assert more.converged
    assert abs(more.log_likelihood - best.log_likelihood) < 0.2


def test_one_cluster_and_rows_that_fit_one_batch(x):
    exact = bm.fit(bm.MixtureModel(1), x)
    fit = bm.fit(bm.MixtureModel(1), x, method="online", max_steps=3, batch_size=N)
    assert_allclose(fit.mixture.covariances, exact.mixture.covariances, rtol=1e-10)
    none = bm.fit(bm.MixtureModel(K), x, method="online", init=exact_start(x), max_steps=0)
    assert none.n_steps == 0
    assert_allclose(none.mixture.means, exact_start(x).means, rtol=1e-12)
    one = bm.fit(bm.MixtureModel(K), x, method="online", init=exact_start(x), max_steps=1)
    assert_allclose(
        one.mixture.means, bm.fit(bm.MixtureModel(K), x, init=exact_start(x), max_steps=1).mixture.means
    )


def exact_start(x):
    return bm.fit(bm.MixtureModel(K), x, n_starts=1, max_steps=3).mixture


def test_what_is_held_stays_and_a_prior_counts(many):
    start = bm.GaussianMixture.of(np.full(K, 1 / K), MEANS, np.tile(np.diag([1.0, 0.36]), (K, 1, 1)))
    held = bm.fit(
        bm.MixtureModel(K), many, method="online", init=start, hold=("weights", "covariance"), max_steps=50
    )
    assert_array_equal(held.mixture.weights, start.weights)
    assert_allclose(held.mixture.covariances, start.covariances, rtol=1e-12)
    model = bm.MixtureModel(K, prior="weak")
    fit = bm.fit(model, many, method="online", max_steps=200)
    again = bm.fit(model, many, init=fit.mixture, max_steps=0)
    assert_allclose(fit.objective[-1], again.objective[-1], rtol=1e-10)
    assert fit.objective[-1] != pytest.approx(fit.log_likelihood, abs=1e-3)


def test_it_repeats_itself_and_another_key_takes_another_way(many):
    first, again, other = (
        bm.fit(bm.MixtureModel(K), many, method="online", max_steps=20, key=key) for key in (0, 0, 1)
    )
    assert_array_equal(first.mixture.means, again.mixture.means)
    assert (first.mixture.means != other.mixture.means).any()


def test_a_saved_fit_comes_back(x, tmp_path):
    fit = bm.fit(bm.MixtureModel(K), x, method="online", max_steps=20)
    fit.save(tmp_path / "fit.json")
    loaded = bm.load(tmp_path / "fit.json")
    assert (loaded.method, loaded.status) == (fit.method, fit.status)
    assert bm.standard_errors(fit, x).summary().shape[0] > 0


def test_mini_batch_k_means_is_near_k_means(many):
    exact = bm.kmeans(many, K)
    fit = bm.kmeans(many, K, batch_size=512)
    assert exact.inertia <= fit.inertia < 1.001 * exact.inertia
    distance = ((many[:, None] - fit.mixture.means) ** 2).sum(axis=-1)
    assert_array_equal(fit.labels, distance.argmin(axis=1))
    assert_allclose(fit.inertia, distance.min(axis=1).sum(), rtol=1e-10)
    assert fit.status.startswith("finished")
    assert fit.method == "online"


def test_mini_batch_k_means_of_more_clusters_than_distinct_rows():
    fit = bm.kmeans(np.repeat([0.0, 1.0, 5.0], 300), 5, batch_size=256)
    assert fit.inertia == 0
    assert "3 distinct rows for 5 clusters" in fit.status


def test_clusters_that_a_batch_does_not_see_are_not_lost():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=20_000), rng.normal(50, 1, size=12)])  # in some of 80 batches
    fit = bm.kmeans(x, 2, batch_size=256)
    assert sorted(fit.mixture.means.round(-1).ravel()) == [0, 50]
    soft = bm.fit(bm.MixtureModel(2), x, method="online", batch_size=256, init=np.array([[0.0], [50.0]]))
    assert sorted(soft.mixture.means.round(-1).ravel()) == [0, 50]


def test_narrow_clusters_far_away_keep_their_digits():
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(0, 1e-4, size=(6000, 2)), rng.normal(30, 1e-4, size=(4000, 2))])
    fit = bm.fit(bm.MixtureModel(2), x, method="online", batch_size=512, max_steps=300)
    best = bm.fit(bm.MixtureModel(2), x)
    assert fit.status.startswith("finished")
    assert -0.1 < best.log_likelihood - fit.log_likelihood < 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 100}, "batch_size is for method='online'; method is 'soft'"),
        ({"method": "hard", "batch_size": 100}, "method is 'hard'"),
        ({"method": "online", "batch_size": 0}, "batch_size must be"),
        ({"method": "online", "batch_size": 2.5}, "batch_size must be"),
        ({"method": "online", "accelerate": True}, "accelerate=True cannot be"),
    ],
)
def test_options_that_cannot_be_are_said_at_the_door(x, options, words):
    with pytest.raises(ValueError, match=words):
        bm.fit(bm.MixtureModel(K), x, **options)
