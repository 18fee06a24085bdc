"""One EM iteration, bayesmix against scikit-learn, alternated in one process.

    uv run --group benchmarks python benchmarks/em_iteration.py [--sizes 272,2,2 100000,10,10] [--dtype float64]

Both start from the same parameters. An iteration costs the difference between a run of many steps and a run of few,
divided by the steps between; medians of the repeats, and their ratio, are printed and written as JSON lines. The
peer's threads are pinned to the number of cores. Means after the same number of steps are compared, so that both
did the same work.
"""

import argparse
import statistics
import time
import warnings

from shared import versions, write  # isort: skip: before NumPy

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Peer

import bayesmix as bm
from bayesmix.drive import begin
from bayesmix.initialize import given_start
from bayesmix.inputs import double_precision
from bayesmix.loop import Options, advance
from bayesmix.problem import prepare

KINDS = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}
SIZES = ("272,2,2", "10000,2,5", "100000,10,10")


def sample(n, d, k, dtype):
    """Overlapping clusters with covariances of their own, and starting means near the true ones."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(k, d)) * 3
    factors = rng.normal(size=(k, d, d)) * 0.3 + np.eye(d)
    z = rng.integers(0, k, n)
    x = np.empty((n, d))
    for j in range(k):
        x[z == j] = rng.normal(size=((z == j).sum(), d)) @ factors[j] + means[j]
    return x.astype(dtype), (means + 0.3 * rng.normal(size=means.shape)).astype(dtype)


def start_of(x, means, kind):
    """The same starting parameters for both, in bayesmix's covariances and scikit-learn's precisions."""
    k, d = means.shape
    covariance = np.cov(x.T).reshape(d, d).astype(np.float64)
    full = {
        "full": np.tile(covariance, (k, 1, 1)),
        "tied": covariance,
        "diag": np.tile(np.diag(covariance), (k, 1)),
        "spherical": np.full(k, np.diag(covariance).mean()),
    }[kind]
    precisions = np.linalg.inv(full) if kind in ("full", "tied") else 1 / full
    values = full[None] if kind == "tied" else full
    mixture = bm.GaussianMixture.of(np.full(k, 1 / k), means.astype(float), values, covariance=kind)
    return mixture, precisions.astype(x.dtype)


def compare(n, d, k, kind, dtype, repeats):
    x, means = sample(n, d, k, dtype)
    mixture, precisions = start_of(x, means, kind)
    problem = prepare(k, KINDS[kind], x, None, 0.0)
    options = Options(whitened=x.dtype == np.float32)
    states = begin([given_start(mixture, problem)], options)
    work = n * k * (d * d if kind in ("full", "tied") else d)
    ours_steps, peer_steps = max(5, min(200, int(2e9 / work))), max(2, min(50, int(2e8 / work)))

    with double_precision():
        observations = jax.device_put(problem.observations)

        def ours(steps):
            clock = time.perf_counter()
            out = advance(states, np.array([steps]), observations, np.float64(1), problem.rules, options)
            jax.block_until_ready(out)
            return time.perf_counter() - clock, out

        def peer(steps):
            model = Peer(
                k,
                covariance_type=kind,
                tol=0,
                reg_covar=0,
                max_iter=steps,
                weights_init=np.full(k, 1 / k, x.dtype),
                means_init=means,
                precisions_init=precisions,
            )
            clock = time.perf_counter()
            model.fit(x)
            return time.perf_counter() - clock, model

        ours(2)
        mine, theirs = [], []
        for _ in range(repeats):
            mine.append((ours(2 + ours_steps)[0] - ours(2)[0]) / ours_steps)
            theirs.append((peer(1 + peer_steps)[0] - peer(1)[0]) / peer_steps)
        final, model = ours(3)[1], peer(3)[1]
    fitted = np.asarray(final.mixture.means[0]) * problem.units.scale + problem.units.origin
    a, b = statistics.median(mine), statistics.median(theirs)
    return {
        "n": n,
        "d": d,
        "k": k,
        "covariance": kind,
        "dtype": np.dtype(dtype).name,
        "bayesmix_ms": round(a * 1e3, 4),
        "sklearn_ms": round(b * 1e3, 4),
        "ratio": round(b / a, 1),
        "means_differ_by": float(np.abs(fitted - model.means_).max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="N,D,K")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the rows to this file, a JSON object a line")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    stamp = versions("scikit-learn")
    print(
        f"{'n':>9} {'d':>3} {'k':>3} {'covariance':>10} {'bayesmix ms':>12} {'sklearn ms':>11} {'ratio':>6}"
    )
    rows = []
    for size in arguments.sizes:
        n, d, k = map(int, size.split(","))
        for kind in arguments.kinds:
            row = compare(n, d, k, kind, np.dtype(arguments.dtype), arguments.repeats)
            rows.append(row | stamp)
            print(
                f"{n:9} {d:3} {k:3} {kind:>10} {row['bayesmix_ms']:12.4f} {row['sklearn_ms']:11.3f} {row['ratio']:6.1f}",
                flush=True,
            )
    if arguments.json:
        write(rows, arguments.json)


if __name__ == "__main__":
    main()
