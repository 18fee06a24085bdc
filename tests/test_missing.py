"""Rows with missing cells, against SciPy, a slow EM, lavaan, numerical derivatives and the laws of draws."""

import json

import arviz as az
import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest
from cases import FEW, NAMES, K, N, data, mixture
from matplotlib.figure import Figure
from reference import load, rows
from scipy.stats import multivariate_normal
from typer.testing import CliRunner

import bayesmix as bm
from bayesmix import cli, gaps, plots, threads
from bayesmix.chain_starts import evidence_of
from bayesmix.chart import chart
from bayesmix.covariance import STRUCTURES
from bayesmix.devices import double_precision
from bayesmix.gaps import lay_out
from bayesmix.inputs import as_points, to_numpy
from bayesmix.missing import completed
from bayesmix.model import story_of
from bayesmix.observations import observe
from bayesmix.potential import blank_points, potential, realize
from bayesmix.problem import inside, problem_of


def holed(name="VVV", share=0.25, key=5):
    """The data of a structure, of which a share of the cells is missing, and no row has none."""
    x, z = data(name)
    rng = np.random.default_rng(key)
    gone = rng.random(x.shape) < share
    gone[np.arange(N), rng.integers(x.shape[1], size=N)] = False
    return np.where(gone, np.nan, x), z


def log_joint(mixture, x):
    """log p(x, z) of the known cells (n, k): of the rows that lack the same ones the marginal's."""
    found = np.tile(np.log(mixture.weights), (len(x), 1))
    for o in np.unique(~np.isnan(x), axis=0):
        if o.any():
            own = (~np.isnan(x) == o).all(axis=1)
            for j, (m, c) in enumerate(zip(mixture.means, mixture.covariances)):
                found[own, j] += multivariate_normal.logpdf(x[own][:, o], m[o], c[np.ix_(o, o)])
    return found


def total(mixture, x, weight=1.0, labels=None):
    joint = log_joint(mixture, x)
    if labels is not None:
        joint[(labels >= 0)[:, None] & (labels[:, None] != np.arange(joint.shape[1]))] = -np.inf
    return float((weight * np.logaddexp.reduce(joint, axis=1)).sum())


def slow_steps(mixture, x, weight, steps):
    """EM of unconstrained covariances with missing cells, as it stands in books: row by row, cluster by cluster."""
    n, d = x.shape
    k = mixture.n_components
    for _ in range(steps):
        joint = log_joint(mixture, x)
        r = weight[:, None] * np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        whole, left = np.empty((n, k, d)), np.zeros((k, d, d))
        for i, row in enumerate(x):
            o = ~np.isnan(row)
            for j, (m, c) in enumerate(zip(mixture.means, mixture.covariances)):
                whole[i, j] = row
                if o.all():
                    continue
                b = np.linalg.solve(c[np.ix_(o, o)], c[np.ix_(o, ~o)]).T
                whole[i, j, ~o] = m[~o] + b @ (row[o] - m[o])
                left[j][np.ix_(~o, ~o)] += r[i, j] * (c[np.ix_(~o, ~o)] - b @ c[np.ix_(o, ~o)])
        count = r.sum(axis=0)
        means = np.einsum("nk,nkd->kd", r, whole) / count[:, None]
        away = whole - means
        spread = np.einsum("nk,nki,nkj->kij", r, away, away) + left
        covariances = spread / count[:, None, None]
        covariances = (covariances + np.swapaxes(covariances, 1, 2)) / 2
        mixture = bm.GaussianMixture.of(count / count.sum(), means, covariances)
    return mixture


def around(fit, x):
    """How many coordinates the structure has, and the mixture at a vector of them, zero at that of the fit."""
    problem = problem_of(fit, x, None)
    own = chart(inside(problem, fit.mixture), ())

    def at(vector):
        with double_precision():
            return problem.units.leave(to_numpy(own.mixture(np.asarray(vector))))

    return own.size, at


def fit(model, x, **options):
    return bm.fit(model, x, missing="at_random", **options)


