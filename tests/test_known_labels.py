"""Fits that are told the clusters of some rows, against a slow EM, closed forms, SciPy and numerical derivatives."""

import json

import numpy as np
import pytest
from cases import NAMES, K, N, data
from reference import load, rows
from scipy.stats import multivariate_normal

import bayesmix as bm
from bayesmix import passes, threads
from bayesmix.partitions import _with_known
from bayesmix.problem import problem_of
from bayesmix.seeds import plus_plus


def told(name, share=0.3):
    """The data of a structure, and of so many rows the cluster that they came from."""
    x, z = data(name)
    return x, np.where(np.random.default_rng(1).random(N) < share, z, -1)


def log_joint(mixture, x):
    return np.stack(
        [
            np.log(w) + multivariate_normal.logpdf(x, m, c)
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances)
        ],
        axis=1,
    ).reshape(len(x), -1)


def total(mixture, x, labels, weight=1.0):
    """Σ log p(x), of a row whose cluster is known log p(x, z)."""
    joint = log_joint(mixture, x)
    own = np.take_along_axis(joint, np.maximum(labels, 0)[:, None], 1)[:, 0]
    return float((weight * np.where(labels >= 0, own, np.logaddexp.reduce(joint, axis=1))).sum())


def slow_steps(mixture, x, labels, weight, steps, hard=False):
    """EM of unconstrained covariances as it stands in books."""
    for _ in range(steps):
        joint = log_joint(mixture, x)
        joint[(labels >= 0)[:, None] & (labels[:, None] != np.arange(K))] = -np.inf
        r = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        if hard:
            r = (np.argmax(joint, axis=1)[:, None] == np.arange(K)).astype(float)
        r *= weight[:, None]
        count = r.sum(axis=0)
        means = r.T @ x / count[:, None]
        away = x[:, None] - means
        covariances = np.einsum("nk,nki,nkj->kij", r, away, away) / count[:, None, None]
        mixture = bm.GaussianMixture.of(count / count.sum(), means, covariances)
    return mixture


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", ["soft", "hard"])
@pytest.mark.parametrize("how", ["kernel", "blocks", "whitened"])
def test_steps_are_those_of_a_slow_em(method, dtype, how, monkeypatch):
    if how != "kernel":
        monkeypatch.setattr(passes, "_FEW", {8: 0, 4: 0})
    x, labels = told("VVV")
    x = x.astype(dtype)
    if how == "whitened":  # one cluster far away, another very thin
        x = np.where((data("VVV")[1] == 1)[:, None], x * dtype(1e-6), x)
    weight = np.random.default_rng(2).integers(0, 3, N).astype(float)
    start = bm.fit(bm.MixtureModel(K), x, init=data("VVV")[1], tol=0, max_steps=1).mixture
    fit = bm.fit(
        bm.MixtureModel(K),
        x,
        labels=labels,
        init=start,
        sample_weight=weight,
        method=method,
        tol=0,
        max_steps=8,
    )
    slow = slow_steps(start, x.astype(float), labels, weight, 8, hard=method == "hard")
    exact = 1e-9 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(fit.mixture.weights, slow.weights, rtol=exact)
    np.testing.assert_allclose(fit.mixture.means, slow.means, rtol=exact, atol=exact)
    if how != "whitened":
        np.testing.assert_allclose(fit.mixture.covariances, slow.covariances, rtol=exact, atol=exact)
        expected = total(slow, x.astype(float), labels, weight)
        np.testing.assert_allclose(fit.log_likelihood, expected, rtol=exact)
    np.testing.assert_array_equal(
        fit.labels[(labels >= 0) & (weight > 0)], labels[(labels >= 0) & (weight > 0)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_structure_climbs_and_keeps_what_it_was_told(name):
    x, labels = told(name)
    fit = bm.fit(bm.MixtureModel(K, name), x, labels=labels, tol=1e-10)
    assert fit.converged
    assert (np.diff(fit.objective) >= -1e-9 * abs(fit.objective[-1])).all()
    known = labels >= 0
    np.testing.assert_array_equal(fit.labels[known], labels[known])
    np.testing.assert_array_equal(fit.labels[~known], fit.mixture.classify(x[~known]))
    np.testing.assert_allclose(fit.log_likelihood, total(fit.mixture, x, labels), rtol=1e-9)
    np.testing.assert_allclose(fit.objective[-1], fit.log_likelihood, rtol=1e-9)
    joint = fit.mixture.log_joint(x)
    top = np.where(known, joint[np.arange(N), np.maximum(labels, 0)], joint.max(axis=1)).sum()
    np.testing.assert_allclose(fit.classification_log_likelihood, top, rtol=1e-9)
    r = fit.mixture.responsibilities(x[~known])
    np.testing.assert_allclose(fit.entropy, -np.sum(r * np.log(np.maximum(r, 1e-300))), atol=1e-8)
    np.testing.assert_array_equal(fit.known_labels, labels)
    assert fit.summary()["value"]["rows whose cluster was known"] == known.sum()


def test_all_known_is_discriminant_analysis():
    x, z = data("VVV")
    fit = bm.fit(bm.MixtureModel(K), x, labels=z)
    for j in range(K):
        np.testing.assert_allclose(fit.mixture.means[j], x[z == j].mean(axis=0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(fit.mixture.covariances[j], np.cov(x[z == j].T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(fit.mixture.weights, np.bincount(z) / N, rtol=1e-12)
    assert fit.converged
    assert fit.entropy == 0
    tied = bm.fit(bm.MixtureModel(K, "EEE"), x, labels=z)
    within = sum((z == j).sum() * np.cov(x[z == j].T, bias=True) for j in range(K)) / N
    np.testing.assert_allclose(tied.mixture.covariances[0], within, rtol=1e-9)


@pytest.mark.parametrize("name", ["VVV", "EEE", "VII", "V"])
def test_weights_repeat_and_omit(name):
    x, labels = told(name)
    weight = np.random.default_rng(3).integers(0, 3, N)
    model, start = bm.MixtureModel(K, name), data(name)[1]
    fit = bm.fit(model, x, labels=labels, init=start, sample_weight=weight, tol=1e-10)
    rows = np.repeat(np.arange(N), weight)
    again = bm.fit(model, x[rows], labels=labels[rows], init=start[rows], tol=1e-10)
    np.testing.assert_allclose(fit.log_likelihood, again.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(fit.mixture.means, again.mixture.means, rtol=1e-7, atol=1e-9)
    assert (fit.known_labels[weight == 0] == -1).all()  # of rows that are absent nothing is known


def test_other_names_for_the_clusters_change_the_names_alone():
    x, labels = told("VVV")
    order = np.array([2, 0, 1])
    fit = bm.fit(bm.MixtureModel(K), x, labels=labels, tol=1e-10)
    other = bm.fit(bm.MixtureModel(K), x, labels=np.where(labels >= 0, order[labels], -1), tol=1e-10)
    np.testing.assert_allclose(other.mixture.means[order], fit.mixture.means, atol=1e-6)
    np.testing.assert_array_equal(other.labels, order[fit.labels])


@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random"])
def test_starts_grow_from_what_is_known(init):
    """A cluster that rows name is where they are, whichever number it has; the others are found."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    z = rng.integers(4, size=200)
    x = centres[z] + rng.normal(size=(200, 2))
    labels = np.full(200, -1)
    labels[np.flatnonzero(z == 3)[:2]] = 1
    labels[np.flatnonzero(z == 0)[:1]] = 2
    fit = bm.fit(bm.MixtureModel(4), x, labels=labels, init=init)
    np.testing.assert_allclose(fit.mixture.means[[1, 2]], centres[[3, 0]], atol=0.6)
    assert bm.adjusted_rand_index(fit.labels, z) == 1


def test_seeds_are_drawn_away_from_the_centres_that_are_given():
    x = np.repeat([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], 20, axis=0)
    rngs = np.random.default_rng(0).spawn(30)
    seeds = plus_plus(x, np.ones(60), 1, rngs, np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert seeds.shape == (30, 1, 2)
    np.testing.assert_array_equal(seeds, np.broadcast_to([0.0, 1.0], (30, 1, 2)))
    assert plus_plus(x, np.ones(60), 0, rngs, x[:1]).shape == (30, 0, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "hard"},
        {"method": "annealed", "n_starts": 2},
        {"method": "stochastic", "max_steps": 60},
        {"method": "stochastic", "max_steps": 60, "sample_weight": 2 * np.ones(N)},
        {"method": "stochastic_approximation", "max_steps": 200},
        {"method": "online", "batch_size": 40, "max_steps": 60},
        {"accelerate": True},
        {"hold": "weights"},
        {"init": "given"},
    ],
    ids=lambda options: " ".join(map(str, options.values()))[:30],
)
@pytest.mark.parametrize("name", ["VVV", "EEE"])
def test_every_method_knows_them(name, options):
    x, labels = told(name)
    if "init" in options:
        options = {"init": x[[5, 50, 100]]}
    best = bm.fit(bm.MixtureModel(K, name), x, labels=labels)
    fit = bm.fit(bm.MixtureModel(K, name), x, labels=labels, **options)
    np.testing.assert_array_equal(fit.labels[labels >= 0], labels[labels >= 0])
    np.testing.assert_allclose(fit.mixture.means, best.mixture.means, atol=1)  # which are 3 apart


def test_parts_of_threads_have_their_own(monkeypatch):
    x, z = data("VVV")
    x, z = np.tile(x, (70, 1)) + np.random.default_rng(0).normal(size=(70 * N, 3)) / 10, np.tile(z, 70)
    labels = np.where(np.random.default_rng(1).random(len(z)) < 0.3, z, -1)
    fits = []
    for worth in (np.inf, 0):
        monkeypatch.setattr(threads, "_WORTH", worth)
        monkeypatch.setattr(threads, "cores", lambda: 2)
        for method, name in (("soft", "VVV"), ("hard", "EEE")):
            model = bm.MixtureModel(K, name)
            fits.append(bm.fit(model, x, labels=labels, init=z, method=method, max_steps=5, tol=0))
    for whole, shared in zip(fits[:2], fits[2:]):
        np.testing.assert_allclose(shared.mixture.means, whole.mixture.means, rtol=1e-10)
        np.testing.assert_allclose(shared.objective, whole.objective, rtol=1e-10)


def test_standard_errors_see_them():
    """Against the Hessian of the log-likelihood by finite differences: one feature, two spheres, three parameters."""
    rng = np.random.default_rng(0)
    z = rng.integers(2, size=300)
    x = (1.5 * z + rng.normal(size=300))[:, None]
    labels = np.where(rng.random(300) < 0.5, z, -1)
    fit = bm.fit(bm.MixtureModel(2, "E"), x, labels=labels, hold="weights", tol=1e-12)
    at = np.append(fit.mixture.means[:, 0], fit.mixture.covariances[0, 0, 0])

    def value(v):
        return total(bm.GaussianMixture.of([0.5, 0.5], v[:2, None], np.full((2, 1, 1), v[2])), x, labels)

    h, eye = 1e-4, np.eye(3)
    hessian = np.array(
        [
            [
                value(at + h * (a + b))
                - value(at + h * (a - b))
                - value(at - h * (a - b))
                + value(at - h * (a + b))
                for b in eye
            ]
            for a in eye
        ]
    ) / (4 * h * h)
    expected = np.sqrt(np.diag(np.linalg.inv(-hessian)))
    errors = bm.standard_errors(fit, x)
    np.testing.assert_allclose(errors.means[:, 0], expected[:2], rtol=1e-4)
    np.testing.assert_allclose(errors.covariances[0, 0, 0], expected[2], rtol=1e-4)
    blind = bm.standard_errors(bm.fit(bm.MixtureModel(2, "E"), x, hold="weights", init=fit.mixture), x)
    assert (errors.means < blind.means).all()


def test_replicates_know_them_too():
    x, labels = told("VVV")
    fit = bm.fit(bm.MixtureModel(K), x, labels=labels)
    errors = bm.standard_errors(fit, x).means
    for kind in ("weighted", "nonparametric"):
        draws = bm.bootstrap(fit, x, key=0, kind=kind, n_draws=200)["posterior"]["means"]
        ratio = draws.std(["chain", "draw"]).values / errors
        assert 0.7 < np.median(ratio) < 1.4
    assert np.median(bm.jackknife(fit, x).means / errors) == pytest.approx(1, abs=0.3)
    with pytest.raises(ValueError, match="kind='parametric' draws new rows, of which no cluster is known"):
        bm.bootstrap(fit, x, key=0, kind="parametric", n_draws=2)


def test_named_clusters_keep_their_names_in_replicates():
    x, labels = told("VVV")
    problem = problem_of(bm.fit(bm.MixtureModel(K), x, labels=np.where(labels == 1, 1, -1)), x, None)
    np.testing.assert_array_equal(problem.may, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_files_keep_them(tmp_path):
    x, labels = told("EEE")
    path = tmp_path / "fit.json"
    fit = bm.fit(bm.MixtureModel(K, "EEE"), x, labels=labels)
    fit.save(path)
    again = bm.load(path)
    np.testing.assert_array_equal(again.known_labels, labels)
    np.testing.assert_array_equal(bm.standard_errors(again, x).means, bm.standard_errors(fit, x).means)
    older = json.loads(path.read_text())
    del older["known_labels"], older["sha256"]  # as it was before there were any
    path.write_text(json.dumps(older))
    assert bm.load(path).known_labels is None


def test_masked_labels_are_not_known():
    x, labels = told("EEE")
    fit = bm.fit(bm.MixtureModel(K, "EEE"), x, labels=np.ma.masked_equal(labels, -1))
    np.testing.assert_array_equal(fit.known_labels, labels)
    none = bm.fit(bm.MixtureModel(K, "EEE"), x, labels=np.full(N, -1))
    assert none.known_labels is None
    assert none.log_likelihood == bm.fit(bm.MixtureModel(K, "EEE"), x).log_likelihood


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(N - 1, int), "labels must be 120 whole numbers"),
        (np.full(N, 0.0), "they are float64 of shape"),
        (np.full(N, K), "from 3 to 3"),
        (np.full(N, -2), "from -2 to -2"),
        (["a"] * N, "labels must be 120 whole numbers"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        bm.fit(bm.MixtureModel(K, "EEE"), data("EEE")[0], labels=labels)


def test_other_rows_than_those_of_the_labels_are_refused():
    x, labels = told("EEE")
    fit = bm.fit(bm.MixtureModel(K, "EEE"), x, labels=labels)
    with pytest.raises(ValueError, match="x has 119 rows; the fit was told the clusters of 120"):
        bm.standard_errors(fit, x[1:])


def test_a_search_knows_them_in_every_cell():
    x, labels = told("VVV")
    counts, names = range(1, 6), ["EII", "VVI", "EEE", "VVE", "VVV"]
    found = bm.search(x, n_components=counts, covariance=names, labels=labels)
    table = found.table
    few = table[table["n_components"] < K]
    assert len(few) == 10
    assert set(few["reason"]) == {"labels name cluster 2, so there are 3 clusters at least"}
    assert found.best.mixture.n_components == K
    for name in names:
        cell = found.fit(K, name)
        fit = bm.fit(bm.MixtureModel(K, name), x, labels=labels)
        assert cell.log_likelihood >= fit.log_likelihood - 0.01
        np.testing.assert_allclose(cell.log_likelihood, total(cell.mixture, x, labels), rtol=1e-9)
        np.testing.assert_array_equal(cell.labels[labels >= 0], labels[labels >= 0])
        again = bm.fit(bm.MixtureModel(K, name), x, labels=labels, init=cell.mixture, max_steps=0)
        np.testing.assert_allclose(cell.entropy, again.entropy, rtol=1e-6)
        np.testing.assert_allclose(
            cell.classification_log_likelihood, again.classification_log_likelihood, rtol=1e-9
        )
    np.testing.assert_array_equal(found.best.known_labels, labels)
    assert np.isfinite(bm.standard_errors(found.best, x).means).all()
    blind = bm.search(x, n_components=[K], covariance=["EEE"])
    with pytest.raises(ValueError, match="same data, weights, labels and held parts"):
        found.merge(blind)


def test_a_search_of_many_rows_starts_from_some_that_are_known():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    z = rng.integers(3, size=3000)
    x = centres[z] + rng.normal(size=(3000, 2))
    labels = np.full(3000, -1)
    labels[[np.flatnonzero(z == j)[0] for j in range(3)]] = [2, 0, 1]
    found = bm.search(x, n_components=[3, 4], covariance="EII", labels=labels, n_starts=3)
    assert found.best.mixture.n_components == 3
    np.testing.assert_allclose(found.best.mixture.means[[2, 0, 1]], centres, atol=0.2)


def test_searches_that_cannot_know_them_say_so():
    x, labels = told("EEE")
    with pytest.raises(ValueError, match="k-means knows none"):
        bm.search(x, covariance="kmeans", labels=labels)
    with pytest.raises(ValueError, match="and labels name 3 clusters"):
        bm.search(x, covariance="EEE", labels=labels, criterion="nec")
    with pytest.raises(ValueError, match="a cluster below 2 or -1"):
        bm.search(x, covariance="EEE", n_components=2, labels=labels)


SPECIES = np.repeat(np.arange(3), 50)  # of iris, as its rows come


@pytest.mark.parametrize("name", load("mclust_known_labels.json")["models"])
def test_mclust_finds_the_same(name):
    """At least its likelihood: EVV and VVE it leaves early."""
    reference = load("mclust_known_labels.json")
    expected, labels = reference["models"][name], np.full(150, -1)
    labels[reference["known"]] = SPECIES[reference["known"]]
    fit = bm.fit(bm.MixtureModel(3, name), rows("iris"), labels=labels, tol=1e-8)
    assert fit.n_parameters == expected["n_parameters"]
    assert fit.log_likelihood > expected["log_likelihood"] - 1e-6
    if name not in ("EVV", "VVE"):
        np.testing.assert_allclose(fit.log_likelihood, expected["log_likelihood"], atol=1e-4)
        np.testing.assert_allclose(-fit.bic, expected["bic"], atol=1e-3)
        np.testing.assert_allclose(fit.mixture.means, expected["means"], atol=1e-3)
        np.testing.assert_array_equal(fit.labels, list(map(int, expected["labels"])))


@pytest.mark.parametrize("name", load("mclust_known_labels.json")["edda"])
def test_mclust_finds_the_same_where_all_are_known(name):
    fit = bm.fit(bm.MixtureModel(3, name), rows("iris"), labels=SPECIES)
    expected = load("mclust_known_labels.json")["edda"][name]
    np.testing.assert_allclose(fit.mixture.log_density(rows("iris")).sum(), expected, rtol=1e-7)


def test_partitions_take_the_names_that_rows_give_their_groups():
    groups = np.repeat([0, 1, 2], 4)
    given = np.full(12, -1)
    given[[0, 1, 4, 5, 8]] = [1, 1, 2, 2, 0]  # a cycle
    np.testing.assert_array_equal(_with_known(groups, given, 3), np.repeat([1, 2, 0], 4))
    given[9] = 1  # a row that disagrees with its group
    np.testing.assert_array_equal(_with_known(groups, given, 3)[8:], [0, 1, 0, 0])
