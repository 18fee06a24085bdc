"""EM with a memory: it never falls, ends where EM ends, in fewer steps, and only where it was asked for or pays."""

import jax
import numpy as np
import pytest
from cases import FEW, K, data, features
from numpy.testing import assert_allclose, assert_array_equal

import bayesmix as bm
from bayesmix import acceleration, cells, drive, groups
from bayesmix.covariance import STRUCTURES
from bayesmix.density import inverse_factor
from bayesmix.devices import double_precision

# M-steps that bring a proposal back into its family, beside those of `FEW`, of which most need none.
FAMILIES = [(name, None) for name in (*FEW, "VEI", "VVE")] + [("VVV", "weak"), ("VEI", "weak")]


def overlapping(n=1000):
    """Three clusters two standard deviations apart, which EM takes thousands of steps for."""
    rng = np.random.default_rng(0)
    return (np.array([-2.0, 0.0, 2.0])[rng.choice(3, n, p=[0.3, 0.4, 0.3])] + rng.normal(size=n))[:, None]


@pytest.mark.parametrize(("name", "prior"), FAMILIES)
def test_it_climbs_to_where_em_ends(name, prior):
    x, z = data(name)
    model = bm.MixtureModel(K, name, prior=prior)
    own, fast = (bm.fit(model, x, init=z, tol=1e-8, accelerate=which) for which in (False, True))
    assert fast.converged, fast.status
    assert len(fast.objective) == fast.n_steps
    assert np.diff(fast.objective).min() >= 0
    assert_allclose(fast.objective[-1], own.objective[-1], atol=1e-6)
    assert_allclose(fast.mixture.weights, own.mixture.weights, atol=2e-3)
    assert_allclose(fast.log_likelihood, fast.mixture.log_density(x).sum(), rtol=1e-12)
    bm.GaussianMixture.of(fast.mixture.weights, fast.mixture.means, fast.mixture.covariances, covariance=name)


@pytest.mark.parametrize(
    ("x", "name", "times"),
    [(None, "VVV", 3), (None, "EEE", 3), (overlapping(), "V", 20)],
    ids=["full", "tied", "one feature"],
)
def test_where_clusters_overlap_it_takes_a_third_of_the_steps_or_less(x, name, times):
    x = bm.datasets.load("old_faithful") if x is None else x
    own, fast = [], []
    for key in range(5):
        pair = [
            bm.fit(bm.MixtureModel(3 if name != "EEE" else 5, name), x, n_starts=1, key=key, accelerate=which)
            for which in (False, True)
        ]
        if abs(pair[0].log_likelihood - pair[1].log_likelihood) < 1e-3:
            own.append(pair[0].n_steps)
            fast.append(pair[1].n_steps)
    assert len(own) >= 4
    assert np.median(fast) * times <= np.median(own)


@pytest.mark.parametrize("name", FEW)
def test_coordinates_lead_to_a_mixture_and_back_and_em_is_their_gradient(name):
    x, z = data(name)
    d = features(name)
    near = bm.fit(bm.MixtureModel(K, name), x, init=z, tol=1e-6).mixture
    plus = bm.fit(bm.MixtureModel(K, name), x, init=near, tol=0, max_steps=1).mixture
    with double_precision():
        storage = near.covariance.storage
        factors = [storage.cholesky(m.covariance.values) for m in (near, plus)]
        inverse, _ = inverse_factor(near.covariance, factors[0], d)
        frame = acceleration._frame(near, factors[0], inverse, np.float64(len(x)))
        vector = frame.vector(plus, factors[1])
        back, factor = frame.at(vector)
        assert_allclose(back.weights, plus.weights, rtol=1e-12)
        assert_allclose(back.means, plus.means, rtol=1e-10, atol=1e-10)
        assert_allclose(back.covariance.values, plus.covariance.values, rtol=1e-10, atol=1e-12)
        assert_allclose(factor, factors[1], rtol=1e-10, atol=1e-12)
        if not STRUCTURES[name].constrained:  # else the gradient has parts that lead out of the family
            slope = jax.grad(lambda v: frame.at(v)[0].log_density(x).sum())(np.zeros_like(vector))
            rest = np.reshape(slope[K + K * d :], factors[0].shape)
            rest = np.tril(rest) if storage.axes == 2 else rest
            slope = np.concatenate([slope[: K + K * d], rest.ravel()])
            # The frame's metric is the complete data's information at θ, to first order in the step.
            assert_allclose(vector, slope, atol=0.05 * np.abs(vector).max())


