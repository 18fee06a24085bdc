"""scikit-learn's own tests of its mixtures and k-means, from the installed scikit-learn, run against our classes.

Run: python tests/peer_suites.py [pytest options]     (minutes; no part of the test suite)

The classes are substituted before the test files load, so not a line of them is changed. A test counts as private where
it calls functions of scikit-learn or private methods rather than the class; it is run and listed apart. A public test
that fails makes the exit status 1.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

os.environ["SKLEARN_RUN_FLOAT32_TESTS"] = "1"
# Compiled programs are kept where the tests keep theirs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# What does not test the public behaviour of the class, by the beginning of the test's name, and why.
PRIVATE = {
    "test_suffstat_sk_": "private functions of the M-step",
    "test_gaussian_suffstat_sk_spherical": "private functions of the M-step",
    "test_compute_log_det_cholesky": "private function",
    "test_gaussian_mixture_log_probabilities": "private function",
    "test_gaussian_mixture_precisions_init[": "private method _initialize",
    "test_gaussian_mixture_all_init_does_not_estimate": "counts calls of private functions",
    "test_gaussian_mixture_array_api_compliance": "arrays of other libraries, an experiment of scikit-learn's",
    "test_gaussian_mixture_raises_where_array_api_not_implemented": "arrays of other libraries",
    "test_relocate_empty_clusters": "private function",
    "test_minibatch": "MiniBatchKMeans",
    "test_euclidean_distance": "private function",
    "test_inertia": "private function",
    "test_kmeans_plusplus_": "the function kmeans_plusplus",
    "test_is_same_clustering": "private function",
    "test_sample_weight_init": "private method _init_centroids",
    "test_sample_weight_zero": "private method _init_centroids",
}
OTHER = (
    "MiniBatchKMeans",
    "BayesianGaussianMixture",
    "estimator1",
)  # another class, by its name in the parameters


class Recorder:
    """What became of each test, and the line that says why."""

    def __init__(self) -> None:
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("::", 1)[1]
        if report.when == "call" or not report.passed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = (
                str(report.longrepr[2])
                if isinstance(report.longrepr, tuple)
                else getattr(crash, "message", "")
            )
            self.outcomes[name] = report.outcome, " ".join(why.split())[:160]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed", str(report.longrepr)[-300:]


def suite(module: str, options: list[str]) -> dict[str, tuple[str, str]]:
    recorder = Recorder()
    own = ["-c", os.devnull, "-q", "--no-header", "--tb=short", "--no-summary", "-p", "no:cacheprovider"]
    pytest.main([*own, "--pyargs", module, *options], plugins=[recorder])
    return recorder.outcomes


def kind(name: str) -> str | None:
    """Why a test is none of the class's public behaviour, or `None`."""
    for beginning, why in PRIVATE.items():
        if name.startswith(beginning):
            return why
    return next((f"{other}, another class" for other in OTHER if other in name.partition("[")[2]), None)


def main(options: list[str]) -> int:
    import sklearn
    import sklearn.cluster._kmeans
    import sklearn.mixture

    from bayesmix.sklearn import GaussianMixture, KMeans

    sklearn.mixture.GaussianMixture = GaussianMixture
    outcomes = suite("sklearn.mixture.tests.test_gaussian_mixture", options)
    outcomes |= suite("sklearn.mixture.tests.test_mixture", options)
    sklearn.cluster.KMeans = sklearn.cluster._kmeans.KMeans = KMeans
    of_means = suite("sklearn.cluster.tests.test_k_means", options)

    wrong = 0
    table = []
    for title, found in (("GaussianMixture", outcomes), ("KMeans", of_means)):
        count = Counter()
        print(f"\n{title}, with the tests of scikit-learn {sklearn.__version__}")
        for name, (outcome, why) in sorted(found.items()):
            private = kind(name)
            label = "private" if private else outcome
            count[label] += 1
            if private:
                print(f"  private  {name}: {private} ({outcome})")
            elif outcome != "passed":
                print(f"  {outcome}  {name}: {why}")
                wrong += outcome == "failed"
        table.append((title, count["passed"], count["failed"], count["skipped"], count["private"]))
    print(f"\n{'class':18}{'passed':>8}{'failed':>8}{'skipped':>9}{'private':>9}")
    for title, *counts in table:
        print(f"{title:18}{counts[0]:8}{counts[1]:8}{counts[2]:9}{counts[3]:9}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
