"""`MixtureModel`: the explicit and the marginal story say the same, and draw what they say."""

import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, DiscreteHMCGibbs, Predictive
from numpyro.infer.util import log_density
from scipy import special, stats

from bayesmix import prior as module
from bayesmix.covariance import STRUCTURES, Covariance
from bayesmix.distribution import SITES, MixtureDistribution, draws
from bayesmix.inputs import to_numpy
from bayesmix.mixture import GaussianMixture
from bayesmix.model import MixtureModel
from bayesmix.prior import ConjugatePrior, weak_prior

FAITHFUL = np.loadtxt(
    Path(module.__file__).parent / "datasets" / "old_faithful.csv", delimiter=",", skiprows=1
)


def n_features(structure):
    return STRUCTURES[structure].n_features or 2


def proper_prior(structure, dof=9.0):
    """A fixed prior with nothing symmetric about it."""
    d, storage = n_features(structure), STRUCTURES[structure].storage
    scale = {"full": np.array([[2.0, 0.6], [0.6, 1.0]]), "diagonal": np.array([2.0, 0.7]), "spherical": 1.5}
    return ConjugatePrior.of(
        concentration=[2.0, 3.0, 1.5],
        mean=[1.0, -2.0][:d],
        mean_count=0.5,
        degrees_of_freedom=dof,
        scale=scale[storage],
    )


def ordered_program():
    """Three clusters in order along one axis, with half-normal deviations."""
    weights = numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
    base = dist.TransformedDistribution(
        dist.Normal(0, 5).expand([3]).to_event(1), dist.transforms.OrderedTransform()
    )
    means = numpyro.sample("ordered", base)
    with numpyro.plate("cluster", 3):
        deviation = numpyro.sample("deviation", dist.HalfNormal(2.0))
    numpyro.deterministic("gap", means[-1] - means[0])
    return GaussianMixture(weights, means[:, None], Covariance(deviation**2, "V"), ("velocity",))


SITED = [name for name, row in STRUCTURES.items() if not row.constrained]
MODELS = {name: (name, lambda name=name: proper_prior(name)) for name in SITED}
MODELS["program"] = ("V", lambda: ordered_program)


def make(name):
    structure, prior = MODELS[name]
    return MixtureModel(3, structure, prior())


def points(name, n=4):
    return FAITHFUL[:n, : n_features(MODELS[name][0])] / [4.0, 60.0][: n_features(MODELS[name][0])]


CHOLESKY = np.array([[[1.0, 0.0], [0.3, 2.0]], [[3.0, 0.0], [-1.0, 0.5]], [[0.7, 0.0], [0.1, 1.1]]])


def site_values(name):
    """Values for the sites of θ, nothing symmetric about them either."""
    row, d = STRUCTURES[MODELS[name][0]], n_features(MODELS[name][0])
    weights = np.array([0.5, 0.3, 0.2])
    if name == "program":
        return {
            "share": weights,
            "ordered": np.array([-1.0, 0.5, 2.0]),
            "deviation": np.array([0.4, 1.0, 2.0]),
        }
    site = {"full": CHOLESKY, "diagonal": CHOLESKY[:, 1] ** 2, "spherical": CHOLESKY[:, 0, 0]}[row.storage]
    means = np.array([[0.5, 1.0], [1.5, -2.0], [0.0, 3.0]])[:, :d]
    return {"weights": weights, SITES[row.storage].name: site[1] if row.shared else site, "means": means}


def mixture_of(name):
    """The mixture that those values stand for."""
    with jax.enable_x64(True):
        return to_numpy(handlers.substitute(make(name).parameters, data=as_arrays(site_values(name)))())


def as_arrays(values):
    return {name: jnp.asarray(value) for name, value in values.items()}