# Reading.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", FEW)
def test_a_mixture_reads_the_known_cells(name, dtype):
    known, (x, _) = mixture(name), holed(name)
    x = np.concatenate([x, np.full((1, x.shape[1]), np.nan)]).astype(dtype)
    expected, exact = log_joint(known, x), 1e-10 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(known.log_joint(x, missing="at_random"), expected, rtol=exact, atol=exact)
    total = np.logaddexp.reduce(expected, axis=1)
    found = known.log_density(x, missing="at_random")
    np.testing.assert_allclose(found, total, rtol=exact, atol=exact)
    assert found.dtype == dtype
    assert found[-1] == pytest.approx(0, abs=1e-6)  # a row without any
    r = known.responsibilities(x, missing="at_random")
    np.testing.assert_allclose(r, np.exp(expected - total[:, None]), atol=10 * exact)
    np.testing.assert_allclose(r[-1], known.weights, rtol=1e-6)
    np.testing.assert_array_equal(known.classify(x, missing="at_random"), expected.argmax(axis=1))
    whole = ~np.isnan(x).any(axis=1)
    np.testing.assert_array_equal(known.log_density(x[whole]), found[whole])
    np.testing.assert_array_equal(known.log_density(x[whole], missing="at_random"), found[whole])


def test_frames_keep_their_rows_and_columns_go_by_name():
    x, _ = holed("VVV")
    frame = pd.DataFrame(x, columns=["a", "b", "c"], index=np.arange(N) + 7)
    found = fit(bm.MixtureModel(K), frame)
    turned = frame[["c", "a", "b"]]
    np.testing.assert_array_equal(
        found.mixture.classify(turned, missing="at_random", as_frame=True).to_numpy()[:, 0], found.labels
    )
    filled = found.mixture.impute(turned, as_frame=True)
    assert list(filled.columns) == ["a", "b", "c"]
    assert (filled.index == frame.index).all()
    np.testing.assert_array_equal(filled.to_numpy()[~np.isnan(x)], x[~np.isnan(x)])


def test_a_cell_is_missing_however_it_came():
    x, _ = holed("VVV")
    model, names = bm.MixtureModel(2, "VVI"), ["x0", "x1", "x2"]
    one = fit(model, x)
    lists = [[None if np.isnan(cell) else cell for cell in row] for row in x.tolist()]
    tables = [
        np.ma.masked_invalid(x),
        pd.DataFrame(x, columns=names).convert_dtypes(),
        pl.DataFrame(lists, schema=names, orient="row"),
        lists,
    ]
    for table in tables:
        again = fit(model, table)
        np.testing.assert_array_equal(again.mixture.means, one.mixture.means)
        assert again.n_missing == np.isnan(x).sum()


# EM.


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_steps_are_those_of_a_slow_em(dtype, shared, monkeypatch):
    if shared:
        monkeypatch.setattr(threads, "_WORTH", 0)
        monkeypatch.setattr(gaps, "_STEP", 64)
    x, z = holed("VVV")
    x = x.astype(dtype)
    weight = np.random.default_rng(2).integers(0, 3, N).astype(float)
    start = bm.fit(bm.MixtureModel(K), data("VVV")[0].astype(dtype), init=z, tol=0, max_steps=1).mixture
    options = {"init": start, "sample_weight": weight, "tol": 0, "max_steps": 6}
    found = fit(bm.MixtureModel(K), x, **options)
    slow = slow_steps(start, x.astype(float), weight, 6)
    exact = 1e-9 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(found.mixture.weights, slow.weights, rtol=exact)
    np.testing.assert_allclose(found.mixture.means, slow.means, rtol=exact, atol=exact)
    np.testing.assert_allclose(found.mixture.covariances, slow.covariances, rtol=exact, atol=exact)
    np.testing.assert_allclose(found.log_likelihood, total(slow, x.astype(float), weight), rtol=exact)


def test_parts_of_a_pass_add_up_to_it():
    x, z = np.tile(holed("EEE")[0], (40, 1)), np.tile(data("EEE")[1], 40)
    problem = problem_of(fit(bm.MixtureModel(K, "EEE"), x, init=z, max_steps=1), x, None)
    both = threads.parts_of(problem.observations, 1e12)
    assert len(both) == 2
    assert sum(part.gaps.weight.sum() for part in both) == problem.observations.gaps.weight.sum()
    assert both[0].size + both[1].size == problem.observations.size


