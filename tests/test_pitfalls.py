"""What goes wrong elsewhere, one test a row: collapse, ties, duplicates, constants, weights, far points, NaN."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from cases import FEW, NAMES, data, features, mixture
from numpy.testing import assert_allclose, assert_array_equal

import bayesmix as bm
from bayesmix.covariance import STRUCTURES
from bayesmix.seeds import SEEDS, plus_plus
from bayesmix.status import CODE, STATUS
from bayesmix.verdict import Verdict

OWN = [name for name in NAMES if STRUCTURES[name].unbounded]


def is_finite(fit):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture)) and np.isfinite(
        fit.log_likelihood
    )


# Of 65 to 128 rows where the case allows it, as in `cases.data`: so the structures' programs are those of other tests.
DEGENERATE = {
    "one cluster is one point": np.concatenate([np.random.default_rng(0).normal(size=(80, 3)), np.full((20, 3), 6.0)]),
    "duplicated rows": np.repeat(np.random.default_rng(1).normal(size=(6, 3)), 16, axis=0),
    "two distinct rows": np.repeat([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], 40, axis=0),
    "all rows equal": np.full((80, 3), 4.2),
    "n = k": np.random.default_rng(2).normal(size=(3, 3)),
    "n <= d": np.random.default_rng(3).normal(size=(4, 6)),
    "constant column": np.column_stack([np.random.default_rng(4).normal(size=(90, 2)), np.full(90, 7.0)]),
    "collinear columns": np.random.default_rng(5).normal(size=(90, 2)) @ np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]),
    "one far point": np.concatenate([np.random.default_rng(6).normal(size=(90, 3)), [[1e6, 1e6, 1e6]]]),
    "a grid": np.random.default_rng(7).integers(0, 3, size=(90, 3)).astype(float),
}  # fmt: skip


# Hard steps differ from soft ones in the responsibilities only, so a few structures do; and so they do for the case with
# a shape, and so programs, of its own, and for data that are only odd.
BOTH = [("soft", name) for name in NAMES] + [("hard", name) for name in ("V", "EII", "VVV")]
ODD = ("n <= d", "n = k", "one far point", "a grid", "duplicated rows", "collinear columns")
OWN_SHAPE = {"n <= d": ("VVI", "EEE", "VVV"), "n = k": FEW}
CASES = [
    (case, *both)
    for case in DEGENERATE
    for both in BOTH
    if both[1] in (OWN_SHAPE.get(case, FEW) if case in ODD else NAMES)
]


@pytest.mark.parametrize(("case", "method", "name"), CASES)
def test_degenerate_data_give_a_finite_mixture_and_a_sentence(case, method, name):
    x = DEGENERATE[case][:, :1] if features(name) == 1 else DEGENERATE[case]
    k = min(3, len(x))
    fit = bm.fit(bm.MixtureModel(k, name), x, method=method, n_starts=3)
    assert is_finite(fit)
    assert np.isfinite(fit.objective).all()
    assert_allclose(fit.mixture.weights.sum(), 1)
    assert fit.converged or fit.spurious or "max_steps" in fit.status
    assert len(fit.status) > 5
    if case in ("two distinct rows", "all rows equal") and name in OWN:
        assert fit.spurious


@pytest.mark.parametrize("name", ["EEI", "VVI", "EEE", "VVV"])
def test_a_constant_column_is_named_and_leaves_the_others_alone(name):
    frame = bm.datasets.load("old_faithful")
    plain = bm.fit(bm.MixtureModel(2, name), frame)
    for value in (0.0, 3.0, 1e8):
        fit = bm.fit(bm.MixtureModel(2, name), frame.assign(always=value))
        assert "'always' is constant" in fit.status
        assert fit.spurious
        assert is_finite(fit)
        agree = np.mean(fit.labels == plain.labels)
        assert max(agree, 1 - agree) == 1


def test_a_collinear_column_is_named():
    frame = bm.datasets.load("old_faithful")
    fit = bm.fit(bm.MixtureModel(2, "VVV"), frame.assign(hours=frame["waiting"] / 60 + frame["eruptions"]))
    assert "'hours' is a linear combination" in fit.status
    assert is_finite(fit)


@pytest.mark.parametrize("name", OWN)
def test_a_collapsed_cluster_has_a_status_that_names_it_and_its_rows(name):
    x = data(name)[0].copy()
    x[:5] = x[0]
    labels = np.where(np.arange(len(x)) < 5, 1, 0)
    fit = bm.fit(bm.MixtureModel(2, name), x, init=labels)
    assert fit.code == CODE["collapsed"]
    assert not fit.converged
    assert fit.spurious
    assert "1 (rows 0, 1, 2, 3, 4" in fit.status
    assert is_finite(fit)


def test_a_cluster_of_too_few_points_is_spurious_and_says_so():
    x = np.concatenate([np.random.default_rng(0).normal(size=(50, 2)), [[9.0, 9.0], [9.5, 9.2], [9.1, 9.6]]])
    fit = bm.fit(bm.MixtureModel(2), x, init=np.repeat([0, 1], [50, 3]))
    assert fit.code == CODE["spurious"]
    assert "cluster 1 (rows 50, 51, 52) holds 3 points, no more than d + 1 = 3" in fit.status
    assert bm.fit(bm.MixtureModel(2, "EEE"), x, init=np.repeat([0, 1], [50, 3])).converged


def test_a_cluster_narrower_than_the_rounding_of_its_column_is_spurious():
    rng = np.random.default_rng(0)
    x = np.round(np.column_stack([rng.normal(size=200) * 3, rng.normal(size=200)]), 0)
    x[:30] = np.column_stack([np.round(rng.normal(size=30) * 3), np.zeros(30) + (np.arange(30) == 0)])
    fit = bm.fit(bm.MixtureModel(2), x, init=np.repeat([0, 1], [30, 170]), max_steps=1)
    assert "narrower than the rounding" in fit.status


@pytest.mark.slow
def test_the_best_of_many_random_starts_is_never_floored_or_spurious():
    for dataset, name in (("galaxies", "V"), ("iris", "VVV")):
        x = bm.datasets.load(dataset)
        for k in (1, 3, 9):
            fit = bm.fit(bm.MixtureModel(k, name), x, init="random", n_starts=100)
            assert not fit.spurious, (dataset, k, fit.status)
            assert fit.mixture.weights.min() * len(x) > x.shape[1] + 1


@pytest.mark.slow
def test_thyroid_like_groups_on_a_grid_choose_the_right_k():
    """Three groups of unequal size and spread, recorded to one decimal: a floored VVV,5 has the larger log L."""
    rng = np.random.default_rng(0)
    groups = [
        rng.normal(size=(150, 5)) * [8, 1.9, 0.5, 0.5, 1.0] + [110, 9.2, 1.7, 1.3, 2.5],
        rng.normal(size=(35, 5)) * [16, 5, 1.5, 0.4, 0.8] + [95, 18, 4.2, 1.0, 0.2],
        rng.normal(size=(30, 5)) * [10, 2, 0.6, 8, 12] + [122, 3.7, 1.1, 12, 17],
    ]
    x = np.round(np.concatenate(groups), 1)
    fits = [bm.fit(bm.MixtureModel(k), x, init="random", n_starts=100) for k in range(1, 6)]
    best = min((fit for fit in fits if not fit.spurious), key=lambda fit: fit.bic)
    assert best.mixture.n_components == 3
    assert not best.spurious


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(60, 2), (100, 3), (215, 5)])
def test_samples_of_one_gaussian_choose_one_cluster(n, d):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
        fits = [bm.fit(bm.MixtureModel(k), x, init="random", n_starts=30) for k in (1, 2, 3)]
        assert min((f for f in fits if not f.spurious), key=lambda f: f.bic) is fits[0]


def test_real_tight_clusters_survive():
    x = bm.datasets.load("galaxies")
    two, three = bm.fit(bm.MixtureModel(2, "V"), x), bm.fit(bm.MixtureModel(3, "V"), x)
    assert two.converged
    assert three.converged
    order = np.argsort(three.mixture.means[:, 0])
    assert_allclose(three.mixture.means[order, 0] / 1000, [9.7101, 21.4001, 33.0444], atol=1e-3)
    assert_allclose(three.mixture.covariances[order, 0, 0] / 1e6, [0.1785, 4.816, 0.8496], rtol=2e-3)


def test_a_large_thin_cluster_is_no_accident():
    """Hundreds of points near a line are a line; a dozen are near one by chance."""
    rng = np.random.default_rng(0)
    for count, real in ((400, True), (12, False)):
        line = np.column_stack([rng.normal(size=count), 0.01 * rng.normal(size=count)]) + 4
        x = np.concatenate([rng.normal(size=(400, 2)), line])
        fit = bm.fit(bm.MixtureModel(2), x, init=np.repeat([0, 1], [400, count]))
        assert fit.converged is real
        assert fit.spurious is not real
        assert real or "of the pooled within-cluster variance" in fit.status


def test_nan_in_the_loop_gives_a_failed_status_and_the_last_finite_mixture():
    x = data("VVV")[0]
    wild = bm.GaussianMixture.of([0.5, 0.5], [[1e200, 0, 0], [-1e200, 0, 0]], [np.eye(3), np.eye(3)])
    fit = bm.fit(bm.MixtureModel(2), x, init=wild)
    assert fit.code == CODE["non_finite"]
    assert fit.spurious
    assert not fit.converged
    assert np.isfinite(fit.mixture.means).all()
    assert_allclose(fit.mixture.means, wild.means)


def test_ties_count_once():
    """Ruspini has integer data: many points are as near to one random row as to another."""
    x = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    fit = bm.kmeans(x, 2, init=[[0.0], [2.0]], max_steps=1)
    assert fit.n_observations == 5
    assert_allclose(fit.mixture.means[:, 0], [0.5, 3.0])  # the point 1 goes to the lowest index
    start = bm.fit(bm.MixtureModel(2, "EII"), x, method="hard", init=[[0.0], [2.0]], max_steps=1, tol=0)
    assert_allclose(5 * start.mixture.weights, np.round(5 * start.mixture.weights), rtol=1e-12)
    assert_allclose(start.mixture.weights.sum(), 1)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_weights_steer_the_seeds(init):
    x = np.array([1.0, 1, 5, 5, 100, 100])
    weight = 10.0 ** np.array([8, 8, 8, 8, -8, -8])
    fit = bm.kmeans(x, 2, init=init, sample_weight=weight)
    assert_allclose(np.sort(fit.mixture.means[:, 0]), [1, 5], atol=1e-6)


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
def test_seeds_are_distinct_rows_of_positive_weight_however_u_rounds(seeds):
    class Extreme:
        def __init__(self, u):
            self.u = u

        def random(self, size):
            return np.full(size, self.u)

    x = np.repeat(np.arange(6.0), 2)[:, None] - 2.5
    weight = np.array([0, 0, 1, 2, 3, 1, 1, 1, 1, 1, 0, 0.0])
    for u in (0.0, 0.5, np.nextafter(1, 0)):
        for rows in seeds(x, weight, 4, [Extreme(u), Extreme(0.3), Extreme(u)]):
            assert sorted(rows[:, 0]) == [-1.5, -0.5, 0.5, 1.5]


@pytest.mark.parametrize("x", [np.repeat([[0.0], [1.0]], 5, axis=0), np.zeros((6, 2))], ids=["two", "one"])
def test_fewer_distinct_rows_than_clusters_of_kmeans_ends_with_a_sentence(x):
    fit = bm.kmeans(x, 3)
    distinct = len(np.unique(x, axis=0))
    assert fit.inertia == 0
    assert fit.converged
    assert f"only {distinct} distinct rows for 3 clusters" in fit.status
    assert len(np.unique(fit.labels)) == distinct
    assert is_finite(fit)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("features", [1, 2])
def test_rows_that_differ_by_rounding_alone_do_not_keep_kmeans_moving_a_cluster(features, batch_size, dtype):
    column = np.repeat([0.3, 0.1 + 0.2, 1.0], 5).astype(dtype)
    x = np.stack([column] * features, axis=1)
    fit = bm.kmeans(x, 3, batch_size=batch_size)
    assert batch_size or "only 2 distinct rows for 3 clusters, up to rounding" in fit.status
    assert fit.converged
    assert sorted(np.bincount(fit.labels)) in ([5, 10], [0, 5, 10])


def test_a_cluster_is_moved_as_often_as_steps_empty_one():
    x = np.concatenate([np.arange(6.0) * 10, np.arange(6.0) * 10 + 1])
    fit = bm.kmeans(x, 6, init=np.linspace(1000, 1005, 6)[:, None])
    assert fit.status == "converged"
    assert fit.inertia == pytest.approx(3)


def test_inertia_zero_is_converged_not_collapsed():
    fit = bm.kmeans([[0.0], [0.0], [1.0], [1.0]], 2)
    assert fit.inertia == 0
    assert fit.status == "converged"


@pytest.mark.parametrize("init", [[[0.0], [5.0], [100.0]], [[4.0], [0.0], [1.0]]])
def test_labels_are_fresh_after_an_empty_cluster_was_moved(init):
    x = (
        np.array([[1.0], [2.0], [3.0]])
        if init[0] == [4.0]
        else np.array([[0.0], [0.1], [0.2], [9.8], [10.0]])
    )
    fit = bm.kmeans(x, 3, init=init)
    assert_array_equal(fit.labels, np.abs(x - fit.mixture.means[:, 0]).argmin(axis=1))
    away = x[:, 0] - fit.mixture.means[fit.labels, 0]
    assert_allclose(fit.inertia, away @ away, atol=1e-15)
    assert set(fit.labels) == {0, 1, 2}


@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e12])
def test_no_regularisation_is_absolute(scale):
    """scikit-learn's gives faithful × 1e-6 three identical means, one label, "converged"."""
    x = bm.datasets.load("old_faithful").to_numpy()
    plain = bm.fit(bm.MixtureModel(3), x)
    small = bm.fit(bm.MixtureModel(3), x * scale)
    assert_array_equal(small.labels, plain.labels)
    assert_allclose(small.mixture.means / scale, plain.mixture.means, rtol=1e-5)


