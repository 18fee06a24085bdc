"""Checks of a fit: right for data from the model, sharp for data that break it, and the same for the same data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist

import bayesmix as bm
from bayesmix import replicates
from bayesmix.covariance import Covariance
from bayesmix.discrepancy import Question, answer

APART = bm.GaussianMixture.of(
    [0.5, 0.5], [[0.0, 0.0], [9.0, 3.0]], [[[1.0, 0.5], [0.5, 2.0]], [[2.0, 0.0], [0.0, 0.5]]]
)
TOUCHING = bm.GaussianMixture.of([0.4, 0.6], [[-1.0], [1.5]], [[[1.0]], [[0.5]]], feature_names=["size"])

POINT = bm.GaussianMixture(np.ones(1), np.zeros((1, 1)), Covariance(np.zeros((1, 1, 1)), "VVV"))


def seen(mixture, x, weight=None):
    x = np.asarray(x, float)
    weight = np.ones(len(x)) if weight is None else np.asarray(weight, float)
    return replicates.look(mixture, x, weight, slice(None))


# The numbers, each against its definition.


def test_a_point_has_the_squared_distance_to_its_most_probable_cluster():
    x = APART.simulate(100, key=0)[0]
    sample = seen(APART, x)
    for row, label, squared in zip(x, sample.label, sample.distance):
        away = row - APART.means[label]
        assert squared == pytest.approx(away @ np.linalg.solve(APART.covariances[label], away), abs=1e-9)
    assert (sample.label == APART.classify(x)).all()
    assert sample.log_density == pytest.approx(APART.log_density(x))


def test_moments_are_scipys():
    x = APART.simulate(200, key=1)[0]
    moments = seen(APART, x).moments
    assert moments["means"] == pytest.approx(x.mean(axis=0))
    assert moments["covariances"] == pytest.approx(np.cov(x.T, bias=True)[[0, 0, 1], [0, 1, 1]])
    assert moments["skewness"] == pytest.approx(stats.skew(x))
    assert moments["kurtosis"] == pytest.approx(stats.kurtosis(x))


@pytest.mark.parametrize(("scale", "offset"), [(1e-12, 0.0), (1e12, 0.0), (1.0, 1e8)])
def test_moments_keep_their_digits_at_every_scale(scale, offset):
    x = APART.simulate(200, key=1)[0]
    plain, moved = seen(APART, x).moments, seen(APART, scale * x + offset).moments
    assert moved["skewness"] == pytest.approx(plain["skewness"], abs=1e-6)
    assert moved["kurtosis"] == pytest.approx(plain["kurtosis"], abs=1e-6)
    assert moved["covariances"] == pytest.approx(scale**2 * plain["covariances"], rel=1e-6)


def test_quantiles_are_those_of_the_repeated_values():
    values, weight = np.array([3.0, 1.0, 2.0]), np.array([2.0, 1.0, 3.0])
    probability = np.linspace(0.01, 0.99, 37)
    expected = np.quantile(np.repeat(values, weight.astype(int)), probability, method="inverted_cdf")
    assert (replicates.weighted_quantiles(values, weight, probability) == expected).all()
    assert np.isnan(replicates.weighted_quantiles(values[:0], weight[:0], probability)).all()


@pytest.mark.parametrize("count", [1, 2, 7, 200, 201, 5000, 10**6])
def test_probabilities_are_of_different_ranks_from_the_first_to_the_last(count):
    p = replicates.probabilities(count)
    ranks = p * count + 0.5
    assert ranks == pytest.approx(np.round(ranks), rel=1e-9)
    assert (np.diff(ranks) > 0.5).all()
    assert (ranks[0], ranks[-1]) == (pytest.approx(1, abs=count / 200), pytest.approx(count))
    assert p.size <= 200


def test_the_transform_is_scipys_and_its_distance_too():
    x = TOUCHING.simulate(300, key=0)[0]
    check = bm.check_fit(TOUCHING, x)
    law = 0.4 * stats.norm(-1, 1).cdf(x[:, 0]) + 0.6 * stats.norm(1.5, 0.5**0.5).cdf(x[:, 0])
    assert check.transform == pytest.approx(law, abs=1e-14)
    distance = stats.kstest(law, "uniform")
    found = check.checks["distribution"]
    assert found.observed[0] == pytest.approx(distance.statistic, abs=1e-14)
    assert found.tail == pytest.approx(distance.pvalue, abs=0.12)
    assert found.high[0] == pytest.approx(stats.kstwo.ppf(0.95, 300), rel=0.1)


def test_pairwise_distances_are_of_all_pairs_or_of_five_hundred_points():
    x = APART.simulate(50, key=0)[0]
    assert replicates.pairwise(x) == pytest.approx(np.quantile(pdist(x), replicates.PAIRWISE))
    rows = replicates.some_rows(np.ones(5000), 5000, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 500
    assert replicates.some_rows(np.array([2.0, 1.0, 3.0]), 6, np.random.default_rng(0)).tolist() == [
        0,
        0,
        1,
        2,
        2,
        2,
    ]


# Right: under the model itself tails are uniform.


@pytest.mark.slow
@pytest.mark.parametrize("mixture", [APART, TOUCHING], ids=["two features", "one feature"])
def test_data_from_the_model_have_uniform_tails(mixture):
    """Thirty data sets, each with its own simulations: all checks together, and each by itself."""
    runs = [
        bm.check_fit(mixture, mixture.simulate(120, key=s)[0], n_draws=99, key=s + 500) for s in range(30)
    ]
    for name in runs[0].checks:
        tails = np.array([run.checks[name].tail for run in runs])
        assert ((tails > 0) & (tails <= 1)).all()
        assert stats.kstest(tails, "uniform").pvalue > 1e-3, name
    share = np.mean([check.differs for run in runs for check in run.checks.values()])
    assert share < 0.035
    lowest = np.array([run.lowest.expected[0] for run in runs])
    assert stats.kstest(lowest, "expon").pvalue > 1e-3


def test_the_tail_is_the_rank_among_all_sets():
    sets = np.array([[3.0], [1.0], [2.0], [4.0], [2.5]])
    question = Question(np.asarray, ("number",), side="high")
    assert answer(question, sets).tail == 2 / 5
    assert answer(question._replace(side="low"), sets).tail == 4 / 5
    assert answer(question._replace(side="both"), sets).tails == [0.8]
    # In standard deviations from the mean 2.5 the others are 0, 1.5, 0.5, 1.5, 0 away; the first is 0.5 away.
    assert answer(question._replace(side="both"), sets).tail == pytest.approx(4 / 5)


def test_overlapping_clusters_are_not_chi_square_and_the_check_knows():
    """Assignment cuts the points off, so that their distances are smaller than the chi-square law has them."""
    mixture = bm.GaussianMixture.of([0.5, 0.5], [[-0.7], [0.7]], [[[1.0]], [[1.0]]])
    check = bm.check_fit(mixture, mixture.simulate(2000, key=0)[0])
    for distances in check.distances:
        middle = np.searchsorted(distances.probability, 0.5)
        assert distances.chi_square[middle] > 1.2 * distances.high[middle]
        assert not distances.differs
    apart = bm.check_fit(APART, APART.simulate(2000, key=0)[0])
    for distances in apart.distances:
        middle = np.searchsorted(distances.probability, 0.5)
        assert distances.low[middle] < distances.chi_square[middle] < distances.high[middle]
        law = stats.chi2(2).ppf(distances.probability)
        assert distances.chi_square == pytest.approx(law, rel=1e-9)


# Sharp: what breaks the model is found, where it is.


def fitted(x, k=2, covariance="VVV"):
    return bm.fit(bm.MixtureModel(k, covariance), x)


def test_heavy_tails_are_found_in_the_cluster_that_has_them():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(size=(300, 2)), rng.standard_t(3, size=(300, 2)) + 30]
    fit = fitted(x)
    check = bm.check_fit(fit, x)
    heavy = int(np.argmax(fit.mixture.means[:, 0]))
    assert check.checks[f"distances in cluster {heavy}"].differs
    assert not check.checks[f"distances in cluster {1 - heavy}"].differs
    assert check.checks["lowest log density"].differs
    assert f"distances in cluster {heavy}" in check.status
    assert check.status.endswith(")")


def test_a_uniform_cloud_is_no_gaussian():
    x = np.random.default_rng(1).uniform(size=(500, 2))
    check = bm.check_fit(fitted(x, 1), x)
    assert check.checks["kurtosis"].differs
    assert check.checks["distances in cluster 0"].differs
    assert check.checks["kurtosis"].verdict.startswith("differs: excess kurtosis of x")


def test_too_few_clusters_are_found():
    x = APART.simulate(400, key=0)[0]
    one, two = (bm.check_fit(fitted(x, k), x) for k in (1, 2))
    assert one.checks["distances in cluster 0"].differs
    assert one.checks["pairwise distances"].differs
    assert not any(check.differs for check in two.checks.values())
    assert two.status == "none of 9 checks tells the data from simulated ones"


def test_a_wrong_law_of_one_feature_is_found():
    x = np.random.default_rng(0).exponential(size=400)
    check = bm.check_fit(fitted(x, 1, "V"), x)
    assert check.checks["distribution"].differs
    assert check.checks["skewness"].differs


def test_a_correlation_that_the_structure_forbids_is_found():
    x = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=400)
    covariances = bm.check_fit(fitted(x, 1, "VVI"), x).checks["covariances"]
    assert covariances.differs
    assert covariances.quantities[covariances.farthest] == "covariance of x0, x1"


def test_an_outlier_is_the_worst_row():
    x = APART.simulate(200, key=1)[0].copy()
    x[17] = [4.0, 40.0]
    check = bm.check_fit(APART, x)
    worst = check.worst
    assert worst["row"][0] == 17
    assert worst["log density"].to_numpy() == pytest.approx(np.sort(APART.log_density(x))[:10])
    assert worst["tail"][0] == pytest.approx(1 / (1 + 199 * 200))
    assert worst["expected"][0] < 0.01 < 0.1 < worst["expected"][1]
    assert worst["tail"].is_monotonic_increasing
    assert check.checks["lowest log density"].tail == 1 / 200


def test_the_tail_of_a_row_is_that_of_its_density():
    """For one Gaussian, P(log p(X) <= log p(x)) is the chi-square law's upper tail."""
    mixture = bm.GaussianMixture.of([1.0], [[0.0, 0.0]], [1.0], covariance="VII")
    x = np.array([[3.0, 0.0], [0.0, 2.0], *np.full((98, 2), 0.1)])
    worst = bm.check_fit(mixture, x, n_draws=999).worst
    assert worst["row"][:2].tolist() == [0, 1]
    assert worst["tail"][:2].to_numpy() == pytest.approx(stats.chi2(2).sf([9.0, 4.0]), rel=0.15)


