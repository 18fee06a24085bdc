"""The posterior: laws given z, weights, given labels, the tree, and labels undone; `test_calibration` has the samplers."""

from concurrent.futures import ThreadPoolExecutor

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from enumeration import enumerate_posterior
from numpy.testing import assert_allclose, assert_array_equal

import bayesmix as bm
from bayesmix import pointwise
from bayesmix.covariance import Covariance
from bayesmix.spurious import spacing
from bayesmix.switching import METHODS


def prior_of(structure, d=2, concentration=(1.5, 0.8)):
    scale = {"VVV": np.array([[1.0, 0.4], [0.4, 0.8]]), "VVI": np.array([1.0, 0.6]), "VII": 0.8}
    scale |= {"EEE": scale["VVV"], "EEI": scale["VVI"], "EII": scale["VII"]}
    return bm.ConjugatePrior.of(
        mean=[0.3, 0.1],
        degrees_of_freedom=4.0,
        scale=scale[structure],
        mean_count=0.5,
        concentration=list(concentration),
    )


def errors(draws):
    """Means over draws, and their Monte-Carlo standard errors."""
    flat = np.asarray(draws).reshape(*np.shape(draws)[:2], -1)
    sizes = [float(az.ess(flat[..., i], method="mean")) for i in range(flat.shape[-1])]
    mean, sd = flat.mean(axis=(0, 1)), flat.std(axis=(0, 1))
    shape = np.shape(draws)[2:]
    return mean.reshape(shape), (sd / np.sqrt(sizes)).reshape(shape)


