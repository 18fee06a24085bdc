"""Known parameters: the density, its parts, its draws, and what follows from them."""

import copy
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from cases import NAMES, data, mixture
from nearby import gradient, nearby
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import bayesmix as bm
from bayesmix.chart import chart
from bayesmix.covariance import STRUCTURES, Covariance


def slow_log_joint(m, x):
    """The definition, by SciPy, one cluster at a time."""
    columns = [
        np.log(w) + stats.multivariate_normal(mean, covariance).logpdf(x)
        for w, mean, covariance in zip(m.weights, m.means, m.covariances, strict=True)
    ]
    return np.stack([np.reshape(c, len(x)) for c in columns], axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_densities_are_scipys(name):
    m, (x, _) = mixture(name), data(name)
    expected = slow_log_joint(m, x)
    density = np.logaddexp.reduce(expected, axis=1)
    assert_allclose(m.log_joint(x), expected, rtol=1e-10)
    assert_allclose(m.log_density(x), density, rtol=1e-10)
    assert_allclose(m.responsibilities(x), np.exp(expected - density[:, None]), rtol=1e-8, atol=1e-12)
    assert_array_equal(m.classify(x), expected.argmax(axis=1))


def test_many_points_go_through_in_chunks_to_the_last_one():
    """A chunk holds 131,072 points here; the last one begins early, so that it is as long as the others."""
    m = mixture("VVI")
    x = np.random.default_rng(0).normal(size=(300_001, 3)) * 2
    whole, labels = m.log_density(x), m.classify(x)
    assert whole.shape == labels.shape == (300_001,)
    for part in (slice(0, 500), slice(130_900, 131_300), slice(168_800, 169_000), slice(299_600, 300_001)):
        assert_allclose(whole[part], m.log_density(x[part]), rtol=1e-12)  # few points: NumPy
        assert_array_equal(labels[part], m.classify(x[part]))


@pytest.mark.parametrize("name", NAMES)
def test_float32_data_are_computed_in_float32_and_agree(name):
    m, (x, _) = mixture(name), data(name)
    single = m.log_density(x.astype(np.float32))
    assert single.dtype == np.float32
    assert_allclose(single, m.log_density(x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_moments_of_their_cluster(name):
    m = mixture(name)
    assert_drawn(m, *m.simulate(60_000, key=11))


def assert_drawn(m, x, z):
    """The points come from the mixture, each from the cluster that it is said to."""
    counts = np.bincount(z, minlength=3)
    assert stats.chisquare(counts, len(z) * m.weights).pvalue > 1e-4
    for k in range(3):
        rows = x[z == k]
        error = np.sqrt(np.diag(m.covariances[k]) / len(rows))
        assert np.all(np.abs(rows.mean(axis=0) - m.means[k]) < 5 * error)
        assert_allclose(np.cov(rows.T).reshape(m.covariances[k].shape), m.covariances[k], atol=0.08)
    squared = np.array(
        [stats.multivariate_normal(m.means[k], m.covariances[k]).logpdf(x[z == k]).mean() for k in range(3)]
    )
    entropy = np.array([stats.multivariate_normal(m.means[k], m.covariances[k]).entropy() for k in range(3)])
    assert_allclose(squared, -entropy, atol=0.06)


def test_rows_of_x_and_z_belong_together():
    far = bm.GaussianMixture.of([0.5, 0.5], [[-100.0], [100.0]], [1.0, 1.0])
    x, z = far.simulate(500, key=0)
    assert_array_equal(z, (x[:, 0] > 0).astype(int))


def test_a_cluster_of_weight_zero_is_never_drawn_and_makes_no_nan():
    m = bm.GaussianMixture.of([1.0, 0.0], [[0.0], [1.0]], [1.0, 1.0])
    x, z = m.simulate(2000, key=0)
    assert (z == 0).all()
    assert np.isneginf(m.log_joint(x)[:, 1]).all()
    assert_allclose(m.log_density(x), stats.norm.logpdf(x[:, 0]), rtol=1e-12)
    assert_allclose(m.responsibilities(x)[:, 0], 1)
    gradient = jax.grad(lambda w: bm.GaussianMixture(w, m.means, m.covariance).log_density(x).sum())(
        jnp.array([1.0, 0.0])
    )
    assert jnp.isfinite(gradient).all()


def test_a_covariance_that_is_none_makes_only_its_own_cluster_nan():
    m = mixture("VVV")
    values = np.array(m.covariance.values)
    values[1] = -np.eye(3)
    broken = bm.GaussianMixture(m.weights, m.means, Covariance(values, "VVV"))
    x = data("VVV")[0]
    logs = broken.log_joint(x)
    assert logs.dtype == np.float64
    assert np.isnan(logs[:, 1]).all()
    assert_array_equal(logs[:, [0, 2]], m.log_joint(x)[:, [0, 2]])


def test_the_same_key_gives_the_same_draws_as_int_and_as_jax_key():
    m = mixture("VVV")
    first = m.simulate(10, key=5)
    old = jax.random.PRNGKey(5)
    for key in (5, np.int64(5), jax.random.key(5), old, np.asarray(old)):
        for a, b in zip(first, m.simulate(10, key=key), strict=True):
            assert_array_equal(a, b)
    assert not np.array_equal(first[0], m.simulate(10, key=6)[0])


def test_results_do_not_depend_on_the_global_flag():
    m, (x, _) = mixture("VVV"), data("VVV")
    with jax.enable_x64(True):
        inside = m.log_density(x), m.simulate(5, key=1)[0]
    outside = m.log_density(x), m.simulate(5, key=1)[0]
    for a, b in zip(inside, outside, strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == np.float64
        assert_array_equal(a, b)


# Methods see how covariances are stored, not how they were constrained: each storage does, shared or not.
@pytest.mark.parametrize("name", ["V", "EII", "VVI", "EEE", "VVV"])
def test_methods_under_jit_vmap_and_grad(name):
    m, (x, _) = mixture(name), data(name)
    with jax.enable_x64(True):
        for method in ("log_joint", "log_density", "responsibilities", "classify", "within"):
            traced = jax.jit(lambda m, x, method=method: getattr(m, method)(x))(m, x)
            assert isinstance(traced, jax.Array)
            assert_allclose(traced, getattr(m, method)(x), rtol=1e-9, atol=1e-12)
        batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), m)
        assert_allclose(jax.vmap(lambda m: m.log_density(x))(batch)[1], m.log_density(x), rtol=1e-9)
        assert batch.covariances.shape == (2, *m.covariances.shape)
        draw = jax.jit(lambda m, key: m.simulate(60_000, key=key))
        assert_drawn(m, *map(np.asarray, draw(m, jax.random.key(2))))
        assert_array_equal(draw(m, jax.random.key(2))[0], draw(m, jax.random.key(2))[0])
        loss = jax.jit(lambda m: m.log_density(x).sum())
        gradient = jax.grad(loss)(m)
        step = 1e-6
        for i, leaf in enumerate(jax.tree.leaves(m)):
            moved = []
            for sign in (1, -1):
                leaves = jax.tree.leaves(m)
                leaves[i] = (
                    leaf + sign * step * np.eye(leaf.shape[-1]) if leaf.ndim == 3 else leaf + sign * step
                )
                moved.append(loss(jax.tree.unflatten(jax.tree.structure(m), leaves)))
            along = jax.tree.leaves(gradient)[i]
            total = jnp.trace(along, axis1=-2, axis2=-1).sum() if leaf.ndim == 3 else along.sum()
            assert_allclose(total, (moved[0] - moved[1]) / (2 * step), rtol=1e-5, atol=1e-4)


def test_a_batch_of_mixtures_says_how_to_use_it():
    m = mixture("VVV")
    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), m)
    with pytest.raises(ValueError, match="vmap"):
        batch.log_density(data("VVV")[0])
    for name in ("EEI", "EII", "VVI", "VVV"):
        batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf, leaf]), mixture(name))
        with pytest.raises(ValueError, match="vmap"):
            batch.condition({0: 1.0})
        with pytest.raises(ValueError, match="vmap"):
            batch.summary()
        assert batch.marginal([0]).means.shape == (3, batch.n_components, 1)
        given = jax.vmap(lambda one: one.condition({0: 1.0}))(batch)
        assert_allclose(given.means[1], mixture(name).condition({0: 1.0}).means, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_marginal_and_conditional_multiply_to_the_joint(name):
    m, (x, _) = mixture(name), data(name)
    if m.n_features == 1:
        with pytest.raises(ValueError, match="left free"):
            m.condition({0: 0.0})
        return
    part = m.marginal([2, 0])
    kept = {
        "EII",
        "VII",
        "EEI",
        "VEI",
        "VVI",
        "EEE",
        "VEE",
        "VVV",
    }  # of the others parts are less constrained
    for some in (part, m.condition({0: 0.0})):
        assert some.structure == (name if name in kept else m.covariance.row.general)
        given = some.covariance.values
        bm.GaussianMixture.of(some.weights, some.means, given, covariance=some.structure)  # which checks it
    assert_allclose(part.means, m.means[:, [2, 0]])
    assert_allclose(part.covariances, m.covariances[:, [2, 0]][:, :, [2, 0]])
    for row in x[:5]:
        rest = m.condition({0: row[0], 2: row[2]})
        together = part.log_density(row[None, [2, 0]]) + rest.log_density(row[None, [1]])
        assert_allclose(together, m.log_density(row[None]), rtol=1e-9)


def test_conditioning_far_away_stays_a_mixture():
    m = mixture("VVV").condition({0: 1e6})
    assert_allclose(m.weights.sum(), 1)
    assert np.isfinite(m.means).all()


@pytest.mark.parametrize("names", [["a"], "ab", ["a", "a"], ["a", "b", "c"], 3, []])
def test_names_that_are_not_one_a_feature_are_refused(names):
    with pytest.raises(ValueError, match="feature_names must be 2 different names"):
        bm.GaussianMixture.of([1.0], [[1.0, 2.0]], [np.eye(2)], feature_names=names)


def test_numbers_as_names_are_texts():
    m = bm.GaussianMixture.of([1.0], [[1.0, 2.0]], [np.eye(2)], feature_names=range(2))
    assert m.feature_names == ("0", "1")


def test_features_go_by_name():
    m = bm.GaussianMixture.of([1.0], [[1.0, 2.0]], [np.eye(2)], feature_names=["a", "b"])
    assert m.marginal("b").means == 2
    assert m.condition({"a": 0.0}).feature_names == ("b",)
    assert list(m.summary().columns) == ["weight", "mean a", "mean b", "sd a", "sd b"]


def test_within_counts_by_mahalanobis_distance():
    m, (x, _) = mixture("VVV"), data("VVV")
    distance = np.stack(
        [
            np.sqrt(np.einsum("ni,ij,nj->n", x - mu, np.linalg.inv(s), x - mu))
            for mu, s in zip(m.means, m.covariances, strict=True)
        ]
    )
    expected = np.where(distance.min(axis=0) < 1.2, distance.argmin(axis=0), -1)
    assert_array_equal(m.within(x, radius=1.2), expected)
    assert set(m.within(x, radius=1.2)) == {-1, 0, 1, 2}


def test_within_counts_by_euclidean_distance_along_the_way():
    m, (x, _) = mixture("VVV"), data("VVV")
    distance = np.linalg.norm(x[:, None] - m.means, axis=2)
    nearest = distance.argmin(axis=1)
    for i, k in enumerate(nearest):
        u = (x[i] - m.means[k]) / distance[i, k]
        sigma = np.sqrt(u @ m.covariances[k] @ u)
        expected = k if distance[i, k] < 1.1 * sigma else -1
        assert m.within(x[i : i + 1], radius=1.1, distance="euclidean")[0] == expected
    assert m.within(m.means[:1], distance="euclidean")[0] == 0


@pytest.mark.parametrize("d", [1, 2, 10])
def test_coverage_is_the_share_of_a_clusters_own_points(d):
    m = bm.GaussianMixture.of([1.0], np.zeros((1, d)), np.eye(d)[None])
    x, _ = m.simulate(20_000, key=1)
    for coverage in (0.5, 0.95):
        share = (m.within(x, coverage=coverage) == 0).mean()
        assert abs(share - coverage) < 4 * np.sqrt(coverage * (1 - coverage) / 20_000)
    assert abs((m.within(x) == 0).mean() - stats.chi2.cdf(2.5**2, d)) < 0.015


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e-10, 1e9, 1e12])
def test_within_is_the_same_in_any_units(scale, dtype):
    square = np.array([[1, 0.5], [0.5, 2]])
    m = bm.GaussianMixture.of([0.5, 0.5], [[0, 0], [5 * scale, 0]], np.array([square, square]) * scale**2)
    x = (np.random.default_rng(0).normal(size=(200, 2)) * 4 * scale).astype(dtype)
    one = bm.GaussianMixture.of([0.5, 0.5], [[0, 0], [5, 0]], [square, square])
    for distance in ("euclidean", "mahalanobis"):
        expected = one.within(x.astype(float) / scale, radius=2.0, distance=distance)
        assert set(expected) == {-1, 0, 1}
        assert_array_equal(m.within(x, radius=2.0, distance=distance), expected)
        assert_array_equal(m.within(np.tile(x, (500, 1)), radius=2.0, distance=distance)[-200:], expected)


