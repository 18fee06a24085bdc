"""Diagnosis: numbers against ArviZ and formulas, and a verdict that finds what was spoiled on purpose."""

import itertools

import arviz as az
import numpy as np
import pytest
import xarray
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import bayesmix as bm
from bayesmix.quantities import invariants, parameters
from bayesmix.trees import mixture_tree

COLUMNS = ["quantity", "group", "mean", "sd", "r_hat", "ess_bulk", "ess_tail", "verdict"]


@pytest.fixture(scope="module")
def faithful():
    model, x = bm.MixtureModel(2, prior="weak"), bm.datasets.load("old_faithful")
    return bm.sample_posterior(model, x, key=0, method="gibbs", n_warmup=200, n_draws=400)


def rows_of(diagnosis, group):
    return diagnosis.table[diagnosis.table["group"] == group].set_index("quantity")


def synthetic(k=3, d=2, structure="VVV", chains=4, draws=200, seed=0):
    """A tree of independent draws, as a sampler without fault would make them."""
    rng = np.random.default_rng(seed)
    shape = (chains, draws)
    weights = rng.dirichlet(np.full(k, 20.0), shape)
    means = 5.0 * np.arange(k)[:, None] + rng.normal(size=(*shape, k, d))
    factor = np.eye(d) + 0.2 * rng.normal(size=(*shape, k, d, d))
    dense = factor @ np.swapaxes(factor, -1, -2)
    if structure[0] == "E":
        dense = np.broadcast_to(dense[:, :, :1], dense.shape)
    if structure[-1] == "I":
        dense = dense * np.eye(d)
        dense = dense if structure[1] != "I" else dense[..., :1, :1] * np.eye(d)
    row = bm.GaussianMixture.of(weights[0, 0], means[0, 0], dense[0, 0], covariance=structure).covariance.row
    values = row.form.sparse(dense)
    values = np.take(values, [0], axis=-1 - row.form.axes) if row.shared else values
    from bayesmix.covariance import Covariance

    mixture = bm.GaussianMixture(weights, means, Covariance(values, structure), tuple("abcdef"[:d]))
    return mixture_tree(mixture, {"lp": rng.normal(size=shape)}, {})


def permuted(tree, order):
    """The tree with the clusters of each draw in the order (chain, draw, cluster), as a sampler that switches makes it."""
    tree = tree.copy(deep=True)
    for name, trailing in (("weights", 0), ("means", 1), ("covariances", 2)):
        index = order.reshape(*order.shape, *(1,) * trailing)
        values = tree["posterior"][name].values
        tree["posterior"][name].values = np.take_along_axis(values, index, axis=2)
    z = tree["allocations"]["z"]
    z.values = np.take_along_axis(np.argsort(order, axis=-1), z.values.astype(int), axis=2).astype(z.dtype)
    return tree


def test_a_good_run_is_fine(faithful):
    found = bm.diagnose(faithful)
    assert found.fine
    assert list(found.table.columns) == COLUMNS
    assert list(dict.fromkeys(found.table["group"])) == ["label-invariant", "relabelled", "sampler"]
    assert rows_of(found, "label-invariant").index.tolist() == [
        "log joint density", "log-likelihood", "sorted weights[0]", "sorted weights[1]", "sorted distances[0]",
        "entropy of weights", "entropy of sizes",
    ]  # fmt: skip
    assert len(rows_of(found, "relabelled")) == 2 + 4 + 6 + 1
    assert found.table["verdict"].str.len().gt(0).all()
    assert str(found) == found.verdict
    assert found.verdict.startswith("The 4 chains agree: R-hat of label-invariant quantities is at most 1.00")
    assert "can be trusted" in found.verdict
    assert found.verdict.endswith("The sampler has no complaint.")
    assert repr(found) == f"Diagnosis(fine=True, complaints: 0 of {len(found.table)} rows)"


