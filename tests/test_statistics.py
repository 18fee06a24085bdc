"""Statistics add, whatever the blocks, the rule and the precision."""

import jax
import numpy as np
import pytest
from cases import NAMES, K, data, mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import bayesmix as bm
from bayesmix.blocks import points_last
from bayesmix.covariance import STRUCTURES
from bayesmix.observations import observe
from bayesmix.statistics import EVERY, RESPONSIBILITIES, summarize
from bayesmix.storage import STORAGES

COMPILED = jax.jit(summarize, static_argnames=("responsibilities", "whitened"))


def statistics(name, x, weight=None, **options):
    weight = np.ones(len(x)) if weight is None else weight
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, COMPILED(mixture(name), observe(x, weight, STRUCTURES[name]), **options)
        )


def slow_moments(name, x, weight):
    """The definition: dense second moments about the origin, one cluster at a time."""
    r = mixture(name).responsibilities(x) * weight[:, None]
    return r.sum(axis=0), r.T @ x, np.einsum("nk,ni,nj->kij", r, x, x)


@pytest.mark.parametrize("whitened", [0, EVERY])
@pytest.mark.parametrize("name", NAMES)
def test_moments_are_the_definition(name, whitened):
    x, _ = data(name)
    weight = np.arange(len(x)) % 3 / 2.0
    s = statistics(name, x, weight, whitened=whitened)
    count, first, second = slow_moments(name, x, weight)
    d = x.shape[1]
    assert_allclose(s.moments[:, 0], count, rtol=1e-9)
    assert_allclose(s.moments[:, 1 : 1 + d], first, rtol=1e-8, atol=1e-8)
    assert_allclose(s.objective, weight @ mixture(name).log_density(x), rtol=1e-10)
    storage = STORAGES[STRUCTURES[name].storage]
    if STRUCTURES[name].shared:
        assert_allclose(s.second, storage.sparse(second.sum(axis=0)[None]), rtol=1e-9)
    else:
        assert_allclose(
            storage.second(s.moments[:, 1 + d :], d), storage.sparse(second), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(1, 119), max_size=4, unique=True))
def test_the_statistics_of_any_partition_add_up_to_the_whole(name, cuts):
    x, _ = data(name)
    whole = statistics(name, x)
    parts = [statistics(name, part) for part in np.split(x, sorted(cuts))]
    total = parts[0]
    with jax.enable_x64(True):
        for part in parts[1:]:
            total = total + part
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(whole), strict=True):
        assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_objective_of_float32_data_does_not_depend_on_their_order(name):
    """Sums of float32 would differ by 1e-7 of their size from order to order, and so would what a step is said to gain."""
    x = data(name)[0].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    assert_allclose(statistics(name, x[order]).objective, statistics(name, x).objective, rtol=1e-11)


@pytest.mark.parametrize("kind", RESPONSIBILITIES)
def test_responsibilities_share_out_the_weight_of_each_point(kind):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 300))
    logits[:, :100] = logits[0, :100]  # ties count once
    weight = rng.integers(0, 4, size=300).astype(float) if kind != "sampled" else np.ones(300)
    with jax.enable_x64(True):
        r, objective = map(
            np.asarray, RESPONSIBILITIES[kind](logits, weight, (np.array([0, 0], np.uint32), 0))
        )
    assert_allclose(r.sum(axis=0), weight, rtol=1e-12)
    assert (r >= 0).all()
    best = logits.max(axis=0) if kind == "hard" else np.logaddexp.reduce(logits, axis=0)
    assert_allclose(objective, weight * best, rtol=1e-12)
    if kind == "hard":
        assert (r[0, :100] == weight[:100]).all()
    if kind.startswith("sampled"):
        assert_allclose(r, np.round(r))