def test_random_starts_leave_the_grand_mean():
    x = bm.datasets.load("old_faithful")
    for key in range(10):
        fit = bm.fit(bm.MixtureModel(2), x, init="random", n_starts=1, key=key)
        assert abs(fit.log_likelihood + 1130.264) < 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int16])
def test_small_integers_fit_as_floats_do(dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 90, size=(60, 2)), rng.integers(160, 255, size=(60, 2))])
    x = (x > 120).astype(bool) if dtype is bool else x.astype(dtype)
    a = bm.fit(bm.MixtureModel(2, "diag"), x)
    b = bm.fit(bm.MixtureModel(2, "diag"), x.astype(np.float64))
    assert_array_equal(a.mixture.means, b.mixture.means)


def test_best_of_many_bookkeeping_comes_from_one_run():
    x = bm.datasets.load("iris")
    fit = bm.fit(bm.MixtureModel(4, "VVI"), x, init="random", n_starts=15, key=1)
    assert_allclose(fit.objective[-1], fit.log_likelihood, rtol=1e-10)
    assert_array_equal(fit.labels, fit.mixture.classify(x))
    assert_allclose(fit.log_likelihood, fit.mixture.log_density(x).sum(), rtol=1e-12)
    again = bm.fit(bm.MixtureModel(4, "VVI"), x, init=fit.mixture)
    assert abs(again.log_likelihood - fit.log_likelihood) < 1e-3