def test_numbers_are_those_of_arviz(faithful):
    theirs = az.summary(faithful, var_names=["means", "weights"], round_to="none")
    ours = rows_of(bm.diagnose(faithful), "relabelled").loc[theirs.index]
    for name in ("mean", "r_hat", "ess_bulk"):
        assert_allclose(ours[name], theirs[name].astype(float), rtol=1e-10)
    assert_allclose(ours["sd"], theirs["sd"].astype(float), rtol=1e-3)
    tail = az.ess(
        faithful["posterior"]["means"], method="tail", prob=(0.05, 0.95)
    )  # the summary's is of 11% and 89%
    assert_allclose(ours["ess_tail"].iloc[:4], tail.values.ravel(), rtol=1e-10)


def test_invariants_are_what_their_formulas_say(faithful):
    found = invariants(faithful)
    posterior, at = faithful["posterior"], (1, 7)
    weights, means, covariances = (posterior[name].values[at] for name in ("weights", "means", "covariances"))
    within = weights[0] * covariances[0] + weights[1] * covariances[1]
    away = means[0] - means[1]
    sizes = np.bincount(faithful["allocations"]["z"].values[at])
    exact = {
        "sorted weights[0]": weights.max(),
        "sorted distances[0]": np.sqrt(away @ np.linalg.inv(within) @ away),
        "entropy of weights": stats.entropy(weights),
        "entropy of sizes": stats.entropy(sizes),
        "log joint density": faithful["sample_stats"]["lp"].values[at],
        "log-likelihood": faithful["log_likelihood"]["x"].values[at].sum(),
    }
    for name, value in exact.items():
        assert_allclose(found[name][at], value, rtol=1e-10)
    groups = {
        name: group.to_dataset() for name, group in faithful.children.items() if name != "log_likelihood"
    }
    again = invariants(xarray.DataTree.from_dict(groups))
    assert_allclose(again["log-likelihood"], found["log-likelihood"], rtol=1e-12)
    del groups["log_prior"], groups["allocations"]
    assert set(found) - set(invariants(xarray.DataTree.from_dict(groups))) == {
        "log-likelihood",
        "entropy of sizes",
    }


