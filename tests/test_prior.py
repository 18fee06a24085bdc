"""`ConjugatePrior` and `weak_prior`: the published formula, equivariance, and what is refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

from bayesmix import prior as module
from bayesmix.covariance import STRUCTURES
from bayesmix.prior import ConjugatePrior, weak_prior

FAITHFUL = np.loadtxt(
    Path(module.__file__).parent / "datasets" / "old_faithful.csv", delimiter=",", skiprows=1
)


def data(structure, n=None):
    """Old Faithful with as many columns as the structure is for."""
    return FAITHFUL[:n, : STRUCTURES[structure].n_features or 2]


def leaves(prior):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(prior)]


def assert_same(a, b, rtol=1e-9):
    for left, right in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_weak_prior_is_fraley_and_raftery(structure, k):
    x = data(structure)
    n, d = x.shape
    prior = weak_prior(x, n_components=k, covariance=structure)
    deviations = x - x.mean(axis=0)
    cov = sum(np.outer(row, row) for row in deviations) / (n - 1)
    expected = cov if STRUCTURES[structure].storage == "full" else sum(cov[j, j] for j in range(d)) / d
    np.testing.assert_allclose(prior.scale, expected / k ** (2 / d), rtol=1e-12)
    np.testing.assert_allclose(prior.mean, x.mean(axis=0), rtol=1e-14)
    assert (prior.concentration, prior.mean_count, prior.degrees_of_freedom) == (1, 0.01, d + 2)


# (structure, scale in mclust 6.0's `defaultPrior`, two clusters)
MCLUST = [
    ("VII", 46.53151017090501),
    ("VVV", [[0.6513641664247342, 6.988903923377469], [6.988903923377469, 92.41165617538529]]),
]


@pytest.mark.parametrize(("structure", "scale"), MCLUST)
def test_weak_prior_agrees_with_mclust(structure, scale):
    prior = weak_prior(FAITHFUL, n_components=2, covariance=structure)
    np.testing.assert_allclose(prior.scale, scale, rtol=1e-7)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_weak_prior_moves_with_the_data(structure, factor):
    x = data(structure)
    prior, moved = (weak_prior(y, n_components=2, covariance=structure) for y in (x, factor * (x + 1e8)))
    np.testing.assert_allclose(moved.mean, factor * (prior.mean + 1e8), rtol=1e-14)
    np.testing.assert_allclose(moved.scale, factor**2 * prior.scale, rtol=1e-6)
    assert_same(weak_prior(x + 0.5, covariance=structure).scale, weak_prior(x, covariance=structure).scale)


@pytest.mark.parametrize("structure", ["EEE", "VVV"])
def test_full_storage_moves_with_each_column(structure):
    stretch = np.array([1e-6, 1e9])
    prior, moved = (
        weak_prior(x, n_components=2, covariance=structure) for x in (FAITHFUL, FAITHFUL * stretch)
    )
    np.testing.assert_allclose(moved.scale, prior.scale * np.outer(stretch, stretch), rtol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_weight_counts_repetitions(structure):
    x = data(structure, 12)
    weight = np.arange(12) % 4
    repeated = weak_prior(np.repeat(x, weight, axis=0), covariance=structure)
    assert_same(weak_prior(x, covariance=structure, sample_weight=weight), repeated)


DEGENERATE = {
    "constant column": np.column_stack([FAITHFUL[:20], np.full(20, 0.1)]),
    "all constant": np.full((5, 2), 3.7),
    "one row": FAITHFUL[:1],
    "fewer rows than columns": FAITHFUL[:6].reshape(3, 4),
    "a column twice": FAITHFUL[:20][:, [0, 1, 0]],
    "a sum of columns": np.column_stack([FAITHFUL[:20], FAITHFUL[:20].sum(axis=1)]),
}


@pytest.mark.parametrize("structure", ["VVV", "EEI", "VII"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_data_still_give_a_proper_prior(name, structure):
    x = DEGENERATE[name]
    prior = weak_prior(x, n_components=2, covariance=structure)
    scale = prior.scale * np.eye(x.shape[1]) if np.ndim(prior.scale) == 0 else prior.scale
    assert np.isfinite(np.linalg.cholesky(scale)).all()
    moved = weak_prior(1e6 * x, n_components=2, covariance=structure)
    unit = 1 if name in ("all constant", "one row") else 1e12
    np.testing.assert_allclose(moved.scale, unit * prior.scale, rtol=1e-6)


def test_a_constant_column_takes_the_scale_of_the_others():
    x = DEGENERATE["constant column"]
    scale = weak_prior(x).scale
    assert scale[2, 2] == pytest.approx((scale[0, 0] + scale[1, 1]) / 2)
    np.testing.assert_allclose(scale[2, :2], 0)


def test_total_weight_below_two_is_continuous():
    below, above = (
        weak_prior(FAITHFUL, sample_weight=np.full(272, t / 272)).scale for t in (2 - 1e-9, 2 + 1e-9)
    )
    np.testing.assert_allclose(below, above, rtol=1e-6)


def test_is_a_pytree():
    prior = weak_prior(FAITHFUL, n_components=3)
    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), prior)
    assert isinstance(jax.vmap(lambda p: p)(batch), ConjugatePrior)
    assert_same(jax.tree.unflatten(jax.tree.structure(prior), jax.tree.leaves(prior)), prior)
    assert prior.n_features == 2


def make(**changes):
    given = {"mean": [0.0, 0.0], "degrees_of_freedom": 4.0, "scale": np.eye(2)} | changes
    return ConjugatePrior.of(**given)


ERRORS = [
    ("concentration zero", lambda: make(concentration=0.0), "concentration must be positive"),
    ("concentration matrix", lambda: make(concentration=np.eye(2)), "concentration must be positive"),
    ("concentration text", lambda: make(concentration="one"), "concentration cannot be read"),
    ("mean not finite", lambda: make(mean=[0.0, np.nan]), "mean has a missing value"),
    ("mean_count zero", lambda: make(mean_count=0), "mean_count must be one positive number"),
    ("mean_count list", lambda: make(mean_count=[1, 2]), "mean_count must be one positive number"),
    ("degrees too few", lambda: make(degrees_of_freedom=1), "degrees_of_freedom must exceed 1"),
    ("degrees infinite", lambda: make(degrees_of_freedom=np.inf), "degrees_of_freedom must be one positive"),
    ("scale shape", lambda: make(scale=np.eye(3)), r"scale must be one number, \(2,\) or \(2, 2\)"),
    ("scale not finite", lambda: make(scale=[1.0, np.inf]), "scale has a value that is not finite"),
    ("scale negative", lambda: make(scale=[1.0, -1.0]), "scale must be positive"),
    ("scale asymmetric", lambda: make(scale=[[1.0, 0.5], [0.0, 1.0]]), "scale is not symmetric"),
    ("scale indefinite", lambda: make(scale=[[1.0, 2.0], [2.0, 1.0]]), "scale is not positive definite"),
    ("scale zero", lambda: make(scale=np.zeros((2, 2))), "scale is not positive definite"),
    ("data with a gap", lambda: weak_prior([[1.0], [np.nan]]), "x has a missing value"),
    ("k", lambda: weak_prior(FAITHFUL, n_components=0), "n_components must be at least 1"),
    ("structure", lambda: weak_prior(FAITHFUL, covariance="XXX"), "covariance must be one of"),
    ("one-column structure", lambda: weak_prior(FAITHFUL, covariance="V"), "covariance 'V' is for 1 feature"),
    ("weights", lambda: weak_prior(FAITHFUL, sample_weight=[1.0]), "sample_weight has 1 entries for 272"),
    ("squares vanish", lambda: weak_prior([[0.0], [1e-200]]), "x is too large or too small"),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