# The same for the same data.


def same(first, second):
    assert list(first.checks) == list(second.checks)
    for name, check in first.checks.items():
        assert check.tail == second.checks[name].tail, name
        assert check.tails == pytest.approx(second.checks[name].tails), name


@pytest.mark.parametrize("mixture", [APART, TOUCHING], ids=["two features", "one feature"])
def test_weights_are_repetitions_and_zero_is_absence(mixture):
    x = mixture.simulate(300, key=0)[0]
    weight = np.random.default_rng(0).integers(0, 5, 300)
    weighted = bm.check_fit(mixture, x, sample_weight=weight)
    same(weighted, bm.check_fit(mixture, np.repeat(x, weight, axis=0)))
    assert not set(weighted.worst["row"]) & set(np.flatnonzero(weight == 0))


@pytest.mark.parametrize(("scale", "offset"), [(2.0**-40, 0.0), (2.0**40, 0.0), (0.3, -7.0)])
def test_moved_and_rescaled_data_have_the_same_tails(scale, offset):
    x = APART.simulate(150, key=3)[0]
    moved = bm.GaussianMixture.of(APART.weights, scale * APART.means + offset, scale**2 * APART.covariances)
    same(bm.check_fit(APART, x), bm.check_fit(moved, scale * x + offset))