@pytest.mark.parametrize("structure", ["VVV", "VVI", "VII", "EEE", "EEI", "EII"])
def test_a_conditional_draw_has_the_moments_of_its_law(structure):
    """One cluster, so that Gibbs draws from the exact posterior: E[Σ⁻¹] and E[mean] in closed form."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2)) @ [[1.0, 0.3], [0.0, 0.6]] + [1.0, -2.0]
    prior = prior_of(structure, concentration=(2.0,))
    tree = bm.sample_posterior(
        bm.MixtureModel(1, structure, prior), x, key=0, method="gibbs", n_warmup=0, n_draws=4000
    )
    kappa, nu, m, n = 0.5, 4.0, np.array([0.3, 0.1]), len(x)
    center = (kappa * m + x.sum(axis=0)) / (kappa + n)
    scatter = (x - x.mean(axis=0)).T @ (x - x.mean(axis=0))
    scatter += kappa * n / (kappa + n) * np.outer(x.mean(axis=0) - m, x.mean(axis=0) - m)
    if structure in ("VVV", "EEE"):
        expected = (nu + n) * np.linalg.inv(np.asarray(prior.scale) + scatter)
    elif structure in ("VVI", "EEI"):
        expected = np.diag((nu + n) / (np.asarray(prior.scale) + np.diag(scatter)))
    else:
        expected = np.eye(2) * (nu + 2 * n) / (float(prior.scale) + np.trace(scatter))
    precision = np.linalg.inv(tree["posterior"]["covariances"].values[:, :, 0])
    for draws, exact in ((precision, expected), (tree["posterior"]["means"].values[:, :, 0], center)):
        mean, error = draws.mean(axis=(0, 1)), draws.std(axis=(0, 1)) / np.sqrt(16000)
        assert (np.abs(mean - exact) < 4.5 * error + 1e-12).all()


def test_a_weight_is_so_many_copies():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(-1, 1, 25), rng.normal(1.5, 1, 15)])
    model = bm.MixtureModel(
        2, "V", bm.ConjugatePrior.of(mean=[0.0], degrees_of_freedom=3.0, scale=1.0, mean_count=0.1)
    )
    options = {"key": 2, "method": "gibbs", "n_draws": 2500, "relabelling": None}
    weighted = bm.sample_posterior(model, x, sample_weight=np.full(40, 3.0), **options)
    copies = bm.sample_posterior(model, np.repeat(x, 3), **options)
    for read in (
        lambda t: t["posterior"]["weights"].values.max(axis=-1),
        lambda t: t["sample_stats"]["lp"].values,
    ):
        (mean, error), (other, other_error) = (errors(read(t)[..., None]) for t in (weighted, copies))
        assert abs(mean - other)[0] < 4 * np.hypot(error, other_error)[0]
    with pytest.raises(ValueError, match=r"gibbs draws a whole number of allocations.*use method='nuts'"):
        bm.sample_posterior(model, x, sample_weight=np.full(40, 1.5), **options)


@pytest.fixture(scope="module")
def faithful():
    model = bm.MixtureModel(2, prior="weak")
    x = bm.datasets.load("old_faithful")
    return bm.sample_posterior(model, x, key=0, method="gibbs", n_warmup=200, n_draws=400, predictive=True)


@pytest.fixture(scope="module")
def by_nuts():
    model, x = bm.MixtureModel(2, prior="weak"), bm.datasets.load("old_faithful")
    return bm.sample_posterior(model, x, key=0, n_warmup=200, n_draws=400, predictive=True)


def test_arviz_compares_trees(faithful, by_nuts):
    table = az.compare({"gibbs": faithful, "nuts": by_nuts})
    assert abs(table["elpd_diff"].max()) < 0.5  # one posterior, two samplers


@pytest.mark.parametrize(("method", "name"), [("gibbs", "faithful"), ("nuts", "by_nuts")])
def test_arviz_reads_the_tree(method, name, request, tmp_path):
    faithful = request.getfixturevalue(name)
    groups = {"posterior", "sample_stats", "log_likelihood", "log_prior", "allocations", "observed_data", "posterior_predictive"}  # fmt: skip
    assert groups == set(faithful.children)
    table = az.summary(faithful, var_names=["weights", "means"])
    assert (table["r_hat"].astype(float) < 1.02).all()
    assert az.loo(faithful).elpd < -1100
    assert len(az.psense_summary(faithful, var_names=["weights"])) == 2
    for plot in (az.plot_trace_dist, az.plot_forest, az.plot_rank):
        plot(faithful, var_names=["weights"], backend="matplotlib")
    az.plot_ppc_dist(faithful, num_samples=10, backend="matplotlib")
    for group in faithful.children.values():
        dataset = group.to_dataset()
        assert set(dataset.dims) <= set(dataset.coords)
    attributes = faithful["posterior"].attrs
    assert attributes["method"] == method
    assert attributes["relabelling"] == "ecr"
    assert attributes["prior"] == "conjugate, weak"
    path = tmp_path / "posterior.nc"
    faithful.to_netcdf(path)
    import xarray

    again = xarray.open_datatree(path)
    assert_array_equal(again["posterior"]["means"], faithful["posterior"]["means"])
    assert bm.mixtures(again).means.shape == (4, 400, 2, 2)
    again.close()


def test_the_tree_says_what_the_mixtures_say(faithful):
    x = bm.datasets.load("old_faithful")
    one = jax.tree.map(lambda a: a[1, 7], bm.mixtures(faithful))
    assert_allclose(faithful["log_likelihood"]["x"].values[1, 7], one.log_density(x), rtol=1e-10)
    z, r = faithful["allocations"]["z"].values, faithful["allocations"]["responsibilities"].values
    assert z.dtype == np.uint8
    new, clusters = (
        faithful["posterior_predictive"]["x"].values,
        faithful["allocations"]["z_predictive"].values,
    )
    assert_allclose(new.mean(axis=(0, 1, 2)), x.mean(), rtol=0.01)
    assert_allclose(
        new[clusters == 0].mean(axis=0),
        faithful["posterior"]["means"].values[:, :, 0].mean(axis=(0, 1)),
        rtol=0.01,
    )
    assert_allclose(r.sum(axis=1), 1)
    assert_allclose((z == 0).mean(axis=(0, 1)), r[:, 0], atol=0.06)


def test_the_same_key_gives_the_same_draws_and_another_others(faithful):
    model, x = bm.MixtureModel(2, prior=None), bm.datasets.load("old_faithful")
    options = {"method": "gibbs", "n_warmup": 200, "n_draws": 400}
    again = bm.sample_posterior(model, x, key=0, **options)
    assert_array_equal(again["posterior"]["means"], faithful["posterior"]["means"])
    other = bm.sample_posterior(model, x, key=1, **options)
    assert not np.array_equal(other["posterior"]["means"], faithful["posterior"]["means"])


def test_a_second_call_compiles_nothing():
    from bayesmix.chains import _advance

    model, rng = bm.MixtureModel(2, "VVI", prior="weak"), np.random.default_rng(0)
    options = {"method": "gibbs", "n_warmup": 50, "n_draws": 50, "n_chains": 2}
    bm.sample_posterior(model, rng.normal(size=(50, 2)), key=0, **options)
    before = _advance._cache_size()
    bm.sample_posterior(bm.MixtureModel(2, "VVI", prior="weak"), rng.normal(size=(50, 2)), key=1, **options)
    assert _advance._cache_size() == before


def test_given_labels_hold(faithful):
    x = bm.datasets.load("old_faithful")
    labels = np.full(len(x), -1)
    labels[:20] = (x["waiting"][:20] > 68).astype(int)
    tree = bm.sample_posterior(
        bm.MixtureModel(2, prior="weak"), x, key=0, method="gibbs", n_warmup=100, n_draws=200, labels=labels
    )  # fmt: skip
    assert (tree["allocations"]["z"].values[:, :, :20] == labels[:20]).all()
    weights = np.sort(tree["posterior"]["weights"].values.mean(axis=(0, 1)))
    assert_allclose(weights, np.sort(faithful["posterior"]["weights"].values.mean(axis=(0, 1))), atol=0.02)
    assert (
        tree["posterior"]["means"].values[..., 0, 1].max() < 68
    )  # cluster 0 is the short waits, in every draw


# Concentrations, known clusters of eight points, weights, and of each cluster the first that it may exchange labels with.
TOLD = {
    "a known label": (1.0, [0] + [-1] * 7, None, [0, 1]),
    "unequal concentrations": ((4.0, 1.0), [-1] * 8, None, [0, 1]),
    "two of three alike": ((3.0, 1.0, 1.0), [-1] * 8, None, [0, 1, 1]),
    "one of three named": (1.0, [-1] * 6 + [1, 1], None, [0, 1, 0]),
    "a label without weight": (1.0, [0] + [-1] * 7, [0, 1, 1, 1, 1, 1, 1, 1], [0, 0]),
}


def test_relabelling_is_of_all_that_has_labels():
    """z of new points too; and the share of permuted draws is that of the permutation, however often it is undone."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 30), rng.normal(8, 1, 30)])
    model = bm.MixtureModel(2, "V", "weak")
    options = {"key": 1, "method": "gibbs", "n_chains": 2, "n_warmup": 50, "n_draws": 100, "permute": True}
    tree = bm.sample_posterior(model, x, predictive=True, **options)
    for some in (tree, bm.relabel(tree, "stephens"), bm.relabel(tree, "order")):
        moved = (some["sample_stats"]["permutation"].values != np.arange(2)).any(axis=-1).mean()
        assert 0.2 < moved < 0.8
        assert some["posterior"].attrs["share_permuted"] == moved
        own = some["posterior"]["means"].values[..., 0]
        z = some["allocations"]["z_predictive"].values
        away = some["posterior_predictive"]["x"].values[..., 0] - np.take_along_axis(
            own, z.astype(int), axis=2
        )
        assert abs(away).max() < 6


