"""Hierarchical and LKJ priors: the laws of their sites by SciPy, moments, equivariance, and posteriors known elsewhere."""

import warnings
from dataclasses import dataclass, replace
from functools import cache, partial

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.infer.util import log_density
from reference import load
from scipy import special, stats

import bayesmix as bm
from bayesmix.covariance import STRUCTURES, Covariance
from bayesmix.inputs import to_numpy
from bayesmix.quantities import parameters

FAITHFUL = bm.datasets.load("old_faithful").to_numpy(dtype=float)
IRIS = bm.datasets.load("iris").iloc[:, :3].to_numpy(dtype=float)
SITED = [name for name, row in STRUCTURES.items() if not row.constrained]
WORDS = ["hierarchical", "lkj"]
CASES = [(word, structure) for word in WORDS for structure in SITED]
# Sizes and numbers with nothing symmetric about them.
ROOT = np.array([[[1.0, 0.0], [0.3, 2.0]], [[3.0, 0.0], [-1.0, 0.5]], [[0.7, 0.0], [0.1, 1.1]]])
RHO = np.array([0.3, -0.7, 0.1])
MEANS = np.array([[0.5, 1.0], [1.5, -2.0], [0.0, 3.0]])


def n_features(structure):
    return STRUCTURES[structure].n_features or 2


def prior_of(word, structure):
    """A fixed prior, far from the defaults."""
    d, storage = n_features(structure), STRUCTURES[structure].storage
    common = {
        "n_components": 3, "covariance": structure, "mean": [1.0, -2.0][:d], "spread": [2.0, 3.0][:d],
        "concentration": [2.0, 3.0, 1.5],
    }  # fmt: skip
    size = 0.8 if storage == "spherical" else np.array([0.8, 1.7])[:d]
    if word == "hierarchical":
        return bm.HierarchicalPrior.of(**common, shape=2.6, rate_shape=0.9, rate_rate=size)
    return bm.LKJPrior.of(**common, scale=size, correlation_concentration=3.0)


def site_values(word, structure):
    """Values of every site but `weights` and `means`, and the covariances that they stand for (3|1, d, d)."""
    row, d = STRUCTURES[structure], n_features(structure)
    root = ROOT[1:2] if row.shared else ROOT
    cells = {"diagonal": root[:, 1] ** 2, "spherical": root[:, 0, 0]}
    one = (lambda a: a[0]) if row.shared else (lambda a: a)
    if word == "hierarchical":
        rate = {"full": np.array([[0.9, 0.0], [0.4, 0.6]]), "diagonal": [0.9, 0.6], "spherical": 0.9}[
            row.storage
        ]
        if row.storage == "full":
            values = {"rate_root": rate, "precision_cholesky": one(root)}
            return values, np.linalg.inv(root @ np.swapaxes(root, 1, 2))
        name = {"diagonal": "precisions", "spherical": "precision"}[row.storage]
        precision = cells[row.storage].reshape(len(root), -1)
        return {"rate": np.asarray(rate), name: one(cells[row.storage])}, (1 / precision)[
            :, :, None
        ] * np.eye(d)
    if row.storage == "full":
        deviations, rho = root[:, 1] ** 2, RHO[: len(root)]
        corr = np.array([[[1, 0], [r, np.sqrt(1 - r * r)]] for r in rho])
        whole = deviations[:, :, None] * (corr @ np.swapaxes(corr, 1, 2)) * deviations[:, None]
        return {"deviations": one(deviations), "correlation_cholesky": one(corr)}, whole
    deviations = cells[row.storage].reshape(len(root), -1)
    return {"deviations": one(cells[row.storage])}, deviations[:, :, None] ** 2 * np.eye(d)


def all_values(word, structure):
    own, covariances = site_values(word, structure)
    means = MEANS[:, : n_features(structure)]
    values = {"weights": np.array([0.5, 0.3, 0.2]), **own, "means": means}
    return {name: np.asarray(value, np.float64) for name, value in values.items()}, covariances


def substituted(story, values):
    """Under `jax.enable_x64`: the story with its sites given."""
    return handlers.substitute(story, data={name: jnp.asarray(value) for name, value in values.items()})


def log_cholesky_wishart(root, dof, scale):
    """The density of C where C Cᵀ ~ Wishart: that of the product times 2^d Π c_ii^(d - i), i = 0 .. d - 1."""
    d = len(root)
    jacobian = d * np.log(2) + (np.arange(d, 0, -1) * np.log(np.diag(root))).sum()
    return stats.wishart.logpdf(root @ root.T, dof, scale) + jacobian


def rate_of(root):
    """The root is the Cholesky factor of the rate with its features in reverse order."""
    return (root @ root.T)[::-1, ::-1]


def log_prior(prior, values):
    """The formula, term by term."""
    v = values
    total = stats.dirichlet.logpdf(v["weights"], prior.concentration)
    total += stats.norm.logpdf(v["means"], prior.mean, prior.spread).sum()
    if isinstance(prior, bm.LKJPrior):
        total += stats.halfnorm.logpdf(v["deviations"], scale=prior.scale).sum()
        if "correlation_cholesky" in v:  # for two features: (1 + ρ) / 2 ~ Beta(η, η)
            eta, rho = prior.correlation_concentration, v["correlation_cholesky"][..., 1, 0]
            total += np.sum(stats.beta.logpdf((1 + rho) / 2, eta, eta) - np.log(2))
        return total
    a, g, h = prior.shape, prior.rate_shape, prior.rate_rate
    if "rate_root" in v:
        d, rate = prior.n_features, rate_of(v["rate_root"])
        total += log_cholesky_wishart(v["rate_root"], 2 * g, np.diag(1 / (2 * h[::-1])))
        roots = v["precision_cholesky"].reshape(-1, d, d)
        return total + sum(log_cholesky_wishart(c, 2 * a, np.linalg.inv(2 * rate)) for c in roots)
    precision = v.get("precisions", v.get("precision"))
    total += stats.gamma.logpdf(v["rate"], g, scale=1 / h).sum()
    return total + stats.gamma.logpdf(precision, a, scale=1 / v["rate"]).sum()