def test_the_key_decides_and_nothing_is_changed():
    x = APART.simulate(100, key=0)[0]
    copy = x.copy()
    first, again, other = (bm.check_fit(APART, x, key=key) for key in (1, 1, 2))
    same(first, again)
    assert (x == copy).all()
    assert (first.checks["kurtosis"].low != other.checks["kurtosis"].low).all()


def test_a_fit_and_its_mixture_are_the_same_question():
    x = APART.simulate(200, key=0)[0]
    fit = fitted(x)
    same(bm.check_fit(fit, x), bm.check_fit(fit.mixture, x))


def test_float32_data_are_checked_too():
    x = APART.simulate(200, key=0)[0].astype(np.float32)
    assert bm.check_fit(fitted(x), x).checks["kurtosis"].observed.dtype == np.float64


# What is said.


def test_tables_have_a_row_per_check_and_per_number():
    x = TOUCHING.simulate(80, key=0)[0]
    check = bm.check_fit(TOUCHING, x)
    summary, details = check.summary(), check.details()
    assert summary.index.tolist() == list(check.checks)
    assert summary.index.tolist() == [
        "cluster sizes", "distances in cluster 0", "distances in cluster 1", "means", "covariances", "skewness",
        "kurtosis", "pairwise distances", "distribution", "lowest log density",
    ]  # fmt: skip
    assert summary.columns.tolist() == ["farthest", "observed", "low", "high", "tail", "verdict"]
    assert summary.loc["means", "farthest"] == "mean of size"
    assert len(details) == sum(len(one.quantities) for one in check.checks.values())
    assert details.loc[("kurtosis", "excess kurtosis of size"), "observed"] == pytest.approx(
        stats.kurtosis(x)[0]
    )
    assert (details["low"] <= details["expected"]).all()
    assert repr(check).startswith("FitCheck(n_draws=199, status='none of 10 checks")