def test_a_known_label_of_a_row_of_weight_zero_says_nothing():
    x = np.random.default_rng(0).normal(size=20)
    given, weight = np.full(20, -1), np.ones(20)
    given[0] = weight[0] = 0
    options = {"key": 1, "method": "gibbs", "n_chains": 2, "n_warmup": 20, "n_draws": 200, "permute": True}
    tree = bm.sample_posterior(
        bm.MixtureModel(2, "V", "weak"), x, labels=given, sample_weight=weight, **options
    )
    assert "given" not in tree["observed_data"]
    assert tree["posterior"].attrs["exchangeable"] == [0, 0]
    share = (tree["allocations"]["z"].values[..., 0] == 0).mean()
    assert_allclose(tree["allocations"]["responsibilities"].values[0, 0], share, atol=0.15)


def test_a_density_of_nothing_in_all_draws_is_no_nan():
    tree = bm.sample_posterior(
        bm.MixtureModel(1, "V", "weak"),
        np.arange(9.0),
        key=0,
        method="gibbs",
        n_chains=1,
        n_draws=20,
        n_warmup=5,
    )
    found = bm.log_density(tree, [[1e160]])
    assert [found[name].item() for name in ("mean", "lower", "upper")] == [-np.inf] * 3


@pytest.mark.parametrize("case", TOLD)
def test_labels_that_mean_something_are_kept(case):
    """By every method, against all allocations; and the evidence is the same."""
    concentration, given, weight, alike = TOLD[case]
    k, given = len(alike), np.array(given)
    x = np.random.default_rng(0).normal(size=(8, 1)) + np.array([0, 0, 0, 0, 1.5, 1.5, 1.5, 1.5])[:, None]
    prior = bm.ConjugatePrior.of(
        mean=[0.7], degrees_of_freedom=5, scale=2.0, mean_count=0.3, concentration=concentration
    )
    counted = slice(None) if weight is None else np.array(weight) > 0
    exact = enumerate_posterior(x[counted], prior, k, "V", given[counted])
    options = {"key": 1, "method": "gibbs", "n_warmup": 200, "n_draws": 1500, "permute": True}
    options |= {"labels": given, "sample_weight": weight}
    model = bm.MixtureModel(k, "V", prior)
    tree = bm.sample_posterior(model, x, **options)
    kept = [j for j in range(k) if alike.count(alike[j]) == 1]
    if kept and len(kept) < k:
        assert tree["posterior"].attrs["share_permuted"] > 0.1
    raw = bm.sample_posterior(model, x, relabelling=None, **options)
    for some in (tree, *(bm.relabel(raw, method) for method in METHODS)):
        assert some["posterior"].attrs["exchangeable"] == alike
        if kept:
            assert (some["allocations"]["z"].values[..., given >= 0] == given[given >= 0]).all()
        for name in ("weights", "means"):
            mean, error = errors(some["posterior"][name].values[:, :, kept])
            assert (np.abs(mean - getattr(exact, name)[kept]) < 4.5 * error).all()
        r = some["allocations"]["responsibilities"].values[counted]
        assert_allclose(r[:, kept], exact.responsibilities[:, kept], atol=0.03)
    for some in (tree, raw):
        found = bm.log_evidence(some, key=0)
        assert abs(found.value - exact.log_evidence) < max(4 * found.standard_error, 0.02)