def test_reaching_max_steps_says_so():
    fit = bm.fit(bm.MixtureModel(3), bm.datasets.load("old_faithful"), max_steps=5, n_starts=1)
    assert fit.n_steps == 5
    assert not fit.converged
    assert "max_steps=5" in fit.status
    assert not fit.spurious


def test_a_status_means_the_same_to_every_reader_and_on_the_page():
    fit = bm.fit(bm.MixtureModel(2), bm.datasets.load("old_faithful"))
    page = (Path(bm.__file__).parents[1] / "docs" / "em.md").read_text()
    lines = page.partition("| status |")[2].partition("\n\n")[0].splitlines()[2:]
    said = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    for name, row in STATUS.items():
        own, yes = replace(fit, code=row.code), ["yes" * row.converged, "yes" * (not row.clean)]
        assert (own.converged, own.spurious) == (row.converged, not row.clean)
        assert (Verdict(name).converged, Verdict(name).clean) == (row.converged, row.clean)
        assert row.clean or not row.converged
        shown = [cells[2:] for cells in said if row.text.startswith(cells[0].partition(",")[0])]
        assert shown or name in ("running", "empty", "thin")  # which no fit ends with
        assert all(cells == yes for cells in shown), name


def test_kmeans_is_the_limit_of_soft_em_as_the_sphere_shrinks():
    x = data("EII")[0]
    start = mixture("EII").means
    hard = bm.kmeans(x, 3, init=start)
    gaps = []
    for sigma in (1.0, 0.3, 0.1, 0.03):
        sphere = bm.GaussianMixture.of(np.full(3, 1 / 3), start, np.array([sigma**2]), covariance="EII")
        soft = bm.fit(bm.MixtureModel(3, "EII"), x, init=sphere, hold=("weights", "covariance"), tol=1e-12)
        gaps.append(np.abs(soft.mixture.means - hard.mixture.means).max())
    assert gaps[0] > gaps[-1]
    assert gaps[-1] < 1e-6
    assert_array_equal(soft.labels, hard.labels)