@pytest.mark.parametrize("kind", ["sampled", "sampled_counts"])
def test_draws_have_the_chances_of_the_soft_step(kind):
    logits = np.tile(np.log([[0.5], [0.3], [0.2]]), (1, 20_000))
    with jax.enable_x64(True):
        r, _ = RESPONSIBILITIES[kind](
            logits, np.ones(20_000) * (1 if kind == "sampled" else 3), (np.array([0, 1], np.uint32), 0)
        )
    share = np.asarray(r).mean(axis=1) / np.asarray(r).mean(axis=1).sum()
    assert_allclose(share, [0.5, 0.3, 0.2], atol=0.015)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_scales_the_logits(name):
    x, _ = data(name)
    beta = 0.4
    tempered = beta * mixture(name).log_joint(x)
    r = np.exp(tempered - np.logaddexp.reduce(tempered, axis=1)[:, None])
    for whitened in (0, EVERY):
        s = statistics(name, x, beta=beta, whitened=whitened)
        assert_allclose(s.moments[:, 0], r.sum(axis=0), rtol=1e-8)
        energy = np.sum(r * (mixture(name).log_joint(x) - np.log(np.maximum(r, 1e-300)) / beta))
        assert_allclose(s.objective, energy, rtol=1e-9)


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("thin", [(2,), (1,), (0, 2)])
@pytest.mark.parametrize("name", [name for name in NAMES if not STRUCTURES[name].shared])
def test_some_clusters_whitened_are_those_moments(name, thin, kind):
    x, _ = data(name)
    flags = np.isin(np.arange(K), thin)
    whole = statistics(name, x, responsibilities=kind)
    for count in {len(thin), 2}:
        some = statistics(name, x, responsibilities=kind, whitened=count, thin=flags)
        assert_allclose(some.moments, whole.moments, rtol=1e-8, atol=1e-8)
        assert_allclose(some.objective, whole.objective, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_float32_moments_are_accurate_where_a_cluster_is_thin(name):
    """A cluster a hundred times thinner than its distance from the others, in float32 against float64."""
    x, _ = data(name)
    thin = x * 1e-2 + np.where(np.arange(len(x)) % 2, 1.0, -1.0)[:, None]
    with jax.enable_x64(True):
        m = jax.tree.map(np.asarray, mixture(name))
    d = x.shape[1]
    covariance = m.covariance.storage.rescale(m.covariance.values, np.full(d, 1e-2))
    values = type(m.covariance)(covariance, name)
    m = type(m)(np.full(K, 1 / K), np.array([[-1.0], [1.0], [0.98]]) * np.ones((1, d)), values)
    results = []
    for dtype in (np.float64, np.float32):
        rows = thin.astype(np.float32).astype(dtype)
        with jax.enable_x64(True):
            s = COMPILED(
                m,
                observe(rows, np.ones(len(rows)), STRUCTURES[name]),
                whitened=EVERY if dtype == np.float32 else 0,
            )
            results.append(jax.tree.map(np.asarray, s))
    exact, single = results
    count = np.maximum(exact.moments[:, :1], 1e-9)
    mean = exact.moments[:, 1 : 1 + d] / count
    close = single.moments[:, 1 : 1 + d] / np.maximum(single.moments[:, :1], 1e-9)
    assert_allclose(close[count[:, 0] > 1], mean[count[:, 0] > 1], atol=1e-5)
    assert_allclose(single.moments[:, 0], exact.moments[:, 0], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("name", ["VVV", "VVI", "VII"])
def test_thin_clusters_of_float32_data_are_summed_in_float64(name, d):
    """To the digits of float64, which float32 doesn't have in any coordinates."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, d)) * 1e-2 + rng.choice([-1.0, 1.0], 500)[:, None]).astype(np.float32)
    values = {"VVV": np.tile(np.eye(d), (2, 1, 1)), "VVI": np.ones((2, d)), "VII": np.ones(2)}[name] * 1e-4
    m = bm.GaussianMixture.of(
        [0.4, 0.6], np.array([[-1.0], [1.0]]) * np.ones((1, d)), values, covariance=name
    )
    results = []
    for rows, whitened in ((x, EVERY), (x.astype(float), 0)):
        with jax.enable_x64(True):
            s = COMPILED(m, observe(rows, np.ones(len(rows)), STRUCTURES[name]), whitened=whitened)
            results.append(jax.tree.map(np.asarray, s))
    assert_allclose(results[0].moments, results[1].moments, rtol=1e-12, atol=1e-9)
    assert_allclose(results[0].objective, results[1].objective, rtol=1e-12)


def test_sums_of_float64_hold_whatever_float32_data_can_say_of_a_cluster():
    """One of a deviation of 30 units in the last place of its mean: rounding to float32 costs more than the sums do."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2000, 1)) * 2e-6 + 1).astype(np.float32)
    m = bm.GaussianMixture.of([1.0], [[1.0]], [4e-12], covariance="V")
    with jax.enable_x64(True):
        s = COMPILED(m, observe(x, np.ones(len(x)), STRUCTURES["V"]), whitened=EVERY)
    count, first, second = np.asarray(s.moments)[0]
    variance = x.astype(float).var()
    assert abs(second / count - (first / count) ** 2 - variance) < 1e-3 * variance
    assert abs(variance / 4e-12 - 1) > 1e-3  # what is left of the law itself


@pytest.mark.parametrize(
    ("n", "size", "shape"),
    [(5, 256, (1, 2, 64)), (272, 4096, (1, 2, 320)), (2600, 256, (11, 2, 256)), (9000, 256, (36, 2, 256))],
)
def test_few_block_shapes_serve_every_n(n, size, shape):
    x = np.arange(2.0 * n).reshape(n, 2) + 1
    blocks = points_last(x, size)
    assert blocks.shape == shape
    flat = np.moveaxis(blocks, 1, -1).reshape(-1, 2)
    assert_allclose(flat[:n], x)
    assert (flat[n:] == 0).all()
