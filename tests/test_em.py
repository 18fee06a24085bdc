"""The one loop: it climbs, it comes to rest at an optimum, and it does not care about units, order or copies."""

import jax
import numpy as np
import pytest
from cases import FEW, NAMES, K, data, features, fitted
from nearby import MOST, gradient, log_joint, nearby
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import bayesmix as bm
from bayesmix import engines
from bayesmix.covariance import STRUCTURES

METHODS = ("soft", "hard", "stochastic", "annealed")


def model(name, k=K):
    return bm.MixtureModel(k, name)


def same(a, b, rtol=1e-6):
    """Two fits of the same labels agree in every parameter."""
    assert_allclose(a.mixture.weights, b.mixture.weights, rtol=rtol)
    assert_allclose(a.mixture.means, b.mixture.means, rtol=rtol, atol=rtol)
    assert_allclose(a.mixture.covariances, b.mixture.covariances, rtol=rtol, atol=rtol)


BOTH = [("soft", name) for name in NAMES] + [("hard", name) for name in ("V", "EEE", "VVI")]


@pytest.mark.parametrize(("method", "name"), BOTH)
def test_the_objective_never_falls_and_belongs_to_the_mixture(name, method):
    x, z = data(name)
    fit = bm.fit(model(name), x, method=method, init=z, tol=1e-9)
    assert fit.converged, fit.status
    assert len(fit.objective) == fit.n_steps
    assert np.diff(fit.objective).min() >= -1e-10 * abs(fit.objective[-1])
    total = fit.log_likelihood if method == "soft" else fit.classification_log_likelihood
    assert_allclose(fit.objective[-1], total, rtol=1e-10)
    assert_allclose(fit.log_likelihood, fit.mixture.log_density(x).sum(), rtol=1e-12)
    assert_array_equal(fit.labels, fit.mixture.classify(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_likelihood_is_zero_at_the_optimum(name):
    x, _ = data(name)
    slope = gradient(
        fitted(name).mixture, lambda *m: np.logaddexp.reduce(log_joint(*m, x), axis=2).sum(axis=1)
    )
    assert_allclose(slope, 0, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_one_m_step_maximises_the_expected_log_joint(name):
    x, z = data(name)
    r = 0.7 * (z[:, None] == np.arange(K)) + 0.1
    fit = bm.fit(model(name), x, init=r, max_steps=1, tol=0)
    assert fit.n_steps == 1
    assert_allclose(gradient(fit.mixture, lambda *m: (r * log_joint(*m, x)).sum(axis=(1, 2))), 0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_no_mixture_of_the_structure_nearby_or_far_has_a_higher_expected_log_joint(name):
    x, z = data(name)
    r = 0.7 * (z[:, None] == np.arange(K)) + 0.1
    fit = bm.fit(model(name), x, init=r, max_steps=1, tol=0)
    size = fit.mixture.n_parameters
    steps = np.random.default_rng(0).normal(size=(MOST, size)) * np.geomspace(1e-3, 2, MOST)[:, None]
    values = (r * log_joint(*nearby(fit.mixture, steps), x)).sum(axis=(1, 2))
    assert (values < np.sum(r * fit.mixture.log_joint(x))).all()


def slow_em(m, x, steps):
    """The textbook, full covariances, one cluster at a time."""
    for _ in range(steps):
        r = m.responsibilities(x)
        n = r.sum(axis=0)
        means = (r.T @ x) / n[:, None]
        covariances = [(r[:, k, None] * (x - means[k])).T @ (x - means[k]) / n[k] for k in range(len(n))]
        m = bm.GaussianMixture.of(n / n.sum(), means, covariances)
    return m


def test_steps_are_the_textbooks():
    x, z = data("VVV")
    start = bm.fit(model("VVV"), x, init=z, max_steps=1, tol=0).mixture
    fit = bm.fit(model("VVV"), x, init=start, max_steps=4, tol=0)
    slow = slow_em(start, x, 4)
    assert fit.n_steps == 4
    assert len(fit.objective) == 5
    assert_allclose(fit.objective[0], start.log_density(x).sum(), rtol=1e-12)
    assert_allclose(fit.mixture.means, slow.means, rtol=1e-9)
    assert_allclose(fit.mixture.covariances, slow.covariances, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", FEW)  # k = 1 has programs of its own
def test_one_cluster_is_the_closed_form(name):
    x, _ = data(name)
    fit = bm.fit(model(name, 1), x)
    assert fit.n_steps == 1
    assert fit.converged
    assert_allclose(fit.mixture.means[0], x.mean(axis=0), rtol=1e-10)
    covariance = np.cov(x.T, bias=True).reshape(features(name), -1)
    kept = {"full": covariance, "diagonal": np.diag(np.diag(covariance)), "spherical": np.trace(covariance) / len(covariance) * np.eye(len(covariance))}  # fmt: skip
    assert_allclose(fit.mixture.covariances[0], kept[STRUCTURES[name].storage], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scale", "shift"), [(1, 1e8), (1e12, 0), (1e-12, 0), (-3.7, 1e3)])
def test_moving_and_rescaling_the_data_moves_and_rescales_the_fit(name, scale, shift):
    x, z = data(name)
    plain = fitted(name)
    fit = bm.fit(model(name), scale * x + shift, init=z, tol=1e-10)
    lost = 1e-16 * abs(shift) + 1e-13
    assert_allclose(fit.mixture.weights, plain.mixture.weights, rtol=1e-5)
    assert_allclose((fit.mixture.means - shift) / scale, plain.mixture.means, atol=1e-5 + lost)
    assert_allclose(fit.mixture.covariances / scale**2, plain.mixture.covariances, rtol=1e-4, atol=1e-5)
    moved = len(x) * x.shape[1] * np.log(abs(scale))
    assert_allclose(fit.log_likelihood + moved, plain.log_likelihood, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if STRUCTURES[name].by_column])
def test_columns_may_have_units_of_their_own(name):
    x, z = data(name)
    units = np.array([1e-9, 1.0, 1e9])
    fit = bm.fit(model(name), x * units, init=z, tol=1e-10)
    assert_allclose(fit.mixture.means / units, fitted(name).mixture.means, atol=1e-5)
    assert_allclose(
        fit.mixture.covariances / np.outer(units, units), fitted(name).mixture.covariances, atol=1e-5
    )


@pytest.mark.parametrize("name", ["EEI", "VVI", "EEE", "VVV"])
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random"])
def test_our_own_starts_do_not_depend_on_the_units_of_columns(name, init):
    x = bm.datasets.load("old_faithful").to_numpy()
    units = np.array([1.3e-7, 0.77e5])
    a = bm.fit(model(name), x, init=init, n_starts=4, key=3)
    b = bm.fit(model(name), x * units, init=init, n_starts=4, key=3)
    assert_array_equal(a.labels, b.labels)
    assert_allclose(b.mixture.means / units, a.mixture.means, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if STRUCTURES[name].letters[2] != "I" or name in ("EII", "VII")]
)
def test_rotating_the_data_rotates_the_fit(name):
    x, z = data(name)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    fit = bm.fit(model(name), x @ rotation, init=z, tol=1e-10)
    assert_allclose(fit.mixture.means, fitted(name).mixture.means @ rotation, atol=1e-5)
    assert_allclose(fit.log_likelihood, fitted(name).log_likelihood, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_and_clusters_does_not_matter(name):
    x, z = data(name)
    order = np.random.default_rng(1).permutation(len(x))
    fit = bm.fit(model(name), x[order], init=(z[order] + 1) % K, tol=1e-10)
    back = np.roll(np.arange(K), -1)
    assert_allclose(fit.mixture.means[back], fitted(name).mixture.means, atol=1e-5)
    assert_allclose(fit.log_likelihood, fitted(name).log_likelihood, rtol=1e-9)


# Starts and responsibilities do not depend on how a structure is constrained: a few of them, one in every way.
WAYS = [("soft", "kmeans", name) for name in FEW]
WAYS += [
    (method, init, name)
    for name in ("EEI",)
    for method, init in (("hard", "kmeans"), ("soft", "k-means++"), ("hard", "random"))
]


@pytest.mark.parametrize(("method", "init", "name"), WAYS)
def test_an_integer_weight_is_repetition_and_zero_is_absence(name, method, init):
    """From the same key, in starts as in steps."""
    x, _ = data(name)
    x = x[:40]
    weight = np.arange(40) % 4
    options = {"method": method, "init": init, "n_starts": 3, "key": 4, "tol": 1e-9}
    weighted = bm.fit(model(name, 2), x, sample_weight=weight, **options)
    repeated = bm.fit(model(name, 2), np.repeat(x, weight, axis=0), **options)
    same(weighted, repeated, rtol=1e-5)
    assert_allclose(weighted.log_likelihood, repeated.log_likelihood, rtol=1e-8)
    assert_allclose(weighted.bic, repeated.bic, rtol=1e-8)
    assert_array_equal(weighted.labels[weight > 0], weighted.mixture.classify(x[weight > 0]))
    absent = x.copy()
    absent[weight == 0] = 1e6
    same(weighted, bm.fit(model(name, 2), absent, sample_weight=weight, **options), rtol=1e-9)


def test_scaling_all_weights_changes_nothing_but_the_total():
    x, z = data("VVV")
    twice = bm.fit(model("VVV"), x, init=z, sample_weight=np.full(len(x), 2.0), tol=1e-10)
    same(twice, fitted("VVV"), rtol=1e-5)
    assert_allclose(twice.log_likelihood, 2 * fitted("VVV").log_likelihood, rtol=1e-9)
    assert twice.n_observations == 2 * len(x)


@pytest.mark.parametrize("name", FEW)
def test_float32_data_give_a_float32_fit_that_agrees(name):
    x, z = data(
        name, 0
    )  # a sample on which no structure's likelihood is nearly flat, where float32 would stop early
    fit = bm.fit(model(name), x.astype(np.float32), init=z)
    assert fit.mixture.means.dtype == np.float32
    assert fit.converged, fit.status
    double = bm.fit(model(name), x, init=z)
    assert_allclose(fit.mixture.means, double.mixture.means, atol=0.03)
    assert_allclose(fit.log_likelihood, double.log_likelihood, rtol=1e-5)
    moved = bm.fit(model(name), (x + 1e4).astype(np.float32), init=z)
    assert_allclose(moved.mixture.means - 1e4, double.mixture.means, atol=0.05)
    assert_allclose(moved.log_likelihood, double.log_likelihood, rtol=3e-4)


def test_two_blobs_far_from_the_origin_in_float32_keep_their_variance():
    """One-pass variances about the origin read 0.61 for 0.96 here."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 8]).astype(np.float32)
    for name in ("tied", "diag", "spherical", "full"):
        near = bm.fit(model(name, 2), x)
        far = bm.fit(model(name, 2), x + np.float32(1e3))
        assert_allclose(far.mixture.covariances, near.mixture.covariances, atol=2e-3)


@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-5])
def test_a_cluster_much_thinner_than_the_spread_keeps_its_shape(ratio):
    """The raw rule gives way to the whitened one before digits are lost."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    thin = rng.normal(size=(300, 2)) * [1, ratio] @ turn + 3
    round_ = rng.normal(size=(300, 2)) @ np.diag([1.0, 0.7]) - 3
    x = np.concatenate([thin, round_])
    fit = bm.fit(model("VVV", 2), x, init=np.repeat([0, 1], 300), tol=1e-8)
    eigenvalues = np.linalg.eigvalsh(fit.mixture.covariances[0])
    assert_allclose(
        eigenvalues[0], np.linalg.eigvalsh(np.cov(thin.T, bias=True))[0], rtol=max(1e-6, 1e-14 / ratio**2)
    )
    assert np.diff(fit.objective).min() >= -1e-8 * abs(fit.objective[-1])
    if ratio == 1e-2:
        single = bm.fit(model("VVV", 2), x.astype(np.float32), init=np.repeat([0, 1], 300))
        assert_allclose(
            np.linalg.eigvalsh(single.mixture.covariances[0].astype(float))[0], eigenvalues[0], rtol=5e-3
        )


@pytest.mark.parametrize("thinness", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("name", ["EEE", "VVV", "EVV"])
def test_families_closed_under_linear_maps_keep_digits_of_columns_nearly_collinear(name, thinness):
    rng = np.random.default_rng(0)
    z = rng.integers(3, size=1500)
    y = rng.normal(size=(1500, 3)) + 2.5 * np.eye(3)[z]
    x = np.column_stack([y[:, :2], y[:, 0] + y[:, 1] + thinness * y[:, 2]])
    one, other = (bm.fit(model(name), points, init=z, tol=0, max_steps=10) for points in (y, x))
    moved = other.objective + 1500 * np.log(thinness)
    assert_allclose(moved, one.objective, atol=1e-3 if thinness == 1e-5 else 1e-5)
    assert np.diff(other.objective).min() >= 0
    assert_allclose(other.objective[-1], other.log_likelihood, rtol=1e-8)


@pytest.mark.parametrize("name", ["EEE", "EEI", "EII"])
@pytest.mark.parametrize("apart", [20, 300])
def test_float32_clusters_of_one_covariance_far_apart_keep_it(name, apart):
    rng = np.random.default_rng(0)
    z = rng.integers(5, size=20_000)
    x = (rng.normal(size=(20_000, 4)) + apart * rng.normal(size=(5, 4))[z]).astype(np.float32)
    single = bm.fit(model(name, 5), x, init=z, max_steps=5, tol=0)
    double = bm.fit(model(name, 5), x.astype(float), init=z, max_steps=5, tol=0)
    assert_allclose(single.objective, double.objective, atol=1e-4 * len(x))
    assert_allclose(single.mixture.covariances, double.mixture.covariances, atol=1e-4)


@pytest.mark.parametrize("name", ["VVV", "EEE", "EVV"])
def test_hard_em_ends_when_its_assignment_repeats_however_thin_clusters_are(name):
    rng = np.random.default_rng(0)
    z = rng.integers(3, size=1500)
    y = rng.normal(size=(1500, 3)) + 2.5 * np.eye(3)[z]
    x = np.column_stack([y[:, :2], y[:, 0] + y[:, 1] + 1e-5 * y[:, 2]])
    one, other = (bm.fit(model(name), points, init=z, method="hard") for points in (y, x))
    assert one.converged
    assert other.converged
    assert 2 < other.n_steps == one.n_steps
    assert_array_equal(other.labels, one.labels)


@pytest.mark.parametrize(
    "method", ["soft", "hard", "annealed", "online", "stochastic", "stochastic_approximation"]
)
def test_no_step_is_no_step_of_any_method(method):
    x = np.random.default_rng(0).normal(size=(100, 2))
    start = bm.GaussianMixture.of([0.5, 0.5], [[-1.0, 0], [1, 0]], [np.eye(2)] * 2)
    fit = bm.fit(model("VVV", 2), x, init=start, method=method, max_steps=0)
    assert_allclose(fit.mixture.means, start.means, atol=1e-12)
    assert_allclose(fit.log_likelihood, start.log_density(x).sum())
    assert fit.n_steps == 0


def two_pass(x, r, steps):
    """EM as textbooks have it, from responsibilities: deviations from means, never moments; float64."""
    for step in range(steps):
        if step:
            logs = np.stack(
                [
                    np.log(w) + stats.multivariate_normal(m, c).logpdf(x)
                    for w, m, c in zip(weights, means, covariances)  # noqa: F821, of the step before
                ]
            ).T
            r = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
        count = r.sum(axis=0)
        weights, means = count / len(x), (r.T @ x) / count[:, None]
        away = x[:, None] - means
        covariances = np.einsum("nk,nki,nkj->kij", r, away, away) / count[:, None, None]
    return weights, means, covariances


CLUSTERS = {  # share of points, distance, width
    "standardised": (0.3, 3, 1.0),
    "a hundredth of the points, thirty standard deviations away": (0.01, 30, 1.0),
    "1e4 times narrower": (0.3, 3, 1e-4),
}


@pytest.mark.parametrize("case", CLUSTERS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_twenty_steps_are_those_of_a_two_pass_reference(case, dtype):
    share, distance, width = CLUSTERS[case]
    if dtype == np.float32:
        width = max(width, 1e-2)  # below 1e-3 of the spread float32 takes a cluster for collapsed
    rng = np.random.default_rng(0)
    z = (rng.uniform(size=1500) < share).astype(int)
    x = rng.normal(size=(1500, 2)) @ np.array([[1.0, 0.4], [0.0, 0.8]])
    x = np.where(z[:, None] == 1, x * width + distance, x).astype(dtype).astype(float)
    r = np.eye(2)[np.where(rng.uniform(size=1500) < 0.1, 1 - z, z)] * 0.8 + 0.1  # soft, and partly wrong
    if width < 1:
        r = np.eye(2)[z] * 0.98 + 0.01
    weights, means, covariances = two_pass(x, r, 20)
    fit = bm.fit(model("VVV", 2), x.astype(dtype), init=r, max_steps=20, tol=0)
    reference = bm.GaussianMixture.of(weights, means, (covariances + np.swapaxes(covariances, 1, 2)) / 2)
    per_point = abs(fit.log_likelihood - reference.log_density(x).sum()) / len(x)
    if dtype == np.float32:
        assert per_point < 1e-4
        return
    exact = 1e-6 if width < 1 else 1e-9
    deviation = np.sqrt(np.einsum("kii->ki", covariances))
    assert_allclose(fit.mixture.weights, weights, rtol=exact)
    assert_allclose((fit.mixture.means - means) / deviation, 0, atol=exact)
    scale = deviation[:, :, None] * deviation[:, None]
    assert_allclose((fit.mixture.covariances - covariances) / scale, 0, atol=exact)
    assert per_point < exact


def test_tolerance_bounds_what_is_left_to_gain():
    x = bm.datasets.load("old_faithful")
    for name in ("EEE", "VVV", "VVI"):
        loose = bm.fit(model(name), x)
        tight = bm.fit(model(name), x, init=loose.mixture, tol=1e-10, max_steps=20_000)
        assert 0 <= tight.log_likelihood - loose.log_likelihood < 1e-3


def test_tol_zero_runs_exactly_max_steps():
    x, z = data("VVV")
    for method in ("soft", "hard", "stochastic", "annealed"):
        assert bm.fit(model("VVV"), x, method=method, init=z, tol=0, max_steps=60, n_starts=1).n_steps == 60
    start = fitted("VVV").mixture
    none = bm.fit(model("VVV"), x, init=start, tol=0, max_steps=0)
    assert none.n_steps == 0
    assert_allclose(none.mixture.means, start.means, rtol=1e-12)


def test_means_alone_start_with_equal_weights_and_the_pooled_covariance_of_their_partition():
    x, _ = data("VVV")
    means = np.array([[0.0, 0.0, 0.0], [2.5, 1.0, -1.0], [-1.0, 3.0, 1.5]])
    nearest = np.linalg.norm(x[:, None] - means, axis=2).argmin(axis=1)
    pooled = sum((x[nearest == k] - x[nearest == k].mean(axis=0)).T @ (x[nearest == k] - x[nearest == k].mean(axis=0)) for k in range(3)) / len(x)  # fmt: skip
    start = bm.GaussianMixture.of(np.full(3, 1 / 3), means, np.tile(pooled, (3, 1, 1)))
    a = bm.fit(model("VVV"), x, init=means, tol=0, max_steps=3)
    b = bm.fit(model("VVV"), x, init=start, tol=0, max_steps=3)
    assert_allclose(a.objective, b.objective, rtol=1e-10)
    same(a, b, rtol=1e-8)


def test_holding_parts_of_the_mixture():
    x, _ = data("EII")
    start = bm.GaussianMixture.of(np.full(3, 1 / 3), x[:3], np.array([0.5]), covariance="EII")
    fit = bm.fit(model("EII"), x, init=start, hold=("weights", "covariance"))
    assert_allclose(fit.mixture.weights, 1 / 3)
    assert_allclose(fit.mixture.covariance.values, 0.5)
    assert fit.n_parameters == 9
    assert "not at the likelihood's maximum" in str(fit.summary())
    equal = bm.fit(model("VVV"), data("VVV")[0], hold="weights")
    assert_allclose(equal.mixture.weights, 1 / 3)


@pytest.mark.parametrize(
    ("init", "name"),
    [(init, name) for init in ("kmeans", "k-means++", "random") for name in FEW],
)
def test_every_kind_of_start_ends_well_and_repeats_with_its_key(name, init):
    x, _ = data(name)
    fit = bm.fit(model(name, 2), x, init=init, key=2)
    again = bm.fit(model(name, 2), x, init=init, key=jax.random.key(2))
    assert_array_equal(fit.mixture.means, again.mixture.means)
    assert fit.converged or fit.spurious
    assert fit.n_starts == 10
    assert 1 <= fit.n_agree <= 10
    assert np.linalg.norm(fit.mixture.means[0] - fit.mixture.means[1]) > 0.1


def test_more_starts_are_never_worse():
    x = bm.datasets.load("iris")
    few = [bm.fit(bm.MixtureModel(3, "VVI"), x, init="random", n_starts=1, key=key) for key in range(5)]
    many = [bm.fit(bm.MixtureModel(3, "VVI"), x, init="random", n_starts=20, key=key) for key in range(5)]
    assert max(f.log_likelihood for f in few) <= min(f.log_likelihood for f in many) + 1e-2


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("dataset", ["old_faithful", "iris"])
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random"])
def test_tied_fits_leave_the_one_component_solution(dataset, k, init):
    x = bm.datasets.load(dataset)
    below = bm.fit(bm.MixtureModel(k - 1, "tied"), x).log_likelihood
    for key in range(5):
        assert bm.fit(bm.MixtureModel(k, "tied"), x, init=init, key=key).log_likelihood > below + 10


def test_nothing_of_the_users_is_changed():
    x, z = data("VVV")
    means, weight, r = x[:3].copy(), np.ones(len(x)), np.eye(3)[z]
    for array in (means, weight, r):
        array.setflags(write=False)
    frame = bm.datasets.load("iris")
    before = frame.copy()
    bm.fit(model("VVV"), x, init=means, sample_weight=weight)
    bm.fit(model("VVV"), x, init=r)
    assert bm.fit(model("VVV"), frame).mixture.feature_names == tuple(frame.columns)
    assert frame.equals(before)


def test_fits_of_other_sizes_reuse_the_compiled_program():
    from bayesmix.climb import advance

    x, _ = data("VVV")
    bm.fit(model("VVV"), x)
    compiled = advance._cache_size()
    for n in (119, 100, 70):
        bm.fit(model("VVV"), x[:n], key=n, tol=1e-3, max_steps=500)
    assert advance._cache_size() == compiled


def test_a_trace_that_is_shorter_than_the_run_keeps_the_last_objectives():
    from bayesmix.climb import advance
    from bayesmix.devices import double_precision
    from bayesmix.drive import begin
    from bayesmix.given import given_start
    from bayesmix.loop import Options
    from bayesmix.packing import Layout, Packed
    from bayesmix.problem import prepare

    x, r = data("VVV")
    start = bm.fit(model("VVV"), x, init=r, max_steps=1, tol=0).mixture
    problem = prepare(start.n_components, "VVV", x, None, 0.0)
    states = begin([given_start(start, problem)], Options())

    def ten_steps(states):
        layout = Layout.of(states)
        terms = Packed.by_host((1.0, problem.rules))
        given = layout.rows(states), np.array([10]), problem.observations, terms
        return layout.restored(np.asarray(advance(*given, layout, False, Options())))

    with double_precision():
        whole, short = (ten_steps(s) for s in (states, states._replace(trace=states.trace[:, :4])))
    filled = int(short.filled[0])
    assert filled == int(whole.filled[0]) > 4
    last = np.arange(filled - 3, filled)
    assert np.array_equal(np.asarray(short.trace)[0, last % 4], np.asarray(whole.trace)[0, last])


REFERENCE = (
    ("old_faithful", "EEE", 3, -1126.3159),
    ("old_faithful", "VVV", 2, -1130.2640),
    ("old_faithful", "EEE", 2, -1140.1868),
    ("old_faithful", "VVV", 1, -1289.7967),
    ("iris", "VVV", 3, -180.1855),
    ("iris", "EEE", 3, -256.3540),
    ("galaxies", "V", 3, -203.1792 - 82 * np.log(1000)),
)


@pytest.mark.parametrize("case", REFERENCE, ids=lambda c: "-".join(map(str, c[:3])))
def test_reference_numbers_with_default_arguments_for_twenty_of_twenty_keys(case):
    dataset, name, k, expected = case
    x = bm.datasets.load(dataset)
    for key in range(20):
        fit = bm.fit(bm.MixtureModel(k, name), x, key=key)
        assert fit.converged
        assert abs(fit.log_likelihood - expected) < 1e-3


def test_criteria_of_the_reference_fits():
    x = bm.datasets.load("old_faithful")
    best = bm.fit(bm.MixtureModel(3, "EEE"), x)
    assert best.n_parameters == 11
    assert abs(best.bic - 2314.2957) < 2e-3  # mclust prints the negative
    assert_allclose(best.aic, 2 * 11 - 2 * best.log_likelihood)
    r = best.mixture.responsibilities(x)
    assert_allclose(best.icl, best.bic - 2 * np.log(r.max(axis=1)).sum(), rtol=1e-10)
    assert_allclose(best.icl_entropy, best.bic - 2 * (r * np.log(np.maximum(r, 1e-300))).sum(), rtol=1e-10)
    two = bm.fit(bm.MixtureModel(2, "VVV"), x)
    order = np.argsort(two.mixture.means[:, 0])
    assert_allclose(two.mixture.means[order], [[2.0364, 54.4785], [4.2897, 79.9681]], atol=1e-3)
    assert_allclose(two.mixture.weights[order], [0.35587, 0.64413], atol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_stochastic_em_comes_near_the_optimum_and_keeps_the_best_it_saw(name):
    # Samples on which a chain's clusters stay apart in nine runs of ten or more: where they change places its averaged
    # statistics say nothing.
    key = 2 if name == "V" else 11
    x, z = data(name, key)
    fit = bm.fit(model(name), x, method="stochastic", init=z, key=1)
    assert fit.n_steps == 300
    assert len(fit.objective) == 301
    visited = fit.best_visited.log_density(x).sum()
    # Two rows that all but coincide may have had a cluster of their own, which moments know to half the digits.
    variances = np.diagonal(fit.best_visited.covariances, axis1=-2, axis2=-1)
    narrow = (variances < 1e-6 * x.var(axis=0)).any()
    assert_allclose(visited, fit.objective[:-1].max(), rtol=1e-10, atol=1e-6 if narrow else 0)
    assert narrow or visited <= fitted(name, key).log_likelihood + 5
    assert fit.log_likelihood > fit.objective[:-1].mean()
    polished = bm.fit(model(name), x, init=fit.mixture)
    assert polished.log_likelihood - fit.log_likelihood < 5


def test_stochastic_em_with_whole_weights_is_stochastic_em_of_the_copies():
    x = bm.datasets.load("old_faithful").to_numpy()
    weight = 1 + np.arange(len(x)) % 3
    weighted = bm.fit(bm.MixtureModel(2), x, method="stochastic", sample_weight=weight)
    copied = bm.fit(bm.MixtureModel(2), np.repeat(x, weight, axis=0), method="stochastic")
    assert_allclose(weighted.log_likelihood, copied.log_likelihood, atol=0.5)
    assert_allclose(np.sort(weighted.mixture.weights), np.sort(copied.mixture.weights), atol=0.01)


def test_stochastic_em_draws_again_when_a_cluster_runs_short():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(4, 2)) + 2])
    fit = bm.fit(bm.MixtureModel(2), x, method="stochastic", init=np.repeat([0, 1], [60, 4]), key=3)
    assert fit.n_redraws > 0
    assert fit.n_steps == 300
    assert np.isfinite(fit.objective).all()


def test_annealing_reaches_a_better_optimum_than_em_from_the_same_start():
    x = bm.datasets.load("old_faithful")
    centres = bm.kmeans(x, 3).mixture.means
    plain = bm.fit(bm.MixtureModel(3), x, init=centres)
    better = [
        bm.fit(bm.MixtureModel(3), x, method="annealed", init=centres, key=key).log_likelihood
        > plain.log_likelihood + 1
        for key in range(10)
    ]
    assert sum(better) >= 7


def test_annealing_never_ends_with_means_that_coincide():
    x = bm.datasets.load("old_faithful")
    for key in range(10):
        means = (
            bm.fit(bm.MixtureModel(3), x, method="annealed", key=key, n_starts=1).mixture.means
            / x.std().to_numpy()
        )
        assert min(np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.05


X2 = np.random.default_rng(0).normal(size=(30, 2))
CALLS = {
    "fewer rows than clusters": (lambda: bm.fit(bm.MixtureModel(5), X2[:3]), "3 rows, fewer than n_components=5"),
    "weighted away": (lambda: bm.fit(bm.MixtureModel(2), X2, sample_weight=np.eye(30)[0]), "1 rows of positive weight"),
    "method": (lambda: bm.fit(bm.MixtureModel(2), X2, method="fuzzy"), "method must be one of 'soft'"),
    "init name": (lambda: bm.fit(bm.MixtureModel(2), X2, init="best"), "init must be one of 'kmeans'"),
    "init shape": (lambda: bm.fit(bm.MixtureModel(2), X2, init=np.zeros((4, 4))), r"init has shape \(4, 4\)"),
    "labels out of range": (lambda: bm.fit(bm.MixtureModel(2), X2, init=np.full(30, 2)), "whole numbers from 0 to 1; row 0"),
    "responsibilities": (lambda: bm.fit(bm.MixtureModel(2), X2, init=np.ones((30, 2))), "add up to one; row 0"),
    "mixture of another size": (lambda: bm.fit(bm.MixtureModel(2), X2, init=fitted("VVV").mixture), "3 clusters in 3 features"),
    "starts of a given start": (lambda: bm.fit(bm.MixtureModel(2), X2, init=X2[:2], n_starts=4), "n_starts must be 1"),
    "n_starts": (lambda: bm.fit(bm.MixtureModel(2), X2, n_starts=0), "n_starts must be at least 1"),
    "tol": (lambda: bm.fit(bm.MixtureModel(2), X2, tol=-1), "tol must be a number of nats"),
    "max_steps": (lambda: bm.fit(bm.MixtureModel(2), X2, max_steps=-1), "max_steps must be at least 0"),
    "no step from labels": (lambda: bm.fit(bm.MixtureModel(2), X2, init=np.arange(30) % 2, max_steps=0), "at least 1"),
    "negative weight": (lambda: bm.fit(bm.MixtureModel(2), X2, sample_weight=-np.ones(30)), r"negative \(-1.0\) in row 0"),
    "weights short": (lambda: bm.fit(bm.MixtureModel(2), X2, sample_weight=np.ones(3)), "3 entries for 30 rows"),
    "weights zero": (lambda: bm.fit(bm.MixtureModel(2), X2, sample_weight=np.zeros(30)), "no data"),
    "fractions for draws": (lambda: bm.fit(bm.MixtureModel(2), X2, method="stochastic", sample_weight=np.full(30, 0.5)), "whole numbers; row 0"),
    "hold": (lambda: bm.fit(bm.MixtureModel(2), X2, hold="means"), "hold must be one of"),
    "hold what": (lambda: bm.fit(bm.MixtureModel(2), X2, hold="covariance"), "says what to hold"),
    "model": (lambda: bm.fit("VVV", X2), "model must be a MixtureModel"),
    "program prior": (lambda: bm.fit(bm.MixtureModel(2, prior=lambda: None), X2), "for any other use sample_posterior"),
    "prior of another size": (lambda: bm.fit(bm.MixtureModel(2, prior=bm.weak_prior(X2[:, :1])), X2), "x has 2 features, but 1 are needed"),
    "one feature": (lambda: bm.fit(bm.MixtureModel(2, "E"), X2), "is for 1 feature, and the data have 2"),
    "key": (lambda: bm.fit(bm.MixtureModel(2), X2, key="x"), "key must be"),
    "missing": (lambda: bm.fit(bm.MixtureModel(2), np.where(X2 > 1, np.nan, X2)), "missing value"),
    "text": (lambda: bm.fit(bm.MixtureModel(2), [["a", 1], ["b", 2]]), "not numeric"),
    "kmeans k": (lambda: bm.kmeans(X2, 2.5), "n_components must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_are_one_error_before_anything_is_compiled(case):
    from bayesmix.climb import advance

    call, message = CALLS[case]
    compiled = advance._cache_size()
    with pytest.raises(ValueError, match=message):
        call()
    assert advance._cache_size() <= compiled + (case == "mixture of another size")


@pytest.mark.parametrize(("thin", "whitened"), [(1, 1), (3, np.inf)])
def test_only_thin_clusters_are_whitened_where_they_are_few(thin, whitened):
    """Four clusters apart, some of them 1e4 times thinner than that: covariances of their rows by two passes."""
    from bayesmix.drive import begin, run
    from bayesmix.given import given_start
    from bayesmix.loop import Options
    from bayesmix.problem import prepare

    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    scale = np.where(np.arange(4) < thin, 1e-4, 1e-2)
    z = np.arange(800) % 4
    x = centers[z] + rng.normal(size=(800, 3)) * scale[z, None]
    start = bm.GaussianMixture.of(
        np.full(4, 0.25), centers, scale[:, None, None] ** 2 * np.eye(3), covariance="VVV"
    )
    problem = prepare(4, "VVV", x, None, 0.0)
    states = begin([given_start(start, problem)], Options())
    path = run(states, np.array([20]), problem.observations, problem.rules, Options())
    assert path.whitened == whitened
    found = problem.units.leave(path.mixture(0))
    for j in range(4):
        exact = np.cov(x[z == j].T, bias=True)
        assert_allclose(found.covariances[j], exact, atol=1e-9 * np.trace(exact))


def test_starts_far_behind_leave_a_race_that_is_too_short_to_converge_in(monkeypatch):
    rng = np.random.default_rng(0)
    means = np.array([[0, 0], [12, 0], [0, 12], [12, 12]])
    x = means[rng.integers(4, size=2000)] + rng.normal(size=(2000, 2))
    model, options = bm.MixtureModel(4, "VVI"), {"init": "random", "n_starts": 12, "accelerate": False}
    whole = bm.fit(model, x, **options)
    monkeypatch.setattr(engines, "_SHORT_WORK", 0)
    raced = bm.fit(model, x, **options)
    assert_allclose(raced.log_likelihood, whole.log_likelihood, rtol=1e-9)
    # Each goes its own way as far as it goes, and who left was behind then and is in the end.
    left = 0
    for trace, other in zip(raced.traces, whole.traces):
        assert_allclose(trace, other[: len(trace)], rtol=1e-12)
        if len(trace) < len(other):
            left += 1
            assert len(trace) in (5, 10, 20)
            assert other[-1] < whole.objective[-1] - 100
    assert left > 2


def test_who_is_in_reach_would_catch_up_in_a_hundred_steps():
    steps = np.arange(10)
    best, slow, lost = 1000.0 + 0 * steps, 400 + 6.5 * steps, 400 + 5.5 * steps
    late = np.where(steps < 6, 0, 10 * (steps - 5.0))  # a plateau, and then a way up
    assert engines._in_reach([best, slow, lost, late, np.zeros(0)], 0).tolist() == [
        True,
        True,
        False,
        True,
        False,
    ]