def test_em_takes_its_own_steps_where_that_is_asked_for_or_cheaper():
    x = bm.datasets.load("old_faithful")
    model = bm.MixtureModel(3)
    own, default = (bm.fit(model, x, n_starts=2, accelerate=which) for which in (False, None))
    assert_array_equal(own.objective, default.objective)
    assert bm.fit(model, x, n_starts=1, tol=0, max_steps=7).n_steps == 7


def test_it_begins_where_it_pays(monkeypatch):
    x = bm.datasets.load("old_faithful")
    asked = bm.fit(bm.MixtureModel(3), x, n_starts=2, accelerate=True)
    monkeypatch.setattr(acceleration, "_COMPILING", 0)
    by_itself = bm.fit(bm.MixtureModel(3), x, n_starts=2)
    assert_array_equal(by_itself.objective, asked.objective)


def test_what_is_held_stays():
    x, z = data("VVV")
    fit = bm.fit(bm.MixtureModel(K, "VVV"), x, init=z, hold="weights", accelerate=True)
    assert_array_equal(fit.mixture.weights, np.full(K, 1 / K))
    own = bm.fit(bm.MixtureModel(K, "VVV"), x, init=z, hold="weights", accelerate=False)
    assert_allclose(fit.log_likelihood, own.log_likelihood, atol=1e-3)


def test_annealing_takes_it_too():
    x = bm.datasets.load("old_faithful")
    own, fast = (
        bm.fit(bm.MixtureModel(3), x, method="annealed", accelerate=which).log_likelihood
        for which in (False, True)
    )
    assert_allclose(own, fast, atol=1e-3)