@pytest.mark.parametrize(("word", "structure"), CASES)
def test_the_joint_density_is_the_formula(word, structure):
    prior, x = (
        prior_of(word, structure),
        FAITHFUL[:5, : n_features(structure)] / [4.0, 60.0][: n_features(structure)],
    )
    model = bm.MixtureModel(3, structure, prior)
    values, covariances = all_values(word, structure)
    with jax.enable_x64(True):
        mixture, factor = to_numpy(substituted(prior.draw, values)())
        joint = float(log_density(model.marginal, (x,), {}, values)[0])
    expected = np.broadcast_to(covariances, mixture.covariances.shape)
    assert_allclose(mixture.covariances, expected, rtol=1e-6)
    dense = mixture.covariance.storage.gram(factor)
    assert_allclose(mixture.covariance.storage.dense(np.asarray(dense), prior.n_features) @ covariances, np.broadcast_to(np.eye(prior.n_features), covariances.shape), atol=1e-6)  # fmt: skip
    assert_allclose(joint, log_prior(prior, values) + mixture.log_density(x).sum(), rtol=1e-6)


@pytest.mark.parametrize(("word", "structure"), CASES)
def test_sites_of_a_mixture_are_those_that_it_came_from(word, structure):
    """And the rate, which no mixture determines, is the mean of its law given the mixture."""
    prior = prior_of(word, structure)
    values, _ = all_values(word, structure)
    with jax.enable_x64(True):
        mixture = to_numpy(substituted(prior, values)())
        batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), mixture)
        known = {name: value for name, value in values.items() if not name.startswith("rate")}
        found = to_numpy(prior.sites_of(batch))
        rate = {name: found.pop(name)[1] for name in list(found) if name.startswith("rate")}
    assert found.keys() == known.keys()
    for name, value in known.items():
        assert_allclose(found[name][1], value, rtol=1e-6, atol=1e-7)
    if word == "hierarchical":
        row, precision = STRUCTURES[structure], np.linalg.inv(np.unique(mixture.covariances, axis=0))
        strength = prior.rate_shape + prior.shape * len(precision)
        if row.storage == "full":
            expected = strength * np.linalg.inv(np.diag(prior.rate_rate) + precision.sum(axis=0))
            rate["rate"] = rate_of(rate["rate_root"])
        else:
            cells = np.diagonal(precision, axis1=1, axis2=2).sum(axis=0)
            expected = strength / (prior.rate_rate + (cells if row.storage == "diagonal" else cells[0]))
        assert_allclose(rate["rate"], expected, rtol=1e-6)