def switched():
    """A posterior of four clusters, and the same with the labels of each draw permuted: 3-cycles among them."""
    m = bm.GaussianMixture.of(
        [0.25] * 4, [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 3.0]], [np.eye(2) * 0.3] * 4
    )
    x, _ = m.simulate(200, key=1)
    options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 100, "n_chains": 2, "init": m}
    plain = bm.sample_posterior(bm.MixtureModel(4, prior="weak"), x, relabelling=None, **options)
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((2, 100, 4)), axis=-1)
    tree = plain.copy(deep=True)
    for name, trailing in (("weights", 0), ("means", 1), ("covariances", 2)):
        values = plain["posterior"][name].values
        index = order.reshape(*order.shape, *(1,) * trailing)
        tree["posterior"][name].values = np.take_along_axis(values, index, axis=2)
    z = plain["allocations"]["z"].values.astype(int)
    tree["allocations"]["z"].values = np.take_along_axis(np.argsort(order, axis=-1), z, axis=2).astype(
        np.uint8
    )
    return plain, tree, order


@pytest.mark.parametrize("method", METHODS)
def test_known_permutations_are_undone(method):
    plain, tree, order = switched()
    kept = tree.copy(deep=True)
    undone = bm.relabel(tree, method)
    # order[t] is which old cluster the new t is; so undoing it, up to one global permutation, is its inverse.
    composed = np.take_along_axis(order, undone["sample_stats"]["permutation"].values, axis=-1)
    if method != "order":  # means of two clusters are as good as equal along the first feature
        assert (composed == composed[0, 0]).all()
        first = composed[0, 0]
        for name in ("weights", "means", "covariances"):
            assert_array_equal(undone["posterior"][name].values, plain["posterior"][name].values[:, :, first])
        z = plain["allocations"]["z"].values
        assert_array_equal(undone["allocations"]["z"].values, np.argsort(first)[z])
        assert undone["posterior"].attrs["certainty"] > 0.9
    else:
        assert (np.diff(undone["posterior"]["means"].values[..., 0], axis=-1) >= 0).all()
    for group in ("sample_stats", "log_likelihood"):
        for name, values in kept[group].data_vars.items():
            assert_array_equal(undone[group][name], values)
    for group, dataset in kept.children.items():  # the original is as it was
        for name, values in dataset.data_vars.items():
            assert_array_equal(tree[group][name], values)


