"""Passes that are shared among threads give what one thread gives, whatever is asked of the loop."""

import jax
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import bayesmix as bm
from bayesmix import assignments, em, problem, threads
from bayesmix.assignments import Assigned, sums_by_label
from bayesmix.covariance import structure_of
from bayesmix.devices import blas_on_one_thread, lapack_on_one_thread
from bayesmix.drive import begin
from bayesmix.given import given_start
from bayesmix.keys import key_data
from bayesmix.loop import Options, begin_turn
from bayesmix.observations import observe
from bayesmix.packing import Layout
from bayesmix.problem import prepare

N, D, K = 8000, 2, 3  # four blocks


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    means = np.array([[0.0, 0.0], [2.5, 0.0], [0.0, 3.0]])
    return means[rng.integers(K, size=N)] + rng.normal(size=(N, D)) * [1.0, 0.5]


@pytest.fixture
def by_parts(monkeypatch):
    """How often data came in several parts, since passes of any length are worth a thread here."""
    counts = []

    def parts_of(observations, products):
        counts.append(len(real(observations, products)))
        return real(observations, products)

    def switch(on):
        monkeypatch.setattr(threads, "_WORTH", 0 if on else np.inf)
        counts.clear()
        return counts

    real = threads.parts_of
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr("bayesmix.drive.parts_of", parts_of)
    return switch


CALLS = {
    "plain": lambda x: bm.fit(bm.MixtureModel(K), x, init=x[:K], accelerate=False),
    "accelerated": lambda x: bm.fit(bm.MixtureModel(K), x, init=x[:K], accelerate=True),
    "shared covariance, two starts": lambda x: bm.fit(bm.MixtureModel(K, "tied"), x, n_starts=2),
    "a prior and weights": lambda x: bm.fit(
        bm.MixtureModel(K, "diag", prior="weak"), x, init=x[:K], sample_weight=1 + np.arange(N) % 3
    ),
    "float32": lambda x: bm.fit(bm.MixtureModel(K), x.astype(np.float32), init=x[:K], max_steps=20),
    "k-means": lambda x: bm.kmeans(x, K, n_starts=2),
    "k-means, float32 and weights": lambda x: bm.kmeans(
        x.astype(np.float32), K, n_starts=2, sample_weight=1 + np.arange(N) % 3
    ),
    # Points on a grid tie between clusters, and the lower one takes them.
    "k-means of a grid": lambda x: bm.kmeans(
        np.round(x), K, init=np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    ),
    "k-means of a hundred clusters": lambda x: bm.kmeans(x, 100, init=x[:100]),  # whose sums the host makes
    "k-means of many clusters": lambda x: bm.kmeans(x, 1400, init=x[:1400], max_steps=4),
    "hard EM of a tied covariance": lambda x: bm.fit(
        bm.MixtureModel(K, "tied"), x, method="hard", init=x[:K], sample_weight=1 + np.arange(N) % 3
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_parts_add_up(x, by_parts, name):
    counts = by_parts(False)
    whole = CALLS[name](x)
    assert set(counts) == {1}
    counts = by_parts(True)
    shared = CALLS[name](x)
    assert set(counts) == {2}
    exact = 1e-4 if name == "float32" else 1e-6 if "float32" in name else 1e-9
    assert shared.n_steps == whole.n_steps
    assert shared.status == whole.status
    np.testing.assert_allclose(shared.objective, whole.objective, rtol=exact)
    np.testing.assert_allclose(shared.mixture.means, whole.mixture.means, rtol=exact, atol=exact)
    np.testing.assert_allclose(shared.mixture.covariances, whole.mixture.covariances, rtol=exact, atol=exact)
    np.testing.assert_allclose(shared.mixture.weights, whole.mixture.weights, rtol=exact)


def test_parts_draw_on_their_own(x, by_parts):
    by_parts(True)
    optimum = bm.fit(bm.MixtureModel(K), x, n_starts=1)
    fit, again = (
        bm.fit(bm.MixtureModel(K), x, method="stochastic", init=optimum.mixture, max_steps=40)
        for _ in range(2)
    )
    assert again.log_likelihood == fit.log_likelihood
    assert optimum.log_likelihood - fit.log_likelihood < 5
    problem, options = prepare(K, "VVV", x, None, 1e-4), Options("sampled")
    with jax.enable_x64(True):
        states = begin([given_start(optimum.mixture, problem)], options, key_data(0, 1))
        turn = begin_turn(jax.tree.map(lambda a: a[0], states), problem.rules, options)
        way = threads._Way(None, Layout.of(states.statistics), None, labelled=False)
        first, again, other = (
            threads._over(way, options, turn, problem.observations, np.int32(part), 1.0) for part in (0, 0, 1)
        )  # of the same points
    assert (first == again).all()
    assert (first != other).any()


def test_work_is_shared_where_it_is_worth_it(x, monkeypatch):
    problem = prepare(K, "EEE", x, None, 1e-4)
    assert len(threads.parts_of(problem.observations, 1e3)) == 1
    monkeypatch.setattr(threads, "cores", lambda: 3)
    parts = threads.parts_of(problem.observations, 1e9)
    assert [p.x.shape[0] for p in parts] == [2, 2]  # of four blocks, equal parts for at most three
    np.testing.assert_array_equal(np.concatenate([p.x for p in parts]), problem.observations.x)
    np.testing.assert_array_equal(sum(p.second for p in parts), problem.observations.second)


def test_a_sparse_sum_is_that_of_a_mask():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40_000, 3)).astype(np.float32)  # more than one stretch
    weight, label = (
        rng.integers(4, size=(len(rows), 2)).astype(np.float32),
        rng.integers(5, size=(len(rows), 2)),
    )
    label[label == 2] = 3  # nobody's
    sums = sums_by_label(rows, weight, label.astype(np.int32), 5)
    mask = ((label == np.arange(5)[:, None, None]) * weight.astype(float)).sum(axis=2)
    np.testing.assert_allclose(sums, mask @ np.c_[np.ones(len(rows)), rows], atol=4e-3)
    np.testing.assert_array_equal(sums[:, 0], mask.sum(axis=1))
    assert (sums[2] == 0).all()