def ordered_program():
    import numpyro
    import numpyro.distributions as dist

    with numpyro.plate("clusters", 3):
        deviations = numpyro.sample("deviations", dist.HalfNormal(1.0))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    means = numpyro.sample("means", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
    return bm.GaussianMixture(weights, means[:, None], Covariance(deviations[:, None, None] ** 2, "V"))


@pytest.mark.parametrize(
    ("structure", "prior"),
    [*((structure, prior_of(word, structure)) for word, structure in CASES), ("V", ordered_program)],
)
def test_blank_points_have_the_shapes_of_draws_of_the_prior(structure, prior):
    from bayesmix.potential import Evidence, blank_points, prior_points

    model = bm.MixtureModel(3, structure, prior)
    evidence = Evidence(None, None, None, np.zeros(2), np.ones(2))
    with jax.enable_x64(True):
        blank = blank_points(model, evidence, 4)
        if prior is ordered_program:  # an improper law has no draws
            drawn = {"deviations": (4, 3), "weights": (4, 2), "means": (4, 3)}
        else:
            of = prior_points.eval_shape(model, evidence, np.zeros((4, 2), np.uint32))
            drawn = {name: leaf.shape for name, leaf in of.items()}
    assert {name: leaf.shape for name, leaf in blank.items()} == drawn
    assert {leaf.dtype for leaf in blank.values()} == {np.dtype(np.float64)}


SPREAD = 5.0  # that programs read


def means_of(spread, high=9.0):
    """A program's lines, of three clusters."""
    import numpyro
    import numpyro.distributions as dist

    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("cluster", 3):
        m = numpyro.sample("m", dist.Normal(jnp.zeros(3), spread))
        deviation = numpyro.sample("deviation", dist.Uniform(0.0, high))
    return bm.GaussianMixture(weights, m[:, None], Covariance(deviation**2, "V"))


@dataclass
class Spread:
    """Equal where its numbers are, so that it has no hash."""

    spread: float

    def __call__(self):
        return means_of(self.spread)


def with_table(table):
    """A program that holds data, of which it shows a number."""
    import numpyro

    def program():
        numpyro.deterministic("shown", jnp.asarray(table)[7])
        return means_of(jnp.asarray(table).mean())

    return program


def test_the_mark_of_a_program_is_what_it_says():
    from bayesmix.stories import read

    def mark(program):
        return read(bm.MixtureModel(3, "V", program).parameters, 3).mark

    global SPREAD
    table, own = np.linspace(1.0, 9.0, 3000), Spread(SPREAD)
    same = mark(lambda: means_of(SPREAD)), mark(partial(means_of, 5.0)), mark(own), mark(Spread(5.0))
    assert len(set(same)) == 1
    one, again = mark(with_table(table)), mark(with_table(table.copy()))
    assert one == again
    own.spread = SPREAD = 5.0 + 1e-9
    other = mark(own)
    assert mark(lambda: means_of(SPREAD)) == other
    SPREAD = 5.0
    table[[7, 8]] = table[[8, 7]]
    others = mark(partial(means_of, 5.0, 8.0)), mark(with_table(table))
    assert len({same[0], one, other, *others}) == 5


def test_a_program_that_changed_is_another(tmp_path):
    """And one that says the same is the same, whatever object it is: nothing is compiled."""
    from bayesmix import chains

    x = np.random.default_rng(0).normal(size=20)
    options = {"key": 0, "n_chains": 1, "n_warmup": 100, "n_draws": 100, "relabelling": None}

    def size_of_means(program, **more):
        tree = bm.sample_posterior(bm.MixtureModel(3, "V", program), x, **options, **more)
        return np.abs(tree["posterior"]["m"].values).mean()

    prior, file = Spread(5.0), tmp_path / "chains"
    wide = size_of_means(prior, checkpoint=file)
    before = chains._begin._cache_size(), chains._advance._cache_size()
    assert size_of_means(Spread(5.0), checkpoint=file) == size_of_means(Spread(5.0)) == wide > 0.1
    assert (chains._begin._cache_size(), chains._advance._cache_size()) == before
    prior.spread = 0.01
    assert size_of_means(prior) < 0.02
    with pytest.raises(ValueError, match="the checkpoint of another sample_posterior: prior differs"):
        size_of_means(prior, checkpoint=file)
    model = bm.MixtureModel(3, "V", prior)
    narrow = model.prior_predictive(100, key=0)["prior"]["m"].values.std()
    prior.spread = 5.0
    assert narrow < 0.02 < 1 < model.prior_predictive(100, key=0)["prior"]["m"].values.std()


def alone(concentration=(1.0, 1.0, 1.0), spread=5.0, ordered=False, factor=False):
    """A program whose sites are in no plate."""
    import numpyro
    import numpyro.distributions as dist

    weights = numpyro.sample("w", dist.Dirichlet(jnp.asarray(concentration)))
    law = dist.Normal(0.0, jnp.broadcast_to(jnp.asarray(spread), (3,))).to_event(1)
    law = dist.TransformedDistribution(law, dist.transforms.OrderedTransform()) if ordered else law
    m = numpyro.sample("m", law)
    if factor:
        numpyro.factor("order", jnp.where(jnp.all(jnp.diff(m) > 0), 0.0, -jnp.inf))
    shared = numpyro.sample("deviation", dist.HalfNormal(2.0))
    return bm.GaussianMixture(weights, m[:, None], Covariance(shared[None] ** 2, "E"))


def as_many_features():
    """As many features as clusters, each with a scale of its own."""
    import numpyro
    import numpyro.distributions as dist

    with numpyro.plate("feature", 3):
        scale = numpyro.sample("scale", dist.Gamma(2.0, jnp.array([1.0, 2.0, 3.0])))
    with numpyro.plate("cluster", 3):
        m = numpyro.sample("m", dist.Normal(jnp.zeros(3), scale).to_event(1))
        size = numpyro.sample("size", dist.Gamma(2.0, 1.0))
    return bm.GaussianMixture(size / size.sum(), m, Covariance(scale[None] ** 2, "EEI"))


def share(a, b):
    """Two clusters, of which the first has a share of its own."""
    import numpyro
    import numpyro.distributions as dist

    p = numpyro.sample("p", dist.Beta(a, b))
    with numpyro.plate("cluster", 2):
        m = numpyro.sample("m", dist.Normal(0.0, 3.0))
    return bm.GaussianMixture(jnp.stack([p, 1 - p]), m[:, None], Covariance(jnp.ones(1), "E"))


ALIKE = {
    "in a plate": ("V", partial(means_of, 5.0), [0, 0, 0]),
    "in no plate": ("E", alone, [0, 0, 0]),
    "another spread": ("E", partial(alone, spread=[5.0, 1.0, 5.0]), [0, 1, 0]),
    "another concentration": ("E", partial(alone, concentration=[2.0, 1.0, 1.0]), [0, 1, 1]),
    "ordered by a transform": ("E", partial(alone, ordered=True), [0, 1, 2]),
    "ordered by a factor": ("E", partial(alone, factor=True), [0, 1, 2]),
    "ordered, improper": ("V", ordered_program, [0, 1, 2]),
    "as many features": ("EEI", as_many_features, [0, 0, 0]),
    "a share": ("E", partial(share, 2.0, 2.0), [0, 0]),
    "a larger share": ("E", partial(share, 3.0, 2.0), [0, 1]),
}


@pytest.mark.parametrize("case", ALIKE)
def test_clusters_are_alike_where_the_program_says_so(case):
    from numpyro.infer.util import constrain_fn

    from bayesmix.potential import Evidence, blank_points
    from bayesmix.stories import alike

    structure, program, expected = ALIKE[case]
    k = len(expected)
    model, rng = bm.MixtureModel(k, structure, program), np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = blank_points(model, Evidence(None, None, None, np.zeros(2), np.ones(2)), 1)
        points = [{name: rng.normal(size=a.shape[1:]) for name, a in shapes.items()} for _ in range(9)]
        if case == "ordered by a factor":
            points = [point | {"m": np.sort(point["m"])} for point in points]
        drawn = [to_numpy(constrain_fn(program, (), {}, point)) for point in points]
    sites = {name: np.stack([values[name] for values in drawn]) for name in shapes}
    assert alike(model.parameters, k, sites).argmax(axis=1).tolist() == expected


def two(ordered):
    """Two clusters, with a spread of their means; in order or in a plate."""
    import numpyro
    import numpyro.distributions as dist

    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    spread = numpyro.sample("spread", dist.LogNormal(1.0, 0.3))
    with numpyro.plate("cluster", 2):
        deviation = numpyro.sample("deviation", dist.LogNormal(0.0, 0.5))
        if not ordered:
            m = numpyro.sample("m", dist.Normal(0.0, spread))
    if ordered:
        law = dist.Normal(0.0, spread).expand([2]).to_event(1)
        m = numpyro.sample("m", dist.TransformedDistribution(law, dist.transforms.OrderedTransform()))
    return bm.GaussianMixture(weights, m[:, None], Covariance(deviation**2, "V"))


@pytest.mark.parametrize("ordered", [False, True])
def test_labels_are_undone_where_the_program_holds_clusters_alike(ordered):
    """And sites of the plate `cluster` with them; those that are not are not judged."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-1.5, 1, 30), rng.normal(1.5, 1, 30)])
    model = bm.MixtureModel(2, "V", partial(two, ordered))
    tree = bm.sample_posterior(model, x, key=1, n_warmup=300, n_draws=300)
    of, judged = tree["posterior"], parameters(tree)
    means = of["means"].values[..., 0]
    assert of["deviation"].dims == ("chain", "draw", "cluster")
    assert_allclose(of["deviation"].values ** 2, of["covariances"].values[..., 0, 0])
    assert_allclose(of["m"].values, means)
    if ordered:
        assert of.attrs["exchangeable"] == [0, 1]
        assert (np.diff(means) > 0).all()
        assert {"spread", "m[0]", "deviation[1]"} <= set(judged)
    else:
        assert of.attrs["exchangeable"] == [0, 0]
        assert of.attrs["share_permuted"] > 0.1
        assert {"m[0]", "deviation[1]"} <= set(judged)
        assert "spread" not in judged
        assert np.ptp(means.mean(axis=1), axis=0).max() < 0.5


def told_apart():
    """Two clusters about one place, of which the first is held there."""
    import numpyro
    import numpyro.distributions as dist

    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    m = numpyro.sample("m", dist.Normal(jnp.zeros(2), jnp.array([0.5, 5.0])).to_event(1))
    s = numpyro.sample("s", dist.HalfNormal(jnp.array([3.0, 3.0])).to_event(1))
    return bm.GaussianMixture(w, m[:, None], Covariance(s**2, "V"))


@pytest.mark.parametrize("relabelling", [None, "ecr"])
def test_relabel_keeps_to_what_the_program_tells_apart_unless_told_otherwise(relabelling):
    x = np.random.default_rng(0).normal(size=40) * np.repeat([1.0, 3.0], 20)
    model = bm.MixtureModel(2, "V", told_apart)
    tree = bm.sample_posterior(model, x, key=1, n_chains=2, n_warmup=100, n_draws=50, relabelling=relabelling)
    assert tree["posterior"].attrs["exchangeable"] == [0, 1]
    kept = bm.relabel(tree, "order")["posterior"]
    assert kept.attrs["exchangeable"] == [0, 1]
    assert kept.attrs["share_permuted"] == 0
    assert_allclose(kept["means"].values[..., 0], kept["m"].values)
    free = bm.relabel(tree, "order", exchangeable=[7, 7])["posterior"]
    assert free.attrs["exchangeable"] == [0, 0]
    assert (np.diff(free["means"].values[..., 0]) > 0).all()
    with pytest.raises(ValueError, match="exchangeable must be 2 numbers"):
        bm.relabel(tree, exchangeable=[0])


def test_a_thin_draw_of_the_rate_keeps_its_digits():
    """Of condition 1e40: as a matrix it could not be inverted, nor its Cholesky factor be found."""
    values, _ = all_values("hierarchical", "VVV")
    values["rate_root"] = np.array([[1.0, 0.0], [0.4, 1e-20]])
    with jax.enable_x64(True):
        trace = handlers.trace(substituted(prior_of("hierarchical", "VVV"), values)).get_trace()
        lower = np.asarray(trace["precision_cholesky"]["fn"].base_dist.scale_tril)
    # Its upper root is [[1e-20, .4], [0, 1]], whose inverse is, transposed and by hand:
    assert_allclose(lower * np.sqrt(2), [[1e20, 0.0], [-0.4e20, 1.0]], rtol=1e-12)


def numbers(prior):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(prior)]


def test_defaults_are_richardson_and_greens():
    x = bm.datasets.load("galaxies") / 1000
    prior = bm.hierarchical_prior(x, n_components=3, covariance="V")
    span = float(x.max().iloc[0] - x.min().iloc[0])
    assert prior.mean == pytest.approx((x.max() + x.min()) / 2)
    assert prior.spread == pytest.approx([span])
    assert (prior.shape, prior.rate_shape) == (2.0, 0.2)
    assert prior.rate_rate == pytest.approx(10 / span**2)
    # Full storage of one feature is the same law.
    full = bm.hierarchical_prior(x, n_components=3)
    assert (full.shape, full.rate_shape, full.rate_rate[0]) == (2.0, 0.2, pytest.approx(10 / span**2))
    span = np.ptp(FAITHFUL, axis=0)
    two = bm.hierarchical_prior(FAITHFUL, n_components=2)
    assert (two.shape, two.rate_shape) == (2.5, 0.7)
    assert two.rate_rate == pytest.approx(100 * 0.7 / 2.5 / span**2)
    ball = bm.hierarchical_prior(FAITHFUL, n_components=2, covariance="VII")
    assert ball.rate_rate == pytest.approx(10 / np.mean(span**2))


def test_lkj_takes_the_columns_means_and_standard_deviations():
    weight = np.arange(272) % 3
    prior = bm.lkj_prior(FAITHFUL, n_components=2, sample_weight=weight)
    repeated = np.repeat(FAITHFUL, weight, axis=0)
    sd = repeated.std(axis=0, ddof=1)
    assert_allclose(prior.mean, repeated.mean(axis=0))
    assert_allclose(prior.scale, sd)
    assert_allclose(prior.spread, 2.5 * sd)
    ball = bm.lkj_prior(repeated, n_components=2, covariance="EII")
    assert ball.scale == pytest.approx(np.sqrt(np.mean(sd**2)))


@pytest.mark.parametrize("make", [bm.hierarchical_prior, bm.lkj_prior])
def test_constant_columns_take_the_size_of_the_others(make):
    x = np.column_stack([FAITHFUL[:20], np.full(20, 0.1)])
    prior = make(x, n_components=2)
    assert prior.spread[2] == pytest.approx(np.sqrt(np.mean(prior.spread[:2] ** 2)))
    assert make(np.full((4, 2), 3.7), n_components=2).spread[0] in (1, 2.5)


DRAWN = [("hierarchical", "VVV"), ("hierarchical", "VII"), ("lkj", "VVV"), ("lkj", "EEI")]


@cache
def drawn(word, structure, scale=1.0, shift=0.0):
    """Many draws, for data of three features."""
    model = bm.MixtureModel(2, structure, word).resolve(np.asarray(scale) * IRIS + shift)
    x = np.zeros((1, 3))
    tree = model.prior_predictive(3000, key=5, like=x)
    return model.prior, {
        name: array.values[0]
        for group in ("prior", "prior_predictive")
        for name, array in tree[group].items()
    }


def assert_law(values, law):
    assert stats.kstest(np.ravel(values), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize(("word", "structure"), DRAWN)
def test_draws_have_the_moments_of_their_laws(word, structure):
    prior, sample = drawn(word, structure)
    full, d = STRUCTURES[structure].storage == "full", 3
    assert_law((sample["means"][:, 0] - prior.mean) / prior.spread, stats.norm)
    assert_law(sample["weights"][:, 0], stats.uniform)
    if word == "lkj":
        assert_law(sample["deviations"].reshape(-1, d)[:3000] / prior.scale, stats.halfnorm)
        first = sample["covariances"][:, 0]
        assert_allclose(np.sqrt(np.diagonal(first, axis1=1, axis2=2)).ravel(), sample["deviations"].reshape(3000, -1, d)[:, 0].ravel())  # fmt: skip
        if full:  # each correlation by itself, of any number of features
            deviation = np.sqrt(np.diagonal(first, axis1=1, axis2=2))
            b = prior.correlation_concentration + (d - 2) / 2
            for i, j in ((0, 1), (0, 2), (1, 2)):
                rho = first[:, i, j] / deviation[:, i] / deviation[:, j]
                assert_law((1 + rho) / 2, stats.beta(b, b))
        return
    g, a, rate = prior.rate_shape, prior.shape, sample["rate"]
    if full:
        assert_law(rate[:, 0, 0], stats.gamma(g, scale=1 / prior.rate_rate[0]))
        known = np.linalg.cond(rate) < 1e10  # a nearly singular B has no determinant in float64
        ratio = (np.linalg.slogdet(rate)[1] - np.linalg.slogdet(sample["covariances"][:, 1])[1])[known]
        expected = special.digamma(a - np.arange(d) / 2).sum()  # of log |B Σ⁻¹|, for a Wishart of 2 a degrees
        assert len(ratio) > 2900  # whose law is the same, since B Σ⁻¹ does not depend on B
        assert abs(ratio.mean() - expected) < 4.5 * ratio.std() / np.sqrt(len(ratio))
        both, others = np.linalg.slogdet(rate)[1], np.linalg.slogdet(rate[:, :2, :2])[1]
        left = np.exp(both - others)  # what the other features leave: a gamma of fewer degrees
        assert_law(left, stats.gamma(g - (d - 1) / 2, scale=1 / prior.rate_rate[2]))
    else:
        assert_law(rate, stats.gamma(g, scale=1 / prior.rate_rate))
        assert_law(rate / sample["covariances"][:, 1, 0, 0], stats.gamma(a))


@pytest.mark.parametrize(("word", "structure"), DRAWN)
def test_draws_move_with_the_data(word, structure):
    scale = 1e-6 if structure.endswith("II") else np.array([1e-6, 1.0, 1e9])
    shift = 1e3 * np.asarray(scale)
    from bayesmix.distribution import draws

    _, sample = drawn(word, structure)
    before = draws._cache_size()
    _, moved = drawn(word, structure, *(tuple(v) if np.ndim(v) else v for v in (scale, shift)))
    assert draws._cache_size() == before
    size = scale * np.ones(3)
    spread = np.abs(sample["means"]).max() * size
    assert (np.abs(moved["means"] - (scale * sample["means"] + shift)) < 1e-9 * spread).all()
    near = np.median(np.abs(moved["x"] - (scale * sample["x"] + shift)) / spread)
    assert near < 1e-9
    ratio = moved["covariances"] / (size[:, None] * size)
    assert np.median(np.abs(ratio / np.where(sample["covariances"] == 0, 1, sample["covariances"]) - (sample["covariances"] != 0))) < 1e-9  # fmt: skip
    for name in {"rate", "deviations"} & set(sample):
        by = size if name == "deviations" else size[:, None] * size if structure == "VVV" else scale**2
        assert_allclose(moved[name], sample[name] * by, rtol=1e-4, atol=1e-9 * np.max(by))


def test_it_is_a_program_and_a_pytree():
    prior = prior_of("hierarchical", "V")
    model = bm.MixtureModel(3, "V", prior)
    sites = handlers.trace(handlers.seed(model, 0)).get_trace(FAITHFUL[:4, 0])
    assert [name for name, site in sites.items() if site["type"] == "sample"] == [
        "rate", "weights", "precision", "means", "z", "x",
    ]  # fmt: skip
    mixture = handlers.seed(prior, 1)()
    assert isinstance(mixture, bm.GaussianMixture)
    assert mixture.structure == "V"
    again = jax.tree.unflatten(jax.tree.structure(prior), jax.tree.leaves(prior))
    for one, other in zip(numbers(prior), numbers(again)):
        assert_allclose(one, other)
    resolved = bm.MixtureModel(3, "V", "lkj").resolve(FAITHFUL[:, 0])
    assert isinstance(resolved.prior, bm.LKJPrior)
    assert resolved.resolve(FAITHFUL[:9, 0]) is resolved


def test_a_program_that_wraps_one_is_a_program():
    """An ordinary program may start from such a prior and change what it returns."""
    prior = prior_of("lkj", "E")

    def program():
        mixture = prior()
        return replace(mixture, covariance=Covariance(4 * mixture.covariance.values, "E"))

    tree = bm.MixtureModel(3, "E", program).prior_predictive(5, key=0)
    assert_allclose(
        tree["prior"]["covariances"].values[0, :, 0, 0, 0], 4 * tree["prior"]["deviations"].values[0] ** 2
    )


# What a chain is run with wherever it may be, so that one program serves.
OPTIONS = {"n_chains": 2, "n_warmup": 300, "n_draws": 200, "target_accept": 0.98, "thinning": 1}


@cache
def overlapping(key=1):
    mixture = bm.GaussianMixture.of(
        [0.6, 0.4], [[0.0, 0.0], [2.0, 1.0]], [[[1.0, 0.5], [0.5, 1.0]], [[0.6, 0.0], [0.0, 1.5]]]
    )
    return mixture.simulate(60, key=key)


@cache
def posterior(scale=1.0, shift=0.0, **options):
    x = scale * overlapping()[0] + shift
    with warnings.catch_warnings():  # which depends on the processor, and is not what is asked here
        warnings.filterwarnings("ignore", message=".*transitions diverged")
        return bm.sample_posterior(bm.MixtureModel(2, prior="hierarchical"), x, key=2, **OPTIONS | options)


def test_the_posterior_says_what_it_was_made_from():
    tree, x = posterior(), overlapping()[0]
    prior, attributes = bm.hierarchical_prior(x, n_components=2), tree["posterior"].attrs
    assert attributes["prior"] == "hierarchical"
    assert_allclose(attributes["prior_rate_rate"], prior.rate_rate)
    assert_allclose(attributes["prior_spread"], prior.spread)
    assert attributes["prior_shape"] == 2.5
    assert set(tree["posterior"].data_vars) == {"weights", "means", "covariances", "rate"}
    assert tree["posterior"]["rate"].dims == ("chain", "draw", "feature", "feature_bis")
    for group in tree.children.values():
        assert set(group.to_dataset().dims) <= set(group.to_dataset().coords)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-6, 1e3)])
def test_lp_is_the_formula_in_the_datas_own_units(scale, shift):
    tree, x = posterior(scale, shift), scale * overlapping()[0] + shift
    prior = bm.hierarchical_prior(x, n_components=2)
    for draw in (0, 77):
        at = {name: array.values[1, draw] for name, array in tree["posterior"].data_vars.items()}
        values = {
            "weights": at["weights"],
            "means": at["means"],
            "rate_root": np.linalg.cholesky(at["rate"][::-1, ::-1]),
            "precision_cholesky": np.linalg.cholesky(np.linalg.inv(at["covariances"])),
        }
        mixture = bm.GaussianMixture.of(at["weights"], at["means"], at["covariances"])
        expected = log_prior(prior, values) + mixture.log_density(x).sum()
        assert tree["sample_stats"]["lp"].values[1, draw] == pytest.approx(expected, rel=1e-8)
        parts = [tree["log_prior"][name].values[1, draw] for name in tree["log_prior"].data_vars]
        assert sum(parts) == pytest.approx(log_prior(prior, values), rel=1e-8)


def invariants(weights, means, covariances, rate):
    """Numbers that do not know the clusters' names: the first two moments of x, and logs of sizes."""
    mean = weights @ means
    second = np.einsum("k,kij->ij", weights, covariances + means[:, :, None] * means[:, None])
    logs = np.sort(np.linalg.slogdet(covariances)[1])
    return [
        weights.max(),
        *mean,
        *(second - np.outer(mean, mean))[np.triu_indices(2)],
        *logs,
        *np.log(np.diag(rate)),
    ]


def mean_and_error(draws):
    """Over draws (chain, draw, number), with Monte-Carlo standard errors."""
    sizes = [float(az.ess(draws[..., i], method="mean")) for i in range(draws.shape[-1])]
    return draws.mean(axis=(0, 1)), draws.std(axis=(0, 1)) / np.sqrt(sizes)


def numbers_of(tree, scale=1.0, shift=0.0):
    """The invariants of every draw (chain, draw, number), in units in which the data are x = scale u + shift."""
    weights, means, covariances, rate = (
        tree["posterior"][name].values for name in ("weights", "means", "covariances", "rate")
    )
    every = np.ndindex(weights.shape[:2])
    found = [
        invariants(weights[i], (means[i] - shift) / scale, covariances[i] / scale**2, rate[i] / scale**2)
        for i in every
    ]
    return np.reshape(found, (*weights.shape[:2], -1))


def test_data_elsewhere_and_of_another_size_compile_nothing_and_give_the_same():
    from bayesmix import chains

    here = numbers_of(posterior())
    before = chains._begin._cache_size(), chains._advance._cache_size()
    there = numbers_of(posterior(1e-6, 1e3), 1e-6, 1e3)
    assert (chains._begin._cache_size(), chains._advance._cache_size()) == before
    (mean, error), (other, other_error) = mean_and_error(here), mean_and_error(there)
    assert (np.abs(mean - other) < 5 * np.hypot(error, other_error)).all()


def test_labels_hold_and_starts_are_taken():
    x, z = overlapping()
    labels = np.where(np.arange(60) < 12, z, -1)
    options = OPTIONS | {"relabelling": None, "n_warmup": 500, "target_accept": 0.95}
    model = bm.MixtureModel(2, prior="hierarchical")
    tree = bm.sample_posterior(model, x, key=3, labels=labels, **options)
    assert (tree["allocations"]["z"].values[:, :, :12] == z[:12]).all()
    first = tree["posterior"]["means"].mean(["chain", "draw"]).values
    assert first[0, 0] < 0.9 < first[1, 0]
    start = bm.fit(bm.MixtureModel(2, prior="weak"), x).mixture
    given = bm.sample_posterior(model, x, key=3, init=start, **options)
    assert np.isfinite(given["sample_stats"]["lp"].values).all()
    with pytest.raises(
        ValueError, match=r"init is a mixture of 1 clusters .* 2 clusters in 2 features are needed"
    ):
        bm.sample_posterior(model, x, key=3, init=bm.fit(bm.MixtureModel(1), x).mixture, **options)


def conditional_sweeps(x, prior, n, rng):
    """The same posterior by textbook Gibbs in NumPy: z, weights, each mean and precision, the rate."""
    k, d, z = 2, x.shape[1], (x[:, 0] > 1).astype(int)
    mean, precision = np.array([x[z == j].mean(axis=0) for j in range(k)]), np.stack([np.eye(d)] * k)
    rate, kept = np.eye(d), []
    for _ in range(n):
        count = np.bincount(z, minlength=k)
        weights = rng.dirichlet(1 + count)
        for j in range(k):
            mine = x[z == j]
            about = 2 * rate + (mine - mean[j]).T @ (mine - mean[j])
            precision[j] = stats.wishart.rvs(
                2 * prior.shape + len(mine), np.linalg.inv(about), random_state=rng
            )
            spread = np.linalg.inv(np.diag(prior.spread**-2) + len(mine) * precision[j])
            center = spread @ (prior.mean / prior.spread**2 + precision[j] @ mine.sum(axis=0))
            mean[j] = rng.multivariate_normal(center, spread)
        behind = np.diag(prior.rate_rate) + precision.sum(axis=0)
        rate = stats.wishart.rvs(
            2 * prior.rate_shape + 2 * prior.shape * k, np.linalg.inv(2 * behind), random_state=rng
        )
        y = x[:, None] - mean
        logits = np.log(weights) + 0.5 * np.linalg.slogdet(precision)[1]
        logits = logits - 0.5 * np.einsum("nki,kij,nkj->nk", y, precision, y)
        z = (special.softmax(logits, axis=1).cumsum(axis=1) < rng.random((len(x), 1))).sum(axis=1)
        kept.append(invariants(weights, mean, np.linalg.inv(precision), rate))
    return np.array(kept)


@pytest.mark.slow
def test_several_features_agree_with_a_gibbs_sampler_of_the_same_posterior():
    x = overlapping(4)[0]
    # Of ten keys, three have steps that diverge where 0.95 are to be accepted, and none with 0.99.
    options = OPTIONS | {"n_draws": 2000, "target_accept": 0.99}
    tree = bm.sample_posterior(bm.MixtureModel(2, prior="hierarchical"), x, key=2, **options)
    ours = numbers_of(tree)
    prior = bm.hierarchical_prior(x, n_components=2)
    rng = np.random.default_rng(0)
    theirs = np.stack([conditional_sweeps(x, prior, 2000, rng)[300:] for _ in range(2)])
    (mean, error), (other, other_error) = mean_and_error(ours), mean_and_error(theirs)
    assert (np.abs(mean - other) < 4.5 * np.hypot(error, other_error)).all(), (
        mean,
        other,
        error,
        other_error,
    )
    assert (error < 0.1 * ours.std(axis=(0, 1))).all()


@pytest.mark.slow
def test_galaxies_are_richardson_and_greens():
    """Against Green's own program, k = 3: means, quantiles and spreads of all nine parameters, and the deviance."""
    x, reference = bm.datasets.load("galaxies")["velocity"].to_numpy(float) / 1000, load("nmix_galaxies.json")
    x[77] = 26.96  # as they had it
    tree = bm.sample_posterior(
        bm.MixtureModel(3, "V", "hierarchical"),
        x,
        key=1,
        n_draws=3000,
        target_accept=0.95,  # of four keys, one has two steps of 12,000 that diverge with 0.9, and none with 0.95
        relabelling="order",
    )
    at = tree["posterior"]
    parts = [at["weights"], at["means"][..., 0], np.sqrt(at["covariances"][..., 0, 0])]
    ours = np.stack([np.asarray(part) for part in parts], axis=-1).reshape(4, 3000, 9)
    mean, error = mean_and_error(ours)
    theirs = {name: np.ravel(reference[name]) for name in ("posterior_mean", "mcse_of_mean", "posterior_sd")}
    assert (np.abs(mean - theirs["posterior_mean"]) < 4.5 * np.hypot(error, theirs["mcse_of_mean"])).all()
    squares = (
        ours - mean
    ) ** 2  # heavy-tailed: what their mean is worth is read off our draws, and for theirs too
    variance, own_error = mean_and_error(squares)
    their_error = squares.std(axis=(0, 1)) * theirs["mcse_of_mean"] / theirs["posterior_sd"]
    assert (np.abs(variance - theirs["posterior_sd"] ** 2) < 4.5 * np.hypot(own_error, their_error)).all()
    assert (
        np.median(np.hypot(own_error, their_error) / variance) < 0.15
    )  # so 4.5 errors are a third of a deviation
    for name, probability in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
        share = (ours < np.ravel(reference[name])).mean(axis=(0, 1))
        error = np.sqrt(probability * (1 - probability) * (1 / 1500 + 1 / 2000))
        assert (np.abs(share - probability) < 4.5 * error).all(), name
    deviance = -2 * tree["log_likelihood"]["x"].values.sum(axis=-1)
    assert deviance.mean() == pytest.approx(reference["deviance_mean"], abs=0.5)
    assert deviance.std() == pytest.approx(reference["deviance_sd"], rel=0.1)


@pytest.mark.slow
def test_lkj_agrees_with_importance_sampling():
    """One cluster of two features: five parameters, whose posterior is known from 400,000 weighted draws."""
    x = overlapping()[0][:30]
    prior = bm.lkj_prior(x, n_components=1)
    tree = bm.sample_posterior(bm.MixtureModel(1, prior="lkj"), x, key=4, **OPTIONS | {"n_draws": 2000})
    covariances = tree["posterior"]["covariances"].values[:, :, 0]
    deviations = np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1))
    rho = covariances[..., 0, 1] / deviations.prod(axis=-1)
    means = tree["posterior"]["means"].values[:, :, 0]
    ours = np.concatenate([means, deviations, rho[..., None]], axis=-1)
    assert_allclose(tree["posterior"]["deviations"].values[:, :, 0], deviations)
    # Unconstrained: means, log deviations, artanh of the correlation.
    flat = np.concatenate([means, np.log(deviations), np.arctanh(rho)[..., None]], axis=-1).reshape(-1, 5)
    proposal = stats.multivariate_t(x.mean(axis=0).tolist() + flat[:, 2:].mean(axis=0).tolist(), 1.5 * np.cov(flat.T), df=5, seed=0)  # fmt: skip
    u = proposal.rvs(400_000)
    mean, sigma, r = u[:, :2], np.exp(u[:, 2:4]), np.tanh(u[:, 4])
    y = (x[None] - mean[:, None]) / sigma[:, None]
    square = (y**2).sum(axis=2) - 2 * r[:, None] * y.prod(axis=2)
    log_x = -0.5 * (square / (1 - r**2)[:, None]).sum(axis=1)
    log_x -= len(x) * (np.log(sigma).sum(axis=1) + 0.5 * np.log(1 - r**2))
    logs = log_x + stats.norm.logpdf(mean, prior.mean, prior.spread).sum(axis=1)
    logs += stats.halfnorm.logpdf(sigma, scale=prior.scale).sum(axis=1) + u[:, 2:4].sum(axis=1)
    logs += stats.beta.logpdf((1 + r) / 2, 2, 2) + np.log(1 - r**2) - proposal.logpdf(u)
    weight = special.softmax(logs)
    assert 1 / (weight**2).sum() > 50_000
    values = np.column_stack([mean, sigma, r])
    expected, spread = weight @ values, np.sqrt(weight @ values**2 - (weight @ values) ** 2)
    found, error = mean_and_error(ours)
    assert (np.abs(found - expected) < 4.5 * np.hypot(error, spread / np.sqrt(50_000))).all()
    assert_allclose(ours.std(axis=(0, 1)), spread, rtol=0.1)


