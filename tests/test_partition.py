"""Clusterings of a posterior: co-clustering against its definition, the estimate against all partitions, the ball."""

from functools import cache

import numpy as np
import pytest
import xarray
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import mutual_info_score, rand_score

import bayesmix as bm


def tree(z):
    """A tree with nothing but z (chain, draw, obs_id)."""
    z = np.asarray(z)
    coords = {"obs_id": np.arange(z.shape[2])}
    dataset = xarray.Dataset({"z": (("chain", "draw", "obs_id"), z)}, coords)
    return xarray.DataTree.from_dict({"allocations": dataset})


def noisy(n, k, draws, noise, seed):
    """Draws around a true clustering: each row is now and then put somewhere at random; names change from draw to draw."""
    rng = np.random.default_rng(seed)
    true = rng.integers(k, size=n)
    z = np.where(rng.random((2, draws, n)) < noise, rng.integers(k, size=(2, draws, n)), true)
    names = rng.random((2, draws, k)).argsort(axis=-1)
    return true, np.take_along_axis(names, z, axis=-1).astype(np.uint8)


def pairs(labels):
    """Which rows are together (..., n, n)."""
    return (labels[..., :, None] == labels[..., None, :]).astype(float)


def slow_loss(name, a, b):
    """Between clusterings a (p, n) and b (s, n), from who is together with whom; VI after Wade & Ghahramani (2018), (6)."""
    a, b = pairs(a), pairs(b)
    n = a.shape[-1]
    both = np.einsum("pij,sij->psi", a, b)
    if name == "vi":
        own = np.log(a.sum(axis=-1))[:, None] + np.log(b.sum(axis=-1))
        return (own - 2 * np.log(both)).sum(axis=-1) / n
    unlike = a.sum(axis=(1, 2))[:, None] + b.sum(axis=(1, 2)) - 2 * both.sum(axis=-1)
    return unlike / (n * (n - 1))


@cache
def all_partitions(n):
    """Every partition of n rows once, as labels by appearance."""
    rows = [(0,)]
    for _ in range(n - 1):
        rows = [(*row, label) for row in rows for label in range(max(row) + 2)]
    return np.array(rows)


def test_there_are_as_many_partitions_as_bell_says():
    assert [len(all_partitions(n)) for n in (1, 2, 3, 8)] == [1, 2, 5, 4140]


@pytest.mark.parametrize("loss", ["vi", "binder"])
@pytest.mark.parametrize(("noise", "k"), [(0.3, 3), (0.9, 4), (0.5, 2), (0.1, 3)])
def test_the_estimate_is_the_best_of_all_partitions(loss, noise, k):
    for seed in range(4):
        _, z = noisy(8, k, 20, noise, seed)
        expected = slow_loss(loss, all_partitions(8), z.reshape(-1, 8)).mean(axis=1)
        found = bm.partition(tree(z), loss=loss, max_clusters=8)
        assert_allclose(found.expected_loss, expected.min(), atol=1e-12)
        assert_allclose(
            slow_loss(loss, found.labels[None], z.reshape(-1, 8)).mean(), expected.min(), atol=1e-12
        )
        few = all_partitions(8).max(axis=1) < 2
        found = bm.partition(tree(z), loss=loss, max_clusters=2)
        assert_allclose(found.expected_loss, expected[few].min(), atol=1e-12)
        assert found.n_clusters <= 2


def test_by_default_the_estimate_has_no_more_clusters_than_a_draw():
    _, z = noisy(8, 2, 20, 0.9, 0)
    free, default = (bm.partition(tree(z), loss="binder", max_clusters=most) for most in (8, None))
    assert free.n_clusters > default.n_clusters
    assert default.n_clusters <= 2


def test_losses_are_what_the_books_say():
    rng = np.random.default_rng(0)
    z = rng.integers(4, size=(1, 30, 50))
    for loss in ("vi", "binder"):
        found = bm.partition(tree(z), loss=loss, n_starts=2)
        for a, distance in zip(z[0], found.distance[0]):
            mutual = mutual_info_score(a, found.labels)
            own = mutual_info_score(a, a) + mutual_info_score(found.labels, found.labels)
            exact = own - 2 * mutual if loss == "vi" else 1 - rand_score(a, found.labels)
            assert_allclose(distance, exact, atol=1e-12)
        assert_allclose(found.expected_loss, found.distance.mean(), rtol=1e-12)
    together = bm.coclustering(tree(z)).values
    unlike = np.where(pairs(found.labels) > 0, 1 - together, together)
    assert_allclose(found.expected_loss, unlike.sum() / (50 * 49), rtol=1e-12)


@pytest.mark.parametrize("loss", ["vi", "binder"])
def test_no_draw_is_better_than_the_estimate_and_all_starts_agree(loss):
    _, z = noisy(60, 4, 50, 0.3, 1)
    found = bm.partition(tree(z), loss=loss)
    flat = z.reshape(-1, 60)
    assert slow_loss(loss, flat, flat).mean(axis=1).min() >= found.expected_loss
    assert found.reached.size == 8
    assert found.n_agree >= 1
    assert found.reached.min() == found.expected_loss


@pytest.mark.parametrize("loss", ["vi", "binder"])
def test_separated_clusters_are_found_and_numbered_by_size(loss):
    true, z = noisy(300, 4, 100, 0.02, 2)
    found = bm.partition(tree(z), loss=loss, n_starts=2)
    assert rand_score(true, found.labels) == 1
    assert_array_equal(found.sizes, np.sort(np.bincount(true))[::-1])
    assert_array_equal(found.sizes, np.bincount(found.labels))


