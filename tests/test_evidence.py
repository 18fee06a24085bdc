"""The evidence against exact sums over all allocations, its densities against the prior's, and the comparison of models."""

import itertools
import math

import jax
import numpy as np
import pytest
from cases import data
from numpy.testing import assert_allclose
from scipy import special

import bayesmix as bm
from bayesmix.conjugate import conditional_law, draw, log_densities, mixture_of, parameters_of
from bayesmix.density import precision_factor
from bayesmix.devices import double_precision
from bayesmix.initialize import known_statistics
from bayesmix.keys import key_data
from bayesmix.penalty import log_prior, penalty, rescaled
from bayesmix.problem import prepare

SITED = ["VVV", "EEE", "VVI", "EEI", "VII", "EII"]


def grid_evidence(values, counts, prior, k, alpha):
    """log p(x) of one feature by a sum over how many points of each distinct value fall into each cluster.

    Points of one value are exchangeable, so an allocation is a composition of each count into k parts, weighted by a
    multinomial coefficient: an exact grid over (parts of value 1) x (parts of value 2) x ...
    """
    parts = [np.array([c for c in itertools.product(range(n + 1), repeat=k) if sum(c) == n]) for n in counts]
    index = np.meshgrid(*(np.arange(len(p)) for p in parts), indexing="ij")
    chosen = np.stack([p[i.ravel()] for p, i in zip(parts, index)])  # (values, allocations, k)
    logs = sum(special.gammaln(n + 1) for n in counts) - special.gammaln(chosen + 1).sum(axis=(0, 2))
    n = chosen.sum(axis=0)
    alpha = np.broadcast_to(alpha, (k,))
    logs = logs + special.gammaln(alpha.sum()) - special.gammaln(alpha.sum() + sum(counts))
    logs += (special.gammaln(alpha + n) - special.gammaln(alpha)).sum(axis=1)
    x = np.asarray(values, float)[:, None, None]
    kappa, nu, m, s = prior.mean_count, prior.degrees_of_freedom, float(prior.mean[0]), float(prior.scale)
    first, second = (chosen * x).sum(axis=0), (chosen * x**2).sum(axis=0)
    center = (kappa * m + first) / (kappa + n)
    scale = s + second + kappa * m**2 - (kappa + n) * center**2
    own = -n / 2 * math.log(math.pi) + 0.5 * np.log(kappa / (kappa + n))
    own += special.gammaln((nu + n) / 2) - special.gammaln(nu / 2)
    own += nu / 2 * math.log(s) - (nu + n) / 2 * np.log(scale)
    return special.logsumexp(logs + own.sum(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, (0.7, 1.5, 2.5)])
def test_three_overlapping_clusters_against_an_exact_grid(alpha):
    """Labellings overlap here, so that log k! added to one of them would be wrong."""
    values, counts = [-1.0, 0.2, 1.5], [9, 6, 9]
    prior = bm.ConjugatePrior.of(
        mean=[0.2], degrees_of_freedom=3.0, scale=0.8, mean_count=0.4, concentration=alpha
    )
    exact = grid_evidence(values, counts, prior, 3, alpha)
    model = bm.MixtureModel(3, "V", prior)
    posterior = bm.sample_posterior(
        model, np.repeat(values, counts), key=0, method="gibbs", n_warmup=200, n_draws=1000
    )
    found = bm.log_evidence(posterior, key=1)
    assert found.standard_error < 0.05
    assert abs(found.value - exact) < 4.5 * found.standard_error


def test_the_evidence_of_one_cluster_is_the_closed_form():
    """In units far from one, so that the way back to the data's own counts."""
    prior = bm.ConjugatePrior.of(mean=[1e4], degrees_of_freedom=3.0, scale=8e5, mean_count=0.4)
    values, counts = [9e3, 1.02e4, 1.15e4], [9, 6, 9]
    posterior = bm.sample_posterior(
        bm.MixtureModel(1, "V", prior), np.repeat(values, counts), key=0, method="gibbs", n_draws=100
    )
    found = bm.log_evidence(posterior, key=1)
    assert_allclose(found.value, grid_evidence(values, counts, prior, 1, 1.0), atol=1e-8)
    assert found.standard_error < 1e-8
    assert str(found).startswith("-2")


