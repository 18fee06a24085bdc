"""Data of more rows than are handled at once: stretches add up to the whole, and nothing of their size is made twice."""

import tempfile
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import bayesmix as bm
from bayesmix import blocks
from bayesmix.blocks import points_last
from bayesmix.covariance import STRUCTURES, structure_of
from bayesmix.drive import _farthest
from bayesmix.em import _own_starts, _partition
from bayesmix.initialize import from_partition, from_responsibilities, known_statistics
from bayesmix.observations import observe
from bayesmix.problem import prepare
from bayesmix.seeds import SEEDS, lloyd, nearest, sample_rows
from bayesmix.units import Rows, standardize

N, D, K = 150_001, 3, 4
NAMES = ("x", "y", "z")


@pytest.fixture(scope="module")
def labelled():
    rng = np.random.default_rng(0)
    z = rng.integers(K, size=N)
    z[:100_000][z[:100_000] == 2] = 1  # a cluster that begins late
    x = rng.normal(size=(N, D)) * [1, 30, 0.02] + 5 * z[:, None] + 100
    return x, z, rng.uniform(0.5, 2, size=N)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["VVV", "VVI", "VII"])
def test_units_are_those_of_all_rows_at_once(labelled, name, dtype):
    x, weight = labelled[0].astype(dtype), labelled[2]
    units = standardize(x, weight, NAMES, structure_of(name))
    mean, total = weight @ x / weight.sum(), weight.sum()
    covariance = ((x - mean) * weight[:, None]).T @ (x - mean) / total
    deviation = np.sqrt(np.diag(covariance))
    assert_allclose(units.origin, mean, rtol=1e-12)
    assert_allclose(units.deviation, deviation, rtol=1e-10)
    typical = np.full(D, np.sqrt(np.mean(deviation**2)))
    assert_array_equal(units.scale, 2 ** np.round(np.log2(deviation if name != "VII" else typical)))
    inner = covariance / np.outer(units.scale, units.scale)
    ridge = units.floor.ridge[0] / (1e-12 if dtype == np.float64 else 1e-6)
    extra = 0.1 if dtype == np.float64 else 1  # absolute by relative
    expected = {
        "VVV": inner + extra * np.diag(np.diag(inner)),
        "VVI": np.diag(inner),
        "VII": np.diag(inner).mean(),
    }[name]
    assert_allclose(ridge, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_are_computed_alike_however_they_are_asked_for(labelled, dtype):
    x = labelled[0].astype(dtype)
    units = standardize(x, np.ones(N), NAMES, structure_of("VVI"))
    rows = Rows(x, units)
    expected = ((x - units.origin) / units.scale).astype(dtype)
    assert rows.shape == (N, D)
    assert len(rows) == N
    assert rows.dtype == dtype
    mask, places = labelled[1] == 2, np.random.default_rng(1).permutation(N)
    for of in (slice(None), slice(5, 9), slice(3, 20_000), mask, places):
        assert_array_equal(rows[of], expected[of])
        assert rows[of].dtype == dtype
    assert_array_equal(np.asarray(rows), expected)
    taken = rows.taken(places[:1000])
    assert taken.shape == (1000, D)
    for of in (slice(None), slice(5, 9), np.arange(3)):
        assert_array_equal(taken[of], expected[places[:1000]][of])


@pytest.mark.parametrize("n", [64, 1000, 1024, 8192, 8193, 20_000])
@pytest.mark.parametrize("size", [256, 1024, 8192, 10_000])
def test_blocks_have_every_row_in_its_place(n, size):
    values = np.random.default_rng(n).normal(size=(n, 2))
    blocks = points_last(values, size, np.float32)
    assert blocks.dtype == np.float32
    flat = np.moveaxis(blocks, 1, -1).reshape(-1, 2)
    assert_array_equal(flat[:n], values.astype(np.float32))
    assert not flat[n:].any()


@pytest.mark.parametrize("name", sorted(set(STRUCTURES) - {"E", "V"}))
def test_starts_from_labels_have_the_moments_of_each_cluster(labelled, name):
    x, z, weight = labelled
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    row = structure_of(name)
    one_hot = np.eye(K)[z]
    counts = weight @ one_hot
    first = (one_hot * weight[:, None]).T @ x
    square = np.einsum("nk,ni,nj->kij", one_hot * weight[:, None], x, x, optimize=True)
    own = {"full": square, "diagonal": np.diagonal(square, axis1=1, axis2=2)}
    second = own.get(row.storage, own["diagonal"].mean(axis=1))
    expected = [counts[:, None], first]
    if not row.shared:
        expected.append(row.form.pack(second, D))
    expected = np.concatenate(expected, axis=1)
    for start in (
        from_partition(x, weight, np.zeros((K, D)), z, row).statistics,
        from_responsibilities(x, weight, one_hot, K, row).statistics,
        from_responsibilities(x, weight, z, K, row).statistics,
        known_statistics(x, weight, z, K, row),
    ):
        assert_allclose(start.moments, expected, rtol=1e-10, atol=1e-8)
        if row.shared:
            assert_allclose(start.second[0], second.sum(axis=0), rtol=1e-10, atol=1e-8)


def test_a_start_from_labels_is_one_from_responsibilities(labelled):
    x, z, weight = labelled
    options = {"sample_weight": weight, "max_steps": 2, "tol": 0}
    one = bm.fit(bm.MixtureModel(K), x, init=z, **options)
    other = bm.fit(bm.MixtureModel(K), x, init=np.eye(K)[z], **options)
    assert_allclose(one.mixture.covariances, other.mixture.covariances, rtol=1e-9)
    assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("most", [50, 900])
def test_rows_drawn_by_weight_are_different_ones_with_the_chances_of_successive_draws(most):
    rng, n = np.random.default_rng(0), 1000
    weight = np.where(np.arange(n) < 100, 10.0, 1.0)
    weight[0] = 1e12
    share = []
    for _ in range(200):
        rows = sample_rows(weight, most, rng)
        assert len(rows) == most
        assert (np.diff(rows) > 0).all()
        share.append((rows < 100).mean())
        assert rows[0] == 0
    # One draw after the other by Generator.choice, which we did not write.
    expected = [
        (rng.choice(n, most, replace=False, p=weight / weight.sum()) < 100).mean() for _ in range(200)
    ]
    error = np.hypot(np.std(share), np.std(expected)) / np.sqrt(200)
    assert abs(np.mean(share) - np.mean(expected)) < 4 * error
    assert sample_rows(weight, n, rng) == slice(None)


@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1.8), (np.float32, 2.4)])
@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI", "EII"])
def test_beside_the_blocks_nothing_of_the_size_of_the_data_is_made(name, dtype, most):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1_000_000, 8)).astype(dtype)
    x[:500_000] += 5
    tracemalloc.start()
    try:
        problem = prepare(2, name, x, None, 1e-4)
        starts, _ = _own_starts(problem, "kmeans", 2, 0, False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(starts) == 2
    assert peak < most * x.nbytes


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("draw", SEEDS.values(), ids=SEEDS)
def test_starts_that_are_drawn_together_are_those_drawn_one_by_one(draw, dtype):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3000, 2)).astype(dtype), rng.uniform(0.5, 2, size=3000)

    def generators():
        return np.random.default_rng(1).spawn(6)

    together = draw(x, weight, 5, generators())
    for one, generator in zip(together, generators()):
        assert_array_equal(draw(x, weight, 5, [generator])[0], one)
        assert len(np.unique(one, axis=0)) == 5
        assert (x == one[0]).all(axis=1).any()