def test_chains_that_switch_are_summarised_as_chains_that_do_not(faithful):
    model, x = bm.MixtureModel(2, prior="weak"), bm.datasets.load("old_faithful")
    options = {"key": 3, "method": "gibbs", "n_warmup": 200, "n_draws": 400, "permute": True}
    raw = bm.sample_posterior(model, x, relabelling=None, **options)
    assert np.ptp(raw["posterior"]["means"].values.mean(axis=(0, 1)), axis=0)[1] < 5  # 80 and 54 mixed up
    undone = bm.sample_posterior(model, x, **options)
    assert 0.3 < undone["posterior"].attrs["share_permuted"] < 0.7
    ours = undone["posterior"]["means"].mean(["chain", "draw"]).values
    theirs = faithful["posterior"]["means"].mean(["chain", "draw"]).values
    assert_allclose(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()], rtol=0.01)


@pytest.mark.slow
def test_a_program_is_a_prior_and_its_sites_are_kept():
    """The model of posteriordb's low_dim_gauss_mix, whose published means are 2.74 and -2.75 (for other data)."""

    def program():
        means = numpyro.sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
        theta = numpyro.sample("theta", dist.Beta(5, 5))
        weights = jax.numpy.stack([theta, 1 - theta])
        covariance = bm.GaussianMixture.of(
            [0.5, 0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]], covariance="V"
        ).covariance
        from dataclasses import replace

        return bm.GaussianMixture(weights, means[:, None], replace(covariance, values=sigma**2))

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-2.7, 1.0, 120), rng.normal(2.8, 1.0, 80)])
    model, options = bm.MixtureModel(2, "V", program), {"key": 0, "n_warmup": 400, "n_draws": 400}
    tree = bm.sample_posterior(model, x, **options)
    assert {"mu", "sigma", "theta", "weights", "means", "covariances"} <= set(tree["posterior"].data_vars)
    means = np.sort(tree["posterior"]["means"].values.mean(axis=(0, 1))[:, 0])
    assert_allclose(means, [-2.7, 2.8], atol=0.3)
    assert set(tree["log_prior"].data_vars) == {"mu", "sigma", "theta"}
    # Given clusters decide the names, in every chain.
    labels = np.where(np.arange(200) % 10 == 0, (x < 0).astype(int), -1)
    tree = bm.sample_posterior(model, x, labels=labels, relabelling=None, **options)
    assert (tree["allocations"]["z"].values[..., labels >= 0] == labels[labels >= 0]).all()
    assert (tree["posterior"]["means"].values[..., 0] > 0).all(axis=(0, 1)).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"init is for .* chains of a program start at the best of draws"):
        bm.sample_posterior(model, x, init=bm.mixtures(tree), **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "hmc"}, "method must be one of 'nuts', 'gibbs'"),
        ({"relabelling": "no"}, "relabelling must be one of"),
        ({"labels": [0, 1]}, "labels must be 272 whole numbers"),
        ({"labels": np.full(272, 2)}, "a cluster below 2"),
        ({"target_accept": 2.0}, "target_accept must be between 0 and 1"),
        ({"target_accept": None}, "target_accept must be between 0 and 1, not None"),
        ({"n_chains": 0}, "n_chains must be at least 1"),
        ({"thinning": 0}, "thinning must be at least 1"),
        ({"thinning": 2, "method": "laplace"}, "draws of 'laplace' are independent"),
        ({"init": "kmeans"}, "init must be a GaussianMixture"),
        ({"permute": True, "method": "nuts"}, "permute is for method='gibbs'"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        bm.sample_posterior(bm.MixtureModel(2, prior="weak"), bm.datasets.load("old_faithful"), **{"key": 0, "method": "gibbs"} | options)  # fmt: skip


@pytest.mark.parametrize("method", ["gibbs", "nuts"])
def test_thinning_keeps_the_last_of_so_many_steps(method):
    x = bm.datasets.load("old_faithful").to_numpy()[:100]
    options = {"key": 0, "method": method, "n_chains": 2, "relabelling": None}
    model = bm.MixtureModel(2, prior="weak")
    every = bm.sample_posterior(model, x, n_warmup=60, n_draws=60, thinning=1, **options)
    third = bm.sample_posterior(model, x, n_warmup=60, n_draws=20, thinning=3, **options)
    for name in ("weights", "means", "covariances"):
        assert_allclose(third["posterior"][name], every["posterior"][name][:, 2::3], rtol=1e-9)
    assert third["posterior"].attrs["thinning"] == 3
    usual = bm.sample_posterior(model, x, n_warmup=0, n_draws=2, **options)
    assert usual["posterior"].attrs["thinning"] == {"gibbs": 3, "nuts": 2}[method]
    if method == "nuts":  # what is said of a draw is said of all that led to it
        of, steps = third["sample_stats"], every["sample_stats"]
        three = {name: steps[name].values.reshape(2, 20, 3) for name in steps.data_vars}
        assert_allclose(of["n_steps"], three["n_steps"].sum(axis=2))
        assert_allclose(of["acceptance_rate"], three["acceptance_rate"].mean(axis=2), rtol=1e-9)
        assert_allclose(of["energy"], three["energy"][:, :, 2], rtol=1e-9)
        change = np.square(np.diff(steps["energy"].values))
        assert_allclose(steps["squared_energy_change"][:, 1:], change, rtol=1e-9)
        moved = change[:, 2:].reshape(2, 19, 3).mean(axis=2)
        assert_allclose(of["squared_energy_change"][:, 1:], moved, rtol=1e-9)


def test_a_divergence_between_draws_is_told():
    """Steps that are tuned to be too long."""
    model = bm.MixtureModel(4, prior="hierarchical")
    options = {"key": 0, "n_chains": 1, "n_warmup": 25, "target_accept": 0.5, "relabelling": None}
    with pytest.warns(UserWarning, match="in [0-9]+ of 200 draws transitions diverged"):
        every = bm.sample_posterior(model, bm.datasets.load("galaxies"), n_draws=200, thinning=1, **options)
    with pytest.warns(UserWarning, match="in [0-9]+ of 40 draws transitions diverged"):
        fifth = bm.sample_posterior(model, bm.datasets.load("galaxies"), n_draws=40, thinning=5, **options)
    diverging = every["sample_stats"]["diverging"].values.reshape(1, 40, 5)
    some = diverging.any(axis=2)
    assert diverging[:, :, 4].sum() < some.sum()  # of most the fifth did not
    assert (fifth["sample_stats"]["diverging"].values == some).all()


def test_structures_without_a_site_and_programs_under_gibbs_are_refused_by_name():
    x = bm.datasets.load("old_faithful")
    with pytest.raises(
        ValueError,
        match=r"the structure VEV has no NumPyro site for a ConjugatePrior.*EII, VII, EEI, VVI, EEE, VVV",
    ):
        bm.sample_posterior(bm.MixtureModel(2, "VEV", "weak"), x, key=0)
    with pytest.raises(ValueError, match="gibbs needs a conjugate prior"):
        bm.sample_posterior(bm.MixtureModel(2, "VVV", lambda: None), x, key=0, method="gibbs")
    with pytest.raises(ValueError, match="group 'posterior'"):
        bm.relabel("no tree")


@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI", "EEI", "VII", "EII"])
def test_the_likelihood_counts_given_clusters_and_weights(name):
    """Against the mixture's own methods, in the units of the loop."""
    from cases import data, mixture

    from bayesmix.chain_starts import evidence_of
    from bayesmix.density import precision_factor
    from bayesmix.devices import double_precision
    from bayesmix.potential import log_likelihood
    from bayesmix.problem import inside, prepare

    x, z = data(name)
    weight = np.arange(len(x)) % 3 + 0.5
    given = np.where(np.arange(len(x)) < 30, z, -1)
    problem = prepare(3, name, x, weight, 1e-4)
    evidence = evidence_of(bm.MixtureModel(3, name), problem, None, given)
    inner = inside(problem, mixture(name))
    with double_precision():
        factor = precision_factor(inner.covariance, inner.n_features)[0]
        total = float(log_likelihood(jax.tree.map(jax.numpy.asarray, inner), factor, evidence))
    joint, density = mixture(name).log_joint(x), mixture(name).log_density(x)
    expected = np.where(given >= 0, joint[np.arange(len(x)), given], density) @ weight
    assert_allclose(total + problem.units.log_volume * weight.sum(), expected, rtol=1e-10)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("most", [2**22, 0])
def test_mean_responsibilities_are_those_of_the_relabelled_draws_however_they_are_found(
    monkeypatch, known, most
):
    """Of all draws as they were sampled, put right for those whose labels move; or of all once more."""
    monkeypatch.setattr(pointwise, "_MOVED", most)
    x = bm.datasets.load("old_faithful").to_numpy()
    labels = np.where(np.arange(len(x)) == 0, 0, -1) if known else None
    options = {"key": 0, "method": "gibbs", "n_chains": 2, "n_warmup": 50, "n_draws": 100, "labels": labels}
    model = bm.MixtureModel(3, prior="weak")
    ours = bm.sample_posterior(model, x, permute=True, **options)
    raw = bm.sample_posterior(model, x, permute=True, relabelling=None, **options)
    assert ours["posterior"].attrs["share_permuted"] > 0.05
    theirs = bm.relabel(raw)["allocations"]["responsibilities"]
    assert_allclose(ours["allocations"]["responsibilities"], theirs, atol=1e-13)


def test_threads_of_a_user_sample_one_after_another():
    x = bm.datasets.load("galaxies")
    options = {"key": 0, "n_chains": 2, "n_warmup": 50, "n_draws": 50}
    models = [bm.MixtureModel(k, "V", "weak") for k in (1, 2)] * 2
    alone = [bm.sample_posterior(model, x, **options) for model in models[:2]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda model: bm.sample_posterior(model, x, **options), models))
    for tree, other in zip(together, alone * 2, strict=True):
        assert_array_equal(tree["posterior"]["means"], other["posterior"]["means"])


