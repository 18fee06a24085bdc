"""The same data and the same start as other software had must give the same numbers.

The references are results, not code: mclust 6.0.0, Rmixmod 2.1.10 and scikit-learn 1.9.1 ran elsewhere.
"""

import numpy as np
import pytest
from cases import FEW
from numpy.testing import assert_allclose, assert_array_equal
from reference import load, rows

import bayesmix as bm
from bayesmix.covariance import ALIASES, STRUCTURES

ME = ("faithful", "faithful_eruptions", "faithful_waiting", "iris", "galaxies_mass_velocity")
COMMON_AXES = ("EVE", "VVE")
COLUMN = {"eruptions": 0, "waiting": 1, "velocity": 0}


def some(run):
    """Structures that differ in kind: each case has programs of its own, and what all have in common is seen above."""
    return run["model"] in FEW


def me_cases():
    """Every structure with three clusters, with two those that differ in kind."""
    for name in ME:
        reference = load(f"me_{name}.json.gz")
        for run in reference["runs"]:
            if (
                run["model"] in STRUCTURES
                and run["loglik"] is not None
                and (run["G"] > 2 or run["model"] in FEW)
            ):
                yield pytest.param(name, run, id=f"{name}-{run['model']}-{run['z']}-{run['stage']}")


@pytest.mark.parametrize(("name", "run"), list(me_cases()))
def test_em_from_given_memberships_is_mclusts(name, run):
    reference = load(f"me_{name}.json.gz")
    x = rows(reference["dataset"])
    x = (x if reference["column"] is None else x[:, [COLUMN[reference["column"]]]]) / reference["divided_by"]
    z = np.array(reference["z_inputs"][run["z"]]["z"], float)
    steps = {"iter1": 1, "iter5": 5}.get(run["stage"])
    fit = bm.fit(
        bm.MixtureModel(run["G"], run["model"]),
        x,
        init=z / z.sum(axis=1, keepdims=True),
        max_steps=steps or 100_000,
        tol=0 if steps else 1e-8,
    )
    assert fit.n_parameters == run["df"]
    assert_array_equal(fit.labels, np.argmax(fit.mixture.responsibilities(x), axis=1))
    if (
        run["model"] in COMMON_AXES
    ):  # its inner iteration stops short, and a better M-step need not end higher
        assert np.diff(fit.objective).min(initial=0) >= -1e-10 * abs(fit.objective[-1])
        return
    if steps is None:  # mclust stops earlier, so ours is at least as high, and the same optimum
        assert fit.log_likelihood >= run["loglik"] - 1e-8 * abs(run["loglik"])
        if run["stage"] == "tight":
            assert_allclose(fit.log_likelihood, run["loglik"], atol=1e-4)
        return
    assert fit.n_steps == steps
    assert_allclose(fit.log_likelihood, run["loglik"], rtol=1e-8)
    rtol = {"VEE": 1e-6, "VEI": 1e-8}.get(run["model"], 1e-8)
    if steps == 1:
        scale = np.abs(x).max(axis=0)
        assert_allclose(fit.mixture.weights, run["pro"], rtol=1e-8)
        assert_allclose(
            fit.mixture.means / scale, np.reshape(run["mean"], fit.mixture.means.shape) / scale, rtol=1e-8
        )
        covariances = run["covariances"] if run.get("covariances") else run["variances"]
        assert_allclose(
            fit.mixture.covariances,
            np.reshape(covariances, fit.mixture.covariances.shape),
            rtol=rtol,
            atol=rtol * x.var(axis=0).min(),
        )
        assert_allclose(-fit.icl, run["icl"], rtol=1e-8)