def test_far_points_keep_finite_responsibilities_and_the_nearest_cluster():
    m = bm.GaussianMixture.of([0.5, 0.5], [[0.0, 0.0], [1.0, 0.0]], [np.eye(2), 4 * np.eye(2)])
    r = m.responsibilities([[1e3, 1e3], [-1e6, 0.0]])
    assert np.isfinite(r).all()
    assert_allclose(r.sum(axis=1), 1)
    assert_array_equal(r.argmax(axis=1), 1)
    assert np.isfinite(m.log_density([[1e6, -1e6]])).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_file_gives_back_every_bit(tmp_path, name, dtype):
    m = jax.tree.map(lambda leaf: (leaf / 3).astype(dtype), mixture(name))
    m = bm.GaussianMixture(
        m.weights / m.weights.sum(dtype=dtype), m.means, m.covariance, tuple("abc"[: m.n_features])
    )
    m.save(tmp_path / "m.json")
    back = bm.GaussianMixture.load(tmp_path / "m.json")
    assert back.feature_names == m.feature_names
    assert back.structure == name
    for a, b in zip(jax.tree.leaves(m), jax.tree.leaves(back), strict=True):
        assert a.dtype == b.dtype
        assert_array_equal(a, b)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1, 2]", '{"format": "bayesmix.GaussianMixture"', '{"format": "other", "version": 1}']
)
def test_a_foreign_or_cut_file_is_one_error(tmp_path, text):
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a mixture"):
        bm.GaussianMixture.load(path)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_is_the_rank_of_the_parametrisation(name):
    """As many as there are directions in which (weights, means, covariances) can move."""
    m = mixture(name)
    size = m.n_parameters
    assert chart(m).size == size
    jacobian = gradient(m, lambda *parts: np.hstack([part.reshape(len(part), -1) for part in parts]))
    assert np.linalg.matrix_rank(jacobian, tol=1e-8) == size
    weights, means, covariances = nearby(m, np.random.default_rng(0).normal(size=(2, size)) * [[0], [1]])
    assert_allclose(covariances[0], m.covariances, rtol=1e-12, atol=1e-13)
    bm.GaussianMixture.of(weights[1], means[1], covariances[1], covariance=name)  # of the structure anywhere


