"""Reading a density: its peaks, the overlap of its clusters, its densest regions, its distribution in one dimension."""

import itertools
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from cases import NAMES, mixture
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, optimize, stats

import bayesmix as bm
from bayesmix.peaks import ridgeline
from bayesmix.quadratic import upper_tail

CROSSED = bm.GaussianMixture.of([0.5, 0.5], [[0, 0], [1, 1]], [[1, 0.05], [0.05, 1]], covariance="diag")
ONE = {
    "two hills": ([0.5, 0.5], [0.0, 4.0], [1.0, 1.0]),
    "a shoulder": ([0.7, 0.3], [0.0, 1.5], [1.0, 0.25]),
    "thin on broad": ([0.9, 0.1], [0.0, 0.3], [1.0, 1e-8]),
    "five": ([0.1, 0.2, 0.3, 0.15, 0.25], [-3.0, -1.0, 0.5, 2.0, 7.0], [0.2, 0.5, 0.05, 1.0, 2.0]),
    "a wide gap": ([0.3, 0.7], [-1e3, 1e3], [1.0, 4.0]),
    "far away": ([0.6, 0.4], [1e8, 1e8 + 3], [1.0, 0.5]),
    "one": ([1.0], [2.0], [9.0]),
    "one counts": ([1.0, 0.0], [2.0, 0.0], [9.0, 1.0]),
}


def one(name):
    return bm.GaussianMixture.of(*ONE[name])


def random_mixture(rng, k, d, thin=1.0, spread=1.5):
    """Clusters of any orientation, their standard deviations e^±thin."""
    axes = np.linalg.qr(rng.normal(size=(k, d, d)))[0]
    scaled = axes * np.exp(rng.normal(size=(k, 1, d)) * thin)
    covariances = scaled @ np.swapaxes(scaled, 1, 2)
    return bm.GaussianMixture.of(
        rng.dirichlet(np.full(k, 2.0)), rng.normal(size=(k, d)) * spread, covariances
    )


def slow_parts(m, x):
    precision = np.linalg.inv(m.covariances)
    pulls = -np.einsum("kij,nkj->nki", precision, x[:, None] - m.means)
    return m.responsibilities(x), pulls, precision


def slow_gradient(m, x):
    r, pulls, _ = slow_parts(m, x)
    return np.einsum("nk,nki->ni", r, pulls)


def slow_hessian(m, x):
    r, pulls, precision = slow_parts(m, x)
    mean = np.einsum("nk,nki->ni", r, pulls)
    square = np.einsum("nk,nki,nkj->nij", r, pulls, pulls) - np.einsum("nk,kij->nij", r, precision)
    return square - np.einsum("ni,nj->nij", mean, mean)


def slow_climb(m, x, steps=3000):
    """Steps of EM, nothing else: each rises, and all of them end somewhere level."""
    for _ in range(steps):
        r, _, precision = slow_parts(m, x)
        total = np.einsum("nk,kij->nij", r, precision)
        pull = np.einsum("nk,kij,kj->ni", r, precision, m.means)
        following = np.linalg.solve(total, pull[..., None])[..., 0]
        if np.abs(following - x).max() < 1e-11:
            break
        x = following
    return x


def assert_peaks(m, modes):
    assert modes.points.shape == (len(modes), m.n_features)
    scale = np.sqrt(np.diagonal(m.covariances, axis1=1, axis2=2)).min(axis=0)
    assert np.abs(slow_gradient(m, modes.points) * scale).max() < 1e-6
    assert_allclose(
        modes.curvature, -slow_hessian(m, modes.points), rtol=1e-6, atol=1e-6 * np.abs(modes.curvature).max()
    )
    assert (np.linalg.eigvalsh(modes.curvature) > 0).all()
    assert_allclose(modes.log_density, m.log_density(modes.points), rtol=1e-9, atol=1e-9)
    assert (np.diff(modes.log_density) <= 1e-9).all()


def test_two_clusters_make_three_peaks():
    modes = CROSSED.modes()
    assert len(modes) == 3
    assert_peaks(CROSSED, modes)
    assert_allclose(modes.points[0], [20 / 21, 1 / 21], rtol=1e-9)  # by symmetry halfway along the ridgeline
    assert_array_equal(modes.points, list(modes))
    assert_array_equal(modes.cluster_mode, [1, 2])
    table = modes.summary()
    assert table["clusters"].tolist() == [[], [0], [1]]
    assert_allclose(table[["x0", "x1"]], modes.points)