def test_kmeans_summary_says_that_bic_is_not_at_the_maximum():
    fit = bm.kmeans(bm.datasets.load("old_faithful"), 2)
    assert "BIC (not at the likelihood's maximum: k-means)" in fit.summary().index
    assert "BIC" in bm.fit(bm.MixtureModel(2), bm.datasets.load("old_faithful")).summary().index


SCALES = [
    (1e19, np.float32),
    (1e20, np.float32),
    (1e-30, np.float32),
    (1e150, np.float64),
    (1e-150, np.float64),
]
FITS = {
    "fit": lambda x: bm.fit(bm.MixtureModel(2, "VVI"), x),
    "prior": lambda x: bm.fit(bm.MixtureModel(2, "VVI", "weak"), x),
    "kmeans": lambda x: bm.kmeans(x, 2),
    "search": lambda x: bm.search(x, n_components=2, covariance="VVI").best,
}


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("way", FITS)
def test_variances_that_their_type_cannot_hold_are_no_infinities(way, scale):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(50, 2)) * [1, 2] + [6, 3]])
    plain, size = FITS[way](x), scale[0]
    fit = FITS[way]((x * size).astype(scale[1]))
    assert is_finite(fit)
    assert fit.status == "converged"
    moved = plain.log_likelihood - x.size * np.log(size)
    assert_allclose(fit.log_likelihood, moved, rtol=1e-6 if scale[1] == np.float32 else 1e-12)
    given = fit.mixture.log_density((x * size).astype(scale[1])).sum(dtype=np.float64)
    assert_allclose(fit.log_likelihood, given, rtol=1e-6)
    assert bm.adjusted_rand_index(fit.labels, plain.labels) == 1