@pytest.mark.parametrize("name", NAMES)
def test_every_structure_climbs_to_a_maximum(name):
    """In all coordinates of the structure, by differences of a likelihood that SciPy computes."""
    x, z = holed(name) if STRUCTURES[name].n_features is None else (data(name)[0], data(name)[1])
    found = fit(bm.MixtureModel(K, name), x, init=z, tol=1e-11)
    assert found.converged
    assert (np.diff(found.objective) >= -1e-9 * abs(found.objective[-1])).all()
    np.testing.assert_allclose(found.log_likelihood, total(found.mixture, x), rtol=1e-9)
    np.testing.assert_allclose(found.objective[-1], found.log_likelihood, rtol=1e-9)
    joint = log_joint(found.mixture, x)
    np.testing.assert_allclose(found.classification_log_likelihood, joint.max(axis=1).sum(), rtol=1e-9)
    np.testing.assert_array_equal(found.labels, joint.argmax(axis=1))
    assert found.n_missing == np.isnan(x).sum()
    size, at = around(found, x)
    for direction in np.random.default_rng(0).normal(size=(3, size)):
        ends = [total(at(h * direction), x) for h in (-1e-4, 0.0, 1e-4)]
        slope, bend = (ends[2] - ends[0]) / 2e-4, (ends[2] - 2 * ends[1] + ends[0]) / 1e-8
        assert bend < 0
        assert abs(slope) < 1e-3 * np.sqrt(-bend)  # a thousandth of a standard error away


@pytest.mark.parametrize("name", load("lavaan_missing.json")["models"])
def test_lavaan_agrees(name):
    reference = load("lavaan_missing.json")
    x = rows("iris").copy()
    x[tuple(np.transpose(reference["missing"]))] = np.nan
    expected, species = reference["models"][name], np.repeat([0, 1, 2], 50)
    k, labels = (1, None) if name == "one" else (3, species)
    model = bm.MixtureModel(k, "VVV" if k == 1 else name)
    found = fit(model, x, labels=labels, tol=1e-12)
    whole = expected["log_likelihood"] + len(x) * np.log(1 / k)
    assert found.log_likelihood == pytest.approx(whole, abs=1e-6)
    np.testing.assert_allclose(found.mixture.means, expected["means"], rtol=1e-5)
    np.testing.assert_allclose(found.mixture.covariances, expected["covariances"], rtol=1e-4, atol=1e-6)
    errors = bm.standard_errors(found, x)
    np.testing.assert_allclose(errors.means, expected["means_se"], rtol=1e-4)
    free = np.array(expected["covariances_se"]) > 0
    np.testing.assert_allclose(
        errors.covariances[free], np.array(expected["covariances_se"])[free], rtol=1e-4
    )


def test_without_gaps_it_is_the_fit_as_ever():
    x, _ = data("VVV")
    one, other = bm.fit(bm.MixtureModel(K), x), fit(bm.MixtureModel(K), x)
    np.testing.assert_array_equal(one.mixture.means, other.mixture.means)
    assert other.n_missing == 0
    assert "missing cells" not in other.summary().index


