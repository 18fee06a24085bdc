"""Online EM and mini-batch k-means against all data at each step, and against scikit-learn's MiniBatchKMeans.

    uv run --group benchmarks python benchmarks/online.py [--repeats 5]

Whole warm calls with one start each, from starts of their own, on the same data; each repeat has another seed. Seconds and
what they come to a row (log-likelihood in nats, or inertia) are medians of the repeats, printed and written as JSON lines.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

from shared import versions, write  # isort: skip: before NumPy

import numpy as np

import bayesmix as bm

MIXTURES = ((1_000_000, 4, 8, "full", "float64"), (1_000_000, 16, 64, "diag", "float32"))
CENTERS = ((100_000, 10, 10), (1_000_000, 16, 64))


def sample(n, d, k, dtype):
    rng = np.random.default_rng(0)
    means = (3 * rng.normal(size=(k, d))).astype(dtype)
    return (means[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(dtype)


def mixtures(n, d, k, kind, dtype):
    x, model = sample(n, d, k, dtype), bm.MixtureModel(k, kind)

    def call(method, key):
        return bm.fit(model, x, method=method, n_starts=1, key=key).log_likelihood

    return {name: partial(call, method) for name, method in (("online", "online"), ("all_rows", "soft"))}


def centers(n, d, k):
    from sklearn.cluster import MiniBatchKMeans

    x = sample(n, d, k, "float32")

    def ours(size, key):
        return bm.kmeans(x, k, n_starts=1, key=key, batch_size=size).inertia

    def theirs(size, key):
        return MiniBatchKMeans(k, batch_size=size, n_init=1, random_state=key).fit(x).inertia_

    contenders = {"all_rows": partial(ours, None)}
    for size in (1024, 4096):
        contenders |= {f"online_{size}": partial(ours, size), f"sklearn_{size}": partial(theirs, size)}
    return contenders


def measured(contenders, n, repeats):
    """Seconds and what is reached, of each contender; they take turns."""
    found = {name: ([], []) for name in contenders}
    for call in contenders.values():
        call(0)
    for key in range(1, repeats + 1):
        for name, call in contenders.items():
            clock = time.perf_counter()
            reached = float(call(key)) / n
            found[name][0].append(time.perf_counter() - clock)
            found[name][1].append(reached)
    row = {}
    for name, (seconds, reached) in found.items():
        row |= {
            f"{name}_s": round(statistics.median(seconds), 3),
            f"{name}_a_row": round(statistics.median(reached), 5),
        }
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "online.jsonl"))
    options = parser.parse_args()
    stamp, rows = versions("scikit-learn"), []
    tasks = [("mixture", mixtures, size) for size in MIXTURES] + [
        ("k-means", centers, size) for size in CENTERS
    ]
    for what, contenders, size in tasks:
        sizes = dict(zip(("n", "d", "k", "covariance", "dtype"), size))
        row = (
            {"benchmark": "online", "what": what}
            | sizes
            | measured(contenders(*size), size[0], options.repeats)
        )
        print(row, flush=True)
        rows.append(row | stamp)
    write(rows, options.out)


if __name__ == "__main__":
    main()
