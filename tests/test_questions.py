"""What a posterior says of new points, against the answers of its single draws."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import bayesmix as bm

NEW = np.array([[3.0, 65.0], [4.5, 80.0], [2.0, 55.0], [1e3, -1e3]])


@pytest.fixture(scope="module")
def posterior():
    x = bm.datasets.load("old_faithful")
    options = {"method": "gibbs", "n_warmup": 100, "n_draws": 50, "n_chains": 2}
    return bm.sample_posterior(bm.MixtureModel(2, prior="weak"), x, key=0, **options)


def each(posterior, method):
    batch = bm.mixtures(posterior)
    one = [jax.tree.map(lambda a, c=c, s=s: a[c, s], batch) for c in range(2) for s in range(50)]
    return np.array([getattr(mixture, method)(NEW) for mixture in one])


def test_responsibilities_are_those_of_the_draws(posterior):
    found, draws = bm.responsibilities(posterior, NEW, probability=0.8), each(posterior, "responsibilities")
    assert found["mean"].dims == ("obs_id", "cluster")
    assert_allclose(found["mean"], draws.mean(axis=0), rtol=1e-10)
    assert_allclose(found["lower"], np.quantile(draws, 0.1, axis=0), rtol=1e-10)
    assert_allclose(found["upper"], np.quantile(draws, 0.9, axis=0), rtol=1e-10)
    assert_allclose(found["mean"].sum("cluster"), 1)


def test_a_class_is_the_largest_mean_and_says_how_many_draws_agree(posterior):
    found, draws = bm.classify(posterior, NEW), each(posterior, "responsibilities")
    winner = draws.mean(axis=0).argmax(axis=1)
    assert_array_equal(found["cluster"], winner)
    assert_allclose(found["mean"], draws.mean(axis=0).max(axis=1))
    assert_allclose(found["agreement"], (draws.argmax(axis=2) == winner).mean(axis=0))
    assert found["agreement"][0] < 1


def test_the_predictive_density_is_the_average_density(posterior):
    found, draws = bm.log_density(posterior, NEW), each(posterior, "log_density")
    assert_allclose(found["mean"][:3], np.log(np.exp(draws[:, :3]).mean(axis=0)), rtol=1e-10)
    assert_allclose(found["upper"], np.quantile(draws, 0.95, axis=0), rtol=1e-10)
    assert np.isfinite(found["mean"][3])  # where every density underflows


def test_two_points_share_a_cluster(posterior):
    found = bm.same_cluster(posterior, NEW[:3], NEW[1:])
    draws = each(posterior, "responsibilities")
    assert_allclose(found["mean"], (draws[:, :3] * draws[:, 1:]).sum(axis=2).mean(axis=0), rtol=1e-10)


def test_blocks_do_not_matter(posterior, monkeypatch):
    x = np.random.default_rng(0).normal([3, 70], [1, 10], (200, 2))
    whole = bm.log_density(posterior, x)
    monkeypatch.setattr("bayesmix.questions._NUMBERS", 1)
    assert_allclose(bm.log_density(posterior, x)["lower"], whole["lower"], rtol=1e-12)


def test_labels_must_mean_the_same(posterior):
    x = bm.datasets.load("old_faithful")
    options = {"method": "gibbs", "n_warmup": 100, "n_draws": 50, "n_chains": 2}
    raw = bm.sample_posterior(
        bm.MixtureModel(2, prior="weak"), x, key=0, permute=True, relabelling=None, **options
    )
    with pytest.raises(ValueError, match=r"call bm.relabel\(posterior\) first"):
        bm.responsibilities(raw, NEW)
    assert np.isfinite(bm.log_density(raw, NEW)["mean"]).all()
    with pytest.raises(ValueError, match="probability must be between 0 and 1, not 90"):
        bm.log_density(posterior, NEW, probability=90)
    half = bm.log_density(posterior, NEW, probability=0.5)
    assert half.identical(bm.log_density(posterior, NEW, probability=np.float32(0.5)))
    with pytest.raises(ValueError, match="x has 3 features, but 2 are needed"):
        bm.classify(posterior, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="as many points; they have 4 and 3"):
        bm.same_cluster(posterior, NEW, NEW[:3])


def test_a_figure_shows_the_band_over_the_data(posterior):
    from matplotlib import pyplot

    from bayesmix import plots

    axes = plots.plot_density_band(posterior, probability=0.8)
    assert [ax.get_xlabel() for ax in axes] == ["eruptions", "waiting"]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
        "80% band",
        "posterior predictive",
    ]
    line = axes[1].lines[0]
    at, height = line.get_data()
    # The marginal of a mixture is the mixture of marginals.
    batch = bm.mixtures(posterior)
    one = [
        jax.tree.map(lambda a, c=c, s=s: a[c, s], batch).marginal([1]) for c in range(2) for s in range(50)
    ]
    assert_allclose(height, np.mean([np.exp(m.log_density(at)) for m in one], axis=0), rtol=1e-8)
    (band,) = axes[1].collections
    assert band.get_paths()[0].vertices[:, 1].max() > height.max()
    pyplot.close("all")


def test_the_histogram_under_the_band_counts_weights(posterior):
    from matplotlib.figure import Figure

    from bayesmix import plots

    weighted = posterior.copy(deep=True)
    x = weighted["observed_data"]["x"].values
    x[0] *= 100.0
    weight = np.arange(len(x)) % 3
    weighted["observed_data"] = weighted["observed_data"].to_dataset().assign(weight=("obs_id", weight))
    axes = plots.plot_density_band(weighted, ax=Figure().subplots(1, 2))
    for ax, column in zip(axes, x.T):
        edges = np.append([bar.get_x() for bar in ax.patches], ax.patches[-1].get_bbox().x1)
        heights = np.histogram(column, edges, weights=weight, density=True)[0]
        assert_allclose([bar.get_height() for bar in ax.patches], heights, atol=1e-12)
        assert ax.get_xlim()[1] < column[0] / 2


def test_a_figure_shows_labels_before_and_after(posterior):
    from matplotlib import pyplot

    from bayesmix import plots

    axes = plots.plot_relabelling(posterior, bm.relabel(posterior, "order"), feature=1)
    assert axes[1].get_title() == "after: order"
    assert axes[0].get_ylabel() == "mean of waiting"
    after = [line.get_ydata() for line in axes[1].lines[:2]]
    assert all(len(y) == 100 for y in after)
    assert after[0].max() < after[1].min()
    with pytest.raises(ValueError, match="plot_relabelling needs ax as an array of 2 Axes, not 1"):
        plots.plot_relabelling(posterior, posterior, ax=axes[0])
    pyplot.close("all")