@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI", "VII", "VEV"])
def test_weights_repeat_and_omit(name):
    x, z = holed(name)
    weight = np.random.default_rng(3).integers(0, 3, N)
    model = bm.MixtureModel(K, name)
    one = fit(model, x, init=z, sample_weight=weight, tol=1e-10)
    some = np.repeat(np.arange(N), weight)
    again = fit(model, x[some], init=z[some], tol=1e-10)
    np.testing.assert_allclose(one.log_likelihood, again.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(one.mixture.means, again.mixture.means, rtol=1e-4, atol=1e-4)
    assert one.n_missing == np.isnan(x).sum()


@pytest.mark.parametrize(("scale", "shift"), [(1e-12, 0.0), (1e9, 1e17), (1.0, 1e6)])
@pytest.mark.parametrize("name", ["VVV", "EII"])
def test_moved_and_rescaled_data_give_the_fit_moved_and_rescaled(name, scale, shift):
    x, _ = holed(name)
    x = np.round(x * 256) / 256  # so that what is moved is exact
    one = fit(bm.MixtureModel(K, name), x, tol=1e-9)
    other = fit(bm.MixtureModel(K, name), x * scale + shift, tol=1e-9)
    np.testing.assert_allclose((other.mixture.means - shift) / scale, one.mixture.means, rtol=1e-5, atol=1e-5)
    volume = np.log(scale) * (~np.isnan(x)).sum()
    assert other.log_likelihood + volume == pytest.approx(one.log_likelihood, abs=1e-4)


def test_columns_and_rows_in_another_order_change_nothing():
    x, z = holed("VVV")
    one = fit(bm.MixtureModel(K), x, init=z, tol=1e-10)
    rng = np.random.default_rng(1)
    own, columns = rng.permutation(N), [2, 0, 1]
    other = fit(bm.MixtureModel(K), x[own][:, columns], init=z[own], tol=1e-10)
    assert other.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-10)
    np.testing.assert_allclose(other.mixture.means, one.mixture.means[:, columns], rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(other.labels, one.labels[own])


@pytest.mark.parametrize("options", [{"accelerate": True}, {"method": "annealed"}, {"init": "random"}])
def test_other_ways_up_lead_to_the_same_optimum(options):
    x, z = holed("EEE")
    best = fit(bm.MixtureModel(K, "EEE"), x, init=z, tol=1e-9)
    other = fit(bm.MixtureModel(K, "EEE"), x, **options)
    assert other.converged
    assert other.log_likelihood == pytest.approx(total(other.mixture, x), rel=1e-9)
    if "method" not in options:
        assert other.log_likelihood == pytest.approx(best.log_likelihood, abs=1e-2)
        assert (np.diff(other.objective) >= -1e-9 * abs(other.objective[-1])).all()


def test_known_clusters_and_missing_cells_go_together():
    x, z = holed("VVV")
    labels = np.where(np.random.default_rng(1).random(N) < 0.3, z, -1)
    found = fit(bm.MixtureModel(K), x, labels=labels, tol=1e-9)
    assert found.log_likelihood == pytest.approx(total(found.mixture, x, labels=labels), rel=1e-9)
    np.testing.assert_array_equal(found.labels[labels >= 0], labels[labels >= 0])


def test_every_row_may_lack_a_cell_and_every_row_another_pattern():
    rng = np.random.default_rng(4)
    means = np.array([[0.0] * 8, [4.0] * 8])
    x, z = bm.GaussianMixture.of([0.5, 0.5], means, np.stack([np.eye(8)] * 2)).simulate(200, key=1)
    gone = rng.random(x.shape) < 0.4
    gone[np.arange(200), rng.integers(8, size=200)] = True
    gone[gone.all(axis=1), 0] = False
    x = np.where(gone, np.nan, x)
    assert np.isnan(x).any(axis=1).all()
    found = fit(bm.MixtureModel(2, "EEE"), x)
    assert found.converged
    assert max((found.labels == z).mean(), (found.labels != z).mean()) > 0.97
    assert found.log_likelihood == pytest.approx(total(found.mixture, x), rel=1e-9)


def test_what_is_missing_at_random_biases_no_estimate():
    """y is missing where x is large: rows without gaps say too little of y, the likelihood does not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 1)) * [1.0, 0.0]
    x[:, 1] = 2 * x[:, 0] + rng.normal(size=20_000)
    x[x[:, 0] > 0.3, 1] = np.nan
    found = fit(bm.MixtureModel(1), x).mixture
    assert abs(np.nanmean(x[:, 1])) > 0.7
    np.testing.assert_allclose(found.means[0], [0, 0], atol=0.05)
    np.testing.assert_allclose(found.covariances[0], [[1, 2], [2, 5]], atol=0.15)


def test_a_prior_is_scaled_by_what_is_known():
    x, _ = holed("VVV")
    one = fit(bm.MixtureModel(1), x, tol=1e-10).mixture
    found, size = fit(bm.MixtureModel(1, prior="weak"), x).prior, np.sqrt(np.diag(one.covariances[0]))
    np.testing.assert_allclose((found.mean - one.means[0]) / size, 0, atol=0.02)
    away = (found.scale - one.covariances[0] * N / (N - 1)) / np.outer(size, size)
    np.testing.assert_allclose(away, 0, atol=0.05)
    rng = np.random.default_rng(0)
    for own, weight in ((rng.permutation(N), None), (slice(None), np.arange(N) % 3 > 0)):
        again = fit(bm.MixtureModel(1, prior="weak"), x[own], sample_weight=weight).prior
        kept = x if weight is None else x[weight]
        same = fit(bm.MixtureModel(1, prior="weak"), kept).prior
        np.testing.assert_allclose(again.mean, same.mean, rtol=1e-9)
        np.testing.assert_allclose(again.scale, same.scale, rtol=1e-9)
    several = fit(bm.MixtureModel(K, prior="weak"), x)
    assert (np.diff(several.objective) >= -1e-9 * abs(several.objective[-1])).all()


@pytest.mark.parametrize(("n", "d", "share"), [(20, 8, 0.4), (30, 20, 0.1), (40, 39, 0.1), (60, 50, 0.1)])
def test_few_rows_of_many_features_are_fitted_and_known_groups_found(n, d, share):
    """What a regression of so many features makes of so few rows must not decide where starts begin."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(n, d)), np.arange(n) < n // 2
    x[z] += 4
    gone = rng.random((n, d)) < share
    gone[gone.all(axis=1), 0] = False
    x[gone] = np.nan
    found = fit(bm.MixtureModel(2, "EII"), x)
    assert found.converged
    assert found.log_likelihood >= fit(bm.MixtureModel(2, "EII"), x, init=z.astype(int)).log_likelihood - 1e-3


def test_columns_that_determine_each_other_collapse_and_the_run_ends():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    x[:, 1] = 2 * x[:, 0]
    gone = rng.random(x.shape) < 0.3
    gone[gone.all(axis=1), 0] = False
    for k, name in ((1, "VVV"), (2, "EEE")):
        found = fit(bm.MixtureModel(k, name), np.where(gone, np.nan, x))
        assert found.status.startswith(("collapsed", "degenerate"))
        assert found.n_steps < 200
    sparse = rng.normal(size=(200, 3))
    sparse[2:, 2] = np.nan  # two values of a column, of which the others make anything
    assert not fit(bm.MixtureModel(1), sparse).converged


def test_rows_of_weight_zero_may_lack_everything():
    x, z = (a.copy() for a in holed("VVV"))
    weight = np.where(np.isnan(x).any(axis=1), 0.0, 1.0)
    x[np.flatnonzero(weight == 0)[0]] = np.nan
    found = fit(bm.MixtureModel(K), x, init=z, sample_weight=weight)
    alone = bm.fit(bm.MixtureModel(K), x[weight > 0], init=z[weight > 0])
    assert found.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-6)
    errors = bm.standard_errors(found, x, sample_weight=weight)  # of the same data
    np.testing.assert_allclose(errors.means, bm.standard_errors(alone, x[weight > 0]).means, rtol=1e-3)
    column = np.where((weight > 0)[:, None] & (np.arange(3) == 1), np.nan, x)
    with pytest.raises(
        ValueError, match="no value at all in rows of positive weight in column 'x1', so nothing"
    ):
        fit(bm.MixtureModel(K), column, sample_weight=weight)


