"""The search over k and structures: mclust's own tables, honest refusals, and starts that do not depend on luck."""

import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from reference import load, rows
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score, silhouette_score

import bayesmix as bm
from bayesmix.covariance import STRUCTURES
from bayesmix.hierarchy import agglomerate, sphere, ward
from bayesmix.ranking import CRITERIA
from bayesmix.spurious import spurious_clusters

FITS = {
    "faithful": None,
    "iris": None,
    "faithful_eruptions": 0,
    "faithful_waiting": 1,
    "galaxies_mass_velocity": 0,
    "ruspini": None,
}
SLOW = ("iris", "ruspini")


def reference_data(name):
    reference = load(f"fits_{name}.json.gz")
    x = rows(reference["dataset"]) / reference["divided_by"]
    x = x[:, : reference["d"]] if FITS[name] is None else x[:, [FITS[name]]]
    assert x.shape == (reference["n"], reference["d"])
    return reference, x


def clean_there(cell, x):
    """Whether mclust's own fit is clean: it keeps clusters of a few points and nearly flat ones."""
    if not STRUCTURES[cell["model"]].unbounded or cell["G"] == 1:
        return True
    if min(cell["sizes"]) <= x.shape[1] + 1:
        return False
    if "covariances" not in cell:
        return True
    means = np.reshape(cell["mean"], (cell["G"], -1))
    m = bm.GaussianMixture.of(cell["pro"], means, np.array(cell["covariances"]), covariance=cell["model"])
    return not spurious_clusters(m, m.responsibilities(x).sum(axis=0), np.zeros(x.shape[1]))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FITS])
def test_the_search_is_at_least_as_good_as_mclust_in_every_cell(name):
    reference, x = reference_data(name)
    found = bm.search(x)
    table = found.table.set_index(["n_components", "covariance"])
    compared = 0
    for cell in reference["cells"]:
        row = table.loc[(cell["G"], cell["model"])]
        assert row["n_parameters"] == cell["df"]
        if cell["loglik"] is not None and row["clean"] and clean_there(cell, x):
            assert row["log_likelihood"] >= cell["loglik"] - 1e-3, cell
            compared += 1
    assert compared >= 0.6 * len(reference["cells"])
    best = reference["best_by_bic"]
    chosen = found.best
    assert not chosen.spurious
    theirs = table.loc[(best["G"], best["model"])]
    if theirs["clean"]:
        assert -chosen.bic >= best["bic"] - 0.05
    if (chosen.mixture.n_components, chosen.mixture.structure) != (best["G"], best["model"]):
        assert -chosen.bic > best["bic"] - 0.05 or not theirs["clean"]


def test_galaxies_choose_three_clusters_of_their_own_widths():
    """mclust takes a spurious fourth one: V,4 at -447.0 in its sign against V,3 at -441.6."""
    best = bm.search(rows("galaxies_mass") / 1000).best
    assert (best.mixture.structure, best.mixture.n_components) == ("V", 3)
    assert_allclose(-best.bic, -441.6, atol=0.05)


@pytest.fixture(scope="module")
def found():
    return bm.search(bm.datasets.load("old_faithful"), n_components=range(1, 6))


def test_the_table_is_complete_and_sorted(found):
    table = found.table
    columns = ["n_components", "covariance", "log_likelihood", "n_parameters", *CRITERIA, "n_steps", "n_agree", "n_starts", "status", "clean", "reason"]  # fmt: skip
    assert list(table.columns) == columns
    assert len(table) == 5 * 14
    clean = table[table["clean"]]
    assert (np.diff(clean["bic"]) >= 0).all()
    assert table["clean"].iloc[: len(clean)].all()
    assert (table.loc[~table["clean"], "reason"].str.len() > 20).all()
    assert found.best.mixture.feature_names == ("eruptions", "waiting")
    assert_allclose(found.top(3)["difference"].iloc[0], 0)
    assert len(found.top(3)) == 3