def laid_out(rows, weight):
    """In blocks, the last of which is padded."""
    observations = observe(rows, weight, structure_of("EII", rows.shape[1]))
    assert observations.weight.size > len(rows)
    return observations


def moments_by_hand(rows, weight, means):
    """Σ w [1, x] by the nearest mean, in float64."""
    away = np.linalg.norm(rows[:, None].astype(float) - means, axis=2)
    mask = (away.argmin(axis=1) == np.arange(len(means))[:, None]) * weight.astype(float)
    return mask @ np.c_[np.ones(len(rows)), rows]


def natural_of(means, sphere, constant=0.0):
    return np.c_[constant - (means**2).sum(axis=1) / 2 / sphere, means / sphere]


@pytest.fixture
def looked_at(monkeypatch):
    """How many points each call of the compiled pass was for."""
    counts, real = [], assignments._pass

    def spied(natural, points, count, form):
        counts.append(int(count))
        return real(natural, points, count, form)

    monkeypatch.setattr(assignments, "_pass", spied)
    return counts


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "k"), [(1, 2), (3, 5), (12, 140), (24, 7)])
def test_points_are_looked_at_where_their_label_may_have_changed_and_nowhere_else(d, k, dtype, looked_at):
    """Means that move by less and less, and jump once."""
    rng = np.random.default_rng(d)
    rows = rng.normal(size=(5000, d)).astype(dtype)
    weight = rng.integers(0, 4, 5000).astype(dtype)
    means, sphere = rng.normal(size=(k, d)), 1.7
    assigned = Assigned(laid_out(rows, weight), k, nearest=True)
    last, shares = np.flatnonzero(weight)[-1] + 1, []
    for step in range(24):
        moments = assigned.at(natural_of(means, sphere, constant=3.0), sphere)
        exact = moments_by_hand(rows, weight, means.astype(dtype).astype(float))
        np.testing.assert_array_equal(moments[:, 0], exact[:, 0])
        np.testing.assert_allclose(moments, exact, atol=1e-9 if dtype == np.float64 else 5e-3)
        shares.append(sum(looked_at) / last)
        looked_at.clear()
        size = 2.0 if step == 12 else 0.3 * 0.5 ** (step % 12)
        means = means + rng.normal(size=(k, d)) * size / np.sqrt(d)
    assert shares[0] == shares[13] == 1
    assert max(shares[10:12]) < 0.1
    moments = assigned.at(natural_of(means, sphere), sphere)
    assert assigned.at(natural_of(means, sphere, constant=-2.0), sphere) is moments  # at rest
    assert sum(looked_at) < 0.1 * last


def test_what_ties_is_always_looked_at(looked_at):
    """Points on a grid between two means go to the lower one, also where the means come there from elsewhere."""
    rows = np.repeat(np.arange(-4.0, 5.0), 300)[:, None]
    weight = np.ones(len(rows))
    assigned = Assigned(laid_out(rows, weight), 2, nearest=True)
    assigned.at(natural_of(np.array([[-2.5], [2.0]]), 1.0), 1.0)
    for means in ([-2.0, 2.0], [-2.0, 2.0]):
        looked_at.clear()
        moments = assigned.at(natural_of(np.array(means)[:, None], 1.0), 1.0)
        assert moments[:, 0].tolist() == [1500, 1200]  # those at zero are with the first
        assert looked_at == [300]


def test_where_other_than_means_count_all_points_are_looked_at(looked_at):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(5000, 3))
    weight = rng.integers(0, 4, 5000).astype(float)
    assigned = Assigned(laid_out(rows, weight), 6, nearest=False)
    for _ in range(3):
        natural = rng.normal(size=(6, 4))
        moments = assigned.at(natural, 1.0)
        label = (np.c_[np.ones(5000), rows] @ natural.T).argmax(axis=1)
        mask = (label == np.arange(6)[:, None]) * weight
        np.testing.assert_array_equal(moments[:, 0], mask.sum(axis=1))
        np.testing.assert_allclose(moments, mask @ np.c_[np.ones(5000), rows], atol=1e-9)
        assert sum(looked_at) == np.flatnonzero(weight)[-1] + 1
        looked_at.clear()
    assert assigned.at(natural, 1.0) is moments