def test_a_cluster_narrower_than_the_rounding_is_reported():
    from bayesmix.problem import prepare
    from bayesmix.sampling import _warn_of_collapse

    x = np.round(FAITHFUL[:, 1])
    thin = bm.GaussianMixture.of([0.5, 0.5], [[60.0], [80.0]], [25.0, 1e-4], covariance="V")
    batch = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (2, 10, *np.shape(leaf))), thin)
    with pytest.warns(
        UserWarning, match=r"in 100.0% of the draws a cluster is narrower .* column 'x0'.*prior='weak'"
    ):
        _warn_of_collapse(batch, prepare(2, "V", x, None, 1e-4))


def hierarchical(**changes):
    given = {"n_components": 2, "mean": [0.0, 0.0], "spread": 1.0} | changes
    return bm.HierarchicalPrior.of(**given)


def lkj(**changes):
    return bm.LKJPrior.of(**{"n_components": 2, "mean": [0.0, 0.0], "spread": 1.0, "scale": 1.0} | changes)


ERRORS = [
    ("structure", lambda: bm.MixtureModel(2, "VEV", "hierarchical"), r"VEV has no NumPyro site for the prior 'hierarchical'.*EEE, VVV"),
    ("structure of", lambda: lkj(covariance="VVE"), "VVE has no NumPyro site for the prior 'lkj'"),
    ("one feature", lambda: hierarchical(covariance="V"), "covariance 'V' is for 1 feature"),
    ("word", lambda: bm.MixtureModel(2, prior="horseshoe"), "prior must be None, 'weak', 'hierarchical', 'lkj', a ConjugatePrior"),
    ("k", lambda: bm.MixtureModel(3, prior=hierarchical()), "prior is for 2 clusters and VVV; the model has 3 and VVV"),
    ("other", lambda: bm.MixtureModel(2, "EEE", lkj()), "prior is for 2 clusters and VVV; the model has 2 and EEE"),
    ("mean", lambda: hierarchical(mean=[[0.0]]), "mean must be"),
    ("spread", lambda: hierarchical(spread=[1.0, 0.0]), r"spread must be positive, one number or \(2,\)"),
    ("spread shape", lambda: lkj(spread=[1.0] * 3), r"spread must be positive, one number or \(2,\)"),
    ("concentration", lambda: lkj(concentration=[1.0]), r"concentration must be positive, one number or \(2,\)"),
    ("shape", lambda: hierarchical(shape=0.5), r"shape must exceed \(d - 1\) / 2 = 0.5"),
    ("rate shape", lambda: hierarchical(rate_shape=0.3), r"rate_shape must exceed \(d - 1\) / 2 = 0.5"),
    ("rate rate", lambda: hierarchical(covariance="VII", rate_rate=[1.0, 1.0]), "rate_rate must be one positive number"),
    ("scale", lambda: lkj(scale=np.inf), "scale have a value that is not finite"),
    ("eta", lambda: lkj(correlation_concentration=0.0), "correlation_concentration must be one positive number"),
    ("gap", lambda: bm.hierarchical_prior([[1.0], [np.nan]], n_components=1), "x has a missing value"),
    ("features", lambda: bm.MixtureModel(2, prior=lkj()).resolve(FAITHFUL[:, 0]), "2 features are needed"),
    ("alone", lambda: bm.MixtureModel(2, prior="lkj").prior_predictive(1, key=0), "prior='lkj' takes its scale from data"),
    ("fit", lambda: bm.fit(bm.MixtureModel(2, prior="lkj"), FAITHFUL), "for any other use sample_posterior"),
    ("gibbs", lambda: bm.sample_posterior(bm.MixtureModel(2, prior="hierarchical"), FAITHFUL, key=0, method="gibbs"), "gibbs needs a conjugate prior.*method='nuts'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