@pytest.mark.parametrize("name", MODELS)
def test_summing_the_joint_over_z_is_the_marginal(name):
    with jax.enable_x64(True):
        model, x, values = make(name), points(name), as_arrays(site_values(name))
        marginal = jax.jit(lambda v: log_density(model.marginal, (x,), {}, v)[0])(values)
        every_z = jnp.array(list(product(range(3), repeat=len(x))))
        explicit = jax.vmap(lambda v, z: log_density(model, (x,), {}, {**v, "z": z})[0], (None, 0))
        joint = jax.jit(explicit)(values, every_z)
        np.testing.assert_allclose(special.logsumexp(joint), marginal, rtol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_every_density_is_the_same(name):
    x, mixture = points(name, 20), mixture_of(name)
    with jax.enable_x64(True):
        story = handlers.substitute(make(name).marginal, data=as_arrays(site_values(name)))
        site = handlers.trace(story).get_trace(x)["x"]
        ours = site["fn"].log_prob(site["value"])
        components = dist.MultivariateNormal(mixture.means, covariance_matrix=mixture.covariances)
        theirs = dist.MixtureSameFamily(dist.Categorical(mixture.weights), components).log_prob(
            jnp.asarray(x)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
        np.testing.assert_allclose(ours, mixture.log_density(x), rtol=1e-12)
        np.testing.assert_allclose(MixtureDistribution(mixture).log_prob(x), ours, rtol=1e-12)


def log_prior_of_site(storage, prior, value):
    """SciPy's density of one cluster's covariance site; C carries the Jacobian of C -> C Cᵀ."""
    a, d = prior.degrees_of_freedom, prior.n_features
    if storage == "full":
        jacobian = d * np.log(2) + np.arange(d, 0, -1) @ np.log(np.diagonal(value))
        return stats.wishart.logpdf(value @ value.T, a, np.linalg.inv(prior.scale)) + jacobian
    return np.sum(stats.gamma.logpdf(value, a / 2, scale=2 / prior.scale))


@pytest.mark.parametrize("structure", SITED)
def test_the_prior_is_the_published_one(structure):
    row, prior = STRUCTURES[structure], proper_prior(structure)
    with jax.enable_x64(True):
        values, mixture = as_arrays(site_values(structure)), mixture_of(structure)
        ours = float(log_density(make(structure).parameters, (), {}, values)[0])
    values = to_numpy(values)
    site = np.asarray(values[SITES[row.storage].name])
    theirs = stats.dirichlet.logpdf(values["weights"], prior.concentration)
    theirs += sum(log_prior_of_site(row.storage, prior, c) for c in (site[None] if row.shared else site))
    for mean, covariance in zip(values["means"], mixture.covariances, strict=True):
        theirs += stats.multivariate_normal.logpdf(mean, prior.mean, covariance / prior.mean_count)
    assert ours == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name not in SITED])
def test_a_structure_without_a_site_says_so_by_name(structure):
    model = MixtureModel(3, structure, proper_prior(structure))
    with pytest.raises(ValueError, match=f"structure {structure} has no NumPyro site.*EEE"):
        model.prior_predictive(2, key=0)
    with pytest.raises(ValueError, match=f"structure {structure} has no NumPyro site"):
        handlers.seed(model.marginal, 0)(np.ones((4, 2)))


# Compiling a simulation takes seconds: two structures in every run, all of them in the gate.
SIMULATED = [
    structure if structure in ("VVV", "EEI") else pytest.param(structure, marks=pytest.mark.slow)
    for structure in ("V", "EII", "VVI", "EEI", "EEE", "VVV")  # a site of each kind, shared or not
]


@cache
def many_draws(structure):
    tree = MixtureModel(3, structure, proper_prior(structure)).prior_predictive(4000, key=7)
    parameters, data = tree["prior"].to_dataset(), tree["prior_predictive"].to_dataset()
    return {name: array.values[0] for name, array in {**parameters.data_vars, **data.data_vars}.items()}


def assert_mean(draws, expected):
    """The mean of independent draws, to five standard errors."""
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - expected) < 5 * error + 1e-12).all()