def test_three_clusters_make_a_fourth_peak_in_the_middle():
    corners = np.array([[1, 0], [-0.5, np.sqrt(0.75)], [-0.5, -np.sqrt(0.75)]])
    counts = [
        len(bm.GaussianMixture.of([1 / 3] * 3, side * corners, [1.0], covariance="EII").modes())
        for side in (1.3, 1.39, 1.6)
    ]
    assert counts == [1, 4, 3]


@pytest.mark.parametrize("name", NAMES)
def test_peaks_of_every_structure(name):
    m = mixture(name)
    modes = m.modes()
    assert_peaks(m, modes)
    ends = slow_climb(m, m.means)
    assert_allclose(modes.points[modes.cluster_mode], ends, atol=1e-5)


@pytest.mark.parametrize("name", ONE)
def test_peaks_in_one_dimension_are_those_of_a_dense_grid(name):
    m = one(name)
    sd = np.sqrt(m.covariances[:, 0, 0])
    around = m.means + sd[:, None] * np.linspace(-6, 6, 20_001)
    x = np.unique(np.concatenate([around.ravel(), np.linspace(m.means.min(), m.means.max(), 20_001)]))
    x = x[np.insert(np.diff(x) > 1e-5 * sd.min(), 0, True)]  # rounding makes tops of neighbours
    density = m.log_density(x)
    tops = x[1:-1][(density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])]
    modes = m.modes()
    assert len(modes) == len(tops)
    assert_allclose(np.sort(modes.points[:, 0]), tops, atol=2e-3 * sd.max(), rtol=1e-14)


