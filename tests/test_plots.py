"""Figures are tested on what they drew: how many lines and ellipses, where, with which words."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

import bayesmix as bm
from bayesmix import plots
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
        (lambda: plots.plot_criterion(TABLE, criterion="dic"), "criterion must be one of"),
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