@pytest.mark.parametrize(("k", "structure"), [(2, "VVV"), (3, "EEE"), (3, "VVE"), (4, "EVI"), (1, "VII")])
def test_a_cell_is_a_fit_and_the_fit_is_at_its_optimum(found, k, structure):
    x = bm.datasets.load("old_faithful")
    cell = found.fit(k, structure)
    row = found.table.set_index(["n_components", "covariance"]).loc[(k, structure)]
    assert cell.mixture.structure == structure
    assert_allclose(cell.log_likelihood, cell.mixture.log_density(x).sum(), rtol=1e-12)
    for name in ("bic", "aic", "aicc", "clc", "icl", "icl_entropy"):
        assert_allclose(getattr(cell, name), row[name], rtol=1e-12)
    assert_array_equal(cell.labels, cell.mixture.classify(x))
    bm.GaussianMixture.of(
        cell.mixture.weights, cell.mixture.means, cell.mixture.covariances, covariance=structure
    )
    again = bm.fit(bm.MixtureModel(k, structure), x, init=cell.mixture)
    assert cell.log_likelihood - 1e-9 <= again.log_likelihood <= cell.log_likelihood + 5e-3
    assert bm.standard_errors(again, x).means.shape == (k, 2)


def test_one_more_cluster_is_never_worse(found):
    """Where both are clean; of a structure, a mixture of k is one of k + 1 in which two are the same."""
    table = found.table[found.table["clean"]].sort_values("n_components")
    for name, cells in table.groupby("covariance"):
        assert (np.diff(cells["log_likelihood"]) > -1e-2).all(), name


def test_criteria_are_their_formulas(found):
    x = bm.datasets.load("old_faithful")
    row = found.table.set_index(["n_components", "covariance"]).loc[(3, "EEE")]
    m, n, p = found.fit(3, "EEE").mixture, len(x), 11
    logs, r = m.log_density(x).sum(), m.responsibilities(x)
    entropy = -np.sum(r * np.log(np.maximum(r, 1e-300)))
    one = bm.fit(bm.MixtureModel(1, "EEE"), x).log_likelihood
    assert_allclose(row["bic"], -2 * logs + p * np.log(n))
    assert_allclose(row["aicc"], -2 * logs + 2 * p + 2 * p * (p + 1) / (n - p - 1))
    assert_allclose(row["icl"], -2 * (logs + np.log(r.max(axis=1)).sum()) + p * np.log(n))
    assert_allclose(row["icl_entropy"], row["bic"] + 2 * entropy)
    assert_allclose(row["clc"], -2 * logs + 2 * entropy)
    assert_allclose(row["nec"], entropy / (logs - one), rtol=1e-6)


def test_spurious_cells_are_shown_with_their_reason_and_never_chosen():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(80, 2)), np.full((4, 2), 5.0)])
    found = bm.search(x, n_components=[1, 2, 3], covariance=["VVV", "VII", "EEE"])
    bad = found.table[~found.table["clean"]]
    assert {"VVV", "VII"} <= set(bad["covariance"])
    assert bad["reason"].str.contains('prior="weak"').all()
    assert found.best.mixture.structure == "EEE"
    only = bm.search(x, n_components=[2, 3], covariance="VVV")
    with pytest.raises(ValueError, match="none of the cells is clean"):
        _ = only.best


def test_cells_that_reached_max_steps_are_honest_and_say_so():
    x = bm.datasets.load("old_faithful")
    short = bm.search(x, n_components=[2, 3], covariance=["VVV", "EEE"], max_steps=12)
    table, cell = short.table.set_index(["n_components", "covariance"]), short.fit(3, "EEE")
    assert table.loc[(3, "EEE"), ["status", "clean"]].tolist() == ["max_steps", True]
    assert "max_steps=12" in table.loc[(3, "EEE"), "reason"]
    assert (cell.converged, cell.spurious, cell.n_spurious) == (False, False, 0)
    assert cell.status.startswith("reached max_steps=12")
    assert short.best.bic == table["bic"].min()


