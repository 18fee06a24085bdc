"""Merging clusters by entropy: against a slow obvious implementation, mclust, and the sense of the words."""

from __future__ import annotations

import numpy as np
import pytest
from reference import load, rows
from scipy.optimize import root
from scipy.special import entr

import bayesmix as bm


def reference(r, weight):
    """Every union tried at every step, its entropy from the definition."""
    columns, names = list(r.T), list(range(r.shape[1]))
    merges, entropy = [], [float(weight @ entr(r).sum(axis=1))]
    while len(columns) > 1:
        union = {
            (a, b): weight @ (entr(columns[a] + columns[b]) - entr(columns[a]) - entr(columns[b]))
            for a in range(len(columns))
            for b in range(a + 1, len(columns))
        }
        a, b = min(union, key=union.get)
        merges.append((names[a], names[b]))
        columns[a] = columns[a] + columns[b]
        del columns[b], names[b]
        entropy.append(float(weight @ entr(np.stack(columns, 1)).sum(axis=1)))
    return merges, entropy[::-1]


def random_mixture(k, d, seed):
    rng = np.random.default_rng(seed)
    return bm.GaussianMixture.of(
        rng.dirichlet(np.full(k, 5.0)), 2 * rng.normal(size=(k, d)), rng.gamma(4, 0.25, k), covariance="VII"
    )


@pytest.mark.parametrize(("k", "d"), [(2, 1), (4, 2), (7, 3), (12, 2)])
def test_every_step_takes_the_pair_whose_union_has_the_least_entropy(k, d):
    mixture = random_mixture(k, d, k)
    x = mixture.simulate(400, key=1)[0]
    weight = np.random.default_rng(0).integers(0, 4, 400).astype(float)
    hierarchy = bm.merge_clusters(mixture, x, sample_weight=weight)
    merges, entropy = reference(mixture.responsibilities(x), weight)
    assert [tuple(pair) for pair in hierarchy.merges.tolist()] == merges
    assert hierarchy.entropy == pytest.approx(entropy, rel=1e-10, abs=1e-10)
    assert (np.diff(hierarchy.entropy) >= 0).all()


def test_blocks_of_points_add_up(monkeypatch):
    mixture = random_mixture(5, 2, 0)
    x = mixture.simulate(500, key=0)[0]
    whole = bm.merge_clusters(mixture, x)
    monkeypatch.setattr("bayesmix.merging._BLOCK", 64)
    blocks = bm.merge_clusters(mixture, x)
    assert (blocks.merges == whole.merges).all()
    assert blocks.entropy == pytest.approx(whole.entropy, rel=1e-12)


def behind(parameters, x):
    """The mixture one E-step before mclust's parameters, which are one M-step newer than its z.

    With equal covariances log r is linear in x, so six numbers give z, and the weights and means that the M-step
    made of it give the six numbers; any mixture with those logits will do, such as one of unit spheres.
    """
    center, scale = x.mean(axis=0), x.std(axis=0)
    u = (x - center) / scale
    features = np.column_stack([np.ones(len(u)), u])
    weights = np.asarray(parameters["pro"])
    target = weights[:2, None] * np.column_stack([np.ones(2), (parameters["mean"][:2] - center) / scale])
    slopes = (np.asarray(parameters["mean"]) - center) / scale
    inverse = np.linalg.inv(np.asarray(parameters["covariances"][0]) / np.outer(scale, scale))
    full = np.column_stack(
        [np.log(weights) - np.einsum("ki,ij,kj->k", slopes, inverse, slopes) / 2, slopes @ inverse]
    )

    def step(logits):
        r = np.exp(features @ np.r_[logits.reshape(2, 3), np.zeros((1, 3))].T)
        r /= r.sum(axis=1, keepdims=True)
        return (r.T @ features / len(u) - np.r_[target, np.zeros((1, 3))])[:2].ravel()

    solved = root(step, (full[:2] - full[2]).ravel(), tol=1e-15)
    assert np.abs(solved.fun).max() < 1e-13
    logits = np.r_[solved.x.reshape(2, 3), np.zeros((1, 3))]
    weights = np.exp(logits[:, 0] + (logits[:, 1:] ** 2).sum(axis=1) / 2)
    mixture = bm.GaussianMixture.of(weights / weights.sum(), logits[:, 1:], [1.0], covariance="EII")
    return mixture, u


def published(dataset):
    oracle, x = load(f"clustcombi_{dataset}.json.gz"), rows(dataset)
    if dataset == "faithful":
        return oracle, *behind(oracle["parameters"], x)
    values = oracle["parameters"]
    return oracle, bm.GaussianMixture.of(values["pro"], values["mean"], values["covariances"]), x