@pytest.mark.parametrize("scale", [1e-170, 1e155])
@pytest.mark.parametrize("way", ["fit", "kmeans", "search"])
def test_data_of_which_no_variance_can_be_held_are_refused(way, scale):
    with pytest.raises(ValueError, match="x is too large or too small"):
        FITS[way](np.random.default_rng(0).normal(size=(50, 2)) * scale)


def test_one_row_is_searched():
    for weight in (None, [0.0, 1.0, 0.0]):
        x = [3.0] if weight is None else [1.0, 2.0, 5.0]
        assert set(bm.search(x, n_components=1, sample_weight=weight).table["status"]) == {"degenerate"}


@pytest.mark.parametrize("method", ["stochastic", "stochastic_approximation"])
@pytest.mark.parametrize(("k", "n"), [(1, 2), (2, 4), (10, 28)])
def test_draws_of_few_points_are_those_of_a_prior_where_there_is_one(k, n, method):
    x = np.random.default_rng(0).normal(size=(n, 2))
    fit = bm.fit(bm.MixtureModel(k, prior="weak"), x, method=method, max_steps=20)
    assert is_finite(fit)
    assert fit.n_steps == 20
    assert fit.n_redraws == 0
    assert fit.status.startswith("finished")
    alone = bm.fit(bm.MixtureModel(k), x, method=method, max_steps=20)
    assert alone.spurious
    assert "cluster " in alone.status or "column " in alone.status


MIXTURE = bm.GaussianMixture.of(
    [0.5, 0.5], [[0, 0], [6, 3]], np.stack([np.eye(2)] * 2), feature_names=["a", "b"]
)
STARTS = {
    "masked means": (np.ma.array([[0.0, 0], [6, 3]], mask=[[1, 0], [0, 0]]), "init has a missing value in row 0"),
    "masked labels": (np.ma.array(np.arange(70) % 2, mask=np.arange(70) < 20), "init has a missing value in row 0"),
    "a batch": (jax.tree.map(lambda a: np.stack([a, a]), MIXTURE), "init is a batch of mixtures"),
    "no weights": (replace(MIXTURE, weights=np.array([np.nan, 1])), "weights are no probabilities"),
    "weights of three": (replace(MIXTURE, weights=np.array([2.0, 1])), "weights are no probabilities"),
    "other names": (replace(MIXTURE, feature_names=("a", "c")), "init has other columns than the features 'a', 'b'"),
    "a table of others": (pd.DataFrame([[0, 0], [6, 3]], columns=["a", "c"]), "init has other columns"),
    "no name of a thing to hold": (MIXTURE, "hold must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", STARTS)
def test_a_start_that_is_none_is_one_error(case):
    init, message = STARTS[case]
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(30, 2)), rng.normal(size=(40, 2)) * [1, 2] + [6, 3]])
    hold = ["weights", 1] if "hold" in case else ()
    with pytest.raises(ValueError, match=message):
        bm.fit(bm.MixtureModel(2), pd.DataFrame(x, columns=["a", "b"]), init=init, hold=hold)