def test_labels_that_are_masked_are_not_known():
    x = bm.datasets.load("galaxies")
    labels, mask = np.zeros(len(x), int), np.arange(len(x)) > 5
    options = {"key": 0, "method": "gibbs", "n_chains": 1, "n_warmup": 10, "n_draws": 20}
    model = bm.MixtureModel(2, "V", "weak")
    a, b = (
        bm.sample_posterior(model, x, labels=given, **options)
        for given in (np.ma.array(labels, mask=mask), np.where(mask, -1, labels))
    )
    assert_array_equal(a["allocations"]["z"], b["allocations"]["z"])
    with pytest.raises(ValueError, match="labels must be 82 whole numbers"):
        bm.sample_posterior(model, x, labels=["a"] * 82, **options)
    with pytest.raises(ValueError, match="they are uint64 of shape"):
        bm.sample_posterior(model, x, labels=np.full(82, 2**64 - 1, np.uint64), **options)


def program_with(name, law):
    """Two clusters of which a site of this name is the weight of the first."""

    def program():
        share = jnp.clip(numpyro.sample(name, law) * 1.0, 0.1, 0.9)
        means = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        return bm.GaussianMixture(jnp.array([share, 1 - share]), means[:, None], Covariance(jnp.ones(1), "E"))

    return program


