"""Whole fits to the same log-likelihood: EM with a memory, EM's own steps, and scikit-learn's EM.

    uv run --group benchmarks python benchmarks/acceleration.py [--starts 20] [--problems faithful iris one]

Every contender begins at the same mixture (k random rows as means, equal weights, the pooled covariance). bayesmix runs
to convergence at its default tolerance, by EM's own steps and accelerated; a start counts where both end within 1e-3
nats of each other. scikit-learn takes as many EM steps as bayesmix's plain EM took, no fewer being enough for that
log-likelihood, and no more; its means are then the same, which is checked. A pass is an M-step and an E-step over all
rows, refused proposals included. Times are of warm calls of the public functions, alternating, threads pinned; medians
over the starts are printed, written as JSON lines, and with the first start of each problem drawn as a figure.
"""

import argparse
import statistics
import time
import warnings

from shared import versions, write  # isort: skip: before NumPy

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Peer

import bayesmix as bm


def overlapping(n, d, k, apart):
    rng = np.random.default_rng(0)
    means = apart * np.arange(k)[:, None] if d == 1 else apart * rng.normal(size=(k, d))
    return means[rng.integers(k, size=n)] + rng.normal(size=(n, d))


# data, clusters, words of both packages for the structure, starts at most
PROBLEMS = {
    "faithful": (lambda: bm.datasets.load("old_faithful").to_numpy(), 3, "full", 20),
    "iris": (lambda: bm.datasets.load("iris").to_numpy(), 3, "full", 20),
    "one": (lambda: overlapping(1000, 1, 3, 2.0), 3, "full", 20),
    "faithful_tied": (lambda: bm.datasets.load("old_faithful").to_numpy(), 5, "tied", 20),
    "ten_thousand": (lambda: overlapping(10_000, 2, 5, 1.5), 5, "full", 2),
}


def clock(call):
    begin = time.perf_counter()
    out = call()
    return time.perf_counter() - begin, out


def peer_of(start, kind, steps):
    covariances = start.covariances[0] if kind == "tied" else start.covariances
    return Peer(
        start.n_components,
        covariance_type=kind,
        tol=0,
        reg_covar=0,
        max_iter=steps,
        weights_init=start.weights,
        means_init=start.means,
        precisions_init=np.linalg.inv(covariances),
    )


def compare(name, most):
    load, k, kind, count = PROBLEMS[name]
    x, count = load(), min(count, most)
    model = bm.MixtureModel(k, kind)
    rng = np.random.default_rng(1)
    rows, paths = [], []
    for index in range(count):
        means = x[rng.choice(len(x), k, replace=False)]
        start = bm.fit(model, x, init=means, tol=0, max_steps=0).mixture
        if index == 0:  # compiles
            for which in (False, True):
                bm.fit(model, x, init=start, accelerate=which)
        own_time, own = clock(lambda: bm.fit(model, x, init=start, accelerate=False))  # noqa: B023
        fast_time, fast = clock(lambda: bm.fit(model, x, init=start, accelerate=True))  # noqa: B023
        if not (own.converged and abs(own.log_likelihood - fast.log_likelihood) < 1e-3):
            continue
        peer_time, peer = clock(lambda: peer_of(start, kind, own.n_steps).fit(x))  # noqa: B023
        assert np.allclose(peer.means_, own.mixture.means, rtol=1e-4, atol=1e-4), (
            "scikit-learn went elsewhere"
        )
        rows.append((own.n_steps, fast.n_steps, own_time, fast_time, peer_time))
        paths.append((own.objective, fast.objective))
    own_steps, fast_steps, own_time, fast_time, peer_time = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    return paths[0], {
        "problem": name,
        "n": len(x),
        "d": x.shape[1],
        "k": k,
        "covariance": kind,
        "starts": count,
        "same_log_likelihood": len(rows),
        "em_passes": own_steps,
        "accelerated_passes": fast_steps,
        "passes_ratio": round(own_steps / fast_steps, 1),
        "em_ms": round(own_time * 1e3, 2),
        "accelerated_ms": round(fast_time * 1e3, 2),
        "sklearn_ms": round(peer_time * 1e3, 2),
        "sklearn_over_accelerated": round(statistics.median(r[4] / r[3] for r in rows), 1),
        "sklearn_over_em": round(statistics.median(r[4] / r[2] for r in rows), 1),
    }


def draw(paths, file):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(paths), figsize=(4 * len(paths), 3.2), layout="constrained", squeeze=False
    )
    for ax, (name, (own, fast)) in zip(axes[0], paths.items(), strict=True):
        best = max(own[-1], fast[-1])
        for objective, label, style in ((own, "EM", "--"), (fast, "accelerated", "-")):
            left = np.maximum(best - objective, 1e-5)
            ax.loglog(np.arange(1, len(left) + 1), left, style, label=label)
        ax.set(title=name, xlabel="passes over the data")
    axes[0, 0].set_ylabel("nats left to gain")
    axes[0, 0].legend(frameon=False)
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--starts", type=int, default=20, help="at most")
    parser.add_argument("--json", help="write the rows to this file, a JSON object a line")
    parser.add_argument("--figure", help="draw the first start of each problem to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    stamp = versions("scikit-learn")
    paths, rows = {}, []
    for name in arguments.problems:
        paths[name], row = compare(name, arguments.starts)
        rows.append(row | stamp)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        write(rows, arguments.json)
    if arguments.figure:
        draw(paths, arguments.figure)


if __name__ == "__main__":
    main()