def test_sums_of_few_changes_lose_nothing():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(5000, 3)).astype(np.float32)
    weight = rng.integers(1, 4, 5000).astype(np.float32)
    assigned = Assigned(laid_out(rows, weight), 3, nearest=True)
    means = rng.normal(size=(3, 3))
    moments = assigned.at(natural_of(means, 1.0), 1.0)
    for _ in range(500):  # there and back
        assigned.at(natural_of(means + rng.normal(size=(3, 3)) * 0.02, 1.0), 1.0)
    np.testing.assert_allclose(assigned.at(natural_of(means, 1.0), 1.0), moments, atol=1e-9)


def test_bounds_hold_where_rounding_is_as_large_as_they_are(looked_at):
    """Narrow groups far from the origin, in float32: labels are those of a pass over all points."""
    rng = np.random.default_rng(3)
    centres = 300 + rng.normal(size=(8, 4))
    rows = (centres[rng.integers(8, size=6000)] + 0.02 * rng.normal(size=(6000, 4))).astype(np.float32)
    weight = np.ones(6000, np.float32)
    observations, means = laid_out(rows, weight), rows[:8].astype(float)
    assigned = Assigned(observations, 8, nearest=True)
    for _ in range(12):
        looked_at.clear()
        moments = assigned.at(natural_of(means, 1.0), 1.0)
        others = Assigned(observations, 8, nearest=True).at(natural_of(means, 1.0), 1.0)
        np.testing.assert_array_equal(moments[:, 0], others[:, 0])
        means = moments[:, 1:] / np.maximum(moments[:, :1], 1)


def lapack_threads():
    """How many threads LAPACK may take."""
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_lapack_has_one_thread_while_ours_have_the_cores_and_its_own_number_again_after():
    """Only where matrices are so large that it would start some."""
    with threadpool_limits(2, "blas"):
        with lapack_on_one_thread(4):
            assert lapack_threads() == {2}
        with lapack_on_one_thread(32):
            assert lapack_threads() == {1}
        assert lapack_threads() == {2}


def test_blas_has_one_thread_before_passes_that_threads_share():
    """And what overlaps with a limit on LAPACK, whichever ends first, leaves no limit behind."""
    with threadpool_limits(2, "blas"):
        with blas_on_one_thread(1000):
            assert lapack_threads() == {2}
        with blas_on_one_thread(), lapack_on_one_thread(32):
            assert lapack_threads() == {1}
        assert lapack_threads() == {2}
        one, other = blas_on_one_thread(), lapack_on_one_thread(50)
        for step in (one.__enter__, other.__enter__, lambda: one.__exit__(None, None, None)):
            step()
        assert lapack_threads() == {1}
        other.__exit__(None, None, None)
        assert lapack_threads() == {2}


def test_fits_that_overlap_give_lapack_its_threads_back():
    with threadpool_limits(2, user_api="blas"):
        one, other = lapack_on_one_thread(50), lapack_on_one_thread(50)
        one.__enter__()
        other.__enter__()
        assert lapack_threads() == {1}
        one.__exit__(None, None, None)
        assert lapack_threads() == {1}
        other.__exit__(None, None, None)
        assert lapack_threads() == {2}


def test_data_are_prepared_and_reported_on_one_thread_of_blas(monkeypatch):
    seen = []
    for module, name in ((problem, "standardize"), (em, "given_start"), (em, "finished")):
        own = getattr(module, name)

        def called(*arguments, own=own):
            seen.append(lapack_threads())
            return own(*arguments)

        monkeypatch.setattr(module, name, called)
    x = np.random.default_rng(0).normal(size=(20_000, 2))
    with threadpool_limits(2, "blas"):
        bm.kmeans(x, 3, init=x[:3], max_steps=2)
        assert lapack_threads() == {2}
    assert all(min(threads) == 1 for threads in seen)
    assert len(seen) == 3


def test_labels_of_thin_clusters_are_no_longer_summed_by_the_host(by_parts, monkeypatch):
    monkeypatch.setattr(threads, "_HOST", 0)
    rng = np.random.default_rng(0)
    z = rng.integers(3, size=8000)
    y = rng.normal(size=(8000, 3)) + 2.5 * np.eye(3)[z]
    thin = np.column_stack([y[:, :2], y[:, 0] + y[:, 1] + 1e-5 * y[:, 2]])
    counts = by_parts(True)
    one, other = (bm.fit(bm.MixtureModel(3, "tied"), x, method="hard", init=z) for x in (y, thin))
    assert max(counts) == 2
    assert one.n_steps == other.n_steps > 1
    np.testing.assert_allclose(other.objective[-1] + 8000 * np.log(1e-5), one.objective[-1], atol=1e-4)