def test_distances_are_sorted_and_ten_at_most():
    tree = synthetic(k=6)
    found = {name: values for name, values in invariants(tree).items() if name.startswith("sorted distances")}
    assert next(iter(found)) == "sorted distances[0]"
    assert list(found)[-1] == "sorted distances[14]"
    assert len(found) == 10
    assert (np.diff(np.stack(list(found.values())), axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("structure", "n"), [("VVV", 9), ("EEE", 3), ("VVI", 6), ("EEI", 2), ("VII", 3), ("EII", 1)]
)
def test_parameters_are_named_once_each(structure, n):
    found = parameters(synthetic(structure=structure))
    assert sum(name.startswith("covariances") for name in found) == n
    assert "covariances[0, a, a]" in found
    assert "means[2, b]" in found
    assert all(np.ptp(values) > 0 for values in found.values())


def test_switching_is_seen_in_parameters_and_nowhere_else(faithful):
    order = np.tile([0, 1], (4, 400, 1))
    order[0, :200] = order[2] = [1, 0]
    spoiled = permuted(faithful, order)
    before, after = bm.diagnose(faithful), bm.diagnose(spoiled)
    assert rows_of(before, "label-invariant").equals(rows_of(after, "label-invariant"))
    wrong = rows_of(after, "relabelled").drop("certainty")
    assert (wrong.loc[["means[0, waiting]", "weights[0]"], "r_hat"] > 1.2).all()
    assert wrong["verdict"].str.contains("chains disagree").all()
    assert after.verdict.startswith("The 4 chains agree")
    assert "parameters disagree, so the names of clusters are ambiguous" in after.verdict
    assert not after.fine


def test_without_relabelling_parameters_are_left_out_with_a_pointer(faithful):
    model, x = bm.MixtureModel(2, prior="weak"), bm.datasets.load("old_faithful")
    options = {"method": "gibbs", "n_warmup": 200, "n_draws": 400, "permute": True}
    raw = bm.sample_posterior(model, x, key=3, relabelling=None, **options)
    found = bm.diagnose(raw)
    assert found.fine
    assert rows_of(found, "relabelled").empty
    assert "relabel(posterior)" in found.verdict
    undone = bm.diagnose(bm.relabel(raw))
    assert rows_of(found, "label-invariant").equals(rows_of(undone, "label-invariant"))
    assert undone.fine
    order = bm.relabel(raw)["sample_stats"]["permutation"].values
    switches = sum(np.any(a != b) for chain in order for a, b in itertools.pairwise(chain))
    assert f"Labels switched {switches} times inside chains" in undone.verdict


def test_a_chain_in_another_optimum_is_found(faithful):
    stuck = faithful.copy(deep=True)
    stuck["sample_stats"]["lp"].values[3] -= 40
    stuck["log_likelihood"]["x"].values[3] -= 40 / 272
    weights = stuck["posterior"]["weights"].values
    weights[3] = weights[3] ** 2 / (weights[3] ** 2).sum(axis=-1, keepdims=True)
    stuck["posterior"]["weights"].values = weights
    found = bm.diagnose(stuck)
    first = rows_of(found, "label-invariant")
    names = ["log joint density", "log-likelihood", "sorted weights[0]", "entropy of weights"]
    assert (first.loc[names, "r_hat"] > 1.1).all()
    assert first.loc[names, "verdict"].str.contains("chains disagree").all()
    assert first.loc["entropy of sizes", "verdict"] == "fine"
    assert found.verdict.startswith("The 4 chains disagree: R-hat is")
    means = stuck["sample_stats"]["lp"].values.mean(axis=1)
    assert f"by chain: {', '.join(f'{value:.1f}' for value in means)})" in found.verdict
    assert "in different optima" in found.verdict
    assert "disagree, as the chains do" in found.verdict
    assert found.complaints["quantity"].tolist() == [q for q, v in zip(found.table["quantity"], found.table["verdict"]) if v != "fine"]  # fmt: skip


def test_chains_that_differ_a_little_should_run_longer():
    tree = synthetic(k=1)
    tree["sample_stats"]["lp"].values[3] += 0.5
    found = bm.diagnose(tree)
    row = rows_of(found, "label-invariant").loc["log joint density"]
    assert 1.01 < row["r_hat"] < 1.1
    assert found.verdict.startswith(
        f"The 4 chains disagree: R-hat is {row['r_hat']:#.4g} for the log joint density"
    )
    assert (
        "above 1.01 for 1 of 3 label-invariant quantities. They have not mixed well: run longer"
        in found.verdict
    )


def test_chains_that_stand_still_in_different_places_disagree():
    tree = synthetic(k=1)
    tree["sample_stats"]["lp"].values = np.arange(4.0)[:, None] * np.ones((4, 200))
    row = rows_of(bm.diagnose(tree), "label-invariant").loc["log joint density"]
    assert row["r_hat"] > 1e6  # infinite, but for rounding
    assert row["verdict"].endswith("above 1.01: chains disagree")


def test_what_nuts_recorded_is_read():
    tree = synthetic(k=1)
    rng, shape = np.random.default_rng(0), (4, 200)
    quiet = {
        "diverging": np.zeros(shape, bool),
        "tree_depth": np.full(shape, 3),
        "energy": rng.normal(size=shape),
    }
    recorded = {name: (("chain", "draw"), values) for name, values in quiet.items()}
    tree["sample_stats"] = xarray.DataTree(tree["sample_stats"].to_dataset().assign(recorded))
    found = bm.diagnose(tree)
    assert found.fine
    last = rows_of(found, "sampler")
    energy = quiet["energy"]
    each = np.square(np.diff(energy)).mean(axis=1) / energy.var(axis=1, ddof=1)
    assert_allclose(last.loc["least E-BFMI", "mean"], each.min())
    tree["sample_stats"]["diverging"].values[1, :7] = True
    tree["sample_stats"]["tree_depth"].values[2, :3] = 10
    tree["sample_stats"]["energy"].values[2] = np.cumsum(energy[2])
    found = bm.diagnose(tree)
    last = rows_of(found, "sampler")
    assert last.loc["share diverging", "mean"] == 7 / 800
    assert last.loc["share diverging", "verdict"].startswith(
        "7 of 800 draws came of transitions that diverged"
    )
    assert last.loc["share of full trees", "verdict"].startswith("3 of 800 trees reached depth 10")
    assert "of chain 2 below 0.3" in last.loc["least E-BFMI", "verdict"]
    assert "7 of 800 draws came of transitions that diverged" in found.verdict
    assert "E-BFMI 0.0" in found.verdict
    assert len(found.complaints) == 3


def test_energies_are_judged_by_transition_however_few_are_kept():
    """Those of a slow chain, of which every fourth draw is kept."""
    rng, tree = np.random.default_rng(0), synthetic(k=1)
    energy = rng.normal(size=(4, 801))
    for i in range(1, 801):
        energy[:, i] = 0.9 * energy[:, i - 1] + np.sqrt(1 - 0.9**2) * energy[:, i]
    change = np.square(np.diff(energy)).reshape(4, 200, 4).mean(axis=2)
    recorded = {"energy": energy[:, 4::4], "squared_energy_change": change}
    of = {name: (("chain", "draw"), values) for name, values in recorded.items()}
    tree["sample_stats"] = xarray.DataTree(tree["sample_stats"].to_dataset().assign(of))
    row = rows_of(bm.diagnose(tree), "sampler").loc["least E-BFMI"]
    assert row["mean"] == pytest.approx(2 * (1 - 0.9), abs=0.05)
    assert "below 0.3" in row["verdict"]


def test_one_cluster_has_constant_weights_and_no_labels():
    found = bm.diagnose(synthetic(k=1))
    assert found.fine
    for group, name in (("label-invariant", "sorted weights[0]"), ("relabelled", "weights[0]")):
        row = rows_of(found, group).loc[name]
        assert row["verdict"] == "constant"
        assert row["mean"] == 1
        assert np.isnan(row["r_hat"])
    assert "abels" not in found.verdict


def test_one_chain_is_compared_by_its_halves():
    found = bm.diagnose(synthetic(k=1, chains=1, draws=4000))
    assert found.verdict.startswith("The halves of the only chain agree")
    assert found.complaints["quantity"].tolist() == ["chains"]
    drifting = synthetic(k=1, chains=1, draws=4000)
    drifting["sample_stats"]["lp"].values += np.linspace(0, 5, 4000)
    found = bm.diagnose(drifting)
    assert (
        "the halves of the chain disagree"
        in rows_of(found, "label-invariant").loc["log joint density", "verdict"]
    )
    assert found.verdict.startswith("The halves of the only chain disagree")


def test_few_draws_are_too_few():
    found = bm.diagnose(synthetic(k=1, draws=60))
    assert found.verdict.startswith("The 4 chains agree, but are short")
    assert "fewer than 100 a chain" in rows_of(found, "label-invariant").loc["log joint density", "verdict"]
    assert "draws a chain" in found.complaints["quantity"].tolist()
    found = bm.diagnose(synthetic(k=1, chains=2, draws=3))
    assert found.verdict.startswith("3 draws are too few to compare chains by")
    assert rows_of(found, "relabelled").loc["means[0, a]", "verdict"].startswith("too few draws for R-hat")


def test_uncertain_clusters_are_said_to_be(faithful):
    vague = faithful.copy(deep=True)
    vague["posterior"].attrs["certainty"] = 0.61
    found = bm.diagnose(vague)
    assert found.complaints["quantity"].tolist() == ["certainty"]
    assert "read them with care" in found.verdict
    assert "certainty 0.61" in found.verdict


def test_trees_without_chains_are_refused(faithful):
    bare = synthetic(k=1)
    without = xarray.DataTree.from_dict({"posterior": bare["posterior"].to_dataset()})
    for tree in (without, "no tree", mixture_tree(bm.mixtures(bare), {"objective": np.zeros((4, 200))}, {})):
        with pytest.raises(ValueError, match=r"no 'lp' in a group 'sample_stats'.*bootstrap"):
            bm.diagnose(tree)
    with pytest.raises(ValueError, match="group 'posterior'"):
        bm.diagnose(xarray.DataTree.from_dict({"sample_stats": bare["sample_stats"].to_dataset()}))


def test_a_tree_is_left_as_it_was(faithful):
    kept = faithful.copy(deep=True)
    bm.diagnose(faithful)
    for group, dataset in kept.children.items():
        for name, values in dataset.data_vars.items():
            assert_array_equal(faithful[group][name], values)