@pytest.mark.parametrize("seed", range(12))
def test_peaks_in_two_dimensions_are_those_of_a_dense_grid(seed):
    rng = np.random.default_rng(seed)
    m = random_mixture(rng, 2 + seed % 4, 2, thin=0.5)
    modes = m.modes()
    assert_peaks(m, modes)
    low, high = m.means.min(axis=0) - 0.5, m.means.max(axis=0) + 0.5
    axes = [np.linspace(a, b, 500) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    density = m.log_density(grid.reshape(-1, 2)).reshape(500, 500)
    inner, top = density[1:-1, 1:-1], np.ones((498, 498), bool)
    for i, j in itertools.product((0, 1, 2), repeat=2):
        top &= inner >= density[i : i + 498, j : j + 498]
    found = slow_climb(m, grid[1:-1, 1:-1][top])
    distance = np.linalg.norm(found[:, None] - modes.points, axis=2)
    assert (distance.min(axis=1) < 1e-5).all()  # every top of the grid is a mode
    assert (distance.min(axis=0) < 1e-5).all()  # and every mode a top


@pytest.mark.parametrize(
    ("k", "d", "thin"), [(3, 2, 1.5), (6, 2, 1.0), (5, 3, 1.0), (4, 5, 0.8), (8, 1, 1.0)]
)
def test_hundreds_of_random_climbs_find_no_other_peak(k, d, thin):
    rng = np.random.default_rng(k * d)
    for _ in range(3):
        m = random_mixture(rng, k, d, thin)
        modes = m.modes()
        assert_peaks(m, modes)
        starts = rng.dirichlet(np.full(k, 0.5), 250) @ m.means + 0.3 * rng.normal(size=(250, d))
        ends = slow_climb(m, np.concatenate([starts, m.simulate(150, key=1)[0]]))
        tops = ends[np.linalg.eigvalsh(slow_hessian(m, ends)).max(axis=1) < 0]
        assert len(tops) > 380
        assert np.linalg.norm(tops[:, None] - modes.points, axis=2).min(axis=1).max() < 1e-3


def test_no_climb_rests_on_a_saddle():
    """The middle cluster's mean, and the middle of each ridgeline, are level by symmetry."""
    for weights, means in (
        ([0.5, 0.5], [[-3.0, 0], [3, 0]]),
        ([0.45, 0.1, 0.45], [[-1.5, 0], [0, 0], [1.5, 0]]),
    ):
        m = bm.GaussianMixture.of(weights, means, [1.0], covariance="EII")
        modes = m.modes()
        assert len(modes) == 2
        assert_peaks(m, modes)
        assert set(modes.cluster_mode) == {0, 1}


@pytest.mark.parametrize(
    ("distance", "count"),
    [(0.0, 1), (1e-9, 1), (1.5, 1), (1.999, 1), (2.0, 1), (2.01, 2), (9.0, 2), (1e7, 2)],
)
def test_two_equal_clusters_part_at_two_standard_deviations(distance, count):
    modes = bm.GaussianMixture.of([0.5, 0.5], [0.0, distance], [1.0, 1.0]).modes()
    assert len(modes) == count
    if count == 1:
        assert_allclose(modes.points[0, 0], distance / 2, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_peaks_move_and_stretch_with_the_columns(shift):
    m = random_mixture(np.random.default_rng(3), 5, 2)
    by = np.array([1e6, 1e-9])
    moved = bm.GaussianMixture.of(m.weights, (m.means + shift) * by, m.covariances * by * by[:, None])
    a, b = m.modes(), moved.modes()
    assert_allclose(b.points / by - shift, a.points, atol=1e-9)
    assert_allclose(b.log_density, a.log_density - np.log(by).sum(), atol=1e-9)
    assert_array_equal(b.cluster_mode, a.cluster_mode)
    assert_allclose(b.curvature * by * by[:, None], a.curvature, rtol=1e-6, atol=1e-6)


def test_peaks_as_far_apart_as_float64_has_digits_for():
    for means, deviations, expected in (
        ([0.0, 1.5, 1e12], [1, 1, 1], [0.75, 1e12]),
        ([0.0, 4.0, 1e11, 1e11 + 4], [1, 1, 1, 1], [0, 4, 1e11, 1e11 + 4]),
        ([0.0, 1.5e-12, 1.0], [1e-12, 1e-12, 0.1], [0.75e-12, 1]),
    ):
        m = bm.GaussianMixture.of(np.full(len(means), 1 / len(means)), means, np.square(deviations))
        assert_allclose(np.sort(m.modes().points[:, 0]), expected, rtol=1e-2, atol=1e-2 * min(deviations))
        region = m.highest_density_region(0.9)
        assert_allclose((m.cdf(region.intervals[:, 1]) - m.cdf(region.intervals[:, 0])).sum(), 0.9, atol=1e-3)
    with pytest.raises(ValueError, match="peaks of this mixture cannot be told"):
        bm.GaussianMixture.of([0.5, 0.5], [0.0, 1e17], [1.0, 1.0]).modes()


def test_peaks_of_many_thin_and_weightless_clusters():
    rng = np.random.default_rng(0)
    means = 20 * rng.normal(size=(30, 10))
    modes = bm.GaussianMixture.of(np.full(30, 1 / 30), means, np.ones(30), covariance="spherical").modes()
    assert len(modes) == 30
    assert_allclose(modes.points[modes.cluster_mode], means, atol=1e-9)
    thin = bm.GaussianMixture.of(
        [0.5, 0.5, 0], [[0, 0], [2, 2], [9, 9]], [[1, 1e-8], [1e-8, 1], [1, 1]], covariance="diag"
    )
    modes = thin.modes()
    assert len(modes) == 3
    assert np.linalg.norm(modes.points - [2, 0], axis=1).min() < 1e-6
    assert modes.cluster_mode[2] == modes.cluster_mode[1] != modes.cluster_mode[0]


def test_a_ridgeline_is_its_formula():
    rng = np.random.default_rng(1)
    m = random_mixture(rng, 2, 3)
    line = ridgeline(m.means, m.covariances, 50)
    assert_allclose(line[[0, -1]], m.means)
    precision = np.linalg.inv(m.covariances)
    first, second = np.einsum("kij,nkj->kni", precision, line[1:-1, None] - m.means)
    cosine = np.sum(first * second, axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert_allclose(cosine, -1, atol=1e-9)  # the two clusters pull in opposite directions: a ridge


def normal_overlap(m):
    """By sampling: how often each cluster's own draws look likelier under another."""
    rng, k, n = np.random.default_rng(0), m.n_components, 200_000
    out = np.zeros((k, k))
    for i in range(k):
        parts = m.log_joint(rng.multivariate_normal(m.means[i], m.covariances[i], n))
        out[i] = (parts > parts[:, [i]]).mean(axis=0)
    return out, np.sqrt(0.25 / n)


@pytest.mark.parametrize("name", NAMES)
def test_overlap_is_what_sampling_says(name):
    m = mixture(name)
    sampled, error = normal_overlap(m)
    overlap = m.overlap()
    assert_array_equal(np.diag(overlap), 0)
    assert_allclose(overlap, sampled, atol=4.5 * error)


def log_odds(m, i, j, x):
    """Of cluster j against cluster i, at points (n,) or one."""
    return np.diff(m.log_joint(np.atleast_1d(x))[:, [i, j]], axis=1).reshape(np.shape(x))


@pytest.mark.parametrize("name", ["two hills", "a shoulder", "thin on broad", "five"])
def test_overlap_in_one_dimension_is_quadrature(name):
    m = one(name)
    sd = np.sqrt(m.covariances[:, 0, 0])
    overlap = m.overlap()
    for i, j in itertools.permutations(range(m.n_components), 2):
        odds = partial(log_odds, m, i, j)
        around = [m.means[c] + sd[c] * np.linspace(-12, 12, 4001) for c in (i, j)]
        x = np.unique(np.concatenate(around))
        turns = np.flatnonzero(np.diff(odds(x) > 0))
        roots = [optimize.brentq(odds, x[t], x[t + 1], xtol=1e-15) for t in turns]
        ends = [-np.inf, *roots, np.inf]
        law = stats.norm(m.means[i, 0], sd[i])
        middles = [roots[0] - 1, *np.diff(roots) / 2 + roots[:-1], roots[-1] + 1] if roots else [0.0]
        pieces = zip(itertools.pairwise(ends), middles, strict=True)
        expected = sum(law.cdf(b) - law.cdf(a) for (a, b), c in pieces if odds(c) > 0)
        assert_allclose(overlap[i, j], expected, atol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 6])
def test_overlap_of_equal_covariances_is_one_normal_tail(d):
    rng = np.random.default_rng(d)
    factor = rng.normal(size=(d, d)) + 2 * np.eye(d)
    weights, means = np.array([0.6, 0.3, 0.1]), rng.normal(size=(3, d))
    m = bm.GaussianMixture.of(weights, means, [factor @ factor.T] * 3, covariance="EEE")
    full = bm.GaussianMixture.of(weights, means, m.covariances * np.array([1, 1 + 1e-7, 1])[:, None, None])
    for i, j in itertools.permutations(range(3), 2):
        distance = np.linalg.norm(np.linalg.solve(factor, means[i] - means[j]))
        expected = stats.norm.cdf(-distance / 2 + np.log(weights[j] / weights[i]) / distance)
        assert_allclose(m.overlap()[i, j], expected, atol=1e-12)
        assert_allclose(full.overlap()[i, j], expected, atol=1e-5)


def conditional_tail(alpha, beta, t):
    """P(α z² - 2 β z > t) with two features: exact in the second given the first, quadrature over the first."""

    def given(z):
        rest = t - (alpha[0] * z * z - 2 * beta[0] * z)
        square = beta[1] ** 2 + alpha[1] * rest
        if square <= 0:
            return float(alpha[1] > 0) * stats.norm.pdf(z)
        low, high = np.sort((beta[1] + np.array([-1, 1]) * np.sqrt(square)) / alpha[1])
        between = stats.norm.cdf(high) - stats.norm.cdf(low)
        return (1 - between if alpha[1] > 0 else between) * stats.norm.pdf(z)

    kinks = np.roots([-alpha[1] * alpha[0], 2 * alpha[1] * beta[0], beta[1] ** 2 + alpha[1] * t])
    kinks = [z.real for z in kinks if abs(z.imag) < 1e-12 and abs(z.real) < 12]
    cuts = sorted([-12, -4, -1, 0, 1, 4, 12, *kinks])
    pieces = [
        integrate.quad(given, a, b, epsabs=1e-13, limit=200)[0] for a, b in itertools.pairwise(cuts) if b > a
    ]
    return sum(pieces)


def test_the_law_of_a_quadratic_form_is_quadrature():
    rng = np.random.default_rng(4)
    alphas = rng.choice([1.0, -1.0, 100, -100, 0.01, -1e4, 1e-4], (25, 2)) * rng.uniform(0.5, 1, (25, 2))
    betas = rng.normal(size=(25, 2)) * rng.choice([0, 0.3, 3], (25, 2)) * np.sqrt(np.abs(alphas))
    spread = np.sqrt(2 * (alphas**2).sum(axis=1) + 4 * (betas**2).sum(axis=1))
    t = alphas.sum(axis=1) + spread * rng.normal(size=25)
    order = np.argsort(np.abs(alphas), axis=1)  # given the smaller, so that the kinks are mild
    alphas, betas = (np.take_along_axis(a, order, axis=1) for a in (alphas, betas))
    expected = [conditional_tail(*case) for case in zip(alphas, betas, t, strict=True)]
    assert_allclose(upper_tail(alphas, betas, t), expected, atol=1e-9)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_the_law_of_a_quadratic_form_keeps_the_digits_of_chi_square(d):
    t = np.array([1e-3, 0.1, 1.0, d, 3 * d, 100, 1000])
    ones, zeros = np.ones((t.size, d)), np.zeros((t.size, d))
    assert_allclose(upper_tail(2 * ones, zeros, 2 * t), stats.chi2.sf(t, d), rtol=1e-9)
    assert_allclose(upper_tail(-ones, zeros, -t), stats.chi2.cdf(t, d), rtol=1e-9)
    shift = np.full((t.size, d), np.sqrt(3 / d))
    assert_allclose(upper_tail(ones, shift, t - 3), stats.ncx2.sf(t, d, 3), rtol=1e-7)
    assert_array_equal(upper_tail(-ones, zeros, t), 0)
    assert_array_equal(upper_tail(ones, zeros, -t), 1)


def test_overlap_of_extremes_is_no_nan():
    eye = np.eye(2)
    m = bm.GaussianMixture.of([0.5, 0.5, 0.0, 0.0], np.zeros((4, 2)), [eye, eye, eye, eye])
    assert_array_equal(
        m.overlap()[:2, :2], [[0, 0.5], [0.5, 0]]
    )  # identical clusters tie, and a tie counts half
    assert_array_equal(m.overlap()[2], [1, 1, 0, 0])
    uneven = bm.GaussianMixture.of([0.7, 0.3], np.zeros((2, 2)), [eye, eye])
    assert_array_equal(uneven.overlap(), [[0, 0], [1, 0]])
    # A thin cluster inside a broad one takes what falls within r² = -2 (log .../(1 - 1e-8)) of its centre.
    thin = bm.GaussianMixture.of([0.5, 0.5], np.zeros((2, 2)), [eye, 1e-8 * eye])
    edge = 2 * np.log(1e8) / (1 - 1e-8)
    assert_allclose(thin.overlap()[1, 0], np.exp(-edge / 2), rtol=1e-6)
    assert_allclose(thin.overlap()[0, 1], -np.expm1(-edge * 1e-8 / 2), rtol=1e-6)
    far = bm.GaussianMixture.of([0.5, 0.5], [[0, 0], [1e6, 0]], [eye, np.diag([1e-4, 2.0])]).overlap()
    assert_array_equal(far, 0)
    assert bm.GaussianMixture.of([1.0], [[0.0, 0.0]], [eye]).overlap() == 0


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("coverage", [1e-3, 0.2, 0.5, 0.9, 0.99, 1 - 1e-9])
def test_a_region_on_a_line_holds_its_coverage_and_ends_at_its_level(name, coverage):
    m = one(name)
    region = m.highest_density_region(coverage)
    assert region.coverage == coverage
    assert region.coverage_error == 0
    low, high = region.intervals.T
    assert (low < high).all()
    assert (high[:-1] < low[1:]).all()
    atol = 1e-8 if abs(m.means).max() < 1e6 else 1e-6  # at 1e8 an end is known to 1e-8
    assert_allclose(np.sum(m.cdf(high) - m.cdf(low)), coverage, atol=atol)
    assert_allclose(m.log_density(region.intervals.ravel()), region.log_level, atol=1e-5)
    assert len(low) <= len(m.modes())
    assert region.contains((low + high) / 2).all()
    sd = np.sqrt(m.covariances[:, 0, 0])
    x = np.unique((m.means + sd[:, None] * np.linspace(-5, 5, 2001)).ravel())
    within = ((x[:, None] > low) & (x[:, None] < high)).any(axis=1)
    clear = np.abs(m.log_density(x) - region.log_level) > 1e-5
    assert_array_equal(within[clear], region.contains(x)[clear])


def test_a_region_is_a_normal_interval_and_comes_in_pieces():
    assert_allclose(
        one("one").highest_density_region(0.95).intervals, [stats.norm(2, 3).interval(0.95)], atol=1e-7
    )
    two = one("two hills")
    assert [len(two.highest_density_region(c).intervals) for c in (0.5, 0.9, 0.99)] == [2, 2, 1]


@pytest.mark.parametrize("d", [2, 5])
def test_a_region_of_one_cluster_is_chi_square(d):
    factor = np.tril(np.ones((d, d)))
    m = bm.GaussianMixture.of([1.0], np.ones((1, d)), [factor @ factor.T])
    for coverage in (0.1, 0.95, 1 - 1e-12):
        region = m.highest_density_region(coverage)
        radius = np.sqrt(stats.chi2.isf(1 - coverage, d))
        assert region.coverage_error == 0
        assert region.intervals is None
        direction = factor @ np.eye(d)[0]
        assert_array_equal(
            region.contains([1 + radius * s * direction for s in (1 - 1e-7, 1 + 1e-7)]), [True, False]
        )


def test_a_region_holds_its_coverage_of_fresh_draws():
    m = CROSSED
    fresh = m.simulate(400_000, key=99)[0]
    for coverage in (0.3, 0.9):
        region = m.highest_density_region(coverage)
        assert_allclose(region.coverage_error, np.sqrt(coverage * (1 - coverage) / 1e5))
        share = region.contains(fresh).mean()
        assert abs(share - coverage) < 4 * region.coverage_error * np.sqrt(1.25)
        assert m.highest_density_region(coverage).log_level == region.log_level
    few = m.highest_density_region(0.9, key=1, n_draws=1000)
    assert_allclose(few.coverage_error, np.sqrt(0.09 / 1000))
    assert few.log_level != m.highest_density_region(0.9, key=2, n_draws=1000).log_level


@pytest.mark.parametrize("name", ONE)
def test_cdf_is_the_sum_of_normal_ones(name):
    m = one(name)
    sd = np.sqrt(m.covariances[:, 0, 0])
    for side in (-1, 1):
        x = (m.means + side * sd[:, None] * np.array([0, 0.1, 1, 3, 8, 20, 35])).ravel()
        law = stats.norm(m.means[:, 0], sd)
        assert_allclose(m.cdf(x), law.cdf(x[:, None]) @ m.weights, rtol=1e-12)
    assert_array_equal(m.cdf([-np.inf, np.inf]), [0, 1])
    assert m.cdf(m.means[0, 0]).shape == ()
    assert m.cdf(m.means).shape == (m.n_components,)


def test_cdf_takes_a_tables_column_by_name():
    m = bm.GaussianMixture.of([1.0], [[0.0]], [[[1.0]]], feature_names=["a"])
    assert_array_equal(m.cdf(pandas.DataFrame({"a": [0.0, 1.0]})), m.cdf([0.0, 1.0]))
    assert_array_equal(m.cdf(pandas.Series([0.0, 1.0], name="b")), m.cdf([0.0, 1.0]))
    with pytest.raises(ValueError, match="it lacks 'a' and 'b' is none of them"):
        m.cdf(pandas.DataFrame({"b": [0.0, 1.0]}))


@pytest.mark.parametrize("name", ONE)
def test_quantile_is_brentq_and_undoes_cdf(name):
    m = one(name)
    sd = np.sqrt(m.covariances[:, 0, 0])
    law = stats.norm(m.means[:, 0], sd)
    p = np.array([1e-300, 1e-100, 1e-17, 1e-9, 0.01, 0.2, 0.45, 0.62, 0.9, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53])
    x = m.quantile(p)
    for share, at in zip(p, x, strict=True):

        def miss(v, share=share):
            if share < 0.5:
                return log_sum(law.logcdf(v), m) - np.log(share)
            return np.log1p(-share) - log_sum(law.logsf(v), m)

        ends = [m.means.min() - 50 * sd.max(), m.means.max() + 50 * sd.max()]
        root = optimize.brentq(miss, *ends, xtol=1e-15, rtol=1e-15)
        assert_allclose(at, root, atol=1e-10 * sd.max(), rtol=1e-15)
    assert (np.diff(x) > 0).all()


def log_sum(logs, m):
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(np.log(m.weights) + logs)


def test_quantile_keeps_shapes_and_reaches_the_ends():
    m = one("five")
    assert_array_equal(m.quantile([0, 1]), [-np.inf, np.inf])
    assert np.isscalar(m.quantile(0.5))
    assert m.quantile(np.full((2, 3), 0.5)).shape == (2, 3)
    assert_allclose(one("two hills").quantile(0.5), 2)
    gap = bm.GaussianMixture.of([0.5, 0.5], [0.0, 60.0], [1.0, 1.0])
    assert_allclose(gap.quantile(0.5), 30, atol=1e-9)  # where the tails balance, though F is flat to rounding
    ten = bm.GaussianMixture.of(np.full(10, 0.1), np.arange(10.0), np.ones(10))
    assert_allclose(ten.quantile(1 - 2**-53) - 9, -ten.quantile(2**-53), atol=1e-10)


def test_distributions_lift_over_a_batch():
    m = one("five")
    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 0]), m)
    with jax.enable_x64(True):
        lifted = jax.vmap(lambda m: (m.cdf([0.5]), m.quantile([0.3])))(batch)
        slope = jax.grad(lambda x: m.cdf(x))(0.3)
    assert_allclose(lifted[0][:, 0], m.cdf(0.5))
    assert_allclose(lifted[1][:, 0], m.quantile(0.3))
    assert_allclose(slope, np.exp(m.log_density([0.3])[0]))