def test_the_credible_ball_holds_its_share_of_the_draws():
    _, z = noisy(40, 3, 100, 0.15, 3)
    z[0, :20][z[0, :20] == 1] = 0  # some draws join two clusters
    for coverage in (np.float32(0.5), 0.95):
        found = bm.partition(tree(z), coverage=coverage)
        assert (found.distance <= found.radius + 1e-12).mean() >= coverage
        assert (found.distance < found.radius - 1e-12).mean() < coverage
        inside = z.reshape(-1, 40)[found.distance.ravel() <= found.radius + 1e-12]
        count = np.array([len(np.unique(draw)) for draw in inside])
        distance = slow_loss("vi", found.labels[None], inside)[0]
        for bound, among in (
            (found.upper, count == count.min()),
            (found.lower, count == count.max()),
            (found.horizontal, count > 0),
        ):
            assert bound.n_clusters == len(np.unique(bound.labels))
            assert_allclose(slow_loss("vi", found.labels[None], bound.labels[None])[0, 0], bound.distance)
            assert_allclose(bound.distance, distance[among].max())
            assert bound.n_clusters in count[among]
    assert found.upper.n_clusters == 2
    table = found.summary()
    assert table["clusters"].tolist() == [3, 2, 3, found.horizontal.n_clusters]
    assert table.loc["estimate", "sizes"] == ", ".join(map(str, found.sizes))


def test_names_of_clusters_change_no_bit():
    _, z = noisy(50, 3, 40, 0.4, 4)
    rng = np.random.default_rng(0)
    renamed = np.take_along_axis(
        rng.random((2, 40, 9)).argsort(axis=-1), z.astype(int), axis=-1
    )  # 9 names, 3 used
    assert_array_equal(bm.coclustering(tree(z)), bm.coclustering(tree(renamed)))
    one, other = bm.partition(tree(z)), bm.partition(tree(renamed))
    for name in ("labels", "expected_loss", "radius", "distance", "reached"):
        assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("upper", "lower", "horizontal"):
        assert_array_equal(getattr(one, name).labels, getattr(other, name).labels)


def test_coclustering_is_the_share_of_draws():
    _, z = noisy(30, 3, 50, 0.4, 5)
    exact = pairs(z.reshape(-1, 30)).mean(axis=0)
    found = bm.coclustering(tree(z))
    assert found.dims == ("obs_id", "obs_id_bis")
    assert_array_equal(found, exact)
    mask = np.arange(30) % 3 == 0
    for rows in (mask, np.flatnonzero(mask), range(0, 30, 3)):
        some = bm.coclustering(tree(z), rows=rows)
        assert_array_equal(some, exact[np.ix_(mask, mask)])
        assert_array_equal(some["obs_id"], np.flatnonzero(mask))
    assert_array_equal(bm.coclustering(tree(z), rows=[7, 7, 1]), exact[np.ix_([7, 7, 1], [7, 7, 1])])


def test_blocks_of_draws_add_up(monkeypatch):
    from bayesmix import allocations

    _, z = noisy(30, 3, 50, 0.4, 5)
    whole = bm.coclustering(tree(z))
    monkeypatch.setattr(allocations, "_BLOCK", 200)
    assert_array_equal(bm.coclustering(tree(z)), whole)


def test_one_row_and_one_cluster():
    for z in (np.zeros((1, 5, 1), int), np.zeros((2, 3, 6), int)):
        for loss in ("vi", "binder"):
            found = bm.partition(tree(z), loss=loss)
            assert (found.n_clusters, found.expected_loss, found.radius) == (1, 0, 0)
    assert str(found).startswith(
        "1 cluster, of 6 rows, minimises the expected Binder loss: 0 of all pairs (8 of 8 starts"
    )


def test_the_estimate_speaks():
    _, z = noisy(40, 3, 50, 0.1, 6)
    found = bm.partition(tree(z), coverage=0.9)
    sizes = ", ".join(map(str, found.sizes))
    assert f"3 clusters, of {sizes} rows, minimise the expected variation of information" in str(found)
    assert f"90% of the draws are within {found.radius:.3g} nats" in str(found)
    assert repr(found).startswith("Partition(n_clusters=3, loss='vi', expected_loss=")


GOOD = tree(np.zeros((1, 2, 3), int))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bm.coclustering("no tree"), r"coclustering reads the draws of z.*this has none"),
        (lambda: bm.partition(xarray.DataTree()), "partition reads the draws of z"),
        (lambda: bm.partition(tree(np.full((1, 2, 3), 0.5))), "needs z of whole numbers from zero; it is float64"),
        (lambda: bm.partition(tree(np.full((1, 2, 3), -1))), "needs z of whole numbers from zero"),
        (lambda: bm.coclustering(tree(np.zeros((1, 1, 20_001), int))), r"20001 rows would take 3\.2 GB.*rows=range\(0, 20001, 11\)"),
        (lambda: bm.coclustering(GOOD, rows=[3]), "rows must be between 0 and 2; they go from 3 to 3"),
        (lambda: bm.coclustering(GOOD, rows=[0.5]), "rows must be positions, or a mask"),
        (lambda: bm.coclustering(GOOD, rows=[]), "rows must be positions, or a mask"),
        (lambda: bm.partition(GOOD, loss="rand"), "loss must be one of 'vi', 'binder'"),
        (lambda: bm.partition(GOOD, coverage=95.0), "coverage must be between 0 and 1"),
        (lambda: bm.partition(GOOD, coverage="a"), "coverage must be between 0 and 1, not 'a'"),
        (lambda: bm.partition(GOOD, max_clusters=0), "max_clusters must be at least 1"),
        (lambda: bm.partition(GOOD, n_starts=0), "n_starts must be at least 1"),
    ],
)  # fmt: skip
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