def test_impossible_cells_are_marked_and_the_search_goes_on():
    found = bm.search(
        [[0.0, 1.0], [1.0, 0.5], [5.0, 5.0], [6.0, 5.5]], n_components=[1, 2, 6], covariance=["EII", "EEE"]
    )
    impossible = found.table[found.table["status"] == "impossible"]
    assert set(impossible["n_components"]) == {6}
    assert impossible["reason"].str.contains("4 rows, fewer than 6").all()
    assert found.best.mixture.n_components <= 2
    with pytest.raises(ValueError, match="fewer than 6 clusters"):
        found.fit(6, "EII")


def test_two_searches_of_the_same_data_merge(found):
    x = bm.datasets.load("old_faithful")
    more = bm.search(x, n_components=[6], covariance=["EEE"])
    merged = found.merge(more)
    assert len(merged.table) == 71
    assert merged.fit(6, "EEE").log_likelihood == more.fit(6, "EEE").log_likelihood
    assert len(found.table) == 70
    with pytest.raises(ValueError, match="same data"):
        found.merge(bm.search(x.iloc[:-1], n_components=[2], covariance=["EEE"]))


def test_a_search_is_pickled_whole(found):
    again = pickle.loads(pickle.dumps(found))
    pd.testing.assert_frame_equal(again.table, found.table)
    assert_array_equal(again.best.labels, found.best.labels)


def test_the_same_key_gives_the_same_search_and_another_unit_the_same_choice():
    x = bm.datasets.load("old_faithful").to_numpy()
    options = {"n_components": [2, 3], "covariance": ["VVV", "VEI", "EEE"]}
    a, b = bm.search(x, **options), bm.search(x, **options)
    assert_array_equal(a.table["bic"], b.table["bic"])
    moved = bm.search(x * [1e-6, 1e5] + [3.0, -7e6], **options)
    jacobian = 2 * len(x) * np.log(1e-6 * 1e5)
    assert_allclose(np.sort(moved.table["bic"] - jacobian), np.sort(a.table["bic"]), rtol=1e-6)


def test_weights_are_repetition():
    x = bm.datasets.load("old_faithful").to_numpy()[:90]
    weight = np.arange(90) % 3
    options = {"n_components": [1, 2], "covariance": ["VVV", "EEE"], "n_starts": 2}
    a = bm.search(x, sample_weight=weight, **options).table.set_index(["n_components", "covariance"])
    b = bm.search(np.repeat(x, weight, axis=0), **options).table.set_index(["n_components", "covariance"])
    assert_allclose(a["bic"].sort_index(), b["bic"].sort_index(), rtol=1e-5)


def test_equal_proportions_are_held_in_every_cell():
    x = bm.datasets.load("old_faithful")
    found = bm.search(x, n_components=[2, 3], covariance=["EEE", "VVI"], hold="weights")
    row = found.table.set_index(["n_components", "covariance"]).loc[(3, "EEE")]
    assert row["n_parameters"] == 9
    assert_allclose(found.fit(3, "EEE").mixture.weights, 1 / 3)
    single = bm.fit(bm.MixtureModel(3, "EEE"), x, hold="weights")
    assert row["log_likelihood"] >= single.log_likelihood - 1e-2


def test_float32_data_search_in_float32():
    x = bm.datasets.load("old_faithful").to_numpy(np.float32)
    found = bm.search(x, n_components=[2, 3], covariance=["VVV", "EEE", "VVI"])
    double = bm.search(x.astype(float), n_components=[2, 3], covariance=["VVV", "EEE", "VVI"])
    assert found.best.mixture.means.dtype == np.float32
    assert found.best.mixture.structure == double.best.mixture.structure
    assert_allclose(found.best.bic, double.best.bic, rtol=1e-4)


@pytest.mark.parametrize(("name", "one"), [("galaxies", True), ("old_faithful", False)])
def test_every_structure_is_searched_in_its_dimension(name, one):
    table = bm.search(bm.datasets.load(name), n_components=[1, 2]).table
    assert set(table["covariance"]) == {
        row.name for row in STRUCTURES.values() if (row.n_features == 1) == one
    }