@pytest.mark.parametrize("dataset", ["faithful", "iris"])
def test_agrees_with_mclust(dataset):
    oracle, mixture, x = published(dataset)
    hierarchy = bm.merge_clusters(mixture, x)
    assert hierarchy.entropy == pytest.approx(oracle["entropy_by_K"], rel=1e-8, abs=1e-12)
    for m, combine in enumerate(oracle["combiM"], 1):
        finer = hierarchy.groups(min(m + 1, hierarchy.n_components))
        coarser = [np.flatnonzero(column)[0] for column in np.transpose(combine)]
        assert (hierarchy.groups(m) == np.array(coarser)[finer]).all()
        assert (hierarchy.labels(m) + 1 == oracle["classification_by_K"][str(m)]).all()
    assert hierarchy.elbow("clusters")[0] == hierarchy.n_elbow == oracle["numClusters_optim"]


def test_a_fit_and_its_mixture_are_the_same_question():
    x = bm.datasets.load("old_faithful")
    fit = bm.fit(bm.MixtureModel(3, "EEE"), x)
    assert (bm.merge_clusters(fit, x).entropy == bm.merge_clusters(fit.mixture, x).entropy).all()
    assert bm.merge_clusters(fit, x).entropy[-1] == pytest.approx(fit.entropy)


def test_groups_responsibilities_and_labels_are_one_partition():
    mixture = random_mixture(6, 2, 3)
    x = mixture.simulate(300, key=2)[0]
    hierarchy = bm.merge_clusters(mixture, x)
    r = mixture.responsibilities(x)
    assert (hierarchy.responsibilities(6) == r).all()
    for m in range(1, 7):
        groups = hierarchy.groups(m)
        assert list(dict.fromkeys(groups)) == list(range(m))
        merged = hierarchy.responsibilities(m)
        assert merged == pytest.approx(np.stack([r[:, groups == g].sum(axis=1) for g in range(m)], 1))
        assert (hierarchy.labels(m) == merged.argmax(axis=1)).all()
        assert hierarchy.entropy[m - 1] == pytest.approx(entr(merged).sum(), abs=1e-10)


def test_a_group_of_two_overlapping_clusters_is_found():
    """A cross is one cluster of two Gaussians; the third stands apart."""
    mixture = bm.GaussianMixture.of(
        [0.3, 0.4, 0.3],
        [[0.0, 0.0], [12.0, 0.0], [0.0, 0.0]],
        [[[9.0, 0.0], [0.0, 0.1]], [[1.0, 0.0], [0.0, 1.0]], [[0.1, 0.0], [0.0, 9.0]]],
    )
    hierarchy = bm.merge_clusters(mixture, mixture.simulate(2000, key=0)[0])
    assert hierarchy.n_elbow == 2
    assert hierarchy.groups(2).tolist() == [0, 1, 0]


def test_merged_observations_are_counted_as_mclust_counts_them():
    """At each merge, the rows whose most probable cluster is one of the two; cumulated from one cluster up."""
    mixture = random_mixture(5, 2, 8)
    x = mixture.simulate(300, key=0)[0]
    hierarchy = bm.merge_clusters(mixture, x)
    expected = [0.0]
    for m in range(1, 5):
        counts = np.bincount(hierarchy.groups(m)[np.unique(hierarchy.groups(m + 1), return_index=True)[1]])
        union = np.flatnonzero(counts == 2)
        finer = hierarchy.labels(m + 1)
        parent = hierarchy.groups(m)[np.unique(hierarchy.groups(m + 1), return_index=True)[1]]
        expected.append(expected[-1] + np.isin(parent[finer], union).sum())
    assert hierarchy.n_merged.tolist() == expected


def test_the_elbow_is_the_best_of_all_breaks():
    hierarchy = bm.merge_clusters(random_mixture(8, 2, 5), random_mixture(8, 2, 5).simulate(500, key=0)[0])
    for against, place in (("clusters", np.arange(1.0, 9)), ("merged", hierarchy.n_merged)):
        squares = {}
        for m in range(2, 8):
            parts = ((place[:m], hierarchy.entropy[:m]), (place[m - 1 :], hierarchy.entropy[m - 1 :]))
            squares[m] = sum(((y - np.polyval(np.polyfit(t, y, 1), t)) ** 2).sum() for t, y in parts)
        elbow, lines = hierarchy.elbow(against)
        assert elbow == min(squares, key=squares.get)
        assert lines.shape == (2, 2, 2)
        assert lines[0, 1, 0] == lines[1, 0, 0] == place[elbow - 1]