def test_a_search_takes_it():
    x = bm.datasets.load("old_faithful")
    kinds = {"n_components": [2, 3, 4], "covariance": ["EEE", "VVI", "VVE"]}
    own, fast = (bm.search(x, **kinds, accelerate=which) for which in (False, True))
    assert fast.best.mixture.structure == own.best.mixture.structure
    columns = ["n_components", "covariance"]
    pair = own.table.merge(fast.table, on=columns, suffixes=("", "_fast"))
    assert len(pair) == 9
    assert (pair.log_likelihood_fast > pair.log_likelihood - 1e-3).mean() >= 8 / 9
    assert pair.n_steps_fast.sum() < pair.n_steps.sum() / 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accelerate": "yes"}, "True, False or None; it is 'yes'"),
        ({"accelerate": True, "tol": 0}, "tol=0 takes EM's own steps"),
        ({"accelerate": True, "method": "hard"}, "method='hard'"),
        ({"accelerate": True, "method": "stochastic"}, "method='stochastic'"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        bm.fit(bm.MixtureModel(2), bm.datasets.load("old_faithful"), **options)
    if "method" not in options:
        with pytest.raises(ValueError, match=said):
            bm.search(bm.datasets.load("old_faithful"), **options)


@pytest.mark.parametrize("known", [0, 3, 8])
def test_directions_are_those_of_bfgs_wherever_the_oldest_step_is_kept(known):
    rng = np.random.default_rng(known)
    q, rows = 12, 8
    root = rng.normal(size=(q, q))
    steps = rng.normal(size=(rows, q))
    changes = steps @ (root @ root.T / q + 0.1 * np.eye(q))
    steps[: rows - known], changes[: rows - known] = 0, 0  # nothing is remembered yet
    if known == rows:
        changes[4] *= -1  # f grew along it
    residual = rng.normal(size=q)
    vector, shares = residual.copy(), np.zeros(rows)
    curved = [i for i in range(rows) if changes[i] @ steps[i] > 1e-3 * steps[i] @ steps[i]]
    assert len(curved) == known - (known == rows)
    for i in reversed(curved):
        shares[i] = steps[i] @ vector / (steps[i] @ changes[i])
        vector -= shares[i] * changes[i]
    for i in curved:
        vector += steps[i] * (shares[i] - changes[i] @ vector / (steps[i] @ changes[i]))
    blank = acceleration.blank(bm.GaussianMixture.of(np.ones(3) / 3, np.zeros((3, 1)), np.ones((3, 1, 1))))
    with double_precision():
        for last in (rows - 1, 2):
            memory = blank._replace(steps=np.roll(steps, last + 1, 0), changes=np.zeros((rows, q)), last=last)
            for age, i in enumerate(reversed(range(rows))):  # each when it was the last
                place = (last - age) % rows
                before = memory.changes.copy()
                before[place] = changes[i] + residual
                found, scale = acceleration._change(
                    memory._replace(changes=before, last=np.int64(place)), residual
                )
                assert_allclose(found, changes[i], rtol=1e-10, atol=1e-12)
                memory.changes[place], memory.scales[place] = found, scale
            assert (memory.scales != 0).sum() == len(curved)
            refused = memory._replace(refused=np.bool_(True))
            assert acceleration._change(refused, residual)[1] == 0
            ours = acceleration._quasi_newton(jax.tree.map(jax.numpy.asarray, memory), residual)
            assert_allclose(ours, vector, rtol=1e-9, atol=1e-12)


def test_a_search_takes_ems_own_steps_while_they_gain_much(monkeypatch):
    x = bm.datasets.load("old_faithful")
    monkeypatch.setattr(cells, "FIRST", 5)

    def reached(accelerate):
        options = {"n_components": 5, "covariance": "VVV", "n_starts": 1, "max_steps": 5}
        found = bm.search(x, **options, accelerate=accelerate).fit(5, "VVV")
        assert found.n_steps == 5
        return found.log_likelihood

    own = reached(False)
    assert_allclose(reached(True), own, atol=1e-9)
    monkeypatch.setattr(groups, "_GENTLE", np.inf)
    assert reached(True) > own + 0.1


@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI", "EII"])
def test_few_steps_are_expected_where_clusters_are_apart(name):
    means = np.array([[[0.0, 0, 0], [5, 0, 0], [0, 5, 0]], [[0.0, 0, 0], [5, 0, 0], [3, 0, 0]]])
    unit = np.array([0.01, 1, 100])
    means, covariances = means * unit, np.broadcast_to(np.diag(unit**2), (2, 3, 3, 3))
    if name == "EII":
        means, covariances = means / unit, np.broadcast_to(np.eye(3), (2, 3, 3, 3))
    some = [bm.GaussianMixture.of([0.5, 0.3, 0.2], m, c, covariance=name) for m, c in zip(means, covariances)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *some)
    assert drive._passes(batch).tolist() == [drive._FEW, drive._PASSES]


def test_a_constant_column_tells_nothing_about_how_far_clusters_are_apart():
    x = np.random.default_rng(0).normal(size=(20_000, 2))
    x[:10_000, 0] += 7
    x[:, 1] = 3
    assert bm.fit(bm.MixtureModel(2), x).code == bm.fit(bm.MixtureModel(2), x, accelerate=True).code


@pytest.mark.parametrize(("away", "accelerated"), [(8, False), (2.5, True)])
def test_whether_it_pays_is_told_by_rows_starts_and_how_far_clusters_are_apart(
    monkeypatch, away, accelerated
):
    began = []
    remember = drive.remember
    monkeypatch.setattr(
        drive, "remember", lambda states: began.append(states.step.tolist()) or remember(states)
    )
    x = np.random.default_rng(0).normal(size=(30_000, 2))
    x[:15_000] += away
    bm.fit(bm.MixtureModel(2), x)
    assert not began  # one start, as all end alike
    bm.fit(bm.MixtureModel(2), np.concatenate([x] * 8), max_steps=3)
    assert not began
    bm.fit(bm.MixtureModel(2), np.concatenate([x] * 8))
    assert began == ([[0] * 10] if accelerated else [])