BAD = {
    "no k": ({"n_components": []}, "n_components is empty"),
    "k of zero": ({"n_components": [0, 1]}, "n_components must be at least 1"),
    "structure": ({"covariance": ["VVX"]}, "covariance must be one of"),
    "criterion": ({"criterion": "dic"}, "criterion must be one of 'bic'"),
    "no structure": ({"covariance": []}, "covariance is empty"),
    "k no number": ({"n_components": None}, "n_components must be a whole number, not None"),
    "k no whole number": ({"n_components": 3.0}, "n_components must be a whole number, not 3.0"),
    "no word": ({"covariance": 3}, "covariance must be one of"),
    "nothing to compare with": (
        {"n_components": [2, 3], "criterion": "nec"},
        r"n_components must have 1; it is \[2, 3\]",
    ),
    "k in an array": ({"n_components": np.array(2.5)}, "n_components must be a whole number"),
    "held centres": ({"covariance": "kmeans", "hold": "weights"}, "of k-means nothing is held"),
    "starts": ({"n_starts": 0}, "n_starts must be at least 1"),
    "hold": ({"hold": "means"}, "hold must be one of 'weights'"),
    "tol": ({"tol": -1}, "tol must be a number"),
    "one feature": ({"covariance": "V"}, "is for 1 feature"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_clear_error(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        bm.search(bm.datasets.load("old_faithful"), **options)


@pytest.mark.parametrize("name", ["faithful", "iris"])
def test_agglomeration_makes_mclusts_partitions_and_ward_scipys(name):
    x = rows(name)[:, : 2 if name == "faithful" else 4]
    x = x - x.mean(axis=0)
    z = sphere(x, np.ones(len(x)))
    trees = {"VVV": agglomerate(z, np.ones(len(x)), range(2, 10)), "EII": ward(z, range(2, 10))}
    linked = linkage(z, "ward")
    for result in load(f"hc_{name}.json.gz")["results"]:
        if result["use"] == "SVD" and result["model"] in trees:
            for k, labels in trees[result["model"]].items():
                classes = result["classes"]
                theirs = classes[str(k)] if isinstance(classes, dict) else classes[k - 2]
                assert adjusted_rand_score(labels, theirs) == 1.0
                assert len(np.unique(labels)) == k
                if result["model"] == "EII":
                    assert adjusted_rand_score(labels, fcluster(linked, k, "maxclust")) == 1.0


def test_rows_that_do_not_differ_are_agglomerated_too():
    """No union costs anything; pytest makes an error of a logarithm of zero."""
    found = agglomerate(np.zeros((6, 2)), np.ones(6), [1, 2, 4])
    assert [len(np.unique(found[k])) for k in (1, 2, 4)] == [1, 2, 4]


def test_agglomeration_of_many_points_begins_with_wards_groups():
    mixture = bm.GaussianMixture.of([0.5, 0.5], [[0.0, 0.0], [8.0, 0.0]], [np.eye(2), np.diag([0.2, 9.0])])
    x, z = mixture.simulate(1500, key=0)
    labels = agglomerate(sphere(x - x.mean(axis=0), np.ones(1500)), np.ones(1500), [2])[2]
    assert adjusted_rand_score(labels, z) > 0.98


def test_k_means_is_tabulated_by_inertia_silhouette_and_gap():
    x = rows("ruspini")[:, :2]
    found = bm.search(x, n_components=range(1, 7), covariance="kmeans")
    table = found.table
    assert {"inertia", "silhouette", "gap", "gap_error", "n_steps", "n_agree", "status"} <= set(table.columns)
    assert (np.diff(table["inertia"]) < 0).all()
    assert np.isnan(table["silhouette"].iloc[0])
    for k in (2, 4, 6):
        labels = found.fit(k).labels
        assert_allclose(table["silhouette"].iloc[k - 1], silhouette_score(x, labels), rtol=1e-9)
        assert found.fit(k).inertia == bm.kmeans(x, k).inertia
    assert found.best.mixture.n_components == 4
    far = np.vstack([x, [[1e9, 1e9]]])
    for data in (far, (x * 1e20).astype(np.float32)):
        found = bm.search(data, n_components=[3, 4], covariance="kmeans", criterion="silhouette")
        for k, value in zip((3, 4), found.table["silhouette"]):
            assert_allclose(
                value, silhouette_score(data / data.max(), found.fit(k, "kmeans").labels), rtol=1e-4
            )
    best = bm.search(x, n_components=range(2, 7), covariance="kmeans", criterion="silhouette").best
    assert best.mixture.n_components == 4
    blob = np.random.default_rng(0).normal(size=(150, 2))
    assert bm.search(blob, n_components=range(1, 5), covariance="kmeans").best.mixture.n_components == 1


def test_weights_are_repetitions_to_the_silhouette_and_the_gap():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(12, 2)), rng.normal([6, 0], 1, size=(8, 2))])
    weight = rng.integers(1, 5, 20)
    options = {"n_components": range(1, 5), "covariance": "kmeans"}
    table = bm.search(x, sample_weight=weight, **options).table
    again = bm.search(np.repeat(x, weight, axis=0), **options)
    assert_allclose(table["inertia"], again.table["inertia"], rtol=1e-9)
    assert_allclose(table["silhouette"], again.table["silhouette"], rtol=1e-9)
    for k in range(2, 5):
        labels = again.fit(k).labels
        assert_allclose(table["silhouette"][k - 1], silhouette_score(np.repeat(x, weight, axis=0), labels))
    # Each has its own references, of as many rows.
    error = np.hypot(table["gap_error"], again.table["gap_error"])
    assert (abs(table["gap"] - again.table["gap"]) < 2 * error).all()
    assert_allclose(table["gap_error"], again.table["gap_error"], rtol=0.8)