@pytest.mark.parametrize("name", ["chain", "draw", "cluster", "feature", "obs_id", "x", "z"])
def test_a_site_cannot_have_the_name_of_a_dimension_or_of_the_points(name):
    model = bm.MixtureModel(2, "E", program_with(name, dist.Beta(2, 2)))
    for call in (
        lambda: bm.sample_posterior(model, np.arange(9.0), key=0, n_warmup=9, n_draws=9),
        lambda: model.prior_predictive(3, key=0),
    ):
        with pytest.raises(
            ValueError, match=f"prior has a site {name!r}, which is the name of something else"
        ):
            call()


def test_a_discrete_site_is_refused_by_name():
    model = bm.MixtureModel(2, "E", program_with("coin", dist.Bernoulli(0.5)))
    with pytest.raises(ValueError, match="prior has a site 'coin' that no gradient can follow, a Bernoulli"):
        bm.sample_posterior(model, np.arange(9.0), key=0, n_warmup=9, n_draws=9)


def test_readers_of_a_posterior_go_by_the_names_of_its_dimensions(faithful):
    posterior = faithful
    for order in (("draw", "chain", ...), (..., "chain", "draw")):
        turned = posterior.map_over_datasets(
            lambda group: group.transpose(*order, missing_dims="ignore")  # noqa: B023
        )
        assert_array_equal(bm.mixtures(turned).means, bm.mixtures(posterior).means)
        assert_array_equal(bm.mixtures(turned).covariances, bm.mixtures(posterior).covariances)
        again, expected = bm.relabel(turned, "order"), bm.relabel(posterior, "order")
        for group, name in (("posterior", "means"), ("allocations", "z"), ("sample_stats", "lp")):
            assert again[group][name].transpose(*expected[group][name].dims).equals(expected[group][name])