@pytest.mark.parametrize("name", ["faithful", "iris"])
@pytest.mark.parametrize("model", COMMON_AXES)
def test_one_m_step_with_common_axes_is_at_least_as_good_as_mclusts(name, model):
    reference = load(f"me_{name}.json.gz")
    x = rows(reference["dataset"]) / reference["divided_by"]
    steps = [m for m in reference["mstep"] if m["model"] == model and m["Q"] is not None]
    assert len(steps) >= 6
    for step in steps:
        z = np.array(reference["z_inputs"][step["z"]]["z"], float)
        z = z / z.sum(axis=1, keepdims=True)
        fit = bm.fit(bm.MixtureModel(step["G"], model), x, init=z, max_steps=1, tol=0)
        assert np.sum(z * fit.mixture.log_joint(x)) >= step["Q"] - 1e-8 * abs(step["Q"])
        nested = {}
        for other in ("VVI", "VVV"):
            wider = bm.fit(bm.MixtureModel(step["G"], other), x, init=z, max_steps=1, tol=0)
            nested[other] = np.sum(z * wider.mixture.log_joint(x))
        if model == "VVE":
            assert nested["VVI"] <= np.sum(z * fit.mixture.log_joint(x)) <= nested["VVV"]


def equal_cases():
    for run in filter(some, load("equal_pro.json.gz")["runs"]):
        yield pytest.param(run, id=f"{run['dataset']}-{run['model']}-{run['G']}")


@pytest.mark.parametrize("run", list(equal_cases()))
def test_equal_proportions_are_mclusts(run):
    x = rows(run["dataset"]) / (1000 if run["dataset"] == "galaxies_mass" else 1)
    fit = bm.fit(
        bm.MixtureModel(run["G"], run["model"]),
        x,
        init=np.array(run["z_in_class"]) - 1,
        hold="weights",
        tol=1e-9,
    )
    assert_allclose(fit.mixture.weights, 1 / run["G"])
    assert fit.n_parameters == run["df"]
    if run["model"] in (
        *COMMON_AXES,
        "VEE",
        "EVV",
    ):  # its equal-proportion VEE and EVV end hundreds of nats too low
        assert fit.log_likelihood >= run["loglik"] - 0.05
        return
    assert_allclose(fit.log_likelihood, run["loglik"], rtol=1e-7)
    assert_allclose(fit.mixture.means, np.reshape(run["mean"], fit.mixture.means.shape), rtol=1e-3, atol=1e-3)


def test_parameter_counts_are_mclusts():
    table = load("df_table.json")["table"]
    assert {row["model"] for row in table} == set(STRUCTURES)
    for row in table:
        k, d, structure = row["G"], row["d"], STRUCTURES[row["model"]]
        assert structure.n_parameters(k, d) == row["var_df"], row
        assert structure.n_parameters(k, d) + k * d + k - 1 == row["df"]


def cem_cases():
    for run in load("cem.json.gz")["runs"]:
        if run["model"] in STRUCTURES and not run.get("degenerate_at") and some(run):
            yield pytest.param(run, id=f"{run['dataset']}-{run['model']}-{run['G']}")


@pytest.mark.parametrize("run", list(cem_cases()))
def test_hard_em_from_a_given_partition_is_mclusts(run):
    x = rows(run["dataset"]) / run["divided_by"]
    start = np.array(run["start_class"]) - 1
    model = bm.MixtureModel(run["G"], run["model"])
    fit = bm.fit(model, x, method="hard", init=start)
    assert fit.converged, fit.status
    assert np.all(np.diff(fit.objective) >= -1e-9 * abs(fit.objective[-1]))
    if run["model"] in COMMON_AXES:
        return
    assert_array_equal(fit.labels, np.array(run["classification"]) - 1)
    assert_allclose(fit.mixture.weights, run["pro"], rtol=1e-8)
    assert_allclose(fit.mixture.means, np.reshape(run["mean"], fit.mixture.means.shape), rtol=1e-8)
    first = bm.fit(model, x, method="hard", init=start, max_steps=1)
    assert_array_equal(first.labels, np.array(run["class_after_1_2_3"][0]) - 1)


def weighted_cases():
    for run in load("weighted.json.gz")["runs"]:
        if run["model"] in STRUCTURES:
            yield pytest.param(run, id=f"{run['dataset']}-{run['model']}-{run['stage']}")