@pytest.mark.parametrize("structure", SIMULATED)
def test_prior_draws_have_the_prior_s_moments(structure):
    row, prior, sample = STRUCTURES[structure], proper_prior(structure), many_draws(structure)
    a, d = prior.degrees_of_freedom, prior.n_features
    share = prior.concentration / prior.concentration.sum()
    assert_mean(sample["weights"], share)
    assert_mean(sample["weights"] ** 2, share**2 + stats.dirichlet.var(prior.concentration))
    full = row.storage == "full"
    scale = prior.scale if full else np.diag(np.broadcast_to(prior.scale, (d,)))
    expected = stats.invwishart.mean(a, scale) if full else scale / (a - 2)
    assert_mean(sample["covariances"], expected)
    # E log |Σ| is what tells degrees of freedom from a scale.
    psi = special.digamma((a - np.arange(d)) / 2).sum() if full else d * special.digamma(a / 2)
    log_det = np.linalg.slogdet(sample["covariances"])[1]
    assert_mean(log_det, np.linalg.slogdet(scale)[1] - psi - d * np.log(2))
    assert_mean(sample["means"], prior.mean)
    deviations = sample["means"] - prior.mean
    assert_mean(deviations[..., :, None] * deviations[..., None, :], expected / prior.mean_count)
    # One draw of a mixture decides all its means' spread where Σ is shared, never their signs.
    assert_mean(deviations[:, 0] * deviations[:, 1], 0)
    whitened = np.linalg.solve(np.linalg.cholesky(sample["covariances"]), deviations[..., None])[..., 0]
    assert_mean((prior.mean_count * whitened**2).sum(-1), d)
    shared = np.ptp(sample["covariances"], axis=1).max() == 0
    assert shared == row.shared


@pytest.mark.parametrize("structure", SIMULATED)
def test_x_comes_from_its_cluster(structure):
    sample, d = many_draws(structure), n_features(structure)
    z = sample["z"][:, 0].astype(int)
    assert_mean(np.eye(3)[z] - sample["weights"], 0)
    own = np.arange(len(z))
    factor = np.linalg.cholesky(sample["covariances"][own, z])
    y = np.linalg.solve(factor, (sample["x"][:, 0] - sample["means"][own, z])[..., None])[..., 0]
    assert_mean(y, np.zeros(d))
    assert_mean(y[:, :, None] * y[:, None, :], np.eye(d))
    assert stats.kstest((y**2).sum(-1), stats.chi2(d).cdf).pvalue > 1e-4


@pytest.mark.parametrize("structure", ["E", "EII", "EEI", "EEE", "VVV"])
def test_the_distributions_simulate_their_density(structure):
    with jax.enable_x64(True):
        mixture = mixture_of(structure)
        x = np.asarray(MixtureDistribution(mixture).sample(jax.random.key(0), (5000,)))
    d = mixture.n_features
    weights, means, covariances = mixture.weights, mixture.means, mixture.covariances
    assert_mean(x, weights @ means)
    second = np.einsum("k,kij->ij", weights, covariances + means[:, :, None] * means[:, None, :])
    assert_mean(x[:, :, None] * x[:, None, :], second.reshape(d, d))


def test_a_cluster_without_weight_has_a_finite_gradient():
    def total(means):
        mixture = GaussianMixture(jnp.array([1.0, 0.0]), means, Covariance(jnp.ones(2), "V"))
        return MixtureDistribution(mixture).log_prob(jnp.array([[0.3], [-50.0]])).sum()

    gradient = jax.grad(total)(jnp.array([[0.0], [5.0]]))
    assert np.isfinite(gradient).all()
    assert gradient[1, 0] == 0


@pytest.mark.parametrize("structure", SITED)
def test_sites_and_plates(structure):
    row, model = STRUCTURES[structure], make(structure)
    site = SITES[row.storage].name
    values = as_arrays(site_values(structure))
    story = handlers.substitute(handlers.seed(model, 0), data=values)
    trace = handlers.trace(story).get_trace(points(structure))
    plates = {
        name: [frame.name for frame in entry["cond_indep_stack"]]
        for name, entry in trace.items()
        if entry["type"] == "sample"
    }
    assert plates == {
        "weights": [],
        site: [] if row.shared else ["cluster"],
        "means": ["cluster"],
        "z": ["obs_id"],
        "x": ["obs_id"],
    }
    marginal = handlers.substitute(model.marginal, data=values)
    without = handlers.trace(marginal).get_trace(points(structure))
    assert set(trace) - set(without) == {"z"}