def test_a_start_with_names_is_taken_by_them():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(30, 2)), rng.normal(size=(40, 2)) * [1, 2] + [6, 3]])
    frame = pd.DataFrame(x, columns=["a", "b"])
    turned = frame[["b", "a"]]
    model = bm.MixtureModel(2, "EVV")
    fit = bm.fit(model, frame, max_steps=3, tol=0)
    assert_allclose(bm.fit(model, turned, init=fit.mixture, max_steps=0).log_likelihood, fit.log_likelihood)
    means = pd.DataFrame(fit.mixture.means, columns=["a", "b"])
    for init in (means, means[["b", "a"]]):
        again = bm.fit(model, frame, init=init, max_steps=1, tol=0)
        assert_allclose(
            again.mixture.means, bm.fit(model, x, init=means.to_numpy(), max_steps=1, tol=0).mixture.means
        )
    assert_allclose(bm.kmeans(turned, 2, init=fit.mixture).inertia, bm.kmeans(x, 2).inertia)  # no sphere


def test_what_is_held_twice_is_held_once():
    x = np.random.default_rng(0).normal(size=(70, 2))
    once, twice = (
        bm.fit(bm.MixtureModel(2), x, init=MIXTURE, hold=hold) for hold in ("weights", ["weights"] * 2)
    )
    assert once.n_parameters == twice.n_parameters == 10
    assert twice.hold == ("weights",)


@pytest.mark.parametrize(("far", "dtype"), [(1e20, np.float32), (1e160, np.float64)])
@pytest.mark.parametrize("n", [3, 150_000])
def test_points_of_which_no_density_can_be_held_have_equal_responsibilities(n, far, dtype):
    x = np.zeros((n, 2), dtype)
    x[1] = far
    r = MIXTURE.responsibilities(x)
    assert_array_equal(r[1], [0.5, 0.5])
    assert_allclose(r.sum(axis=1), 1, rtol=1e-6)
    assert_allclose(r[[0, 2]], MIXTURE.responsibilities(np.zeros((2, 2))), rtol=1e-5)
    assert MIXTURE.classify(x)[1] == 0
    assert_array_equal(MIXTURE.condition({"a": 1e200}).weights, [0.5, 0.5])


def test_a_mixture_whose_features_were_never_named_starts_a_fit_of_a_table():
    x = np.random.default_rng(0).normal(size=(90, 2)) + 5 * (np.arange(90) % 2)[:, None]
    frame, fit = pd.DataFrame(x, columns=["a", "b"]), bm.fit(bm.MixtureModel(2), x)
    assert_allclose(
        bm.fit(bm.MixtureModel(2), frame, init=fit.mixture).log_likelihood, fit.log_likelihood, atol=1e-4
    )
    assert_allclose(bm.kmeans(frame, 2, init=fit.mixture).inertia, bm.kmeans(x, 2).inertia)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["VVV", "EEI", "EEV"])
def test_means_start_from_a_column_that_is_constant(name, dtype):
    x = np.random.default_rng(0).normal(size=(90, 2)) + 5 * (np.arange(90) % 2)[:, None]
    x[:, 0] = 3
    means = np.array([[3.0, 0], [3, 5]])
    fit = bm.fit(bm.MixtureModel(2, name, "weak"), x.astype(dtype), init=means)
    assert is_finite(fit)
    assert fit.status == "converged"
    assert fit.mixture.means.dtype == dtype
    alone = bm.fit(bm.MixtureModel(2, name), x.astype(dtype), init=means)
    assert is_finite(alone)
    assert "column 'x0' is constant" in alone.status