def test_many_rows_of_one_size_share_a_program():
    x, _ = holed("VVV")
    sizes = [lay_out(x[:n], ~np.isnan(x[:n]), np.ones(n), None).weight.shape for n in (100, 110, 120)]
    assert len(set(sizes)) == 1


# Imputing.


def test_imputed_cells_are_expected_or_drawn():
    known, (x, _) = mixture("VVV"), holed("VVV")
    filled, gone = known.impute(x), np.isnan(x)
    np.testing.assert_array_equal(filled[~gone], x[~gone])
    for i in range(20):
        o = np.flatnonzero(~gone[i])
        if len(o) == x.shape[1]:
            continue
        law = known.condition({int(j): x[i, j] for j in o})
        np.testing.assert_allclose(filled[i, gone[i]], law.weights @ law.means, rtol=1e-9, atol=1e-9)
    row, given = np.array([np.nan, 1.5, np.nan]), known.condition({1: 1.5})
    drawn = known.impute(np.tile(row, (40_000, 1)), key=3)
    assert (drawn[:, 1] == 1.5).all()
    drawn = drawn[:, [0, 2]]
    mean = given.weights @ given.means
    away = given.means - mean
    spread = np.einsum("k,kij->ij", given.weights, given.covariances + away[:, :, None] * away[:, None])
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=4 * np.sqrt(spread.max() / 40_000))
    np.testing.assert_allclose(np.cov(drawn.T), spread, atol=0.05 * spread.max())
    np.testing.assert_array_equal(known.impute(x, key=3), known.impute(x, key=3))
    assert known.impute(x.astype(np.float32)).dtype == np.float32
    np.testing.assert_array_equal(known.impute(data("VVV")[0]), data("VVV")[0])
    np.testing.assert_allclose(known.impute([[np.nan] * 3])[0], known.weights @ known.means, atol=1e-12)


# Uncertainty and choice.


def test_standard_errors_are_of_the_known_cells():
    x, z = holed("VVI")
    found = fit(bm.MixtureModel(2, "VVI"), x, init=z.clip(max=1), tol=1e-11)
    size, at = around(found, x)
    step = 1e-3
    hessian, eye = np.empty((size, size)), step * np.eye(size)
    for i in range(size):
        for j in range(i + 1):
            a, b = eye[i], eye[j]
            corners = [total(at(way), x) for way in (a + b, a - b, b - a, -a - b)]
            hessian[i, j] = hessian[j, i] = np.dot(corners, [1, -1, -1, 1]) / (4 * step**2)
    slopes = np.array([(at(e).means - at(-e).means) / (2 * step) for e in eye])
    expected = np.sqrt(np.einsum("pkd,pq,qkd->kd", slopes, np.linalg.inv(-hessian), slopes))
    np.testing.assert_allclose(bm.standard_errors(found, x).means, expected, rtol=1e-3)