@pytest.mark.parametrize("run", list(weighted_cases()))
def test_weighted_em_is_mclusts(run):
    x = rows(run["dataset"]) / run["divided_by"]
    weight = (1 + np.arange(len(x)) % 3) / 3
    fit = bm.fit(
        bm.MixtureModel(run["G"], run["model"]),
        x,
        init=np.array(run["z_in_class"]) - 1,
        sample_weight=weight,
        max_steps=1 if run["stage"] == "iter1" else 100_000,
        tol=0 if run["stage"] == "iter1" else 1e-9,
    )
    if run["model"] in COMMON_AXES:
        assert np.diff(fit.objective).min(initial=0) >= -1e-9 * abs(fit.objective[-1])
        return
    last = run["stage"] == "tight"
    assert_allclose(fit.log_likelihood, run["weighted_loglik"], rtol=1e-8)
    assert_allclose(fit.mixture.weights, run["pro"], rtol=1e-4 if last else 1e-8)
    assert_allclose(
        fit.mixture.means, np.reshape(run["mean"], fit.mixture.means.shape), rtol=1e-4 if last else 1e-8
    )


def mixmod_cases():
    for name in ("faithful", "iris", "galaxies_mass"):
        for run in load(f"mixmod_{name}.json.gz")["runs"]:
            usual = run["algorithm"] == "EM" and run["proportions"] == "free"
            if run["model"] in (STRUCTURES if usual else FEW) and run.get("loglik") is not None:
                words = (name, run["algorithm"], run["proportions"], run["model"], run["iterations"])
                yield pytest.param(name, run, id="-".join(map(str, words)))


@pytest.mark.parametrize(("name", "run"), list(mixmod_cases()))
def test_em_and_hard_em_from_given_parameters_are_mixmods(name, run):
    reference = load(f"mixmod_{name}.json.gz")
    x = rows(name) / reference["divided_by"]
    k, d = reference["K"], x.shape[1]
    free = run["proportions"] == "free"
    start = bm.GaussianMixture.of(
        reference["start"]["pro_free"] if free else np.full(k, 1 / k),
        np.reshape(reference["start"]["mean"], (k, d)),
        np.broadcast_to(reference["start"]["v0"] * np.eye(d), (k, d, d)),
        covariance=run["model"],
    )
    fit = bm.fit(
        bm.MixtureModel(k, run["model"]),
        x,
        method={"CEM": "hard", "EM": "soft"}[run["algorithm"]],
        init=start,
        hold=() if free else ("weights",),
        tol=0,
        max_steps=run["iterations"],
    )
    assert fit.n_steps == run["iterations"]
    assert_allclose(fit.log_likelihood, run["loglik"], rtol=1e-7)
    assert_allclose(fit.mixture.means, np.reshape(run["mean"], (k, d)), rtol=1e-6)


def sklearn_cases():
    for name in ("faithful_k2", "faithful_k3", "iris_k3", "ruspini_k4", "galaxies_mass_k3"):
        for run in load(f"gmm_{name}.json.gz")["runs"]:
            if run["reg_covar"] == 0 and run["tol"] == 0 and run["max_iter"] <= 10:
                yield pytest.param(name, run, id=f"{name}-{run['covariance_type']}-{run['max_iter']}")


@pytest.mark.parametrize(("name", "run"), list(sklearn_cases()))
def test_em_from_given_parameters_is_scikit_learns(name, run):
    reference = load(f"gmm_{name}.json.gz")
    x = rows(reference["dataset"])
    k, d = reference["k"], x.shape[1]
    kind = run["covariance_type"]
    precisions = np.array(reference["precisions_init"][kind], float)
    covariances = (
        np.linalg.inv(precisions)
        if precisions.shape[-2:] == (d, d) and kind in ("full", "tied")
        else 1 / precisions
    )
    start = bm.GaussianMixture.of(
        reference["weights_init"], np.reshape(reference["means_init"], (k, d)), covariances, covariance=kind
    )
    fit = bm.fit(bm.MixtureModel(k, kind), x, init=start, tol=0, max_steps=run["max_iter"])
    assert fit.mixture.structure == ALIASES[kind]
    assert_allclose(fit.log_likelihood / len(x), run["score"], rtol=1e-9)
    assert_allclose(fit.mixture.weights, run["weights"], rtol=1e-7)
    assert_allclose(fit.mixture.means, np.reshape(run["means"], (k, d)), rtol=1e-7)
    assert_allclose(fit.bic, run["bic"], rtol=1e-9)
    assert_allclose(fit.aic, run["aic"], rtol=1e-9)
    assert fit.n_parameters == run["n_parameters"]
    assert_array_equal(fit.labels, run["labels"])