@pytest.mark.parametrize("prior", [None, "weak", "program"])
def test_render_model_shows_the_story(prior):
    model = make("program") if prior == "program" else MixtureModel(3, "full", prior)
    x = FAITHFUL[:10, :1]
    own = (
        ["share", "ordered", "deviation"]
        if prior == "program"
        else ["weights", "precision_cholesky", "means"]
    )
    for story, rest in ((model, ["z", "x"]), (model.marginal, ["x"])):
        source = numpyro.render_model(story, model_args=(x,)).source
        for name in [*own, *rest]:
            assert f"\t{name} [" in source


@pytest.mark.parametrize("name", [pytest.param("VVV", marks=pytest.mark.slow), "program"])
def test_predictive_draws_forward(name):
    model, d = make(name), n_features(MODELS[name][0])
    draws = Predictive(model, num_samples=3)(jax.random.key(0), n=5)
    assert draws["x"].shape == (3, 5, d)
    assert draws["z"].shape == (3, 5)
    parameters = {name: value for name, value in draws.items() if name not in ("x", "z")}
    again = Predictive(model.marginal, parameters)(jax.random.key(1), n=2)
    assert again["x"].shape == (3, 2, d)
    assert Predictive(model, num_samples=1)(jax.random.key(0))["x"].shape == (1, 1, d)


def test_follows_the_flag():
    for flag, dtype in ((False, np.float32), (True, np.float64)):
        with jax.enable_x64(flag):
            story = handlers.seed(handlers.substitute(make("VVV"), data=as_arrays(site_values("VVV"))), 0)
            site = handlers.trace(story).get_trace(points("VVV").astype(np.float32))["x"]
            assert site["value"].dtype == site["fn"].log_prob(site["value"]).dtype == dtype


@pytest.mark.parametrize("name", ["EEE", "VVI", "program"])
def test_gradients_flow_through_traced_data_and_parameters(name):
    with jax.enable_x64(True):
        model, x, mixture = make(name), points(name), mixture_of(name)
        values = as_arrays(site_values(name))

        def potential(values, x):
            return log_density(model.marginal, (x,), {}, values)[0]

        along, data = jax.jit(jax.grad(potential, (0, 1)))(values, x)
        r = mixture.responsibilities(x)
        deviations = x[:, None] - mixture.means
        pull = -np.linalg.solve(mixture.covariances, deviations[..., None])[..., 0]
        np.testing.assert_allclose(data, np.einsum("nk,nki->ni", r, pull), rtol=1e-9)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(along))


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_a_thin_weak_prior_survives_single_precision(unit):
    x = np.arange(12.0)[:, None] + np.array([[0.0, 1e-4]]) * (-1.0) ** np.arange(12)[:, None]
    model = MixtureModel(3, "full", "weak")
    values = {
        "weights": jnp.full(3, 1 / 3),
        "precision_cholesky": jnp.asarray(CHOLESKY / unit, float),
        "means": jnp.asarray(unit * x[:3], float),
    }
    assert np.isfinite(log_density(model.marginal, (unit * x,), {}, values)[0])


def test_resolve_fixes_the_prior_once():
    model = MixtureModel(2, "full", "weak")
    fixed = model.resolve(FAITHFUL)
    assert isinstance(fixed.prior, ConjugatePrior)
    np.testing.assert_array_equal(fixed.prior.scale, weak_prior(FAITHFUL, n_components=2).scale)
    assert fixed.resolve(FAITHFUL[:5]) is fixed
    assert model.prior == "weak"
    program = make("program")
    assert program.resolve(FAITHFUL[:, 0]) is program
    weight = np.arange(272) % 3
    assert MixtureModel(2).resolve(FAITHFUL, sample_weight=weight).prior.mean[0] == pytest.approx(
        np.average(FAITHFUL[:, 0], weights=weight)
    )