def test_replicates_lack_the_same_cells():
    x, z = holed("VVV")
    found = fit(bm.MixtureModel(K, "EEE"), x, init=z, tol=1e-9)
    errors = bm.standard_errors(found, x)
    for kind in ("weighted", "nonparametric"):
        tree = bm.bootstrap(found, x, key=1, n_draws=200, kind=kind)
        spread = tree["posterior"]["means"].std("draw").values[0]
        np.testing.assert_allclose(spread, errors.means, rtol=0.5)
        assert np.median(spread / errors.means) == pytest.approx(1, abs=0.15)
    weight = np.random.default_rng(0).gamma(1.0, size=N)
    again = fit(bm.MixtureModel(K, "EEE"), x, init=found.mixture, sample_weight=weight)
    problem = problem_of(found, x, None)
    own = problem.observations.gaps.weighing(weight)
    assert own.weight.sum() == pytest.approx(weight[np.isnan(x).any(axis=1)].sum())
    assert again.converged
    with pytest.raises(
        ValueError, match="kind='parametric' draws whole rows, so it needs rows without missing"
    ):
        bm.bootstrap(found, x, key=1, kind="parametric")
    one = fit(bm.MixtureModel(1), x, tol=1e-9)
    np.testing.assert_allclose(bm.jackknife(one, x).means, bm.standard_errors(one, x).means, rtol=0.2)


def test_a_search_integrates_them_out():
    x, _ = holed("VVV")
    found = bm.search(x, n_components=[1, 2, 3], covariance=["VVV", "EEE", "VVI", "EII"], missing="at_random")
    for cell in found.cells:
        mine = found.fit(*cell)
        assert mine.log_likelihood == pytest.approx(total(mine.mixture, x), rel=1e-9)
        joint = log_joint(mine.mixture, x)
        assert mine.classification_log_likelihood == pytest.approx(joint.max(axis=1).sum(), rel=1e-9)
        np.testing.assert_array_equal(mine.labels, joint.argmax(axis=1))
        assert mine.n_missing == np.isnan(x).sum()
        alone = fit(bm.MixtureModel(*cell), x, init=mine.mixture, tol=1e-6)
        assert alone.log_likelihood - mine.log_likelihood < 2e-2
    other = bm.search(x, n_components=[2], covariance=["VII"], missing="at_random")
    assert len(found.merge(other).cells) == len(found.cells) + 1
    with pytest.raises(ValueError, match="only searches on the same data"):
        found.merge(bm.search(data("VVV")[0], n_components=[2], covariance=["VII"]))


# The posterior.


def sampled(name="VVV", method="gibbs", x=None, **options):
    x = holed(name)[0] if x is None else x
    options = {"key": 3, "n_chains": 2, "n_warmup": 200, "n_draws": 300, "thinning": 1} | options
    model = bm.MixtureModel(K, name, "weak")
    return bm.sample_posterior(model, x, method=method, missing="at_random", **options), x