def test_inertia_is_that_of_the_labels_where_rounding_decides():
    x = np.random.default_rng(0).normal(size=(200, 3))
    x[:3] = [[1e8, 1e8, 1e8], [-1e8, -1e8, -1e8], [1e8, -1e8, 0]]
    x = x.astype(np.float32)
    fit = bm.kmeans(x, 5)
    assert fit.status == "converged"
    away = x.astype(np.float64) - fit.mixture.means[fit.labels]
    assert_allclose(fit.inertia, (away**2).sum(), rtol=1e-6)
    assert_array_equal(fit.labels, fit.mixture.classify(x))


def test_columns_whose_scales_no_determinant_holds_are_refused():
    x = np.random.default_rng(0).normal(size=(60, 2)) * [1e60, 1e-60]
    with pytest.raises(ValueError, match="too far apart for VEV, which depends on the units"):
        bm.fit(bm.MixtureModel(2, "VEV"), x)
    assert np.isfinite(bm.fit(bm.MixtureModel(2, "VVV"), x).log_likelihood)
    assert np.isfinite(bm.fit(bm.MixtureModel(2, "VEV"), x / [1e41, 1e-41]).log_likelihood)


@pytest.mark.parametrize("prior", [None, "weak"])
def test_data_whose_differences_are_no_numbers_are_refused(prior):
    for x in ([[1e308, -1e308], [-1e308, 1e308], [0, 0], [1, 1]], [[1e200], [2e200], [5e200]]):
        with pytest.raises(ValueError, match="x is too large or too small: its columns reach"):
            bm.fit(bm.MixtureModel(1, prior=prior), x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 10, 64])
def test_seeds_are_distinct_rows_among_many_copies(d, dtype):
    """Copies are at distance zero whatever the rounding; rows that differ by little more than that are others."""
    rng = np.random.default_rng(0)
    row = rng.normal(size=d)
    apart = 1 + np.sqrt(3 * (4 + np.sqrt(d)) * np.finfo(dtype).eps) * np.arange(4)
    rows = (row * np.append(apart, -3)[:, None]).astype(dtype)
    x = np.repeat(rows, 50, axis=0)[rng.permutation(250)]
    for seeds in plus_plus(x, np.ones(250), 5, rng.spawn(20)):
        assert len(np.unique(seeds, axis=0)) == 5


def two_groups():
    rng = np.random.default_rng(4)
    return np.concatenate([rng.normal(size=(30, 2)), rng.normal(size=(30, 2)) + 3])


def test_a_cluster_without_points_is_not_said_to_have_shrunk():
    x = two_groups()
    for name, init in (("EEE", np.zeros(60, int)), ("VVV", np.tile([1.0, 0.0], (60, 1)))):
        fit = bm.fit(bm.MixtureModel(2, name), x, init=init)
        assert fit.spurious
        assert (
            "cluster 1 (rows none) holds no points; so the likelihood means nothing as that of 2"
            in fit.status
        )
    empty = bm.GaussianMixture.of([1, 0], [[1, 1], [9, 9]], [np.eye(2)] * 2)
    drawn = bm.fit(bm.MixtureModel(2), x, init=empty, method="stochastic_approximation")
    assert drawn.spurious
    np.testing.assert_allclose(drawn.objective[-1], drawn.log_likelihood)
    twice = np.repeat([[0.0, 0.0], [5.0, 5.0]], 10, axis=0) + np.arange(20)[:, None] * [[0.1, 0.0]]
    flat = bm.fit(bm.MixtureModel(2), np.column_stack([twice, twice[:, 1] ** 2]))
    assert flat.spurious


@pytest.mark.parametrize(
    "method", ["soft", "hard", "online", "stochastic", "stochastic_approximation", "annealed"]
)
def test_without_a_step_only_a_mixture_is_one(method):
    x, model = two_groups(), bm.MixtureModel(2)
    for init in (None, "random", np.arange(60) % 2):
        with pytest.raises(
            ValueError, match="max_steps must be at least 1, unless init is means or a mixture"
        ):
            bm.fit(model, x, init=init, method=method, max_steps=0)
    fit = bm.fit(model, x, init=x[[0, 40]], method=method, max_steps=0)
    assert fit.status.startswith("reached max_steps=0")
    np.testing.assert_allclose(
        fit.objective[-1], fit.classification_log_likelihood if method == "hard" else fit.log_likelihood
    )
    assert bm.kmeans(x, 2, max_steps=0).n_steps == 0