@pytest.mark.parametrize("scale", [0.5, 0.01, 1 / 120, 300.5])
def test_of_other_weights_only_ratios_count_to_the_silhouette_and_the_gap(scale):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(m, 1, (40, 2)) for m in ([0, 0], [8, 8], [0, 12])])
    options = {"n_components": range(1, 5), "covariance": "kmeans", "criterion": "silhouette"}
    plain, scaled = (bm.search(x, sample_weight=np.full(120, weight), **options) for weight in (1.0, scale))
    assert_allclose(scaled.table["silhouette"], plain.table["silhouette"], rtol=1e-6)
    assert_allclose(scaled.table["gap"], plain.table["gap"], atol=1e-6)
    assert scaled.best.mixture.n_components == 3


def test_a_cell_of_a_merged_search_says_its_own_limit():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(5, 1, (50, 2))])
    longer = bm.search(x, n_components=[1, 2], covariance=["VII", "EII"])
    short = bm.search(x, n_components=[3], covariance="VII", max_steps=1)
    for found in (longer.merge(short), short.merge(longer)):
        assert "reached max_steps=1 before" in found.fit(3, "VII").status


@pytest.mark.parametrize("covariance", ["VVI", "kmeans"])
def test_a_search_keeps_the_names_of_the_columns(covariance):
    x = bm.datasets.load("old_faithful")
    mixture = bm.search(x, n_components=[2], covariance=covariance).best.mixture
    assert mixture.feature_names == ("eruptions", "waiting")
    assert_array_equal(mixture.classify(x[["waiting", "eruptions"]]), mixture.classify(x))


def test_a_constant_column_is_called_by_its_name():
    x = bm.datasets.load("old_faithful").assign(waiting=1.0)
    assert (
        "column 'waiting' is constant"
        in bm.search(x, n_components=1, covariance="VVI").table["reason"].iloc[0]
    )


@pytest.mark.parametrize("n_starts", [1, 4])
def test_more_clusters_than_values_is_said_and_nothing_else(n_starts):
    """Quantiles leave a cluster out there; pytest makes an error of a division by zero."""
    found = bm.search([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0], n_components=[4, 5], n_starts=n_starts)
    assert not found.table["clean"].any()
    assert set(found.table["status"]) <= {"collapsed", "non_finite", "spurious"}


def test_more_centres_than_rows_is_said_by_the_table_and_by_one_error():
    found = bm.search([1.0, 2.0, 4.0], n_components=[4, 5], covariance="kmeans")
    assert list(found.table["status"]) == ["impossible", "impossible"]
    assert len(found.top()) == 0
    with pytest.raises(ValueError, match="none of the numbers of centres could be tried"):
        _ = found.best