@pytest.mark.parametrize(("name", "method"), [("VVV", "gibbs"), ("EEE", "nuts"), ("VII", "gibbs")])
def test_draws_are_read_by_their_known_cells(name, method):
    tree, x = sampled(name, method, relabelling=None)
    np.testing.assert_array_equal(tree["observed_data"]["x"], x)
    batch, mean = bm.mixtures(tree), np.zeros((N, K))
    for chain, draw in ((0, 0), (1, 7), (1, 299)):
        one = jax.tree.map(lambda a, at=(chain, draw): a[at], batch)
        expected = np.logaddexp.reduce(log_joint(one, x), axis=1)
        np.testing.assert_allclose(tree["log_likelihood"]["x"][chain, draw], expected, rtol=1e-8)
        priors = sum(float(array[chain, draw]) for array in tree["log_prior"].data_vars.values())
        assert float(tree["sample_stats"]["lp"][chain, draw]) == pytest.approx(expected.sum() + priors)
    again = bm.relabel(tree, "stephens")
    for one in (jax.tree.map(lambda a, i=i: a[i // 300, i % 300], bm.mixtures(again)) for i in range(600)):
        mean += one.responsibilities(x, missing="at_random") / 600
    np.testing.assert_allclose(again["allocations"]["responsibilities"], mean, atol=1e-8)
    z = np.eye(K)[again["allocations"]["z"].values.astype(int)].mean(axis=(0, 1))
    np.testing.assert_allclose(z, mean, atol=5 * np.sqrt(0.25 / 600))


@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI", "VII"])
def test_the_potential_is_that_of_the_known_cells(name):
    """NUTS's density and slopes, by SciPy and by differences."""
    x, model = holed(name)[0], bm.MixtureModel(K, name, "weak")
    problem = problem_of(fit(bm.MixtureModel(K, name), x, max_steps=3), x, None)
    points = completed(as_points(x, missing=True), np.ones(N))
    resolved = model.resolve(points)
    evidence = evidence_of(resolved, problem, resolved.prior, np.full(N, -1))
    story = story_of(K, name, None)
    shapes = blank_points(story, evidence, 1)
    rng = np.random.default_rng(0)
    point = {site: 0.3 * rng.normal(size=a.shape[1:]) for site, a in shapes.items()}
    none = evidence._replace(observations=observe(problem.x, np.full(N, 1e-300), problem.structure))
    with double_precision():
        energy = jax.jit(jax.value_and_grad(lambda p: potential(story, evidence, p)))
        value, slopes = energy(point)
        prior = potential(story, none, point)  # rows that weigh nothing leave the prior
        drawn = to_numpy(realize(story, evidence, jax.tree.map(lambda a: a[None], point))[0])
        known = problem.units.leave(jax.tree.map(lambda a: a[0], drawn))
        moved = np.log(problem.units.scale) @ (~np.isnan(x)).sum(axis=0)
        assert float(value - prior) == pytest.approx(-(total(known, x) + moved), rel=1e-9)
        for site, slope in slopes.items():
            for i in np.ndindex(slope.shape):
                ends = []
                for h in (1e-5, -1e-5):
                    there = {one: a.copy() for one, a in point.items()}
                    there[site][i] += h
                    ends.append(float(energy(there)[0]))
                assert float(slope[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VVV", "VII"])
def test_gibbs_and_nuts_agree_about_missing_cells(name):
    x = np.concatenate(
        [holed(name, 0.4)[0][:40], 8 + holed(name, 0.4, key=6)[0][40:80]]
    )  # two clusters, far apart

    def draws(method):
        tree = bm.sample_posterior(
            bm.MixtureModel(2, name, "weak"), x, key=1, method=method, missing="at_random", n_draws=1000
        )
        first = np.argsort(tree["posterior"]["means"].values[..., 0], axis=-1)
        means = np.take_along_axis(tree["posterior"]["means"].values, first[..., None], axis=2)
        logs = np.log(np.linalg.det(tree["posterior"]["covariances"].values))
        parts = [means, np.take_along_axis(logs, first, axis=2), tree["sample_stats"]["lp"].values]
        return np.concatenate([part.reshape(4, 1000, -1) for part in parts], axis=2)

    (a, b), moments = (draws("gibbs"), draws("nuts")), (lambda v: v, np.square)
    for moment in moments:
        one, two = moment(a), moment(b)
        errors = [[float(az.mcse(v[..., i])) for i in range(v.shape[2])] for v in (one, two)]
        apart = np.abs(one.mean(axis=(0, 1)) - two.mean(axis=(0, 1))) / np.hypot(*errors)
        assert (apart < 5).all(), apart


def test_what_compares_posteriors_leaves_out_the_evidence():
    tree, x = sampled("VVI")
    one = bm.sample_posterior(
        bm.MixtureModel(1, "VVI", "weak"), x, key=1, method="gibbs", n_draws=300, missing="at_random"
    )
    table = bm.compare({"one": one, "three": tree}, key=0)
    assert table.index[0] == "three"
    assert "log_evidence" not in table
    with pytest.raises(ValueError, match="the evidence needs rows without missing cells"):
        bm.log_evidence(tree, key=0)
    assert bm.coclustering(tree).shape == (N, N)
    assert plots.plot_density_band(tree, ax=Figure().subplots(1, 3)).size == 3


# The door, and files.


def test_a_fit_remembers_how_many(tmp_path):
    x, _ = holed("VVV")
    found = fit(bm.MixtureModel(2, "VVI"), x)
    path = tmp_path / "fit.json"
    found.save(path)
    assert bm.load(path).n_missing == found.n_missing == np.isnan(x).sum()
    assert found.summary()["value"]["missing cells"] == found.n_missing
    older = json.loads(path.read_text())
    del older["n_missing"], older["sha256"]  # as it was before there were any
    path.write_text(json.dumps(older))
    assert bm.load(path).n_missing == 0


MODEL = bm.MixtureModel(2)
NO_ROW, NO_COLUMN, HOLED = (holed("VVV")[0].copy() for _ in range(3))
NO_ROW[4] = np.nan
NO_COLUMN[:, 1] = np.nan
INFINITE = np.where(np.arange(N)[:, None] == 3, np.inf, HOLED)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bm.fit(MODEL, HOLED), r"a missing value in row .* or pass missing='at_random'"),
        (lambda: bm.search(HOLED), r"a missing value in row .* or pass missing='at_random'"),
        (lambda: mixture("VVV").log_density(HOLED), r"a missing value in row .* or pass missing='at_random'"),
        (lambda: mixture("VVV").within(HOLED), r"a missing value in row .* drop or impute such rows first"),
        (lambda: bm.kmeans(HOLED, 2), r"a missing value in row .* drop or impute such rows first"),
        (lambda: bm.fit(MODEL, INFINITE, missing="at_random"), r"an infinite value \(inf\) in row 3"),
        (lambda: bm.fit(MODEL, NO_ROW, missing="at_random"), r"no value at all in row 4, .* drop it"),
        (lambda: bm.fit(MODEL, NO_COLUMN, missing="at_random"), r"no value at all in column 'x1', .* drop it"),
        (lambda: bm.fit(MODEL, HOLED, missing=np.isnan(HOLED)), r"missing must be None or 'at_random'; it is ndarray"),
        (lambda: jax.jit(mixture("VVV").impute)(HOLED), r"impute is for numbers, outside jit, vmap and grad"),
        (lambda: bm.merge_clusters(mixture("VVV"), HOLED), r"drop or impute such rows first$"),
        (lambda: bm.fit(MODEL, HOLED, missing="drop"), r"missing must be one of 'at_random'; it is 'drop'"),
        (lambda: fit(MODEL, HOLED, method="hard"), r"method='hard' needs rows without missing cells, and \d+ of 120 lack"),
        (lambda: fit(MODEL, HOLED, method="online"), r"method='online' needs rows without missing cells"),
        (lambda: bm.search(HOLED, covariance="kmeans", missing="at_random"), r"k-means needs rows without missing"),
        (lambda: bm.sample_posterior(MODEL, HOLED, key=0), r"drop or impute such rows first, or pass missing="),
        (lambda: sampled(labels=data("VVV")[1]), r"labels= needs rows without missing cells, and \d+ of 120 lack some"),
        (lambda: sampled(sample_weight=np.full(N, 2)), r"gibbs of weighted rows needs rows without missing cells"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_column_of_which_the_known_cells_are_equal_is_named():
    x = holed("VVV")[0].copy()
    x[~np.isnan(x[:, 1]), 1] = 2.0
    found = fit(MODEL, x)
    assert "column 'x1' is constant" in found.status
    assert np.isfinite(found.mixture.means).all()


def test_the_command_line_integrates_them_out(tmp_path):
    x, _ = holed("VVV")
    table, out, page = tmp_path / "table.csv", tmp_path / "out", tmp_path / "page.html"
    pd.DataFrame(x, columns=["a", "b", "c"]).to_csv(table, index=False)
    words = [str(table), "-k", "1:2", "--missing", "at_random", "--out", str(out)]
    refused = CliRunner().invoke(cli.app, ["fit", str(table)])
    assert refused.exit_code == 2
    assert "drop such rows, or use other columns by --features, or --missing at_random" in refused.stderr
    unknown = CliRunner().invoke(cli.app, ["fit", str(table), "--missing", "never"])
    assert unknown.exit_code == 2
    assert "missing must be one of 'at_random'; it is 'never'" in unknown.stderr
    found = CliRunner().invoke(cli.app, ["fit", *words, "--report", str(page)])
    assert found.exit_code == 0, found.stderr
    assert f"{np.isnan(x).sum()} missing cells" in found.stdout
    filled = pd.read_csv(out / "imputed.csv").drop(columns="row").to_numpy()
    np.testing.assert_allclose(filled[~np.isnan(x)], x[~np.isnan(x)])
    mixture = bm.GaussianMixture.load(out / "mixture.json")
    np.testing.assert_allclose(filled, mixture.impute(x), rtol=1e-12)
    np.testing.assert_array_equal(
        pd.read_csv(out / "clusters.csv")["cluster"], mixture.classify(x, missing="at_random")
    )
    assert "Not checked: rows with missing cells" in page.read_text()
    searched = CliRunner().invoke(cli.app, ["search", *words, "--covariance", "EEE,VVV", "--json"])
    assert searched.exit_code == 0, searched.stderr
    assert json.loads(searched.stdout)["data"]["n_missing"] == np.isnan(x).sum()