def slow_lloyd(x, weight, means, steps):
    for _ in range(steps):
        squared = ((x[:, None] - means) ** 2).sum(axis=-1)
        labels = squared.argmin(axis=1)
        own = [labels == j for j in range(len(means))]
        means = np.array(
            [np.average(x[o], axis=0, weights=weight[o]) if o.any() else m for o, m in zip(own, means)]
        )
    return means, ((x[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)


@pytest.mark.parametrize("steps", [0, 1, 3, 100])
def test_lloyd_takes_every_start_its_own_way(steps):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(500, 2)), rng.uniform(0.5, 2, size=500)
    seeds = SEEDS["random"](x, weight, 4, rng.spawn(5))
    before = seeds.copy()
    means, labels = lloyd(x, weight, seeds, steps)
    assert_array_equal(seeds, before)
    for seed, own, near in zip(seeds, means, labels):
        expected, partition = slow_lloyd(x, weight, seed, steps)
        assert_allclose(own, expected, rtol=1e-9, atol=1e-12)
        assert_array_equal(near, partition)
        assert_array_equal(near, nearest(x, own))


def test_a_mean_that_loses_all_points_moves_to_the_farthest():
    x = np.concatenate([np.random.default_rng(0).normal(size=(50, 1)), [[40.0]]])
    seeds = np.array([[[0.0], [0.5], [1e6]], [[-1.0], [0.0], [1.0]]])
    means, labels = lloyd(x, np.ones(51), seeds, 100)
    assert 40 in means[0]
    assert (labels[0] == labels[0][-1]).sum() == 1
    assert_array_equal(np.unique(labels[1]), [0, 1, 2])


def test_partitions_are_the_same_whatever_the_numbers_of_their_clusters():
    labels = np.array([2, 2, 0, 1, 0, 2])
    same, other = np.array([0, 0, 1, 2, 1, 0]), np.array([0, 0, 1, 2, 2, 0])
    assert _partition(labels, 3) == _partition(same, 3)
    assert _partition(labels, 3) != _partition(other, 3)
    assert _partition(np.zeros(4, int), 5) == _partition(np.full(4, 3), 5)


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A memory map that is large enough to have its blocks in a file, and the same rows in memory."""
    monkeypatch.setattr(blocks, "_FILED", 2**20)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60_000, 8)) + 6 * rng.integers(3, size=60_000)[:, None]
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    return np.load(tmp_path / "x.npy", mmap_mode="r"), x.astype(np.float32)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: bm.fit(bm.MixtureModel(3), x, n_starts=2),
        lambda x: bm.fit(bm.MixtureModel(3, "EEE"), x, method="hard", n_starts=2),
        lambda x: bm.fit(bm.MixtureModel(3, "VVI"), x, method="online", n_starts=1, max_steps=60),
        lambda x: bm.kmeans(x, 3, n_starts=2),
        lambda x: bm.kmeans(x, 3, n_starts=1, batch_size=1000),
        lambda x: bm.fit(bm.MixtureModel(3, "VVI"), x, init="k-means++", n_starts=2),
    ],
    ids=["soft", "hard", "online", "kmeans", "mini-batch kmeans", "seeds"],
)
def test_a_memory_map_is_fitted_as_the_same_rows_in_memory(mapped, tmp_path, run):
    one, other = map(run, mapped)
    assert_array_equal(one.mixture.means, other.mixture.means)
    assert_array_equal(one.objective, other.objective)
    assert_array_equal(one.labels, other.labels)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_of_a_memory_map_little_is_in_memory(mapped, tmp_path):
    np.save(tmp_path / "more.npy", np.tile(mapped[1], (8, 1)))
    x = np.load(tmp_path / "more.npy", mmap_mode="r")
    assert blocks.is_mapped(x)
    assert blocks.is_mapped(x[5:].T)
    assert not blocks.is_mapped(x[:100])
    assert not blocks.is_mapped(mapped[1])
    tracemalloc.start()
    problem = prepare(3, "VVV", x, None, 1e-4)
    laid_out = problem.observations.x
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert blocks.is_mapped(laid_out)
    assert laid_out.ctypes.data % 64 == 0
    rows = np.moveaxis(laid_out, 1, -1).reshape(-1, 8)
    assert_array_equal(rows[: len(x)], problem.x[:])
    assert peak < 0.75 * x.nbytes  # weights of 16 bytes a row are half of it


def test_blocks_that_have_no_room_are_one_error(mapped, monkeypatch):
    monkeypatch.setattr(blocks.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(
        OSError, match=r"needs 0.00\d+ GB for a temporary file, .* set the environment variable TMPDIR"
    ):
        bm.fit(bm.MixtureModel(3), mapped[0])


def test_seeds_of_k_means_are_drawn_from_some_of_many_rows(labelled):
    x = labelled[0]
    found = bm.kmeans(x / x.std(axis=0), K, n_starts=5)
    assert found.n_agree >= 2
    problem = prepare(K, "EII", x, None, 1e-4)
    starts, _ = _own_starts(problem, "k-means++", 2, 0, True)
    assert all((problem.x[:] == row).all(axis=1).any() for start in starts for row in start.mixture.means)


def test_the_farthest_point_is_that_of_all_stretches(labelled):
    x = labelled[0] / labelled[0].std(axis=0)
    weight = np.where(np.arange(N) % 7 == 0, 0.0, 1.0)
    means = np.zeros((2, D)) + [[0], [1]]
    squared = ((x[:, None] - means) ** 2).sum(axis=2).min(axis=1) * weight
    most, point = _farthest(observe(x, weight, structure_of("EII")), means)
    assert_allclose(most, squared.max())
    assert_array_equal(point, x[np.argmax(squared)])