@pytest.mark.parametrize("name", SITED)
def test_the_law_given_allocations_is_bayes_theorem(name):
    """p(x, z | θ) p(θ) / p(θ | z, x) does not depend on θ, and p(θ) is the prior that EM's objective has."""
    x, z = data(name)
    row = bm.MixtureModel(3, name).structure
    problem = prepare(3, name, x, None, 1e-4)
    prior = bm.weak_prior(x, n_components=3, covariance=name)
    inner = rescaled(prior, problem.units, row)
    statistics = known_statistics(problem.x, problem.w, z, 3, row)
    nothing = jax.tree.map(np.zeros_like, statistics)
    constants = []
    with double_precision():
        laws = jax.jit(lambda: [conditional_law(s, inner, row) for s in (statistics, nothing)])()
        thetas = jax.jit(jax.vmap(lambda key: draw(key, laws[0], row)))(key_data(0, 3))
        logs = jax.jit(jax.vmap(lambda t: [log_densities(law, t, row) for law in laws]))(thetas)
        every = mixture_of(thetas, row)
        assert_allclose(np.asarray(parameters_of(every).cholesky), np.asarray(thetas.cholesky), rtol=1e-8)
        (after, after_all), (first, first_all) = logs
        for s in range(3):
            one = jax.tree.map(lambda leaf, s=s: leaf[s], every)
            log_p = float(np.trace(first[s]) + first_all[s])
            factor = precision_factor(one.covariance, one.n_features)
            expected = float(log_prior(penalty(prior, problem.units, row, 3), one, factor))
            assert_allclose(log_p, expected, rtol=1e-10)
            joint = one.log_joint(problem.x)[np.arange(len(x)), z].sum()
            constants.append(joint + log_p - float(np.trace(after[s]) + after_all[s]))
    assert_allclose(constants, constants[0], rtol=1e-10)


def test_the_sum_over_labellings_is_the_permanent():
    from bayesmix.evidence import _log_mean_labelling

    logs = np.random.default_rng(0).normal(size=(4, 4)) * 3
    every = [sum(logs[j, p[j]] for j in range(4)) for p in itertools.permutations(range(4))]
    with double_precision():
        assert_allclose(_log_mean_labelling(logs), special.logsumexp(every) - math.log(24), rtol=1e-12)


def test_models_are_compared_by_both():
    x = bm.datasets.load("galaxies")
    options = {"key": 0, "method": "gibbs", "n_warmup": 100, "n_draws": 200}
    runs = {k: bm.sample_posterior(bm.MixtureModel(k, "V", "weak"), x, **options) for k in (1, 3)}
    table = bm.compare(runs, key=1)
    assert list(table.index) == [3, 1]
    assert_allclose(table["probability"].sum(), 1)
    assert table.loc[3, "probability"] > 0.99
    assert table.loc[3, "log_evidence"] > table.loc[1, "log_evidence"] + 5
    assert table.loc[3, "elpd_loo"] > table.loc[1, "elpd_loo"]
    with pytest.raises(ValueError, match=r"posteriors must be a dict.*at least two"):
        bm.compare({"one": runs[1]}, key=1)
    other = bm.sample_posterior(bm.MixtureModel(1, "V", "weak"), np.asarray(x) * 2, **options)
    with pytest.raises(ValueError, match="'b' is of other data than 'a'"):
        bm.compare({"a": runs[1], "b": other}, key=1)


def test_what_has_no_evidence_is_refused():
    x = bm.datasets.load("galaxies")
    tree = bm.sample_posterior(
        bm.MixtureModel(1, "V", "weak"), x, key=0, method="gibbs", n_draws=10, n_chains=2
    )
    with pytest.raises(ValueError, match="100 draws, and 8 of each chain; the posterior has 20, 10 of"):
        bm.log_evidence(tree, key=0)
    tree["posterior"].attrs["prior"] = "lkj"
    tree = tree.isel(draw=np.zeros(100, int))
    with pytest.raises(ValueError, match="under a conjugate prior"):
        bm.log_evidence(tree, key=0)


@pytest.mark.filterwarnings("ignore:Found chain dimension")
@pytest.mark.parametrize(("chains", "draws"), [(100, 1), (50, 2), (15, 7), (300, 8)])
def test_many_short_chains_are_enough_or_refused(chains, draws):
    model = bm.MixtureModel(2, "V", "weak")
    options = {"key": 0, "method": "gibbs", "n_warmup": 200}
    x = np.random.default_rng(0).normal(size=12)
    tree = bm.sample_posterior(model, x, n_chains=chains, n_draws=draws, **options)
    if draws < 8:
        with pytest.raises(ValueError, match=f"8 of each chain; the posterior has .*, {draws} of each"):
            bm.log_evidence(tree, key=0)
    else:
        short = bm.log_evidence(tree, key=0)
        long = bm.log_evidence(bm.sample_posterior(model, x, n_draws=1200, **options), key=0)
        assert abs(short.value - long.value) < 4 * np.hypot(short.standard_error, long.standard_error) < 0.2


def enumerated(x, prior, k, alpha, given):
    """log p(x, given) and the posterior means of the weights, by a sum over all allocations of one feature."""
    alpha = np.broadcast_to(alpha, (k,)).astype(float)
    kappa, nu, m, s = prior.mean_count, prior.degrees_of_freedom, float(prior.mean[0]), float(prior.scale)
    logs, weights = [], []
    for z in itertools.product(*(range(k) if g < 0 else [g] for g in given)):
        n = np.bincount(z, minlength=k)
        first, second = np.bincount(z, x, k), np.bincount(z, x * x, k)
        center = (kappa * m + first) / (kappa + n)
        scale = s + second + kappa * m * m - (kappa + n) * center**2
        own = -n / 2 * math.log(math.pi) + 0.5 * np.log(kappa / (kappa + n)) + special.gammaln((nu + n) / 2)
        own += nu / 2 * math.log(s) - (nu + n) / 2 * np.log(scale) - special.gammaln(nu / 2)
        own += special.gammaln(alpha + n) - special.gammaln(alpha)
        logs.append(own.sum() + special.gammaln(alpha.sum()) - special.gammaln(alpha.sum() + len(x)))
        weights.append((alpha + n) / (alpha.sum() + len(x)))
    value = special.logsumexp(logs)
    return value, np.exp(np.array(logs) - value) @ weights