@pytest.mark.parametrize("name", [name for name in NAMES if STRUCTURES[name].constrained])
def test_covariances_of_another_structure_are_refused(name):
    m = mixture(name)
    covariances = m.covariances.copy()
    letters = STRUCTURES[name].letters
    if letters[0] == "E":
        covariances[0] *= 1.1
    elif letters[1] == "E":
        covariances[0] = (
            covariances[0] @ np.diag([1.5, 1, 1]) if name == "VEI" else covariances[0] @ covariances[0]
        )
    else:
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
        covariances[0] = turn @ covariances[0] @ turn.T
    with pytest.raises(ValueError, match=f"not of the structure {name}, which has equal"):
        bm.GaussianMixture.of(m.weights, m.means, covariances, covariance=name)


GOOD = {"weights": [0.5, 0.5], "means": [[0.0, 0.0], [1.0, 1.0]], "covariances": [np.eye(2), np.eye(2)]}
BAD = {
    "weights add up": ({"weights": [0.5, 0.6]}, "add up to one"),
    "negative weight": ({"weights": [1.5, -0.5]}, "must not be negative"),
    "too many weights": ({"weights": [0.2, 0.3, 0.5]}, "3 entries for 2 means"),
    "means not finite": ({"means": [[0.0, np.nan], [1.0, 1.0]]}, "means has a missing value"),
    "means too deep": ({"means": np.zeros((2, 2, 2))}, "means must be"),
    "covariances shape": ({"covariances": np.ones((3, 2, 2))}, r"shape \(3, 2, 2\)"),
    "not symmetric": ({"covariances": [np.eye(2), [[1.0, 0.5], [0.0, 1.0]]]}, "covariance 1 is not symmetric"),
    "not positive": ({"covariances": [np.eye(2), [[1.0, 2.0], [2.0, 1.0]]]}, "covariance 1 is not positive definite"),
    "not finite": ({"covariances": [np.eye(2), np.full((2, 2), np.inf)]}, "not finite"),
    "not of the structure": ({"covariances": [np.eye(2), 2 * np.eye(2)], "covariance": "tied"}, "not of the structure EEE"),
    "unknown structure": ({"covariance": "VVX"}, "covariance must be one of"),
    "structure for one feature": ({"covariance": "V"}, "for 1 feature"),
    "text": ({"means": [["a", "b"], ["c", "d"]]}, "means is not numeric"),
}  # fmt: skip


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_covariances_are_judged_in_any_units_of_the_features(order):
    order = list(order)
    unit = np.array([1e-3, 1e7, 1.0])[order]
    matrix = np.array([[1, 0.6, 0.3], [0.6, 1, 0.4], [0.3, 0.4, 1]])[order][:, order] * np.outer(unit, unit)
    means = [[0, 0, 0], [1, 1, 1]] * unit
    m = bm.GaussianMixture.of([0.5, 0.5], means, [matrix, 4 * matrix], covariance="VEE")
    assert_array_equal(m.covariances[1], 4 * m.covariances[0])
    low = np.argmin(unit)
    wider = np.diag(unit**2)
    wider[low, low] *= 9
    for covariance in ("tied", "EEI", "VEI", "EEE", "EVI"):
        with pytest.raises(ValueError, match="not of the structure"):
            bm.GaussianMixture.of([0.5, 0.5], means, [np.diag(unit**2), wider], covariance=covariance)
    with pytest.raises(ValueError, match="not of the structure VVI"):
        bm.GaussianMixture.of([1.0], means[:1], [matrix], covariance="diag")
    with pytest.raises(ValueError, match="covariance 0 is not symmetric"):
        bm.GaussianMixture.of([1.0], means[:1], [matrix * ([[1, 1, 1], [-1, 1, 1], [1, 1, 1]])])
    with pytest.raises(ValueError, match="covariance 0 is not positive definite"):
        bm.GaussianMixture.of([1.0], means[:1], [np.where(np.eye(3), matrix, 1.1 * np.outer(unit, unit))])


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters_are_one_error(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        bm.GaussianMixture.of(**(GOOD | change))


CALLS = {
    "features": (lambda m: m.log_density([[1.0]]), "x has 1 features, but 2 are needed"),
    "one point": (lambda m: m.log_density([1.0, 2.0]), r"x\[None, :\]"),
    "radius": (lambda m: m.within([[0.0, 0.0]], radius=-1), "radius must be positive"),
    "coverage": (lambda m: m.within([[0.0, 0.0]], coverage=1.5), "between 0 and 1"),
    "radius no number": (lambda m: m.within([[0.0, 0.0]], radius="a"), "radius must be positive, not 'a'"),
    "radii": (lambda m: m.within([[0.0, 0.0]], radius=np.ones(2)), "radius must be positive"),
    "coverage no number": (lambda m: m.within([[0.0, 0.0]], coverage="a"), "between 0 and 1, not 'a'"),
    "distance": (lambda m: m.within([[0.0, 0.0]], distance="taxi"), "distance must be one of"),
    "euclidean coverage": (lambda m: m.within([[0.0, 0.0]], coverage=0.5, distance="euclidean"), "coverage goes with"),
    "n": (lambda m: m.simulate(0, key=0), "n must be at least 1"),
    "n not whole": (lambda m: m.simulate(2.5, key=0), "n must be a whole number"),
    "key": (lambda m: m.simulate(2, key="a"), "key must be"),
    "several keys": (lambda m: m.simulate(2, key=jax.random.split(jax.random.key(0))), "key must be"),
    "feature": (lambda m: m.marginal([5]), "feature must be"),
    "feature a truth value": (lambda m: m.marginal([True]), "feature must be"),
    "no feature": (lambda m: m.marginal([]), "different features, at least one"),
    "words of no key": (lambda m: m.simulate(2, key=np.arange(3, dtype=np.uint32)), "key must be"),
    "feature twice": (lambda m: m.marginal([0, 0]), "different features"),
    "all given": (lambda m: m.condition({0: 1.0, 1: 1.0}), "left free"),
    "no mapping": (lambda m: m.condition([1.0]), "given must map"),
    "missing": (lambda m: m.log_density([[0.0, 1.0], [np.nan, 1.0]]), r"row 1, column 'x0' \(1 of 2 rows"),
    "infinite": (lambda m: m.log_density([[0.0, np.inf]]), "an infinite value"),
    "masked": (lambda m: m.log_density(np.ma.array([[0.0, 1.0]], mask=[[0, 1]])), "a missing value in row 0, column 'x1'"),
    "complex": (lambda m: m.log_density(np.ones((1, 2), complex)), "complex"),
    "empty": (lambda m: m.log_density(np.ones((0, 2))), "empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_are_one_error(case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call(bm.GaussianMixture.of(**GOOD))


ARRAYS = {
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
    "reversed": lambda x: x[::-1][::-1],
    "big endian": lambda x: x.astype(">f8"),
    "read only": lambda x: np.lib.stride_tricks.as_strided(x, writeable=False),
    "list": lambda x: x.tolist(),
    "jax": lambda x: jax.device_put(x),
    "masked without masks": lambda x: np.ma.array(x),
    "objects": lambda x: x.astype(object),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_any_array_gives_the_same_numbers(kind):
    m, (x, _) = mixture("VVV"), data("VVV")
    with jax.enable_x64(True):
        given = ARRAYS[kind](x.copy())
    assert_array_equal(m.log_density(given), m.log_density(x))


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int32])
def test_small_integers_do_not_overflow(dtype):
    x = (np.arange(40).reshape(20, 2) * 6 % 251).astype(dtype)
    m = bm.GaussianMixture.of(
        [0.5, 0.5], [[50.0, 60.0], [150.0, 100.0]], [[400.0, 300.0], [300.0, 200.0]], covariance="diag"
    )
    assert_array_equal(m.log_density(x), m.log_density(x.astype(float)))


def test_importing_is_light():
    """Neither importing nor fitting loads what neither needs, and importing not even JAX."""
    heavy = {"numpyro", "arviz", "matplotlib", "sklearn", "pandas"}
    code = (
        "import sys, bayesmix as bm\n"
        "one = set(sys.modules)\n"
        "bm.fit(bm.MixtureModel(2), [[0.0], [0.1], [0.3], [5.0], [5.2], [5.3]])\n"
        f"print(sorted({heavy!r} & one), sorted({heavy!r} & set(sys.modules)), 'jax' in one)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] [] False"


def test_features_are_taken_by_any_list():
    m = bm.GaussianMixture.of([1.0], [[1.0, 2.0]], [np.eye(2)], feature_names=["a", "b"])
    lists = ["b"], np.array([1]), jnp.array([1]), range(1, 2), pd.Index(["b"])
    for features in (*lists, "b", 1, np.int64(1), np.array(1)):
        assert m.marginal(features).feature_names == ("b",)
    turned = bm.fit(bm.MixtureModel(2, "EVV"), data("EVV")[0]).mixture.marginal([2, 1, 0])
    assert turned.structure == "EVV"


def test_arrays_of_one_number_are_numbers():
    m, (x, _) = mixture("VVV"), data("VVV")
    for number in (np.float32, np.array, jnp.float32):
        assert_array_equal(m.within(x, number(1.5)), m.within(x, 1.5))
        assert_array_equal(m.within(x, coverage=number(0.5)), m.within(x, coverage=0.5))


def test_a_mixture_is_equal_to_itself_alone():
    m = mixture("VVV")
    assert m == m
    assert m != copy.deepcopy(m)
    assert len({m, copy.deepcopy(m)}) == 2
    fit = bm.kmeans([0.0, 1.0], 2)
    assert fit == fit
    assert fit != copy.deepcopy(fit)


KEY = jax.random.key(0)
INSIDE = {
    "cdf": lambda one, two: one.cdf([0.3]),
    "quantile": lambda one, two: one.quantile(0.3),
    "condition": lambda one, two: two.condition({0: 1.0}).means,
    "modes": lambda one, two: two.modes().points,
    "log_density": lambda one, two: two.log_density(np.zeros((70_000, 3))),
    "fit": lambda one, two: bm.fit(bm.MixtureModel(2), data("VVV")[0]).mixture.means,
    "search": lambda one, two: bm.search(data("VVV")[0], n_components=2, covariance="EII").best.mixture.means,
    "sample_posterior": lambda one, two: (
        bm.sample_posterior(
            bm.MixtureModel(2, prior="weak"),
            data("VVV")[0],
            key=KEY,
            method="gibbs",
            n_chains=1,
            n_warmup=5,
            n_draws=5,
        )["posterior"]["means"].values
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_a_users_jit_knows_is_computed_there_in_float64_and_leaves_nothing_behind(name):
    one = bm.GaussianMixture.of([0.5, 0.5], [0.0, 3.0], [1.0, 1.0])
    two = mixture("VVV")
    outside = INSIDE[name](one, two)
    seen = []

    def inside(y):
        seen.append(INSIDE[name](one, two))
        return y

    jax.jit(inside)(1.0)
    assert isinstance(seen[0], np.ndarray | np.float64)
    assert_allclose(seen[0], outside, rtol=1e-12)
    for m in (one, two):  # JAX remembers the type that an array had when a trace saw it
        weights = jax.jit(lambda m: m.weights)(m)
        assert_allclose(weights, m.weights, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_keys_of_the_old_kind_are_keys_everywhere(implementation):
    m, old = mixture("VVV"), jax.random.PRNGKey(3, impl=implementation)
    x, _ = jax.jit(lambda key: m.simulate(50, key=key))(old)
    assert x.shape == (50, 3)
    options = {"method": "gibbs", "n_chains": 1, "n_warmup": 5, "n_draws": 5}
    model = bm.MixtureModel(2, prior="weak")
    new = jax.random.key(3, impl=implementation)
    a, b = (bm.sample_posterior(model, data("VVV")[0], key=key, **options) for key in (old, new))
    assert_array_equal(a["posterior"]["means"], b["posterior"]["means"])
    a, b = (model.prior_predictive(3, key=key, like=data("VVV")[0]) for key in (old, new))
    assert_array_equal(a["prior"]["means"], b["prior"]["means"])