def test_weights_are_repetitions_and_zero_is_absence():
    mixture = random_mixture(4, 2, 1)
    x = mixture.simulate(100, key=0)[0]
    weight = np.random.default_rng(1).integers(0, 4, 100)
    weighted = bm.merge_clusters(mixture, x, sample_weight=weight)
    repeated = bm.merge_clusters(mixture, np.repeat(x, weight, axis=0))
    assert (weighted.merges == repeated.merges).all()
    assert weighted.entropy == pytest.approx(repeated.entropy, rel=1e-12)
    assert (weighted.n_merged == repeated.n_merged).all()
    assert (np.repeat(weighted.labels(2), weight) == repeated.labels(2)).all()


def test_clusters_far_apart_still_merge_in_the_order_of_their_overlap():
    """Overlaps of 1e-50 and less vanish beside one, so they must not be found by subtraction."""
    mixture = bm.GaussianMixture.of([0.25] * 4, [[0.0], [20.0], [50.0], [65.0]], [[[1.0]]] * 4)
    x = np.array([[1.0], [19.0], [51.0], [64.0]])
    hierarchy = bm.merge_clusters(mixture, x)
    assert hierarchy.merges.tolist() == [[2, 3], [0, 1], [0, 2]]
    assert (np.diff(hierarchy.entropy) > 0).all()


def test_one_cluster_and_empty_clusters_are_no_special_case():
    one = bm.GaussianMixture.of([1.0], [[0.0]], [[[1.0]]])
    hierarchy = bm.merge_clusters(one, [0.0, 1.0])
    assert hierarchy.merges.shape == (0, 2)
    assert (hierarchy.entropy.tolist(), hierarchy.n_elbow, hierarchy.groups(1).tolist()) == ([0.0], 1, [0])
    assert repr(hierarchy) == "MergeHierarchy(k=1, n_elbow=1, merges: none)"
    empty = bm.GaussianMixture.of([0.5, 0.0, 0.5], [[0.0], [1.0], [9.0]], [[[1.0]]] * 3)
    hierarchy = bm.merge_clusters(empty, empty.simulate(50, key=0)[0])
    assert np.isfinite(hierarchy.entropy).all()
    assert sorted(hierarchy.groups(2).tolist()) in ([0, 0, 1], [0, 1, 1])


def test_summary_is_a_row_per_number_of_clusters():
    oracle, mixture, x = published("faithful")
    table = bm.merge_clusters(mixture, x).summary()
    assert table.index.tolist() == [3, 2, 1]
    assert table["merged"].tolist() == ["", "0 + 2", "0 + 1"]
    assert table["entropy"].to_numpy() == pytest.approx(oracle["entropy_by_K"][::-1], rel=1e-8, abs=1e-12)
    assert table["elbow"].tolist() == [False, True, False]
    assert table["merged observations"].tolist()[::-1] == bm.merge_clusters(mixture, x).n_merged.tolist()


def test_float32_data_lose_no_merge():
    mixture = random_mixture(4, 2, 1)
    x = mixture.simulate(200, key=0)[0]
    double, single = (bm.merge_clusters(mixture, x.astype(t)) for t in (np.float64, np.float32))
    assert (double.merges == single.merges).all()
    assert single.entropy == pytest.approx(double.entropy, rel=1e-4)


MIXTURE = random_mixture(2, 2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bm.merge_clusters("fit", [[0.0, 0.0]]), "must be a Fit or a GaussianMixture; it is str"),
        (lambda: bm.merge_clusters(MIXTURE, [[0.0]]), "2 are needed"),
        (lambda: bm.merge_clusters(MIXTURE, [[0.0, 0.0]], sample_weight=[1, 2]), "2 entries for 1 rows"),
        (lambda: bm.merge_clusters(MIXTURE, [[0.0, 0.0]]).groups(3), "at most the 2 clusters"),
        (lambda: bm.merge_clusters(MIXTURE, [[0.0, 0.0]]).labels(0), "m must be at least 1"),
        (lambda: bm.merge_clusters(MIXTURE, [[0.0, 0.0]]).elbow("k"), "against must be one of"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_batch_of_mixtures_is_refused():
    import jax

    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), MIXTURE)
    with pytest.raises(ValueError, match="must be one mixture; this is a batch"):
        bm.merge_clusters(batch, [[0.0, 0.0]])