@pytest.mark.parametrize("p", [0.5, 0.2, 1e-12, 1 - 1e-9])
def test_quantiles_have_the_derivatives_of_a_root(p):
    """Also where the search begins at it, as at the median of a symmetric mixture, or has no step to take."""
    even = bm.GaussianMixture.of([0.5, 0.5], [-1.0, 1.0], [1.0, 1.0])
    same = bm.GaussianMixture.of([0.3, 0.7], [0.0, 0.0], [1.0, 1.0])
    with jax.enable_x64(True):
        for m in (even, same, one("five")):
            density = np.exp(m.log_density([m.quantile(p)])[0])
            for slope in (jax.grad, jax.jacfwd):
                assert_allclose(slope(lambda p, m=m: m.quantile(p))(p), 1 / density, rtol=1e-6)

        def moved(mean):
            return replace(same, means=jnp.array([[0.0], [0.0]]).at[0, 0].add(mean)).quantile(p)

        assert_allclose([jax.grad(moved)(0.0), jax.jacfwd(moved)(0.0)], 0.3, rtol=1e-9)
        assert jax.vmap(even.quantile)(jnp.array([0.0, 1.0, 2.0])).tolist()[:2] == [-np.inf, np.inf]


def singular():
    """What the constructor, which does not check, lets through."""
    return jax.tree.map(
        lambda leaf: leaf * (leaf.ndim < 3), bm.GaussianMixture.of([1.0], [[0.0, 0]], [np.eye(2)])
    )