APART = np.array([-10, -9.5, 0.0, 0.4, 10.0, 10.5])
NAMED = {
    "one named": (1.0, [0] + [-1] * 5),
    "unequal": ((1.0, 2.0, 5.0), [-1] * 6),
    "unequal, one named": ((1.0, 2.0, 5.0), [-1, -1, 1, -1, -1, -1]),
    "all named": (1.0, [0, -1, 1, -1, 2, -1]),
}


@pytest.mark.parametrize("case", NAMED)
def test_clusters_apart_of_which_some_are_named_against_all_allocations(case):
    """There chains keep to one labelling, unless Gibbs proposes others."""
    alpha, given = NAMED[case]
    prior = bm.ConjugatePrior.of(
        mean=[0.0], degrees_of_freedom=3, scale=1.0, mean_count=0.05, concentration=alpha
    )
    exact, weights = enumerated(APART, prior, 3, alpha, given)
    model = bm.MixtureModel(3, "V", prior)
    options = {"key": 1, "method": "gibbs", "n_warmup": 100, "n_draws": 1000, "labels": given}
    raw = bm.sample_posterior(model, APART, relabelling=None, permute=True, **options)
    for tree in (raw, bm.relabel(raw)):
        found = bm.log_evidence(tree, key=0)
        assert found.standard_error < 0.1
        assert abs(found.value - exact) < max(4 * found.standard_error, 0.02)
    assert (
        raw["allocations"]["z"].values[:, :, np.array(given) >= 0] == np.array(given)[np.array(given) >= 0]
    ).all()
    assert_allclose(raw["posterior"]["weights"].mean(["chain", "draw"]), weights, atol=0.015)


def test_gibbs_proposes_labellings_where_the_prior_tells_labels_apart():
    alpha = (1.0, 2.0, 5.0)
    prior = bm.ConjugatePrior.of(
        mean=[0.0], degrees_of_freedom=3, scale=1.0, mean_count=0.05, concentration=alpha
    )
    _, weights = enumerated(APART, prior, 3, alpha, [-1] * 6)
    options = {"key": 1, "method": "gibbs", "n_warmup": 100, "n_draws": 1000, "relabelling": None}
    tree = bm.sample_posterior(bm.MixtureModel(3, "V", prior), APART, **options)
    assert_allclose(tree["posterior"]["weights"].mean(["chain", "draw"]), weights, atol=0.015)


def test_a_weight_counts_points_in_a_comparison_and_other_weights_or_labels_are_refused():
    x = np.array([0.0, 0.3, 1.1, 2.5, 3.0, 2.9, 0.7, 1.5, 2.2, -0.3])
    weight = np.array([2, 1, 5, 0, 3, 1, 1, 1, 4, 2])
    prior = bm.ConjugatePrior.of(mean=[1.0], degrees_of_freedom=5, scale=1.5, mean_count=0.3)

    def sampled(k, x, **options):
        model = bm.MixtureModel(k, "V", prior)
        return bm.sample_posterior(model, x, key=5, method="gibbs", n_warmup=200, n_draws=1000, **options)

    weighted = {k: sampled(k, x, sample_weight=weight) for k in (1, 2)}
    ours = bm.compare(weighted, key=0)
    repeated = bm.compare({k: sampled(k, np.repeat(x, weight)) for k in (1, 2)}, key=0)
    for k in (1, 2):
        assert_allclose(ours.loc[k, "elpd_loo"], repeated.loc[k, "elpd_loo"], atol=0.15)
        assert_allclose(ours.loc[k, "se"], repeated.loc[k, "se"], atol=0.15)
        assert_allclose(ours.loc[k, "p_loo"], repeated.loc[k, "p_loo"], atol=0.15)
    plain = sampled(1, x)
    alone = bm.compare({"a": plain, "b": sampled(2, x)}, key=0)
    assert_allclose(alone.loc["a", ["elpd_loo", "se", "p_loo"]].astype(float), arviz_loo(plain), rtol=1e-10)
    with pytest.raises(ValueError, match="posterior 2 is of other weights than 1"):
        bm.compare({1: plain, 2: weighted[2]}, key=0)
    known = sampled(2, x, labels=np.where(x < 1, 0, -1))
    with pytest.raises(ValueError, match="posterior 2 is of other labels than 1"):
        bm.compare({1: plain, 2: known}, key=0)


def arviz_loo(tree):
    import arviz

    found = arviz.loo(tree)
    return [found.elpd, found.se, found.p]
