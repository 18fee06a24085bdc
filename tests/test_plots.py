"""Figures are tested on what they drew: how many lines and ellipses, where, with which words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import xarray
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

import bayesmix as bm
from bayesmix import plots
from bayesmix.covariance import STRUCTURES, Covariance
from bayesmix.plots.structures import structure_covariances
from bayesmix.plots.style import style_of

COVARIANCES = [[[4.0, 0.0], [0.0, 1.0]], [[1.0, 0.6], [0.6, 1.0]]]
MIXTURE = bm.GaussianMixture.of([0.7, 0.3], [[0.0, 0.0], [5.0, 3.0]], COVARIANCES, feature_names=["a", "b"])
TABLE = pandas.DataFrame(
    {
        "n_components": [1, 2, 3, 4, 1, 2],
        "covariance": ["VVV", "VVV", "VVV", "VVV", "EII", "EII"],
        "bic": [30.0, 20.0, 25.0, -900.0, 31.0, 22.0],
        "spurious": [False, False, False, True, False, False],
    }
)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


def empty():
    return Figure().subplots()


def ellipses(ax):
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


def test_pair_draws_points_and_two_ellipses_a_cluster():
    x, _ = MIXTURE.simulate(50, key=0)
    given = empty()
    ax = plots.plot_clusters(MIXTURE, x, ax=given)
    assert ax is given
    assert len(ellipses(ax)) == 4
    assert sum(len(cloud.get_offsets()) for cloud in ax.collections if hasattr(cloud, "get_sizes")) >= 50
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0  (0.7)", "1  (0.3)"]


def test_ellipse_lies_at_one_and_two_standard_deviations():
    ax = plots.plot_clusters(MIXTURE, ax=empty())
    first = ellipses(ax)
    assert (first[0].width, first[0].height) == pytest.approx((4, 2))
    assert (first[1].width, first[1].height) == pytest.approx((8, 4))
    for patch, radius in zip(first[2:], (1, 2)):
        edge = patch.get_patch_transform().transform(patch.get_path().vertices[:-1])
        away = edge - MIXTURE.means[1]
        distance = np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(COVARIANCES[1]), away))
        assert distance.max() == pytest.approx(radius, rel=0.05)
        assert distance.min() == pytest.approx(radius, rel=0.05)


def test_a_point_has_the_mixed_colour_of_its_clusters():
    mixture = bm.GaussianMixture.of([0.5, 0.5], [[0.0, 0.0], [4.0, 0.0]], [1.0, 1.0], covariance="VII")
    ax = plots.plot_clusters(mixture, [[2.0, 0.0]], ax=empty())
    mixed = (np.array(to_rgb(plots.COLORS[0])) + to_rgb(plots.COLORS[1])) / 2
    (cloud,) = (c for c in ax.collections if len(c.get_offsets()) == 1 and len(c.get_facecolors()))
    assert cloud.get_facecolors()[0, :3] == pytest.approx(mixed)


def test_one_feature_draws_components_and_their_sum():
    mixture = MIXTURE.marginal(["a"])
    x = mixture.simulate(200, key=0)[0]
    ax = plots.plot_clusters(mixture, x, ax=empty())
    curves = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert [line.get_linestyle() for line in curves] == ["-", "--", "--"]
    grid, height = curves[0].get_data()
    assert height == pytest.approx(np.exp(mixture.log_density(grid)))
    assert np.nansum([line.get_ydata() for line in curves[1:]], axis=0) == pytest.approx(height, abs=0.004)
    bars = np.array([(bar.get_width(), bar.get_height()) for bar in ax.patches])
    assert bars.prod(axis=1).sum() == pytest.approx(1)
    assert ax.get_xlabel() == "a"


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_integer_and_constant_columns_have_bars_at_every_scale(scale):
    mixture = bm.GaussianMixture.of([1.0], [[2.0 * scale]], [[[scale**2]]])
    for x in (scale * np.array([1.0, 1.0, 2.0, 3.0]), np.full(5, 2.0 * scale)):
        ax = plots.plot_clusters(mixture, x, ax=empty())
        assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(1)


def test_more_features_make_a_grid_coloured_by_all_of_them():
    mixture = bm.GaussianMixture.of(
        [0.5, 0.5], [[0.0] * 3, [0.0, 0.0, 9.0]], [1.0, 1.0], covariance="VII", feature_names=["a", "b", "c"]
    )
    axes = plots.plot_clusters(mixture, [[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    assert axes.shape == (3, 3)
    assert [len(ellipses(axes[i, j])) for i, j in ((1, 0), (2, 0), (2, 1))] == [4, 4, 4]
    assert not axes[0, 2].axison
    clouds = [c for c in axes[1, 0].collections if len(c.get_facecolors())]
    colors = np.array([cloud.get_facecolors()[0, :3] for cloud in clouds])
    assert colors == pytest.approx(np.array([to_rgb(color) for color in plots.COLORS[:2]]))
    assert [axes[2, j].get_xlabel() for j in range(3)] == ["a", "b", "c"]


def test_features_choose_the_panels_and_too_many_are_cut():
    mixture = bm.GaussianMixture.of([1.0], [[0.0] * 7], [1.0], covariance="VII")
    assert plots.plot_clusters(mixture, features=[5, 6], ax=empty()).get_xlabel() == "x5"
    figure = Figure()
    axes = plots.plot_clusters(mixture, ax=figure.subplots(6, 6))
    assert axes[0, 1].texts[0].get_text() == "first 6 of 7 features"


def test_forty_nine_clusters_look_different():
    assert len({style_of(cluster) for cluster in range(49)}) == 49


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.plot_clusters(MIXTURE, [[1.0, 2.0, 3.0]], ax=empty()), "2 are needed"),
        (lambda: plots.plot_clusters(MIXTURE, features=["z"]), "feature must be one of"),
        (
            lambda: plots.plot_clusters(
                bm.GaussianMixture.of([1.0], [[0.0] * 3], [1.0], covariance="VII"), ax=empty()
            ),
            r"\(3, 3\) array",
        ),
        (lambda: plots.plot_criterion({}), "empty"),
        (
            lambda: plots.plot_prior(prior_draws([MIXTURE], 5, ("a", "b")), n_draws=2),
            "n_draws is 2, but the tree has 1 draws",
        ),
        (
            lambda: plots.plot_prior(prior_draws([MIXTURE], 5, ("a", "b")), features=[0, 1, 0], n_draws=1),
            "one or two features; features has 3",
        ),
        (
            lambda: plots.plot_prior(
                prior_draws([MIXTURE], 5, ("a", "b")), n_draws=1, ax=Figure().subplots(2)
            ),
            "a prior of 1 draws needs ax as an array of 1",
        ),
        (lambda: plots.plot_criterion(TABLE, criterion="dic"), "criterion must be one of"),
        (
            lambda: plots.plot_search(search_of({}), criterion="foo"),
            "criterion must be one of 'bic', 'aic', ",
        ),
        (lambda: plots.plot_criterion(TABLE.drop(columns="bic")), r"lacks \['bic'\]"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_objective_ends_at_the_last_step():
    x = np.r_[np.zeros(3), np.ones(3), 9.0, 10.0, 11.0]
    fit = bm.fit(bm.MixtureModel(2, "E"), x)
    (line,) = plots.plot_objective(fit, ax=empty()).lines
    assert line.get_xdata()[-1] == fit.n_steps
    assert line.get_ydata() == pytest.approx(fit.objective)


def test_criterion_draws_clean_fits_on_a_line_and_spurious_ones_off_it():
    ax = plots.plot_criterion(TABLE, ax=empty())
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert lines["VVV"].tolist() == [[1, 30], [2, 20], [3, 25]]
    assert lines["EII"].tolist() == [[1, 31], [2, 22]]
    assert lines["lowest: k = 2"].tolist() == [[2, 20]]
    assert "spurious, never chosen" in lines
    low, high = ax.get_ylim()
    assert 15 < low < 20 < 31 < high < 40
    (hollow,) = [line for line in ax.lines if line.get_label().startswith("_")]
    assert hollow.get_xydata().tolist() == [[4, low]]


def test_criterion_takes_fits_by_k():
    x = np.r_[np.zeros(3), np.ones(3), 9.0, 10.0, 11.0]
    fits = {k: bm.fit(bm.MixtureModel(k, "E"), x) for k in (1, 2)}
    ax = plots.plot_criterion(fits, criterion="icl")
    assert ax.lines[0].get_ydata() == pytest.approx([fits[1].icl, fits[2].icl])
    assert "ICL" in ax.get_ylabel()


THREE = bm.GaussianMixture.of([0.3, 0.4, 0.3], [[0.0], [9.0], [1.0]], [[[1.0]]] * 3)


def test_merging_draws_a_tree_and_the_entropy_twice():
    hierarchy = bm.merge_clusters(THREE, THREE.simulate(300, key=0)[0])
    given = Figure().subplots(1, 3)
    tree, clusters, merged = hierarchy.plot(ax=given)
    assert (tree, clusters, merged) == tuple(given)
    joins = [line.get_xydata().tolist() for line in tree.lines if len(line.get_xdata()) == 4]
    assert joins == [[[0, 3], [0, 2], [1, 2], [1, 3]], [[0.5, 2], [0.5, 1], [2, 1], [2, 3]]]
    assert [label.get_text() for label in tree.get_xticklabels()] == ["0", "2", "1"]
    lowered = np.diff(hierarchy.entropy)[::-1]
    assert [text.get_text() for text in tree.texts] == [f"{nats:.3g}" for nats in lowered]
    for ax, place in ((clusters, [1, 2, 3]), (merged, hierarchy.n_merged)):
        points, left, right, ring = (line.get_xydata() for line in ax.lines)
        assert points == pytest.approx(np.column_stack([place, hierarchy.entropy]))
        assert left[-1, 0] == right[0, 0] == ring[0, 0] == place[1]
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["elbow: 2 clusters"]


def test_a_tree_has_no_crossing_branches_and_group_colours_below_the_elbow():
    rng = np.random.default_rng(0)
    mixture = bm.GaussianMixture.of(
        np.full(8, 1 / 8), 4 * rng.normal(size=(8, 2)), np.ones(8), covariance="VII"
    )
    hierarchy = bm.merge_clusters(mixture, mixture.simulate(500, key=0)[0])
    tree = plots.plot_merging(hierarchy)[0]
    order = [int(label.get_text()) for label in tree.get_xticklabels()]
    assert sorted(order) == list(range(8))
    for m in range(1, 8):
        groups = hierarchy.groups(m)[order]
        assert np.count_nonzero(np.diff(groups)) == m - 1
    colors = [line.get_color() for line in tree.lines if len(line.get_xdata()) == 4]
    grey = [color == "0.35" for color in colors]
    assert grey == [left < hierarchy.n_elbow for left in range(7, 0, -1)]


def test_two_clusters_have_a_tree_and_no_lines():
    x = MIXTURE.simulate(100, key=0)[0]
    axes = plots.plot_merging(bm.merge_clusters(MIXTURE, x))
    assert [len(ax.lines) for ax in axes[1:]] == [1, 1]  # nor an elbow


def test_check_draws_quantiles_a_cluster_and_the_distribution_of_one_feature():
    x = THREE.simulate(200, key=0)[0]
    check = bm.check_fit(THREE, x)
    axes = check.plot(ax=Figure().subplots(2, 2))
    assert len(axes) == 4
    for cluster, (ax, distances) in enumerate(zip(axes, check.distances)):
        lines = {line.get_label(): line.get_xydata() for line in ax.lines}
        assert lines["data"] == pytest.approx(np.column_stack([distances.expected, distances.observed]))
        assert lines["chi-square law"][:, 1] == pytest.approx(distances.chi_square)
        (band,) = ax.collections
        edge = band.get_paths()[0].vertices
        assert (edge[:, 1].min(), edge[:, 1].max()) == pytest.approx(
            (distances.low.min(), distances.high.max())
        )
        assert ax.get_title().startswith(f"cluster {cluster}: {distances.n_points:g} points, tail ")
    steps = axes[3].lines[1].get_ydata()
    assert np.abs(steps).max() == pytest.approx(check.checks["distribution"].observed[0])
    limit = check.checks["distribution"].high[0]
    assert sorted(line.get_ydata()[0] for line in axes[3].lines[2:]) == pytest.approx([-limit, limit])


def test_check_of_more_features_has_a_panel_a_cluster_and_an_empty_one_says_so():
    far = bm.GaussianMixture.of([0.5, 0.5], [[0.0, 0.0], [99.0, 0.0]], [1.0, 1.0], covariance="VII")
    axes = plots.plot_check(bm.check_fit(far, np.random.default_rng(0).normal(size=(40, 2))))
    assert len(axes) == 2
    assert axes[1].get_title() == "cluster 1: 0 points, tail 1"
    assert not axes[1].lines


def test_five_panels_fill_a_grid_and_the_spare_one_is_off():
    means = np.c_[9.0 * np.arange(5), np.zeros(5)]
    mixture = bm.GaussianMixture.of(np.full(5, 0.2), means, [1.0], covariance="EII")
    axes = plots.plot_check(bm.check_fit(mixture, mixture.simulate(60, key=0)[0], n_draws=99))
    assert [ax.axison for ax in axes[0].figure.axes] == [True] * 5 + [False]


def prior_draws(mixtures, rows, names):
    """A tree as `prior_predictive` makes it, of given mixtures."""
    import jax

    from bayesmix.trees import prior_tree

    simulated = [mixture.simulate(rows, key=i) for i, mixture in enumerate(mixtures)]
    drawn = {name: np.stack([pair[i] for pair in simulated]) for i, name in enumerate(("x", "z"))}
    return prior_tree(jax.tree.map(lambda *leaves: np.stack(leaves), *mixtures), {}, drawn, names, {})


def test_prior_draws_points_and_ellipses_beside_the_data():
    rng = np.random.default_rng(0)
    tree = prior_draws([MIXTURE] * 4, 50, ("a", "b"))
    x = rng.normal(size=(30, 2)) + [40, 0]
    axes = plots.plot_prior(tree, x, n_draws=3)
    assert [ax.get_title() for ax in axes] == ["data", *(f"draw {i} of the prior" for i in range(3))]
    (cloud,) = axes[0].lines
    assert cloud.get_xydata() == pytest.approx(x)
    drawn, z = (tree["prior_predictive"][name].values[0, 1] for name in ("x", "z"))
    for cluster, line in enumerate(axes[2].lines):
        assert line.get_xydata() == pytest.approx(drawn[z == cluster])
        assert (line.get_color(), line.get_marker()) == style_of(cluster)
    assert len(ellipses(axes[2])) == 4
    assert {ax.get_xlim() for ax in axes} == {axes[0].get_xlim()}
    low, high = axes[0].get_xlim()
    assert low < drawn[:, 0].min()
    assert high > x[:, 0].max()
    assert (axes[1].get_xlabel(), axes[1].get_ylabel()) == ("a", "b")
    assert plots.plot_prior(tree, features=["b", 0], n_draws=1, ax=empty())[0].get_xlabel() == "b"


def test_prior_of_one_feature_draws_shares_and_what_the_mixture_expects():
    tree = prior_draws([MIXTURE.marginal([0])] * 2, 400, ("a",))
    data, panel = plots.plot_prior(tree, tree["prior_predictive"]["x"].values[0, 1], n_draws=1)
    for ax, least in ((data, 1 - 1e-9), (panel, 0.98)):
        bars = [bar for bar in ax.patches if hasattr(bar, "get_height")]
        assert least <= sum(bar.get_height() for bar in bars) <= 1 + 1e-9
    (stairs,) = [patch for patch in panel.patches if hasattr(patch, "get_data")]
    heights, edges, _ = stairs.get_data()
    assert heights == pytest.approx(np.diff(MIXTURE.marginal([0]).cdf(edges)))
    single = prior_draws([MIXTURE.marginal([0])], 1, ("a",))
    (panel,) = plots.plot_prior(single, n_draws=1, ax=empty())
    assert len(panel.patches) == 1


def test_structures_are_what_their_letters_say():
    axes = plots.plot_structures()
    titles = [ax.get_title() for ax in axes.ravel() if ax.get_title()]
    names = [title.split()[0] for title in titles]
    assert set(names) == {name for name, row in STRUCTURES.items() if row.n_features != 1}
    assert "VVV (full)" in titles
    for ax, name in zip([ax for ax in axes.ravel() if ax.get_title()], names):
        drawn = ellipses(ax)
        assert len(drawn) == 3
        volumes = np.array([patch.width * patch.height for patch in drawn])
        ratios = np.array([patch.width / patch.height for patch in drawn])
        turns = np.radians([patch.angle for patch in drawn])
        directions = np.abs(np.exp(2j * turns) - np.exp(2j * turns[0])).max()
        for letter, differ in ((name[0], np.ptp(volumes)), (name[1], np.ptp(ratios)), (name[2], directions)):
            assert (differ > 0.1) == (letter == "V"), name
        if name[1] == "I":
            assert ratios == pytest.approx([1, 1, 1])
        elif name[2] == "I":
            assert np.sin(turns) == pytest.approx([0, 0, 0], abs=1e-9)
        words = {"E": "equal", "V": "varies", "I": "identity"}
        assert ax.get_xlabel().split()[1::2] == [words[letter] for letter in name]
        dense = structure_covariances(name)
        assert (
            bm.GaussianMixture.of([0.2, 0.3, 0.5], np.zeros((3, 2)), dense, covariance=name).n_components == 3
        )


def estimate_of(z):
    """Co-clustering and estimate of draws (draw, obs_id)."""
    dims = ("chain", "draw", "obs_id")
    dataset = xarray.Dataset({"z": (dims, z[None])}, {"obs_id": np.arange(z.shape[1])})
    tree = xarray.DataTree.from_dict({"allocations": dataset})
    return bm.coclustering(tree), bm.partition(tree)


def test_coclustering_is_sorted_by_the_estimate_and_framed():
    z = np.tile([1, 0, 0, 1, 0, 0, 2], (10, 1))
    z[:3, 1] = 1  # a row that moves
    matrix, estimate = estimate_of(z)
    given = empty()
    ax = plots.plot_coclustering(matrix, estimate, ax=given)
    assert ax is given
    order = [2, 4, 5, 1, 0, 3, 6]
    assert ax.images[0].get_array().data == pytest.approx(matrix.values[np.ix_(order, order)])
    assert [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in ax.patches] == [
        (-0.5, -0.5, 4, 4), (3.5, 3.5, 2, 2), (5.5, 5.5, 1, 1),
    ]  # fmt: skip
    assert [to_rgb(patch.get_edgecolor()) for patch in ax.patches] == [to_rgb(c) for c in plots.COLORS[:3]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0  (4)", "1  (2)", "2  (1)"]
    some = plots.plot_coclustering(matrix.isel(obs_id=[6, 0], obs_id_bis=[6, 0]), estimate)
    assert some.images[0].get_array().data == pytest.approx(np.eye(2))
    assert [patch.get_x() for patch in some.patches] == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda ax: plots.plot_coclustering(
                estimate_of(np.zeros((2, 9), int))[0], estimate_of(np.zeros((2, 3), int))[1], ax=ax
            ),
            "rows up to 8, the partition 3 labels",
        ),
        (lambda ax: plots.plot_structures(ax=ax), r"\(4, 4\) array of Axes, not \(\)"),
        (
            lambda ax: plots.plot_check(bm.check_fit(MIXTURE, np.zeros((5, 2))), ax=ax),
            "2 clusters needs ax as an array of 2",
        ),
        (
            lambda ax: plots.plot_merging(bm.merge_clusters(MIXTURE, np.zeros((5, 2))), ax=ax),
            "array of 3 Axes, not 1",
        ),
        (
            lambda ax: plots.plot_merging(bm.merge_clusters(THREE.marginal([0]), [0.0]), ax=ax),
            "array of 3 Axes",
        ),
        (
            lambda ax: plots.plot_merging(
                bm.merge_clusters(bm.GaussianMixture.of([1.0], [[0.0]], [[[1.0]]]), [0.0])
            ),
            "nothing merges",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(empty())


def named_lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_density_contours_hold_the_mass_that_they_name():
    x, _ = MIXTURE.simulate(40, key=0)
    given = empty()
    ax = plots.plot_density(MIXTURE, x, ax=given)
    assert ax is given
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    filled, lines, points = ax.collections
    assert points.get_offsets().data == pytest.approx(x)
    drawn, _ = MIXTURE.simulate(20_000, key=1)
    density = np.exp(MIXTURE.log_density(drawn))
    assert [(density >= level).mean() for level in lines.levels] == pytest.approx(
        [0.95, 0.75, 0.5, 0.25], abs=0.01
    )
    assert filled.levels[:-1] == pytest.approx(lines.levels)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["25%", "50%", "75%", "95%"]


@pytest.mark.parametrize(
    "plot", [plots.plot_density, plots.plot_classification, plots.plot_uncertainty], ids=lambda f: f.__name__
)
def test_a_table_is_drawn_by_its_names_and_not_by_their_order(plot):
    straight = pandas.DataFrame(THREE_POINTS, columns=["a", "b"])
    expected, drawn = (
        {
            tuple(row)
            for cloud in plot(MIXTURE, x, ax=empty()).collections
            for row in cloud.get_offsets().tolist()
        }
        for x in (straight, straight[["b", "a"]])
    )
    assert drawn == expected >= {tuple(row) for row in THREE_POINTS.tolist()}


def test_a_merge_reads_a_table_by_its_names():
    x = pandas.DataFrame(MIXTURE.simulate(30, key=0)[0], columns=["a", "b"])
    shades = [
        plots.plot_merge_likelihood(MIXTURE, t, ax=empty()).images[0].get_array() for t in (x, x[["b", "a"]])
    ]
    assert shades[0].filled(0) == pytest.approx(shades[1].filled(0), nan_ok=True)


def test_density_of_one_feature_is_a_curve_over_ticks():
    ax = plots.plot_density(MIXTURE, [[1.0, 5.0], [2.0, 6.0]], features=["b"], ax=empty())
    curve, ticks = ax.lines
    assert curve.get_ydata() == pytest.approx(np.exp(MIXTURE.marginal(["b"]).log_density(curve.get_xdata())))
    assert ticks.get_xdata().tolist() == [5, 6]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("b", "density")


def test_hills_are_as_high_as_the_density_and_coloured_by_cluster():
    far = bm.GaussianMixture.of([0.5, 0.5], [[0.0, 0.0], [9.0, 0.0]], [1.0], covariance="EII")
    ax = plots.plot_hills(far, ax=Figure().add_subplot(projection="3d"))
    (surface,) = ax.collections
    assert ax.get_zlim()[1] == pytest.approx(np.exp(far.log_density([[0.0, 0.0]]))[0], rel=0.01)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("x0", "x1", "density")
    colors = surface.get_facecolor()[:, :3]
    for cluster in range(2):
        assert np.abs(colors - to_rgb(plots.COLORS[cluster])).sum(axis=1).min() < 0.1


THREE_POINTS = np.array([[0.0, 0.0], [5.0, 3.0], [3.0, 1.5]])


def test_classification_has_colours_borders_and_counts():
    ax = plots.plot_classification(MIXTURE, THREE_POINTS, ax=empty())
    labels = MIXTURE.classify(THREE_POINTS)
    clouds = {c.get_label(): c for c in ax.collections if len(c.get_offsets()) and c.get_label()[0] != "_"}
    for cluster in range(2):
        mine = THREE_POINTS[labels == cluster]
        cloud = clouds[f"{cluster}  ({len(mine)})"]
        assert cloud.get_offsets().data == pytest.approx(mine)
        assert to_rgb(cloud.get_facecolor()[0]) == to_rgb(plots.COLORS[cluster])
    assert len(ellipses(ax)) == 2
    borders = [c for c in ax.collections if hasattr(c, "levels") and not c.filled]
    assert len(borders) == 2
    for border in borders:
        joint = MIXTURE.log_joint(border.get_paths()[0].vertices)
        assert joint[:, 0] == pytest.approx(joint[:, 1], abs=0.02)


def test_classification_of_more_features_has_no_borders_and_of_one_a_row_a_cluster():
    mixture = bm.GaussianMixture.of([0.5, 0.5], [[0.0] * 3, [0.0, 0.0, 9.0]], [1.0], covariance="EII")
    x = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    ax = plots.plot_classification(mixture, x, ax=empty())
    assert not [c for c in ax.collections if hasattr(c, "levels")]
    assert len(ax.get_legend().get_texts()) == 2
    ax = plots.plot_classification(mixture, x, features=[2], ax=empty())
    assert [c.get_offsets().data.tolist() for c in ax.collections] == [[[0, 0]], [[9, 1]]]


def test_uncertain_points_are_large_and_dark():
    ax = plots.plot_uncertainty(MIXTURE, THREE_POINTS, ax=empty())
    (cloud,) = [c for c in ax.collections if len(c.get_offsets()) == 3]
    doubt = np.sort(1 - MIXTURE.responsibilities(THREE_POINTS).max(axis=1))
    sizes, tones = cloud.get_sizes(), cloud.get_facecolor()[:, 0]
    assert (np.diff(sizes) > 0).all()
    assert (np.diff(tones) <= 0).all()
    assert (sizes - sizes.min()) / np.ptp(sizes) == pytest.approx((doubt - doubt[0]) / np.ptp(doubt))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "0.17", "0.33", "0.5"]
    ax = plots.plot_uncertainty(MIXTURE.marginal(["a"]), THREE_POINTS[:, :1], ax=empty())
    heights = np.concatenate(
        [
            c.get_offsets().data[:, 1]
            for c in ax.collections
            if len(c.get_offsets()) and c.get_label()[0] != "_"
        ]
    )
    assert np.sort(heights) == pytest.approx(
        np.sort(1 - MIXTURE.marginal(["a"]).responsibilities(THREE_POINTS[:, :1]).max(axis=1))
    )


def test_intervals_are_quantiles_of_the_draws_beside_the_fit():
    from bayesmix.trees import mixture_tree

    rng = np.random.default_rng(0)
    weight = rng.uniform(0.4, 0.6, 200)
    batch = bm.GaussianMixture(
        np.stack([weight, 1 - weight], axis=1)[None],
        rng.normal(size=(1, 200, 2, 1)) + [[0.0], [9.0]],
        Covariance(np.ones((1, 200, 2)), "V"),
        ("a",),
    )
    own = bm.GaussianMixture.of([0.5, 0.5], [0.1, 9.1], [1.0, 1.0])
    axes = plots.plot_intervals(mixture_tree(batch, {}, {}), own, probability=0.9, ax=Figure().subplots(2))
    assert [ax.get_xlabel() for ax in axes] == ["weight", "mean of a"]
    for ax, values, at in zip(
        axes, (batch.weights[0], batch.means[0, :, :, 0]), (own.weights, own.means[:, 0])
    ):
        found = np.array([line.get_segments()[0][:, 0] for line in ax.collections])
        assert found[::2].transpose() == pytest.approx(np.quantile(values, [0.05, 0.95], axis=0))
        assert found[1::2].transpose() == pytest.approx(np.quantile(values, [0.25, 0.75], axis=0))
        assert [line.get_xdata()[0] for line in ax.lines[::2]] == pytest.approx(np.median(values, axis=0))
        assert [line.get_xdata()[0] for line in ax.lines[1::2]] == pytest.approx(at)


def test_limit_draws_some_spheres_and_the_distance_of_all():
    x = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]])
    kmeans = bm.kmeans(x, 2, init=x[[0, 2]])
    centres = kmeans.mixture.means
    fits = [
        replace(kmeans, mixture=bm.GaussianMixture.of([0.5, 0.5], centres[::-1] + [s, 0.0], [s * s], covariance="EII"))
        for s in (1.0, 0.1, 0.01)
    ]  # fmt: skip
    axes = plots.plot_kmeans_limit(fits, kmeans, x, n_shown=2, ax=Figure().subplots(1, 3))
    assert [ax.get_title() for ax in axes[:2]] == ["σ = 1", "σ = 0.01"]
    assert len(ellipses(axes[0])) == 4
    assert axes[2].lines[0].get_xydata() == pytest.approx(np.array([[1, 1], [0.1, 0.1], [0.01, 0.01]]))
    assert axes[2].xaxis_inverted()


def test_one_gaussian_for_two_loses_what_a_slow_sum_says():
    x = THREE.simulate(50, key=0)[0]
    ax = plots.plot_merge_likelihood(THREE, x, ax=empty())
    r = THREE.responsibilities(x)
    found = {}
    for a, b in ((1, 0), (2, 0), (2, 1)):
        pair = bm.GaussianMixture.of(
            THREE.weights[[a, b]] / THREE.weights[[a, b]].sum(), THREE.means[[a, b]], [[[1.0]]] * 2
        )
        draws = pair.weights @ pair.means[:, 0]
        variance = 1 + pair.weights @ (pair.means[:, 0] - draws) ** 2
        one = bm.GaussianMixture.of([1.0], [[draws]], [[[variance]]])
        found[b, a] = (r[:, a] + r[:, b]) @ (pair.log_density(x) - one.log_density(x))
    assert {tuple(int(p) for p in text.get_position()): text.get_text() for text in ax.texts} == {
        place: f"{loss:.3g}" for place, loss in found.items()
    }
    (frame,) = ax.patches
    assert (frame.get_x(), frame.get_y()) == (-0.5, 1.5)  # clusters 0 and 2


def test_objective_shows_every_start_and_the_winner_in_colour():
    x = np.r_[np.zeros(3), np.ones(3), 9.0, 10.0, 11.0]
    fit = bm.fit(bm.MixtureModel(2, "E"), x)
    assert any(np.array_equal(trace, fit.objective) for trace in fit.traces)
    lower = fit.objective - 1.0
    ax = plots.plot_objective(replace(fit, traces=(lower, fit.objective)), ax=empty())
    lines = named_lines(ax)
    assert lines["1 other start"][:, 1] == pytest.approx(lower)
    assert lines["the start that won"][:, 1] == pytest.approx(fit.objective)
    assert lines["the start that won"][-1, 0] == fit.n_steps
    low, high = ax.get_ylim()
    assert low < lower[-1] < fit.objective[-1] < high
    kmeans = bm.kmeans(x, 2)
    assert kmeans.traces[0] == pytest.approx(kmeans.objective)


BATCH = bm.GaussianMixture(np.full((3, 2), 0.5), np.zeros((3, 2, 2)), Covariance(np.ones((3, 2)), "VII"))


@pytest.mark.parametrize(
    "plot", [plots.plot_density, plots.plot_hills, plots.plot_classification, plots.plot_uncertainty]
)
def test_a_batch_and_too_many_features_are_refused(plot):
    data = () if plot is plots.plot_hills else ([[0.0, 0.0]],)
    with pytest.raises(ValueError, match="this is a batch"):
        plot(BATCH, *data)
    with pytest.raises(ValueError, match="features has 3"):
        plot(MIXTURE, *data, features=[0, 1, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.plot_hills(MIXTURE, ax=empty()), 'projection="3d"'),
        (lambda: plots.plot_hills(MIXTURE, features=[1]), "two features, not 1"),
        (lambda: plots.plot_merge_likelihood(MIXTURE.marginal([0]), [[1.0, 2.0]]), "1 are needed"),
        (
            lambda: plots.plot_merge_likelihood(bm.GaussianMixture.of([1.0], [0.0], [1.0]), [0.0]),
            "two clusters or more",
        ),
        (lambda: plots.plot_kmeans_limit([], None, [0.0]), "between 1 and the 0 fits"),
        (
            lambda: plots.plot_kmeans_limit([SimpleNamespace(mixture=MIXTURE)], None, [0.0], n_shown=1),
            r"they have \['VVV'\]",
        ),
        (lambda: plots.plot_intervals(prior_draws([MIXTURE], 5, ("a", "b"))), "group 'posterior'"),
    ],
)
def test_what_a_figure_cannot_draw_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_objective_leaves_the_lines_that_are_there():
    fit = bm.fit(bm.MixtureModel(2, "E"), np.r_[np.zeros(3), np.ones(3), 9.0, 10.0, 11.0])
    ax = empty()
    (own,) = ax.plot([0, 1], [0, 1], label="mine")
    lines = named_lines(plots.plot_objective(replace(fit, traces=(fit.objective - 1, fit.objective)), ax=ax))
    assert own.get_label() == "mine"
    assert set(lines) == {"mine", "1 other start", "the start that won"}


def test_a_cluster_without_weight_is_replaced_at_no_loss():
    weights = [0.0, 0.5, 0.0, 0.5]
    mixture = bm.GaussianMixture.of(weights, [[0.0], [9.0], [1.0], [4.0]], [[[1.0]]] * 4)
    ax = plots.plot_merge_likelihood(mixture, mixture.simulate(300, key=0)[0], ax=empty())
    losses = {tuple(int(p) for p in text.get_position()): float(text.get_text()) for text in ax.texts}
    assert losses.pop((1, 3)) > 1
    assert set(losses.values()) == {0.0}


@pytest.mark.parametrize("d", [1, 5])
def test_losses_can_be_read_on_light_and_dark_cells(d):
    means = 12.0 * np.arange(3)[:, None] * np.eye(1, d)
    mixture = bm.GaussianMixture.of([0.3, 0.4, 0.3], means, [np.eye(d)] * 3)
    ax = plots.plot_merge_likelihood(mixture, mixture.simulate(300, key=0)[0], ax=empty())
    (image,) = ax.images
    assert len(ax.texts) == 3
    for text in ax.texts:
        b, a = (int(place) for place in text.get_position())
        light, dark = sorted(
            (np.array(to_rgb(color)) ** 2.2 @ [0.2126, 0.7152, 0.0722] + 0.05
             for color in (text.get_color(), image.to_rgba(image.get_array()[a, b]))),
            reverse=True,
        )  # fmt: skip
        assert light / dark > 4.5


def search_of(cells, criterion="bic", spurious=()):
    """What `plot_search` needs of a search: a value for each (k, structure)."""
    rows = [(*cell, value, "", cell not in spurious) for cell, value in cells.items()]
    table = pandas.DataFrame(rows, columns=["n_components", "covariance", criterion, "status", "clean"])
    return SimpleNamespace(table=table, criterion=criterion)


def test_every_point_that_a_search_names_is_seen():
    ax = plots.plot_search(search_of({(2, "VVV"): 2600.0, (2, "EII"): 3200.0}), ax=empty())
    low, high = ax.get_ylim()
    assert low < 2600 < 3200 < high
    many = {(k, name): 100.0 * k for k in range(1, 10) for name in ("VVV", "EEE")} | {(1, "EII"): 5000.0}
    ax = plots.plot_search(search_of(many), ax=empty())
    assert ax.get_ylim()[1] > 5000  # EII has no other point
    ax = plots.plot_search(search_of(many | {(2, "EII"): 300.0}), ax=empty())
    assert 300 < ax.get_ylim()[1] < 5000


def test_cells_that_are_not_clean_lie_on_the_edge():
    cells = {(1, "VVV"): 30.0, (2, "VVV"): 20.0, (3, "VVV"): -900.0}
    ax = plots.plot_search(search_of(cells, spurious=[(3, "VVV")]), ax=empty())
    assert named_lines(ax)["not clean"].tolist() == [[3, ax.get_ylim()[0]]]
    assert 15 < ax.get_ylim()[0] < 20
    ax = plots.plot_search(search_of(cells, spurious=cells), ax=empty())
    assert named_lines(ax)["not clean"].tolist() == [[1, 30], [2, 20], [3, -900]]


def test_a_criterion_that_is_not_finite_is_left_out():
    cells = {(1, "VVV"): 5.0, (2, "VVV"): np.inf, (1, "EII"): np.nan, (2, "EII"): 9.0, (3, "EEE"): np.nan}
    lines = named_lines(plots.plot_search(search_of(cells, "aicc"), ax=empty()))
    assert {name: line.tolist() for name, line in lines.items()} == {
        "VVV": [[1, 5]], "EII": [[2, 9]], "best: VVV, k = 1": [[1, 5]],
    }  # fmt: skip
    ax = plots.plot_search(search_of({(2, "VVV"): np.nan, (3, "VVV"): np.nan}, "nec"), ax=empty())
    assert not ax.lines
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("number of clusters k", "NEC (lower is better)")


@pytest.mark.parametrize(("covariance", "label"), [("VVV", "BIC (lower"), ("kmeans", "gap (higher")])
def test_a_search_of_which_nothing_could_be_fitted_is_an_empty_figure(covariance, label):
    ax = bm.search(THREE_POINTS, n_components=[4, 5], covariance=covariance).plot(ax=empty())
    assert not ax.lines
    assert ax.get_xlabel().startswith("number of c")
    assert ax.get_ylabel().startswith(label)


def test_one_centre_has_no_silhouette_to_draw():
    ax = bm.search(THREE_POINTS, n_components=1, covariance="kmeans", criterion="silhouette").plot(ax=empty())
    assert not ax.lines


def test_a_single_k_has_a_single_tick():
    table = pandas.DataFrame({"n_components": [2], "silhouette": [0.5], "status": ""})
    centres = SimpleNamespace(table=table, criterion="silhouette", best=SimpleNamespace(mixture=MIXTURE))
    for ax in (
        plots.plot_search(search_of({(2, "VVV"): 20.0}), ax=empty()),
        plots.plot_criterion(TABLE[TABLE["n_components"] == 2], ax=empty()),
        plots.plot_centres(centres, ax=empty()),
    ):
        low, high = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [2]


def boxes(ax, labels):
    """Where texts lie once the figure is drawn, in pixels (labels, corners, 2)."""
    ax.figure.draw_without_rendering()
    return np.array([label.get_window_extent().get_points() for label in labels()])


@pytest.mark.parametrize("d", [2, 5])
def test_numbers_below_intervals_stand_apart(d):
    from bayesmix.trees import mixture_tree

    means = np.random.default_rng(0).normal(-0.07, 0.045, size=(1, 200, 1, d))
    batch = bm.GaussianMixture(np.ones((1, 200, 1)), means, Covariance(np.ones((1, 200, 1)), "EII"))
    for ax in plots.plot_intervals(mixture_tree(batch, {}, {})):
        where = boxes(ax, ax.get_xticklabels)
        assert len(where) > 3
        assert (where[1:, 0, 0] - where[:-1, 1, 0]).min() > 4


def test_an_objective_that_is_flat_to_rounding_is_drawn_flat():
    fit = bm.fit(bm.MixtureModel(2, "E"), [0.0, 1.0, 9.0, 10.0, 11.0])
    flat = -3242.5343561184 + np.array([0, 4e-10, 3e-10])
    ax = plots.plot_objective(replace(fit, objective=flat, traces=(flat,)), ax=empty())
    assert np.diff(ax.get_ylim())[0] > 1e-3


def test_twelve_clusters_of_one_feature_have_numbers_at_their_tops():
    mixture = bm.GaussianMixture.of(np.full(12, 1 / 12), 9.0 * np.arange(12), np.ones(12), covariance="V")
    ax = plots.plot_clusters(mixture, ax=empty())
    assert [text.get_text() for text in ax.texts] == [str(cluster) for cluster in range(12)]
    tops = [line.get_xydata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    assert np.array([text.xy for text in ax.texts]) == pytest.approx(np.array(tops))
    assert boxes(ax, lambda: ax.texts)[:, 1, 1].max() < ax.bbox.y1


@pytest.mark.parametrize(
    "sizes", [[40, 30, 20, 10, 8, 6, 4, 2, 2, 1, 1, 1], [200] + [1] * 11, [60] + [1] * 30]
)
def test_each_cluster_beside_the_matrix_has_a_name_of_its_own(sizes):
    estimate = SimpleNamespace(labels=np.repeat(np.arange(len(sizes)), sizes), sizes=np.array(sizes))
    estimate.n_clusters = len(sizes)
    same = (estimate.labels[:, None] == estimate.labels).astype(float)
    matrix = xarray.DataArray(same, dims=("obs_id", "obs_id_bis"), coords={"obs_id": np.arange(len(same))})
    ax = plots.plot_coclustering(matrix, estimate)
    names = [f"{cluster}  ({size})" for cluster, size in enumerate(sizes)]
    names = names if len(sizes) <= 25 else [*names[:24], "24 to 30  (7)"]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    where = boxes(ax, ax.get_yticklabels)
    assert (where[:-1, 0, 1] - where[1:, 1, 1]).min() > 0
    assert where[:, 0].min() > 0
    middles = [patch.get_y() + patch.get_height() / 2 for patch in ax.patches]
    ends = [line.xy[1] for line in ax.texts]
    assert ends[:24] == pytest.approx(middles[:24])
    assert len(ends) == len(names)


def test_relabelling_takes_a_feature_by_name_or_index():
    from bayesmix.trees import mixture_tree

    means = np.random.default_rng(0).normal(size=(1, 9, 2, 2))
    batch = bm.GaussianMixture(
        np.full((1, 9, 2), 0.5), means, Covariance(np.ones((1, 9, 2)), "VII"), ("eruptions", "waiting")
    )
    tree = mixture_tree(batch, {}, {})
    for feature in ("waiting", 1):
        axes = plots.plot_relabelling(tree, tree, feature=feature, ax=Figure().subplots(1, 2))
        assert axes[0].get_ylabel() == "mean of waiting"
        assert axes[0].lines[0].get_ydata() == pytest.approx(means[0, :, 0, 1])
    for feature, message in (
        ("wait", "feature must be one of"),
        (2, "an index below 2; it is 2"),
        ([0], "a name"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.plot_relabelling(tree, tree, feature=feature)


def test_new_figures_look_alike():
    for ax in (plots.plot_density(MIXTURE), plots.plot_merging(bm.merge_clusters(THREE, THREE.means))[0]):
        assert [ax.spines[side].get_visible() for side in ("left", "bottom", "top", "right")] == [
            True,
            True,
            False,
            False,
        ]


def test_plots_load_when_they_are_asked_for():
    code = (
        "import sys, bayesmix as bm; before = {'matplotlib', 'sklearn'} & set(sys.modules); "
        "print(before, bm.plots.__name__, bm.sklearn.__name__, hasattr(bm, 'something'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["set()", "bayesmix.plots", "bayesmix.sklearn", "False"]