def test_a_cluster_without_points_is_said_to_have_none():
    mixture = bm.GaussianMixture.of([0.5, 0.5], [[0.0], [100.0]], [[[1.0]], [[1.0]]])
    check = bm.check_fit(mixture, np.linspace(-1, 1, 20))
    assert check.checks["distances in cluster 1"].verdict == "no points"
    assert check.checks["cluster sizes"].differs
    assert check.distances[1].n_points == 0
    assert check.summary().loc["distances in cluster 1", "tail"] == 1


@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_a_cluster_without_weight_is_no_special_case(weight):
    mixture = bm.GaussianMixture.of([1 - weight, weight], [[0.0], [5.0]], [[[1.0]], [[1.0]]])
    check = bm.check_fit(mixture, np.random.default_rng(0).normal(size=60))
    assert check.checks["distances in cluster 1"].verdict == "no points"
    assert not any(one.differs for one in check.checks.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bm.check_fit([1.0], [[0.0, 0.0]]), "must be a Fit or a GaussianMixture; it is list"),
        (lambda: bm.check_fit(APART, [[0.0]]), "2 are needed"),
        (lambda: bm.check_fit(APART, [[0.0, 0.0]]), "two points at least; the weights add up to 1"),
        (lambda: bm.check_fit(APART, np.zeros((3, 2)), n_draws=20), "n_draws must be at least 99"),
        (lambda: bm.check_fit(APART, np.zeros((3, 2)), key="a"), "key must be an int"),
        (lambda: bm.check_fit(APART, np.zeros((3, 2)), sample_weight=[1, 2]), "2 entries for 3 rows"),
        (lambda: bm.check_fit(POINT, [0.0, 1.0, 1.0]), "no finite density"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