def test_what_a_tree_lacks_is_said_by_name(faithful):
    posterior = faithful
    bare = posterior.copy()
    del bare["log_likelihood"]
    with pytest.raises(
        ValueError, match="posterior 'b' has no x in a group 'log_likelihood'; sample it with pointwise"
    ):
        bm.compare({"a": posterior, "b": bare}, key=0)
    with pytest.raises(ValueError, match="mixtures needs a tree with a group 'prior'"):
        bm.mixtures(posterior, group="prior")
    del bare["observed_data"]
    with pytest.raises(ValueError, match="relabel needs 'x' in a group 'observed_data'"):
        bm.relabel(bare)
    n = posterior["observed_data"].sizes["obs_id"]
    with pytest.raises(ValueError, match="of one row at least; they are of none"):
        bm.coclustering(posterior, rows=np.zeros(n, bool))
    with pytest.raises(ValueError, match=r"One chain is isel"):
        bm.diagnose(posterior.isel(chain=0))


def test_a_weight_of_two_is_a_value_that_repeats():
    x, weight = np.array([-1.3, -0.4, 0.2, 1.9, 2.6, 3.1]), np.array([1, 3, 1, 1, 1, 1])
    repeated = np.repeat(x, weight)
    assert spacing(x) == 0
    assert spacing(x, weight) == spacing(repeated) == 0.5


def test_a_site_that_is_called_as_a_parameter_has_its_dimensions():
    def program():
        with numpyro.plate("cluster", 2):
            means = numpyro.sample("means", dist.Normal(0, 5).expand([2, 1]).to_event(1))
        return bm.GaussianMixture(jnp.ones(2) / 2, means, Covariance(jnp.ones(1), "E"))

    model = bm.MixtureModel(2, "E", program)
    posterior = bm.sample_posterior(model, np.arange(9.0), key=0, n_warmup=30, n_draws=9)
    for group in (posterior["posterior"], model.prior_predictive(3, key=0)["prior"]):
        assert group["means"].dims == ("chain", "draw", "cluster", "feature")
    assert bm.mixtures(posterior).means.shape[2:] == (2, 1)