@pytest.mark.parametrize("scale", [1e-105, 1e-310, 1e149, 1e307])
def test_weights_beyond_all_numbers_are_refused(scale):
    x = two_groups()
    for call in (
        lambda w: bm.fit(bm.MixtureModel(2), x, sample_weight=w),
        lambda w: bm.fit(bm.MixtureModel(2, prior="weak"), x, sample_weight=w),
        lambda w: bm.kmeans(x, 2, sample_weight=w),
        lambda w: bm.search(x, n_components=2, covariance="EII", sample_weight=w),
    ):
        with pytest.raises(
            ValueError, match=r"sample_weight adds up to .*, which is no number of repetitions"
        ):
            call(np.full(60, scale))


@pytest.mark.parametrize("scale", [1e-80, 1e140])
def test_of_weights_only_ratios_count(scale):
    x = two_groups()
    np.testing.assert_allclose(
        bm.kmeans(x, 2, sample_weight=np.full(60, scale)).inertia / scale, bm.kmeans(x, 2).inertia, rtol=1e-9
    )
    fit = bm.fit(bm.MixtureModel(2, "EEE"), x, sample_weight=np.full(60, scale))
    np.testing.assert_allclose(
        fit.log_likelihood / scale, bm.fit(bm.MixtureModel(2, "EEE"), x).log_likelihood, rtol=1e-6
    )


@pytest.mark.parametrize("y", [[0, 0.1, 1e7, 1e7 + 0.1, 3e7], [0, 1e-9, 1, 1 + 1e-9]])
def test_centres_are_the_means_of_their_labels_where_rounding_decides_these(y):
    y = np.array(y)
    fit = bm.kmeans(y, len(y), init=y[:, None])
    np.testing.assert_array_equal(np.sort(fit.labels), np.arange(len(y)))
    np.testing.assert_array_equal(fit.mixture.means[fit.labels, 0], y)
    assert fit.inertia == 0


def test_a_summary_counts_all_observations():
    fit = bm.fit(bm.MixtureModel(1), two_groups(), sample_weight=np.full(60, 1234567 / 60))
    assert fit.summary()["value"]["observations"] == "1234567"


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-30, 1e30, 1e37])
def test_float32_data_of_any_scale_have_the_fit_of_their_float64_cast(scale):
    x = (np.concatenate([np.linspace(0, 1, 20), np.linspace(8, 9, 20)]) * scale).astype(np.float32)
    fit, wide = (bm.fit(bm.MixtureModel(2, "V"), data) for data in (x, x.astype(float)))
    np.testing.assert_allclose(fit.log_likelihood, wide.log_likelihood, rtol=1e-6)
    np.testing.assert_array_equal(np.bincount(fit.labels), [20, 20])
    density = fit.mixture.log_density(x)
    assert density.dtype == np.float32
    np.testing.assert_allclose(density, wide.mixture.log_density(x.astype(float)), rtol=1e-4)
    np.testing.assert_array_equal(np.bincount(bm.kmeans(x, 2).labels), [20, 20])
    np.testing.assert_array_equal(fit.mixture.within(x, radius=5.0) >= 0, np.ones(40, bool))


def test_a_mixture_beyond_float32_is_evaluated_at_float32_points():
    thin = bm.GaussianMixture.of([0.5, 0.5], [[0, 0], [1, 1.0]], [np.diag([1e-80, 1.0])] * 2)
    far = bm.GaussianMixture.of([0.5, 0.5], [[1e60, 0], [1, 1]], [1e120 * np.eye(2), np.eye(2)])
    x = np.array([[0, 0], [1, 1.0]])
    for m in (thin, far):
        np.testing.assert_allclose(m.log_density(x.astype(np.float32)), m.log_density(x), rtol=1e-6)
        np.testing.assert_array_equal(m.classify(x.astype(np.float32)), m.classify(x))
    single = bm.GaussianMixture.of(*(np.array(a, np.float32) for a in ([1], [[0, 0]], [np.eye(2)])))
    with pytest.raises(
        ValueError, match=r"given has 1e\+39, which float32, the type of the mixture, cannot hold"
    ):
        single.condition({0: 1e39})


@pytest.mark.parametrize("x", ["abc", {"a": [1]}, {1, 2}], ids=["text", "dict", "set"])
def test_what_is_no_array_is_named_for_what_it_is(x):
    m = bm.GaussianMixture.of([1.0], [[0.0, 0.0]], [np.eye(2)])
    with pytest.raises(ValueError, match=r"x is not numeric: column 'x0' \(row 0 holds"):
        m.log_density(x)