def test_prior_predictive_is_labelled():
    import pandas

    frame = pandas.DataFrame(FAITHFUL[:7].astype(np.float32), columns=["eruptions", "waiting"])
    tree = MixtureModel(2, "diag", "weak").prior_predictive(5, key=0, like=frame)
    assert tree.groups == ("/", "/prior", "/prior_predictive")
    parameters, data = tree["prior"], tree["prior_predictive"]
    assert {name: array.dims[2:] for name, array in parameters.data_vars.items()} == {
        "weights": ("cluster",),
        "means": ("cluster", "feature"),
        "covariances": ("cluster", "feature", "feature_bis"),
    }
    assert dict(data["x"].sizes) == {"chain": 1, "draw": 5, "obs_id": 7, "feature": 2}
    assert data["z"].dims == ("chain", "draw", "obs_id")
    for group in (parameters, data):
        assert set(group.dims) <= set(group.coords)
    for array in (*parameters.data_vars.values(), data["x"]):
        assert array.dtype == np.float64
    assert list(parameters["feature"].values) == list(parameters["feature_bis"].values) == list(frame)


def test_prior_predictive_of_a_program():
    tree = make("program").prior_predictive(6, key=jax.random.key(1))
    prior = tree["prior"]
    assert {"share", "ordered", "deviation", "gap", "weights", "means", "covariances"} == set(prior.data_vars)
    assert set(prior.dims) <= set(prior.coords)
    np.testing.assert_array_equal(prior["means"].values[..., 0], prior["ordered"].values)
    np.testing.assert_array_equal(prior["covariances"].values[..., 0, 0], prior["deviation"].values ** 2)
    assert list(prior["feature"].values) == ["velocity"]
    assert tree["prior_predictive"]["x"].shape == (1, 6, 1, 1)


def test_prior_predictive_repeats_under_any_flag():
    model = MixtureModel(2, "diag", "weak")
    first = model.prior_predictive(5, key=4, like=FAITHFUL[:7])
    with jax.enable_x64(True):
        second = model.prior_predictive(5, key=4, like=FAITHFUL[:7])
    np.testing.assert_array_equal(first["prior_predictive"]["x"], second["prior_predictive"]["x"])


def test_compiles_once_for_models_that_differ_in_numbers():
    MixtureModel(2, "diag", "weak").prior_predictive(5, key=4, like=FAITHFUL[:7])
    before = draws._cache_size()
    MixtureModel(2, "diag", "weak").prior_predictive(5, key=5, like=FAITHFUL[7:14])
    assert draws._cache_size() == before


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["weak", "program"])
def test_nuts_takes_the_marginal(prior):
    model = make("program") if prior == "program" else MixtureModel(2, "full", prior)
    x = FAITHFUL[:30, :1]
    sampler = MCMC(NUTS(model.marginal, max_tree_depth=3), num_warmup=5, num_samples=5, progress_bar=False)
    sampler.run(jax.random.key(0), x)
    assert all(np.isfinite(values).all() for values in sampler.get_samples().values())


@pytest.mark.slow
def test_discrete_kernels_take_the_explicit_story():
    kernel = DiscreteHMCGibbs(NUTS(MixtureModel(2, "V", "weak"), max_tree_depth=2))
    sampler = MCMC(kernel, num_warmup=3, num_samples=3, progress_bar=False)
    sampler.run(jax.random.key(0), FAITHFUL[:6, 0])
    assert sampler.get_samples()["z"].shape == (3, 6)


def test_names_are_letters_and_models_are_values_of_identity():
    words = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII", "EEI": "EEI"}
    assert {word: MixtureModel(3, word).covariance for word in words} == words
    assert MixtureModel(3) != MixtureModel(3)
    assert isinstance(MixtureModel(np.int64(3)).n_components, int)