def kmeans_cases():
    for name in (
        "faithful_k2_r1",
        "iris_k2_r100",
        "iris_k3_r50",
        "ruspini_k4_r1",
        "ruspini_k4_r20",
        "xclara_k3_r1000",
    ):
        for run in load(f"kmeans_{name}.json.gz")["runs"]:
            if run["algorithm"] == "lloyd" and run["tol"] == 0:
                yield pytest.param(name, run, id=f"{name}-{run['stage']}-{run['sample_weight']}")


@pytest.mark.parametrize(("name", "run"), list(kmeans_cases()))
def test_kmeans_is_scikit_learns_lloyd_step_for_step(name, run):
    reference = load(f"kmeans_{name}.json.gz")
    x = rows(reference["dataset"])
    weight = 1 + np.arange(len(x)) % 3 if run["sample_weight"] else None
    fit = bm.kmeans(
        x, reference["k"], init=reference["init"], sample_weight=weight, max_steps=run["max_iter"]
    )
    assert_allclose(fit.mixture.means, run["centers"], rtol=1e-9, atol=1e-9)
    assert_array_equal(fit.labels, run["labels"])
    assert_allclose(fit.inertia, run["inertia"], rtol=1e-9)
    if run["stage"] == "converged":
        assert fit.converged
        again = bm.kmeans(x, reference["k"], init=fit.mixture.means, sample_weight=weight)
        assert_array_equal(again.labels, fit.labels)


@pytest.mark.parametrize("name", ["faithful_k2_r1", "iris_k3_r50", "ruspini_k4_r1", "xclara_k3_r1000"])
def test_kmeans_finds_scikit_learns_best_of_200(name):
    reference = load(f"kmeans_{name}.json.gz")
    fit = bm.kmeans(rows(reference["dataset"]), reference["k"])
    assert fit.inertia <= reference["best_of_200_kmeanspp"]["inertia"] * (1 + 1e-9)


def test_an_empty_cluster_of_kmeans_is_moved():
    reference = load("kmeans_empty_cluster.json")
    fit = bm.kmeans(reference["X"], 3, init=reference["init"])
    assert fit.converged
    assert set(fit.labels) == {0, 1, 2}
    assert fit.inertia <= reference["sklearn_inertia"] + 1e-12
    centres = [np.mean(np.array(reference["X"])[fit.labels == j]) for j in range(3)]
    assert_allclose(fit.mixture.means[:, 0], centres, atol=1e-12)


@pytest.mark.parametrize("index", range(6))
def test_log_density_is_mclusts_out_to_a_million_standard_deviations(index):
    case = load("density.json")["cases"][index]
    parameters = case["parameters"]
    structure = case["model"] if case["model"] in STRUCTURES else "VVV"
    k = case["G"]
    means = np.reshape(parameters["mean"], (k, -1))
    d = means.shape[1]
    covariances = parameters.get("covariances") or parameters["variances"]
    covariances = np.broadcast_to(np.reshape(covariances, (-1, d, d)), (k, d, d))
    mixture = bm.GaussianMixture.of(parameters["pro"], means, covariances, covariance=structure)
    points = np.reshape(case["points"], (-1, d))
    expected = np.array([float(v) for v in case["log_density"]])
    finite = np.isfinite(expected)
    assert_allclose(mixture.log_density(points)[finite], expected[finite], rtol=1e-9)
    r = mixture.responsibilities(points)
    assert np.isfinite(r).all()
    assert_allclose(r.sum(axis=1), 1, rtol=1e-12)
