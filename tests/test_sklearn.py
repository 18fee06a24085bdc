"""The scikit-learn estimators: scikit-learn's own checks, and the same answers as its classes from the same start."""

import io
import subprocess
import sys

import jax
import joblib
import numpy as np
import pandas
import pytest
import sklearn.cluster
import sklearn.mixture
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import bayesmix as bm
from bayesmix.sklearn import BayesianMixture, GaussianMixture, KMeans
from bayesmix.trees import flat_draws

# Short chains: what is checked is the estimator, and `test_short_chains_say_so` that they are not passed off as more.
SHORT = BayesianMixture(covariance_type="spherical", n_chains=2, n_warmup=10, n_draws=20)
ORDER = (
    "seeds are drawn in the order of the rows, which the check shuffles; scikit-learn's KMeans fails it too"
)
KNOWN = {f"check_sample_weight_equivalence_on_{kind}_data": ORDER for kind in ("dense", "sparse")}
RNG = np.random.default_rng(0)
X = RNG.permutation(RNG.normal(size=(60, 2)) * [1, 3] + np.repeat([[0, 0], [4, 9]], [20, 40], axis=0))
START = {
    "weights_init": np.array([0.4, 0.6]),
    "means_init": np.array([[0.0, 1.0], [4.0, 8.0]]),
}
PRECISIONS = {
    "full": np.array([[[1.0, 0.1], [0.1, 0.2]], [[0.8, 0.0], [0.0, 0.1]]]),
    "tied": np.array([[1.0, 0.1], [0.1, 0.2]]),
    "diag": np.array([[1.0, 0.2], [0.8, 0.1]]),
    "spherical": np.array([0.5, 0.3]),
}

# The checks also fit more features than rows, and fewer different rows than clusters.
degenerate = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@degenerate
@parametrize_with_checks([GaussianMixture()])
def test_gaussian_mixture_is_an_estimator(estimator, check):
    check(estimator)


@degenerate
@parametrize_with_checks([KMeans()], expected_failed_checks=lambda _: KNOWN, xfail_strict=True)
def test_kmeans_is_an_estimator(estimator, check):
    check(estimator)


@degenerate
@parametrize_with_checks([SHORT])
def test_bayesian_mixture_is_an_estimator(estimator, check):
    check(estimator)


def same(ours, theirs, tolerance):
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), atol=tolerance * 10)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=tolerance * 10)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    for name in ("score", "aic", "bic"):
        assert getattr(ours, name)(X) == pytest.approx(getattr(theirs, name)(X), rel=tolerance)


@pytest.mark.parametrize(("word", "reg_covar"), [("full", 0), *((word, 0.5) for word in PRECISIONS)])
def test_five_steps_from_one_start_are_those_of_scikit_learn(word, reg_covar):
    options = START | {"precisions_init": PRECISIONS[word], "covariance_type": word, "reg_covar": reg_covar}
    options |= {"max_iter": 5, "tol": 0}
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        ours = GaussianMixture(2, **options).fit(X)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        theirs = sklearn.mixture.GaussianMixture(2, **options).fit(X)
    assert ours.n_iter_ == theirs.n_iter_ == 5
    assert len(ours.lower_bounds_) == len(theirs.lower_bounds_)
    # theirs is that of the mixture one step before
    np.testing.assert_allclose(ours.lower_bounds_[:-1], theirs.lower_bounds_[1:], rtol=1e-10)
    same(ours, theirs, 1e-9)


@pytest.mark.parametrize("word", PRECISIONS)
def test_converged_fits_are_those_of_scikit_learn(word):
    options = START | {"precisions_init": PRECISIONS[word], "covariance_type": word}
    ours = GaussianMixture(2, tol=1e-12, **options).fit(X)
    theirs = sklearn.mixture.GaussianMixture(2, tol=1e-14, max_iter=5000, reg_covar=0, **options).fit(X)
    assert ours.converged_
    same(ours, theirs, 1e-5)
    assert ours.lower_bound_ == pytest.approx(ours.score(X), abs=1e-12)
    assert ours.bic(X) == pytest.approx(ours.fit_.bic, rel=1e-12)


def test_a_variance_that_was_asked_for_is_added_until_convergence():
    options = START | {"precisions_init": PRECISIONS["full"], "reg_covar": 0.5}
    ours = GaussianMixture(2, tol=1e-12, **options).fit(X)
    theirs = sklearn.mixture.GaussianMixture(2, tol=1e-14, max_iter=5000, **options).fit(X)
    same(ours, theirs, 1e-4)


