"""A pass, and where matrices are small all of a program, as one kernel: the same numbers as by many, and no crash.

Every structure, prior and method is tried in the other files, which run such programs wherever numbers are few.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

import bayesmix as bm
from bayesmix import chains, climb, density, drive, evaluate, pointwise, sampling, statistics
from bayesmix.blocks import points_last
from bayesmix.climb import advance
from bayesmix.compilation import one_kernel, wide
from bayesmix.covariance import STRUCTURES, Covariance
from bayesmix.devices import double_precision
from bayesmix.drive import begin
from bayesmix.given import given_start
from bayesmix.loop import Options
from bayesmix.maxima import largest
from bayesmix.observations import observe
from bayesmix.packing import Layout
from bayesmix.passes import labels
from bayesmix.problem import prepare

FEW = {"xla_cpu_experimental_ynn_fusion_type": ""}  # what `wide` asks for


def sample(n, d, k=3):
    rng = np.random.default_rng(d)
    means = 6 * rng.normal(size=(k, d))
    return means[rng.integers(0, k, n)] + rng.normal(size=(n, d))


@pytest.fixture
def by_many(monkeypatch):
    """No program is one kernel while it holds."""

    def switch():
        for module in (climb, sampling, pointwise):
            monkeypatch.setattr(module, "is_few", lambda *numbers: False)

    return switch


@pytest.fixture
def made():
    """How many programs of few numbers a function has. That XLA could make all of them is seen to in `conftest`."""
    return lambda program: program._few._cache_size()


@pytest.mark.parametrize(("name", "d"), [("VVV", 2), ("EEE", 3), ("VVI", 2), ("V", 1), ("VVV", 5)])
def test_a_fit_by_one_kernel_is_the_fit_by_many(name, d, made, by_many):
    x, model = sample(150, d), bm.MixtureModel(3, name)
    options = {"key": 0, "n_starts": 1, "tol": 0, "max_steps": 30}
    before = made(advance)
    ours = bm.fit(model, x, **options)
    assert made(advance) > before
    by_many()
    theirs = bm.fit(model, x, **options)
    assert_allclose(ours.objective, theirs.objective, rtol=1e-10)
    assert_allclose(ours.mixture.covariances, theirs.mixture.covariances, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "d", "prior"),
    [
        ("VVV", 2, None),
        ("VVV", 2, "weak"),
        ("VEI", 3, None),
        ("EEE", 3, "weak"),
        ("V", 1, None),
        ("VVV", 5, None),
    ],
)
@pytest.mark.parametrize("accelerate", [False, True])
def test_a_fit_by_three_kernels_is_the_fit_by_one(name, d, prior, accelerate, monkeypatch):
    x, model = sample(150, d), bm.MixtureModel(3, name, prior)
    options = {"key": 0, "n_starts": 1, "tol": 1e-12, "max_steps": 25, "accelerate": accelerate}
    called = []

    def fit(apart):
        def noted(*arguments):
            options = arguments[-1]._replace(apart=apart and arguments[-1].apart)
            called.append((arguments[:-1], options))
            return advance(*arguments[:-1], options)

        monkeypatch.setattr(drive, "advance", noted)
        return bm.fit(model, x, **options)

    ours, theirs = fit(True), fit(False)
    assert_allclose(ours.objective, theirs.objective, rtol=1e-11)
    assert_allclose(ours.mixture.means, theirs.mixture.means, rtol=1e-7)
    assert [options.apart for _, options in called] == [True] * (len(called) // 2) + [False] * (
        len(called) // 2
    )
    if name == "VVV" and d == 2:  # they stay three, which XLA compiles side by side: it might make them one
        with double_precision():
            program = advance.lower(*called[0][0], called[0][1]).compile().as_text()
        entry = program[program.index("\nENTRY") :]
        (body,) = re.findall(r" while\(.*body=%([\w.-]+)", entry)
        computation = program[program.index(f"\n%{body} ") :].partition("\n}")[0]
        assert len(re.findall(r" call\(.*xla_cpu_small_call", computation)) == 3


@pytest.mark.parametrize("method", ["stochastic", "stochastic_approximation"])
def test_runs_that_draw_and_those_of_given_length_are_one_kernel(method, monkeypatch):
    seen = []
    monkeypatch.setattr(drive, "advance", lambda *a: (seen.append(a[-1].apart), advance(*a))[1])
    x, model = sample(150, 2), bm.MixtureModel(3)
    bm.fit(model, x, key=0, n_starts=1, tol=0, max_steps=5)
    bm.fit(model, x, key=0, n_starts=1, method=method, max_steps=5)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("kind", ["soft", "hard", "sampled"])
@pytest.mark.parametrize(
    ("name", "d"), [("VVV", 2), ("EEE", 3), ("VVI", 6), ("VII", 2), ("E", 1), ("VVV", 7), ("VVV", 13)]
)
@pytest.mark.parametrize("n", [1, 63, 2500])
def test_sums_in_lanes_are_sums_of_blocks(name, d, kind, n):
    problem = prepare(1, name, sample(n, d), np.random.default_rng(0).random(n) + 0.5, 1e-4)
    fit = bm.fit(bm.MixtureModel(3, name), sample(300, d), key=0)
    mixture = problem.units.enter(fit.mixture)
    observations = observe(problem.x, problem.w, STRUCTURES[name])
    words = np.array([1, 2], np.uint32) if kind == "sampled" else None

    def of(few):
        with double_precision():
            program = jax.jit(lambda o: statistics.summarize(mixture, o, kind, key=words, few=few))
            return jax.tree.map(np.asarray, program(observations))

    many, few = of(False), of(True)
    assert_allclose(few.objective, many.objective, rtol=1e-12, atol=1e-9)
    assert_allclose(few.moments, many.moments, rtol=1e-10, atol=1e-10 * n)  # draws are the same


@pytest.mark.parametrize("gone", [[], [2], [6], [3, 5, 6], [1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize(("name", "d"), [("VVV", 2), ("VVI", 6)])
def test_clusters_of_no_weight_are_left_out_of_a_pass_and_have_no_part_in_the_sums(name, d, gone):
    x = sample(200, d, 7)
    problem = prepare(7, name, x, None, 1e-4)
    mixture = problem.units.enter(bm.fit(bm.MixtureModel(7, name), x, key=0, max_steps=3).mixture)
    weights = np.where(np.isin(np.arange(7), gone), 0, mixture.weights)
    mixture = replace(mixture, weights=weights / weights.sum())

    def of(padded):
        with double_precision():
            program = jax.jit(
                lambda o: statistics.summarize(mixture, o, "soft", few=True, padded=padded),
                compiler_options=FEW,
            )
            return jax.tree.map(np.asarray, program(problem.observations))

    whole, padded = of(False), of(True)
    assert (whole.moments[gone] == 0).all()
    assert_allclose(padded.objective, whole.objective, rtol=1e-13)
    assert_allclose(padded.moments, whole.moments, rtol=1e-12, atol=1e-12)


def test_rows_hold_numbers_whole_numbers_and_truth_values_and_what_is_written_to_their_views():
    rng = np.random.default_rng(0)
    stacked = (
        rng.normal(size=(4, 2, 3)),
        {"whole": np.arange(4, dtype=np.int32), "truth": rng.random(4) < 0.5},
    )
    layout = Layout.of(stacked)
    rows = layout.rows(stacked)
    assert rows.shape == (4, 8)
    assert rows.dtype == np.float64
    with double_precision():
        again = jax.vmap(layout.unpack)(rows)
        assert (np.asarray(jax.vmap(layout.pack)(again)) == rows).all()
    for own, given in zip(jax.tree.leaves(again), jax.tree.leaves(stacked), strict=True):
        assert own.dtype == given.dtype
        assert (np.asarray(own) == given).all()
    layout.views(rows)[1]["whole"][2] = 7
    assert list(layout.views(rows)[1]["whole"]) == [0, 1, 7, 3]


@pytest.mark.parametrize(
    ("method", "name", "d"),
    [("gibbs", "VVV", 2), ("gibbs", "V", 1), ("gibbs", "VVV", 5), ("nuts", "VVV", 2), ("nuts", "V", 1)],
)
def test_chains_by_one_kernel_say_what_chains_by_many_do(method, name, d, made, by_many):
    x = sample(120, d, 2)
    model = bm.MixtureModel(2, name, "weak")
    options = {"key": 0, "method": method, "n_chains": 2, "n_warmup": 400, "n_draws": 400}
    before = made(chains._advance)
    ours = bm.sample_posterior(model, x, **options)
    assert made(chains._advance) > before
    by_many()
    theirs = bm.sample_posterior(model, x, **options)
    one, two = (
        np.sort(tree["posterior"]["means"].mean(["chain", "draw"]), axis=0) for tree in (ours, theirs)
    )
    spread = np.asarray(theirs["posterior"]["means"].std(["chain", "draw"])).max()
    assert_allclose(one, two, atol=0.4 * spread)


@pytest.mark.parametrize("permute", [False, True])
def test_a_sweep_of_gibbs_is_one_kernel_with_labels_permuted_too(permute, made):
    options = {"method": "gibbs", "n_chains": 2, "n_warmup": 10, "n_draws": 50}
    before = made(chains._advance)
    bm.sample_posterior(bm.MixtureModel(3, "VVI", "weak"), sample(90, 2), key=0, permute=permute, **options)
    assert made(chains._advance) > before


@pytest.mark.parametrize("size", [0, 4])
def test_arguments_that_nothing_needs_and_constants_are_no_matter(size):
    """As arguments of a kernel inside a loop they would end the process."""
    few = Options(few=True)
    table = np.arange(6.0).reshape(2, 3)

    def program(x, unused, options):
        def inside(x, unused, flag):
            nothing = jnp.sum(unused[:, :, :1] > unused[:, :, :0], axis=-1)
            return x[:, [2, 0, 1]] * 0.5 + table + nothing, flag

        def step(i, x):
            return one_kernel(inside, options.few)(x, unused + i, True)[0]

        return jax.lax.fori_loop(0, 4, step, one_kernel(inside, options.few)(x, unused, True)[0])

    compiled = wide(program, static_argnames="options")
    with double_precision():
        x, unused = jnp.ones((2, 3)), jnp.zeros((2, 3, 5 * 10**size), jnp.int32)
        assert_allclose(compiled(x, unused, few), compiled(x, unused, Options()), rtol=1e-15)
        assert "xla_cpu_small_call" in compiled.lower(x, unused, few).as_text()
        assert "xla_cpu_small_call" not in compiled.lower(x, unused, Options()).as_text()
    assert compiled._known


def test_arguments_may_all_be_large():
    def program(x, options):
        return one_kernel(lambda x: jnp.sum(x * x, axis=0), options.few)(x)

    x = np.random.default_rng(0).normal(size=(3, 5000))
    with double_precision():
        assert_allclose(wide(program, static_argnames="options")(x, Options(few=True)), (x * x).sum(axis=0))


def test_where_xla_cannot_make_it_the_program_is_the_ordinary_one():
    def one_that_sorts(x, options):
        return one_kernel(jnp.sort, options.few)(x)

    compiled = wide(one_that_sorts, static_argnames="options")
    with double_precision():
        assert_allclose(compiled(jnp.array([3.0, 1.0, 2.0]), Options(few=True)), [1, 2, 3])
        assert not compiled._known
        assert_allclose(compiled(jnp.array([3.0, 1.0, 2.0]), Options(few=True)), [1, 2, 3])


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("k", [1, 2, 8, 9, 70, 130])
def test_the_largest_of_logits_is_the_first_of_those_that_tie(k, kernel):
    logits = np.random.default_rng(k).integers(0, 5, size=(k, 300)).astype(float)

    def one(logits):
        return one_kernel(largest, kernel)(logits)

    def two(logits):
        return one_kernel(lambda a: largest(a, second=True), kernel)(logits)

    with double_precision():
        first, top = jax.jit(one, compiler_options=FEW)(logits)
        again, same, second = jax.jit(two, compiler_options=FEW)(logits)
    assert (np.asarray(first) == logits.argmax(axis=0)).all()
    assert (np.asarray(top) == logits.max(axis=0)).all()
    assert (again == first).all()
    assert (same == top).all()
    below = np.sort(np.concatenate([np.full((1, 300), -np.inf), logits]), axis=0)[-2]  # it, if it comes twice
    assert (np.asarray(second) == below).all()


@pytest.mark.parametrize(("name", "d"), [("VVV", 2), ("EEE", 3), ("VVI", 6), ("VII", 2)])
def test_float32_sums_of_many_points_keep_its_digits(name, d):
    """They are float32 for 4,096 points and float64 from there on."""
    x, model = sample(20_000, d), bm.MixtureModel(3, name)
    mixture = bm.fit(model, x, key=0).mixture
    moments = []
    for data in (x, x.astype(np.float32)):
        problem = prepare(1, name, data, None, 1e-4)
        with double_precision():
            own = problem.units.enter(mixture)
            program = jax.jit(lambda o, own=own: statistics.summarize(own, o, "soft", few=True).moments)
            moments.append(np.asarray(program(problem.observations)))
    assert_allclose(moments[1], moments[0], rtol=2e-6, atol=2e-6 * len(x))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "k"), [(1, 3), (5, 9), (12, 140)])
def test_labels_by_one_kernel_are_those_of_blocks_and_of_numpy(d, k, dtype):
    """Points on a grid tie between centres, and the lower one takes them."""
    rng = np.random.default_rng(d)
    x, means = rng.integers(-4, 5, size=(3000, d)), rng.integers(-4, 5, size=(k, d))
    blocks = points_last(x.astype(dtype), 1024)
    natural = np.c_[-(means**2).sum(axis=1) / 2, means].astype(dtype)
    away = np.sqrt(((x[:, None] - means) ** 2).sum(axis=2))
    least = np.partition(away, 1, axis=1)
    for few in (True, False):
        for nearest in (True, False):

            def over(natural, blocks, few=few, nearest=nearest):
                return labels(natural, blocks, np.int64(len(x)), few, nearest)

            with double_precision():
                program = jax.jit(one_kernel(over, few), compiler_options=FEW)
                found, more = jax.tree.map(lambda a: np.asarray(a)[: len(x)], program(natural, blocks))
            assert (found == (x @ means.T - (means**2).sum(axis=1) / 2).argmax(axis=1)).all()
            if nearest:
                exact = least[:, 1] - least[:, 0]
                assert (more <= exact).all()
                assert_allclose(more, exact, atol=1e-6 if dtype == np.float64 else 0.05)


@pytest.mark.parametrize("name", ["VVI", "VII", "EEI", "EII", "VVV"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_densities_of_many_clusters_are_those_of_scipy(name, dtype):
    """So many that no kernel is made: distances without correlations are added up feature by feature."""
    rng = np.random.default_rng(0)
    k, d = 200, 5
    x, means, spreads = rng.normal(size=(400, d)), 3 * rng.normal(size=(k, d)), rng.gamma(4, size=(k, d)) / 4
    spreads = spreads[:1] if name.startswith("E") else spreads
    spreads = spreads[:, 0] if name[1:] == "II" else spreads
    values = spreads if name != "VVV" else spreads[:, :, None] * np.eye(d) + 0.1
    weights = rng.dirichlet(np.ones(k))
    mixture = bm.GaussianMixture(
        *(a.astype(dtype) for a in (weights, means)), Covariance(values.astype(dtype), name)
    )
    assert not density.is_written_out(mixture)
    exact = np.stack(
        [
            np.log(w) + multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(weights, means, np.asarray(mixture.covariances, float))
        ],
        axis=1,
    )
    rounding = {"rtol": 1e-10} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-5}
    assert_allclose(mixture.log_density(x.astype(dtype)), logsumexp(exact, axis=1), **rounding)
    assert_allclose(mixture.responsibilities(x.astype(dtype)), softmax(exact, axis=1), **rounding)
    near = np.sort(exact, axis=1)
    clear = near[:, -1] - near[:, -2] > 1e-3
    assert (mixture.classify(x.astype(dtype)) == exact.argmax(axis=1))[clear].all()
    assert clear.mean() > 0.9


@pytest.mark.parametrize(
    ("name", "d"), [("VVV", 2), ("VVV", 9), ("EEE", 3), ("VVI", 6), ("VII", 2), ("V", 1)]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_densities_by_one_kernel_are_those_of_numpy(name, d, dtype, made, monkeypatch):
    x = sample(700, d).astype(dtype)
    mixture = bm.fit(bm.MixtureModel(3, name), x, key=0).mixture
    weights = np.append(mixture.weights, 0)  # a cluster of no weight has no density
    values = (
        mixture.covariance.values
        if mixture.covariance.row.shared
        else mixture.covariance.values[[0, 1, 2, 0]]
    )
    means = np.concatenate([mixture.means, mixture.means[:1] + 1])
    mixture = replace(
        mixture, weights=weights, means=means, covariance=replace(mixture.covariance, values=values)
    )
    x[0] = 1e30 if dtype == np.float32 else 1e200  # no density at all
    calls = [
        lambda: mixture.log_joint(x),
        lambda: mixture.log_density(x),
        lambda: mixture.responsibilities(x[1:]),
        lambda: mixture.classify(x[1:]),
        lambda: mixture.within(x, radius=2.0),
        lambda: mixture._each(density.report, x[1:], last=True),
    ]
    with np.errstate(over="ignore"):
        theirs = [call() for call in calls]
    monkeypatch.setattr(evaluate, "_FEW", 0)
    monkeypatch.setattr(evaluate, "_ROWS", 256)  # more than one chunk
    before = made(evaluate._map_blocks)
    ours = [call() for call in calls]
    assert made(evaluate._map_blocks) > before
    exact = 1e-12 if dtype == np.float64 else 1e-4
    for own, other in zip(ours, theirs, strict=True):
        assert own.dtype == other.dtype
        assert_allclose(own, other, rtol=exact, atol=exact)
    assert theirs[1][0] == -np.inf


@pytest.mark.parametrize(("n", "d", "few"), [(100, 8, True), (100, 9, False), (9000, 9, True)])
def test_many_features_of_few_points_are_not_worth_a_kernel(n, d, few):
    x = sample(n, d)
    problem = prepare(3, "VVV", x, None, 1e-4)
    states = begin([given_start(x[:3], problem)], Options())
    assert climb.suited(Options(), states, problem.observations).few == few