BATCH = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), CROSSED)
CALLS = {
    "cdf of two": (lambda: CROSSED.cdf([0.0]), r"cdf is for one feature.*mixture\.marginal"),
    "quantile of two": (lambda: CROSSED.quantile(0.5), r"quantile is for one feature.*mixture\.marginal"),
    "no probability": (lambda: one("one").quantile([0.2, 1.5]), "p must be probabilities.*1.5"),
    "a missing probability": (lambda: one("one").quantile([0.2, np.nan]), "not finite"),
    "a missing point": (lambda: one("one").cdf([np.nan]), "x have a value"),
    "two columns": (lambda: one("one").cdf([[0.0, 1.0]]), r"\(1, 2\)"),
    "text": (lambda: one("one").cdf(["a"]), "x is not numeric"),
    "coverage one": (lambda: CROSSED.highest_density_region(1), "coverage must be between 0 and 1, not 1"),
    "coverage zero": (lambda: one("one").highest_density_region(0.0), "coverage must be"),
    "coverage none": (lambda: one("one").highest_density_region(None), "coverage must be"),
    "too few draws": (lambda: CROSSED.highest_density_region(0.999, n_draws=1000), "at least 20000"),
    "draws": (lambda: CROSSED.highest_density_region(0.9, n_draws=0), "n_draws must be at least 1"),
    "points": (lambda: CROSSED.highest_density_region(0.9).contains([[1.0]]), "x has 1 features"),
    "a batch's modes": (lambda: BATCH.modes(), "take one out of a batch"),
    "a batch's overlap": (lambda: BATCH.overlap(), "take one out of a batch"),
    "a singular covariance": (lambda: singular().modes(), "singular to rounding"),
    "under jit": (lambda: jax.jit(lambda m: m.modes().points)(CROSSED), "outside jit"),
    "a batch's cdf": (lambda: jax.tree.map(lambda a: np.stack([a, a]), one("one")).cdf(0.0), "vmap"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_are_one_error(case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_reading_computes_in_float64_and_changes_nothing():
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), CROSSED)
    assert single.modes().points.dtype == np.float64
    assert_allclose(single.modes().points, CROSSED.modes().points, atol=1e-6)
    assert_allclose(single.overlap(), CROSSED.overlap(), atol=1e-6)
    assert single.means.dtype == np.float32


def test_reading_loads_scipy_and_pandas_only_where_they_are_used():
    code = (
        "import sys, bayesmix as bm\n"
        "before = {m for m in ('pandas', 'scipy.optimize', 'numpyro') if m in sys.modules}\n"
        "bm.GaussianMixture.of([.5, .5], [[0., 0.], [1., 1.]], [1., 2.], covariance='spherical').modes()\n"
        "print(before, 'pandas' in sys.modules, 'scipy.optimize' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set() False False"


def test_a_mean_climbs_the_hill_that_em_climbs():
    """And that the gradient's flow climbs; longer steps, as those that find peaks, may leave it for another."""
    variances = np.array([[0.8, 0.8], [0.5, 0.4], [0.1, 0.7], [0.3, 0.9]])
    means = np.array([[1.2, -2.3], [-0.4, -0.4], [0.4, -1.1], [-1.4, 1.1]])
    m = bm.GaussianMixture.of([0.2, 0.1, 0.2, 0.5], means, variances, covariance="diag")
    modes = m.modes()
    assert_allclose(modes.points[modes.cluster_mode], slow_climb(m, m.means), atol=1e-5)


def test_clusters_farther_apart_than_squares_can_be_held():
    m = bm.GaussianMixture.of([0.5, 0.5], [-1e200, 1e200], [1e300, 1e300])
    for read in (m.modes, lambda: m.highest_density_region(0.5)):
        with pytest.raises(ValueError, match="the peaks of this mixture cannot be told"):
            read()
    wide = bm.GaussianMixture.of([0.5, 0.5], [-1.7e308, 1.7e308], [1e300, 1e300])
    assert_allclose(wide.quantile([0.1, 0.5, 0.9]), [-1.7e308, 0, 1.7e308])


def test_small_coverages_in_one_dimension_are_exact_or_refused():
    m = bm.GaussianMixture.of([1.0], [0.0], [1.0])
    for coverage in (1e-6, 1e-4):
        ends = m.highest_density_region(coverage).intervals
        assert_allclose(ends, [stats.norm.ppf([(1 - coverage) / 2, (1 + coverage) / 2])], rtol=1e-3)
    with pytest.raises(ValueError, match="coverage must be at least 1e-06 in one dimension, not 1e-08"):
        m.highest_density_region(1e-8)


def test_a_series_may_have_infinities_where_a_list_may():
    m = bm.GaussianMixture.of([1.0], [0.0], [1.0])
    assert m.cdf(pandas.Series([-np.inf, 0, np.inf])).tolist() == [0, 0.5, 1]
    with pytest.raises(ValueError, match="a missing value in row 0"):
        m.cdf(pandas.Series([np.nan, 0.0]))