def test_kmeans_from_one_start_is_that_of_scikit_learn():
    weight = np.arange(len(X)) % 3
    for init in (X[:3], lambda X, k, random_state: X[random_state.choice(len(X), k, replace=False)]):
        options = {"init": init, "n_init": 1, "random_state": 0, "tol": 0}
        ours = KMeans(3, **options).fit(X, sample_weight=weight)
        theirs = sklearn.cluster.KMeans(3, **options).fit(X, sample_weight=weight)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-12)
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        np.testing.assert_array_equal(ours.predict(X), ours.labels_)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
        assert ours.n_iter_ == theirs.n_iter_
        np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-9)
        assert ours.score(X, sample_weight=weight) == pytest.approx(-ours.inertia_)


@pytest.mark.parametrize("estimator", [GaussianMixture(2, random_state=0), KMeans(3, random_state=0)])
def test_a_weight_is_repetition(estimator):
    weight = np.arange(len(X)) % 3
    weighted = clone(estimator).fit(X, sample_weight=weight)
    repeated = clone(estimator).fit(np.repeat(X, weight, axis=0))
    np.testing.assert_array_equal(weighted.predict(X), repeated.predict(X))
    score = weighted.score(X, sample_weight=weight)
    assert score == pytest.approx(repeated.score(np.repeat(X, weight, axis=0)))
    if isinstance(estimator, GaussianMixture):
        assert weighted.bic(X, sample_weight=weight) == pytest.approx(weighted.fit_.bic)
        for criterion in (weighted.bic, weighted.aic):
            twice = criterion(X, sample_weight=np.full(len(X), 2.0))
            assert criterion(X, sample_weight=2.0) == pytest.approx(twice)


def test_every_structure_has_a_word_or_letters():
    fit = GaussianMixture(2, covariance_type="VEV", random_state=0).fit(X)
    assert fit.covariances_.shape == fit.precisions_.shape == fit.precisions_cholesky_.shape == (2, 2, 2)
    assert fit.fit_.mixture.structure == "VEV"
    np.testing.assert_allclose(
        fit.precisions_ @ fit.covariances_, np.broadcast_to(np.eye(2), (2, 2, 2)), atol=1e-12
    )
    with pytest.raises(ValueError, match="covariance_type"):
        GaussianMixture(2, covariance_type="round").fit(X)


def test_auto_chooses_by_the_criterion():
    fit = GaussianMixture("auto", covariance_type="EII", criterion="icl", random_state=0).fit(X / [1, 3])
    table = fit.search_table_
    assert len(fit.weights_) == table["n_components"][0] == 2
    assert table["icl"].is_monotonic_increasing
    assert sorted(table["n_components"]) == list(range(1, 10))
    for option in ({"means_init": X[:2]}, {"reg_covar": 1e-6}, {"warm_start": True}, {"prior": "weak"}):
        with pytest.raises(ValueError, match=f"takes no {next(iter(option))}"):
            clone(fit).set_params(**option).fit(X)
    with pytest.raises(ValueError, match="starts of its own"):
        clone(fit).set_params(init_params="random").fit(X)


def test_auto_chooses_among_what_reached_max_iter_too_and_says_so():
    x = bm.datasets.load("old_faithful")
    with pytest.warns(ConvergenceWarning, match=r"did not converge.*max_steps=12"):
        fit = GaussianMixture("auto", covariance_type="EEE", max_iter=12, random_state=0).fit(x)
    assert fit.search_table_["clean"].all()
    assert not fit.converged_
    assert len(fit.weights_) == 3


def test_parts_of_a_start_are_kept():
    with pytest.warns(ConvergenceWarning, match="max_steps=1"):
        one = GaussianMixture(2, means_init=START["means_init"], max_iter=1, tol=0).fit(X)
    none = GaussianMixture(2, weights_init=[0.3, 0.7], means_init=START["means_init"], max_iter=0).fit(X)
    np.testing.assert_allclose(none.weights_, [0.3, 0.7])
    np.testing.assert_allclose(none.means_, START["means_init"])
    assert none.n_iter_ == 0
    assert one.n_iter_ == 1
    assert none.lower_bounds_.size == 0


def test_collapse_warns_raises_at_zero_or_is_held_off():
    collapsing = np.concatenate([X, np.full((5, 2), 30.0)])
    labels_at = {"means_init": [[2.0, 5.0], [30.0, 30.0]]}
    with pytest.warns(ConvergenceWarning, match="collapsed component"):
        held = GaussianMixture(2, **labels_at).fit(collapsing)
    assert not held.converged_
    assert np.isfinite(held.score(collapsing))
    with pytest.raises(ValueError, match=r"ill-defined empirical covariance.*Collapsed component"):
        GaussianMixture(2, reg_covar=0, **labels_at).fit(collapsing)
    # A run that is cut short has come to no end that could be refused; scikit-learn's own suite asks for that.
    with pytest.warns(ConvergenceWarning, match="collapsed component"):
        cut = GaussianMixture(2, reg_covar=0, max_iter=1, **labels_at).fit(collapsing)
    assert not cut.converged_
    assert np.isfinite(cut.covariances_).all()
    mode = GaussianMixture(2, prior="weak", **labels_at).fit(collapsing)
    assert mode.converged_
    with pytest.raises(ValueError, match="reg_covar and prior"):
        GaussianMixture(2, prior="weak", reg_covar=1e-3).fit(X)
    added = GaussianMixture(2, covariance_type="spherical", reg_covar=0.25, **labels_at)
    assert added.fit(collapsing).covariances_[1] == pytest.approx(0.25, rel=1e-6)