def test_making_a_model_loads_nothing_heavy():
    heavy = ["numpyro", "arviz", "arviz_base", "xarray", "matplotlib", "sklearn", "pandas"]
    code = (
        "import sys; from bayesmix.model import MixtureModel; from bayesmix.prior import weak_prior\n"
        "MixtureModel(3, 'full', 'weak').resolve([[0.0], [1.0]])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def run(model, *args, **options):
    return handlers.seed(model, 0)(*args, **options)


def conjugate(structure="full", **changes):
    given = {"mean": [0.0, 0.0], "degrees_of_freedom": 4.0, "scale": np.eye(2)} | changes
    return MixtureModel(3, structure, ConjugatePrior.of(**given))


def two_clusters():
    return GaussianMixture.of([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], covariance="V")


ERRORS = [
    ("k", lambda: MixtureModel(0), "n_components must be at least 1"),
    ("k text", lambda: MixtureModel("3"), "n_components must be a whole number"),
    ("structure", lambda: MixtureModel(3, "round"), "covariance must be one of"),
    ("prior word", lambda: MixtureModel(3, prior="strong"), "prior must be None, 'weak', 'hierarchical'"),
    ("prior number", lambda: MixtureModel(3, prior=1.0), "prior must be None, 'weak', 'hierarchical'"),
    ("concentrations", lambda: conjugate(concentration=[1.0, 1.0]), "prior has 2 concentrations for 3"),
    (
        "scale full",
        lambda: conjugate(scale=1.0),
        r"prior has a scale of shape \(\); .* VVV takes shape \(2, 2\)",
    ),
    ("scale diagonal", lambda: conjugate("diag"), "VVI takes one number or shape"),
    ("scale spherical", lambda: conjugate("VII", scale=[1.0, 1.0]), "VII takes one number$"),
    ("one-column prior", lambda: conjugate("V", scale=1.0), "covariance 'V' is for 1 feature"),
    (
        "one-column data",
        lambda: run(MixtureModel(2, "E", "weak"), FAITHFUL),
        "covariance 'E' is for 1 feature",
    ),
    ("features", lambda: run(conjugate(), FAITHFUL[:, :1]), "x has 1 features, but 2 are needed"),
    ("a gap", lambda: run(conjugate(), [[0.0, np.nan]]), "x has a missing value"),
    (
        "program features",
        lambda: run(make("program").marginal, FAITHFUL),
        "x has 2 features, but the prior has 1",
    ),
    ("x and n", lambda: run(conjugate(), FAITHFUL, n=3), "leave it out when x is given"),
    ("n", lambda: run(conjugate(), n=0), "n must be at least 1"),
    ("no data", lambda: run(MixtureModel(3, prior="weak")), r"model\.resolve\(x\)"),
    ("no data, None", lambda: run(MixtureModel(3).marginal, n=5), "prior=None takes its scale from data"),
    (
        "traced",
        lambda: jax.jit(lambda x: run(MixtureModel(3), x))(FAITHFUL),
        r"traced .* model\.resolve\(x\)",
    ),
    ("not a mixture", lambda: run(MixtureModel(2, "V", lambda: 3)), "returned a int, not a GaussianMixture"),
    ("other k", lambda: run(MixtureModel(3, "V", two_clusters)), "the model has 3 clusters and V"),
    ("other structure", lambda: run(MixtureModel(2, "E", two_clusters)), "the model has 2 clusters and E"),
    (
        "flat",
        lambda: MixtureModel(3).prior_predictive(1, key=0, like=FAITHFUL),
        "prior is None.*choose 'weak'",
    ),
    ("weak alone", lambda: MixtureModel(3, prior="weak").prior_predictive(1, key=0), "pass them as like=x"),
    ("draws", lambda: conjugate().prior_predictive(0, key=0), "n must be at least 1"),
    ("key", lambda: conjugate().prior_predictive(1, key="a"), "key must be an int"),
    (
        "like",
        lambda: conjugate().prior_predictive(1, key=0, like=[[1.0]]),
        "like has 1 features, but 2 are needed",
    ),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