def test_short_chains_say_so():
    with pytest.warns(ConvergenceWarning, match="run longer"):
        short = clone(SHORT).set_params(n_components=2, random_state=0).fit(X)
    assert not short.converged_
    r = short.predict_proba(X)
    batch = flat_draws(bm.mixtures(short.posterior_))
    draws = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], batch) for i in range(len(batch.weights))]
    averaged = np.mean([mixture.responsibilities(X) for mixture in draws], axis=0)
    np.testing.assert_allclose(r, averaged, atol=1e-10)
    np.testing.assert_array_equal(short.predict(X), averaged.argmax(axis=1))
    densities = bm.log_density(short.posterior_, X)["mean"]
    assert short.score(X) == pytest.approx(float(densities.mean()))
    with pytest.warns(ConvergenceWarning, match="run longer"):
        again = clone(SHORT).set_params(n_components=2, random_state=0).fit(X)
    np.testing.assert_array_equal(again.predict_proba(X), r)
    copy = through_joblib(short)
    np.testing.assert_array_equal(copy.predict_proba(X), r)


def through_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return joblib.load(file)


def test_pipelines_grids_pandas_and_files():
    table = pandas.DataFrame(X, columns=["length", "width"])
    pipeline = make_pipeline(StandardScaler(), KMeans(3, random_state=0)).set_output(transform="pandas")
    distances = pipeline.fit_transform(table)
    assert list(distances.columns) == ["kmeans0", "kmeans1", "kmeans2"]
    assert list(distances.index) == list(table.index)
    grid = GridSearchCV(
        GaussianMixture(random_state=0), {"n_components": [1, 2], "covariance_type": ["full", "tied"]}, cv=3
    ).fit(table)
    assert grid.best_params_["n_components"] == 2
    best = through_joblib(grid).best_estimator_
    np.testing.assert_array_equal(best.predict_proba(table), grid.best_estimator_.predict_proba(table))
    assert best.fit_.mixture.feature_names == ("length", "width")
    x, z = best.sample(500)
    assert x.shape == (500, 2)
    np.testing.assert_allclose(np.bincount(z) / 500, best.weights_, atol=0.1)


def test_the_posterior_predictive_law_is_sampled():
    options = {"n_chains": 4, "n_warmup": 200, "n_draws": 300, "random_state": 0}
    mixture = BayesianMixture(2, **options).fit(X)
    x, z = mixture.sample(20_000)
    draws = mixture.posterior_["posterior"].to_dataset().stack(draws=["chain", "draw"])
    weights, means, covariances = (draws[name].to_numpy() for name in ("weights", "means", "covariances"))
    second = (
        np.einsum("ks,kijs->ij", weights, covariances + means[:, :, None] * means[:, None]) / weights.shape[1]
    )
    error = x.std(axis=0) / np.sqrt(len(x))
    assert (
        np.abs(x.mean(axis=0) - np.einsum("ks,kis->i", weights, means) / weights.shape[1]) < 5 * error
    ).all()
    np.testing.assert_allclose(x.T @ x / len(x), second, rtol=0.05)
    np.testing.assert_allclose(np.bincount(z) / len(z), mixture.weights_, atol=5 * np.sqrt(0.25 / len(z)))
    for j in range(2):
        np.testing.assert_allclose(x[z == j].mean(axis=0), mixture.means_[j], atol=0.1 * x.std())
    again = mixture.sample(100)
    np.testing.assert_array_equal(again[0], mixture.sample(100)[0])
    assert again[0].shape == (100, 2)
    with pytest.raises(ValueError, match="n_samples"):
        mixture.sample(0)


def test_warm_start_goes_on_where_it_stopped():
    options = {"random_state": 0, "tol": 1e-12}
    with pytest.warns(ConvergenceWarning):
        two = GaussianMixture(2, max_iter=2, **options).fit(X)
    one = GaussianMixture(2, max_iter=1, warm_start=True, **options)
    for _ in range(2):
        with pytest.warns(ConvergenceWarning):
            one.fit(X)
    np.testing.assert_allclose(one.means_, two.means_, rtol=1e-12)


def test_without_scikit_learn_one_sentence_says_what_to_install():
    code = "import sys, bayesmix; print('sklearn' in sys.modules); sys.modules['sklearn'] = None; import bayesmix.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "False\n"
    assert run.stderr.splitlines()[-1] == (
        "ImportError: bayesmix.sklearn needs scikit-learn: pip install 'bayesmix[sklearn]'"
    )
